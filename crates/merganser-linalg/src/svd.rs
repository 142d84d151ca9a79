//! The thin singular value decomposition, and its leading part by the Gram matrix of the smaller side.
//!
//! With m ≤ n the eigenpairs of A Aᵀ are (σ², u), and v = Aᵀu/σ. The Gram matrix has the square of A's condition number:
//! in `f64`, values down to about 10⁻⁷ σ₁ are known, which is where the rounding of `f32` data begins.

use std::any::Any;
use std::borrow::Cow;

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::prelude::default;
use faer::{MatMut, Par};

use crate::eigen::{fix_sign, noise, power_of_two};
use crate::{Eigen, Error, Matrix, Real, Result, gemm, gram, registers};

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
        registers::clear();
        let values: Vec<f64> = (0..k).map(|i| values.column_vector()[i].to_f64()).collect();
        if values.iter().any(|x| !x.is_finite()) {
            return Err(Error::NoConvergence("singular value decomposition"));
        }
        // faer 0.24 may leave the values of a matrix of low rank unsorted.
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by(|&i, &j| values[j].total_cmp(&values[i]));
        let values = order.iter().map(|&i| values[i]).collect();
        let (left, right) = (left.gather_rows(&order), right.gather_rows(&order));
        Ok(Self {
            left,
            values,
            right,
        }
        .signed())
    }

    /// The same triples with the signs that [`of`](Self::of) promises.
    pub(crate) fn signed(mut self) -> Self {
        let minus = T::from_f64(-1.0);
        for i in 0..self.values.len() {
            if fix_sign(self.left.row_mut(i)) {
                for x in self.right.row_mut(i) {
                    *x *= minus;
                }
            }
        }
        self
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

impl Svd {
    /// The triples of the `k` largest singular values, without those at or below the noise that [`rank`](Self::rank) sees
    /// in numbers with this ε. They come from the Gram matrix where it can tell them from noise, which is several times
    /// faster on a rectangle, and from [`of`](Self::of) elsewhere; in `f64` either way.
    ///
    /// # Errors
    /// Those of [`of`](Self::of).
    pub fn truncated<T: Real>(a: &Matrix<T>, k: usize, epsilon: f64) -> Result<Self> {
        let (m, n) = a.shape();
        a.check_finite()?;
        let (scaled, scale) = widened(a);
        let cutoff = noise(m.max(n), epsilon.max(T::EPSILON));
        if cutoff.powi(2) <= noise(m.min(n), f64::EPSILON) {
            let mut svd = Self::of(&scaled)?;
            svd = svd.leading(k.min(svd.rank(epsilon.max(T::EPSILON))));
            for x in &mut svd.values {
                *x *= scale;
            }
            return Ok(svd);
        }
        let eigen = Eigen::leading(&gram(&scaled)?, k)?;
        let largest = eigen.values.first().copied().unwrap_or(0.0);
        let rank = eigen.rank(cutoff.powi(2) * largest);
        let own = eigen.vectors.rows_range(0, rank);
        let values: Vec<f64> = eigen.values[..rank].iter().map(|x| x.sqrt()).collect();
        let mut other = if m <= n {
            gemm::mul(&own, &scaled)
        } else {
            gemm::mul_nt(&own, &scaled)
        };
        other.scale_rows(&values.iter().map(|x| 1.0 / x).collect::<Vec<_>>());
        let (left, right) = if m <= n { (own, other) } else { (other, own) };
        let values = values.iter().map(|x| x * scale).collect();
        Ok(Self {
            left,
            values,
            right,
        }
        .signed())
    }
}

/// The matrix in `f64` and a factor to be undone: 1, unless its Gram could overflow or vanish.
pub(crate) fn widened<T: Real>(a: &Matrix<T>) -> (Cow<'_, Matrix>, f64) {
    let largest = a.largest();
    let same = (a as &dyn Any).downcast_ref::<Matrix>();
    let mut out = same.map_or_else(|| Cow::Owned(a.cast()), Cow::Borrowed);
    if largest == 0.0 || (1e-100..1e100).contains(&largest) {
        return (out, 1.0);
    }
    let scale = power_of_two(largest);
    out.to_mut().scale(1.0 / scale);
    (out, scale)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
    fn the_truncated_triples_are_those_of_the_whole() {
        for (m, n) in [(7, 12), (12, 7), (1, 9), (9, 1), (150, 150), (60, 240)] {
            let a = Matrix::from_fn(m, n, |i, j| (((i * n + j) as f64).powi(2) * 1.3).sin());
            let k = m.min(n).div_ceil(3);
            let whole = Svd::of(&a).unwrap().leading(k);
            for scale in [1.0, 1e-200, 1e200] {
                let mut a = a.clone();
                a.scale(scale);
                let part = Svd::truncated(&a, k, f64::from(f32::EPSILON)).unwrap();
                assert_eq!(part.values.len(), k);
                for (x, y) in part.values.iter().zip(&whole.values) {
                    assert!((x / scale - y).abs() < 1e-12 * whole.values[0], "{x} {y}");
                }
                for (x, y) in [(&part.left, &whole.left), (&part.right, &whole.right)] {
                    let mut difference = x.clone();
                    difference.add_scaled(-1.0, y);
                    assert!(difference.norm() < 1e-9, "{m}×{n} at {scale}");
                }
            }
        }
    }

    #[test]
    fn what_rises_above_no_noise_is_left_out() {
        let mut a = Matrix::<f64>::zeros(4, 6);
        for (i, x) in [1.0, 1e-3, 1e-9].into_iter().enumerate() {
            a.set(i, i, x);
        }
        let of = |epsilon| Svd::truncated(&a, 4, epsilon).unwrap().values;
        assert_eq!(of(f64::from(f32::EPSILON)).len(), 2);
        assert_eq!(of(0.0).len(), 3);
        assert!(
            Svd::truncated(&Matrix::<f32>::zeros(4, 6), 3, 0.0)
                .unwrap()
                .values
                .is_empty()
        );
        assert!(
            Svd::truncated(&Matrix::<f32>::zeros(0, 6), 3, 0.0)
                .unwrap()
                .values
                .is_empty()
        );
        assert!(Svd::truncated(&Matrix::from_fn(2, 2, |_, _| f32::NAN), 1, 0.0).is_err());
    }

    #[test]
    fn zeros_have_rank_zero() {
        assert_eq!(Svd::of(&Matrix::<f32>::zeros(4, 6)).unwrap().rank(0.0), 0);
        assert_eq!(Svd::of(&Matrix::<f64>::zeros(0, 6)).unwrap().rank(0.0), 0);
        assert!(Svd::of(&Matrix::from_fn(2, 2, |_, _| f32::NAN)).is_err());
    }
}
