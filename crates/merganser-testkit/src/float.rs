//! Conversion of the element types of safetensors files to and from numbers, by definition and not by speed.

use half::{bf16, f16};
use safetensors::Dtype;

/// Bytes of one element.
///
/// # Panics
/// If the type is not one that test files use.
pub fn size(dtype: Dtype) -> usize {
    match dtype {
        Dtype::F64 | Dtype::I64 => 8,
        Dtype::F32 | Dtype::I32 => 4,
        Dtype::F16 | Dtype::BF16 | Dtype::I16 => 2,
        Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::I8 | Dtype::U8 | Dtype::BOOL => 1,
        other => panic!("{other:?} is not used in test files"),
    }
}

/// The numbers stored in `bytes`, little endian.
///
/// # Panics
/// If the bytes are not a whole number of elements, or the type is not one that test files use.
pub fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    let size = size(dtype);
    assert_eq!(
        bytes.len() % size,
        0,
        "{} bytes are not a whole number of {dtype:?} elements",
        bytes.len()
    );
    bytes
        .chunks(size)
        .map(|bytes| decode_one(dtype, bytes))
        .collect()
}

fn decode_one(dtype: Dtype, bytes: &[u8]) -> f64 {
    let mut eight = [0; 8];
    eight[..bytes.len()].copy_from_slice(bytes);
    let bits = u64::from_le_bytes(eight);
    match dtype {
        Dtype::F64 => f64::from_bits(bits),
        Dtype::F32 => f64::from(f32::from_bits(bits as u32)),
        Dtype::F16 => f16::from_bits(bits as u16).to_f64(),
        Dtype::BF16 => bf16::from_bits(bits as u16).to_f64(),
        Dtype::F8_E5M2 => f16::from_bits((bits as u16) << 8).to_f64(),
        Dtype::F8_E4M3 => e4m3(bits as u8),
        Dtype::I64 => bits as i64 as f64,
        Dtype::I32 => f64::from(bits as i32),
        Dtype::I16 => f64::from(bits as i16),
        Dtype::I8 => f64::from(bits as i8),
        _ => f64::from(bits as u8),
    }
}

/// 1 sign bit, 4 exponent bits with bias 7, 3 mantissa bits; no infinity, NaN where all seven low bits are set.
fn e4m3(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa / 8.0 * f64::powi(2.0, -6),
        _ => (1.0 + mantissa / 8.0) * f64::powi(2.0, exponent - 7),
    };
    if code & 0x80 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

/// The bytes of `values`, each rounded to nearest, ties to even; whole-number types truncate and saturate.
///
/// # Panics
/// If the type is not one that test files use.
pub fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let size = size(dtype);
    values
        .iter()
        .flat_map(|&x| encode_one(dtype, x).to_le_bytes().into_iter().take(size))
        .collect()
}

fn encode_one(dtype: Dtype, x: f32) -> u64 {
    match dtype {
        Dtype::F64 => f64::from(x).to_bits(),
        Dtype::F32 => u64::from(x.to_bits()),
        Dtype::F16 => u64::from(f16::from_f32(x).to_bits()),
        Dtype::BF16 => u64::from(bf16::from_f32(x).to_bits()),
        Dtype::F8_E4M3 | Dtype::F8_E5M2 => u64::from(nearest_code(dtype, x)),
        Dtype::I64 => x as i64 as u64,
        Dtype::I32 => u64::from(x as i32 as u32),
        Dtype::I16 => u64::from(x as i16 as u16),
        Dtype::I8 => u64::from(x as i8 as u8),
        _ => u64::from(x as u8),
    }
}

/// The 8-bit code whose value is nearest to `x` (the even one of two); meant for values in range.
fn nearest_code(dtype: Dtype, x: f32) -> u8 {
    let distance = |code: u8| (decode_one(dtype, &[code]) - f64::from(x)).abs();
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let finite = (0..0x80_u8)
        .map(|code| code | sign)
        .filter(|&code| decode_one(dtype, &[code]).is_finite());
    finite
        .min_by(|&a, &b| {
            distance(a)
                .total_cmp(&distance(b))
                .then((a & 1).cmp(&(b & 1)))
        })
        .unwrap_or(sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_gives_back_what_it_can_hold() {
        let small = [0.0, 1.0, 2.0, 3.0];
        for dtype in [
            Dtype::F64,
            Dtype::F32,
            Dtype::F16,
            Dtype::BF16,
            Dtype::F8_E4M3,
            Dtype::F8_E5M2,
            Dtype::I64,
            Dtype::I32,
            Dtype::I16,
            Dtype::I8,
            Dtype::U8,
        ] {
            assert_eq!(
                decode(dtype, &encode(dtype, &small)),
                small.map(f64::from),
                "{dtype:?}"
            );
        }
        assert_eq!(decode(Dtype::I64, &encode(Dtype::I64, &[-5.0])), [-5.0]);
    }

    #[test]
    fn rounding_is_to_the_nearest_even() {
        assert_eq!(
            decode(Dtype::BF16, &encode(Dtype::BF16, &[1.0 + 1.0 / 256.0])),
            [1.0]
        );
        assert_eq!(
            decode(
                Dtype::F8_E4M3,
                &encode(Dtype::F8_E4M3, &[1.0625, -1.1875, 448.0])
            ),
            [1.0, -1.25, 448.0]
        );
        assert_eq!(
            decode(Dtype::F8_E5M2, &encode(Dtype::F8_E5M2, &[1.125, 57344.0])),
            [1.0, 57344.0]
        );
        assert!(decode(Dtype::F8_E4M3, &[0x7f])[0].is_nan());
    }
}
