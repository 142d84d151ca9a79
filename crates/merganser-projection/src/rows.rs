//! Parameters whose input is an indicator: embeddings, position embeddings, and everything that is only added.
//!
//! The input of an embedding is one-hot, so G is diagonal and every row a problem of its own: row v of the best update is
//! Σ_t c_t f_t(v) Δ_t,v / Σ_t c_t f_t(v), where task t saw row v f_t(v) times and c_t = ω_t/n_t. A row that no sample saw
//! keeps the prior. A bias, a class token or another additive parameter is a single row that every sample sees.

use merganser_linalg::{Matrix, Real, dot};
use rayon::prelude::*;

use crate::channels::captured;
use crate::error::shape;
use crate::moments::refused;
use crate::{Captured, Error, Note, Result};

/// How often each row of an embedding was looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowCounts {
    counts: Vec<u64>,
}

impl RowCounts {
    /// Counts of zero for an embedding of `rows` rows.
    pub fn new(rows: usize) -> Self {
        Self {
            counts: vec![0; rows],
        }
    }

    /// Counts known from elsewhere.
    pub fn from_counts(counts: Vec<u64>) -> Self {
        Self { counts }
    }

    /// Counts look-ups.
    ///
    /// # Errors
    /// If one is beyond the last row; nothing is counted then.
    pub fn add<I: Copy + Into<u64>>(&mut self, ids: &[I]) -> Result<()> {
        let rows = self.counts.len() as u64;
        if let Some(id) = ids.iter().map(|&id| id.into()).find(|&id| id >= rows) {
            return Err(shape(
                "the number of a row",
                id,
                format!("less than {rows}"),
            ));
        }
        for &id in ids {
            self.counts[id.into() as usize] += 1;
        }
        Ok(())
    }

    /// Adds the counts of other samples.
    ///
    /// # Errors
    /// If they are of an embedding of another size.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if other.counts.len() != self.counts.len() {
            return Err(shape(
                "rows of other counts",
                other.counts.len(),
                self.counts.len(),
            ));
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        Ok(())
    }

    /// The count of every row.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// All look-ups.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// One task of an embedding.
#[derive(Debug, Clone, Copy)]
pub struct RowTask<'a, T: Real = f64> {
    /// ω_t ≥ 0.
    pub weight: f64,
    /// Δ_t: a row for each token or position.
    pub update: &'a Matrix<T>,
    /// How often its samples looked each row up.
    pub counts: &'a RowCounts,
}

/// The best update of an embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RowsSolution<T: Real = f64> {
    /// Δ.
    pub update: Matrix<T>,
    /// Which share of the residual energy it captures.
    pub captured: Captured,
    /// Rows that a sample saw; the others keep the prior.
    pub seen: usize,
    /// What a reader of the answer should know.
    pub notes: Vec<Note>,
}

/// A row of the update, and J and E of it for every task.
type SolvedRow<T> = (Vec<T>, Vec<(f64, f64)>);

