//! Statistics of a file of features.

use std::collections::BTreeMap;

use merganser_data::VectorFile;
use merganser_kernels::random::Sequence;
use merganser_linalg::{Matrix, Symmetric};

use super::Stats;
use crate::error::{Error, Result, check_size};

/// What is computed of features.
#[derive(Debug, Clone, Copy, Default)]
pub struct BuildOptions {
    /// Means of so many random parts of each class instead of one, for federations of few clients: min(g, ⌊n/2⌋) parts where
    /// a class has n ≥ 4 features, of ⌊n/g⌋ features each and the rest in the last. 0 and 1 mean one part.
    pub parts: usize,
    /// Seed of the parts.
    pub seed: u64,
    /// The covariance of each class too.
    pub cov: bool,
    /// The Gram matrix of all features too.
    pub gram: bool,
}

impl Stats {
    /// The statistics of features, which are read block by block, once, or twice if covariances are asked for.
    ///
    /// # Errors
    /// If there is not one label a feature, covariances are asked for with several parts, or the file cannot be read.
    pub fn build(features: &VectorFile, labels: &[usize], options: &BuildOptions) -> Result<Self> {
        check_size(
            || "number of labels, one a feature".into(),
            labels.len(),
            features.rows(),
        )?;
        if labels.is_empty() {
            return Err(Error::Unfit("there are no features".into()));
        }
        if options.parts > 1 && options.cov {
            return Err(Error::Unfit(
                "covariances are of whole classes; leave out --parts or --cov".into(),
            ));
        }
        let dim = features.dim();
        let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, &label) in labels.iter().enumerate() {
            members.entry(label).or_default().push(i);
        }
        // The row each feature counts to.
        let mut slots = vec![0; labels.len()];
        let (mut classes, mut counts) = (Vec::new(), Vec::new());
        for (&class, members) in &mut members {
            let n = members.len();
            let parts = if options.parts > 1 && n >= 4 {
                options.parts.min(n / 2)
            } else {
                1
            };
            if parts > 1 {
                let mut sequence = Sequence::new(options.seed, class as u64);
                for i in (1..n).rev() {
                    members.swap(i, (sequence.bits() % (i as u64 + 1)) as usize);
                }
            }
            for part in 0..parts {
                let size = n / parts;
                let end = if part + 1 == parts {
                    n
                } else {
                    (part + 1) * size
                };
                for &i in &members[part * size..end] {
                    slots[i] = classes.len();
                }
                counts.push((end - part * size) as u64);
                classes.push(class);
            }
        }
        let mut means = Matrix::zeros(classes.len(), dim);
        let mut gram = options.gram.then(|| Symmetric::zeros(dim));
        let mut failed = None;
        features.visit(&mut |first, rows| {
            for (i, row) in rows.chunks_exact(dim).enumerate() {
                for (sum, x) in means.row_mut(slots[first + i]).iter_mut().zip(row) {
                    *sum += x;
                }
            }
            if let Some(gram) = &mut gram
                && let Err(error) = gram.add_rows(rows)
            {
                failed.get_or_insert(error);
            }
            Ok(())
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        for (i, &count) in counts.iter().enumerate() {
            for x in means.row_mut(i) {
                *x /= count as f64;
            }
        }
        let covs = if options.cov {
            Some(covariances(features, &slots, &means, &counts)?)
        } else {
            None
        };
        Ok(Self {
            classes,
            counts,
            means,
            covs,
            gram: gram.map(|gram| gram.to_square()),
        })
    }
}

fn covariances(
    features: &VectorFile,
    slots: &[usize],
    means: &Matrix,
    counts: &[u64],
) -> Result<Vec<Matrix>> {
    let dim = features.dim();
    let mut sums = vec![Symmetric::zeros(dim); counts.len()];
    let mut failed = None;
    features.visit(&mut |first, rows| {
        let mut parts: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for (i, row) in rows.chunks_exact(dim).enumerate() {
            let slot = slots[first + i];
            let centred = row.iter().zip(means.row(slot)).map(|(x, mean)| x - mean);
            parts.entry(slot).or_default().extend(centred);
        }
        for (slot, rows) in parts {
            if let Err(error) = sums[slot].add_rows(&rows) {
                failed.get_or_insert(error);
            }
        }
        Ok(())
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    Ok(sums
        .iter()
        .zip(counts)
        .map(|(sum, &count)| sum.to_square_scaled(1.0 / (count.max(2) - 1) as f64))
        .collect())
}
