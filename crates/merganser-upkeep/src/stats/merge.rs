//! Statistics of several files in one, as those of several rounds or clients.
//!
//! Their rows are put side by side, none is averaged with another: FedCOF looks at every mean. Rows are sorted by what they
//! hold, so that the order of the files changes nothing. Covariances and Gram matrices are kept where every file with
//! features has them; Gram matrices add up.

use merganser_linalg::Matrix;

use super::Stats;
use crate::error::{Error, Result, check_size};

impl Stats {
    /// All rows of several statistics, and what there is to note: rows that are there more than once, and what was left out
    /// because not all have it. Statistics without features add nothing.
    ///
    /// # Errors
    /// If there are none, they differ in the length of features, or Gram matrices leave the range of `f64`.
    pub fn merge(parts: &[Self]) -> Result<(Self, Vec<String>)> {
        let Some(first) = parts.first() else {
            return Err(Error::Unfit("there are no statistics".into()));
        };
        let dim = first.dim();
        for part in parts {
            check_size(
                || "length of the features, which must be one for all files".into(),
                part.dim(),
                dim,
            )?;
        }
        let filled: Vec<&Self> = parts
            .iter()
            .filter(|part| !part.classes.is_empty())
            .collect();
        let mut notes = Vec::new();
        let mut kept = |what: &str, has: &dyn Fn(&Self) -> bool| {
            let with = filled.iter().filter(|part| has(part)).count();
            if 0 < with && with < filled.len() {
                notes.push(format!(
                    "{with} of {} files have {what}; left out, because it is that of all features or none",
                    filled.len()
                ));
            }
            !filled.is_empty() && with == filled.len()
        };
        let covs = kept("the covariance of every row (cov)", &|part| {
            part.covs.is_some()
        });
        let gram = kept("the Gram matrix (gram)", &|part| part.gram.is_some());
        let mut means = Matrix::stack_rows(filled.iter().map(|part| &part.means));
        if filled.is_empty() {
            means = Matrix::zeros(0, dim);
        }
        let mut out = Self {
            classes: filled
                .iter()
                .flat_map(|part| part.classes.clone())
                .collect(),
            counts: filled.iter().flat_map(|part| part.counts.clone()).collect(),
            means,
            covs: covs.then(|| {
                filled
                    .iter()
                    .filter_map(|part| part.covs.clone())
                    .flatten()
                    .collect()
            }),
            gram: gram.then(|| sum(&filled, dim)),
        };
        if let Some(gram) = &out.gram {
            gram.check_finite()?;
        }
        out.sort();
        let twice = (1..out.classes.len())
            .filter(|&i| out.compare_rows(i - 1, &out, i).is_eq())
            .count();
        if twice > 0 {
            notes.push(format!(
                "{twice} of {} rows hold the same class, count and mean as another; if a file was given twice, its features \
                 count twice",
                out.classes.len()
            ));
        }
        Ok((out, notes))
    }
}

/// Σ of the Gram matrices: each element adds its numbers in the order of their size, so that the order of the files changes no
/// bit.
fn sum(parts: &[&Stats], dim: usize) -> Matrix {
    Matrix::from_fn(dim, dim, |i, j| {
        let mut all: Vec<f64> = parts
            .iter()
            .filter_map(|part| part.gram.as_ref())
            .map(|gram| gram.get(i, j))
            .collect();
        all.sort_by(f64::total_cmp);
        all.iter().sum()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn stats(seed: f64, full: bool) -> Stats {
        let number = |k: usize| ((k as f64 + 1.0) * seed).sin();
        let square = |k: usize| {
            let (a, b) = (number(k), number(k + 1));
            Matrix::new(2, 2, vec![a * a, a * b, a * b, b * b]).unwrap()
        };
        Stats {
            classes: vec![3, 0],
            counts: vec![2, 5],
            means: Matrix::from_fn(2, 2, |i, j| number(2 * i + j)),
            covs: full.then(|| vec![square(4), square(6)]),
            gram: full.then(|| square(8)),
        }
    }

    #[test]
    fn the_order_of_files_changes_no_bit() {
        let parts = [stats(0.7, true), stats(1.1, true), stats(2.9, true)];
        let (all, notes) = Stats::merge(&parts).unwrap();
        assert!(notes.is_empty(), "{notes:?}");
        assert_eq!(all.classes, [0, 0, 0, 3, 3, 3]);
        assert_eq!(all.covs.as_ref().unwrap().len(), 6);
        let [a, b, c] = parts.clone();
        assert_eq!(Stats::merge(&[c, a, b]).unwrap().0, all);
        let expected: f64 = parts
            .iter()
            .map(|p| p.gram.as_ref().unwrap().get(0, 1))
            .sum();
        assert!((all.gram.unwrap().get(0, 1) - expected).abs() < 1e-12);
        // One round after the other gives the same rows.
        let (two, _) = Stats::merge(&parts[..2]).unwrap();
        let (three, _) = Stats::merge(&[two, parts[2].clone()]).unwrap();
        assert_eq!(three.means, all.means);
    }

    #[test]
    fn copies_and_what_not_all_have_are_noted() {
        let (_, notes) = Stats::merge(&[stats(0.7, true), stats(0.7, true)]).unwrap();
        assert!(notes[0].contains("2 of 4 rows"), "{notes:?}");
        let (all, notes) = Stats::merge(&[stats(0.7, true), stats(1.1, false)]).unwrap();
        assert!(all.covs.is_none() && all.gram.is_none());
        assert!(notes[0].contains("1 of 2 files have"), "{notes:?}");
        assert!(notes[1].contains("gram"), "{notes:?}");
    }

    #[test]
    fn empty_statistics_add_nothing() {
        let empty = Stats {
            classes: vec![],
            counts: vec![],
            means: Matrix::zeros(0, 2),
            covs: None,
            gram: None,
        };
        let (all, notes) = Stats::merge(&[empty.clone(), stats(0.7, true)]).unwrap();
        assert!(all.gram.is_some() && notes.is_empty());
        let (none, _) = Stats::merge(&[empty]).unwrap();
        assert_eq!(none.means.shape(), (0, 2));
        assert!(Stats::merge(&[]).is_err());
        let wide = Stats {
            means: Matrix::zeros(2, 5),
            ..stats(0.7, false)
        };
        let error = Stats::merge(&[stats(0.7, false), wide]).unwrap_err();
        assert!(error.to_string().contains("found 5, expected 2"), "{error}");
    }
}
