//! Masks of one bit an element, in planes: what a pass over a tensor draws and the next one needs again.
//!
//! A mask of n elements takes m = ⌈n / 8⌉ bytes, and bit b of byte j belongs to element b m + j. So both directions are
//! eight plain loops over neighbours, which vectorise; with neighbours in one byte they do not.

kernel! {
    /// Writes the mask whose bit is set where `values` is not ±0.
    ///
    /// # Panics
    /// If `planes.len()` is not `values.len()` divided by 8, rounded up.
    pub fn pack(values: &[f32], planes: &mut [u8]) {
        assert_eq!(planes.len(), values.len().div_ceil(8), "pack: eight values to a byte");
        planes.fill(0);
        for (b, values) in values.chunks(planes.len().max(1)).enumerate() {
            let bit = 1u8 << b;
            for (byte, &x) in planes.iter_mut().zip(values) {
                *byte |= if x == 0.0 { 0 } else { bit };
            }
        }
    }
}

kernel! {
    /// out = x where the bit is set, else +0.
    ///
    /// # Panics
    /// If the lengths differ or `planes.len()` is not their eighth, rounded up.
    pub fn retain(out: &mut [f32], x: &[f32], planes: &[u8]) {
        assert_eq!(out.len(), x.len(), "retain: lengths differ");
        assert_eq!(planes.len(), x.len().div_ceil(8), "retain: eight values to a byte");
        let step = planes.len().max(1);
        for (b, (out, x)) in out.chunks_mut(step).zip(x.chunks(step)).enumerate() {
            let bit = 1u8 << b;
            for ((out, &x), &byte) in out.iter_mut().zip(x).zip(planes) {
                *out = if byte & bit == 0 { 0.0 } else { x };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bits, LENGTHS, at_all_levels, canonical};

    #[test]
    fn what_is_packed_is_retained() {
        let mut bits = Bits::new(40);
        for len in LENGTHS {
            let x = bits.patterns(len);
            let mask: Vec<f32> = (0..len).map(|_| (bits.next() % 3) as f32).collect();
            let got = at_all_levels(|| {
                let (mut planes, mut out) = (vec![0xff; len.div_ceil(8)], vec![9.0; len]);
                pack(&mask, &mut planes);
                retain(&mut out, &x, &planes);
                canonical(&out)
            });
            let expected: Vec<f32> = (0..len)
                .map(|i| if mask[i] == 0.0 { 0.0 } else { x[i] })
                .collect();
            assert_eq!(got, canonical(&expected));
        }
    }
}
