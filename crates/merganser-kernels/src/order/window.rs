//! Prediction by a sample, and the counting pass that verifies it.
//!
//! Of m sampled keys, sorted, the wanted one of rank r among n lies near place q = r m / n, with a standard deviation of
//! about √(q (m − q) / m) places. The window reaches 4.5 of them, and a few places more, to both sides. Its two edges are
//! keys of the sample and are counted by comparison; only keys strictly between them are collected. So a value that many
//! elements share costs nothing: either it is an edge, or it is rarer than the window is wide.

use super::Statistic;
use std::fmt;
use std::ops::Range;

/// Consecutive keys sampled together: neighbours share a cache line, and often a page to be read.
const RUN: u64 = 16;
const LEAST_SAMPLE: u64 = 1 << 14;
const LARGEST_SAMPLE: u64 = 1 << 17;

/// Keys counted at a time: 16 KiB, so that several windows find them in L1.
const BLOCK: usize = 4096;
const LANES: usize = 16;

/// Says which keys to sample, collects them and predicts where ranks lie.
#[derive(Clone, Debug)]
pub struct Sampler {
    len: u64,
    keys: Vec<u32>,
}

impl Sampler {
    /// A sampler for `len` keys.
    pub fn new(len: u64) -> Self {
        Self {
            len,
            keys: Vec::new(),
        }
    }

    /// The index ranges to be sampled, ascending and disjoint: everything if there is little, else evenly spread short
    /// runs, each at a pseudo-random place of its stretch so that no period of the data is met in step.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let len = self.len;
        let size = (len / 128).clamp(LEAST_SAMPLE, LARGEST_SAMPLE);
        let (count, run) = if len <= 2 * size {
            (u64::from(len > 0), len)
        } else {
            (size / RUN, RUN)
        };
        (0..count).map(move |i| {
            let (from, to) = (place(len, i, count), place(len, i + 1, count));
            let start = from + scatter(i) % (to - from - run + 1);
            start..start + run
        })
    }

    /// Adds the keys of a run, or of several. Their order does not matter.
    pub fn add(&mut self, keys: &[u32]) {
        self.keys.extend_from_slice(keys);
    }

    /// Predicts a window for each of the ascending ranks (0-based).
    ///
    /// Any sample will do, even an empty one: it decides how narrow the windows are and how likely they are to hit.
    ///
    /// # Panics
    /// If a rank is not below the number of keys.
    pub fn windows(mut self, ranks: &[u64]) -> Windows {
        let windows = ranks.iter().map(|&rank| {
            assert!(rank < self.len, "rank {rank} of {} keys", self.len);
            self.window(rank)
        });
        Windows {
            windows: windows.collect(),
        }
    }

    fn window(&mut self, rank: u64) -> Window {
        let m = self.keys.len();
        let q = (rank as f64 / self.len as f64 * m as f64).round();
        let spread = if m as u64 == self.len {
            0.0
        } else {
            4.5 * (q * (m as f64 - q) / m.max(1) as f64).max(0.0).sqrt() + 8.0
        };
        let (low, high) = (q - spread.ceil(), q + spread.ceil());
        let lo = if m == 0 || low < 0.0 {
            0
        } else {
            self.sorted(low as usize)
        };
        let hi = if m == 0 || high >= m as f64 {
            u32::MAX
        } else {
            self.sorted(high as usize)
        };
        Window { rank, lo, hi }
    }

    /// The sampled key at `place` in ascending order.
    fn sorted(&mut self, place: usize) -> u32 {
        let last = self.keys.len() - 1;
        *self.keys.select_nth_unstable(place.min(last)).1
    }
}

/// The start of stretch `i` of `count` equal ones of `len`.
fn place(len: u64, i: u64, count: u64) -> u64 {
    (u128::from(len) * u128::from(i) / u128::from(count)) as u64
}

/// A fixed pseudo-random function (the SplitMix64 mix).
fn scatter(i: u64) -> u64 {
    let mut z = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The keys among which one rank is expected, edges included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    rank: u64,
    lo: u32,
    hi: u32,
}

/// The predicted windows of all wanted ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    windows: Vec<Window>,
}

/// What one chunk contributes: small, and independent of the other chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkCount {
    len: u64,
    windows: Vec<WindowCount>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct WindowCount {
    window: Window,
    below: u64,
    at_lo: u64,
    at_hi: u64,
    /// The keys strictly between the edges, in index order; emptied for good once there are too many.
    inside: Vec<u32>,
    gave_up: bool,
}

/// Some predictions failed; the ranks concerned (or all of them) have to be found by [`super::RadixUpper`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The ranks outside their windows, or whose windows hold too many keys.
    pub ranks: Vec<u64>,
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the sample mispredicted the keys of ranks {:?}; select them by radix",
            self.ranks
        )
    }
}

impl std::error::Error for Missed {}

