//! Whole networks: layer by layer in forward order, with what the merged layers before give.
//!
//! For every task the calibration samples run through two networks at once: the *teacher*, the task's fine-tune, and the
//! *student*, the network merged so far. At each parameter both are stopped. What the student feeds to it (X̃) and what
//! the teacher gives there (the targets) are the layer's moments; the best update is found, the merged tensor handed to
//! the [`Host`], and both networks go on with their own weights. Memory follows from the samples and one stage of every
//! model, not from depth. Other [streams](Stream) are those of RegMean
//! (every layer by itself) and RegMean++.
//!
//! The student computes with the tensors as they will be stored, rounding included, so that an interrupted merge that
//! is taken up again ends in the same bytes.

mod distill;
mod evidence;
mod feature;
mod from_moments;
mod layer;
mod linear;
mod masks;
mod matrix;
mod pairs;
mod simple;
mod solve;
mod units;
mod walk;

use candle_core::Tensor;
use merganser_model::{Batch, ModelError, Weights};

use crate::{Captured, DataFree, Programme};

pub use distill::{Distillation, distill};
pub use feature::{Feature, captured_features};
pub use from_moments::{Place, Recorded, merge_recorded};
pub use masks::Mask;
pub use pairs::Pairs;
pub use walk::{Student, claimed, merge};

/// An error of a host: whatever it could not read or write.
pub type HostError = Box<dyn std::error::Error + Send + Sync>;

/// Why a network was not merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// A forward pass failed.
    #[error("{model}: {problem}")]
    Forward {
        /// Which model ran.
        model: String,
        /// What happened.
        problem: ModelError,
    },
    /// Activations are not finite.
    #[error("{model} gives {tensor} inputs that are not finite: check its weights and samples")]
    NotFinite {
        /// Which model ran.
        model: String,
        /// The parameter that reads them.
        tensor: String,
    },
    /// A layer could not be solved.
    #[error("{tensor}: {problem}")]
    Layer {
        /// The parameter.
        tensor: String,
        /// What happened.
        problem: crate::Error,
    },
    /// Tensors could not be read or written.
    #[error(transparent)]
    Host(HostError),
}

/// One fine-tune and the samples of its task.
pub struct Teacher<'a> {
    /// What it is called.
    pub name: String,
    /// Its tensors, under the output's names.
    pub weights: &'a dyn Weights,
    /// Its samples.
    pub batches: &'a [Batch],
    /// ω_t, the weight of its output error.
    pub weight: f64,
}

/// How a parameter is merged.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// As the prior says.
    Prior,
    /// The update of least output error.
    Programme(Programme),
    /// The best combination of the task vectors under masks.
    Sparse {
        /// Which entries are kept.
        mask: Mask,
        /// Constraint and ridge; the basis is that of the masks.
        programme: Programme,
    },
    /// RegMean with this factor on the off-diagonal of the Grams.
    RegMean {
        /// The factor.
        off_diagonal: f64,
    },
    /// LOT: the minimum-norm solution, without ridge or prior.
    Lot,
    /// The data-free merge that [`Settings::matrix_prior`] names.
    MatrixPrior,
}

impl Rule {
    /// Whether a parameter of this kind is merged by this rule rather than as the prior says.
    pub fn applies_to(&self, kind: LayerKind) -> bool {
        match self {
            Self::Prior => false,
            Self::Programme(_) | Self::Sparse { .. } => true,
            Self::RegMean { .. } | Self::MatrixPrior => kind == LayerKind::Linear,
            Self::Lot => matches!(kind, LayerKind::Linear | LayerKind::Norm),
        }
    }

    /// Whether it has a ridge.
    fn has_ridge(&self) -> bool {
        matches!(self, Self::Programme(_) | Self::Sparse { .. })
    }

    /// Whether the bias that goes with a weight is solved for with it; else it is the prior's.
    pub fn includes_bias(&self) -> bool {
        matches!(self, Self::Prior | Self::Programme(_) | Self::Sparse { .. })
    }
}

/// Whose inputs a layer is solved for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stream {
    /// Those of the fine-tune itself: every layer by itself.
    Taught,
    /// Those that the layers merged so far give, with the fine-tune's outputs as targets.
    #[default]
    Merged,
    /// Those that each fine-tune's block makes of what the merged blocks before give (RegMean++).
    Candidates,
}

/// How a whole network is merged.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Whose inputs a layer is solved for.
    pub stream: Stream,
    /// Targets of layers that write into the residual stream correct its drift as well.
    pub residual_targets: bool,
    /// The ridge of a matrix is relative to the size of each input rather than to their mean.
    pub ridge_by_input: bool,
    /// What the matrices of blocks start from instead of [`Host::prior`].
    pub matrix_prior: Option<DataFree>,
    /// Programmes whose captured energy is measured besides, layer by layer.
    pub measured: Vec<Programme>,
}

/// What the merge of a network needs from outside.
pub trait Host: Sync {
    /// How the parameter whose weight has this name is merged.
    fn rule(&self, weight: &str) -> Rule;

    /// The data-free merge of a tensor, in f32.
    ///
    /// # Errors
    /// Whatever keeps it from being made.
    fn prior(&self, tensor: &str) -> Result<Tensor, HostError>;

    /// A tensor that is merged already, as it is stored.
    ///
    /// # Errors
    /// If it is there but cannot be read.
    fn finished(&self, tensor: &str) -> Result<Option<Tensor>, HostError>;

    /// Keeps a merged tensor and gives it back as it is stored: rounded.
    ///
    /// # Errors
    /// If it cannot be stored.
    fn keep(&self, tensor: &str, merged: Tensor) -> Result<Tensor, HostError>;

    /// Other merges of a tensor, to be measured beside the chosen one: name and values.
    ///
    /// # Errors
    /// Whatever keeps them from being made.
    fn rivals(&self, tensor: &str) -> Result<Vec<(String, Tensor)>, HostError> {
        let _ = tensor;
        Ok(Vec::new())
    }

    /// A stage is about to be merged.
    fn stage(&self, name: &str, number: usize, of: usize) {
        let _ = (name, number, of);
    }
}

/// The kinds of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// A matrix.
    Linear,
    /// A scale, perhaps with a shift.
    Norm,
    /// A table.
    Embedding,
    /// A summand.
    Additive,
}

/// What was found out about one parameter.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Name of its weight.
    pub tensor: String,
    /// Name of the stage it belongs to.
    pub stage: String,
    /// Its block.
    pub block: Option<usize>,
    /// What it is.
    pub kind: LayerKind,
    /// Shape of the weight.
    pub shape: Vec<usize>,
    /// How it was merged.
    pub basis: String,
    /// What the merged tensor captures of the residual energy.
    pub captured: Captured,
    /// λ, as used.
    pub ridge: Option<f64>,
    /// What the best update of all would capture, where it was measured.
    pub measured: Vec<(String, Captured)>,
    /// How the tasks lie to each other here, where it was measured.
    pub pairs: Option<Pairs>,
    /// What a reader should know.
    pub notes: Vec<String>,
}
