//! Golden cases made with the authors' code, and what the formulas promise.

#![allow(clippy::unwrap_used)]

mod adagauss;
mod drift;
mod federation;
mod heads;
mod properties;
mod prototypes;
mod statistics;
