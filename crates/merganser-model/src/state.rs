//! The registers of one batch.

use candle_core::{DType, Device, Tensor};

use crate::batch::{Batch, Tokens};
use crate::error::{ModelError, Result};
use crate::network::Network;
use crate::op::{Op, Reg, Space};

/// What a network has computed of one batch so far. Cloning is cheap: tensors are shared.
#[derive(Debug, Clone)]
pub struct State {
    pub(crate) registers: Vec<Option<Tensor>>,
    spaces: Vec<Space>,
    pub(crate) tokens: Option<Rows>,
    pub(crate) decoder: Option<Rows>,
    samples: usize,
    pub(crate) differentiable: bool,
}

/// Which rows of a token space are real.
#[derive(Debug, Clone)]
pub(crate) struct Rows {
    pub(crate) tokens: Tokens,
    /// Positions of the real rows in the flattened rectangle; `None` if all are real.
    index: Option<Tensor>,
}

impl Rows {
    fn new(tokens: &Tokens, device: &Device) -> Result<Self> {
        let count = tokens.real_count();
        let index = if count == tokens.real().len() {
            None
        } else {
            let real: Vec<u32> = (0u32..)
                .zip(tokens.real())
                .filter_map(|(row, &real)| real.then_some(row))
                .collect();
            Some(Tensor::from_vec(real, count, device)?)
        };
        Ok(Self {
            tokens: tokens.clone(),
            index,
        })
    }

    pub(crate) fn has_padding(&self) -> bool {
        self.index.is_some()
    }
}

impl State {
    /// The state before the first op: only the input registers are filled, on `device`.
    ///
    /// # Errors
    /// [`ModelError::Batch`] if the batch lacks what the network reads, is longer than its position table, or holds
    /// images of another size.
    pub fn new(network: &Network, batch: &Batch, device: &Device) -> Result<Self> {
        let inputs = network.inputs();
        let mut state = Self::bare(network);
        state.samples = batch.samples();
        if let Some(reg) = inputs.ids {
            let tokens = wanted(batch.tokens.as_ref(), "token ids", network)?;
            check_len(tokens, inputs.max_len)?;
            let shape = (tokens.samples(), tokens.sequence_len());
            let put = |state: &mut Self, reg: Option<Reg>, values: Vec<u32>| -> Result<()> {
                if let Some(reg) = reg {
                    state.set(reg, Tensor::from_vec(values, shape, device)?);
                }
                Ok(())
            };
            put(&mut state, Some(reg), tokens.ids().to_vec())?;
            put(&mut state, inputs.types, tokens.types())?;
            put(
                &mut state,
                inputs.positions,
                tokens.positions(inputs.first_position),
            )?;
            state.tokens = Some(Rows::new(tokens, device)?);
        }
        if let Some(reg) = inputs.decoder_ids {
            let tokens = wanted(batch.decoder.as_ref(), "decoder ids", network)?;
            if tokens.samples() != state.samples {
                return Err(ModelError::Batch(format!(
                    "{} samples for the encoder and {} for the decoder",
                    state.samples,
                    tokens.samples()
                )));
            }
            let shape = (tokens.samples(), tokens.sequence_len());
            state.set(reg, Tensor::from_vec(tokens.ids().to_vec(), shape, device)?);
            state.decoder = Some(Rows::new(tokens, device)?);
        }
        if let Some(reg) = inputs.pixels {
            let pixels = wanted(batch.pixels.as_ref(), "pixels", network)?;
            let (channels, side) = inputs.image.unwrap_or_default();
            match *pixels.dims() {
                [samples, c, h, w] if samples > 0 && (c, h, w) == (channels, side, side) => {}
                ref found => {
                    return Err(ModelError::Batch(format!(
                        "pixels of shape {found:?}; this network reads [samples, {channels}, {side}, {side}]"
                    )));
                }
            }
            let pixels = pixels.to_dtype(DType::F32)?.to_device(device)?;
            state.set(reg, pixels);
        }
        Ok(state)
    }

