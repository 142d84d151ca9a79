//! Relations between pairs of tasks.

use serde::{Deserialize, Serialize};

/// What the entries of a [`Pairwise`] matrix mean, and so their range and colours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// A cosine, −1 to 1: 1 the same direction, 0 unrelated, −1 opposite.
    #[default]
    Cosine,
    /// A conflict, 0 to 1: the share that one task loses to the other, or of signs that disagree.
    Conflict,
}

/// A symmetric matrix over the tasks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pairwise {
    /// The heading: `task vectors`, `residual outputs`, …
    pub title: String,
    /// What an entry means.
    pub relation: Relation,
    /// Entry `[s][t]` relates task `s` to task `t`.
    pub values: Vec<Vec<Option<f64>>>,
    /// One sentence on how it was measured.
    pub note: Option<String>,
}
