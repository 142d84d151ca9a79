//! Attention by two batched products: `softmax(scale · q kᵀ + bias + mask) v` (Vaswani et al. 2017).
//!
//! Query heads that share a key head (Ainslie et al. 2023) are rows of one product, so keys and values are never repeated.

use std::ops::Range;

use candle_core::{D, Device, Tensor};
use candle_nn::ops::softmax_last_dim;

use crate::error::{ModelError, Result};
use crate::fused::{Probabilities, suits};
use crate::op::{Attention, Space};
use crate::run::softcap;
use crate::state::State;

/// Added to the score of a hidden key where scores are masked by a sum. Not −∞: a row that sees nothing, which only
/// padding can be, stays finite.
const HIDDEN: f32 = -1e30;

/// `q`, `k`, `v` are (B, S, heads·e) or (B, S, heads, e); `bias` is (2S−1, heads). The result is (B, S, heads·e).
pub(crate) fn attend(
    attention: &Attention,
    state: &State,
    [q, k, v]: [&Tensor; 3],
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (heads, kv_heads, e) = (attention.heads, attention.kv_heads, attention.head_dim);
    let (b, queries, keys) = (q.dim(0)?, q.dim(1)?, k.dim(1)?);
    if let Some(bias) = bias
        && (bias.dim(0)? != 2 * keys - 1 || queries != keys)
    {
        return Err(ModelError::Batch(format!(
            "relative positions of {} distances for {queries} queries and {keys} keys",
            bias.dim(0)?
        )));
    }
    let split = |x: &Tensor, len: usize, heads: usize| -> Result<Tensor> {
        Ok(x.reshape((b, len, heads, e))?.transpose(1, 2)?)
    };
    let rows = heads / kv_heads * queries;
    let q = split(q, queries, heads)?.reshape((b * kv_heads, rows, e))?;
    let k = split(k, keys, kv_heads)?.reshape((b * kv_heads, keys, e))?;
    let v = split(v, keys, kv_heads)?.reshape((b * kv_heads, keys, e))?;
    let scores = q.matmul(&k.t()?)?.reshape((b, heads, queries, keys))?;

    let sight = Sight::new(attention, state);
    let probabilities = if !state.differentiable && suits(&scores) {
        let by_distance = bias.map(|bias| bias.t()?.flatten_all()?.to_vec1());
        let op = Probabilities {
            heads,
            queries,
            keys,
            scale: attention.scale as f32,
            softcap: attention.softcap.map(|cap| cap as f32),
            bias: by_distance.transpose()?,
            sight: &sight,
        };
        op.replace(&scores)?;
        scores
    } else {
        let mut scores = (scores * attention.scale)?;
        if let Some(cap) = attention.softcap {
            scores = softcap(&scores, cap)?;
        }
        if let Some(bias) = bias {
            scores = scores.broadcast_add(&by_distance(bias, queries, keys)?)?;
        }
        if let Some(mask) = sight.mask([b, queries, keys])? {
            let mask = mask.to_device(scores.device())?.to_dtype(scores.dtype())?;
            scores = scores.broadcast_add(&mask)?;
        }
        softmax(&scores, state.differentiable)?
    };
    let mixed = probabilities
        .reshape((b * kv_heads, rows, keys))?
        .matmul(&v)?;
    Ok(mixed
        .reshape((b, heads, queries, e))?
        .transpose(1, 2)?
        .reshape((b, queries, heads * e))?)
}

/// Softmax along the last axis.
fn softmax(x: &Tensor, differentiable: bool) -> Result<Tensor> {
    if differentiable {
        // The maximum cancels; its gradient would only add rounding.
        let top = x.max_keepdim(D::Minus1)?.detach();
        let exp = x.broadcast_sub(&top)?.exp()?;
        Ok(exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?)
    } else {
        Ok(softmax_last_dim(&x.contiguous()?)?)
    }
}

/// (2S−1, heads) by distance to (1, heads, S, S) by query and key.
fn by_distance(bias: &Tensor, queries: usize, keys: usize) -> Result<Tensor> {
    let index: Vec<u32> = (0..queries)
        .flat_map(|query| (0..keys).map(move |key| (keys - 1 + key - query) as u32))
        .collect();
    let index = Tensor::new(index, bias.device())?;
    Ok(bias
        .index_select(&index, 0)?
        .reshape((queries, keys, bias.dim(1)?))?
        .permute((2, 0, 1))?
        .unsqueeze(0)?)
}

/// Which keys a query sees.
pub(crate) struct Sight<'a> {
    causal: bool,
    window: Option<usize>,
    /// Which keys are real, sample by sample; `None` if all are.
    real: Option<&'a [bool]>,
}

impl<'a> Sight<'a> {
    fn new(attention: &Attention, state: &'a State) -> Self {
        let rows = match attention.keys {
            Space::Tokens => state.tokens.as_ref(),
            Space::DecoderTokens => state.decoder.as_ref(),
            Space::Patches | Space::Samples | Space::Shared => None,
        };
        Self {
            causal: attention.causal,
            window: attention.window,
            real: rows
                .filter(|rows| rows.has_padding())
                .map(|rows| rows.tokens.real()),
        }
    }

    /// The keys near enough and, if causal, not after the query.
    #[inline(always)]
    #[allow(clippy::inline_always)]
    pub(crate) fn range(&self, query: usize, keys: usize) -> Range<usize> {
        let window = self.window.unwrap_or(usize::MAX);
        let start = query.saturating_add(1).saturating_sub(window).min(keys);
        let end = if self.causal {
            query.saturating_add(1)
        } else {
            query.saturating_add(window)
        };
        start..end.min(keys).max(start)
    }

    /// Which keys of `sample` are real, if some are not.
    #[inline(always)]
    #[allow(clippy::inline_always)]
    pub(crate) fn real(&self, sample: usize, keys: usize) -> Option<&'a [bool]> {
        self.real.map(|real| &real[sample * keys..][..keys])
    }

    /// What to add to the scores, (B or 1, 1, queries or 1, keys); `None` if every query sees every key.
    fn mask(&self, [b, queries, keys]: [usize; 3]) -> Result<Option<Tensor>> {
        let by_query = self.causal || self.window.is_some();
        if self.real.is_none() && !by_query {
            return Ok(None);
        }
        let samples = if self.real.is_some() { b } else { 1 };
        let rows = if by_query { queries } else { 1 };
        let mut values = vec![HIDDEN; samples * rows * keys];
        for (number, row) in values.chunks_exact_mut(keys).enumerate() {
            let range = if by_query {
                self.range(number % rows, keys)
            } else {
                0..keys
            };
            let real = self.real(number / rows, keys);
            for key in range {
                if real.is_none_or(|real| real[key]) {
                    row[key] = 0.0;
                }
            }
        }
        let shape = (samples, 1, rows, keys);
        Ok(Some(Tensor::from_vec(values, shape, &Device::Cpu)?))
    }
}
