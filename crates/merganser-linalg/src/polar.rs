//! The polar factor: the partial isometry nearest to a matrix.
//!
//! A = U Σ Vᵀ has the polar factor U Vᵀ = (A Aᵀ)^(−1/2) A, so that the eigenpairs of the smaller Gram matrix are enough. It
//! is unique only on the range of A: directions whose singular value is noise would be as long as all others, and are left
//! out. The nuclear norm Σ σ is a by-product.
//!
//! The Gram matrix has the square of A's condition: of directions much shorter than the longest it knows less than f64 could.
//! Those, W = V A for their eigenvectors as the rows of V, are cleared of what they have of the others and brought to their polar
//! factor by themselves, in a Gram matrix of their own. What is left, a rotation of the shortest directions by ε κ² for the ε of
//! `f64`, is far below ε κ for that of `f32`, by which the data know them.

use std::borrow::Cow;

use crate::eigen::noise;
use crate::svd::widened;
use crate::symmetric::gram_of_rows;
use crate::{Eigen, Matrix, Real, Result, Svd, gemm, gram};

/// Condition up to which one Gram matrix is enough: rounding then leaves a loss of orthogonality of 10⁻¹⁰.
const KNOWN: f64 = 1e6;

/// U Vᵀ of a matrix U Σ Vᵀ, over its numerical range.
#[derive(Debug, Clone, PartialEq)]
pub struct Polar {
    /// U Vᵀ, of the shape of the matrix: all its singular values are 1, or 0 outside the numerical range.
    pub factor: Matrix<f64>,
    /// Σ σ over the numerical range.
    pub nuclear_norm: f64,
    /// Dimension of the numerical range.
    pub rank: usize,
}

impl Polar {
    /// The factor of an m×n matrix of numbers with this ε. Singular values of at most 4√max(m, n) · ε · σ₁ count as zero.
    ///
    /// By the Gram matrix in `f64` where it can tell such values from zero, which it can for the ε of `f32` and coarser
    /// types; by a singular value decomposition otherwise.
    ///
    /// # Errors
    /// If the matrix is not finite or a decomposition does not converge.
    pub fn of<T: Real>(a: &Matrix<T>, epsilon: f64) -> Result<Self> {
        Ok(Root::of(a, epsilon)?.applied())
    }

    /// C polar(A). Where A is wide and C has fewer rows than A columns this is less work than with polar(A) itself, because
    /// C (A Aᵀ)^(−1/2) is the smaller matrix.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    ///
    /// # Panics
    /// If C does not have as many columns as A rows.
    pub fn times<T: Real>(c: &Matrix<f64>, a: &Matrix<T>, epsilon: f64) -> Result<Matrix<f64>> {
        let root = Root::of(a, epsilon)?;
        match &root.inverse {
            Some(inverse) if a.rows() <= a.cols() => {
                let mut product = gemm::mul(&gemm::mul(c, inverse), &root.matrix);
                if let Some(short) = &root.short {
                    let along = gemm::mul_nt(c, &short.vectors);
                    gemm::add_mul(&mut product, 1.0, &along, &short.factor);
                }
                Ok(product)
            }
            _ => Ok(gemm::mul(c, &root.applied().factor)),
        }
    }
}

/// A matrix and what brings it to its polar factor.
struct Root<'a> {
    /// A, or its factor already if there is no `inverse`.
    matrix: Cow<'a, Matrix<f64>>,
    /// (A Aᵀ)^(−1/2), or (AᵀA)^(−1/2) if A is tall, over its long directions.
    inverse: Option<Matrix<f64>>,
    /// The others.
    short: Option<Short>,
    nuclear_norm: f64,
    rank: usize,
}

/// Directions of which the Gram matrix of all does not know enough.
struct Short {
    /// Orthonormal rows on the smaller side.
    vectors: Matrix<f64>,
    /// What they are turned into: as many rows on the larger side.
    factor: Matrix<f64>,
}

impl<'a> Root<'a> {
    fn of<T: Real>(a: &'a Matrix<T>, epsilon: f64) -> Result<Self> {
        a.check_finite()?;
        let (m, n) = a.shape();
        let (a, scale) = widened(a);
        let epsilon = epsilon.max(T::EPSILON);
        let cutoff = noise(m.max(n), epsilon);
        if cutoff.powi(2) <= noise(m.min(n), f64::EPSILON) {
            let svd = Svd::of(&a)?;
            let svd = svd.leading(svd.rank(epsilon));
            return Ok(Self {
                matrix: Cow::Owned(gemm::mul_tn(&svd.left, &svd.right)),
                inverse: None,
                short: None,
                nuclear_norm: scale * svd.values.iter().sum::<f64>(),
                rank: svd.values.len(),
            });
        }
        let eigen = Eigen::of(&gram(&a)?)?;
        let largest = eigen.values.first().copied().unwrap_or(0.0);
        let rank = eigen.rank(cutoff.powi(2) * largest);
        let long = eigen.rank(largest / KNOWN).min(rank);
        let roots: Vec<f64> = eigen.values[..long].iter().map(|x| x.sqrt()).collect();
        // With each vector times λ^(−1/4), so that half the product is enough.
        let mut scaled = eigen.vectors.rows_range(0, long).transpose();
        scaled.scale_cols(&roots.iter().map(|x| 1.0 / x.sqrt()).collect::<Vec<_>>());
        let inverse = gram_of_rows(&scaled);
        let mut nuclear_norm = roots.iter().sum::<f64>();
        let mut found = long;
        let mut short = None;
        if long < rank {
            let vectors = eigen.vectors.rows_range(long, rank);
            let rows = outside(&vectors, &inverse, &a);
            // The same cutoff, in parts of the longest of these.
            let polar = Polar::of(&rows, epsilon * (largest / eigen.values[long]).sqrt())?;
            found += polar.rank;
            nuclear_norm += polar.nuclear_norm;
            short = Some(Short {
                vectors,
                factor: polar.factor,
            });
        }
        Ok(Self {
            matrix: a,
            inverse: Some(inverse),
            short,
            nuclear_norm: scale * nuclear_norm,
            rank: found,
        })
    }

