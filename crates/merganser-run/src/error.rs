//! What can go wrong between a plan and its files.

use std::path::PathBuf;

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
    /// A part's number is out of range.
    #[error("there is no part {part} of {parts}: parts count from 1 to {parts}")]
    NoSuchPart {
        /// The number given.
        part: usize,
        /// How many there are.
        parts: usize,
    },
    /// A merge in parts is sealed too early.
    #[error("{missing} of {parts} parts are not finished: {list}; run `merganser merge … --part i/{parts}` for them, then seal again")]
    Unfinished {
        /// How many are missing.
        missing: usize,
        /// How many there are.
        parts: usize,
        /// Their numbers.
        list: String,
    },
    /// There is nothing to seal.
    #[error("{0} holds no parts of a merge: run `merganser merge … --part i/N` first")]
    NothingToSeal(PathBuf),
    /// The parts belong to another recipe.
    #[error("the parts in {out} were made for another recipe, other inputs or other options; remove {staging} to start anew")]
    OtherPlan {
        /// The output folder.
        out: PathBuf,
        /// Its staging folder.
        staging: PathBuf,
    },
}
