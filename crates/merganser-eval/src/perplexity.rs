//! Perplexity of language models: exp of the mean negative log-likelihood of a token given those before it,
//! −log softmax(logits)[next token].
//!
//! A causal model is scored on every real token but the first of each sample; a model with encoder and decoder on the
//! target text. Logits are made for some rows at a time ([`Network::log_likelihoods`]): a batch's worth of them (tokens ×
//! vocabulary) is never in memory. Sums over tokens are in f64, in order.

use candle_core::Tensor;
use merganser_data::{Chunk, Inputs, Samples};
use merganser_model::{Network, StageWeights, State, Weights};

use crate::error::{EvalError, Result};
use crate::forward::{is_causal, run};

/// What the tokens of each sample cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Likelihood {
    /// Σ −log p over the tokens of each sample, in nats.
    pub nll: Vec<f64>,
    /// Number of tokens that were scored in each sample.
    pub tokens: Vec<f64>,
}

/// Scores every token of `samples`.
///
/// # Errors
/// A network without a vocabulary head, or one that sees later tokens; samples without a token to score.
pub fn likelihood(
    network: &Network,
    weights: &dyn Weights,
    samples: &Samples,
    batch_size: usize,
) -> Result<Likelihood> {
    let unfit = |problem: &str| EvalError::Unfit {
        model: network.family().to_owned(),
        problem: problem.to_owned(),
    };
    let Some(stage) = network.vocabulary_head() else {
        return Err(unfit(
            "perplexity needs a language model with its vocabulary head (`…ForCausalLM`), and this checkpoint has none",
        ));
    };
    if !is_causal(network) {
        return Err(unfit(
            "perplexity is that of models which predict the next token; this one sees the tokens it would predict",
        ));
    }
    let Inputs::Text { sequences, .. } = &samples.inputs else {
        return Err(unfit(
            "perplexity is that of texts, and these samples are images",
        ));
    };
    let seq2seq = sequences
        .iter()
        .any(|sequence| !sequence.decoder.is_empty());
    // What the row of each token should be followed by.
    let targets: Vec<&[u32]> = sequences
        .iter()
        .map(|sequence| {
            if seq2seq {
                &sequence.target[..]
            } else {
                &sequence.ids[1..]
            }
        })
        .collect();
    if targets.iter().all(|targets| targets.is_empty()) {
        return Err(EvalError::Setting(if seq2seq {
            "there are no target texts to score: name the column they are in".into()
        } else {
            "no sample has a second token, so there is nothing to predict".into()
        }));
    }
    let head = StageWeights::load(stage, weights)?;
    let mut found = Likelihood {
        nll: vec![0.0; samples.len()],
        tokens: targets.iter().map(|targets| targets.len() as f64).collect(),
    };
    run(
        network,
        weights,
        samples,
        batch_size,
        &mut |chunk, state| {
            for (&at, nll) in chunk
                .indices
                .iter()
                .zip(batch(network, &head, chunk, state, &targets)?)
            {
                if !nll.is_finite() {
                    return Err(EvalError::Setting(format!(
                        "the likelihood of sample {} is {nll}; the weights hold values that overflow, or NaN",
                        samples.rows[at]
                    )));
                }
                found.nll[at] = nll;
            }
            Ok(())
        },
    )?;
    Ok(found)
}

/// The cost of each sample of a batch.
fn batch(
    network: &Network,
    head: &StageWeights<'_>,
    chunk: &Chunk,
    state: &State,
    targets: &[&[u32]],
) -> Result<Vec<f64>> {
    let hidden = state.get(network.outputs().hidden)?;
    let (_, length, _) = hidden.dims3()?;
    // Row in the flattened batch, and the token that follows it.
    let mut rows = Vec::new();
    let mut wanted = Vec::new();
    let mut ends = Vec::new();
    for (row, &at) in chunk.indices.iter().enumerate() {
        for (step, &token) in targets[at].iter().enumerate() {
            rows.push((row * length + step) as u32);
            wanted.push(token);
        }
        ends.push(rows.len());
    }
    if rows.is_empty() {
        return Ok(vec![0.0; ends.len()]);
    }
    let index = Tensor::new(rows, hidden.device())?;
    let hidden = hidden.flatten_to(1)?.index_select(&index, 0)?;
    let likelihoods = network.log_likelihoods(&hidden, &wanted, head)?;
    let mut start = 0;
    Ok(ends
        .into_iter()
        .map(|end| {
            let sum: f64 = likelihoods[start..end].iter().map(|&x| -f64::from(x)).sum();
            start = end;
            sum
        })
        .collect())
}
