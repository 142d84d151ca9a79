//! Carrying out one op on the registers of one batch.
//!
//! Everything is differentiable with respect to weights and inputs if the state says so; otherwise softmax, norms,
//! rotations and activations are single sweeps without gradient, our own on processors and candle's elsewhere.

use candle_core::{D, Tensor};
use candle_nn::ops::{layer_norm, rms_norm};
use candle_nn::rotary_emb::rope_thd;

use crate::attention::attend;
use crate::distances;
use crate::error::{ModelError, Result};
use crate::fused;
use crate::network::Network;
use crate::op::{
    Activation, Additive, Embedding, Kind, Linear, Norm, NormKind, Op, Place, Rotary, RotaryTable,
    Select,
};
use crate::state::State;
use crate::weights::Weights;

impl Network {
    /// Runs `op`: writes its outputs into `state` and empties the registers that nothing reads after it.
    pub fn run(&self, op: &Op, state: &mut State, weights: &dyn Weights) -> Result<()> {
        self.write(op, state, weights)?;
        state.forget(op);
        Ok(())
    }

    pub(crate) fn write(&self, op: &Op, state: &mut State, weights: &dyn Weights) -> Result<()> {
        let values = self.evaluate(op, state, weights)?;
        for (&reg, value) in op.outputs.iter().zip(values) {
            state.set(reg, value);
        }
        Ok(())
    }

    /// The outputs that `op` would write, without writing them: what other weights would give at this point.
    pub fn evaluate(&self, op: &Op, state: &State, weights: &dyn Weights) -> Result<Vec<Tensor>> {
        let x = state.get(op.input())?;
        let other = |i: usize| state.get(op.inputs[i]);
        let one = match &op.kind {
            Kind::Linear(linear) => linear.apply(x, weights)?,
            Kind::Norm(norm) => norm.apply(x, weights, state.differentiable)?,
            Kind::Embedding(table) => table.apply(x, weights)?,
            Kind::Additive(additive) => additive.apply(x, weights)?,
            Kind::Attention(attention) => {
                let bias = op.inputs.get(3).map(|&reg| state.get(reg)).transpose()?;
                attend(attention, state, [x, other(1)?, other(2)?], bias)?
            }
            Kind::Rotary(rotary) => rotary.apply(x, other(1)?, other(2)?, state.differentiable)?,
            Kind::RotaryTable(table) => return table.apply(x),
            Kind::Activation(activation) => activation.apply(x, state.differentiable)?,
            Kind::Add => (x + other(1)?)?,
            Kind::Mul => (x * other(1)?)?,
            Kind::Scale(factor) => (x * *factor)?,
            Kind::Softcap(cap) => softcap(x, *cap)?,
            Kind::Split(widths) => return split(x, widths),
            Kind::Heads(heads) => {
                let (b, s, width) = x.dims3()?;
                x.reshape((b, s, *heads, width / heads))?
            }
            Kind::Patches(side) => patches(x, *side)?,
            Kind::Prepend(rows) => {
                let (b, _, d) = x.dims3()?;
                let zeros = Tensor::zeros((b, *rows, d), x.dtype(), x.device())?;
                Tensor::cat(&[&zeros, x], 1)?
            }
            Kind::Select(row) => select(*row, x, state)?,
            Kind::Distances(buckets) => distances::table(buckets, x)?,
        };
        Ok(vec![one])
    }
}

impl Linear {
    /// `x Wᵀ + b` along the last axis of `x`.
    pub fn apply(&self, x: &Tensor, weights: &dyn Weights) -> Result<Tensor> {
        let matrix = self.matrix(&weights.tensor(&self.weight)?)?;
        // One product over all rows: a product for each sample would be slower.
        let rows = x.reshape(((), self.inputs))?.to_dtype(matrix.dtype())?;
        let y = rows.matmul(&matrix.t()?)?;
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(&weights.tensor(bias)?)?,
            None => y,
        };
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.outputs;
        }
        Ok(y.reshape(shape)?)
    }
}

