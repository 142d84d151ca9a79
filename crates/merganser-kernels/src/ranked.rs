//! Keep probabilities that rise with the rank of a magnitude in its row, decided almost without ranks.
//!
//! An element of rank r (0 for the smallest magnitude) is kept if its random number u is below p(r) = low + slope · r, with
//! low > 0 and slope ≥ 0. A histogram over the leading bits of the magnitudes bounds r from both sides, hence p(r); only
//! where u lies between the two bounds does the exact rank matter. Where it does not, the random number is replaced by
//! 1 (kept) or 0 (dropped); the others stay, and are those strictly between 0 and 1.
//!
//! For DELLA: Deep et al., "DELLA-Merging" (2024), MagPrune.

#![allow(clippy::inline_always)] // see simd.rs: inlining carries the target features

use crate::keys::magnitude_key;

/// Buckets of the histogram: eight octaves below the largest magnitude, 128 steps each.
const BUCKETS: usize = 1 << 10;
/// The step of a bucket: the upper 16 bits of a magnitude key, as many as a bfloat16 has.
const SHIFT: u32 = 16;

/// Keep probability as a function of the rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rising {
    /// The probability at rank 0; above 0.
    pub low: f32,
    /// What every rank adds; at least 0.
    pub slope: f32,
}

impl Rising {
    /// The probability of keeping the element of rank `rank`. It never falls as the rank rises.
    #[inline(always)]
    pub fn at(self, rank: u32) -> f32 {
        self.low + self.slope * rank as f32
    }
}

/// Reusable buffers.
#[derive(Debug, Clone)]
pub struct RankBounds {
    buckets: Vec<u16>,
    counts: [[u32; BUCKETS]; 2],
    least: [f32; BUCKETS],
    greatest: [f32; BUCKETS],
}

impl Default for RankBounds {
    fn default() -> Self {
        Self {
            buckets: Vec::new(),
            counts: [[0; BUCKETS]; 2],
            least: [0.0; BUCKETS],
            greatest: [0.0; BUCKETS],
        }
    }
}

impl RankBounds {
    /// Replaces the random numbers of one row by 1 or 0 wherever bounds on the rank decide; those of elements that are 0
    /// anyway by 0.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn decide(&mut self, row: &[f32], rising: Rising, numbers: &mut [f32]) {
        assert_eq!(row.len(), numbers.len(), "one random number an element");
        self.buckets.resize(row.len(), 0);
        decide(
            row,
            rising,
            numbers,
            &mut self.buckets,
            &mut self.counts,
            &mut self.least,
            &mut self.greatest,
        );
    }
}

kernel! {
    fn decide(
        row: &[f32],
        rising: Rising,
        numbers: &mut [f32],
        buckets: &mut [u16],
        counts: &mut [[u32; BUCKETS]; 2],
        least: &mut [f32; BUCKETS],
        greatest: &mut [f32; BUCKETS],
    ) {
        let largest = row.iter().fold(0, |max, &x| max.max(magnitude_key(x))) >> SHIFT;
        let lowest = largest.saturating_sub(BUCKETS as u32 - 1);
        for (bucket, &x) in buckets.iter_mut().zip(row) {
            *bucket = (magnitude_key(x) >> SHIFT).saturating_sub(lowest) as u16;
        }
        // Two histograms, because equal neighbours would wait for each other's count.
        let [even, odd] = counts;
        even.fill(0);
        odd.fill(0);
        let (pairs, rest) = buckets.as_chunks::<2>();
        for pair in pairs {
            even[usize::from(pair[0]) % BUCKETS] += 1;
            odd[usize::from(pair[1]) % BUCKETS] += 1;
        }
        for &bucket in rest {
            even[usize::from(bucket) % BUCKETS] += 1;
        }
        let mut before = 0;
        for (even, odd) in even.iter_mut().zip(odd.iter_mut()) {
            let count = *even + *odd;
            *even = before;
            before += count;
            *odd = before.saturating_sub(1);
        }
        for b in 0..BUCKETS {
            least[b] = rising.at(even[b]);
            greatest[b] = rising.at(odd[b]);
        }
        for ((number, &bucket), &x) in numbers.iter_mut().zip(&*buckets).zip(row) {
            let b = usize::from(bucket) % BUCKETS;
            let open = if *number < greatest[b] { *number } else { 0.0 };
            let decided = if *number < least[b] { 1.0 } else { open };
            *number = if x == 0.0 { 0.0 } else { decided };
        }
    }
}