    fn applied(self) -> Polar {
        let mut factor = match &self.inverse {
            Some(inverse) => on_smaller_side(inverse, &self.matrix),
            None => self.matrix.into_owned(),
        };
        if let Some(Short {
            vectors,
            factor: short,
        }) = &self.short
        {
            let (left, right) = if factor.rows() <= factor.cols() {
                (vectors, short)
            } else {
                (short, vectors)
            };
            gemm::add_mul(&mut factor, 1.0, &left.transpose(), right);
        }
        Polar {
            factor,
            nuclear_norm: self.nuclear_norm,
            rank: self.rank,
        }
    }
}

/// What A makes of vectors of the smaller side, as rows, without what they have of the directions that the inverse root S knows:
/// W = V A, less W P⁺ P for P = S A.
fn outside(vectors: &Matrix<f64>, inverse: &Matrix<f64>, a: &Matrix<f64>) -> Matrix<f64> {
    let wide = a.rows() <= a.cols();
    let to_larger = if wide { gemm::mul } else { gemm::mul_nt };
    let to_smaller = if wide { gemm::mul_nt } else { gemm::mul };
    let mut rows = to_larger(vectors, a);
    let known = gemm::mul(&gemm::mul(&to_smaller(&rows, a), inverse), inverse);
    rows.add_scaled(-1.0, &to_larger(&known, a));
    rows
}

/// S A or A S for a symmetric S of the smaller dimension of A.
fn on_smaller_side(s: &Matrix<f64>, a: &Matrix<f64>) -> Matrix<f64> {
    if a.rows() <= a.cols() {
        gemm::mul(s, a)
    } else {
        gemm::mul(a, s)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const F32: f64 = f32::EPSILON as f64;

    fn numbers(m: usize, n: usize) -> Matrix {
        let mut state = 0x9e37_79b9_u32;
        Matrix::from_fn(m, n, |_, _| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state) / f64::from(u32::MAX) - 0.5
        })
    }

    fn difference(a: &Matrix, b: &Matrix) -> f64 {
        let mut difference = a.clone();
        difference.add_scaled(-1.0, b);
        difference.norm()
    }

    #[test]
    fn the_gram_and_the_decomposition_agree() {
        for (m, n) in [(1, 7), (7, 1), (12, 12), (20, 61), (61, 20)] {
            for scale in [1.0, 1e-180, 1e180] {
                let mut a = numbers(m, n);
                a.scale(scale);
                let (fast, exact) = (Polar::of(&a, F32).unwrap(), Polar::of(&a, 0.0).unwrap());
                assert!(difference(&fast.factor, &exact.factor) < 1e-9, "{m}×{n}");
                assert!((fast.nuclear_norm / exact.nuclear_norm - 1.0).abs() < 1e-9);
                assert_eq!(fast.rank, exact.rank);
            }
        }
    }

    #[test]
    fn an_ill_conditioned_factor_is_orthonormal_too() {
        let basis = Polar::of(&numbers(30, 50), F32).unwrap().factor;
        let turn = Polar::of(&numbers(30, 30), F32).unwrap().factor;
        let sigma: Vec<f64> = (0..30)
            .map(|i| 10.0_f64.powf(-5.0 * i as f64 / 29.0))
            .collect();
        let mut a = basis.clone();
        a.scale_rows(&sigma);
        let a = gemm::mul(&turn, &a);
        let polar = Polar::of(&a, F32).unwrap();
        assert_eq!(polar.rank, 30);
        let gram = gemm::mul_nt(&polar.factor, &polar.factor);
        assert!(difference(&gram, &Matrix::identity(30)) < 1e-9);
        assert!(difference(&polar.factor, &gemm::mul(&turn, &basis)) < 1e-6);
        let sum: f64 = sigma.iter().sum();
        assert!((polar.nuclear_norm / sum - 1.0).abs() < 1e-9);
        // Of the other orientation the same, and a product with it.
        let tall = Polar::of(&a.transpose(), F32).unwrap();
        assert!(difference(&tall.factor, &polar.factor.transpose()) < 1e-9);
        let c = numbers(7, 30);
        let times = Polar::times(&c, &a, F32).unwrap();
        assert!(difference(&times, &gemm::mul(&c, &polar.factor)) < 1e-12);
    }

    #[test]
    fn outside_the_numerical_range_there_is_nothing() {
        let a = gemm::mul(&numbers(9, 2), &numbers(2, 6));
        for epsilon in [0.0, F32] {
            let polar = Polar::of(&a, epsilon).unwrap();
            assert_eq!(polar.rank, 2);
            assert!((polar.factor.norm() - 2.0_f64.sqrt()).abs() < 1e-12);
        }
        for (m, n) in [(3, 5), (0, 5), (3, 0)] {
            let zero = Matrix::<f32>::zeros(m, n);
            let polar = Polar::of(&zero, F32).unwrap();
            assert_eq!((polar.factor.norm(), polar.rank), (0.0, 0));
        }
        assert!(Polar::of(&Matrix::from_fn(2, 3, |_, _| f32::NAN), F32).is_err());
    }
}
