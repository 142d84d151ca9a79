//! Tests of the crate as its users see it, in one program.

#![allow(clippy::unwrap_used)]

mod minimal;
mod sequence;
mod support;
mod vectors;
