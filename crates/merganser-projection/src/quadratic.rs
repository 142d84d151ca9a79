//! J as a quadratic in Δ: G, C and E of some samples, tasks weighted by ω_t/n_t.

use merganser_linalg::{Matrix, Real, Symmetric, gemm};

use crate::problem::Task;
use crate::{Error, InputMoments, Result, TargetMoments};

/// Which samples of the tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Samples {
    /// All of them.
    All,
    /// Those that are not held out.
    Fitted,
    /// Those that are held out.
    HeldOut,
}

/// tr(Δ G Δᵀ) − 2 tr(Δ Cᵀ) + E.
#[derive(Debug, Clone)]
pub(crate) struct Quadratic<T: Real> {
    pub(crate) gram: Matrix<T>,
    pub(crate) cross: Matrix<T>,
    pub(crate) energy: f64,
    /// E_t/n_t of every task.
    pub(crate) energies: Vec<f64>,
    /// tr(G)/d: what a relative ridge is multiplied by.
    pub(crate) unit: f64,
    /// Rounding of the numbers in G.
    pub(crate) epsilon: f64,
    /// Samples of all tasks.
    pub(crate) samples: u64,
}

/// The moments of one task, as [`Samples`] choose.
pub(crate) struct Part<'a> {
    pub(crate) input: std::borrow::Cow<'a, InputMoments>,
    pub(crate) target: Option<std::borrow::Cow<'a, TargetMoments>>,
}

impl<'a> Part<'a> {
    pub(crate) fn of<T: Real>(task: &Task<'a, T>, number: usize, samples: Samples) -> Result<Self> {
        use std::borrow::Cow;
        if samples == Samples::All {
            return Ok(Self {
                input: Cow::Borrowed(task.input),
                target: task.target.map(Cow::Borrowed),
            });
        }
        let held = task
            .held_out
            .filter(|held| held.input.count() > 0 && held.input.count() < task.input.count())
            .ok_or(Error::NoHeldOut { task: number })?;
        if samples == Samples::HeldOut {
            return Ok(Self {
                input: Cow::Borrowed(held.input),
                target: held.target.map(Cow::Borrowed),
            });
        }
        Ok(Self {
            input: Cow::Owned(task.input.minus(held.input)?),
            target: match (task.target, held.target) {
                (Some(all), Some(held)) => Some(Cow::Owned(all.minus(held)?)),
                _ => None,
            },
        })
    }
}

impl<T: Real> Quadratic<T> {
    /// The quadratic of some samples of all tasks.
    pub(crate) fn of(tasks: &[Task<'_, T>], samples: Samples) -> Result<Self> {
        let (m, d) = tasks.first().ok_or(Error::NoTasks)?.update.shape();
        let mut gram = Symmetric::zeros(d);
        let mut cross = Matrix::<T>::zeros(m, d);
        let mut energies = Vec::with_capacity(tasks.len());
        let (mut count, mut epsilon) = (0, T::EPSILON);
        for (number, task) in tasks.iter().enumerate() {
            let part = Part::of(task, number, samples)?;
            let share = 1.0 / part.input.count() as f64;
            gram.add_scaled(task.weight * share, part.input.gram());
            if task.weight > 0.0 {
                count += part.input.count();
            }
            epsilon = epsilon.max(part.input.epsilon());
            if let Some(target) = &part.target {
                cross.add_scaled(task.weight * share, &target.cross().cast());
                energies.push(share * target.energy());
            } else {
                let square: Matrix<T> = part.input.gram().to_square_scaled(share);
                let product = gemm::mul(task.update, &square);
                energies.push(product.dot(task.update).max(0.0));
                cross.add_scaled(task.weight, &product);
            }
        }
        let unit = if d > 0 { gram.trace() / d as f64 } else { 0.0 };
        Ok(Self {
            gram: gram.to_square(),
            cross,
            energy: tasks
                .iter()
                .zip(&energies)
                .map(|(task, energy)| task.weight * energy)
                .sum(),
            energies,
            unit,
            epsilon,
            samples: count,
        })
    }

    /// J(Δ), from one product with G.
    pub(crate) fn value(&self, update: &Matrix<T>) -> f64 {
        let product = gemm::mul(update, &self.gram);
        product.dot(update) - 2.0 * update.dot(&self.cross) + self.energy
    }

    /// The quadratic in M of Δ = Uᵀ M V, for U and V of orthonormal rows.
    pub(crate) fn reduced(&self, u: &Matrix<T>, v: &Matrix<T>) -> Self {
        let gram = gemm::mul_nt(&gemm::mul(v, &self.gram), v);
        Self {
            gram: crate::moments::symmetrised(&gram),
            cross: gemm::mul_nt(&gemm::mul(u, &self.cross), v),
            energies: self.energies.clone(),
            ..*self
        }
    }
}
