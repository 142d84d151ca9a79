//! The core: everything between the joint column space and the joint row space of the updates.
//!
//! With orthonormal rows U spanning the left and V the right singular vectors of all Δ_t, every Δ = Uᵀ M V has
//! J(Δ) = tr(M (V G Vᵀ) Mᵀ) − 2 tr(M (U C Vᵀ)ᵀ) + E: the problem of a small layer, solved as a large one is.
//!
//! For low-rank updates Δ_t = B_t A_t (LoRA) the spaces are those of the stacked factors, and no m×d matrix is ever
//! formed: [`Core`] is the small problem, and its answers are LoRAs of rank at most Σ r_t. Any basis may be asked of it;
//! `full` there is `core` in the large.

use merganser_linalg::{Matrix, Real, Svd, gemm, orthonormal_rows};

use crate::error::shape;
use crate::full;
use crate::moments::refused;
use crate::problem::{HeldOut, Problem, Split, Task};
use crate::{
    Basis, Captured, Coefficients, Error, Factors, InputMoments, Result, Ridge, Solution,
    TargetMoments,
};

impl<T: Real> Problem<'_, T> {
    /// The singular value decompositions of the updates.
    pub(crate) fn decompositions(&self) -> Result<&[Svd<T>]> {
        if let Some(known) = self.svds.get() {
            return Ok(known);
        }
        let svds = self
            .tasks
            .iter()
            .map(|task| Svd::of(task.update))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(self.svds.get_or_init(|| svds))
    }

    /// Orthonormal rows spanning the leading left and right singular vectors of all updates.
    pub(crate) fn core_bases(&self, rank: Option<usize>) -> Result<(Matrix<T>, Matrix<T>)> {
        let svds = self.decompositions()?;
        let leading: Vec<Svd<T>> = svds
            .iter()
            .map(|svd| svd.leading(rank.unwrap_or(usize::MAX).min(svd.rank(0.0))))
            .collect();
        let left = Matrix::stack_rows(leading.iter().map(|svd| &svd.left));
        let right = Matrix::stack_rows(leading.iter().map(|svd| &svd.right));
        Ok((
            orthonormal_rows(&left, 0.0)?,
            orthonormal_rows(&right, 0.0)?,
        ))
    }

    pub(crate) fn solve_core(&self, rank: Option<usize>, ridge: Ridge) -> Result<Solution<T>> {
        let (u, v) = self.core_bases(rank)?;
        self.solve_in_core(&u, &v, rank, ridge)
    }

    pub(crate) fn solve_in_core(
        &self,
        u: &Matrix<T>,
        v: &Matrix<T>,
        rank: Option<usize>,
        ridge: Ridge,
    ) -> Result<Solution<T>> {
        let split = match ridge {
            Ridge::Auto => {
                let split = self.split()?;
                Some(Split {
                    fitted: split.fitted.reduced(u, v),
                    held_out: split.held_out.reduced(u, v),
                })
            }
            Ridge::Relative(_) => None,
        };
        let prior = self
            .prior
            .as_ref()
            .map(|prior| gemm::mul_nt(&gemm::mul(u, prior), v));
        let all = self.all.reduced(u, v);
        let solved = full::solve(&all, split.as_ref(), prior.as_ref(), ridge)?;
        let b = gemm::mul_tn(u, &solved.update);
        let update = gemm::mul(&b, v);
        Ok(Solution {
            update,
            basis: Basis::Core { rank },
            coefficients: Coefficients::None,
            factors: self.prior.is_none().then(|| Factors { b, a: v.clone() }),
            captured: Captured::new(0.0, 0.0, Vec::new()),
            ridge: solved.ridge,
            notes: solved.notes,
        })
    }
}

/// A task whose update is a product of two thin matrices.
#[derive(Debug, Clone, Copy)]
pub struct FactoredTask<'a, T: Real = f64> {
    /// ω_t ≥ 0.
    pub weight: f64,
    /// B_t, m×r_t.
    pub b: &'a Matrix<T>,
    /// A_t, r_t×d.
    pub a: &'a Matrix<T>,
    /// What the product is multiplied by: α/r, or α/√r for rsLoRA.
    pub scale: f64,
    /// Moments of x̃.
    pub input: &'a InputMoments,
    /// Moments of the residual targets, where x̃ is not the input the teacher saw.
    pub target: Option<&'a TargetMoments>,
    /// Moments of the samples that are held out to choose a ridge.
    pub held_out: Option<HeldOut<'a>>,
}

/// The problem of a layer in the joint space of low-rank updates: owns what [`problem`](Self::problem) borrows.
#[derive(Debug, Clone)]
pub struct Core<T: Real = f64> {
    left: Matrix<T>,
    right: Matrix<T>,
    tasks: Vec<SmallTask<T>>,
    unit: f64,
}

