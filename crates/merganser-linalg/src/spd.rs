//! Symmetric positive definite systems X A = C, one row of X for each row of C.
//!
//! The Cholesky factor A + ρI = L Lᵀ is written over the lower triangle of the square that holds A; the strict upper
//! triangle keeps A, so that one buffer serves the factor, the residual and, should the factorisation fail, another
//! attempt. Blocks of [`BLOCK`] columns: the diagonal block is factored, the panel below it solved, and the trailing
//! rows updated by products, in pieces of rows fixed by the shape.
//!
//! Iterative refinement (Wilkinson; Higham, *Accuracy and Stability of Numerical Algorithms*, ch. 12) takes the residual
//! C − X A in `f64` whatever the type of the factor, which brings an `f32` factor to `f32` accuracy of the solution as
//! long as A is not singular to `f32`.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{
    LltError, LltRegularization, cholesky_in_place, cholesky_in_place_scratch,
};
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::eigen::noise;
use crate::gemm::product_into_rows;
use crate::{Error, Matrix, Real, Result, registers};

/// Columns factored at a time.
const BLOCK: usize = 256;
/// Rows of one piece of work.
const ROWS: usize = 128;
/// Columns of the matrix that a residual is computed against at a time.
const RESIDUAL_COLUMNS: usize = 256;
/// How often a ridge is raised before the matrix is given up.
const RAISES: usize = 20;

/// The Cholesky factor of A + ρI, beside A.
#[derive(Debug, Clone)]
pub struct Spd<T> {
    /// On and below the diagonal L, above it A.
    buffer: Matrix<T>,
    /// The diagonal of A + ρI.
    diagonal: Vec<T>,
    ridge: f64,
}

/// What was needed to factor a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Escalation {
    /// What was added to the diagonal in the end.
    pub ridge: f64,
    /// How often it was raised, ten times each.
    pub raises: usize,
}

/// What iterative refinement did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Refinement {
    /// Steps taken.
    pub steps: usize,
    /// ‖C − X A‖ / ‖C‖ before the first step.
    pub first: f64,
    /// The same for the result.
    pub last: f64,
}

impl<T: Real> Spd<T> {
    /// Factors A + ρI. Both triangles of `a` must be filled.
    ///
    /// # Errors
    /// [`Error::NotPositiveDefinite`] if a pivot is not positive (or not a number).
    ///
    /// # Panics
    /// If `a` is not square.
    pub fn factor(a: Matrix<T>, ridge: f64) -> Result<Self> {
        let diagonal = diagonal_of(&a);
        let mut spd = Self {
            buffer: a,
            diagonal: Vec::new(),
            ridge: 0.0,
        };
        spd.attempt(&diagonal, ridge)?;
        Ok(spd)
    }

    /// Factors A + ρI with the first ρ of `ridge`, 10 · `ridge`, … for which it is positive definite. A `ridge` of 0 is
    /// followed by `floor`.
    ///
    /// # Errors
    /// If the largest ridge tried (20 raises) is not enough: the matrix is then far from positive, or not finite.
    pub fn factor_escalating(a: Matrix<T>, ridge: f64, floor: f64) -> Result<(Self, Escalation)> {
        let diagonal = diagonal_of(&a);
        let mut spd = Self {
            buffer: a,
            diagonal: Vec::new(),
            ridge: 0.0,
        };
        let mut ridge = ridge;
        let mut raises = 0;
        loop {
            match spd.attempt(&diagonal, ridge) {
                Ok(()) => return Ok((spd, Escalation { ridge, raises })),
                Err(error) if raises == RAISES => return Err(error),
                Err(_) => {
                    raises += 1;
                    ridge = (10.0 * ridge).max(floor);
                    spd.restore();
                }
            }
        }
    }

    /// Number of rows and of columns.
    pub fn dim(&self) -> usize {
        self.buffer.rows()
    }

    /// What was added to the diagonal.
    pub fn ridge(&self) -> f64 {
        self.ridge
    }

