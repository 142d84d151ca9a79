//! Samples as a user of the crate loads them: small models and files, written by the tests.

#![allow(clippy::unwrap_used)]

mod images;
mod ready_tensors;
mod support;
mod tables;
mod text;
