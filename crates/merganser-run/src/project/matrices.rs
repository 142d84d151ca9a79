//! Methods that merge whole matrices without looking at data: as many matrices side by side as memory has room for, of each
//! one task after the other, no network.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use merganser_linalg::{Matrix, Real};
use merganser_methods::{Settings, is_adapter_method};
use merganser_model::{Kind, Layout, Weights};
use merganser_plan::{Calibrated, Model, Output, Plan, Task, is_matrix_of_layer};
use merganser_projection::{DataFree, Error};
use merganser_spectral::{LowRank, Merged, Precision, Updates, adapter_of};
use merganser_store::adapter::Delta;
use serde_json::Value;

use super::host::encoded;
use super::memory::{LARGE, lanes};
use super::tensors::Tensors;
use super::{Projection, rules};
use crate::adapters::{
    Method, OTHER_LAYOUT, all, averaged, factors, low_rank, merged_bias, seed_of,
};
use crate::execute::Work;
use crate::lanes::in_lanes;
use crate::{Event, RunError, updates};

/// The matrices of all layers; what is no matrix, or stands outside the layers, is the prior's.
pub(super) fn claimed(plan: &Plan, calibrated: &Calibrated) -> BTreeSet<String> {
    if is_adapter_method(calibrated.info.name) {
        return plan
            .tensors()
            .filter(|output| {
                rank_of_factors(plan, calibrated, &output.name).is_some()
                    || adds_bias(plan, calibrated, &output.name)
            })
            .map(|output| output.name.clone())
            .collect();
    }
    plan.tensors()
        .filter(|output| is_matrix_of_layer(output))
        .map(|output| output.name.clone())
        .collect()
}

/// Whether an adapter of a task adds to the bias `tensor` (`lora_bias`).
fn adds_bias(plan: &Plan, calibrated: &Calibrated, tensor: &str) -> bool {
    let deltas = |task: &Task| plan.models[task.model].deltas(tensor);
    let mut all = calibrated.tasks.iter().flat_map(deltas);
    all.any(|delta| matches!(delta, Delta::Add { .. }))
}

/// The largest rank of the updates that the tasks' adapters add to a tensor, if any does.
pub(super) fn rank_of_factors(plan: &Plan, calibrated: &Calibrated, tensor: &str) -> Option<usize> {
    let tasks = calibrated.tasks.iter();
    tasks
        .filter_map(
            |task| match low_rank(plan.models[task.model].deltas(tensor))? {
                Delta::LowRank { rank, .. } => Some(*rank),
                _ => None,
            },
        )
        .max()
}

/// Merges the pending matrices into the files of a running merge.
pub(super) fn merge(
    projection: &Projection<'_>,
    tensors: &Tensors<'_>,
    work: &Work<'_>,
    pending: &BTreeSet<&str>,
) -> Result<(), RunError> {
    let calibrated = projection.calibrated;
    let outputs: Vec<&Output> = pending
        .iter()
        .filter_map(|name| tensors.output(name))
        .collect();
    let lanes = lanes(projection.plan, work.job.memory)?;
    let remarks = Mutex::new(Remarks::default());
    let one = |output: &&Output| {
        let settings = output.calibrated.as_ref();
        if is_adapter_method(calibrated.info.name) {
            let settings = settings.unwrap_or(&calibrated.settings);
            let values = if adds_bias(projection.plan, calibrated, &output.name) {
                shifted(projection, tensors, output, settings)?
            } else {
                by_factors(projection, tensors, output, settings)?
            };
            return work.put(output, &encoded(output, &values)?);
        }
        let method = rules::data_free(calibrated.info, settings.unwrap_or(&calibrated.settings));
        let inputs = Inputs {
            projection,
            tensors,
            output,
            layout: layout(projection, &output.name),
        };
        let values = if output.elements() as u64 <= LARGE {
            merged::<f64>(&inputs, &method, &remarks)
        } else {
            merged::<f32>(&inputs, &method, &remarks)
        };
        work.put(output, &encoded(output, &values?)?)
    };
    in_lanes(&outputs, lanes, one)?;
    let averages = |output: &&&Output| {
        let settings = output.calibrated.as_ref().unwrap_or(&calibrated.settings);
        is_adapter_method(calibrated.info.name)
            && adds_bias(projection.plan, calibrated, &output.name)
            && Method::new(calibrated.info, settings).averages_biases()
    };
    let biases = outputs.iter().filter(averages).count();
    if biases > 0 {
        work.observer.event(Event::Remark(&averaged(biases)));
    }
    let remarks = remarks.into_inner().unwrap_or_else(PoisonError::into_inner);
    for remark in remarks.texts(calibrated.info.name, outputs.len()) {
        work.observer.event(Event::Remark(&remark));
    }
    Ok(())
}

