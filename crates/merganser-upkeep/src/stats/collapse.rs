//! Whether features have collapsed to fewer dimensions than they have.
//!
//! With the lower Cholesky factor L of a covariance of dimension S and a_i = L_ii, the standard deviation of feature i that
//! features before it do not explain, the anti-collapse loss of AdaGauss (arXiv 2409.18265) is
//!
//! L_AC = −(1/S) Σ min(a_i, β).
//!
//! As a score it lies between −β, where every direction varies by β or more, and 0, where none does. A pivot a_i² up to
//! S ε max Σ_jj, ε the rounding of single precision, counts as collapsed, a_i = 0; there the factor goes on without the
//! direction, where the reference code fails.

use merganser_linalg::{Eigen, Matrix, dot};
use serde::Serialize;

use crate::error::{Result, check_range};

/// What a covariance says of the dimensions of its features.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Collapse {
    /// L_AC.
    pub score: f64,
    /// Pivots that are zero up to rounding.
    pub collapsed: usize,
    /// S.
    pub dim: usize,
    /// Eigenvalues above the same threshold as the pivots.
    pub rank: usize,
    /// e to the entropy of the eigenvalues as shares of their sum (Roy and Vetterli 2007): S if all are equal, 1 if all
    /// features lie on a line, 0 if they do not vary.
    pub effective_rank: f64,
    /// The largest eigenvalue over the smallest; absent where the smallest is zero up to rounding.
    pub condition: Option<f64>,
    /// The mean variance of a feature.
    pub mean_variance: f64,
}

/// The diagonal of the lower Cholesky factor of a symmetric positive semidefinite matrix; 0 where a pivot is at most
/// `cutoff`.
///
/// # Panics
/// If the matrix is not square.
#[must_use]
pub fn pivots(cov: &Matrix, cutoff: f64) -> Vec<f64> {
    let n = cov.rows();
    assert_eq!(n, cov.cols(), "a covariance is square");
    let mut lower = Matrix::zeros(n, n);
    let mut out = vec![0.0; n];
    for i in 0..n {
        let mut row = cov.row(i)[..=i].to_vec();
        for j in 0..i {
            row[j] = if out[j] > 0.0 {
                (row[j] - dot(&row[..j], &lower.row(j)[..j])) / out[j]
            } else {
                0.0
            };
        }
        let square = row[i] - dot(&row[..i], &row[..i]);
        if square > cutoff {
            out[i] = square.sqrt();
        }
        row[i] = out[i];
        lower.row_mut(i)[..=i].copy_from_slice(&row);
    }
    out
}

/// S ε max Σ_jj.
pub fn cutoff(cov: &Matrix) -> f64 {
    let largest = (0..cov.rows()).fold(0.0_f64, |max, i| max.max(cov.get(i, i)));
    cov.rows() as f64 * f64::from(f32::EPSILON) * largest
}

/// Judges a covariance.
///
/// # Errors
/// If β is not positive, or the matrix is not finite.
pub fn collapse(cov: &Matrix, beta: f64) -> Result<Collapse> {
    check_range(
        "beta",
        beta,
        (f64::MIN_POSITIVE, 1e12),
        "positive, up to 10^12",
    )?;
    cov.check_finite()?;
    let (dim, cutoff) = (cov.rows(), cutoff(cov));
    let pivots = pivots(cov, cutoff);
    let eigen = Eigen::of(cov)?;
    let sum: f64 = eigen.values.iter().filter(|x| **x > 0.0).sum();
    let shares = eigen.values.iter().map(|x| x / sum).filter(|p| *p > 0.0);
    let entropy: f64 = shares.map(|p| -p * p.ln()).sum();
    let rank = eigen.rank(cutoff);
    let ends = eigen.values.first().zip(eigen.values.last());
    Ok(Collapse {
        score: -pivots.iter().map(|a| a.min(beta)).sum::<f64>() / dim.max(1) as f64,
        collapsed: pivots.iter().filter(|a| **a == 0.0).count(),
        dim,
        rank,
        effective_rank: if sum > 0.0 { entropy.exp() } else { 0.0 },
        condition: ends.filter(|_| rank == dim).map(|(high, low)| high / low),
        mean_variance: super::covariance::mean_variance(cov),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn healthy_features_have_the_score_of_minus_beta() {
        let found = collapse(&Matrix::identity(5), 0.5).unwrap();
        assert_eq!((found.score, found.collapsed, found.rank), (-0.5, 0, 5));
        assert!((found.effective_rank - 5.0).abs() < 1e-12);
        assert_eq!(found.condition, Some(1.0));
    }

    #[test]
    fn what_does_not_vary_has_the_score_zero() {
        let found = collapse(&Matrix::zeros(3, 3), 1.0).unwrap();
        assert_eq!(
            (found.score, found.collapsed, found.effective_rank),
            (0.0, 3, 0.0)
        );
        assert_eq!(found.condition, None);
        assert!(collapse(&Matrix::identity(2), 0.0).is_err());
        assert!(collapse(&Matrix::identity(2), f64::NAN).is_err());
    }
}
