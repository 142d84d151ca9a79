//! Thinning of task vectors: which elements of each are kept, and by how much the kept ones grow.
//!
//! With n elements, density ρ and products in f64 truncated to integers, as in mergekit:
//!
//! * *magnitude* keeps the max(1, ⌊ρn⌋) largest magnitudes of the tensor (none at ρ = 0), lowest index first among equal
//!   ones;
//! * *outliers* drops the ⌊γn⌋ largest as well: of the stable ascending order it keeps ⌊ρn⌋ elements from place
//!   max(0, n − ⌊ρn⌋ − ⌊γn⌋) on;
//! * *random* keeps each element with probability ρ (the "drop" of DARE);
//! * *rank* keeps it with a probability that rises from ρ − ε to ρ + ε with its rank in its row (MagPrune of DELLA).
//!
//! A density of 1 or more leaves a task vector alone. What is kept may be rescaled: by L1(d) / L1(kept), which restores the
//! L1 norm (mergekit's `rescale: true`), or by the inverse of the probability of being kept (the DARE paper).
//!
//! Sources: Yadav et al. 2023 (arXiv 2306.01708), Davari and Belilovsky 2023 (2312.06795), Yu et al. 2024 (2311.03099),
//! Deep et al. 2024 (2406.11617).

use std::cell::Cell;

use merganser_kernels::keys::magnitude_keys;
use merganser_kernels::{reduce, sparse};

use crate::masks::Masks;
use crate::select::{Cut, Streams};
use crate::{Block, Grain, MethodError, Settings, TensorGroup, View};

/// How the task vectors of a method are thinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sparsifier {
    /// Not at all.
    None,
    /// By magnitude.
    Magnitude,
    /// By magnitude, without the largest ones.
    Outliers,
    /// At random.
    Random,
    /// At random, with a probability that rises with the magnitude.
    Rank,
}

/// How the kept part is rescaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rescale {
    /// Not at all.
    None,
    /// To the L1 norm of the whole.
    L1,
    /// By the inverse of the probability of being kept.
    Density,
}

impl Rescale {
    /// The parameter `rescale`: `true` means what mergekit does.
    pub(crate) fn of(settings: &Settings) -> Self {
        match settings.text("rescale") {
            Some("true" | "l1") => Self::L1,
            Some("density") => Self::Density,
            _ if settings.flag("rescale") => Self::L1,
            _ => Self::None,
        }
    }
}

/// The L1 norms of the whole and of the kept part of each task vector, and the masks of every chunk, packed.
type Norms = (Vec<(f64, f64)>, Vec<Vec<u8>>);

/// L1 norms below this are not rescaled to or from.
const LEAST_NORM: f64 = 1e-7;

/// The task vectors of one tensor, thinned.
pub(crate) struct Thinned<'a> {
    group: &'a TensorGroup<'a>,
    kept: Kept,
    /// What multiplies the kept part of each task vector.
    pub(crate) factors: Vec<f32>,
}

enum Kept {
    All,
    /// The elements that pass the first cut and not the second.
    Bands(Vec<(Cut, Cut)>),
    Masks(Masks),
}

impl<'a> Thinned<'a> {
    /// Task vectors as they are.
    pub(crate) fn whole(group: &'a TensorGroup<'a>) -> Self {
        Self {
            group,
            kept: Kept::All,
            factors: vec![1.0; group.others().len()],
        }
    }

    /// Task vectors cut at given magnitude keys: what is at least as large is kept, all ties included.
    pub(crate) fn at_keys(
        group: &'a TensorGroup<'a>,
        keys: &[u32],
        rescale: Rescale,
    ) -> Result<Self, MethodError> {
        let bands = keys.iter().map(|&key| (Cut::at(key), Cut::NONE)).collect();
        Self::rescaled(group, Kept::Bands(bands), rescale)
    }