/// What the matrices of a merge have shown: directions that are rounding, and what random projection left out. The
/// extremes are those of the first name where several are alike, whatever the order of the work.
#[derive(Default)]
struct Remarks {
    truncated: usize,
    /// Share of the directions, directions, all, matrix.
    lowest: Option<(f64, usize, usize, String)>,
    residual: Option<(f64, String)>,
    /// Matrices whose updates are all of low rank, and the largest rank.
    low_rank: Option<(usize, usize)>,
}

impl Remarks {
    fn take<T>(&mut self, found: &Found<T>, name: &str) {
        if let Some(rank) = found.low_rank {
            let (matrices, largest) = self.low_rank.unwrap_or_default();
            self.low_rank = Some((matrices + 1, largest.max(rank)));
        }
        let merged = &found.merged;
        if merged.rank < merged.full {
            self.truncated += 1;
            let share = merged.rank as f64 / merged.full as f64;
            let replaces = self.lowest.as_ref().is_none_or(|(least, _, _, of)| {
                share < *least || share == *least && name < of.as_str()
            });
            if replaces {
                self.lowest = Some((share, merged.rank, merged.full, name.to_owned()));
            }
        }
        let residual = merged.residual;
        let replaces = self
            .residual
            .as_ref()
            .is_none_or(|(most, of)| residual > *most || residual == *most && name < of.as_str());
        if residual > 0.0 && replaces {
            self.residual = Some((residual, name.to_owned()));
        }
    }

    fn texts(&self, method: &str, matrices: usize) -> Vec<String> {
        let mut texts = Vec::new();
        if let Some((count, rank)) = self.low_rank {
            texts.push(format!(
                "{method}: the updates of {count} of {matrices} matrices are adapters of rank {rank} at most, up to the rounding \
                 of the stored weights, and were merged in the space they span, without that rounding; `low_rank: false` takes \
                 them as they are"
            ));
        }
        if let Some((_, rank, full, name)) = &self.lowest {
            texts.push(format!(
                "{method}: the updates of {} of {matrices} matrices have fewer directions than their shape allows; the \
                 others are rounding and were left out. Fewest: {rank} of {full}, '{name}'",
                self.truncated
            ));
        }
        if let Some((residual, name)) = &self.residual {
            texts.push(format!(
                "{method}: what random projection left out of an update is at most {:.2} % of its norm ('{name}'), \
                 including what the method cuts off by design",
                100.0 * residual
            ));
        }
        texts
    }
}

