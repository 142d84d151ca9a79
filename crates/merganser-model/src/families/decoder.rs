//! Pre-norm decoders with rotary positions and gated MLPs: Llama (Touvron et al. 2023) and what differs from it in a few
//! axes: Mistral, Qwen2, Qwen3, Gemma 1–3 and Phi-3.

use serde_json::Value;

use super::Tensors;
use super::heads::{causal_head, score_head};
use super::rope::rope;
use crate::builder::{Builder, NormStyle};
use crate::config::Config;
use crate::error::Result;
use crate::network::{Inputs, Network, Outputs, StageKind};
use crate::op::{Activation, Attention, Kind, Reg, Rotary, Space};

/// What distinguishes one decoder from another.
struct Axes {
    /// Width of a head.
    head_dim: usize,
    /// Biases of query, key and value; of the attention's output; of the MLP.
    biases: [bool; 3],
    /// Query, key and value are one matrix, and so are gate and up.
    fused: bool,
    /// Every head of queries and keys is normalised.
    qk_norm: bool,
    /// Outputs of attention and MLP are normalised before they are added.
    sandwich: bool,
    norm: NormStyle,
    activation: Activation,
    /// Factor on the embeddings.
    embed_scale: Option<f64>,
    /// Factor on the scores.
    scale: f64,
    softcap: Option<f64>,
    logit_softcap: Option<f64>,
    /// Sliding window of each layer.
    windows: Vec<Option<usize>>,
    /// Layers with a window use rotary frequencies of their own (Gemma 3).
    two_ropes: bool,
    theta: f64,
    tied: bool,
}

impl Axes {
    /// Llama, to be changed by the others.
    fn llama(config: &Config) -> Result<Self> {
        let width = config.size("hidden_size")?;
        let heads = config.size("num_attention_heads")?;
        let head_dim = match config.size_if("head_dim")? {
            Some(head_dim) => head_dim,
            None => config.head_width(width, heads, "num_attention_heads")?,
        };
        Ok(Self {
            head_dim,
            biases: [false; 3],
            fused: false,
            qk_norm: false,
            sandwich: false,
            norm: NormStyle::rms(config.epsilon_or("rms_norm_eps", 1e-6)?, 0.0),
            activation: config.activation_or("hidden_act", Activation::Silu)?,
            embed_scale: None,
            scale: (head_dim as f64).sqrt().recip(),
            softcap: None,
            logit_softcap: None,
            windows: vec![None; config.layers("num_hidden_layers")?],
            two_ropes: false,
            theta: 10_000.0,
            tied: config.flag_or("tie_word_embeddings", false)?,
        })
    }

    /// The first Gemma, to be changed by its successors.
    fn gemma(config: &Config) -> Result<Self> {
        let mut axes = Self::llama(config)?;
        axes.head_dim = config.size_or("head_dim", 256)?;
        axes.scale = (axes.head_dim as f64).sqrt().recip();
        let attention = config.flag_or("attention_bias", false)?;
        axes.biases = [attention, attention, false];
        axes.norm.offset = 1.0;
        // The first releases say "gelu" and mean its approximation.
        axes.activation = config.activation_or("hidden_activation", Activation::GeluTanh)?;
        axes.embed_scale = Some((config.size("hidden_size")? as f64).sqrt());
        axes.tied = config.flag_or("tie_word_embeddings", true)?;
        Ok(axes)
    }

    fn gemma_scale(mut self, config: &Config) -> Result<Self> {
        let scalar = config.positive_or("query_pre_attn_scalar", 256.0)?;
        self.scale = scalar.sqrt().recip();
        self.sandwich = true;
        Ok(self)
    }

    /// Gives a window to the layers that `layer_types` says or, without it, `sliding` chooses.
    fn slide(
        &mut self,
        config: &Config,
        window: usize,
        sliding: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let types = config.get("layer_types");
        for (layer, slot) in self.windows.iter_mut().enumerate() {
            let slides = match types {
                None => sliding(layer),
                Some(types) => match types.get(layer).and_then(Value::as_str) {
                    Some("sliding_attention") => true,
                    Some("full_attention") => false,
                    _ => {
                        return Err(config.refused(
                            "layer_types",
                            "`full_attention` or `sliding_attention` for every layer",
                        ));
                    }
                },
            };
            *slot = slides.then_some(window);
        }
        Ok(())
    }
}

pub(super) fn llama(family: &'static str, config: &Config, tensors: &Tensors) -> Result<Network> {
    let mut axes = Axes::llama(config)?;
    let attention = config.flag_or("attention_bias", false)?;
    axes.biases = [attention, attention, config.flag_or("mlp_bias", false)?];
    decoder(family, config, tensors, &axes)
}

pub(super) fn mistral(family: &'static str, config: &Config, tensors: &Tensors) -> Result<Network> {
    let mut axes = Axes::llama(config)?;
    if let Some(window) = config.size_if("sliding_window")? {
        axes.slide(config, window, |_| true)?;
    }
    decoder(family, config, tensors, &axes)
}

