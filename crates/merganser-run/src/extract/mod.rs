//! From a fine-tune and its base to the PEFT adapter nearest to their difference.
//!
//! Every matrix of a linear layer, and every convolution as a matrix of outputs × (inputs · kernel), is decomposed
//! (`merganser_spectral::extract`), on its own and in `f64`; what is no such matrix and changed is saved whole. Directions that the rounding of the fine-tune's weights could have made are never
//! written. What an adapter cannot carry is an error or a note, by name.

mod config;
mod parts;
mod report;
mod spool;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use merganser_kernels::convert;
use merganser_linalg::Matrix;
use merganser_methods::CHUNK;
use merganser_plan::{Found, Model, kernel_float};
use merganser_spectral::{Precision, Rounding};
pub use merganser_spectral::{Scale, Sketch, Truncation};
use merganser_store::Dtype;
use merganser_store::header::{self, TensorSpec};
use merganser_store::publish::Staging;
use merganser_store::shard::ShardFile;
use rayon::prelude::*;
use serde_json::json;

use self::config::{Contents, is_inside};
pub use self::parts::{Filter, Wishes};
use self::parts::{Part, Parts, Piece};
pub use self::report::{LoraReport, ModuleReport};
use self::spool::{Place, Spool};
use crate::lanes::{affordable, in_lanes};
use crate::{Event, Observer, RunError, updates};

/// What every tensor of an adapter begins with.
const PREFIX: &str = "base_model.model.";
const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";

/// An extraction about to run.
pub struct ExtractLora<'a> {
    /// The fine-tune.
    pub fine: &'a Model,
    /// The model it was made from. Its label becomes the adapter's `base_model_name_or_path`.
    pub base: &'a Model,
    /// Where the adapter goes.
    pub out: &'a Path,
    /// How much is kept of every matrix.
    pub truncation: Truncation,
    /// Which factor carries the singular values.
    pub scale: Scale,
    /// Which modules are wanted.
    pub filter: Filter,
    /// What is factored or saved otherwise than usual.
    pub wishes: Wishes,
    /// Type of what is written; `None` takes that of each of the fine-tune's tensors.
    pub dtype: Option<Dtype>,
    /// Replace an adapter that is already there.
    pub overwrite: bool,
    /// Bytes of working memory that may be used.
    pub memory: u64,
}

/// Extracts an adapter on the current rayon pool.
///
/// # Errors
/// Models that do not fit or are equal, values that are not finite, an output folder that holds something else, a budget
/// too small for one matrix. The output folder is then as it was before.
pub fn extract_lora(
    job: &ExtractLora<'_>,
    observer: &dyn Observer,
) -> Result<LoraReport, RunError> {
    job.truncation
        .check()
        .map_err(|problem| spectral("", &problem))?;
    let parts = parts::sort(job.fine, job.base, &job.filter, &job.wishes)?;
    let lanes = job.lanes(&parts)?;
    let changed = Changed::of(job, parts)?;
    let existed = job.out.exists();
    let staging = Staging::begin(job.out, job.overwrite)?;
    staging.keep_only(&BTreeSet::new())?;
    match job.write(&staging, &changed, lanes, observer) {
        Ok((report, digest)) => {
            observer.event(Event::Publishing);
            let names = [WEIGHTS, CONFIG, "README.md", "merganser.json"];
            staging.publish(&digest, &names.map(str::to_owned).into())?;
            Ok(report)
        }
        Err(error) => {
            // There is nothing in it that a later run could use. What went wrong first is what the user should read.
            let _ = staging.discard();
            if !existed {
                let _ = std::fs::remove_dir(job.out);
            }
            Err(error)
        }
    }
}

/// What differs between the models, as far as that is known without a decomposition.
struct Changed {
    /// Matrices of layers, changed or not.
    matrices: Vec<Piece>,
    /// Changed tensors to be saved whole, and what else their modules hold.
    whole: Vec<Piece>,
    /// Changed biases of the layers of `matrices`.
    biases: Vec<Piece>,
    modules: BTreeSet<String>,
    unchanged: usize,
    left_out: usize,
    notes: Vec<String>,
}

