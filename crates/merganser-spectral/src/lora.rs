//! Low-rank updates by their factors.

use merganser_linalg::{Matrix, Svd, gemm};

use crate::error::check_shape;
use crate::{CoreSpace, Error, Result};

/// The update s·B A of one m×n matrix, as an adapter stores it.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    a: Matrix,
    b: Matrix,
    scale: f64,
}

impl Lora {
    /// An adapter of factors A (r×n) and B (m×r). `scale` is s: α/r, or α/√r of a rank-stabilised adapter.
    ///
    /// # Errors
    /// If the ranks differ or a number is not finite.
    pub fn new(a: Matrix, b: Matrix, scale: f64) -> Result<Self> {
        check_shape(|| "the factor B".into(), b.shape(), (b.rows(), a.rows()))?;
        for (what, factor) in [("the factor A", &a), ("the factor B", &b)] {
            factor.check_finite().map_err(|problem| Error::NotFinite {
                what: what.into(),
                problem,
            })?;
        }
        if !scale.is_finite() {
            return Err(Error::Range {
                what: "the scale of an adapter".into(),
                found: scale,
                expected: "finite",
            });
        }
        Ok(Self { a, b, scale })
    }

    /// A, r×n.
    pub fn a(&self) -> &Matrix {
        &self.a
    }

    /// B, m×r.
    pub fn b(&self) -> &Matrix {
        &self.b
    }

    /// s.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// r.
    pub fn rank(&self) -> usize {
        self.a.rows()
    }

    /// (m, n).
    pub fn shape(&self) -> (usize, usize) {
        (self.b.rows(), self.a.cols())
    }

    /// The adapter of c·s·B A.
    ///
    /// # Errors
    /// If c·s is not finite.
    pub fn scaled(&self, c: f64) -> Result<Self> {
        Self::new(self.a.clone(), self.b.clone(), c * self.scale)
    }

    /// The best approximation of the update of at most the given rank, in the Frobenius norm, as an adapter of scale 1
    /// with the length of its directions shared between the factors: B = U √Σ, A = √Σ Vᵀ. Directions that are rounding
    /// of `f64` are left out.
    ///
    /// # Errors
    /// If a decomposition does not converge.
    pub fn truncated(&self, rank: usize) -> Result<Self> {
        let space = CoreSpace::of(std::slice::from_ref(self))?;
        let svd = Svd::of(&space.cores()[0])?;
        let svd = svd.leading(rank.min(svd.rank(0.0)));
        let roots: Vec<f64> = svd.values.iter().map(|x| x.sqrt()).collect();
        let mut a = gemm::mul(&svd.right, space.right());
        a.scale_rows(&roots);
        let mut b = gemm::mul(&svd.left, space.left()).transpose();
        b.scale_cols(&roots);
        Self::new(a, b, 1.0)
    }

    /// s·B A.
    pub fn update(&self) -> Matrix {
        let mut update = gemm::mul(&self.b, &self.a);
        update.scale(self.scale);
        update
    }
}

/// The shape of the matrix that all adapters change.
pub(crate) fn common_shape(adapters: &[Lora]) -> Result<(usize, usize)> {
    let expected = adapters.first().ok_or(Error::NoTasks)?.shape();
    for (t, adapter) in adapters.iter().enumerate() {
        check_shape(
            || format!("the matrix that adapter {t} changes"),
            adapter.shape(),
            expected,
        )?;
    }
    Ok(expected)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::update;

    #[test]
    fn truncation_is_the_best_of_its_rank_and_balanced() {
        let adapter = Lora::new(update(1, 3, 8), update(2, 6, 3), -2.0).unwrap();
        let whole = adapter.truncated(9).unwrap();
        assert_eq!((whole.rank(), whole.scale()), (3, 1.0));
        let distance = |other: &Lora| crate::testing::distance(&other.update(), &adapter.update());
        assert!(distance(&whole) < 1e-12);
        assert!((whole.a().norm() - whole.b().norm()).abs() < 1e-12);
        let cut = adapter.truncated(2).unwrap();
        let lost = Svd::of(&adapter.update()).unwrap().values[2];
        assert!((distance(&cut) - lost).abs() < 1e-12);
        assert_eq!(adapter.truncated(0).unwrap().rank(), 0);
    }

    #[test]
    fn factors_must_fit_and_be_finite() {
        let (a, b) = (update(1, 2, 5), update(2, 4, 2));
        let adapter = Lora::new(a.clone(), b.clone(), 2.0).unwrap();
        assert_eq!((adapter.rank(), adapter.shape()), (2, (4, 5)));
        assert!(Lora::new(a.clone(), update(2, 4, 3), 1.0).is_err());
        assert!(Lora::new(a.clone(), b.clone(), f64::NAN).is_err());
        let nan = Matrix::from_fn(4, 2, |_, _| f64::NAN);
        assert!(Lora::new(a.clone(), nan, 1.0).is_err());
        let other = Lora::new(update(1, 2, 6), b, 1.0).unwrap();
        assert!(common_shape(&[adapter, other]).is_err());
        assert!(common_shape(&[]).is_err());
    }
}
