//! WUDI-Merging (arXiv 2503.08099, ICML 2025): no data; the rows of an update span about what its layer's inputs span,
//! so Δ_tᵀΔ_t/‖Δ_t‖² stands for the Gram matrix. With H = Σ_t Δ_tᵀΔ_t/‖Δ_t‖² and C = Σ_t Δ_t Δ_tᵀΔ_t/‖Δ_t‖² the loss
//! Σ_t ‖(M − Δ_t)Δ_tᵀ‖²/‖Δ_t‖² has the gradient 2(M H − C): one product a step, however many tasks.
//!
//! As published, M starts at Σ_t Δ_t and takes 300 steps of Adam at 10⁻⁵, far from convergence: stopping early is part of
//! the method. The minimiser itself is C H⁺. Updates of zero are skipped; the published code gives NaN for them.

use merganser_linalg::{Eigen, Matrix, Real, gemm};
use rayon::prelude::*;

use crate::error::shape;
use crate::moments::{refused, symmetrised};
use crate::{Error, Result};

/// The optimiser of the published method.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WudiAdam {
    /// Steps.
    pub steps: u32,
    /// Learning rate.
    pub rate: f64,
    /// Decay of the mean of the gradient.
    pub beta1: f64,
    /// Decay of the mean of its square.
    pub beta2: f64,
    /// Added to the root of the latter.
    pub epsilon: f64,
}

impl Default for WudiAdam {
    fn default() -> Self {
        Self {
            steps: 300,
            rate: 1e-5,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
        }
    }
}

/// The merged update of one matrix, as published. It is added to the base as it is.
///
/// # Errors
/// If there is no update, shapes differ, a number is not finite, or a setting is out of range.
pub fn wudi<T: Real>(updates: &[&Matrix<T>], adam: &WudiAdam) -> Result<Matrix<T>> {
    let unit = |x: f64| (0.0..1.0).contains(&x);
    for (what, found, good, expected) in [
        (
            "the learning rate",
            adam.rate,
            adam.rate >= 0.0 && adam.rate.is_finite(),
            "a finite number of at least 0",
        ),
        (
            "beta1",
            adam.beta1,
            unit(adam.beta1),
            "at least 0 and less than 1",
        ),
        (
            "beta2",
            adam.beta2,
            unit(adam.beta2),
            "at least 0 and less than 1",
        ),
        (
            "epsilon",
            adam.epsilon,
            adam.epsilon > 0.0 && adam.epsilon.is_finite(),
            "positive",
        ),
    ] {
        if !good {
            return Err(Error::Range {
                what: what.into(),
                found,
                expected,
            });
        }
    }
    let (h, c, mut merged) = moments(updates)?;
    let (m, d) = merged.shape();
    let mut first = vec![0.0_f64; m * d];
    let mut second = vec![0.0_f64; m * d];
    let (mut power1, mut power2) = (1.0, 1.0);
    for _ in 0..adam.steps {
        power1 *= adam.beta1;
        power2 *= adam.beta2;
        let gradient = gemm::mul(&merged, &h);
        merged
            .as_mut_slice()
            .par_iter_mut()
            .with_min_len(1 << 14)
            .zip(gradient.as_slice())
            .zip(c.as_slice())
            .zip(&mut first)
            .zip(&mut second)
            .for_each(|((((x, product), c), first), second)| {
                let gradient = 2.0 * (product.to_f64() - c.to_f64());
                *first = adam.beta1 * *first + (1.0 - adam.beta1) * gradient;
                *second = adam.beta2 * *second + (1.0 - adam.beta2) * gradient * gradient;
                let mean = *first / (1.0 - power1);
                let root = (*second / (1.0 - power2)).sqrt();
                *x = T::from_f64(x.to_f64() - adam.rate * mean / (root + adam.epsilon));
            });
    }
    merged
        .check_finite()
        .map_err(|problem| refused("the merged update", problem))?;
    Ok(merged)
}

/// The minimiser of the loss, C H⁺: of least norm where the updates do not span all inputs.
///
/// # Errors
/// If there is no update, shapes differ, or a number is not finite.
pub fn wudi_closed_form<T: Real>(updates: &[&Matrix<T>]) -> Result<Matrix<T>> {
    let (h, c, _) = moments(updates)?;
    let eigen = Eigen::of(&h)?;
    let cutoff = eigen.noise(0.0);
    Ok(eigen.solve_rows(&c, cutoff))
}

/// H, C and Σ Δ_t.
fn moments<T: Real>(updates: &[&Matrix<T>]) -> Result<(Matrix<T>, Matrix<T>, Matrix<T>)> {
    let (m, d) = updates.first().ok_or(Error::NoTasks)?.shape();
    let (mut h, mut c, mut sum) = (
        Matrix::zeros(d, d),
        Matrix::zeros(m, d),
        Matrix::zeros(m, d),
    );
    for (t, update) in updates.iter().enumerate() {
        if update.shape() != (m, d) {
            return Err(shape(format!("update {t}"), update.shape(), (m, d)));
        }
        update
            .check_finite()
            .map_err(|problem| refused(&format!("update {t}"), problem))?;
        let energy = update.dot(update);
        if energy == 0.0 {
            continue;
        }
        sum.add_scaled(1.0, update);
        let mut own = gemm::mul_tn(update, update);
        own.scale(1.0 / energy);
        gemm::add_mul(&mut c, 1.0, update, &own);
        h.add_scaled(1.0, &own);
    }
    Ok((symmetrised(&h), c, sum))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_skipped_and_one_update_is_its_own_merge() {
        let update = Matrix::from_fn(4, 3, |i, j| ((i * 5 + j * 3) % 7) as f64 - 3.0);
        let zeros = Matrix::zeros(4, 3);
        let merged = wudi(&[&update, &zeros], &WudiAdam::default()).unwrap();
        let mut difference = merged;
        difference.add_scaled(-1.0, &update);
        assert!(difference.norm() < 0.01);
        assert_eq!(wudi(&[&zeros], &WudiAdam::default()).unwrap(), zeros);
        assert_eq!(wudi_closed_form(&[&zeros]).unwrap(), zeros);
        let closed = wudi_closed_form(&[&update]).unwrap();
        assert!((closed.dot(&update) - update.dot(&update)).abs() < 1e-9);
    }

    #[test]
    fn bad_settings_are_refused() {
        let update = Matrix::<f32>::identity(2);
        let bad = WudiAdam {
            beta2: 1.0,
            ..WudiAdam::default()
        };
        assert!(wudi(&[&update], &bad).is_err());
        assert!(wudi::<f32>(&[], &WudiAdam::default()).is_err());
        assert!(wudi_closed_form(&[&update, &Matrix::identity(3)]).is_err());
    }
}
