//! The formulas of heads.

use merganser_linalg::{Eigen, Matrix, Spd, Symmetric, dot, gemm};
use serde::Serialize;

use super::Pool;
use crate::error::{Error, Result, check_range};

/// Eigenvalues below this share of the largest count as zero where a matrix is singular.
const CUTOFF: f64 = 1e-10;
/// The bias of a class without features: below every logit, and finite in single precision.
pub(super) const NEVER: f64 = -1e30;
/// From this ratio on clients are said to have drawn their features differently.
const UNEVEN: f64 = 2.0;

/// γ of FedCOF, what is added to the covariances.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gamma {
    /// This number.
    Fixed(f64),
    /// So many times the mean variance of a feature within classes, as the means show it.
    Auto(f64),
}

/// Which head is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Nearest class mean by cosine.
    Ncm,
    /// Ridge regression on covariances that were estimated from means.
    FedCof(Gamma),
    /// Ridge regression with λ on the Gram matrix of all features.
    Ridge(f64),
    /// Linear discriminant analysis; so many times the mean of the pooled covariance's diagonal is added to it.
    Bayes(f64),
}

/// logits = W f + b.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// Name of the method.
    pub method: &'static str,
    /// W, a row a class; zero for classes without features.
    pub weight: Matrix,
    /// b; far below all logits for classes without features, so that they are never the answer.
    pub bias: Vec<f64>,
}

/// What the statistics were, and what became of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    /// Files of statistics.
    pub clients: usize,
    /// Means in them.
    pub means: usize,
    /// Number of features.
    pub features: u64,
    /// Number of classes.
    pub classes: usize,
    /// Length of the features.
    pub dim: usize,
    /// Classes without any feature.
    pub absent: Vec<usize>,
    /// Σ_c (K_c − 1).
    pub degrees: usize,
    /// What was added to the covariance: γ of FedCOF, λ of ridge regression, the addition of linear discriminant analysis.
    pub regularised: Option<f64>,
    /// The smallest pivot of the matrix that was solved with, relative to its largest diagonal element; its inverse bounds
    /// the condition from below. Absent if it was singular.
    pub smallest_pivot: Option<f64>,
    /// Its rank, where it was singular.
    pub rank: Option<usize>,
    /// How much farther means of many features lie from the mean of their class than means of few, where both should lie
    /// equally far; near 1 if clients drew features of a class alike.
    pub uneven: Option<f64>,
    /// Warnings.
    pub notes: Vec<String>,
}

impl Pool {
    /// G of FedCOF for a γ: Σ_c (N_c − 1)(S_c + γ I) + N μ μᵀ.
    ///
    /// # Errors
    /// If numbers leave the range of `f64`.
    pub fn fedcof_gram(&self, gamma: f64) -> Result<Matrix> {
        let weight = |class: usize| self.counts()[class].saturating_sub(1) as f64;
        let mut sum = self.weighted_covariance(weight)?;
        let total: f64 = self.counts().iter().map(|&n| n as f64).sum();
        let outer: Vec<f64> = self
            .global_mean()
            .iter()
            .map(|x| total.sqrt() * x)
            .collect();
        sum.add_rows(&outer)?;
        let strength: f64 = (0..self.classes()).map(weight).sum();
        let mut gram: Matrix = sum.to_square();
        for i in 0..gram.rows() {
            gram.set(i, i, gram.get(i, i) + gamma * strength);
        }
        Ok(gram)
    }

    fn gamma(&self, gamma: Gamma) -> Result<f64> {
        match gamma {
            Gamma::Fixed(gamma) => {
                check_range("gamma", gamma, (0.0, 1e12), "from 0 to 10^12")?;
                Ok(gamma)
            }
            Gamma::Auto(factor) => {
                check_range(
                    "the factor of gamma",
                    factor,
                    (0.0, 1e6),
                    "from 0 to a million",
                )?;
                let degrees = self.degrees();
                if degrees == 0 {
                    return Err(Error::Unfit(
                        "gamma cannot be found from the data, because no class has means of two clients; give --gamma a \
                         number, or let clients send several means a class (merganser stats build --parts)"
                            .into(),
                    ));
                }
                let pooled =
                    self.weighted_covariance(|class| (self.means_of_class()[class] - 1) as f64)?;
                Ok(factor * pooled.trace() / degrees as f64 / self.dim() as f64)
            }
        }
    }

