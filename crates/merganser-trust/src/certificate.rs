//! Certificates for a given compressed twin of a multi-layer perceptron: which predictions cannot have changed.
//!
//! The original computes z_k = φ_k(W_k z_{k−1} + b_k), the twin the same with W_k + ΔW_k and b_k + Δb_k. With L_k the Lipschitz
//! constant of φ_k and ‖·‖₂ the spectral norm, an error bound e_k ≥ ‖z'_k − z_k‖ is carried from layer to layer, e_0 = 0:
//!
//! * **norm only**: e_k = L_k (‖W_k‖₂ e_{k−1} + ‖ΔW_k‖₂ (‖z_{k−1}‖ + e_{k−1}) + ‖Δb_k‖)
//! * **data aware**: e_k = L_k (‖W_k + ΔW_k‖₂ e_{k−1} + ‖ΔW_k z_{k−1} + Δb_k‖)
//!
//! and a prediction i is certified if its margin exceeds √2 e_M. The sharpest one looks at pairs of classes, with the
//! data-aware e_{M−1}, rows w of W_M and their changes δ:
//!
//! * **pairwise**: γ_ij + (δ_i − δ_j)·z_{M−1} + Δb_i − Δb_j − ‖(w_i + δ_i) − (w_j + δ_j)‖ e_{M−1} > 0 for every j ≠ i.
//!
//! All are theorems about the networks as functions of real numbers. The margin must also exceed a `slack` that the caller
//! chooses; a twin that runs in low precision has rounding of its own, which nothing here knows. Rounding of this
//! computation is covered by 10⁻¹¹ of the largest number involved.
//!
//! After Evans and Tanner (arXiv 2601.16880); the certificates for a given change are ours.

use merganser_linalg::{Matrix, dot};
use merganser_model::{Mlp, Pointwise};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::head::{argmax, second};
use crate::norm::spectral_upper;

/// Share of the largest number involved by which a bound must be cleared.
const ROUNDING: f64 = 1e-11;

/// What is certified of one sample.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Certificate {
    /// The class the original predicts.
    pub prediction: usize,
    /// The class the original has behind it.
    pub runner_up: usize,
    /// By how much it leads in the original.
    pub margin: f64,
    /// Bound of ‖y' − y‖ from norms only.
    pub error_norm_only: f64,
    /// Bound of ‖y' − y‖ with the sample's own activations.
    pub error_data_aware: f64,
    /// The smallest left-hand side of the pairwise certificate.
    pub pairwise_slack: f64,
    /// Whether the margin exceeds √2 · `error_norm_only`.
    pub certified_norm_only: bool,
    /// Whether the margin exceeds √2 · `error_data_aware`.
    pub certified_data_aware: bool,
    /// Whether the pairwise slack is positive.
    pub certified_pairwise: bool,
    /// Whether any of the three holds: the twin cannot predict another class.
    pub certified: bool,
    /// What the twin really predicts, which a certificate does not look at.
    pub twin_prediction: usize,
    /// By how much that leads in the twin.
    pub twin_margin: f64,
}

/// One pair of classes, i (predicted) against j.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// γ_ij.
    pub margin: f64,
    /// (δ_i − δ_j)·z_{M−1} + Δb_i − Δb_j.
    pub shift: f64,
    /// ‖(w_i + δ_i) − (w_j + δ_j)‖ e_{M−1}.
    pub spread: f64,
}

/// Two networks of one shape, and the norms of their difference.
#[derive(Debug)]
pub struct Twins<'a> {
    original: &'a Mlp,
    twin: &'a Mlp,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    /// ‖W‖₂, ‖ΔW‖₂ and ‖W + ΔW‖₂, or more.
    before: f64,
    change: f64,
    after: f64,
    lipschitz: f64,
    weight_change: Matrix,
    bias_change: Vec<f64>,
    bias_norm: f64,
}

