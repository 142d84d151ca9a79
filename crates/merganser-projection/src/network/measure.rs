//! What else is measured of a matrix: other bases, other merges, how the tasks' outputs lie to each other.

use std::collections::BTreeMap;

use candle_core::Tensor;
use merganser_linalg::{Matrix, Real, gemm};
use merganser_model::Linear;

use super::walk::{StageWalk, forward};
use super::{Layer, Mask, NetworkError, linear::joined};
use crate::Problem;

/// Measures the settings' programmes and the host's rivals on a problem.
pub(super) fn linear<T: Real>(
    walk: &StageWalk<'_>,
    linear: &Linear,
    problem: &Problem<'_, T>,
    updates: &[Matrix<T>],
    base: &Matrix<T>,
    layer: &mut Layer,
) -> Result<(), NetworkError> {
    let fault = |problem| NetworkError::Layer {
        tensor: linear.weight.clone(),
        problem,
    };
    for programme in &walk.settings.measured {
        let solution = problem.solve(programme).map_err(fault)?;
        layer
            .measured
            .push((programme.basis.to_string(), solution.captured));
    }
    let rivals = |name: &str| walk.host.rivals(name).map_err(NetworkError::Host);
    let biases: BTreeMap<String, Tensor> = match &linear.bias {
        Some(bias) => rivals(bias)?.into_iter().collect(),
        None => BTreeMap::new(),
    };
    for (name, weight) in rivals(&linear.weight)? {
        let mut tensors = BTreeMap::from([(linear.weight.clone(), weight)]);
        if let (Some(bias), Some(tensor)) = (&linear.bias, biases.get(&name)) {
            tensors.insert(bias.clone(), tensor.clone());
        }
        let mut update: Matrix<T> =
            joined(linear, &tensors, linear.bias.is_some()).map_err(forward(&name))?;
        update.add_scaled(-1.0, base);
        layer
            .measured
            .push((name, problem.evaluate(&update).map_err(fault)?));
    }
    if !walk.settings.measured.is_empty() {
        layer.output_cosine = Some(output_cosine(problem.gram(), updates));
    }
    Ok(())
}

/// Cosines of the task's residual outputs on the samples of all: tr(Δ_s G Δ_tᵀ) / √(tr(Δ_s G Δ_sᵀ) tr(Δ_t G Δ_tᵀ)); 0
/// where a task changes nothing.
fn output_cosine<T: Real>(gram: &Matrix<T>, updates: &[Matrix<T>]) -> Matrix {
    let products: Vec<Matrix<T>> = updates
        .iter()
        .map(|update| gemm::mul(update, gram))
        .collect();
    let inner = Matrix::from_fn(updates.len(), updates.len(), |s, t| {
        products[s].dot(&updates[t])
    });
    Matrix::from_fn(updates.len(), updates.len(), |s, t| {
        let norm = (inner.get(s, s) * inner.get(t, t)).sqrt();
        if norm > 0.0 {
            (inner.get(s, t) / norm).clamp(-1.0, 1.0)
        } else {
            0.0
        }
    })
}

/// The updates with some of their entries set to 0.
pub(super) fn masked<T: Real>(updates: &[Matrix<T>], mask: Mask) -> Vec<Matrix<T>> {
    match mask {
        Mask::Magnitude(density) => updates
            .iter()
            .map(|update| largest(update, density))
            .collect(),
        Mask::Random(density, seed) => updates
            .iter()
            .enumerate()
            .map(|(t, update)| random(update, density, seed.wrapping_add(t as u64)))
            .collect(),
        Mask::Sign(density) => {
            let kept: Vec<Matrix<T>> = updates
                .iter()
                .map(|update| largest(update, density))
                .collect();
            let mut sum = kept[0].clone();
            for update in &kept[1..] {
                sum.add_scaled(1.0, update);
            }
            let agrees = |x: T, sum: T| x.to_f64() * sum.to_f64() > 0.0;
            kept.iter()
                .map(|update| select(update, |i, j| agrees(update.get(i, j), sum.get(i, j))))
                .collect()
        }
        Mask::Magmax => (0..updates.len())
            .map(|t| {
                select(&updates[t], |i, j| {
                    let own = updates[t].get(i, j).to_f64().abs();
                    // Of equal magnitudes the later task's counts.
                    updates.iter().enumerate().all(|(s, other)| {
                        let other = other.get(i, j).to_f64().abs();
                        own > other || own == other && s <= t
                    })
                })
            })
            .collect(),
    }
}

