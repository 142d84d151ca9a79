//! Audits and certificates of networks: what a change of their weights can do.
//!
//! * [`minimal`]: the smallest change of one linear layer with a wanted effect, for one sample or many.
//! * [`head`]: exact radii of a linear head; [`threshold`]: how far it can be compressed.
//! * [`certificate`]: which predictions of a multi-layer perceptron a given compressed twin cannot have changed.
//! * [`sensitivity`]: what one layer can do, to first order (no guarantee) and at least (one).
//! * [`norm`]: spectral norms, from above.
//! * [`sequence`]: which update of a sequence of models stands out.
//! * [`vectors`]: backdoor vectors, and what is like them.
//!
//! Statements are about networks as functions of real numbers. Nothing here reads a file.

pub mod certificate;
mod error;
pub mod head;
pub mod minimal;
pub mod norm;
pub mod sensitivity;
pub mod sequence;
#[cfg(test)]
mod testing;
pub mod threshold;
pub mod vectors;

pub use error::{Error, Result};