    /// Whether results can be differentiated with respect to the weights. Off at first: fused operations are faster and
    /// have no gradient.
    #[must_use]
    pub fn differentiable(mut self, yes: bool) -> Self {
        self.differentiable = yes;
        self
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// The value of a register, padding included.
    pub fn get(&self, reg: Reg) -> Result<&Tensor> {
        self.registers
            .get(reg.index())
            .and_then(Option::as_ref)
            .ok_or(ModelError::EmptyRegister(reg.index()))
    }

    /// Replaces the value of a register.
    ///
    /// # Panics
    /// If `reg` belongs to another, larger network.
    pub fn set(&mut self, reg: Reg, value: Tensor) {
        self.registers[reg.index()] = Some(value);
    }

    /// Empties a register.
    pub fn drop(&mut self, reg: Reg) {
        if let Some(register) = self.registers.get_mut(reg.index()) {
            *register = None;
        }
    }

    /// Empties the registers that nothing reads after `op`.
    pub(crate) fn forget(&mut self, op: &Op) {
        for &reg in &op.dies {
            self.drop(reg);
        }
    }

    /// Registers without a batch, for ops that act row by row.
    pub(crate) fn bare(network: &Network) -> Self {
        Self {
            registers: vec![None; network.register_count()],
            spaces: network.spaces.clone(),
            tokens: None,
            decoder: None,
            samples: 0,
            differentiable: false,
        }
    }

    fn space_rows(&self, reg: Reg) -> Option<&Rows> {
        match self.spaces.get(reg.index())? {
            Space::Tokens => self.tokens.as_ref(),
            Space::DecoderTokens => self.decoder.as_ref(),
            Space::Patches | Space::Samples | Space::Shared => None,
        }
    }

    /// The real rows of a register, padding removed, sample by sample: n×d. A register of heads, (B, S, h, e), gives
    /// n·h rows of width e; one of ids gives a vector of n.
    pub fn rows(&self, reg: Reg) -> Result<Tensor> {
        let value = self.get(reg)?;
        let Some(rows) = self.space_rows(reg) else {
            return flat(
                value,
                if value.dtype() == DType::U32 {
                    value.rank()
                } else {
                    value.rank() - 1
                },
            );
        };
        let tokens = flat(value, 2)?;
        let tokens = match &rows.index {
            Some(index) => tokens.index_select(index, 0)?,
            None => tokens,
        };
        if tokens.rank() <= 2 {
            Ok(tokens)
        } else {
            flat(&tokens, tokens.rank() - 1)
        }
    }

    /// Number of real tokens (or patches, or samples) of a register; [`State::rows`] has this many rows, or this times
    /// the heads.
    pub fn row_count(&self, reg: Reg) -> Result<usize> {
        if let Some(rows) = self.space_rows(reg) {
            return Ok(rows.tokens.real_count());
        }
        let value = self.get(reg)?;
        Ok(match self.spaces.get(reg.index()) {
            Some(Space::Patches) => value.dims().iter().take(2).product(),
            _ => value.dims().first().copied().unwrap_or(1),
        })
    }

    /// Mean over the real tokens of each sample, (B, S, d) to (B, d), as sentence embeddings are made.
    pub fn mean(&self, reg: Reg) -> Result<Tensor> {
        let value = self.get(reg)?;
        let Some(rows) = self.space_rows(reg) else {
            return Ok(value.mean(1)?);
        };
        let len = rows.tokens.sequence_len();
        let mut weights = Vec::with_capacity(rows.tokens.real().len());
        for row in rows.tokens.real().chunks(len) {
            let count = row.iter().filter(|&&real| real).count() as f32;
            weights.extend(
                row.iter()
                    .map(|&real| if real { count.recip() } else { 0.0 }),
            );
        }
        let weights = Tensor::from_vec(weights, (self.samples, 1, len), value.device())?;
        Ok(weights.matmul(&value.contiguous()?)?.squeeze(1)?)
    }
}

/// The first `axes` axes as one.
fn flat(value: &Tensor, axes: usize) -> Result<Tensor> {
    Ok(if axes <= 1 {
        value.clone()
    } else {
        value.flatten_to(axes - 1)?
    })
}

fn wanted<'a, T>(part: Option<&'a T>, what: &str, network: &Network) -> Result<&'a T> {
    part.ok_or_else(|| ModelError::Batch(format!("a {} network reads {what}", network.family())))
}

fn check_len(tokens: &Tokens, max_len: Option<usize>) -> Result<()> {
    match max_len {
        Some(max) if tokens.sequence_len() > max => Err(ModelError::Batch(format!(
            "samples of {} tokens; this network has positions for {max}; cut them first",
            tokens.sequence_len()
        ))),
        _ => Ok(()),
    }
}
