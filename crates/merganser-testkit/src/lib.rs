//! Test support for merganser: golden cases, tiny checkpoints, and a slow, plain `f64` version of every merge method.
//!
//! Nothing here knows the library under test: expectations would be worth little if they came from the same code.
//! Everything panics with the file or the tensor at fault instead of returning errors, because the only caller is a
//! test, and a test has nothing better to do with an error.

pub mod bundled;
pub mod checkpoint;
pub mod compare;
pub mod float;
pub mod golden;
pub mod random;
pub mod reference;

pub use compare::assert_close;
pub use golden::{Case, Tensor};
pub use random::Random;
pub use safetensors::Dtype;