impl Windows {
    /// An empty count, to which the blocks of one chunk are added.
    pub fn start(&self) -> ChunkCount {
        let windows = self.windows.iter().map(|&window| WindowCount {
            window,
            below: 0,
            at_lo: 0,
            at_hi: 0,
            inside: Vec::new(),
            gave_up: false,
        });
        ChunkCount {
            len: 0,
            windows: windows.collect(),
        }
    }

    /// The count of a whole chunk.
    pub fn count(&self, keys: &[u32]) -> ChunkCount {
        let mut count = self.start();
        count.add(keys);
        count
    }

    /// The statistic of every rank, in the order in which ranks were given, from the counts of all chunks in chunk order.
    ///
    /// # Errors
    /// [`Missed`] if a rank is not in its window, or a chunk had too many keys in it to be collected.
    ///
    /// # Panics
    /// If a count was started from other windows.
    pub fn resolve(&self, chunks: &[ChunkCount]) -> Result<Vec<Statistic>, Missed> {
        let ranks: Vec<u64> = self.windows.iter().map(|window| window.rank).collect();
        self.resolve_at(&ranks, chunks)
    }

    /// As [`Windows::resolve`], for ranks that were only estimated when the windows were predicted: one for each window.
    ///
    /// # Errors
    /// [`Missed`] if a rank is not in its window, or a chunk had too many keys in it to be collected.
    ///
    /// # Panics
    /// If a count was started from other windows, or there is not one rank a window.
    pub fn resolve_at(
        &self,
        ranks: &[u64],
        chunks: &[ChunkCount],
    ) -> Result<Vec<Statistic>, Missed> {
        assert_eq!(ranks.len(), self.windows.len(), "one rank a window");
        let len = chunks.iter().map(|chunk| chunk.len).sum();
        let mut found = Vec::with_capacity(self.windows.len());
        let mut missed = Vec::new();
        for (i, (&window, &rank)) in self.windows.iter().zip(ranks).enumerate() {
            let counts: Vec<&WindowCount> = chunks.iter().map(|chunk| &chunk.windows[i]).collect();
            assert!(
                counts.iter().all(|count| count.window == window),
                "the counts belong to other windows"
            );
            match window.resolve(rank, len, &counts) {
                Some(statistic) => found.push(statistic),
                None => missed.push(rank),
            }
        }
        if missed.is_empty() {
            Ok(found)
        } else {
            Err(Missed { ranks: missed })
        }
    }
}

impl Window {
    fn resolve(self, rank: u64, len: u64, counts: &[&WindowCount]) -> Option<Statistic> {
        if counts.iter().any(|count| count.gave_up) {
            return None;
        }
        let total = |of: fn(&WindowCount) -> u64| counts.iter().map(|count| of(count)).sum::<u64>();
        let below = total(|count| count.below);
        let at_lo = total(|count| count.at_lo);
        let between = total(|count| count.inside.len() as u64);
        let mut rank = rank.checked_sub(below)?;
        if rank < at_lo {
            return Some(Statistic::new(
                self.lo,
                len,
                below,
                counts.iter().map(|count| count.at_lo),
            ));
        }
        rank -= at_lo;
        if rank < between {
            let mut keys: Vec<u32> = counts
                .iter()
                .flat_map(|count| &count.inside)
                .copied()
                .collect();
            let key = *keys.select_nth_unstable(rank as usize).1;
            let less = keys.iter().filter(|&&other| other < key).count() as u64;
            let equal = counts
                .iter()
                .map(|count| count.inside.iter().filter(|&&other| other == key).count() as u64);
            return Some(Statistic::new(key, len, below + at_lo + less, equal));
        }
        rank -= between;
        if self.lo < self.hi && rank < total(|count| count.at_hi) {
            let less = below + at_lo + between;
            return Some(Statistic::new(
                self.hi,
                len,
                less,
                counts.iter().map(|count| count.at_hi),
            ));
        }
        None
    }
}

impl ChunkCount {
    /// Counts the next keys of the chunk.
    pub fn add(&mut self, keys: &[u32]) {
        self.len += keys.len() as u64;
        // A window holds some 1 % of all keys; a chunk that has far more must not make memory grow with it.
        let cap = self.len as usize / 16 + BLOCK;
        let mut collected = [0; BLOCK];
        for block in keys.chunks(BLOCK) {
            for count in &mut self.windows {
                let Window { lo, hi, .. } = count.window;
                let (sums, inside) = count_block(block, lo, hi, &mut collected);
                count.below += u64::from(sums.below);
                count.at_lo += u64::from(sums.at_lo);
                count.at_hi += u64::from(sums.at_hi);
                if count.inside.len() + inside > cap {
                    count.gave_up = true;
                    count.inside = Vec::new();
                }
                if !count.gave_up {
                    count.inside.extend_from_slice(&collected[..inside]);
                }
            }
        }
    }
}

struct Sums {
    below: u32,
    at_lo: u32,
    at_hi: u32,
}

