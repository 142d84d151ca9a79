//! Where the energy of updates lies: their spectrum, their stable rank, and how much of one lies in the leading space of
//! another.
//!
//! The subspace alignment ratio of a task's update Δ_t with a merged one is ‖Π_k Δ_t‖_F / ‖Δ_t‖_F, where Π_k projects on the
//! k leading left singular vectors of the merged update, and k is the smallest number with
//! ‖Δ − Δ_k‖_F ≤ 0.05 ‖Δ‖_F (Marczak et al., "No Task Left Behind", ICML 2025, arXiv 2502.04959, section 3).

use merganser_linalg::{Matrix, Svd, gemm};

use crate::extract::leading;
use crate::{NOISE, Result};

/// What may be left of ‖Δ‖_F outside the leading space, by the paper.
const LEFT: f64 = 0.05;

/// The singular values of an update in descending order, as far as they stand out of rounding.
///
/// # Errors
/// If the update is not finite or the decomposition does not converge.
pub fn spectrum(update: &Matrix) -> Result<Vec<f64>> {
    let (m, n) = update.shape();
    Ok(Svd::truncated(update, m.min(n), NOISE)?.values)
}

/// ‖Δ‖²_F / ‖Δ‖²_2 from the singular values in descending order: between 1 and the rank, and hardly moved by small ones.
/// `None` if Δ is 0.
pub fn stable_rank(values: &[f64]) -> Option<f64> {
    let largest = *values.first().filter(|&&x| x > 0.0)?;
    Some(values.iter().map(|x| (x / largest).powi(2)).sum())
}

/// The space of an update's leading left singular vectors, as the rows of a k×m matrix: the fewest that leave at most 5 %
/// of its norm.
///
/// # Errors
/// Those of [`spectrum`].
pub fn leading_space(update: &Matrix) -> Result<Matrix> {
    let (m, n) = update.shape();
    let svd = Svd::truncated(update, m.min(n), NOISE)?;
    let total = update.norm().powi(2);
    let k = leading(&svd.values, (1.0 - LEFT * LEFT) * total);
    Ok(svd.left.rows_range(0, k))
}

/// ‖Π Δ‖_F / ‖Δ‖_F, 0 to 1, for the projector Π on the orthonormal rows of `space`. `None` if Δ is 0.
///
/// # Panics
/// If Δ does not have as many rows as the space has columns.
pub fn alignment(space: &Matrix, update: &Matrix) -> Option<f64> {
    let norm = update.norm();
    (norm > 0.0).then(|| (gemm::mul(space, update).norm() / norm).min(1.0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{low_rank, update};

    #[test]
    fn stable_ranks_of_known_matrices() {
        let diagonal = Matrix::from_fn(3, 5, |i, j| if i == j { [2.0, 1.0, 1.0][i] } else { 0.0 });
        let values = spectrum(&diagonal).unwrap();
        assert!((stable_rank(&values).unwrap() - 1.5).abs() < 1e-12);
        assert_eq!(spectrum(&low_rank(1, 20, 30, 4)).unwrap().len(), 4);
        assert_eq!(stable_rank(&spectrum(&Matrix::zeros(3, 3)).unwrap()), None);
    }

    #[test]
    fn a_space_holds_all_but_a_twentieth() {
        let d = Matrix::from_fn(4, 4, |i, j| {
            if i == j {
                [1.0, 0.5, 0.04, 0.03][i]
            } else {
                0.0
            }
        });
        let space = leading_space(&d).unwrap();
        // √(0.04² + 0.03²) = 0.05 is less than 5 % of the norm, 1.119.
        assert_eq!(space.shape(), (2, 4));
        let along = Matrix::from_fn(4, 1, |i, _| [3.0, 0.0, 4.0, 0.0][i]);
        assert!((alignment(&space, &along).unwrap() - 0.6).abs() < 1e-12);
        assert_eq!(alignment(&space, &Matrix::zeros(4, 2)), None);
    }

    #[test]
    fn an_update_lies_in_its_own_space() {
        let d = update(5, 12, 9);
        let own = alignment(&leading_space(&d).unwrap(), &d).unwrap();
        assert!((1.0 - LEFT * LEFT).sqrt() <= own && own <= 1.0);
        assert_eq!(leading_space(&Matrix::zeros(3, 2)).unwrap().shape(), (0, 3));
    }
}
