//! Reading and writing of checkpoints for merganser: safetensors, PyTorch pickles, PEFT adapters,
//! the Hugging Face cache.
//!
//! This crate moves bytes and knows where they are; it does no arithmetic on them.
//!
//! * Reading: [`Checkpoint`](checkpoint::Checkpoint) and [`Adapter`](adapter::Adapter) read headers
//!   when opened and tensor data only when asked, by positioned reads. A file that is cut short
//!   while it is being read gives an error, never a signal. Nothing in a file is ever executed.
//! * Writing: tensors go to their final offsets in preallocated [`ShardFile`](shard::ShardFile)s
//!   inside a [`Staging`](publish::Staging) folder; a [`Journal`](journal::Journal) remembers which
//!   are finished; publishing moves the whole model into place so that no crash leaves half of one.
//!
//! ```no_run
//! use merganser_store::checkpoint::Checkpoint;
//! use std::path::Path;
//!
//! # fn main() -> merganser_store::Result<()> {
//! let model = Checkpoint::open(Path::new("models/llama"))?;
//! for tensor in model.tensors().values() {
//!     let bytes = model.read_all(tensor)?;
//!     assert_eq!(bytes.len() as u64, tensor.nbytes);
//! }
//! # Ok(())
//! # }
//! ```

pub mod adapter;
pub mod checkpoint;
pub mod dtype;
mod error;
pub mod fingerprint;
pub mod header;
pub mod hub;
pub mod journal;
pub mod names;
pub mod new_file;
pub mod pickle;
pub mod publish;
pub mod shard;
pub mod source;
mod strided;

pub use dtype::Dtype;
pub use error::{Error, Result};
