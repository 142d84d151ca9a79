//! The error of every operation that touches a file: which file, what was found, what to do.
//!
//! Parsers that see only bytes have errors of their own (`HeaderError`, `PickleError`, …), which
//! are wrapped here with the path. Each message is complete by itself; there is no chain to print.

use std::io;
use std::path::{Path, PathBuf};

use crate::adapter::AdapterError;
use crate::checkpoint::IndexError;
use crate::header::HeaderError;
use crate::hub::HubError;
use crate::pickle::PickleError;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong with a file or folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation.
    #[error("cannot {doing} `{}`: {cause}", path.display())]
    Io {
        /// The operation, as a verb: "open", "read", …
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// A regular file was needed.
    #[error("`{}` is not a regular file", path.display())]
    NotAFile {
        /// What was given instead.
        path: PathBuf,
    },
    /// A text file is implausibly large.
    #[error("`{}` has {found} bytes; at most {limit} are expected of such a file", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A text file is not UTF-8.
    #[error("`{}` is not valid UTF-8 at byte {offset}", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// First bad byte.
        offset: usize,
    },
    /// A JSON file does not parse, or is not an object.
    #[error("`{}` is not a JSON object: {problem}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        problem: String,
    },
    /// A safetensors header is wrong.
    #[error("`{}` is not a valid safetensors file: {problem}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: HeaderError,
    },
    /// A torch checkpoint is wrong or was refused.
    #[error("`{}` was not loaded: {problem}", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: PickleError,
    },
    /// A shard index is wrong.
    #[error("`{}` is not a usable shard index: {problem}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        problem: IndexError,
    },
    /// An adapter is wrong or of a kind that cannot be merged.
    #[error("adapter `{}`: {problem}", path.display())]
    Adapter {
        /// The adapter's folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: AdapterError,
    },
    /// A folder holds no model, or more than one.
    #[error("`{}` is not a model: {problem}", path.display())]
    NoModel {
        /// The folder or file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
    },
    /// Tensor data could not be read.
    #[error("cannot read tensor `{tensor}` at byte {offset} of `{}`: {cause}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Offset in the file at which the read began.
        offset: u64,
        /// The system's answer; "file ends early" if the file shrank since it was opened.
        cause: io::Error,
    },
    /// A read past the end of a tensor was asked for.
    #[error("bytes {start}..{end} of tensor `{tensor}` were asked for, which has {nbytes}")]
    Range {
        /// The tensor.
        tensor: String,
        /// First byte asked for.
        start: u64,
        /// One past the last byte asked for.
        end: u64,
        /// Bytes it has.
        nbytes: u64,
    },
    /// The file system is full.
    #[error(
        "no space left for `{}`: {needed} bytes are needed, {free} are free on this file system; \
         free some space or write elsewhere, then run again to resume",
        path.display()
    )]
    NoSpace {
        /// The file being written.
        path: PathBuf,
        /// Bytes the write needs.
        needed: u64,
        /// Bytes free for this user.
        free: u64,
    },
    /// The output folder holds something already.
    #[error(
        "`{}` is not empty: it holds {found}; choose another folder, or replace the model in it \
         with --overwrite (files that do not belong to a model are left alone)",
        path.display()
    )]
    OutputExists {
        /// The output folder.
        path: PathBuf,
        /// Some of what it holds.
        found: String,
    },
    /// A file is there already under the name of one to be written.
    #[error(
        "`{}` exists{}", path.display(),
        if *regular { "; give another name, or replace it with --overwrite" } else { " and is no file; give another name" }
    )]
    FileExists {
        /// The file.
        path: PathBuf,
        /// Whether it is a regular file, which could be replaced.
        regular: bool,
    },
    /// Another process works on the same output.
    #[error(
        "another merganser process is writing to `{}`; wait for it to end, or choose another output folder",
        path.display()
    )]
    Locked {
        /// The output folder.
        path: PathBuf,
    },
    /// The output folder or its staging folder is not in a state to go on from.
    #[error("cannot use output folder `{}`: {problem}", path.display())]
    Staging {
        /// The output folder.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A model reference could not be resolved to local files.
    #[error(transparent)]
    Hub(#[from] HubError),
}

impl Error {
    pub(crate) fn io(doing: &'static str, path: &Path, cause: io::Error) -> Self {
        Self::Io {
            doing,
            path: path.to_owned(),
            cause,
        }
    }
}
