//! What a merge is worth, said before and after it is made: one report as plain data, and three
//! ways to read it.
//!
//! * [`Report::to_json`]: the data itself, for programs. [`Report::from_json`] reads it back.
//! * [`Report::to_table`]: aligned text for a terminal of up to 100 columns, without colour.
//! * [`Report::to_html`]: one file with everything in it: no request leaves the page, no script is
//!   needed, light and dark and on paper.
//!
//! The central figure is the **captured energy** of a merged update `Δ`, `1 − J(Δ)/E`. `E` is the
//! energy of the residual outputs, that is of how the fine-tuned models answer differently from the
//! base on the calibration inputs; `J(Δ)` is what is left of it once the update is applied. 1 means
//! that the merged layer answers as every fine-tuned model does on its own task, 0 that it answers
//! as the base, less than 0 that it is farther away than the base was. `1 − captured(full)` is the
//! irreducible conflict between the tasks: no update of that layer does better.
//! (Evans, Etheridge, Roberts, Tanner, "Model Merging by Output-Space Projection",
//! arXiv 2605.29101, 2026.)
//!
//! Whoever fills the report gives what was measured; averages over blocks, tasks and the network,
//! energy shares, normalised accuracy and the rank correlation are worked out here
//! ([`Report::completed`]), so that all three readings show the same numbers. A value that was not
//! measured is `None`; NaN and infinity count as not measured, too.
//!
//! ```
//! use merganser_report::{Layer, LayerKind, Method, MethodKind, Report, Task};
//!
//! let report = Report {
//!     title: "Two tasks".into(),
//!     tasks: vec![Task::new("digits"), Task::new("letters")],
//!     methods: vec![
//!         Method::new("average", MethodKind::Merge),
//!         Method::new("task", MethodKind::Basis),
//!         Method::new("full", MethodKind::Basis),
//!     ],
//!     layers: vec![Layer {
//!         name: "layers.0.mlp.up_proj.weight".into(),
//!         block: "layers.0".into(),
//!         kind: LayerKind::Linear,
//!         shape: vec![64, 16],
//!         energy: Some(3.5),
//!         captured: [("average", 0.61), ("task", 0.74), ("full", 0.93)]
//!             .map(|(method, captured)| (method.to_owned(), Some(captured)))
//!             .into(),
//!         ..Layer::default()
//!     }],
//!     ..Report::default()
//! };
//! assert_eq!(report.completed().methods[2].captured, Some(0.93));
//! assert!(report.to_table(80).contains("93.0%"));
//! ```

mod error;
mod groups;
mod html;
mod layer;
mod names;
mod pairwise;
mod palette;
mod plot;
mod report;
mod score;
pub mod statistics;
mod summary;
mod svg;
mod table;
mod text;

pub use error::{Error, Result};
pub use layer::{Layer, LayerKind};
pub use pairwise::{Pairwise, Relation};
pub use report::{
    Fallback, Method, MethodKind, Provenance, Report, SCHEMA_VERSION, Suggestion, Task,
};
pub use score::{Accuracy, Evaluation, Score};