    /// L itself, with zeros above the diagonal: L Lᵀ = A + ρI. With standard normal z, L z has this covariance; the sum of
    /// 2 ln L_ii is ln det(A + ρI).
    #[must_use]
    pub fn lower(&self) -> Matrix<T> {
        let n = self.dim();
        let mut lower = Matrix::zeros(n, n);
        for i in 0..n {
            lower.row_mut(i)[..=i].copy_from_slice(&self.buffer.row(i)[..=i]);
        }
        lower
    }

    /// L⁻¹, with zeros above the diagonal: with a vector x, |L⁻¹ x|² is xᵀ (A + ρI)⁻¹ x.
    #[must_use]
    pub fn lower_inverse(&self) -> Matrix<T> {
        let n = self.dim();
        // Columns of a column-major square are rows of its transpose.
        let mut inverse = Matrix::from_fn(n, n, |i, j| T::from_f64(f64::from(u8::from(i == j))));
        inverse
            .as_mut_slice()
            .par_chunks_mut((ROWS * n).max(1))
            .for_each(|rows| {
                let columns = MatMut::from_column_major_slice_mut(rows, n, rows.len() / n);
                solve_lower_triangular_in_place(self.buffer.view(), columns, Par::Seq);
                registers::clear();
            });
        inverse.transpose()
    }

    /// The smallest pivot L_ii² over the largest diagonal element of A + ρI: near the rounding of `T`, the matrix is
    /// singular for all that its numbers say. It bounds 1 / condition from above.
    pub fn smallest_pivot(&self) -> f64 {
        let largest = self
            .diagonal
            .iter()
            .fold(0.0_f64, |max, x| max.max(x.to_f64()));
        let smallest = (0..self.dim())
            .map(|i| self.buffer.get(i, i).to_f64().powi(2))
            .fold(f64::INFINITY, f64::min);
        if largest > 0.0 {
            smallest / largest
        } else {
            0.0
        }
    }

    /// Whether [`smallest_pivot`](Self::smallest_pivot) is at most the rounding of numbers computed with a relative
    /// error of `epsilon`: the solution is then noise in some direction.
    pub fn is_singular(&self, epsilon: f64) -> bool {
        self.smallest_pivot() <= noise(self.dim(), epsilon.max(T::EPSILON))
    }

    /// X with X (A + ρI) = C.
    ///
    /// # Panics
    /// If C does not have as many columns as A.
    pub fn solve_rows(&self, c: &Matrix<T>) -> Matrix<T> {
        let mut x = c.clone();
        self.solve_rows_in_place(&mut x);
        x
    }

    /// Replaces the rows of C by those of X with X (A + ρI) = C.
    ///
    /// # Panics
    /// If C does not have as many columns as A.
    pub fn solve_rows_in_place(&self, c: &mut Matrix<T>) {
        let n = self.dim();
        assert_eq!(c.cols(), n, "right-hand sides must have as many columns");
        if n == 0 {
            return;
        }
        let lower = self.buffer.view();
        c.as_mut_slice().par_chunks_mut(ROWS * n).for_each(|rows| {
            let count = rows.len() / n;
            let mut columns = MatMut::from_column_major_slice_mut(rows, n, count);
            solve_lower_triangular_in_place(lower, columns.as_mut(), Par::Seq);
            solve_upper_triangular_in_place(lower.transpose(), columns, Par::Seq);
            registers::clear();
        });
    }

