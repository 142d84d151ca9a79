//! How good a model is, guessed from its outputs alone: entropy, consistency, neighbourhood density.
//!
//! With p_i = softmax(logits of sample i) and H the entropy in nats,
//!
//! - entropy: mean H(p_i) (Wang et al., *Tent*, ICLR 2021). Low is taken for good.
//! - consistency: mean KL(p_i ‖ p'_i), p' of changed copies of the samples. Low is taken for good.
//! - neighbourhood density (SND): mean H(q_i), q_i = softmax over j ≠ i of cos(p_i, p_j)/τ, τ = 0.05, over all samples
//!   (Saito et al., *Tune it the Right Way*, ICCV 2021). High is taken for good.
//!
//! None of them is reliable everywhere (Cygert et al., arXiv 2407.14231): a model that gives every sample the same class has
//! the best entropy, consistency and density there is. [`collapse`] finds such models.

use rayon::prelude::*;

use crate::error::{EvalError, Result};
use crate::forward::Vectors;

/// τ of the neighbourhood density.
pub const TEMPERATURE: f64 = 0.05;

/// Share of ln C below which the entropy of the histogram of predictions counts as a collapse.
const NARROW: f64 = 0.5;

/// Multiple of 1/C above which the share of one class counts as a collapse.
const CROWDED: f64 = 5.0;

/// The probabilities of each sample: the softmax of its logits, in `f64`.
pub fn probabilities(logits: &Vectors) -> Vec<Vec<f64>> {
    rows(logits)
        .map(|row| softmax(row.iter().map(|&x| f64::from(x))))
        .collect()
}

fn rows(vectors: &Vectors) -> impl Iterator<Item = &[f32]> {
    vectors.values.chunks(vectors.width.max(1))
}

pub(crate) fn softmax(logits: impl Iterator<Item = f64> + Clone) -> Vec<f64> {
    let largest = logits.clone().fold(f64::NEG_INFINITY, f64::max);
    let mut out: Vec<f64> = logits.map(|x| (x - largest).exp()).collect();
    let sum: f64 = out.iter().sum();
    for x in &mut out {
        *x /= sum;
    }
    out
}

fn nats(p: &[f64]) -> f64 {
    -p.iter()
        .map(|&x| if x > 0.0 { x * x.ln() } else { 0.0 })
        .sum::<f64>()
}

/// The mean entropy of the predictions, in nats: 0 (sure of everything) to ln C.
pub fn entropy(logits: &Vectors) -> f64 {
    mean(probabilities(logits).iter().map(|p| nats(p)))
}

/// The mean KL divergence, in nats, of the predictions on changed copies from those on the samples themselves.
///
/// # Errors
/// If there are not as many copies as samples, or they have other classes.
pub fn consistency(logits: &Vectors, changed: &Vectors) -> Result<f64> {
    if logits.width != changed.width || logits.len() != changed.len() {
        return Err(EvalError::Setting(format!(
            "there are {} samples of {} classes, and {} changed copies of {}; the copies must be of the same samples in \
             the same order",
            logits.len(),
            logits.width,
            changed.len(),
            changed.width
        )));
    }
    // Of logits, so that no probability is lost to rounding before its logarithm is taken.
    let log = |row: &[f32]| -> Vec<f64> {
        let largest = row
            .iter()
            .fold(f64::NEG_INFINITY, |m, &x| m.max(f64::from(x)));
        let sum: f64 = row.iter().map(|&x| (f64::from(x) - largest).exp()).sum();
        let norm = largest + sum.ln();
        row.iter().map(|&x| f64::from(x) - norm).collect()
    };
    Ok(mean(rows(logits).zip(rows(changed)).map(|(a, b)| {
        let (a, b) = (log(a), log(b));
        a.iter().zip(&b).map(|(a, b)| a.exp() * (a - b)).sum()
    })))
}

