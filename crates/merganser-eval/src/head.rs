//! What turns features into classes: a map of its own, or the head of another checkpoint.
//!
//! A file holds one linear map, logits = W f + b: `classifier.weight` (C, d) and `classifier.bias`, or `weight` and
//! `bias`; or Gaussian classes. A folder is a fine-tuned model: its last stage (pooler, classifier) is put on the body that is evaluated, as
//! is done to score one merged encoder on the tasks of its fine-tunes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use merganser_data::Samples;
use merganser_model::{CheckpointWeights, ModelError, Network, Op, StageKind, Weights};
use merganser_store::checkpoint::Checkpoint;

use crate::error::{EvalError, Result};
use crate::forward::{Feature, Vectors, collect, modality, vectors};
use crate::gaussian::{self, GaussianHead};
use crate::loaded::Loaded;

/// Pairs of names a linear head is stored under.
pub const HEAD_NAMES: [(&str, &str); 5] = [
    ("classifier.weight", "classifier.bias"),
    ("weight", "bias"),
    ("score.weight", "score.bias"),
    ("head.weight", "head.bias"),
    ("fc.weight", "fc.bias"),
];

/// A head from outside of the model.
#[derive(Debug)]
pub enum Head {
    /// A linear map on a feature.
    Linear(LinearHead),
    /// Gaussian classes on a feature.
    Gaussian(GaussianHead),
    /// The last stage of a fine-tuned model.
    Model(Box<Loaded>),
}

/// logits = W f + b.
#[derive(Debug)]
pub struct LinearHead {
    path: PathBuf,
    /// (C, d)
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Head {
    /// Opens a head: a file with a linear map or Gaussian classes, or the folder of a fine-tuned model.
    ///
    /// # Errors
    /// A file without such tensors, a folder without a model.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let name = path.display().to_string();
            // Its body is never read.
            let loaded = Loaded::open(&name, path, None, 0)?;
            return Ok(Self::Model(Box::new(loaded)));
        }
        let checkpoint = Checkpoint::open(path)?;
        if checkpoint.tensors().contains_key(gaussian::MEAN) {
            return GaussianHead::open(path).map(Self::Gaussian);
        }
        LinearHead::open(path, &checkpoint).map(Self::Linear)
    }
}

impl LinearHead {
    fn open(path: &Path, checkpoint: &Checkpoint) -> Result<Self> {
        let refused = |problem: String| EvalError::Head {
            path: path.to_owned(),
            problem,
        };
        let tensors = checkpoint.tensors();
        let shown = || {
            let names: Vec<_> = tensors
                .values()
                .take(8)
                .map(|tensor| format!("`{}` {:?}", tensor.name, tensor.shape))
                .collect();
            names.join(", ")
        };
        let Some((weight, bias)) = HEAD_NAMES
            .into_iter()
            .find(|(weight, _)| tensors.contains_key(*weight))
        else {
            return Err(refused(format!(
                "expected `classifier.weight` or `weight`; it holds {}",
                shown()
            )));
        };
        let weights = CheckpointWeights::new(checkpoint, Device::Cpu);
        let weight = weights.tensor(weight)?;
        let bias = tensors
            .contains_key(bias)
            .then(|| weights.tensor(bias))
            .transpose()?;
        let Ok((classes, _)) = weight.dims2() else {
            return Err(refused(format!(
                "its weight has shape {:?}; expected (classes, width)",
                weight.dims()
            )));
        };
        if let Some(bias) = &bias
            && bias.dims() != [classes]
        {
            return Err(refused(format!(
                "its bias has shape {:?}; expected [{classes}] as its weight has rows",
                bias.dims()
            )));
        }
        Ok(Self {
            path: path.to_owned(),
            weight,
            bias,
        })
    }

    /// Logits of features, (N, C).
    fn apply(&self, features: &Vectors) -> Result<Vectors> {
        let (classes, width) = self.weight.dims2()?;
        if width != features.width {
            return Err(EvalError::Head {
                path: self.path.clone(),
                problem: format!(
                    "its weight has shape [{classes}, {width}], the model's features have width {}",
                    features.width
                ),
            });
        }
        let mut logits = features.tensor()?.matmul(&self.weight.t()?)?;
        if let Some(bias) = &self.bias {
            logits = logits.broadcast_add(bias)?;
        }
        Ok(Vectors {
            width: classes,
            values: logits.flatten_all()?.to_vec1()?,
        })
    }
}

/// The body of one model under the last stage of another.
struct Crossed<'a> {
    body: &'a Loaded,
    head: &'a Loaded,
    /// Parameters of the head's last stage that the body lacks, or that are the classifier.
    taken: BTreeSet<String>,
}

