//! What a problem can be refused for.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why moments or a problem were refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Sizes that do not fit each other.
    #[error("{what}: {found} where {expected} was expected")]
    Shape {
        /// What has the wrong size.
        what: String,
        /// Its size.
        found: String,
        /// The size that would fit.
        expected: String,
    },
    /// A NaN or an infinity in what was given.
    #[error("{what} holds a value that is not finite: {problem}")]
    NotFinite {
        /// What holds it.
        what: String,
        /// Where it is.
        problem: merganser_linalg::Error,
    },
    /// A problem without tasks.
    #[error("there is no task to merge")]
    NoTasks,
    /// A task whose moments hold no sample.
    #[error("task {task}: its moments hold no samples; calibrate it with at least one")]
    NoSamples {
        /// Number of the task, from 0.
        task: usize,
    },
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
    /// A ridge to be chosen from held-out samples without any.
    #[error(
        "the ridge cannot be chosen automatically: task {task} has no held-out moments; hold some samples out, or give a number"
    )]
    NoHeldOut {
        /// Number of the first task without, from 0.
        task: usize,
    },
    /// The weights of all tasks are zero.
    #[error("the weights of all tasks are zero")]
    NoWeight,
    /// A basis that would have too many members for one programme.
    #[error(
        "the basis `{basis}` has {found} members; at most {limit} can be solved for at once: choose a lower rank"
    )]
    TooMany {
        /// The basis.
        basis: String,
        /// Its members.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A text that names no basis.
    #[error(
        "`{found}` is no basis; there are task, diagonal, rotated, atoms(RANK), core, best-rank(RANK), full and auto"
    )]
    UnknownBasis {
        /// The text.
        found: String,
    },
    /// Linear algebra that failed.
    #[error(transparent)]
    Algebra(#[from] merganser_linalg::Error),
    /// A merge by singular vectors that was refused.
    #[error(transparent)]
    Spectral(#[from] merganser_spectral::Error),
    /// A file that could not be read or written.
    #[error(transparent)]
    Store(#[from] merganser_store::Error),
    /// A file of moments that does not say what such files say.
    #[error("`{}` is not a usable file of moments: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
}

/// An [`Error::Shape`] from numbers.
pub(crate) fn shape(
    what: impl Into<String>,
    found: impl std::fmt::Debug,
    expected: impl std::fmt::Debug,
) -> Error {
    Error::Shape {
        what: what.into(),
        found: format!("{found:?}"),
        expected: format!("{expected:?}"),
    }
}
