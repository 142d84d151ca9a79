//! Exponentials, logarithms and what merge methods build on them, with the same bits on every machine.
//!
//! The functions of the C library differ between platforms, so these are our own: range reduction and a polynomial in
//! f64, accurate to a few units in the last place, written so that loops over them vectorise.

#![allow(clippy::inline_always)] // see simd.rs: inlining carries the target features

use crate::keys::ordered_key;
use std::f64::consts::LOG2_E;

const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// 1/k! for k = 13 down to 0.
const INVERSE_FACTORIALS: [f64; 14] = [
    1.0 / 6_227_020_800.0,
    1.0 / 479_001_600.0,
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5_040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];

#[inline(always)]
fn horner<const N: usize>(coefficients: &[f64; N], x: f64) -> f64 {
    let mut sum = coefficients[0];
    for &coefficient in &coefficients[1..] {
        sum = sum * x + coefficient;
    }
    sum
}

/// eˣ; arguments below −708 and above 709 are taken for these.
#[inline(always)]
pub fn exp(x: f64) -> f64 {
    // Adding 1.5·2⁵² leaves the nearest integer in the low bits.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    let x = x.clamp(-708.0, 709.0);
    let shifted = x * LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    horner(&INVERSE_FACTORIALS, r) * power
}

/// ln x of a positive, finite, normal x.
#[inline(always)]
pub fn ln(x: f64) -> f64 {
    /// The bits of √½.
    const ROOT: u64 = 0x3fe6_a09e_667f_3bcd;
    /// 2/(2k + 1) for k = 11 down to 0.
    const SERIES: [f64; 12] = [
        2.0 / 23.0,
        2.0 / 21.0,
        2.0 / 19.0,
        2.0 / 17.0,
        2.0 / 15.0,
        2.0 / 13.0,
        2.0 / 11.0,
        2.0 / 9.0,
        2.0 / 7.0,
        2.0 / 5.0,
        2.0 / 3.0,
        2.0,
    ];
    let bits = x.to_bits();
    let k = (bits.wrapping_sub(ROOT) as i64) >> 52;
    // √½ ≤ m < √2
    let m = f64::from_bits(bits.wrapping_sub((k as u64) << 52));
    let k = f64::from(k as i32);
    let s = (m - 1.0) / (m + 1.0);
    k * LN2_HIGH + (k * LN2_LOW + s * horner(&SERIES, s * s))
}

/// Below this, [`tanh`] is a series; above, a quotient of exponentials.
const NEAR: f64 = 0.2;

/// tanh x for |x| < [`NEAR`].
#[inline(always)]
fn tanh_near(x: f64) -> f64 {
    /// The coefficients of x¹⁵ down to x.
    const SERIES: [f64; 8] = [
        -929_569.0 / 638_512_875.0,
        21_844.0 / 6_081_075.0,
        -1_382.0 / 155_925.0,
        62.0 / 2_835.0,
        -17.0 / 315.0,
        2.0 / 15.0,
        -1.0 / 3.0,
        1.0,
    ];
    x * horner(&SERIES, x * x)
}

/// tanh x, relatively accurate near 0 as well.
#[inline(always)]
pub fn tanh(x: f64) -> f64 {
    let e = exp(-2.0 * x.abs());
    let far = ((1.0 - e) / (1.0 + e)).copysign(x);
    if x.abs() < NEAR { tanh_near(x) } else { far }
}

const LANES: usize = 16;

/// Σ term(a_i, b_i): lane i mod 16, lanes folded in halves.
#[inline(always)]
fn lane_sum(a: &[f32], b: &[f32], term: impl Fn(f64, f64) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for k in 0..LANES {
            lanes[k] += term(f64::from(a[k]), f64::from(b[k]));
        }
    }
    for (lane, (&a, &b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane += term(f64::from(a), f64::from(b));
    }
    let mut half = LANES / 2;
    while half > 0 {
        for k in 0..half {
            lanes[k] += lanes[k + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn largest(x: &[f32]) -> f64 {
    f64::from(
        x.iter()
            .fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max }),
    )
}

kernel! {
    /// Σ p ln(p / q) with p = softmax(x) + ε and q = softmax(b) + ε: nearly the Kullback-Leibler divergence of the two
    /// softmax distributions; 0 of empty slices.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn softmax_divergence(x: &[f32], b: &[f32], epsilon: f64) -> f64 {
        assert_eq!(x.len(), b.len(), "softmax_divergence: lengths differ");
        let (x_max, b_max) = (largest(x), largest(b));
        let x_share = 1.0 / lane_sum(x, x, |x, _| exp(x - x_max));
        let b_share = 1.0 / lane_sum(b, b, |b, _| exp(b - b_max));
        lane_sum(x, b, |x, b| {
            let p = exp(x - x_max) * x_share + epsilon;
            let q = exp(b - b_max) * b_share + epsilon;
            p * ln(p / q)
        })
    }
}

kernel! {
    /// out = a where the [`ordered_key`] of the score is at least `threshold`, else b.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn choose(out: &mut [f32], a: &[f32], b: &[f32], scores: &[f32], threshold: u32) {
        let len = out.len();
        assert!(a.len() == len && b.len() == len && scores.len() == len, "choose: lengths differ");
        for (((out, &a), &b), &score) in out.iter_mut().zip(a).zip(b).zip(scores) {
            *out = if ordered_key(score) >= threshold { a } else { b };
        }
    }
}

kernel! {
    /// out = |a − b| · s.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn scaled_distance(out: &mut [f32], a: &[f32], b: &[f32], s: f32) {
        assert!(a.len() == out.len() && b.len() == out.len(), "scaled_distance: lengths differ");
        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
            *out = (a - b).abs() * s;
        }
    }
}

