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

use merganser_linalg::{Eigen, Matrix, Spd, dot, gemm};
use serde::Serialize;

use crate::error::{Error, Result, check_range};
use crate::rows::{centred, mean};

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

/// ∂L_AC/∂X of a batch X of features, a sample a row, whose unbiased covariance is Σ = L Lᵀ: what a training that adds the
/// loss moves the features along.
///
/// A pivot a_i < β has ∂L_AC/∂a_i = −1/S, one above it 0. Through the Cholesky factor ∂L_AC/∂Σ = ½ L⁻ᵀ D L⁻¹ with
/// D = diag(a_i ∂L_AC/∂a_i) (Murray, arXiv 1602.07527, for a diagonal ∂/∂L), and ∂L_AC/∂X = (X − x̄) L⁻ᵀ D L⁻¹ / (n − 1).
///
/// # Errors
/// If β is not positive, there are fewer than two samples, a number is not finite, or a pivot is zero up to rounding, where
/// the loss has no gradient.
pub fn gradient(features: &Matrix, beta: f64) -> Result<Matrix> {
    check_beta(beta)?;
    features.check_finite()?;
    let (n, dim) = features.shape();
    if n < 2 {
        return Err(Error::Unfit(
            "a covariance needs two samples at least".into(),
        ));
    }
    let centred = centred(features, &mean(features));
    let mut cov = gemm::mul_tn(&centred, &centred);
    cov.scale(1.0 / (n - 1) as f64);
    let pivots = pivots(&cov, cutoff(&cov));
    if let Some(i) = pivots.iter().position(|a| *a == 0.0) {
        return Err(Error::Unfit(format!(
            "feature {i} is a combination of those before it: the loss has no gradient there"
        )));
    }
    let inverse = Spd::factor(cov, 0.0)?.lower_inverse();
    let factor = -1.0 / (dim * (n - 1)) as f64;
    let weights: Vec<f64> = pivots
        .iter()
        .map(|a| if *a < beta { factor * a } else { 0.0 })
        .collect();
    let mut weighted = inverse.clone();
    weighted.scale_rows(&weights);
    Ok(gemm::mul(&centred, &gemm::mul_tn(&inverse, &weighted)))
}

/// S ε max Σ_jj.
pub fn cutoff(cov: &Matrix) -> f64 {
    let largest = (0..cov.rows()).fold(0.0_f64, |max, i| max.max(cov.get(i, i)));
    cov.rows() as f64 * f64::from(f32::EPSILON) * largest
}

fn check_beta(beta: f64) -> Result<()> {
    check_range(
        "beta",
        beta,
        (f64::MIN_POSITIVE, 1e12),
        "positive, up to 10^12",
    )
}

/// Judges a covariance.
///
/// # Errors
/// If β is not positive, or the matrix is not finite.
pub fn collapse(cov: &Matrix, beta: f64) -> Result<Collapse> {
    check_beta(beta)?;
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
    fn the_gradient_is_the_slope_of_the_score() {
        let mut state = 1_u32;
        let features = Matrix::from_fn(9, 4, |_, j| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (1.0 + j as f64) * (f64::from(state) / f64::from(u32::MAX) - 0.5)
        });
        let loss = |x: &Matrix, beta| {
            let centred = centred(x, &mean(x));
            let mut cov = gemm::mul_tn(&centred, &centred);
            cov.scale(1.0 / 8.0);
            collapse(&cov, beta).unwrap().score
        };
        for beta in [0.4, 10.0] {
            let found = gradient(&features, beta).unwrap();
            for (i, j) in [(0, 0), (3, 1), (8, 3), (5, 2)] {
                let moved = |step: f64| {
                    let mut x = features.clone();
                    x.set(i, j, x.get(i, j) + step);
                    loss(&x, beta)
                };
                let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((slope - found.get(i, j)).abs() < 1e-8, "{beta} ({i}, {j})");
            }
        }
        let flat = Matrix::from_fn(9, 2, |i, _| i as f64);
        let error = gradient(&flat, 1.0).unwrap_err().to_string();
        assert!(error.contains("feature 1"), "{error}");
        assert!(gradient(&Matrix::zeros(1, 2), 1.0).is_err());
        assert!(gradient(&features, 0.0).is_err());
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
