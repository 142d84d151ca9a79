//! T5 (Raffel et al. 2019): an encoder and a decoder of pre-norm blocks without biases, with relative positions that all
//! blocks of a stack share. Plain (T5) or gated (T5 v1.1, Flan) MLPs. A checkpoint without decoder is an encoder alone.

use super::Tensors;
use crate::builder::{Builder, NormStyle};
use crate::config::Config;
use crate::error::Result;
use crate::network::{Inputs, Network, Outputs, StageKind};
use crate::op::{Activation, Attention, Distances, Kind, Reg, Space};

struct Stack {
    width: usize,
    heads: usize,
    head_dim: usize,
    inner: usize,
    act: Activation,
    gated: bool,
    norm: NormStyle,
    buckets: usize,
    max_distance: usize,
}

/// One attention of a block.
struct Mixing {
    /// Name in the checkpoint.
    name: &'static str,
    /// What keys and values are made of, if not of the stream itself.
    memory: Option<Reg>,
    attention: Attention,
    bias: Option<Reg>,
}

impl Stack {
    fn new(config: &Config) -> Result<Self> {
        let (act, gated) = match config.text_if("feed_forward_proj")?.unwrap_or("relu") {
            "relu" => (Activation::Relu, false),
            "gelu" => (Activation::Gelu, false),
            // Says gelu and means its approximation.
            "gated-gelu" => (Activation::GeluTanh, true),
            "gated-relu" => (Activation::Relu, true),
            "gated-silu" => (Activation::Silu, true),
            _ => {
                return Err(config.refused(
                    "feed_forward_proj",
                    "one of relu, gelu, gated-gelu, gated-relu, gated-silu",
                ));
            }
        };
        let stack = Self {
            width: config.size("d_model")?,
            heads: config.size("num_heads")?,
            head_dim: config.size("d_kv")?,
            inner: config.size("d_ff")?,
            act,
            gated,
            norm: NormStyle::rms(config.epsilon_or("layer_norm_epsilon", 1e-6)?, 0.0),
            buckets: config.size_or("relative_attention_num_buckets", 32)?,
            max_distance: config.size_or("relative_attention_max_distance", 128)?,
        };
        // A quarter of the buckets is exact in the encoder and must be some, but fewer than all distances.
        if stack.buckets < 4 || !stack.buckets.is_multiple_of(4) {
            let expected = "a multiple of 4";
            return Err(config.refused("relative_attention_num_buckets", expected));
        }
        if stack.max_distance <= stack.buckets / 2 {
            let expected = format!("more than {}", stack.buckets / 2);
            return Err(config.refused("relative_attention_max_distance", expected));
        }
        Ok(stack)
    }

    fn attention(&self, causal: bool, keys: Space) -> Attention {
        Attention {
            heads: self.heads,
            kv_heads: self.heads,
            head_dim: self.head_dim,
            scale: 1.0,
            causal,
            window: None,
            softcap: None,
            keys,
        }
    }

    /// The table of relative positions, (2S−1, heads).
    fn bias(&self, net: &mut Builder, x: Reg, at: &str, bidirectional: bool) -> Result<Reg> {
        let distances = Distances {
            buckets: self.buckets,
            max_distance: self.max_distance,
            bidirectional,
        };
        let buckets = net.op_in(Kind::Distances(distances), &[x], Space::Shared, 1);
        let table = format!("{at}.SelfAttention.relative_attention_bias.weight");
        net.embedding(buckets, &table, self.buckets, self.heads)
    }

    /// `hidden + attention(norm(hidden), memory or norm(hidden))`
    fn attend(&self, net: &mut Builder, hidden: Reg, at: &str, mixing: Mixing) -> Result<Reg> {
        let Mixing {
            name,
            memory,
            attention,
            bias,
        } = mixing;
        let width = self.heads * self.head_dim;
        let part = |matrix: &str| format!("{at}.{name}.{matrix}");
        let x = net.norm(hidden, &format!("{at}.layer_norm"), self.norm)?;
        let q = net.linear(x, &part("q"), width, false)?;
        let k = net.linear(memory.unwrap_or(x), &part("k"), width, false)?;
        let v = net.linear(memory.unwrap_or(x), &part("v"), width, false)?;
        let mut inputs = vec![q, k, v];
        inputs.extend(bias);
        let mixed = net.attention(&inputs, attention);
        let mixed = net.linear(mixed, &part("o"), self.width, false)?;
        Ok(net.add(hidden, mixed))
    }

