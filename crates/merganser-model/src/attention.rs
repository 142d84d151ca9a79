//! Attention by two batched products: `softmax(scale · q kᵀ + bias + mask) v` (Vaswani et al. 2017).
//!
//! Query heads that share a key head (Ainslie et al. 2023) are rows of one product, so keys and values are never
//! repeated. What is hidden gets −1e30 rather than −∞: a row that sees nothing, which only padding can be, stays finite.

use candle_core::Tensor;

use crate::error::{ModelError, Result};
use crate::op::{Attention, Space};
use crate::run::{softcap, softmax};
use crate::state::State;

/// Added to the score of a hidden key.
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
    let split = |x: &Tensor, len: usize, heads: usize| -> Result<Tensor> {
        Ok(x.reshape((b, len, heads, e))?.transpose(1, 2)?)
    };
    let q = (split(q, queries, heads)?.contiguous()? * attention.scale)?;
    let q = q.reshape((b * kv_heads, heads / kv_heads * queries, e))?;
    let k = split(k, keys, kv_heads)?.reshape((b * kv_heads, keys, e))?;
    let v = split(v, keys, kv_heads)?.reshape((b * kv_heads, keys, e))?;

    let mut scores = q.matmul(&k.t()?)?.reshape((b, heads, queries, keys))?;
    if let Some(cap) = attention.softcap {
        scores = softcap(&scores, cap)?;
    }
    if let Some(bias) = bias {
        scores = scores.broadcast_add(&by_distance(bias, queries, keys)?)?;
    }
    if let Some(mask) = mask(attention, state, [b, queries, keys])? {
        let mask = mask.to_device(scores.device())?.to_dtype(scores.dtype())?;
        scores = scores.broadcast_add(&mask)?;
    }
    let mixed = softmax(&scores, state.differentiable)?
        .reshape((b * kv_heads, heads / kv_heads * queries, keys))?
        .matmul(&v)?;
    Ok(mixed
        .reshape((b, heads, queries, e))?
        .transpose(1, 2)?
        .reshape((b, queries, heads * e))?)
}

/// (2S−1, heads) by distance to (1, heads, S, S) by query and key.
fn by_distance(bias: &Tensor, queries: usize, keys: usize) -> Result<Tensor> {
    let heads = bias.dim(1)?;
    if bias.dim(0)? != 2 * keys - 1 || queries != keys {
        return Err(ModelError::Batch(format!(
            "relative positions of {} distances for {queries} queries and {keys} keys",
            bias.dim(0)?
        )));
    }
    let index: Vec<u32> = (0..queries)
        .flat_map(|query| (0..keys).map(move |key| (keys - 1 + key - query) as u32))
        .collect();
    let index = Tensor::new(index, bias.device())?;
    Ok(bias
        .index_select(&index, 0)?
        .reshape((queries, keys, heads))?
        .permute((2, 0, 1))?
        .unsqueeze(0)?)
}

/// What to add to the scores, (B or 1, 1, queries or 1, keys); `None` if every query sees every key.
fn mask(
    attention: &Attention,
    state: &State,
    [b, queries, keys]: [usize; 3],
) -> Result<Option<Tensor>> {
    let rows = match attention.keys {
        Space::Tokens => state.tokens.as_ref(),
        Space::DecoderTokens => state.decoder.as_ref(),
        Space::Patches | Space::Samples | Space::Shared => None,
    };
    let real = rows
        .filter(|rows| rows.has_padding())
        .map(|rows| rows.tokens.real());
    let by_query = attention.causal || attention.window.is_some();
    if real.is_none() && !by_query {
        return Ok(None);
    }
    let samples = if real.is_some() { b } else { 1 };
    let rows = if by_query { queries } else { 1 };
    let window = attention.window.unwrap_or(usize::MAX);
    let mut values = Vec::with_capacity(samples * rows * keys);
    for sample in 0..samples {
        for query in 0..rows {
            for key in 0..keys {
                let real = real.is_none_or(|real| real[sample * keys + key]);
                let near = !by_query
                    || ((!attention.causal || key <= query) && query.abs_diff(key) < window);
                values.push(if real && near { 0.0 } else { HIDDEN });
            }
        }
    }
    Ok(Some(Tensor::from_vec(
        values,
        (samples, 1, rows, keys),
        &candle_core::Device::Cpu,
    )?))
}
