//! Keep probabilities that rise with the rank of a magnitude in its row, without the ranks.
//!
//! Of n elements, the one of rank r (0 for the smallest magnitude, equal ones in index order) is kept with probability
//! p = low + (high − low) · r / (n − 1). The share r / (n − 1) of the other elements comes before it, so it is the
//! probability that *one* other element, drawn at random, comes before it. Hence one random number u a element decides:
//!
//! * u < low: kept;
//! * u ≥ high: dropped;
//! * in between, the place of u between low and high, which is uniform as well, draws another element, and the element is
//!   kept if that one comes before it.
//!
//! Decisions of different elements depend on different random numbers alone, so they are independent, and p is met up to
//! the granularity of u (2⁻²⁴). One look at one neighbour replaces sorting the row, which would cost more than the merge.
//!
//! For DELLA: Deep et al., "DELLA-Merging" (2024), MagPrune.

#![allow(clippy::inline_always)] // see simd.rs: inlining carries the target features

/// Keep probability as a function of the rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rising {
    /// The probability of the smallest magnitude.
    pub low: f32,
    /// The probability of the largest magnitude; at least `low`.
    pub high: f32,
}

impl Rising {
    /// The probability of keeping the element of rank `rank` in a row of `len`.
    pub fn at(self, rank: u32, len: usize) -> f32 {
        self.low + (self.high - self.low) * (rank as f32 / len.saturating_sub(1).max(1) as f32)
    }
}

/// Rows up to this length are looked up without a check of bounds, and so by vector instructions.
pub const TABLE: usize = 1 << 16;

/// A row: what is the same for all its elements.
#[derive(Clone, Copy)]
struct Row {
    rising: Rising,
    /// Other elements a unit of u.
    scale: f32,
    /// The number of the last other element.
    last: u32,
}

impl Row {
    fn new(mut rising: Rising, len: usize) -> Self {
        let others = len.saturating_sub(1);
        if others == 0 {
            rising.high = rising.low;
        }
        let span = rising.high - rising.low;
        Self {
            rising,
            scale: if span > 0.0 {
                others as f32 / span
            } else {
                0.0
            },
            last: others.saturating_sub(1) as u32,
        }
    }

    /// Whether the random number `u` keeps element `i`, whose key is `key`, in a row where `key_of` gives the other keys.
    #[inline(always)]
    fn keeps(
        self,
        u: f32,
        i: u32,
        key: u32,
        floor: impl Fn(f32) -> u32,
        key_of: impl Fn(u32) -> u32,
    ) -> f32 {
        let drawn = floor((u - self.rising.low) * self.scale).min(self.last);
        // The others are numbered without element i.
        let leads = u32::from(drawn < i);
        // Equal keys come in index order: one that leads comes before an equal one. Keys are below u32::MAX.
        let before = key_of(drawn + 1 - leads) < key + leads;
        if (u < self.rising.low) | ((u < self.rising.high) & before) {
            1.0
        } else {
            0.0
        }
    }
}

/// ⌊x⌋ for 0 ≤ x < 2²³; something larger for any other number. Unlike a cast, which saturates, it vectorises.
#[inline(always)]
fn small_floor(x: f32) -> u32 {
    const SHIFTER: f32 = 8_388_608.0;
    // As an f32, the sum is the nearest whole number to x, in the last bits.
    let sum = x + SHIFTER;
    let above = u32::from(sum - SHIFTER > x);
    sum.to_bits()
        .wrapping_sub(SHIFTER.to_bits())
        .wrapping_sub(above)
}

/// Replaces each random number by 1 where the element of the row is kept and by 0 where it is dropped; a row of one is kept
/// with the lower probability. `keys` begins with
/// the [magnitude keys](crate::keys::magnitude_key) of the row; what follows is ignored.
///
/// # Panics
/// If there are fewer keys than numbers.
pub fn keep_rising(keys: &[u32], rising: Rising, numbers: &mut [f32]) {
    assert!(keys.len() >= numbers.len(), "one key an element");
    let row = Row::new(rising, numbers.len());
    match keys.first_chunk::<TABLE>() {
        Some(table) if numbers.len() <= TABLE => keep_in_table(table, row, numbers),
        _ => keep_in_slice(keys, row, numbers),
    }
}

kernel! {
    fn keep_in_table(keys: &[u32; TABLE], row: Row, numbers: &mut [f32]) {
        for (i, (number, &key)) in numbers.iter_mut().zip(keys).enumerate() {
            *number = row.keeps(*number, i as u32, key, small_floor, |j| keys[j as usize % TABLE]);
        }
    }
}

