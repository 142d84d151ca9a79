//! A network over all samples, and one vector a sample out of it.

use candle_core::{Device, Tensor};
use merganser_data::{Chunk, Inputs, Samples};
use merganser_model::{Kind, Modality, Network, State, Weights, walk};
use serde::{Deserialize, Serialize};

use crate::error::{EvalError, Result};

/// Rows (tokens) whose states are held at a time. The weights of a model that is not resident are read once for each
/// such group.
const ROWS: usize = 1 << 16;
/// What an image counts as.
const ROWS_OF_IMAGE: usize = 256;

/// Runs `network` over `samples`, `batch_size` at a time, and gives the state of every batch to `take`.
///
/// # Errors
/// What loading the batches, the forward pass or `take` answer.
pub(crate) fn run(
    network: &Network,
    weights: &dyn Weights,
    samples: &Samples,
    batch_size: usize,
    take: &mut dyn FnMut(&Chunk, &State) -> Result<()>,
) -> Result<()> {
    let rows = |at: usize| match &samples.inputs {
        Inputs::Text { sequences, .. } => sequences[at].ids.len() + sequences[at].decoder.len(),
        Inputs::Images(_) => ROWS_OF_IMAGE,
    };
    let mut flush = |chunks: &mut Vec<Chunk>| -> Result<()> {
        let mut states = chunks
            .iter()
            .map(|chunk| Ok(State::new(network, &chunk.batch, &Device::Cpu)?))
            .collect::<Result<Vec<_>>>()?;
        walk(network, weights, &mut states, &mut ())?;
        for (chunk, state) in chunks.drain(..).zip(&states) {
            take(&chunk, state)?;
        }
        Ok(())
    };
    let mut group = Vec::new();
    let mut held = 0;
    for chunk in samples.batches(batch_size) {
        let chunk = chunk?;
        let longest = chunk.indices.iter().map(|&at| rows(at)).max().unwrap_or(0);
        let more = longest * chunk.indices.len();
        if held > 0 && held + more > ROWS {
            flush(&mut group)?;
            held = 0;
        }
        held += more;
        group.push(chunk);
    }
    if !group.is_empty() {
        flush(&mut group)?;
    }
    Ok(())
}

/// What the samples are for a network.
pub(crate) fn modality(samples: &Samples) -> Modality {
    match samples.inputs {
        Inputs::Text { .. } => Modality::Text,
        Inputs::Images(_) => Modality::Image,
    }
}

/// Whether a token sees only itself and earlier ones.
pub(crate) fn is_causal(network: &Network) -> bool {
    network
        .ops()
        .any(|(_, op)| matches!(&op.kind, Kind::Attention(attention) if attention.causal))
}

/// The vector that stands for a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Feature {
    /// The first row of the last hidden state: `[CLS]`, the class token.
    Cls,
    /// The mean over the real rows of the last hidden state.
    Mean,
    /// The last real row of the last hidden state.
    Last,
    /// The pooler's output, or what the family has in its place.
    Pooled,
    /// The projection into the space both towers of CLIP share.
    Embeds,
}

impl std::str::FromStr for Feature {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "cls" | "class" | "first" => Self::Cls,
            "mean" => Self::Mean,
            "last" => Self::Last,
            "pooled" | "pooler" => Self::Pooled,
            "embeds" => Self::Embeds,
            _ => {
                return Err(format!(
                    "unknown feature `{text}`; expected cls, mean, last, pooled or embeds"
                ));
            }
        })
    }
}

impl Feature {
    /// What is customary for the network: CLIP's projection, the class token of an image, the last token of a causal
    /// language model, the mean over the tokens of an encoder.
    pub fn of(network: &Network) -> Self {
        let outputs = network.outputs();
        if outputs.embeds.is_some() {
            Self::Embeds
        } else if network.modality() == Modality::Image {
            Self::Cls
        } else if is_causal(network) {
            Self::Last
        } else {
            Self::Mean
        }
    }