    /// Improves X towards X (A + ρI) = C until the residual is at the rounding of `T`, no longer halves, or `steps`
    /// steps were taken.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn refine(&self, c: &Matrix<T>, x: &mut Matrix<T>, steps: usize) -> Refinement {
        let scale = c.norm();
        let relative = |residual: &Matrix<T>| {
            if scale > 0.0 {
                residual.norm() / scale
            } else {
                0.0
            }
        };
        let mut residual = self.residual(c, x);
        let first = relative(&residual);
        let mut done = Refinement {
            steps: 0,
            first,
            last: first,
        };
        while done.steps < steps && done.last > T::EPSILON {
            self.solve_rows_in_place(&mut residual);
            x.add_scaled(1.0, &residual);
            let correction = residual;
            residual = self.residual(c, x);
            let now = relative(&residual);
            if now.is_nan() || now >= done.last {
                x.add_scaled(-1.0, &correction);
                break;
            }
            let halved = now <= done.last / 2.0;
            done.steps += 1;
            done.last = now;
            if !halved {
                break;
            }
        }
        done
    }

    /// C − X (A + ρI), with products and sums in `f64`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn residual(&self, c: &Matrix<T>, x: &Matrix<T>) -> Matrix<T> {
        let n = self.dim();
        assert!(c.shape() == x.shape() && c.cols() == n, "shapes do not fit");
        let mut residual = c.clone();
        if n == 0 {
            return residual;
        }
        for from in (0..n).step_by(RESIDUAL_COLUMNS) {
            let to = (from + RESIDUAL_COLUMNS).min(n);
            let panel = self.panel(from, to);
            residual
                .as_mut_slice()
                .par_chunks_mut(ROWS * n)
                .enumerate()
                .for_each(|(piece, out)| {
                    let lines = out.len() / n;
                    let first = piece * ROWS * n;
                    let x: Vec<f64> = x.as_slice()[first..first + lines * n]
                        .iter()
                        .map(|x| x.to_f64())
                        .collect();
                    let mut product = Mat::<f64>::zeros(to - from, lines);
                    matmul(
                        product.as_mut(),
                        Accum::Replace,
                        panel.view(),
                        MatRef::from_column_major_slice(&x, n, lines),
                        1.0,
                        Par::Seq,
                    );
                    registers::clear();
                    for (i, row) in out.chunks_mut(n).enumerate() {
                        for (j, out) in row[from..to].iter_mut().enumerate() {
                            *out = T::from_f64(out.to_f64() - product[(j, i)]);
                        }
                    }
                });
        }
        residual
    }

    /// Rows `from..to` of A + ρI in `f64`, from the upper triangle.
    fn panel(&self, from: usize, to: usize) -> Matrix<f64> {
        let n = self.dim();
        let mut panel = Matrix::zeros(to - from, n);
        for i in 0..to {
            let row = self.buffer.row(i);
            let first = from.max(i + 1);
            for (j, x) in (first..to).zip(&row[first.min(to)..to]) {
                panel.set(j - from, i, x.to_f64());
            }
        }
        for j in from..to {
            let row = panel.row_mut(j - from);
            row[j] = self.diagonal[j].to_f64();
            for (out, x) in row[j + 1..].iter_mut().zip(&self.buffer.row(j)[j + 1..]) {
                *out = x.to_f64();
            }
        }
        panel
    }

    /// Tries to factor; on failure the lower triangle is spoilt, see [`restore`](Self::restore).
    fn attempt(&mut self, diagonal: &[T], ridge: f64) -> Result<()> {
        let n = self.dim();
        self.ridge = ridge;
        self.diagonal = diagonal
            .iter()
            .map(|x| T::from_f64(x.to_f64() + ridge))
            .collect();
        for (i, &x) in self.diagonal.iter().enumerate() {
            self.buffer.set(i, i, x);
        }
        factor_blocks(self.buffer.as_mut_slice(), n).map_err(|pivot| Error::NotPositiveDefinite {
            pivot,
            dim: n,
            ridge,
        })
    }

    /// Copies the upper triangle into the lower one.
    fn restore(&mut self) {
        for i in 0..self.dim() {
            for j in 0..i {
                let x = self.buffer.get(j, i);
                self.buffer.set(i, j, x);
            }
        }
    }
}

fn diagonal_of<T: Real>(a: &Matrix<T>) -> Vec<T> {
    assert_eq!(a.rows(), a.cols(), "the matrix must be square");
    (0..a.rows()).map(|i| a.get(i, i)).collect()
}

