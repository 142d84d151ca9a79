//! Exact order statistics over whole tensors, for several task vectors at once.
//!
//! The keys of a tensor (magnitudes of a task vector, variances, importances) form a stream in element order; a tensor
//! has one stream a task. A sample predicts where the wanted ranks lie, one pass over all streams together verifies it,
//! and where the prediction fails three more passes find the answer by radix: see [`merganser_kernels::order`].
//!
//! Streams may run over one tensor or over all tensors of a model, one after the other.

use std::cell::Cell;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use merganser_kernels::order::{
    ChunkCount, ChunkTies, RadixUpper, Sampler, Statistic, TieCount, Windows,
};
use rayon::prelude::*;

use crate::{Block, Grain, MethodError, TensorGroup, View};

/// Writes the keys of one block of group `g` (first argument) to one buffer a stream. The buffers come empty, and a
/// stream without keys in this group leaves its buffer so.
pub(crate) type Keys<'s> = dyn Fn(usize, &Block<'_>, &mut [Vec<u32>]) + Sync + 's;

/// The streams of keys to select from.
pub(crate) struct Streams<'s> {
    groups: &'s [&'s TensorGroup<'s>],
    view: View,
    keys: &'s Keys<'s>,
    /// How many keys each stream has.
    lens: Vec<u64>,
}

/// The keys of a few elements of each stream.
pub(crate) struct Sample {
    keys: Vec<Vec<u32>>,
}

/// The outcome of the counting pass.
pub(crate) struct Counted {
    streams: Vec<(Windows, Vec<ChunkCount>)>,
}

/// Runs of the sample that one thread reads at a time.
const AT_ONCE: usize = 64;

thread_local! {
    static BUFFERS: Cell<Vec<Vec<u32>>> = Cell::default();
}

impl<'s> Streams<'s> {
    /// Streams over all elements of the groups, with as many keys as `lens` says.
    pub(crate) fn new(
        groups: &'s [&'s TensorGroup<'s>],
        view: View,
        lens: Vec<u64>,
        keys: &'s Keys<'s>,
    ) -> Self {
        Self {
            groups,
            view,
            keys,
            lens,
        }
    }

    /// The statistics of the given ascending ranks (0-based), stream by stream, in the order of the ranks.
    pub(crate) fn select(&self, ranks: &[Vec<u64>]) -> Result<Vec<Vec<Statistic>>, MethodError> {
        let sample = self.sample()?;
        let counted = self.count(sample, ranks)?;
        self.resolve(&counted, ranks)
    }

    /// Reads a sample of every stream.
    pub(crate) fn sample(&self) -> Result<Sample, MethodError> {
        let total = self
            .groups
            .iter()
            .map(|group| group.elements() as u64)
            .sum();
        let mut runs = Sampler::new(total).runs().peekable();
        let mut places = Vec::new();
        let mut start = 0u64;
        for (g, group) in self.groups.iter().enumerate() {
            let end = start + group.elements() as u64;
            while let Some(run) = runs.peek().cloned().filter(|run| run.start < end) {
                let range =
                    (run.start.max(start) - start) as usize..(run.end.min(end) - start) as usize;
                places.push((g, range));
                if run.end > end {
                    break;
                }
                runs.next();
            }
            start = end;
        }
        let streams = self.lens.len();
        let read = |places: &[(usize, Range<usize>)]| {
            let mut sample = vec![Vec::new(); streams];
            for (g, range) in places {
                self.read(*g, range.clone(), |keys| {
                    for (sample, keys) in sample.iter_mut().zip(keys) {
                        sample.extend_from_slice(keys);
                    }
                })?;
            }
            Ok(sample)
        };
        let parts: Vec<Vec<Vec<u32>>> = places
            .par_chunks(AT_ONCE)
            .map(read)
            .collect::<Result<_, MethodError>>()?;
        let parts = transpose(parts, streams);
        Ok(Sample {
            keys: parts.into_iter().map(|parts| parts.concat()).collect(),
        })
    }

