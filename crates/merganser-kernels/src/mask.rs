//! Random masks as a function of (seed, tensor, model, element): the same for any chunking and any number of threads.
//!
//! The generator is Philox-4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
//! (2011): a keyed bijection of 128-bit counters. Element i of a stream is
//! word i mod 4 of the block with counter (i / 4 as two words, model, 0); the key is a hash of the seed and the tensor's
//! name, so streams of different models never share a block.

#![allow(clippy::inline_always)] // see simd.rs: inlining carries the target features

/// Ten rounds of Philox-4x32: the four words of the block with counter `words`.
///
/// Words are kept in 64 bits, of which only the lower half counts, so that a loop over blocks vectorises without a single
/// change of width: a product of two lower halves is what vector units compute.
#[inline(always)]
fn philox(words: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const LOW: u64 = 0xffff_ffff;
    let [mut c0, mut c1, mut c2, mut c3] = words.map(u64::from);
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let a = (c0 & LOW) * 0xd251_1f53;
        let b = (c2 & LOW) * 0xcd9e_8d57;
        (c0, c1) = ((b >> 32) ^ c1 ^ u64::from(k0), b);
        (c2, c3) = ((a >> 32) ^ c3 ^ u64::from(k1), a);
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
    [c0, c1, c2, c3].map(|word| word as u32)
}

/// An endless sequence of random numbers for one model's part in one tensor, addressed by element index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
    model: u32,
}

impl Stream {
    /// The stream of (`seed`, `tensor`, `model`).
    ///
    /// The key is the 64-bit FNV-1a hash of the eight little-endian bytes of the seed followed by the UTF-8 bytes of the
    /// tensor's name, finished with the SplitMix64 mix. It is part of what makes outputs reproducible: it never changes.
    pub fn new(seed: u64, tensor: &str, model: u32) -> Self {
        let bytes = seed.to_le_bytes().into_iter().chain(tensor.bytes());
        let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^= hash >> 31;
        Self {
            key: [hash as u32, (hash >> 32) as u32],
            model,
        }
    }

    /// Fills `out` with the numbers of the elements `first_index`, `first_index + 1`, …: multiples of 2⁻²⁴ in [0, 1).
    pub fn uniform(&self, first_index: u64, out: &mut [f32]) {
        uniform(self, first_index, out);
    }

    /// Fills `out` with 1.0 where an element is kept and 0.0 where it is dropped, each kept with `probability`.
    ///
    /// An element is kept if its number is below the probability: never at 0 (or NaN), always at 1.
    pub fn keep_mask(&self, first_index: u64, probability: f32, out: &mut [f32]) {
        keep_mask(self, first_index, probability, out);
    }

    /// As [`Stream::keep_mask`], with one probability an element.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn keep_mask_each(&self, first_index: u64, probabilities: &[f32], out: &mut [f32]) {
        assert_eq!(
            probabilities.len(),
            out.len(),
            "keep_mask_each: lengths differ"
        );
        keep_mask_each(self, first_index, probabilities, out);
    }

    /// The words of elements 4 `index` to 4 `index` + 3.
    #[inline(always)]
    fn block(&self, index: u64) -> [u32; 4] {
        philox(
            [index as u32, (index >> 32) as u32, self.model, 0],
            self.key,
        )
    }

    /// out_i = one(word of element `first_index` + i, i).
    #[inline(always)]
    fn fill(&self, first_index: u64, out: &mut [f32], one: impl Fn(u32, usize) -> f32) {
        let skip = (first_index % 4) as usize;
        let head = if skip == 0 {
            0
        } else {
            (4 - skip).min(out.len())
        };
        let (first, rest) = out.split_at_mut(head);
        for (i, out) in first.iter_mut().enumerate() {
            *out = one(self.block(first_index / 4)[skip + i], i);
        }
        let start = first_index.div_ceil(4);
        let (blocks, last) = rest.as_chunks_mut::<4>();
        for (b, out) in blocks.iter_mut().enumerate() {
            let words = self.block(start.wrapping_add(b as u64));
            for i in 0..4 {
                out[i] = one(words[i], head + 4 * b + i);
            }
        }
        let at = head + 4 * blocks.len();
        let words = self.block(start.wrapping_add(blocks.len() as u64));
        for (i, out) in last.iter_mut().enumerate() {
            *out = one(words[i], at + i);
        }
    }
}

/// The upper 24 bits as a multiple of 2⁻²⁴: exact, and below 1.
#[inline(always)]
fn to_unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

