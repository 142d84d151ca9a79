//! From a fine-tune and its base to the PEFT adapter nearest to their difference.
//!
//! Every matrix of a linear layer, and every convolution as a matrix of outputs × (inputs · kernel), is decomposed
//! (`merganser_spectral::extract`), on its own and in `f64`; what is no such matrix and changed is saved whole. Directions
//! that the rounding of the fine-tune's weights could have made are never written. What an adapter cannot carry is an
//! error or a note, by name.

mod changed;
mod config;
mod numbers;
mod parts;
mod report;
mod spool;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use merganser_plan::Model;
use merganser_spectral::Rounding;
pub use merganser_spectral::{Scale, Sketch, Truncation};
use merganser_store::Dtype;
use merganser_store::header::{self, TensorSpec};
use merganser_store::publish::Staging;
use merganser_store::shard::ShardFile;
use rayon::prelude::*;
use serde_json::json;

use self::changed::Changed;
use self::config::Contents;
use self::numbers::{encode, encoded, layout, stored};
pub use self::parts::{Filter, Overrides};
use self::parts::{Part, Parts, Piece};
pub use self::report::{LoraReport, ModuleReport};
use self::spool::{Outcome, Place, Spool};
use crate::lanes::{affordable, in_lanes};
use crate::place::refuse_own_inputs;
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
    pub overrides: Overrides,
    /// Type of what is written; `None` takes that of each of the fine-tune's tensors.
    pub dtype: Option<Dtype>,
    /// Replace an adapter that is already there.
    pub overwrite: bool,
    /// Bytes of working memory that may be used; unless given 2 GiB, or what one matrix takes.
    pub memory: Option<u64>,
}

/// Extracts an adapter on the current rayon pool.
///
/// # Errors
/// Models that do not fit or are equal, values that are not finite, an output folder that holds something else, a budget
/// too small for one matrix. The output folder is then as it was before. What was finished when a run is interrupted, or
/// fails over a file, is kept in the staging folder and reused by the next run of the same extraction.
pub fn extract_lora(
    job: &ExtractLora<'_>,
    observer: &dyn Observer,
) -> Result<LoraReport, RunError> {
    refuse_own_inputs(job.out, [job.fine, job.base])?;
    job.truncation
        .check()
        .map_err(|problem| spectral("", &problem))?;
    let parts = parts::sort(job.fine, job.base, &job.filter, &job.overrides)?;
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
        // No later run with these models can do better. What went wrong first is what the user should read.
        Err(error @ RunError::Extract(_)) => {
            let _ = staging.discard();
            if !existed {
                let _ = std::fs::remove_dir(job.out);
            }
            Err(error)
        }
        Err(error) => Err(error),
    }
}

/// One tensor of the adapter's file and where its bytes come from.
struct Entry {
    spec: TensorSpec,
    content: Content,
}

enum Content {
    Spooled(Place),
    Held(Vec<u8>),
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
        let spool = Spool::open(staging, &self.digest(changed))?;
        let known: Vec<Option<Outcome>> = changed
            .matrices
            .par_iter()
            .enumerate()
            .map(|(number, piece)| spool.find(number, &piece.name(), self.bytes_of_rank(piece)))
            .collect();
        let pending: Vec<(usize, &Piece)> = changed
            .matrices
            .iter()
            .enumerate()
            .filter(|(number, _)| known[*number].is_none())
            .collect();
        observer.event(Event::Started {
            tensors: pending.len(),
            bytes: pending.iter().map(|(_, piece)| size(piece)).sum(),
            reused: known.len() - pending.len(),
        });
        let found = in_lanes(&pending, lanes, |&(number, piece)| {
            let found = self.decompose(number, piece, &spool)?;
            let bytes = size(piece);
            observer.event(Event::Progress { bytes });
            observer.event(Event::Tensor {
                name: &piece.fine,
                bytes,
            });
            Ok(found)
        })?;
        let mut found = found.into_iter();
        let outcomes = known
            .into_iter()
            .filter_map(|known| known.or_else(|| found.next()));
        let results: Vec<_> = changed
            .matrices
            .iter()
            .zip(outcomes)
            .enumerate()
            .map(|(number, (piece, outcome))| self.factors(number, piece, outcome))
            .collect();
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
                entries.push(self.bias(piece)?);
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

