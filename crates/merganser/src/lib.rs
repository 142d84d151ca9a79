//! Merges fine-tuned neural networks without retraining: mergekit recipes, many times faster, in bounded memory.
//!
//! This crate is the front door: it re-exports the rooms of the workspace and holds the `merganser` program, which has
//! no logic of its own. The shortest way from a recipe to a merged model in Rust:
//!
//! ```no_run
//! use merganser::{merge_recipe, MergeOptions, Quiet};
//!
//! let recipe = std::fs::read_to_string("recipe.yml")?;
//! merge_recipe("recipe.yml".as_ref(), &recipe, "out".as_ref(), &MergeOptions::default(), &Quiet)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// Errors say everything a user needs, and are made once.
#![allow(clippy::result_large_err)]

pub use merganser_data as data;
pub use merganser_eval as eval;
pub use merganser_kernels as kernels;
pub use merganser_methods as methods;
pub use merganser_plan as plan;
pub use merganser_recipe as recipe;
pub use merganser_report as report;
pub use merganser_run as run;
pub use merganser_store as store;
pub use merganser_trust as trust;
pub use merganser_upkeep as upkeep;

mod adapters;
pub mod audit;
pub mod certify;
mod defence;
mod demo;
mod merge_adapters;
mod rebuild;
mod stream;
mod tune;
mod workflow;

pub use adapters::{LoraOptions, apply, extract_lora, extract_task_vector};
pub use demo::{Demo, demo};
pub use merganser_run::{Event, Observer, Quiet, seal};
pub use merge_adapters::{PlannedAdapter, asks_for_adapter, merge_adapters, plan_adapters};
pub use rebuild::rebuild;
pub use tune::{Candidate, Choice, Knob, Strategy, TuneOptions, Tuned, Watch, tune};
pub use workflow::{
    Failure, MergeOptions, Planned, calibrate, diagnose_recipe, merge_recipe, plan_recipe,
};
