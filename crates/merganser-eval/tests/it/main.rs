//! Small networks of every kind, with the results of PyTorch, measured as a user would.

#![allow(clippy::unwrap_used)]

mod classification;
mod language;
mod selection;
mod support;
mod tables;