impl Changed {
    fn of(job: &ExtractLora<'_>, parts: Parts) -> Result<Self, RunError> {
        let (mut matrices, others): (Vec<Piece>, Vec<Piece>) =
            parts.pieces.into_iter().partition(Piece::has_factors);
        let (mut others, same) = by_difference(job, others)?;
        refuse(job, &others)?;
        // PEFT cannot adapt a layer inside a module that it saves whole.
        let linear: BTreeSet<String> = matrices.iter().map(|piece| piece.module.clone()).collect();
        let outer: BTreeSet<String> = others
            .iter()
            .filter(|piece| piece.part == Part::Whole || !linear.contains(&piece.module))
            .map(|piece| piece.module.clone())
            .collect();
        let inside = |piece: &Piece| {
            let module = &piece.module;
            outer.contains(module) || outer.iter().any(|outer| is_inside(module, outer))
        };
        let (enclosed, rest): (Vec<Piece>, Vec<Piece>) = matrices.into_iter().partition(inside);
        matrices = rest;
        others.extend(enclosed);
        // And it loads a module that it saves whole only with all tensors of it.
        let (along, same): (Vec<Piece>, Vec<Piece>) = same.into_iter().partition(inside);
        others.extend(along);
        let linear: BTreeSet<&str> = matrices.iter().map(|piece| piece.module.as_str()).collect();
        let (biases, mut whole): (Vec<Piece>, Vec<Piece>) = others
            .into_iter()
            .partition(|piece| piece.part == Part::Bias && linear.contains(piece.module.as_str()));
        whole.sort_by_key(Piece::name);
        if !biases.is_empty() {
            refuse_biases(job, &biases, &matrices)?;
        }
        Ok(Self {
            matrices,
            whole,
            biases,
            modules: parts.modules,
            unchanged: same.len(),
            left_out: parts.left_out,
            notes: parts.notes,
        })
    }
}

/// The pieces that are not the same in both models, and those that are.
fn by_difference(
    job: &ExtractLora<'_>,
    pieces: Vec<Piece>,
) -> Result<(Vec<Piece>, Vec<Piece>), RunError> {
    let differs: Vec<bool> = pieces
        .par_iter()
        .map(|piece| job.differs(piece))
        .collect::<Result<_, _>>()?;
    let both = pieces.into_iter().zip(differs);
    let (changed, same): (Vec<_>, Vec<_>) = both.partition(|(_, differs)| *differs);
    let pieces = |list: Vec<(Piece, bool)>| list.into_iter().map(|(piece, _)| piece).collect();
    Ok((pieces(changed), pieces(same)))
}

