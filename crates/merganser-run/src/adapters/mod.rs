//! Adapters merged as adapters: matrix by matrix, from factors to factors.
//!
//! Only the adapters are read. No matrix of the base's shape is formed by the methods that work on factors, so that memory
//! follows from ranks, and the base model need not be at hand. The result is a folder that PEFT loads.

mod bias;
mod config;
mod method;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use merganser_linalg::Matrix;
use merganser_methods::{Settings, looks_at_data};
use merganser_plan::{AdapterRecipe, Options, other_targets, positions};
use merganser_recipe::{Diagnostic, ModelRef};
use merganser_spectral::Lora;
use merganser_store::adapter::{Adapter, Delta, TensorRef};
use merganser_store::checkpoint::Checkpoint;
use rayon::prelude::*;

pub(crate) use self::bias::{averaged, merged_bias};
pub(crate) use self::method::Method;
use crate::place::refuse_own_input;
use crate::sources::whole;
use crate::{Event, Observer, Opener, Provenance, RunError};

/// A merge of adapters about to run: opened and checked.
pub struct AdapterMerge<'r> {
    recipe: AdapterRecipe<'r>,
    labels: Vec<String>,
    adapters: Vec<Arc<Adapter>>,
    matrices: Vec<MergedMatrix>,
    biases: Vec<MergedBias>,
    /// Tensors that are replaced rather than changed; their mean is stored.
    saved: Vec<String>,
    seed: u64,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// One matrix of the base model that adapters change.
#[derive(Debug, Clone)]
pub struct MergedMatrix {
    /// The tensor of the base.
    pub tensor: String,
    /// Rank of each adapter there; 0 if it leaves the matrix alone.
    pub ranks: Vec<usize>,
    settings: Settings,
}

/// One bias of the base model that adapters change (`lora_bias`).
#[derive(Debug, Clone)]
struct MergedBias {
    /// The tensor of the base.
    tensor: String,
    settings: Settings,
}

