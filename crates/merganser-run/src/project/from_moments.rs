//! Merges from files of moments: which matrices they speak for.

use merganser_model::{Layout, Linear, StageKind, TapKind};
use merganser_plan::{Action, Output, Role};
use merganser_projection::MomentsFile;
use merganser_projection::network::{LayerKind, Place};

use super::Projection;
use crate::RunError;

/// The moments of all tasks, if every task has a file of them.
///
/// # Errors
/// If some tasks have moments and others samples, a file is damaged or of another model, or the recipe asks for what
/// moments cannot give.
pub(super) fn open(projection: &Projection<'_>) -> Result<Option<Vec<MomentsFile>>, RunError> {
    let mut files = Vec::new();
    let mut others = Vec::new();
    for task in &projection.calibrated.tasks {
        let model = &projection.plan.models[task.model];
        let Some(calibration) = &task.calibration else {
            continue;
        };
        if MomentsFile::is_one(&calibration.path) {
            let file = MomentsFile::open(&calibration.path).map_err(RunError::Moments)?;
            file.expect_model(&model.identity())
                .map_err(RunError::Moments)?;
            files.push(file);
        } else {
            others.push(model.label.as_str());
        }
    }
    if files.is_empty() {
        return Ok(None);
    }
    if !others.is_empty() {
        return Err(RunError::Calibration(format!(
            "some models have a file of moments and others samples ({}): give all of them moments (`merganser calibrate`) or all of them samples",
            others.join(", ")
        )));
    }
    let asks_for = match projection.calibrated.info.name {
        "regmean++" => Some("regmean++"),
        _ if projection.calibrated.settings.int("distill") > 0 => Some("distill"),
        _ => None,
    };
    match asks_for {
        None => Ok(Some(files)),
        Some(what) => Err(RunError::Calibration(format!(
            "{what} runs the networks on samples, and files of moments hold none: give every model its samples as `calibration`"
        ))),
    }
}

/// The matrices that all files have moments of and that the recipe gives a rule: as the network describes them, if it is
/// of a kind that is known, else as their shapes and the widths of the moments do.
///
/// # Errors
/// If a matrix does not fit its moments.
pub(super) fn places(
    projection: &Projection<'_>,
    files: &[MomentsFile],
) -> Result<Vec<Place>, RunError> {
    if let Ok(network) = &projection.network {
        let mut places = Vec::new();
        for (stage, op) in network.ops() {
            let Some(TapKind::Linear(linear)) = op.parameters().map(|tap| tap.kind) else {
                continue;
            };
            let fits = stage.kind != StageKind::VocabularyHead && !linear.tied;
            if fits && decides(projection, files, &linear.weight) {
                places.push(Place {
                    linear: linear.clone(),
                    stage: stage.name.clone(),
                    block: stage.layer,
                });
            }
        }
        return Ok(places);
    }
    let outputs = projection.plan.tensors();
    outputs
        .filter(|output| output.shape.len() >= 2 && decides(projection, files, &output.name))
        .map(|output| unknown(projection, output, files))
        .collect()
}

fn decides(projection: &Projection<'_>, files: &[MomentsFile], name: &str) -> bool {
    files.iter().all(|file| file.resolve(name).is_some())
        && projection.rule(name).applies_to(LayerKind::Linear)
}

/// A matrix of a network that is not known: the width of its moments tells how it is stored.
fn unknown(
    projection: &Projection<'_>,
    output: &Output,
    files: &[MomentsFile],
) -> Result<Place, RunError> {
    let width = files[0].spec(&output.name).map_err(RunError::Moments)?.size;
    let rows = output.shape[0];
    let columns: usize = output.shape[1..].iter().product();
    let (layout, outputs) = match width {
        _ if width == columns => (Layout::OutIn, rows),
        _ if width == rows && output.shape.len() == 2 => (Layout::InOut, columns),
        _ => {
            return Err(RunError::Calibration(format!(
                "tensor '{}' has shape {:?}, and its moments are of inputs of {width} numbers: they belong to another model",
                output.name, output.shape
            )));
        }
    };
    let bias = output
        .name
        .strip_suffix("weight")
        .map(|start| format!("{start}bias"));
    let bias = bias.filter(|bias| {
        projection.plan.tensors().any(|other| {
            &other.name == bias
                && other.shape == [outputs]
                && matches!(other.action, Action::Merge { .. })
        })
    });
    let (stage, block) = match Role::of(&output.name) {
        Role::Layer { stack, index, .. } => (format!("{stack}.{index}"), Some(index)),
        Role::Pre | Role::Post => ("other".to_owned(), None),
    };
    Ok(Place {
        linear: Linear {
            weight: output.name.clone(),
            bias,
            layout,
            inputs: width,
            outputs,
            tied: false,
        },
        stage,
        block,
    })
}
