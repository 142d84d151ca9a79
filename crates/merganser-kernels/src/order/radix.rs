//! Selection by radix, in three passes: it needs no prediction and no luck.
//!
//! The first pass makes a histogram of the upper 16 bits of all keys, which tells the upper half of the key of every
//! rank; the second one of the lower 16 bits of the keys with those upper halves, which completes it; the third counts
//! its equals in each chunk. Histograms are sums: those of several threads are merged in any order.

use super::Statistic;

const BINS: usize = 1 << 16;

/// First pass: a histogram of the upper halves of all keys (512 KiB).
#[derive(Clone, Debug)]
pub struct RadixUpper {
    bins: Vec<u64>,
}

impl Default for RadixUpper {
    fn default() -> Self {
        Self::new()
    }
}

impl RadixUpper {
    /// An empty histogram.
    pub fn new() -> Self {
        Self {
            bins: vec![0; BINS],
        }
    }

    /// Counts some keys.
    pub fn add(&mut self, keys: &[u32]) {
        for key in keys {
            self.bins[(key >> 16) as usize] += 1;
        }
    }

    /// Adds the counts of another thread.
    pub fn merge(&mut self, other: &Self) {
        add_bins(&mut self.bins, &other.bins);
    }

    /// The second pass for the given ascending ranks (0-based), empty.
    ///
    /// # Panics
    /// If a rank is not below the number of keys counted.
    pub fn select(&self, ranks: &[u64]) -> RadixLower {
        let len = self.bins.iter().sum();
        let mut uppers: Vec<u16> = Vec::new();
        let wanted = ranks.iter().map(|&rank| {
            assert!(rank < len, "rank {rank} of {len} keys");
            let (upper, less) = bin_of(&self.bins, rank);
            let slot = uppers
                .iter()
                .position(|&other| other == upper)
                .unwrap_or_else(|| {
                    uppers.push(upper);
                    uppers.len() - 1
                });
            Wanted {
                slot,
                less,
                rest: rank - less,
            }
        });
        let wanted = wanted.collect();
        let bins = vec![vec![0; BINS]; uppers.len()];
        RadixLower {
            len,
            wanted,
            uppers,
            bins,
        }
    }
}

/// Second pass: a histogram of the lower halves for each upper half that is wanted (512 KiB each).
#[derive(Clone, Debug)]
pub struct RadixLower {
    len: u64,
    wanted: Vec<Wanted>,
    uppers: Vec<u16>,
    bins: Vec<Vec<u64>>,
}

/// A rank after the first pass: which histogram it is in, how many keys are in lower ones, and its rank in its own.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    slot: usize,
    less: u64,
    rest: u64,
}

impl RadixLower {
    /// Counts some keys.
    pub fn add(&mut self, keys: &[u32]) {
        for (upper, bins) in self.uppers.iter().zip(&mut self.bins) {
            for key in keys {
                if (key >> 16) as u16 == *upper {
                    bins[(key & 0xffff) as usize] += 1;
                }
            }
        }
    }

    /// Adds the counts of another thread, made on a clone of the empty histogram.
    pub fn merge(&mut self, other: &Self) {
        for (bins, other) in self.bins.iter_mut().zip(&other.bins) {
            add_bins(bins, other);
        }
    }

    /// The third pass, which knows the keys and their ranks.
    ///
    /// # Panics
    /// If fewer keys were counted in this pass than in the first.
    pub fn select(&self) -> TieCount {
        let keys = self.wanted.iter().map(|wanted| {
            let (lower, less) = bin_of(&self.bins[wanted.slot], wanted.rest);
            let key = u32::from(self.uppers[wanted.slot]) << 16 | u32::from(lower);
            (key, wanted.less + less)
        });
        TieCount {
            len: self.len,
            keys: keys.collect(),
        }
    }
}

/// Third pass: the keys of the wanted ranks, and how many of each a chunk holds.
#[derive(Clone, Debug)]
pub struct TieCount {
    len: u64,
    /// Each key with the number of smaller ones.
    keys: Vec<(u32, u64)>,
}