    /// What the statistics are, before a head is made of them.
    pub(super) fn found(&self) -> Found {
        let absent: Vec<usize> = (0..self.classes())
            .filter(|&class| self.counts()[class] == 0)
            .collect();
        let mut found = Found {
            clients: self.clients,
            means: self.rows.len(),
            features: self.counts().iter().sum(),
            classes: self.classes(),
            dim: self.dim(),
            degrees: self.degrees(),
            regularised: None,
            smallest_pivot: None,
            rank: None,
            uneven: self.uneven(),
            notes: self.notes.clone(),
            absent,
        };
        if !found.absent.is_empty() {
            found.notes.push(format!(
                "no client has features of {} of {} classes ({}): their rows are zero and they are never the answer",
                found.absent.len(),
                found.classes,
                listed(&found.absent)
            ));
        }
        found
    }

    /// Makes a head, and says what it is made of.
    ///
    /// # Errors
    /// If the statistics lack what the head needs, a setting is out of range, or all means are zero.
    pub fn head(&self, kind: Kind) -> Result<(Head, Found)> {
        let mut found = self.found();
        let mut head = match kind {
            Kind::Ncm => unit_rows("ncm", self.means().clone()),
            Kind::FedCof(gamma) => {
                let gamma = self.gamma(gamma)?;
                found.regularised = Some(gamma);
                if gamma == 0.0 || found.degrees < found.dim {
                    found.notes.push(format!(
                        "the covariances rest on {} means beyond the first of their class, for features of length {}: what \
                         they say of most directions is gamma{}",
                        found.degrees,
                        found.dim,
                        if found.degrees == 0 {
                            ", and the head is near that of ncm"
                        } else {
                            ""
                        }
                    ));
                }
                if let Some(ratio) = found.uneven.filter(|&ratio| ratio > UNEVEN) {
                    found.notes.push(format!(
                        "means of many features lie {ratio:.1} times as far from the mean of their class as they should: \
                         clients seem to have features of their own kind, and the covariances hold that too"
                    ));
                }
                let gram = self.fedcof_gram(gamma)?;
                let weight = solve(&gram, &self.sums(), &mut found)?;
                unit_rows("fedcof", weight)
            }
            Kind::Ridge(lambda) => {
                check_range("lambda", lambda, (0.0, 1e12), "from 0 to 10^12")?;
                let Some(gram) = &self.gram else {
                    return Err(Error::Unfit(
                        "ridge needs `gram` or `cov` in every file of statistics; build them with `merganser stats build \
                         --gram`, or make a head by fedcof, which needs means only"
                            .into(),
                    ));
                };
                found.regularised = Some(lambda);
                let mut gram = gram.clone();
                for i in 0..gram.rows() {
                    gram.set(i, i, gram.get(i, i) + lambda);
                }
                let weight = solve(&gram, &self.sums(), &mut found)?;
                unit_rows("ridge", weight)
            }
            Kind::Bayes(shrink) => self.discriminant(shrink, &mut found)?,
        };
        for &class in &found.absent {
            head.bias[class] = NEVER;
        }
        head.weight.check_finite()?;
        if head.weight.norm() == 0.0 {
            return Err(Error::Unfit(
                "all means are zero, or beyond what the matrix of the head shows: no head follows from them".into(),
            ));
        }
        Ok((head, found))
    }

    /// N_c μ_c, one a row.
    fn sums(&self) -> Matrix {
        let counts: Vec<f64> = self.counts().iter().map(|&n| n as f64).collect();
        let mut sums = self.means().clone();
        sums.scale_rows(&counts);
        sums
    }

