//! ViT and DeiT: pre-norm encoders of image patches (Dosovitskiy et al. 2020; Touvron et al. 2020).

use super::Tensors;
use crate::builder::{Builder, NormStyle};
use crate::config::Config;
use crate::error::Result;
use crate::network::{Inputs, Network, Outputs, StageKind};
use crate::op::{Activation, Attention, Kind, Layout, Place, Reg, Select, Space};

/// The grid of patches a vision config describes.
pub(super) struct Grid {
    pub(super) channels: usize,
    pub(super) side: usize,
    pub(super) patch: usize,
    pub(super) patches: usize,
}

impl Grid {
    /// `patch` is the family's default side of a patch.
    pub(super) fn new(config: &Config, patch: usize) -> Result<Self> {
        let side = config.size_or("image_size", 224)?;
        let patch = config.size_or("patch_size", patch)?;
        if !side.is_multiple_of(patch) {
            return Err(config.refused("patch_size", format!("a divisor of `image_size` {side}")));
        }
        Ok(Self {
            channels: config.size_or("num_channels", 3)?,
            side,
            patch,
            patches: (side / patch) * (side / patch),
        })
    }

    /// Pixels to embedded patches, by the convolution `name`.
    pub(super) fn embed(
        &self,
        net: &mut Builder,
        pixels: Reg,
        name: &str,
        width: usize,
        bias: bool,
    ) -> Result<Reg> {
        let inputs = self
            .channels
            .saturating_mul(self.patch)
            .saturating_mul(self.patch);
        let patches = net.op(Kind::Patches(self.patch), &[pixels], inputs);
        let bias = bias.then(|| format!("{name}.bias"));
        net.matrix(
            patches,
            &format!("{name}.weight"),
            bias.as_deref(),
            width,
            Layout::OutIn,
            Some(&[width, self.channels, self.patch, self.patch]),
        )
    }
}

pub(super) fn vit(family: &'static str, config: &Config, tensors: &Tensors) -> Result<Network> {
    let mut net = Builder::new(
        family,
        tensors,
        "embeddings.patch_embeddings.projection.weight",
    )?;
    let width = config.size("hidden_size")?;
    let heads = config.size("num_attention_heads")?;
    let head_dim = config.head_width(width, heads, "num_attention_heads")?;
    let inner = config.size("intermediate_size")?;
    let act = config.activation_or("hidden_act", Activation::Gelu)?;
    let style = NormStyle::layer(config.epsilon_or("layer_norm_eps", 1e-12)?);
    let qkv_bias = config.flag_or("qkv_bias", true)?;
    let grid = Grid::new(config, 16)?;

    let pixels = net.register(Space::Patches, grid.channels);
    net.stage("embeddings", StageKind::Embeddings, None);
    let patches = grid.embed(
        &mut net,
        pixels,
        "embeddings.patch_embeddings.projection",
        width,
        true,
    )?;
    let distilled = family == "deit";
    let extra = 1 + usize::from(distilled);
    let mut hidden = net.op(Kind::Prepend(extra), &[patches], width);
    hidden = net.additive(hidden, "embeddings.cls_token", Place::At(0))?;
    if distilled {
        hidden = net.additive(hidden, "embeddings.distillation_token", Place::At(1))?;
    }
    hidden = net.additive(
        hidden,
        "embeddings.position_embeddings",
        Place::Each(grid.patches + extra),
    )?;

    for layer in 0..config.layers("num_hidden_layers")? {
        net.block(layer);
        let at = format!("encoder.layer.{layer}");
        let x = net.norm(hidden, &format!("{at}.layernorm_before"), style)?;
        let part = |name: &str| format!("{at}.attention.attention.{name}");
        let q = net.linear(x, &part("query"), width, qkv_bias)?;
        let k = net.linear(x, &part("key"), width, qkv_bias)?;
        let v = net.linear(x, &part("value"), width, qkv_bias)?;
        let mixed = net.attention(
            &[q, k, v],
            Attention::bidirectional(heads, head_dim, Space::Patches),
        );
        let mixed = net.linear(mixed, &format!("{at}.attention.output.dense"), width, true)?;
        hidden = net.add(hidden, mixed);
        let x = net.norm(hidden, &format!("{at}.layernorm_after"), style)?;
        let up = net.linear(x, &format!("{at}.intermediate.dense"), inner, true)?;
        let up = net.activation(up, act);
        let down = net.linear(up, &format!("{at}.output.dense"), width, true)?;
        hidden = net.add(hidden, down);
    }

    net.stage("head", StageKind::Final, None);
    let hidden = net.norm(hidden, "layernorm", style)?;
    let first = net.op_in(
        Kind::Select(Select::First),
        &[hidden],
        Space::Samples,
        width,
    );
    let pooled = if net.has("pooler.dense.weight") {
        let out = config.size_or("pooler_output_size", width)?;
        let dense = net.linear(first, "pooler.dense", out, true)?;
        net.activation(dense, config.activation_or("pooler_act", Activation::Tanh)?)
    } else {
        first
    };
    let logits = if net.has("/cls_classifier.weight") {
        // DeiT with a teacher: the mean of both classifiers.
        let second = net.op_in(
            Kind::Select(Select::At(1)),
            &[hidden],
            Space::Samples,
            width,
        );
        let count = net.rows("/cls_classifier.weight")?;
        let a = net.linear(first, "/cls_classifier", count, true)?;
        let b = net.linear(second, "/distillation_classifier", count, true)?;
        let sum = net.add(a, b);
        Some(net.scale(sum, 0.5))
    } else if net.has("/classifier.weight") {
        let count = net.rows("/classifier.weight")?;
        Some(net.linear(first, "/classifier", count, true)?)
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
            embeds: None,
            logits,
        },
    ))
}
