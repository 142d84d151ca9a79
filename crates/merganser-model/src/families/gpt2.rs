//! GPT-2 (Radford et al. 2019): a pre-norm decoder with learned positions, whose matrices are stored in × out and whose
//! query, key and value are one matrix.

use super::Tensors;
use super::heads::{causal_head, score_head};
use crate::builder::{Builder, NormStyle};
use crate::config::Config;
use crate::error::Result;
use crate::network::{Inputs, Network, Outputs, StageKind};
use crate::op::{Activation, Attention, Layout, Reg, Space};

pub(super) fn gpt2(family: &'static str, config: &Config, tensors: &Tensors) -> Result<Network> {
    config.only("add_cross_attention", false)?;
    config.only("scale_attn_by_inverse_layer_idx", false)?;
    let mut net = Builder::new(family, tensors, "wte.weight")?;
    let width = config.size("n_embd")?;
    let heads = config.size("n_head")?;
    let head_dim = config.head_width(width, heads, "n_head")?;
    let inner = config.size_or("n_inner", 4 * width)?;
    let positions = config.size("n_positions")?;
    let vocabulary = config.size("vocab_size")?;
    let act = config.activation_or("activation_function", Activation::GeluTanh)?;
    let norm = NormStyle::layer(config.epsilon_or("layer_norm_epsilon", 1e-5)?);
    let scaled = config.flag_or("scale_attn_weights", true)?;
    let tied = config.flag_or("tie_word_embeddings", true)?;

    let ids = net.register(Space::Tokens, 1);
    let position_ids = net.register(Space::Tokens, 1);
    net.stage("embeddings", StageKind::Embeddings, None);
    let words = net.embedding(ids, "wte.weight", vocabulary, width)?;
    let places = net.embedding(position_ids, "wpe.weight", positions, width)?;
    let mut hidden = net.add(words, places);

    for layer in 0..config.layers("n_layer")? {
        net.block(layer);
        let at = format!("h.{layer}");
        let conv = |net: &mut Builder, x: Reg, name: &str, outputs: usize| {
            let name = format!("{at}.{name}");
            net.matrix(
                x,
                &format!("{name}.weight"),
                Some(&format!("{name}.bias")),
                outputs,
                Layout::InOut,
                None,
            )
        };
        let x = net.norm(hidden, &format!("{at}.ln_1"), norm)?;
        let both = conv(&mut net, x, "attn.c_attn", 3 * width)?;
        let parts = net.split(both, &[width; 3]);
        let mut attention = Attention::bidirectional(heads, head_dim, Space::Tokens);
        attention.causal = true;
        if !scaled {
            attention.scale = 1.0;
        }
        let mixed = net.attention(&parts, attention);
        let mixed = conv(&mut net, mixed, "attn.c_proj", width)?;
        hidden = net.add(hidden, mixed);
        let x = net.norm(hidden, &format!("{at}.ln_2"), norm)?;
        let up = conv(&mut net, x, "mlp.c_fc", inner)?;
        let up = net.activation(up, act);
        let down = conv(&mut net, up, "mlp.c_proj", width)?;
        hidden = net.add(hidden, down);
    }

    net.stage("final norm", StageKind::Final, None);
    let hidden = net.norm(hidden, "ln_f", norm)?;
    let logits = match score_head(&mut net, hidden)? {
        Some(logits) => Some(logits),
        None => causal_head(
            &mut net,
            config,
            hidden,
            tied.then_some("wte.weight"),
            vocabulary,
            None,
        )?,
    };
    let inputs = Inputs {
        ids: Some(ids),
        positions: Some(position_ids),
        max_len: Some(positions),
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
