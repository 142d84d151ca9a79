//! From a recipe and checkpoint headers to a complete plan of a merge.
//!
//! A [`Plan`] says everything before the first byte of tensor data is read: which output tensors there are, what each
//! is made of, with which method and parameters, in which file and at which offset it will lie, what config.json will
//! say. Making one is pure: the same recipe and headers give the same plan, on every machine. Whatever can be wrong
//! with a recipe is found here, before anything is written.

mod adapters;
mod calibrated;
mod checks;
mod combine;
mod config;
mod digest;
mod dtypes;
mod extras;
mod layout;
mod model;
mod output_config;
mod outputs;
mod parts;
mod rebuild;
mod resolve;
mod roles;
mod shards;
pub mod task_vector;
mod vocabulary;

use std::collections::BTreeMap;

use merganser_methods::{Encoding, Grain, Method, MethodInfo, Settings};
use merganser_recipe::{Diagnostic, Recipe};
use merganser_store::Dtype;
use merganser_store::checkpoint::{Checkpoint, TensorInfo};

pub use adapters::{AdapterRecipe, other_targets, positions};
pub use calibrated::{Calibrated, Calibration, Task, is_matrix_of_layer};
pub use config::{Config, ConfigError};
pub use dtypes::{float_dtype, kernel_float};
pub use extras::{Record, RecordedTensor};
pub use layout::Missing;
pub use model::{Found, Inputs, Model};
pub use parts::Part;
pub use rebuild::Rebuild;
pub use roles::{Role, is_rebuilt_buffer};
pub use vocabulary::{RowMap, Tokenizer};

/// What a user may ask of a plan besides the recipe.
#[derive(Debug, Clone)]
pub struct Options {
    /// Turn unknown keys and parameters into warnings.
    pub lenient: bool,
    /// Merge models of different `model_type`.
    pub allow_crimes: bool,
    /// Merge tensors that some inputs lack from those that have them.
    pub allow_missing: bool,
    /// Cut vocabularies of different sizes to their common prefix.
    pub truncate_embeddings: bool,
    /// The type that models with an adapter are taken to have, instead of their base's.
    pub adapter_dtype: Option<Dtype>,
    /// Largest number of data bytes in an output file.
    pub shard_size: u64,
    /// Inputs are plain state dicts: no config, no layers, no tokenizer.
    pub state_dict: bool,
    /// For state dicts: what to do with tensors that some input lacks.
    pub missing: Missing,
    /// Key of the random masks, instead of the recipe's `seed` (or 0).
    pub seed: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lenient: false,
            allow_crimes: false,
            allow_missing: false,
            truncate_embeddings: false,
            adapter_dtype: None,
            shard_size: 5_000_000_000,
            state_dict: false,
            missing: Missing::Error,
            seed: None,
        }
    }
}

/// A merge, as data.
pub struct Plan {
    /// The method of the recipe; of a recipe that looks at data, its prior.
    pub method: &'static dyn Method,
    /// What a recipe that looks at data adds.
    pub calibrated: Option<Calibrated>,
    /// The merge that `models[0]` comes from, if this plan takes the outcome of one further.
    pub merge: Option<Box<Self>>,
    /// The input models; outputs refer to them by index.
    pub models: Vec<Model>,
    /// Index of the base model.
    pub base: Option<usize>,
    /// Every output tensor, in write order, those beside the model included.
    pub outputs: Vec<Output>,
    /// The files they lie in.
    pub shards: Vec<Shard>,
    /// The text of the output's config.json.
    pub config: Option<String>,
    /// Index of the model whose tokenizer and generation files are copied.
    pub template: Option<usize>,
    /// Key of the random masks.
    pub seed: u64,
    /// What the user should know: aliases, tied weights, dropped buffers, changed config keys.
    pub notes: Vec<String>,
    /// Warnings about the recipe.
    pub warnings: Vec<Diagnostic>,
    /// A hash of all that decides the output's bytes, inputs included.
    pub digest: String,
}

/// One output tensor.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The type it is stored in.
    pub dtype: Dtype,
    /// Bytes it takes.
    pub nbytes: u64,
    /// Index of its shard.
    pub shard: usize,
    /// Position of its first byte in the shard's file.
    pub offset: u64,
    /// Position in the gradients.
    pub t: f64,
    /// How it is made.
    pub action: Action,
    /// Which of the method's extras it is; `None` for a tensor of the model. Its stored shape is then
    /// [`Output::stored_shape`].
    pub extra: Option<usize>,
    /// Parameters of the calibrated method for this tensor; `None` if the recipe's method is none or cannot touch it.
    pub calibrated: Option<Settings>,
}

