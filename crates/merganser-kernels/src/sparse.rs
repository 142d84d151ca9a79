//! Thinning of task vectors, and the merge of SCE, on one block.
//!
//! Dropping is a selection, never a product with zero, so that an infinity that is dropped leaves no NaN behind.
//!
//! The kernels of SCE follow Wan et al., "FuseChat: Knowledge Fusion of Chat Models" (2024), §3.3: the variance of the
//! task vectors picks elements, their energies weight the models, and minority signs are left out.

#![allow(clippy::inline_always)] // see simd.rs: inlining carries the target features

use crate::keys::magnitude_key;
use std::array::from_fn;

/// Elements worked on at a time, so that what is accumulated stays in L1.
const BLOCK: usize = 512;

kernel! {
    /// out = x where `low` ≤ [`magnitude_key`]`(x)` < `high`, else +0.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn retain_band(out: &mut [f32], x: &[f32], low: u32, high: u32) {
        assert_eq!(out.len(), x.len(), "retain_band: lengths differ");
        for (out, &x) in out.iter_mut().zip(x) {
            let key = magnitude_key(x);
            *out = if (key >= low) & (key < high) { x } else { 0.0 };
        }
    }
}

kernel! {
    /// out = x · factor where the factor is not 0, else +0: factors of 1 keep, other ones rescale what they keep.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn retain_scaled(out: &mut [f32], x: &[f32], factors: &[f32]) {
        assert!(x.len() == out.len() && factors.len() == out.len(), "retain_scaled: lengths differ");
        for ((out, &x), &factor) in out.iter_mut().zip(x).zip(factors) {
            let scaled = x * factor;
            *out = if factor == 0.0 { 0.0 } else { scaled };
        }
    }
}

/// The variance of `N` values, around a mean taken relative to the first one: exact where all are equal.
#[inline(always)]
fn variance_of<const N: usize>(out: &mut [f32], xs: &[&[f32]]) {
    let xs: [&[f32]; N] = from_fn(|i| &xs[i][..out.len()]);
    let share = 1.0 / N as f32;
    for (j, out) in out.iter_mut().enumerate() {
        let first = xs[0][j];
        let mut sum = 0.0;
        for x in &xs[1..] {
            sum += x[j] - first;
        }
        let mean = first + share * sum;
        let mut squares = 0.0;
        for x in xs {
            squares += (x[j] - mean) * (x[j] - mean);
        }
        *out = share * squares;
    }
}

/// As [`variance_of`], for any number of inputs.
#[inline(always)]
fn variance_of_many(out: &mut [f32], xs: &[&[f32]]) {
    let (share, first) = (1.0 / xs.len() as f32, xs[0]);
    let mut mean = [0.0f32; BLOCK];
    for (block, out) in out.chunks_mut(BLOCK).enumerate() {
        let range = block * BLOCK..block * BLOCK + out.len();
        let (first, mean) = (&first[range.clone()], &mut mean[..out.len()]);
        mean.fill(0.0);
        for x in &xs[1..] {
            for ((mean, &x), &first) in mean.iter_mut().zip(&x[range.clone()]).zip(first) {
                *mean += x - first;
            }
        }
        for (mean, &first) in mean.iter_mut().zip(first) {
            *mean = first + share * *mean;
        }
        out.fill(0.0);
        for x in xs {
            for ((out, &x), &mean) in out.iter_mut().zip(&x[range.clone()]).zip(&*mean) {
                *out += (x - mean) * (x - mean);
            }
        }
        for out in out {
            *out *= share;
        }
    }
}

kernel! {
    /// out = the population variance of the x_i, element by element; exactly 0 where all are equal, and if there is none.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn variance(out: &mut [f32], xs: &[&[f32]]) {
        assert!(xs.iter().all(|x| x.len() == out.len()), "variance: lengths differ");
        match xs.len() {
            0 | 1 => out.fill(0.0),
            2 => variance_of::<2>(out, xs),
            3 => variance_of::<3>(out, xs),
            4 => variance_of::<4>(out, xs),
            _ => variance_of_many(out, xs),
        }
    }
}

