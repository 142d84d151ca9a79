//! Methods that merge whole matrices without looking at data: one matrix after the other, no network.

use std::collections::BTreeSet;

use merganser_linalg::{Matrix, Real};
use merganser_model::{Kind, Layout, Weights};
use merganser_plan::{Action, Output, Plan, Role};
use merganser_projection::DataFree;
use rayon::prelude::*;

use super::host::encoded;
use super::tensors::Tensors;
use super::{Projection, rules};
use crate::RunError;
use crate::execute::Work;

/// Matrices of more elements are held in f32.
const LARGE: usize = 1 << 22;

/// The matrices of all layers; what is no matrix, or stands outside the layers, is the prior's.
pub(super) fn claimed(plan: &Plan) -> BTreeSet<String> {
    plan.tensors()
        .filter(|output| {
            output.shape.len() == 2
                && matches!(output.action, Action::Merge { .. })
                && matches!(Role::of(&output.name), Role::Layer { .. })
        })
        .map(|output| output.name.clone())
        .collect()
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
    let tensor = weights.tensor(&output.name).map_err(|e| fail(e.into()))?;
    let values: Vec<f32> = tensor
        .flatten_all()
        .and_then(|t| t.to_vec1())
        .map_err(|e| fail(e.into()))?;
    let numbers = values
        .into_iter()
        .map(|x| T::from_f64(f64::from(x)))
        .collect();
    let rows = output.shape[0];
    let columns = output.shape[1..].iter().product();
    let matrix = Matrix::new(rows, columns, numbers).map_err(|e| fail(e.into()))?;
    Ok(turned(matrix, layout))
}