/// The best update of an embedding; rows that no sample saw keep the prior, or 0 if there is none.
///
/// # Errors
/// If there is no task, sizes differ, a number is not finite or a weight negative, or a task saw nothing.
pub fn solve_rows<T: Real>(
    tasks: &[RowTask<'_, T>],
    prior: Option<&Matrix<T>>,
) -> Result<RowsSolution<T>> {
    let (rows, cols) = tasks.first().ok_or(Error::NoTasks)?.update.shape();
    for (t, task) in tasks.iter().enumerate() {
        check(t, task, (rows, cols))?;
    }
    check_weights(tasks.iter().map(|task| task.weight))?;
    if let Some(prior) = prior {
        if prior.shape() != (rows, cols) {
            return Err(shape("the prior", prior.shape(), (rows, cols)));
        }
        prior
            .check_finite()
            .map_err(|problem| refused("the prior", problem))?;
    }
    let totals: Vec<u64> = tasks.iter().map(|task| task.counts.total()).collect();
    let solved: Vec<SolvedRow<T>> = (0..rows)
        .into_par_iter()
        .with_min_len(16)
        .map(|v| {
            let factors: Vec<f64> = tasks
                .iter()
                .zip(&totals)
                .map(|(task, &total)| task.weight * task.counts.counts[v] as f64 / total as f64)
                .collect();
            let sum: f64 = factors.iter().sum();
            let mut row = vec![T::default(); cols];
            if sum > 0.0 {
                for (j, out) in row.iter_mut().enumerate() {
                    let mean: f64 = tasks
                        .iter()
                        .zip(&factors)
                        .map(|(task, factor)| factor * task.update.row(v)[j].to_f64())
                        .sum();
                    *out = T::from_f64(mean / sum);
                }
            } else if let Some(prior) = prior {
                row.copy_from_slice(prior.row(v));
            }
            let objectives = tasks
                .iter()
                .map(|task| {
                    let count = task.counts.counts[v] as f64;
                    let own = task.update.row(v);
                    let distance: f64 = own
                        .iter()
                        .zip(&row)
                        .map(|(a, b)| (a.to_f64() - b.to_f64()).powi(2))
                        .sum();
                    (count * distance, count * dot(own, own))
                })
                .collect();
            (row, objectives)
        })
        .collect();
    let mut objectives = vec![(0.0, 0.0); tasks.len()];
    let mut data = Vec::with_capacity(rows * cols);
    for (row, own) in solved {
        data.extend(row);
        for (sum, (j, e)) in objectives.iter_mut().zip(own) {
            sum.0 += j;
            sum.1 += e;
        }
    }
    let seen = (0..rows)
        .filter(|&v| tasks.iter().any(|task| task.counts.counts[v] > 0))
        .count();
    let captured = captured(
        tasks
            .iter()
            .zip(&totals)
            .map(|(task, &total)| (task.weight, total)),
        &objectives,
    );
    let mut notes = Vec::new();
    if seen < rows {
        notes.push(Note::MinimumNorm {
            rank: seen,
            of: rows,
        });
    }
    if captured.energy == 0.0 {
        notes.push(Note::NoEnergy);
    }
    Ok(RowsSolution {
        update: Matrix::new(rows, cols, data)?,
        captured,
        seen,
        notes,
    })
}

/// The best update of a parameter that is only added to what flows by: the weighted mean of the tasks' mean residuals
/// (their updates of it, where the flow is that of the teachers). Energies are those of the mean residuals.
///
/// # Errors
/// If there is no task, sizes differ, a number is not finite, or a weight is negative or all are zero.
pub fn mean_residual(tasks: &[(f64, &[f64])]) -> Result<(Vec<f64>, Captured)> {
    let size = tasks.first().ok_or(Error::NoTasks)?.1.len();
    for (t, (_, residual)) in tasks.iter().enumerate() {
        if residual.len() != size {
            return Err(shape(
                format!("the residual of task {t}"),
                residual.len(),
                size,
            ));
        }
        merganser_linalg::check_finite(residual, size)
            .map_err(|problem| refused(&format!("the residual of task {t}"), problem))?;
    }
    check_weights(tasks.iter().map(|task| task.0))?;
    let weight: f64 = tasks.iter().map(|task| task.0).sum();
    let mean: Vec<f64> = (0..size)
        .map(|i| {
            tasks
                .iter()
                .map(|(w, residual)| w * residual[i])
                .sum::<f64>()
                / weight
        })
        .collect();
    let objectives: Vec<(f64, f64)> = tasks
        .iter()
        .map(|(_, residual)| {
            let distance = residual
                .iter()
                .zip(&mean)
                .map(|(a, b)| (a - b).powi(2))
                .sum();
            (distance, dot(residual, residual))
        })
        .collect();
    let captured = captured(tasks.iter().map(|task| (task.0, 1)), &objectives);
    Ok((mean, captured))
}

fn check<T: Real>(t: usize, task: &RowTask<'_, T>, (rows, cols): (usize, usize)) -> Result<()> {
    if task.update.shape() != (rows, cols) {
        return Err(shape(
            format!("the update of task {t}"),
            task.update.shape(),
            (rows, cols),
        ));
    }
    if task.counts.counts.len() != rows {
        return Err(shape(
            format!("the counts of task {t}"),
            task.counts.counts.len(),
            rows,
        ));
    }
    if task.counts.total() == 0 {
        return Err(Error::NoSamples { task: t });
    }
    task.update
        .check_finite()
        .map_err(|problem| refused(&format!("the update of task {t}"), problem))
}

pub(crate) fn check_weights(weights: impl Iterator<Item = f64>) -> Result<()> {
    let mut any = false;
    for (t, weight) in weights.enumerate() {
        if !(weight >= 0.0 && weight.is_finite()) {
            return Err(Error::Range {
                what: format!("the weight of task {t}"),
                found: weight,
                expected: "a finite number of at least 0",
            });
        }
        any |= weight > 0.0;
    }
    if any { Ok(()) } else { Err(Error::NoWeight) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_means_weighted_by_frequency() {
        let updates = [1.0, 4.0].map(|x| Matrix::from_fn(3, 2, |i, j| x * (i + j + 1) as f64));
        let [mut first, mut second] = [RowCounts::new(3), RowCounts::new(3)];
        first.add(&[0_u32, 0, 1, 1]).unwrap();
        second.add(&[0_u32]).unwrap();
        let tasks =
            [(&updates[0], &first), (&updates[1], &second)].map(|(update, counts)| RowTask {
                weight: 1.0,
                update,
                counts,
            });
        let prior = Matrix::from_fn(3, 2, |_, _| 9.0);
        let solution = solve_rows(&tasks, Some(&prior)).unwrap();
        // Frequencies 1/2 and 1 for row 0; row 1 is the first task's; row 2 was never seen.
        assert_eq!(solution.update.row(0), [3.0, 6.0]);
        assert_eq!(solution.update.row(1), updates[0].row(1));
        assert_eq!(solution.update.row(2), [9.0, 9.0]);
        assert_eq!(solution.seen, 2);
        let expected = 0.5 * 5.0 * 4.0 + 5.0;
        assert!((solution.captured.objective - expected).abs() < 1e-12);
        assert!(solve_rows(&tasks[..1], Some(&Matrix::zeros(2, 2))).is_err());
        assert!(first.add(&[3_u32]).is_err());
    }

    #[test]
    fn additive_parameters_are_means() {
        let (mean, captured) = mean_residual(&[(1.0, &[1.0, 0.0]), (3.0, &[5.0, 0.0])]).unwrap();
        assert_eq!(mean, [4.0, 0.0]);
        assert_eq!(captured.objective, 9.0 + 3.0);
        assert!(mean_residual(&[(0.0, &[1.0])]).is_err());
        assert!(mean_residual(&[(1.0, &[f64::NAN])]).is_err());
        assert!(mean_residual(&[]).is_err());
    }
}
