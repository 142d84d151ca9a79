//! The error of everything that reads samples: which file, row or column, what was found, what to do.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why samples could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation.
    #[error("cannot {doing} `{}`: {cause}", path.display())]
    Io {
        /// The operation, as a verb.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        cause: std::io::Error,
    },
    /// A file of tensors could not be opened or read.
    #[error(transparent)]
    Store(#[from] merganser_store::Error),
    /// A path that holds no samples, or whose format is not clear.
    #[error("`{}` {problem}", path.display())]
    Source {
        /// The file or folder.
        path: PathBuf,
        /// What was found, what was expected.
        problem: String,
    },
    /// One row of a table, one line of a file or one image is wrong.
    #[error("`{}`, {place}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Which row.
        place: Place,
        /// What is wrong with it.
        problem: String,
    },
    /// A column that is missing, or could not be chosen.
    #[error("`{}`: {problem}; its columns are {}", path.display(), list(columns))]
    Column {
        /// The file.
        path: PathBuf,
        /// What was looked for and what to do.
        problem: String,
        /// The columns there are, with their kinds.
        columns: Vec<String>,
    },
    /// A tensor of samples has the wrong shape, type or values.
    #[error("tensor `{tensor}` of `{}`: {problem}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What was found, what was expected.
        problem: String,
    },
    /// The model's folder lacks something, or holds something that cannot be used.
    #[error("model `{}`: {problem}", path.display())]
    Model {
        /// The folder, or the file in it.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A setting that cannot work.
    #[error("{0}")]
    Setting(String),
}

/// Where in a file a row is, in the unit people count in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A line of text, from 1.
    Line(u64),
    /// A row of a table or tensor, from 0.
    Row(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Row(row) => write!(f, "row {row}"),
        }
    }
}

impl Error {
    pub(crate) fn io(doing: &'static str, path: &Path, cause: std::io::Error) -> Self {
        Self::Io {
            doing,
            path: path.to_owned(),
            cause,
        }
    }

    pub(crate) fn source(path: &Path, problem: impl Into<String>) -> Self {
        Self::Source {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }

    pub(crate) fn row(path: &Path, place: Place, problem: impl Into<String>) -> Self {
        Self::Row {
            path: path.to_owned(),
            place,
            problem: problem.into(),
        }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, problem: impl Into<String>) -> Self {
        Self::Tensor {
            path: path.to_owned(),
            tensor: tensor.to_owned(),
            problem: problem.into(),
        }
    }

    pub(crate) fn model(path: &Path, problem: impl Into<String>) -> Self {
        Self::Model {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }
}

/// The first few of `names`, quoted.
pub(crate) fn list<S: AsRef<str>>(names: &[S]) -> String {
    const SHOWN: usize = 12;
    if names.is_empty() {
        return "none".to_owned();
    }
    let mut text = names
        .iter()
        .take(SHOWN)
        .map(|name| format!("`{}`", name.as_ref()))
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