kernel! {
    /// Writes the indices of the elements strictly between 0 and 1 to `found`, in order, and returns how many there are.
    ///
    /// # Panics
    /// If `found` is shorter than `numbers`.
    pub fn undecided(numbers: &[f32], found: &mut [u32]) -> usize {
        assert!(found.len() >= numbers.len(), "undecided: no room");
        let mut count = 0;
        for (group, numbers) in numbers.chunks(32).enumerate() {
            let any: u32 = numbers.iter().map(|&x| u32::from((x > 0.0) & (x < 1.0))).sum();
            if any != 0 {
                for (k, &x) in numbers.iter().enumerate() {
                    found[count] = (group * 32 + k) as u32;
                    count += usize::from((x > 0.0) & (x < 1.0));
                }
            }
        }
        count
    }
}

kernel! {
    /// The number of keys before `keys[at]` in stable ascending order: the smaller ones, and the equal ones of lower index.
    ///
    /// # Panics
    /// If there is no key `at`.
    pub fn stable_rank(keys: &[u32], at: usize) -> u32 {
        let key = keys[at];
        let (before, after) = keys.split_at(at);
        let leading: u32 = before.iter().map(|&other| u32::from(other <= key)).sum();
        let trailing: u32 = after.iter().map(|&other| u32::from(other < key)).sum();
        leading + trailing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bits, LENGTHS, at_all_levels, canonical};

    #[test]
    fn ranks_are_stable() {
        let mut bits = Bits::new(22);
        for len in LENGTHS {
            let keys: Vec<u32> = (0..len).map(|_| (bits.next() % 9) as u32).collect();
            let mut order: Vec<usize> = (0..len).collect();
            order.sort_by_key(|&i| keys[i]);
            for (rank, &at) in order.iter().enumerate().step_by(7) {
                assert_eq!(at_all_levels(|| stable_rank(&keys, at)) as usize, rank);
            }
        }
    }

    /// What is decided is decided as by the exact rank, and little stays open.
    #[test]
    fn decisions_are_right_at_all_levels() {
        let mut bits = Bits::new(24);
        for len in LENGTHS {
            let row = bits.weights(len);
            let numbers: Vec<f32> = (0..len)
                .map(|_| (bits.next() >> 40) as f32 / 16_777_216.0)
                .collect();
            let rising = Rising {
                low: 0.2,
                slope: 0.6 / len.max(2) as f32,
            };
            let got = at_all_levels(|| {
                let mut got = numbers.clone();
                RankBounds::default().decide(&row, rising, &mut got);
                let mut found = vec![0; len];
                let count = undecided(&got, &mut found);
                found.truncate(count);
                (canonical(&got), found)
            });
            let keys: Vec<u32> = row.iter().map(|&x| magnitude_key(x)).collect();
            let open = |i: usize| (0.0..1.0).contains(&f32::from_bits(got.0[i])) && got.0[i] != 0;
            assert_eq!(
                got.1,
                (0..len as u32)
                    .filter(|&i| open(i as usize))
                    .collect::<Vec<_>>()
            );
            assert!(got.1.len() <= 8 + len / 20, "{} of {len}", got.1.len());
            for i in 0..len {
                let kept = row[i] != 0.0 && numbers[i] < rising.at(stable_rank(&keys, i));
                let expected = if open(i) {
                    numbers[i]
                } else {
                    f32::from(u8::from(kept))
                };
                assert_eq!(f32::from_bits(got.0[i]), expected);
            }
        }
    }
}
