//! The same programmes for Clarabel (Goulart and Chen, *Clarabel: An interior-point solver for conic programs with
//! quadratic objectives*, 2024).

use clarabel::algebra::CscMatrix;
use clarabel::solver::{DefaultSettings, DefaultSolver, IPSolver, SolverStatus, SupportedConeT};

use super::Constraint;
use crate::{Error, Matrix, Result};

/// A minimiser of xᵀHx − 2bᵀx over the set, to Clarabel's tolerance.
pub(super) fn minimise(h: &Matrix, b: &[f64], constraint: Constraint) -> Result<Vec<f64>> {
    let n = b.len();
    // Scaled so that the largest diagonal element is 1; Clarabel's tolerances are partly absolute.
    let scale = (0..n).map(|i| h.get(i, i)).fold(0.0, f64::max);
    let scale = if scale > 0.0 { scale } else { 1.0 };
    let quadratic = upper_triangle(h, 1.0 / scale);
    let linear: Vec<f64> = b.iter().map(|b| -b / scale).collect();
    // Rows a x + s = r with s in a cone: −x + s = 0 and x + s = 1, s ≥ 0; Σx + 0 = 1.
    let mut rows: Vec<(usize, usize, f64)> = Vec::new();
    let mut right = Vec::new();
    let mut cones: Vec<SupportedConeT<f64>> = Vec::new();
    if constraint.sums_to_one() {
        rows.extend((0..n).map(|j| (0, j, 1.0)));
        right.push(1.0);
        cones.push(SupportedConeT::ZeroConeT(1));
    }
    if constraint != Constraint::Affine && constraint != Constraint::Free {
        let first = right.len();
        rows.extend((0..n).map(|j| (first + j, j, -1.0)));
        right.extend(vec![0.0; n]);
        cones.push(SupportedConeT::NonnegativeConeT(n));
    }
    if constraint == Constraint::Box {
        let first = right.len();
        rows.extend((0..n).map(|j| (first + j, j, 1.0)));
        right.extend(vec![1.0; n]);
        cones.push(SupportedConeT::NonnegativeConeT(n));
    }
    let constraints = columns(right.len(), n, rows);
    let settings = DefaultSettings::<f64> {
        verbose: false,
        max_threads: 1,
        tol_gap_abs: 1e-12,
        tol_gap_rel: 1e-12,
        tol_feas: 1e-12,
        ..DefaultSettings::default()
    };
    let refused = |what: String| Error::Programme(what);
    let mut solver =
        DefaultSolver::new(&quadratic, &linear, &constraints, &right, &cones, settings)
            .map_err(|error| refused(error.to_string()))?;
    solver.solve();
    match solver.solution.status {
        // Stopping short of a tolerance this tight is no failure.
        SolverStatus::Solved
        | SolverStatus::AlmostSolved
        | SolverStatus::InsufficientProgress
        | SolverStatus::NumericalError
            if solver.solution.x.iter().all(|x| x.is_finite()) =>
        {
            Ok(solver.solution.x.clone())
        }
        status => Err(refused(format!("Clarabel ended with {status:?}"))),
    }
}

/// The upper triangle times a factor, by columns.
fn upper_triangle(h: &Matrix, factor: f64) -> CscMatrix<f64> {
    let n = h.rows();
    let mut starts = vec![0];
    let (mut indices, mut values) = (Vec::new(), Vec::new());
    for j in 0..n {
        for i in 0..=j {
            indices.push(i);
            values.push(factor * h.get(i, j));
        }
        starts.push(indices.len());
    }
    CscMatrix::new(n, n, starts, indices, values)
}

/// A sparse matrix from (row, column, value), by columns.
fn columns(m: usize, n: usize, mut entries: Vec<(usize, usize, f64)>) -> CscMatrix<f64> {
    entries.sort_by_key(|&(i, j, _)| (j, i));
    let mut starts = vec![0; n + 1];
    for &(_, j, _) in &entries {
        starts[j + 1] += 1;
    }
    for j in 0..n {
        starts[j + 1] += starts[j];
    }
    let indices = entries.iter().map(|entry| entry.0).collect();
    let values = entries.iter().map(|entry| entry.2).collect();
    CscMatrix::new(m, n, starts, indices, values)
}
