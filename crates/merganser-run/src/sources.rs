//! Input tensors as streams of f32: straight from a file, or with a LoRA update added on the way.

use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use merganser_kernels::convert::{self, Float};
use merganser_kernels::elementwise;
use merganser_methods::Source;
use merganser_plan::{InputRef, Model, Plan, RowMap, kernel_float};
use merganser_store::adapter::Delta;
use merganser_store::checkpoint::{Checkpoint, TensorInfo};

use crate::RunError;
use crate::rows::Reordered;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A tensor as it lies in a checkpoint or adapter file.
struct Stored<'a> {
    checkpoint: &'a Checkpoint,
    info: &'a TensorInfo,
    kind: Float,
    /// What is kept in memory of it.
    held: Option<Held<'a>>,
}

impl Source for Stored<'_> {
    fn fetch(&self, range: Range<usize>, raw: &mut Vec<u8>) -> Result<(), Failure> {
        let size = self.kind.size();
        if let Some((held, chunk)) = self.held_chunk(&range) {
            raw.clear();
            return held.fill(chunk, |start, bytes| {
                self.checkpoint
                    .read(self.info, (start * size) as u64, bytes)
                    .map_err(Failure::from)
            });
        }
        raw.resize(range.len() * size, 0);
        self.checkpoint
            .read(self.info, (range.start * size) as u64, raw)?;
        Ok(())
    }

    fn decode(&self, raw: &[u8], first: usize, skip: usize, out: &mut [f32]) {
        convert::decode(self.kind, self.bytes(raw, first, skip, out.len()), out);
    }

    fn stored<'r>(
        &'r self,
        raw: &'r [u8],
        first: usize,
        skip: usize,
        len: usize,
    ) -> Option<(Float, &'r [u8])> {
        Some((self.kind, self.bytes(raw, first, skip, len)))
    }
}

impl Stored<'_> {
    /// The chunk in memory that a range lies in, if it lies in one.
    fn held_chunk(&self, range: &Range<usize>) -> Option<(&Held<'_>, usize)> {
        let held = self.held.as_ref()?;
        let chunk = range.start / held.len;
        let within = !range.is_empty() && range.end <= (chunk + 1) * held.len;
        (within && chunk < held.chunks.len()).then_some((held, chunk))
    }

    fn bytes<'r>(&'r self, raw: &'r [u8], first: usize, skip: usize, len: usize) -> &'r [u8] {
        let (bytes, start) = match &self.held {
            Some(held) if raw.is_empty() && len > 0 => {
                (held.chunk(first / held.len), first % held.len + skip)
            }
            _ => (raw, skip),
        };
        let size = self.kind.size();
        &bytes[start * size..(start + len) * size]
    }
}

/// Buffers for the chunks of tensors, used again and again: the first touch of a page costs several times the copy.
#[derive(Default)]
pub(crate) struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    fn free(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a tensor stays in memory from the first pass over it to the last one.
#[derive(Clone, Copy)]
pub(crate) struct Hold<'a> {
    pub(crate) pool: &'a Pool,
    /// Elements of a chunk.
    pub(crate) len: usize,
}

/// The chunks of a tensor, each read when it is first asked for: what has just been read is still in the cache when
/// it is decoded.
struct Held<'a> {
    chunks: Vec<OnceLock<Vec<u8>>>,
    /// Elements of a chunk.
    len: usize,
    /// Bytes of a chunk, and of the whole tensor.
    sizes: (usize, usize),
    pool: &'a Pool,
}

impl<'a> Held<'a> {
    fn new(hold: Hold<'a>, size: usize, nbytes: usize) -> Self {
        Self {
            chunks: (0..nbytes.div_ceil(hold.len * size))
                .map(|_| OnceLock::new())
                .collect(),
            len: hold.len,
            sizes: (hold.len * size, nbytes),
            pool: hold.pool,
        }
    }

    /// Reads a chunk by `read`, which gets its first element, unless that was done before.
    fn fill(
        &self,
        chunk: usize,
        read: impl FnOnce(usize, &mut [u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if self.chunks[chunk].get().is_some() {
            return Ok(());
        }
        let mut bytes = self.pool.free().pop().unwrap_or_default();
        let (full, all) = self.sizes;
        let size = full.min(all.saturating_sub(chunk * full));
        bytes.resize(size.max(bytes.len()), 0);
        read(chunk * self.len, &mut bytes[..size])?;
        // Another thread may have been faster.
        if let Err(spare) = self.chunks[chunk].set(bytes) {
            self.pool.free().push(spare);
        }
        Ok(())
    }

    fn chunk(&self, chunk: usize) -> &[u8] {
        self.chunks[chunk].get().map_or(&[], Vec::as_slice)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut free = self.pool.free();
        free.extend(self.chunks.drain(..).filter_map(OnceLock::into_inner));
    }
}

/// A tensor of bits, eight to a byte, least significant first: 1 where a bit is set, 0 where it is not.
struct Packed<'a> {
    checkpoint: &'a Checkpoint,
    info: &'a TensorInfo,
}

impl Source for Packed<'_> {
    fn fetch(&self, range: Range<usize>, raw: &mut Vec<u8>) -> Result<(), Failure> {
        let first = range.start / 8;
        raw.resize(range.end.div_ceil(8) - first, 0);
        self.checkpoint.read(self.info, first as u64, raw)?;
        Ok(())
    }

