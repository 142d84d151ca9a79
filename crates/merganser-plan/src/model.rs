//! An opened input model: a checkpoint, perhaps with an adapter on top, and what its config says.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use merganser_recipe::ModelRef;
use merganser_store::Dtype;
use merganser_store::adapter::{Adapter, Delta};
use merganser_store::checkpoint::{Checkpoint, TensorInfo};
use serde_json::Value;

use crate::roles;
use crate::vocabulary::Tokenizer;

/// Prefixes under which the same tensors are saved by a bare model and by a model with a head.
const PREFIXES: &[&str] = &[
    "model.",
    "transformer.",
    "bert.",
    "roberta.",
    "distilbert.",
    "electra.",
    "deberta.",
    "vit.",
    "gpt_neox.",
    "vision_model.",
    "text_model.",
    "model.language_model.",
    "language_model.",
    "module.",
    "_orig_mod.",
];

/// One input model, its headers read.
#[derive(Clone)]
pub struct Model {
    /// What the recipe calls it.
    pub label: String,
    /// Its tensors.
    pub checkpoint: Arc<Checkpoint>,
    /// The LoRA adapter applied to it on the fly.
    pub adapter: Option<Arc<Adapter>>,
    config: Value,
    tokenizer: Option<Tokenizer>,
    sample: String,
}

/// The opened models of a document, and which reference of the recipe means which.
#[derive(Clone, Default)]
pub struct Inputs {
    /// The models.
    pub models: Vec<Model>,
    references: HashMap<ModelRef, usize>,
    companions: BTreeMap<String, usize>,
    calibrations: BTreeMap<String, (PathBuf, String)>,
}

impl Inputs {
    /// Adds the model that `reference` means.
    pub fn add(&mut self, reference: ModelRef, model: Model) {
        self.references.insert(reference, self.models.len());
        self.models.push(model);
    }

    /// Adds a file of companion tensors that a parameter of the recipe names.
    pub fn add_companion(&mut self, path: &str, model: Model) {
        self.companions.insert(path.to_owned(), self.models.len());
        self.models.push(model);
    }

    /// Adds calibration data that the recipe calls `name`: where they are, and a hash of them.
    pub fn add_calibration(&mut self, name: &str, path: PathBuf, digest: String) {
        self.calibrations.insert(name.to_owned(), (path, digest));
    }

    /// Where calibration data are, and a hash of them.
    pub(crate) fn calibration(&self, name: &str) -> Option<&(PathBuf, String)> {
        self.calibrations.get(name)
    }

    /// Whether the reference is there already.
    pub fn contains(&self, reference: &ModelRef) -> bool {
        self.references.contains_key(reference)
    }

    /// Index of the model a reference means.
    ///
    /// # Panics
    /// If it was not added: every reference of a document must be opened before it is planned.
    pub fn index(&self, reference: &ModelRef) -> usize {
        *self
            .references
            .get(reference)
            .expect("every model of the recipe is opened before planning")
    }

    /// Index of the model of companion tensors at `path`.
    pub fn companion(&self, path: &str) -> Option<usize> {
        self.companions.get(path).copied()
    }
}

/// How a wanted tensor was found in a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Under its own name.
    Same(String),
    /// Under a name with another prefix.
    Renamed(String),
    /// As the input embedding that the output head is tied to.
    Tied(String),
}

impl Found {
    /// The tensor's name in the checkpoint.
    pub fn name(&self) -> &str {
        match self {
            Self::Same(name) | Self::Renamed(name) | Self::Tied(name) => name,
        }
    }
}

impl Model {
    /// Takes an opened checkpoint and adapter.
    ///
    /// # Errors
    /// If config.json is not JSON.
    pub fn new(
        label: String,
        checkpoint: Arc<Checkpoint>,
        adapter: Option<Arc<Adapter>>,
    ) -> Result<Self, String> {
        let config = match checkpoint.config() {
            Some(text) => serde_json::from_str(text.trim_start_matches('\u{feff}'))
                .map_err(|error| format!("config.json of {label} is not valid JSON: {error}"))?,
            None => Value::Null,
        };
        Ok(Self {
            label,
            checkpoint,
            adapter,
            config,
            tokenizer: None,
            sample: String::new(),
        })
    }

    /// Adds what is known of the model's tokenizer.
    #[must_use]
    pub fn with_tokenizer(mut self, tokenizer: Option<Tokenizer>) -> Self {
        self.tokenizer = tokenizer;
        self
    }

    /// Adds a hash of a sample of its data, so that two versions of a model with equal headers are told apart.
    #[must_use]
    pub fn with_sample(mut self, sample: String) -> Self {
        self.sample = sample;
        self
    }

    /// What is known of its tokenizer.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// Whether it has an embedding of tokens.
    pub(crate) fn is_language_model(&self) -> bool {
        self.names().any(roles::is_input_embedding)
    }

    /// Rows of its embedding of tokens.
    pub(crate) fn vocabulary_rows(&self) -> Option<usize> {
        let name = self.names().find(|name| roles::is_input_embedding(name))?;
        self.describe(name)?.1.first().copied()
    }

