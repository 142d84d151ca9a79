//! Merges from files of moments: every matrix by itself, no samples and no network needed.

use std::collections::BTreeSet;
use std::io::Read;

use candle_core::Tensor;
use merganser_linalg::{Matrix, Real};
use merganser_model::Weights;
use merganser_plan::{Action, Output};
use merganser_projection::network::{self, Host as _, Layer, LayerKind, Rule};
use merganser_projection::{InputMoments, MomentsFile, Problem, Statistics, Task};

use super::host::Host;
use super::matrices::{Orientation, matrix};
use super::tensors::Tensors;
use super::{Projection, rules};
use crate::{Event, RunError};

/// Widest input whose matrices are held in f64.
const WIDE: usize = 4096;

/// The moments of all tasks, if every task has a file of them.
///
/// # Errors
/// If some tasks have moments and others samples, a file is damaged, or one is of another model.
pub(super) fn open(projection: &Projection<'_>) -> Result<Option<Vec<MomentsFile>>, RunError> {
    let mut files = Vec::new();
    let mut others = Vec::new();
    for task in &projection.calibrated.tasks {
        let model = &projection.plan.models[task.model];
        let Some(calibration) = &task.calibration else {
            continue;
        };
        if is_moments(&calibration.path) {
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
    if others.is_empty() {
        return Ok(Some(files));
    }
    Err(RunError::Calibration(format!(
        "some models have a file of moments and others samples ({}): give all of them moments (`merganser calibrate`) or all of them samples",
        others.join(", ")
    )))
}

/// Whether a file says of itself that it holds moments. Whether it is sound is asked when it is opened.
fn is_moments(path: &std::path::Path) -> bool {
    let header = || -> Option<serde_json::Value> {
        let mut file = std::fs::File::open(path).ok()?;
        let mut length = [0; 8];
        file.read_exact(&mut length).ok()?;
        let mut text = Vec::new();
        file.take(u64::from_le_bytes(length).min(LONGEST_HEADER))
            .read_to_end(&mut text)
            .ok()?;
        serde_json::from_slice(&text).ok()
    };
    let extension = path
        .extension()
        .is_some_and(|extension| extension == "safetensors");
    extension
        && header().is_some_and(|header| header["__metadata__"]["format"] == "merganser-moments")
}

/// Longest header that is read to tell what a file is.
const LONGEST_HEADER: u64 = 64 << 20;

/// Names of the tensors that moments decide: matrices whose inputs all tasks have moments of, and their biases.
pub(super) fn claimed(projection: &Projection<'_>, files: &[MomentsFile]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for output in projection.plan.tensors() {
        let Some(rule) = rule(projection, output, files) else {
            continue;
        };
        names.insert(output.name.clone());
        if let Some(bias) = bias(projection, output).filter(|_| rule.includes_bias()) {
            names.insert(bias.name.clone());
        }
    }
    names
}

fn rule(projection: &Projection<'_>, output: &Output, files: &[MomentsFile]) -> Option<Rule> {
    let known = files
        .iter()
        .all(|file| file.resolve(&output.name).is_some());
    let merged = matches!(output.action, Action::Merge { .. }) && output.shape.len() >= 2;
    let settings = output.calibrated.as_ref().filter(|_| known && merged)?;
    let rule = rules::rule(projection.calibrated, settings, projection.plan.seed);
    (rule != Rule::Prior).then_some(rule)
}

fn bias<'a>(projection: &Projection<'a>, output: &Output) -> Option<&'a Output> {
    let name = format!("{}bias", output.name.strip_suffix("weight")?);
    let found = projection.plan.tensors().find(|other| other.name == name);
    found.filter(|found| found.shape.len() == 1 && matches!(found.action, Action::Merge { .. }))
}

/// Merges every matrix that all files have moments of.
pub(super) fn merge(
    projection: &Projection<'_>,
    tensors: &Tensors<'_>,
    host: &Host<'_>,
    files: &[MomentsFile],
    settings: &network::Settings,
    weights: &[f64],
) -> Result<Vec<Layer>, RunError> {
    let outputs: Vec<&Output> = projection
        .plan
        .tensors()
        .filter(|output| rule(projection, output, files).is_some())
        .collect();
    let mut layers = Vec::new();
    for (number, output) in outputs.iter().enumerate() {
        host.observer.event(Event::Stage {
            name: &output.name,
            number,
            of: outputs.len(),
        });
        let mut inputs = Vec::new();
        for file in files {
            match file.read(&output.name).map_err(RunError::Moments)? {
                Statistics::Input(moments) => inputs.push(moments),
                _ => {
                    return Err(RunError::Calibration(format!(
                        "'{}' has no Gram of the inputs of '{}'",
                        file.path().display(),
                        output.name
                    )));
                }
            }
        }
        let one = if inputs[0].dim() <= WIDE {
            layer::<f64>
        } else {
            layer::<f32>
        };
        layers.push(one(
            projection, tensors, host, output, &inputs, settings, weights,
        )?);
    }
    Ok(layers)
}

