//! What the numbers of a matrix can get wrong.

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a matrix was refused or a decomposition was not found.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A buffer does not have the size its shape asks for.
    #[error("{found} numbers were given for {what}, which has {expected}")]
    Size {
        /// What was to be filled, with its shape.
        what: String,
        /// Numbers found.
        found: usize,
        /// Numbers expected.
        expected: usize,
    },
    /// A NaN or an infinity.
    #[error("a value is not finite (row {row}, column {column})")]
    NotFinite {
        /// Row of the first such value.
        row: usize,
        /// Column of the first such value.
        column: usize,
    },
    /// The two triangles of a matrix that should be symmetric differ.
    #[error(
        "the matrix is not symmetric: ({row}, {column}) is {upper}, ({column}, {row}) is {lower}"
    )]
    NotSymmetric {
        /// Row.
        row: usize,
        /// Column.
        column: usize,
        /// The value above the diagonal.
        upper: f64,
        /// The value below it.
        lower: f64,
    },
    /// Cholesky met a pivot that is not positive.
    #[error("the matrix is not positive definite: pivot {pivot} of {dim} with ridge {ridge:e}")]
    NotPositiveDefinite {
        /// Number of the pivot, from 0.
        pivot: usize,
        /// Dimension.
        dim: usize,
        /// What was added to the diagonal.
        ridge: f64,
    },
    /// An iterative decomposition did not converge.
    #[error("the {0} did not converge")]
    NoConvergence(&'static str),
    /// A quadratic programme has no solution that could be found.
    #[error("the quadratic programme was not solved: {0}")]
    Programme(String),
}
