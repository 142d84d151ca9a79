//! What can go wrong in an evaluation: which model, task or head, and why.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = EvalError> = std::result::Result<T, E>;

/// Why something could not be evaluated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The samples could not be loaded.
    #[error(transparent)]
    Data(Box<merganser_data::Error>),
    /// The forward pass could not be built or run.
    #[error(transparent)]
    Model(Box<merganser_model::ModelError>),
    /// A checkpoint could not be read.
    #[error(transparent)]
    Store(Box<merganser_store::Error>),
    /// The tensor library refused an operation.
    #[error("{0}")]
    Compute(#[from] candle_core::Error),
    /// A model cannot be evaluated.
    #[error("model {model}: {problem}")]
    Unfit {
        /// The model.
        model: String,
        /// What is missing and what to do.
        problem: String,
    },
    /// A head cannot be used.
    #[error("head `{}`: {problem}", path.display())]
    Head {
        /// The file or folder.
        path: PathBuf,
        /// What was found, what was expected.
        problem: String,
    },
    /// Labels that are none of the head's classes.
    #[error("labels: {0}")]
    Labels(String),
    /// A task of a tasks file, with the reason.
    #[error("task `{task}` of model {model}: {cause}")]
    Task {
        /// The task.
        task: String,
        /// The model it was run on.
        model: String,
        /// The reason.
        cause: Box<EvalError>,
    },
    /// A file of tasks cannot be read.
    #[error("`{}`: {problem}", path.display())]
    Tasks {
        /// The file.
        path: PathBuf,
        /// The problem, with its line.
        problem: String,
    },
    /// Wishes that contradict each other or the data.
    #[error("{0}")]
    Setting(String),
}

impl From<merganser_model::ModelError> for EvalError {
    fn from(error: merganser_model::ModelError) -> Self {
        Self::Model(Box::new(error))
    }
}

impl From<merganser_data::Error> for EvalError {
    fn from(error: merganser_data::Error) -> Self {
        Self::Data(Box::new(error))
    }
}

impl From<merganser_store::Error> for EvalError {
    fn from(error: merganser_store::Error) -> Self {
        Self::Store(Box::new(error))
    }
}
