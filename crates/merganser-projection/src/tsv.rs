//! TSV-M: the leading singular vectors of every task, made orthogonal to each other.
//!
//! Of every update the k = ⌊min(m, n)/T⌋ leading singular triples are kept. With Û = [U_1 … U_T], V̂ alike and s all their
//! singular values, Δ = polar(Û) diag(s) polar(V̂)ᵀ, where polar(A) is the matrix of orthonormal columns nearest to A
//! (Gargiulo et al., *Task Singular Vectors*, CVPR 2025, arXiv 2412.00081). Data-free. Triples beyond an update's
//! numerical rank are left out: they are noise, and would turn the others.

use merganser_linalg::{Matrix, Real, Svd, gemm};

use crate::error::shape;
use crate::moments::refused;
use crate::{Error, Result};

/// The merged update of one matrix; updates that are zero contribute nothing.
///
/// # Errors
/// If there is no update, shapes differ, a number is not finite, or a decomposition does not converge.
pub fn tsv_m<T: Real>(updates: &[&Matrix<T>]) -> Result<Matrix<T>> {
    let (m, n) = updates.first().ok_or(Error::NoTasks)?.shape();
    let k = m.min(n) / updates.len();
    let mut parts = Vec::with_capacity(updates.len());
    for (t, update) in updates.iter().enumerate() {
        if update.shape() != (m, n) {
            return Err(shape(
                format!("the update of task {t}"),
                update.shape(),
                (m, n),
            ));
        }
        update
            .check_finite()
            .map_err(|problem| refused(&format!("the update of task {t}"), problem))?;
        let svd = Svd::of(update)?;
        // Updates are differences of weights in half or single precision.
        let rank = svd.rank(f64::from(f32::EPSILON));
        parts.push(svd.leading(k.min(rank)));
    }
    let values: Vec<f64> = parts
        .iter()
        .flat_map(|svd| svd.values.iter().copied())
        .collect();
    if values.is_empty() {
        return Ok(Matrix::zeros(m, n));
    }
    let left = polar(&Matrix::stack_rows(parts.iter().map(|svd| &svd.left)))?;
    let mut right = polar(&Matrix::stack_rows(parts.iter().map(|svd| &svd.right)))?;
    right.scale_rows(&values);
    Ok(gemm::mul_tn(&left, &right))
}

/// The rows of A made orthonormal, changing them as little as possible: U Vᵀ of its decomposition.
fn polar<T: Real>(rows: &Matrix<T>) -> Result<Matrix<T>> {
    let svd = Svd::of(rows)?;
    let svd = svd.leading(svd.rank(0.0));
    Ok(gemm::mul_tn(&svd.left, &svd.right))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn update(seed: usize, m: usize, n: usize) -> Matrix {
        Matrix::from_fn(m, n, |i, j| {
            (((i * 31 + j * 17 + seed * 7) * 2_654_435_761) % 1000) as f64 / 500.0 - 1.0
        })
    }

    #[test]
    fn one_task_is_itself() {
        let a = update(1, 5, 8);
        let merged = tsv_m(&[&a]).unwrap();
        let mut difference = merged;
        difference.add_scaled(-1.0, &a);
        assert!(difference.norm() < 1e-10 * a.norm());
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
        sum.add_scaled(-1.0, &merged);
        assert!(sum.norm() < 1e-12);
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
        assert!(tsv_m::<f64>(&[]).is_err());
    }
}
