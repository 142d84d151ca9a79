//! A model that can be evaluated: a checkpoint, its adapter if it has one, and how its folder prepares samples.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use merganser_data::Processor;
use merganser_model::{CheckpointWeights, Modality, ModelError, Network, Weights, shapes};
use merganser_store::adapter::{Adapter, Delta};
use merganser_store::checkpoint::Checkpoint;
use serde_json::Value;

use crate::error::{EvalError, Result};
use crate::forward::Feature;

/// An opened model.
#[derive(Debug)]
pub struct Loaded {
    name: String,
    checkpoint: Checkpoint,
    adapter: Option<Adapter>,
    config: Value,
    processor: Processor,
    shapes: BTreeMap<String, Vec<usize>>,
    /// All tensors in f32, if they fit.
    resident: BTreeMap<String, Tensor>,
}

impl Loaded {
    /// Opens the model in the folder `model`, called `name` in results, with the adapter in the folder `adapter` on it.
    /// If all its numbers take at most `memory` bytes in f32 they are read once; otherwise each pass reads them again,
    /// block by block.
    ///
    /// # Errors
    /// A folder without a model or config.json, an adapter that does not fit.
    pub fn open(name: &str, model: &Path, adapter: Option<&Path>, memory: u64) -> Result<Self> {
        let unfit = |problem: String| EvalError::Unfit {
            model: name.to_owned(),
            problem,
        };
        let checkpoint = Checkpoint::open(model)?;
        let Some(text) = checkpoint.config() else {
            return Err(unfit(format!(
                "there is no config.json in `{}`, which says how the network is built",
                model.display()
            )));
        };
        let config = serde_json::from_str(text.trim_start_matches('\u{feff}'))
            .map_err(|error| unfit(format!("its config.json is not valid JSON: {error}")))?;
        let adapter = adapter.map(Adapter::open).transpose()?;
        let mut shapes = shapes(&checkpoint);
        if let Some(adapter) = &adapter {
            for (tensor, deltas) in adapter.modules() {
                for delta in deltas {
                    if let Delta::Replace(new) = delta {
                        shapes.insert(tensor.clone(), new.shape.clone());
                    } else if shapes.get(tensor) != Some(&delta.shape()) {
                        return Err(unfit(format!(
                            "its adapter changes tensor `{tensor}` of shape {:?}, of which the model has {}",
                            delta.shape(),
                            match shapes.get(tensor) {
                                Some(shape) => format!("one of shape {shape:?}"),
                                None => "none".to_owned(),
                            }
                        )));
                    }
                }
            }
        }
        let mut loaded = Self {
            name: name.to_owned(),
            processor: Processor::open(model)?,
            checkpoint,
            adapter,
            config,
            shapes,
            resident: BTreeMap::new(),
        };
        let numbers: u64 = loaded
            .checkpoint
            .tensors()
            .values()
            .map(merganser_store::checkpoint::TensorInfo::elements)
            .sum();
        if numbers.saturating_mul(4) <= memory {
            let mut resident = BTreeMap::new();
            for tensor in loaded.shapes.keys() {
                match loaded.read(tensor) {
                    Ok(values) => {
                        resident.insert(tensor.clone(), values);
                    }
                    // Counters and masks that were saved with the weights; a network that wants one says so.
                    Err(ModelError::NotFloat { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            loaded.resident = resident;
        }
        Ok(loaded)
    }

    /// Its name in results.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How its folder prepares samples.
    pub fn processor(&self) -> &Processor {
        &self.processor
    }

    /// The vector that stands for a sample: what its folder says (the pooling of sentence-transformers), or what is
    /// customary for `network`.
    ///
    /// # Errors
    /// If the settings of its folder are not JSON.
    pub fn feature(&self, network: &Network) -> Result<Feature> {
        Ok(match self.processor.pooling()? {
            Some("cls") => Feature::Cls,
            Some("mean") => Feature::Mean,
            Some("last") => Feature::Last,
            _ => Feature::of(network),
        })
    }

    /// A value of its config.json.
    pub fn config(&self, key: &str) -> Option<&Value> {
        self.config.get(key)
    }

    /// Names and shapes of its tensors, those an adapter adds included.
    pub fn shapes(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shapes
    }

    /// Its forward pass, for what reads `modality`.
    ///
    /// # Errors
    /// An architecture that is not supported, or a checkpoint that lacks a tensor.
    pub fn network(&self, modality: Modality) -> Result<Network> {
        Ok(Network::of_modality(&self.config, &self.shapes, modality)?)
    }

    fn read(&self, name: &str) -> merganser_model::Result<Tensor> {
        let base = CheckpointWeights::new(&self.checkpoint, Device::Cpu);
        let Some((adapter, deltas)) = self.deltas(name) else {
            return base.tensor(name);
        };
        let factors = CheckpointWeights::new(adapter.checkpoint(), Device::Cpu);
        let mut value = None;
        for delta in deltas {
            let before = || base.tensor(name);
            value = Some(match delta {
                Delta::Replace(tensor) => factors.tensor(&tensor.name)?,
                Delta::Add { tensor, scale } => {
                    let before = value.map_or_else(before, Ok)?;
                    (before + (factors.tensor(&tensor.name)? * *scale)?)?
                }
                Delta::LowRank {
                    a,
                    b,
                    scale,
                    transposed,
                    ..
                } => {
                    let before = value.map_or_else(before, Ok)?;
                    let product = factors.tensor(&b.name)?.matmul(&factors.tensor(&a.name)?)?;
                    let product = (product * *scale)?;
                    if *transposed {
                        (before + product.t()?)?
                    } else {
                        (before + product)?
                    }
                }
            });
        }
        value.map_or_else(|| base.tensor(name), Ok)
    }

    fn deltas(&self, name: &str) -> Option<(&Adapter, &[Delta])> {
        let adapter = self.adapter.as_ref()?;
        let deltas = adapter.modules().get(name)?;
        Some((adapter, deltas))
    }
}

impl Weights for Loaded {
    fn tensor(&self, name: &str) -> merganser_model::Result<Tensor> {
        match self.resident.get(name) {
            Some(tensor) => Ok(tensor.clone()),
            None => self.read(name),
        }
    }

    fn rows(&self, name: &str, rows: &[u32]) -> merganser_model::Result<Tensor> {
        if self.resident.contains_key(name) {
            self.resident.rows(name, rows)
        } else if self.deltas(name).is_some() {
            BTreeMap::from([(name.to_owned(), self.read(name)?)]).rows(name, rows)
        } else {
            CheckpointWeights::new(&self.checkpoint, Device::Cpu).rows(name, rows)
        }
    }
}
