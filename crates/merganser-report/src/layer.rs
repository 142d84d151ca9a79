//! One layer of the network: a tensor with moments, its energy and what each method captures of it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The programme a parameter belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    /// `y = W x`: linear layers and convolutions over patches.
    #[default]
    Linear,
    /// Scale and shift of a normalisation, channel by channel.
    Norm,
    /// A table of rows picked by one-hot inputs.
    Embedding,
    /// A parameter that is only added: biases, positions, class tokens.
    Additive,
}

impl fmt::Display for LayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Linear => "linear",
            Self::Norm => "norm",
            Self::Embedding => "embedding",
            Self::Additive => "additive",
        })
    }
}

/// A tensor with moments.
///
/// Energies are sums over output coordinates and means over samples, `Σ_t (ω_t/n_t) ‖R_t‖²_F`, in
/// squared units of the layer's output. They are compared as shares of the network's energy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Layer {
    /// The name of the tensor.
    pub name: String,
    /// The stage of the network it belongs to: `embeddings`, `layers.0`, …, `head`. Layers of one
    /// block are shown together; blocks are shown in the order in which they first appear.
    pub block: String,
    /// The programme.
    pub kind: LayerKind,
    /// The shape of the tensor as stored.
    pub shape: Vec<usize>,
    /// The residual energy `E`.
    pub energy: Option<f64>,
    /// `E_t` for each task, without the weights `ω_t`.
    pub energy_by_task: Vec<Option<f64>>,
    /// Captured energy by method: `1 − min J / E` for a basis, `1 − J / E` for a merge.
    pub captured: BTreeMap<String, Option<f64>>,
    /// `1 − J_t/E_t` of the chosen method for each task.
    pub captured_by_task: Vec<Option<f64>>,
    /// The irreducible conflict, `1 − captured(full)`. Taken from `captured["full"]` if `None`.
    pub conflict: Option<f64>,
    /// The relative ridge `λ` used, in units of `tr(G)/d`.
    pub ridge: Option<f64>,
    /// The basis the chosen merge used here, where it differs from layer to layer.
    pub basis: Option<String>,
    /// What happened here: `min-norm: 64 samples for 768 inputs`, `ridge raised to 1e-3`.
    pub notes: Vec<String>,
}
