//! Stored number formats to and from `f32`, with exactly one rounding.
//!
//! Decoding is exact except from `F64`, which is rounded to nearest, ties to even. Encoding rounds once, to nearest,
//! ties to even, subnormals included. Bytes are little endian and need no alignment.
//!
//! | format | exponent, mantissa bits | beyond the largest number | NaN |
//! |---|---|---|---|
//! | [`Float::F64`], [`Float::F32`] | 11, 52; 8, 23 | not reached | `0x7ff8…`, `0x7fc0_0000` |
//! | [`Float::F16`], [`Float::BF16`] | 5, 10; 8, 7 | infinity | `0x7e00`, `0x7fc0` |
//! | [`Float::F8E5M2`] | 5, 2 | infinity | `0x7f` |
//! | [`Float::F8E4M3`] | 4, 3 (the "fn" variant: no infinity) | NaN with the sign of the number | `0x7f` |
//!
//! A NaN is always encoded as the one in the table, whatever its sign and payload. The 8-bit formats are those of
//! Micikevicius et al., "FP8 formats for deep learning" (2022); overflow follows PyTorch's conversions.
//!
//! The narrow formats share one algorithm. A number that is normal in the narrow format is rounded as an integer: adding
//! half a unit less one, plus the last kept bit, carries into the kept bits exactly when ties-to-even rounds up. One that
//! is subnormal there is rounded by the hardware: adding a power of two whose last bit has the weight of the smallest
//! subnormal leaves the rounded multiple in the low bits of the sum. Both are computed and one is selected, so the loop
//! has no branch.

#![allow(clippy::inline_always)] // see simd.rs: inlining carries the target features

/// A floating-point format in which a checkpoint stores numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// Eight bits, 4 exponent and 3 mantissa bits, largest number 448, no infinity.
    F8E4M3,
    /// Eight bits, 5 exponent and 2 mantissa bits, largest number 57344.
    F8E5M2,
}

impl Float {
    /// Every format.
    pub const ALL: [Self; 6] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::F8E4M3,
        Self::F8E5M2,
    ];

    /// Bytes per number.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::F8E4M3 | Self::F8E5M2 => 1,
        }
    }
}

const SIGN: u32 = 0x8000_0000;
const INFINITY: u32 = 0x7f80_0000;
const QUIET_NAN: u32 = 0x7fc0_0000;

/// A format with `EXP` exponent and `MAN` mantissa bits; `FINITE` if it has NaN but no infinity.
struct Narrow<const EXP: u32, const MAN: u32, const FINITE: bool>;

type F16 = Narrow<5, 10, false>;
type F8E4M3 = Narrow<4, 3, true>;
type F8E5M2 = Narrow<5, 2, false>;

impl<const EXP: u32, const MAN: u32, const FINITE: bool> Narrow<EXP, MAN, FINITE> {
    const BIAS: u32 = (1 << (EXP - 1)) - 1;
    /// Mantissa bits of `f32` that the format lacks.
    const DROPPED: u32 = 23 - MAN;
    /// What the exponent field of `f32` has more, in place.
    const REBIAS: u32 = (127 - Self::BIAS) << 23;
    /// The code of infinity, or of NaN for a format without infinity.
    const TOP: u32 = if FINITE {
        (1 << (EXP + MAN)) - 1
    } else {
        ((1 << EXP) - 1) << MAN
    };
    /// The canonical NaN: PyTorch's.
    const NAN: u32 = if MAN == 10 {
        0x7e00
    } else {
        (1 << (EXP + MAN)) - 1
    };
    /// The smallest normal number of the format, as bits of `f32`.
    const NORMAL: u32 = Self::REBIAS + (1 << 23);
    /// 2^(24 - BIAS - MAN): as an `f32`, its last bit weighs one smallest subnormal, 2^(1 - BIAS - MAN).
    const SHIFTER: u32 = (127 + 24 - Self::BIAS - MAN) << 23;

