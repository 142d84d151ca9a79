//! Golden cases made with the authors' code, and what the formulas promise.

#![allow(clippy::unwrap_used)]

mod adagauss;
mod drift;
mod heads;
mod properties;
mod statistics;
