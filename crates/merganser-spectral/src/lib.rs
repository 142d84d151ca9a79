//! Merging by singular vectors: whole matrices ([`tsv_m`], [`iso_c`], [`iso_cts`], [`cart`], [`knots`]) and adapters
//! ([`core_space`], [`peft`]). And the way back: the adapter nearest to an update ([`extract()`]), and where the energy of
//! updates lies ([`spectrum`], [`alignment`]).
//!
//! An update is D = W − W₀, the change a fine-tune makes to one matrix of the base model. The functions take the updates of
//! all tasks and return the merged one, which is added to the base as it is or times a factor α.
//!
//! Everything is computed in `f64`, whatever the type of the updates. Singular vectors come from the Gram matrix of the
//! smaller side where that is as good (it is, for updates that are differences of `f32` weights), which needs no singular
//! value decomposition. Directions whose singular value is no more than the rounding of `f32` are left out everywhere: they
//! are no property of the fine-tunes, and methods that give all directions the same length would blow them up.
//!
//! ```
//! use merganser_linalg::Matrix;
//! use merganser_spectral::{iso_c, tsv_m};
//!
//! # fn main() -> merganser_spectral::Result<()> {
//! let updates = [1.0, 2.0].map(|t| Matrix::from_fn(4, 6, |i, j| (t * (i * 6 + j) as f64).sin()));
//! let updates: Vec<&Matrix> = updates.iter().collect();
//! assert_eq!(tsv_m(&updates, None)?.update.shape(), (4, 6));
//! assert_eq!(iso_c(&updates)?.update.shape(), (4, 6));
//! # Ok(())
//! # }
//! ```

mod cart;
mod core_space;
mod elementwise;
mod error;
mod extract;
mod isotropic;
mod knots;
mod lora;
mod low_rank;
mod merged;
pub mod peft;
mod rounding;
mod span;
mod subspace;
mod tsv;
mod updates;

pub use cart::cart;
pub use core_space::{CoreSpace, core_space};
pub use elementwise::random_keep;
pub use error::{Error, Result};
pub use extract::{Extracted, Scale, Truncation, extract, relative_error};
pub use isotropic::{iso_c, iso_cts};
pub use knots::{Aligned, knots};
pub use lora::Lora;
pub use low_rank::{LowRank, adapter_of};
pub use merganser_linalg::Sketch;
pub use merged::Merged;
pub use rounding::{Precision, Rounding};
pub use span::{InSpan, Inner, Keep};
pub use subspace::{alignment, leading_space, spectrum, stable_rank};
pub use tsv::tsv_m;
pub use updates::Updates;

use updates::sum;

/// Updates are differences of weights in half or single precision.
const NOISE: f64 = f32::EPSILON as f64;

#[cfg(test)]
mod testing {
    use merganser_linalg::{Matrix, gemm};

    /// Numbers in −1 to 1 without structure.
    pub(crate) fn update(seed: u32, m: usize, n: usize) -> Matrix {
        let mut state = seed.wrapping_mul(0x9e37_79b9);
        Matrix::from_fn(m, n, |_, _| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            2.0 * f64::from(state) / f64::from(u32::MAX) - 1.0
        })
    }

    pub(crate) fn low_rank(seed: u32, m: usize, n: usize, rank: usize) -> Matrix {
        gemm::mul(&update(seed, m, rank), &update(seed + 100, rank, n))
    }

    pub(crate) fn distance(a: &Matrix, b: &Matrix) -> f64 {
        let mut difference = a.clone();
        difference.add_scaled(-1.0, b);
        difference.norm()
    }
}