impl Norm {
    fn apply(&self, x: &Tensor, weights: &dyn Weights, differentiable: bool) -> Result<Tensor> {
        let mut scale = weights.tensor(&self.weight)?;
        if self.offset != 0.0 {
            scale = (scale + self.offset)?;
        }
        let shift = self.bias.as_ref().map(|bias| weights.tensor(bias));
        let shift = shift.transpose()?;
        if differentiable {
            let y = self.normalize(x)?.broadcast_mul(&scale)?;
            return Ok(match shift {
                Some(shift) => y.broadcast_add(&shift)?,
                None => y,
            });
        }
        let eps = self.eps as f32;
        if fused::suits(x) && fused::suits(&scale) {
            return fused::norm(self.kind, eps, x, &scale, shift.as_ref());
        }
        let x = x.contiguous()?;
        Ok(match self.kind {
            NormKind::Layer => {
                let shift = shift.map_or_else(|| scale.zeros_like(), Ok)?;
                layer_norm(&x, &scale, &shift, eps)?
            }
            NormKind::Rms => rms_norm(&x, &scale, eps)?,
        })
    }
}

impl Embedding {
    fn apply(&self, ids: &Tensor, weights: &dyn Weights) -> Result<Tensor> {
        let mut shape = ids.dims().to_vec();
        shape.push(self.width);
        let ids = ids.flatten_all()?.to_vec1::<u32>()?;
        if let Some(&row) = ids.iter().find(|&&id| id as usize >= self.rows) {
            return Err(ModelError::Row {
                tensor: self.weight.clone(),
                row,
                rows: self.rows,
            });
        }
        // Every row is read once, however often it occurs.
        let mut distinct = ids.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let table = weights.rows(&self.weight, &distinct)?;
        let index: Vec<u32> = ids
            .iter()
            .map(|id| distinct.partition_point(|other| other < id) as u32)
            .collect();
        let index = Tensor::new(index, table.device())?;
        Ok(table.index_select(&index, 0)?.reshape(shape)?)
    }
}

impl Additive {
    fn apply(&self, x: &Tensor, weights: &dyn Weights) -> Result<Tensor> {
        let stored = weights.tensor(&self.weight)?;
        Ok(match self.place {
            Place::Each(len) => x.broadcast_add(&stored.reshape((1, len, self.width))?)?,
            Place::At(row) => {
                let len = x.dim(1)?;
                let here = x
                    .narrow(1, row, 1)?
                    .broadcast_add(&stored.reshape((1, 1, self.width))?)?;
                let mut parts = vec![here];
                if row > 0 {
                    parts.insert(0, x.narrow(1, 0, row)?);
                }
                if row + 1 < len {
                    parts.push(x.narrow(1, row + 1, len - row - 1)?);
                }
                Tensor::cat(&parts, 1)?
            }
        })
    }
}

impl Activation {
    fn apply(self, x: &Tensor, differentiable: bool) -> Result<Tensor> {
        if !differentiable && fused::suits(x) {
            return fused::activation(self, x);
        }
        self.composed(x)
    }

    pub(crate) fn composed(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Gelu => x.gelu_erf()?,
            Self::GeluTanh => x.gelu()?,
            Self::QuickGelu => (x * sigmoid(&(x * 1.702)?)?)?,
            Self::Silu => x.silu()?,
            Self::Relu => x.relu()?,
            Self::Tanh => x.tanh()?,
        })
    }
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok((x.neg()?.exp()? + 1.0)?.recip()?)
}

pub(crate) fn softcap(x: &Tensor, cap: f64) -> Result<Tensor> {
    Ok(((x / cap)?.tanh()? * cap)?)
}

