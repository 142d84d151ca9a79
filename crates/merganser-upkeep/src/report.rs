//! What statistics of classes are worth, and how far two of them lie apart.

use merganser_linalg::{Matrix, Spd, dot};
use serde::Serialize;

use crate::error::{Result, check_range, check_size};
use crate::heads::{Pool, listed};
use crate::stats::collapse::{Collapse, collapse};
use crate::stats::covariance::shrunk;

/// A class.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassReport {
    /// Its number.
    pub class: usize,
    /// Features it rests on.
    pub count: u64,
    /// What its covariance says of its dimensions.
    pub collapse: Option<Collapse>,
}

/// What statistics are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Length of the features.
    pub dim: usize,
    /// Number of features.
    pub features: u64,
    /// Classes with features.
    pub classes: Vec<ClassReport>,
    /// Classes without any.
    pub missing: Vec<usize>,
    /// The covariance within classes.
    pub within: Option<Collapse>,
    /// The covariance of all features: of what the anti-collapse loss sees in a batch.
    pub all: Option<Collapse>,
    /// Warnings.
    pub notes: Vec<String>,
}

impl Report {
    /// Describes statistics; β is that of the [score](crate::stats::collapse).
    ///
    /// # Errors
    /// If β is not positive, or a decomposition fails.
    pub fn of(pool: &Pool, beta: f64) -> Result<Self> {
        let present = (0..pool.classes()).filter(|&class| pool.counts()[class] > 0);
        let classes = present.map(|class| {
            let count = pool.counts()[class];
            let cov = pool.class_covariance(class)?.filter(|_| count > 1);
            Ok(ClassReport {
                class,
                count,
                collapse: cov.map(|cov| collapse(&cov, beta)).transpose()?,
            })
        });
        let classes = classes.collect::<Result<Vec<_>>>()?;
        let missing: Vec<usize> = (0..pool.classes())
            .filter(|&class| pool.counts()[class] == 0)
            .collect();
        let features: u64 = pool.counts().iter().sum();
        let within = if pool.has_covariances() {
            Some(pool.within_classes()?)
        } else {
            None
        };
        let total = pool.total_covariance()?.filter(|_| features > 1);
        let mut report = Self {
            dim: pool.dim(),
            features,
            missing,
            within: within.map(|cov| collapse(&cov, beta)).transpose()?,
            all: total.map(|cov| collapse(&cov, beta)).transpose()?,
            notes: Vec::new(),
            classes,
        };
        report.warn();
        Ok(report)
    }

    fn warn(&mut self) {
        if !self.missing.is_empty() {
            self.notes.push(format!(
                "{} classes have no features ({})",
                self.missing.len(),
                listed(&self.missing)
            ));
        }
        if self.within.is_none() {
            self.notes.push(
                "without covariances nothing is known of the spread of classes; build statistics with `merganser stats build \
                 --cov`"
                    .to_owned(),
            );
        }
        let few: Vec<usize> = self
            .classes
            .iter()
            .filter(|it| it.count <= self.dim as u64)
            .map(|it| it.class)
            .collect();
        if self.within.is_some() && !few.is_empty() {
            self.notes.push(format!(
                "{} classes have no more features than their length of {} ({}): their covariances are singular for want of \
                 features, not by collapse",
                few.len(),
                self.dim,
                listed(&few)
            ));
        }
        if let Some(all) = &self.all
            && all.collapsed > 0
        {
            let why = if self.features > self.dim as u64 {
                "the features lie in fewer dimensions than they have"
            } else {
                "there are no more features than dimensions"
            };
            self.notes.push(format!(
                "{} of {} directions of all features have collapsed: {why}",
                all.collapsed, all.dim
            ));
        }
    }
}

/// How far a class of one file of statistics lies from the same class of another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Its number.
    pub class: usize,
    /// |μ − μ′|.
    pub mean: f64,
    /// |Σ − Σ′|_F.
    pub covariance: Option<f64>,
    /// KL(p‖p′) + KL(p′‖p) of the two normal distributions, in nats; absent if a covariance is singular.
    pub divergence: Option<f64>,
}