impl<'a> Twins<'a> {
    /// Compares two networks.
    ///
    /// # Errors
    /// If they differ in shapes or activations, if an activation follows the last layer, if there are fewer than two
    /// classes, or if a decomposition fails.
    pub fn new(original: &'a Mlp, twin: &'a Mlp) -> Result<Self> {
        classifies(original)?;
        let refused = |problem: String| Err(Error::Refused(problem));
        if original.layers().len() != twin.layers().len() {
            return refused(format!(
                "the original has {} layers and its twin {}",
                original.layers().len(),
                twin.layers().len()
            ));
        }
        if original.activations() != twin.activations() {
            return refused("the two networks have different activations".into());
        }
        let mut layers = Vec::new();
        let pairs = original.layers().iter().zip(twin.layers());
        for ((a, b), activation) in pairs.zip(original.activations()) {
            if (a.outputs, a.inputs) != (b.outputs, b.inputs) {
                return refused(format!(
                    "layer `{}` has shape {}×{} in the original and {}×{} in its twin",
                    a.name, a.outputs, a.inputs, b.outputs, b.inputs
                ));
            }
            let before = Matrix::new(a.outputs, a.inputs, a.weight.clone())?;
            let after = Matrix::new(b.outputs, b.inputs, b.weight.clone())?;
            let mut change = after.clone();
            change.add_scaled(-1.0, &before);
            let bias = |bias: &Option<Vec<f64>>, i: usize| bias.as_ref().map_or(0.0, |b| b[i]);
            let bias_change: Vec<f64> = (0..a.outputs)
                .map(|i| bias(&b.bias, i) - bias(&a.bias, i))
                .collect();
            layers.push(Layer {
                before: spectral_upper(&before)?,
                change: spectral_upper(&change)?,
                after: spectral_upper(&after)?,
                lipschitz: activation.lipschitz(),
                weight_change: change,
                bias_norm: length(&bias_change),
                bias_change,
            });
        }
        Ok(Self {
            original,
            twin,
            layers,
        })
    }

    /// Certifies samples, given row after row. A margin counts only as far as it exceeds `slack`.
    ///
    /// # Errors
    /// If `x` does not fit the networks, an output is not finite, or `slack` is negative.
    pub fn certify(&self, x: &[f64], slack: f64) -> Result<Vec<Certificate>> {
        if !(slack >= 0.0 && slack.is_finite()) {
            return Err(Error::Range {
                what: "the slack".into(),
                found: slack,
                expected: "a finite number, not negative",
            });
        }
        let trace = self.original.forward(x)?;
        let twin = self.twin.forward(x)?;
        let classes = self.original.outputs();
        (0..trace.samples)
            .map(|s| {
                let y = &trace.activations[self.layers.len()][s * classes..][..classes];
                let y_twin = &twin.activations[self.layers.len()][s * classes..][..classes];
                let (norm_only, data_aware) = self.errors(&trace, s);
                let before_last = data_aware[self.layers.len() - 1];
                let (error_norm_only, error_data_aware) =
                    (norm_only[self.layers.len()], data_aware[self.layers.len()]);
                let prediction = argmax(y);
                let runner_up = second(y, prediction);
                let margin = y[prediction] - y[runner_up];
                let largest = y.iter().fold(0.0_f64, |m, y| m.max(y.abs()));
                let exceeds = |bound: f64| {
                    let rounding = ROUNDING * (largest + bound);
                    margin - slack > std::f64::consts::SQRT_2 * bound + rounding
                };
                let mut pairwise_slack = f64::INFINITY;
                let mut certified_pairwise = true;
                for j in (0..classes).filter(|&j| j != prediction) {
                    let pair = self.pair(&trace, s, (prediction, j), before_last);
                    let left = pair.margin + pair.shift - pair.spread - slack;
                    let rounding = ROUNDING * (largest + pair.shift.abs() + pair.spread);
                    certified_pairwise &= left > rounding;
                    pairwise_slack = pairwise_slack.min(left);
                }
                let certified_norm_only = exceeds(error_norm_only);
                let certified_data_aware = exceeds(error_data_aware);
                let twin_prediction = argmax(y_twin);
                let twin_runner_up = second(y_twin, twin_prediction);
                Ok(Certificate {
                    prediction,
                    runner_up,
                    margin,
                    error_norm_only,
                    error_data_aware,
                    pairwise_slack,
                    certified_norm_only,
                    certified_data_aware,
                    certified_pairwise,
                    certified: certified_norm_only || certified_data_aware || certified_pairwise,
                    twin_prediction,
                    twin_margin: y_twin[twin_prediction] - y_twin[twin_runner_up],
                })
            })
            .collect()
    }