pub(super) fn qwen2(family: &'static str, config: &Config, tensors: &Tensors) -> Result<Network> {
    let mut axes = Axes::llama(config)?;
    axes.biases = [true, false, false];
    qwen_windows(&mut axes, config)?;
    decoder(family, config, tensors, &axes)
}

pub(super) fn qwen3(family: &'static str, config: &Config, tensors: &Tensors) -> Result<Network> {
    let mut axes = Axes::llama(config)?;
    axes.head_dim = config.size_or("head_dim", 128)?;
    axes.scale = (axes.head_dim as f64).sqrt().recip();
    let attention = config.flag_or("attention_bias", false)?;
    axes.biases = [attention, attention, false];
    axes.qk_norm = true;
    qwen_windows(&mut axes, config)?;
    decoder(family, config, tensors, &axes)
}

fn qwen_windows(axes: &mut Axes, config: &Config) -> Result<()> {
    if config.flag_or("use_sliding_window", false)? {
        let window = config.size("sliding_window")?;
        let first = config.id_or("max_window_layers", 28)? as usize;
        axes.slide(config, window, |layer| layer >= first)?;
    }
    Ok(())
}

pub(super) fn gemma(family: &'static str, config: &Config, tensors: &Tensors) -> Result<Network> {
    decoder(family, config, tensors, &Axes::gemma(config)?)
}

pub(super) fn gemma2(family: &'static str, config: &Config, tensors: &Tensors) -> Result<Network> {
    let mut axes = Axes::gemma(config)?.gemma_scale(config)?;
    axes.softcap = config.positive_unless_null("attn_logit_softcapping", 50.0)?;
    axes.logit_softcap = config.positive_unless_null("final_logit_softcapping", 30.0)?;
    let window = config.size_or("sliding_window", 4096)?;
    axes.slide(config, window, |layer| layer.is_multiple_of(2))?;
    decoder(family, config, tensors, &axes)
}

pub(super) fn gemma3(family: &'static str, config: &Config, tensors: &Tensors) -> Result<Network> {
    config.only("use_bidirectional_attention", false)?;
    let mut axes = Axes::gemma(config)?.gemma_scale(config)?;
    axes.qk_norm = true;
    axes.softcap = config.positive_if("attn_logit_softcapping")?;
    axes.logit_softcap = config.positive_if("final_logit_softcapping")?;
    axes.theta = 1_000_000.0;
    axes.two_ropes = true;
    let window = config.size_or("sliding_window", 4096)?;
    let pattern = match config.size_if("_sliding_window_pattern")? {
        Some(pattern) => pattern,
        None => config.size_or("sliding_window_pattern", 6)?,
    };
    axes.slide(config, window, |layer| !(layer + 1).is_multiple_of(pattern))?;
    decoder(family, config, tensors, &axes)
}

pub(super) fn phi3(family: &'static str, config: &Config, tensors: &Tensors) -> Result<Network> {
    let mut axes = Axes::llama(config)?;
    axes.fused = true;
    if let Some(window) = config.size_if("sliding_window")? {
        axes.slide(config, window, |_| true)?;
    }
    decoder(family, config, tensors, &axes)
}

/// Cosines, sines and the op that uses them.
type Turn = (Reg, Reg, usize);