fn select<T: Real>(update: &Matrix<T>, keep: impl Fn(usize, usize) -> bool) -> Matrix<T> {
    Matrix::from_fn(update.rows(), update.cols(), |i, j| {
        if keep(i, j) {
            update.get(i, j)
        } else {
            T::default()
        }
    })
}

/// The given share of entries of the largest magnitudes; of equal ones at the limit, all.
fn largest<T: Real>(update: &Matrix<T>, density: f64) -> Matrix<T> {
    let mut magnitudes: Vec<f64> = update.as_slice().iter().map(|x| x.to_f64().abs()).collect();
    let kept = (magnitudes.len() as f64 * density).round() as usize;
    if kept == 0 {
        return Matrix::zeros(update.rows(), update.cols());
    }
    let at = magnitudes.len() - kept.min(magnitudes.len());
    let (_, limit, _) = magnitudes.select_nth_unstable_by(at, f64::total_cmp);
    let limit = *limit;
    select(update, |i, j| update.get(i, j).to_f64().abs() >= limit)
}

/// Entries at random, each with the probability `density`.
fn random<T: Real>(update: &Matrix<T>, density: f64, seed: u64) -> Matrix<T> {
    let cols = update.cols() as u64;
    select(update, |i, j| {
        uniform(seed, i as u64 * cols + j as u64) < density
    })
}

/// A number in [0, 1) that depends on nothing but its arguments (SplitMix64).
fn uniform(seed: u64, index: u64) -> f64 {
    let mut z = seed
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(index.wrapping_add(1).wrapping_mul(0xd1b5_4a32_d192_ed03));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(seed: u64) -> Matrix {
        Matrix::from_fn(4, 5, |i, j| uniform(seed, (i * 5 + j) as u64) - 0.5)
    }

    fn kept(matrix: &Matrix) -> usize {
        matrix.as_slice().iter().filter(|x| **x != 0.0).count()
    }

    #[test]
    fn masks_keep_their_share() {
        let updates = [update(1), update(2)];
        for matrix in masked(&updates, Mask::Magnitude(0.25)) {
            assert_eq!(kept(&matrix), 5);
        }
        assert_eq!(kept(&masked(&updates, Mask::Magnitude(0.0))[0]), 0);
        assert_eq!(masked(&updates, Mask::Magnitude(1.0)), updates);
        assert_eq!(masked(&updates, Mask::Random(1.0, 3)), updates);
    }

    #[test]
    fn magmax_shares_every_entry_out_once() {
        let updates = [update(1), update(2), update(1)];
        let masked = masked(&updates, Mask::Magmax);
        let all: usize = masked.iter().map(kept).sum();
        assert_eq!(all, 20);
        assert_eq!(kept(&masked[0]), 0, "the later of two equal tasks wins");
    }

    #[test]
    fn elected_signs_agree() {
        let updates = [update(1), update(2), update(3)];
        let masked = masked(&updates, Mask::Sign(0.6));
        for k in 0..20 {
            let signs: Vec<f64> = masked
                .iter()
                .map(|m| m.as_slice()[k])
                .filter(|x| *x != 0.0)
                .collect();
            assert!(signs.windows(2).all(|w| w[0] * w[1] > 0.0), "{signs:?}");
        }
    }
}
