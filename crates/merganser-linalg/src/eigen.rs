//! Eigenvalues and eigenvectors of symmetric matrices, and what follows from them for singular systems.

use crate::reduction::Reduction;
use crate::{Matrix, Real, Result, gemm, tridiagonal};

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
        let scale = power_of_two(a.largest());
        let scaled = a.as_slice().iter().map(|x| T::from_f64(x.to_f64() / scale));
        let reduction = Reduction::of(Matrix::new(n, n, scaled.collect())?);
        let (mut values, mut vectors) =
            tridiagonal::leading(&reduction.diagonal, &reduction.below, k)?;
        reduction.turn(&mut vectors);
        for x in &mut values {
            *x *= scale;
        }
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

/// The power of two next to a number from below, by which scaling rounds nothing; 1 for zero.
pub(crate) fn power_of_two(x: f64) -> f64 {
    if x > 0.0 {
        2.0_f64.powi((x.log2().floor() as i32).clamp(-1000, 1000))
    } else {
        1.0
    }
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
    use proptest::prelude::*;

    use super::*;
    use crate::Svd;

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

    fn random(state: &mut u32, m: usize, n: usize) -> Matrix {
        Matrix::from_fn(m, n, |_, _| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(*state) / f64::from(u32::MAX) - 0.5
        })
    }

    /// Against faer's whole decomposition: values, residuals and orthogonality, in parts of the largest number.
    fn check(a: &Matrix, k: usize) {
        let n = a.rows();
        let scale = power_of_two(a.largest());
        let scaled = Matrix::from_fn(n, n, |i, j| a.get(i.max(j), i.min(j)) / scale);
        let mut expected = scaled
            .view()
            .self_adjoint_eigenvalues(faer::Side::Lower)
            .unwrap();
        expected.reverse();
        let mut eigen = Eigen::leading(a, k).unwrap();
        eigen.values.iter_mut().for_each(|x| *x /= scale);
        let close = 1e-13 * n as f64;
        assert_eq!(eigen.values.len(), k.min(n));
        for (x, y) in eigen.values.iter().zip(&expected) {
            assert!((x - y).abs() <= close, "{x} {y}");
        }
        let mut rest = gemm::mul(&eigen.vectors, &scaled);
        let mut own = eigen.vectors.clone();
        own.scale_rows(&eigen.values);
        rest.add_scaled(-1.0, &own);
        assert!(rest.norm() <= close, "{}", rest.norm());
        let mut gram = gemm::mul_nt(&eigen.vectors, &eigen.vectors);
        gram.add_scaled(-1.0, &Matrix::identity(k.min(n)));
        assert!(gram.norm() <= close, "{}", gram.norm());
    }

    #[test]
    fn matrices_of_all_kinds_at_sizes_around_the_blocks() {
        let mut state = 7;
        for n in [1, 2, 3, 31, 32, 33, 63, 64, 65, 66, 97, 128, 129, 193, 257] {
            let x = random(&mut state, n, n);
            let noise = gemm::mul_nt(&x, &x);
            let basis = Svd::of(&x).unwrap().left;
            let mut clustered = basis.clone();
            let values: Vec<f64> = (0..n)
                .map(|i| [1.0, 1.0, 1.0 + 1e-12, -2.0][i % 4])
                .collect();
            clustered.scale_rows(&values);
            let clustered = gemm::mul_tn(&basis, &clustered);
            let thin = random(&mut state, n, n.div_ceil(9));
            let graded = Matrix::from_fn(n, n, |i, j| {
                let exponent = |i: usize| 150.0 * (i as f64 / n as f64 - 0.5);
                noise.get(i, j) * 10_f64.powf(exponent(i) + exponent(j))
            });
            let mut reversed = graded.clone();
            for i in 0..n {
                for j in 0..n {
                    reversed.set(i, j, graded.get(n - 1 - i, n - 1 - j));
                }
            }
            let all = [
                Matrix::zeros(n, n),
                Matrix::identity(n),
                Matrix::from_fn(n, n, |_, _| 1.0),
                gemm::mul_nt(&thin, &thin),
                noise,
                clustered,
                graded,
                reversed,
            ];
            for a in all {
                for k in [n, n.div_ceil(8)] {
                    check(&a, k);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn symmetric_matrices_of_any_size(
            n in 1_usize..200,
            seed in any::<u32>(),
            exponent in -150_i32..150,
            zeros in 0_u8..4,
        ) {
            let mut state = seed;
            let mut a = random(&mut state, n, n);
            // Some rows and columns of zeros, and numbers that vanish beside others.
            for i in 0..n {
                for j in 0..n {
                    let factor = match (zeros, i % 5 == 1 || j % 5 == 1) {
                        (1, true) => 0.0,
                        (2, true) => 1e-160,
                        (3, true) => 1e-9,
                        _ => 1.0,
                    };
                    a.set(i, j, a.get(i, j) * factor * 10_f64.powi(exponent));
                }
            }
            check(&a, 1 + seed as usize % n);
            check(&a, n);
        }
    }

    #[test]
    fn single_precision_has_its_own_digits() {
        let a = gemm::mul_nt(&random(&mut 3, 150, 40), &random(&mut 3, 150, 40));
        let eigen = Eigen::of(&a.cast::<f32>()).unwrap();
        let exact = Eigen::of(&a).unwrap();
        for (x, y) in eigen.values.iter().zip(&exact.values) {
            assert!((x - y).abs() < 1e-5 * exact.values[0], "{x} {y}");
        }
        let mut gram = gemm::mul_nt(&eigen.vectors, &eigen.vectors);
        gram.add_scaled(-1.0, &Matrix::identity(150));
        assert!(gram.norm() < 1e-4, "{}", gram.norm());
    }

    #[test]
    fn the_bits_do_not_depend_on_the_number_of_threads() {
        let x = random(&mut 5, 600, 600);
        let a = gemm::mul_nt(&x, &x);
        let of = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(|| Eigen::of(&a).unwrap())
        };
        assert_eq!(of(1), of(3));
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