/// How far two statistics lie apart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Changes {
    /// Classes that both have.
    pub classes: Vec<Change>,
    /// Classes that only one of them has.
    pub unmatched: Vec<usize>,
    /// Warnings.
    pub notes: Vec<String>,
}

impl Changes {
    /// Compares class by class. For the divergence, `shrink` times the mean of its diagonal is added to the diagonal of each
    /// covariance.
    ///
    /// # Errors
    /// If the features differ in length, `shrink` is out of range, or numbers leave the range of `f64`.
    pub fn between(first: &Pool, second: &Pool, shrink: f64) -> Result<Self> {
        check_range("shrink", shrink, (0.0, 1e6), "from 0 to a million")?;
        check_size(
            || "length of the features of the second file, as of the first".into(),
            second.dim(),
            first.dim(),
        )?;
        let has = |pool: &Pool, class: usize| pool.counts().get(class).is_some_and(|&n| n > 0);
        let (mut classes, mut unmatched, mut singular) = (Vec::new(), Vec::new(), 0);
        for class in 0..first.classes().max(second.classes()) {
            match (has(first, class), has(second, class)) {
                (true, true) => {}
                (false, false) => continue,
                _ => {
                    unmatched.push(class);
                    continue;
                }
            }
            let pairs = first
                .means()
                .row(class)
                .iter()
                .zip(second.means().row(class));
            let delta: Vec<f64> = pairs.map(|(a, b)| b - a).collect();
            let covs = first
                .class_covariance(class)?
                .zip(second.class_covariance(class)?);
            let covariance = covs.as_ref().map(|(a, b)| {
                let mut difference = a.clone();
                difference.add_scaled(-1.0, b);
                difference.norm()
            });
            let divergence = covs.and_then(|(a, b)| {
                divergence(&delta, &shrunk(a, shrink, 0.0), &shrunk(b, shrink, 0.0))
            });
            singular += usize::from(covariance.is_some() && divergence.is_none());
            classes.push(Change {
                class,
                mean: dot(&delta, &delta).sqrt(),
                covariance,
                divergence,
            });
        }
        let mut notes = Vec::new();
        if !unmatched.is_empty() {
            notes.push(format!(
                "{} classes are in one of the files only ({})",
                unmatched.len(),
                listed(&unmatched)
            ));
        }
        if singular > 0 {
            notes.push(format!(
                "{singular} classes have a singular covariance, so that the divergence is infinite; compare them with --shrink"
            ));
        }
        Ok(Self {
            classes,
            unmatched,
            notes,
        })
    }
}

/// ½ (tr A B⁻¹ + tr B A⁻¹ + δᵀ (A⁻¹ + B⁻¹) δ) − d, the symmetric Kullback-Leibler divergence of two normal distributions whose
/// means differ by δ; none if A or B is singular.
fn divergence(delta: &[f64], a: &Matrix, b: &Matrix) -> Option<f64> {
    let regular = |m: &Matrix| {
        let spd = Spd::factor(m.clone(), 0.0).ok()?;
        (!spd.is_singular(f64::EPSILON)).then_some(spd)
    };
    let (inverse_a, inverse_b) = (regular(a)?, regular(b)?);
    let row = Matrix::from_fn(1, delta.len(), |_, j| delta[j]);
    let half = |spd: &Spd<f64>, other: &Matrix| {
        let ratio = spd.solve_rows(other);
        let trace: f64 = (0..ratio.rows()).map(|i| ratio.get(i, i)).sum();
        trace + dot(spd.solve_rows(&row).row(0), delta)
    };
    let twice = half(&inverse_b, a) + half(&inverse_a, b);
    // Rounding may leave less than nothing of equal distributions.
    let divergence = 0.5 * twice - delta.len() as f64;
    divergence.is_finite().then(|| divergence.max(0.0))
}