    /// A digest of all that decides the factors.
    fn digest(&self, changed: &Changed) -> String {
        let mut text = format!(
            "extract lora {} {} {} {:?} {:?} {:?}",
            env!("CARGO_PKG_VERSION"),
            self.fine.identity(),
            self.base.identity(),
            self.truncation,
            self.scale,
            self.dtype,
        );
        for piece in &changed.matrices {
            text.push_str(&format!("\n{piece:?}"));
        }
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }

    /// Outputs and inputs of the layer of a matrix.
    fn extents(piece: &Piece) -> (usize, usize) {
        let (rows, columns) = piece.extents();
        if piece.transposed {
            (columns, rows)
        } else {
            (rows, columns)
        }
    }

    /// Bytes that one direction takes in the factors of a matrix.
    fn bytes_of_rank(&self, piece: &Piece) -> usize {
        let (outputs, inputs) = Self::extents(piece);
        (outputs + inputs) * self.dtype_of(piece).size()
    }

    /// Decomposes the change of one matrix and keeps its factors in the spool.
    fn decompose(&self, number: usize, piece: &Piece, spool: &Spool) -> Result<Outcome, RunError> {
        let (rows, columns) = piece.extents();
        let in_base = piece.base.as_deref().unwrap_or(&piece.fine);
        let mut rounding = Rounding::new(updates::precision(self.fine, &piece.fine), columns);
        let fine = (self.fine, piece.fine.as_str());
        let mut update = updates::update(fine, (self.base, in_base), (rows, columns), |row| {
            rounding.take(row);
        })?;
        let mut outcome = Outcome {
            rank: 0,
            norm: update.norm(),
            error: 0.0,
            energy: 0.0,
        };
        let mut factors = Vec::new();
        if outcome.norm > 0.0 {
            if piece.transposed {
                update = update.transpose();
            }
            let found =
                merganser_spectral::extract(&update, &self.truncation, rounding.norm(), self.scale)
                    .map_err(|problem| spectral(&piece.fine, &problem))?;
            let dtype = self.dtype_of(piece);
            let (mut a, mut b) = (found.a, found.b);
            if a.rows() > 0 {
                let parts = layout(piece, Self::extents(piece), a.rows());
                for ((part, _), factor) in parts.into_iter().zip([&mut a, &mut b]) {
                    let name = format!("{PREFIX}{}.{part}", piece.module);
                    let (bytes, rounded) = encoded(factor, dtype, &name)?;
                    factors.push(bytes);
                    *factor = rounded;
                }
            }
            outcome.rank = a.rows();
            outcome.energy = found.energy;
            outcome.error = merganser_spectral::relative_error(&update, &a, &b);
        }
        spool.put(number, &piece.name(), outcome, &factors)?;
        Ok(outcome)
    }

    /// The tensors of one matrix and what they keep; `None` if it did not change.
    fn factors(
        &self,
        number: usize,
        piece: &Piece,
        outcome: Outcome,
    ) -> Option<(ModuleReport, Vec<Entry>)> {
        if outcome.norm == 0.0 {
            return None;
        }
        let (outputs, inputs) = Self::extents(piece);
        let dtype = self.dtype_of(piece);
        let mut entries = Vec::new();
        if outcome.rank > 0 {
            let mut start = 0;
            for (part, shape) in layout(piece, (outputs, inputs), outcome.rank) {
                let len = (shape.iter().product::<usize>() * dtype.size()) as u64;
                entries.push(Entry {
                    spec: TensorSpec {
                        name: format!("{PREFIX}{}.{part}", piece.module),
                        dtype,
                        shape,
                    },
                    content: Content::Spooled(Place { number, start, len }),
                });
                start += len;
            }
        }
        let report = ModuleReport {
            module: piece.module.clone(),
            shape: [outputs, inputs],
            rank: outcome.rank,
            norm: outcome.norm,
            error: outcome.error,
            energy: outcome.energy,
        };
        Some((report, entries))
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
    fn bias(&self, piece: &Piece) -> Result<Entry, RunError> {
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
            content: Content::Held(bytes),
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
                Content::Held(bytes) => file.write_at(offset, bytes)?,
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

fn spectral(tensor: &str, problem: &merganser_spectral::Error) -> RunError {
    RunError::Extract(if tensor.is_empty() {
        problem.to_string()
    } else {
        format!("tensor '{tensor}': {problem}")
    })
}
