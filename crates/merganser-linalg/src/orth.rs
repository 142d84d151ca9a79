//! An orthonormal basis of what some vectors span, with their numerical rank.

use crate::{Matrix, Real, Result, Svd};

/// Orthonormal rows that span the rows of `vectors`. Rows of zeros count for nothing; the others are brought to length 1
/// first, so that a direction is not lost because its vector is short. Directions with a singular value of at most
/// 4√max(rows, columns) · max(`epsilon`, ε of `T`) times the largest are left out.
///
/// # Errors
/// If the vectors are not finite or their decomposition does not converge.
pub fn orthonormal_rows<T: Real>(vectors: &Matrix<T>, epsilon: f64) -> Result<Matrix<T>> {
    vectors.check_finite()?;
    let norms: Vec<f64> = vectors.row_dots(vectors).iter().map(|x| x.sqrt()).collect();
    let kept: Vec<usize> = (0..vectors.rows()).filter(|&i| norms[i] > 0.0).collect();
    let mut unit = Matrix::zeros(kept.len(), vectors.cols());
    for (to, &from) in kept.iter().enumerate() {
        for (out, x) in unit.row_mut(to).iter_mut().zip(vectors.row(from)) {
            *out = T::from_f64(x.to_f64() / norms[from]);
        }
    }
    let svd = Svd::of(&unit)?;
    Ok(svd.right.rows_range(0, svd.rank(epsilon)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::gemm;

    #[test]
    fn the_span_is_kept_and_its_dimension_found() {
        let mut vectors = Matrix::from_fn(4, 6, |i, j| ((i + 1) * (j + 2) % 5) as f64);
        vectors.scale_rows(&[1.0, 1e-12, 0.0, 3.0]);
        let basis = orthonormal_rows(&vectors, 0.0).unwrap();
        assert_eq!(basis.rows(), 3);
        let mut gram = gemm::mul_nt(&basis, &basis);
        gram.add_scaled(-1.0, &Matrix::identity(3));
        assert!(gram.norm() < 1e-14);
        let mut rest = gemm::mul(&gemm::mul_nt(&vectors, &basis), &basis);
        rest.add_scaled(-1.0, &vectors);
        assert!(rest.row_dots(&rest)[1].sqrt() < 1e-26);
        assert!(rest.norm() < 1e-13);
    }

    #[test]
    fn nothing_spans_nothing() {
        let zeros = Matrix::<f32>::zeros(3, 5);
        assert_eq!(orthonormal_rows(&zeros, 0.0).unwrap().shape(), (0, 5));
        let none = Matrix::<f32>::zeros(0, 5);
        assert_eq!(orthonormal_rows(&none, 0.0).unwrap().shape(), (0, 5));
    }
}
