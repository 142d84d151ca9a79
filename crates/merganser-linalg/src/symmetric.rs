//! The packed lower triangle of a symmetric matrix, in `f64`: as many bytes as the whole square in `f32`.
//!
//! Its reason is the Gram matrix Σ x xᵀ. Row panels of the triangle are independent, so each is one product of the
//! panel's columns with all columns up to its end: half the work of XᵀX. Products of a batch of rows are taken in the
//! type of the data (`f32` rows cost what an `f32` product costs) and added to the `f64` sums, whose error stays at that
//! of one batch however many rows follow.

use faer::{Accum, MatMut, MatRef};
use rayon::prelude::*;

use crate::gemm::{GRAIN, product_in_pieces, product_into_rows};
use crate::matrix::check_finite;
use crate::{Error, Matrix, Real, Result};

/// Rows of data in one product.
pub(crate) const BATCH: usize = 1024;
/// Rows of the triangle in one panel.
const PANEL: usize = 192;
/// How far the triangles of a square given as symmetric may differ, relative to its diagonal.
const SYMMETRY: f64 = 1e-3;

/// A symmetric matrix: element (i, j) with j ≤ i is number i(i+1)/2 + j of the packed triangle.
#[derive(Debug, Clone, PartialEq)]
pub struct Symmetric {
    dim: usize,
    packed: Vec<f64>,
}

/// Numbers in the triangle of a `dim`×`dim` matrix.
fn triangle(dim: usize) -> usize {
    dim * (dim + 1) / 2
}

impl Symmetric {
    /// All zeros.
    pub fn zeros(dim: usize) -> Self {
        Self {
            dim,
            packed: vec![0.0; triangle(dim)],
        }
    }

    /// The matrix with this packed lower triangle.
    ///
    /// # Errors
    /// If there are not dim(dim+1)/2 numbers, or one is not finite.
    pub fn from_packed(dim: usize, packed: Vec<f64>) -> Result<Self> {
        let expected = dim.checked_add(1).and_then(|n| n.checked_mul(dim));
        if expected.is_none_or(|n| n / 2 != packed.len()) {
            return Err(Error::Size {
                what: format!("the triangle of a {dim}×{dim} matrix"),
                found: packed.len(),
                expected: expected.unwrap_or(usize::MAX) / 2,
            });
        }
        check_finite(&packed, packed.len())?;
        Ok(Self { dim, packed })
    }

    /// The matrix whose two triangles are the mean of the triangles of a square matrix.
    ///
    /// # Errors
    /// If it is not square, not finite, or not symmetric up to rounding.
    pub fn from_square<T: Real>(square: &Matrix<T>) -> Result<Self> {
        let dim = square.rows();
        if square.cols() != dim {
            return Err(Error::Size {
                what: format!("a symmetric matrix of {dim} rows"),
                found: square.as_slice().len(),
                expected: dim.saturating_mul(dim),
            });
        }
        square.check_finite()?;
        let mut packed = Vec::with_capacity(triangle(dim));
        for i in 0..dim {
            for j in 0..=i {
                let (lower, upper) = (square.get(i, j).to_f64(), square.get(j, i).to_f64());
                let scale = (square.get(i, i).to_f64().abs() * square.get(j, j).to_f64().abs())
                    .sqrt()
                    .max(lower.abs());
                if (lower - upper).abs() > SYMMETRY * scale {
                    return Err(Error::NotSymmetric {
                        row: j,
                        column: i,
                        upper,
                        lower,
                    });
                }
                packed.push(lower / 2.0 + upper / 2.0);
            }
        }
        Ok(Self { dim, packed })
    }

    /// Number of rows and of columns.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The packed lower triangle.
    pub fn packed(&self) -> &[f64] {
        &self.packed
    }

    /// Elements (i, 0) to (i, i).
    pub fn row(&self, i: usize) -> &[f64] {
        &self.packed[triangle(i)..triangle(i + 1)]
    }

