//! What an extraction says: the adapter's card, notes, and why there is no adapter.

use std::collections::BTreeMap;

use super::changed::Changed;
use super::parts::Piece;
use super::{ExtractLora, LoraReport, parts};

impl ExtractLora<'_> {
    /// The text of the adapter's card.
    pub(super) fn card(&self, report: &LoraReport) -> String {
        let label = &self.base.label;
        let base = match crate::provenance::hub_ids(self.base).next() {
            Some(id) => format!("base_model: {id}\n"),
            None => String::new(),
        };
        format!(
            "---\n{base}library_name: peft\ntags:\n- lora\n- merganser\n---\n# The difference of {} and {label}\n\nA LoRA \
             adapter, extracted with merganser {}: {} modules of rank up to {}, relative error {:.3e}. What was kept of \
             each module is in `merganser.json`.\n",
            self.fine.label,
            env!("CARGO_PKG_VERSION"),
            report
                .modules
                .iter()
                .filter(|module| module.rank > 0)
                .count(),
            report.rank,
            report.error,
        )
    }

    /// Why there is no adapter.
    pub(super) fn nothing(&self, changed: &Changed, report: &LoraReport) -> String {
        let (fine, base) = (&self.fine.label, &self.base.label);
        let more = if changed.left_out > 0 {
            " among the modules that --include and --exclude leave"
        } else {
            ""
        };
        if !report.modules.is_empty() {
            return format!(
                "no direction of any changed matrix is kept{more}: they are no more than rounding, or below --sigma; there \
                 is no adapter of rank 0"
            );
        }
        let others: Vec<String> = changed
            .whole
            .iter()
            .chain(&changed.biases)
            .map(Piece::name)
            .collect();
        if others.is_empty() {
            return format!("{fine} and {base} are equal{more}: there is nothing to extract");
        }
        format!(
            "no matrix of a layer differs between {fine} and {base}{more}, only {} tensors that an adapter would save whole \
             ({}): a LoRA adapter needs at least one matrix; use `merganser extract task-vector`",
            others.len(),
            others[..others.len().min(3)].join(", ")
        )
    }

    /// Says what a user should know about the adapter.
    pub(super) fn remark(
        &self,
        report: &mut LoraReport,
        ranks: &BTreeMap<String, usize>,
        changed: &Changed,
    ) {
        let lost: Vec<&str> = report
            .modules
            .iter()
            .filter(|module| module.rank == 0)
            .map(|module| module.module.as_str())
            .filter(|module| !report.saved.contains(&format!("{module}.weight")))
            .collect();
        if !lost.is_empty() {
            report.notes.push(format!(
                "nothing is kept of the changes of {}: they are no more than rounding, or below --sigma",
                lost.join(", ")
            ));
        }
        if !report.biases.is_empty() {
            report.notes.push(format!(
                "{} biases are carried as lora_B.bias, which PEFT reads from version 0.14 on",
                report.biases.len()
            ));
            let biased = |module: &String| self.base.find(&format!("{module}.bias")).is_some();
            if !ranks.keys().all(biased) {
                report.notes.push(
                    "some adapted layers have no bias in the base: PEFT runs such an adapter but cannot merge it into the \
                     base; `merganser apply` can"
                        .to_owned(),
                );
            }
        }
        let factored = |piece: &&Piece| ranks.contains_key(&piece.module);
        let convolutions = changed.matrices.iter().filter(factored);
        let convolutions = convolutions.filter(|piece| !piece.kernel().is_empty());
        let convolutions: Vec<&str> = convolutions.map(|piece| piece.module.as_str()).collect();
        if !convolutions.is_empty() {
            report.notes.push(format!(
                "the factors of {} are those of convolutions of one group: a checkpoint does not say how many there are, and \
                 PEFT refuses such factors of more; if it does, save the module whole with --save-module",
                convolutions.join(", ")
            ));
        }
        if let Some(table) = self.tied_table(report, ranks) {
            report.notes.push(format!(
                "the models tie their output head to '{table}': PEFT changes the embedding alone and leaves the head as it is \
                 in the base; `merganser apply` changes both, and --save-module lm_head saves the head too"
            ));
        }
        if changed.left_out > 0 {
            report.notes.push(format!(
                "{} tensors were left out as --include and --exclude say, changed or not",
                changed.left_out
            ));
        }
    }

    /// The embedding that the output head shares, if the adapter changes it and not the head.
    fn tied_table(&self, report: &LoraReport, ranks: &BTreeMap<String, usize>) -> Option<String> {
        let table = parts::tied_table(self.base)?;
        let module = table.strip_suffix(".weight").unwrap_or(&table);
        let changed = ranks.contains_key(module) || report.saved.contains(&table);
        let head = format!("{}.weight", parts::HEAD);
        (changed && !report.saved.contains(&head)).then_some(table)
    }
}
