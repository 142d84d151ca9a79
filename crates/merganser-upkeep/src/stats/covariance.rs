//! Covariances made usable: shrinkage, correlations, and Cholesky factors of what is singular up to rounding.

use merganser_linalg::{Matrix, Spd};

use crate::error::{Error, Result};

/// What is added to the diagonal, relative to its mean, until a covariance has a Cholesky factor.
const JITTER: [f64; 5] = [0.0, 1e-12, 1e-10, 1e-8, 1e-6];

/// The mean of the diagonal: the mean variance of a feature. 0 of an empty matrix.
pub fn mean_variance(cov: &Matrix) -> f64 {
    let trace: f64 = (0..cov.rows()).map(|i| cov.get(i, i)).sum();
    trace / cov.rows().max(1) as f64
}

/// Σ + x I.
#[must_use]
pub fn with_diagonal(mut cov: Matrix, x: f64) -> Matrix {
    for i in 0..cov.rows() {
        cov.set(i, i, cov.get(i, i) + x);
    }
    cov
}

/// Σ + a₁ v I + a₂ w (1 − I), with the mean v of the diagonal of Σ and the mean w of its other elements (AdaGauss, arXiv
/// 2409.18265, as its code shrinks; a₂ = 0 is the usual shrinkage).
#[must_use]
pub fn shrunk(mut cov: Matrix, a1: f64, a2: f64) -> Matrix {
    let n = cov.rows();
    let v = mean_variance(&cov);
    if a2 != 0.0 && n > 1 {
        let all: f64 = cov.as_slice().iter().sum();
        let w = (all - v * n as f64) / (n * (n - 1)) as f64;
        for i in 0..n {
            let (before, rest) = cov.row_mut(i).split_at_mut(i);
            for x in before.iter_mut().chain(&mut rest[1..]) {
                *x += a2 * w;
            }
        }
    }
    with_diagonal(cov, a1 * v)
}

/// The correlation matrix D Σ D, D the diagonal of 1/√Σ_ii. A feature that does not vary is correlated with none, itself
/// included: its row and column are zero.
#[must_use]
pub fn correlation(mut cov: Matrix) -> Matrix {
    let scales: Vec<f64> = (0..cov.rows())
        .map(|i| {
            let x = cov.get(i, i);
            if x > 0.0 { 1.0 / x.sqrt() } else { 0.0 }
        })
        .collect();
    cov.scale_rows(&scales);
    cov.scale_cols(&scales);
    cov
}

/// The lower Cholesky factor L of Σ + ρ I with the first ρ of 0, 10⁻¹², 10⁻¹⁰, 10⁻⁸, 10⁻⁶ times the mean of its diagonal for
/// which it has one, and that ρ. Zero has the factor zero: all features are the same.
///
/// # Errors
/// [`Error::Collapsed`] under the name `what` if none is enough: Σ is no covariance then.
pub fn factor(cov: &Matrix, what: impl Fn() -> String) -> Result<(Matrix, f64)> {
    if cov.norm() == 0.0 {
        return Ok((cov.clone(), 0.0));
    }
    let scale = mean_variance(cov);
    let mut failed = None;
    for jitter in JITTER {
        match Spd::factor(cov.clone(), jitter * scale) {
            Ok(spd) => return Ok((spd.lower(), jitter * scale)),
            Err(error) => failed = Some(error),
        }
    }
    Err(match failed {
        Some(merganser_linalg::Error::NotPositiveDefinite { pivot, dim, .. }) => Error::Collapsed {
            what: what(),
            pivot,
            dim,
        },
        Some(other) => other.into(),
        None => Error::Unfit("there is no covariance".into()),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use merganser_linalg::gemm;

    use super::*;

    #[test]
    fn a_covariance_of_few_features_is_factored_with_a_little_more_on_the_diagonal() {
        let rows = Matrix::from_fn(3, 8, |i, j| ((i * 8 + j) as f64 * 0.7).sin());
        let cov = gemm::mul_tn(&rows, &rows);
        let (lower, added) = factor(&cov, || "it".into()).unwrap();
        assert!(added <= 1e-8 * mean_variance(&cov), "{added}");
        let mut back = gemm::mul_nt(&lower, &lower);
        back.add_scaled(-1.0, &cov);
        assert!(back.norm() < 1e-7 * cov.norm());
        let (zero, added) = factor(&Matrix::zeros(4, 4), || "it".into()).unwrap();
        assert_eq!((zero.norm(), added), (0.0, 0.0));
    }

    #[test]
    fn what_is_no_covariance_is_refused() {
        let wrong = Matrix::from_fn(2, 2, |i, j| if i == j { 1.0 } else { 2.0 });
        let error = factor(&wrong, || "class 3".into()).unwrap_err().to_string();
        assert!(
            error.contains("class 3 has collapsed: pivot 1 of 2"),
            "{error}"
        );
    }

    #[test]
    fn features_that_do_not_vary_are_correlated_with_none() {
        let cov = Matrix::from_fn(2, 2, |i, j| if i + j == 0 { 4.0 } else { 0.0 });
        assert_eq!(correlation(cov).as_slice(), [1.0, 0.0, 0.0, 0.0]);
    }
}