    #[inline(always)]
    fn decode(code: u32) -> f32 {
        let magnitude = (code & ((1 << (EXP + MAN)) - 1)) << Self::DROPPED;
        let sign = (code >> (EXP + MAN)) << 31;
        let normal = magnitude + Self::REBIAS;
        let subnormal =
            (f32::from_bits(magnitude + Self::NORMAL) - f32::from_bits(Self::NORMAL)).to_bits();
        let top = Self::TOP << Self::DROPPED;
        let special = if FINITE {
            QUIET_NAN
        } else {
            INFINITY | (magnitude & 0x007f_ffff)
        };
        let finite = if magnitude < 1 << 23 {
            subnormal
        } else {
            normal
        };
        f32::from_bits(sign | if magnitude >= top { special } else { finite })
    }

    #[inline(always)]
    fn encode(x: f32) -> u32 {
        let bits = x.to_bits();
        let magnitude = bits & !SIGN;
        let sign = (bits >> 31) << (EXP + MAN);
        let odd = (magnitude >> Self::DROPPED) & 1;
        let rounded = magnitude + ((1 << (Self::DROPPED - 1)) - 1) + odd;
        let normal = (rounded.wrapping_sub(Self::REBIAS) >> Self::DROPPED).min(Self::TOP);
        let shifted = f32::from_bits(magnitude) + f32::from_bits(Self::SHIFTER);
        let subnormal = shifted.to_bits().wrapping_sub(Self::SHIFTER);
        let number = sign
            | if magnitude < Self::NORMAL {
                subnormal
            } else {
                normal
            };
        if magnitude > INFINITY {
            Self::NAN
        } else {
            number
        }
    }
}

#[inline(always)]
fn encode_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    (if bits & !SIGN > INFINITY {
        QUIET_NAN
    } else {
        rounded
    } >> 16) as u16
}

#[inline(always)]
fn encode_f32(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits & !SIGN > INFINITY {
        QUIET_NAN
    } else {
        bits
    }
}

#[inline(always)]
fn encode_f64(x: f32) -> u64 {
    if x.is_nan() {
        0x7ff8_0000_0000_0000
    } else {
        f64::from(x).to_bits()
    }
}

/// Writes `one` of every `N` bytes to `out`.
#[inline(always)]
fn decode_each<const N: usize>(bytes: &[u8], out: &mut [f32], one: impl Fn([u8; N]) -> f32) {
    let (codes, rest) = bytes.as_chunks::<N>();
    assert!(
        rest.is_empty() && codes.len() == out.len(),
        "decode: bytes and numbers differ in count"
    );
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = one(code);
    }
}

/// Writes `one` of every value to `N` bytes of `out`.
#[inline(always)]
fn encode_each<const N: usize>(values: &[f32], out: &mut [u8], one: impl Fn(f32) -> [u8; N]) {
    let (codes, rest) = out.as_chunks_mut::<N>();
    assert!(
        rest.is_empty() && codes.len() == values.len(),
        "encode: bytes and numbers differ in count"
    );
    for (code, &value) in codes.iter_mut().zip(values) {
        *code = one(value);
    }
}

kernel! {
    /// Decodes `out.len()` numbers of format `kind` from `bytes`.
    ///
    /// # Panics
    /// If `bytes.len()` is not `out.len() * kind.size()`.
    pub fn decode(kind: Float, bytes: &[u8], out: &mut [f32]) {
        match kind {
            Float::F64 => decode_each::<8>(bytes, out, |b| f64::from_le_bytes(b) as f32),
            Float::F32 => decode_each::<4>(bytes, out, f32::from_le_bytes),
            Float::F16 => decode_each::<2>(bytes, out, |b| F16::decode(u32::from(u16::from_le_bytes(b)))),
            Float::BF16 => {
                decode_each::<2>(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16));
            }
            Float::F8E4M3 => decode_each::<1>(bytes, out, |[b]| F8E4M3::decode(u32::from(b))),
            Float::F8E5M2 => decode_each::<1>(bytes, out, |[b]| F8E5M2::decode(u32::from(b))),
        }
    }
}

/// As [`decode_each`], after `then`; returns the largest magnitude that was decoded, as bits.
#[inline(always)]
fn decode_each_seen<const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    one: impl Fn([u8; N]) -> f32,
    then: impl Fn(f32, usize) -> f32,
) -> u32 {
    let (codes, rest) = bytes.as_chunks::<N>();
    assert!(
        rest.is_empty() && codes.len() == out.len(),
        "decode: bytes and numbers differ in count"
    );
    let mut largest = 0;
    for (i, (out, &code)) in out.iter_mut().zip(codes).enumerate() {
        let x = one(code);
        largest = largest.max(x.to_bits() & !SIGN);
        *out = then(x, i);
    }
    largest
}