    /// The vectors of a batch, (B, d).
    fn read(self, network: &Network, state: &State, chunk: &Chunk) -> Result<Tensor> {
        let outputs = network.outputs();
        let missing = |what: &str| {
            EvalError::Setting(format!(
                "a {} checkpoint without {what} has no such feature; choose cls, mean or last",
                network.family()
            ))
        };
        Ok(match self {
            Self::Mean => state.mean(outputs.hidden)?,
            Self::Cls => state.get(outputs.hidden)?.narrow(1, 0, 1)?.squeeze(1)?,
            Self::Pooled => {
                let reg = outputs.pooled.ok_or_else(|| missing("a pooler"))?;
                state.get(reg)?.clone()
            }
            Self::Embeds => {
                let reg = outputs.embeds.ok_or_else(|| missing("a projection"))?;
                state.get(reg)?.clone()
            }
            Self::Last => {
                let hidden = state.get(outputs.hidden)?;
                let (_, length, _) = hidden.dims3()?;
                let tokens = chunk.batch.decoder.as_ref().or(chunk.batch.tokens.as_ref());
                let rows: Vec<u32> = (0..chunk.indices.len())
                    .map(|row| {
                        let last = tokens.map_or(length - 1, |tokens| {
                            let real = &tokens.real()[row * length..(row + 1) * length];
                            real.iter().rposition(|&real| real).unwrap_or(0)
                        });
                        (row * length + last) as u32
                    })
                    .collect();
                let index = Tensor::new(rows, hidden.device())?;
                hidden.flatten_to(1)?.index_select(&index, 0)?
            }
        })
    }
}

/// One vector a sample, in the order of the samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    /// Length of each.
    pub width: usize,
    /// All of them, back to back.
    pub values: Vec<f32>,
}

impl Vectors {
    /// The vector of sample `at`.
    pub fn row(&self, at: usize) -> &[f32] {
        &self.values[at * self.width..(at + 1) * self.width]
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Scales every vector to length 1; zero stays zero.
    pub fn normalise(&mut self) {
        for row in self.values.chunks_mut(self.width.max(1)) {
            let square: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            if square > 0.0 {
                let scale = (1.0 / square.sqrt()) as f32;
                for x in row {
                    *x *= scale;
                }
            }
        }
    }

    /// As a matrix, (N, width).
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        Ok(Tensor::from_slice(
            &self.values,
            (self.len(), self.width),
            &Device::Cpu,
        )?)
    }
}

/// Collects one vector a sample out of every batch.
pub(crate) fn collect(
    network: &Network,
    weights: &dyn Weights,
    samples: &Samples,
    batch_size: usize,
    read: &dyn Fn(&State, &Chunk) -> Result<Tensor>,
) -> Result<Vectors> {
    let mut vectors = Vectors {
        width: 0,
        values: Vec::new(),
    };
    run(
        network,
        weights,
        samples,
        batch_size,
        &mut |chunk, state| {
            let batch = read(state, chunk)?;
            let (_, width) = batch.dims2()?;
            let values: Vec<f32> = batch.flatten_all()?.to_vec1()?;
            if vectors.values.is_empty() {
                vectors.width = width;
                vectors.values = vec![0.0; samples.len() * width];
            }
            for (&at, row) in chunk.indices.iter().zip(values.chunks(width.max(1))) {
                if let Some(bad) = row.iter().find(|x| !x.is_finite()) {
                    return Err(EvalError::Setting(format!(
                        "the network gives {bad} for sample {}; its weights hold values that overflow, or NaN",
                        samples.rows[at]
                    )));
                }
                vectors.values[at * width..(at + 1) * width].copy_from_slice(row);
            }
            Ok(())
        },
    )?;
    Ok(vectors)
}

/// The vectors of `samples` by a model: its customary feature unless one is named, of length 1 if `unit`.
///
/// # Errors
/// Those of [`features`].
pub fn vectors(
    model: &crate::Loaded,
    samples: &Samples,
    feature: Option<Feature>,
    unit: bool,
    batch_size: usize,
) -> Result<Vectors> {
    let network = model.network(modality(samples))?;
    let feature = feature.map_or_else(|| model.feature(&network), Ok)?;
    let mut found = features(&network, model, samples, feature, batch_size)?;
    if unit {
        found.normalise();
    }
    Ok(found)
}

/// The features of `samples`.
///
/// # Errors
/// If the samples cannot be read, the forward pass fails, or the network has no such feature.
pub fn features(
    network: &Network,
    weights: &dyn Weights,
    samples: &Samples,
    feature: Feature,
    batch_size: usize,
) -> Result<Vectors> {
    collect(network, weights, samples, batch_size, &|state, chunk| {
        feature.read(network, state, chunk)
    })
}
