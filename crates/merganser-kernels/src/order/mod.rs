//! Exact order statistics of a stream of keys, presented in chunks, without storing the stream.
//!
//! Trimming a task vector to its k largest entries needs one number: the key of ascending rank n − k, and how many of
//! its ties to keep. Sorting finds it, in far more time and memory than the merge itself. Here it takes a small sample
//! and one counting pass:
//!
//! 1. [`Sampler`] reads some hundred thousand keys at most and predicts for every wanted rank a narrow window of keys.
//! 2. Every chunk is counted by itself, in parallel and in any order: [`Windows::start`] gives a [`ChunkCount`], which
//!    counts the keys below and on the edges of each window and collects those inside.
//! 3. [`Windows::resolve`] takes the chunk counts in chunk order and gives one exact [`Statistic`] a rank.
//!
//! A prediction can fail: then `resolve` returns [`Missed`] and the answer is found without any prediction in three more
//! passes, the classical radix selection: [`RadixUpper`] (histogram of the upper 16 bits), [`RadixLower`] (of the lower 16
//! bits where the upper ones are those wanted) and [`TieCount`]. The sample decides the time, never the result.
//!
//! Order is *stable*: among equal keys the one of lower index comes first. [`Statistic`] therefore knows how many equal
//! keys each chunk holds, and [`Statistic::keep_largest`] or [`Statistic::drop_smallest`] turn a quota into the
//! [`ChunkCut`] of each chunk. [`statistics`] shows the whole protocol on keys in memory.

mod cut;
mod radix;
mod window;

pub use cut::{BlockCut, ChunkCut};
pub use radix::{ChunkTies, RadixLower, RadixUpper, TieCount};
pub use window::{ChunkCount, Missed, Sampler, Windows};

/// The key of one rank and its place among all keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistic {
    /// The key.
    pub key: u32,
    /// How many keys there are in all.
    pub len: u64,
    /// How many keys are smaller.
    pub less: u64,
    /// How many keys are equal, itself included.
    pub equal: u64,
    /// How many equal keys come before each chunk; one entry more than there are chunks.
    before: Vec<u64>,
}

impl Statistic {
    /// The statistic of `key`, given how many equal keys each chunk holds.
    fn new(key: u32, len: u64, less: u64, equal_by_chunk: impl Iterator<Item = u64>) -> Self {
        let mut before = vec![0];
        let mut equal = 0;
        for count in equal_by_chunk {
            equal += count;
            before.push(equal);
        }
        Self {
            key,
            len,
            less,
            equal,
            before,
        }
    }

    /// How many keys are greater.
    pub fn greater(&self) -> u64 {
        self.len - self.less - self.equal
    }

    /// How many equal keys come before chunk `chunk`.
    ///
    /// # Panics
    /// If there is no such chunk.
    pub fn equal_before_chunk(&self, chunk: usize) -> u64 {
        self.before[chunk]
    }

    /// How many equal keys chunk `chunk` holds.
    ///
    /// # Panics
    /// If there is no such chunk.
    pub fn equal_in_chunk(&self, chunk: usize) -> u64 {
        self.before[chunk + 1] - self.before[chunk]
    }

    /// What chunk `chunk` keeps if the `k` largest keys are kept and, among equal ones, those of lowest index.
    ///
    /// The statistic must be that of rank [`rank_of_largest`]`(len, k)`; else as many equal keys are kept as come nearest
    /// to `k` in all.
    ///
    /// # Panics
    /// If there is no such chunk.
    pub fn keep_largest(&self, chunk: usize, k: u64) -> ChunkCut {
        self.cut(chunk, k.saturating_sub(self.greater()), true)
    }

    /// What chunk `chunk` keeps if the first `r` keys in stable ascending order are dropped.
    ///
    /// The statistic must be that of rank `r`, the first one kept, or of rank `r − 1`, the last one dropped.
    ///
    /// # Panics
    /// If there is no such chunk.
    pub fn drop_smallest(&self, chunk: usize, r: u64) -> ChunkCut {
        self.cut(chunk, r.saturating_sub(self.less), false)
    }