#[inline(always)]
fn decode_seen(
    kind: Float,
    bytes: &[u8],
    out: &mut [f32],
    then: impl Fn(f32, usize) -> f32,
) -> u32 {
    match kind {
        Float::F64 => decode_each_seen::<8>(bytes, out, |b| f64::from_le_bytes(b) as f32, then),
        Float::F32 => decode_each_seen::<4>(bytes, out, f32::from_le_bytes, then),
        Float::F16 => decode_each_seen::<2>(
            bytes,
            out,
            |b| F16::decode(u32::from(u16::from_le_bytes(b))),
            then,
        ),
        Float::BF16 => decode_each_seen::<2>(
            bytes,
            out,
            |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16),
            then,
        ),
        Float::F8E4M3 => {
            decode_each_seen::<1>(bytes, out, |[b]| F8E4M3::decode(u32::from(b)), then)
        }
        Float::F8E5M2 => {
            decode_each_seen::<1>(bytes, out, |[b]| F8E5M2::decode(u32::from(b)), then)
        }
    }
}

kernel! {
    /// As [`decode`], and whether every number is finite.
    ///
    /// # Panics
    /// If `bytes.len()` is not `out.len() * kind.size()`.
    pub fn decode_finite(kind: Float, bytes: &[u8], out: &mut [f32]) -> bool {
        decode_seen(kind, bytes, out, |x, _| x) < INFINITY
    }
}

kernel! {
    /// Decodes as [`decode`] does, subtracts `base`, and says whether every decoded number is finite.
    ///
    /// # Panics
    /// If `bytes.len()` is not `out.len() * kind.size()`, or `base` has another length than `out`.
    pub fn decode_delta(kind: Float, bytes: &[u8], base: &[f32], out: &mut [f32]) -> bool {
        assert_eq!(base.len(), out.len(), "decode_delta: lengths differ");
        let base = &base[..out.len()];
        decode_seen(kind, bytes, out, |x, i| x - base[i]) < INFINITY
    }
}

kernel! {
    /// Encodes `values` in format `kind`, rounding once (see the module's table for overflow and NaN).
    ///
    /// # Panics
    /// If `out.len()` is not `values.len() * kind.size()`.
    pub fn encode(kind: Float, values: &[f32], out: &mut [u8]) {
        match kind {
            Float::F64 => encode_each::<8>(values, out, |x| encode_f64(x).to_le_bytes()),
            Float::F32 => encode_each::<4>(values, out, |x| encode_f32(x).to_le_bytes()),
            Float::F16 => encode_each::<2>(values, out, |x| (F16::encode(x) as u16).to_le_bytes()),
            Float::BF16 => encode_each::<2>(values, out, |x| encode_bf16(x).to_le_bytes()),
            Float::F8E4M3 => encode_each::<1>(values, out, |x| [F8E4M3::encode(x) as u8]),
            Float::F8E5M2 => encode_each::<1>(values, out, |x| [F8E5M2::encode(x) as u8]),
        }
    }
}

#[inline(always)]
fn map_each(values: &mut [f32], one: impl Fn(f32) -> f32) {
    for x in values {
        *x = one(*x);
    }
}

kernel! {
    /// Rounds every value to format `kind` and back: what decoding its encoding would give.
    pub fn round_to(kind: Float, values: &mut [f32]) {
        match kind {
            Float::F64 | Float::F32 => map_each(values, |x| f32::from_bits(encode_f32(x))),
            Float::F16 => map_each(values, |x| F16::decode(F16::encode(x))),
            Float::BF16 => map_each(values, |x| f32::from_bits(u32::from(encode_bf16(x)) << 16)),
            Float::F8E4M3 => map_each(values, |x| F8E4M3::decode(F8E4M3::encode(x))),
            Float::F8E5M2 => map_each(values, |x| F8E5M2::decode(F8E5M2::encode(x))),
        }
    }
}