/// Factors the lower triangle of the n×n square in `a`; what is above the diagonal is neither read nor written. On
/// failure the number of the bad pivot.
fn factor_blocks<T: Real>(a: &mut [T], n: usize) -> Result<(), usize> {
    for from in (0..n).step_by(BLOCK) {
        let to = (from + BLOCK).min(n);
        let width = to - from;
        let corner = factor_corner(a, n, from, to)?;
        let (_, below) = a.split_at_mut(to * n);
        if below.is_empty() {
            return Ok(());
        }
        // Panel: rows below the corner become A L⁻ᵀ, and a packed copy of them feeds the update.
        let mut packed = vec![T::default(); (n - to) * width];
        below
            .par_chunks_mut(ROWS * n)
            .zip(packed.par_chunks_mut(ROWS * width))
            .for_each(|(rows, packed)| {
                for (row, packed) in rows.chunks(n).zip(packed.chunks_mut(width)) {
                    packed.copy_from_slice(&row[from..to]);
                }
                let count = rows.len() / n;
                let columns = MatMut::from_column_major_slice_mut(packed, width, count);
                solve_lower_triangular_in_place(corner.as_ref(), columns, Par::Seq);
                registers::clear();
                for (row, packed) in rows.chunks_mut(n).zip(packed.chunks(width)) {
                    row[from..to].copy_from_slice(packed);
                }
            });
        // Trailing rows, lower triangle only.
        let panel = MatRef::from_row_major_slice(&packed, n - to, width);
        below
            .par_chunks_mut(ROWS * n)
            .enumerate()
            .rev()
            .for_each(|(piece, rows)| {
                let first = piece * ROWS;
                let count = rows.len() / n;
                let own = panel.subrows(first, count);
                if first > 0 {
                    let others = panel.subrows(0, first).transpose();
                    product_into_rows(&mut rows[to..], n, Accum::Add, own, others, -1.0);
                }
                let mut square = Mat::<T>::zeros(count, count);
                matmul(
                    square.as_mut(),
                    Accum::Replace,
                    own,
                    own.transpose(),
                    T::from_f64(1.0),
                    Par::Seq,
                );
                registers::clear();
                for (i, row) in rows.chunks_mut(n).enumerate() {
                    for (j, x) in row[to + first..=to + first + i].iter_mut().enumerate() {
                        *x -= square[(i, j)];
                    }
                }
            });
    }
    Ok(())
}