    fn decode(&self, raw: &[u8], first: usize, skip: usize, out: &mut [f32]) {
        unpack(raw, first % 8 + skip, out);
    }
}

/// The bits from number `start` on, as 1 and 0.
fn unpack(raw: &[u8], start: usize, out: &mut [f32]) {
    if start.is_multiple_of(8) {
        let bytes = &raw[start / 8..(start + out.len()).div_ceil(8)];
        convert::unpack_bits(bytes, out);
    } else {
        for (k, x) in (start..).zip(out) {
            *x = f32::from(raw[k / 8] >> (k % 8) & 1);
        }
    }
}

/// A weight and the low-rank update of an adapter: W + Σ_k c_k r_k, one row at a time.
struct Adapted<'a> {
    weight: Box<dyn Source + 'a>,
    /// Factor of every direction, by row of the weight: rows × rank.
    coefficients: Vec<f32>,
    /// The directions: rank × columns.
    directions: Vec<f32>,
    rank: usize,
    columns: usize,
}

impl Source for Adapted<'_> {
    fn fetch(&self, range: Range<usize>, raw: &mut Vec<u8>) -> Result<(), Failure> {
        self.weight.fetch(range, raw)
    }

    fn decode(&self, raw: &[u8], first: usize, skip: usize, out: &mut [f32]) {
        self.weight.decode(raw, first, skip, out);
        let start = first + skip;
        let mut at = 0;
        while at < out.len() {
            let (row, column) = ((start + at) / self.columns, (start + at) % self.columns);
            let len = (self.columns - column).min(out.len() - at);
            for k in 0..self.rank {
                let direction = &self.directions[k * self.columns + column..][..len];
                elementwise::axpy(
                    &mut out[at..at + len],
                    self.coefficients[row * self.rank + k],
                    direction,
                );
            }
            at += len;
        }
    }
}

/// A weight and a vector that is added to it (the bias of an adapter's second factor).
struct Shifted<'a> {
    weight: Box<dyn Source + 'a>,
    shift: Vec<f32>,
}

impl Source for Shifted<'_> {
    fn fetch(&self, range: Range<usize>, raw: &mut Vec<u8>) -> Result<(), Failure> {
        self.weight.fetch(range, raw)
    }

    fn decode(&self, raw: &[u8], first: usize, skip: usize, out: &mut [f32]) {
        self.weight.decode(raw, first, skip, out);
        let start = first + skip;
        elementwise::add_assign(out, &self.shift[start..start + out.len()]);
    }
}

/// Opens the stream of one input tensor.
///
/// # Errors
/// If the adapter's factors cannot be read, or do not fit the weight.
pub(crate) fn open<'a>(model: &'a Model, tensor: &str) -> Result<Box<dyn Source + 'a>, RunError> {
    let mut source: Option<Box<dyn Source + 'a>> = None;
    if let Some(info) = model.info(tensor) {
        source = Some(Box::new(stored(&model.checkpoint, info)?));
    }
    if let Some(adapter) = &model.adapter {
        for delta in model.deltas(tensor) {
            source = Some(apply(source, delta, model, tensor, adapter.checkpoint())?);
        }
    }
    source.ok_or_else(|| RunError::Vanished {
        tensor: tensor.to_owned(),
        model: model.label.clone(),
    })
}

/// Opens the stream of a tensor of bits.
///
/// # Errors
/// If the model has no such tensor.
pub(crate) fn open_packed<'a>(
    model: &'a Model,
    tensor: &str,
) -> Result<Box<dyn Source + 'a>, RunError> {
    let info = model.info(tensor).ok_or_else(|| RunError::Vanished {
        tensor: tensor.to_owned(),
        model: model.label.clone(),
    })?;
    Ok(Box::new(Packed {
        checkpoint: &model.checkpoint,
        info,
    }))
}