    /// Whether both have a known tokenizer and it is the same, or both are one model.
    pub(crate) fn same_vocabulary(&self, other: &Self) -> bool {
        let digests = (self.tokenizer.as_ref(), other.tokenizer.as_ref());
        self.label == other.label || matches!(digests, (Some(a), Some(b)) if a.digest == b.digest)
    }

    /// Hash of its identity: sizes and headers of its files, and the sample.
    pub fn identity(&self) -> String {
        let mut text = self.sample.clone();
        let adapter = self
            .adapter
            .iter()
            .flat_map(|adapter| adapter.checkpoint().files());
        for file in self.checkpoint.files().iter().chain(adapter) {
            text.push_str(&format!(" {} {}", file.size, file.header_digest));
        }
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }

    /// The value of a key of config.json, looked for in `text_config` too.
    pub fn config_value(&self, key: &str) -> Option<&Value> {
        self.config
            .get(key)
            .or_else(|| self.config.get("text_config")?.get(key))
    }

    /// `model_type` of config.json.
    pub fn model_type(&self) -> Option<&str> {
        self.config.get("model_type")?.as_str()
    }

    /// Whether the output head shares the input embedding (transformers' default when the key is absent).
    pub fn is_tied(&self) -> bool {
        self.config_value("tie_word_embeddings")
            .and_then(Value::as_bool)
            .unwrap_or(true)
    }

    /// Names of all tensors, those that the adapter adds included.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let added = self.adapter.iter().flat_map(|adapter| {
            adapter
                .modules()
                .iter()
                .filter(|(_, delta)| delta.iter().any(|d| matches!(d, Delta::Replace(_))))
                .map(|(name, _)| name.as_str())
        });
        let own = &self.checkpoint;
        own.tensors()
            .keys()
            .map(String::as_str)
            .chain(added.filter(|name| !own.tensors().contains_key(*name)))
    }

    /// Whether the model has a tensor of exactly this name.
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.tensors().contains_key(name) || self.replacement(name).is_some()
    }

    /// Looks a tensor up under its name, a known alias, or the weight it is tied to.
    pub fn find(&self, name: &str) -> Option<Found> {
        if self.has(name) {
            return Some(Found::Same(name.to_owned()));
        }
        for prefix in PREFIXES {
            let longer = format!("{prefix}{name}");
            if self.has(&longer) {
                return Some(Found::Renamed(longer));
            }
            if let Some(shorter) = name
                .strip_prefix(prefix)
                .filter(|shorter| self.has(shorter))
            {
                return Some(Found::Renamed(shorter.to_owned()));
            }
        }
        if roles::is_output_head(name) && name.ends_with(".weight") && self.is_tied() {
            return self
                .names()
                .find(|own| roles::is_input_embedding(own))
                .map(|own| Found::Tied(own.to_owned()));
        }
        None
    }

    /// Type and shape of a tensor that [`Model::has`].
    pub fn describe(&self, name: &str) -> Option<(Dtype, &[usize])> {
        if let Some(tensor) = self.replacement(name) {
            return Some((tensor.dtype, &tensor.shape));
        }
        let info = self.checkpoint.tensors().get(name)?;
        Some((info.dtype, &info.shape))
    }

    /// The checkpoint's entry of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.checkpoint.tensors().get(name)
    }

    /// What the adapter does to a tensor, in order.
    pub fn deltas(&self, name: &str) -> &[Delta] {
        self.adapter
            .as_ref()
            .and_then(|adapter| adapter.modules().get(name))
            .map_or(&[], Vec::as_slice)
    }

    /// Checks that every change of the adapter finds its tensor, of the right shape.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check_adapter(&self) -> Result<(), String> {
        let Some(adapter) = &self.adapter else {
            return Ok(());
        };
        for (name, deltas) in adapter.modules() {
            for delta in deltas
                .iter()
                .filter(|delta| !matches!(delta, Delta::Replace(_)))
            {
                let wanted = delta.shape();
                match self.describe(name) {
                    Some((_, shape)) if shape == wanted => {}
                    Some((_, shape)) => {
                        return Err(format!(
                            "the adapter changes '{name}' as a tensor of shape {wanted:?}, but the model's has {shape:?}: \
                             it was trained on another model"
                        ));
                    }
                    None if matches!(delta, Delta::Add { .. }) && self.has(&weight_of(name)) => {
                        return Err(format!(
                            "the adapter adds to '{name}' (`lora_bias`), and that layer of the model has no bias: a checkpoint \
                             of this kind cannot hold one; run the adapter in PEFT, or merge adapters with `output: adapter`"
                        ));
                    }
                    None => {
                        return Err(format!(
                            "the adapter changes '{name}', which the model does not have: it was trained on another model"
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    pub(crate) fn replacement(&self, name: &str) -> Option<&TensorInfo> {
        self.deltas(name).iter().find_map(|delta| match delta {
            Delta::Replace(tensor) => Some(tensor),
            Delta::LowRank { .. } | Delta::Add { .. } => None,
        })
    }
}

/// The matrix of the layer that the bias `name` belongs to.
fn weight_of(name: &str) -> String {
    let module = name.strip_suffix(".bias").unwrap_or(name);
    format!("{module}.weight")
}
