//! The feature of a network: what of its last hidden state its users read, and how much of the way to the fine-tunes'
//! features a merged model has gone.

use candle_core::{Device, Tensor};
use merganser_model::{Batch, Modality, Network, Reg, StageKind, StageWeights, State, Weights};
use rayon::prelude::*;

use super::walk::forward;
use super::{NetworkError, Teacher};
use crate::captured::{Captured, TaskCaptured};

/// What of a hidden state counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Feature {
    /// The class token of images, the mean over the tokens of encoders, all tokens of decoders.
    #[default]
    Auto,
    /// The first token.
    First,
    /// The mean over the tokens.
    Mean,
    /// All tokens.
    Tokens,
}

impl Feature {
    /// The choice that `Auto` stands for in this network.
    pub(super) fn resolved(self, network: &Network) -> Self {
        match self {
            Self::Auto if network.modality() == Modality::Image => Self::First,
            Self::Auto if network.vocabulary_head().is_some() => Self::Tokens,
            Self::Auto => Self::Mean,
            given => given,
        }
    }

    /// The features of a batch whose last hidden state stands in `output`, a row each.
    pub(super) fn of(self, state: &State, output: Reg) -> merganser_model::Result<Tensor> {
        Ok(match self {
            Self::First => state.get(output)?.narrow(1, 0, 1)?.squeeze(1)?,
            Self::Mean => state.mean(output)?,
            Self::Tokens | Self::Auto => state.rows(output)?,
        })
    }
}

/// What finished models capture at the output of the network: the energy E_t of a task is the mean squared distance of the
/// base's features from the fine-tune's on the task's samples, J_t that of the model's, and the model captures
/// 1 − Σ ω_t J_t / Σ ω_t E_t. Unlike the figures of single layers it counts what the errors of layers do to one another.
///
/// Stage by stage: memory holds one stage and the hidden states of one task.
///
/// # Errors
/// Forward passes that fail, features that are not finite.
pub fn captured_features(
    network: &Network,
    base: &dyn Weights,
    teachers: &[Teacher<'_>],
    models: &[(&str, &dyn Weights)],
    feature: Feature,
) -> Result<Vec<Captured>, NetworkError> {
    let feature = feature.resolved(network);
    let mut tasks: Vec<Vec<TaskCaptured>> = vec![Vec::with_capacity(teachers.len()); models.len()];
    for teacher in teachers {
        let of = |name: &str, weights| features(network, weights, teacher.batches, feature, name);
        let target = of(&teacher.name, teacher.weights)?;
        let energy = distance(&of("the base model", base)?, &target, "the base model")?;
        for ((name, weights), tasks) in models.iter().zip(&mut tasks) {
            let left = distance(&of(name, *weights)?, &target, name)?;
            tasks.push(TaskCaptured::new(left, energy));
        }
    }
    let total = |tasks: &[TaskCaptured], of: fn(&TaskCaptured) -> f64| {
        let weighted = tasks
            .iter()
            .zip(teachers)
            .map(|(task, t)| t.weight * of(task));
        weighted.sum::<f64>()
    };
    Ok(tasks
        .into_iter()
        .map(|tasks| {
            let left = total(&tasks, |task| task.objective);
            let energy = total(&tasks, |task| task.energy);
            Captured::new(left, energy, tasks)
        })
        .collect())
}

/// The features of all samples, batch by batch.
fn features(
    network: &Network,
    weights: &dyn Weights,
    batches: &[Batch],
    feature: Feature,
    name: &str,
) -> Result<Vec<Tensor>, NetworkError> {
    let output = network.outputs().hidden;
    let mut passes = batches
        .iter()
        .map(|batch| Ok((State::new(network, batch, &Device::Cpu)?, None)))
        .collect::<merganser_model::Result<Vec<(State, Option<Tensor>)>>>()
        .map_err(forward(name))?;
    let stages = network.stages.iter();
    for stage in stages.filter(|stage| stage.kind != StageKind::VocabularyHead) {
        let weights = StageWeights::load(stage, weights).map_err(forward(name))?;
        let run = |(state, found): &mut (State, Option<Tensor>)| {
            for op in &stage.ops {
                network.run(op, state, &weights)?;
                if op.outputs.contains(&output) {
                    *found = Some(feature.of(state, output)?);
                }
            }
            Ok(())
        };
        passes
            .par_iter_mut()
            .try_for_each(run)
            .map_err(forward(name))?;
    }
    passes
        .into_iter()
        .map(|(state, found)| found.map_or_else(|| feature.of(&state, output), Ok))
        .collect::<merganser_model::Result<_>>()
        .map_err(forward(name))
}

/// Mean over all rows of the squared distance.
fn distance(a: &[Tensor], b: &[Tensor], name: &str) -> Result<f64, NetworkError> {
    let (mut sum, mut rows) = (0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let own = (a - b)
            .and_then(|d| d.sqr()?.sum_all()?.to_scalar::<f32>())
            .map_err(|error| forward(name)(error.into()))?;
        sum += f64::from(own);
        rows += a.dims()[0] as f64;
    }
    let mean = sum / f64::max(rows, 1.0);
    if mean.is_finite() {
        return Ok(mean);
    }
    Err(NetworkError::NotFinite {
        model: name.to_owned(),
        tensor: "the last hidden state".to_owned(),
    })
}
