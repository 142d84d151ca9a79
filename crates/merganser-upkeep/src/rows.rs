//! Samples as the rows of a matrix.

use merganser_linalg::Matrix;

/// Their mean.
pub(crate) fn mean(rows: &Matrix) -> Vec<f64> {
    let mut mean = vec![0.0; rows.cols()];
    for i in 0..rows.rows() {
        for (mean, x) in mean.iter_mut().zip(rows.row(i)) {
            *mean += x;
        }
    }
    for x in &mut mean {
        *x /= rows.rows() as f64;
    }
    mean
}

/// The rows minus their mean.
pub(crate) fn centred(rows: &Matrix, mean: &[f64]) -> Matrix {
    let mut out = rows.clone();
    for i in 0..out.rows() {
        for (x, mean) in out.row_mut(i).iter_mut().zip(mean) {
            *x -= mean;
        }
    }
    out
}