    /// Thins the task vectors of a group by its settings.
    pub(crate) fn new(
        group: &'a TensorGroup<'a>,
        sparsifier: Sparsifier,
        rescale: Rescale,
    ) -> Result<Self, MethodError> {
        let densities = group.other_floats("density");
        if sparsifier == Sparsifier::None || densities.iter().all(|density| *density >= 1.0) {
            return Ok(Self::whole(group));
        }
        let kept = match sparsifier {
            Sparsifier::None => Kept::All,
            Sparsifier::Magnitude => Kept::Bands(largest(group, &densities)?),
            Sparsifier::Outliers => Kept::Bands(without_outliers(group, &densities)?),
            Sparsifier::Random => Kept::Masks(Masks::new(group, &densities, None, false)),
            Sparsifier::Rank => {
                let epsilons = group.other_floats("epsilon");
                Kept::Masks(Masks::new(
                    group,
                    &densities,
                    Some(&epsilons),
                    rescale == Rescale::Density,
                ))
            }
        };
        Self::rescaled(group, kept, rescale)
    }

    fn rescaled(
        group: &'a TensorGroup<'a>,
        kept: Kept,
        rescale: Rescale,
    ) -> Result<Self, MethodError> {
        let densities = group.other_floats("density");
        let mut thinned = Self {
            group,
            kept,
            factors: vec![1.0; densities.len()],
        };
        match rescale {
            Rescale::None => {}
            Rescale::L1 => {
                let (norms, recorded) = thinned.norms()?;
                let factor = |(whole, kept): (f64, f64)| {
                    if whole < LEAST_NORM || kept < LEAST_NORM {
                        1.0
                    } else {
                        (whole / kept) as f32
                    }
                };
                thinned.factors = norms.into_iter().map(factor).collect();
                if let Kept::Masks(masks) = &mut thinned.kept {
                    masks.replay(recorded);
                }
            }
            // Rising probabilities differ from element to element; their inverses are part of the masks.
            Rescale::Density if matches!(&thinned.kept, Kept::Masks(masks) if masks.is_inverse()) =>
                {}
            Rescale::Density => {
                let inverse = |density: &f64| {
                    if *density > 0.0 {
                        (1.0 / density.min(1.0)) as f32
                    } else {
                        1.0
                    }
                };
                thinned.factors = densities.iter().map(inverse).collect();
            }
        }
        Ok(thinned)
    }

    /// How the tensor must be cut into chunks.
    pub(crate) fn grain(&self) -> Grain {
        match &self.kept {
            Kept::Masks(masks) => masks.grain(),
            Kept::All | Kept::Bands(_) => Grain::Elements,
        }
    }

    /// Whether every task vector is left as it is.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.kept, Kept::All)
    }

    /// The least magnitude key that is kept of each task vector, if that describes what is kept of this block.
    pub(crate) fn keys_within(&self, block: &Block<'_>) -> Option<Vec<u32>> {
        let Kept::Bands(bands) = &self.kept else {
            return None;
        };
        let key = |(low, high): &(Cut, Cut)| {
            let plain = *high == Cut::NONE && low.change_within(block.start, block.len()).is_none();
            plain.then(|| low.key_at(block.start))
        };
        bands.iter().map(key).collect()
    }

    /// Writes what is kept of task vector `task` in one block, before rescaling; +0 elsewhere.
    pub(crate) fn apply(&self, block: &Block<'_>, task: usize, delta: &[f32], out: &mut [f32]) {
        match &self.kept {
            Kept::All => out.copy_from_slice(delta),
            Kept::Bands(bands) => retain_between(bands[task], block.start, delta, out),
            Kept::Masks(masks) => masks.apply(self.group, block, task, delta, out),
        }
    }

    /// One pass over the task vectors, which also records masks.
    fn norms(&self) -> Result<Norms, MethodError> {
        let tasks = self.factors.len();
        let capacity = match &self.kept {
            Kept::Masks(masks) => masks.recorded_chunks(self.group),
            Kept::All | Kept::Bands(_) => 0,
        };
        let chunks = self.group.scan(
            self.grain(),
            View::Deltas,
            |_| (vec![(0.0, 0.0); tasks], Vec::new()),
            |(norms, recorded), block| {
                with_scratch(1, block.len(), |scratch| {
                    let scratch = &mut *scratch[0];
                    for (task, delta) in block.others().into_iter().enumerate() {
                        let (whole, kept) = if let Kept::Masks(masks) = &self.kept {
                            masks.draw(self.group, block, task, delta, scratch);
                            if block.chunk < capacity {
                                Masks::record(scratch, recorded);
                            }
                            reduce::sum_abs_scaled(delta, scratch)
                        } else {
                            self.apply(block, task, delta, scratch);
                            (reduce::sum_abs(delta), reduce::sum_abs(scratch))
                        };
                        norms[task].0 += whole;
                        norms[task].1 += kept;
                    }
                });
            },
        )?;
        let mut total = vec![(0.0, 0.0); tasks];
        let mut recorded = Vec::new();
        for (norms, bits) in chunks {
            for (total, norms) in total.iter_mut().zip(norms) {
                total.0 += norms.0;
                total.1 += norms.1;
            }
            recorded.push(bits);
        }
        Ok((total, recorded))
    }
}

