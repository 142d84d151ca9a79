//! TSV-M: the leading singular vectors of every task, made orthogonal to each other.
//!
//! Of every update the k = ⌊min(m, n)/T⌋ leading singular triples are kept. With Û = [U_1 … U_T], V̂ alike and s all their
//! singular values, Δ = polar(Û) diag(s) polar(V̂)ᵀ, where polar(A) is the matrix of orthonormal columns nearest to A
//! (Gargiulo et al., *Task Singular Vectors*, CVPR 2025, arXiv 2412.00081). Triples beyond an update's numerical rank are
//! left out: they are noise, and would turn the others.
//!
//! As k is a small share of the directions, random projection finds them in a fraction of the time: a [`Sketch`].

use merganser_linalg::{Matrix, Polar, Real, Sketch, Sketched, Svd};

use crate::{Merged, NOISE, Result, Updates};

/// The merged update of one matrix; updates that are zero contribute nothing. With a sketch the triples of every task are
/// those that random projection finds.
///
/// # Errors
/// If there is no update, shapes differ, a number is not finite, or a decomposition does not converge.
pub fn tsv_m<T: Real>(
    updates: &(impl Updates<T> + ?Sized),
    sketch: Option<Sketch>,
) -> Result<Merged<T>> {
    let (m, n) = updates.shape()?;
    tsv_m_of(updates, m.min(n) / updates.tasks().max(1), sketch)
}

/// The same of the `k` leading triples of every update.
pub(crate) fn tsv_m_of<T: Real>(
    updates: &(impl Updates<T> + ?Sized),
    k: usize,
    sketch: Option<Sketch>,
) -> Result<Merged<T>> {
    let (m, n) = updates.shape()?;
    let (mut left, mut right, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let mut residual = 0.0_f64;
    for task in 0..updates.tasks() {
        let update = updates.checked(task)?;
        let found = match sketch {
            Some(sketch) => sketch.leading(&update, k, NOISE)?,
            None => Sketched {
                svd: Svd::truncated(&update, k, NOISE)?,
                residual: 0.0,
            },
        };
        residual = residual.max(found.residual);
        left.push(found.svd.left);
        right.push(found.svd.right);
        values.extend(found.svd.values);
    }
    let update = if values.is_empty() {
        Matrix::zeros(m, n)
    } else {
        let (left, right) = (Matrix::stack_rows(&left), Matrix::stack_rows(&right));
        let largest = values.iter().copied().fold(0.0, f64::max);
        let shares: Vec<f64> = values.iter().map(|x| x / largest).collect();
        let mut update: Matrix<T> = match sketch {
            // What random projection leaves out is more than single precision does.
            Some(_) => aligned::<f32>(&left.cast(), &right.cast(), &shares, Polar::coarse)?.cast(),
            None => aligned(&left, &right, &shares, Polar::of)?.cast(),
        };
        update.scale(largest);
        update
    };
    Ok(Merged {
        update,
        rank: values.len(),
        full: k * updates.tasks(),
        residual,
    })
}

/// polar(Û) diag(s) polar(V̂)ᵀ of the vectors as rows.
fn aligned<T: Real>(
    left: &Matrix<T>,
    right: &Matrix<T>,
    values: &[f64],
    polar: impl Fn(&Matrix<T>, f64) -> merganser_linalg::Result<Polar<T>>,
) -> Result<Matrix<T>> {
    let wide = left.cols() <= right.cols();
    // The shorter side is made orthonormal first: polar(Û) diag(s) is then small beside V̂.
    let (short, long) = if wide { (left, right) } else { (right, left) };
    let mut short = polar(short, NOISE)?.factor;
    short.scale_rows(values);
    let update = Polar::times(&short.transpose(), long, NOISE)?;
    Ok(if wide { update } else { update.transpose() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{distance, low_rank, update};

    fn exact(updates: &[&Matrix]) -> Matrix {
        tsv_m(updates, None).unwrap().update
    }

    #[test]
    fn random_projection_finds_what_is_there_and_says_what_is_not() {
        // Four directions and a little of everything: of fifteen tasks four directions each are kept.
        let updates: Vec<Matrix> = (1..=15)
            .map(|seed| {
                let mut with_noise = low_rank(seed, 60, 90, 4);
                with_noise.add_scaled(1e-3, &update(seed + 50, 60, 90));
                with_noise
            })
            .collect();
        let updates: Vec<&Matrix> = updates.iter().collect();
        let merged = exact(&updates);
        let found = tsv_m(&updates, Some(Sketch::default())).unwrap();
        assert!(distance(&found.update, &merged) < 1e-4 * merged.norm());
        assert!(found.residual > 1e-5 && found.residual < 1e-2);
        assert_eq!((found.rank, found.full), (60, 60));
        let low = low_rank(5, 60, 90, 4);
        let both = [&low, updates[0]];
        let found = tsv_m(&both, None).unwrap();
        assert_eq!((found.rank, found.residual), (34, 0.0));
    }

    #[test]
    fn one_task_is_itself() {
        for (m, n) in [(5, 8), (8, 5), (6, 6), (1, 4), (4, 1)] {
            let a = update(1, m, n);
            let merged = exact(&[&a]);
            assert!(distance(&merged, &a) < 1e-10 * a.norm());
        }
    }

    #[test]
    fn tasks_in_orthogonal_spaces_add_up() {
        let mut a = Matrix::zeros(6, 6);
        let mut b = Matrix::zeros(6, 6);
        for i in 0..3 {
            a.set(i, i, 1.0 + i as f64);
            b.set(i + 3, i + 3, 2.0 + i as f64);
        }
        let merged = exact(&[&a, &b]);
        let mut sum = a.clone();
        sum.add_scaled(1.0, &b);
        assert!(distance(&merged, &sum) < 1e-12);
    }

    #[test]
    fn the_singular_values_are_the_tasks_own() {
        let updates = [update(1, 6, 9), update(2, 6, 9)];
        let merged = exact(&updates.iter().collect::<Vec<_>>());
        let mut expected: Vec<f64> = updates
            .iter()
            .flat_map(|u| Svd::of(u).unwrap().values.into_iter().take(3))
            .collect();
        expected.sort_by(|a, b| b.total_cmp(a));
        for (found, expected) in Svd::of(&merged).unwrap().values.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-10);
        }
    }

    #[test]
    fn zero_updates_give_zero_and_never_nan() {
        let zero = Matrix::<f64>::zeros(4, 3);
        assert_eq!(exact(&[&zero, &zero]), zero);
        let a = update(3, 4, 3);
        assert!(exact(&[&a, &zero]).check_finite().is_ok());
        // Both tasks have the same vectors: only one of each pair is a direction of its own.
        assert!(exact(&[&a, &a]).check_finite().is_ok());
        assert!(tsv_m::<f64>(&[], None).is_err());
        // More tasks than singular values.
        assert_eq!(exact(&[&a; 5]), zero);
        assert!(tsv_m(&[&a, &update(1, 3, 4)], None).is_err());
        assert!(tsv_m(&[&Matrix::from_fn(2, 2, |_, _| f64::NAN)], None).is_err());
    }
}
