//! What can go wrong with a report.

use crate::SCHEMA_VERSION;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not a report.
    #[error("this is not a merganser report in JSON: {0}")]
    Json(#[from] serde_json::Error),

    /// The report was written by a later version.
    #[error(
        "the report has schema version {found}, this version of merganser reads up to \
         {SCHEMA_VERSION}: update merganser"
    )]
    Newer {
        /// The version the report names.
        found: u32,
    },

    /// The page could not be made. This is a defect of merganser, not of the report.
    #[error("the page could not be rendered: {0}")]
    Page(#[from] minijinja::Error),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
