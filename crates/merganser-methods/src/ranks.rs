//! Which elements of a row survive when the keep probability rises with the rank of the magnitude (MagPrune of DELLA).
//!
//! Element i of rank r (0 for the smallest magnitude, ties in index order) is kept if its random number is below
//! p(r) = low + slope · r. Sorting every row would cost more than the whole merge, and most decisions do not need it: see
//! [`merganser_kernels::ranked`], which leaves only a few elements whose exact rank is counted here.

use merganser_kernels::keys;
use merganser_kernels::ranked::{self, RankBounds, Rising};

/// From density − ε at rank 0 to density + ε at rank len − 1; the density itself in a row of one.
pub(crate) fn rising(density: f64, epsilon: f64, len: usize) -> Rising {
    if len < 2 {
        return Rising {
            low: density as f32,
            slope: 0.0,
        };
    }
    Rising {
        low: (density - epsilon) as f32,
        slope: (2.0 * epsilon / (len - 1) as f64) as f32,
    }
}

/// With more undecided elements than this, sorting the row is cheaper than counting each of their ranks.
const UNDECIDED: usize = 256;

/// Reusable buffers.
#[derive(Default)]
pub(crate) struct RankMask {
    bounds: RankBounds,
    keys: Vec<u32>,
    undecided: Vec<u32>,
    sorted: Vec<u64>,
    ranks: Vec<u32>,
}

impl RankMask {
    /// Replaces each random number by 1 where the element of the row is kept and 0 where it is dropped. Elements that
    /// are 0 anyway are reported as dropped.
    pub(crate) fn apply(&mut self, row: &[f32], rising: Rising, numbers: &mut [f32]) {
        self.bounds.decide(row, rising, numbers);
        self.undecided
            .resize(row.len().max(self.undecided.len()), 0);
        let count = ranked::undecided(numbers, &mut self.undecided);
        if count == 0 {
            return;
        }
        self.take_keys(row);
        if count > UNDECIDED {
            self.sort();
            self.ranks.resize(self.keys.len(), 0);
            for (rank, packed) in self.sorted.iter().enumerate() {
                self.ranks[*packed as u32 as usize] = rank as u32;
            }
        }
        for &i in &self.undecided[..count] {
            let i = i as usize;
            let rank = if count > UNDECIDED {
                self.ranks[i]
            } else {
                ranked::stable_rank(&self.keys, i)
            };
            numbers[i] = if numbers[i] < rising.at(rank) {
                1.0
            } else {
                0.0
            };
        }
    }

    /// As [`RankMask::apply`], but what is kept gets 1 / p instead of 1.
    pub(crate) fn apply_inverse(&mut self, row: &[f32], rising: Rising, numbers: &mut [f32]) {
        self.take_keys(row);
        self.sort();
        for (rank, packed) in self.sorted.iter().enumerate() {
            let number = &mut numbers[*packed as u32 as usize];
            let p = rising.at(rank as u32);
            *number = if *number < p { 1.0 / p } else { 0.0 };
        }
    }

    fn take_keys(&mut self, row: &[f32]) {
        self.keys.resize(row.len(), 0);
        keys::magnitude_keys(&mut self.keys, row);
    }

    /// Sorts (key, index), which is the stable order of keys.
    fn sort(&mut self) {
        self.sorted.clear();
        self.sorted.extend(
            self.keys
                .iter()
                .enumerate()
                .map(|(i, &key)| u64::from(key) << 32 | i as u64),
        );
        self.sorted.sort_unstable();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The mask by the definition: a stable sort.
    fn expected(row: &[f32], rising: Rising, numbers: &[f32]) -> Vec<f32> {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| row[a].abs().total_cmp(&row[b].abs()));
        let mut mask = vec![0.0; row.len()];
        for (rank, &i) in order.iter().enumerate() {
            mask[i] = f32::from(u8::from(
                numbers[i] < rising.at(rank as u32) && row[i] != 0.0,
            ));
        }
        mask
    }

    fn check(row: &[f32], numbers: &[f32], density: f64, epsilon: f64) {
        let rising = rising(density, epsilon, row.len());
        let mut got = numbers.to_vec();
        RankMask::default().apply(row, rising, &mut got);
        assert_eq!(got, expected(row, rising, numbers));
        let mut scaled = numbers.to_vec();
        RankMask::default().apply_inverse(row, rising, &mut scaled);
        for ((scaled, kept), x) in scaled.iter().zip(&got).zip(row) {
            assert!(*x == 0.0 || (*scaled != 0.0) == (*kept != 0.0));
        }
    }

    #[test]
    fn ends_of_the_probability() {
        let probability = rising(0.5, 0.2, 11);
        assert!((probability.at(0) - 0.3).abs() < 1e-6 && (probability.at(10) - 0.7).abs() < 1e-6);
        assert_eq!(rising(0.4, 0.3, 1).at(0), 0.4);
    }

    #[test]
    fn long_rows_with_many_ties_are_sorted() {
        let numbers: Vec<f32> = (0..5000)
            .map(|i| (i * 7919 % 5000) as f32 / 5000.0)
            .collect();
        check(&vec![-2.5; 5000], &numbers, 0.5, 0.4);
        let steps: Vec<f32> = (0..5000).map(|i| ((i * 31 % 7) - 3) as f32).collect();
        check(&steps, &numbers, 0.6, 0.3);
    }

    proptest! {
        #[test]
        fn agrees_with_a_stable_sort(
            row in prop::collection::vec(prop_oneof![
                any::<f32>().prop_filter("finite", |x| x.is_finite()), -1f32..1.0, (-3i32..3).prop_map(|x| x as f32)], 0..400),
            seed in any::<u64>(), density in 0.3f64..0.7, epsilon in 0f64..0.29,
        ) {
            let mut state = seed;
            let numbers: Vec<f32> = row.iter().map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / 16_777_216.0
            }).collect();
            check(&row, &numbers, density, epsilon);
        }
    }
}
