//! Convex quadratic programmes: minimise J(x) = xᵀHx − 2bᵀx with H positive semidefinite, over everything or over one of
//! the sets that coefficients of a merge may be kept in.
//!
//! * `free`: H x = b by its eigendecomposition, the solution of least norm where H is singular.
//! * `affine` (Σx = 1): the same on the hyperplane, with a rotation that takes Σx to one coordinate.
//! * `nonneg`, `box`, `simplex`: a primal active-set method (`active`), which is exact up to rounding. For more than
//!   [`DENSE`] unknowns Clarabel's interior-point method finds the active set first; its answer alone would carry an error of the square root
//!   of its tolerance. Clarabel also steps in where the active set does not settle.

mod active;
mod conic;

use crate::eigen::noise;
use crate::{Eigen, Error, Matrix, Result, gemm};

/// Up to this many unknowns the active set is found from scratch; each of its steps costs their cube.
pub const DENSE: usize = 48;

/// The set that x is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Constraint {
    /// Everything.
    #[default]
    Free,
    /// x ≥ 0.
    NonNegative,
    /// 0 ≤ x ≤ 1.
    Box,
    /// x ≥ 0 and Σx = 1.
    Simplex,
    /// Σx = 1.
    Affine,
}

/// A minimiser.
#[derive(Debug, Clone, PartialEq)]
pub struct Minimum {
    /// The point.
    pub x: Vec<f64>,
    /// J at the point.
    pub value: f64,
    /// Numerical rank of H (on the hyperplane for `affine`); below the number of unknowns, other points are as good.
    pub rank: usize,
}

impl Constraint {
    /// Upper bound of every unknown, where the set has one besides Σx = 1.
    fn upper(self) -> f64 {
        if self == Self::Box {
            1.0
        } else {
            f64::INFINITY
        }
    }

    /// Whether Σx = 1.
    fn sums_to_one(self) -> bool {
        matches!(self, Self::Simplex | Self::Affine)
    }
}

/// J(x) = xᵀHx − 2bᵀx.
///
/// # Panics
/// If the sizes differ.
pub fn value(h: &Matrix, b: &[f64], x: &[f64]) -> f64 {
    assert!(
        h.rows() == x.len() && b.len() == x.len(),
        "the sizes of a programme differ"
    );
    (0..x.len())
        .map(|i| x[i] * (crate::dot(h.row(i), x) - 2.0 * b[i]))
        .sum()
}

/// Minimises J over the set. `epsilon` is the relative rounding of the numbers in H, which decides what counts as
/// singular; at least that of `f64`.
///
/// # Errors
/// If H or b is not finite, there is no unknown that could sum to one, or no method converges.
///
/// # Panics
/// If the sizes differ.
pub fn minimise(h: &Matrix, b: &[f64], constraint: Constraint, epsilon: f64) -> Result<Minimum> {
    let n = b.len();
    assert!(h.shape() == (n, n), "the sizes of a programme differ");
    h.check_finite()?;
    crate::matrix::check_finite(b, n)?;
    if n == 0 {
        if constraint.sums_to_one() {
            return Err(Error::Programme("nothing can sum to one".into()));
        }
        return Ok(Minimum {
            x: Vec::new(),
            value: 0.0,
            rank: 0,
        });
    }
    // The rank is a property of H alone; faces are solved by `equality` on their own.
    let free: Vec<usize> = (0..n).collect();
    let whole = equality(
        h,
        b,
        &free,
        constraint.sums_to_one().then_some(1.0),
        epsilon,
    )?;
    let x = match constraint {
        Constraint::Free | Constraint::Affine => whole.0,
        Constraint::NonNegative | Constraint::Box | Constraint::Simplex => {
            let start = active::feasible(&whole.0, constraint);
            if start == whole.0 {
                start
            } else {
                let (h, b) = without_rounding(h, b, epsilon)?;
                bounded(&h, &b, constraint, start, epsilon)?
            }
        }
    };
    let value = value(h, b, &x);
    if x.iter().any(|x| !x.is_finite()) || !value.is_finite() {
        return Err(Error::Programme(
            "its numbers leave the range of f64".into(),
        ));
    }
    Ok(Minimum {
        x,
        value,
        rank: whole.1,
    })
}