/// The numbers of one task in the parameter competition of PCB merging.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Competitor {
    /// The range to which its magnitudes are clamped.
    pub magnitudes: (f32, f32),
    /// The range to which its balance is clamped.
    pub balances: (f32, f32),
}

/// 1/(high − low), or 0 of an empty range: what is constant then counts as its lower end.
#[inline(always)]
fn inverse_range((low, high): (f32, f32)) -> f64 {
    let range = f64::from(high) - f64::from(low);
    if range > 0.0 { 1.0 / range } else { 0.0 }
}

kernel! {
    /// out = exp(T m²) · tanh(d · total): the balance of each element of task vector d, where m is its magnitude clamped
    /// and brought to [0, 1], `total` the sum of all task vectors and T their number.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn balance(out: &mut [f32], delta: &[f32], total: &[f32], magnitudes: (f32, f32), tasks: f64) {
        assert!(delta.len() == out.len() && total.len() == out.len(), "balance: lengths differ");
        let (low, high) = magnitudes;
        let scale = inverse_range(magnitudes);
        let intra = |d: f32| {
            let m = (f64::from(d.abs().min(high).max(low)) - f64::from(low)) * scale;
            exp(tasks * (m * m))
        };
        let inter = |d: f32, total: f32| f64::from(d) * f64::from(total);
        for ((out, delta), total) in out.chunks_mut(512).zip(delta.chunks(512)).zip(total.chunks(512)) {
            // Products of task vectors are small, so the series nearly always does for a whole block.
            let near = delta.iter().zip(total).all(|(&d, &total)| inter(d, total).abs() < NEAR);
            let cells = out.iter_mut().zip(delta).zip(total);
            if near {
                for ((out, &d), &total) in cells {
                    *out = (intra(d) * tanh_near(inter(d, total))) as f32;
                }
            } else {
                for ((out, &d), &total) in cells {
                    *out = (intra(d) * tanh(inter(d, total))) as f32;
                }
            }
        }
    }
}

kernel! {
    /// Adds β · sign(d) · clamp(|d|) to `mixed` and β to `divisor`, with β the given balance clamped and brought to [0, 1].
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_competitor(
        mixed: &mut [f32], divisor: &mut [f32], delta: &[f32], balances: &[f32], competitor: &Competitor,
    ) {
        let len = mixed.len();
        assert!(divisor.len() == len && delta.len() == len && balances.len() == len, "add_competitor: lengths differ");
        let (low, high) = competitor.magnitudes;
        let (least, most) = competitor.balances;
        let scale = inverse_range(competitor.balances) as f32;
        for (j, (mixed, divisor)) in mixed.iter_mut().zip(divisor).enumerate() {
            let d = delta[j];
            let share = (balances[j].min(most).max(least) - least) * scale;
            let magnitude = d.abs().min(high).max(low);
            *mixed += share * if d == 0.0 { 0.0 } else { magnitude.copysign(d) };
            *divisor += share;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bits, LENGTHS, at_all_levels, canonical};
    use proptest::prelude::*;

    #[test]
    fn levels_agree() {
        let mut bits = Bits::new(31);
        for len in LENGTHS {
            let (a, b) = (bits.weights(len), bits.weights(len));
            at_all_levels(|| {
                let mut out = vec![0.0; 4 * len];
                let (distance, rest) = out.split_at_mut(len);
                let (balances, rest) = rest.split_at_mut(len);
                let (mixed, divisor) = rest.split_at_mut(len);
                scaled_distance(distance, &a, &b, -0.7);
                balance(balances, &a, &b, (0.01, 0.2), 3.0);
                let competitor = Competitor {
                    magnitudes: (0.01, 0.2),
                    balances: (0.001, 0.1),
                };
                add_competitor(mixed, divisor, &a, balances, &competitor);
                (canonical(&out), softmax_divergence(&a, &b, 1e-8).to_bits())
            });
        }
    }

    #[test]
    fn divergence_of_known_distributions() {
        assert_eq!(softmax_divergence(&[], &[], 1e-8), 0.0);
        assert_eq!(softmax_divergence(&[3.0], &[-2.0], 1e-8), 0.0);
        let x = [0.3, -0.1, 2.0, 1000.0];
        assert_eq!(softmax_divergence(&x, &x, 1e-8), 0.0);
        let thirds = [f32::ln(2.0), 0.0];
        let expected = 2.0 / 3.0 * (4.0f64 / 3.0).ln() + 1.0 / 3.0 * (2.0f64 / 3.0).ln();
        assert!((softmax_divergence(&thirds, &[0.0, 0.0], 0.0) - expected).abs() < 1e-7);
    }

    #[test]
    fn an_empty_range_competes_for_nothing() {
        let (mut mixed, mut divisor) = ([0.0; 2], [0.0; 2]);
        add_competitor(
            &mut mixed,
            &mut divisor,
            &[0.0, 1.0],
            &[0.0, 0.0],
            &Competitor::default(),
        );
        assert_eq!((mixed, divisor), ([0.0; 2], [0.0; 2]));
    }

    proptest! {
        #[test]
        fn functions_agree_with_the_standard_library(x in -700.0f64..700.0, y in -30.0f64..30.0, z in -1.0f64..1.0) {
            prop_assert!((exp(x) / x.exp() - 1.0).abs() < 1e-14);
            let positive = (x / 2.0).exp();
            prop_assert!((ln(positive) - positive.ln()).abs() <= 1e-15 * positive.ln().abs() + 1e-16);
            let close = 1.0 + y * 1e-9;
            prop_assert!((ln(close) - (close - 1.0).ln_1p()).abs() < 1e-22);
            for t in [y, z, z * 1e-9] {
                prop_assert!((tanh(t) - t.tanh()).abs() <= 1e-13 * t.tanh().abs());
            }
        }
    }
}
