//! The bases `diagonal` and `rotated`: one coefficient for each task and output coordinate, m independent programmes of T
//! unknowns; in the given coordinates, or in those of the residual energy matrix.

use merganser_linalg::{Matrix, Real, gemm};

use crate::list::{RowTable, Small};
use crate::problem::Problem;
use crate::quadratic::Quadratic;
use crate::{Basis, Captured, Coefficients, Constraint, Result, Ridge, Solution};

impl<T: Real> Problem<'_, T> {
    pub(crate) fn solve_diagonal(
        &self,
        constraint: Constraint,
        ridge: Ridge,
    ) -> Result<Solution<T>> {
        let updates: Vec<&Matrix<T>> = self.tasks.iter().map(|task| task.update).collect();
        let split = self.split_tables(&updates, ridge, |table| table)?;
        let solved = self.task_rows().solve(split, constraint, ridge)?;
        Ok(Solution {
            update: weighted_rows(&updates, &solved.alphas),
            basis: Basis::Diagonal,
            coefficients: per_output(&solved.alphas, updates.len()),
            factors: None,
            captured: Captured::new(0.0, 0.0, Vec::new()),
            ridge: solved.ridge,
            notes: solved.notes,
        })
    }

    pub(crate) fn solve_rotated(
        &self,
        constraint: Constraint,
        ridge: Ridge,
    ) -> Result<Solution<T>> {
        let full = self.full(ridge)?;
        let q = self.energy_basis(&full)?;
        let rotated: Vec<Matrix<T>> = self
            .tasks
            .iter()
            .map(|task| gemm::mul(q, task.update))
            .collect();
        let rotated: Vec<&Matrix<T>> = rotated.iter().collect();
        let split = match ridge {
            Ridge::Auto => {
                let split = self.split()?;
                Some((
                    self.rotated_table(q, &rotated, &split.fitted, None),
                    self.rotated_table(q, &rotated, &split.held_out, None),
                ))
            }
            Ridge::Relative(_) => None,
        };
        let whole = self.task_rows();
        let solved = self
            .rotated_table(q, &rotated, &self.all, Some(whole))
            .solve(split, constraint, ridge)?;
        let (within, beyond) = solved.alphas.split_at(q.rows());
        let mut inside = weighted_rows(&rotated, within);
        let mut update = Matrix::zeros(self.shape().0, self.shape().1);
        if let Some(beyond) = beyond.first() {
            for ((task, rotated), &factor) in self.tasks.iter().zip(&rotated).zip(beyond) {
                update.add_scaled(factor, task.update);
                inside.add_scaled(-factor, rotated);
            }
        }
        update.add_scaled(1.0, &gemm::mul_tn(q, &inside));
        Ok(Solution {
            update,
            basis: Basis::Rotated,
            coefficients: per_output(&solved.alphas, self.tasks.len()),
            factors: None,
            captured: Captured::new(0.0, 0.0, Vec::new()),
            ridge: solved.ridge,
            notes: solved.notes,
        })
    }

    /// The programmes of the rotated rows. Where Q does not span all outputs, what is orthogonal to it is one more
    /// programme: that of the whole less those of the rows.
    fn rotated_table(
        &self,
        q: &Matrix<T>,
        rotated: &[&Matrix<T>],
        quadratic: &Quadratic<T>,
        whole: Option<&RowTable>,
    ) -> RowTable {
        let cross = gemm::mul(q, &quadratic.cross);
        let prior = self.prior.as_ref().map(|prior| gemm::mul(q, prior));
        let mut table = RowTable::with_cross(rotated, quadratic, &cross, prior.as_ref());
        table.silence_rounding();
        if q.rows() < self.shape().0 {
            let computed;
            let whole = if let Some(whole) = whole {
                whole
            } else {
                let updates: Vec<&Matrix<T>> = self.tasks.iter().map(|task| task.update).collect();
                computed = RowTable::of(&updates, quadratic, self.prior.as_ref());
                &computed
            };
            let mut rest: Small = whole.summed().programmes.swap_remove(0);
            for programme in &table.programmes {
                rest.add(-1.0, programme);
            }
            table.programmes.push(rest);
        }
        table
    }
}

/// The matrix whose row i is Σ_t α_i,t (row i of matrix t).
fn weighted_rows<T: Real>(matrices: &[&Matrix<T>], alphas: &[Vec<f64>]) -> Matrix<T> {
    let (m, d) = matrices[0].shape();
    let mut out = Matrix::zeros(m, d);
    for (i, alpha) in alphas.iter().enumerate() {
        for (matrix, &factor) in matrices.iter().zip(alpha) {
            let factor = T::from_f64(factor);
            for (out, &x) in out.row_mut(i).iter_mut().zip(matrix.row(i)) {
                *out += factor * x;
            }
        }
    }
    out
}

fn per_output(alphas: &[Vec<f64>], tasks: usize) -> Coefficients {
    Coefficients::PerOutput(Matrix::from_fn(tasks, alphas.len(), |t, i| alphas[i][t]))
}
