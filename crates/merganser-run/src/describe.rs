//! What a model is made of, told from its headers, its config and the configs beside it: no tensor data is read.

use std::collections::BTreeMap;

use merganser_plan::{Found, Model, Role};
use merganser_store::Dtype;
use merganser_store::adapter::Delta;
use merganser_store::checkpoint::TensorInfo;
use serde::Serialize;
use serde_json::Value;

/// A number of tensors and what they amount to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Tensors.
    pub tensors: u64,
    /// Their elements.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Amount {
    fn take(&mut self, tensor: &TensorInfo) {
        self.tensors += 1;
        self.parameters += tensor.elements();
        self.bytes += tensor.nbytes;
    }
}

/// A stack of layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stack {
    /// Its name (`model.layers`).
    pub name: String,
    /// Number of layers.
    pub layers: usize,
    /// The smallest layer.
    pub least: Amount,
    /// The largest layer.
    pub most: Amount,
    /// All layers together.
    pub total: Amount,
}

/// A LoRA adapter on top of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdapterSummary {
    /// Tensors it changes by a low-rank update.
    pub low_rank: usize,
    /// Tensors it replaces.
    pub replaced: usize,
    /// Tensors it adds a vector to.
    pub shifted: usize,
    /// Smallest and largest rank.
    pub ranks: Option<(usize, usize)>,
    /// What it stores.
    pub amount: Amount,
    /// The model it was trained on, as its author named it.
    pub trained_on: Option<String>,
}

/// What a model is made of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Description {
    /// What it was called by.
    pub label: String,
    /// Its weight files and their sizes.
    pub files: Vec<(String, u64)>,
    /// `model_type` of its config.
    pub model_type: Option<String>,
    /// All tensors.
    pub total: Amount,
    /// By type.
    pub dtypes: BTreeMap<String, Amount>,
    /// Its stacks of layers.
    pub stacks: Vec<Stack>,
    /// What belongs to no layer.
    pub outside: Amount,
    /// The adapter on top of it.
    pub adapter: Option<AdapterSummary>,
    /// What is unusual about it.
    pub notes: Vec<String>,
}

/// Describes a model.
pub fn describe(model: &Model) -> Description {
    let checkpoint = &model.checkpoint;
    let mut total = Amount::default();
    let mut outside = Amount::default();
    let mut dtypes: BTreeMap<String, Amount> = BTreeMap::new();
    let mut stacks: BTreeMap<&str, BTreeMap<usize, Amount>> = BTreeMap::new();
    for tensor in checkpoint.tensors().values() {
        total.take(tensor);
        dtypes
            .entry(tensor.dtype.to_string())
            .or_default()
            .take(tensor);
        match Role::of(&tensor.name) {
            Role::Layer { stack, index, .. } => {
                stacks
                    .entry(stack)
                    .or_default()
                    .entry(index)
                    .or_default()
                    .take(tensor);
            }
            Role::Pre | Role::Post => outside.take(tensor),
        }
    }
    let file = |path: &std::path::Path| {
        path.file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    };
    Description {
        label: model.label.clone(),
        files: checkpoint
            .files()
            .iter()
            .map(|at| (file(&at.path), at.size))
            .collect(),
        model_type: model.model_type().map(str::to_owned),
        total,
        dtypes,
        stacks: stacks
            .into_iter()
            .map(|(name, layers)| stack(name, &layers))
            .collect(),
        outside,
        adapter: adapter(model),
        notes: notes(model),
    }
}

fn stack(name: &str, layers: &BTreeMap<usize, Amount>) -> Stack {
    let mut total = Amount::default();
    for layer in layers.values() {
        total.tensors += layer.tensors;
        total.parameters += layer.parameters;
        total.bytes += layer.bytes;
    }
    let by_size = |amount: &&Amount| (amount.parameters, amount.tensors);
    Stack {
        name: name.to_owned(),
        layers: layers.len(),
        least: layers
            .values()
            .min_by_key(by_size)
            .copied()
            .unwrap_or_default(),
        most: layers
            .values()
            .max_by_key(by_size)
            .copied()
            .unwrap_or_default(),
        total,
    }
}