fn decoder(
    family: &'static str,
    config: &Config,
    tensors: &Tensors,
    axes: &Axes,
) -> Result<Network> {
    let mut net = Builder::new(family, tensors, "embed_tokens.weight")?;
    let width = config.size("hidden_size")?;
    let vocabulary = config.size("vocab_size")?;
    let heads = config.size("num_attention_heads")?;
    let kv_heads = config.size_or("num_key_value_heads", heads)?;
    if !heads.is_multiple_of(kv_heads) {
        let expected = format!("a divisor of `num_attention_heads` {heads}");
        return Err(config.refused("num_key_value_heads", expected));
    }
    let inner = config.size("intermediate_size")?;

    let ids = net.register(Space::Tokens, 1);
    let positions = net.register(Space::Tokens, 1);
    net.stage("embeddings", StageKind::Embeddings, None);
    let mut hidden = net.embedding(ids, "embed_tokens.weight", vocabulary, width)?;
    if let Some(factor) = axes.embed_scale {
        hidden = net.scale(hidden, factor);
    }
    let mut max_len = None;
    let mut turn = |net: &mut Builder, kind: Option<&str>, theta: f64| -> Result<Turn> {
        let rope = rope(config, axes.head_dim, kind, theta)?;
        max_len = max_len.or(rope.max_len);
        let pairs = rope.rotated / 2;
        let (cos, sin) = net.pair(Kind::RotaryTable(rope.table), &[positions], pairs);
        Ok((cos, sin, rope.rotated))
    };
    let (full, local) = if axes.two_ropes {
        let full = turn(&mut net, Some("full_attention"), axes.theta)?;
        let local = if config.has("rope_parameters") {
            turn(&mut net, Some("sliding_attention"), 10_000.0)?
        } else {
            // Older configs: the local base stands alone, scaling is for the others only.
            let theta = config.positive_or("rope_local_base_freq", 10_000.0)?;
            let plain = serde_json::json!({ "rope_theta": theta });
            let rope = rope(&Config::new(&plain)?, axes.head_dim, None, theta)?;
            let pairs = rope.rotated / 2;
            let (cos, sin) = net.pair(Kind::RotaryTable(rope.table), &[positions], pairs);
            (cos, sin, rope.rotated)
        };
        (full, local)
    } else {
        let full = turn(&mut net, None, axes.theta)?;
        (full, full)
    };

    for layer in 0..config.layers("num_hidden_layers")? {
        net.block(layer);
        let at = format!("layers.{layer}");
        let window = axes.windows.get(layer).copied().flatten();
        let (cos, sin, rotated) = if window.is_some() { local } else { full };

        let x = net.norm(hidden, &format!("{at}.input_layernorm"), axes.norm)?;
        let part = |name: &str| format!("{at}.self_attn.{name}");
        let (q_width, kv_width) = (heads * axes.head_dim, kv_heads * axes.head_dim);
        let [qkv_bias, o_bias, mlp_bias] = axes.biases;
        let [q, k, v] = if axes.fused {
            let both = net.linear(x, &part("qkv_proj"), q_width + 2 * kv_width, qkv_bias)?;
            let parts = net.split(both, &[q_width, kv_width, kv_width]);
            [parts[0], parts[1], parts[2]]
        } else {
            [
                net.linear(x, &part("q_proj"), q_width, qkv_bias)?,
                net.linear(x, &part("k_proj"), kv_width, qkv_bias)?,
                net.linear(x, &part("v_proj"), kv_width, qkv_bias)?,
            ]
        };
        let mut prepare = |x: Reg, heads: usize, name: &str| -> Result<Reg> {
            let mut x = x;
            if axes.qk_norm {
                x = net.op(Kind::Heads(heads), &[x], axes.head_dim);
                x = net.norm(x, &part(name), axes.norm)?;
            }
            let rotary = Rotary {
                heads,
                head_dim: axes.head_dim,
                rotated,
            };
            let width = net.width(x);
            Ok(net.op(Kind::Rotary(rotary), &[x, cos, sin], width))
        };
        let q = prepare(q, heads, "q_norm")?;
        let k = prepare(k, kv_heads, "k_norm")?;
        let attention = Attention {
            heads,
            kv_heads,
            head_dim: axes.head_dim,
            scale: axes.scale,
            causal: true,
            window,
            softcap: axes.softcap,
            keys: Space::Tokens,
        };
        let mixed = net.attention(&[q, k, v], attention);
        let mut mixed = net.linear(mixed, &part("o_proj"), width, o_bias)?;
        if axes.sandwich {
            mixed = net.norm(mixed, &format!("{at}.post_attention_layernorm"), axes.norm)?;
        }
        hidden = net.add(hidden, mixed);

        let before = if axes.sandwich {
            "pre_feedforward_layernorm"
        } else {
            "post_attention_layernorm"
        };
        let x = net.norm(hidden, &format!("{at}.{before}"), axes.norm)?;
        let part = |name: &str| format!("{at}.mlp.{name}");
        let (gate, up) = if axes.fused {
            let both = net.linear(x, &part("gate_up_proj"), 2 * inner, mlp_bias)?;
            let parts = net.split(both, &[inner, inner]);
            (parts[0], parts[1])
        } else {
            let gate = net.linear(x, &part("gate_proj"), inner, mlp_bias)?;
            (gate, net.linear(x, &part("up_proj"), inner, mlp_bias)?)
        };
        let gate = net.activation(gate, axes.activation);
        let gated = net.mul(gate, up);
        let mut down = net.linear(gated, &part("down_proj"), width, mlp_bias)?;
        if axes.sandwich {
            down = net.norm(down, &format!("{at}.post_feedforward_layernorm"), axes.norm)?;
        }
        hidden = net.add(hidden, down);
    }

    net.stage("final norm", StageKind::Final, None);
    let hidden = net.norm(hidden, "norm", axes.norm)?;
    let logits = match score_head(&mut net, hidden)? {
        Some(logits) => Some(logits),
        None => causal_head(
            &mut net,
            config,
            hidden,
            axes.tied.then_some("embed_tokens.weight"),
            vocabulary,
            axes.logit_softcap,
        )?,
    };
    let inputs = Inputs {
        ids: Some(ids),
        positions: Some(positions),
        max_len,
        ..Inputs::default()
    };
    Ok(net.finish(
        inputs,
        Outputs {
            hidden,
            pooled: None,
            embeds: None,
            logits,
        },
    ))
}
