//! Element-wise arithmetic on `f32` slices: differences, scalings and weighted sums.
//!
//! Every operation is rounded on its own, in the order in which the formula is written; sums run in the order of their
//! inputs. A NaN or an infinity of an input reaches the output.

#![allow(clippy::inline_always)] // see simd.rs: inlining carries the target features

use std::array::from_fn;

/// Elements worked on at a time when an output is passed over more than once: 8 KiB, so that it stays in L1.
const BLOCK: usize = 2048;

/// out (+)= Σ w_i x_i over `N` inputs, from element `at` of each.
#[inline(always)]
fn add_terms<const N: usize>(
    out: &mut [f32],
    fresh: bool,
    at: usize,
    weights: &[f32],
    xs: &[&[f32]],
) {
    let w: [f32; N] = from_fn(|i| weights[i]);
    let x: [&[f32]; N] = from_fn(|i| &xs[i][at..at + out.len()]);
    if fresh {
        for (j, out) in out.iter_mut().enumerate() {
            let mut sum = w[0] * x[0][j];
            for i in 1..N {
                sum += w[i] * x[i][j];
            }
            *out = sum;
        }
    } else {
        for (j, out) in out.iter_mut().enumerate() {
            let mut sum = *out;
            for i in 0..N {
                sum += w[i] * x[i][j];
            }
            *out = sum;
        }
    }
}

/// out = Σ w_i x_i from element `at` of each input: up to four inputs in registers, more through `out`.
#[inline(always)]
fn weighted_sum(out: &mut [f32], at: usize, weights: &[f32], xs: &[&[f32]]) {
    if weights.is_empty() {
        out.fill(0.0);
    }
    for (group, (w, x)) in weights.chunks(4).zip(xs.chunks(4)).enumerate() {
        let fresh = group == 0;
        match w.len() {
            4 => add_terms::<4>(out, fresh, at, w, x),
            3 => add_terms::<3>(out, fresh, at, w, x),
            2 => add_terms::<2>(out, fresh, at, w, x),
            _ => add_terms::<1>(out, fresh, at, w, x),
        }
    }
}

fn check_inputs(len: usize, weights: &[f32], xs: &[&[f32]]) {
    assert_eq!(weights.len(), xs.len(), "one weight an input");
    for x in xs {
        assert_eq!(x.len(), len, "lengths differ");
    }
}

kernel! {
    /// out = a − b.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn sub(out: &mut [f32], a: &[f32], b: &[f32]) {
        assert!(a.len() == out.len() && b.len() == out.len(), "sub: lengths differ");
        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
            *out = a - b;
        }
    }
}

kernel! {
    /// a ← a − b.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn sub_assign(a: &mut [f32], b: &[f32]) {
        assert_eq!(a.len(), b.len(), "sub_assign: lengths differ");
        for (a, &b) in a.iter_mut().zip(b) {
            *a -= b;
        }
    }
}

kernel! {
    /// a ← a + b.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_assign(a: &mut [f32], b: &[f32]) {
        assert_eq!(a.len(), b.len(), "add_assign: lengths differ");
        for (a, &b) in a.iter_mut().zip(b) {
            *a += b;
        }
    }
}

kernel! {
    /// a ← a · b, element by element (a mask, for instance).
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn mul_assign(a: &mut [f32], b: &[f32]) {
        assert_eq!(a.len(), b.len(), "mul_assign: lengths differ");
        for (a, &b) in a.iter_mut().zip(b) {
            *a *= b;
        }
    }
}

kernel! {
    /// a ← s · a.
    pub fn scale(a: &mut [f32], s: f32) {
        for a in a {
            *a *= s;
        }
    }
}

kernel! {
    /// acc ← acc + s · x, the product rounded before the sum.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn axpy(acc: &mut [f32], s: f32, x: &[f32]) {
        assert_eq!(acc.len(), x.len(), "axpy: lengths differ");
        for (acc, &x) in acc.iter_mut().zip(x) {
            *acc += s * x;
        }
    }
}

kernel! {
    /// out = wa · a + wb · b.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn affine2(out: &mut [f32], wa: f32, a: &[f32], wb: f32, b: &[f32]) {
        assert!(a.len() == out.len() && b.len() == out.len(), "affine2: lengths differ");
        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
            *out = wa * a + wb * b;
        }
    }
}

/// out = (1 − t) · a + t · b: exactly `a` at t = 0 and `b` at t = 1, if both are finite.
///
/// # Panics
/// If the lengths differ.
pub fn lerp(out: &mut [f32], a: &[f32], b: &[f32], t: f32) {
    affine2(out, 1.0 - t, a, t, b);
}

