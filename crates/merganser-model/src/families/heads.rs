//! Heads that several families share: vocabulary heads of causal and masked language models, class scores of decoders.

use serde_json::Value;

use crate::builder::{Builder, NormStyle};
use crate::config::Config;
use crate::error::Result;
use crate::network::StageKind;
use crate::op::{Activation, Kind, Layout, Reg, Select, Space};

/// Whether the config says that the checkpoint is a causal language model.
fn is_causal_lm(config: &Config) -> bool {
    let names = config.get("architectures").and_then(Value::as_array);
    names
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .any(|name| name.ends_with("ForCausalLM") || name.ends_with("LMHeadModel"))
}

/// Class logits of the last token: `score.weight`, if the checkpoint has it.
pub(super) fn score_head(net: &mut Builder, hidden: Reg) -> Result<Option<Reg>> {
    if !net.has("/score.weight") {
        return Ok(None);
    }
    let width = net.width(hidden);
    let last = net.op_in(Kind::Select(Select::Last), &[hidden], Space::Samples, width);
    let labels = net.rows("/score.weight")?;
    net.linear(last, "/score", labels, net.has("/score.bias"))
        .map(Some)
}

/// Logits over the vocabulary, by the table `tied` if there is one, else by `lm_head.weight`. A model that is not
/// declared as a causal language model and has no head of its own gets none.
pub(super) fn causal_head(
    net: &mut Builder,
    config: &Config,
    hidden: Reg,
    tied: Option<&str>,
    vocabulary: usize,
    softcap: Option<f64>,
) -> Result<Option<Reg>> {
    let own = "/lm_head.weight";
    if !is_causal_lm(config) && !net.has(own) {
        return Ok(None);
    }
    net.stage("vocabulary head", StageKind::VocabularyHead, None);
    let bias = net.has("/lm_head.bias").then_some("/lm_head.bias");
    let weight = tied.unwrap_or(own);
    let mut logits = net.linear_named(hidden, weight, bias, vocabulary)?;
    if let Some(cap) = softcap {
        logits = net.op(Kind::Softcap(cap), &[logits], vocabulary);
    }
    Ok(Some(logits))
}

/// Names of a masked language model's head.
pub(super) struct MaskedHead {
    pub(super) dense: &'static str,
    pub(super) norm: &'static str,
    pub(super) decoder: &'static str,
    pub(super) bias: &'static str,
}

/// `decoder(norm(act(dense(h))))`, if the checkpoint has it; the decoder is the word table unless it is stored.
pub(super) fn masked_head(
    net: &mut Builder,
    hidden: Reg,
    names: &MaskedHead,
    act: Activation,
    norm: NormStyle,
    table: &str,
    vocabulary: usize,
) -> Result<Option<Reg>> {
    if !net.has(&format!("{}.weight", names.dense)) {
        return Ok(None);
    }
    net.stage("vocabulary head", StageKind::VocabularyHead, None);
    let width = net.width(hidden);
    let dense = net.linear(hidden, names.dense, width, true)?;
    let dense = net.activation(dense, act);
    let dense = net.norm(dense, names.norm, norm)?;
    let own = format!("{}.weight", names.decoder);
    let weight = if net.has(&own) { own.as_str() } else { table };
    let logits = net.matrix(
        dense,
        weight,
        Some(names.bias),
        vocabulary,
        Layout::OutIn,
        None,
    )?;
    Ok(Some(logits))
}
