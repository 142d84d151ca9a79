//! A network as data: stages of [`Op`]s over registers, made from a config and the names and shapes of a checkpoint.

use std::collections::BTreeMap;

use crate::error::{ModelError, Result};
use crate::families;
use crate::op::{Kind, Linear, Op, Reg, Space};

/// The forward pass of one checkpoint.
#[derive(Debug, Clone)]
pub struct Network {
    /// Stages in forward order: embeddings, blocks, final norm and heads.
    pub stages: Vec<Stage>,
    pub(crate) family: &'static str,
    pub(crate) spaces: Vec<Space>,
    pub(crate) inputs: Inputs,
    pub(crate) outputs: Outputs,
}

/// Ops whose weights are resident together.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// A name for messages: "embeddings", "layer 3", "head".
    pub name: String,
    /// What part of the network it is.
    pub kind: StageKind,
    /// Number of its block, counted from 0; decoder blocks of T5 follow those of the encoder.
    pub layer: Option<usize>,
    /// What it does.
    pub ops: Vec<Op>,
}

/// Parts of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageKind {
    /// Tables and what is added to them.
    Embeddings,
    /// A transformer block.
    Block,
    /// Final norm, pooler, classifier, projection.
    Final,
    /// Logits over the vocabulary: for some rows at a time by [`Network::logits`], not by [`walk`](crate::walk).
    VocabularyHead,
}

/// Registers that a batch fills.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inputs {
    /// Token ids, (B, S) u32.
    pub ids: Option<Reg>,
    /// Positions, (B, S) u32.
    pub positions: Option<Reg>,
    /// Token types, (B, S) u32.
    pub types: Option<Reg>,
    /// Ids of the decoder, (B, S′) u32.
    pub decoder_ids: Option<Reg>,
    /// Images, (B, c, H, W) f32.
    pub pixels: Option<Reg>,
    /// Row of the position table for the first token.
    pub(crate) first_position: u32,
    /// Longest sequence the position table allows.
    pub(crate) max_len: Option<usize>,
    /// Channels and side of an image.
    pub(crate) image: Option<(usize, usize)>,
}

/// Registers that hold results after the last stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outputs {
    /// Last hidden state, (B, S, d); what transformers calls `last_hidden_state`.
    pub hidden: Reg,
    /// One vector a sample, (B, d): pooler output, class token or end-of-text token, if the family has such a thing.
    pub pooled: Option<Reg>,
    /// `pooled` in the space shared by both towers of CLIP, (B, p), if the checkpoint has the projection.
    pub embeds: Option<Reg>,
    /// Class logits (B, C), or vocabulary logits (B, S, V) if the last stage is a [`StageKind::VocabularyHead`].
    pub logits: Option<Reg>,
}

/// What a network reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Modality {
    /// Token ids.
    Text,
    /// Pixels.
    Image,
}

impl Network {
    /// The network that `config` (the content of `config.json`) describes, over `tensors` (names and shapes of the
    /// checkpoint). Of a CLIP checkpoint with both towers it is the vision tower; [`Network::of_modality`] gives the
    /// other.
    ///
    /// # Errors
    /// Unknown `model_type`, a missing or unsupported config value, a missing tensor or one of another shape than the
    /// config says. Each message names the key or the tensor.
    pub fn new(config: &serde_json::Value, tensors: &BTreeMap<String, Vec<usize>>) -> Result<Self> {
        families::build(config, tensors, None)
    }

    /// As [`Network::new`], for the part of the checkpoint that reads `modality`; an error if there is none.
    pub fn of_modality(
        config: &serde_json::Value,
        tensors: &BTreeMap<String, Vec<usize>>,
        modality: Modality,
    ) -> Result<Self> {
        families::build(config, tensors, Some(modality))
    }

    /// The `model_type` it was built for.
    pub fn family(&self) -> &'static str {
        self.family
    }

    /// What it reads.
    pub fn modality(&self) -> Modality {
        if self.inputs.pixels.is_some() {
            Modality::Image
        } else {
            Modality::Text
        }
    }

    /// Registers that a batch fills.
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// Registers that hold the results.
    pub fn outputs(&self) -> &Outputs {
        &self.outputs
    }

    /// Number of registers.
    pub fn register_count(&self) -> usize {
        self.spaces.len()
    }

    /// What the rows of a register stand for.
    pub fn space(&self, reg: Reg) -> Result<Space> {
        self.spaces
            .get(reg.index())
            .copied()
            .ok_or(ModelError::EmptyRegister(reg.index()))
    }

    /// All ops in order, with their stages.
    pub fn ops(&self) -> impl Iterator<Item = (&Stage, &Op)> {
        self.stages
            .iter()
            .flat_map(|stage| stage.ops.iter().map(move |op| (stage, op)))
    }

    /// The stage of the vocabulary head, if there is one.
    pub fn vocabulary_head(&self) -> Option<&Stage> {
        self.stages
            .last()
            .filter(|stage| stage.kind == StageKind::VocabularyHead)
    }
}

impl Stage {
    /// The matrix of a vocabulary head and the number of its op.
    pub(crate) fn vocabulary_matrix(&self) -> Option<(usize, &Linear)> {
        if self.kind != StageKind::VocabularyHead {
            return None;
        }
        let matrix = |(at, op): (usize, &'_ Op)| match &op.kind {
            Kind::Linear(_) => Some(at),
            _ => None,
        };
        let at = self.ops.iter().enumerate().rev().find_map(matrix)?;
        match &self.ops[at].kind {
            Kind::Linear(linear) => Some((at, linear)),
            _ => None,
        }
    }
}