fn select(select: Select, x: &Tensor, state: &State) -> Result<Tensor> {
    let position = match select {
        Select::First => return Ok(x.narrow(1, 0, 1)?.squeeze(1)?),
        Select::At(position) => return Ok(x.narrow(1, position, 1)?.squeeze(1)?),
        Select::MeanFrom(position) => {
            let rest = x.dim(1)?.saturating_sub(position);
            return Ok(x.narrow(1, position, rest)?.mean(1)?);
        }
        Select::Last | Select::Token(_) | Select::LargestId => select,
    };
    let tokens = state.tokens.as_ref().map(|rows| &rows.tokens);
    let tokens = tokens.ok_or_else(|| ModelError::Batch("there are no tokens".into()))?;
    let len = tokens.sequence_len();
    let mut rows = Vec::with_capacity(tokens.samples());
    let samples = tokens.ids().chunks(len).zip(tokens.real().chunks(len));
    for (sample, (ids, real)) in samples.enumerate() {
        let at = match position {
            Select::Token(id) => ids.iter().position(|&found| found == id).ok_or_else(|| {
                ModelError::Batch(format!(
                    "sample {sample} has no token {id}, the end of text"
                ))
            })?,
            // The first of the largest, as torch's argmax.
            Select::LargestId => {
                let largest = ids.iter().max();
                ids.iter().position(|id| Some(id) == largest).unwrap_or(0)
            }
            _ => real.iter().rposition(|&real| real).unwrap_or(0),
        };
        rows.push((sample * len + at) as u32);
    }
    let index = Tensor::from_vec(rows, tokens.samples(), x.device())?;
    Ok(x.flatten_to(1)?.index_select(&index, 0)?)
}

fn split(x: &Tensor, widths: &[usize]) -> Result<Vec<Tensor>> {
    let mut start = 0;
    widths
        .iter()
        .map(|&width| {
            let part = x.narrow(D::Minus1, start, width)?;
            start += width;
            Ok(part)
        })
        .collect()
}

fn patches(pixels: &Tensor, side: usize) -> Result<Tensor> {
    let (b, c, h, w) = pixels.dims4()?;
    let (rows, columns) = (h / side, w / side);
    Ok(pixels
        .reshape(vec![b, c, rows, side, columns, side])?
        .permute(vec![0, 2, 4, 1, 3, 5])?
        .reshape((b, rows * columns, c * side * side))?)
}

impl Rotary {
    fn apply(
        &self,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        differentiable: bool,
    ) -> Result<Tensor> {
        let shape = x.dims().to_vec();
        let (b, s) = (shape[0], shape[1]);
        let (cos, sin) = (&cos.to_dtype(x.dtype())?, &sin.to_dtype(x.dtype())?);
        let x = x.reshape((b, s, self.heads, self.head_dim))?;
        let head = x.narrow(D::Minus1, 0, self.rotated)?;
        let turned = if differentiable {
            let half = self.rotated / 2;
            let (cos, sin) = (cos.unsqueeze(2)?, sin.unsqueeze(2)?);
            let first = head.narrow(D::Minus1, 0, half)?;
            let second = head.narrow(D::Minus1, half, half)?;
            let a = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
            let b = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
            Tensor::cat(&[a, b], D::Minus1)?
        } else {
            rope_thd(&head.contiguous()?, cos, sin)?
        };
        let turned = if self.rotated < self.head_dim {
            let rest = x.narrow(D::Minus1, self.rotated, self.head_dim - self.rotated)?;
            Tensor::cat(&[turned, rest], D::Minus1)?
        } else {
            turned
        };
        Ok(turned.reshape(shape)?)
    }
}

impl RotaryTable {
    fn apply(&self, positions: &Tensor) -> Result<Vec<Tensor>> {
        let (b, s) = positions.dims2()?;
        let ids = positions.flatten_all()?.to_vec1::<u32>()?;
        let angles = || {
            ids.iter()
                .flat_map(|&id| self.frequencies.iter().map(move |f| f64::from(id) * f))
        };
        let table = |part: fn(f64) -> f64| -> Result<Tensor> {
            let values: Vec<f32> = angles()
                .map(|angle| (part(angle) * self.factor) as f32)
                .collect();
            Ok(Tensor::from_vec(
                values,
                (b, s, self.frequencies.len()),
                positions.device(),
            )?)
        };
        Ok(vec![table(f64::cos)?, table(f64::sin)?])
    }
}