/// How many keys of one chunk equal each of the wanted ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkTies {
    equal: Vec<u64>,
}

impl TieCount {
    /// An empty count, to which the blocks of one chunk are added by [`TieCount::add`].
    pub fn start(&self) -> ChunkTies {
        ChunkTies {
            equal: vec![0; self.keys.len()],
        }
    }

    /// Counts the next keys of a chunk.
    pub fn add(&self, ties: &mut ChunkTies, keys: &[u32]) {
        for (equal, &(key, _)) in ties.equal.iter_mut().zip(&self.keys) {
            *equal += count_equal(keys, key);
        }
    }

    /// The count of a whole chunk.
    pub fn count(&self, keys: &[u32]) -> ChunkTies {
        let mut ties = self.start();
        self.add(&mut ties, keys);
        ties
    }

    /// The statistic of every rank, in the order in which ranks were given, from the counts of all chunks in chunk order.
    ///
    /// # Panics
    /// If a count was started from another `TieCount`, for fewer ranks.
    pub fn resolve(&self, chunks: &[ChunkTies]) -> Vec<Statistic> {
        let statistic = |(i, &(key, less)): (usize, &(u32, u64))| {
            Statistic::new(
                key,
                self.len,
                less,
                chunks.iter().map(|chunk| chunk.equal[i]),
            )
        };
        self.keys.iter().enumerate().map(statistic).collect()
    }
}

fn add_bins(bins: &mut [u64], other: &[u64]) {
    for (bin, other) in bins.iter_mut().zip(other) {
        *bin += other;
    }
}

/// The bin in which the key of `rank` lies, and the number of keys in the bins before it.
fn bin_of(bins: &[u64], rank: u64) -> (u16, u64) {
    let mut less = 0;
    for (bin, &count) in bins.iter().enumerate() {
        if rank - less < count {
            return (bin as u16, less);
        }
        less += count;
    }
    panic!("rank {rank} of {less} keys: a pass has not seen the keys of the one before");
}

kernel! {
    fn count_equal(keys: &[u32], key: u32) -> u64 {
        keys.chunks(1 << 16)
            .map(|block| u64::from(block.iter().map(|&other| u32::from(other == key)).sum::<u32>()))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bits, LENGTHS, at_all_levels};

    #[test]
    fn histograms_of_threads_add_up() {
        let mut bits = Bits::new(12);
        let keys: Vec<u32> = (0..3000).map(|_| (bits.next() % 200_000) as u32).collect();
        let (left, right) = keys.split_at(1000);
        let ranks = [0, 1500, 1501, 2999];

        let (mut upper, mut other) = (RadixUpper::new(), RadixUpper::default());
        upper.add(left);
        other.add(right);
        upper.merge(&other);
        let mut lower = upper.select(&ranks);
        let mut other = lower.clone();
        lower.add(left);
        other.add(right);
        lower.merge(&other);
        let ties = lower.select();
        let found = ties.resolve(&[ties.count(left), ties.count(right)]);

        let mut sorted = keys.clone();
        sorted.sort_unstable();
        for (statistic, rank) in found.iter().zip(ranks) {
            let key = sorted[rank as usize];
            let place = |part: &[u32]| part.iter().filter(|&&k| k == key).count() as u64;
            assert_eq!(statistic.key, key);
            assert_eq!(
                statistic.less,
                keys.iter().filter(|&&k| k < key).count() as u64
            );
            assert_eq!(
                (statistic.equal_in_chunk(0), statistic.equal_in_chunk(1)),
                (place(left), place(right))
            );
            assert_eq!(statistic.equal_before_chunk(1), place(left));
        }
    }

    #[test]
    fn levels_agree() {
        let mut bits = Bits::new(13);
        for len in LENGTHS {
            let keys: Vec<u32> = (0..len).map(|_| (bits.next() % 3) as u32).collect();
            let got = at_all_levels(|| count_equal(&keys, 1));
            assert_eq!(got, keys.iter().filter(|&&k| k == 1).count() as u64);
        }
    }
}
