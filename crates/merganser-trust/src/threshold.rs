//! How far the matrix of a head can be compressed before a prediction can change, without trying.
//!
//! Compression is a change ΔW of known size; a prediction whose [radius](crate::head::Radii) is larger cannot flip.
//!
//! | compression | size of ΔW | certified if |
//! |---|---|---|
//! | truncation to rank r | ‖ΔW‖₂ = σ_{r+1}; ‖ΔW‖_F = √(Σ_{k>r} σ_k²) | size < γ / (√2 ‖z‖) |
//! | rounding to b bits, symmetric, one scale, step = max∣W∣ / (2^{b−1} − 1) | max∣ΔW∣ ≤ step / 2; ‖ΔW‖_F ≤ step / 2 · √(number of elements) | step < γ / ‖z‖₁; or the norm < γ / (√2 ‖z‖) |
//! | pruning the share p of smallest magnitude | ‖ΔW‖_F = √(Σ pruned²) | size < γ / (√2 ‖z‖) |
//!
//! Every line is sound; where there are two, the first is at least as sharp for a rank and usually so for bits. Evans and
//! Tanner (arXiv 2601.16880) use the Frobenius norms; the spectral and entry-wise ones are ours.

use merganser_linalg::{Matrix, Svd, gemm};

use crate::error::{Error, Result};

/// Fewest bits of a symmetric grid: −1, 0, 1.
pub const MIN_BITS: u32 = 2;
/// Most bits that are tried.
pub const MAX_BITS: u32 = 16;

/// What truncation takes away from a matrix, by the rank that is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Tails {
    /// ‖W − W_r‖₂ = σ_{r+1}, r = 0 … min(m, n).
    pub spectral: Vec<f64>,
    /// ‖W − W_r‖_F, r = 0 … min(m, n).
    pub frobenius: Vec<f64>,
    svd: Svd,
}

impl Tails {
    /// Decomposes a matrix.
    ///
    /// # Errors
    /// If it is not finite or the decomposition does not converge.
    pub fn of(weight: &Matrix) -> Result<Self> {
        let svd = Svd::of(weight)?;
        // Every computed value may be too small by the rounding of the largest one.
        let size = (weight.rows() + weight.cols()) as f64;
        let rounding = 16.0 * size * f64::EPSILON * svd.values.first().copied().unwrap_or(0.0);
        let whole = svd.values.len();
        let raised = |s: f64| s + rounding;
        let mut spectral: Vec<f64> = svd.values.iter().map(|&s| raised(s)).collect();
        let mut frobenius = vec![0.0; whole];
        let mut squares = 0.0;
        for (r, &s) in svd.values.iter().enumerate().rev() {
            squares += raised(s).powi(2);
            frobenius[r] = squares.sqrt();
        }
        // Nothing is left out of the whole matrix.
        spectral.push(0.0);
        frobenius.push(0.0);
        Ok(Self {
            spectral,
            frobenius,
            svd,
        })
    }

    /// The matrix of rank `rank` nearest to the one that was decomposed.
    #[must_use]
    pub fn truncated(&self, rank: usize) -> Matrix {
        let kept = self.svd.leading(rank);
        let mut right = kept.right;
        right.scale_rows(&kept.values);
        gemm::mul_tn(&kept.left, &right)
    }

    /// The smallest rank whose tail is below `radius`; `None` if not even the whole matrix is (a radius of 0).
    pub fn smallest_rank(tail: &[f64], radius: f64) -> Option<usize> {
        tail.iter().position(|&tail| tail < radius)
    }
}

/// The step of a symmetric grid of `bits` bits with one scale for all elements: max∣W∣ / (2^{b−1} − 1).
///
/// # Errors
/// If `bits` is not in 2 to 16.
pub fn quantization_step(weight: &Matrix, bits: u32) -> Result<f64> {
    if !(MIN_BITS..=MAX_BITS).contains(&bits) {
        return Err(Error::Range {
            what: "the number of bits".into(),
            found: f64::from(bits),
            expected: "from 2 to 16",
        });
    }
    let largest = weight
        .as_slice()
        .iter()
        .fold(0.0_f64, |m, x| m.max(x.abs()));
    Ok(largest / f64::from((1_u32 << (bits - 1)) - 1))
}

/// The matrix on the grid of [`quantization_step`], rounded to nearest, ties to even.
///
/// # Errors
/// Those of [`quantization_step`].
pub fn quantized(weight: &Matrix, bits: u32) -> Result<Matrix> {
    let step = quantization_step(weight, bits)?;
    Ok(Matrix::from_fn(weight.rows(), weight.cols(), |i, j| {
        if step == 0.0 {
            0.0
        } else {
            (weight.get(i, j) / step).round_ties_even() * step
        }
    }))
}

/// The fewest bits with step < `limit`, where `limit` is 2 · the max-norm radius; `None` if 16 are not enough.
pub fn fewest_bits(weight: &Matrix, limit: f64) -> Option<u32> {
    (MIN_BITS..=MAX_BITS).find(|&bits| {
        quantization_step(weight, bits).is_ok_and(|step| step * (1.0 + 4.0 * f64::EPSILON) < limit)
    })
}

/// The fewest bits with step / 2 · √(number of elements) < `radius`, a Frobenius radius; `None` if 16 are not enough.
pub fn fewest_bits_frobenius(weight: &Matrix, radius: f64) -> Option<u32> {
    let root = (weight.as_slice().len() as f64).sqrt();
    (MIN_BITS..=MAX_BITS).find(|&bits| {
        quantization_step(weight, bits)
            .is_ok_and(|step| step / 2.0 * root * (1.0 + 8.0 * f64::EPSILON) < radius)
    })
}

