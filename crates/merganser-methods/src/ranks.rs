//! Which elements of a row survive when the keep probability rises with the rank of the magnitude (MagPrune of DELLA).
//!
//! Element i of rank r (0 for the smallest magnitude, ties in index order) is kept if its random number is below
//! p(r) = low + slope · r. Sorting every row would cost more than the whole merge, and most decisions do not need it:
//! a histogram over the leading bits of the magnitudes bounds each rank from both sides, and only where the random
//! number falls between the two bounds is the exact rank counted.

use merganser_kernels::{keys, sparse};

/// Keep probability as a function of the rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rising {
    low: f32,
    slope: f32,
}

impl Rising {
    /// From density − ε at rank 0 to density + ε at rank len − 1; the density itself in a row of one.
    pub(crate) fn new(density: f64, epsilon: f64, len: usize) -> Self {
        if len < 2 {
            return Self {
                low: density as f32,
                slope: 0.0,
            };
        }
        Self {
            low: (density - epsilon) as f32,
            slope: (2.0 * epsilon / (len - 1) as f64) as f32,
        }
    }

    /// The probability of keeping the element of rank `rank`; never falls as the rank rises.
    pub(crate) fn at(self, rank: u32) -> f32 {
        self.low + self.slope * rank as f32
    }
}

/// Buckets of the histogram: eight octaves below the largest magnitude, 128 steps each.
const BUCKETS: usize = 1 << 10;
/// The step of a bucket: the upper 16 bits of a magnitude key, as many as a bfloat16 has.
const SHIFT: u32 = 16;
/// With more undecided elements than this, sorting the row is cheaper.
const UNDECIDED: usize = 256;

/// Reusable buffers.
pub(crate) struct RankMask {
    keys: Vec<u32>,
    counts: Vec<u32>,
    /// The least and the greatest keep probability of each bucket.
    bounds: Vec<[f32; 2]>,
    undecided: Vec<u32>,
    sorted: Vec<u64>,
    ranks: Vec<u32>,
}

impl Default for RankMask {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            counts: vec![0; BUCKETS],
            bounds: vec![[0.0; 2]; BUCKETS],
            undecided: Vec::new(),
            sorted: Vec::new(),
            ranks: Vec::new(),
        }
    }
}

impl RankMask {
    /// Replaces each random number by 1 where the element of the row is kept and 0 where it is dropped. Elements that
    /// are 0 anyway are reported as dropped.
    pub(crate) fn apply(&mut self, row: &[f32], rising: Rising, numbers: &mut [f32]) {
        self.keys.resize(row.len(), 0);
        keys::magnitude_keys(&mut self.keys, row);
        let largest = self.keys.iter().copied().max().unwrap_or(0) >> SHIFT;
        let lowest = largest.saturating_sub(BUCKETS as u32 - 1);
        let bucket = |key: u32| ((key >> SHIFT).saturating_sub(lowest)) as usize & (BUCKETS - 1);
        self.counts.fill(0);
        for &key in &self.keys {
            self.counts[bucket(key)] += 1;
        }
        let mut before = 0;
        for (&count, bounds) in self.counts.iter().zip(&mut self.bounds) {
            *bounds = [
                rising.at(before),
                rising.at((before + count).saturating_sub(1)),
            ];
            before += count;
        }
        // Every index is written and only the undecided advance: no branch depends on a random number.
        self.undecided.resize(row.len() + 1, 0);
        let mut undecided = 0;
        for (i, (&key, number)) in self.keys.iter().zip(&mut *numbers).enumerate() {
            let [least, greatest] = self.bounds[bucket(key)];
            let (certain, possible) = (*number < least, *number < greatest);
            self.undecided[undecided] = i as u32;
            let open = (certain != possible) & (key != 0);
            undecided += usize::from(open);
            *number = if open {
                *number
            } else {
                f32::from(u8::from(certain & (key != 0)))
            };
        }
        if undecided > UNDECIDED {
            self.settle_by_sorting(rising, numbers, undecided);
        } else {
            for &i in &self.undecided[..undecided] {
                let number = &mut numbers[i as usize];
                let rank = sparse::stable_rank(&self.keys, i as usize);
                *number = f32::from(u8::from(*number < rising.at(rank)));
            }
        }
    }

    fn settle_by_sorting(&mut self, rising: Rising, numbers: &mut [f32], undecided: usize) {
        self.sort();
        self.ranks.resize(self.keys.len(), 0);
        for (rank, packed) in self.sorted.iter().enumerate() {
            self.ranks[*packed as u32 as usize] = rank as u32;
        }
        for &i in &self.undecided[..undecided] {
            let number = &mut numbers[i as usize];
            *number = f32::from(u8::from(*number < rising.at(self.ranks[i as usize])));
        }
    }

    /// As [`RankMask::apply`], but what is kept gets 1 / p instead of 1.
    pub(crate) fn apply_inverse(&mut self, row: &[f32], rising: Rising, numbers: &mut [f32]) {
        self.keys.resize(row.len(), 0);
        keys::magnitude_keys(&mut self.keys, row);
        self.sort();
        for (rank, packed) in self.sorted.iter().enumerate() {
            let number = &mut numbers[*packed as u32 as usize];
            let p = rising.at(rank as u32);
            *number = if *number < p { 1.0 / p } else { 0.0 };
        }
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
        let rising = Rising::new(density, epsilon, row.len());
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
        let rising = Rising::new(0.5, 0.2, 11);
        assert!((rising.at(0) - 0.3).abs() < 1e-6 && (rising.at(10) - 0.7).abs() < 1e-6);
        assert_eq!(Rising::new(0.4, 0.3, 1).at(0), 0.4);
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
