//! Care for models in service: what moved between two versions of an embedding model, and how to go on with an index of the
//! old one ([`drift`]); whether search still finds what it should ([`retrieval`]); statistics of classes that outlive their
//! features ([`stats`]) and what they are worth ([`report`]), and the classifiers that follow from them ([`heads`]).
//!
//! ```
//! use merganser_linalg::Matrix;
//! use merganser_upkeep::drift::{Anchors, Direction, FitOptions};
//!
//! # fn main() -> merganser_upkeep::Result<()> {
//! let old = Matrix::from_fn(30, 4, |i, j| ((i * 4 + j) as f64 * 0.7).sin());
//! let new = Matrix::from_fn(30, 4, |i, j| old.get(i, j) + 0.25);
//! let anchors = Anchors::new(old.clone(), new.clone(), Some(false))?;
//! let (drift, found) = anchors.fit("v1", "v2", &FitOptions::default())?;
//! assert!(found.share.is_some_and(|share| share > 0.999));
//! let mut back = drift.transport(Direction::ToOld, None)?.matrix(&new)?;
//! back.add_scaled(-1.0, &old);
//! assert!(back.norm() < 1e-12);
//! # Ok(())
//! # }
//! ```

pub mod drift;
mod error;
pub mod heads;
pub mod report;
pub mod retrieval;
mod rows;
pub mod stats;
mod tensors;

pub use error::{Error, Result};
pub use merganser_linalg::Matrix;
