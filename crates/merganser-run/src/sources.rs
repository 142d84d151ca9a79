//! Input tensors as streams of f32: straight from a file, or with a LoRA update added on the way.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use merganser_kernels::convert::{self, Float};
use merganser_kernels::elementwise;
use merganser_methods::Source;
use merganser_plan::{InputRef, Model, Plan, RowMap, kernel_float};
use merganser_store::adapter::Delta;
use merganser_store::checkpoint::{Checkpoint, TensorInfo};
use rayon::prelude::*;

use crate::RunError;
use crate::rows::Reordered;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A tensor as it lies in a checkpoint or adapter file.
struct Stored<'a> {
    checkpoint: &'a Checkpoint,
    info: &'a TensorInfo,
    kind: Float,
    /// All its bytes, if they were read at once.
    held: Option<Held<'a>>,
}

impl Source for Stored<'_> {
    fn fetch(&self, range: Range<usize>, raw: &mut Vec<u8>) -> Result<(), Failure> {
        if self.held.is_some() {
            return Ok(());
        }
        let size = self.kind.size();
        raw.resize(range.len() * size, 0);
        self.checkpoint
            .read(self.info, (range.start * size) as u64, raw)?;
        Ok(())
    }

    fn decode(&self, raw: &[u8], first: usize, skip: usize, out: &mut [f32]) {
        let (bytes, start) = match &self.held {
            Some(held) => (held.bytes.as_slice(), first + skip),
            None => (raw, skip),
        };
        let size = self.kind.size();
        convert::decode(
            self.kind,
            &bytes[start * size..(start + out.len()) * size],
            out,
        );
    }
}

/// Buffers for whole tensors, used again and again: the first touch of a page costs several times the copy.
#[derive(Default)]
pub(crate) struct Pool(Mutex<Vec<Vec<u8>>>);

/// A whole tensor in a buffer of a pool.
struct Held<'a> {
    bytes: Vec<u8>,
    pool: &'a Pool,
}

impl<'a> Held<'a> {
    fn read(checkpoint: &Checkpoint, info: &TensorInfo, pool: &'a Pool) -> Result<Self, RunError> {
        let free = || pool.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut bytes = free().unwrap_or_default();
        let len = info.nbytes as usize;
        bytes.resize(len.max(bytes.len()), 0);
        bytes[..len]
            .par_chunks_mut(PIECE)
            .enumerate()
            .try_for_each(|(i, piece)| checkpoint.read(info, (i * PIECE) as u64, piece))?;
        Ok(Self { bytes, pool })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut free = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(std::mem::take(&mut self.bytes));
    }
}

/// Bytes read at once into a held tensor.
const PIECE: usize = 1 << 20;

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

/// Opens the stream of a tensor that is read several times, with all its bytes in memory.
///
/// # Errors
/// Those of [`open`].
pub(crate) fn open_held<'a>(
    model: &'a Model,
    tensor: &str,
    pool: &'a Pool,
) -> Result<Box<dyn Source + 'a>, RunError> {
    match model.info(tensor) {
        Some(info) if model.deltas(tensor).is_empty() => {
            let mut source = stored(&model.checkpoint, info)?;
            source.held = Some(Held::read(&model.checkpoint, info, pool)?);
            Ok(Box::new(source))
        }
        _ => open(model, tensor),
    }
}

/// A whole tensor as f32: for the small factors of adapters only.
fn whole(checkpoint: &Checkpoint, info: &TensorInfo) -> Result<Vec<f32>, RunError> {
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