/// Refuses changes that an adapter cannot carry.
fn refuse(job: &ExtractLora<'_>, changed: &[Piece]) -> Result<(), RunError> {
    let named = |bad: &dyn Fn(&Piece) -> bool| {
        let names: Vec<String> = changed.iter().filter(|p| bad(p)).map(Piece::name).collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    let advice = "leave it out with --exclude, or use `merganser extract task-vector`";
    if let Some(names) = named(&|piece| piece.part == Part::Exact) {
        return Err(RunError::Extract(format!(
            "{} changed whole numbers or switches of {}: {names}; an adapter cannot carry them: {advice}",
            job.fine.label, job.base.label
        )));
    }
    if let Some(names) = named(&|piece| piece.module.is_empty()) {
        return Err(RunError::Extract(format!(
            "{} changed parameters that belong to no module: {names}; PEFT cannot save them: {advice}",
            job.fine.label
        )));
    }
    Ok(())
}

/// Refuses biases of second factors beside factors of embeddings: PEFT does not load such an adapter.
fn refuse_biases(
    job: &ExtractLora<'_>,
    biases: &[Piece],
    matrices: &[Piece],
) -> Result<(), RunError> {
    let tables = matrices
        .iter()
        .filter(|piece| piece.part == Part::Embedding)
        .cloned();
    let Some(table) = by_difference(job, tables.collect())?.0.into_iter().next() else {
        return Ok(());
    };
    Err(RunError::Extract(format!(
        "{} changed '{}' and {} biases of layers, such as '{}': these become biases of second factors (`lora_bias`), beside \
         which PEFT loads no factors of embeddings; leave out --embed-lora, and embeddings are saved whole",
        job.fine.label,
        table.name(),
        biases.len(),
        biases[0].name(),
    )))
}

/// One tensor of the adapter's file and where its bytes come from.
struct Entry {
    spec: TensorSpec,
    content: Content,
}

enum Content {
    Spooled(Place),
    Saved(Piece),
}

impl ExtractLora<'_> {
    /// How many matrices may be in work at a time.
    fn lanes(&self, parts: &Parts) -> Result<usize, RunError> {
        let rank = self.truncation.rank.unwrap_or(usize::MAX);
        let largest = parts
            .pieces
            .iter()
            .filter(|piece| piece.has_factors())
            .map(|piece| {
                let (m, n) = piece.extents();
                (updates::bytes(m, n, rank), piece.name())
            })
            .max();
        match largest {
            Some((bytes, name)) => affordable(self.memory, bytes, &name),
            None => Ok(1),
        }
    }

    /// Whether a tensor is not the same in both models.
    fn differs(&self, piece: &Piece) -> Result<bool, RunError> {
        let Some(in_base) = piece.base.as_ref().filter(|_| !piece.forced) else {
            return Ok(true);
        };
        if piece.part == Part::Exact {
            return Ok(stored(self.fine, &piece.fine)? != stored(self.base, in_base)?);
        }
        let extents = piece.extents();
        let mut differs = false;
        let mut other = updates::Reader::open(self.base, in_base)?;
        updates::rows(self.fine, &piece.fine, extents, |_, values| {
            differs |= other.next(values.len()).is_some_and(|base| base != values);
        })?;
        other.finish()?;
        Ok(differs)
    }

    /// Writes everything into the staging folder.
    fn write(
        &self,
        staging: &Staging,
        changed: &Changed,
        lanes: usize,
        observer: &dyn Observer,
    ) -> Result<(LoraReport, String), RunError> {
        let size =
            |piece: &Piece| (piece.shape.iter().product::<usize>() * piece.dtype.size()) as u64;
        observer.event(Event::Started {
            tensors: changed.matrices.len(),
            bytes: changed.matrices.iter().map(size).sum(),
            reused: 0,
        });
        let spool = Spool::create(&staging.dir().join("spool"))?;
        let results = in_lanes(&changed.matrices, lanes, |piece| {
            let found = self.factors(piece, &spool)?;
            let bytes = size(piece);
            observer.event(Event::Progress { bytes });
            observer.event(Event::Tensor {
                name: &piece.fine,
                bytes,
            });
            Ok(found)
        })?;
        let unchanged = results.iter().filter(|found| found.is_none()).count();
        let mut report = LoraReport {
            unchanged: changed.unchanged + unchanged,
            left_out: changed.left_out,
            notes: changed.notes.clone(),
            ..LoraReport::default()
        };
        let mut entries = Vec::new();
        for (module, factors) in results.into_iter().flatten() {
            entries.extend(factors);
            report.modules.push(module);
        }
        let ranks: BTreeMap<String, usize> = report
            .modules
            .iter()
            .filter(|module| module.rank > 0)
            .map(|module| (module.module.clone(), module.rank))
            .collect();
        if ranks.is_empty() {
            return Err(RunError::Extract(self.nothing(changed, &report)));
        }
        let mut saved: BTreeSet<&str> = BTreeSet::new();
        for piece in changed.whole.iter().chain(&changed.biases) {
            if piece.part == Part::Bias && ranks.contains_key(&piece.module) {
                entries.push(self.bias(piece, &spool)?);
                report.biases.push(piece.name());
                continue;
            }
            saved.insert(&piece.module);
            // A bias whose matrix has no factors takes it along.
            let own = |matrix: &&Piece| piece.part == Part::Bias && matrix.module == piece.module;
            let matrix = changed.matrices.iter().find(own);
            for piece in std::iter::once(piece).chain(matrix) {
                report.saved.push(piece.name());
                entries.push(self.whole(piece));
            }
        }
        report.unchanged -= changed
            .matrices
            .iter()
            .filter(|matrix| saved.contains(matrix.module.as_str()))
            .filter(|matrix| report.modules.iter().all(|m| m.module != matrix.module))
            .count();
        self.remark(&mut report, &ranks, changed);
        let contents = Contents {
            base: self.base,
            ranks: ranks.iter().map(|(k, v)| (k.as_str(), *v)).collect(),
            saved,
            modules: &changed.modules,
            biases: !report.biases.is_empty(),
            fan_in_fan_out: parts::is_conv1d_family(self.base),
        };
        report.rank = contents.rank();
        report.error = report::total_error(&report.modules);
        report.modules.sort_by(|a, b| {
            crate::compare::place(&a.module).cmp(&crate::compare::place(&b.module))
        });
        report.bytes = self.assemble(staging, entries, &spool)?;
        let digest = self.describe(staging, &contents, &report)?;
        Ok((report, digest))
    }

    /// The factors of one matrix and what they keep; `None` if it did not change.
    fn factors(
        &self,
        piece: &Piece,
        spool: &Spool,
    ) -> Result<Option<(ModuleReport, Vec<Entry>)>, RunError> {
        let (rows, columns) = piece.extents();
        let in_base = piece.base.as_deref().unwrap_or(&piece.fine);
        // An adapter on top of the fine-tune is applied in single precision.
        let adapted = !self.fine.deltas(&piece.fine).is_empty();
        let stored = if adapted { Dtype::F32 } else { piece.dtype };
        let mut rounding = Rounding::new(precision(stored), columns);
        let fine = (self.fine, piece.fine.as_str());
        let mut update = updates::update(fine, (self.base, in_base), (rows, columns), |row| {
            rounding.take(row);
        })?;
        let norm = update.norm();
        if norm == 0.0 {
            return Ok(None);
        }
        if piece.transposed {
            update = update.transpose();
        }
        let found =
            merganser_spectral::extract(&update, &self.truncation, rounding.norm(), self.scale)
                .map_err(|problem| spectral(&piece.fine, &problem))?;
        let dtype = self.dtype_of(piece);
        let rank = found.a.rows();
        let mut entries = Vec::new();
        let (mut a, mut b) = (found.a, found.b);
        if rank > 0 {
            let (rows, columns) = (update.rows(), update.cols());
            for ((part, shape), factor) in layout(piece, rows, columns, rank)
                .into_iter()
                .zip([&mut a, &mut b])
            {
                let name = format!("{PREFIX}{}.{part}", piece.module);
                let (bytes, rounded) = encoded(factor, dtype, &name)?;
                entries.push(Entry {
                    spec: TensorSpec { name, dtype, shape },
                    content: Content::Spooled(spool.put(&bytes)?),
                });
                *factor = rounded;
            }
        }
        let report = ModuleReport {
            module: piece.module.clone(),
            shape: [update.rows(), update.cols()],
            rank,
            norm,
            error: merganser_spectral::relative_error(&update, &a, &b),
            energy: found.energy,
        };
        Ok(Some((report, entries)))
    }

    /// A tensor of the fine-tune, to be written as it is.
    fn whole(&self, piece: &Piece) -> Entry {
        Entry {
            spec: TensorSpec {
                name: format!("{PREFIX}{}", piece.name()),
                dtype: self.dtype_of(piece),
                shape: piece.shape.clone(),
            },
            content: Content::Saved(piece.clone()),
        }
    }

    /// The change of a bias, as the bias of its layer's second factor.
    fn bias(&self, piece: &Piece, spool: &Spool) -> Result<Entry, RunError> {
        let in_base = piece.base.as_deref().unwrap_or(&piece.fine);
        let len = piece.extents().0;
        let update = updates::update(
            (self.fine, &piece.fine),
            (self.base, in_base),
            (1, len),
            |_| {},
        )?;
        let name = format!("{PREFIX}{}.lora_B.bias", piece.module);
        let dtype = self.dtype_of(piece);
        let (bytes, _) = encoded(&update, dtype, &name)?;
        Ok(Entry {
            spec: TensorSpec {
                name,
                dtype,
                shape: vec![len],
            },
            content: Content::Spooled(spool.put(&bytes)?),
        })
    }

    /// Puts the file together; returns its size.
    fn assemble(
        &self,
        staging: &Staging,
        mut entries: Vec<Entry>,
        spool: &Spool,
    ) -> Result<u64, RunError> {
        // Wide types first, so that each tensor starts at a multiple of its element's size.
        entries.sort_by(|a, b| {
            let key = |entry: &Entry| std::cmp::Reverse(entry.spec.dtype.size());
            (key(a), &a.spec.name).cmp(&(key(b), &b.spec.name))
        });
        let specs: Vec<TensorSpec> = entries.iter().map(|entry| entry.spec.clone()).collect();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let layout = header::compose(&metadata, &specs).map_err(|error| {
            RunError::Extract(format!("the adapter cannot be written: {error}"))
        })?;
        let file = ShardFile::create(&staging.path(WEIGHTS)?, layout.file_len)?;
        file.write_at(0, &layout.header)?;
        for (entry, offset) in entries.iter().zip(layout.offsets) {
            match &entry.content {
                Content::Spooled(place) => spool.copy(*place, &file, offset)?,
                Content::Saved(piece) => self.save(piece, entry.spec.dtype, &file, offset)?,
            }
        }
        file.sync()?;
        Ok(layout.file_len)
    }

    /// Writes a tensor of the fine-tune as it is.
    fn save(
        &self,
        piece: &Piece,
        dtype: Dtype,
        file: &ShardFile,
        offset: u64,
    ) -> Result<(), RunError> {
        if piece.part == Part::Exact {
            let bytes = stored(self.fine, &piece.fine)?;
            return Ok(file.write_at(offset, &bytes)?);
        }
        let (rows, columns) = piece.extents();
        let mut result = Ok(());
        updates::rows(self.fine, &piece.fine, (rows, columns), |first, values| {
            if result.is_ok() {
                result = encode(values, dtype, &piece.fine).and_then(|bytes| {
                    let at = (first * columns * dtype.size()) as u64;
                    Ok(file.write_at(offset + at, &bytes)?)
                });
            }
        })?;
        result
    }

    /// Writes the small files; returns a digest of all that was extracted.
    fn describe(
        &self,
        staging: &Staging,
        contents: &Contents<'_>,
        report: &LoraReport,
    ) -> Result<String, RunError> {
        let put = |name: &str, text: &str| {
            let path = staging.path(name)?;
            std::fs::write(&path, text).map_err(RunError::io("write", &path))
        };
        let pretty = |value: &serde_json::Value| {
            serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
        };
        put(CONFIG, &pretty(&contents.json()))?;
        let model = |model: &Model| json!({ "model": model.label, "identity": model.identity() });
        let record = pretty(&json!({
            "merganser": env!("CARGO_PKG_VERSION"),
            "extracted": "lora",
            "fine_tune": model(self.fine),
            "base": model(self.base),
            "report": report,
        }));
        put("merganser.json", &record)?;
        put("README.md", &self.card(report))?;
        Ok(blake3::hash(record.as_bytes()).to_hex().to_string())
    }

    /// The text of the adapter's card.
    fn card(&self, report: &LoraReport) -> String {
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
    fn nothing(&self, changed: &Changed, report: &LoraReport) -> String {
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
    fn remark(&self, report: &mut LoraReport, ranks: &BTreeMap<String, usize>, changed: &Changed) {
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
                 in the base; `merganser apply` changes both"
            ));
        }
        if changed.left_out > 0 {
            report.notes.push(format!(
                "{} tensors were left out as --include and --exclude say, changed or not",
                changed.left_out
            ));
        }
    }

    /// The embedding that the output head shares, if the adapter changes it.
    fn tied_table(&self, report: &LoraReport, ranks: &BTreeMap<String, usize>) -> Option<String> {
        config::generates_text(self.base).then_some(())?;
        let Some(Found::Tied(table)) = self.base.find("lm_head.weight") else {
            return None;
        };
        let module = table.strip_suffix(".weight").unwrap_or(&table);
        let changed = ranks.contains_key(module) || report.saved.contains(&table);
        changed.then_some(table)
    }

    /// The type in which something of a piece is written.
    fn dtype_of(&self, piece: &Piece) -> Dtype {
        if piece.part == Part::Exact {
            return piece.dtype;
        }
        self.dtype.unwrap_or(match piece.dtype {
            // Factors have a wide range of values, and eight bits are too few for sums of products.
            Dtype::F8E4M3 | Dtype::F8E5M2 => Dtype::BF16,
            dtype => dtype,
        })
    }
}