kernel! {
    /// Whether no value is infinite or NaN.
    pub fn all_finite(values: &[f32]) -> bool {
        // A block has no early exit, so that it vectorises; blocks have one, so that bad data ends the scan.
        values.chunks(4096).all(|block| {
            let bad = block.iter().fold(0, |bad, x| bad | u32::from(x.to_bits() & INFINITY == INFINITY));
            bad == 0
        })
    }
}

kernel! {
    /// Whether every magnitude is at most `limit`, a positive number; NaN is not.
    pub fn all_within(values: &[f32], limit: f32) -> bool {
        // Magnitudes of non-negative floats order like their bits, with NaN above infinity.
        let largest = values.iter().fold(0, |largest: u32, x| largest.max(x.to_bits() & 0x7fff_ffff));
        largest <= limit.to_bits()
    }
}

kernel! {
    /// Packs one bit a value, 1 for every value other than ±0, eight to a byte, lowest bit first.
    ///
    /// Unused bits of the last byte are 0.
    ///
    /// # Panics
    /// If `out.len()` is not `values.len()` divided by 8, rounded up.
    pub fn pack_bits(values: &[f32], out: &mut [u8]) {
        assert_eq!(out.len(), values.len().div_ceil(8), "pack_bits: eight values to a byte");
        for (byte, eight) in out.iter_mut().zip(values.chunks(8)) {
            *byte = eight.iter().enumerate().fold(0, |byte, (i, &x)| byte | u8::from(x != 0.0) << i);
        }
    }
}

kernel! {
    /// Unpacks what [`pack_bits`] packed: 1.0 for a bit that is set, 0.0 for one that is not.
    ///
    /// # Panics
    /// If `bits.len()` is not `out.len()` divided by 8, rounded up.
    pub fn unpack_bits(bits: &[u8], out: &mut [f32]) {
        assert_eq!(bits.len(), out.len().div_ceil(8), "unpack_bits: eight values to a byte");
        for (&byte, eight) in bits.iter().zip(out.chunks_mut(8)) {
            for (i, x) in eight.iter_mut().enumerate() {
                *x = f32::from((byte >> i) & 1);
            }
        }
    }
}

