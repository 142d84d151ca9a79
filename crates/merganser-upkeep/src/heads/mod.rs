//! Heads from statistics of classes, without a feature and without training.
//!
//! With N_c features of class c, their mean μ_c and, from each client k that has the class, a mean m_kc of n_kc of them:
//!
//! | head | w_c | source |
//! |---|---|---|
//! | ncm | μ_c, of length 1 | FedNCM (arXiv 2402.01862), nearest class mean |
//! | fedcof | G⁻¹ N_c μ_c, of length 1; G = Σ_c (N_c − 1)(S_c + γ I) + N μ μᵀ | FedCOF (arXiv 2412.14326) |
//! | ridge | (Σ f fᵀ + λ I)⁻¹ N_c μ_c, of length 1 | Fed3R (arXiv 2402.01862) |
//! | bayes | Σ⁻¹ μ_c, with bias ln (N_c / N) − μ_cᵀ Σ⁻¹ μ_c / 2 | linear discriminant analysis |
//!
//! Heads of Gaussian classes, each with a covariance of its own, are quadratic: see [`Gaussian`].
//!
//! S_c = Σ_k n_kc (m_kc − μ_c)(m_kc − μ_c)ᵀ / (K_c − 1) is an unbiased estimate of the covariance of a class from the K_c
//! means alone, because the variance of a mean of n is Σ_c / n — if clients drew their features of a class alike. If they
//! did not, S_c also holds what sets clients apart, the more the larger they are; [`Found::uneven`] shows it.
//!
//! Sums are taken over rows in an order that depends only on what they hold, so that no number changes with the order in
//! which clients, or rounds of clients, are given.

mod file;
mod fit;
mod gaussian;

pub(crate) use fit::listed;
pub use fit::{Found, Gamma, Head, Kind};
pub use gaussian::{Gaussian, GaussianOptions};

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use merganser_linalg::{Matrix, Symmetric, dot};

use crate::error::{Error, Result, check_size};
use crate::stats::Stats;

/// Statistics of many clients, put together.
#[derive(Debug)]
pub struct Pool {
    /// All rows, in an order of their own.
    rows: Vec<Row>,
    /// Number of files.
    clients: usize,
    /// N_c.
    counts: Vec<u64>,
    /// K_c.
    means_of: Vec<usize>,
    /// μ_c, zero where a class has no feature.
    means: Matrix,
    /// Σ f fᵀ, if every client has it or the covariances it follows from.
    gram: Option<Matrix>,
    /// Σ (n − 1) cov over the rows of each class, if all rows have covariances.
    within: Option<BTreeMap<usize, Matrix>>,
    notes: Vec<String>,
}

#[derive(Debug)]
struct Row {
    class: usize,
    count: u64,
    mean: Vec<f64>,
}

impl Pool {
    /// Puts clients together. `classes` is the number of classes; without it there are as many as the largest number says.
    ///
    /// # Errors
    /// If there is no feature, clients differ in the length of features, or a class has a number too large.
    pub fn new(mut clients: Vec<Stats>, classes: Option<usize>) -> Result<Self> {
        let Some(first) = clients.first() else {
            return Err(Error::Unfit("there are no statistics".into()));
        };
        let dim = first.dim();
        for client in &mut clients {
            check_size(
                || "length of the features, which must be one for all clients".into(),
                client.dim(),
                dim,
            )?;
            client.sort();
        }
        let compare = |a: &Stats, b: &Stats| {
            (0..a.classes.len().min(b.classes.len()))
                .map(|i| a.compare_rows(i, b, i))
                .find(|order| order.is_ne())
                .unwrap_or_else(|| a.classes.len().cmp(&b.classes.len()))
        };
        clients.sort_by(compare);
        let mut notes = Vec::new();
        let twice = clients
            .windows(2)
            .filter(|pair| !pair[0].classes.is_empty() && compare(&pair[0], &pair[1]).is_eq())
            .count();
        if twice > 0 {
            notes.push(format!(
                "{twice} of the files hold the same statistics as another; if they are copies, their features count twice"
            ));
        }
        let largest = clients.iter().flat_map(|client| &client.classes).max();
        let Some(&largest) = largest else {
            return Err(Error::Unfit(
                "the statistics hold no feature: every count is 0".into(),
            ));
        };
        let known = classes.unwrap_or(largest.saturating_add(1));
        if largest >= known {
            return Err(Error::Unfit(format!(
                "a client has class {largest}; with {known} classes they are 0 to {}",
                known.saturating_sub(1)
            )));
        }
        if known > 1 << 24 {
            return Err(Error::Unfit(match classes {
                Some(given) => format!("{given} classes were asked for; there may be 2^24"),
                None => format!("a client has class {largest}; number classes from 0 on"),
            }));
        }
        let (gram, within) = (gram(&clients)?, within(&mut clients));
        let mut rows: Vec<Row> = clients
            .iter()
            .flat_map(|client| {
                (0..client.classes.len()).map(|i| Row {
                    class: client.classes[i],
                    count: client.counts[i],
                    mean: client.means.row(i).to_vec(),
                })
            })
            .collect();
        rows.sort_by(|a, b| {
            a.class
                .cmp(&b.class)
                .then(a.count.cmp(&b.count))
                .then_with(|| {
                    let pairs = a.mean.iter().zip(&b.mean);
                    pairs
                        .map(|(x, y)| x.total_cmp(y))
                        .find(|order| order.is_ne())
                        .unwrap_or(std::cmp::Ordering::Equal)
                })
        });
        let mut means = Matrix::zeros(known, dim);
        let (mut counts, mut means_of) = (vec![0; known], vec![0; known]);
        for row in &rows {
            counts[row.class] += row.count;
            means_of[row.class] += 1;
            for (sum, x) in means.row_mut(row.class).iter_mut().zip(&row.mean) {
                *sum += row.count as f64 * x;
            }
        }
        for (class, &count) in counts.iter().enumerate() {
            for x in means.row_mut(class) {
                *x /= count.max(1) as f64;
            }
        }
        means.check_finite()?;
        Ok(Self {
            clients: clients.len(),
            rows,
            counts,
            means_of,
            means,
            gram,
            within,
            notes,
        })
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.counts.len()
    }

