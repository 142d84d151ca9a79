//! CART: the average, and of every task's distance from it the leading directions.
//!
//! With D̄ the mean of the updates, Δ = D̄ + λ Σ_t ⌊D_t − D̄⌋_k, where ⌊·⌋_k keeps the k = ⌈q min(m, n)⌉ leading singular
//! triples (Choi et al., *Revisiting Weight Averaging for Model Merging*, 2024, arXiv 2412.12153).

use merganser_linalg::{Matrix, Real, Svd, gemm};

use crate::error::check_range;
use crate::{NOISE, Result, Updates, sum};

/// The merged update of one matrix: `rank_fraction` is q, `scale` is λ.
///
/// # Errors
/// If there is no update, shapes differ, a number is not finite, the fraction is not in [0, 1], or a decomposition does
/// not converge.
pub fn cart<T: Real>(
    updates: &(impl Updates<T> + ?Sized),
    rank_fraction: f64,
    scale: f64,
) -> Result<Matrix<T>> {
    let (m, n) = updates.shape()?;
    cart_of(updates, m.min(n), rank_fraction, scale)
}

/// The same with a share of `full` directions.
pub(crate) fn cart_of<T: Real>(
    updates: &(impl Updates<T> + ?Sized),
    full: usize,
    rank_fraction: f64,
    scale: f64,
) -> Result<Matrix<T>> {
    check_range(
        "the fraction of the rank",
        rank_fraction,
        (0.0, 1.0),
        "from 0 to 1",
    )?;
    check_range("lambda", scale, (f64::MIN, f64::MAX), "finite")?;
    let rank = (rank_fraction * full as f64).ceil() as usize;
    let mut mean = sum(updates)?;
    mean.scale(1.0 / updates.tasks() as f64);
    let mut merged = mean.clone();
    for task in 0..updates.tasks() {
        let mut centred = updates.checked(task)?.cast::<f64>();
        centred.add_scaled(-1.0, &mean);
        let mut svd = Svd::truncated(&centred, rank, NOISE)?;
        svd.right.scale_rows(&svd.values);
        gemm::add_mul(&mut merged, scale, &svd.left.transpose(), &svd.right);
    }
    Ok(merged.cast())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{distance, update};

    #[test]
    fn without_directions_of_the_tasks_it_is_the_average() {
        let updates = [update(1, 6, 9), update(2, 6, 9), update(3, 6, 9)];
        let updates: Vec<&Matrix> = updates.iter().collect();
        let mut mean = sum(&updates).unwrap();
        mean.scale(1.0 / 3.0);
        assert_eq!(cart(&updates, 0.0, 1.0).unwrap(), mean);
        assert!(distance(&cart(&updates, 0.5, 0.0).unwrap(), &mean) < 1e-15);
        // All of them sum up to nothing, since they are distances from their mean.
        assert!(distance(&cart(&updates, 1.0, 0.7).unwrap(), &mean) < 1e-12);
        assert!(distance(&cart(&updates, 0.3, 0.7).unwrap(), &mean) > 1e-2);
    }

    #[test]
    fn equal_tasks_are_their_average() {
        let a = update(1, 5, 4);
        assert!(distance(&cart(&[&a, &a], 0.5, 1.0).unwrap(), &a) < 1e-14);
        let zero = Matrix::<f32>::zeros(3, 2);
        assert_eq!(cart(&[&zero], 0.5, 1.0).unwrap(), zero);
    }

    #[test]
    fn bad_input_is_an_error() {
        let a = update(1, 5, 4);
        assert!(cart::<f64>(&[], 0.1, 1.0).is_err());
        assert!(cart(&[&a], 1.1, 1.0).is_err());
        assert!(cart(&[&a], 0.1, f64::INFINITY).is_err());
        assert!(cart(&[&a, &update(1, 4, 5)], 0.1, 1.0).is_err());
    }
}
