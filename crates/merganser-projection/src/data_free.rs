//! Merges of whole matrices that need no data: for themselves, and as priors of those that have some.

use merganser_linalg::{Matrix, Real};

use crate::{Result, WudiAdam, tsv_m, wudi, wudi_closed_form};

/// A data-free merge of the updates of one matrix.
#[derive(Debug, Clone, PartialEq)]
pub enum DataFree {
    /// [`tsv_m`] times a factor.
    TsvM {
        /// The factor α, which the paper finds best near 1.
        scale: f64,
    },
    /// [`wudi`] as published.
    Wudi(WudiAdam),
    /// [`wudi_closed_form`].
    WudiClosedForm,
}

impl DataFree {
    /// The merged update.
    ///
    /// # Errors
    /// Those of the method.
    pub fn update<T: Real>(&self, updates: &[&Matrix<T>]) -> Result<Matrix<T>> {
        match self {
            Self::TsvM { scale } => {
                let mut merged = tsv_m(updates)?;
                merged.scale(*scale);
                Ok(merged)
            }
            Self::Wudi(adam) => wudi(updates, adam),
            Self::WudiClosedForm => wudi_closed_form(updates),
        }
    }

    /// The name of the method.
    pub fn name(&self) -> &'static str {
        match self {
            Self::TsvM { .. } => "tsv_m",
            Self::Wudi(_) | Self::WudiClosedForm => "wudi",
        }
    }
}
