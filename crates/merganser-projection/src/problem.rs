//! The problem of one layer: its tasks, and what all programmes on it share.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use merganser_linalg::{Matrix, Real, Svd, gemm};

use crate::error::shape;
use crate::full::FullSolution;
use crate::list::RowTable;
use crate::moments::refused;
use crate::quadratic::{Part, Quadratic, Samples};
use crate::{
    Basis, Captured, Constraint, Error, InputMoments, Note, Programme, Result, Ridge, Solution,
    TargetMoments, TaskCaptured,
};

/// One task of a problem.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a, T: Real = f64> {
    /// ω_t ≥ 0.
    pub weight: f64,
    /// Δ_t, m×d.
    pub update: &'a Matrix<T>,
    /// Moments of x̃, the input the merged network feeds to the layer.
    pub input: &'a InputMoments,
    /// Moments of the residual targets, where that input is not the one the teacher saw.
    pub target: Option<&'a TargetMoments>,
    /// Moments of the samples that are held out to choose a ridge, a part of the above.
    pub held_out: Option<HeldOut<'a>>,
}

/// Moments of the samples held out of a task: they are contained in the task's moments as well.
#[derive(Debug, Clone, Copy)]
pub struct HeldOut<'a> {
    /// Moments of x̃.
    pub input: &'a InputMoments,
    /// Moments of the residual targets; given if and only if the task has them.
    pub target: Option<&'a TargetMoments>,
}

impl<'a, T: Real> Task<'a, T> {
    /// A task of weight 1 whose inputs are those its teacher saw.
    pub fn new(update: &'a Matrix<T>, input: &'a InputMoments) -> Self {
        Self {
            weight: 1.0,
            update,
            input,
            target: None,
            held_out: None,
        }
    }
}

/// The problem of one layer. Asking several programmes shares G, C, the products Δ_t G and the full solution.
#[derive(Debug)]
pub struct Problem<'a, T: Real = f64> {
    pub(crate) tasks: Vec<Task<'a, T>>,
    pub(crate) prior: Option<Matrix<T>>,
    pub(crate) all: Quadratic<T>,
    per_task: bool,
    split: OnceLock<Split<T>>,
    task_rows: OnceLock<RowTable>,
    full: Mutex<Vec<(Ridge, Arc<FullSolution<T>>)>>,
    pub(crate) svds: OnceLock<Vec<Svd<T>>>,
}

/// The quadratics a ridge is chosen with.
#[derive(Debug)]
pub(crate) struct Split<T: Real> {
    pub(crate) fitted: Quadratic<T>,
    pub(crate) held_out: Quadratic<T>,
}

impl<'a, T: Real> Problem<'a, T> {
    /// The problem of these tasks.
    ///
    /// # Errors
    /// If there is none, sizes do not fit, an update is not finite, a weight is negative or all are zero, or moments
    /// hold no samples.
    pub fn new(tasks: Vec<Task<'a, T>>) -> Result<Self> {
        check(&tasks)?;
        Ok(Self {
            all: Quadratic::of(&tasks, Samples::All)?,
            tasks,
            prior: None,
            per_task: true,
            split: OnceLock::new(),
            task_rows: OnceLock::new(),
            full: Mutex::new(Vec::new()),
            svds: OnceLock::new(),
        })
    }

    /// Draws answers to `prior` (m×d, say the update of a data-free merge) instead of 0 where the data say nothing.
    ///
    /// # Errors
    /// If its shape is not that of the updates, or it is not finite.
    pub fn with_prior(mut self, prior: Matrix<T>) -> Result<Self> {
        if prior.shape() != self.shape() {
            return Err(shape("the prior", prior.shape(), self.shape()));
        }
        prior
            .check_finite()
            .map_err(|problem| refused("the prior", problem))?;
        self.prior = Some(prior);
        self.task_rows = OnceLock::new();
        self.full = Mutex::new(Vec::new());
        Ok(self)
    }

    /// Whether solutions say what they capture of every task, which costs one product of m·d² for each. They do unless
    /// told otherwise; [`evaluate`](Self::evaluate) always does.
    #[must_use]
    pub fn per_task(mut self, yes: bool) -> Self {
        self.per_task = yes;
        self
    }

    /// Takes tr(G)/d, by which a relative ridge is multiplied, from a larger problem of which this one is a part.
    pub(crate) fn with_unit(mut self, unit: f64) -> Self {
        self.all.unit = unit;
        self
    }

    /// (m, d).
    pub fn shape(&self) -> (usize, usize) {
        self.all.cross.shape()
    }

    /// E: what there is to capture.
    pub fn energy(&self) -> f64 {
        self.all.energy
    }

    /// tr(G)/d: a relative ridge of λ adds λ times this to the diagonal of G.
    pub fn ridge_unit(&self) -> f64 {
        self.all.unit
    }

    /// G, d×d.
    pub fn gram(&self) -> &Matrix<T> {
        &self.all.gram
    }

