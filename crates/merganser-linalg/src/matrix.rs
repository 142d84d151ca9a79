//! A plain row-major matrix. Sums over its elements are taken in `f64`.

use faer::{MatMut, MatRef};
use rayon::prelude::*;

use crate::{Error, Real, Result};

/// Rows that one thread works on in an element-wise pass.
const ROWS: usize = 64;
/// Rows and columns of a tile that is mirrored at once: small enough that rows a power of two apart do not drive each other out
/// of the cache.
const TILE: usize = 8;

/// A dense matrix in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix<T = f64> {
    rows: usize,
    cols: usize,
    data: Vec<T>,
}

impl<T: Real> Matrix<T> {
    /// A matrix of the given numbers, row after row.
    ///
    /// # Errors
    /// If there are not `rows · cols` of them.
    pub fn new(rows: usize, cols: usize, data: Vec<T>) -> Result<Self> {
        if rows.checked_mul(cols) == Some(data.len()) {
            Ok(Self { rows, cols, data })
        } else {
            Err(Error::Size {
                what: format!("a {rows}×{cols} matrix"),
                found: data.len(),
                expected: rows.saturating_mul(cols),
            })
        }
    }

    /// All zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self {
            rows,
            cols,
            data: vec![T::default(); rows * cols],
        }
    }

    /// The identity of dimension `n`.
    pub fn identity(n: usize) -> Self {
        Self::from_fn(n, n, |i, j| T::from_f64(f64::from(u8::from(i == j))))
    }

    /// The matrix whose element in row i and column j is `f(i, j)`.
    pub fn from_fn(rows: usize, cols: usize, mut f: impl FnMut(usize, usize) -> T) -> Self {
        let mut data = Vec::with_capacity(rows * cols);
        for i in 0..rows {
            data.extend((0..cols).map(|j| f(i, j)));
        }
        Self { rows, cols, data }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> &[T] {
        &self.data[i * self.cols..(i + 1) * self.cols]
    }

    /// Row `i`, to be changed.
    pub fn row_mut(&mut self, i: usize) -> &mut [T] {
        &mut self.data[i * self.cols..(i + 1) * self.cols]
    }

    /// Element in row `i` and column `j`.
    pub fn get(&self, i: usize, j: usize) -> T {
        self.row(i)[j]
    }

    /// Sets the element in row `i` and column `j`.
    pub fn set(&mut self, i: usize, j: usize, value: T) {
        self.row_mut(i)[j] = value;
    }

    /// All elements, row after row.
    pub fn as_slice(&self) -> &[T] {
        &self.data
    }

    /// All elements, row after row, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.data
    }

    /// All elements, row after row.
    pub fn into_vec(self) -> Vec<T> {
        self.data
    }

    /// The transpose.
    #[must_use]
    pub fn transpose(&self) -> Self {
        let mut out = Self::zeros(self.cols, self.rows);
        if self.data.is_empty() {
            return out;
        }
        // Square tiles, so that neither side walks through memory with a long stride.
        out.data
            .par_chunks_mut(ROWS * self.rows)
            .enumerate()
            .for_each(|(chunk, out)| {
                let j0 = chunk * ROWS;
                for i0 in (0..self.rows).step_by(ROWS) {
                    let i1 = (i0 + ROWS).min(self.rows);
                    for (j, out) in out.chunks_mut(self.rows).enumerate() {
                        for (i, out) in (i0..i1).zip(&mut out[i0..i1]) {
                            *out = self.data[i * self.cols + j0 + j];
                        }
                    }
                }
            });
        out
    }

    /// The same numbers in another type, rounded to nearest.
    pub fn cast<U: Real>(&self) -> Matrix<U> {
        Matrix {
            rows: self.rows,
            cols: self.cols,
            data: self
                .data
                .par_iter()
                .with_min_len(1 << 16)
                .map(|x| U::from_f64(x.to_f64()))
                .collect(),
        }
    }

    /// Adds `factor · other`.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn add_scaled(&mut self, factor: f64, other: &Self) {
        assert_eq!(self.shape(), other.shape(), "shapes differ");
        let factor = T::from_f64(factor);
        self.data
            .par_iter_mut()
            .with_min_len(1 << 16)
            .zip(&other.data)
            .for_each(|(x, &y)| *x += factor * y);
    }

    /// Multiplies every element.
    pub fn scale(&mut self, factor: f64) {
        let factor = T::from_f64(factor);
        self.data
            .par_iter_mut()
            .with_min_len(1 << 16)
            .for_each(|x| *x *= factor);
    }

    /// Multiplies row i by `factors[i]`.
    ///
    /// # Panics
    /// If there is not one factor a row.
    pub fn scale_rows(&mut self, factors: &[f64]) {
        assert_eq!(self.rows, factors.len(), "one factor a row");
        if self.cols > 0 {
            for (row, &factor) in self.data.chunks_mut(self.cols).zip(factors) {
                let factor = T::from_f64(factor);
                for x in row {
                    *x *= factor;
                }
            }
        }
    }

    /// Multiplies column j by `factors[j]`.
    ///
    /// # Panics
    /// If there is not one factor a column.
    pub fn scale_cols(&mut self, factors: &[f64]) {
        assert_eq!(self.cols, factors.len(), "one factor a column");
        let factors: Vec<T> = factors.iter().map(|&x| T::from_f64(x)).collect();
        if self.cols > 0 {
            for row in self.data.chunks_mut(self.cols) {
                for (x, &factor) in row.iter_mut().zip(&factors) {
                    *x *= factor;
                }
            }
        }
    }

    /// The inner products of the rows of two matrices: Σ_j a_ij b_ij for every i, in `f64`.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn row_dots(&self, other: &Self) -> Vec<f64> {
        assert_eq!(self.shape(), other.shape(), "shapes differ");
        (0..self.rows)
            .into_par_iter()
            .with_min_len(8)
            .map(|i| dot(self.row(i), other.row(i)))
            .collect()
    }

    /// The inner product Σ a_ij b_ij, in `f64`.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn dot(&self, other: &Self) -> f64 {
        self.row_dots(other).iter().sum()
    }

    /// The Frobenius norm.
    pub fn norm(&self) -> f64 {
        self.dot(self).sqrt()
    }

    /// The rows numbered `from..to` as a matrix of their own.
    #[must_use]
    pub fn rows_range(&self, from: usize, to: usize) -> Self {
        Self {
            rows: to - from,
            cols: self.cols,
            data: self.data[from * self.cols..to * self.cols].to_vec(),
        }
    }

    /// The rows with these numbers, in this order.
    #[must_use]
    pub fn gather_rows(&self, rows: &[usize]) -> Self {
        let mut data = Vec::with_capacity(rows.len() * self.cols);
        for &row in rows {
            data.extend_from_slice(self.row(row));
        }
        Self {
            rows: rows.len(),
            cols: self.cols,
            data,
        }
    }

    /// All rows of several matrices of the same width, one after the other.
    ///
    /// # Panics
    /// If the widths differ.
    pub fn stack_rows<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut out = Self {
            rows: 0,
            cols: 0,
            data: Vec::new(),
        };
        for part in parts {
            assert!(
                out.rows == 0 || out.cols == part.cols,
                "widths differ: {} and {}",
                out.cols,
                part.cols
            );
            out.cols = part.cols;
            out.rows += part.rows;
            out.data.extend_from_slice(&part.data);
        }
        out
    }

    /// Refuses NaN and infinities.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the first place.
    pub fn check_finite(&self) -> Result<()> {
        check_finite(&self.data, self.cols)
    }

    /// The largest magnitude; 0 of an empty matrix. NaN counts for nothing.
    pub(crate) fn largest(&self) -> f64 {
        let sizes = self.data.iter().map(|x| x.to_f64().abs());
        sizes.fold(0.0, f64::max)
    }

    /// Makes a square symmetric by its lower triangle.
    pub(crate) fn mirror(&mut self) {
        let n = self.rows;
        for i0 in (0..n).step_by(TILE) {
            for j0 in (0..=i0).step_by(TILE) {
                for i in i0..(i0 + TILE).min(n) {
                    for j in j0..(j0 + TILE).min(i) {
                        self.data[j * n + i] = self.data[i * n + j];
                    }
                }
            }
        }
    }

    /// The rows as columns, which is how faer takes its destinations.
    pub(crate) fn columns_mut(&mut self) -> MatMut<'_, T> {
        MatMut::from_column_major_slice_mut(&mut self.data, self.cols, self.rows)
    }

    pub(crate) fn view(&self) -> MatRef<'_, T> {
        MatRef::from_row_major_slice(&self.data, self.rows, self.cols)
    }
}

