//! What can go wrong between a plan and its files.

use std::path::{Path, PathBuf};

use merganser_store::Dtype;

/// An error of a running merge. The output folder is as it was before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// Files could not be read or written.
    #[error(transparent)]
    Store(#[from] merganser_store::Error),
    /// A tensor could not be merged.
    #[error(transparent)]
    Method(#[from] merganser_methods::MethodError),
    /// A tensor could not be read.
    #[error(transparent)]
    Read(Box<dyn std::error::Error + Send + Sync>),
    /// A small file could not be read or written.
    #[error("cannot {doing} '{}': {cause}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        cause: std::io::Error,
    },
    /// A plan names a tensor that the model does not have.
    #[error("tensor '{tensor}' is no longer in {model}: the model changed while it was merged")]
    Vanished {
        /// The tensor.
        tensor: String,
        /// The model's label.
        model: String,
    },
    /// A tensor that should hold real numbers does not.
    #[error("tensor '{tensor}' has type {dtype}, which cannot be merged")]
    NotFloat {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
    },
    /// Integer tensors differ between models.
    #[error(
        "tensor '{tensor}' of type {dtype} differs between {first} and {second}: whole numbers and switches are copied, \
         not averaged, so all models must agree on them"
    )]
    Differs {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// One model.
        first: String,
        /// Another.
        second: String,
    },
    /// The network cannot be run.
    #[error("{method} runs the networks it merges, and this one cannot be run: {problem}")]
    Network {
        /// The method.
        method: &'static str,
        /// Why not.
        problem: String,
    },
    /// Samples cannot be used.
    #[error(transparent)]
    Samples(merganser_data::Error),
    /// A file of moments cannot be used.
    #[error(transparent)]
    Moments(merganser_projection::Error),
    /// A layer could not be merged by what its samples say.
    #[error(transparent)]
    Projection(merganser_projection::network::NetworkError),
    /// A calibrated merge cannot be carried out.
    #[error("{0}")]
    Calibration(String),
    /// An adapter cannot be extracted from these models.
    #[error("{0}")]
    Extract(String),
    /// Models cannot be compared.
    #[error("{0}")]
    Compared(String),
    /// The budget is too small.
    #[error("--memory {budget} is too small: one thread needs {needed} for tensor '{tensor}'")]
    Memory {
        /// The budget, readable.
        budget: String,
        /// What is needed, readable.
        needed: String,
        /// The tensor that needs most.
        tensor: String,
    },
    /// Threads could not be started.
    #[error("cannot start threads: {0}")]
    Threads(rayon::ThreadPoolBuildError),
    /// A part's number is out of range.
    #[error("there is no part {part} of {parts}: parts count from 1 to {parts}")]
    NoSuchPart {
        /// The number given.
        part: usize,
        /// How many there are.
        parts: usize,
    },
    /// A merge in parts is sealed too early.
    #[error(
        "{missing} of {parts} parts are not finished: {list}; run `merganser merge … --part i/{parts}` for them, then seal again"
    )]
    Unfinished {
        /// How many are missing.
        missing: usize,
        /// How many there are.
        parts: usize,
        /// Their numbers.
        list: String,
    },
    /// A staged file was changed by something else.
    #[error("'{}' has {found} bytes instead of {expected}: it was changed after its part was finished; run that part again", path.display())]
    WrongSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// What it should be.
        expected: u64,
    },
    /// There is nothing to seal.
    #[error("'{}' holds no parts of a merge: run `merganser merge … --part i/N` first", .0.display())]
    NothingToSeal(PathBuf),
    /// The result would replace what it is made from.
    #[error(
        "'{}' is where {model} is read from: the result would replace what it is made from; choose another output folder",
        out.display()
    )]
    OwnInput {
        /// The output folder.
        out: PathBuf,
        /// The model's label.
        model: String,
    },
    /// The parts belong to another recipe.
    #[error("the parts in '{}' were made for another recipe, other inputs or other options; remove '{}' to start anew", out.display(), staging.display())]
    OtherPlan {
        /// The output folder.
        out: PathBuf,
        /// Its staging folder.
        staging: PathBuf,
    },
}

impl RunError {
    /// Whether the user's samples or models are at fault rather than the machine.
    pub fn is_bad_input(&self) -> bool {
        matches!(
            self,
            Self::Samples(_)
                | Self::Moments(_)
                | Self::Network { .. }
                | Self::Calibration(_)
                | Self::Extract(_)
                | Self::Compared(_)
                | Self::OwnInput { .. }
        )
    }

    /// Says what was tried with which file.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |cause| Self::Io { doing, path, cause }
    }
}
