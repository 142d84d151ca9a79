//! Merges of whole matrices that need no data: for themselves, and as priors of those that have some.

use std::borrow::Cow;

use merganser_linalg::{Matrix, Real};
use merganser_spectral::{
    Aligned, LowRank, Merged, Sketch, Updates, cart, iso_c, iso_cts, knots, tsv_m,
};

use crate::{Result, WudiAdam, wudi, wudi_closed_form};

/// A data-free merge of the updates of one matrix.
#[derive(Debug, Clone, PartialEq)]
pub enum DataFree {
    /// A merge by singular vectors, times a factor.
    Spectral {
        /// Which.
        method: Spectral,
        /// The factor α.
        scale: f64,
    },
    /// [`wudi`] as published.
    Wudi(WudiAdam),
    /// [`wudi_closed_form`].
    WudiClosedForm,
}

/// A merge by singular vectors, of `merganser-spectral`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Spectral {
    /// [`tsv_m`].
    TsvM {
        /// How the directions are found, if not by exact decompositions.
        sketch: Option<Sketch>,
    },
    /// [`iso_c`].
    IsoC,
    /// [`iso_cts`].
    IsoCts {
        /// Share of the directions that the tasks have in common.
        common_fraction: f64,
    },
    /// [`knots`], the entries of this matrix trimmed by themselves.
    Knots {
        /// Share of each task's coordinates that is kept.
        density: f64,
    },
    /// [`cart`].
    Cart {
        /// Share of the rank kept of every task's distance from the average.
        rank_fraction: f64,
        /// Factor of these distances.
        scale: f64,
    },
}

impl DataFree {
    /// The merged update.
    ///
    /// # Errors
    /// Those of the method.
    pub fn update<T: Real>(&self, updates: &(impl Updates<T> + ?Sized)) -> Result<Merged<T>> {
        let all = || -> Result<Vec<_>> {
            let each = (0..updates.tasks()).map(|task| Ok(updates.checked(task)?));
            each.collect()
        };
        match self {
            Self::Spectral { method, scale } => {
                let mut merged = method.update(updates)?;
                merged.update.scale(*scale);
                Ok(merged)
            }
            Self::Wudi(adam) => wudi(&borrowed(&all()?), adam).map(Merged::whole),
            Self::WudiClosedForm => wudi_closed_form(&borrowed(&all()?)).map(Merged::whole),
        }
    }

    /// The name of the method.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Spectral { method, .. } => method.name(),
            Self::Wudi(_) | Self::WudiClosedForm => "wudi",
        }
    }
}

fn borrowed<'a, T: Real>(updates: &'a [Cow<'_, Matrix<T>>]) -> Vec<&'a Matrix<T>> {
    updates.iter().map(AsRef::as_ref).collect()
}

impl Spectral {
    fn update<T: Real>(self, updates: &(impl Updates<T> + ?Sized)) -> Result<Merged<T>> {
        Ok(match self {
            Self::TsvM { sketch } => tsv_m(updates, sketch),
            Self::IsoC => iso_c(updates),
            Self::IsoCts { common_fraction } => iso_cts(updates, common_fraction),
            Self::Knots { density } => {
                let layer = Aligned::of_updates(updates)?;
                knots(&[layer], density, None, &|_, _| true)
                    .map(|merged| Merged::whole(merged[0].cast()))
            }
            Self::Cart {
                rank_fraction,
                scale,
            } => cart(updates, rank_fraction, scale).map(Merged::whole),
        }?)
    }

    /// The merged update of updates of low rank, made in the space they span; without a factor.
    ///
    /// # Errors
    /// Those of the method.
    pub fn in_span(self, updates: &LowRank) -> Result<Matrix> {
        Ok(match self {
            // In a space this small exact decompositions cost nothing.
            Self::TsvM { .. } => updates.tsv_m(),
            Self::IsoC => updates.iso_c(),
            Self::IsoCts { common_fraction } => updates.iso_cts(common_fraction),
            Self::Knots { density } => updates.knots(density),
            Self::Cart {
                rank_fraction,
                scale,
            } => updates.cart(rank_fraction, scale),
        }?)
    }

    fn name(self) -> &'static str {
        match self {
            Self::TsvM { .. } => "tsv_m",
            Self::IsoC => "iso_c",
            Self::IsoCts { .. } => "iso_cts",
            Self::Knots { .. } => "knots",
            Self::Cart { .. } => "cart",
        }
    }
}