    /// Counts all keys once, around the places where the sample predicts the ranks.
    pub(crate) fn count(&self, sample: Sample, ranks: &[Vec<u64>]) -> Result<Counted, MethodError> {
        let predict = |((keys, len), ranks): ((Vec<u32>, &u64), &Vec<u64>)| {
            let mut sampler = Sampler::new(*len);
            sampler.add(&keys);
            sampler.windows(ranks)
        };
        let windows: Vec<Windows> = sample
            .keys
            .into_iter()
            .zip(&self.lens)
            .zip(ranks)
            .map(predict)
            .collect();
        let counts = self.scan(
            || windows.iter().map(Windows::start).collect(),
            |counts: &mut Vec<ChunkCount>, keys| {
                for (count, keys) in counts.iter_mut().zip(keys) {
                    count.add(keys);
                }
            },
        )?;
        let counts = transpose(counts, windows.len());
        Ok(Counted {
            streams: windows.into_iter().zip(counts).collect(),
        })
    }

    /// The statistics of ranks that are those of the counting pass or near them.
    pub(crate) fn resolve(
        &self,
        counted: &Counted,
        ranks: &[Vec<u64>],
    ) -> Result<Vec<Vec<Statistic>>, MethodError> {
        let found = counted
            .streams
            .iter()
            .zip(ranks)
            .map(|((windows, counts), ranks)| windows.resolve_at(ranks, counts));
        match found.collect() {
            Ok(found) => Ok(found),
            Err(_) => self.by_radix(ranks),
        }
    }

    fn by_radix(&self, ranks: &[Vec<u64>]) -> Result<Vec<Vec<Statistic>>, MethodError> {
        // Histograms are large, so threads share them; their sums do not depend on who comes first.
        let upper: Vec<_> = ranks
            .iter()
            .map(|_| Mutex::new(RadixUpper::new()))
            .collect();
        self.scan(
            || (),
            |(), keys| {
                for (upper, keys) in upper.iter().zip(keys) {
                    lock(upper).add(keys);
                }
            },
        )?;
        let lower = upper
            .iter()
            .zip(ranks)
            .map(|(upper, ranks)| Mutex::new(lock(upper).select(ranks)));
        let lower: Vec<_> = lower.collect();
        self.scan(
            || (),
            |(), keys| {
                for (lower, keys) in lower.iter().zip(keys) {
                    lock(lower).add(keys);
                }
            },
        )?;
        let ties: Vec<_> = lower.iter().map(|lower| lock(lower).select()).collect();
        let counts = self.scan(
            || ties.iter().map(TieCount::start).collect(),
            |counts: &mut Vec<ChunkTies>, keys| {
                for ((ties, count), keys) in ties.iter().zip(counts).zip(keys) {
                    ties.add(count, keys);
                }
            },
        )?;
        let counts = transpose(counts, ties.len());
        Ok(ties
            .iter()
            .zip(counts)
            .map(|(ties, counts)| ties.resolve(&counts))
            .collect())
    }

    /// The cut that keeps the `k` largest keys of a stream over one tensor and, among equal ones, those of lowest index.
    /// `statistic` is that of rank len − k.
    pub(crate) fn cut_keeping(
        &self,
        stream: usize,
        statistic: &Statistic,
        k: u64,
    ) -> Result<Cut, MethodError> {
        let boundary = self.boundary(stream, statistic, k.saturating_sub(statistic.greater()))?;
        Ok(Cut {
            boundary,
            before: statistic.key,
            after: statistic.key.saturating_add(1),
        })
    }

    /// The cut that drops the first `r` keys in stable ascending order of a stream over one tensor.
    /// `statistic` is that of rank r.
    pub(crate) fn cut_dropping(
        &self,
        stream: usize,
        statistic: &Statistic,
        r: u64,
    ) -> Result<Cut, MethodError> {
        let boundary = self.boundary(stream, statistic, r.saturating_sub(statistic.less))?;
        Ok(Cut {
            boundary,
            before: statistic.key.saturating_add(1),
            after: statistic.key,
        })
    }

    /// The index just after the `quota`-th element whose key is that of the statistic.
    fn boundary(
        &self,
        stream: usize,
        statistic: &Statistic,
        quota: u64,
    ) -> Result<usize, MethodError> {
        let group = self.groups[0];
        if quota == 0 || quota >= statistic.equal {
            return Ok(if quota == 0 { 0 } else { group.elements() });
        }
        let len = group.chunk_len(Grain::Elements);
        let chunk = (0..group.chunks(Grain::Elements))
            .find(|c| quota <= statistic.equal_before_chunk(c + 1))
            .unwrap_or(0);
        let mut missing = quota - statistic.equal_before_chunk(chunk);
        let (mut at, mut boundary) = (chunk * len, group.elements());
        self.read(0, at..(at + len).min(group.elements()), |keys| {
            for (j, _) in keys[stream]
                .iter()
                .enumerate()
                .filter(|(_, key)| **key == statistic.key)
            {
                if missing > 0 {
                    missing -= 1;
                    boundary = at + j + 1;
                }
            }
            at += keys[stream].len();
        })?;
        Ok(boundary)
    }