    /// The cut that keeps (or drops) the first `quota` equal keys of all chunks.
    fn cut(&self, chunk: usize, quota: u64, keep_leading: bool) -> ChunkCut {
        let here = self.equal_in_chunk(chunk);
        let ties = quota
            .saturating_sub(self.equal_before_chunk(chunk))
            .min(here);
        let (kept, dropped) = (
            ChunkCut::Uniform(self.key),
            ChunkCut::Uniform(self.key.saturating_add(1)),
        );
        let (leading, trailing) = if keep_leading {
            (kept, dropped)
        } else {
            (dropped, kept)
        };
        if ties == here && here > 0 {
            leading
        } else if ties == 0 {
            trailing
        } else {
            ChunkCut::Split {
                key: self.key,
                ties,
                keep_leading,
            }
        }
    }
}

/// The ascending rank of the smallest of the `k` largest of `len` keys; `None` if `k` is 0 or above `len`.
pub fn rank_of_largest(len: u64, k: u64) -> Option<u64> {
    if k == 0 { None } else { len.checked_sub(k) }
}

/// The statistics of the given ascending ranks (0-based) over keys in memory: the whole protocol, one chunk at a time.
///
/// # Panics
/// If a rank is not below the number of keys.
pub fn statistics(chunks: &[&[u32]], ranks: &[u64]) -> Vec<Statistic> {
    let len = chunks.iter().map(|chunk| chunk.len() as u64).sum();
    let mut sampler = Sampler::new(len);
    let runs: Vec<_> = sampler.runs().collect();
    let mut start = 0;
    for chunk in chunks {
        let end = start + chunk.len() as u64;
        for run in &runs {
            let (from, to) = (run.start.max(start), run.end.min(end));
            if from < to {
                sampler.add(&chunk[(from - start) as usize..(to - start) as usize]);
            }
        }
        start = end;
    }
    let windows = sampler.windows(ranks);
    let counts: Vec<_> = chunks.iter().map(|chunk| windows.count(chunk)).collect();
    windows
        .resolve(&counts)
        .unwrap_or_else(|Missed { .. }| statistics_by_radix(chunks, ranks))
}