kernel! {
    /// out = Σ w_i x_i in one pass over all inputs, summed in their order; zeros if there is none.
    ///
    /// # Panics
    /// If the lengths differ or there is not one weight an input.
    pub fn linear_combination(out: &mut [f32], weights: &[f32], xs: &[&[f32]]) {
        check_inputs(out.len(), weights, xs);
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            weighted_sum(out, block * BLOCK, weights, xs);
        }
    }
}

kernel! {
    /// out = base + λ · Σ w_i d_i in one pass over all task vectors d_i, summed in their order.
    ///
    /// # Panics
    /// If the lengths differ or there is not one weight a task vector.
    pub fn delta_combination(out: &mut [f32], base: &[f32], weights: &[f32], deltas: &[&[f32]], lambda: f32) {
        check_inputs(out.len(), weights, deltas);
        assert_eq!(base.len(), out.len(), "delta_combination: lengths differ");
        for (block, (out, base)) in out.chunks_mut(BLOCK).zip(base.chunks(BLOCK)).enumerate() {
            weighted_sum(out, block * BLOCK, weights, deltas);
            for (out, &base) in out.iter_mut().zip(base) {
                *out = base + lambda * *out;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bits, LENGTHS, at_all_levels, canonical};
    use proptest::prelude::*;

    /// Runs `work` on a copy of `start` at all levels.
    fn run(start: &[f32], mut work: impl FnMut(&mut [f32])) -> Vec<u32> {
        at_all_levels(|| {
            let mut out = start.to_vec();
            work(&mut out);
            canonical(&out)
        })
    }

    fn each(len: usize, one: impl Fn(usize) -> f32) -> Vec<u32> {
        canonical(&(0..len).map(one).collect::<Vec<_>>())
    }

    #[test]
    fn levels_agree_with_the_formula_on_any_bits() {
        let mut bits = Bits::new(3);
        for len in LENGTHS {
            let (a, b, c) = (bits.patterns(len), bits.patterns(len), bits.patterns(len));
            let (s, t) = (-1.7, 0.3);
            assert_eq!(run(&c, |o| sub(o, &a, &b)), each(len, |i| a[i] - b[i]));
            assert_eq!(run(&a, |o| sub_assign(o, &b)), each(len, |i| a[i] - b[i]));
            assert_eq!(run(&a, |o| add_assign(o, &b)), each(len, |i| a[i] + b[i]));
            assert_eq!(run(&a, |o| mul_assign(o, &b)), each(len, |i| a[i] * b[i]));
            assert_eq!(run(&a, |o| scale(o, s)), each(len, |i| a[i] * s));
            assert_eq!(run(&a, |o| axpy(o, s, &b)), each(len, |i| a[i] + s * b[i]));
            assert_eq!(
                run(&c, |o| affine2(o, s, &a, t, &b)),
                each(len, |i| s * a[i] + t * b[i])
            );
            assert_eq!(
                run(&c, |o| lerp(o, &a, &b, t)),
                each(len, |i| (1.0 - t) * a[i] + t * b[i])
            );
        }
    }

    #[test]
    fn combinations_sum_in_input_order() {
        let mut bits = Bits::new(4);
        for len in LENGTHS {
            for count in [0, 1, 2, 3, 4, 5, 8, 11] {
                let xs: Vec<Vec<f32>> = (0..count).map(|_| bits.patterns(len)).collect();
                let xs: Vec<&[f32]> = xs.iter().map(Vec::as_slice).collect();
                let w = bits.weights(count);
                let (base, stale) = (bits.patterns(len), bits.patterns(len));
                let sum = |i: usize| {
                    (0..count)
                        .map(|k| w[k] * xs[k][i])
                        .reduce(|a, b| a + b)
                        .unwrap_or(0.0)
                };
                assert_eq!(
                    run(&stale, |o| linear_combination(o, &w, &xs)),
                    each(len, sum)
                );
                let merged = each(len, |i| base[i] + 0.7 * sum(i));
                assert_eq!(
                    run(&stale, |o| delta_combination(o, &base, &w, &xs, 0.7)),
                    merged
                );
            }
        }
    }

    #[test]
    #[should_panic(expected = "one weight an input")]
    fn a_missing_weight_is_refused() {
        linear_combination(&mut [0.0], &[], &[&[1.0]]);
    }

    proptest! {
        #[test]
        fn lerp_reaches_its_ends(a in -1e30f32..1e30, b in -1e30f32..1e30) {
            let mut out = [0.0];
            lerp(&mut out, &[a], &[b], 0.0);
            prop_assert_eq!(out[0], a);
            lerp(&mut out, &[a], &[b], 1.0);
            prop_assert_eq!(out[0], b);
        }
    }
}