fn adapter(model: &Model) -> Option<AdapterSummary> {
    let adapter = model.adapter.as_ref()?;
    let mut amount = Amount::default();
    adapter
        .checkpoint()
        .tensors()
        .values()
        .for_each(|tensor| amount.take(tensor));
    let deltas = || adapter.modules().values().flatten();
    let count = |wanted: fn(&Delta) -> bool| deltas().filter(|delta| wanted(delta)).count();
    let ranks = || {
        deltas().filter_map(|delta| match delta {
            Delta::LowRank { rank, .. } => Some(*rank),
            Delta::Replace(_) | Delta::Add { .. } => None,
        })
    };
    Some(AdapterSummary {
        low_rank: ranks().count(),
        replaced: count(|delta| matches!(delta, Delta::Replace(_))),
        shifted: count(|delta| matches!(delta, Delta::Add { .. })),
        ranks: ranks().min().zip(ranks().max()),
        amount,
        trained_on: adapter.config().base_model.clone(),
    })
}

fn notes(model: &Model) -> Vec<String> {
    let checkpoint = &model.checkpoint;
    let mut notes = checkpoint.notes().to_vec();
    let unlisted = checkpoint.unlisted();
    if !unlisted.is_empty() {
        let shown = unlisted
            .iter()
            .take(5)
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        let more = match unlisted.len().saturating_sub(5) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        notes.push(format!(
            "its files hold tensors that its index does not list, which are ignored: {shown}{more}"
        ));
    }
    if merganser_plan::task_vector::is_task_vector(model) {
        notes
            .push("it is a task vector, not a model: `merganser apply` adds it to its base".into());
    }
    if let Some(embedding) = tied_to(model) {
        notes.push(format!(
            "it stores no output head: the head is tied to {embedding}"
        ));
    }
    if let Some((said, stored)) = other_dtype(model) {
        notes.push(format!(
            "config.json says {said}, but most of its weights are stored as {stored}"
        ));
    }
    if !checkpoint.code().is_empty() {
        notes
            .push("its folder holds Python code (trust_remote_code), which is never copied".into());
    }
    notes
}

/// The embedding that stands in for the output head of a language model that stores none.
fn tied_to(model: &Model) -> Option<String> {
    let declared = model
        .config_value("tie_word_embeddings")
        .and_then(Value::as_bool)
        == Some(true);
    let architectures = model
        .config_value("architectures")
        .and_then(Value::as_array);
    let is_language_model = architectures
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .any(|name| {
            name.ends_with("ForCausalLM")
                || name.ends_with("LMHeadModel")
                || name.ends_with("ForConditionalGeneration")
        });
    match model.find("lm_head.weight") {
        Some(Found::Tied(name)) if declared || is_language_model => Some(name),
        _ => None,
    }
}

/// The type config.json states and the one most bytes of real numbers are stored in, if they differ.
fn other_dtype(model: &Model) -> Option<(String, &'static str)> {
    let said = model
        .config_value("dtype")
        .or_else(|| model.config_value("torch_dtype"))?
        .as_str()?;
    let mut bytes: BTreeMap<Dtype, u64> = BTreeMap::new();
    for tensor in model
        .checkpoint
        .tensors()
        .values()
        .filter(|tensor| tensor.dtype.is_float())
    {
        *bytes.entry(tensor.dtype).or_default() += tensor.nbytes;
    }
    let (stored, _) = bytes.into_iter().max_by_key(|(_, bytes)| *bytes)?;
    let stored = stored.torch_name();
    (said.strip_prefix("torch.").unwrap_or(said) != stored).then(|| (said.to_owned(), stored))
}
