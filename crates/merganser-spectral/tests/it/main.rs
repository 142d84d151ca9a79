//! Tests of the crate as its users see it, in one program.

#![allow(clippy::unwrap_used)]

mod adapters;
mod full;
mod properties;
mod support;
