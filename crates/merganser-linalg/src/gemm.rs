//! Products of matrices. The result is cut by its shape; each piece is one call of faer on one thread, so that the bits do not
//! depend on the number of threads.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::{Matrix, Real, registers};

/// Multiplications and numbers of the result up to which a product is one piece. The kernel copies both operands of every
/// piece, which costs as much as the work itself where a piece is thin.
const WORK: usize = 1 << 26;
const AREA: usize = 1 << 16;
/// Rows and columns of the result are cut at multiples of this number.
pub(crate) const GRAIN: usize = 64;

/// Rows of the result in one piece of a sum of outer products.
fn piece(rows: usize) -> usize {
    rows.div_ceil(8).clamp(16, 256)
}

/// Writes α A B over rows of `out` that begin `stride` numbers apart, or adds it to them. On this thread.
///
/// faer 0.24 is asked for the transpose, (A B)ᵀ = Bᵀ Aᵀ in column-major order: its kernel for x86 (private-gemm-x86
/// 0.1.22) mistakes a row-major destination for a column-major one and writes elsewhere.
pub(crate) fn product_into_rows<T: Real>(
    out: &mut [T],
    stride: usize,
    accumulate: Accum,
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    alpha: f64,
) {
    let out = MatMut::from_column_major_slice_with_stride_mut(out, b.ncols(), a.nrows(), stride);
    transposed_product(out, accumulate, a, b, alpha);
}

/// Whether the product has more work than one piece.
fn is_large<T>(a: MatRef<'_, T>, b: MatRef<'_, T>) -> bool {
    a.nrows() * a.ncols() * b.ncols() > WORK
}

/// The same into columns.
fn transposed_product<T: Real>(
    out: MatMut<'_, T>,
    accumulate: Accum,
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    alpha: f64,
) {
    matmul(
        out,
        accumulate,
        b.transpose(),
        a.transpose(),
        T::from_f64(alpha),
        Par::Seq,
    );
    registers::clear();
}

/// The same on all threads: the longer side of the result is halved until the pieces are small enough.
pub(crate) fn product_in_pieces<T: Real>(
    out: MatMut<'_, T>,
    accumulate: Accum,
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    alpha: f64,
) {
    let (rows, cols) = (a.nrows(), b.ncols());
    if rows * cols <= AREA || !is_large(a, b) {
        return transposed_product(out, accumulate, a, b, alpha);
    }
    let half = (rows.max(cols) / 2).next_multiple_of(GRAIN);
    let parts = if rows >= cols {
        let ((first, second), (upper, lower)) = (out.split_at_col_mut(half), a.split_at_row(half));
        [(first, upper, b), (second, lower, b)]
    } else {
        let ((first, second), (left, right)) = (out.split_at_row_mut(half), b.split_at_col(half));
        [(first, a, left), (second, a, right)]
    };
    let [first, second] =
        parts.map(|(out, a, b)| move || product_in_pieces(out, accumulate, a, b, alpha));
    rayon::join(first, second);
}

/// out = α A B, or out += α A B where `accumulate`.
fn product<T: Real>(
    out: &mut Matrix<T>,
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    alpha: f64,
    accumulate: Accum,
) {
    if !out.as_slice().is_empty() {
        product_in_pieces(out.columns_mut(), accumulate, a, b, alpha);
    }
}

fn fresh<T: Real>(a: MatRef<'_, T>, b: MatRef<'_, T>) -> Matrix<T> {
    assert_eq!(a.ncols(), b.nrows(), "the shapes of a product do not fit");
    let mut out = Matrix::zeros(a.nrows(), b.ncols());
    product(&mut out, a, b, 1.0, Accum::Replace);
    out
}

/// A B.
///
/// # Panics
/// If the shapes do not fit.
pub fn mul<T: Real>(a: &Matrix<T>, b: &Matrix<T>) -> Matrix<T> {
    fresh(a.view(), b.view())
}

/// A Bᵀ.
///
/// # Panics
/// If the shapes do not fit.
pub fn mul_nt<T: Real>(a: &Matrix<T>, b: &Matrix<T>) -> Matrix<T> {
    fresh(a.view(), b.view().transpose())
}

/// Aᵀ B.
///
/// # Panics
/// If the shapes do not fit.
pub fn mul_tn<T: Real>(a: &Matrix<T>, b: &Matrix<T>) -> Matrix<T> {
    let transposed = a.view().transpose();
    // The kernel reads the left matrix row by row, again and again.
    if is_large(transposed, b.view()) {
        mul(&a.transpose(), b)
    } else {
        fresh(transposed, b.view())
    }
}

