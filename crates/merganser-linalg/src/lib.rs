//! Dense linear algebra for merganser: the only crate that names faer and Clarabel.
//!
//! * [`Matrix`]: a plain row-major matrix of `f32` or `f64` ([`Real`]).
//! * [`Symmetric`]: the packed lower triangle of a symmetric matrix in `f64`, which takes the sum of xxᵀ over rows of
//!   `f32` data by half products, at twice the rate of a general product.
//! * [`gemm`]: products. [`Spd`]: Cholesky in place, solves, iterative refinement with the residual in `f64`.
//!   [`Eigen`], [`Svd`], [`Polar`], [`orthonormal_rows`]: decompositions with their numerical rank.
//! * [`qp`]: convex quadratic programmes, free or over simple sets.
//!
//! The result of every function is the same for any number of threads: work is split by shape, every piece is computed
//! by one thread, and sums over pieces are taken in order. Work runs on the current rayon pool.
//!
//! Shapes are the caller's business: a product of matrices that do not fit panics, as an index out of bounds does.
//! What data can get wrong (not finite, not positive definite, no convergence) is an error.
//!
//! ```
//! use merganser_linalg::{Matrix, Spd, Symmetric, gemm};
//!
//! # fn main() -> Result<(), merganser_linalg::Error> {
//! let x = Matrix::from_fn(8, 3, |i, j| ((i * 7 + j * 5) % 11) as f32);
//! let mut gram = Symmetric::zeros(3);
//! gram.add_rows(x.as_slice())?;
//! let g: Matrix = gram.to_square();
//! let c = Matrix::from_fn(2, 3, |i, j| (i + j) as f64);
//! let solution = Spd::factor(g.clone(), 0.0)?.solve_rows(&c);
//! let mut residual = gemm::mul(&solution, &g);
//! residual.add_scaled(-1.0, &c);
//! assert!(residual.norm() < 1e-10);
//! # Ok(())
//! # }
//! ```

mod eigen;
mod error;
pub mod gemm;
mod matrix;
mod orth;
mod polar;
pub mod qp;
mod range;
mod real;
mod reduction;
mod registers;
mod spd;
mod svd;
mod symmetric;
mod tridiagonal;

pub use eigen::Eigen;
pub use error::{Error, Result};
pub use matrix::{Matrix, check_finite, dot};
pub use orth::orthonormal_rows;
pub use polar::Polar;
pub use range::{Sketch, Sketched};
pub use real::Real;
pub use spd::{Escalation, Refinement, Spd};
pub use svd::Svd;
pub use symmetric::{Symmetric, gram};
