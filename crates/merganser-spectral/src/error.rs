//! What updates can be refused for.

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a merge was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A merge of nothing.
    #[error("there is no task to merge")]
    NoTasks,
    /// Sizes that do not fit each other.
    #[error("{what}: {found:?} where {expected:?} was expected")]
    Shape {
        /// What has the wrong size.
        what: String,
        /// Its rows and columns.
        found: (usize, usize),
        /// Those that would fit.
        expected: (usize, usize),
    },
    /// A NaN or an infinity in what was given.
    #[error("{what} holds a value that is not finite: {problem}")]
    NotFinite {
        /// What holds it.
        what: String,
        /// Where it is.
        problem: merganser_linalg::Error,
    },
    /// Random projection without a number of directions to look for.
    #[error("random projection needs a limit of the rank: it finds so many directions and no more")]
    NoRank,
    /// An update that is not in memory could not be read.
    #[error("{0}")]
    Unreadable(String),
    /// A number outside its range.
    #[error("{what} is {found}; it must be {expected}")]
    Range {
        /// What the number is.
        what: String,
        /// Its value.
        found: f64,
        /// What would do.
        expected: &'static str,
    },
    /// Linear algebra that failed.
    #[error(transparent)]
    Algebra(#[from] merganser_linalg::Error),
}

pub(crate) fn check_shape(
    what: impl FnOnce() -> String,
    found: (usize, usize),
    expected: (usize, usize),
) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Shape {
        what: what(),
        found,
        expected,
    })
}

/// Refuses what is not in `low..=high`, NaN included.
pub(crate) fn check_range(
    what: &str,
    found: f64,
    (low, high): (f64, f64),
    expected: &'static str,
) -> Result<()> {
    if (low..=high).contains(&found) {
        return Ok(());
    }
    Err(Error::Range {
        what: what.to_owned(),
        found,
        expected,
    })
}