#[derive(Debug, Clone)]
struct SmallTask<T: Real> {
    weight: f64,
    update: Matrix<T>,
    moments: SmallMoments,
    held_out: Option<SmallMoments>,
}

#[derive(Debug, Clone)]
struct SmallMoments {
    input: InputMoments,
    target: Option<TargetMoments>,
}

impl SmallMoments {
    fn of<T: Real>(
        input: &InputMoments,
        target: Option<&TargetMoments>,
        left: &Matrix<T>,
        right: &Matrix<T>,
    ) -> Result<Self> {
        Ok(Self {
            input: input.projected(right)?,
            target: target
                .map(|target| target.projected(left, right))
                .transpose()?,
        })
    }
}

impl<T: Real> Core<T> {
    /// Brings the problem of these tasks into their joint space.
    ///
    /// # Errors
    /// As [`Problem::new`].
    pub fn new(tasks: &[FactoredTask<'_, T>]) -> Result<Self> {
        let first = tasks.first().ok_or(Error::NoTasks)?;
        let (m, d) = (first.b.rows(), first.a.cols());
        let mut unit = 0.0;
        for (number, task) in tasks.iter().enumerate() {
            if task.b.rows() != m || task.a.cols() != d || task.b.cols() != task.a.rows() {
                return Err(shape(
                    format!("the factors of task {number}"),
                    (task.b.shape(), task.a.shape()),
                    format!("({m}, r) and (r, {d})"),
                ));
            }
            for matrix in [task.b, task.a] {
                matrix
                    .check_finite()
                    .map_err(|problem| refused(&format!("a factor of task {number}"), problem))?;
            }
            if !task.scale.is_finite() {
                return Err(Error::Range {
                    what: format!("the scale of task {number}"),
                    found: task.scale,
                    expected: "finite",
                });
            }
            if task.input.count() == 0 {
                return Err(Error::NoSamples { task: number });
            }
            if task.input.dim() != d {
                return Err(shape(
                    format!("the inputs of task {number}"),
                    task.input.dim(),
                    d,
                ));
            }
            if let Some(target) = task.target
                && target.cross().shape() != (m, d)
            {
                return Err(shape(
                    format!("the targets of task {number}"),
                    target.cross().shape(),
                    (m, d),
                ));
            }
            if d > 0 {
                unit +=
                    task.weight / task.input.count() as f64 * task.input.gram().trace() / d as f64;
            }
        }
        let columns: Vec<Matrix<T>> = tasks.iter().map(|task| task.b.transpose()).collect();
        let left = orthonormal_rows(&Matrix::stack_rows(&columns), 0.0)?;
        let right = orthonormal_rows(&Matrix::stack_rows(tasks.iter().map(|task| task.a)), 0.0)?;
        let tasks = tasks
            .iter()
            .map(|task| {
                let mut update =
                    gemm::mul(&gemm::mul(&left, task.b), &gemm::mul_nt(task.a, &right));
                update.scale(task.scale);
                Ok(SmallTask {
                    weight: task.weight,
                    update,
                    moments: SmallMoments::of(task.input, task.target, &left, &right)?,
                    held_out: task
                        .held_out
                        .map(|held| SmallMoments::of(held.input, held.target, &left, &right))
                        .transpose()?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            left,
            right,
            tasks,
            unit,
        })
    }

    /// The small problem: its energies, captured fractions and relative ridges are those of the layer.
    ///
    /// # Errors
    /// As [`Problem::new`].
    pub fn problem(&self) -> Result<Problem<'_, T>> {
        let tasks = self
            .tasks
            .iter()
            .map(|task| Task {
                weight: task.weight,
                update: &task.update,
                input: &task.moments.input,
                target: task.moments.target.as_ref(),
                held_out: task.held_out.as_ref().map(|held| HeldOut {
                    input: &held.input,
                    target: held.target.as_ref(),
                }),
            })
            .collect();
        Ok(Problem::new(tasks)?.with_unit(self.unit))
    }

    /// A small update M as a LoRA of the layer: B = Uᵀ M, A = V.
    pub fn factors(&self, small: &Matrix<T>) -> Factors<T> {
        Factors {
            b: gemm::mul_tn(&self.left, small),
            a: self.right.clone(),
        }
    }

    /// Brings an update of the layer, say a prior, into the small space: U Δ Vᵀ.
    pub fn reduce(&self, update: &Matrix<T>) -> Matrix<T> {
        gemm::mul_nt(&gemm::mul(&self.left, update), &self.right)
    }

    /// (Rank of the joint column space, rank of the joint row space).
    pub fn rank(&self) -> (usize, usize) {
        (self.left.rows(), self.right.rows())
    }
}
