//! The diagnostic: how much of the residual energy an update captures.

use serde::Serialize;

/// Energy that an update captures, over all tasks and for each.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Captured {
    /// J(Δ): the energy that is left, never negative.
    pub objective: f64,
    /// E: the residual energy, which J(0) is.
    pub energy: f64,
    /// 1 − J/E. Negative where the update is worse than leaving the base alone; 1 where E is 0, since there is nothing to
    /// capture: then only the objective shows what the update does. To sum up layers, take 1 − ΣJ/ΣE.
    pub fraction: f64,
    /// The same for every task, unweighted sums over its samples divided by their number; empty where it was not asked
    /// for.
    pub tasks: Vec<TaskCaptured>,
}

/// Energy that an update captures of one task.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TaskCaptured {
    /// J_t(Δ), per sample.
    pub objective: f64,
    /// E_t, per sample.
    pub energy: f64,
    /// 1 − J_t/E_t, as for the whole.
    pub fraction: f64,
}

impl Captured {
    pub(crate) fn new(objective: f64, energy: f64, tasks: Vec<TaskCaptured>) -> Self {
        let objective = objective.max(0.0);
        Self {
            objective,
            energy,
            fraction: fraction(objective, energy),
            tasks,
        }
    }
}

impl TaskCaptured {
    pub(crate) fn new(objective: f64, energy: f64) -> Self {
        let objective = objective.max(0.0);
        Self {
            objective,
            energy,
            fraction: fraction(objective, energy),
        }
    }
}

fn fraction(objective: f64, energy: f64) -> f64 {
    let fraction = 1.0 - objective / energy;
    // An energy of zero, or one so small that the quotient leaves the range.
    if energy > 0.0 && fraction.is_finite() {
        fraction
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_never_nan() {
        assert_eq!(Captured::new(-1e-20, 2.0, Vec::new()).fraction, 1.0);
        assert_eq!(Captured::new(3.0, 2.0, Vec::new()).fraction, -0.5);
        assert_eq!(TaskCaptured::new(0.0, 0.0).fraction, 1.0);
        assert_eq!(TaskCaptured::new(1.0, 0.0).fraction, 1.0);
        assert_eq!(TaskCaptured::new(1e300, 1e-300).fraction, 1.0);
    }
}
