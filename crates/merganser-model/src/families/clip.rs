//! The two towers of CLIP (Radford et al. 2021): pre-norm encoders of patches and of text (causal), each with a projection
//! into the space they share.

use super::Tensors;
use super::vit::Grid;
use crate::builder::{Builder, NormStyle};
use crate::config::Config;
use crate::error::Result;
use crate::network::{Inputs, Network, Outputs, StageKind};
use crate::op::{Activation, Attention, Kind, Place, Reg, Select, Space};

struct Tower {
    width: usize,
    inner: usize,
    layers: usize,
    attention: Attention,
    act: Activation,
    norm: NormStyle,
}

impl Tower {
    fn new(config: &Config, [width, inner, heads]: [usize; 3], space: Space) -> Result<Self> {
        let width = config.size_or("hidden_size", width)?;
        let heads = config.size_or("num_attention_heads", heads)?;
        let head_dim = config.head_width(width, heads, "num_attention_heads")?;
        Ok(Self {
            width,
            inner: config.size_or("intermediate_size", inner)?,
            layers: config.size_or("num_hidden_layers", 12)?,
            attention: Attention::bidirectional(heads, head_dim, space),
            act: config.activation_or("hidden_act", Activation::QuickGelu)?,
            norm: NormStyle::layer(config.epsilon_or("layer_norm_eps", 1e-5)?),
        })
    }

    fn blocks(&self, net: &mut Builder, mut hidden: Reg) -> Result<Reg> {
        for layer in 0..self.layers {
            net.block(layer);
            let at = format!("encoder.layers.{layer}");
            let part = |name: &str| format!("{at}.self_attn.{name}");
            let x = net.norm(hidden, &format!("{at}.layer_norm1"), self.norm)?;
            let q = net.linear(x, &part("q_proj"), self.width, true)?;
            let k = net.linear(x, &part("k_proj"), self.width, true)?;
            let v = net.linear(x, &part("v_proj"), self.width, true)?;
            let mixed = net.attention(&[q, k, v], self.attention.clone());
            let mixed = net.linear(mixed, &part("out_proj"), self.width, true)?;
            hidden = net.add(hidden, mixed);
            let x = net.norm(hidden, &format!("{at}.layer_norm2"), self.norm)?;
            let up = net.linear(x, &format!("{at}.mlp.fc1"), self.inner, true)?;
            let up = net.activation(up, self.act);
            let down = net.linear(up, &format!("{at}.mlp.fc2"), self.width, true)?;
            hidden = net.add(hidden, down);
        }
        Ok(hidden)
    }
}

fn projection(net: &mut Builder, pooled: Reg, name: &str) -> Result<Option<Reg>> {
    let weight = format!("{name}.weight");
    if !net.has(&weight) {
        return Ok(None);
    }
    let outputs = net.rows(&weight)?;
    net.linear(pooled, name, outputs, false).map(Some)
}

pub(super) fn vision(family: &'static str, config: &Config, tensors: &Tensors) -> Result<Network> {
    let config = &config
        .nested("vision_config")?
        .unwrap_or_else(|| config.clone());
    let mut net = Builder::new(family, tensors, "embeddings.class_embedding")?;
    let mut tower = Tower::new(config, [768, 3072, 12], Space::Patches)?;
    let grid = Grid::new(config, 32)?;
    let width = tower.width;

    let pixels = net.register(Space::Patches, grid.channels);
    net.stage("embeddings", StageKind::Embeddings, None);
    let patches = grid.embed(&mut net, pixels, "embeddings.patch_embedding", width, false)?;
    let mut hidden = net.op(Kind::Prepend(1), &[patches], width);
    hidden = net.additive(hidden, "embeddings.class_embedding", Place::At(0))?;
    let places = Place::Each(grid.patches + 1);
    hidden = net.additive(hidden, "embeddings.position_embedding.weight", places)?;
    hidden = net.norm(hidden, "pre_layrnorm", tower.norm)?;
    tower.attention.causal = false;
    let hidden = tower.blocks(&mut net, hidden)?;

    net.stage("head", StageKind::Final, None);
    let first = net.op_in(
        Kind::Select(Select::First),
        &[hidden],
        Space::Samples,
        width,
    );
    let pooled = net.norm(first, "post_layernorm", tower.norm)?;
    let embeds = projection(&mut net, pooled, "/visual_projection")?;
    let logits = if net.has("/classifier.weight") {
        let patches = Kind::Select(Select::MeanFrom(1));
        let mean = net.op_in(patches, &[hidden], Space::Samples, width);
        let labels = net.rows("/classifier.weight")?;
        Some(net.linear(mean, "/classifier", labels, true)?)
    } else {
        None
    };
    let inputs = Inputs {
        pixels: Some(pixels),
        image: Some((grid.channels, grid.side)),
        ..Inputs::default()
    };
    Ok(net.finish(
        inputs,
        Outputs {
            hidden,
            pooled: Some(pooled),
            embeds,
            logits,
        },
    ))
}

pub(super) fn text(family: &'static str, config: &Config, tensors: &Tensors) -> Result<Network> {
    let config = &config
        .nested("text_config")?
        .unwrap_or_else(|| config.clone());
    let mut net = Builder::new(family, tensors, "embeddings.token_embedding.weight")?;
    let mut tower = Tower::new(config, [512, 2048, 8], Space::Tokens)?;
    tower.attention.causal = true;
    let width = tower.width;
    let positions = config.size_or("max_position_embeddings", 77)?;

    let ids = net.register(Space::Tokens, 1);
    let position_ids = net.register(Space::Tokens, 1);
    net.stage("embeddings", StageKind::Embeddings, None);
    let vocabulary = config.size_or("vocab_size", 49408)?;
    let words = net.embedding(ids, "embeddings.token_embedding.weight", vocabulary, width)?;
    let table = "embeddings.position_embedding.weight";
    let places = net.embedding(position_ids, table, positions, width)?;
    let hidden = net.add(words, places);
    let hidden = tower.blocks(&mut net, hidden)?;

    net.stage("head", StageKind::Final, None);
    let hidden = net.norm(hidden, "final_layer_norm", tower.norm)?;
    // Configs of the first release say 2, which no text ends with; the end of text is the largest id there.
    let end = match config.id_or("eos_token_id", 49407)? {
        2 => Select::LargestId,
        id => Select::Token(id),
    };
    let pooled = net.op_in(Kind::Select(end), &[hidden], Space::Samples, width);
    let embeds = projection(&mut net, pooled, "/text_projection")?;
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
            pooled: Some(pooled),
            embeds,
            logits: None,
        },
    ))
}