kernel! {
    fn keep_in_slice(keys: &[u32], row: Row, numbers: &mut [f32]) {
        for (i, (number, &key)) in numbers.iter_mut().zip(keys).enumerate() {
            *number = row.keeps(*number, i as u32, key, |x| x as u32, |j| keys.get(j as usize).copied().unwrap_or(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::magnitude_key;
    use crate::mask::Stream;
    use crate::testing::{Bits, LENGTHS, at_all_levels, canonical};

    fn keys_of(row: &[f32], room: usize) -> Vec<u32> {
        let mut keys: Vec<u32> = row.iter().map(|&x| magnitude_key(x)).collect();
        keys.resize(room.max(keys.len()), 77);
        keys
    }

    /// By the definition: which other element is drawn, and whether it comes before in stable order.
    fn expected(row: &[f32], rising: Rising, numbers: &[f32]) -> Vec<f32> {
        let n = row.len();
        let decide = |(i, &u): (usize, &f32)| {
            let inner = u >= rising.low && u < rising.high && n > 1;
            let place = (u - rising.low) * ((n as f32 - 1.0) / (rising.high - rising.low));
            let before = inner && {
                let others: Vec<usize> = (0..n).filter(|j| *j != i).collect();
                let j = others[(place as usize).min(n - 2)];
                (row[j].abs(), j) < (row[i].abs(), i)
            };
            f32::from(u8::from(u < rising.low || before))
        };
        numbers.iter().enumerate().map(decide).collect()
    }

    #[test]
    fn decisions_are_those_of_the_definition_at_all_levels() {
        let mut bits = Bits::new(24);
        let rising = Rising {
            low: 0.2,
            high: 0.8,
        };
        for len in LENGTHS.into_iter().filter(|len| *len < 2000) {
            let row = bits.weights(len);
            let numbers: Vec<f32> = (0..len)
                .map(|_| (bits.next() >> 40) as f32 / 16_777_216.0)
                .collect();
            let wanted = expected(&row, rising, &numbers);
            for room in [0, TABLE] {
                let keys = keys_of(&row, room);
                let got = at_all_levels(|| {
                    let mut got = numbers.clone();
                    keep_rising(&keys, rising, &mut got);
                    canonical(&got)
                });
                assert_eq!(got, canonical(&wanted), "{len} elements, room {room}");
            }
        }
    }

    #[test]
    fn every_rank_is_kept_with_its_probability() {
        let rising = Rising {
            low: 0.35,
            high: 0.65,
        };
        // Ties, zeros, both signs.
        let row = [0.0_f32, -3.0, 1.0, 1.0, 0.0, 2.0, -1.0, 5.0, -0.5, 3.0];
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| f32::total_cmp(&row[a].abs(), &row[b].abs()));
        let keys = keys_of(&row, TABLE);
        let trials = 40_000;
        let mut kept = [0u32; 10];
        for trial in 0..trials {
            let mut numbers = [0.0; 10];
            Stream::new(1, "row", 0).uniform(trial * 10, &mut numbers);
            keep_rising(&keys, rising, &mut numbers);
            for (kept, number) in kept.iter_mut().zip(numbers) {
                *kept += u32::from(number == 1.0);
            }
        }
        for (rank, &i) in order.iter().enumerate() {
            let p = f64::from(rising.at(rank as u32, row.len()));
            assert!((p - (0.35 + 0.3 * rank as f64 / 9.0)).abs() < 1e-6);
            let sigma = (p * (1.0 - p) / trials as f64).sqrt();
            let found = f64::from(kept[i]) / trials as f64;
            assert!(
                (found - p).abs() < 5.0 * sigma,
                "rank {rank}: {found} not {p}"
            );
        }
    }

    #[test]
    fn rows_of_one_and_of_more_than_the_table() {
        let single = Rising {
            low: 0.4,
            high: 0.4,
        };
        let mut numbers = [0.39_f32];
        keep_rising(&[5], single, &mut numbers);
        assert_eq!(numbers, [1.0]);
        let len = TABLE + 50;
        let rising = Rising {
            low: 0.1,
            high: 0.9,
        };
        let keys: Vec<u32> = (0..len as u32).collect();
        let mut numbers = vec![0.5; len];
        keep_rising(&keys, rising, &mut numbers);
        // The element in the middle is drawn for all: those above it are kept.
        let kept = numbers.iter().filter(|x| **x == 1.0).count();
        assert!((len / 2 - 1..=len / 2 + 1).contains(&kept), "{kept}");
    }
}