    fn read(
        &self,
        g: usize,
        range: Range<usize>,
        mut visit: impl FnMut(&[Vec<u32>]),
    ) -> Result<(), MethodError> {
        self.groups[g].read(self.view, range, |block| {
            self.with_keys(g, block, &mut visit);
        })
    }

    /// One accumulator a chunk of the groups, in order.
    fn scan<A: Send>(
        &self,
        init: impl Fn() -> A + Sync,
        fold: impl Fn(&mut A, &[Vec<u32>]) + Sync,
    ) -> Result<Vec<A>, MethodError> {
        let mut all = Vec::new();
        for (g, group) in self.groups.iter().enumerate() {
            all.extend(group.scan(
                Grain::Elements,
                self.view,
                |_| init(),
                |accumulator, block| {
                    self.with_keys(g, block, |keys| fold(accumulator, keys));
                },
            )?);
        }
        Ok(all)
    }

    fn with_keys(&self, g: usize, block: &Block<'_>, visit: impl FnOnce(&[Vec<u32>])) {
        let mut buffers = BUFFERS.take();
        buffers.resize_with(self.lens.len().max(buffers.len()), Vec::new);
        let keys = &mut buffers[..self.lens.len()];
        keys.iter_mut().for_each(Vec::clear);
        (self.keys)(g, block, keys);
        visit(keys);
        BUFFERS.set(buffers);
    }
}

impl Sample {
    /// The share of sampled keys of a stream that are not 0; 0 if nothing was sampled.
    pub(crate) fn share_of_nonzero(&self, stream: usize) -> f64 {
        let keys = &self.keys[stream];
        keys.iter().filter(|key| **key != 0).count() as f64 / keys.len().max(1) as f64
    }
}

/// From one list of streams a chunk to one list of chunks a stream.
fn transpose<A>(chunks: Vec<Vec<A>>, streams: usize) -> Vec<Vec<A>> {
    let mut by_stream: Vec<Vec<A>> = (0..streams)
        .map(|_| Vec::with_capacity(chunks.len()))
        .collect();
    for chunk in chunks {
        for (stream, count) in by_stream.iter_mut().zip(chunk) {
            stream.push(count);
        }
    }
    by_stream
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A cut over one whole tensor: an element passes if its key is at least `before`, or `after` from index `boundary` on.
/// That is how a quota is divided among equal keys: by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) boundary: usize,
    pub(crate) before: u32,
    pub(crate) after: u32,
}

impl Cut {
    /// Everything passes.
    pub(crate) const ALL: Self = Self::at(0);
    /// Nothing passes.
    pub(crate) const NONE: Self = Self::at(u32::MAX);

    /// Keys of at least `key` pass, wherever they are.
    pub(crate) const fn at(key: u32) -> Self {
        Self {
            boundary: 0,
            before: key,
            after: key,
        }
    }

    /// The least key that passes at `index`.
    pub(crate) fn key_at(&self, index: usize) -> u32 {
        if index < self.boundary {
            self.before
        } else {
            self.after
        }
    }

    /// The boundary within `start..start + len`, relative to `start`, if the cut changes there.
    pub(crate) fn change_within(&self, start: usize, len: usize) -> Option<usize> {
        let within =
            self.before != self.after && self.boundary > start && self.boundary < start + len;
        within.then(|| self.boundary - start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CHUNK, Float, Input, Memory, Settings};
    use merganser_kernels::keys::magnitude_keys;

    /// Shows streams over the magnitudes of tensors in memory, one task each.
    fn with_streams<R>(tensors: &[Vec<f32>], work: impl FnOnce(&Streams<'_>) -> R) -> R {
        let settings = Settings::default();
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|x| x.iter().flat_map(|x| x.to_le_bytes()).collect())
            .collect();
        let memory: Vec<Memory<'_>> = bytes.iter().map(|b| Memory::new(Float::F32, b)).collect();
        let shapes: Vec<[usize; 1]> = tensors.iter().map(|x| [x.len()]).collect();
        let groups: Vec<TensorGroup<'_>> = memory
            .iter()
            .zip(&shapes)
            .map(|(source, shape)| TensorGroup {
                name: "x",
                shape,
                inputs: vec![Input {
                    model: "a",
                    source,
                    companion: None,
                    round_to: None,
                }],
                base: None,
                settings: &settings,
                seed: 0,
                allow_nonfinite: false,
            })
            .collect();
        let groups: Vec<&TensorGroup<'_>> = groups.iter().collect();
        let len = tensors.iter().map(|x| x.len() as u64).sum();
        work(&Streams::new(
            &groups,
            View::Values,
            vec![len],
            &|_, block, keys| {
                keys[0].resize(block.len(), 0);
                magnitude_keys(&mut keys[0], block.input(0));
            },
        ))
    }

    /// Values with many equal magnitudes.
    fn values(len: usize) -> Vec<f32> {
        (0..len).map(|i| (i * 7919 % 1009) as f32 - 504.0).collect()
    }

    /// Indices in ascending order of magnitude, lower index first among equals.
    fn order(x: &[f32]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..x.len()).collect();
        order.sort_by(|&a, &b| x[a].abs().total_cmp(&x[b].abs()));
        order
    }