    /// The terms of the pairwise certificate of sample `s` of `trace` for classes (i, j).
    fn pair(
        &self,
        trace: &merganser_model::mlp::Trace,
        s: usize,
        (i, j): (usize, usize),
        e: f64,
    ) -> Pair {
        let last = self.layers.len() - 1;
        let layer = &self.layers[last];
        let dense = &self.original.layers()[last];
        let z = &trace.activations[last][s * dense.inputs..][..dense.inputs];
        let y = &trace.activations[last + 1][s * dense.outputs..][..dense.outputs];
        let row = |i: usize| &dense.weight[i * dense.inputs..][..dense.inputs];
        let change = |i: usize| layer.weight_change.row(i);
        let shift =
            dot(change(i), z) - dot(change(j), z) + layer.bias_change[i] - layer.bias_change[j];
        let apart: Vec<f64> = (0..dense.inputs)
            .map(|k| (row(i)[k] + change(i)[k]) - (row(j)[k] + change(j)[k]))
            .collect();
        Pair {
            margin: y[i] - y[j],
            shift,
            spread: length(&apart) * e,
        }
    }

    /// The terms of the pairwise certificate for every class but the predicted one, of every sample.
    ///
    /// # Errors
    /// If `x` does not fit the networks or an output is not finite.
    pub fn pairs(&self, x: &[f64]) -> Result<Vec<Vec<Option<Pair>>>> {
        let trace = self.original.forward(x)?;
        let classes = self.original.outputs();
        let sample = |s: usize| {
            let y = &trace.activations[self.layers.len()][s * classes..][..classes];
            let e = self.errors(&trace, s).1[self.layers.len() - 1];
            let i = argmax(y);
            (0..classes)
                .map(|j| (j != i).then(|| self.pair(&trace, s, (i, j), e)))
                .collect()
        };
        Ok((0..trace.samples).map(sample).collect())
    }

    /// e_0 … e_M of a sample, from norms only and with its activations.
    fn errors(&self, trace: &merganser_model::mlp::Trace, s: usize) -> (Vec<f64>, Vec<f64>) {
        let (mut norm_only, mut data_aware) = (vec![0.0], vec![0.0]);
        let (mut coarse, mut fine) = (0.0_f64, 0.0_f64);
        for (k, layer) in self.layers.iter().enumerate() {
            let width = layer.weight_change.cols();
            let z = &trace.activations[k][s * width..][..width];
            coarse = layer.lipschitz
                * (layer.before * coarse + layer.change * (length(z) + coarse) + layer.bias_norm);
            let moved: Vec<f64> = layer
                .bias_change
                .iter()
                .enumerate()
                .map(|(i, b)| dot(layer.weight_change.row(i), z) + b)
                .collect();
            fine = layer.lipschitz * (layer.after * fine + length(&moved));
            norm_only.push(coarse);
            data_aware.push(fine);
        }
        (norm_only, data_aware)
    }
}

/// Refuses what has no prediction.
pub(crate) fn classifies(network: &Mlp) -> Result<()> {
    if network.outputs() < 2 {
        return Err(Error::Refused(
            "the network has one output; a prediction needs at least two classes".into(),
        ));
    }
    match network.activations().last() {
        Some(Pointwise::Identity) => Ok(()),
        Some(other) => Err(Error::Refused(format!(
            "an activation ({other}) follows the last layer; margins are differences of plain outputs"
        ))),
        None => Err(Error::Refused("the network has no layer".into())),
    }
}

