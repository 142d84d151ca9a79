//! Exact radii of a linear head: how far its matrix can move before a prediction changes.
//!
//! With features z, outputs y = W z + b, prediction i and margins γ_ij = y_i − y_j (a safety buffer may be added), class j
//! overtakes i only if the change of the outputs moves their difference by γ_ij, so no ΔW smaller than
//!
//! | may change | norm | radius against j |
//! |---|---|---|
//! | W | Frobenius, spectral or nuclear | γ_ij / (√2 ‖z‖) |
//! | W | largest element | γ_ij / (2 ‖z‖₁) |
//! | W | sum of magnitudes | γ_ij / ‖z‖_∞ |
//! | one row of W | its length | γ_ij / ‖z‖ |
//!
//! can do it, and ΔW = −γ_ij / (2 ‖z‖²) (e_i − e_j) zᵀ does (in the first norm). The radius of a sample is the smallest over
//! j, that of the runner-up. Where the bias may change, z is extended by a 1. A radius is infinite if z is 0 and the bias is
//! fixed: written as null in JSON.
//!
//! Evans and Tanner (arXiv 2601.16880), Theorem 1 for the last layer; entry-wise norms by duality.

use merganser_linalg::{Matrix, dot};
use serde::Serialize;

use crate::error::{Error, Result, check_finite, check_len};
use crate::minimal::{InputNorms, Norm, smallest_change, targeted_output_change};

/// A linear head, y = W z + b.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    weight: Matrix,
    bias: Option<Vec<f64>>,
}

/// What may change, and how far a rival must stay behind.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Threat {
    /// Whether the bias may change too.
    pub bias: bool,
    /// Added to every margin.
    pub buffer: f64,
}

/// The radii of one sample.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Radii {
    /// The class with the largest output; the first of equals.
    pub prediction: usize,
    /// The one behind it; the first of equals.
    pub runner_up: usize,
    /// y_prediction − y_runner-up ≥ 0.
    pub margin: f64,
    /// Largest Frobenius (or spectral) norm that no change of the prediction fits in.
    pub frobenius: f64,
    /// The same for the largest element.
    pub max: f64,
    /// The same for the sum of magnitudes.
    pub sum: f64,
    /// The same for the length of one row, if only one may change.
    pub single_row: f64,
}

/// Position of the largest number; the first of equals.
pub fn argmax(values: &[f64]) -> usize {
    let mut best = 0;
    for (k, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = k;
        }
    }
    best
}

/// Position of the largest number but `best`.
pub(crate) fn second(values: &[f64], best: usize) -> usize {
    let mut next = usize::from(best == 0);
    for (k, value) in values.iter().enumerate() {
        if k != best && *value > values[next] {
            next = k;
        }
    }
    next
}

impl Head {
    /// A head of `weight`, classes × features.
    ///
    /// # Errors
    /// If there are fewer than two classes, the bias has another size, or a number is not finite.
    pub fn new(weight: Matrix, bias: Option<Vec<f64>>) -> Result<Self> {
        if weight.rows() < 2 || weight.cols() == 0 {
            return Err(Error::Refused(format!(
                "the head has shape {}×{}; a prediction needs at least two classes, one a row",
                weight.rows(),
                weight.cols()
            )));
        }
        check_finite("the head's weight", weight.as_slice())?;
        if let Some(bias) = &bias {
            check_len("the head's bias", bias.len(), weight.rows())?;
            check_finite("the head's bias", bias)?;
        }
        Ok(Self { weight, bias })
    }

    /// W, classes × features.
    pub fn weight(&self) -> &Matrix {
        &self.weight
    }

    /// b, of as many numbers as there are classes.
    pub fn bias(&self) -> Option<&[f64]> {
        self.bias.as_deref()
    }

    /// y = W z + b.
    ///
    /// # Errors
    /// If `z` has another size than the head reads, or y is not finite.
    pub fn logits(&self, z: &[f64]) -> Result<Vec<f64>> {
        check_len("a sample's features", z.len(), self.weight.cols())?;
        let mut y: Vec<f64> = (0..self.weight.rows())
            .map(|i| dot(self.weight.row(i), z))
            .collect();
        for (y, b) in y.iter_mut().zip(self.bias.iter().flatten()) {
            *y += b;
        }
        check_finite("the output of a sample", &y)?;
        Ok(y)
    }

    /// The radii of a sample.
    ///
    /// # Errors
    /// Those of [`logits`](Self::logits).
    pub fn radii(&self, z: &[f64], threat: Threat) -> Result<Radii> {
        let y = self.logits(z)?;
        let norms = InputNorms::of(z, threat.bias);
        let prediction = argmax(&y);
        let runner_up = second(&y, prediction);
        let margin = y[prediction] - y[runner_up];
        let gap = (margin + threat.buffer).max(0.0);
        let radius = |reach: f64| {
            if reach > 0.0 {
                gap / reach
            } else {
                f64::INFINITY
            }
        };
        Ok(Radii {
            prediction,
            runner_up,
            margin,
            frobenius: radius(std::f64::consts::SQRT_2 * norms.euclid),
            max: radius(2.0 * norms.sum),
            sum: radius(norms.max),
            single_row: radius(norms.euclid),
        })
    }

    /// By class, the Frobenius norm of the smallest change that brings it level with the prediction; nothing for the
    /// prediction itself.
    ///
    /// # Errors
    /// Those of [`logits`](Self::logits).
    pub fn pair_radii(&self, z: &[f64], threat: Threat) -> Result<Vec<Option<f64>>> {
        let y = self.logits(z)?;
        let reach = std::f64::consts::SQRT_2 * InputNorms::of(z, threat.bias).euclid;
        let best = argmax(&y);
        let against = |(j, yj): (usize, &f64)| {
            let gap = (y[best] - yj + threat.buffer).max(0.0);
            let radius = if reach > 0.0 {
                gap / reach
            } else {
                f64::INFINITY
            };
            (j != best).then_some(radius)
        };
        Ok(y.iter().enumerate().map(against).collect())
    }