/// What pruning by magnitude takes away.
#[derive(Debug, Clone, PartialEq)]
pub struct Pruning {
    /// Magnitudes in ascending order.
    magnitudes: Vec<f64>,
    /// Root of the sum of squares of the first k.
    norms: Vec<f64>,
}

impl Pruning {
    /// Sorts the elements of a matrix.
    #[must_use]
    pub fn of(weight: &Matrix) -> Self {
        let mut magnitudes: Vec<f64> = weight.as_slice().iter().map(|x| x.abs()).collect();
        magnitudes.sort_by(f64::total_cmp);
        let mut norms = vec![0.0];
        let mut squares = 0.0_f64;
        for x in &magnitudes {
            squares += x * x;
            norms.push(squares.sqrt() * (1.0 + magnitudes.len() as f64 * f64::EPSILON));
        }
        Self { magnitudes, norms }
    }

    /// Elements that the share `share` means: rounded to nearest, ties to even.
    ///
    /// # Errors
    /// If `share` is not in 0 to 1.
    pub fn count(&self, share: f64) -> Result<usize> {
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::Range {
                what: "the share of pruned weights".into(),
                found: share,
                expected: "from 0 to 1",
            });
        }
        Ok((share * self.magnitudes.len() as f64).round_ties_even() as usize)
    }

    /// ‖ΔW‖_F of pruning the `count` smallest.
    pub fn norm(&self, count: usize) -> f64 {
        self.norms[count.min(self.magnitudes.len())]
    }

    /// The largest share that can be pruned with ‖ΔW‖_F < `radius`.
    pub fn largest_share(&self, radius: f64) -> f64 {
        let fitting = self.norms.partition_point(|&norm| norm < radius);
        fitting.saturating_sub(1) as f64 / self.magnitudes.len().max(1) as f64
    }
}

/// The matrix without its `count` elements of smallest magnitude; of equals, the first are pruned.
#[must_use]
pub fn pruned(weight: &Matrix, count: usize) -> Matrix {
    let mut order: Vec<usize> = (0..weight.as_slice().len()).collect();
    let magnitude = |i: usize| weight.as_slice()[i].abs();
    order.sort_by(|&i, &j| magnitude(i).total_cmp(&magnitude(j)));
    let mut out = weight.clone();
    for &i in order.iter().take(count) {
        out.as_mut_slice()[i] = 0.0;
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::head::{Head, Threat};
    use crate::norm::spectral_upper;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn what_is_certified_never_flips(
            w in prop::collection::vec(-2.0..2.0, 24),
            z in prop::collection::vec(-2.0..2.0, 6),
        ) {
            let weight = Matrix::new(4, 6, w).unwrap();
            let head = Head::new(weight.clone(), None).unwrap();
            let radii = head.radii(&z, Threat::default()).unwrap();
            let predicts = |weight: Matrix| {
                let other = Head::new(weight, None).unwrap();
                other.radii(&z, Threat::default()).unwrap().prediction
            };
            let tails = Tails::of(&weight).unwrap();
            for tail in [&tails.spectral, &tails.frobenius] {
                if let Some(rank) = Tails::smallest_rank(tail, radii.frobenius) {
                    for rank in rank..=4 {
                        prop_assert_eq!(predicts(tails.truncated(rank)), radii.prediction);
                    }
                }
            }
            let by_max = fewest_bits(&weight, 2.0 * radii.max);
            let by_norm = fewest_bits_frobenius(&weight, radii.frobenius);
            for bits in [by_max, by_norm].into_iter().flatten() {
                for bits in bits..=MAX_BITS {
                    prop_assert_eq!(predicts(quantized(&weight, bits).unwrap()), radii.prediction);
                }
            }
            let pruning = Pruning::of(&weight);
            let count = pruning.count(pruning.largest_share(radii.frobenius)).unwrap();
            if radii.frobenius > 0.0 {
                for count in 0..=count {
                    prop_assert_eq!(predicts(pruned(&weight, count)), radii.prediction);
                }
            }
        }

        #[test]
        fn sizes_are_those_of_the_change(w in prop::collection::vec(-2.0..2.0, 15)) {
            let weight = Matrix::new(3, 5, w).unwrap();
            let change = |other: Matrix| {
                let mut other = other;
                other.add_scaled(-1.0, &weight);
                other
            };
            let tails = Tails::of(&weight).unwrap();
            for rank in 0..=3 {
                let gone = change(tails.truncated(rank));
                prop_assert!((gone.norm() - tails.frobenius[rank]).abs() < 1e-10);
                prop_assert!((spectral_upper(&gone).unwrap() - tails.spectral[rank]).abs() < 1e-10);
            }
            for bits in [2, 4, 8] {
                let step = quantization_step(&weight, bits).unwrap();
                let gone = change(quantized(&weight, bits).unwrap());
                let largest = gone.as_slice().iter().fold(0.0_f64, |m, x| m.max(x.abs()));
                prop_assert!(largest <= step / 2.0 * (1.0 + 1e-12));
            }
            let pruning = Pruning::of(&weight);
            let count = pruning.count(0.4).unwrap();
            prop_assert!((change(pruned(&weight, count)).norm() - pruning.norm(count)).abs() < 1e-12);
        }
    }

    #[test]
    fn edges() {
        let zeros = Matrix::zeros(2, 3);
        assert_eq!(quantized(&zeros, 4).unwrap(), zeros);
        assert!(quantization_step(&zeros, 1).is_err());
        let pruning = Pruning::of(&zeros);
        assert!(pruning.count(f64::NAN).is_err());
        assert_eq!(pruning.largest_share(0.0), 0.0);
        assert_eq!(pruning.largest_share(f64::INFINITY), 1.0);
        assert_eq!(Tails::smallest_rank(&[1.0, 0.0], 0.0), None);
    }
}
