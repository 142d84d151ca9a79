//! From the update of a matrix back to the adapter nearest to it.
//!
//! The best approximation of rank r of D = Σ σ_k u_k v_kᵀ in the Frobenius norm keeps its r leading triples (Eckart and
//! Young 1936): B A with B = U √Σ and A = √Σ Vᵀ, or B = U and A = Σ Vᵀ. The share of ‖D‖²_F kept is Σ_{k ≤ r} σ_k² / ‖D‖²_F.

use merganser_linalg::{Matrix, Sketch, Svd, gemm};

use crate::error::check_range;
use crate::{Error, NOISE, Result};

/// Rows of a matrix that [`relative_error`] works on at a time.
const ROWS: usize = 256;

/// How much of an update is kept: as many directions as every limit allows that is set.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Truncation {
    /// At most so many.
    pub rank: Option<usize>,
    /// The fewest whose share of ‖D‖²_F is at least this, 0 to 1.
    pub energy: Option<f64>,
    /// Those whose singular value is greater than this.
    pub sigma: Option<f64>,
    /// Finds the directions by random projection, of which only a rank says how many to look for.
    pub sketch: Option<Sketch>,
}

/// Which factor carries the singular values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scale {
    /// Both, their roots.
    #[default]
    Shared,
    /// A alone; B is orthonormal.
    InA,
}

/// The factors of an update's best approximation.
#[derive(Debug, Clone, PartialEq)]
pub struct Extracted {
    /// A, r×n.
    pub a: Matrix,
    /// B, m×r.
    pub b: Matrix,
    /// Share of ‖D‖²_F kept, 0 to 1.
    pub energy: f64,
}

impl Truncation {
    /// Refuses limits that nothing could meet.
    ///
    /// # Errors
    /// [`Error::Range`].
    pub fn check(&self) -> Result<()> {
        if let Some(rank) = self.rank {
            check_range(
                "the rank",
                rank as f64,
                (1.0, f64::MAX),
                "a whole number of at least 1",
            )?;
        }
        if self.sketch.is_some() && self.rank.is_none() {
            return Err(Error::NoRank);
        }
        if let Some(energy) = self.energy {
            check_range(
                "the energy to be kept",
                energy,
                (f64::MIN_POSITIVE, 1.0),
                "above 0 and at most 1",
            )?;
        }
        if let Some(sigma) = self.sigma {
            check_range(
                "the least singular value",
                sigma,
                (0.0, f64::MAX),
                "0 or more",
            )?;
        }
        Ok(())
    }

    /// How many of the singular values `values`, in descending order, are kept of a matrix with ‖D‖²_F = `total`.
    fn count(&self, values: &[f64], total: f64) -> usize {
        let mut count = self.rank.unwrap_or(usize::MAX).min(values.len());
        if let Some(sigma) = self.sigma {
            count = count.min(values.iter().take_while(|&&x| x > sigma).count());
        }
        if let Some(energy) = self.energy {
            count = count.min(leading(values, energy * total));
        }
        count
    }
}

/// The fewest leading values whose squares sum to at least `wanted`; all if they never do.
pub(crate) fn leading(values: &[f64], wanted: f64) -> usize {
    let mut sum = 0.0;
    for (k, x) in values.iter().enumerate() {
        if sum >= wanted {
            return k;
        }
        sum += x * x;
    }
    values.len()
}

/// The adapter nearest to the update D (m×n), with as many directions as `truncation` allows. Directions whose singular
/// value is at most `noise` are never kept, nor those that the rounding of `f32` could make.
///
/// # Errors
/// If D is not finite, a limit is out of range, or the decomposition does not converge.
pub fn extract(
    update: &Matrix,
    truncation: &Truncation,
    noise: f64,
    scale: Scale,
) -> Result<Extracted> {
    truncation.check()?;
    update.check_finite().map_err(|problem| Error::NotFinite {
        what: "the update".into(),
        problem,
    })?;
    let (m, n) = update.shape();
    let most = truncation.rank.unwrap_or(usize::MAX).min(m.min(n));
    let svd = match truncation.sketch {
        Some(sketch) => sketch.leading(update, most, NOISE)?.svd,
        None => Svd::truncated(update, most, NOISE)?,
    };
    let total = update.norm().powi(2);
    let heard = svd.values.iter().take_while(|&&x| x > noise).count();
    let svd = svd.leading(truncation.count(&svd.values[..heard], total));
    let (mut left, mut a) = (svd.left, svd.right);
    match scale {
        Scale::Shared => {
            let roots: Vec<f64> = svd.values.iter().map(|x| x.sqrt()).collect();
            left.scale_rows(&roots);
            a.scale_rows(&roots);
        }
        Scale::InA => a.scale_rows(&svd.values),
    }
    let kept: f64 = svd.values.iter().map(|x| x * x).sum();
    Ok(Extracted {
        a,
        b: left.transpose(),
        energy: if total > 0.0 {
            (kept / total).min(1.0)
        } else {
            0.0
        },
    })
}

