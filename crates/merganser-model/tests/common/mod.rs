//! Golden cases as networks with weights and batches.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use merganser_model::{
    Batch, CheckpointWeights, Modality, Network, State, Tokens, Weights, shapes,
};
use merganser_store::checkpoint::Checkpoint;

pub(crate) const FAMILIES: &[&str] = &[
    "bert",
    "bert_mlm",
    "bert_tokens",
    "clip",
    "clip_classifier",
    "clip_text",
    "clip_vision",
    "deit",
    "distilbert",
    "gemma",
    "gemma2",
    "gemma3",
    "gpt2",
    "llama",
    "llama_linear",
    "llama_score",
    "llama_yarn",
    "minilm",
    "mistral",
    "phi3",
    "phi3_longrope",
    "qwen2",
    "qwen3",
    "roberta",
    "roberta_mlm",
    "t5",
    "t5_encoder",
    "t5_gated",
    "vit",
    "vit_model",
    "xlm_roberta",
];

pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) config: serde_json::Value,
    pub(crate) network: Network,
    pub(crate) weights: BTreeMap<String, Tensor>,
    pub(crate) batch: Batch,
    pub(crate) expected: BTreeMap<String, Tensor>,
    /// Token types of each sample, if the case has some.
    pub(crate) types: Option<Vec<Vec<u32>>>,
}

pub(crate) fn folder(name: &str) -> PathBuf {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/forward");
    PathBuf::from(root).join(name)
}

pub(crate) fn load_safetensors(path: &std::path::Path) -> BTreeMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu)
        .unwrap()
        .into_iter()
        .collect()
}

impl Case {
    pub(crate) fn load(name: &str) -> Self {
        Self::load_modality(name, None)
    }

    pub(crate) fn load_modality(name: &str, modality: Option<Modality>) -> Self {
        let folder = folder(name);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let config = serde_json::from_str(checkpoint.config().unwrap()).unwrap();
        let shapes = shapes(&checkpoint);
        let network = match modality {
            None => Network::new(&config, &shapes),
            Some(modality) => Network::of_modality(&config, &shapes, modality),
        };
        let network = network.unwrap_or_else(|error| panic!("{name}: {error}"));
        let reader = CheckpointWeights::new(&checkpoint, Device::Cpu);
        let weights = shapes
            .keys()
            .map(|name| (name.clone(), reader.tensor(name).unwrap()))
            .collect();
        let inputs = load_safetensors(&folder.join("inputs.safetensors"));
        Self {
            name: name.to_owned(),
            config,
            network,
            weights,
            types: inputs
                .get("token_type_ids")
                .map(|types| types.to_dtype(DType::U32).unwrap().to_vec2().unwrap()),
            batch: batch(&inputs),
            expected: load_safetensors(&folder.join("expected.safetensors")),
        }
    }

    pub(crate) fn state(&self) -> State {
        State::new(&self.network, &self.batch, &Device::Cpu).unwrap()
    }

    /// Both tensors without the rows of padding, if they have a row for each token.
    pub(crate) fn real_rows(&self, a: &Tensor, b: &Tensor) -> (Tensor, Tensor) {
        let tokens = self.batch.decoder.as_ref().or(self.batch.tokens.as_ref());
        let Some(tokens) = tokens.filter(|_| self.network.modality() == Modality::Text) else {
            return (a.clone(), b.clone());
        };
        if a.rank() < 3 || a.dims()[..2] != [tokens.samples(), tokens.sequence_len()] {
            return (a.clone(), b.clone());
        }
        let real: Vec<u32> = (0u32..)
            .zip(tokens.real())
            .filter(|(_, real)| **real)
            .map(|(row, _)| row)
            .collect();
        let real = Tensor::new(real, &Device::Cpu).unwrap();
        let pick = |x: &Tensor| x.flatten_to(1).unwrap().index_select(&real, 0).unwrap();
        (pick(a), pick(b))
    }
}

fn tokens(inputs: &BTreeMap<String, Tensor>, ids: &str, mask: &str) -> Option<Tokens> {
    let list = |name: &str| -> Option<Vec<u32>> {
        let flat = inputs
            .get(name)?
            .flatten_all()
            .unwrap()
            .to_dtype(DType::U32)
            .unwrap();
        Some(flat.to_vec1().unwrap())
    };
    let (samples, len) = inputs.get(ids)?.dims2().unwrap();
    let real = list(mask).unwrap().iter().map(|&real| real != 0).collect();
    let mut tokens = Tokens::padded(samples, len, list(ids)?, real).unwrap();
    if let (Some(types), "input_ids") = (list("token_type_ids"), ids) {
        tokens = tokens.with_types(types).unwrap();
    }
    Some(tokens)
}

fn batch(inputs: &BTreeMap<String, Tensor>) -> Batch {
    Batch {
        tokens: tokens(inputs, "input_ids", "attention_mask"),
        decoder: tokens(inputs, "decoder_input_ids", "decoder_attention_mask"),
        pixels: inputs.get("pixel_values").cloned(),
    }
}

pub(crate) fn run_all(case: &Case, differentiable: bool) -> State {
    let mut state = case.state().differentiable(differentiable);
    for (_, op) in case.network.ops() {
        case.network.run(op, &mut state, &case.weights).unwrap();
    }
    state
}

pub(crate) fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    let difference = (a - b).unwrap().abs().unwrap();
    difference
        .flatten_all()
        .unwrap()
        .max(0)
        .unwrap()
        .to_scalar()
        .unwrap()
}