#[allow(clippy::too_many_arguments)]
fn layer<T: Real>(
    projection: &Projection<'_>,
    tensors: &Tensors<'_>,
    host: &Host<'_>,
    output: &Output,
    inputs: &[InputMoments],
    settings: &network::Settings,
    weights: &[f64],
) -> Result<Layer, RunError> {
    let fault = |problem: merganser_projection::Error| {
        RunError::Calibration(format!("tensor '{}': {problem}", output.name))
    };
    let rule = host.rule(&output.name);
    let bias = bias(projection, output).filter(|_| rule.includes_bias());
    let orientation = Orientation::of(projection, output, Some(inputs[0].dim()))?;
    let joined = |weights: &dyn Weights| -> Result<Matrix<T>, RunError> {
        let w: Matrix<T> = matrix(weights, output, orientation)?;
        let Some(bias) = bias else { return Ok(w) };
        let b: Vec<f32> = weights
            .tensor(&bias.name)
            .and_then(|b| Ok(b.to_vec1()?))
            .map_err(|error| RunError::Read(error.into()))?;
        Ok(Matrix::from_fn(w.rows(), w.cols() + 1, |i, j| {
            if j < w.cols() {
                w.get(i, j)
            } else {
                T::from_f64(f64::from(b[i]))
            }
        }))
    };
    let base = projection.plan.base.map(|base| tensors.of_model(base));
    let base = base.ok_or_else(|| RunError::Calibration("there is no base model".into()))?;
    let base = joined(&base)?;
    let minus_base = |mut other: Matrix<T>| {
        other.add_scaled(-1.0, &base);
        other
    };
    let mut updates = Vec::new();
    for task in &projection.calibrated.tasks {
        updates.push(minus_base(joined(&tensors.of_model(task.model))?));
    }
    let augmented: Vec<InputMoments> = match bias {
        Some(_) => inputs.iter().map(InputMoments::with_bias).collect(),
        None => inputs.to_vec(),
    };
    let tasks: Vec<Task<'_, T>> = updates
        .iter()
        .zip(&augmented)
        .zip(weights)
        .map(|((update, input), weight)| Task {
            weight: *weight,
            ..Task::new(update, input)
        })
        .collect();
    let prior = minus_base(joined(&PriorOf(host))?);
    let problem = Problem::new(tasks.clone())
        .and_then(|problem| problem.with_prior(prior.clone()))
        .map_err(fault)?;
    let mut measured = Vec::new();
    for programme in &settings.measured {
        let solution = problem.solve(programme).map_err(fault)?;
        measured.push((programme.basis.to_string(), solution.captured));
    }
    let solved = network::solve(&rule, &problem, &tasks, &updates).map_err(fault)?;
    let mut merged = solved.update;
    merged.add_scaled(1.0, &base);
    let d = inputs[0].dim();
    let w = Matrix::from_fn(merged.rows(), d, |i, j| merged.get(i, j));
    keep(host, &output.name, &output.shape, &orientation.stored(w))?;
    if let Some(bias) = bias {
        let b = Matrix::from_fn(1, merged.rows(), |_, i| merged.get(i, d));
        keep(host, &bias.name, &bias.shape, &b)?;
    }
    Ok(Layer {
        tensor: output.name.clone(),
        stage: match merganser_plan::Role::of(&output.name) {
            merganser_plan::Role::Layer { stack, index, .. } => format!("{stack}.{index}"),
            _ => "other".to_owned(),
        },
        block: None,
        kind: LayerKind::Linear,
        shape: output.shape.clone(),
        basis: solved.label,
        captured: solved.captured,
        ridge: solved.ridge,
        measured,
        output_cosine: None,
        notes: solved.notes,
    })
}

fn keep<T: Real>(
    host: &Host<'_>,
    name: &str,
    shape: &[usize],
    values: &Matrix<T>,
) -> Result<(), RunError> {
    let values: Vec<f32> = values
        .as_slice()
        .iter()
        .map(|x| x.to_f64() as f32)
        .collect();
    let tensor = Tensor::from_vec(values, shape, &candle_core::Device::Cpu)
        .map_err(|error| RunError::Read(error.into()))?;
    host.keep(name, tensor).map_err(RunError::Read)?;
    Ok(())
}

/// The prior, as weights.
struct PriorOf<'a>(&'a Host<'a>);

impl Weights for PriorOf<'_> {
    fn tensor(&self, name: &str) -> merganser_model::Result<Tensor> {
        self.0
            .prior(name)
            .map_err(merganser_model::ModelError::Source)
    }
}