    /// The covariance within classes: exactly, if all rows have theirs, otherwise as FedCOF estimates it.
    ///
    /// # Errors
    /// If neither covariances nor several means a class are there.
    pub fn within_classes(&self) -> Result<Matrix> {
        let Some(within) = &self.within else {
            if self.degrees() == 0 {
                return Err(Error::Unfit(
                    "covariances of classes need `cov` in every file of statistics, or means of two clients for some class; \
                     build them with `merganser stats build --cov`"
                        .into(),
                ));
            }
            let pooled =
                self.weighted_covariance(|class| (self.means_of_class()[class] - 1) as f64)?;
            return Ok(pooled.to_square_scaled(1.0 / self.degrees() as f64));
        };
        // Between the means of one class: Σ n (m − μ_c)(m − μ_c)ᵀ = (K_c − 1) S_c.
        let between: Symmetric = self
            .weighted_covariance(|class| self.means_of_class()[class].saturating_sub(1) as f64)?;
        let mut sum: Matrix = between.to_square();
        for within in within.values() {
            sum.add_scaled(1.0, within);
        }
        let total: u64 = self.counts().iter().sum();
        let present = self.counts().iter().filter(|&&n| n > 0).count() as u64;
        sum.scale(1.0 / total.saturating_sub(present).max(1) as f64);
        Ok(sum)
    }

    fn discriminant(&self, shrink: f64, found: &mut Found) -> Result<Head> {
        check_range("shrink", shrink, (0.0, 1e6), "from 0 to a million")?;
        let mut cov = self.within_classes()?;
        let dim = cov.rows();
        let mean = (0..dim).map(|i| cov.get(i, i)).sum::<f64>() / dim as f64;
        found.regularised = Some(shrink * mean);
        for i in 0..dim {
            cov.set(i, i, cov.get(i, i) + shrink * mean);
        }
        let weight = solve(&cov, self.means(), found)?;
        let total: f64 = self.counts().iter().map(|&n| n as f64).sum();
        let bias = (0..self.classes())
            .map(|class| {
                let prior = (self.counts()[class].max(1) as f64 / total).ln();
                prior - 0.5 * dot(weight.row(class), self.means().row(class))
            })
            .collect();
        Ok(Head {
            method: "bayes",
            weight,
            bias,
        })
    }
}

/// The first eight of some numbers of classes.
pub(crate) fn listed(classes: &[usize]) -> String {
    let shown: Vec<String> = classes.iter().take(8).map(usize::to_string).collect();
    let more = if classes.len() > 8 { ", …" } else { "" };
    shown.join(", ") + more
}

/// The head of rows scaled to length 1, without a bias.
fn unit_rows(method: &'static str, mut weight: Matrix) -> Head {
    crate::drift::normalise(&mut weight);
    Head {
        method,
        bias: vec![0.0; weight.rows()],
        weight,
    }
}

/// X with X A = C; the least-norm one if A is singular, which is noted.
fn solve(a: &Matrix, c: &Matrix, found: &mut Found) -> Result<Matrix> {
    if let Ok(spd) = Spd::factor(a.clone(), 0.0)
        && spd.smallest_pivot() > CUTOFF
    {
        found.smallest_pivot = Some(spd.smallest_pivot());
        let mut x = spd.solve_rows(c);
        spd.refine(c, &mut x, 2);
        return Ok(x);
    }
    let eigen = Eigen::of(a)?;
    let cutoff = CUTOFF * eigen.values.first().copied().unwrap_or(0.0).max(0.0);
    let rank = eigen.rank(cutoff);
    found.rank = Some(rank);
    found.notes.push(format!(
        "the matrix of the head has rank {rank} of {}: directions it does not show are left out; more regularisation makes it \
         regular",
        a.rows()
    ));
    Ok(eigen.solve_rows(c, cutoff))
}

impl Head {
    /// Logits of features, one a row.
    ///
    /// # Panics
    /// If the features have another length than W has columns.
    pub fn logits(&self, features: &Matrix) -> Matrix {
        let mut out = gemm::mul_nt(features, &self.weight);
        for i in 0..out.rows() {
            for (x, b) in out.row_mut(i).iter_mut().zip(&self.bias) {
                *x += b;
            }
        }
        out
    }
}
