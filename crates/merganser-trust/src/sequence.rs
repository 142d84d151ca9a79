//! Which update of a sequence of models stands out: triage for poisoned tasks in continual learning.
//!
//! From the updates τ_t, their lengths n_t and cosines C, and the earlier updates H that were not flagged themselves:
//!
//! * z_norm = (ln n_t − median_H ln n) / max(1.4826 · MAD_H ln n, 0.15)
//! * z_cos = (mean_{h ∈ H} C_th − mean of C over pairs of H) / max(standard deviation over these pairs, 0.05)
//! * z_loss, if final training losses are known: as z_norm
//!
//! The score is the largest magnitude of these; an update is flagged if it exceeds 3, and never with fewer than 3 in H.
//! A flagged update never enters H. Scores by tensor are for looking at, not for flagging: their maximum would raise false
//! alarms in 15 to 40 % of clean sequences.
//!
//! The threat (one poisoned task of a stream) is that of Single-Task Poisoning, arXiv 2507.04106; this detector is our own.

use serde::Serialize;

use crate::error::{Error, Result, check_finite, check_len};

/// From the median absolute deviation to the standard deviation of a normal distribution.
const MAD_TO_SIGMA: f64 = 1.4826;

/// How to score.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rule {
    /// An update is scored if at least so many trusted ones came before it.
    pub min_history: usize,
    /// Smallest spread of logarithms of lengths and losses that is believed.
    pub log_floor: f64,
    /// Smallest spread of cosines that is believed.
    pub cosine_floor: f64,
    /// Scores above this are flagged.
    pub threshold: f64,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            min_history: 3,
            log_floor: 0.15,
            cosine_floor: 0.05,
            threshold: 3.0,
        }
    }
}

/// What is known of the updates.
#[derive(Debug, Clone, Copy)]
pub struct Updates<'a> {
    /// ⟨τ_s, τ_t⟩, T×T, row after row.
    pub gram: &'a [f64],
    /// By tensor, the T lengths of its part of the updates.
    pub tensor_norms: &'a [Vec<f64>],
    /// Final training losses of the T updates.
    pub losses: Option<&'a [f64]>,
}

/// What was found of one update.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// ‖τ_t‖.
    pub norm: f64,
    /// Mean cosine with the trusted updates before it; 0 if there are none.
    pub mean_cosine: f64,
    /// Whether enough trusted updates came before it to be scored.
    pub scored: bool,
    /// How unusual its length is.
    pub z_norm: f64,
    /// How unusual its direction is.
    pub z_cosine: f64,
    /// How unusual its training loss is, if known.
    pub z_loss: Option<f64>,
    /// The largest magnitude; −1 if it was not scored.
    pub score: f64,
    /// Whether the score exceeds the threshold.
    pub flagged: bool,
    /// `z_norm` tensor by tensor: not part of the score.
    pub z_norm_by_tensor: Vec<f64>,
}

