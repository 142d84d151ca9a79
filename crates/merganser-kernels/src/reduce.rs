//! Sums and counts over a slice, accumulated in `f64`, with a fixed order of additions.
//!
//! A sum of floats depends on its order, so the order is part of the definition: element i goes to lane i mod 32, each
//! lane adds in the order of its elements, and the lanes are folded in halves (lane k takes lane k + 16, then k + 8, …).
//! That is fast on any vector width and the same on all. A tensor that is reduced in chunks gives the same result for any
//! number of threads if its chunks are fixed and their partial results are added in chunk order.

#![allow(clippy::inline_always)] // see simd.rs: inlining carries the target features

use crate::keys::{key_to_magnitude, magnitude_key};

const LANES: usize = 32;

#[inline(always)]
fn fold(mut lanes: [f64; LANES]) -> f64 {
    let mut half = LANES / 2;
    while half > 0 {
        for k in 0..half {
            lanes[k] += lanes[k + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Σ term(x_i) in the fixed order.
#[inline(always)]
fn sum_of(x: &[f32], term: impl Fn(f32) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for k in 0..LANES {
            lanes[k] += term(chunk[k]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += term(x);
    }
    fold(lanes)
}

/// How many elements satisfy `test`.
#[inline(always)]
fn count_of(x: &[f32], test: impl Fn(f32) -> bool) -> u64 {
    // Blocks keep the counters of a block in 32 bits, which is what vectorises best.
    x.chunks(1 << 16)
        .map(|block| u64::from(block.iter().map(|&x| u32::from(test(x))).sum::<u32>()))
        .sum()
}

kernel! {
    /// Σ x_i.
    pub fn sum(x: &[f32]) -> f64 {
        sum_of(x, f64::from)
    }
}

kernel! {
    /// Σ |x_i|, the L1 norm.
    pub fn sum_abs(x: &[f32]) -> f64 {
        sum_of(x, |x| f64::from(x.abs()))
    }
}

kernel! {
    /// Σ x_i², the square of the L2 norm; each square is exact.
    pub fn norm_sq(x: &[f32]) -> f64 {
        sum_of(x, |x| f64::from(x) * f64::from(x))
    }
}

kernel! {
    /// Σ a_i b_i; each product is exact.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn dot(a: &[f32], b: &[f32]) -> f64 {
        assert_eq!(a.len(), b.len(), "dot: lengths differ");
        let mut lanes = [0.0; LANES];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (a, b) in a.iter().zip(b) {
            for k in 0..LANES {
                lanes[k] += f64::from(a[k]) * f64::from(b[k]);
            }
        }
        for (lane, (&a, &b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
            *lane += f64::from(a) * f64::from(b);
        }
        fold(lanes)
    }
}

kernel! {
    /// The products ⟨a, a⟩, ⟨a, b⟩ and ⟨b, b⟩ in one pass: the same numbers as three calls of [`dot`].
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn products(a: &[f32], b: &[f32]) -> [f64; 3] {
        assert_eq!(a.len(), b.len(), "products: lengths differ");
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        let (mut aa, mut ab, mut bb) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        // Half of the lanes at a time: three sums of all of them need more registers than most machines have.
        for half in [0, LANES / 2] {
            let lanes = half..half + LANES / 2;
            let mut sums = [[0.0; LANES / 2]; 3];
            for (a, b) in a.iter().zip(b) {
                for k in 0..LANES / 2 {
                    let (x, y) = (f64::from(a[half + k]), f64::from(b[half + k]));
                    sums[0][k] += x * x;
                    sums[1][k] += x * y;
                    sums[2][k] += y * y;
                }
            }
            aa[lanes.clone()].copy_from_slice(&sums[0]);
            ab[lanes.clone()].copy_from_slice(&sums[1]);
            bb[lanes].copy_from_slice(&sums[2]);
        }
        for (k, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
            let (x, y) = (f64::from(a), f64::from(b));
            aa[k] += x * x;
            ab[k] += x * y;
            bb[k] += y * y;
        }
        [fold(aa), fold(ab), fold(bb)]
    }
}

kernel! {
    /// Σ |x_i| over all elements, and Σ |x_i f_i| over those whose factor is not 0, in one pass.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn sum_abs_scaled(x: &[f32], factors: &[f32]) -> (f64, f64) {
        assert_eq!(x.len(), factors.len(), "sum_abs_scaled: lengths differ");
        let scaled = |x: f32, factor: f32| {
            let product = (x * factor).abs();
            f64::from(if factor == 0.0 { 0.0 } else { product })
        };
        let (mut all, mut kept) = ([0.0; LANES], [0.0; LANES]);
        let ((x, x_rest), (f, f_rest)) = (x.as_chunks::<LANES>(), factors.as_chunks::<LANES>());
        for (x, f) in x.iter().zip(f) {
            for k in 0..LANES {
                all[k] += f64::from(x[k].abs());
                kept[k] += scaled(x[k], f[k]);
            }
        }
        for (k, (&x, &f)) in x_rest.iter().zip(f_rest).enumerate() {
            all[k] += f64::from(x.abs());
            kept[k] += scaled(x, f);
        }
        (fold(all), fold(kept))
    }
}

kernel! {
    /// Σ x_i² over the elements where the [`magnitude_key`] of `by` is at least `low`; each square is exact.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn norm_sq_where(x: &[f32], by: &[f32], low: u32) -> f64 {
        assert_eq!(x.len(), by.len(), "norm_sq_where: lengths differ");
        let term = |x: f32, by: f32| {
            let x = f64::from(if magnitude_key(by) >= low { x } else { 0.0 });
            x * x
        };
        let mut lanes = [0.0; LANES];
        let ((x, x_rest), (by, by_rest)) = (x.as_chunks::<LANES>(), by.as_chunks::<LANES>());
        for (x, by) in x.iter().zip(by) {
            for k in 0..LANES {
                lanes[k] += term(x[k], by[k]);
            }
        }
        for (lane, (&x, &by)) in lanes.iter_mut().zip(x_rest.iter().zip(by_rest)) {
            *lane += term(x, by);
        }
        fold(lanes)
    }
}

kernel! {
    /// max |x_i|: 0 of an empty slice, NaN if there is a NaN.
    pub fn max_abs(x: &[f32]) -> f32 {
        key_to_magnitude(x.iter().fold(0, |max, &x| max.max(magnitude_key(x))))
    }
}

kernel! {
    /// How many elements differ from ±0 (a NaN does).
    pub fn count_nonzero(x: &[f32]) -> u64 {
        count_of(x, |x| x != 0.0)
    }
}

kernel! {
    /// Σ |x_i| and the number of terms, over the elements whose [`magnitude_key`] is at least `cut`.
    pub fn sum_abs_ge(x: &[f32], cut: u32) -> (f64, u64) {
        let sum = sum_of(x, |x| f64::from(if magnitude_key(x) >= cut { x.abs() } else { 0.0 }));
        (sum, count_of(x, |x| magnitude_key(x) >= cut))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bits, LENGTHS, at_all_levels};
    use proptest::prelude::*;

    fn bits(x: f64) -> u64 {
        if x.is_nan() {
            f64::NAN.to_bits()
        } else {
            x.to_bits()
        }
    }

    /// Fused reductions are those they are made of, bit by bit.
    #[test]
    fn fused_reductions_add_in_the_same_order() {
        let mut random = Bits::new(6);
        for len in LENGTHS {
            let (a, b) = (random.weights(len), random.weights(len));
            let got = at_all_levels(|| {
                let (all, kept) = sum_abs_scaled(&a, &b);
                let [aa, ab, bb] = products(&a, &b);
                let above = norm_sq_where(&a, &b, magnitude_key(0.03));
                [all, kept, aa, ab, bb, above].map(f64::to_bits)
            });
            let scaled: Vec<f32> = a.iter().zip(&b).map(|(x, f)| x * f).collect();
            let pairs = a.iter().zip(&b);
            let chosen: Vec<f32> = pairs
                .map(|(x, by)| if by.abs() >= 0.03 { *x } else { 0.0 })
                .collect();
            let expected = [
                sum_abs(&a),
                sum_abs(&scaled),
                dot(&a, &a),
                dot(&a, &b),
                dot(&b, &b),
                norm_sq(&chosen),
            ];
            assert_eq!(got, expected.map(f64::to_bits), "{len}");
        }
    }

    #[test]
    fn levels_agree_on_any_bits() {
        let mut random = Bits::new(5);
        for len in LENGTHS {
            for patterns in [true, false] {
                let mut draw = |len| {
                    if patterns {
                        random.patterns(len)
                    } else {
                        random.weights(len)
                    }
                };
                let (a, b) = (draw(len), draw(len));
                at_all_levels(|| {
                    let (ge, count) = sum_abs_ge(&a, 0x3e00_0000);
                    let sums = [
                        sum(&a),
                        sum_abs(&a),
                        norm_sq(&a),
                        dot(&a, &b),
                        ge,
                        f64::from(max_abs(&a)),
                    ];
                    (sums.map(bits), count, count_nonzero(&a))
                });
            }
        }
    }

    /// The documented order, written without chunks.
    #[test]
    fn the_order_of_additions_is_the_documented_one() {
        let mut random = Bits::new(6);
        for len in LENGTHS {
            let x = random.weights(len);
            let mut lanes = [0.0; LANES];
            for (i, &x) in x.iter().enumerate() {
                lanes[i % LANES] += f64::from(x);
            }
            for half in [16, 8, 4, 2, 1] {
                for k in 0..half {
                    lanes[k] += lanes[k + half];
                }
            }
            assert_eq!(sum(&x).to_bits(), lanes[0].to_bits());
        }
    }

    #[test]
    fn nan_and_empty() {
        assert!(max_abs(&[1.0, f32::NAN, 2.0]).is_nan());
        assert!(sum_abs(&[1.0, f32::NAN]).is_nan());
        assert_eq!((max_abs(&[]), sum(&[]), count_nonzero(&[])), (0.0, 0.0, 0));
        assert_eq!(max_abs(&[1.0, -3.0]), 3.0);
    }

    proptest! {
        /// On integers every order gives the exact sum.
        #[test]
        fn sums_of_integers_are_exact(values in prop::collection::vec(-1000i32..1000, 0..300), cut in 0i32..1000) {
            let x: Vec<f32> = values.iter().map(|&v| v as f32).collect();
            let total = |f: &dyn Fn(i64) -> i64| values.iter().map(|&v| f(i64::from(v))).sum::<i64>() as f64;
            prop_assert_eq!(sum(&x), total(&|v| v));
            prop_assert_eq!(sum_abs(&x), total(&i64::abs));
            prop_assert_eq!(norm_sq(&x), total(&|v| v * v));
            prop_assert_eq!(dot(&x, &x), total(&|v| v * v));
            prop_assert_eq!(count_nonzero(&x) as f64, total(&|v| i64::from(v != 0)));
            let c = i64::from(cut);
            let (kept, count) = sum_abs_ge(&x, magnitude_key(cut as f32));
            prop_assert_eq!(kept, total(&|v| if v.abs() >= c { v.abs() } else { 0 }));
            prop_assert_eq!(count as f64, total(&|v| i64::from(v.abs() >= c)));
        }
    }
}
