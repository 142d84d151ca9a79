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

use merganser_linalg::{Matrix, Polar, Real, Svd, gemm};

use crate::error::{check_range, common_shape};
use crate::{Merged, NOISE, Result, sum};

/// Iso-C: the sum of the updates with all its singular values made equal, of the same nuclear norm.
///
/// # Errors
/// If there is no update, shapes differ, a number is not finite, or a decomposition does not converge.
pub fn iso_c<T: Real>(updates: &[&Matrix<T>]) -> Result<Merged<T>> {
    common_shape(updates)?;
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
pub fn iso_cts<T: Real>(updates: &[&Matrix<T>], common_fraction: f64) -> Result<Merged<T>> {
    let (m, n) = common_shape(updates)?;
    check_range(
        "the common fraction",
        common_fraction,
        (0.0, 1.0),
        "from 0 to 1",
    )?;
    let all = Svd::truncated(&sum(updates)?, m.min(n), NOISE)?;
    let rank = all.values.len();
    let each = own_directions(rank, updates.len(), common_fraction);
    let common = all.leading(rank - each * updates.len());
    let complement = (rank == m).then(|| all.left.rows_range(common.values.len(), m));

    let (mut left, mut right) = (Vec::new(), vec![common.right]);
    let mut values = common.values;
    if each > 0 {
        let projected = Complement {
            common: &common.left,
            basis: complement.as_ref(),
        };
        for update in updates {
            let update = update.cast::<f64>();
            let own = Svd::truncated(&projected.of(&update), each, NOISE)?;
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
    let left = Matrix::stack_rows(&whitened);
    let mut right = Polar::of(&Matrix::stack_rows(&right), NOISE)?.factor;
    right.scale(values.iter().sum::<f64>() / values.len() as f64);
    Ok(Merged {
        // Where directions of the tasks coincide, the whole has fewer than the sum of theirs.
        rank: values.len().min(rank),
        ..Merged::whole(gemm::mul_tn(&left, &right).cast())
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

impl Complement<'_> {
    /// (I − U_c U_cᵀ) D, or its coordinates in the basis, which have the same singular values and right vectors.
    fn of(&self, update: &Matrix) -> Matrix {
        if let Some(basis) = self.basis {
            return gemm::mul(basis, update);
        }
        let mut rest = update.clone();
        let shared = gemm::mul(self.common, update);
        gemm::add_mul(&mut rest, -1.0, &self.common.transpose(), &shared);
        rest
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
