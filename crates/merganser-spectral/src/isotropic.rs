//! Isotropic merging: a sum of task vectors in which every direction counts alike.
//!
//! **Iso-C.** Δ = Σ_t D_t = U diag(σ) Vᵀ becomes σ̄ U Vᵀ with σ̄ the mean of σ: the polar factor times nuclear norm over
//! rank, for which no singular value decomposition is needed.
//!
//! **Iso-CTS.** Of r = min(m, n) directions only the c leading ones of Δ stay. The rest goes to the tasks: of each
//! E_t = (I − U_c U_cᵀ) D_t the k = (r − c)/T leading ones. Δ* = σ̄ polar([U_1 … U_T U_c]) polar([V_1 … V_T V_c])ᵀ, σ̄ the
//! mean of all their singular values. The U_t are orthogonal to U_c, so that only [U_1 … U_T] needs a polar factor on the
//! left. Where Δ has full row rank, the rows W of its other left vectors span the complement of U_c, and the triples of E_t
//! are those of the small matrix W D_t.
//!
//! Both as Marczak et al., *No Task Left Behind*, ICML 2025 (arXiv 2502.04959), except that r is the numerical rank of Δ:
//! beyond it the published code spreads σ̄ over directions that are rounding.

use merganser_linalg::{Eigen, Matrix, Polar, Real, Svd, Symmetric, gemm, gram};

use crate::error::check_range;
use crate::{Merged, NOISE, Result, Updates, sum};

/// Iso-C: the sum of the updates with all its singular values made equal, of the same nuclear norm.
///
/// # Errors
/// If there is no update, shapes differ, a number is not finite, or a decomposition does not converge.
pub fn iso_c<T: Real>(updates: &(impl Updates<T> + ?Sized)) -> Result<Merged<T>> {
    Ok(flattened(&sum(updates)?)?.cast())
}

/// The matrix with its non-zero singular values replaced by their mean.
pub(crate) fn flattened(a: &Matrix) -> Result<Merged<f64>> {
    let polar = Polar::of(a, NOISE)?;
    let mut flat = polar.factor;
    if polar.rank > 0 {
        flat.scale(polar.nuclear_norm / polar.rank as f64);
    }
    Ok(Merged {
        rank: polar.rank,
        ..Merged::whole(flat)
    })
}

/// Iso-CTS: directions that the tasks share, and those of their own, all of the same length. About `common_fraction` of
/// them are shared; the paper finds 0.8 good, and 0.5 to 0.9 not much worse. With 1 it is [`iso_c`].
///
/// # Errors
/// If there is no update, shapes differ, a number is not finite, the fraction is not in [0, 1], or a decomposition does
/// not converge.
pub fn iso_cts<T: Real>(
    updates: &(impl Updates<T> + ?Sized),
    common_fraction: f64,
) -> Result<Merged<T>> {
    let (m, n) = updates.shape()?;
    check_range(
        "the common fraction",
        common_fraction,
        (0.0, 1.0),
        "from 0 to 1",
    )?;
    let all = Svd::truncated(&sum(updates)?, m.min(n), NOISE)?;
    let rank = all.values.len();
    let each = own_directions(rank, updates.tasks(), common_fraction);
    let common = all.leading(rank - each * updates.tasks());
    let complement = (rank == m).then(|| all.left.rows_range(common.values.len(), m));

    let (mut left, mut right) = (Vec::new(), vec![common.right]);
    let mut values = common.values;
    if each > 0 {
        let projected = Complement {
            common: &common.left,
            basis: complement.as_ref(),
        };
        for task in 0..updates.tasks() {
            let update = updates.checked(task)?.cast::<f64>();
            let own = projected.leading(&update, each)?;
            // What lies in the common directions leaves only rounding outside them.
            let floor = NOISE * update.norm();
            let own = own.leading(own.values.iter().take_while(|&&x| x > floor).count());
            left.push(own.left);
            right.push(own.right);
            values.extend(own.values);
        }
    }
    if values.is_empty() {
        return Ok(Merged {
            rank: 0,
            ..Merged::whole(Matrix::zeros(m, n))
        });
    }
    let mut whitened = vec![common.left];
    if !left.is_empty() {
        let own = Polar::of(&Matrix::stack_rows(&left), NOISE)?.factor;
        whitened.push(match &complement {
            Some(basis) => gemm::mul(&own, basis),
            None => own,
        });
    }
    let left = Matrix::stack_rows(&whitened).transpose();
    let mut update = Polar::times(&left, &Matrix::stack_rows(&right), NOISE)?;
    update.scale(values.iter().sum::<f64>() / values.len() as f64);
    Ok(Merged {
        // Where directions of the tasks coincide, the whole has fewer than the sum of theirs.
        rank: values.len().min(rank),
        ..Merged::whole(update.cast())
    })
}

