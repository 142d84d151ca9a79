//! Methods that merge whole matrices without looking at data: one matrix after the other, no network.

use std::collections::BTreeSet;

use merganser_linalg::{Matrix, Real};
use merganser_methods::{Settings, is_adapter_method};
use merganser_model::{Kind, Layout, Weights};
use merganser_plan::{Action, Calibrated, Output, Plan, Role};
use merganser_projection::DataFree;
use merganser_store::adapter::Delta;
use rayon::prelude::*;

use super::host::encoded;
use super::tensors::Tensors;
use super::{Projection, rules};
use crate::RunError;
use crate::adapters::{Method, all, factors, low_rank, seed_of};
use crate::execute::Work;

/// Matrices of more elements are held in f32.
const LARGE: usize = 1 << 22;

/// The matrices of all layers; what is no matrix, or stands outside the layers, is the prior's.
pub(super) fn claimed(plan: &Plan, calibrated: &Calibrated) -> BTreeSet<String> {
    if is_adapter_method(calibrated.info.name) {
        return plan
            .tensors()
            .filter(|output| rank_of_factors(plan, calibrated, &output.name).is_some())
            .map(|output| output.name.clone())
            .collect();
    }
    plan.tensors()
        .filter(|output| {
            output.shape.len() == 2
                && matches!(output.action, Action::Merge { .. })
                && matches!(Role::of(&output.name), Role::Layer { .. })
                && !output
                    .calibrated
                    .as_ref()
                    .is_some_and(|settings| settings.flag("exclude"))
        })
        .map(|output| output.name.clone())
        .collect()
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
    let one = |output: &&Output| {
        let settings = output.calibrated.as_ref();
        if is_adapter_method(calibrated.info.name) {
            let settings = settings.unwrap_or(&calibrated.settings);
            let values = by_factors(projection, tensors, output, settings)?;
            return work.put(output, &encoded(output, &values)?);
        }
        let method = rules::data_free(calibrated.info, settings.unwrap_or(&calibrated.settings));
        let values = if output.elements() <= LARGE {
            merged::<f64>(projection, tensors, output, &method)
        } else {
            merged::<f32>(projection, tensors, output, &method)
        };
        work.put(output, &encoded(output, &values?)?)
    };
    outputs.par_iter().with_max_len(1).try_for_each(one)
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
    let base = plan
        .base
        .ok_or_else(|| RunError::Calibration("there is no base model".into()))?;
    let base = values(&tensors.of_model(base), output)?;
    let mut turned = false;
    let tasks = &projection.calibrated.tasks;
    let found = tasks
        .iter()
        .map(|task| {
            let model = &plan.models[task.model];
            let delta = low_rank(model.deltas(&output.name));
            let Some((adapter, delta)) = model.adapter.as_ref().zip(delta) else {
                return Ok(None);
            };
            if let Delta::LowRank { transposed, .. } = delta {
                turned = *transposed;
            }
            let lora = factors(adapter.checkpoint(), delta)?;
            lora.map(Some)
                .map_err(|problem| failed(&format!("{}: {problem}", model.label)))
        })
        .collect::<Result<Vec<_>, RunError>>()?;
    let adapters = all(found).map_err(|problem| failed(&problem))?;
    let inputs = output.inputs();
    let weights: Vec<f64> = tasks
        .iter()
        .map(|task| {
            let number = inputs.iter().position(|input| input.model == task.model);
            let weight = number.and_then(|i| settings.input_float(i, "weight"));
            weight.unwrap_or(1.0)
        })
        .collect();
    let update = Method::new(projection.calibrated.info, settings)
        .merge(&adapters, &weights, seed_of(plan.seed, &output.name))
        .map_err(|problem| failed(&problem))?
        .update();
    let update = if turned { update.transpose() } else { update };
    if update.as_slice().len() != base.len() {
        return Err(failed(&format!(
            "the adapters change {} numbers, and the base has {}",
            update.as_slice().len(),
            base.len()
        )));
    }
    Ok(base
        .iter()
        .zip(update.as_slice())
        .map(|(w, x)| (f64::from(*w) + x) as f32)
        .collect())
}

fn merged<T: Real>(
    projection: &Projection<'_>,
    tensors: &Tensors<'_>,
    output: &Output,
    method: &DataFree,
) -> Result<Vec<f32>, RunError> {
    let plan = projection.plan;
    let layout = layout(projection, &output.name);
    let of = |model: usize| matrix::<T>(&tensors.of_model(model), output, layout);
    let base = plan
        .base
        .ok_or_else(|| RunError::Calibration("there is no base model".into()))?;
    let base = of(base)?;
    let mut updates = Vec::with_capacity(projection.calibrated.tasks.len());
    for task in &projection.calibrated.tasks {
        let mut update = of(task.model)?;
        update.add_scaled(-1.0, &base);
        updates.push(update);
    }
    let mut merged = method
        .update(&updates.iter().collect::<Vec<_>>())
        .map_err(|problem| RunError::Calibration(format!("tensor '{}': {problem}", output.name)))?;
    merged.add_scaled(1.0, &base);
    let merged = turned(merged, layout);
    Ok(merged
        .as_slice()
        .iter()
        .map(|x| x.to_f64() as f32)
        .collect())
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

/// A tensor as a matrix of outputs × inputs.
fn matrix<T: Real>(
    weights: &dyn Weights,
    output: &Output,
    layout: Layout,
) -> Result<Matrix<T>, RunError> {
    let fail = |problem: Box<dyn std::error::Error + Send + Sync>| RunError::Read(problem);
    let numbers = values(weights, output)?
        .into_iter()
        .map(|x| T::from_f64(f64::from(x)))
        .collect();
    let rows = output.shape[0];
    let columns = output.shape[1..].iter().product();
    let matrix = Matrix::new(rows, columns, numbers).map_err(|e| fail(e.into()))?;
    Ok(turned(matrix, layout))
}

pub(super) fn values(weights: &dyn Weights, output: &Output) -> Result<Vec<f32>, RunError> {
    let fail = |problem: Box<dyn std::error::Error + Send + Sync>| RunError::Read(problem);
    let tensor = weights.tensor(&output.name).map_err(|e| fail(e.into()))?;
    tensor
        .flatten_all()
        .and_then(|t| t.to_vec1())
        .map_err(|e| fail(e.into()))
}