/// The mean entropy, in nats, of each sample's similarity to all others: 0 to ln(N − 1), high where samples have many near
/// neighbours. `vectors` are probabilities as published; logits give other numbers. `None` with fewer than two samples.
pub fn neighbourhood_density(vectors: &[Vec<f64>], temperature: f64) -> Option<f64> {
    if vectors.len() < 2 {
        return None;
    }
    let unit: Vec<Vec<f64>> = vectors
        .iter()
        .map(|row| {
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
            row.iter().map(|x| x * scale).collect()
        })
        .collect();
    let each: Vec<f64> = (0..unit.len())
        .into_par_iter()
        .map(|i| {
            let cosine = |j: usize| {
                unit[i]
                    .iter()
                    .zip(&unit[j])
                    .map(|(a, b)| a * b)
                    .sum::<f64>()
            };
            let similar = (0..unit.len()).filter(|&j| j != i);
            nats(&softmax(similar.map(|j| cosine(j) / temperature)))
        })
        .collect();
    Some(mean(each.into_iter()))
}

/// Why the predictions look like those of a model that has stopped to tell classes apart, if they do: their histogram has
/// less than half of the entropy of a uniform one, or one class more than five times its share.
pub fn collapse(logits: &Vectors) -> Option<String> {
    let classes = logits.width;
    if classes < 2 || logits.is_empty() {
        return None;
    }
    let mut counts = vec![0_usize; classes];
    for row in rows(logits) {
        counts[crate::classify::argmax(row) as usize] += 1;
    }
    let total = logits.len() as f64;
    let shares: Vec<f64> = counts.iter().map(|&n| n as f64 / total).collect();
    let (class, most) = shares
        .iter()
        .enumerate()
        .fold(
            (0, 0.0),
            |best, (class, &share)| {
                if share > best.1 { (class, share) } else { best }
            },
        );
    let spread = nats(&shares) / (classes as f64).ln();
    (spread < NARROW || most > CROWDED / classes as f64).then(|| {
        format!(
            "{:.0} % of the samples are given class {class} of {classes}",
            100.0 * most
        )
    })
}

/// The candidate with the smallest value, the first of equals; NaN is never chosen.
pub fn smallest(values: &[f64]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (at, &x) in values.iter().enumerate() {
        if !x.is_nan() && best.is_none_or(|best| x < values[best]) {
            best = Some(at);
        }
    }
    best
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0_usize), |(sum, n), x| (sum + x, n + 1));
    sum / (count.max(1)) as f64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn vectors(width: usize, values: Vec<f32>) -> Vectors {
        Vectors { width, values }
    }

    #[test]
    fn sure_and_unsure_predictions() {
        assert!(entropy(&vectors(3, vec![90.0, 0.0, 0.0])) < 1e-12);
        let unsure = vectors(4, vec![2.0; 8]);
        assert!((entropy(&unsure) - 4.0_f64.ln()).abs() < 1e-12);
        assert_eq!(consistency(&unsure, &unsure).unwrap(), 0.0);
        let other = vectors(4, vec![300.0, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 2.0]);
        let found = consistency(&unsure, &other).unwrap();
        assert!(found.is_finite() && found > 50.0);
        assert!(consistency(&unsure, &vectors(4, vec![0.0; 4])).is_err());
    }

    #[test]
    fn close_neighbours_are_dense() {
        let same = vec![vec![1.0, 0.0]; 5];
        assert!((neighbourhood_density(&same, 0.05).unwrap() - 4.0_f64.ln()).abs() < 1e-12);
        let pairs = vec![
            vec![1.0, 0.0],
            vec![1.0, 0.0],
            vec![0.0, 1.0],
            vec![0.0, 1.0],
        ];
        assert!(neighbourhood_density(&pairs, 0.05).unwrap() < 1e-6);
        assert_eq!(neighbourhood_density(&same[..1], 0.05), None);
    }

    #[test]
    fn a_model_that_knows_one_class_has_collapsed() {
        let one = vectors(4, [1.0, 0.0, 0.0, 0.0].repeat(20));
        assert!(
            collapse(&one)
                .unwrap()
                .contains("100 % of the samples are given class 0")
        );
        let all = vectors(2, vec![1.0, 0.0, 0.0, 1.0]);
        assert_eq!(collapse(&all), None);
        assert_eq!(collapse(&vectors(3, Vec::new())), None);
    }

    #[test]
    fn the_first_of_the_smallest_is_chosen_and_nan_never() {
        assert_eq!(smallest(&[f64::NAN, 2.0, 1.0, 1.0]), Some(2));
        assert_eq!(smallest(&[f64::NAN]), None);
        assert_eq!(smallest(&[]), None);
    }
}
