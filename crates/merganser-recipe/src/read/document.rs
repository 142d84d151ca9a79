//! One YAML document → [`Document`].

use crate::diagnostic::{Diagnostic, quoted};
use crate::recipe::{Document, OutputKind};
use crate::span::Spanned;
use crate::yaml::{Kind, Node};

use super::{Fields, Reader, keys};

const EXAMPLE: &str = "merge_method: linear";

impl Reader {
    pub(super) fn document(&mut self, node: &Node) -> Option<Document> {
        if self.refuse_moe(node) {
            return None;
        }
        let fields = self.fields(node, "the recipe", keys::DOCUMENT, EXAMPLE)?;
        let name = fields
            .get("name")
            .and_then(|entry| self.text(&entry.value, "`name`", "name: first-merge"));
        let merge_method = self
            .required(&fields, "merge_method", "the recipe", EXAMPLE)
            .and_then(|entry| self.text(&entry.value, "`merge_method`", EXAMPLE));
        let base_model = self.base_model(&fields);
        let body = self.body(&fields, "a recipe", &["models", "slices", "modules"]);
        let parameters = self.parameters(&fields);
        let dtype = self.dtype(&fields, "dtype");
        let out_dtype = self.dtype(&fields, "out_dtype");
        let tokenizer = self.tokenizer(&fields);
        let chat_template = fields
            .get("chat_template")
            .and_then(|entry| self.text(&entry.value, "`chat_template`", "chat_template: auto"));
        let seed = fields
            .get("seed")
            .and_then(|entry| self.whole(&entry.value, "`seed`", 0, "seed: 42"));
        let prior = self.prior(&fields);
        let calibration = self.calibration(&fields);
        let output = self.output(&fields);
        let defence = self.defence(&fields);
        Some(Document {
            name,
            merge_method: merge_method?,
            base_model,
            body: body?,
            parameters,
            dtype,
            out_dtype,
            tokenizer,
            chat_template,
            seed,
            prior,
            calibration,
            output,
            defence,
            span: node.span,
        })
    }

    fn output(&mut self, fields: &Fields<'_>) -> Option<Spanned<OutputKind>> {
        let node = &fields.get("output")?.value;
        let word = self.text(node, "`output`", "output: adapter")?;
        let kind = match word.value.as_str() {
            "model" => OutputKind::Model,
            "adapter" => OutputKind::Adapter,
            other => {
                let note = Diagnostic::error(format!("`output` cannot be {}", quoted(other)))
                    .label(word.span, "expected `model` or `adapter`");
                self.note(note);
                return None;
            }
        };
        Some(Spanned::new(kind, word.span))
    }

    /// Recipes of mergekit-moe are another language; one message says so better than a dozen.
    fn refuse_moe(&mut self, node: &Node) -> bool {
        let Kind::Mapping(entries) = &node.kind else {
            return false;
        };
        let sign = entries
            .iter()
            .find(|e| matches!(e.key.value.as_str(), "experts" | "gate_mode"));
        let is_merge = entries.iter().any(|e| e.key.value == "merge_method");
        let Some(sign) = sign.filter(|_| !is_merge) else {
            return false;
        };
        self.note(
            Diagnostic::error("MoE recipes are not supported yet")
                .label(sign.key.span, "a key of mergekit-moe")
                .help("build the mixture of experts with `mergekit-moe`"),
        );
        true
    }
}
