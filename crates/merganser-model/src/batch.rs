//! What a network is run on: tokens or images, some samples at a time.

use candle_core::Tensor;

use crate::error::{ModelError, Result};

/// Samples that go through a network together.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Text.
    pub tokens: Option<Tokens>,
    /// Text of the decoder's side, beginning with its start token (T5).
    pub decoder: Option<Tokens>,
    /// Images, already resized and normalised: (B, channels, height, width) in f32.
    pub pixels: Option<Tensor>,
}

impl Batch {
    /// A batch of text.
    pub fn text(tokens: Tokens) -> Self {
        Self {
            tokens: Some(tokens),
            ..Self::default()
        }
    }

    /// A batch of text for an encoder and a decoder.
    pub fn text_pair(tokens: Tokens, decoder: Tokens) -> Self {
        Self {
            tokens: Some(tokens),
            decoder: Some(decoder),
            pixels: None,
        }
    }

    /// A batch of images, (B, channels, height, width) in f32.
    pub fn images(pixels: Tensor) -> Self {
        Self {
            pixels: Some(pixels),
            ..Self::default()
        }
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        match (&self.tokens, &self.decoder, &self.pixels) {
            (Some(tokens), _, _) | (None, Some(tokens), _) => tokens.samples,
            (None, None, Some(pixels)) => pixels.dims().first().copied().unwrap_or(0),
            (None, None, None) => 0,
        }
    }
}

/// Token ids of several samples in one rectangle, row by row, with padding marked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    samples: usize,
    len: usize,
    ids: Vec<u32>,
    real: Vec<bool>,
    types: Option<Vec<u32>>,
    positions: Option<Vec<u32>>,
}

impl Tokens {
    /// Samples of any lengths, padded at their end with `pad`. Refuses an empty list and empty samples.
    pub fn new(samples: &[Vec<u32>], pad: u32) -> Result<Self> {
        let len = samples.iter().map(Vec::len).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(samples.len() * len);
        let mut real = Vec::with_capacity(samples.len() * len);
        for sample in samples {
            ids.extend_from_slice(sample);
            ids.resize(ids.len() + len - sample.len(), pad);
            real.resize(real.len() + sample.len(), true);
            real.resize(ids.len(), false);
        }
        Self::padded(samples.len(), len, ids, real)
    }

    /// A rectangle of `samples` rows of `len` ids with `real[i]` false for padding, which may be at either end. Refuses
    /// samples without a real token and lists of wrong length.
    pub fn padded(samples: usize, len: usize, ids: Vec<u32>, real: Vec<bool>) -> Result<Self> {
        let refused = |problem: String| Err(ModelError::Batch(problem));
        let cells = samples.checked_mul(len).unwrap_or(0);
        if cells == 0 {
            return refused("there are no tokens".into());
        }
        if ids.len() != cells || real.len() != cells {
            return refused(format!(
                "{} ids and {} mask entries for {samples} samples of {len} tokens",
                ids.len(),
                real.len()
            ));
        }
        if let Some(sample) = real.chunks(len).position(|row| !row.contains(&true)) {
            return refused(format!("sample {sample} has no token that is not padding"));
        }
        Ok(Self {
            samples,
            len,
            ids,
            real,
            types: None,
            positions: None,
        })
    }

    /// Sets the token types (segment ids); without them all are 0.
    pub fn with_types(mut self, types: Vec<u32>) -> Result<Self> {
        self.types = Some(self.checked("token types", types)?);
        Ok(self)
    }

    /// Sets the positions; without them the real tokens of a sample are counted from 0. They are rows of the position
    /// table: for RoBERTa the first one is the padding id + 1.
    pub fn with_positions(mut self, positions: Vec<u32>) -> Result<Self> {
        self.positions = Some(self.checked("positions", positions)?);
        Ok(self)
    }

    fn checked(&self, what: &str, values: Vec<u32>) -> Result<Vec<u32>> {
        if values.len() == self.ids.len() {
            Ok(values)
        } else {
            Err(ModelError::Batch(format!(
                "{} {what} for {} tokens",
                values.len(),
                self.ids.len()
            )))
        }
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Tokens of each sample, padding included.
    pub fn sequence_len(&self) -> usize {
        self.len
    }

    /// All ids, sample by sample.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Which ids are not padding.
    pub fn real(&self) -> &[bool] {
        &self.real
    }

    /// Number of tokens that are not padding.
    pub fn real_count(&self) -> usize {
        self.real.iter().filter(|&&real| real).count()
    }

    /// Token types, 0 where none were set.
    pub(crate) fn types(&self) -> Vec<u32> {
        self.types
            .clone()
            .unwrap_or_else(|| vec![0; self.ids.len()])
    }

    /// Positions as set, or the real tokens of each sample counted from `first`. Padding has the position `first` or, if
    /// that is not 0, the one before (RoBERTa's padding row).
    pub(crate) fn positions(&self, first: u32) -> Vec<u32> {
        if let Some(positions) = &self.positions {
            return positions.clone();
        }
        let mut positions = Vec::with_capacity(self.ids.len());
        for row in self.real.chunks(self.len) {
            let mut next = first;
            for &real in row {
                positions.push(if real { next } else { first.saturating_sub(1) });
                next += u32::from(real);
            }
        }
        positions
    }
}