/// One pass over the magnitudes of those task vectors that have ranks to be found.
fn magnitude_streams<R>(
    group: &TensorGroup<'_>,
    tasks: &[usize],
    work: impl FnOnce(&Streams<'_>) -> Result<R, MethodError>,
) -> Result<R, MethodError> {
    let others = group.others();
    let inputs: Vec<usize> = tasks.iter().map(|task| others[*task]).collect();
    let keys = |_: usize, block: &Block<'_>, keys: &mut [Vec<u32>]| {
        for (keys, input) in keys.iter_mut().zip(&inputs) {
            keys.resize(block.len(), 0);
            magnitude_keys(keys, block.input(*input));
        }
    };
    work(&Streams::new(
        &[group],
        View::Deltas,
        vec![group.elements() as u64; tasks.len()],
        &keys,
    ))
}

/// The cuts that keep the ⌊ρn⌋ largest magnitudes of each task vector.
fn largest(group: &TensorGroup<'_>, densities: &[f64]) -> Result<Vec<(Cut, Cut)>, MethodError> {
    let n = group.elements() as u64;
    let kept: Vec<u64> = densities
        .iter()
        .map(|density| largest_count(*density, n))
        .collect();
    let mut bands: Vec<(Cut, Cut)> = kept
        .iter()
        .map(|k| (if *k == 0 { Cut::NONE } else { Cut::ALL }, Cut::NONE))
        .collect();
    let tasks: Vec<usize> = (0..kept.len())
        .filter(|task| kept[*task] > 0 && kept[*task] < n)
        .collect();
    if tasks.is_empty() {
        return Ok(bands);
    }
    magnitude_streams(group, &tasks, |streams| {
        let ranks: Vec<Vec<u64>> = tasks.iter().map(|task| vec![n - kept[*task]]).collect();
        for (stream, (task, found)) in tasks.iter().zip(streams.select(&ranks)?).enumerate() {
            bands[*task].0 = streams.cut_keeping(stream, &found[0], kept[*task])?;
        }
        Ok(())
    })?;
    Ok(bands)
}

/// How many of n elements the *magnitude* sparsifier keeps.
fn largest_count(density: f64, n: u64) -> u64 {
    if density <= 0.0 {
        0
    } else {
        ((density * n as f64) as u64).clamp(1.min(n), n)
    }
}

/// The cuts that keep the middle of the magnitudes of each task vector.
fn without_outliers(
    group: &TensorGroup<'_>,
    densities: &[f64],
) -> Result<Vec<(Cut, Cut)>, MethodError> {
    let n = group.elements() as u64;
    let gammas = group.other_floats("gamma");
    let places: Vec<(u64, u64)> = densities
        .iter()
        .zip(&gammas)
        .map(|(d, g)| middle(*d, *g, n))
        .collect();
    let mut bands: Vec<(Cut, Cut)> = places
        .iter()
        .map(|(from, to)| (if from == to { Cut::NONE } else { Cut::ALL }, Cut::NONE))
        .collect();
    let tasks: Vec<usize> = (0..places.len())
        .filter(|task| {
            let (from, to) = places[*task];
            from < to && (from > 0 || to < n)
        })
        .collect();
    if tasks.is_empty() {
        return Ok(bands);
    }
    // The first element kept, and the first one above, where there is one.
    let ends = |task: usize| {
        let (from, to) = places[task];
        [
            Some(from).filter(|from| *from > 0),
            Some(to).filter(|to| *to < n),
        ]
    };
    magnitude_streams(group, &tasks, |streams| {
        let ranks: Vec<Vec<u64>> = tasks
            .iter()
            .map(|task| ends(*task).into_iter().flatten().collect())
            .collect();
        for (stream, (task, found)) in tasks.iter().zip(streams.select(&ranks)?).enumerate() {
            let mut found = found.iter();
            let mut cut = |rank: Option<u64>, without: Cut| match rank
                .and_then(|rank| Some((rank, found.next()?)))
            {
                Some((rank, statistic)) => streams.cut_dropping(stream, statistic, rank),
                None => Ok(without),
            };
            let [from, to] = ends(*task);
            bands[*task] = (cut(from, Cut::ALL)?, cut(to, Cut::NONE)?);
        }
        Ok(())
    })?;
    Ok(bands)
}