/// [`majority_mean`] of `N` task vectors from element `at` on, in registers.
#[inline(always)]
fn majority_mean_of<const N: usize>(
    out: &mut [f32],
    base: &[f32],
    deltas: &[&[f32]],
    weights: &[f32],
    floor: f32,
) {
    let deltas: [&[f32]; N] = from_fn(|i| &deltas[i][..out.len()]);
    let weights: [f32; N] = from_fn(|i| weights[i]);
    for (j, (out, &base)) in out.iter_mut().zip(base).enumerate() {
        let mut vote = 0.0;
        for delta in deltas {
            vote += delta[j];
        }
        let vote = if vote < 0.0 { -1.0 } else { 1.0 };
        let (mut mixed, mut divisor) = (0.0, 0.0);
        for i in 0..N {
            let d = deltas[i][j];
            // Written so that a NaN takes part.
            let part = if d * vote <= 0.0 { 0.0 } else { weights[i] };
            let term = part * d;
            mixed += if part == 0.0 { 0.0 } else { term };
            divisor += part;
        }
        *out = base + mixed / if divisor > floor { divisor } else { floor };
    }
}

/// As [`majority_mean_of`], for any number of task vectors.
#[inline(always)]
fn majority_mean_of_many(
    out: &mut [f32],
    base: &[f32],
    deltas: &[&[f32]],
    weights: &[f32],
    floor: f32,
) {
    let (mut votes, mut mixed, mut divisor) = ([0.0f32; BLOCK], [0.0f32; BLOCK], [0.0f32; BLOCK]);
    for (block, (out, base)) in out.chunks_mut(BLOCK).zip(base.chunks(BLOCK)).enumerate() {
        let len = out.len();
        let range = block * BLOCK..block * BLOCK + len;
        let (votes, mixed, divisor) = (&mut votes[..len], &mut mixed[..len], &mut divisor[..len]);
        votes.fill(0.0);
        mixed.fill(0.0);
        divisor.fill(0.0);
        for delta in deltas {
            for (vote, &d) in votes.iter_mut().zip(&delta[range.clone()]) {
                *vote += d;
            }
        }
        for vote in &mut *votes {
            *vote = if *vote < 0.0 { -1.0 } else { 1.0 };
        }
        for (delta, &weight) in deltas.iter().zip(weights) {
            let sums = mixed.iter_mut().zip(&mut *divisor);
            for ((&d, &vote), (mixed, divisor)) in
                delta[range.clone()].iter().zip(&*votes).zip(sums)
            {
                let part = if d * vote <= 0.0 { 0.0 } else { weight };
                *mixed += if part == 0.0 { 0.0 } else { part * d };
                *divisor += part;
            }
        }
        for (j, (out, &base)) in out.iter_mut().zip(base).enumerate() {
            *out = base
                + mixed[j]
                    / if divisor[j] > floor {
                        divisor[j]
                    } else {
                        floor
                    };
        }
    }
}

kernel! {
    /// out = base + Σ e_i d_i / max(Σ e_i, `floor`), both sums over the i whose d_i has the sign of Σ d_i (plus if that is
    /// 0) and is not 0.
    ///
    /// # Panics
    /// If the lengths differ or there is not one weight a task vector.
    pub fn majority_mean(out: &mut [f32], base: &[f32], deltas: &[&[f32]], weights: &[f32], floor: f32) {
        assert_eq!(base.len(), out.len(), "majority_mean: lengths differ");
        assert_eq!(deltas.len(), weights.len(), "one weight a task vector");
        assert!(deltas.iter().all(|delta| delta.len() == out.len()), "majority_mean: lengths differ");
        match deltas.len() {
            2 => majority_mean_of::<2>(out, base, deltas, weights, floor),
            3 => majority_mean_of::<3>(out, base, deltas, weights, floor),
            4 => majority_mean_of::<4>(out, base, deltas, weights, floor),
            _ => majority_mean_of_many(out, base, deltas, weights, floor),
        }
    }
}