#[inline(always)]
fn keep(word: u32, probability: f32) -> f32 {
    if to_unit(word) < probability {
        1.0
    } else {
        0.0
    }
}

kernel! {
    fn uniform(stream: &Stream, first_index: u64, out: &mut [f32]) {
        stream.fill(first_index, out, |word, _| to_unit(word));
    }
}

kernel! {
    fn keep_mask(stream: &Stream, first_index: u64, probability: f32, out: &mut [f32]) {
        stream.fill(first_index, out, |word, _| keep(word, probability));
    }
}

kernel! {
    fn keep_mask_each(stream: &Stream, first_index: u64, probabilities: &[f32], out: &mut [f32]) {
        let probabilities = &probabilities[..out.len()];
        stream.fill(first_index, out, |word, i| keep(word, probabilities[i]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{LENGTHS, at_all_levels, canonical};
    use proptest::prelude::*;

    /// The known answers published with the authors' Random123 library.
    #[test]
    fn known_answers() {
        let cases = [
            (
                [0; 4],
                [0; 2],
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [u32::MAX; 4],
                [u32::MAX; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, answer) in cases {
            assert_eq!(philox(counter, key), answer);
        }
    }

    #[test]
    fn levels_agree() {
        let stream = Stream::new(7, "model.layers.3.mlp.up_proj.weight", 2);
        for len in LENGTHS {
            let p: Vec<f32> = (0..len).map(|i| i as f32 / len as f32).collect();
            at_all_levels(|| {
                let mut out = vec![9.0; 3 * len];
                let (numbers, masks) = out.split_at_mut(len);
                let (mask, each) = masks.split_at_mut(len);
                stream.uniform(41, numbers);
                stream.keep_mask(41, 0.5, mask);
                stream.keep_mask_each(41, &p, each);
                for (i, &number) in numbers.iter().enumerate() {
                    assert_eq!(mask[i], f32::from(u8::from(number < 0.5)));
                    assert_eq!(each[i], f32::from(u8::from(number < p[i])));
                }
                canonical(&out)
            });
        }
    }

    /// The numbers are a published format: a change here changes everybody's merges.
    #[test]
    fn the_stream_is_what_its_documentation_says() {
        let stream = Stream::new(1, "a", 5);
        let mut numbers = [0.0; 8];
        stream.uniform((1 << 40) - 4, &mut numbers);
        for (i, number) in numbers.into_iter().enumerate() {
            let index = ((1u64 << 40) - 4 + i as u64) / 4;
            let counter = [index as u32, (index >> 32) as u32, 5, 0];
            let word = philox(counter, stream.key)[i % 4];
            assert_eq!(number, (word >> 8) as f32 / 16_777_216.0);
        }
    }

    #[test]
    fn streams_differ() {
        let numbers = |stream: Stream| {
            let mut out = [0.0; 16];
            stream.uniform(0, &mut out);
            canonical(&out)
        };
        let all = [("a", 0, 0), ("b", 0, 0), ("a", 1, 0), ("a", 0, 1)];
        for (i, a) in all.iter().enumerate() {
            for b in &all[..i] {
                assert_ne!(
                    numbers(Stream::new(a.1, a.0, a.2)),
                    numbers(Stream::new(b.1, b.0, b.2))
                );
            }
        }
    }

    #[test]
    fn frequencies_are_those_asked_for() {
        let stream = Stream::new(0, "w", 0);
        let mut mask = vec![0.0; 1 << 20];
        for p in [0.0, 0.1, 0.5, 0.9, 1.0] {
            stream.keep_mask(0, p, &mut mask);
            let mean = mask.iter().map(|&m| f64::from(m)).sum::<f64>() / mask.len() as f64;
            let sigma = (f64::from(p) * (1.0 - f64::from(p)) / mask.len() as f64).sqrt();
            assert!((mean - f64::from(p)).abs() <= 5.0 * sigma, "{p}: {mean}");
        }
        stream.keep_mask(0, f32::NAN, &mut mask);
        assert!(mask.iter().all(|&m| m == 0.0));
    }

    proptest! {
        #[test]
        fn any_range_gives_the_same_numbers(first in 0u64..1000, len in 0usize..300, base in 0u64..u64::MAX / 2) {
            let stream = Stream::new(3, "tensor", 1);
            let mut whole = vec![0.0; 1300];
            stream.uniform(base, &mut whole);
            let mut part = vec![0.0; len];
            stream.uniform(base + first, &mut part);
            prop_assert_eq!(&part[..], &whole[first as usize..first as usize + len]);
        }
    }
}
