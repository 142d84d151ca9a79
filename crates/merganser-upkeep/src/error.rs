//! What vectors, statistics and the files of them can be refused for.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something was refused or could not be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Sizes that do not fit each other.
    #[error("{what}: found {found}, expected {expected}")]
    Shape {
        /// What has the wrong size.
        what: String,
        /// Its size.
        found: String,
        /// The size that would fit.
        expected: String,
    },
    /// A number outside its range.
    #[error("{what} is {found}; it must be {expected}")]
    Range {
        /// What the number is.
        what: &'static str,
        /// Its value.
        found: f64,
        /// What would do.
        expected: &'static str,
    },
    /// A request that cannot be met with what was given.
    #[error("{0}")]
    Unfit(String),
    /// A file that is not what it should be.
    #[error("`{}`: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was found, what was expected, what to do.
        problem: String,
    },
    /// A covariance of features that have collapsed to fewer dimensions.
    #[error(
        "{what} has collapsed: pivot {pivot} of {dim} is zero up to rounding, so its features lie in fewer dimensions; \
         shrink it (--shrink), or look at the features"
    )]
    Collapsed {
        /// Whose covariance.
        what: String,
        /// Number of the pivot, from 0.
        pivot: usize,
        /// Its dimension.
        dim: usize,
    },
    /// Linear algebra that failed.
    #[error(transparent)]
    Algebra(#[from] merganser_linalg::Error),
    /// A network that could not be run.
    #[error(transparent)]
    Model(#[from] merganser_model::ModelError),
    /// Vectors or statistics that could not be read.
    #[error(transparent)]
    Data(#[from] merganser_data::Error),
    /// A file that could not be written.
    #[error(transparent)]
    Store(#[from] merganser_store::Error),
}

impl Error {
    /// Whether the system failed, as a full disk does, rather than what was given.
    pub fn is_of_system(&self) -> bool {
        match self {
            Self::Data(
                merganser_data::Error::Io { doing, .. }
                | merganser_data::Error::Store(merganser_store::Error::Io { doing, .. }),
            )
            | Self::Store(merganser_store::Error::Io { doing, .. }) => *doing != "open",
            _ => false,
        }
    }

    pub(crate) fn file(path: &Path, problem: impl Into<String>) -> Self {
        Self::File {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }
}

/// Refuses a size that is not the one expected.
pub(crate) fn check_size(
    what: impl FnOnce() -> String,
    found: usize,
    expected: usize,
) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Shape {
        what: what(),
        found: found.to_string(),
        expected: expected.to_string(),
    })
}

/// Refuses what is not in `low..=high`, NaN included.
pub(crate) fn check_range(
    what: &'static str,
    found: f64,
    (low, high): (f64, f64),
    expected: &'static str,
) -> Result<()> {
    if (low..=high).contains(&found) {
        return Ok(());
    }
    Err(Error::Range {
        what,
        found,
        expected,
    })
}
