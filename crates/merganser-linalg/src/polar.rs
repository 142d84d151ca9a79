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

use crate::eigen::{noise, power_of_two};
use crate::svd::widened;
use crate::symmetric::gram_of_rows;
use crate::{Eigen, Matrix, Real, Result, Svd, gemm, gram};

/// Condition of the Gram matrix up to which it is enough: rounding then leaves a loss of orthogonality of 10⁻¹⁰, and of 10⁻⁴ in
/// `f32`.
fn known<T: Real>() -> f64 {
    if T::EPSILON > f64::EPSILON { 1e3 } else { 1e6 }
}

/// U Vᵀ of a matrix U Σ Vᵀ, over its numerical range.
#[derive(Debug, Clone, PartialEq)]
pub struct Polar<T = f64> {
    /// U Vᵀ, of the shape of the matrix: all its singular values are 1, or 0 outside the numerical range.
    pub factor: Matrix<T>,
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
        a.check_finite()?;
        let share = noise(a.rows().max(a.cols()), epsilon.max(T::EPSILON));
        let (a, scale) = widened(a);
        let mut polar = Root::of(a, Least::Share(share))?.applied();
        polar.nuclear_norm *= scale;
        Ok(polar)
    }
}

impl<T: Real> Polar<T> {
    /// The same in the type of the matrix: in `f32` for half the time, with directions that are a thirtieth as long as the
    /// longest, or shorter, by themselves and in `f64`. The factor is off by 10⁻⁴ or less in every direction but those that are
    /// hardly longer than rounding.
    ///
    /// # Errors
    /// Those of [`of`](Polar::of).
    pub fn coarse(a: &Matrix<T>, epsilon: f64) -> Result<Self> {
        let (a, scale) = prepared(a)?;
        let share = noise(a.rows().max(a.cols()), epsilon.max(T::EPSILON));
        let mut polar = Root::of(a, Least::Share(share))?.applied();
        polar.nuclear_norm *= scale;
        Ok(polar)
    }

