//! Which elements of a row survive when the keep probability rises with the rank of the magnitude (MagPrune of DELLA).
//!
//! What is kept is decided without ranks: see [`merganser_kernels::ranked`]. Only the division of what is kept by its own
//! probability needs them, and so a sorted row.

use merganser_kernels::keys;
use merganser_kernels::ranked::{self, Rising};

/// From density − ε at rank 0 to density + ε at rank len − 1; the density itself in a row of one.
pub(crate) fn rising(density: f64, epsilon: f64, len: usize) -> Rising {
    let epsilon = if len < 2 { 0.0 } else { epsilon };
    Rising {
        low: (density - epsilon) as f32,
        high: (density + epsilon) as f32,
    }
}

/// Reusable buffers.
#[derive(Default)]
pub(crate) struct RankMask {
    /// The keys of the row, and room behind them.
    keys: Vec<u32>,
    sorted: Vec<u64>,
}

impl RankMask {
    /// Replaces each random number by 1 where the element of the row is kept and 0 where it is dropped.
    pub(crate) fn apply(&mut self, row: &[f32], rising: Rising, numbers: &mut [f32]) {
        let room = row.len().max(ranked::TABLE).max(self.keys.len());
        self.keys.resize(room, 0);
        keys::magnitude_keys(&mut self.keys[..row.len()], row);
        ranked::keep_rising(&self.keys, rising, numbers);
    }

    /// As [`RankMask::apply`], but what is kept gets 1 / p instead of 1.
    pub(crate) fn apply_inverse(&mut self, row: &[f32], rising: Rising, numbers: &mut [f32]) {
        self.apply(row, rising, numbers);
        let keys = self.keys[..row.len()].iter().enumerate();
        self.sorted.clear();
        self.sorted
            .extend(keys.map(|(i, &key)| u64::from(key) << 32 | i as u64));
        self.sorted.sort_unstable();
        for (rank, packed) in self.sorted.iter().enumerate() {
            numbers[*packed as u32 as usize] /= rising.at(rank as u32, row.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ends_of_the_probability() {
        let probability = rising(0.5, 0.2, 11);
        assert!((probability.at(0, 11) - 0.3).abs() < 1e-6);
        assert!((probability.at(10, 11) - 0.7).abs() < 1e-6);
        assert_eq!(rising(0.4, 0.3, 1).at(0, 1), 0.4);
    }

    proptest! {
        #[test]
        fn what_is_kept_is_divided_by_its_probability(
            row in prop::collection::vec(prop_oneof![
                any::<f32>().prop_filter("finite", |x| x.is_finite()), -1f32..1.0, (-3i32..3).prop_map(|x| x as f32)], 0..400),
            seed in any::<u64>(), density in 0.3f64..0.7, epsilon in 0f64..0.29,
        ) {
            let mut state = seed;
            let numbers: Vec<f32> = row.iter().map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / 16_777_216.0
            }).collect();
            let rising = rising(density, epsilon, row.len());
            let (mut kept, mut scaled) = (numbers.clone(), numbers);
            RankMask::default().apply(&row, rising, &mut kept);
            RankMask::default().apply_inverse(&row, rising, &mut scaled);
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| row[a].abs().total_cmp(&row[b].abs()));
            for (rank, &i) in order.iter().enumerate() {
                prop_assert_eq!(scaled[i], kept[i] / rising.at(rank as u32, row.len()));
            }
        }
    }
}