kernel! {
    /// Counts the keys of a block below `lo`, at `lo` and at `hi`, and writes those strictly between to the front of
    /// `collected`; also returns how many these are.
    fn count_block(keys: &[u32], lo: u32, hi: u32, collected: &mut [u32; BLOCK]) -> (Sums, usize) {
        let (mut below, mut at_lo, mut at_hi) = ([0; LANES], [0; LANES], [0; LANES]);
        let mut inside = 0;
        // lo < key < hi in one comparison: key − (lo + 1) wraps around for smaller keys.
        let (first, span) = (lo.wrapping_add(1), hi.saturating_sub(lo).saturating_sub(1));
        let (groups, rest) = keys.as_chunks::<LANES>();
        for group in groups {
            let mut any = 0;
            for k in 0..LANES {
                let key = group[k];
                below[k] += u32::from(key < lo);
                at_lo[k] += u32::from(key == lo);
                at_hi[k] += u32::from(key == hi);
                any |= u32::from(key.wrapping_sub(first) < span);
            }
            if any != 0 {
                // Every key is written and only those inside advance: no branch depends on a key.
                for &key in group {
                    collected[inside] = key;
                    inside += usize::from(key.wrapping_sub(first) < span);
                }
            }
        }
        for &key in rest {
            below[0] += u32::from(key < lo);
            at_lo[0] += u32::from(key == lo);
            at_hi[0] += u32::from(key == hi);
            collected[inside] = key;
            inside += usize::from(key.wrapping_sub(first) < span);
        }
        let sums = Sums { below: below.iter().sum(), at_lo: at_lo.iter().sum(), at_hi: at_hi.iter().sum() };
        (sums, inside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bits, LENGTHS, at_all_levels};
    use proptest::prelude::*;

    #[test]
    fn levels_agree_with_plain_counting() {
        let mut bits = Bits::new(10);
        for len in LENGTHS {
            let keys: Vec<u32> = (0..len)
                .map(|_| u32::MAX - (bits.next() % 100) as u32)
                .collect();
            for (lo, hi) in [
                (0, u32::MAX),
                (u32::MAX - 60, u32::MAX - 50),
                (u32::MAX - 60, u32::MAX - 60),
                (u32::MAX - 1, u32::MAX),
            ] {
                let windows = Windows {
                    windows: vec![Window { rank: 0, lo, hi }],
                };
                let got = at_all_levels(|| windows.count(&keys));
                let count = |test: &dyn Fn(u32) -> bool| {
                    keys.iter().filter(|&&key| test(key)).count() as u64
                };
                let want = &got.windows[0];
                assert_eq!(
                    (want.below, want.at_lo, want.at_hi),
                    (count(&|k| k < lo), count(&|k| k == lo), count(&|k| k == hi))
                );
                let inside: Vec<u32> = keys.iter().copied().filter(|&k| lo < k && k < hi).collect();
                if !want.gave_up {
                    assert_eq!(want.inside, inside);
                }
            }
        }
    }

    #[test]
    fn windows_are_narrow_and_hit() {
        let mut bits = Bits::new(11);
        let keys: Vec<u32> = (0..1 << 20).map(|_| bits.next() as u32 >> 1).collect();
        let mut sampler = Sampler::new(keys.len() as u64);
        for run in sampler.runs().collect::<Vec<_>>() {
            sampler.add(&keys[run.start as usize..run.end as usize]);
        }
        assert_eq!(sampler.keys.len() as u64, LEAST_SAMPLE);
        let ranks = [1 << 17, 1 << 19, 7 << 17];
        let windows = sampler.windows(&ranks);
        let count = windows.count(&keys);
        for window in &count.windows {
            assert!(
                window.inside.len() < keys.len() / 25,
                "{}",
                window.inside.len()
            );
        }
        assert!(windows.resolve(&[count]).is_ok());
    }

    #[test]
    fn windows_serve_ranks_near_the_estimated_ones() {
        let keys: Vec<u32> = (0..10_000).map(|i| i * 7919 % 10_000).collect();
        let mut sampler = Sampler::new(10_000);
        sampler.add(&keys[..1_000]);
        let windows = sampler.windows(&[0, 5_000]);
        let chunks = [windows.count(&keys[..6_000]), windows.count(&keys[6_000..])];
        let found = windows.resolve_at(&[1, 5_030], &chunks).expect("near");
        assert_eq!(found.iter().map(|s| s.key).collect::<Vec<_>>(), [1, 5_030]);
        assert_eq!(
            windows.resolve_at(&[0, 9_000], &chunks),
            Err(Missed { ranks: vec![9_000] })
        );
    }

    proptest! {
        #[test]
        fn runs_are_ascending_and_in_range(len in 0u64..40_000_000) {
            let mut end = 0;
            let mut total = 0;
            for run in Sampler::new(len).runs() {
                prop_assert!(run.start >= end && run.start < run.end);
                end = run.end;
                total += run.end - run.start;
            }
            prop_assert!(end <= len && total <= 2 * LARGEST_SAMPLE);
            prop_assert!(total >= len.min(LEAST_SAMPLE));
        }
    }
}
