//! Low-rank updates by their factors.

use merganser_linalg::{Matrix, gemm};

use crate::error::check_shape;
use crate::{Error, Result};

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
