//! Eigenvalues and eigenvectors of symmetric matrices, and what follows from them for singular systems.

use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::evd::tridiag;
use faer::linalg::householder;
use faer::linalg::qr::no_pivoting::factor::recommended_block_size;
use faer::prelude::default;
use faer::{Conj, Mat, MatMut, Par};

use crate::{Matrix, Real, Result, gemm, registers, tridiagonal};

/// A = Σ λ_k v_k v_kᵀ.
#[derive(Debug, Clone, PartialEq)]
pub struct Eigen<T = f64> {
    /// λ_k, in descending order.
    pub values: Vec<f64>,
    /// v_k as row k: orthonormal.
    pub vectors: Matrix<T>,
}

impl<T: Real> Eigen<T> {
    /// Decomposes a symmetric matrix; only its lower triangle is read. The sign of a vector is the one that makes its
    /// element of largest magnitude (the first of equals) positive.
    ///
    /// # Errors
    /// If the matrix is not finite or the iteration does not converge.
    ///
    /// # Panics
    /// If the matrix is not square.
    pub fn of(a: &Matrix<T>) -> Result<Self> {
        Self::leading(a, a.rows())
    }

    /// The pairs of the `k` largest eigenvalues, or all if there are fewer. Less work than [`of`](Self::of): the vectors
    /// of the others are neither put together nor turned back from the tridiagonal form.
    ///
    /// # Errors
    /// Those of [`of`](Self::of).
    ///
    /// # Panics
    /// If the matrix is not square.
    pub fn leading(a: &Matrix<T>, k: usize) -> Result<Self> {
        let n = a.rows();
        assert_eq!(n, a.cols(), "the matrix must be square");
        a.check_finite()?;
        let k = k.min(n);
        if k == 0 {
            return Ok(Self {
                values: Vec::new(),
                vectors: Matrix::zeros(0, n),
            });
        }
        let block = recommended_block_size::<T>(n, n);
        let scratch = StackReq::any_of(&[
            tridiag::tridiag_in_place_scratch::<T>(n, Par::Seq, default()),
            householder::apply_block_householder_sequence_on_the_left_in_place_scratch::<T>(
                n - 1,
                block,
                k,
            ),
        ]);
        let mut memory = MemBuffer::new(scratch);

        // faer works on columns, which are the rows of our matrices. A = Q T Qᵀ: T tridiagonal, Q as reflections below it.
        let mut reduced = a.transpose();
        let mut reduced = MatMut::from_column_major_slice_mut(reduced.as_mut_slice(), n, n);
        let mut factors = Mat::<T>::zeros(block, n - 1);
        tridiag::tridiag_in_place(
            reduced.as_mut(),
            factors.as_mut(),
            Par::Seq,
            MemStack::new(&mut memory),
            default(),
        );
        registers::clear();
        let diagonal: Vec<T> = (0..n).map(|i| reduced[(i, i)]).collect();
        let below: Vec<T> = (1..n).map(|i| reduced[(i, i - 1)]).collect();
        let (values, mut vectors) = tridiagonal::leading(&diagonal, &below, k)?;
        householder::apply_block_householder_sequence_on_the_left_in_place_with_conj(
            reduced.as_ref().submatrix(1, 0, n - 1, n - 1),
            factors.as_ref(),
            Conj::No,
            MatMut::from_column_major_slice_mut(vectors.as_mut_slice(), n, k).subrows_mut(1, n - 1),
            Par::Seq,
            MemStack::new(&mut memory),
        );
        registers::clear();
        for k in 0..k {
            fix_sign(vectors.row_mut(k));
        }
        Ok(Self { values, vectors })
    }

    /// The value at or below which eigenvalues of a positive semidefinite matrix are rounding: 4√n · ε · λ₁, for the ε of
    /// the numbers the matrix was computed from, which may be larger than that of its type. (The norm of a symmetric
    /// matrix of independent errors of size ε grows with the square root of its dimension.)
    pub fn noise(&self, epsilon: f64) -> f64 {
        let largest = self.values.first().copied().unwrap_or(0.0).max(0.0);
        noise(self.vectors.cols(), epsilon.max(T::EPSILON)) * largest
    }

    /// Number of eigenvalues above `cutoff`.
    pub fn rank(&self, cutoff: f64) -> usize {
        self.values.iter().take_while(|&&x| x > cutoff).count()
    }

    /// X = C A⁺: the least-norm solution of X A = C, where eigenvalues at or below `cutoff` count as zero.
    ///
    /// # Panics
    /// If C does not have as many columns as A.
    pub fn solve_rows(&self, c: &Matrix<T>, cutoff: f64) -> Matrix<T> {
        let rank = self.rank(cutoff);
        let vectors = self.vectors.rows_range(0, rank);
        let mut coordinates = gemm::mul_nt(c, &vectors);
        let inverse: Vec<f64> = self.values[..rank].iter().map(|x| 1.0 / x).collect();
        coordinates.scale_cols(&inverse);
        gemm::mul(&coordinates, &vectors)
    }
}