/// Names and shapes of the factors A (rank × inputs) and B (outputs × rank) in PEFT: of a convolution, A has its kernel and B
/// one of a single element.
fn layout(
    piece: &Piece,
    outputs: usize,
    inputs: usize,
    rank: usize,
) -> [(&'static str, Vec<usize>); 2] {
    let kernel = piece.kernel();
    if piece.part == Part::Embedding {
        return [
            ("lora_embedding_A", vec![rank, inputs]),
            ("lora_embedding_B", vec![outputs, rank]),
        ];
    }
    let channels = inputs / kernel.iter().product::<usize>().max(1);
    let ones = vec![1; kernel.len()];
    [
        ("lora_A.weight", [&[rank, channels], kernel].concat()),
        ("lora_B.weight", [&[outputs, rank], &ones[..]].concat()),
    ]
}

/// The bytes of a tensor in its model's file.
fn stored(model: &Model, name: &str) -> Result<Vec<u8>, RunError> {
    let info = model.info(name).ok_or_else(|| RunError::Vanished {
        tensor: name.to_owned(),
        model: model.label.clone(),
    })?;
    Ok(model.checkpoint.read_all(info)?)
}

fn spectral(tensor: &str, problem: &merganser_spectral::Error) -> RunError {
    RunError::Extract(if tensor.is_empty() {
        problem.to_string()
    } else {
        format!("tensor '{tensor}': {problem}")
    })
}

/// A matrix in the type in which it is stored, as bytes and as numbers.
fn encoded(matrix: &Matrix, dtype: Dtype, name: &str) -> Result<(Vec<u8>, Matrix), RunError> {
    let mut values = matrix.cast::<f32>().into_vec();
    let bytes = encode(&values, dtype, name)?;
    if let Some(kind) = kernel_float(dtype) {
        convert::decode(kind, &bytes, &mut values);
    }
    let values = values.into_iter().map(f64::from).collect();
    let rounded = Matrix::new(matrix.rows(), matrix.cols(), values)
        .map_err(|error| RunError::Read(error.into()))?;
    Ok((bytes, rounded))
}

fn encode(values: &[f32], dtype: Dtype, name: &str) -> Result<Vec<u8>, RunError> {
    let kind = kernel_float(dtype).ok_or_else(|| RunError::NotFloat {
        tensor: name.to_owned(),
        dtype,
    })?;
    let mut bytes = vec![0; values.len() * dtype.size()];
    for (values, out) in values
        .chunks(CHUNK)
        .zip(bytes.chunks_mut(CHUNK * dtype.size()))
    {
        convert::encode(kind, values, out);
    }
    if !convert::encoded_finite(kind, &bytes) {
        return Err(RunError::Extract(format!(
            "'{name}' holds values that {dtype} cannot hold; choose another type with --dtype"
        )));
    }
    Ok(bytes)
}

/// The format in which a tensor's numbers are rounded.
fn precision(dtype: Dtype) -> Precision {
    let (digits, least) = match dtype {
        Dtype::BF16 => (8, -126),
        Dtype::F16 => (11, -14),
        Dtype::F8E4M3 => (4, -6),
        Dtype::F8E5M2 => (3, -14),
        // Wider ones are read as single precision.
        _ => (24, -126),
    };
    Precision { digits, least }
}
