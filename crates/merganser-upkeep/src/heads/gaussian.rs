//! Heads of Gaussian classes, each with a covariance of its own.
//!
//! The score of class c for a feature f is
//!
//! −½ (f − μ_c)ᵀ Σ̃_c⁻¹ (f − μ_c) − ½ ln det Σ̃_c + ln (N_c / N),
//!
//! its log-likelihood but for a constant (quadratic discriminant analysis), or the first term alone (Mahalanobis distance).
//! The latter is the classifier of AdaGauss (arXiv 2409.18265), which the paper calls Bayes. It prefers classes of large
//! covariances, so the former is better where those differ in volume.
//!
//! Σ̃_c = (1 − α) Σ_c + α Σ, with the covariance Σ within classes (α = 1 is linear discriminant analysis; Friedman, *Regularized
//! Discriminant Analysis*, 1989), and to its diagonal s times its mean is added. It may then be scaled to a correlation
//! matrix, and features and means to length 1.
//!
//! The file is safetensors, in `f32`:
//!
//! | tensor | shape | |
//! |---|---|---|
//! | `gaussian.mean` | (C, d) | μ_c |
//! | `gaussian.factor` | (C, d, d) | L_c⁻¹ with L_c L_cᵀ = Σ̃_c, lower triangular: the distance is the square of its product with f − μ_c |
//! | `gaussian.bias` | (C) | what the score has besides the distance; −10³⁰ for classes without features |
//!
//! Metadata: `format` = `merganser-gaussian-head`, `version` = `1`, `unit` = `true` if features are scaled to length 1 first.

use std::collections::BTreeMap;
use std::path::Path;

use merganser_linalg::{Matrix, Spd, dot, gemm};
use merganser_store::Dtype;
use merganser_store::new_file::write_tensors;

use super::fit::{NEVER, listed};
use super::{Found, Pool};
use crate::drift::normalise;
use crate::error::{Error, Result, check_range};
use crate::stats::covariance::{correlation, shrunk};
use crate::tensors::spec;

/// Numbers of factors that classes without a feature may take: a gigabyte.
const MOST_ABSENT: usize = 1 << 27;

/// How a Gaussian head is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GaussianOptions {
    /// s: so many times the mean of its diagonal is added to the diagonal of each covariance.
    pub shrink: f64,
    /// α, the share of the covariance within classes, from 0 to 1.
    pub pooled: f64,
    /// Covariances are scaled to correlation matrices, features and means to length 1.
    pub normalize: bool,
    /// The score is the log-likelihood with the prior N_c / N; otherwise minus half of the squared distance alone.
    pub likelihood: bool,
}

impl GaussianOptions {
    /// The classifier of AdaGauss: distances alone. With `normalize` by correlation matrices, between vectors of length 1.
    #[must_use]
    pub fn adagauss(shrink: f64, normalize: bool) -> Self {
        Self {
            shrink,
            pooled: 0.0,
            normalize,
            likelihood: false,
        }
    }

    /// Log-likelihoods.
    #[must_use]
    pub fn likelihood(shrink: f64, pooled: f64) -> Self {
        Self {
            shrink,
            pooled,
            normalize: false,
            likelihood: true,
        }
    }
}

/// A head of Gaussian classes.
#[derive(Debug, Clone, PartialEq)]
pub struct Gaussian {
    /// μ_c, one a row.
    pub means: Matrix,
    /// L_c⁻¹; zero for classes without features.
    pub factors: Vec<Matrix>,
    /// What the score has besides the distance.
    pub bias: Vec<f64>,
    /// Whether features are scaled to length 1 first.
    pub unit: bool,
}