    /// C, m×d.
    pub fn cross(&self) -> &Matrix<T> {
        &self.all.cross
    }

    /// Finds the best update of a basis.
    ///
    /// # Errors
    /// If the programme asks for what the problem does not have (held-out samples, so large a basis), or numbers leave
    /// the range of their type.
    pub fn solve(&self, programme: &Programme) -> Result<Solution<T>> {
        let Programme {
            basis,
            constraint,
            ridge,
        } = *programme;
        check_ridge(ridge)?;
        let mut solution = match basis {
            Basis::Task => self.solve_task(constraint, ridge)?,
            Basis::Diagonal => self.solve_diagonal(constraint, ridge)?,
            Basis::Rotated => self.solve_rotated(constraint, ridge)?,
            Basis::Atoms { rank } => self.solve_atoms(rank, constraint, ridge)?,
            Basis::Core { rank } => self.solve_core(rank, ridge)?,
            Basis::BestRank { rank } => self.solve_best_rank(rank, ridge)?,
            Basis::Full => self.solve_full(ridge)?,
            Basis::Auto { tolerance } => return self.solve_auto(tolerance, constraint, ridge),
        };
        if constraint != Constraint::Free && !basis.has_coefficients() {
            solution.notes.push(Note::ConstraintIgnored);
        }
        self.finish(solution)
    }

    /// The best Σ α_k B_k of matrices B_k of the updates' shape: `sparse` where they are Δ_t under the masks (and with
    /// the rescaling) of TIES, DARE or any other method that keeps some elements.
    ///
    /// # Errors
    /// As [`solve`](Self::solve); if a matrix does not fit or is not finite.
    pub fn solve_span(
        &self,
        matrices: &[&Matrix<T>],
        constraint: Constraint,
        ridge: Ridge,
    ) -> Result<Solution<T>> {
        check_ridge(ridge)?;
        for (k, matrix) in matrices.iter().enumerate() {
            if matrix.shape() != self.shape() {
                return Err(shape(format!("matrix {k}"), matrix.shape(), self.shape()));
            }
            matrix
                .check_finite()
                .map_err(|problem| refused(&format!("matrix {k}"), problem))?;
        }
        self.finish(self.solve_list(matrices, constraint, ridge)?)
    }

    /// What a given update captures, whatever made it, over all tasks and for each.
    ///
    /// # Errors
    /// If it does not fit or is not finite.
    pub fn evaluate(&self, update: &Matrix<T>) -> Result<Captured> {
        if update.shape() != self.shape() {
            return Err(shape("the update", update.shape(), self.shape()));
        }
        update
            .check_finite()
            .map_err(|problem| refused("the update", problem))?;
        let mut tasks = Vec::with_capacity(self.tasks.len());
        let mut total = 0.0;
        for (number, task) in self.tasks.iter().enumerate() {
            let captured = task_captured(task, number, update, self.all.energies[number])?;
            total += task.weight * captured.objective;
            tasks.push(captured);
        }
        Ok(Captured::new(total, self.all.energy, tasks))
    }

    /// Adds what an answer captures, and the notes that concern every basis.
    fn finish(&self, mut solution: Solution<T>) -> Result<Solution<T>> {
        solution
            .update
            .check_finite()
            .map_err(|problem| refused("the solution", problem))?;
        solution.captured = if self.per_task {
            self.evaluate(&solution.update)?
        } else {
            Captured::new(
                self.all.value(&solution.update),
                self.all.energy,
                Vec::new(),
            )
        };
        let (samples, inputs) = (self.all.samples, self.shape().1);
        if samples < inputs as u64 {
            solution.notes.push(Note::FewSamples { samples, inputs });
        }
        if self.all.energy == 0.0 {
            solution.notes.push(Note::NoEnergy);
        }
        Ok(solution)
    }

    /// The first basis in the order of their unknowns that captures as much as full, up to `tolerance`.
    fn solve_auto(
        &self,
        tolerance: f64,
        constraint: Constraint,
        ridge: Ridge,
    ) -> Result<Solution<T>> {
        if !(0.0..=1.0).contains(&tolerance) {
            return Err(Error::Range {
                what: "the tolerance of auto".into(),
                found: tolerance,
                expected: "between 0 and 1",
            });
        }
        let full = self.all.value(&self.full(ridge)?.update).max(0.0);
        let enough = full + tolerance * self.all.energy;
        let (m, d) = self.shape();
        for basis in [
            Basis::Task,
            Basis::Diagonal,
            Basis::Rotated,
            Basis::Core { rank: None },
        ] {
            let programme = Programme {
                basis,
                constraint,
                ridge,
            };
            // A core as large as the layer is full by another name, and finding it costs T decompositions.
            let solution = match basis {
                Basis::Core { .. } => {
                    let (u, v) = self.core_bases(None)?;
                    if u.rows() == m && v.rows() == d {
                        continue;
                    }
                    self.finish(self.solve_in_core(&u, &v, None, ridge)?)?
                }
                _ => self.solve(&programme)?,
            };
            if solution.captured.objective <= enough {
                return Ok(solution);
            }
        }
        self.solve(&Programme::new(Basis::Full).ridge(ridge))
    }