/// The base with the merged adapter applied.
fn by_factors(
    projection: &Projection<'_>,
    tensors: &Tensors<'_>,
    output: &Output,
    settings: &Settings,
) -> Result<Vec<f32>, RunError> {
    let plan = projection.plan;
    let failed = |problem: &dyn std::fmt::Display| {
        RunError::Calibration(format!("tensor '{}': {problem}", output.name))
    };
    let base = in_base(plan, tensors, output)?;
    let mut turned = None;
    let tasks = &projection.calibrated.tasks;
    let found = tasks
        .iter()
        .map(|task| {
            let model = &plan.models[task.model];
            let delta = low_rank(model.deltas(&output.name));
            let Some((adapter, delta)) = model.adapter.as_ref().zip(delta) else {
                return Ok(None);
            };
            if let Delta::LowRank { transposed, .. } = delta
                && turned
                    .replace(*transposed)
                    .is_some_and(|other| other != *transposed)
            {
                return Err(failed(&format!("{} {OTHER_LAYOUT}", model.label)));
            }
            let lora = factors(adapter.checkpoint(), delta)?;
            lora.map(Some)
                .map_err(|problem| failed(&format!("{}: {problem}", model.label)))
        })
        .collect::<Result<Vec<_>, RunError>>()?;
    let adapters = all(found).map_err(|problem| failed(&problem))?;
    let weights: Vec<f64> = tasks
        .iter()
        .map(|task| weight(output, settings, task))
        .collect();
    let update = Method::new(projection.calibrated.info, settings)
        .merge(&adapters, &weights, seed_of(plan.seed, &output.name))
        .map_err(|problem| failed(&problem))?
        .update();
    let update = if turned == Some(true) {
        update.transpose()
    } else {
        update
    };
    if update.as_slice().len() != base.len() {
        return Err(failed(&format!(
            "the adapters change {} numbers, and the base has {}",
            update.as_slice().len(),
            base.len()
        )));
    }
    Ok(moved(&base, update.as_slice()))
}

/// The bias of the base with the merged change of the adapters.
fn shifted(
    projection: &Projection<'_>,
    tensors: &Tensors<'_>,
    output: &Output,
    settings: &Settings,
) -> Result<Vec<f32>, RunError> {
    let plan = projection.plan;
    let base = in_base(plan, tensors, output)?;
    let tasks: Vec<(&Model, f64)> = projection
        .calibrated
        .tasks
        .iter()
        .map(|task| (&plan.models[task.model], weight(output, settings, task)))
        .collect();
    let method = Method::new(projection.calibrated.info, settings);
    let seed = seed_of(plan.seed, &output.name);
    let change = merged_bias(&tasks, &output.name, &method, seed)?;
    let change = change.map_or_else(|| vec![0.0; base.len()], Matrix::into_vec);
    Ok(moved(&base, &change))
}

/// The values of a tensor in the base.
fn in_base(plan: &Plan, tensors: &Tensors<'_>, output: &Output) -> Result<Vec<f32>, RunError> {
    let base = plan
        .base
        .ok_or_else(|| RunError::Calibration("there is no base model".into()))?;
    values(&tensors.of_model(base), output)
}

fn moved(base: &[f32], change: &[f64]) -> Vec<f32> {
    let both = base.iter().zip(change);
    both.map(|(w, x)| (f64::from(*w) + x) as f32).collect()
}

/// The weight that the recipe gives a task in a tensor.
fn weight(output: &Output, settings: &Settings, task: &Task) -> f64 {
    let inputs = output.inputs();
    let number = inputs.iter().position(|input| input.model == task.model);
    let weight = number.and_then(|i| settings.input_float(i, "weight"));
    weight.unwrap_or(1.0)
}

fn merged<T: Real>(
    inputs: &Inputs<'_>,
    method: &DataFree,
    remarks: &Mutex<Remarks>,
) -> Result<Vec<f32>, RunError> {
    let (plan, output) = (inputs.projection.plan, inputs.output);
    let base = plan
        .base
        .ok_or_else(|| RunError::Calibration("there is no base model".into()))?;
    let base = inputs.matrix::<T>(base)?;
    let settings = output.calibrated.as_ref();
    let flag = |name: &str| settings.is_some_and(|settings| settings.flag(name));
    let parts = flag("split_fused_qkv")
        .then(|| fused(plan.config.as_deref(), &output.name, base.rows()))
        .flatten();
    let block = Block {
        inputs,
        first: 0,
        base: &base,
        finds_low_rank: flag("low_rank"),
    };
    let merged = block
        .merged_by_parts(method, parts)
        .map_err(|problem| match problem {
            Error::Spectral(merganser_spectral::Error::Unreadable(text)) => {
                RunError::Read(text.into())
            }
            problem => RunError::Calibration(format!("tensor '{}': {problem}", output.name)),
        })?;
    remarks
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take(&merged, &output.name);
    let mut merged = merged.merged.update;
    merged.add_scaled(1.0, &base);
    let merged = turned(merged, inputs.layout);
    Ok(merged
        .as_slice()
        .iter()
        .map(|x| x.to_f64() as f32)
        .collect())
}