    /// Element (i, j).
    pub fn get(&self, i: usize, j: usize) -> f64 {
        self.row(i.max(j))[i.min(j)]
    }

    /// The diagonal.
    pub fn diagonal(&self) -> Vec<f64> {
        (0..self.dim).map(|i| self.row(i)[i]).collect()
    }

    /// The sum of the diagonal.
    pub fn trace(&self) -> f64 {
        self.diagonal().iter().sum()
    }

    /// Adds Σ x xᵀ over the rows x of `data`, each of [`dim`](Self::dim) numbers.
    ///
    /// # Errors
    /// If the data are no whole number of rows or not finite; nothing is added then. If a sum leaves the range of the
    /// data's type.
    pub fn add_rows<T: Real>(&mut self, data: &[T]) -> Result<()> {
        let d = self.dim;
        if d == 0 || !data.len().is_multiple_of(d) {
            return Err(Error::Size {
                what: format!("rows of {d}"),
                found: data.len(),
                expected: data.len().next_multiple_of(d.max(1)),
            });
        }
        check_finite(data, d)?;
        let n = data.len() / d;
        let x = MatRef::from_row_major_slice(data, n, d);
        let mut panels = Vec::new();
        let mut rest = &mut self.packed[..];
        for first in (0..d).step_by(PANEL) {
            let end = (first + PANEL).min(d);
            let (panel, tail) = rest.split_at_mut(triangle(end) - triangle(first));
            panels.push((first, end, panel));
            rest = tail;
        }
        // The widest panels first, so that the last thread to finish has little left.
        panels
            .into_par_iter()
            .rev()
            .for_each(|(first, end, panel)| {
                let mut part = vec![T::default(); (end - first) * end];
                for from in (0..n).step_by(BATCH) {
                    let batch = x.subrows(from, BATCH.min(n - from));
                    let own = batch.subcols(first, end - first).transpose();
                    let others = batch.subcols(0, end);
                    product_into_rows(&mut part, end, Accum::Replace, own, others, 1.0);
                    let mut sums = &mut panel[..];
                    for (i, row) in part.chunks(end).enumerate() {
                        let (sum, tail) = sums.split_at_mut(first + i + 1);
                        for (sum, x) in sum.iter_mut().zip(row) {
                            *sum += x.to_f64();
                        }
                        sums = tail;
                    }
                }
            });
        // Products of finite rows can overflow; a Gram that is not finite is of no use to anybody.
        check_finite(&self.packed, self.packed.len())
    }

    /// Adds `factor · other`.
    ///
    /// # Panics
    /// If the dimensions differ.
    pub fn add_scaled(&mut self, factor: f64, other: &Self) {
        assert_eq!(self.dim, other.dim, "dimensions differ");
        self.packed
            .par_iter_mut()
            .with_min_len(1 << 16)
            .zip(&other.packed)
            .for_each(|(sum, x)| *sum += factor * x);
    }

    /// Multiplies every element.
    pub fn scale(&mut self, factor: f64) {
        self.packed
            .par_iter_mut()
            .with_min_len(1 << 16)
            .for_each(|x| *x *= factor);
    }

    /// Multiplies row i and column i by `factors[i]`: D A D for a diagonal matrix D.
    ///
    /// # Panics
    /// If there are not [`dim`](Self::dim) factors.
    pub fn scale_both(&mut self, factors: &[f64]) {
        assert_eq!(self.dim, factors.len(), "one factor a row");
        let mut rest = self.packed.as_mut_slice();
        for (i, own) in factors.iter().enumerate() {
            let (row, after) = rest.split_at_mut(i + 1);
            for (x, factor) in row.iter_mut().zip(factors) {
                *x *= own * factor;
            }
            rest = after;
        }
    }