impl Output {
    /// The shape it is stored in: its own, or that of its packed bits.
    pub fn stored_shape(&self) -> Vec<usize> {
        match &self.action {
            Action::Merge {
                encoding: Encoding::Bits,
                ..
            } => vec![Encoding::Bits.bytes(self.elements())],
            _ => self.shape.clone(),
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The inputs it is made of.
    pub fn inputs(&self) -> &[InputRef] {
        match &self.action {
            Action::Copy(input) | Action::Cast { input, .. } => std::slice::from_ref(input),
            Action::Identical(inputs) | Action::Merge { inputs, .. } => inputs,
        }
    }
}

/// How an output tensor is made.
#[derive(Debug, Clone)]
pub enum Action {
    /// Its bytes are those of one input.
    Copy(InputRef),
    /// Its values are those of one input, converted to another type or with an adapter applied.
    Cast {
        /// The input.
        input: InputRef,
        /// How the result is stored.
        encoding: Encoding,
    },
    /// It is not made of real numbers: all inputs must be equal, byte for byte.
    Identical(Vec<InputRef>),
    /// The method merges it.
    Merge {
        /// The inputs in recipe order.
        inputs: Vec<InputRef>,
        /// Which of them is the base.
        base: Option<usize>,
        /// Resolved parameters.
        settings: Settings,
        /// How the result is stored.
        encoding: Encoding,
    },
}

/// One input tensor of an output tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRef {
    /// Index of the model.
    pub model: usize,
    /// Name of the tensor in that model.
    pub tensor: String,
    /// The type its values are rounded to when read.
    pub round_to: Option<Dtype>,
    /// Index of the model whose tensor of this name goes with it (Fisher information).
    pub companion: Option<usize>,
    /// How its rows are put in the order of the base's vocabulary.
    pub rows: Option<RowMap>,
    /// Whether its elements are bits, eight to a byte, least significant first.
    pub packed: bool,
}

/// One output file.
#[derive(Debug, Clone)]
pub struct Shard {
    /// Its name.
    pub file: String,
    /// Length prefix and header.
    pub header: Vec<u8>,
    /// Its full size in bytes.
    pub size: u64,
    /// The outputs in it, in file order.
    pub outputs: Vec<usize>,
    /// Whether it lies beside the model rather than being part of it.
    pub extra: bool,
}

impl Plan {
    /// Makes the plan of document number `document` from its opened inputs.
    ///
    /// # Errors
    /// Everything that is wrong with the recipe or does not fit the models, as far as it can be told at once.
    pub fn new(
        recipe: &Recipe,
        document: usize,
        inputs: Inputs,
        options: &Options,
    ) -> Result<Self, Vec<Diagnostic>> {
        combine::plan(recipe, document, inputs, options)
    }

    /// Takes into the digest what else decides the output's bytes.
    pub fn depends_on(&mut self, what: &str) {
        self.digest = digest::text(&format!("{}\n{what}", self.digest));
    }

    /// The description of the recipe's method.
    pub fn info(&self) -> &'static MethodInfo {
        if let Some(merge) = &self.merge {
            return merge.info();
        }
        let calibrated = self.calibrated.as_ref();
        calibrated.map_or(self.method.info(), |calibrated| calibrated.info)
    }

    /// The tensors of the model, without those beside it.
    pub fn tensors(&self) -> impl Iterator<Item = &Output> {
        self.outputs.iter().filter(|output| output.extra.is_none())
    }

    /// Sum of the bytes of all tensors of the model.
    pub fn output_bytes(&self) -> u64 {
        self.tensors().map(|output| output.nbytes).sum()
    }

    /// Bytes of input tensors that one pass over the output reads.
    pub fn input_bytes(&self) -> u64 {
        self.outputs
            .iter()
            .map(|output| self.input_bytes_of(output))
            .sum()
    }

    /// Bytes of input tensors that one pass over this output tensor reads.
    pub fn input_bytes_of(&self, output: &Output) -> u64 {
        output
            .inputs()
            .iter()
            .map(|input| {
                let size = self.models[input.model]
                    .describe(&input.tensor)
                    .map_or(0, |(dtype, _)| dtype.size());
                let units = if input.packed {
                    output.elements().div_ceil(8)
                } else {
                    output.elements()
                };
                (units * size) as u64
            })
            .sum()
    }

    /// The stored tensor behind an input that no adapter changes, but for one that takes its place.
    pub fn stored(&self, input: &InputRef) -> Option<(&Checkpoint, &TensorInfo)> {
        let model = &self.models[input.model];
        let replaced = model.adapter.as_ref().zip(model.replacement(&input.tensor));
        if let Some((adapter, info)) = replaced {
            return Some((adapter.checkpoint(), info));
        }
        Some((&model.checkpoint, model.info(&input.tensor)?))
    }

    /// Bytes of working memory one thread needs at most, and the tensor that needs them.
    pub fn thread_bytes(&self) -> Option<(u64, &str)> {
        self.outputs
            .iter()
            .map(|output| (self.scratch_of(output), output.name.as_str()))
            .max()
    }

    fn scratch_of(&self, output: &Output) -> u64 {
        let streams = output.inputs().len()
            + output
                .inputs()
                .iter()
                .filter(|input| input.companion.is_some())
                .count();
        let grain = match &output.action {
            Action::Merge { settings, .. } => self.method.grain(settings),
            _ => Grain::Elements,
        };
        merganser_methods::scratch_bytes(grain, &output.shape, streams) as u64
    }

    /// Times the inputs of an output tensor are read.
    pub fn passes(&self, output: &Output) -> u32 {
        match &output.action {
            Action::Copy(_) | Action::Cast { .. } | Action::Identical(_) => 1,
            Action::Merge { settings, .. } => self.method.passes(settings),
        }
    }

    /// The text of model.safetensors.index.json, if there is more than one shard.
    pub fn index_json(&self) -> Option<String> {
        if self.shards.iter().filter(|shard| !shard.extra).count() < 2 {
            return None;
        }
        let weight_map: BTreeMap<&str, &str> = self
            .tensors()
            .map(|output| {
                (
                    output.name.as_str(),
                    self.shards[output.shard].file.as_str(),
                )
            })
            .collect();
        let index = serde_json::json!({
            "metadata": { "total_size": self.output_bytes() },
            "weight_map": weight_map,
        });
        serde_json::to_string_pretty(&index)
            .ok()
            .map(|text| text + "\n")
    }
}