    fn feed_forward(&self, net: &mut Builder, hidden: Reg, at: &str) -> Result<Reg> {
        let x = net.norm(hidden, &format!("{at}.layer_norm"), self.norm)?;
        let part = |matrix: &str| format!("{at}.DenseReluDense.{matrix}");
        let up = if self.gated {
            let gate = net.linear(x, &part("wi_0"), self.inner, false)?;
            let up = net.linear(x, &part("wi_1"), self.inner, false)?;
            let gate = net.activation(gate, self.act);
            net.mul(gate, up)
        } else {
            let up = net.linear(x, &part("wi"), self.inner, false)?;
            net.activation(up, self.act)
        };
        let down = net.linear(up, &part("wo"), self.width, false)?;
        Ok(net.add(hidden, down))
    }
}

pub(super) fn t5(family: &'static str, config: &Config, tensors: &Tensors) -> Result<Network> {
    let anchor = "encoder.block.0.layer.0.SelfAttention.q.weight";
    let mut net = Builder::new(family, tensors, anchor)?;
    let stack = Stack::new(config)?;
    let vocabulary = config.size("vocab_size")?;
    let shared = if net.has("shared.weight") {
        "shared.weight"
    } else {
        "encoder.embed_tokens.weight"
    };

    let ids = net.register(Space::Tokens, 1);
    net.stage("encoder embeddings", StageKind::Embeddings, None);
    let mut hidden = net.embedding(ids, shared, vocabulary, stack.width)?;
    let layers = config.layers("num_layers")?;
    let mut bias = None;
    for layer in 0..layers {
        net.block(layer);
        let at = format!("encoder.block.{layer}.layer");
        if layer == 0 {
            bias = Some(stack.bias(&mut net, hidden, &format!("{at}.0"), true)?);
        }
        let own = Mixing {
            name: "SelfAttention",
            memory: None,
            attention: stack.attention(false, Space::Tokens),
            bias,
        };
        hidden = stack.attend(&mut net, hidden, &format!("{at}.0"), own)?;
        hidden = stack.feed_forward(&mut net, hidden, &format!("{at}.1"))?;
    }
    net.stage("encoder norm", StageKind::Final, None);
    let memory = net.norm(hidden, "encoder.final_layer_norm", stack.norm)?;

    let mut inputs = Inputs {
        ids: Some(ids),
        ..Inputs::default()
    };
    let mut outputs = Outputs {
        hidden: memory,
        pooled: None,
        embeds: None,
        logits: None,
    };
    if net.has("decoder.block.0.layer.0.SelfAttention.q.weight") {
        let decoder_ids = net.register(Space::DecoderTokens, 1);
        inputs.decoder_ids = Some(decoder_ids);
        let after = config.size_or("num_decoder_layers", layers)?;
        outputs.hidden = decoder(
            &mut net,
            &stack,
            decoder_ids,
            memory,
            shared,
            vocabulary,
            layers..layers + after,
        )?;
        // Old configs tell by the tying whether the output is scaled.
        let tied = config.flag_or("tie_word_embeddings", true)?;
        let scaled = config.flag_or("scale_decoder_outputs", tied)?;
        net.stage("vocabulary head", StageKind::VocabularyHead, None);
        let mut x = outputs.hidden;
        if scaled {
            x = net.scale(x, (stack.width as f64).sqrt().recip());
        }
        let own = "/lm_head.weight";
        let weight = if net.has(own) { own } else { shared };
        outputs.logits = Some(net.linear_named(x, weight, None, vocabulary)?);
    }
    Ok(net.finish(inputs, outputs))
}

fn decoder(
    net: &mut Builder,
    stack: &Stack,
    ids: Reg,
    memory: Reg,
    shared: &str,
    vocabulary: usize,
    layers: std::ops::Range<usize>,
) -> Result<Reg> {
    net.stage("decoder embeddings", StageKind::Embeddings, None);
    let mut hidden = net.embedding(ids, shared, vocabulary, stack.width)?;
    let mut bias = None;
    for (number, layer) in layers.enumerate() {
        net.block(layer);
        let at = format!("decoder.block.{number}.layer");
        if number == 0 {
            bias = Some(stack.bias(net, hidden, &format!("{at}.0"), false)?);
        }
        let own = Mixing {
            name: "SelfAttention",
            memory: None,
            attention: stack.attention(true, Space::DecoderTokens),
            bias,
        };
        hidden = stack.attend(net, hidden, &format!("{at}.0"), own)?;
        let cross = Mixing {
            name: "EncDecAttention",
            memory: Some(memory),
            attention: stack.attention(false, Space::Tokens),
            bias: None,
        };
        hidden = stack.attend(net, hidden, &format!("{at}.1"), cross)?;
        hidden = stack.feed_forward(net, hidden, &format!("{at}.2"))?;
    }
    net.stage("decoder norm", StageKind::Final, None);
    net.norm(hidden, "decoder.final_layer_norm", stack.norm)
}