kernel! {
    /// Whether no number of format `kind` among `bytes` is infinite or NaN.
    ///
    /// # Panics
    /// If the bytes are no whole number of numbers.
    pub fn encoded_finite(kind: Float, bytes: &[u8]) -> bool {
        if kind == Float::BF16 {
            let (codes, rest) = bytes.as_chunks::<2>();
            assert!(rest.is_empty(), "encoded_finite: two bytes a number");
            let largest = codes.iter().fold(0, |max: u16, &b| max.max(u16::from_le_bytes(b) & 0x7fff));
            return largest < 0x7f80;
        }
        let mut values = [0.0; 1024];
        bytes.chunks(values.len() * kind.size()).all(|block| {
            let out = &mut values[..block.len() / kind.size()];
            decode_seen(kind, block, out, |x, _| x) < INFINITY
        })
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn all_within_knows_the_limit_and_nan() {
        let within = |values: &[f32]| super::all_within(values, 65504.0);
        assert!(within(&[]) && within(&[0.0, -0.0, -65504.0]));
        assert!(!within(&[65504.01]) && !within(&[1.0, f32::NAN]) && !within(&[f32::NEG_INFINITY]));
    }

    use super::*;
    use crate::testing::{Bits, LENGTHS, at_all_levels, canonical};
    use proptest::prelude::*;

    fn decoded(kind: Float, bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![0.0; bytes.len() / kind.size()];
        decode(kind, bytes, &mut out);
        out
    }

    fn encoded(kind: Float, values: &[f32]) -> Vec<u8> {
        let mut out = vec![0xaa; values.len() * kind.size()];
        encode(kind, values, &mut out);
        out
    }

    /// The value of a code from the definition of the format, in `f64`; `None` for NaN.
    fn defined(kind: Float, code: u32) -> Option<f64> {
        let (exp, man, finite) = match kind {
            Float::F16 => (5, 10, false),
            Float::BF16 => (8, 7, false),
            Float::F8E4M3 => (4, 3, true),
            _ => (5, 2, false),
        };
        let sign = if code >> (exp + man) == 1 { -1.0 } else { 1.0 };
        let (e, m) = ((code >> man) & ((1 << exp) - 1), code & ((1 << man) - 1));
        let bias = (1 << (exp - 1)) - 1;
        let fraction = f64::from(m) / f64::from(1 << man);
        if e == (1 << exp) - 1 && (!finite || m == (1 << man) - 1) {
            return (m == 0 && !finite).then_some(sign * f64::INFINITY);
        }
        Some(
            sign * if e == 0 {
                fraction * 2f64.powi(1 - bias)
            } else {
                (1.0 + fraction) * 2f64.powi(e as i32 - bias)
            },
        )
    }

    const NARROW: [Float; 4] = [Float::F16, Float::BF16, Float::F8E4M3, Float::F8E5M2];

    fn all_codes(kind: Float) -> Vec<u8> {
        match kind.size() {
            1 => (0..=u8::MAX).collect(),
            _ => (0..=u16::MAX).flat_map(u16::to_le_bytes).collect(),
        }
    }

    #[test]
    fn every_code_decodes_to_its_definition_and_encodes_to_itself() {
        for kind in NARROW {
            let bytes = all_codes(kind);
            let values = at_all_levels(|| canonical(&decoded(kind, &bytes)));
            let values: Vec<f32> = values.into_iter().map(f32::from_bits).collect();
            let again = at_all_levels(|| encoded(kind, &values));
            for (code, &value) in values.iter().enumerate() {
                match defined(kind, code as u32) {
                    None => assert!(value.is_nan(), "{kind:?} {code:#x}"),
                    Some(x) => {
                        assert_eq!(
                            f64::from(value).to_bits(),
                            x.to_bits(),
                            "{kind:?} {code:#x}"
                        );
                        let place = code * kind.size()..(code + 1) * kind.size();
                        assert_eq!(again[place.clone()], bytes[place], "{kind:?} {code:#x}");
                    }
                }
            }
        }
    }

    #[test]
    fn checks_and_differences_on_the_way_change_nothing() {
        let mut random = Bits::new(31);
        for kind in Float::ALL {
            for len in LENGTHS {
                for finite in [true, false] {
                    let values = if finite {
                        random.weights(len)
                    } else {
                        random.patterns(len)
                    };
                    let (bytes, base) = (encoded(kind, &values), random.weights(len));
                    let plain = decoded(kind, &bytes);
                    let is_finite = all_finite(&plain);
                    let got = at_all_levels(|| {
                        let (mut same, mut delta) = (vec![9.0; len], vec![9.0; len]);
                        assert_eq!(decode_finite(kind, &bytes, &mut same), is_finite);
                        assert_eq!(decode_delta(kind, &bytes, &base, &mut delta), is_finite);
                        assert_eq!(encoded_finite(kind, &bytes), is_finite);
                        (canonical(&same), canonical(&delta))
                    });
                    let delta: Vec<f32> = plain.iter().zip(&base).map(|(x, b)| x - b).collect();
                    assert_eq!(got, (canonical(&plain), canonical(&delta)));
                }
            }
        }
    }

    /// Between each pair of neighbours, the midpoint goes to the even code and its neighbours in `f32` to the near one.
    #[test]
    fn midpoints_go_to_even() {
        for kind in NARROW {
            let bytes = all_codes(kind);
            let positive = &bytes[..bytes.len() / 2];
            let values = decoded(kind, positive);
            let last = values
                .iter()
                .rposition(|x| x.is_finite())
                .expect("a finite value");
            for code in 0..last {
                let middle =
                    f64::midpoint(f64::from(values[code]), f64::from(values[code + 1])) as f32;
                let near = [middle.next_down(), middle, middle.next_up()];
                let want = [code, code + (code & 1), code + 1];
                for sign in [1.0, -1.0] {
                    let got = decoded(kind, &encoded(kind, &near.map(|x| sign * x)));
                    assert_eq!(
                        got,
                        want.map(|code| sign * values[code]),
                        "{kind:?} {code:#x}"
                    );
                }
            }
        }
    }

    #[test]
    fn overflow_and_nan_follow_the_table() {
        let over = [
            f32::MAX,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            -f32::NAN,
            f32::from_bits(0xff80_0001),
        ];
        assert_eq!(
            encoded(Float::F8E4M3, &over),
            [0x7f, 0x7f, 0xff, 0x7f, 0x7f, 0x7f]
        );
        assert_eq!(
            encoded(Float::F8E4M3, &[464.0, 464.1, -465.0, 448.0]),
            [0x7e, 0x7f, 0xff, 0x7e]
        );
        assert_eq!(
            encoded(Float::F8E5M2, &over),
            [0x7c, 0x7c, 0xfc, 0x7f, 0x7f, 0x7f]
        );
        assert_eq!(encoded(Float::F8E5M2, &[61439.0, 61440.0]), [0x7b, 0x7c]);
        let halves = |kind| -> Vec<u16> {
            encoded(kind, &over)
                .as_chunks::<2>()
                .0
                .iter()
                .map(|&b| u16::from_le_bytes(b))
                .collect()
        };
        assert_eq!(
            halves(Float::F16),
            [0x7c00, 0x7c00, 0xfc00, 0x7e00, 0x7e00, 0x7e00]
        );
        assert_eq!(
            halves(Float::BF16),
            [0x7f80, 0x7f80, 0xff80, 0x7fc0, 0x7fc0, 0x7fc0]
        );
        assert_eq!(
            encoded(Float::F32, &over[3..]),
            [0, 0, 0xc0, 0x7f].repeat(3)
        );
        assert_eq!(
            encoded(Float::F64, &over[3..]),
            [0, 0, 0, 0, 0, 0, 0xf8, 0x7f].repeat(3)
        );
    }

    #[test]
    fn f64_rounds_once_to_nearest() {
        let tie = 1.0 + f64::from(f32::EPSILON) / 2.0;
        for (x, want) in [
            (tie, 1.0),
            (tie.next_up(), 1.0 + f32::EPSILON),
            (1e300, f32::INFINITY),
            (1e-46, 0.0),
        ] {
            assert_eq!(decoded(Float::F64, &x.to_le_bytes()), [want]);
        }
    }

    #[test]
    fn levels_agree_and_bytes_may_be_unaligned() {
        let mut bits = Bits::new(2);
        for kind in Float::ALL {
            for len in LENGTHS {
                let bytes: Vec<u8> = (0..=len * kind.size()).map(|_| bits.next() as u8).collect();
                at_all_levels(|| canonical(&decoded(kind, &bytes[1..])));
                let values = bits.patterns(len);
                let codes = at_all_levels(|| encoded(kind, &values));
                let rounded = at_all_levels(|| {
                    let mut values = values.clone();
                    round_to(kind, &mut values);
                    canonical(&values)
                });
                assert_eq!(rounded, canonical(&decoded(kind, &codes)), "{kind:?}");
            }
        }
    }

    #[test]
    fn one_bad_value_anywhere_is_found() {
        for len in LENGTHS {
            let mut values = vec![f32::MAX; len];
            assert!(at_all_levels(|| all_finite(&values)));
            for i in [0, len / 2, len.saturating_sub(1)] {
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    if let Some(x) = values.get_mut(i) {
                        *x = bad;
                        assert!(!at_all_levels(|| all_finite(&values)));
                        values[i] = 0.0;
                    }
                }
            }
        }
    }

    #[test]
    fn bits_are_packed_lowest_first() {
        let values = [1.0, 0.0, -0.0, -3.0, f32::NAN, 0.0, 0.0, 0.0, 1e-45];
        let mut bytes = [0xff; 2];
        pack_bits(&values, &mut bytes);
        assert_eq!(bytes, [0b0001_1001, 1]);
    }

    proptest! {
        #[test]
        fn halves_agree_with_the_half_crate(bits: u32) {
            let x = f32::from_bits(bits);
            prop_assume!(!x.is_nan());
            prop_assert_eq!(encoded(Float::F16, &[x]), half::f16::from_f32(x).to_le_bytes());
            prop_assert_eq!(encoded(Float::BF16, &[x]), half::bf16::from_f32(x).to_le_bytes());
        }

        #[test]
        fn bits_come_back(values in prop::collection::vec(prop::sample::select(vec![0.0f32, 1.0]), 0..100)) {
            let got = at_all_levels(|| {
                let mut bytes = vec![0; values.len().div_ceil(8)];
                pack_bits(&values, &mut bytes);
                let mut out = vec![9.0; values.len()];
                unpack_bits(&bytes, &mut out);
                out
            });
            prop_assert_eq!(got, values);
        }
    }
}
