//! DistilBERT (Sanh et al. 2019): BERT without token types and pooler, under names of its own.

use super::Tensors;
use super::heads::{MaskedHead, masked_head};
use crate::builder::{Builder, NormStyle};
use crate::config::Config;
use crate::error::Result;
use crate::network::{Inputs, Network, Outputs, StageKind};
use crate::op::{Activation, Attention, Kind, Select, Space};

pub(super) fn distilbert(
    family: &'static str,
    config: &Config,
    tensors: &Tensors,
) -> Result<Network> {
    let mut net = Builder::new(family, tensors, "embeddings.word_embeddings.weight")?;
    let width = config.size("dim")?;
    let heads = config.size("n_heads")?;
    let head_dim = config.head_width(width, heads, "n_heads")?;
    let inner = config.size("hidden_dim")?;
    let act = config.activation_or("activation", Activation::Gelu)?;
    let norm = NormStyle::layer(1e-12);
    let positions = config.size("max_position_embeddings")?;
    let vocabulary = config.size("vocab_size")?;

    let ids = net.register(Space::Tokens, 1);
    let position_ids = net.register(Space::Tokens, 1);
    net.stage("embeddings", StageKind::Embeddings, None);
    let table = "embeddings.word_embeddings.weight";
    let words = net.embedding(ids, table, vocabulary, width)?;
    let places = net.embedding(
        position_ids,
        "embeddings.position_embeddings.weight",
        positions,
        width,
    )?;
    let sum = net.add(words, places);
    let mut hidden = net.norm(sum, "embeddings.LayerNorm", norm)?;

    for layer in 0..config.layers("n_layers")? {
        net.block(layer);
        let at = format!("transformer.layer.{layer}");
        let part = |name: &str| format!("{at}.attention.{name}");
        let q = net.linear(hidden, &part("q_lin"), width, true)?;
        let k = net.linear(hidden, &part("k_lin"), width, true)?;
        let v = net.linear(hidden, &part("v_lin"), width, true)?;
        let attention = Attention::bidirectional(heads, head_dim, Space::Tokens);
        let mixed = net.attention(&[q, k, v], attention);
        let mixed = net.linear(mixed, &part("out_lin"), width, true)?;
        let sum = net.add(mixed, hidden);
        hidden = net.norm(sum, &format!("{at}.sa_layer_norm"), norm)?;
        let up = net.linear(hidden, &format!("{at}.ffn.lin1"), inner, true)?;
        let up = net.activation(up, act);
        let down = net.linear(up, &format!("{at}.ffn.lin2"), width, true)?;
        let sum = net.add(down, hidden);
        hidden = net.norm(sum, &format!("{at}.output_layer_norm"), norm)?;
    }

    net.stage("head", StageKind::Final, None);
    let mut logits = None;
    if net.has("/pre_classifier.weight") {
        let first = net.op_in(
            Kind::Select(Select::First),
            &[hidden],
            Space::Samples,
            width,
        );
        let dense = net.linear(first, "/pre_classifier", width, true)?;
        let dense = net.activation(dense, Activation::Relu);
        let labels = net.rows("/classifier.weight")?;
        logits = Some(net.linear(dense, "/classifier", labels, true)?);
    } else if let Some(tokens) = super::bert::classifier(&mut net, hidden)? {
        logits = Some(tokens);
    }
    let names = MaskedHead {
        dense: "/vocab_transform",
        norm: "/vocab_layer_norm",
        decoder: "/vocab_projector",
        bias: "/vocab_projector.bias",
    };
    let masked = masked_head(&mut net, hidden, &names, act, norm, table, vocabulary)?;
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
            logits: logits.or(masked),
        },
    ))
}