/// Scores updates in their order.
///
/// # Errors
/// If sizes do not fit, a number is not finite, an update is 0, or a loss is not positive.
pub fn score(updates: Updates<'_>, rule: Rule) -> Result<Vec<Score>> {
    let squares = updates.gram.len();
    let count = (squares as f64).sqrt().round() as usize;
    check_len("the products of the updates", squares, count * count)?;
    check_finite("the products of the updates", updates.gram)?;
    let norms: Vec<f64> = (0..count)
        .map(|t| updates.gram[t * count + t].max(0.0).sqrt())
        .collect();
    if let Some(t) = norms.iter().position(|&n| n == 0.0) {
        return Err(Error::Refused(format!(
            "update {} changes nothing: the two models are equal; leave it out",
            t + 1
        )));
    }
    for part in updates.tensor_norms {
        check_len("the lengths of a tensor's updates", part.len(), count)?;
    }
    if let Some(losses) = updates.losses {
        check_len("the list of losses", losses.len(), count)?;
        if let Some(&found) = losses.iter().find(|x| !(x.is_finite() && **x > 0.0)) {
            return Err(Error::Range {
                what: "a training loss".into(),
                found,
                expected: "a positive number, as its logarithm is taken",
            });
        }
    }
    let cosine = |s: usize, t: usize| updates.gram[s * count + t] / (norms[s] * norms[t]);
    let mut trusted: Vec<usize> = Vec::new();
    let mut scores = Vec::with_capacity(count);
    for t in 0..count {
        let towards: Vec<f64> = trusted.iter().map(|&h| cosine(t, h)).collect();
        let mut found = Score {
            norm: norms[t],
            mean_cosine: mean(&towards),
            scored: trusted.len() >= rule.min_history.max(2),
            z_norm: 0.0,
            z_cosine: 0.0,
            z_loss: updates.losses.map(|_| 0.0),
            score: -1.0,
            flagged: false,
            z_norm_by_tensor: vec![0.0; updates.tensor_norms.len()],
        };
        if found.scored {
            let unusual = |values: &[f64]| robust(values, t, &trusted, rule.log_floor);
            found.z_norm = unusual(&norms);
            let mut pairs = Vec::new();
            for (k, &s) in trusted.iter().enumerate() {
                pairs.extend(trusted[..k].iter().map(|&h| cosine(s, h)));
            }
            let middle = mean(&pairs);
            let variance = mean(
                &pairs
                    .iter()
                    .map(|c| (c - middle).powi(2))
                    .collect::<Vec<_>>(),
            );
            found.z_cosine = (found.mean_cosine - middle) / variance.sqrt().max(rule.cosine_floor);
            found.z_loss = updates.losses.map(unusual);
            found.z_norm_by_tensor = updates
                .tensor_norms
                .iter()
                .map(|norms| unusual(norms))
                .collect();
            found.score = found
                .z_norm
                .abs()
                .max(found.z_cosine.abs())
                .max(found.z_loss.unwrap_or(0.0).abs());
            found.flagged = found.score > rule.threshold;
        }
        if !found.flagged {
            trusted.push(t);
        }
        scores.push(found);
    }
    Ok(scores)
}

/// The logarithm of number `t` against those of `history`, in robust standard deviations; 0 where a number is 0, as in
/// tensors that are never trained.
fn robust(values: &[f64], t: usize, history: &[usize], floor: f64) -> f64 {
    if values[t] <= 0.0 || history.iter().any(|&h| values[h] <= 0.0) {
        return 0.0;
    }
    let mut logs: Vec<f64> = history.iter().map(|&h| values[h].ln()).collect();
    let middle = median(&mut logs);
    let mut apart: Vec<f64> = logs.iter().map(|x| (x - middle).abs()).collect();
    let spread = (MAD_TO_SIGMA * median(&mut apart)).max(floor);
    (values[t].ln() - middle) / spread
}

/// 0 if there is nothing, and not −0, which is what an empty sum is.
fn mean(values: &[f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    values.iter().sum::<f64>() / values.len() as f64
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[half],
        _ => f64::midpoint(values[half - 1], values[half]),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Updates of the given lengths whose cosines are all 0.2.
    fn gram(norms: &[f64]) -> Vec<f64> {
        let mut gram = Vec::new();
        for (s, a) in norms.iter().enumerate() {
            gram.extend(
                norms
                    .iter()
                    .enumerate()
                    .map(|(t, b)| a * b * if s == t { 1.0 } else { 0.2 }),
            );
        }
        gram
    }

    fn scores(gram: &[f64], losses: Option<&[f64]>) -> Result<Vec<Score>> {
        let updates = Updates {
            gram,
            tensor_norms: &[],
            losses,
        };
        score(updates, Rule::default())
    }

    #[test]
    fn a_long_update_is_flagged_and_forgotten() {
        let found = scores(&gram(&[1.0, 1.1, 0.9, 1.0, 5.0, 1.0, 5.0]), None).unwrap();
        let flagged: Vec<bool> = found.iter().map(|score| score.flagged).collect();
        assert_eq!(flagged, [false, false, false, false, true, false, true]);
        assert_eq!(found[2].score, -1.0);
    }

    #[test]
    fn a_high_loss_is_flagged() {
        let products = gram(&[1.0; 5]);
        let losses = [0.1, 0.11, 0.1, 0.09, 0.9];
        let found = scores(&products, Some(&losses)).unwrap();
        assert!(found[4].flagged && found[4].z_norm == 0.0);
        assert!(scores(&products, Some(&losses[1..])).is_err());
        assert!(scores(&products, Some(&[0.0; 5])).is_err());
    }

    #[test]
    fn equal_models_are_refused() {
        let message = scores(&gram(&[1.0, 0.0, 1.0]), None).unwrap_err();
        assert!(message.to_string().contains("update 2 changes nothing"));
    }
}
