//! Merging methods on the coordinates of updates in a space they share.

use merganser_linalg::Matrix;

use crate::elementwise::{dare, ties};
use crate::error::check_range;
use crate::isotropic::flattened;
use crate::updates::checked_shape;
use crate::{Error, Result, cart, iso_c, sum, tsv_m};

/// How the coordinates of all tasks become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Inner {
    /// Task arithmetic: their sum.
    TaskArithmetic,
    /// Their mean.
    Mean,
    /// The mean of the entries that agree with the elected sign, of the largest ones.
    Ties {
        /// Share of entries that every task keeps.
        density: f64,
    },
    /// The sum of what is left when entries are dropped at random.
    Dare {
        /// Probability that an entry is dropped.
        drop: f64,
    },
    /// [`Ties`](Self::Ties) of what is left when entries are dropped at random.
    DareTies {
        /// Probability that an entry is dropped.
        drop: f64,
        /// Share of entries that every task keeps.
        density: f64,
    },
    /// [`tsv_m`].
    Tsv,
    /// [`iso_c`].
    IsoC,
    /// [`cart`].
    Cart {
        /// Share of the rank kept of every task's distance from the mean.
        rank_fraction: f64,
        /// Factor of these distances.
        scale: f64,
    },
}

/// Whether entry `index` (in row-major order) of task `task` stays, for the methods that drop some.
pub type Keep<'a> = &'a (dyn Fn(usize, usize) -> bool + Sync);

impl Inner {
    /// Merges matrices of one shape.
    ///
    /// # Errors
    /// If there is none, shapes differ, a number is not finite, a share is not in [0, 1], or a decomposition does not
    /// converge.
    pub(crate) fn merge(&self, tasks: &[Matrix], keep: Keep<'_>) -> Result<Matrix> {
        let references: Vec<&Matrix> = tasks.iter().collect();
        let (m, n) = checked_shape(&references)?;
        if let Self::Ties { density } | Self::DareTies { density, .. } = self {
            check_range("the density", *density, (0.0, 1.0), "from 0 to 1")?;
        }
        let dropped = |drop: f64| {
            if !(0.0..1.0).contains(&drop) {
                return Err(Error::Range {
                    what: "the share of dropped entries".into(),
                    found: drop,
                    expected: "at least 0 and less than 1",
                });
            }
            let mut tasks = tasks.to_vec();
            for (t, task) in tasks.iter_mut().enumerate() {
                dare(task.as_mut_slice(), drop, |i| keep(t, i));
            }
            Ok(tasks)
        };
        let elected = |tasks: &[Matrix], density| {
            let entries: Vec<Vec<f64>> = tasks.iter().map(|x| x.as_slice().to_vec()).collect();
            Ok(Matrix::new(m, n, ties(&entries, density))?)
        };
        match *self {
            Self::TaskArithmetic => sum(&references),
            Self::Mean => {
                let mut mean = sum(&references)?;
                mean.scale(1.0 / tasks.len() as f64);
                Ok(mean)
            }
            Self::Ties { density } => elected(tasks, density),
            Self::Dare { drop } => sum(&dropped(drop)?.iter().collect::<Vec<_>>()),
            Self::DareTies { drop, density } => elected(&dropped(drop)?, density),
            Self::Tsv => tsv_m(&references, None).map(|merged| merged.update),
            Self::IsoC => iso_c(&references).map(|merged| merged.update),
            Self::Cart {
                rank_fraction,
                scale,
            } => cart(&references, rank_fraction, scale),
        }
    }
}

/// An inner method, and whether its result is then made isotropic as in [`iso_c`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InSpan {
    /// The method.
    pub inner: Inner,
    /// Whether all singular values of its result are replaced by their mean.
    pub isotropic: bool,
}

impl From<Inner> for InSpan {
    fn from(inner: Inner) -> Self {
        Self {
            inner,
            isotropic: false,
        }
    }
}