/// Opens the stream of a vocabulary tensor whose rows follow another tokenizer.
///
/// # Errors
/// If the model or the base lacks the tensor, or an adapter's factors cannot be read.
pub(crate) fn open_reordered<'a>(
    plan: &'a Plan,
    input: &'a InputRef,
    map: &'a RowMap,
) -> Result<Box<dyn Source + 'a>, RunError> {
    let (model, base) = (&plan.models[input.model], &plan.models[map.base]);
    let gone = |model: &Model| RunError::Vanished {
        tensor: input.tensor.clone(),
        model: model.label.clone(),
    };
    let (_, shape) = model.describe(&input.tensor).ok_or_else(|| gone(model))?;
    let in_base = base.find(&input.tensor).ok_or_else(|| gone(base))?;
    Ok(Box::new(Reordered {
        own: open(model, &input.tensor)?,
        base: open(base, in_base.name())?,
        map,
        columns: shape[1..].iter().product::<usize>().max(1),
    }))
}

fn apply<'a>(
    source: Option<Box<dyn Source + 'a>>,
    delta: &'a Delta,
    model: &Model,
    tensor: &str,
    adapter: &'a Checkpoint,
) -> Result<Box<dyn Source + 'a>, RunError> {
    if let Delta::Replace(info) = delta {
        return Ok(Box::new(stored(adapter, info)?));
    }
    let gone = || RunError::Vanished {
        tensor: tensor.to_owned(),
        model: model.label.clone(),
    };
    let weight = source.ok_or_else(gone)?;
    let (_, shape) = model.describe(tensor).ok_or_else(gone)?;
    match delta {
        Delta::LowRank {
            a,
            b,
            rank,
            scale,
            transposed,
        } => {
            let (a, b) = (whole(adapter, a)?, whole(adapter, b)?);
            let (rows, columns) = (shape[0], shape[1..].iter().product::<usize>().max(1));
            // Linear: ΔW = s·B·A. Transposed (Conv1D, embeddings): ΔW = s·(B·A)ᵀ, so A and B swap their roles.
            let (factors, directions) = if *transposed {
                (transpose(&a, *rank, rows), transpose(&b, columns, *rank))
            } else {
                (b, a)
            };
            let coefficients = factors
                .iter()
                .map(|c| (f64::from(*c) * scale) as f32)
                .collect();
            Ok(Box::new(Adapted {
                weight,
                coefficients,
                directions,
                rank: *rank,
                columns,
            }))
        }
        Delta::Add { tensor, scale } => {
            let shift = whole(adapter, tensor)?
                .iter()
                .map(|x| (f64::from(*x) * scale) as f32)
                .collect();
            Ok(Box::new(Shifted { weight, shift }))
        }
        Delta::Replace(_) => Ok(weight),
    }
}

fn stored<'a>(checkpoint: &'a Checkpoint, info: &'a TensorInfo) -> Result<Stored<'a>, RunError> {
    let kind = kernel_float(info.dtype).ok_or_else(|| RunError::NotFloat {
        tensor: info.name.clone(),
        dtype: info.dtype,
    })?;
    Ok(Stored {
        checkpoint,
        info,
        kind,
        held: None,
    })
}

/// Opens the stream of a tensor that is read several times, and keeps what was read in memory.
///
/// # Errors
/// Those of [`open`].
pub(crate) fn open_held<'a>(
    model: &'a Model,
    tensor: &str,
    hold: Hold<'a>,
) -> Result<Box<dyn Source + 'a>, RunError> {
    match model.info(tensor) {
        Some(info) if model.deltas(tensor).is_empty() => {
            let mut source = stored(&model.checkpoint, info)?;
            let size = source.kind.size();
            source.held = Some(Held::new(hold, size, info.nbytes as usize));
            Ok(Box::new(source))
        }
        _ => open(model, tensor),
    }
}

/// A whole tensor as f32: for the small factors of adapters only.
pub(crate) fn whole(checkpoint: &Checkpoint, info: &TensorInfo) -> Result<Vec<f32>, RunError> {
    let source = stored(checkpoint, info)?;
    let elements: usize = info.shape.iter().product();
    let mut raw = Vec::new();
    source
        .fetch(0..elements, &mut raw)
        .map_err(RunError::Read)?;
    let mut values = vec![0.0; elements];
    source.decode(&raw, 0, 0, &mut values);
    Ok(values)
}

/// rows × columns → columns × rows.
fn transpose(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns)
        .flat_map(|j| (0..rows).map(move |i| matrix[i * columns + j]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_found_wherever_a_range_starts() {
        let raw = [0b1010_0110, 0b0000_0001, 0b1111_1111];
        let bit = |k: usize| f32::from(raw[k / 8] >> (k % 8) & 1);
        for start in 0..24 {
            for end in start..=24 {
                let mut out = vec![-1.0; end - start];
                unpack(&raw, start, &mut out);
                let expected: Vec<f32> = (start..end).map(bit).collect();
                assert_eq!(out, expected, "{start}..{end}");
            }
        }
    }
}
