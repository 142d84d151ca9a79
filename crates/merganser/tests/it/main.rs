//! The program from outside: every test here starts the real binary, as a user would.
//!
//! One test binary for all of them, because linking takes longer than running.

mod adapters;
mod audit;
mod certify;
mod defence;
mod determinism;
mod drift;
mod evaluate;
mod faults;
mod golden;
mod heads;
mod help;
mod magmax;
mod merged_adapters;
mod messages;
mod models;
mod program;
mod project;
mod protos;
mod spectral;
mod startup;
mod stream;
mod tune;
