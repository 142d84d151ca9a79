//! Inputs in units of their own size, so that a ridge pulls on every input alike.
//!
//! A few inputs of a transformer's layers are many times larger than the others and make up most of tr(G)/d. A ridge
//! relative to that mean hardly touches them and takes all the others for noise. With D = diag(G), the change of
//! variables x̃ = D^½ x̃', Δ' = Δ D^½ leaves every output and J as they are, gives G' a unit diagonal, and turns the ridge into
//! λ ‖(Δ − Δ_prior) D^½‖²: what is drawn to the prior is the size of a contribution to the output, not of a weight.
//! Diagonal scaling is also the best-known way to a well-conditioned Cholesky factor (van der Sluis, *Condition numbers
//! and equilibration of matrices*, Numerische Mathematik 14, 1969).

use merganser_linalg::{Matrix, Real};

use super::evidence::{Inputs, Targets};

/// Inputs are not taken for smaller than this fraction of their mean size.
const LEAST: f64 = 1e-12;

/// √G_ii of every input, over the samples of all tasks.
pub(super) struct Units {
    sizes: Vec<f64>,
    inverse: Vec<f64>,
}

impl Units {
    /// The units of a layer whose tasks have these inputs and weights.
    pub(super) fn of<'a>(tasks: impl Iterator<Item = (f64, &'a Inputs)>) -> Self {
        let mut diagonal = Vec::new();
        for (weight, inputs) in tasks {
            let share = weight / inputs.all.count().max(1) as f64;
            let own = inputs.all.gram().diagonal();
            diagonal.resize(own.len(), 0.0);
            for (sum, x) in diagonal.iter_mut().zip(own) {
                *sum += share * x;
            }
        }
        let mean = diagonal.iter().sum::<f64>() / diagonal.len().max(1) as f64;
        let sizes: Vec<f64> = diagonal
            .iter()
            .map(|x| {
                if mean > 0.0 {
                    x.max(LEAST * mean).sqrt()
                } else {
                    1.0
                }
            })
            .collect();
        let inverse = sizes.iter().map(|x| x.recip()).collect();
        Self { sizes, inverse }
    }

    pub(super) fn inputs(&self, inputs: &Inputs) -> Inputs {
        inputs.scaled(&self.inverse)
    }

    pub(super) fn targets(&self, targets: &Targets) -> Targets {
        targets.scaled(&self.inverse)
    }

    /// An update, for inputs in these units.
    pub(super) fn apply<T: Real>(&self, update: &mut Matrix<T>) {
        update.scale_cols(&self.sizes);
    }

    /// The opposite of [`apply`](Self::apply).
    pub(super) fn undo<T: Real>(&self, update: &mut Matrix<T>) {
        update.scale_cols(&self.inverse);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Basis, InputMoments, Problem, Programme, Ridge, Task};

    const ROWS: usize = 40;
    const INPUTS: usize = 5;

    fn number(i: usize) -> f64 {
        ((i * 2_654_435_761) % 1000) as f64 / 500.0 - 1.0
    }

    /// The answer to two tasks whose inputs are multiplied by `sizes` and whose task vectors are divided by them, undone.
    fn answer(sizes: &[f64]) -> Matrix {
        let mut updates: Vec<Matrix> = (0..2)
            .map(|t| Matrix::from_fn(3, INPUTS, |i, j| number(7 + 31 * t + INPUTS * i + j)))
            .collect();
        let inverse: Vec<f64> = sizes.iter().map(|x| x.recip()).collect();
        for update in &mut updates {
            update.scale_cols(&inverse);
        }
        let inputs: Vec<Inputs> = (0..2)
            .map(|t| {
                let rows: Vec<f64> = (0..ROWS * INPUTS)
                    .map(|k| number(k + 1000 * t) * sizes[k % INPUTS])
                    .collect();
                let mut all = InputMoments::new(INPUTS);
                all.add_rows(&rows).unwrap();
                Inputs {
                    all,
                    held_out: None,
                }
            })
            .collect();
        let units = Units::of([1.0, 2.0].into_iter().zip(&inputs));
        let scaled: Vec<Inputs> = inputs.iter().map(|x| units.inputs(x)).collect();
        for update in &mut updates {
            units.apply(update);
        }
        let tasks = updates.iter().zip(&scaled).zip([1.0, 2.0]);
        let tasks = tasks.map(|((update, input), weight)| Task {
            weight,
            ..Task::new(update, &input.all)
        });
        let problem = Problem::new(tasks.collect()).unwrap();
        assert!((0..INPUTS).all(|i| (problem.gram().get(i, i) - 1.0).abs() < 1e-12));
        let programme = Programme::new(Basis::Full).ridge(Ridge::Relative(0.3));
        let mut update = problem.solve(&programme).unwrap().update;
        units.undo(&mut update);
        update.scale_cols(sizes);
        update
    }

    #[test]
    fn the_answer_does_not_depend_on_the_units_of_the_inputs() {
        let plain = answer(&[1.0; INPUTS]);
        let mut difference = answer(&[1e3, 1.0, 1e-2, 7.0, 30.0]);
        difference.add_scaled(-1.0, &plain);
        assert!(difference.norm() < 1e-9 * plain.norm());
    }

    #[test]
    fn inputs_that_are_always_zero_stay_where_they_are() {
        let mut all = InputMoments::new(2);
        all.add_rows(&[1.0, 0.0, 2.0, 0.0]).unwrap();
        let inputs = Inputs {
            all,
            held_out: None,
        };
        let units = Units::of(std::iter::once((1.0, &inputs)));
        let mut update: Matrix = Matrix::new(1, 2, vec![1.0, 1.0]).unwrap();
        units.apply(&mut update);
        assert!(update.check_finite().is_ok() && update.get(0, 1) > 0.0);
        units.undo(&mut update);
        assert!((update.get(0, 1) - 1.0).abs() < 1e-12);
    }
}