/// Directions of each of T tasks, of r in all: (r − ⌊f r⌋)/T, rounded half to even as the published code does, but no more
/// than there are.
fn own_directions(rank: usize, tasks: usize, common_fraction: f64) -> usize {
    let common = (rank as f64 * common_fraction) as usize;
    let each = ((rank - common) as f64 / tasks as f64).round_ties_even() as usize;
    each.min(rank / tasks)
}

/// The projection away from the common left directions.
struct Complement<'a> {
    /// Orthonormal rows.
    common: &'a Matrix,
    /// Orthonormal rows that span all that is orthogonal to them, if they are known.
    basis: Option<&'a Matrix>,
}

/// Share of ‖D‖² that the squares of singular values outside the common directions must have to be taken from a difference of
/// Gram matrices: 10¹⁰ times its rounding.
const TOLD_APART: f64 = 1e-6;

impl Complement<'_> {
    /// The `k` leading singular triples of E = (I − U_c U_cᵀ) D; the left vectors in the coordinates of the basis, if there is
    /// one.
    fn leading(&self, update: &Matrix, k: usize) -> Result<Svd> {
        if let Some(basis) = self.basis {
            return Ok(Svd::truncated(&gemm::mul(basis, update), k, NOISE)?);
        }
        let shared = gemm::mul(self.common, update);
        if update.rows() > update.cols()
            && let Some(svd) = self.by_difference(update, &shared, k)?
        {
            return Ok(svd);
        }
        let mut rest = update.clone();
        gemm::add_mul(&mut rest, -1.0, &self.common.transpose(), &shared);
        Ok(Svd::truncated(&rest, k, NOISE)?)
    }

    /// The same for a tall D without E: EᵀE = DᵀD − CᵀC with C = U_cᵀ D. `None` if that loses too many digits.
    fn by_difference(&self, update: &Matrix, shared: &Matrix, k: usize) -> Result<Option<Svd>> {
        // What overflows here does not where E is taken to a scale of its own.
        let Ok(mut difference) = gram(update) else {
            return Ok(None);
        };
        let trace: f64 = (0..difference.rows()).map(|i| difference.get(i, i)).sum();
        let mut square = Symmetric::zeros(update.cols());
        if square.add_rows(shared.as_slice()).is_err() {
            return Ok(None);
        }
        difference.add_scaled(-1.0, &square.to_square());
        let eigen = Eigen::leading(&difference, k)?;
        if eigen
            .values
            .last()
            .is_none_or(|least| *least <= TOLD_APART * trace)
        {
            return Ok(None);
        }
        let values: Vec<f64> = eigen.values.iter().map(|x| x.sqrt()).collect();
        let right = eigen.vectors;
        let mut left = gemm::mul_nt(&right, update);
        gemm::add_mul(&mut left, -1.0, &gemm::mul_nt(&right, shared), self.common);
        left.scale_rows(&values.iter().map(|x| 1.0 / x).collect::<Vec<_>>());
        Ok(Some(Svd {
            left,
            values,
            right,
        }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{distance, low_rank, update};

    const SHAPES: [(usize, usize); 6] = [(6, 9), (9, 6), (7, 7), (1, 5), (5, 1), (40, 13)];

    #[test]
    fn the_spectrum_is_flat_and_the_nuclear_norm_kept() {
        for (m, n) in SHAPES {
            let updates = [update(1, m, n), update(2, m, n)];
            let updates: Vec<&Matrix> = updates.iter().collect();
            let before = Svd::of(&sum(&updates).unwrap()).unwrap().values;
            let mean = before.iter().sum::<f64>() / before.len() as f64;
            for x in Svd::of(&iso_c(&updates).unwrap().update).unwrap().values {
                assert!((x - mean).abs() < 1e-10 * mean, "{m}×{n}: {x} {mean}");
            }
        }
    }

    #[test]
    fn the_spectrum_with_directions_of_the_tasks_is_flat_too() {
        for (m, n) in SHAPES {
            let updates = [update(1, m, n), update(2, m, n), update(3, m, n)];
            let updates: Vec<&Matrix> = updates.iter().collect();
            for fraction in [0.0, 0.5, 0.8, 1.0] {
                let values = Svd::of(&iso_cts(&updates, fraction).unwrap().update)
                    .unwrap()
                    .values;
                for x in &values {
                    assert!((x - values[0]).abs() < 1e-9 * values[0], "{m}×{n}");
                }
            }
            let all = iso_cts(&updates, 1.0).unwrap().update;
            assert!(distance(&all, &iso_c(&updates).unwrap().update) < 1e-10 * all.norm());
        }
    }

    #[test]
    fn both_projections_lead_to_the_same_merge() {
        // Square: the complement is known by its basis; with a row of zeros it is not.
        let updates = [update(1, 8, 9), update(2, 8, 9)];
        let padded = updates.clone().map(|u| {
            let mut rows = u.into_vec();
            rows.extend([0.0; 9]);
            Matrix::new(9, 9, rows).unwrap()
        });
        let merged = iso_cts(&updates.iter().collect::<Vec<_>>(), 0.5)
            .unwrap()
            .update;
        let other = iso_cts(&padded.iter().collect::<Vec<_>>(), 0.5)
            .unwrap()
            .update;
        assert!(distance(&other.rows_range(0, 8), &merged) < 1e-10 * merged.norm());
        assert!(other.row(8).iter().all(|x| x.abs() < 1e-12));
    }

    #[test]
    fn a_difference_of_grams_finds_what_lies_outside_or_says_that_it_cannot() {
        let (m, n) = (30, 11);
        let common = Svd::of(&update(1, m, n)).unwrap().left.rows_range(0, 7);
        let complement = Complement {
            common: &common,
            basis: None,
        };
        let outside = update(2, m, n);
        let explicit = |d: &Matrix| {
            let mut rest = d.clone();
            let shared = gemm::mul(&common, d);
            gemm::add_mul(&mut rest, -1.0, &common.transpose(), &shared);
            Svd::of(&rest).unwrap().leading(3)
        };
        for (share, told) in [(1.0, true), (1e-2, true), (1e-6, false)] {
            let mut d = gemm::mul(&common.transpose(), &update(3, 7, n));
            d.add_scaled(share, &outside);
            let (found, expected) = (complement.leading(&d, 3).unwrap(), explicit(&d));
            for i in 0..3 {
                assert!((found.values[i] / expected.values[i] - 1.0).abs() < 1e-9);
                let both = |svd: &Svd| {
                    gemm::mul_tn(
                        &svd.left.rows_range(i, i + 1),
                        &svd.right.rows_range(i, i + 1),
                    )
                };
                assert!(distance(&both(&found), &both(&expected)) < 1e-7);
            }
            let shared = gemm::mul(&common, &d);
            assert_eq!(
                complement.by_difference(&d, &shared, 3).unwrap().is_some(),
                told
            );
        }
    }

    #[test]
    fn nothing_is_spread_outside_the_span_of_low_rank_updates() {
        let updates = [low_rank(1, 20, 12, 2), low_rank(2, 20, 12, 2)];
        let updates: Vec<&Matrix> = updates.iter().collect();
        for merged in [iso_c(&updates).unwrap(), iso_cts(&updates, 0.5).unwrap()] {
            assert_eq!((merged.rank, merged.full), (4, 12));
            let values = Svd::of(&merged.update).unwrap().values;
            assert!(values[3] > 0.999 * values[0] && values[4] < 1e-10 * values[0]);
        }
    }

    #[test]
    fn the_numbers_of_directions_are_those_of_the_published_code() {
        // (30 − 22)/3 = 2.67 → 3; (20 − 16)/8 = 0.5 → 0, to even; (5 − 0)/3 → 2 would be more than there are.
        assert_eq!(own_directions(30, 3, 0.75), 3);
        assert_eq!(own_directions(20, 8, 0.8), 0);
        assert_eq!(own_directions(5, 3, 0.0), 1);
        assert_eq!(own_directions(0, 3, 0.0), 0);
    }

    #[test]
    fn zeros_give_zeros_and_bad_input_errors() {
        let zero = Matrix::<f64>::zeros(4, 3);
        let a = update(1, 4, 3);
        let mut minus = a.clone();
        minus.scale(-1.0);
        assert_eq!(iso_c(&[&zero, &zero]).unwrap().update, zero);
        assert_eq!(iso_cts(&[&zero, &zero], 0.8).unwrap().update, zero);
        assert_eq!(iso_cts(&[&a, &minus], 0.8).unwrap().update, zero);
        assert!(
            iso_cts(&[&a, &zero], 0.5)
                .unwrap()
                .update
                .check_finite()
                .is_ok()
        );
        assert!(
            iso_cts(&[&a, &a], 0.5)
                .unwrap()
                .update
                .check_finite()
                .is_ok()
        );
        assert!(iso_c::<f64>(&[]).is_err());
        assert!(iso_cts(&[&a], 1.5).is_err() && iso_cts(&[&a], f64::NAN).is_err());
        assert!(iso_cts(&[&a, &update(1, 3, 4)], 0.8).is_err());
        assert!(iso_c(&[&Matrix::from_fn(2, 2, |_, _| f32::INFINITY)]).is_err());
        let empty = Matrix::<f32>::zeros(0, 3);
        assert_eq!(iso_cts(&[&empty], 0.5).unwrap().update, empty);
    }
}
