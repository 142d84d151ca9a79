//! Why a certificate or an audit was refused.

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a certificate or an audit was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Sizes that do not fit each other.
    #[error("{what} has {found} numbers; expected {expected}")]
    Size {
        /// What has the wrong size.
        what: String,
        /// How many numbers there are.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// A number outside its range, or NaN.
    #[error("{what} is {found}; it must be {expected}")]
    Range {
        /// What the number is.
        what: String,
        /// Its value.
        found: f64,
        /// What would do.
        expected: &'static str,
    },
    /// A NaN or an infinity in what was given.
    #[error("{what} holds NaN or infinity")]
    NotFinite {
        /// What holds it.
        what: String,
    },
    /// A question that has no answer for these inputs.
    #[error("{0}")]
    Refused(String),
    /// Linear algebra that failed.
    #[error(transparent)]
    Algebra(#[from] merganser_linalg::Error),
    /// A network that could not be run.
    #[error(transparent)]
    Model(#[from] merganser_model::ModelError),
}

/// Refuses a slice of another length.
pub(crate) fn check_len(what: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Size {
        what: what.to_owned(),
        found,
        expected,
    })
}

/// Refuses NaN and infinity.
pub(crate) fn check_finite(what: &str, values: &[f64]) -> Result<()> {
    if values.iter().all(|x| x.is_finite()) {
        return Ok(());
    }
    Err(Error::NotFinite {
        what: what.to_owned(),
    })
}