impl Pool {
    /// Makes a Gaussian head, and says what it is made of. Covariances of classes are exact where every file has them, otherwise
    /// estimated from means as FedCOF does. Classes too small for a covariance of their own get the one within classes.
    ///
    /// # Errors
    /// If nothing tells of covariances, one is singular with the shrinkage that is asked for, or an option is out of range.
    pub fn gaussian(&self, options: &GaussianOptions) -> Result<(Gaussian, Found)> {
        check_range("shrink", options.shrink, (0.0, 1e6), "from 0 to a million")?;
        check_range(
            "the share of the pooled covariance",
            options.pooled,
            (0.0, 1.0),
            "from 0 to 1",
        )?;
        let mut found = self.found();
        let within = self.within_classes()?;
        if !self.has_covariances() {
            found.notes.push(format!(
                "the covariances are estimated from {} means beyond the first of their class, because not every file has `cov`",
                found.degrees
            ));
        }
        let dim = self.dim();
        let absent = self.counts().iter().filter(|&&count| count == 0).count();
        if absent.saturating_mul(dim).saturating_mul(dim) > MOST_ABSENT {
            return Err(Error::Unfit(format!(
                "{absent} of {} classes have no feature, and each would take {dim}×{dim} numbers of the head; number the classes \
                 that there are from 0 on",
                self.classes()
            )));
        }
        let mut means = self.means().clone();
        if options.normalize {
            normalise(&mut means);
        }
        let total: f64 = self.counts().iter().map(|&n| n as f64).sum();
        let (mut factors, mut bias) = (Vec::with_capacity(self.classes()), Vec::new());
        let mut small = Vec::new();
        let mut smallest = f64::INFINITY;
        for (class, &count) in self.counts().iter().enumerate() {
            if count == 0 {
                factors.push(Matrix::zeros(dim, dim));
                bias.push(NEVER);
                continue;
            }
            let own = match self.class_covariance(class)? {
                Some(cov) => (count > 1).then_some(cov),
                None if self.means_of_class()[class] > 1 => Some(self.covariance(class)?),
                None => None,
            };
            let mut cov = within.clone();
            if let Some(own) = own {
                cov.scale(options.pooled);
                cov.add_scaled(1.0 - options.pooled, &own);
            } else {
                small.push(class);
            }
            let mut cov = shrunk(cov, options.shrink, 0.0);
            if options.normalize {
                cov = correlation(cov);
            }
            let collapsed = |pivot| Error::Collapsed {
                what: format!("the covariance of class {class} ({count} features of length {dim})"),
                pivot,
                dim,
            };
            let spd = match Spd::factor(cov, 0.0) {
                Ok(spd) => spd,
                Err(merganser_linalg::Error::NotPositiveDefinite { pivot, .. }) => {
                    return Err(collapsed(pivot));
                }
                Err(other) => return Err(other.into()),
            };
            if spd.is_singular(f64::EPSILON) {
                let lower = spd.lower();
                let by_size =
                    |a: &usize, b: &usize| lower.get(*a, *a).total_cmp(&lower.get(*b, *b));
                return Err(collapsed((0..dim).min_by(by_size).unwrap_or(0)));
            }
            smallest = smallest.min(spd.smallest_pivot());
            let factor = spd.lower_inverse();
            let half: f64 = (0..dim).map(|i| factor.get(i, i).ln()).sum();
            bias.push(if options.likelihood {
                half + (count as f64 / total).ln()
            } else {
                0.0
            });
            factors.push(factor);
        }
        if !small.is_empty() {
            found.notes.push(format!(
                "{} classes ({}) are too small for a covariance of their own and get the one within classes",
                small.len(),
                listed(&small)
            ));
        }
        found.smallest_pivot = Some(smallest).filter(|x| x.is_finite());
        Ok((
            Gaussian {
                means,
                factors,
                bias,
                unit: options.normalize,
            },
            found,
        ))
    }
}

impl Gaussian {
    /// Scores of features, one a row; the class of the largest is the answer.
    ///
    /// # Panics
    /// If the features have another length than the means.
    #[must_use]
    pub fn scores(&self, features: &Matrix) -> Matrix {
        let mut features = features.clone();
        if self.unit {
            normalise(&mut features);
        }
        let mut out = Matrix::zeros(features.rows(), self.bias.len());
        for (class, factor) in self.factors.iter().enumerate() {
            let mut centred = features.clone();
            for i in 0..centred.rows() {
                for (x, mean) in centred.row_mut(i).iter_mut().zip(self.means.row(class)) {
                    *x -= mean;
                }
            }
            let whitened = gemm::mul_nt(&centred, factor);
            for i in 0..whitened.rows() {
                let distance = dot(whitened.row(i), whitened.row(i));
                out.set(i, class, self.bias[class] - 0.5 * distance);
            }
        }
        out
    }

    /// Writes the head. `facts` go into its metadata.
    ///
    /// # Errors
    /// If the file is there and `overwrite` is not set, a number leaves the range of `f32`, or the disk fails.
    pub fn write(
        &self,
        path: &Path,
        overwrite: bool,
        facts: &BTreeMap<String, String>,
    ) -> Result<()> {
        let mut metadata = facts.clone();
        for (key, value) in [("format", "merganser-gaussian-head"), ("version", "1")] {
            metadata.insert(key.into(), value.into());
        }
        metadata.insert("unit".into(), self.unit.to_string());
        let (classes, dim) = self.means.shape();
        let mut factors = Vec::with_capacity(classes * dim * dim * 4);
        for factor in &self.factors {
            factors.extend(rounded(factor.as_slice())?);
        }
        let tensors = [
            (
                spec("gaussian.mean", Dtype::F32, &[classes, dim]),
                rounded(self.means.as_slice())?,
            ),
            (
                spec("gaussian.factor", Dtype::F32, &[classes, dim, dim]),
                factors,
            ),
            (
                spec("gaussian.bias", Dtype::F32, &[classes]),
                rounded(&self.bias)?,
            ),
        ];
        Ok(write_tensors(path, overwrite, &metadata, &tensors)?)
    }
}

/// The bytes of numbers in single precision.
fn rounded(values: &[f64]) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(values.len() * 4);
    for &x in values {
        let single = x as f32;
        if !single.is_finite() {
            return Err(Error::Unfit(format!(
                "the head holds {x:e}, beyond what single precision can: scale the features, or shrink the covariances more"
            )));
        }
        bytes.extend(single.to_le_bytes());
    }
    Ok(bytes)
}