    /// The matrix one larger whose last row and column are `border` and whose last element is `corner`.
    ///
    /// # Panics
    /// If the border does not have [`dim`](Self::dim) numbers.
    #[must_use]
    pub fn bordered(&self, border: &[f64], corner: f64) -> Self {
        assert_eq!(self.dim, border.len(), "one number a row");
        let mut packed = Vec::with_capacity(triangle(self.dim + 1));
        packed.extend_from_slice(&self.packed);
        packed.extend_from_slice(border);
        packed.push(corner);
        Self {
            dim: self.dim + 1,
            packed,
        }
    }

    /// `factor` times the whole square.
    pub fn to_square_scaled<T: Real>(&self, factor: f64) -> Matrix<T> {
        let d = self.dim;
        let mut square = Matrix::zeros(d, d);
        if d == 0 {
            return square;
        }
        square
            .as_mut_slice()
            .par_chunks_mut(64 * d)
            .enumerate()
            .for_each(|(chunk, rows)| {
                let first = chunk * 64;
                let height = rows.len() / d;
                for (i, row) in rows.chunks_mut(d).enumerate() {
                    for (out, &x) in row.iter_mut().zip(self.row(first + i)) {
                        *out = T::from_f64(factor * x);
                    }
                }
                for below in first..d {
                    let column = self.row(below);
                    for i in 0..height.min(below - first + 1) {
                        rows[i * d + below] = T::from_f64(factor * column[first + i]);
                    }
                }
            });
        square
    }

    /// The whole square.
    pub fn to_square<T: Real>(&self) -> Matrix<T> {
        self.to_square_scaled(1.0)
    }
}

/// The Gram matrix of the smaller side, by half products: A Aᵀ if A has no more rows than columns, else AᵀA.
///
/// # Errors
/// If A is not finite or a sum overflows.
pub fn gram<T: Real>(a: &Matrix<T>) -> Result<Matrix<T>> {
    a.check_finite()?;
    let gram = if a.rows() > a.cols() {
        gram_of_rows(&a.transpose())
    } else {
        gram_of_rows(a)
    };
    gram.check_finite()?;
    Ok(gram)
}

/// A Aᵀ by half products, of numbers that nobody has looked at.
pub(crate) fn gram_of_rows<T: Real>(a: &Matrix<T>) -> Matrix<T> {
    let d = a.rows();
    let mut gram = Matrix::zeros(d, d);
    lower_triangle(
        gram.columns_mut(),
        Accum::Replace,
        a.view(),
        a.view().transpose(),
        1.0,
    );
    gram.mirror();
    gram
}

