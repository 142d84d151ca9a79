//! Sine, cosine and arc cosine in f64, with the same bits on every machine.
//!
//! The C library's functions differ between platforms in the last place. These take a few numbers a tensor, not a
//! number an element, so they are written for accuracy (a few units in the last place), not to be vectorised.

use std::f64::consts::{FRAC_2_PI, PI};

/// π/2 in three parts; the first two have 26 significant bits, so that their products with a small integer are exact.
const HALF_PI: [f64; 3] = [
    1.570_796_310_901_641_8,
    1.589_325_471_229_585_7e-8,
    6.123_233_995_736_766e-17,
];

/// x = r + quadrant · π/2 with |r| ≤ π/4; good for |x| up to about 10⁶.
fn reduce(x: f64) -> (f64, i64) {
    let n = (x * FRAC_2_PI).round_ties_even();
    let r = HALF_PI.iter().fold(x, |r, part| r - n * part);
    (r, n as i64 & 3)
}

/// sin r for |r| ≤ π/4: the Taylor series up to r¹⁹.
fn sin_near_zero(r: f64) -> f64 {
    let square = r * r;
    (1..10).rev().fold(1.0, |sum, k| {
        1.0 - square / f64::from(2 * k * (2 * k + 1)) * sum
    }) * r
}

/// cos r for |r| ≤ π/4: the Taylor series up to r¹⁸.
fn cos_near_zero(r: f64) -> f64 {
    let square = r * r;
    (1..10).rev().fold(1.0, |sum, k| {
        1.0 - square / f64::from((2 * k - 1) * 2 * k) * sum
    })
}

/// sin x, for |x| up to about 10⁶.
pub fn sin(x: f64) -> f64 {
    let (r, quadrant) = reduce(x);
    let value = if quadrant & 1 == 0 {
        sin_near_zero(r)
    } else {
        cos_near_zero(r)
    };
    if quadrant & 2 == 0 { value } else { -value }
}

/// cos x, for |x| up to about 10⁶.
pub fn cos(x: f64) -> f64 {
    let (r, quadrant) = reduce(x);
    let value = if quadrant & 1 == 0 {
        cos_near_zero(r)
    } else {
        sin_near_zero(r)
    };
    if (quadrant + 1) & 2 == 0 {
        value
    } else {
        -value
    }
}

/// arccos c in [0, π], for c taken into [−1, 1]: relatively accurate near 0 too, given c.
pub fn acos(c: f64) -> f64 {
    let c = c.clamp(-1.0, 1.0);
    // The half angle keeps the sine below √½, where its inverse is well conditioned.
    let half = asin_low(((1.0 - c.abs()) / 2.0).sqrt());
    if c < 0.0 { PI - 2.0 * half } else { 2.0 * half }
}

/// arcsin s for 0 ≤ s ≤ √½: its series, then Newton's iteration on the sine.
fn asin_low(s: f64) -> f64 {
    let square = s * s;
    let start = s * (1.0 + square * (1.0 / 6.0 + square * (3.0 / 40.0)));
    (0..4).fold(start, |y, _| y + (s - sin_near_zero(y)) / cos_near_zero(y))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exact_where_it_matters() {
        assert_eq!((sin(0.0), cos(0.0), acos(1.0)), (0.0, 1.0, 0.0));
        assert_eq!(acos(-1.0), PI);
        assert_eq!((acos(2.0), acos(-2.0)), (0.0, PI));
        assert!(acos(f64::NAN).is_nan() && sin(f64::NAN).is_nan() && cos(f64::NAN).is_nan());
    }

    proptest! {
        #[test]
        fn agrees_with_the_c_library(x in -100.0f64..100.0, c in -1.0f64..1.0, small in 0.0f64..1e-6) {
            prop_assert!((sin(x) - x.sin()).abs() < 1e-15 * 4.0);
            prop_assert!((cos(x) - x.cos()).abs() < 1e-15 * 4.0);
            prop_assert!((acos(c) - c.acos()).abs() < 1e-15 * 4.0);
            prop_assert!((acos(1.0 - small) - (1.0 - small).acos()).abs() <= 1e-15 * (1.0 - small).acos());
        }
    }
}