impl InSpan {
    /// Merges vectors, each a matrix of one row: changes of biases, which lie in no span.
    ///
    /// Methods on entries act on the vectors' own. TSV-M, Iso-C and CART take matrices apart; of vectors they are the mean,
    /// as in their published code. To be isotropic means nothing for a vector: it has one singular value.
    ///
    /// # Errors
    /// If there is none, lengths differ, a number is not finite, or a share is out of range.
    pub fn merge_vectors(&self, vectors: &[Matrix], keep: Keep<'_>) -> Result<Matrix> {
        let inner = if self.averages_vectors() {
            Inner::Mean
        } else {
            self.inner
        };
        inner.merge(vectors, keep)
    }

    /// Whether vectors are averaged because the method is one of matrices.
    pub fn averages_vectors(&self) -> bool {
        matches!(self.inner, Inner::Tsv | Inner::IsoC | Inner::Cart { .. })
    }

    /// Merges matrices of one shape.
    ///
    /// # Errors
    /// If there is none, shapes differ, a number is not finite, a share is out of range, or a decomposition does not
    /// converge.
    pub fn merge(&self, tasks: &[Matrix], keep: Keep<'_>) -> Result<Matrix> {
        let merged = self.inner.merge(tasks, keep)?;
        if self.isotropic {
            flattened(&merged).map(|merged| merged.update)
        } else {
            Ok(merged)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{distance, update};

    #[test]
    fn isotropic_task_arithmetic_is_iso_c() {
        let tasks = [update(1, 5, 4), update(2, 5, 4)];
        let keep = |_, _| true;
        let merge = |inner, isotropic| InSpan { inner, isotropic }.merge(&tasks, &keep).unwrap();
        let (one, other) = (
            merge(Inner::TaskArithmetic, true),
            merge(Inner::IsoC, false),
        );
        assert!(distance(&one, &other) < 1e-14);
        // Nothing dropped is task arithmetic.
        let (one, other) = (
            merge(Inner::Dare { drop: 0.0 }, false),
            merge(Inner::TaskArithmetic, false),
        );
        assert_eq!(one, other);
    }

    #[test]
    fn vectors_are_merged_by_entries_or_averaged() {
        let rows = |t: &[f64]| Matrix::new(1, 3, t.to_vec()).unwrap();
        let tasks = [rows(&[3.0, -1.0, 0.5]), rows(&[1.0, 2.0, -0.1])];
        let of = |inner: Inner, isotropic| {
            let method = InSpan { inner, isotropic };
            let merged = method.merge_vectors(&tasks, &|t, i| (t, i) != (0, 0));
            merged.unwrap().into_vec()
        };
        assert_eq!(of(Inner::TaskArithmetic, true), [4.0, 1.0, 0.4]);
        let mean = [2.0, 0.5, 0.2];
        let cart = Inner::Cart {
            rank_fraction: 0.5,
            scale: 0.3,
        };
        for inner in [Inner::Mean, Inner::Tsv, Inner::IsoC, cart] {
            assert_eq!(of(inner, false), mean);
        }
        assert_eq!(of(Inner::Ties { density: 1.0 }, false), [2.0, 2.0, 0.5]);
        assert_eq!(of(Inner::Dare { drop: 0.5 }, false), [2.0, 2.0, 0.8]);
        assert!(
            InSpan::from(Inner::Tsv)
                .merge_vectors(&[], &|_, _| true)
                .is_err()
        );
    }

    #[test]
    fn shares_out_of_range_are_refused() {
        let tasks = [update(1, 2, 2)];
        let merge = |inner: Inner| InSpan::from(inner).merge(&tasks, &|_, _| true);
        assert!(merge(Inner::Ties { density: 1.1 }).is_err());
        assert!(merge(Inner::Dare { drop: 1.0 }).is_err());
        assert!(
            merge(Inner::DareTies {
                drop: f64::NAN,
                density: 0.5
            })
            .is_err()
        );
        assert!(InSpan::from(Inner::Mean).merge(&[], &|_, _| true).is_err());
    }
}