/// Factors the diagonal block of rows and columns `from..to` in place; gives a copy of the factor.
fn factor_corner<T: Real>(a: &mut [T], n: usize, from: usize, to: usize) -> Result<Mat<T>, usize> {
    let width = to - from;
    let mut corner = Mat::from_fn(width, width, |i, j| {
        if j <= i {
            a[(from + i) * n + from + j]
        } else {
            T::default()
        }
    });
    let scratch = cholesky_in_place_scratch::<T>(width, Par::Seq, faer::prelude::default());
    let result = cholesky_in_place(
        corner.as_mut(),
        LltRegularization::default(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        faer::prelude::default(),
    );
    registers::clear();
    match result {
        Ok(_) => {}
        Err(LltError::NonPositivePivot { index }) => return Err(from + index),
    }
    for i in 0..width {
        let pivot = corner[(i, i)].to_f64();
        // A pivot may also be lost to overflow or a NaN that no comparison caught.
        if !(pivot > 0.0 && pivot.is_finite()) {
            return Err(from + i);
        }
        for j in 0..=i {
            a[(from + i) * n + from + j] = corner[(i, j)];
        }
    }
    Ok(corner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::gemm;

    /// A matrix of full rank with entries of order 1.
    fn numbers(rows: usize, cols: usize) -> Matrix<f64> {
        Matrix::from_fn(rows, cols, |i, j| {
            let k = (i * cols + j) as f64;
            (k * 12.9898).sin() * 43758.5453 % 1.0
        })
    }

    fn gram(n: usize, rows: usize) -> Matrix<f64> {
        let x = numbers(rows, n);
        gemm::mul_tn(&x, &x)
    }

    #[test]
    fn solutions_satisfy_their_equations_over_several_blocks() {
        for n in [1, 5, 256, 300, 700] {
            let a = gram(n, n + 50);
            let c = numbers(140, n);
            let spd = Spd::factor(a.clone(), 0.5).unwrap();
            let x = spd.solve_rows(&c);
            let mut left = gemm::mul(&x, &a);
            left.add_scaled(0.5, &x);
            left.add_scaled(-1.0, &c);
            assert!(left.norm() < 1e-9 * c.norm(), "{n}: {}", left.norm());
            assert!(spd.residual(&c, &x).norm() < 1e-9 * c.norm());
            assert!(spd.smallest_pivot() > 0.0 && spd.smallest_pivot() < 1.0);
        }
    }

    #[test]
    fn the_factor_rebuilds_the_matrix() {
        let a = gram(300, 400);
        let lower = Spd::factor(a.clone(), 0.25).unwrap().lower();
        assert!(lower.get(0, 1) == 0.0 && lower.get(299, 299) > 0.0);
        let mut rest = gemm::mul_nt(&lower, &lower);
        rest.add_scaled(-1.0, &a);
        rest.add_scaled(-0.25, &Matrix::identity(300));
        assert!(rest.norm() < 1e-12 * a.norm());
    }

    #[test]
    fn the_inverse_of_the_factor_undoes_it() {
        for n in [0, 1, 5, 300] {
            let spd = Spd::factor(gram(n, 2 * n + 3), 0.5).unwrap();
            let inverse = spd.lower_inverse();
            let mut product = crate::gemm::mul(&inverse, &spd.lower());
            product.add_scaled(-1.0, &Matrix::identity(n));
            assert!(product.norm() < 1e-9, "{n}: {}", product.norm());
            assert!((0..n).all(|i| inverse.row(i)[i + 1..].iter().all(|x| *x == 0.0)));
        }
    }

    #[test]
    fn refinement_brings_f32_to_its_accuracy() {
        let a = gram(400, 500);
        let c = numbers(30, 400);
        let exact = Spd::factor(a.clone(), 0.0).unwrap().solve_rows(&c);
        let spd = Spd::<f32>::factor(a.cast(), 0.0).unwrap();
        let c32: Matrix<f32> = c.cast();
        let mut x = spd.solve_rows(&c32);
        let error = |x: &Matrix<f32>| {
            let mut difference: Matrix = x.cast();
            difference.add_scaled(-1.0, &exact);
            difference.norm() / exact.norm()
        };
        let before = error(&x);
        let refinement = spd.refine(&c32, &mut x, 3);
        assert!(
            refinement.steps >= 1 && refinement.last < 1e-6,
            "{refinement:?}"
        );
        assert!(error(&x) < before / 5.0, "{before} {}", error(&x));
    }

    #[test]
    fn a_singular_matrix_gets_more_ridge_and_says_so() {
        let a = gram(300, 20);
        let error = Spd::factor(a.clone(), 0.0).unwrap_err();
        assert!(
            matches!(error, Error::NotPositiveDefinite { dim: 300, .. }),
            "{error}"
        );
        let (spd, escalation) = Spd::factor_escalating(a.clone(), 0.0, 1e-18).unwrap();
        assert!(
            escalation.raises > 1 && spd.ridge() == escalation.ridge,
            "{escalation:?}"
        );
        let c = gemm::mul(&numbers(3, 300), &a);
        let x = spd.solve_rows(&c);
        assert!(x.check_finite().is_ok());
        assert!(spd.residual(&c, &x).norm() < 1e-6 * c.norm());
    }

    #[test]
    fn hopeless_matrices_are_refused() {
        let mut a = Matrix::<f64>::identity(3);
        a.set(2, 2, f64::NAN);
        assert!(Spd::factor_escalating(a, 0.0, 1e-12).is_err());
        let mut a = Matrix::<f64>::identity(3);
        a.scale(-1e30);
        assert!(Spd::factor_escalating(a, 0.0, 1e-12).is_err());
    }

    #[test]
    fn the_bits_do_not_depend_on_the_number_of_threads() {
        let (a, c) = (gram(600, 700), numbers(300, 600));
        let solve = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let pool = pool.build().unwrap();
            pool.install(|| Spd::factor(a.clone(), 0.0).unwrap().solve_rows(&c))
        };
        assert_eq!(solve(1), solve(3));
    }

    #[test]
    fn nothing_is_a_system_too() {
        let spd = Spd::factor(Matrix::<f64>::zeros(0, 0), 0.0).unwrap();
        assert_eq!(spd.solve_rows(&Matrix::zeros(2, 0)).shape(), (2, 0));
    }
}
