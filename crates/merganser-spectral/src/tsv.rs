//! TSV-M: the leading singular vectors of every task, made orthogonal to each other.
//!
//! Of every update the k = ⌊min(m, n)/T⌋ leading singular triples are kept. With Û = [U_1 … U_T], V̂ alike and s all their
//! singular values, Δ = polar(Û) diag(s) polar(V̂)ᵀ, where polar(A) is the matrix of orthonormal columns nearest to A
//! (Gargiulo et al., *Task Singular Vectors*, CVPR 2025, arXiv 2412.00081). Triples beyond an update's numerical rank are
//! left out: they are noise, and would turn the others.

use merganser_linalg::{Matrix, Polar, Real, Svd, gemm};

use crate::error::common_shape;
use crate::{NOISE, Result};

/// The merged update of one matrix; updates that are zero contribute nothing.
///
/// # Errors
/// If there is no update, shapes differ, a number is not finite, or a decomposition does not converge.
pub fn tsv_m<T: Real>(updates: &[&Matrix<T>]) -> Result<Matrix<T>> {
    let (m, n) = common_shape(updates)?;
    let k = m.min(n) / updates.len();
    let (mut left, mut right, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for update in updates {
        let svd = Svd::truncated(&update.cast::<f64>(), k, NOISE)?;
        left.push(svd.left);
        right.push(svd.right);
        values.extend(svd.values);
    }
    if values.is_empty() {
        return Ok(Matrix::zeros(m, n));
    }
    let left = Polar::of(&Matrix::stack_rows(&left), NOISE)?.factor;
    let mut right = Polar::of(&Matrix::stack_rows(&right), NOISE)?.factor;
    right.scale_rows(&values);
    Ok(gemm::mul_tn(&left, &right).cast())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{distance, update};

    #[test]
    fn one_task_is_itself() {
        for (m, n) in [(5, 8), (8, 5), (6, 6), (1, 4), (4, 1)] {
            let a = update(1, m, n);
            let merged = tsv_m(&[&a]).unwrap();
            assert!(distance(&merged, &a) < 1e-10 * a.norm());
        }
    }

    #[test]
    fn tasks_in_orthogonal_spaces_add_up() {
        let mut a = Matrix::zeros(6, 6);
        let mut b = Matrix::zeros(6, 6);
        for i in 0..3 {
            a.set(i, i, 1.0 + i as f64);
            b.set(i + 3, i + 3, 2.0 + i as f64);
        }
        let merged = tsv_m(&[&a, &b]).unwrap();
        let mut sum = a.clone();
        sum.add_scaled(1.0, &b);
        assert!(distance(&merged, &sum) < 1e-12);
    }

    #[test]
    fn the_singular_values_are_the_tasks_own() {
        let updates = [update(1, 6, 9), update(2, 6, 9)];
        let merged = tsv_m(&updates.iter().collect::<Vec<_>>()).unwrap();
        let mut expected: Vec<f64> = updates
            .iter()
            .flat_map(|u| Svd::of(u).unwrap().values.into_iter().take(3))
            .collect();
        expected.sort_by(|a, b| b.total_cmp(a));
        for (found, expected) in Svd::of(&merged).unwrap().values.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-10);
        }
    }

    #[test]
    fn zero_updates_give_zero_and_never_nan() {
        let zero = Matrix::<f64>::zeros(4, 3);
        assert_eq!(tsv_m(&[&zero, &zero]).unwrap(), zero);
        let a = update(3, 4, 3);
        assert!(tsv_m(&[&a, &zero]).unwrap().check_finite().is_ok());
        // Both tasks have the same vectors: only one of each pair is a direction of its own.
        assert!(tsv_m(&[&a, &a]).unwrap().check_finite().is_ok());
        assert!(tsv_m::<f64>(&[]).is_err());
        // More tasks than singular values.
        assert_eq!(tsv_m(&[&a; 5]).unwrap(), zero);
        assert!(tsv_m(&[&a, &update(1, 3, 4)]).is_err());
        assert!(tsv_m(&[&Matrix::from_fn(2, 2, |_, _| f64::NAN)]).is_err());
    }
}