/// What was written.
#[derive(Debug, Clone)]
pub struct AdapterSummary {
    /// Name of the method.
    pub method: &'static str,
    /// Merged matrices and their ranks.
    pub ranks: Vec<(String, usize)>,
    /// Biases of second factors.
    pub biases: usize,
    /// Tensors stored whole.
    pub saved: usize,
    /// Bytes of the weights' file.
    pub bytes: u64,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl<'r> AdapterMerge<'r> {
    /// Opens the adapters of a recipe and checks that they belong together.
    ///
    /// # Errors
    /// One diagnostic for each adapter that cannot be opened, or for what does not fit.
    pub fn open(
        recipe: AdapterRecipe<'r>,
        opener: &Opener,
        options: &Options,
    ) -> Result<Self, Vec<Diagnostic>> {
        let mut adapters = Vec::new();
        let mut labels = Vec::new();
        let mut errors = Vec::new();
        for source in recipe.sources() {
            labels.push(source.model.to_string());
            match opener.adapter(&source.model) {
                Ok(adapter) => adapters.push(Arc::new(adapter)),
                Err(reason) => errors.push(
                    Diagnostic::error(format!("cannot open adapter {}: {reason}", source.model))
                        .label(source.model.span, "named here"),
                ),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut merge = Self {
            seed: recipe.seed(options),
            recipe,
            labels,
            adapters,
            matrices: Vec::new(),
            biases: Vec::new(),
            saved: Vec::new(),
            notes: Vec::new(),
        };
        merge.check_bases()?;
        merge.lay_out(options.allow_missing)?;
        Ok(merge)
    }

    /// Name of the method.
    pub fn method(&self) -> &'static str {
        self.recipe.info().name
    }

    /// The adapters, as the recipe names them.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The matrices, in order of their names.
    pub fn matrices(&self) -> &[MergedMatrix] {
        &self.matrices
    }

    /// How many biases of second factors are merged.
    pub fn biases(&self) -> usize {
        self.biases.len()
    }

    fn at(&self, adapter: usize, message: String, remark: &str) -> Diagnostic {
        Diagnostic::error(message).label(self.recipe.sources()[adapter].model.span, remark)
    }

    /// Adapters of different models cannot be added. A name in a config is only a hint: folders move.
    fn check_bases(&mut self) -> Result<(), Vec<Diagnostic>> {
        let named = |model: &ModelRef| model.lora.as_ref().map(|_| model.path.clone());
        let sources = self.recipe.sources();
        let paths: Vec<_> = sources.iter().map(|source| named(&source.model)).collect();
        let first = paths.iter().flatten().next();
        if let Some(other) = paths
            .iter()
            .position(|path| path.is_some() && path.as_ref() != first)
        {
            let first = first.map_or("", |first| first);
            return Err(vec![
                self.at(
                    other,
                    "the adapters belong to different models".into(),
                    "another base",
                )
                .help(format!(
                    "the first one is an adapter of {first}; adapters of one base can be merged"
                )),
            ]);
        }
        let bases: BTreeSet<&str> = self
            .adapters
            .iter()
            .filter_map(|adapter| adapter.config().base_model.as_deref())
            .collect();
        if bases.len() > 1 {
            let list: Vec<&str> = bases.into_iter().collect();
            self.notes.push(format!(
                "the adapters name different base models ({}): merged all the same, since a name may be a folder that moved",
                list.join(", ")
            ));
        }
        Ok(())
    }

    fn lay_out(&mut self, allow_missing: bool) -> Result<(), Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let tensors: BTreeSet<&str> = self
            .adapters
            .iter()
            .flat_map(|adapter| adapter.modules().keys().map(String::as_str))
            .collect();
        let t = positions(tensors.iter().copied());
        let mut missing: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        // One message an adapter is enough.
        let mut unfit = BTreeSet::new();
        let (mut matrices, mut biases, mut saved) = (Vec::new(), Vec::new(), Vec::new());
        for tensor in &tensors {
            let changes: Vec<&[Delta]> = self
                .adapters
                .iter()
                .map(|adapter| {
                    adapter
                        .modules()
                        .get(*tensor)
                        .map_or(&[][..], Vec::as_slice)
                })
                .collect();
            for (i, _) in changes
                .iter()
                .enumerate()
                .filter(|(_, list)| list.is_empty())
            {
                missing.entry(i).or_default().push(tensor);
            }
            match kind(&changes) {
                Ok(Kind::LowRank(ranks)) => match self.recipe.settings(tensor, t[tensor]) {
                    Ok(settings) => matrices.push(MergedMatrix {
                        tensor: (*tensor).to_owned(),
                        ranks,
                        settings,
                    }),
                    Err(diagnostic) => errors.push(diagnostic),
                },
                Ok(Kind::Bias) => match self.recipe.settings(tensor, t[tensor]) {
                    Ok(settings) => biases.push(MergedBias {
                        tensor: (*tensor).to_owned(),
                        settings,
                    }),
                    Err(diagnostic) => errors.push(diagnostic),
                },
                Ok(Kind::Saved) => saved.push((*tensor).to_owned()),
                Err((adapter, reason)) if unfit.insert(adapter) => errors.push(self.at(
                    adapter,
                    format!("'{tensor}' of {} {reason}", self.labels[adapter]),
                    "this adapter",
                )),
                Err(_) => {}
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        for (adapter, list) in missing {
            let replaced = list
                .iter()
                .find(|tensor| saved.iter().any(|s| s == *tensor));
            let found = other_targets(&self.labels[adapter], &list, tensors.len());
            if let Some(tensor) = replaced {
                errors.push(
                    self.at(
                        adapter,
                        format!(
                            "{} does not save '{tensor}' as the others do",
                            self.labels[adapter]
                        ),
                        "this adapter",
                    )
                    .help(
                        "what is saved whole can only be averaged over adapters that all have it",
                    ),
                );
            } else if allow_missing {
                self.notes
                    .push(format!("{}; counted as no change", found.message));
            } else {
                let span = self.recipe.sources()[adapter].model.span;
                errors.push(found.label(span, "other target modules"));
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        (self.matrices, self.biases, self.saved) = (matrices, biases, saved);
        self.check_biases()
    }

    /// Refuses biases that the merged adapter could not carry, and says how the others are merged.
    fn check_biases(&mut self) -> Result<(), Vec<Diagnostic>> {
        let Some(first) = self.biases.first() else {
            return Ok(());
        };
        let refused = |help: &str| {
            let has = |adapter: &Arc<Adapter>| adapter.modules().contains_key(&first.tensor);
            let adapter = self.adapters.iter().position(has).unwrap_or(0);
            let label = &self.labels[adapter];
            let message = format!("'{}' of {label} is a bias of B (`lora_bias`)", first.tensor);
            Err(vec![
                self.at(adapter, message, "this adapter")
                    .help(help.to_owned()),
            ])
        };
        if self.looks_at_data() {
            return refused(
                "`inner: projection` finds biases together with their matrices, which factors cannot hold: ask for \
                 `output: model`, or choose another `inner`",
            );
        }
        let mut deltas = self.adapters.iter().flat_map(|x| x.modules().values());
        if deltas.any(|list| list.iter().any(is_embedding)) {
            return refused(
                "PEFT takes no adapter that has both biases of B and factors of an embedding: merge onto the base \
                 (`output: model`), or adapters of one kind",
            );
        }
        let info = self.recipe.info();
        let averages = |bias: &&MergedBias| Method::new(info, &bias.settings).averages_biases();
        let averages = self.biases.iter().filter(averages).count();
        if averages > 0 {
            self.notes.push(averaged(averages));
        }
        Ok(())
    }

    /// Whether the recipe merges the adapters by what samples say, so that [`carry_out`](Self::carry_out) is to be given
    /// what [`project_factors`](crate::project_factors) finds.
    pub fn looks_at_data(&self) -> bool {
        let mut matrices = self.matrices.iter();
        matrices.any(|matrix| looks_at_data(self.recipe.info(), &matrix.settings))
    }

    /// Merges all matrices on the current rayon pool, but for those that are `known`, and writes the folder.
    ///
    /// # Errors
    /// Numbers that are not finite, a decomposition that does not converge, a full disk, an output folder that holds
    /// something else. The output folder is then as it was before.
    pub fn carry_out(
        &self,
        known: &BTreeMap<String, Lora>,
        out: &Path,
        overwrite: bool,
        provenance: &Provenance,
        observer: &dyn Observer,
    ) -> Result<AdapterSummary, RunError> {
        for (label, adapter) in self.labels.iter().zip(&self.adapters) {
            refuse_own_input(out, label, adapter.checkpoint().path())?;
        }
        let bytes = self
            .adapters
            .iter()
            .flat_map(|a| a.checkpoint().tensors().values());
        observer.event(Event::Started {
            tensors: self.matrices.len() + self.biases.len() + self.saved.len(),
            bytes: bytes.map(|tensor| tensor.nbytes).sum(),
            reused: 0,
        });
        let one = |matrix: &MergedMatrix| -> Result<(String, Lora), RunError> {
            let merged = match known.get(&matrix.tensor) {
                Some(known) => self.cut(matrix, known)?,
                None => self.merged(matrix)?,
            };
            observer.event(Event::Progress {
                bytes: self.bytes_of(&matrix.tensor),
            });
            Ok((matrix.tensor.clone(), merged))
        };
        let merged: BTreeMap<String, Lora> = self
            .matrices
            .par_iter()
            .map(one)
            .collect::<Result<_, _>>()?;
        let biases = self
            .biases
            .iter()
            .map(|bias| Ok((bias.tensor.clone(), self.merged_bias(bias)?)))
            .collect::<Result<BTreeMap<_, _>, RunError>>()?;
        let saved = self
            .saved
            .iter()
            .map(|tensor| Ok((tensor.clone(), self.mean(tensor)?)))
            .collect::<Result<BTreeMap<_, _>, RunError>>()?;
        observer.event(Event::Publishing);
        let parts = write::Parts {
            factors: &merged,
            biases: &biases,
            saved: &saved,
        };
        write::publish(self, &parts, out, overwrite, provenance)
    }

    /// A merged adapter times the recipe's α, cut down to its rank.
    fn cut(&self, matrix: &MergedMatrix, merged: &Lora) -> Result<Lora, RunError> {
        Method::new(self.recipe.info(), &matrix.settings)
            .finish(merged.clone())
            .map_err(|problem| {
                RunError::Calibration(format!("tensor '{}': {problem}", matrix.tensor))
            })
    }

    fn merged(&self, matrix: &MergedMatrix) -> Result<Lora, RunError> {
        let failed = |problem: &dyn std::fmt::Display| {
            RunError::Calibration(format!("tensor '{}': {problem}", matrix.tensor))
        };
        let adapters = self
            .adapters
            .iter()
            .zip(&self.labels)
            .map(|(adapter, label)| {
                let deltas = adapter.modules().get(&matrix.tensor);
                let found = deltas.and_then(|list| low_rank(list));
                found
                    .map(|delta| {
                        factors(adapter.checkpoint(), delta)?
                            .map_err(|problem| failed(&format!("{label}: {problem}")))
                    })
                    .transpose()
            })
            .collect::<Result<Vec<_>, RunError>>()?;
        let weights = self.weights(&matrix.settings);
        let given = all(adapters).map_err(|problem| failed(&problem))?;
        Method::new(self.recipe.info(), &matrix.settings)
            .merge(&given, &weights, seed_of(self.seed, &matrix.tensor))
            .map_err(|problem| failed(&problem))
    }

    fn merged_bias(&self, bias: &MergedBias) -> Result<Matrix, RunError> {
        let changes = self
            .adapters
            .iter()
            .zip(&self.labels)
            .map(|(adapter, label)| {
                let deltas = adapter.modules().get(&bias.tensor);
                let deltas = deltas.map_or(&[][..], Vec::as_slice);
                bias::change(adapter.checkpoint(), deltas, label)
            })
            .collect::<Result<Vec<_>, RunError>>()?;
        let weights = self.weights(&bias.settings);
        Method::new(self.recipe.info(), &bias.settings)
            .merge_biases(
                &bias::all(changes),
                &weights,
                seed_of(self.seed, &bias.tensor),
            )
            .map_err(|problem| {
                RunError::Calibration(format!("tensor '{}': {problem}", bias.tensor))
            })
    }

    fn weights(&self, settings: &Settings) -> Vec<f64> {
        let weight = |i| settings.input_float(i, "weight").unwrap_or(1.0);
        (0..self.adapters.len()).map(weight).collect()
    }

    fn bytes_of(&self, tensor: &str) -> u64 {
        let of = |delta: &Delta| match delta {
            Delta::LowRank { a, b, .. } => a.nbytes + b.nbytes,
            Delta::Replace(tensor) | Delta::Add { tensor, .. } => tensor.nbytes,
        };
        let lists = self.adapters.iter().filter_map(|a| a.modules().get(tensor));
        lists.flatten().map(of).sum()
    }

    /// The mean of what the adapters store in a tensor's place.
    fn mean(&self, tensor: &str) -> Result<Vec<f32>, RunError> {
        let mut sum: Vec<f64> = Vec::new();
        for adapter in &self.adapters {
            let Some([Delta::Replace(info)]) = adapter.modules().get(tensor).map(Vec::as_slice)
            else {
                continue;
            };
            let values = whole(adapter.checkpoint(), info)?;
            sum.resize(values.len(), 0.0);
            for (sum, x) in sum.iter_mut().zip(values) {
                *sum += f64::from(x);
            }
        }
        let count = self.adapters.len() as f64;
        Ok(sum.iter().map(|x| (x / count) as f32).collect())
    }
}

/// What the adapters do to one tensor.
enum Kind {
    /// They add updates of these ranks.
    LowRank(Vec<usize>),
    /// They add to a bias.
    Bias,
    /// They take its place.
    Saved,
}

/// Said of an adapter whose factors are meant for a matrix stored the other way round.
pub(crate) const OTHER_LAYOUT: &str = "is made for inputs × outputs and others for outputs × inputs (`fan_in_fan_out`): they cannot be merged";

/// What adapters do to one tensor, if it is the same; else which one does what instead.
fn kind(changes: &[&[Delta]]) -> Result<Kind, (usize, String)> {
    let mut shape: Option<Vec<usize>> = None;
    let mut ranks = vec![0; changes.len()];
    let (mut low, mut turned, mut bias) = (None, None, false);
    for (i, deltas) in changes.iter().enumerate() {
        let Some(first) = deltas.first() else {
            continue;
        };
        if deltas.len() > 1 {
            return Err((
                i,
                "is both saved whole and changed, which cannot be merged".into(),
            ));
        }
        let own = first.shape();
        match &shape {
            Some(shape) if *shape != own => {
                return Err((
                    i,
                    format!(
                        "changes a tensor of shape {own:?}, and the adapters before it one of shape {shape:?}: they were trained on different models"
                    ),
                ));
            }
            _ => shape = Some(own),
        }
        let is_low = match first {
            Delta::LowRank {
                rank,
                scale,
                transposed,
                ..
            } => {
                if turned
                    .replace(*transposed)
                    .is_some_and(|other| other != *transposed)
                {
                    return Err((i, OTHER_LAYOUT.into()));
                }
                if *scale == 0.0 {
                    return Err((
                        i,
                        "has α = 0 (`lora_alpha`, `alpha_pattern`): it changes nothing".into(),
                    ));
                }
                ranks[i] = *rank;
                true
            }
            Delta::Replace(_) => false,
            Delta::Add { .. } => {
                bias = true;
                true
            }
        };
        if low.is_some_and(|low| low != is_low) {
            return Err((
                i,
                "is saved whole by one adapter and changed by another".into(),
            ));
        }
        low = Some(is_low);
    }
    Ok(if bias {
        Kind::Bias
    } else if low == Some(true) {
        Kind::LowRank(ranks)
    } else {
        Kind::Saved
    })
}

/// One that leaves a matrix alone is an update of rank 0, a vote for no change.
pub(crate) fn all(adapters: Vec<Option<Lora>>) -> merganser_spectral::Result<Vec<Lora>> {
    let (m, n) = adapters.iter().flatten().next().map_or((0, 0), Lora::shape);
    let none = || Lora::new(Matrix::zeros(0, n), Matrix::zeros(m, 0), 1.0);
    adapters
        .into_iter()
        .map(|adapter| adapter.map_or_else(none, Ok))
        .collect()
}

/// The low-rank update among the changes of a tensor.
pub(crate) fn low_rank(deltas: &[Delta]) -> Option<&Delta> {
    deltas
        .iter()
        .find(|delta| matches!(delta, Delta::LowRank { .. }))
}

/// Whether a change is that of a table that is looked up: its factors have other names in the file.
fn is_embedding(delta: &Delta) -> bool {
    matches!(delta, Delta::LowRank { a, .. } if a.name.contains(".lora_embedding_A"))
}

/// The factors of an update, in `f64`: of a convolution as matrices of outputs × (inputs · height · width).
///
/// The outer error is that of reading, the inner one of the numbers read.
pub(crate) fn factors(
    checkpoint: &Checkpoint,
    delta: &Delta,
) -> Result<merganser_spectral::Result<Lora>, RunError> {
    let Delta::LowRank { a, b, scale, .. } = delta else {
        return Err(RunError::Calibration(
            "an adapter changes a tensor by more than factors".into(),
        ));
    };
    let matrix = |info: &TensorRef| -> Result<Matrix, RunError> {
        let values = whole(checkpoint, info)?
            .into_iter()
            .map(f64::from)
            .collect();
        let columns = info.shape[1..].iter().product();
        Matrix::new(info.shape[0], columns, values)
            .map_err(|problem| RunError::Calibration(format!("tensor '{}': {problem}", info.name)))
    };
    Ok(Lora::new(matrix(a)?, matrix(b)?, *scale))
}

/// A seed of the merge's and of the tensor's name.
pub(crate) fn seed_of(seed: u64, tensor: &str) -> u64 {
    twox_hash::XxHash3_128::oneshot_with_seed(seed, tensor.as_bytes()) as u64
}