/// Writes α A B, of which the lower triangle is known to be all, or adds it; `out` holds its rows as columns. Some of the
/// upper triangle changes too.
pub(crate) fn lower_triangle<T: Real>(
    out: MatMut<'_, T>,
    accumulate: Accum,
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    alpha: f64,
) {
    let d = a.nrows();
    if d <= PANEL {
        return product_in_pieces(out, accumulate, a, b, alpha);
    }
    let half = (d / 2).next_multiple_of(GRAIN);
    let (first, between, _, second) = out.split_at_mut(half, half);
    let ((upper, lower), (left, right)) = (a.split_at_row(half), b.split_at_col(half));
    rayon::join(
        || product_in_pieces(between, accumulate, lower, left, alpha),
        || {
            rayon::join(
                || lower_triangle(first, accumulate, upper, left, alpha),
                || lower_triangle(second, accumulate, lower, right, alpha),
            )
        },
    );
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gemm;

    #[test]
    fn the_smaller_side_has_the_smaller_gram() {
        for (m, n) in [
            (3, 2100),
            (2100, 3),
            (5, 5),
            (0, 4),
            (4, 0),
            (450, 500),
            (700, 391),
        ] {
            let a = Matrix::from_fn(m, n, |i, j| ((i * 13 + j * 29) % 9) as f64 - 4.0);
            let expected = if m > n {
                gemm::mul_tn(&a, &a)
            } else {
                gemm::mul_nt(&a, &a)
            };
            assert_eq!(gram(&a).unwrap(), expected);
        }
    }

    #[test]
    fn the_gram_of_integers_is_exact_over_panels_and_batches() {
        let x = Matrix::from_fn(1500, 250, |i, j| ((i * 13 + j * 29) % 9) as f32 - 4.0);
        let mut gram = Symmetric::zeros(250);
        gram.add_rows(x.as_slice()).unwrap();
        assert_eq!(gram.to_square::<f32>(), gemm::mul_tn(&x, &x));
        assert_eq!(gram.trace(), x.dot(&x));
        assert_eq!(gram.get(3, 240), gram.get(240, 3));
    }

    #[test]
    fn the_bits_do_not_depend_on_the_number_of_threads() {
        let x = Matrix::from_fn(300, 230, |i, j| ((i * 37 + j * 101) as f32).sin());
        let gram = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let mut gram = Symmetric::zeros(230);
            let result = pool
                .build()
                .unwrap()
                .install(|| gram.add_rows(x.as_slice()));
            result.unwrap();
            gram
        };
        assert_eq!(gram(1), gram(3));
    }

    #[test]
    fn bad_data_are_refused_and_change_nothing() {
        let mut gram = Symmetric::zeros(2);
        assert!(gram.add_rows(&[1.0_f32, 2.0, 3.0]).is_err());
        assert!(gram.add_rows(&[1.0_f32, f32::NAN]).is_err());
        assert_eq!(gram, Symmetric::zeros(2));
        assert!(gram.add_rows(&[1e30_f32, 1e30]).is_err());
        assert!(Symmetric::zeros(0).add_rows(&[1.0_f32]).is_err());
        assert!(Symmetric::from_packed(3, vec![0.0; 5]).is_err());
        assert!(Symmetric::from_packed(usize::MAX, Vec::new()).is_err());
        assert!(Symmetric::from_packed(1, vec![f64::NAN]).is_err());
    }

    #[test]
    fn a_square_must_be_symmetric() {
        let square = |a: f64| Matrix::new(2, 2, vec![1.0, a, 0.5, 2.0]).unwrap();
        assert_eq!(
            Symmetric::from_square(&square(0.5)).unwrap().packed(),
            [1.0, 0.5, 2.0]
        );
        let error = Symmetric::from_square(&square(-0.5)).unwrap_err();
        assert!(error.to_string().contains("(0, 1) is -0.5"), "{error}");
        assert!(Symmetric::from_square(&Matrix::<f32>::zeros(2, 3)).is_err());
    }

    #[test]
    fn a_border_adds_one_row_and_column() {
        let gram = Symmetric::from_packed(2, vec![1.0, 2.0, 3.0]).unwrap();
        let expected = Matrix::new(3, 3, vec![1.0, 2.0, 7.0, 2.0, 3.0, 8.0, 7.0, 8.0, 9.0]);
        assert_eq!(
            gram.bordered(&[7.0, 8.0], 9.0).to_square(),
            expected.unwrap()
        );
    }

    #[test]
    fn rows_and_columns_are_scaled() {
        let mut gram = Symmetric::from_packed(2, vec![1.0, 2.0, 3.0]).unwrap();
        gram.scale_both(&[2.0, 5.0]);
        assert_eq!(gram.packed(), [4.0, 20.0, 75.0]);
    }

    proptest! {
        #[test]
        fn packing_and_unpacking_are_inverse(dim in 1_usize..150) {
            let packed: Vec<f64> = (0..triangle(dim)).map(|i| i as f64).collect();
            let gram = Symmetric::from_packed(dim, packed).unwrap();
            let square: Matrix = gram.to_square();
            prop_assert_eq!(&square, &square.transpose());
            prop_assert_eq!(Symmetric::from_square(&square).unwrap(), gram);
        }
    }
}
