//! LOT Merging (arXiv 2505.23859, eq. 9): T* = (Σ_t Δ_t X_tᵀX_t)(Σ_t X_tᵀX_t)⁺, the full basis with Grams that are not
//! divided by the number of samples, so that a task with more of them weighs more. Scales of normalisations are
//! [`solve_channels`](crate::solve_channels), biases [`mean_residual`](crate::mean_residual).

use merganser_linalg::{Matrix, Real};

use crate::{Basis, InputMoments, Problem, Programme, Result, Solution, Task};

/// Merges the updates of one layer: (Δ_t, moments of the input of model t).
///
/// # Errors
/// As [`Problem::new`].
pub fn lot<T: Real>(updates: &[(&Matrix<T>, &InputMoments)]) -> Result<Solution<T>> {
    let tasks = updates
        .iter()
        .map(|(update, input)| Task {
            weight: input.count() as f64,
            ..Task::new(update, input)
        })
        .collect();
    Problem::new(tasks)?.solve(&Programme::new(Basis::Full))
}