/// One matrix in all models.
struct Inputs<'a> {
    projection: &'a Projection<'a>,
    tensors: &'a Tensors<'a>,
    output: &'a Output,
    layout: Layout,
}

impl Inputs<'_> {
    fn tasks(&self) -> &[Task] {
        &self.projection.calibrated.tasks
    }

    /// The matrix of a model, as outputs × inputs.
    fn matrix<T: Real>(&self, model: usize) -> Result<Matrix<T>, RunError> {
        let numbers = values(&self.tensors.of_model(model), self.output)?
            .into_iter()
            .map(|x| T::from_f64(f64::from(x)))
            .collect();
        let rows = self.output.shape[0];
        let columns = self.output.shape[1..].iter().product();
        let matrix =
            Matrix::new(rows, columns, numbers).map_err(|error| RunError::Read(error.into()))?;
        Ok(turned(matrix, self.layout))
    }

    /// How a task stores it.
    fn precision(&self, task: &Task) -> Precision {
        let mut inputs = self.output.inputs().iter();
        let own = inputs.find(|input| input.model == task.model);
        // A model may have it under another prefix.
        let name = own.map_or(&self.output.name, |input| &input.tensor);
        updates::precision(&self.projection.plan.models[task.model], name)
    }
}

/// A matrix, or some rows of one. Its updates by the tasks are read when they are asked for.
struct Block<'a, T> {
    inputs: &'a Inputs<'a>,
    /// The first of its rows.
    first: usize,
    /// These rows in the base.
    base: &'a Matrix<T>,
    /// Whether updates of low rank are to be found.
    finds_low_rank: bool,
}

impl<T: Real> Updates<T> for Block<'_, T> {
    fn tasks(&self) -> usize {
        self.inputs.tasks().len()
    }

    fn shape(&self) -> merganser_spectral::Result<(usize, usize)> {
        Ok(self.base.shape())
    }

    fn update(&self, task: usize) -> merganser_spectral::Result<Cow<'_, Matrix<T>>> {
        let mut update = self
            .inputs
            .matrix::<T>(self.inputs.tasks()[task].model)
            .map_err(|error| merganser_spectral::Error::Unreadable(error.to_string()))?;
        if update.rows() != self.base.rows() {
            update = update.rows_range(self.first, self.first + self.base.rows());
        }
        update.add_scaled(-1.0, self.base);
        Ok(Cow::Owned(update))
    }
}

/// A merged block, and the largest rank of its updates if all are of low rank.
struct Found<T> {
    merged: Merged<T>,
    low_rank: Option<usize>,
}

impl<T: Real> Block<'_, T> {
    /// Merges stretches of rows as matrices of their own.
    fn merged_by_parts(
        &self,
        method: &DataFree,
        parts: Option<[usize; 3]>,
    ) -> Result<Found<T>, Error> {
        let Some(parts) = parts else {
            return self.merged(method);
        };
        let mut from = 0;
        let mut merged = Vec::new();
        let (mut rank, mut full, mut residual) = (0, 0, 0.0_f64);
        let mut low_rank = None;
        for rows in parts {
            let part = Block {
                inputs: self.inputs,
                first: from,
                base: &self.base.rows_range(from, from + rows),
                finds_low_rank: self.finds_low_rank,
            };
            let found = part.merged(method)?;
            (rank, full) = (rank + found.merged.rank, full + found.merged.full);
            residual = residual.max(found.merged.residual);
            low_rank = low_rank.max(found.low_rank);
            merged.push(found.merged.update);
            from += rows;
        }
        Ok(Found {
            merged: Merged {
                update: Matrix::stack_rows(&merged),
                rank,
                full,
                residual,
            },
            low_rank,
        })
    }

    fn merged(&self, method: &DataFree) -> Result<Found<T>, Error> {
        if let DataFree::Spectral { method, scale } = method
            && let Some(updates) = self.low_rank()?
        {
            let mut update = method.in_span(&updates)?;
            update.scale(*scale);
            return Ok(Found {
                merged: Merged::whole(update.cast()),
                low_rank: Some(updates.rank()),
            });
        }
        Ok(Found {
            merged: method.update(self)?,
            low_rank: None,
        })
    }

    fn low_rank(&self) -> Result<Option<LowRank>, Error> {
        if !self.finds_low_rank {
            return Ok(None);
        }
        let mut adapters = Vec::new();
        for (number, task) in self.inputs.tasks().iter().enumerate() {
            let precision = self.inputs.precision(task);
            match adapter_of(&*self.update(number)?, self.base, precision)? {
                Some(adapter) => adapters.push(adapter),
                None => return Ok(None),
            }
        }
        Ok(LowRank::of(adapters)?)
    }
}