impl<'a> Crossed<'a> {
    fn new(body: &'a Loaded, head: &'a Loaded, network: &Network) -> Result<Self> {
        let mut taken = BTreeSet::new();
        for stage in &network.stages {
            let taps = stage.ops.iter().filter_map(Op::parameters);
            for name in taps.flat_map(|tap| std::iter::once(tap.weight).chain(tap.bias)) {
                if stage.kind == StageKind::Final
                    && (is_classifier(name) || find(body, name).is_none())
                {
                    taken.insert(name.to_owned());
                } else {
                    let wanted = head.shapes().get(name);
                    let found = find(body, name).and_then(|name| body.shapes().get(name));
                    if found.is_none() || found != wanted {
                        return Err(EvalError::Unfit {
                            model: body.name().to_owned(),
                            problem: format!(
                                "it does not fit under the head of {}: tensor `{name}` has shape {} there and {} here",
                                head.name(),
                                shape(wanted),
                                shape(found)
                            ),
                        });
                    }
                }
            }
        }
        Ok(Self { body, head, taken })
    }
}

fn shape(shape: Option<&Vec<usize>>) -> String {
    shape.map_or("none".to_owned(), |shape| format!("{shape:?}"))
}

/// Whether a parameter gives the answers of one task, by its name.
fn is_classifier(name: &str) -> bool {
    name.split('.')
        .any(|part| matches!(part, "classifier" | "score" | "qa_outputs" | "head"))
}

/// A tensor under its name, or without or with the name of the body before it (`bert.…`).
fn find<'a>(body: &'a Loaded, name: &str) -> Option<&'a str> {
    let shapes = body.shapes();
    if let Some((own, _)) = shapes.get_key_value(name) {
        return Some(own);
    }
    let (first, rest) = name.split_once('.')?;
    if let Some((own, _)) = shapes.get_key_value(rest)
        && !first.is_empty()
    {
        return Some(own);
    }
    [
        "bert",
        "roberta",
        "vit",
        "deit",
        "model",
        "transformer",
        "distilbert",
    ]
    .iter()
    .find_map(|prefix| {
        shapes
            .get_key_value(&format!("{prefix}.{name}"))
            .map(|(own, _)| own.as_str())
    })
}

impl Weights for Crossed<'_> {
    fn tensor(&self, name: &str) -> merganser_model::Result<Tensor> {
        if self.taken.contains(name) {
            return self.head.tensor(name);
        }
        let own = find(self.body, name).ok_or_else(|| ModelError::NoWeight(name.to_owned()))?;
        self.body.tensor(own)
    }

    fn rows(&self, name: &str, rows: &[u32]) -> merganser_model::Result<Tensor> {
        if self.taken.contains(name) {
            return self.head.rows(name, rows);
        }
        let own = find(self.body, name).ok_or_else(|| ModelError::NoWeight(name.to_owned()))?;
        self.body.rows(own, rows)
    }
}

/// Class logits of `samples`, (N, C): of the model's own head, or of `head`. A head on features is put on `feature` (default:
/// what is customary for the network), of unit length if `unit` or a Gaussian head was made of such.
///
/// # Errors
/// A model without a head where none is given, a head of another width, a failing forward pass.
pub fn class_logits(
    model: &Loaded,
    head: Option<&Head>,
    samples: &Samples,
    feature: Option<Feature>,
    unit: bool,
    batch_size: usize,
) -> Result<Vectors> {
    let own = |network: &Network, weights: &dyn Weights, name: &str| -> Result<Vectors> {
        let logits = network
            .outputs()
            .logits
            .filter(|_| network.vocabulary_head().is_none());
        let Some(logits) = logits else {
            return Err(EvalError::Unfit {
                model: name.to_owned(),
                problem: "it has no head that gives classes; name one: a file with `classifier.weight`, or the folder of \
                          a fine-tuned model that has one"
                    .to_owned(),
            });
        };
        collect(network, weights, samples, batch_size, &|state, _| {
            Ok(state.get(logits)?.clone())
        })
    };
    match head {
        None => own(&model.network(modality(samples))?, model, model.name()),
        Some(Head::Model(head)) => {
            let network = head.network(modality(samples))?;
            let crossed = Crossed::new(model, head, &network)?;
            own(&network, &crossed, head.name())
        }
        Some(Head::Linear(head)) => {
            head.apply(&vectors(model, samples, feature, unit, batch_size)?)
        }
        Some(Head::Gaussian(head)) => {
            let unit = unit || head.unit;
            head.apply(&vectors(model, samples, feature, unit, batch_size)?)
        }
    }
}