    /// Length of the features.
    pub fn dim(&self) -> usize {
        self.means.cols()
    }

    /// N_c, the number of features of each class.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// K_c, the number of means of each class.
    pub fn means_of_class(&self) -> &[usize] {
        &self.means_of
    }

    /// μ_c, one a row; zero where a class has no feature.
    pub fn means(&self) -> &Matrix {
        &self.means
    }

    /// μ, the mean of all features.
    pub fn global_mean(&self) -> Vec<f64> {
        let mut mean = vec![0.0; self.dim()];
        let mut total = 0.0;
        for (class, &count) in self.counts.iter().enumerate() {
            total += count as f64;
            for (sum, x) in mean.iter_mut().zip(self.means.row(class)) {
                *sum += count as f64 * x;
            }
        }
        for x in &mut mean {
            *x /= total;
        }
        mean
    }

    /// √n (m − μ_c) of each row of a class, one a row.
    fn scatter_rows(&self, class: usize, factor: f64) -> Vec<f64> {
        let mut out = Vec::new();
        for row in self.rows.iter().filter(|row| row.class == class) {
            let scale = factor * (row.count as f64).sqrt();
            let pairs = row.mean.iter().zip(self.means.row(class));
            out.extend(pairs.map(|(x, mean)| scale * (x - mean)));
        }
        out
    }

    /// S_c, the unbiased estimate of the covariance of a class from its means; zero where it has fewer than two.
    ///
    /// # Errors
    /// If numbers leave the range of `f64`.
    ///
    /// # Panics
    /// If there is no such class.
    pub fn covariance(&self, class: usize) -> Result<Matrix> {
        let mut sum = Symmetric::zeros(self.dim());
        let degrees = self.means_of[class].saturating_sub(1).max(1) as f64;
        let rows = self.scatter_rows(class, 1.0 / degrees.sqrt());
        if self.means_of[class] > 1 {
            sum.add_rows(&rows)?;
        }
        Ok(sum.to_square())
    }

    /// Whether every file has covariances, so that those of classes are exact.
    pub fn has_covariances(&self) -> bool {
        self.within.is_some()
    }

    /// The unbiased covariance of all features of a class, from the covariances and means of its rows; zero where it has
    /// fewer than two features. Absent if a file has no covariances.
    ///
    /// # Errors
    /// If numbers leave the range of `f64`.
    ///
    /// # Panics
    /// If there is no such class.
    pub fn class_covariance(&self, class: usize) -> Result<Option<Matrix>> {
        let Some(within) = &self.within else {
            return Ok(None);
        };
        let mut between = Symmetric::zeros(self.dim());
        if self.means_of[class] > 1 {
            between.add_rows(&self.scatter_rows(class, 1.0))?;
        }
        let mut cov: Matrix = between.to_square();
        if let Some(within) = within.get(&class) {
            cov.add_scaled(1.0, within);
        }
        cov.scale(1.0 / (self.counts[class].max(2) - 1) as f64);
        Ok(Some(cov))
    }

