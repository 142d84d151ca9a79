//! LAME: predictions of a batch drawn towards those of near samples, without training.
//!
//! With p the softmax of the logits and K an affinity of unit features, z minimises
//! Σ_i z_i·(−ln p_i) − Σ_ij K_ij z_i·z_j + Σ_i z_i·ln z_i by z ← softmax(ln p + K z), until the energy changes by no more than
//! 10⁻⁸ of itself or 100 steps are done (Boudiaf et al., *Parameter-free Online Test-time Adaptation*, CVPR 2022, eq. 4
//! and 6). It helps where the samples of a batch share classes, as in a stream; where they are mixed at random it harms: all of
//! a batch may be drawn into one class.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{EvalError, Result};
use crate::forward::Vectors;
use crate::surrogates::{probabilities, softmax};

/// Most steps.
const STEPS: usize = 100;

/// Change of the energy, relative to it, that ends the iteration.
const TOLERANCE: f64 = 1e-8;

/// Neighbours that count.
const NEIGHBOURS: usize = 5;

/// How near samples are to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Affinity {
    /// 1 for the five nearest of each sample, else 0.
    Knn,
    /// exp(−d²/2σ²), σ the mean distance of the fifth nearest, each sample itself counted.
    Rbf,
    /// The cosine.
    Linear,
}

impl FromStr for Affinity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "knn" => Ok(Self::Knn),
            "rbf" => Ok(Self::Rbf),
            "linear" => Ok(Self::Linear),
            _ => Err(format!(
                "unknown affinity `{text}`; expected knn, rbf or linear"
            )),
        }
    }
}

/// The corrected probabilities of one batch, (N, C).
///
/// # Errors
/// If there are not as many features as logits, or one is not finite.
pub fn lame(logits: &Vectors, features: &Vectors, affinity: Affinity) -> Result<Vectors> {
    if logits.len() != features.len() {
        return Err(EvalError::Setting(format!(
            "there are logits of {} samples and features of {}",
            logits.len(),
            features.len()
        )));
    }
    if logits
        .values
        .iter()
        .chain(&features.values)
        .any(|x| !x.is_finite())
    {
        return Err(EvalError::Setting(
            "logits or features hold NaN or infinity".into(),
        ));
    }
    let (n, classes) = (logits.len(), logits.width);
    let kernel = kernel(features, affinity);
    let unary: Vec<Vec<f64>> = probabilities(logits)
        .into_iter()
        .map(|row| row.into_iter().map(|p| -(p + 1e-10).ln()).collect())
        .collect();
    let mut z: Vec<Vec<f64>> = unary
        .iter()
        .map(|row| softmax(row.iter().map(|x| -x)))
        .collect();
    let mut before = f64::INFINITY;
    for step in 0..STEPS {
        let drawn: Vec<Vec<f64>> = (0..n)
            .map(|i| {
                let mut sum = vec![0.0; classes];
                for (weight, other) in kernel[i].iter().zip(&z) {
                    for (sum, x) in sum.iter_mut().zip(other) {
                        *sum += weight * x;
                    }
                }
                sum
            })
            .collect();
        let mut energy = 0.0;
        for i in 0..n {
            let exponents = unary[i].iter().zip(&drawn[i]).map(|(u, k)| k - u);
            z[i] = softmax(exponents);
            for c in 0..classes {
                let x = z[i][c];
                energy += x * (unary[i][c] - drawn[i][c] + x.max(1e-20).ln());
            }
        }
        if step > 1 && (energy - before).abs() <= TOLERANCE * before.abs() {
            break;
        }
        before = energy;
    }
    Ok(Vectors {
        width: classes,
        values: z.into_iter().flatten().map(|x| x as f32).collect(),
    })
}

fn kernel(features: &Vectors, affinity: Affinity) -> Vec<Vec<f64>> {
    let n = features.len();
    let unit: Vec<Vec<f64>> = (0..n)
        .map(|i| {
            let row: Vec<f64> = features.row(i).iter().map(|&x| f64::from(x)).collect();
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
            row.into_iter().map(|x| x / norm).collect()
        })
        .collect();
    let cosine =
        |i: usize, j: usize| -> f64 { unit[i].iter().zip(&unit[j]).map(|(a, b)| a * b).sum() };
    let square = |i: usize, j: usize| -> f64 {
        let both = unit[i].iter().zip(&unit[j]);
        both.map(|(a, b)| (a - b).powi(2)).sum()
    };
    match affinity {
        Affinity::Linear => (0..n)
            .map(|i| (0..n).map(|j| cosine(i, j)).collect())
            .collect(),
        Affinity::Knn => (0..n)
            .map(|i| {
                let mut others: Vec<usize> = (0..n).filter(|&j| j != i).collect();
                others.sort_by(|&a, &b| square(i, a).total_cmp(&square(i, b)));
                let mut row = vec![0.0; n];
                for &j in others.iter().take(NEIGHBOURS) {
                    row[j] = 1.0;
                }
                row
            })
            .collect(),
        Affinity::Rbf => {
            let squares: Vec<Vec<f64>> = (0..n)
                .map(|i| (0..n).map(|j| square(i, j)).collect())
                .collect();
            let last = NEIGHBOURS.min(n).saturating_sub(1);
            let sigma = squares
                .iter()
                .map(|row| {
                    let mut sorted = row.clone();
                    sorted.sort_by(f64::total_cmp);
                    sorted[last].sqrt()
                })
                .sum::<f64>()
                / n.max(1) as f64;
            let twice = (2.0 * sigma * sigma).max(f64::MIN_POSITIVE);
            squares
                .into_iter()
                .map(|row| row.into_iter().map(|d| (-d / twice).exp()).collect())
                .collect()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Two clusters of six; the last sample of the first is unsure and leans the wrong way.
    fn batch() -> (Vectors, Vectors) {
        let of = |rows: Vec<[f32; 2]>| Vectors {
            width: 2,
            values: rows.concat(),
        };
        let spread = [0.0, 0.05, 0.02, 0.04, 0.01, 0.03];
        let mut logits = vec![[4.0, 0.0]; 5];
        logits.push([0.0, 0.3]);
        logits.extend([[0.0, 4.0]; 6]);
        let first = spread.map(|x| [1.0, x]);
        let second = spread.map(|x| [x, 1.0]);
        (of(logits), of([first, second].concat()))
    }

    #[test]
    fn neighbours_decide_for_the_unsure() {
        let (logits, features) = batch();
        for affinity in [Affinity::Knn, Affinity::Rbf, Affinity::Linear] {
            let found = lame(&logits, &features, affinity).unwrap();
            for i in 0..12 {
                assert_eq!(found.row(i)[0] > 0.5, i < 6, "{affinity:?}, sample {i}");
                assert!((found.row(i).iter().sum::<f32>() - 1.0).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn equal_features_and_odd_batches_give_numbers() {
        let (logits, mut features) = batch();
        features.values.fill(0.0);
        for affinity in [Affinity::Knn, Affinity::Rbf, Affinity::Linear] {
            let found = lame(&logits, &features, affinity).unwrap();
            assert!(found.values.iter().all(|x| x.is_finite()));
            let none = Vectors {
                width: 2,
                values: Vec::new(),
            };
            assert!(lame(&none, &none, affinity).unwrap().is_empty());
        }
        features.values[0] = f32::NAN;
        assert!(lame(&logits, &features, Affinity::Knn).is_err());
        features.values.truncate(4);
        assert!(lame(&logits, &features, Affinity::Knn).is_err());
        assert!("cosine".parse::<Affinity>().is_err());
    }
}
