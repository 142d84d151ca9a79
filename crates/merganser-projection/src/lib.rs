//! Output-space projection: the merge of a layer that changes its outputs on calibration data least.
//!
//! A layer is linear in its parameters: y = W x with W ∈ ℝ^{m×d}. For a base W₀, fine-tuned W_t and updates
//! Δ_t = W_t − W₀, inputs X_t of every task and X̃_t, what the merged network feeds to the layer instead,
//!
//! ```text
//! J(Δ) = Σ_t ω_t/n_t ‖Δ X̃_t − R_t‖² = tr(Δ G Δᵀ) − 2 tr(Δ Cᵀ) + E,      R_t = W_t X_t − W₀ X̃_t
//! G = Σ_t ω_t/n_t X̃_t X̃_tᵀ      C = Σ_t ω_t/n_t R_t X̃_tᵀ      E = Σ_t ω_t/n_t ‖R_t‖²
//! ```
//!
//! is a convex quadratic in Δ, and G, C, E are all that has to be known of the data: sums, which stream and add up
//! ([`InputMoments`], [`TargetMoments`], [`MomentsFile`]). A [`Programme`] says which updates are considered (a
//! [`Basis`]), how coefficients are constrained and how much ridge there is; [`Problem::solve`] finds the best of them
//! and [`Captured`] says which fraction of the residual energy E it captures: 1 − J/E. After Evans, Etheridge, Roberts
//! and Tanner, *Model Merging by Output-Space Projection* (arXiv 2605.29101, 2026).
//!
//! ```
//! use merganser_linalg::Matrix;
//! use merganser_projection::{Basis, InputMoments, Problem, Programme, Ridge, Task};
//!
//! # fn main() -> merganser_projection::Result<()> {
//! // Two tasks: updates of a 3×4 layer, and what the layer saw of each.
//! let updates = [0.0, 1.0].map(|t| Matrix::from_fn(3, 4, |i, j| (i as f64 - t * j as f64).sin()));
//! let mut inputs = [InputMoments::new(4), InputMoments::new(4)];
//! for (t, moments) in inputs.iter_mut().enumerate() {
//!     let rows: Vec<f32> = (0..80).map(|i| ((i * i + t) % 7) as f32 - 3.0).collect(); // 20 rows of 4
//!     moments.add_rows(&rows)?;
//! }
//! let tasks = updates.iter().zip(&inputs).map(|(update, input)| Task::new(update, input));
//! let problem = Problem::new(tasks.collect())?;
//!
//! // The diagnostic: what each basis could capture. Products and factors are shared.
//! let task = problem.solve(&Programme::new(Basis::Task))?;
//! let diagonal = problem.solve(&Programme::new(Basis::Diagonal))?;
//! let full = problem.solve(&Programme::new(Basis::Full).ridge(Ridge::Relative(1e-6)))?;
//! assert!(task.captured.fraction <= diagonal.captured.fraction);
//! assert!(diagonal.captured.fraction <= full.captured.fraction + 1e-6);
//! assert_eq!(full.update.shape(), (3, 4)); // to be added to the base
//! // Any other merge, measured the same way: here, task arithmetic with λ = 0.5.
//! let mut sum = updates[0].clone();
//! sum.add_scaled(1.0, &updates[1]);
//! sum.scale(0.5);
//! assert!(problem.evaluate(&sum)?.fraction <= task.captured.fraction + 1e-12);
//! # Ok(())
//! # }
//! ```
//!
//! Everything is generic over `f64` and `f32` ([`Real`](merganser_linalg::Real)): `f64` unless a layer is so wide
//! (d > 4096) that its matrices would not fit, where solves are refined with residuals in `f64`. GPT-2's `Conv1D`
//! stores W transposed: transpose the updates before and the answer after. A convolution is linear in its unfolded
//! patches. A bias is one more column of W with input 1: see [`InputMoments::with_bias`].

// Errors say everything a user needs, and are made once.
#![allow(clippy::result_large_err)]

mod captured;
mod channels;
mod core;
mod data_free;
mod diagonal;
mod error;
mod file;
mod full;
mod list;
mod lot;
mod moments;
pub mod network;
mod problem;
mod programme;
mod quadratic;
mod regmean;
mod rows;
mod solution;
mod wudi;

pub use captured::{Captured, TaskCaptured};
pub use channels::{ChannelMoments, ChannelSolution, ChannelTargets, ChannelTask, solve_channels};
pub use core::{Core, FactoredTask};
pub use data_free::{DataFree, Spectral};
pub use error::{Error, Result};
pub use file::{
    EntrySpec, MomentsFile, MomentsInfo, MomentsWriter, Statistics, StatisticsKind, merge_files,
    write_moments,
};
pub use lot::lot;
pub use moments::{InputMoments, TargetMoments};
pub use problem::{HeldOut, Problem, Task};
pub use programme::{AUTO_TOLERANCE, Basis, Programme, Ridge};
pub use regmean::{RegMean, regmean};
pub use rows::{RowCounts, RowTask, RowsSolution, mean_residual, solve_rows};
pub use solution::{Coefficients, Factors, Note, Solution};
pub use wudi::{WudiAdam, wudi, wudi_closed_form};

pub use merganser_linalg::qp::Constraint;
