//! Merge recipes: what the user wrote, with source spans.
//!
//! A recipe is mergekit's YAML, read as it is into a typed [`Recipe`] in which everything knows the
//! bytes it was written with. No file is opened and no merge method is known here: names and ranges
//! of a method's parameters are checked by whoever knows the method, through the spans this crate
//! exposes, and shown with the same [`Diagnostic`].
//!
//! ```
//! use merganser_recipe::{ParseOptions, Prior, Recipe};
//!
//! let text = "merge_method: linear
//! models:
//!   - model: ./a
//!     parameters: {weight: [0.0, 1.0]}
//!   - model: ./b+./adapter
//!     parameters: {weight: 1.0}
//! ";
//! let (recipe, _warnings) = Recipe::parse("recipe.yml", text, ParseOptions::default())?;
//! let document = &recipe.documents[0];
//! assert_eq!(document.merge_method.value, "linear");
//! let paths: Vec<String> = document.model_refs().map(ToString::to_string).collect();
//! assert_eq!(paths, ["./a", "./b+./adapter"]);
//!
//! let mistake = Recipe::parse("recipe.yml", "merge_mehtod: ties", ParseOptions::default());
//! assert!(mistake.unwrap_err().to_string().contains("did you mean `merge_method`?"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod diagnostic;
mod dtype;
mod injected;
mod model_ref;
mod nearest;
mod order;
mod read;
mod recipe;
mod scalar;
mod schema;
mod setting;
mod span;
mod value;
mod yaml;

pub use diagnostic::{Diagnostic, Diagnostics, Severity, quoted};
pub use dtype::FloatType;
pub use injected::{InjectedPair, InjectedPairError};
pub use model_ref::{AdapterRef, ModelRef, ModelRefError};
pub use nearest::nearest;
pub use recipe::{
    Body, Calibration, Defence, Document, Module, OutputKind, ParseOptions, Prior, Recipe, Slice,
    Source, TokenizerSource, TokenizerSpec,
};
pub use setting::{Case, Parameters, Setting};
pub use span::{SourceText, Span, Spanned};
pub use value::Value;
