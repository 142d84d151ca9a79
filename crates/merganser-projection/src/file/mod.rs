//! Files of moments: safetensors, so that any program can write and read them. See `docs/moments.md`.
//!
//! A name stands for an input (or an embedding); several layers may read the same one, which `aliases` says. Under a name
//! are `NAME.count` and one of
//!
//! * `NAME.gram` and `NAME.sum`: Σ x xᵀ and Σ x of an input; the Gram as a square or as its packed lower triangle,
//! * `NAME.square` and `NAME.sum`: Σ x̂² and Σ x̂ of a normalised input,
//! * `NAME.rows` alone: how often each row of an embedding was looked up,
//!
//! and, for the samples held out to choose a ridge, the same under `NAME.held_out`. Sums are not divided by anything.
//! Files are read and written tensor by tensor: no more than one entry is in memory.

mod merge;
mod read;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod write;

use merganser_store::Dtype;
use merganser_store::header::TensorSpec;

use crate::{ChannelMoments, InputMoments, Result, RowCounts};

pub use merge::merge_files;
pub use read::MomentsFile;
pub use write::{MomentsWriter, write_moments};

/// Value of the metadata key `format`.
const FORMAT: &str = "merganser-moments";
/// Value of the metadata key `version`.
const VERSION: &str = "1";
/// Between a name and its held-out part.
const HELD_OUT: &str = "held_out";
/// Bytes converted at a time.
const CHUNK: usize = 4 << 20;

/// Where moments come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MomentsInfo {
    /// Fingerprint of the model whose inputs they are.
    pub model: String,
    /// The samples, in words or as a path.
    pub dataset: String,
    /// Tokens (patches, rows) that were run through the model.
    pub tokens: u64,
    /// The program that wrote them, with its version; filled in by the writer.
    pub writer: String,
}

/// What is known under a name.
#[derive(Debug, Clone, PartialEq)]
pub enum Statistics {
    /// Of an input of linear layers.
    Input(InputMoments),
    /// Of an input of a scale and shift.
    Channels(ChannelMoments),
    /// Of an embedding.
    Rows(RowCounts),
}

/// The shape of an entry, which a writer needs to know before it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntrySpec {
    /// Name.
    pub name: String,
    /// What kind of statistics.
    pub kind: StatisticsKind,
    /// Numbers of an input, or rows of an embedding.
    pub size: usize,
    /// Whether there is a held-out part.
    pub held_out: bool,
}

/// Kinds of statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatisticsKind {
    /// [`Statistics::Input`].
    Input,
    /// [`Statistics::Channels`].
    Channels,
    /// [`Statistics::Rows`].
    Rows,
}

impl Statistics {
    /// What kind they are.
    pub fn kind(&self) -> StatisticsKind {
        match self {
            Self::Input(_) => StatisticsKind::Input,
            Self::Channels(_) => StatisticsKind::Channels,
            Self::Rows(_) => StatisticsKind::Rows,
        }
    }

    /// Numbers of an input, or rows of an embedding.
    pub fn size(&self) -> usize {
        match self {
            Self::Input(moments) => moments.dim(),
            Self::Channels(moments) => moments.channels(),
            Self::Rows(counts) => counts.counts().len(),
        }
    }

    /// Adds the statistics of other samples.
    ///
    /// # Errors
    /// If they are of another kind or size.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        match (self, other) {
            (Self::Input(a), Self::Input(b)) => a.merge(b),
            (Self::Channels(a), Self::Channels(b)) => a.merge(b),
            (Self::Rows(a), Self::Rows(b)) => a.merge(b),
            (a, b) => Err(crate::error::shape(
                "the kind of statistics",
                b.kind(),
                a.kind(),
            )),
        }
    }

    /// The entry these statistics would be, under a name.
    pub fn spec(&self, name: &str, held_out: bool) -> EntrySpec {
        EntrySpec {
            name: name.to_owned(),
            kind: self.kind(),
            size: self.size(),
            held_out,
        }
    }
}

impl EntrySpec {
    /// The tensors of the entry, in the order they are written.
    fn tensors(&self, prefix: &str) -> Vec<TensorSpec> {
        let tensor = |part: &str, dtype, shape| TensorSpec {
            name: format!("{prefix}.{part}"),
            dtype,
            shape,
        };
        let n = self.size;
        match self.kind {
            StatisticsKind::Input => vec![
                tensor("gram", Dtype::F64, vec![n * (n + 1) / 2]),
                tensor("sum", Dtype::F64, vec![n]),
                tensor("count", Dtype::I64, vec![1]),
            ],
            StatisticsKind::Channels => vec![
                tensor("square", Dtype::F64, vec![n]),
                tensor("sum", Dtype::F64, vec![n]),
                tensor("count", Dtype::I64, vec![1]),
            ],
            StatisticsKind::Rows => vec![tensor("rows", Dtype::I64, vec![n])],
        }
    }
}
