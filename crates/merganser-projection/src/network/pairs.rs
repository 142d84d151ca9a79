//! How the tasks lie to each other in one matrix: their task vectors and what these do to the outputs.

use merganser_linalg::{Matrix, Real, gemm};

/// Sums over the entries of one matrix for each pair of tasks, T×T; over several matrices they add up.
#[derive(Debug, Clone, PartialEq)]
pub struct Pairs {
    /// ⟨Δ_s, Δ_t⟩.
    pub weights: Matrix,
    /// tr(Δ_s G Δ_tᵀ): the product of what both change in the outputs, on the samples of all tasks.
    pub outputs: Matrix,
    /// Entries that both change, in opposite directions.
    pub opposite: Matrix,
    /// Entries that both change.
    pub both: Matrix,
}

impl Pairs {
    /// The sums of these task vectors, with the Gram of the inputs of all tasks. `scaled` are the task vectors in the units
    /// of the Gram.
    pub(super) fn of<T: Real>(
        updates: &[Matrix<T>],
        scaled: &[Matrix<T>],
        gram: &Matrix<T>,
    ) -> Self {
        let products: Vec<Matrix<T>> = scaled
            .iter()
            .map(|update| gemm::mul(update, gram))
            .collect();
        let tasks = updates.len();
        let mut opposite = Matrix::zeros(tasks, tasks);
        let mut both = Matrix::zeros(tasks, tasks);
        for s in 0..tasks {
            for t in 0..tasks {
                let (mut against, mut shared) = (0_u64, 0_u64);
                for (a, b) in updates[s].as_slice().iter().zip(updates[t].as_slice()) {
                    let (a, b) = (a.to_f64(), b.to_f64());
                    if a != 0.0 && b != 0.0 {
                        shared += 1;
                        against += u64::from((a > 0.0) != (b > 0.0));
                    }
                }
                opposite.set(s, t, against as f64);
                both.set(s, t, shared as f64);
            }
        }
        Self {
            weights: Matrix::from_fn(tasks, tasks, |s, t| updates[s].dot(&updates[t])),
            outputs: Matrix::from_fn(tasks, tasks, |s, t| products[s].dot(&scaled[t])),
            opposite,
            both,
        }
    }

    /// Adds the sums of another matrix of the same tasks.
    pub fn add(&mut self, other: &Self) {
        self.weights.add_scaled(1.0, &other.weights);
        self.outputs.add_scaled(1.0, &other.outputs);
        self.opposite.add_scaled(1.0, &other.opposite);
        self.both.add_scaled(1.0, &other.both);
    }

    /// Cosine of two task vectors; `None` where a task changes nothing.
    pub fn weight_cosine(&self, s: usize, t: usize) -> Option<f64> {
        cosine(&self.weights, s, t)
    }

    /// Cosine of what two tasks change in the outputs; `None` where a task changes nothing.
    pub fn output_cosine(&self, s: usize, t: usize) -> Option<f64> {
        cosine(&self.outputs, s, t)
    }

    /// Share of opposite directions among the entries that both tasks change; `None` if there are none.
    pub fn conflict(&self, s: usize, t: usize) -> Option<f64> {
        let both = self.both.get(s, t);
        (both > 0.0).then(|| self.opposite.get(s, t) / both)
    }
}

fn cosine(inner: &Matrix, s: usize, t: usize) -> Option<f64> {
    let norm = (inner.get(s, s) * inner.get(t, t)).sqrt();
    (norm > 0.0).then(|| (inner.get(s, t) / norm).clamp(-1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opposite_tasks_are_told_from_equal_ones() {
        let a = Matrix::from_fn(2, 3, |i, j| (i + j) as f64 + 1.0);
        let mut b = a.clone();
        b.scale(-2.0);
        let zero = Matrix::zeros(2, 3);
        let updates = [a, b, zero];
        let mut pairs = Pairs::of(&updates, &updates, &Matrix::identity(3));
        pairs.add(&pairs.clone());
        assert_eq!(pairs.weight_cosine(0, 1), Some(-1.0));
        assert_eq!(pairs.output_cosine(0, 0), Some(1.0));
        assert_eq!(
            (pairs.conflict(0, 0), pairs.conflict(0, 1)),
            (Some(0.0), Some(1.0))
        );
        assert_eq!(
            (pairs.conflict(0, 2), pairs.weight_cosine(0, 2)),
            (None, None)
        );
    }
}
