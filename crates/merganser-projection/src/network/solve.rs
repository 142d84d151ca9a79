//! A rule and a problem into an update.

use merganser_linalg::{Matrix, Real};

use super::Rule;
use super::masks::masked;
use crate::{Captured, Error, Note, Problem, Programme, Solution, Task, lot, regmean};

/// An update and how it came about.
#[derive(Debug, Clone)]
pub(super) struct Solved<T: Real> {
    /// Δ.
    pub(super) update: Matrix<T>,
    /// What it captures.
    pub(super) captured: Captured,
    /// The rule or basis it is by.
    pub(super) label: String,
    /// λ, as used.
    pub(super) ridge: Option<f64>,
    /// What a reader should know.
    pub(super) notes: Vec<String>,
}

impl<T: Real> From<Solution<T>> for Solved<T> {
    fn from(solution: Solution<T>) -> Self {
        Self {
            label: solution.basis.to_string(),
            ridge: Some(solution.ridge),
            // A few samples are the rule, and the ridge says what became of it.
            notes: solution
                .notes
                .iter()
                .filter(|note| !matches!(note, Note::FewSamples { .. }))
                .map(Note::to_string)
                .collect(),
            update: solution.update,
            captured: solution.captured,
        }
    }
}

pub(super) fn label(rule: &Rule) -> String {
    match rule {
        Rule::Prior => "prior".to_owned(),
        Rule::Programme(programme) => programme.basis.to_string(),
        Rule::Sparse { .. } => "sparse".to_owned(),
        Rule::RegMean { .. } => "regmean".to_owned(),
        Rule::Lot => "lot".to_owned(),
        Rule::MatrixPrior => "matrix prior".to_owned(),
    }
}

/// The update that a rule finds for the matrix `tensor`; `problem` is made of `tasks`, whose updates `updates` are. A
/// rule that leaves it to the prior finds none.
pub(super) fn solve<T: Real>(
    rule: &Rule,
    problem: &Problem<'_, T>,
    tasks: &[Task<'_, T>],
    updates: &[Matrix<T>],
    tensor: &str,
) -> Result<Option<Solved<T>>, Error> {
    Ok(Some(match rule {
        Rule::Programme(programme) => problem.solve(programme)?.into(),
        Rule::Sparse { mask, programme } => {
            let masked = masked(updates, *mask, tensor);
            let matrices: Vec<&Matrix<T>> = masked.iter().collect();
            let Programme {
                constraint, ridge, ..
            } = *programme;
            let mut solved: Solved<T> = problem.solve_span(&matrices, constraint, ridge)?.into();
            solved.label = label(rule);
            solved
        }
        Rule::RegMean { off_diagonal } => {
            let models: Vec<_> = tasks
                .iter()
                .map(|task| (task.weight, task.update, task.input))
                .collect();
            let merged = regmean(&models, *off_diagonal)?;
            Solved {
                captured: problem.evaluate(&merged.weight)?,
                update: merged.weight,
                label: label(rule),
                ridge: None,
                notes: merged.notes.iter().map(Note::to_string).collect(),
            }
        }
        Rule::Lot => {
            let models: Vec<_> = tasks.iter().map(|task| (task.update, task.input)).collect();
            let mut solved: Solved<T> = lot(&models)?.into();
            solved.captured = problem.evaluate(&solved.update)?;
            solved.label = label(rule);
            solved
        }
        Rule::Prior | Rule::MatrixPrior => return Ok(None),
    }))
}
