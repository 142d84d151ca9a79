//! Which rows are taken when fewer are asked for than there are.
//!
//! Every row has a key, a hash of (seed, number of the row in the file); the `n` rows of smallest key are taken, in the
//! order of the file. This is a uniform choice without replacement that needs one pass and keeps `n` rows, does not
//! depend on how many rows follow, and grows: the rows taken for `n` are among those taken for `n + 1`.
//! The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
//! 2014), a bijection of 64 bits, so two rows never have the same key.

use std::collections::BinaryHeap;

/// Rows chosen so far.
#[derive(Debug)]
pub(crate) struct Selection<T> {
    limit: usize,
    seed: u64,
    heap: BinaryHeap<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    key: u64,
    row: u64,
    value: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}
impl<T> Eq for Entry<T> {}
impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

impl<T> Selection<T> {
    /// Takes at most `limit` rows; all of them if `None`.
    pub(crate) fn new(limit: Option<usize>, seed: u64) -> Self {
        Self {
            limit: limit.unwrap_or(usize::MAX),
            seed,
            heap: BinaryHeap::new(),
        }
    }

    /// Offers row `row`, which is given up if enough rows of smaller key are there.
    pub(crate) fn offer(&mut self, row: u64, value: impl FnOnce() -> T) {
        let key = if self.limit == usize::MAX {
            row
        } else {
            key(self.seed, row)
        };
        if self.heap.len() == self.limit {
            match self.heap.peek() {
                Some(worst) if key < worst.key => self.heap.pop(),
                _ => return,
            };
        }
        self.heap.push(Entry {
            key,
            row,
            value: value(),
        });
    }

    /// The rows taken, in the order of the file.
    pub(crate) fn finish(self) -> Vec<(u64, T)> {
        let mut rows: Vec<_> = self
            .heap
            .into_iter()
            .map(|entry| (entry.row, entry.value))
            .collect();
        rows.sort_unstable_by_key(|(row, _)| *row);
        rows
    }
}

/// The numbers of the rows taken of `0..rows`, in order: at most `limit` of them, or all.
pub fn choose(rows: usize, limit: Option<usize>, seed: u64) -> Vec<usize> {
    let mut selection = Selection::new(limit, seed);
    for row in 0..rows {
        selection.offer(row as u64, || ());
    }
    let chosen = selection.finish();
    chosen.into_iter().map(|(row, ())| row as usize).collect()
}

fn key(seed: u64, row: u64) -> u64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    mix(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ row)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_choice_is_part_of_what_makes_results_reproducible() {
        assert_eq!(choose(100, Some(5), 0), [7, 14, 45, 52, 95]);
        assert_eq!(choose(3, None, 7), [0, 1, 2]);
    }

    proptest! {
        #[test]
        fn rows_are_taken_once_in_order_and_more_are_a_superset(
            rows in 0_usize..200, limit in 0_usize..60, seed in any::<u64>(),
        ) {
            let few = choose(rows, Some(limit), seed);
            prop_assert_eq!(few.len(), limit.min(rows));
            prop_assert!(few.windows(2).all(|pair| pair[0] < pair[1]));
            let more = choose(rows, Some(limit + 1), seed);
            prop_assert!(few.iter().all(|row| more.contains(row)));
            // Rows that follow take places; they never change which of the earlier ones is preferred.
            let longer = choose(rows + 50, Some(limit), seed);
            prop_assert!(longer.iter().filter(|&&row| row < rows).all(|row| few.contains(row)));
        }
    }

    #[test]
    fn every_row_is_equally_likely() {
        let mut counts = [0_u32; 20];
        for seed in 0..4000 {
            for row in choose(20, Some(5), seed) {
                counts[row] += 1;
            }
        }
        // 1000 expected, standard deviation 27.
        assert!(
            counts.iter().all(|count| (880..1120).contains(count)),
            "{counts:?}"
        );
    }
}