    /// The quadratics of fitted and held-out samples.
    pub(crate) fn split(&self) -> Result<&Split<T>> {
        if let Some(split) = self.split.get() {
            return Ok(split);
        }
        let split = Split {
            fitted: Quadratic::of(&self.tasks, Samples::Fitted)?,
            held_out: Quadratic::of(&self.tasks, Samples::HeldOut)?,
        };
        Ok(self.split.get_or_init(|| split))
    }

    /// Products of the rows of the updates under all samples.
    pub(crate) fn task_rows(&self) -> &RowTable {
        self.task_rows.get_or_init(|| {
            let updates: Vec<&Matrix<T>> = self.tasks.iter().map(|task| task.update).collect();
            RowTable::of(&updates, &self.all, self.prior.as_ref())
        })
    }

    /// The full solution with this ridge.
    pub(crate) fn full(&self, ridge: Ridge) -> Result<Arc<FullSolution<T>>> {
        let mut known = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, solution)) = known.iter().find(|(of, _)| *of == ridge) {
            return Ok(Arc::clone(solution));
        }
        let solution = Arc::new(self.compute_full(ridge)?);
        // One is enough: programmes are asked with the same ridge, and each is as large as the layer.
        known.clear();
        known.push((ridge, Arc::clone(&solution)));
        Ok(solution)
    }
}

fn check_ridge(ridge: Ridge) -> Result<()> {
    match ridge {
        Ridge::Relative(lambda) if !(lambda >= 0.0 && lambda.is_finite()) => Err(Error::Range {
            what: "the ridge".into(),
            found: lambda,
            expected: "a finite number of at least 0",
        }),
        _ => Ok(()),
    }
}

fn check<T: Real>(tasks: &[Task<'_, T>]) -> Result<()> {
    let (m, d) = tasks.first().ok_or(Error::NoTasks)?.update.shape();
    for (number, task) in tasks.iter().enumerate() {
        if task.update.shape() != (m, d) {
            return Err(shape(
                format!("the update of task {number}"),
                task.update.shape(),
                (m, d),
            ));
        }
        task.update
            .check_finite()
            .map_err(|problem| refused(&format!("the update of task {number}"), problem))?;
        if !(task.weight >= 0.0 && task.weight.is_finite()) {
            return Err(Error::Range {
                what: format!("the weight of task {number}"),
                found: task.weight,
                expected: "a finite number of at least 0",
            });
        }
        if task.input.count() == 0 {
            return Err(Error::NoSamples { task: number });
        }
        check_moments(number, task.input, task.target, (m, d))?;
        if let Some(held) = task.held_out {
            check_moments(number, held.input, held.target, (m, d))?;
            if held.target.is_some() != task.target.is_some() {
                return Err(shape(
                    format!("held-out targets of task {number}"),
                    held.target.is_some(),
                    task.target.is_some(),
                ));
            }
        }
    }
    if tasks.iter().all(|task| task.weight == 0.0) {
        return Err(Error::NoWeight);
    }
    Ok(())
}

fn check_moments(
    number: usize,
    input: &InputMoments,
    target: Option<&TargetMoments>,
    (m, d): (usize, usize),
) -> Result<()> {
    if input.dim() != d {
        return Err(shape(
            format!("the inputs of task {number}"),
            input.dim(),
            d,
        ));
    }
    if let Some(target) = target {
        if target.cross().shape() != (m, d) {
            return Err(shape(
                format!("the targets of task {number}"),
                target.cross().shape(),
                (m, d),
            ));
        }
        if target.count() != input.count() {
            return Err(shape(
                format!("samples of the targets of task {number}"),
                target.count(),
                input.count(),
            ));
        }
    }
    Ok(())
}

/// J_t(Δ)/n_t and E_t/n_t.
fn task_captured<T: Real>(
    task: &Task<'_, T>,
    number: usize,
    update: &Matrix<T>,
    energy: f64,
) -> Result<TaskCaptured> {
    let part = Part::of(task, number, Samples::All)?;
    let factor = 1.0 / part.input.count() as f64;
    let gram: Matrix<T> = part.input.gram().to_square_scaled(factor);
    if let Some(target) = &part.target {
        let product = gemm::mul(update, &gram);
        let linear = update.cast::<f64>().dot(target.cross());
        let objective = product.dot(update) - 2.0 * factor * linear + energy;
        return Ok(TaskCaptured::new(objective, energy));
    }
    // Without targets J_t is a square, which loses no digits where it is small.
    let mut difference = update.clone();
    difference.add_scaled(-1.0, task.update);
    let objective = gemm::mul(&difference, &gram).dot(&difference);
    Ok(TaskCaptured::new(objective, energy))
}
