//! Random masks of task vectors: as a function of (seed, tensor name, task, element), so the same however and how often
//! they are drawn.
//!
//! Drawing costs more than merging, so a pass that has to draw them for statistics records them as bits, up to a limit.

use std::cell::Cell;

use merganser_kernels::ranked::Rising;
use merganser_kernels::{elementwise, mask, planes, sparse};

use crate::ranks::{RankMask, rising};
use crate::{Block, Grain, TensorGroup};

/// Drops what a mask says and divides the rest by the probability of being kept: d̂ = d · mask / `keep_probability`
/// (DARE, Yu et al. 2024). Every `delta` becomes +0 where the mask is 0.
///
/// # Panics
/// If the lengths differ.
pub fn drop_and_rescale(delta: &mut [f32], mask: &[f32], keep_probability: f32) {
    assert_eq!(
        delta.len(),
        mask.len(),
        "one mask element a task vector element"
    );
    for (d, keep) in delta.iter_mut().zip(mask) {
        *d = if *keep == 0.0 { 0.0 } else { *d };
    }
    if keep_probability > 0.0 {
        elementwise::scale(delta, 1.0 / keep_probability);
    }
}

/// Random masks, drawn again whenever they are needed, unless a first pass has recorded them.
pub(crate) struct Masks {
    streams: Vec<mask::Stream>,
    densities: Vec<f64>,
    /// The rise of the keep probability, if it rises with the rank.
    rising: Option<Vec<Rising>>,
    /// Whether the masks hold inverse probabilities instead of ones.
    inverse: bool,
    grain: Grain,
    /// How long the vectors are that are ranked, and how far apart their elements.
    ranked: (usize, usize),
    /// The masks of the first chunks as bits: block by block, task by task.
    recorded: Vec<Vec<u8>>,
}

/// Recorded masks may take this many bytes; what is beyond is drawn twice.
const RECORDED: usize = 64 << 20;

impl Masks {
    pub(crate) fn new(
        group: &TensorGroup<'_>,
        densities: &[f64],
        epsilons: Option<&[f64]>,
        inverse: bool,
    ) -> Self {
        let streams = (0..densities.len())
            .map(|task| mask::Stream::new(group.seed, group.name, task as u32))
            .collect();
        // Ranks run along the last dimension of a matrix, along the second one of anything larger.
        let ranked = match group.shape {
            [] => (1, 1),
            [n] => (*n, 1),
            [_, rows, rest @ ..] => (*rows, rest.iter().product()),
        };
        let rising = epsilons.map(|epsilons| {
            densities
                .iter()
                .zip(epsilons)
                .map(|(density, epsilon)| rising(*density, *epsilon, ranked.0))
                .collect()
        });
        Self {
            streams,
            densities: densities.to_vec(),
            grain: if epsilons.is_some() {
                Grain::Items
            } else {
                Grain::Elements
            },
            inverse,
            rising,
            ranked,
            recorded: Vec::new(),
        }
    }

    /// How the tensor must be cut into chunks.
    pub(crate) fn grain(&self) -> Grain {
        self.grain
    }

    /// Whether the masks hold inverse probabilities instead of ones.
    pub(crate) fn is_inverse(&self) -> bool {
        self.inverse
    }

    /// Appends a mask as bits, from a byte of its own on.
    pub(crate) fn record(mask: &[f32], recorded: &mut Vec<u8>) {
        let at = recorded.len();
        recorded.resize(at + mask.len().div_ceil(8), 0);
        planes::pack(mask, &mut recorded[at..]);
    }

    /// Takes the masks recorded by a pass over the tensor: those of all blocks of a chunk, block by block and task by
    /// task; empty where nothing was recorded.
    pub(crate) fn replay(&mut self, recorded: Vec<Vec<u8>>) {
        self.recorded = recorded;
    }

    /// How many chunks, from the first on, may be recorded.
    pub(crate) fn recorded_chunks(&self, group: &TensorGroup<'_>) -> usize {
        let bits = group.chunk_len(self.grain) * self.streams.len();
        RECORDED / (bits.div_ceil(8)).max(1)
    }

    /// Fills `mask` with what multiplies the elements of `delta`: 0 for those that are dropped.
    pub(crate) fn draw(
        &self,
        group: &TensorGroup<'_>,
        block: &Block<'_>,
        task: usize,
        delta: &[f32],
        mask: &mut [f32],
    ) {
        let (density, start) = (self.densities[task], block.start as u64);
        let Some(rising) = &self.rising else {
            self.streams[task].keep_mask(start, density as f32, mask);
            return;
        };
        if density >= 1.0 {
            mask.fill(1.0);
            return;
        }
        self.streams[task].uniform(start, mask);
        let (len, stride) = self.ranked;
        let item = group.item_len().max(1);
        with_ranks(|ranks| {
            for (delta, mask) in delta.chunks(item).zip(mask.chunks_mut(item)) {
                let mut rank = |delta: &[f32], mask: &mut [f32]| {
                    if self.inverse {
                        ranks.apply_inverse(delta, rising[task], mask);
                    } else {
                        ranks.apply(delta, rising[task], mask);
                    }
                };
                if stride == 1 {
                    rank(delta, mask);
                    continue;
                }
                for offset in 0..stride {
                    let places = || (0..len).map(|i| i * stride + offset);
                    let gathered: Vec<f32> = places().map(|i| delta[i]).collect();
                    let mut numbers: Vec<f32> = places().map(|i| mask[i]).collect();
                    rank(&gathered, &mut numbers);
                    places()
                        .zip(numbers)
                        .for_each(|(i, number)| mask[i] = number);
                }
            }
        });
    }

    pub(crate) fn apply(
        &self,
        group: &TensorGroup<'_>,
        block: &Block<'_>,
        task: usize,
        delta: &[f32],
        out: &mut [f32],
    ) {
        let recorded = self
            .recorded
            .get(block.chunk)
            .filter(|bits| !bits.is_empty());
        if let Some(bits) = recorded {
            let within = block.start - block.chunk * group.chunk_len(self.grain);
            let full = group.block_len(self.grain);
            let skipped = within / full * full.div_ceil(8) * self.streams.len();
            let size = block.len().div_ceil(8);
            let at = skipped + task * size;
            planes::retain(out, delta, &bits[at..at + size]);
            return;
        }
        with_mask(block.len(), |mask| {
            self.draw(group, block, task, delta, mask);
            sparse::retain_scaled(out, delta, mask);
        });
    }
}

thread_local! {
    static MASK: Cell<Vec<f32>> = Cell::default();
    static RANKS: Cell<Option<Box<RankMask>>> = Cell::default();
}

fn with_mask(len: usize, work: impl FnOnce(&mut [f32])) {
    let mut mask = MASK.take();
    mask.resize(len.max(mask.len()), 0.0);
    work(&mut mask[..len]);
    MASK.set(mask);
}

fn with_ranks(work: impl FnOnce(&mut RankMask)) {
    let mut ranks = RANKS.take().unwrap_or_default();
    work(&mut ranks);
    RANKS.set(Some(ranks));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_leaves_no_trace_of_infinity() {
        let mut delta = [1.0, f32::INFINITY, -2.0];
        drop_and_rescale(&mut delta, &[1.0, 0.0, 1.0], 0.5);
        assert_eq!(delta, [2.0, 0.0, -4.0]);
        drop_and_rescale(&mut delta, &[1.0, 1.0, 0.0], 0.0);
        assert_eq!(delta, [2.0, 0.0, 0.0]);
    }
}
