//! Samples for calibration and evaluation: texts, images and ready tensors, prepared for one model.
//!
//! [`Processor::open`] reads the tokenizer, the image settings and the limits in the folder of a model;
//! [`Processor::load`] reads a [`Source`] (JSON lines, JSON, CSV, TSV, text, Parquet, folders of images, safetensors,
//! NumPy) into [`Samples`]; [`Samples::batches`] gives what the model is run on.
//!
//! ```no_run
//! use merganser_data::{LoadOptions, Processor, Source};
//!
//! # fn main() -> merganser_data::Result<()> {
//! let model = Processor::open("models/bert".as_ref())?;
//! let options = LoadOptions { samples: Some(256), ..LoadOptions::default() };
//! let samples = model.load(&Source::new("sst2.jsonl"), &options)?;
//! for chunk in samples.batches(32) {
//!     let chunk = chunk?;
//!     assert_eq!(chunk.batch.samples(), chunk.indices.len());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Padding is marked in every batch, and which samples share a batch changes nothing else: a sample's ids and pixels are
//! the same for every batch size.

mod arrays;
mod changed;
mod columns;
mod error;
mod labels;
mod load;
mod model_files;
mod npy;
mod picture;
mod ready;
mod resample;
mod samples;
mod select;
mod source;
mod table;
mod tensors;
mod text;
mod vectors;

pub use arrays::Arrays;
pub use columns::{Columns, read_columns};
pub use error::{Error, Place, Result};
pub use labels::Labels;
pub use load::{LoadOptions, Processor};
pub use samples::{Chunk, Images, Inputs, Samples};
pub use select::choose;
pub use source::{Format, Source};
pub use text::{DEFAULT_MAX_LENGTH, Sequence};
pub use vectors::{
    Rows, VectorFile, file_and_name, read_labels, write_integers, write_numbers, write_vectors,
};