pub(crate) fn length(x: &[f64]) -> f64 {
    dot(x, x).sqrt()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network(numbers: &[f64], activation: Pointwise) -> Mlp {
        crate::testing::network(&[4, 6, 5, 3], numbers, activation)
    }

    fn activations() -> impl Strategy<Value = Pointwise> {
        prop_oneof![
            Just(Pointwise::Relu),
            Just(Pointwise::Tanh),
            Just(Pointwise::Gelu),
            Just(Pointwise::LeakyRelu(0.2)),
            Just(Pointwise::Silu),
            Just(Pointwise::Sigmoid),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        /// Random networks and changes of every size, small ones more often.
        #[test]
        fn no_certified_prediction_changes_and_no_error_exceeds_its_bound(
            numbers in prop::collection::vec(-1.5..1.5, 83),
            change in prop::collection::vec(-1.0..1.0, 83),
            scale in -4.0_f64..0.5,
            x in prop::collection::vec(-2.0..2.0, 16),
            activation in activations(),
        ) {
            let original = network(&numbers, activation);
            let moved: Vec<f64> = numbers
                .iter()
                .zip(&change)
                .map(|(w, d)| w + 10.0_f64.powf(scale) * d)
                .collect();
            let twin = network(&moved, activation);
            let found = Twins::new(&original, &twin).unwrap().certify(&x, 0.0).unwrap();
            let y = original.forward(&x).unwrap();
            let y_twin = twin.forward(&x).unwrap();
            for (s, certificate) in found.iter().enumerate() {
                let differ: Vec<f64> = (0..3)
                    .map(|k| y.activations[3][3 * s + k] - y_twin.activations[3][3 * s + k])
                    .collect();
                let error = length(&differ);
                prop_assert!(error <= certificate.error_norm_only * (1.0 + 1e-9) + 1e-12);
                prop_assert!(error <= certificate.error_data_aware * (1.0 + 1e-9) + 1e-12);
                if certificate.certified {
                    prop_assert_eq!(certificate.prediction, certificate.twin_prediction);
                }
            }
        }
    }

    /// A change made to flip: gradient steps on the weights of all layers at once, as strong as the certificate allows.
    #[test]
    fn adversarial_changes_do_not_flip_what_is_certified() {
        let mut certified = 0;
        let mut flipped = 0;
        for seed in 0..300_u32 {
            let wave = |i: usize| ((i as f64 + 1.0) * (f64::from(seed) * 0.37 + 1.1)).sin();
            let numbers: Vec<f64> = (0..83).map(wave).collect();
            let original = network(&numbers, Pointwise::Relu);
            let x: Vec<f64> = (100..104).map(wave).collect();
            let trace = original.forward(&x).unwrap();
            let y = &trace.activations[3];
            let i = argmax(y);
            let j = second(y, i);
            let mut functional = vec![0.0; 3];
            (functional[i], functional[j]) = (1.0, -1.0);
            let gradients = original.gradients(&trace, &functional).unwrap();
            for strength in [0.003, 0.01, 0.03, 0.1, 0.3, 1.0] {
                let mut layers = original.layers().to_vec();
                for (k, layer) in layers.iter_mut().enumerate() {
                    let (u, z) = (&gradients.pre_activations[k], &trace.activations[k]);
                    let size = (length(u) * length(z)).max(1e-12);
                    for (o, row) in layer.weight.chunks_mut(layer.inputs).enumerate() {
                        for (w, z) in row.iter_mut().zip(z) {
                            *w -= strength * u[o] * z / size;
                        }
                    }
                }
                let twin = Mlp::new(layers, original.activations().to_vec()).unwrap();
                let found = Twins::new(&original, &twin).unwrap();
                let found = &found.certify(&x, 0.0).unwrap()[0];
                certified += u32::from(found.certified);
                flipped += u32::from(found.prediction != found.twin_prediction);
                assert!(!found.certified || found.prediction == found.twin_prediction);
            }
        }
        // The test means something only if both happen.
        assert!(certified > 200 && flipped > 200, "{certified} {flipped}");
    }

    #[test]
    fn slack_and_misfits() {
        let numbers: Vec<f64> = (0..83).map(|i| f64::from(i).sin()).collect();
        let network_a = network(&numbers, Pointwise::Relu);
        let same = Twins::new(&network_a, &network_a).unwrap();
        let x = [0.3, -0.2, 0.9, 0.4];
        let free = &same.certify(&x, 0.0).unwrap()[0];
        assert!(free.certified_norm_only && free.error_norm_only == 0.0);
        let strict = &same.certify(&x, free.margin * 1.01).unwrap()[0];
        assert!(!strict.certified);
        assert!(same.certify(&x, -1.0).is_err());
        assert!(same.certify(&x, f64::NAN).is_err());
        let other = network(&numbers, Pointwise::Tanh);
        assert!(Twins::new(&network_a, &other).is_err());
    }
}
