//! Carries a plan out: bounded memory, resumable, and the output appears whole or not at all.
//!
//! Everything is first written to a staging folder inside the output folder, every tensor straight to its final
//! offset, in parallel; a journal records finished tensors with a hash of their bytes, so that a run that was
//! interrupted goes on where it stopped. Only when all is there are the files moved into place.

// Errors say everything a user needs, and are made once.
#![allow(clippy::result_large_err)]

mod adapters;
mod calibration;
pub mod compare;
pub mod describe;
pub mod differences;
mod error;
mod execute;
pub mod extract;
mod lanes;
mod observe;
mod open;
mod place;
mod project;
mod provenance;
mod rows;
mod seal;
mod sources;
pub mod spectra;
mod survey;
mod updates;

pub use adapters::{AdapterMerge, AdapterSummary, MergedMatrix};
pub use error::RunError;
pub use execute::{Merge, merge};
pub use lanes::USUAL_MEMORY;
pub use observe::{Event, Observer, Quiet};
pub use open::Opener;
pub use place::refuse_own_inputs;
pub use project::{
    CalibrationSummary, OWN, calibrate, diagnose, matrix_bytes, project_factors, usual_memory,
};
pub use provenance::{Provenance, card};
pub use seal::seal;