/// Names of matrices that hold queries, keys and values one below the other. GPT-NeoX's `query_key_value` holds them head by
/// head and is none of them.
const FUSED: [&str; 5] = ["c_attn", "qkv_proj", "in_proj_weight", "attn.qkv", "Wqkv"];

/// How many outputs of such a matrix are queries, keys and values.
fn fused(config: Option<&str>, name: &str, rows: usize) -> Option<[usize; 3]> {
    FUSED.iter().find(|part| name.contains(*part))?;
    let config: Value = serde_json::from_str(config.unwrap_or("{}")).unwrap_or_default();
    let number = |keys: &[&str]| keys.iter().find_map(|key| config.get(key)?.as_u64());
    let heads = number(&["num_attention_heads", "n_head", "num_heads"]).unwrap_or(1);
    let shared = number(&["num_key_value_heads"]).unwrap_or(heads);
    let (heads, shared) = (heads as usize, shared as usize);
    let size = rows / (heads + 2 * shared).max(1);
    let parts = [heads * size, shared * size, shared * size];
    (size > 0 && parts.iter().sum::<usize>() == rows).then_some(parts)
}

/// How a matrix is stored, as far as the network is known: GPT-2 has inputs × outputs.
fn layout(projection: &Projection<'_>, name: &str) -> Layout {
    let network = projection.network.as_ref().ok();
    let known = network.and_then(|network| {
        network.ops().find_map(|(_, op)| match &op.kind {
            Kind::Linear(linear) if linear.weight == name => Some(linear.layout),
            _ => None,
        })
    });
    known.unwrap_or(Layout::OutIn)
}

/// From the stored order to outputs × inputs, or back.
fn turned<T: Real>(matrix: Matrix<T>, layout: Layout) -> Matrix<T> {
    match layout {
        Layout::OutIn => matrix,
        Layout::InOut => matrix.transpose(),
    }
}

pub(super) fn values(weights: &dyn Weights, output: &Output) -> Result<Vec<f32>, RunError> {
    let fail = |problem: Box<dyn std::error::Error + Send + Sync>| RunError::Read(problem);
    let tensor = weights.tensor(&output.name).map_err(|e| fail(e.into()))?;
    tensor
        .flatten_all()
        .and_then(|t| t.to_vec1())
        .map_err(|e| fail(e.into()))
}

#[cfg(test)]
mod tests {
    use super::fused;

    #[test]
    fn queries_keys_and_values_are_told_apart() {
        let name = "model.layers.0.self_attn.qkv_proj.weight";
        let grouped = r#"{"num_attention_heads": 4, "num_key_value_heads": 2}"#;
        assert_eq!(fused(Some(grouped), name, 64), Some([32, 16, 16]));
        let plain = r#"{"n_head": 12}"#;
        assert_eq!(
            fused(Some(plain), "h.0.attn.c_attn.weight", 36),
            Some([12, 12, 12])
        );
        assert_eq!(fused(None, "attn.in_proj_weight", 9), Some([3, 3, 3]));
        assert_eq!(fused(Some(grouped), name, 63), None);
        assert_eq!(fused(None, "attention.query_key_value.weight", 9), None);
        assert_eq!(fused(None, "self_attn.q_proj.weight", 9), None);
    }
}
