//! Matrices from files of moments: each by itself, without samples and without a network that can be run.

use merganser_model::{Linear, Weights};

use super::evidence::Inputs;
use super::matrix::Asked;
use super::{Host, Layer, NetworkError, Settings};
use crate::{Error, InputMoments, MomentsFile, Statistics};

/// One fine-tune and the moments of its task.
pub struct Recorded<'a> {
    /// What it is called.
    pub name: String,
    /// Its tensors, under the output's names.
    pub weights: &'a dyn Weights,
    /// Its moments.
    pub moments: &'a MomentsFile,
    /// ω_t, the weight of its output error.
    pub weight: f64,
}

/// A matrix that moments speak for.
pub struct Place {
    /// The matrix.
    pub linear: Linear,
    /// Name of the part of the network it belongs to.
    pub stage: String,
    /// Its block.
    pub block: Option<usize>,
}

/// Merges the matrices at `places`, each by itself, and says what was found out about them.
///
/// # Errors
/// Moments that are missing or of other sizes, matrices without a solution, and the host's own errors.
pub fn merge_recorded(
    places: &[Place],
    base: &dyn Weights,
    recorded: &[Recorded<'_>],
    host: &dyn Host,
    settings: &Settings,
) -> Result<Vec<Layer>, NetworkError> {
    let mut layers = Vec::with_capacity(places.len());
    for (number, place) in places.iter().enumerate() {
        let name = place.linear.weight.as_str();
        host.stage(name, number, places.len());
        let inputs = recorded
            .iter()
            .map(|task| inputs(task.moments, name))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|problem| NetworkError::Layer {
                tensor: name.to_owned(),
                problem,
            })?;
        let asked = Asked {
            host,
            settings,
            base,
            tuned: recorded
                .iter()
                .map(|task| (task.name.as_str(), task.weight, task.weights))
                .collect(),
            linear: &place.linear,
            inputs: &inputs,
            targets: Vec::new(),
            stage: (&place.stage, place.block),
        };
        layers.push(asked.merge()?.layer);
    }
    Ok(layers)
}

fn inputs(file: &MomentsFile, name: &str) -> Result<Inputs, Error> {
    let gram = |statistics: Statistics| -> Result<InputMoments, Error> {
        match statistics {
            Statistics::Input(moments) => Ok(moments),
            Statistics::Channels(_) | Statistics::Rows(_) => Err(Error::File {
                path: file.path().to_owned(),
                problem: format!("it has no Gram of the inputs of `{name}`"),
            }),
        }
    };
    Ok(Inputs {
        all: gram(file.read(name)?)?,
        held_out: file.read_held_out(name)?.map(gram).transpose()?,
    })
}
