//! Statistics taken to the space of a newer model by an adapter that is no affine map (AdaGauss, arXiv 2409.18265).
//!
//! N features of each class are drawn from the normal distribution of its mean and covariance, x = μ + L ε with the lower
//! Cholesky factor L of Σ and standard normal ε, and taken through the adapter ψ. The mean of ψ(x) is the new mean, their
//! covariance with divisor N − 1 the new covariance, to which a multiple of its mean variance may be added.
//!
//! An error of sampling is left, relative to the covariance about √(2 / N) for each variance: 1.4 % with 10 000 features.
//! Statistics follow affine maps exactly, without samples; see [`Stats::adapt`].

use merganser_kernels::random::Sequence;
use merganser_linalg::{Matrix, Symmetric, gemm};

use super::covariance::{factor, shrunk};
use super::{Adapter, Stats};
use crate::error::{Error, Result, check_range, check_size};

/// Features that are drawn at a time.
const ROWS: usize = 1024;

/// What is adapted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Means and covariances.
    Full,
    /// Means and variances: new covariances are diagonal.
    Diagonal,
    /// Means only, as ψ(μ); covariances stay as they are.
    Mean,
}

/// How statistics are taken through an adapter.
#[derive(Debug, Clone, Copy)]
pub struct SampleOptions {
    /// What is adapted.
    pub strategy: Strategy,
    /// N, the number of features that are drawn of each class.
    pub samples: usize,
    /// Seed of the features.
    pub seed: u64,
    /// So many times the mean of its diagonal is added to the diagonal of each new covariance.
    pub shrink: f64,
}

impl Default for SampleOptions {
    /// What the paper takes: everything, 10 000 features, no shrinkage.
    fn default() -> Self {
        Self {
            strategy: Strategy::Full,
            samples: 10_000,
            seed: 0,
            shrink: 0.0,
        }
    }
}

/// Standard normal numbers for a row of statistics: the components of the first feature, of the second, …
pub type Draw<'a> = Box<dyn FnMut() -> f64 + 'a>;

/// Adapted statistics, and what became of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The statistics.
    pub stats: Stats,
    /// Warnings.
    pub notes: Vec<String>,
}

impl Stats {
    /// The statistics in the space `adapter` leads to. The features of a class depend on the seed and the number of the class
    /// alone.
    ///
    /// # Errors
    /// Those of [`adapt_with`](Self::adapt_with).
    pub fn adapt_by_samples(&self, adapter: &Adapter, options: &SampleOptions) -> Result<Sampled> {
        self.adapt_with(adapter, options, &|row| {
            let mut sequence = Sequence::new(options.seed, self.classes[row] as u64);
            Box::new(move || sequence.normal())
        })
    }