/// Refuses NaN and infinities among the rows of `cols` numbers in `data`.
///
/// # Errors
/// [`Error::NotFinite`] with the first place.
pub fn check_finite<T: Real>(data: &[T], cols: usize) -> Result<()> {
    // No early end inside a chunk: this loop is compiled to vector instructions.
    let finite = data.par_chunks(1 << 15).all(|part| {
        part.iter()
            .fold(true, |finite, x| finite & x.to_f64().is_finite())
    });
    if finite {
        return Ok(());
    }
    let at = data
        .iter()
        .position(|x| !x.to_f64().is_finite())
        .unwrap_or(0);
    Err(Error::NotFinite {
        row: at / cols.max(1),
        column: at % cols.max(1),
    })
}

/// Σ a_i b_i in `f64`, in eight interleaved sums.
///
/// # Panics
/// If the lengths differ.
pub fn dot<T: Real>(a: &[T], b: &[T]) -> f64 {
    assert_eq!(a.len(), b.len(), "lengths differ");
    let mut sums = [0.0_f64; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a8
        .remainder()
        .iter()
        .zip(b8.remainder())
        .map(|(x, y)| x.to_f64() * y.to_f64())
        .sum();
    for (a, b) in a8.zip(b8) {
        for (sum, (x, y)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += x.to_f64() * y.to_f64();
        }
    }
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + e) + (b + f)) + ((c + g) + (d + h)) + rest
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_must_fit_its_numbers() {
        assert!(Matrix::new(2, 3, vec![0.0; 6]).is_ok());
        let error = Matrix::new(2, 3, vec![0.0; 5]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "5 numbers were given for a 2×3 matrix, which has 6"
        );
        assert!(Matrix::<f32>::new(usize::MAX, 2, Vec::new()).is_err());
    }

    #[test]
    fn transposing_twice_changes_nothing() {
        let a = Matrix::from_fn(131, 70, |i, j| (i * 1000 + j) as f64);
        assert_eq!(a.transpose().get(3, 100), a.get(100, 3));
        assert_eq!(a.transpose().transpose(), a);
        assert_eq!(Matrix::<f64>::zeros(0, 4).transpose().shape(), (4, 0));
    }

    #[test]
    fn products_of_rows_are_summed_in_f64() {
        let a = Matrix::from_fn(2, 19, |i, j| if i == 0 { 1.0e8_f32 } else { j as f32 });
        let ones = Matrix::from_fn(2, 19, |_, _| 1.0_f32);
        assert_eq!(a.row_dots(&ones), [19.0e8, 171.0]);
    }

    #[test]
    fn a_nan_is_found() {
        let mut a = Matrix::<f32>::zeros(3, 4);
        assert!(a.check_finite().is_ok());
        a.set(2, 1, f32::INFINITY);
        assert_eq!(
            a.check_finite(),
            Err(Error::NotFinite { row: 2, column: 1 })
        );
    }
}