fn statistics_by_radix(chunks: &[&[u32]], ranks: &[u64]) -> Vec<Statistic> {
    let mut upper = RadixUpper::new();
    for chunk in chunks {
        upper.add(chunk);
    }
    let mut lower = upper.select(ranks);
    for chunk in chunks {
        lower.add(chunk);
    }
    let ties = lower.select();
    let counts: Vec<_> = chunks.iter().map(|chunk| ties.count(chunk)).collect();
    ties.resolve(&counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::magnitude_key;
    use crate::testing::{Bits, at_all_levels};
    use proptest::prelude::*;

    /// Checks the statistics and every cut of every rank against a full stable sort.
    fn check(keys: &[u32], chunk_len: usize, ranks: &[u64]) {
        let chunks: Vec<&[u32]> = keys.chunks(chunk_len).collect();
        let mut sorted: Vec<usize> = (0..keys.len()).collect();
        sorted.sort_by_key(|&i| keys[i]);
        let found = at_all_levels(|| statistics(&chunks, ranks));
        assert_eq!(found, statistics_by_radix(&chunks, ranks));
        for (statistic, &rank) in found.iter().zip(ranks) {
            let key = keys[sorted[rank as usize]];
            assert_eq!(statistic.key, key);
            assert_eq!(
                statistic.less,
                keys.iter().filter(|&&k| k < key).count() as u64
            );
            assert_eq!(
                statistic.equal,
                keys.iter().filter(|&&k| k == key).count() as u64
            );
            check_cuts(&chunks, &sorted, statistic, rank);
        }
    }

    fn check_cuts(chunks: &[&[u32]], sorted: &[usize], statistic: &Statistic, rank: u64) {
        let len = sorted.len() as u64;
        let kept = |cut: &dyn Fn(usize) -> ChunkCut| -> Vec<usize> {
            let mut kept = vec![];
            let mut at = 0;
            for (c, chunk) in chunks.iter().enumerate() {
                let mut cut = cut(c);
                // Uneven blocks, so that a cut is carried over their borders.
                for block in chunk.chunks(7) {
                    let BlockCut {
                        boundary,
                        before,
                        after,
                    } = cut.advance(block);
                    for (j, &key) in block.iter().enumerate() {
                        if key >= if j < boundary { before } else { after } {
                            kept.push(at + j);
                        }
                    }
                    at += block.len();
                }
            }
            kept
        };
        // The k largest, equal keys of lowest index first: all greater keys, and the first of the equal ones.
        let k = len - rank;
        let (less, greater) = (statistic.less as usize, statistic.greater() as usize);
        let mut largest = sorted[sorted.len() - greater..].to_vec();
        largest.extend(&sorted[less..less + k as usize - greater]);
        largest.sort_unstable();
        assert_eq!(kept(&|c| statistic.keep_largest(c, k)), largest);
        for r in [rank, rank + 1] {
            let mut rest = sorted[r as usize..].to_vec();
            rest.sort_unstable();
            assert_eq!(kept(&|c| statistic.drop_smallest(c, r)), rest);
        }
    }

    #[test]
    fn ranks_of_quotas() {
        assert_eq!(rank_of_largest(5, 0), None);
        assert_eq!(rank_of_largest(5, 6), None);
        assert_eq!(
            (rank_of_largest(5, 5), rank_of_largest(5, 1)),
            (Some(0), Some(4))
        );
    }

    #[test]
    fn large_inputs_of_every_shape() {
        let mut bits = Bits::new(8);
        let len = 40_000;
        let random: Vec<u32> = bits.weights(len).into_iter().map(magnitude_key).collect();
        let mut sorted = random.clone();
        sorted.sort_unstable();
        let reversed: Vec<u32> = sorted.iter().rev().copied().collect();
        let few: Vec<u32> = (0..len).map(|_| (bits.next() % 5) as u32).collect();
        let mostly_zero: Vec<u32> = (0..len)
            .map(|_| {
                if bits.next().is_multiple_of(50) {
                    bits.next() as u32 >> 1
                } else {
                    0
                }
            })
            .collect();
        let any: Vec<u32> = (0..len)
            .map(|_| (bits.next() as u32).min(u32::MAX - 1))
            .collect();
        for keys in [
            random,
            sorted,
            reversed,
            few,
            mostly_zero,
            any,
            vec![3; len],
            vec![0; len],
        ] {
            check(&keys, 7_001, &[0, 1, 8_000, 32_000, 39_999]);
        }
    }

    #[test]
    fn a_misleading_sample_costs_a_fallback_and_nothing_else() {
        let keys: Vec<u32> = (0..50_000).map(|i| i * 7 % 50_000).collect();
        let chunks: Vec<&[u32]> = keys.chunks(9_000).collect();
        let mut sampler = Sampler::new(50_000);
        sampler.add(&vec![60_000; 10_000]);
        let windows = sampler.windows(&[25_000, 49_000]);
        let counts: Vec<_> = chunks.iter().map(|chunk| windows.count(chunk)).collect();
        assert_eq!(
            windows.resolve(&counts),
            Err(Missed {
                ranks: vec![25_000, 49_000]
            })
        );
        let found = statistics_by_radix(&chunks, &[25_000, 49_000]);
        assert_eq!(
            found
                .iter()
                .map(|s| (s.key, s.less, s.equal))
                .collect::<Vec<_>>(),
            [(25_000, 25_000, 1), (49_000, 49_000, 1)]
        );
    }

    #[test]
    fn a_window_too_wide_gives_up() {
        let keys: Vec<u32> = (0..100_000).collect();
        let windows = Sampler::new(100_000).windows(&[50_000]);
        let counts = [windows.count(&keys)];
        assert_eq!(
            windows.resolve(&counts),
            Err(Missed {
                ranks: vec![50_000]
            })
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn small_inputs_agree_with_a_stable_sort(
            keys in prop::collection::vec(prop_oneof![0u32..6, 0u32..0x7f80_0000, Just(u32::MAX - 1)], 1..200),
            chunk_len in 1usize..64,
        ) {
            let ranks: Vec<u64> = (0..keys.len() as u64).collect();
            check(&keys, chunk_len, &ranks);
        }
    }
}