/// The places in ascending order that the *outliers* sparsifier keeps.
fn middle(density: f64, gamma: f64, n: u64) -> (u64, u64) {
    if density >= 1.0 {
        return (0, n);
    }
    let count = |share: f64| (share.max(0.0) * n as f64) as u64;
    let target = count(density).min(n);
    let from = n.saturating_sub(target).saturating_sub(count(gamma));
    (from, from + target)
}

/// `out` = `delta` where its key passes the first cut and not the second, else +0.
fn retain_between((low, high): (Cut, Cut), start: usize, delta: &[f32], out: &mut [f32]) {
    let len = delta.len();
    let mut ends = [
        low.change_within(start, len).unwrap_or(len),
        high.change_within(start, len).unwrap_or(len),
        len,
    ];
    ends.sort_unstable();
    let mut from = 0;
    for to in ends {
        if from < to {
            let at = start + from;
            sparse::retain_band(
                &mut out[from..to],
                &delta[from..to],
                low.key_at(at),
                high.key_at(at),
            );
            from = to;
        }
    }
}

thread_local! {
    static SCRATCH: Cell<Vec<Vec<f32>>> = Cell::default();
}

/// `count` buffers of `len` numbers, for one use at a time on a thread.
pub(crate) fn with_scratch(count: usize, len: usize, work: impl FnOnce(&mut [&mut [f32]])) {
    let mut scratch = SCRATCH.take();
    scratch.resize_with(count.max(scratch.len()), Vec::new);
    for buffer in &mut scratch[..count] {
        buffer.resize(len.max(buffer.len()), 0.0);
    }
    work(
        &mut scratch[..count]
            .iter_mut()
            .map(|buffer| &mut buffer[..len])
            .collect::<Vec<_>>(),
    );
    SCRATCH.set(scratch);
}

#[cfg(test)]
mod tests {
    use super::*;
    use merganser_kernels::keys::magnitude_key;
    use proptest::prelude::*;

    #[test]
    fn counts_truncate_as_in_the_reference() {
        assert_eq!(largest_count(0.29, 100), 28);
        assert_eq!(
            (
                largest_count(0.001, 100),
                largest_count(0.0, 100),
                largest_count(2.0, 100)
            ),
            (1, 0, 100)
        );
        assert_eq!(largest_count(0.5, 0), 0);
        assert_eq!(middle(0.5, 0.1, 10), (4, 9));
        assert_eq!(middle(0.95, 0.2, 10), (0, 9));
        assert_eq!(
            (middle(0.0, 0.1, 10), middle(1.0, 0.1, 10)),
            ((9, 9), (0, 10))
        );
    }

    proptest! {
        #[test]
        fn bands_are_what_their_cuts_say(
            delta in prop::collection::vec((-4i32..4).prop_map(|x| x as f32), 1..60),
            start in 0usize..50, low in (0usize..120, 0i32..4), high in (0usize..120, 2i32..6), kind in 0usize..4,
        ) {
            let key = |x: i32| magnitude_key(x as f32);
            let low = Cut { boundary: low.0, before: key(low.1), after: key(low.1) + (kind % 2) as u32 };
            let high = Cut { boundary: high.0, before: key(high.1) + (kind / 2) as u32, after: key(high.1) };
            let mut out = vec![9.0; delta.len()];
            retain_between((low, high), start, &delta, &mut out);
            for (j, (&x, &got)) in delta.iter().zip(&out).enumerate() {
                let key = magnitude_key(x);
                let kept = key >= low.key_at(start + j) && key < high.key_at(start + j);
                prop_assert_eq!(got, if kept { x } else { 0.0 });
            }
        }
    }
}