/// H with the eigenvalues that are rounding set to 0, and b with its part in their directions left out: with it J would
/// fall without end where nothing bounds x.
fn without_rounding(h: &Matrix, b: &[f64], epsilon: f64) -> Result<(Matrix, Vec<f64>)> {
    let eigen = Eigen::of(h)?;
    let rank = eigen.rank(eigen.noise(16.0 * epsilon.max(f64::EPSILON)));
    if rank == b.len() {
        return Ok((h.clone(), b.to_vec()));
    }
    let kept = eigen.vectors.rows_range(0, rank);
    let mut scaled = kept.clone();
    scaled.scale_rows(&eigen.values[..rank]);
    let b = Matrix::new(1, b.len(), b.to_vec())?;
    let projected = gemm::mul(&gemm::mul_nt(&b, &kept), &kept);
    Ok((gemm::mul_tn(&kept, &scaled), projected.into_vec()))
}

fn bounded(
    h: &Matrix,
    b: &[f64],
    constraint: Constraint,
    start: Vec<f64>,
    epsilon: f64,
) -> Result<Vec<f64>> {
    if b.len() <= DENSE
        && let Some(x) = active::minimise(h, b, constraint, start, epsilon)?
    {
        return Ok(x);
    }
    let inside = active::feasible(&conic::minimise(h, b, constraint)?, constraint);
    Ok(active::minimise(h, b, constraint, inside.clone(), epsilon)?.unwrap_or(inside))
}

/// The least-norm minimiser over the unknowns `free`, the others being zero, with a given sum where there is one; and
/// the rank of the system.
fn equality(
    h: &Matrix,
    b: &[f64],
    free: &[usize],
    sum: Option<f64>,
    epsilon: f64,
) -> Result<(Vec<f64>, usize)> {
    let k = free.len();
    let mut inner = Matrix::from_fn(k, k, |i, j| h.get(free[i], free[j]));
    let mut rhs = Matrix::from_fn(1, k, |_, i| b[free[i]]);
    // A reflection Q takes (1, …, 1)/√k to the first axis: x = Q y with y₀ = sum/√k given.
    let mut fixed = 0.0;
    let reflector = sum.map(|sum| {
        let root = (k as f64).sqrt();
        fixed = sum / root;
        let mut v = vec![1.0 / root; k];
        v[0] += 1.0;
        let norm = crate::dot(&v, &v).sqrt();
        for x in &mut v {
            *x /= norm;
        }
        v
    });
    let mut from = 0;
    if let Some(v) = &reflector {
        reflect_rows(&mut inner, v);
        inner = inner.transpose();
        reflect_rows(&mut inner, v);
        reflect_rows(&mut rhs, v);
        // Q e₀ = −(1, …, 1)/√k, hence the sign of the given coordinate.
        fixed = -fixed;
        from = 1;
    }
    let reduced = Matrix::from_fn(k - from, k - from, |i, j| {
        f64::midpoint(inner.get(i + from, j + from), inner.get(j + from, i + from))
    });
    let mut right = Matrix::from_fn(1, k - from, |_, i| rhs.get(0, i + from));
    if from == 1 {
        for i in 0..k - 1 {
            let x = right.get(0, i) - fixed * inner.get(i + 1, 0);
            right.set(0, i, x);
        }
    }
    let eigen = Eigen::of(&reduced)?;
    // Relative to H itself: on the hyperplane nothing but rounding may be left of it.
    let largest = free.iter().map(|&i| h.get(i, i)).fold(0.0, f64::max);
    let cutoff = noise(k, 16.0 * epsilon.max(f64::EPSILON)) * largest;
    let solution = eigen.solve_rows(&right, cutoff);
    let mut y = Matrix::zeros(1, k);
    if from == 1 {
        y.set(0, 0, fixed);
    }
    y.row_mut(0)[from..].copy_from_slice(solution.row(0));
    if let Some(v) = &reflector {
        reflect_rows(&mut y, v);
    }
    let mut x = vec![0.0; b.len()];
    for (&at, &value) in free.iter().zip(y.row(0)) {
        x[at] = value;
    }
    Ok((x, eigen.rank(cutoff)))
}

/// Multiplies every row by I − 2vvᵀ.
fn reflect_rows(a: &mut Matrix, v: &[f64]) {
    for i in 0..a.rows() {
        let twice = 2.0 * crate::dot(a.row(i), v);
        for (x, v) in a.row_mut(i).iter_mut().zip(v) {
            *x -= twice * v;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