    /// The Frobenius norm of the smallest change after which `target` is predicted.
    ///
    /// # Errors
    /// Those of [`logits`](Self::logits); if there is no such class.
    pub fn target_radius(&self, z: &[f64], target: usize, threat: Threat) -> Result<f64> {
        let change = targeted_output_change(&self.logits(z)?, target, threat.buffer)?;
        let size = change.iter().map(|d| d * d).sum::<f64>().sqrt();
        let reach = InputNorms::of(z, threat.bias).euclid;
        Ok(match (size, reach) {
            (0.0, _) => 0.0,
            (_, 0.0) => f64::INFINITY,
            _ => size / reach,
        })
    }

    /// The smallest change, in `norm`, that brings the runner-up level with the prediction.
    ///
    /// # Errors
    /// Those of [`logits`](Self::logits) and of [`smallest_change`].
    pub fn flipping_change(
        &self,
        z: &[f64],
        threat: Threat,
        norm: Norm,
    ) -> Result<crate::minimal::Change> {
        let y = self.logits(z)?;
        let best = argmax(&y);
        let next = second(&y, best);
        let gap = y[best] - y[next] + threat.buffer;
        let mut d = vec![0.0; y.len()];
        (d[best], d[next]) = (-gap / 2.0, gap / 2.0);
        smallest_change(z, &d, threat.bias, norm)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn moved(head: &Head, change: &crate::minimal::Change, factor: f64) -> Head {
        let mut weight = head.weight.clone();
        weight.add_scaled(factor, &change.weight);
        let mut bias = head.bias.clone();
        if let (Some(bias), Some(change)) = (&mut bias, &change.bias) {
            for (b, d) in bias.iter_mut().zip(change) {
                *b += factor * d;
            }
        }
        Head::new(weight, bias).unwrap()
    }

    fn heads() -> impl Strategy<Value = (Head, Vec<f64>)> {
        let numbers = |n| prop::collection::vec(-2.0..2.0, n);
        (numbers(20), numbers(4), numbers(5)).prop_map(|(w, b, z)| {
            let weight = Matrix::new(4, 5, w).unwrap();
            (Head::new(weight, Some(b)).unwrap(), z)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// The worst change of all, just inside the radius, in every norm; and just outside, where it must succeed.
        #[test]
        fn radii_are_sound_and_cannot_be_larger(
            (head, z) in heads(),
            bias in any::<bool>(),
        ) {
            let threat = Threat { bias, buffer: 0.0 };
            let radii = head.radii(&z, threat).unwrap();
            prop_assume!(radii.margin > 1e-6);
            let sizes = [
                (Norm::Frobenius, radii.frobenius),
                (Norm::Max, radii.max),
                (Norm::Sum, radii.sum),
            ];
            for (norm, radius) in sizes {
                let change = head.flipping_change(&z, threat, norm).unwrap();
                prop_assert!((change.size - radius).abs() < 1e-9 * radius);
                let inside = moved(&head, &change, 1.0 - 1e-9).radii(&z, threat).unwrap();
                prop_assert_eq!(inside.prediction, radii.prediction);
                let outside = moved(&head, &change, 1.0 + 1e-9).radii(&z, threat).unwrap();
                prop_assert_eq!(outside.prediction, radii.runner_up);
            }
        }

        /// Any change of that size, not only the worst.
        #[test]
        fn random_changes_inside_a_radius_change_nothing(
            (head, z) in heads(),
            direction in prop::collection::vec(-1.0_f64..1.0, 20),
        ) {
            let radii = head.radii(&z, Threat::default()).unwrap();
            let frobenius = direction.iter().map(|x| x * x).sum::<f64>().sqrt();
            let max = direction.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
            let sum = direction.iter().map(|x| x.abs()).sum::<f64>();
            prop_assume!(max > 1e-3);
            let signs: Vec<f64> = direction.iter().map(|x| x.signum()).collect();
            let changes = [
                (&direction, radii.frobenius / frobenius),
                (&direction, radii.max / max),
                (&direction, radii.sum / sum),
                (&signs, radii.max),
            ];
            for (direction, factor) in changes {
                let mut weight = head.weight.clone();
                let step = Matrix::new(4, 5, direction.clone()).unwrap();
                weight.add_scaled(factor * (1.0 - 1e-9), &step);
                let after = Head::new(weight, head.bias.clone()).unwrap();
                let after = after.radii(&z, Threat::default()).unwrap();
                prop_assert_eq!(after.prediction, radii.prediction);
            }
        }
    }

    #[test]
    fn heads_that_decide_nothing_are_refused() {
        assert!(Head::new(Matrix::zeros(1, 3), None).is_err());
        assert!(Head::new(Matrix::zeros(2, 0), None).is_err());
        assert!(Head::new(Matrix::zeros(2, 3), Some(vec![0.0])).is_err());
        let head = Head::new(Matrix::zeros(2, 3), None).unwrap();
        assert!(head.radii(&[1.0; 2], Threat::default()).is_err());
        let tie = head.radii(&[1.0; 3], Threat::default()).unwrap();
        assert_eq!((tie.prediction, tie.runner_up, tie.frobenius), (0, 1, 0.0));
        let nan = head.radii(&[f64::NAN; 3], Threat::default());
        assert!(nan.unwrap_err().to_string().contains("NaN"));
    }
}
