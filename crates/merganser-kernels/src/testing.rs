//! What the tests of several kernels share: random bit patterns and the comparison of all levels.

use crate::simd;

/// A small generator of reproducible bits (SplitMix64), so that unit tests need no dependency.
pub(crate) struct Bits(u64);

impl Bits {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Any `f32` at all: subnormals, infinities and NaNs included.
    pub(crate) fn patterns(&mut self, len: usize) -> Vec<f32> {
        (0..len)
            .map(|_| f32::from_bits(self.next() as u32))
            .collect()
    }

    /// Roughly bell-shaped finite values around zero, with a few exact zeros and many repeated values.
    pub(crate) fn weights(&mut self, len: usize) -> Vec<f32> {
        (0..len)
            .map(|_| {
                let bits = self.next();
                let sum: i64 = (0..4).map(|i| i64::from((bits >> (16 * i)) as i16)).sum();
                let coarse = if bits.is_multiple_of(4) {
                    sum >> 12 << 12
                } else {
                    sum
                };
                coarse as f32 / 1e6
            })
            .collect()
    }
}

/// The bits of `x`, with every NaN made the same: IEEE 754 leaves its sign and payload to the machine.
pub(crate) fn canonical(x: &[f32]) -> Vec<u32> {
    x.iter()
        .map(|v| if v.is_nan() { 0x7fc0_0000 } else { v.to_bits() })
        .collect()
}

/// Runs `work` at every level of this machine, asserts that the results are equal, and returns one of them.
pub(crate) fn at_all_levels<R: PartialEq + std::fmt::Debug>(mut work: impl FnMut() -> R) -> R {
    let expected = simd::with_level(simd::Level::Scalar, &mut work);
    for level in simd::available() {
        let got = simd::with_level(level, &mut work);
        assert!(
            got == expected,
            "level {} differs from scalar:\n{got:?}\n{expected:?}",
            level.name()
        );
    }
    expected
}

/// Lengths around every vector width and block size in use.
pub(crate) const LENGTHS: [usize; 14] = [0, 1, 2, 7, 15, 16, 17, 31, 33, 64, 127, 513, 1025, 5003];