kernel! {
    /// Puts `base` (plus 0) back wherever an element is not selected.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn keep_base(out: &mut [f32], base: &[f32], by: &[f32], low: u32) {
        assert!(base.len() == out.len() && by.len() == out.len(), "keep_base: lengths differ");
        for ((out, &base), &by) in out.iter_mut().zip(base).zip(by) {
            let base = base + 0.0;
            *out = if magnitude_key(by) >= low { *out } else { base };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bits, LENGTHS, at_all_levels, canonical};

    #[test]
    fn levels_agree_with_the_formulas() {
        let mut bits = Bits::new(21);
        for len in LENGTHS {
            let x = bits.patterns(len);
            let factors: Vec<f32> = bits
                .weights(len)
                .iter()
                .map(|f| if *f > 0.05 { *f } else { 0.0 })
                .collect();
            let (low, high) = (0x2000_0000, 0x6000_0000);
            let band = at_all_levels(|| {
                let mut out = vec![9.0; len];
                retain_band(&mut out, &x, low, high);
                canonical(&out)
            });
            let scaled = at_all_levels(|| {
                let mut out = vec![9.0; len];
                retain_scaled(&mut out, &x, &factors);
                canonical(&out)
            });
            let kept = at_all_levels(|| {
                let mut out = factors.clone();
                keep_base(&mut out, &x, &x, low);
                canonical(&out)
            });
            for i in 0..len {
                let key = magnitude_key(x[i]);
                let or_base = if key >= low { factors[i] } else { x[i] + 0.0 };
                assert_eq!(kept[i], canonical(&[or_base])[0]);
                let kept = if low <= key && key < high { x[i] } else { 0.0 };
                assert_eq!(band[i], canonical(&[kept])[0]);
                let kept = if factors[i] == 0.0 {
                    0.0
                } else {
                    x[i] * factors[i]
                };
                assert_eq!(scaled[i], canonical(&[kept])[0]);
            }
        }
    }

    #[test]
    fn variance_and_majority_follow_their_formulas() {
        let mut bits = Bits::new(23);
        for len in LENGTHS {
            for count in 1..7 {
                let xs: Vec<Vec<f32>> = (0..count).map(|_| bits.weights(len)).collect();
                let xs: Vec<&[f32]> = xs.iter().map(Vec::as_slice).collect();
                let base = bits.weights(len);
                let weights: Vec<f32> = bits.weights(count).iter().map(|w| w.abs()).collect();
                let got = at_all_levels(|| {
                    let mut out = vec![9.0; 2 * len];
                    let (spread, merged) = out.split_at_mut(len);
                    variance(spread, &xs);
                    majority_mean(merged, &base, &xs, &weights, 1e-6);
                    canonical(&out)
                });
                for i in 0..len {
                    let d: Vec<f64> = xs.iter().map(|x| f64::from(x[i])).collect();
                    let mean = d.iter().sum::<f64>() / count as f64;
                    let spread = d.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / count as f64;
                    let got_spread = f64::from(f32::from_bits(got[i]));
                    assert!(
                        (got_spread - spread).abs() <= 1e-6 * spread + 1e-14,
                        "{got_spread} {spread}"
                    );
                    let votes = xs.iter().fold(0.0f32, |sum, x| sum + x[i]);
                    let sign = if votes < 0.0 { -1.0 } else { 1.0 };
                    let matching = || d.iter().zip(&weights).filter(|(d, _)| **d * sign > 0.0);
                    let mixed: f64 = matching().map(|(d, w)| d * f64::from(*w)).sum();
                    let divisor = matching()
                        .map(|(_, w)| f64::from(*w))
                        .sum::<f64>()
                        .max(1e-6);
                    let merged = f64::from(base[i]) + mixed / divisor;
                    assert!(
                        (f64::from(f32::from_bits(got[len + i])) - merged).abs()
                            <= 1e-6 * (1.0 + merged.abs())
                    );
                }
            }
        }
    }

    #[test]
    fn equal_inputs_have_no_variance() {
        let x = [0.1, -0.3, 7.7];
        let mut out = [1.0; 3];
        variance(&mut out, &[&x, &x, &x]);
        assert_eq!(out, [0.0; 3]);
        variance(&mut out, &[&x[..]; 6]);
        assert_eq!(out, [0.0; 3]);
        variance(&mut out, &[]);
        assert_eq!(out, [0.0; 3]);
    }
}
