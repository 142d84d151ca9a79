//! The thin singular value decomposition.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::prelude::default;
use faer::{MatMut, Par};

use crate::eigen::{fix_sign, noise};
use crate::{Error, Matrix, Real, Result};

/// A = Σ σ_k u_k v_kᵀ, k < min(m, n).
#[derive(Debug, Clone, PartialEq)]
pub struct Svd<T = f64> {
    /// u_k as row k, of m numbers: orthonormal.
    pub left: Matrix<T>,
    /// σ_k ≥ 0, in descending order.
    pub values: Vec<f64>,
    /// v_k as row k, of n numbers: orthonormal.
    pub right: Matrix<T>,
}

impl<T: Real> Svd<T> {
    /// Decomposes an m×n matrix. The sign of a pair is the one that makes the element of u_k of largest magnitude (the
    /// first of equals) positive.
    ///
    /// # Errors
    /// If the matrix is not finite or the iteration does not converge.
    pub fn of(a: &Matrix<T>) -> Result<Self> {
        a.check_finite()?;
        let (m, n) = a.shape();
        let k = m.min(n);
        let mut left = Matrix::<T>::zeros(k, m);
        let mut right = Matrix::<T>::zeros(k, n);
        let mut values = Diag::<T>::zeros(k);
        if k == 0 {
            return Ok(Self {
                left,
                values: Vec::new(),
                right,
            });
        }
        // Of Aᵀ, which is column-major as faer wants it: its left vectors are our right ones.
        let thin = ComputeSvdVectors::Thin;
        let scratch = svd_scratch::<T>(n, m, thin, thin, Par::Seq, default());
        svd(
            a.view().transpose(),
            values.as_mut(),
            Some(MatMut::from_column_major_slice_mut(
                right.as_mut_slice(),
                n,
                k,
            )),
            Some(MatMut::from_column_major_slice_mut(
                left.as_mut_slice(),
                m,
                k,
            )),
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(scratch)),
            default(),
        )
        .map_err(|_| Error::NoConvergence("singular value decomposition"))?;
        let values: Vec<f64> = (0..k).map(|i| values.column_vector()[i].to_f64()).collect();
        if values.iter().any(|x| !x.is_finite()) {
            return Err(Error::NoConvergence("singular value decomposition"));
        }
        // faer 0.24 may leave the values of a matrix of low rank unsorted.
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by(|&i, &j| values[j].total_cmp(&values[i]));
        let values = order.iter().map(|&i| values[i]).collect();
        let (mut left, mut right) = (left.gather_rows(&order), right.gather_rows(&order));
        let minus = T::from_f64(-1.0);
        for i in 0..k {
            if fix_sign(left.row_mut(i)) {
                for x in right.row_mut(i) {
                    *x *= minus;
                }
            }
        }
        Ok(Self {
            left,
            values,
            right,
        })
    }

    /// Number of singular values above 4√max(m, n) · ε · σ₁, for the ε of the numbers the matrix was computed from, which
    /// may be larger than that of its type.
    pub fn rank(&self, epsilon: f64) -> usize {
        let largest = self.values.first().copied().unwrap_or(0.0);
        let size = self.left.cols().max(self.right.cols());
        let cutoff = noise(size, epsilon.max(T::EPSILON)) * largest;
        self.values.iter().take_while(|&&x| x > cutoff).count()
    }

    /// Only the first `k` triples, or all if there are fewer.
    #[must_use]
    pub fn leading(&self, k: usize) -> Self {
        let k = k.min(self.values.len());
        Self {
            left: self.left.rows_range(0, k),
            values: self.values[..k].to_vec(),
            right: self.right.rows_range(0, k),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::gemm;

    #[test]
    fn triples_rebuild_the_matrix_and_the_rank_is_seen() {
        for (m, n) in [(7, 12), (12, 7), (9, 9), (220, 300), (300, 60)] {
            let b = Matrix::from_fn(m, 3, |i, j| ((i * 5 + j * 3) % 11) as f64 - 5.0);
            let c = Matrix::from_fn(3, n, |i, j| ((i * 7 + j * j) % 13) as f64 - 6.0);
            let a = gemm::mul(&b, &c);
            let svd = Svd::of(&a).unwrap();
            assert_eq!(svd.rank(0.0), 3);
            let mut right = svd.right.clone();
            right.scale_rows(&svd.values);
            let mut rebuilt = gemm::mul_tn(&svd.left, &right);
            rebuilt.add_scaled(-1.0, &a);
            assert!(rebuilt.norm() < 1e-12 * a.norm());
            assert_eq!(svd.leading(2).right.shape(), (2, n));
        }
    }

    #[test]
    fn zeros_have_rank_zero() {
        assert_eq!(Svd::of(&Matrix::<f32>::zeros(4, 6)).unwrap().rank(0.0), 0);
        assert_eq!(Svd::of(&Matrix::<f64>::zeros(0, 6)).unwrap().rank(0.0), 0);
        assert!(Svd::of(&Matrix::from_fn(2, 2, |_, _| f32::NAN)).is_err());
    }
}
