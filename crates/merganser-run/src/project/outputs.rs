//! What finished models capture at the output of the whole network.

use merganser_model::Weights;
use merganser_plan::Model;
use merganser_projection::network::{self, Teacher};
use merganser_report::Report;

use super::Projection;
use super::tensors::{Stored, Tensors};
use crate::RunError;

/// Runs the samples through the compared models and notes in the report what they capture. Files of moments hold no
/// samples, and then nothing is noted.
pub(super) fn measure(
    projection: &Projection<'_>,
    tensors: &Tensors<'_>,
    compared: &[(String, Model)],
    report: &mut Report,
) -> Result<(), RunError> {
    let (Some(base), Ok(network)) = (projection.plan.base, &projection.network) else {
        return Ok(());
    };
    if compared.is_empty() || projection.moments.is_some() {
        return Ok(());
    }
    let weights: Vec<_> = projection
        .calibrated
        .tasks
        .iter()
        .map(|task| tensors.of_model(task.model))
        .collect();
    let teachers: Vec<Teacher<'_>> = projection
        .load()?
        .iter()
        .zip(&weights)
        .map(|(data, weights)| Teacher {
            name: data.name.clone(),
            weights,
            batches: &data.batches,
            weight: data.weight,
        })
        .collect();
    let stored: Vec<Stored<'_>> = compared.iter().map(|(_, model)| Stored(model)).collect();
    let models: Vec<(&str, &dyn Weights)> = compared
        .iter()
        .zip(&stored)
        .map(|((name, _), stored)| (name.as_str(), stored as &dyn Weights))
        .collect();
    let base = tensors.of_model(base);
    let feature = projection.distillation().feature;
    let captured = network::captured_features(network, &base, &teachers, &models, feature)
        .map_err(RunError::Projection)?;
    for ((name, _), captured) in models.iter().zip(captured) {
        if let Some(method) = report
            .methods
            .iter_mut()
            .find(|method| method.name == *name)
        {
            method.output = Some(captured.fraction);
        }
    }
    Ok(())
}
