//! How good a model is: accuracy, perplexity, similarity of embeddings and retrieval, each with its interval, of several
//! models in one table.
//!
//! [`evaluate`] runs [`Task`]s on models and gives an [`Evaluation`]; below it are the pieces: [`Loaded`] is a model with
//! its adapter, [`features`] and [`class_logits`] run it, [`likelihood`] scores tokens, [`embed`] makes embeddings.
//!
//! ```no_run
//! use merganser_data::Source;
//! use merganser_eval::{Loaded, Options, Task, evaluate};
//!
//! # fn main() -> merganser_eval::Result<()> {
//! let task = Task {
//!     head: Some("heads/sst2.safetensors".into()),
//!     reference: Some("models/sst2".into()),
//!     ..Task::new(Source::new("sst2.jsonl"))
//! };
//! let options = Options::default();
//! let open = |name: &str| Loaded::open(name, name.as_ref(), None, options.memory);
//! let found = evaluate(&["merged".to_owned()], &[task], &options, &open, &mut |_| {})?;
//! println!("{:?}", found.averages[0].normalised);
//! # Ok(())
//! # }
//! ```
//!
//! A score depends on the model, the samples and nothing else: not on the batch size, not on the number of threads.

mod classify;
mod embed;
mod error;
mod evaluation;
mod forward;
mod gaussian;
mod head;
mod interval;
mod lame;
mod loaded;
mod measure;
mod perplexity;
mod results;
pub mod surrogates;
mod task;

pub use classify::{ClassCount, Predictions};
pub use embed::{Matches, cosines, embed};
pub use error::{EvalError, Result};
pub use evaluation::{Options, Step, evaluate};
pub use forward::{Feature, Vectors, features, vectors};
pub use gaussian::GaussianHead;
pub use head::{HEAD_NAMES, Head, LinearHead, class_logits};
pub use interval::{Interval, mean, ratio, spearman, wilson};
pub use lame::{Affinity, lame};
pub use loaded::Loaded;
pub use measure::{Answers, answers};
pub use perplexity::{Likelihood, likelihood};
pub use results::{Average, Difference, Evaluation, Metric, Reference, Score, TaskScores};
pub use task::{Kind, Task, read_tasks};
