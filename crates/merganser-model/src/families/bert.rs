//! BERT and RoBERTa: post-norm encoders with learned positions (Devlin et al. 2018; Liu et al. 2019). MiniLM and most
//! sentence encoders are BERT.

use super::Tensors;
use super::heads::{MaskedHead, masked_head};
use crate::builder::{Builder, NormStyle};
use crate::config::Config;
use crate::error::Result;
use crate::network::{Inputs, Network, Outputs, StageKind};
use crate::op::{Activation, Attention, Kind, Reg, Select, Space};

const WORDS: &str = "embeddings.word_embeddings.weight";

/// BERT: pooler and classifier if the checkpoint has them.
pub(super) fn bert(family: &'static str, config: &Config, tensors: &Tensors) -> Result<Network> {
    let mut net = Builder::new(family, tensors, WORDS)?;
    let (inputs, hidden) = encoder(&mut net, config, 0)?;
    net.stage("head", StageKind::Final, None);
    let pooled = pooler(&mut net, hidden)?;
    let logits = classifier(&mut net, pooled.unwrap_or(hidden))?;
    let masked = masked(
        &mut net,
        config,
        hidden,
        &MaskedHead {
            dense: "/cls.predictions.transform.dense",
            norm: "/cls.predictions.transform.LayerNorm",
            decoder: "/cls.predictions.decoder",
            bias: "/cls.predictions.bias",
        },
    )?;
    Ok(net.finish(
        inputs,
        Outputs {
            hidden,
            pooled,
            embeds: None,
            logits: logits.or(masked),
        },
    ))
}

/// RoBERTa, XLM-R and CamemBERT: positions begin after the padding id, the classifier has two layers.
pub(super) fn roberta(family: &'static str, config: &Config, tensors: &Tensors) -> Result<Network> {
    let mut net = Builder::new(family, tensors, WORDS)?;
    let padding = config.id_or("pad_token_id", 1)?;
    let (inputs, hidden) = encoder(&mut net, config, padding + 1)?;
    net.stage("head", StageKind::Final, None);
    let pooled = pooler(&mut net, hidden)?;
    let logits = if net.has("/classifier.dense.weight") {
        let width = net.width(hidden);
        let first = net.op_in(
            Kind::Select(Select::First),
            &[hidden],
            Space::Samples,
            width,
        );
        let dense = net.linear(first, "/classifier.dense", width, true)?;
        let dense = net.activation(dense, Activation::Tanh);
        let labels = net.rows("/classifier.out_proj.weight")?;
        Some(net.linear(dense, "/classifier.out_proj", labels, true)?)
    } else {
        classifier(&mut net, hidden)?
    };
    let masked = masked(
        &mut net,
        config,
        hidden,
        &MaskedHead {
            dense: "/lm_head.dense",
            norm: "/lm_head.layer_norm",
            decoder: "/lm_head.decoder",
            bias: "/lm_head.bias",
        },
    )?;
    Ok(net.finish(
        inputs,
        Outputs {
            hidden,
            pooled,
            embeds: None,
            logits: logits.or(masked),
        },
    ))
}

/// The head of a masked language model, if the checkpoint has it.
fn masked(
    net: &mut Builder,
    config: &Config,
    hidden: Reg,
    names: &MaskedHead,
) -> Result<Option<Reg>> {
    masked_head(
        net,
        hidden,
        names,
        config.activation_or("hidden_act", Activation::Gelu)?,
        NormStyle::layer(config.epsilon_or("layer_norm_eps", 1e-12)?),
        WORDS,
        config.size("vocab_size")?,
    )
}

fn encoder(net: &mut Builder, config: &Config, first_position: u32) -> Result<(Inputs, Reg)> {
    config.only("position_embedding_type", "absolute")?;
    config.only("is_decoder", false)?;
    config.only("add_cross_attention", false)?;
    let width = config.size("hidden_size")?;
    let heads = config.size("num_attention_heads")?;
    let head_dim = config.head_width(width, heads, "num_attention_heads")?;
    let inner = config.size("intermediate_size")?;
    let act = config.activation_or("hidden_act", Activation::Gelu)?;
    let style = NormStyle::layer(config.epsilon_or("layer_norm_eps", 1e-12)?);
    let positions = config.size("max_position_embeddings")?;

    let ids = net.register(Space::Tokens, 1);
    let position_ids = net.register(Space::Tokens, 1);
    let type_ids = net.register(Space::Tokens, 1);
    net.stage("embeddings", StageKind::Embeddings, None);
    let words = net.embedding(ids, WORDS, config.size("vocab_size")?, width)?;
    let types = net.embedding(
        type_ids,
        "embeddings.token_type_embeddings.weight",
        config.size("type_vocab_size")?,
        width,
    )?;
    let sum = net.add(words, types);
    let places = net.embedding(
        position_ids,
        "embeddings.position_embeddings.weight",
        positions,
        width,
    )?;
    let sum = net.add(sum, places);
    let mut hidden = net.norm(sum, "embeddings.LayerNorm", style)?;

    for layer in 0..config.layers("num_hidden_layers")? {
        net.block(layer);
        let at = format!("encoder.layer.{layer}");
        let q = net.linear(hidden, &format!("{at}.attention.self.query"), width, true)?;
        let k = net.linear(hidden, &format!("{at}.attention.self.key"), width, true)?;
        let v = net.linear(hidden, &format!("{at}.attention.self.value"), width, true)?;
        let mixed = net.attention(
            &[q, k, v],
            Attention::bidirectional(heads, head_dim, Space::Tokens),
        );
        let mixed = net.linear(mixed, &format!("{at}.attention.output.dense"), width, true)?;
        let sum = net.add(mixed, hidden);
        hidden = net.norm(sum, &format!("{at}.attention.output.LayerNorm"), style)?;
        let up = net.linear(hidden, &format!("{at}.intermediate.dense"), inner, true)?;
        let up = net.activation(up, act);
        let down = net.linear(up, &format!("{at}.output.dense"), width, true)?;
        let sum = net.add(down, hidden);
        hidden = net.norm(sum, &format!("{at}.output.LayerNorm"), style)?;
    }
    let inputs = Inputs {
        ids: Some(ids),
        positions: Some(position_ids),
        types: Some(type_ids),
        first_position,
        max_len: Some(positions.saturating_sub(first_position as usize)),
        ..Inputs::default()
    };
    Ok((inputs, hidden))
}

/// `tanh(W h_cls + b)`, if the checkpoint has it.
pub(super) fn pooler(net: &mut Builder, hidden: Reg) -> Result<Option<Reg>> {
    if !net.has("pooler.dense.weight") {
        return Ok(None);
    }
    let width = net.width(hidden);
    let first = net.op_in(
        Kind::Select(Select::First),
        &[hidden],
        Space::Samples,
        width,
    );
    let dense = net.linear(first, "pooler.dense", width, true)?;
    Ok(Some(net.activation(dense, Activation::Tanh)))
}

/// A linear classifier of samples (or, without a pooler, of tokens), if the checkpoint has one.
pub(super) fn classifier(net: &mut Builder, x: Reg) -> Result<Option<Reg>> {
    for name in ["/classifier", "/qa_outputs"] {
        if net.has(&format!("{name}.weight")) {
            let labels = net.rows(&format!("{name}.weight"))?;
            return net.linear(x, name, labels, true).map(Some);
        }
    }
    Ok(None)
}
