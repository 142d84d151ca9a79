//! Changes of biases: what adapters with `lora_bias` add to the outputs of a layer.
//!
//! PEFT gives the second factor of a layer a bias b_t, so that the output changes by s_t (B_t A_t x + b_t): s_t b_t is added
//! to the layer's bias. A bias is a parameter of one dimension. Adapters merge in it with the weights of their matrices; what
//! methods of matrices do with it is said in [`InSpan::merge_vectors`](merganser_spectral::InSpan::merge_vectors).

use merganser_linalg::Matrix;
use merganser_plan::Model;
use merganser_store::adapter::Delta;
use merganser_store::checkpoint::Checkpoint;

use super::{Kind, Method, kind};
use crate::RunError;
use crate::sources::whole;

/// s_t b_t of one adapter as a matrix of one row; `None` if it does not change the bias.
///
/// # Errors
/// If it cannot be read, or holds NaN or infinity.
pub(super) fn change(
    checkpoint: &Checkpoint,
    deltas: &[Delta],
    label: &str,
) -> Result<Option<Matrix>, RunError> {
    let [Delta::Add { tensor, scale }] = deltas else {
        return Ok(None);
    };
    let values: Vec<f64> = whole(checkpoint, tensor)?
        .into_iter()
        .map(|x| f64::from(x) * scale)
        .collect();
    let found = Matrix::new(1, values.len(), values);
    let checked = found.and_then(|change| change.check_finite().map(|()| change));
    checked.map(Some).map_err(|problem| {
        RunError::Calibration(format!("tensor '{}' of {label}: {problem}", tensor.name))
    })
}

/// The merged change of the bias `tensor` in the models of `tasks`, each with its label; `None` if no adapter adds to it.
///
/// # Errors
/// An adapter that replaces the bias, numbers that are not finite, what the method refuses.
pub(crate) fn merged_bias(
    tasks: &[(&Model, f64)],
    tensor: &str,
    method: &Method,
    seed: u64,
) -> Result<Option<Matrix>, RunError> {
    let failed = |problem: String| RunError::Calibration(format!("tensor '{tensor}' {problem}"));
    let deltas: Vec<&[Delta]> = tasks
        .iter()
        .map(|(model, _)| model.deltas(tensor))
        .collect();
    match kind(&deltas) {
        Ok(Kind::Bias) => {}
        Ok(_) => return Ok(None),
        Err((i, reason)) => return Err(failed(format!("of {} {reason}", tasks[i].0.label))),
    }
    let changes = tasks
        .iter()
        .map(|(model, _)| match &model.adapter {
            Some(adapter) => change(adapter.checkpoint(), model.deltas(tensor), &model.label),
            None => Ok(None),
        })
        .collect::<Result<Vec<_>, RunError>>()?;
    let weights: Vec<f64> = tasks.iter().map(|(_, weight)| *weight).collect();
    method
        .merge_biases(&all(changes), &weights, seed)
        .map(Some)
        .map_err(|problem| failed(format!("cannot be merged: {problem}")))
}

/// An adapter that leaves a bias alone is a vote for no change.
pub(super) fn all(changes: Vec<Option<Matrix>>) -> Vec<Matrix> {
    let len = changes.iter().flatten().next().map_or(0, Matrix::cols);
    changes
        .into_iter()
        .map(|change| change.unwrap_or_else(|| Matrix::zeros(1, len)))
        .collect()
}

/// Says that the biases of a merge are averaged, although its method does something else with matrices.
pub(crate) fn averaged(biases: usize) -> String {
    format!(
        "the method takes matrices apart; {biases} biases of B (`lora_bias`) are averaged, as vectors are"
    )
}
