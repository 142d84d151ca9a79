//! Which entries of the task vectors basis `sparse` keeps.

use merganser_kernels::mask::Stream;
use merganser_linalg::{Matrix, Real};

/// Which entries of the task vectors basis `sparse` keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mask {
    /// This share of each, the largest magnitudes.
    Magnitude(f64),
    /// This share of each, at random by this seed.
    Random(f64, u64),
    /// This share of each by magnitude, and of those the entries with the sign of the sum of all.
    Sign(f64),
    /// Of every entry the largest magnitude over the tasks.
    Magmax,
}

/// The updates with some of their entries set to 0.
pub(super) fn masked<T: Real>(updates: &[Matrix<T>], mask: Mask, tensor: &str) -> Vec<Matrix<T>> {
    match mask {
        Mask::Magnitude(density) => updates
            .iter()
            .map(|update| largest(update, density))
            .collect(),
        Mask::Random(density, seed) => updates
            .iter()
            .enumerate()
            .map(|(t, update)| random(update, density, &Stream::new(seed, tensor, t as u32)))
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
fn random<T: Real>(update: &Matrix<T>, density: f64, stream: &Stream) -> Matrix<T> {
    let mut keep = vec![0.0; update.as_slice().len()];
    stream.keep_mask(0, density as f32, &mut keep);
    select(update, |i, j| keep[i * update.cols() + j] != 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(seed: u64) -> Matrix {
        let mut numbers = [0.0; 20];
        Stream::new(seed, "update", 0).uniform(0, &mut numbers);
        Matrix::from_fn(4, 5, |i, j| f64::from(numbers[i * 5 + j]) - 0.5)
    }

    fn kept(matrix: &Matrix) -> usize {
        matrix.as_slice().iter().filter(|x| **x != 0.0).count()
    }

    #[test]
    fn masks_keep_their_share() {
        let updates = [update(1), update(2)];
        for matrix in masked(&updates, Mask::Magnitude(0.25), "w") {
            assert_eq!(kept(&matrix), 5);
        }
        assert_eq!(kept(&masked(&updates, Mask::Magnitude(0.0), "w")[0]), 0);
        assert_eq!(masked(&updates, Mask::Magnitude(1.0), "w"), updates);
        assert_eq!(masked(&updates, Mask::Random(1.0, 3), "w"), updates);
    }

    #[test]
    fn random_masks_are_their_own_for_every_tensor_and_task() {
        let updates = [update(1), update(1)];
        let of = |tensor| masked(&updates, Mask::Random(0.5, 7), tensor);
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
        assert_ne!(of("a")[0], of("a")[1]);
    }

    #[test]
    fn magmax_shares_every_entry_out_once() {
        let updates = [update(1), update(2), update(1)];
        let masked = masked(&updates, Mask::Magmax, "w");
        let all: usize = masked.iter().map(kept).sum();
        assert_eq!(all, 20);
        assert_eq!(kept(&masked[0]), 0, "the later of two equal tasks wins");
    }

    #[test]
    fn elected_signs_agree() {
        let updates = [update(1), update(2), update(3)];
        let masked = masked(&updates, Mask::Sign(0.6), "w");
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
