//! Logits over a vocabulary, some rows at a time: B×S×V numbers never exist.

use candle_core::{D, DType, Tensor};

use crate::error::{ModelError, Result};
use crate::network::{Network, Stage};
use crate::state::State;
use crate::weights::Weights;

/// Logits computed at a time in [`Network::log_likelihoods`].
const CHUNK: usize = 1 << 24;

impl Network {
    fn head(&self) -> Result<&Stage> {
        self.vocabulary_head().ok_or_else(|| ModelError::NoOutput {
            what: "vocabulary head",
            why: "it is not a language model, or its head is missing".into(),
        })
    }

    /// Logits (n, V) of n rows of [`Outputs::hidden`](crate::Outputs::hidden), (n, d). Load the weights of the
    /// [`vocabulary_head`](Network::vocabulary_head) into [`StageWeights`](crate::StageWeights) to call it often.
    pub fn logits(&self, rows: &Tensor, weights: &dyn Weights) -> Result<Tensor> {
        let head = self.head()?;
        let mut state = State::bare(self);
        state.set(self.outputs().hidden, rows.unsqueeze(0)?);
        for op in &head.ops {
            self.run(op, &mut state, weights)?;
        }
        let logits = self
            .outputs()
            .logits
            .map(|reg| state.get(reg))
            .transpose()?;
        let logits = logits.ok_or_else(|| ModelError::NoOutput {
            what: "logits",
            why: "the vocabulary head writes none".into(),
        })?;
        Ok(logits.squeeze(0)?)
    }

    /// Natural logarithm of the probability of `targets[i]` given row i of `rows` (n, d), for every i. The exponential of
    /// the negative mean is the perplexity.
    pub fn log_likelihoods(
        &self,
        rows: &Tensor,
        targets: &[u32],
        weights: &dyn Weights,
    ) -> Result<Vec<f32>> {
        let (n, _) = rows.dims2()?;
        if targets.len() != n {
            return Err(ModelError::Batch(format!(
                "{} targets for {n} rows",
                targets.len()
            )));
        }
        let vocabulary = self.vocabulary()?;
        if let Some(id) = targets.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(ModelError::Batch(format!(
                "target {id} is not in the vocabulary of {vocabulary}"
            )));
        }
        let step = (CHUNK / vocabulary).max(1);
        let mut all = Vec::with_capacity(n);
        for (chunk, targets) in targets.chunks(step).enumerate() {
            let rows = rows.narrow(0, chunk * step, targets.len())?;
            let logits = self.logits(&rows, weights)?;
            let index = Tensor::new(targets, logits.device())?.unsqueeze(1)?;
            let chosen = logits.gather(&index, 1)?.squeeze(1)?;
            let largest = logits.max_keepdim(D::Minus1)?;
            let sum = logits.broadcast_sub(&largest)?.exp()?.sum(D::Minus1)?;
            let found = ((chosen - largest.squeeze(1)?)? - sum.log()?)?;
            all.extend(found.to_dtype(DType::F32)?.to_vec1::<f32>()?);
        }
        Ok(all)
    }

    /// Size of the vocabulary of the head.
    pub fn vocabulary(&self) -> Result<usize> {
        let matrix = self.head()?.vocabulary_matrix();
        Ok(matrix.map_or(0, |(_, matrix)| matrix.outputs))
    }
}