    /// The same with standard normal numbers from elsewhere, for each row of the statistics.
    ///
    /// # Errors
    /// If the adapter reads features of another length, covariances are missing or none, or an option is out of range.
    pub fn adapt_with<'a>(
        &self,
        adapter: &Adapter,
        options: &SampleOptions,
        draw: &dyn Fn(usize) -> Draw<'a>,
    ) -> Result<Sampled> {
        check_size(
            || "length of the features, as the adapter's first layer reads them".into(),
            self.dim(),
            adapter.dim(),
        )?;
        check_range(
            "the number of samples",
            options.samples as f64,
            (2.0, 1e7),
            "from 2 to 10 million",
        )?;
        check_range("shrink", options.shrink, (0.0, 1e6), "from 0 to a million")?;
        let mut notes = Vec::new();
        if self.gram.is_some() {
            notes.push(
                "the Gram matrix does not follow a network and is left out; heads that need it take the covariances"
                    .to_owned(),
            );
        }
        let mut out = Self {
            classes: self.classes.clone(),
            counts: self.counts.clone(),
            means: Matrix::zeros(self.classes.len(), adapter.dim_new()),
            covs: None,
            gram: None,
        };
        if options.strategy == Strategy::Mean {
            if self.covs.is_some() && adapter.dim_new() != self.dim() {
                return Err(Error::Unfit(format!(
                    "covariances of features of length {} cannot stay as they are where the adapter gives {}; take \
                     --strategy full",
                    self.dim(),
                    adapter.dim_new()
                )));
            }
            out.means = adapter.apply(&self.means)?;
            out.covs = self.covs.as_ref().map(|covs| {
                let each = covs
                    .iter()
                    .map(|cov| shrunk(cov.clone(), options.shrink, 0.0));
                each.collect()
            });
            return Ok(Sampled { stats: out, notes });
        }
        let Some(covs) = &self.covs else {
            return Err(Error::Unfit(
                "features can be drawn of classes with covariances only; build them with `merganser stats build --cov`, or \
                 take means alone through the adapter (--strategy mean)"
                    .into(),
            ));
        };
        let (mut points, mut raised) = (0, 0);
        let mut new = Vec::with_capacity(covs.len());
        for (row, cov) in covs.iter().enumerate() {
            let what = || format!("the covariance of class {}", self.classes[row]);
            let (lower, jitter) = factor(cov, what)?;
            points += usize::from(cov.norm() == 0.0);
            raised += usize::from(jitter > 0.0);
            let (mean, cov) = through(
                adapter,
                self.means.row(row),
                &lower,
                options.samples,
                &mut draw(row),
            )?;
            out.means.row_mut(row).copy_from_slice(&mean);
            let cov = match options.strategy {
                Strategy::Diagonal => Matrix::from_fn(cov.rows(), cov.cols(), |i, j| {
                    if i == j { cov.get(i, i) } else { 0.0 }
                }),
                _ => cov,
            };
            new.push(shrunk(cov, options.shrink, 0.0));
        }
        if points > 0 {
            notes.push(format!(
                "{points} of {} covariances are zero, as of classes of one feature: only the means of these are adapted",
                covs.len()
            ));
        }
        if raised > 0 {
            notes.push(format!(
                "{raised} of {} covariances are singular, as of classes of fewer features than dimensions: features were \
                 drawn in the directions they show",
                covs.len()
            ));
        }
        out.covs = Some(new);
        Ok(Sampled { stats: out, notes })
    }
}

/// Features μ + L ε, one a row, as many as `draw` fills.
///
/// # Panics
/// If the sizes do not fit.
#[must_use]
pub fn draw_features(mean: &[f64], lower: &Matrix, normals: &Matrix) -> Matrix {
    let mut rows = gemm::mul_nt(normals, lower);
    for i in 0..rows.rows() {
        for (x, mean) in rows.row_mut(i).iter_mut().zip(mean) {
            *x += mean;
        }
    }
    rows
}

/// Mean and covariance of the images of `samples` features.
fn through(
    adapter: &Adapter,
    mean: &[f64],
    lower: &Matrix,
    samples: usize,
    draw: &mut Draw<'_>,
) -> Result<(Vec<f64>, Matrix)> {
    // Sums are taken around the image of the mean, so that they do not cancel.
    let around = adapter.apply(&Matrix::new(1, mean.len(), mean.to_vec())?)?;
    let mut sum = vec![0.0; adapter.dim_new()];
    let mut square = Symmetric::zeros(adapter.dim_new());
    for from in (0..samples).step_by(ROWS) {
        let rows = ROWS.min(samples - from);
        let normals = Matrix::from_fn(rows, mean.len(), |_, _| draw());
        let mut images = adapter.apply(&draw_features(mean, lower, &normals))?;
        for i in 0..rows {
            for ((x, sum), around) in images
                .row_mut(i)
                .iter_mut()
                .zip(&mut sum)
                .zip(around.row(0))
            {
                *x -= around;
                *sum += *x;
            }
        }
        square.add_rows(images.as_slice())?;
    }
    let n = samples as f64;
    let mut cov: Matrix = square.to_square();
    for i in 0..cov.rows() {
        for j in 0..cov.cols() {
            cov.set(i, j, (cov.get(i, j) - sum[i] * sum[j] / n) / (n - 1.0));
        }
    }
    let mean = sum
        .iter()
        .zip(around.row(0))
        .map(|(sum, around)| around + sum / n);
    Ok((mean.collect(), cov))
}
