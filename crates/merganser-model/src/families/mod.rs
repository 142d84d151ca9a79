//! From a config to a program: one small function a family.

mod bert;
mod clip;
mod decoder;
mod distilbert;
mod gpt2;
mod heads;
mod rope;
mod t5;
mod vit;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::{Config, shown};
use crate::error::{ModelError, Result};
use crate::network::{Modality, Network};

type Tensors = BTreeMap<String, Vec<usize>>;

struct Family {
    /// Value of `model_type`.
    name: &'static str,
    modality: Modality,
    build: fn(&'static str, &Config, &Tensors) -> Result<Network>,
}

const fn text(
    name: &'static str,
    build: fn(&'static str, &Config, &Tensors) -> Result<Network>,
) -> Family {
    Family {
        name,
        modality: Modality::Text,
        build,
    }
}

const fn image(
    name: &'static str,
    build: fn(&'static str, &Config, &Tensors) -> Result<Network>,
) -> Family {
    Family {
        name,
        modality: Modality::Image,
        build,
    }
}

/// All families. Where a name occurs twice, the first is the default.
const FAMILIES: &[Family] = &[
    text("bert", bert::bert),
    text("camembert", bert::roberta),
    image("clip", clip::vision),
    text("clip", clip::text),
    text("clip_text_model", clip::text),
    image("clip_vision_model", clip::vision),
    image("deit", vit::vit),
    text("distilbert", distilbert::distilbert),
    text("gemma", decoder::gemma),
    text("gemma2", decoder::gemma2),
    text("gemma3_text", decoder::gemma3),
    text("gpt2", gpt2::gpt2),
    text("llama", decoder::llama),
    text("mistral", decoder::mistral),
    text("phi3", decoder::phi3),
    text("qwen2", decoder::qwen2),
    text("qwen3", decoder::qwen3),
    text("roberta", bert::roberta),
    text("t5", t5::t5),
    image("vit", vit::vit),
    text("xlm-roberta", bert::roberta),
];

pub(crate) fn build(
    config: &Value,
    tensors: &Tensors,
    modality: Option<Modality>,
) -> Result<Network> {
    let config = Config::new(config)?;
    let name = config.get("model_type");
    let known: Vec<&Family> = FAMILIES
        .iter()
        .filter(|family| name.and_then(Value::as_str) == Some(family.name))
        .collect();
    let Some(first) = known.first() else {
        let mut names: Vec<_> = FAMILIES.iter().map(|family| family.name).collect();
        names.dedup();
        return Err(ModelError::UnknownFamily {
            found: shown(name),
            supported: names.join(", "),
        });
    };
    let wanted = modality.unwrap_or(first.modality);
    let family = known.iter().find(|family| family.modality == wanted);
    let family = family.ok_or_else(|| {
        let (wanted, reads) = match wanted {
            Modality::Text => ("text", "images"),
            Modality::Image => ("images", "text"),
        };
        config.refused(
            "model_type",
            format!("a network that reads {wanted}; this one reads {reads}"),
        )
    })?;
    (family.build)(family.name, &config, tensors)
}
