//! NearSwap: a bounded step from one model towards another.
//!
//! Source: mergekit's `nearswap` (Alchemonaut, "QuartetAnemoi-70B").

#![allow(clippy::inline_always)] // see simd.rs: inlining carries the target features

/// Smallest distance divided by.
const FLOOR: f32 = 1e-6;

kernel! {
    /// out = ω · x + (1 − ω) · base with ω = t / max(|base − x|, 10⁻⁶) taken into [0, 1]: the base moves by at most t.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn step_towards(out: &mut [f32], base: &[f32], x: &[f32], t: f32) {
        assert!(base.len() == out.len() && x.len() == out.len(), "step_towards: lengths differ");
        for ((out, &base), &x) in out.iter_mut().zip(base).zip(x) {
            let distance = (base - x).abs();
            let omega = t / if distance > FLOOR { distance } else { FLOOR };
            let omega = if omega > 0.0 { omega } else { 0.0 };
            let omega = if omega < 1.0 { omega } else { 1.0 };
            *out = omega * x + (1.0 - omega) * base;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bits, LENGTHS, at_all_levels, canonical};

    #[test]
    fn levels_agree_on_any_bits() {
        let mut bits = Bits::new(13);
        for len in LENGTHS {
            let (base, x) = (bits.patterns(len), bits.patterns(len));
            for t in [0.0, 1e-3, 1e30, f32::MAX] {
                at_all_levels(|| {
                    let mut out = vec![0.0; len];
                    step_towards(&mut out, &base, &x, t);
                    canonical(&out)
                });
            }
        }
    }

    #[test]
    fn near_elements_are_swapped_and_far_ones_stepped() {
        let mut out = [0.0; 4];
        step_towards(
            &mut out,
            &[1.0, 1.0, 1.0, 1.0],
            &[1.25, 2.0, -3.0, 1.0],
            0.5,
        );
        assert_eq!(out, [1.25, 1.5, 0.5, 1.0]);
        step_towards(&mut out, &[1.0; 4], &[9.0; 4], -1.0);
        assert_eq!(out, [1.0; 4]);
    }
}