/// Rounding in a matrix of dimension n, relative to its norm.
pub(crate) fn noise(n: usize, epsilon: f64) -> f64 {
    4.0 * (n as f64).sqrt() * epsilon
}

/// Makes the element of largest magnitude positive; whether the sign changed.
pub(crate) fn fix_sign<T: Real>(vector: &mut [T]) -> bool {
    let mut largest = 0.0;
    let mut negative = false;
    for x in vector.iter() {
        let x = x.to_f64();
        if x.abs() > largest {
            largest = x.abs();
            negative = x < 0.0;
        }
    }
    if negative {
        let minus = T::from_f64(-1.0);
        for x in vector {
            *x *= minus;
        }
    }
    negative
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn singular() -> Matrix {
        // Rank 2 in 5 dimensions.
        let x = Matrix::from_fn(2, 5, |i, j| ((3 * i + j * j) % 7) as f64 - 2.0);
        gemm::mul_tn(&x, &x)
    }

    #[test]
    fn eigenpairs_rebuild_the_matrix() {
        let a = singular();
        let eigen = Eigen::of(&a).unwrap();
        assert!(eigen.values.is_sorted_by(|a, b| a >= b));
        let mut scaled = eigen.vectors.clone();
        scaled.scale_rows(&eigen.values);
        let mut rebuilt = gemm::mul_tn(&eigen.vectors, &scaled);
        rebuilt.add_scaled(-1.0, &a);
        assert!(rebuilt.norm() < 1e-12 * a.norm());
        assert_eq!(eigen.rank(eigen.noise(0.0)), 2);
    }

    #[test]
    fn the_least_norm_solution_lies_in_the_row_space() {
        let a = singular();
        let eigen = Eigen::of(&a).unwrap();
        let c = gemm::mul(&Matrix::from_fn(3, 5, |i, j| (i + j) as f64), &a);
        let x = eigen.solve_rows(&c, eigen.noise(0.0));
        let mut residual = gemm::mul(&x, &a);
        residual.add_scaled(-1.0, &c);
        assert!(residual.norm() < 1e-10 * c.norm());
        let null = eigen.vectors.rows_range(2, 5);
        assert!(gemm::mul_nt(&x, &null).norm() < 1e-12 * x.norm());
    }

    #[test]
    fn large_matrices_are_rebuilt_too() {
        let x = Matrix::from_fn(350, 300, |i, j| (((i * 300 + j) as f64) * 1.7).sin());
        let a = gemm::mul_tn(&x, &x);
        let eigen = Eigen::of(&a).unwrap();
        let mut rest = gemm::mul(&eigen.vectors, &a);
        let mut scaled = eigen.vectors.clone();
        scaled.scale_rows(&eigen.values);
        rest.add_scaled(-1.0, &scaled);
        assert!(rest.norm() < 1e-12 * a.norm());
    }

    #[test]
    fn the_leading_pairs_are_those_of_the_whole() {
        for n in [1, 2, 40, 300] {
            let x = Matrix::from_fn(n, n, |i, j| (((i * n + j) as f64) * 1.7).sin());
            let a = gemm::mul_tn(&x, &x);
            let whole = Eigen::of(&a).unwrap();
            let k = n.div_ceil(5);
            let leading = Eigen::leading(&a, k).unwrap();
            for (x, y) in leading.values.iter().zip(&whole.values) {
                assert!((x - y).abs() <= 1e-13 * whole.values[0], "{x} {y}");
            }
            let mut difference = whole.vectors.rows_range(0, k);
            difference.add_scaled(-1.0, &leading.vectors);
            assert!(difference.norm() < 1e-12);
            assert_eq!(Eigen::leading(&a, 2 * n).unwrap().vectors.rows(), n);
        }
    }

    #[test]
    fn zeros_have_rank_zero_and_nan_is_refused() {
        let eigen = Eigen::of(&Matrix::<f32>::zeros(3, 3)).unwrap();
        assert_eq!(eigen.rank(eigen.noise(0.0)), 0);
        let x = eigen.solve_rows(&Matrix::from_fn(1, 3, |_, j| j as f32), 0.0);
        assert_eq!(x, Matrix::zeros(1, 3));
        let nan = Matrix::from_fn(2, 2, |_, _| f64::NAN);
        assert!(Eigen::of(&nan).is_err());
        assert!(
            Eigen::of(&Matrix::<f64>::zeros(0, 0))
                .unwrap()
                .values
                .is_empty()
        );
    }
}
