//! Integers that order like floats, so that selection is exact and works on integers alone.
//!
//! * A *magnitude key* orders by |x|: the bits of an IEEE 754 number without its sign are monotone in its magnitude.
//! * An *ordered key* orders by x itself: magnitudes counted upwards from 2³¹ for positive and downwards for negative
//!   numbers, so that −0 and +0 are equal.
//!
//! Every NaN has one and the same key, [`NAN_MAGNITUDE`] above all magnitudes (and above all ordered keys, whatever its
//! sign), because machines differ in the sign and payload they give it. Hence a key is always below `u32::MAX`, and
//! `key + 1` is a valid cut.

/// The magnitude key of every NaN: just above that of infinity.
pub const NAN_MAGNITUDE: u32 = 0x7f80_0001;

const SIGN: u32 = 0x8000_0000;

/// The magnitude key of `x`: monotone in |x|, equal for −x and x, [`NAN_MAGNITUDE`] for NaN.
#[allow(clippy::inline_always)]
#[inline(always)]
pub fn magnitude_key(x: f32) -> u32 {
    (x.to_bits() & !SIGN).min(NAN_MAGNITUDE)
}

/// The ordered key of `x`: monotone in x, equal for −0 and +0, the largest of all for NaN.
#[allow(clippy::inline_always)]
#[inline(always)]
pub fn ordered_key(x: f32) -> u32 {
    let magnitude = magnitude_key(x);
    let negative = x.to_bits() >= SIGN && magnitude < NAN_MAGNITUDE;
    if negative {
        SIGN - magnitude
    } else {
        SIGN + magnitude
    }
}

/// The magnitude whose [`magnitude_key`] is `key`; NaN if `key` is above that of infinity.
pub fn key_to_magnitude(key: u32) -> f32 {
    if key < NAN_MAGNITUDE {
        f32::from_bits(key)
    } else {
        f32::NAN
    }
}

/// The number whose [`ordered_key`] is `key` (+0 for that of the zeros); NaN if `key` belongs to no number.
pub fn key_to_ordered(key: u32) -> f32 {
    if key >= SIGN {
        key_to_magnitude(key - SIGN)
    } else {
        -key_to_magnitude(SIGN - key)
    }
}

kernel! {
    /// Writes the [`magnitude_key`] of every element of `x` to `out`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn magnitude_keys(out: &mut [u32], x: &[f32]) {
        assert_eq!(out.len(), x.len(), "magnitude_keys: lengths differ");
        for (key, &x) in out.iter_mut().zip(x) {
            *key = magnitude_key(x);
        }
    }
}

kernel! {
    /// Writes the [`ordered_key`] of every element of `x` to `out`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn ordered_keys(out: &mut [u32], x: &[f32]) {
        assert_eq!(out.len(), x.len(), "ordered_keys: lengths differ");
        for (key, &x) in out.iter_mut().zip(x) {
            *key = ordered_key(x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bits, LENGTHS, at_all_levels};
    use proptest::prelude::*;

    #[test]
    fn landmarks() {
        assert_eq!(magnitude_key(-0.0), 0);
        assert_eq!(magnitude_key(f32::NEG_INFINITY), 0x7f80_0000);
        assert_eq!(ordered_key(0.0), ordered_key(-0.0));
        for nan in [
            f32::NAN,
            -f32::NAN,
            f32::from_bits(0xff80_0001),
            f32::from_bits(0x7fff_ffff),
        ] {
            assert_eq!(magnitude_key(nan), NAN_MAGNITUDE);
            assert_eq!(ordered_key(nan), 0x8000_0000 + NAN_MAGNITUDE);
        }
        assert!(key_to_magnitude(NAN_MAGNITUDE).is_nan() && key_to_magnitude(u32::MAX).is_nan());
        assert!(key_to_ordered(u32::MAX).is_nan() && key_to_ordered(0).is_nan());
    }

    #[test]
    fn levels_agree() {
        let mut bits = Bits::new(1);
        for len in LENGTHS {
            let x = bits.patterns(len);
            let keys = at_all_levels(|| {
                let (mut magnitudes, mut ordered) = (vec![0; len], vec![0; len]);
                magnitude_keys(&mut magnitudes, &x);
                ordered_keys(&mut ordered, &x);
                (magnitudes, ordered)
            });
            for (i, &x) in x.iter().enumerate() {
                assert_eq!((keys.0[i], keys.1[i]), (magnitude_key(x), ordered_key(x)));
            }
        }
    }

    proptest! {
        #[test]
        fn keys_order_like_numbers(a: f32, b: f32) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            prop_assert_eq!(Some(magnitude_key(a).cmp(&magnitude_key(b))), a.abs().partial_cmp(&b.abs()));
            prop_assert_eq!(Some(ordered_key(a).cmp(&ordered_key(b))), a.partial_cmp(&b));
        }

        #[test]
        fn keys_are_inverted(a: f32) {
            prop_assume!(!a.is_nan());
            prop_assert_eq!(key_to_magnitude(magnitude_key(a)), a.abs());
            prop_assert_eq!(key_to_ordered(ordered_key(a)), a);
        }
    }
}