/// out += α A B.
///
/// # Panics
/// If the shapes do not fit.
pub fn add_mul<T: Real>(out: &mut Matrix<T>, alpha: f64, a: &Matrix<T>, b: &Matrix<T>) {
    assert!(
        a.cols() == b.rows() && out.shape() == (a.rows(), b.cols()),
        "the shapes of a product do not fit"
    );
    product(out, a.view(), b.view(), alpha, Accum::Add);
}

/// Σ over n rows of r xᵀ: adds RᵀX to `out`, where `r` holds n rows of `out.rows()` numbers and `x` n rows of
/// `out.cols()`. Products of at most 1024 rows are taken in `T`, their sum in `f64`.
///
/// # Panics
/// If the numbers of rows differ.
pub fn add_outer<T: Real>(out: &mut Matrix<f64>, r: &[T], x: &[T]) {
    let (m, d) = out.shape();
    if m == 0 || d == 0 {
        return;
    }
    let n = x.len() / d;
    assert!(
        x.len() == n * d && r.len() == n * m,
        "numbers of rows differ"
    );
    let r = MatRef::from_row_major_slice(r, n, m);
    let x = MatRef::from_row_major_slice(x, n, d);
    let height = piece(m);
    out.as_mut_slice()
        .par_chunks_mut(height * d)
        .enumerate()
        .for_each(|(i, out)| {
            let lines = out.len() / d;
            let mut part = vec![T::default(); out.len()];
            for from in (0..n).step_by(crate::symmetric::BATCH) {
                let count = crate::symmetric::BATCH.min(n - from);
                let r = r.subrows(from, count).subcols(i * height, lines);
                let x = x.subrows(from, count);
                product_into_rows(&mut part, d, Accum::Replace, r.transpose(), x, 1.0);
                for (sum, x) in out.iter_mut().zip(&part) {
                    *sum += x.to_f64();
                }
            }
        });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn numbers(rows: usize, cols: usize, seed: usize) -> Matrix<f64> {
        Matrix::from_fn(rows, cols, |i, j| {
            ((i * 31 + j * 17 + seed * 7) % 23) as f64 - 11.0
        })
    }

    /// Sizes on both sides of every threshold of the library below.
    #[test]
    fn products_are_exact_on_small_integers() {
        for (m, k, n) in [
            (1, 1, 1),
            (37, 19, 53),
            (44, 256, 256),
            (130, 128, 44),
            (300, 77, 200),
        ] {
            let (a, b) = (numbers(m, k, 1), numbers(k, n, 2));
            let expected =
                Matrix::from_fn(m, n, |i, j| (0..k).map(|k| a.get(i, k) * b.get(k, j)).sum());
            assert_eq!(mul(&a, &b), expected);
            assert_eq!(mul_nt(&a, &b.transpose()), expected);
            assert_eq!(mul_tn(&a.transpose(), &b), expected);
            assert_eq!(mul::<f32>(&a.cast(), &b.cast()), expected.cast());
            let mut sum = expected.clone();
            add_mul(&mut sum, -1.0, &a, &b);
            assert_eq!(sum, Matrix::zeros(m, n));
        }
    }

    #[test]
    fn products_are_exact_over_pieces_on_any_number_of_threads() {
        for (m, k, n) in [(700, 300, 500), (90, 1100, 800), (1500, 70, 700)] {
            let (a, b) = (numbers(m, k, 1), numbers(k, n, 2));
            assert!(is_large(a.view(), b.view()));
            let expected = Matrix::from_fn(m, n, |i, j| {
                crate::dot(a.row(i), &(0..k).map(|k| b.get(k, j)).collect::<Vec<_>>())
            });
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                pool.build().unwrap().install(|| {
                    assert_eq!(mul(&a, &b), expected);
                    assert_eq!(mul_nt(&a, &b.transpose()), expected);
                    assert_eq!(mul_tn(&a.transpose(), &b), expected);
                });
            }
        }
    }

    #[test]
    fn outer_products_are_summed_over_more_rows_than_a_batch() {
        let (r, x) = (numbers(2500, 5, 3), numbers(2500, 7, 4));
        let mut out = Matrix::zeros(5, 7);
        let (r32, x32): (Matrix<f32>, Matrix<f32>) = (r.cast(), x.cast());
        add_outer(&mut out, r32.as_slice(), x32.as_slice());
        assert_eq!(out, mul_tn(&r, &x));
    }

    #[test]
    fn empty_products_are_zero() {
        let a = Matrix::<f64>::zeros(3, 0);
        assert_eq!(mul(&a, &Matrix::zeros(0, 2)), Matrix::zeros(3, 2));
        assert_eq!(
            mul_nt(&Matrix::<f32>::zeros(0, 4), &Matrix::zeros(2, 4)).shape(),
            (0, 2)
        );
    }
}