/// ‖D − B A‖_F / ‖D‖_F; 0 if D is.
///
/// # Panics
/// If the shapes do not fit.
pub fn relative_error(update: &Matrix, a: &Matrix, b: &Matrix) -> f64 {
    let m = update.rows();
    let (mut rest, mut total) = (0.0, 0.0);
    for from in (0..m).step_by(ROWS) {
        let to = (from + ROWS).min(m);
        let mut part = update.rows_range(from, to);
        total += part.dot(&part);
        if a.rows() > 0 {
            gemm::add_mul(&mut part, -1.0, &b.rows_range(from, to), a);
        }
        rest += part.dot(&part);
    }
    if total > 0.0 {
        (rest / total).sqrt()
    } else {
        0.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{distance, low_rank, update};

    fn rank(rank: usize) -> Truncation {
        Truncation {
            rank: Some(rank),
            ..Truncation::default()
        }
    }

    proptest! {
        #[test]
        fn an_update_of_low_rank_comes_back_whole(
            seed in 0u32..1000, m in 1usize..40, n in 1usize..40, r in 1usize..6, shared: bool,
        ) {
            let r = r.min(m).min(n);
            let d = low_rank(seed, m, n, r);
            let scale = if shared { Scale::Shared } else { Scale::InA };
            let found = extract(&d, &Truncation::default(), 0.0, scale).unwrap();
            prop_assert!(found.a.rows() <= r);
            prop_assert_eq!(found.b.shape(), (m, found.a.rows()));
            let rebuilt = gemm::mul(&found.b, &found.a);
            // Directions below the rounding of single precision may be left out.
            prop_assert!(distance(&rebuilt, &d) <= 1e-5 * d.norm());
            if found.a.rows() == r {
                prop_assert!(distance(&rebuilt, &d) <= 1e-12 * d.norm());
            }
        }

        #[test]
        fn error_and_energy_add_up(seed in 0u32..1000, m in 2usize..30, n in 2usize..30, r in 1usize..30) {
            let d = update(seed, m, n);
            let found = extract(&d, &rank(r), 0.0, Scale::Shared).unwrap();
            let error = relative_error(&d, &found.a, &found.b);
            prop_assert!((error * error + found.energy - 1.0).abs() < 1e-10);
            prop_assert_eq!(found.a.rows(), r.min(m).min(n));
        }
    }

    #[test]
    fn every_limit_counts() {
        let d = Matrix::from_fn(
            5,
            4,
            |i, j| {
                if i == j { [4.0, 3.0, 2.0, 1.0][i] } else { 0.0 }
            },
        );
        let kept = |truncation: Truncation, noise: f64| {
            extract(&d, &truncation, noise, Scale::Shared)
                .unwrap()
                .a
                .rows()
        };
        let all = Truncation::default();
        let (energy, sigma) = (Some(0.96), Some(2.5));
        assert_eq!(kept(all, 0.0), 4);
        assert_eq!(kept(rank(2), 0.0), 2);
        // 16 + 9 of 30 are less than 96 %, with 4 more they are not.
        assert_eq!(kept(Truncation { energy, ..all }, 0.0), 3);
        assert_eq!(kept(Truncation { sigma, ..all }, 0.0), 2);
        assert_eq!(kept(all, 1.0), 3, "a value at the noise is noise");
        assert_eq!(
            kept(
                Truncation {
                    rank: Some(1),
                    energy,
                    ..all
                },
                0.0
            ),
            1
        );
        assert_eq!(kept(all, 5.0), 0);
    }

    #[test]
    fn the_scale_is_shared_or_not() {
        let d = low_rank(3, 7, 9, 2);
        let shared = extract(&d, &rank(2), 0.0, Scale::Shared).unwrap();
        assert!((shared.a.norm() - shared.b.norm()).abs() < 1e-12);
        let one = extract(&d, &rank(2), 0.0, Scale::InA).unwrap();
        assert!((one.b.norm().powi(2) - 2.0).abs() < 1e-12);
    }

    #[test]
    fn nothing_gives_nothing_and_nonsense_is_refused() {
        let found = extract(&Matrix::zeros(3, 4), &rank(2), 0.0, Scale::Shared).unwrap();
        assert_eq!(
            (found.a.shape(), found.b.shape(), found.energy),
            ((0, 4), (3, 0), 0.0)
        );
        assert_eq!(
            relative_error(&Matrix::zeros(3, 4), &found.a, &found.b),
            0.0
        );
        for truncation in [
            rank(0),
            Truncation {
                energy: Some(1.5),
                ..rank(1)
            },
            Truncation {
                energy: Some(0.0),
                ..rank(1)
            },
            Truncation {
                sigma: Some(f64::NAN),
                ..rank(1)
            },
        ] {
            assert!(extract(&update(1, 2, 2), &truncation, 0.0, Scale::Shared).is_err());
        }
        let nan = Matrix::from_fn(2, 2, |_, _| f64::NAN);
        assert!(extract(&nan, &rank(1), 0.0, Scale::Shared).is_err());
    }
}
