//! What a chunk keeps: a cut on keys, with the ties of the cut divided by index.

use crate::keys::magnitude_key;

/// Which elements of one chunk are kept, by their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkCut {
    /// Those with a key of at least this; all of them at 0, none at `u32::MAX`.
    Uniform(u32),
    /// Those with a key above `key`, and some of those equal to it.
    Split {
        /// The key of the cut.
        key: u32,
        /// How many leading elements with that key are treated differently from the rest of them; at least 1.
        ties: u64,
        /// Whether the leading ones are kept and the rest dropped, or the other way round.
        keep_leading: bool,
    },
}

/// Which elements of one block are kept: a cut that changes once, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCut {
    /// The number of elements to which `before` applies; `after` applies to the others.
    pub boundary: usize,
    /// The elements before the boundary are kept if their key is at least this.
    pub before: u32,
    /// The elements from the boundary on are kept if their key is at least this.
    pub after: u32,
}

impl ChunkCut {
    /// Keeps every element.
    pub const ALL: Self = Self::Uniform(0);
    /// Keeps no element.
    pub const NONE: Self = Self::Uniform(u32::MAX);

    /// The cut of the next block of the chunk, with the given keys.
    ///
    /// The blocks of a chunk must be presented once each, in order: the ties met are counted off.
    pub fn advance(&mut self, keys: &[u32]) -> BlockCut {
        self.advance_with(keys.len(), |j| keys[j])
    }

    /// Sets to zero what is dropped of the next block of the chunk, by magnitude.
    ///
    /// As [`ChunkCut::advance`], for values whose keys are their magnitude keys.
    pub fn retain_magnitudes(&mut self, values: &mut [f32]) {
        let BlockCut {
            boundary,
            before,
            after,
        } = self.advance_with(values.len(), |j| magnitude_key(values[j]));
        let (leading, trailing) = values.split_at_mut(boundary);
        zero_below(leading, before);
        zero_below(trailing, after);
    }

    fn advance_with(&mut self, len: usize, key_at: impl Fn(usize) -> u32) -> BlockCut {
        let Self::Split {
            key,
            ties,
            keep_leading,
        } = self
        else {
            let Self::Uniform(cut) = *self else {
                unreachable!("a cut is uniform or split")
            };
            return BlockCut {
                boundary: len,
                before: cut,
                after: cut,
            };
        };
        let (kept, dropped) = (*key, key.saturating_add(1));
        let (before, after) = if *keep_leading {
            (kept, dropped)
        } else {
            (dropped, kept)
        };
        for j in 0..len {
            if key_at(j) == *key {
                *ties -= 1;
                if *ties == 0 {
                    *self = Self::Uniform(after);
                    return BlockCut {
                        boundary: j + 1,
                        before,
                        after,
                    };
                }
            }
        }
        BlockCut {
            boundary: len,
            before,
            after,
        }
    }
}

kernel! {
    /// Sets to +0 every value whose magnitude key is below `cut`.
    fn zero_below(values: &mut [f32], cut: u32) {
        for x in values {
            *x = if magnitude_key(*x) >= cut { *x } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bits, LENGTHS, at_all_levels, canonical};

    #[test]
    fn retaining_is_what_the_block_cuts_say() {
        let mut bits = Bits::new(9);
        for len in LENGTHS {
            let values: Vec<f32> = bits
                .weights(len)
                .iter()
                .map(|x| (x * 50.0).round())
                .collect();
            let cut = ChunkCut::Split {
                key: magnitude_key(1.0),
                ties: 1 + len as u64 / 10,
                keep_leading: len % 2 == 0,
            };
            let got = at_all_levels(|| {
                let (mut values, mut cut) = (values.clone(), cut);
                values
                    .chunks_mut(100)
                    .for_each(|block| cut.retain_magnitudes(block));
                canonical(&values)
            });
            let mut met = 0;
            let want = values.iter().map(|x| {
                let ChunkCut::Split {
                    ties, keep_leading, ..
                } = cut
                else {
                    return 0;
                };
                let tie = x.abs() == 1.0;
                met += u64::from(tie);
                let kept = x.abs() > 1.0 || tie && (met <= ties) == keep_leading;
                if kept { x.to_bits() } else { 0 }
            });
            assert_eq!(got, want.collect::<Vec<_>>());
        }
    }

    #[test]
    fn all_and_none() {
        let mut values = [0.0, -1.0, f32::INFINITY];
        let mut cut = ChunkCut::ALL;
        cut.retain_magnitudes(&mut values);
        assert_eq!(values, [0.0, -1.0, f32::INFINITY]);
        cut = ChunkCut::NONE;
        cut.retain_magnitudes(&mut values);
        assert_eq!(values, [0.0; 3]);
    }
}
