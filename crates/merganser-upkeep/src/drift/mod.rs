//! What moved between two versions of an embedding model, as a map between their spaces.
//!
//! With f_old and f_new the two encoders and anchors q that both of them embed, a drift says how f_old(q) becomes f_new(q):
//!
//! | kind | x_new ≈ | back |
//! |---|---|---|
//! | shift | x + Δ, Δ = mean(f_new(q) − f_old(q)) | x − Δ |
//! | orthogonal | Q x + t, Q orthogonal | Qᵀ(x − t) |
//! | affine | A x + b | A′ x + b′, fitted on its own |
//! | clusters | x + Δ_c, c the cluster of x in the old space | x − Δ_c, c the cluster of x − Δ |
//!
//! **The direction is always new − old.** Queries of the new model are taken *to the old* space, where an old index is
//! searched; stored documents, prototypes and statistics are taken *to the new* one.
//!
//! Shift: query drift compensation (arXiv 2506.00037). Orthogonal and affine: Procrustes and ridge regression on the
//! anchors. An affine map is not inverted for the way back, because ridge regression shrinks: its inverse would blow up what
//! the anchors did not show.
//!
//! Prototypes of classes need not all move alike: [`carry`] moves each by what the anchors around it do, or by what probes
//! that look like its class do.

mod adversarial;
mod chain;
mod clusters;
mod file;
mod files;
mod fit;
mod prototypes;
mod search;
mod semantic;
mod transport;

pub use adversarial::{Attack, Probes, StepNorm, features, nearest_prototypes};
pub use clusters::{assign, centroids, cluster_shifts};
pub use fit::{
    Advice, Anchors, Diagnostics, FitKind, FitOptions, HeldOut, affine, orthogonal, shift,
};
pub use prototypes::{Carried, CarryOptions, ClassDrift, Evidence, Method, carry, kept_drift};
pub use search::{Outcome, Trial};
pub use semantic::{Bandwidth, Local, displacements};
pub use transport::Transport;

pub(crate) use transport::normalise;

use merganser_linalg::{Matrix, gemm};

/// x ↦ A x + b.
#[derive(Debug, Clone, PartialEq)]
pub struct Affine {
    /// A, of one row for each element of the image.
    pub weight: Matrix,
    /// b.
    pub bias: Vec<f64>,
}

impl Affine {
    /// The images of rows.
    ///
    /// # Panics
    /// If the rows do not have as many elements as A has columns.
    pub fn apply(&self, rows: &Matrix) -> Matrix {
        let mut out = gemm::mul_nt(rows, &self.weight);
        for i in 0..out.rows() {
            for (x, b) in out.row_mut(i).iter_mut().zip(&self.bias) {
                *x += b;
            }
        }
        out
    }

    /// First this map, then `next`.
    ///
    /// # Panics
    /// If the sizes do not fit.
    #[must_use]
    pub fn then(&self, next: &Self) -> Self {
        let bias = Matrix::from_fn(1, self.bias.len(), |_, j| self.bias[j]);
        Self {
            weight: gemm::mul(&next.weight, &self.weight),
            bias: next.apply(&bias).into_vec(),
        }
    }
}

/// How the old space becomes the new one.
#[derive(Debug, Clone, PartialEq)]
pub enum Map {
    /// x + Δ.
    Shift(Vec<f64>),
    /// Q x + t with an orthogonal Q.
    Orthogonal(Affine),
    /// A x + b, and the way back where it is known.
    Affine {
        /// From the old space to the new.
        forward: Affine,
        /// From the new space to the old.
        backward: Option<Affine>,
    },
    /// A shift for each cluster of the old space.
    Clusters {
        /// Unit centroids in the old space, one a row.
        centroids: Matrix,
        /// The shift of each cluster, one a row.
        shifts: Matrix,
        /// The shift of all.
        mean: Vec<f64>,
    },
}

impl Map {
    /// Name of the kind, as files have it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Shift(_) => "shift",
            Self::Orthogonal(_) => "orthogonal",
            Self::Affine { .. } => "affine",
            Self::Clusters { .. } => "clusters",
        }
    }

    /// Length of the vectors of the old space.
    pub fn dim(&self) -> usize {
        match self {
            Self::Shift(shift) => shift.len(),
            Self::Orthogonal(map) | Self::Affine { forward: map, .. } => map.weight.cols(),
            Self::Clusters { mean, .. } => mean.len(),
        }
    }

    /// Length of the vectors of the new space.
    pub fn dim_new(&self) -> usize {
        match self {
            Self::Affine { forward: map, .. } => map.bias.len(),
            _ => self.dim(),
        }
    }
}

/// Which way vectors are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the new space to the old: queries of the new model, for an old index.
    ToOld,
    /// From the old space to the new: stored documents, prototypes, statistics.
    ToNew,
}

/// A drift between two named versions of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Drift {
    /// Name of the old version.
    pub from: String,
    /// Name of the new version.
    pub to: String,
    /// Whether the vectors it is about have length 1: others are scaled before it is applied.
    pub unit: bool,
    /// Number of anchors it was fitted on; of a chain the smallest.
    pub anchors: usize,
    /// The map.
    pub map: Map,
    /// What was measured when it was fitted, by name; see [`Diagnostics`].
    pub measured: std::collections::BTreeMap<String, f64>,
}