    /// The unbiased covariance of all features of all classes, (Σ f fᵀ − N μ μᵀ) / (N − 1). Absent if a file has neither
    /// covariances nor a Gram matrix.
    ///
    /// # Errors
    /// If numbers leave the range of `f64`.
    pub fn total_covariance(&self) -> Result<Option<Matrix>> {
        let Some(gram) = &self.gram else {
            return Ok(None);
        };
        let total: f64 = self.counts.iter().map(|&n| n as f64).sum();
        let mean = self.global_mean();
        let factor = 1.0 / (total - 1.0).max(1.0);
        let cov = Matrix::from_fn(self.dim(), self.dim(), |i, j| {
            factor * (gram.get(i, j) - total * mean[i] * mean[j])
        });
        cov.check_finite()?;
        Ok(Some(cov))
    }

    /// Σ_c w_c S_c for weights of classes.
    fn weighted_covariance(&self, weight: impl Fn(usize) -> f64) -> Result<Symmetric> {
        let mut sum = Symmetric::zeros(self.dim());
        let mut at = 0;
        // Rows are in the order of classes; a class is added at once.
        while at < self.rows.len() {
            let class = self.rows[at].class;
            let count = self.means_of[class];
            if count > 1 {
                let factor = weight(class) / (count - 1) as f64;
                let rows: Vec<f64> = self.rows[at..at + count]
                    .iter()
                    .flat_map(|row| {
                        let scale = (factor * row.count as f64).sqrt();
                        let pairs = row.mean.iter().zip(self.means.row(class));
                        pairs.map(move |(x, mean)| scale * (x - mean))
                    })
                    .collect();
                sum.add_rows(&rows)?;
            }
            at += count;
        }
        Ok(sum)
    }

    /// Σ_c (K_c − 1), what the estimate of the pooled covariance rests on.
    pub fn degrees(&self) -> usize {
        self.means_of.iter().map(|k| k.saturating_sub(1)).sum()
    }

    /// How much farther the means of large counts lie from those of their class than the means of small counts, where both
    /// should lie equally far: the ratio of the means of n |m − μ_c|² / (1 − n / N_c). Near 1 if clients drew their features
    /// alike; absent with fewer than 10 means on either side.
    fn uneven(&self) -> Option<f64> {
        let mut found: Vec<(u64, f64)> = self
            .rows
            .iter()
            .filter(|row| row.count < self.counts[row.class])
            .map(|row| {
                let difference: Vec<f64> = row
                    .mean
                    .iter()
                    .zip(self.means.row(row.class))
                    .map(|(x, mean)| x - mean)
                    .collect();
                let n = row.count as f64;
                let rest = 1.0 - n / self.counts[row.class] as f64;
                (row.count, n * dot(&difference, &difference) / rest)
            })
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let median = found.get(found.len() / 2)?.0;
        let mean = |large: bool| {
            let part = found
                .iter()
                .filter(|(count, _)| (*count >= median) == large);
            let (count, sum) = part.fold((0, 0.0), |(k, sum), (_, x)| (k + 1, sum + x));
            (count >= 10 && sum > 0.0).then(|| sum / f64::from(count))
        };
        Some(mean(true)? / mean(false)?)
    }
}

/// Σ f fᵀ over all clients, from their Gram matrices or their covariances.
fn gram(clients: &[Stats]) -> Result<Option<Matrix>> {
    let dim = clients[0].dim();
    let mut sum = Matrix::zeros(dim, dim);
    for client in clients.iter().filter(|client| !client.classes.is_empty()) {
        if let Some(gram) = &client.gram {
            sum.add_scaled(1.0, gram);
            continue;
        }
        let Some(covs) = &client.covs else {
            return Ok(None);
        };
        let mut outer = Symmetric::zeros(dim);
        for (i, cov) in covs.iter().enumerate() {
            let count = client.counts[i] as f64;
            sum.add_scaled(count - 1.0, cov);
            let row: Vec<f64> = client
                .means
                .row(i)
                .iter()
                .map(|x| count.sqrt() * x)
                .collect();
            outer.add_rows(&row)?;
        }
        sum.add_scaled(1.0, &outer.to_square());
    }
    Ok(Some(sum))
}

/// Σ (n − 1) cov over the rows of each class. The covariances are taken out of the statistics, because there may be many.
fn within(clients: &mut [Stats]) -> Option<BTreeMap<usize, Matrix>> {
    let mut sums: BTreeMap<usize, Matrix> = BTreeMap::new();
    for client in clients
        .iter_mut()
        .filter(|client| !client.classes.is_empty())
    {
        let covs = client.covs.take()?;
        for (i, mut cov) in covs.into_iter().enumerate() {
            cov.scale(client.counts[i] as f64 - 1.0);
            match sums.entry(client.classes[i]) {
                Entry::Vacant(none) => {
                    none.insert(cov);
                }
                Entry::Occupied(mut sum) => sum.get_mut().add_scaled(1.0, &cov),
            }
        }
    }
    Some(sums)
}