    fn passing(x: &[f32], cut: Cut) -> Vec<usize> {
        (0..x.len())
            .filter(|&i| x[i].abs().to_bits() >= cut.key_at(i))
            .collect()
    }

    #[test]
    fn cuts_divide_equal_keys_by_index_across_chunks() {
        let x = values(2 * CHUNK + 777);
        let (len, order) = (x.len() as u64, order(&x));
        with_streams(std::slice::from_ref(&x), |streams| {
            for r in [1, 1000, len / 3, len / 2 + 11, len - 1] {
                let found = streams.select(&[vec![r]]).expect("readable");
                let mut rest = order[r as usize..].to_vec();
                rest.sort_unstable();
                let cut = streams.cut_dropping(0, &found[0][0], r).expect("readable");
                assert_eq!(passing(&x, cut), rest);
                let kept = passing(
                    &x,
                    streams
                        .cut_keeping(0, &found[0][0], len - r)
                        .expect("readable"),
                );
                assert_eq!(kept.len() as u64, len - r);
                let (key, last) = (
                    found[0][0].key,
                    kept.iter()
                        .rev()
                        .find(|&&i| x[i].abs().to_bits() == found[0][0].key),
                );
                let equal = |i: &usize| x[*i].abs().to_bits() == key;
                let first_dropped =
                    (0..x.len()).find(|i| equal(i) && kept.binary_search(i).is_err());
                assert!(
                    first_dropped.is_none_or(|i| Some(&i) > last),
                    "the lowest indices are kept"
                );
            }
        });
    }

    #[test]
    fn several_tensors_are_one_stream() {
        let x = values(CHUNK + 5000);
        let parts = [
            x[..3].to_vec(),
            Vec::new(),
            x[3..CHUNK].to_vec(),
            x[CHUNK..].to_vec(),
        ];
        let order = order(&x);
        with_streams(&parts, |streams| {
            let ranks = vec![0, 7, x.len() as u64 / 2, x.len() as u64 - 1];
            let found = streams
                .select(std::slice::from_ref(&ranks))
                .expect("readable");
            for (rank, found) in ranks.into_iter().zip(&found[0]) {
                assert_eq!(found.key, x[order[rank as usize]].abs().to_bits());
            }
        });
    }

    #[test]
    fn a_misleading_sample_changes_nothing() {
        let x = values(CHUNK + 5000);
        with_streams(std::slice::from_ref(&x), |streams| {
            let ranks = [vec![10, x.len() as u64 / 2]];
            let sample = Sample {
                keys: vec![vec![1.0_f32.to_bits(); 5000]],
            };
            let counted = streams.count(sample, &ranks).expect("readable");
            assert!(counted.streams[0].0.resolve(&counted.streams[0].1).is_err());
            let found = streams.resolve(&counted, &ranks).expect("readable");
            assert_eq!(found, streams.select(&ranks).expect("readable"));
        });
    }

    #[test]
    fn cuts_know_where_they_change() {
        let cut = Cut {
            boundary: 10,
            before: 1,
            after: 2,
        };
        assert_eq!(cut.change_within(8, 5), Some(2));
        assert_eq!(
            (cut.change_within(10, 5), cut.change_within(0, 10)),
            (None, None)
        );
        assert_eq!((cut.key_at(9), cut.key_at(10)), (1, 2));
        assert_eq!(Cut::ALL.change_within(0, 5), None);
    }
}