    /// C polar(A), in their type as [`coarse`](Self::coarse). Where A is wide and C has fewer rows than A columns this is less
    /// work than with polar(A) itself, because C (A Aᵀ)^(−1/2) is the smaller matrix.
    ///
    /// # Errors
    /// Those of [`of`](Polar::of).
    ///
    /// # Panics
    /// If C does not have as many columns as A rows.
    pub fn times(c: &Matrix<T>, a: &Matrix<T>, epsilon: f64) -> Result<Matrix<T>> {
        let share = noise(a.rows().max(a.cols()), epsilon.max(T::EPSILON));
        let root = Root::of(prepared(a)?.0, Least::Share(share))?;
        match &root.inverse {
            Some(inverse) if a.rows() <= a.cols() && c.rows() <= a.cols() => {
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

/// A finite matrix, at a scale at which its Gram matrix neither overflows nor vanishes, and the factor to be undone.
fn prepared<T: Real>(a: &Matrix<T>) -> Result<(Cow<'_, Matrix<T>>, f64)> {
    a.check_finite()?;
    let largest = a.largest();
    if largest == 0.0 || (1e-5..1e5).contains(&largest) {
        return Ok((Cow::Borrowed(a), 1.0));
    }
    let scale = power_of_two(largest);
    let scaled = a.as_slice().iter().map(|x| T::from_f64(x.to_f64() / scale));
    let scaled = Matrix::new(a.rows(), a.cols(), scaled.collect())?;
    Ok((Cow::Owned(scaled), scale))
}

/// The length at or below which a direction is no direction.
#[derive(Clone, Copy)]
enum Least {
    /// In parts of the longest.
    Share(f64),
    Length(f64),
}

/// A matrix and what brings it to its polar factor.
struct Root<'a, T: Clone> {
    /// A, or its factor already if there is no `inverse`.
    matrix: Cow<'a, Matrix<T>>,
    /// (A Aᵀ)^(−1/2), or (AᵀA)^(−1/2) if A is tall, over its long directions.
    inverse: Option<Matrix<T>>,
    /// The others.
    short: Option<Short<T>>,
    nuclear_norm: f64,
    rank: usize,
}

/// Directions of which the Gram matrix of all does not know enough.
struct Short<T> {
    /// Orthonormal rows on the smaller side.
    vectors: Matrix<T>,
    /// What they are turned into: as many rows on the larger side.
    factor: Matrix<T>,
}

impl<'a, T: Real> Root<'a, T> {
    fn of(a: Cow<'a, Matrix<T>>, least: Least) -> Result<Self> {
        let double = T::EPSILON <= f64::EPSILON;
        let (m, n) = a.shape();
        let share = match least {
            Least::Share(share) => share,
            // The longest direction is no longer than this.
            Least::Length(length) => length / a.norm(),
        };
        if double && share.powi(2) <= noise(m.min(n), f64::EPSILON) {
            return Self::decomposed(&a, least);
        }
        let eigen = Eigen::of(&gram(&a)?)?;
        let largest = eigen.values.first().copied().unwrap_or(0.0);
        let cutoff = match least {
            Least::Share(share) => share.powi(2) * largest,
            Least::Length(length) => length.powi(2),
        };
        // In f32 it is not known here which of the short ones are noise.
        let rank = if double {
            eigen.rank(cutoff)
        } else {
            eigen.values.len()
        };
        let long = eigen.rank((largest / known::<T>()).max(cutoff));
        let roots: Vec<f64> = eigen.values[..long].iter().map(|x| x.sqrt()).collect();
        // With each vector times λ^(−1/4), so that half the product is enough.
        let mut scaled = eigen.vectors.rows_range(0, long).transpose();
        scaled.scale_cols(&roots.iter().map(|x| 1.0 / x.sqrt()).collect::<Vec<_>>());
        let inverse = gram_of_rows(&scaled);
        let mut root = Self {
            matrix: a,
            inverse: Some(inverse),
            short: None,
            nuclear_norm: roots.iter().sum(),
            rank: long,
        };
        if long < rank && largest > 0.0 {
            root.add_short(eigen.vectors.rows_range(long, rank), cutoff.sqrt())?;
        }
        Ok(root)
    }

    /// By a singular value decomposition.
    fn decomposed(a: &Matrix<T>, least: Least) -> Result<Self> {
        let svd = Svd::of(a)?;
        let largest = svd.values.first().copied().unwrap_or(0.0);
        let cutoff = match least {
            Least::Share(share) => share * largest,
            Least::Length(length) => length,
        };
        let svd = svd.leading(svd.values.iter().take_while(|&&x| x > cutoff).count());
        Ok(Self {
            matrix: Cow::Owned(gemm::mul_tn(&svd.left, &svd.right)),
            inverse: None,
            short: None,
            nuclear_norm: svd.values.iter().sum(),
            rank: svd.values.len(),
        })
    }

    /// Turns the directions with these vectors that are longer than `least` into their polar factor.
    fn add_short(&mut self, vectors: Matrix<T>, least: f64) -> Result<()> {
        let Some(inverse) = &self.inverse else {
            return Ok(());
        };
        let rows = outside(&vectors, inverse, &self.matrix).cast::<f64>();
        let polar = Root::of(Cow::Owned(rows), Least::Length(least))?.applied();
        self.rank += polar.rank;
        self.nuclear_norm += polar.nuclear_norm;
        self.short = Some(Short {
            vectors,
            factor: polar.factor.cast(),
        });
        Ok(())
    }

    fn applied(self) -> Polar<T> {
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
fn outside<T: Real>(vectors: &Matrix<T>, inverse: &Matrix<T>, a: &Matrix<T>) -> Matrix<T> {
    let wide = a.rows() <= a.cols();
    let to_larger = if wide { gemm::mul } else { gemm::mul_nt };
    let to_smaller = if wide { gemm::mul_nt } else { gemm::mul };
    let mut rows = to_larger(vectors, a);
    let known = gemm::mul(&gemm::mul(&to_smaller(&rows, a), inverse), inverse);
    rows.add_scaled(-1.0, &to_larger(&known, a));
    rows
}

/// S A or A S for a symmetric S of the smaller dimension of A.
fn on_smaller_side<T: Real>(s: &Matrix<T>, a: &Matrix<T>) -> Matrix<T> {
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
    fn single_precision_comes_close() {
        let random = numbers(60, 60);
        let mut graded = random.clone();
        let lengths: Vec<f64> = (0..60)
            .map(|i| 10.0_f64.powf(-f64::from(i) / 20.0))
            .collect();
        graded.scale_rows(&lengths);
        let low = gemm::mul(&numbers(60, 7), &numbers(7, 90));
        for scale in [1.0, 1e-30, 1e30] {
            for (a, close) in [(&random, 1e-4), (&graded, 1e-3), (&low, 1e-4)] {
                for mut a in [a.cast::<f32>(), a.cast::<f32>().transpose()] {
                    a.scale(scale);
                    let exact = Polar::of(&a, F32).unwrap();
                    let coarse = Polar::coarse(&a, F32).unwrap();
                    assert_eq!(coarse.rank, exact.rank);
                    assert!((coarse.nuclear_norm / exact.nuclear_norm - 1.0).abs() < 1e-5);
                    let off = difference(&coarse.factor.cast(), &exact.factor);
                    assert!(off < close, "{off}");
                    let c = numbers(5, a.rows()).cast();
                    let times = Polar::times(&c, &a, F32).unwrap();
                    let off = difference(&times.cast(), &gemm::mul(&c.cast(), &exact.factor));
                    assert!(off < 5.0 * close, "{off}");
                }
            }
        }
        assert_eq!(
            Polar::coarse(&Matrix::<f32>::zeros(3, 5), F32)
                .unwrap()
                .rank,
            0
        );
        assert!(Polar::coarse(&Matrix::from_fn(2, 3, |_, _| f32::NAN), F32).is_err());
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
