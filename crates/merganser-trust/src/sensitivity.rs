//! What one layer of a network can do to a prediction: to first order, and at least.
//!
//! Layer k reads v = z_{k−1} and gives s_k; u is the gradient of y_i − y_j with respect to s_k (the margin propagated back).
//!
//! * **First order**: γ_ij / (‖u‖ ‖v‖) is the Frobenius norm of ΔW_k = −γ_ij u vᵀ / (‖u‖² ‖v‖²), which would close the margin
//!   if the network after layer k were linear. It is exact there and for the last layer, and a *sensitivity* elsewhere:
//!   larger changes leave the region where the gradient holds, and real flips may need more, or less. Never a guarantee.
//! * **Guaranteed**: no change of W_k alone with a Frobenius (or spectral) norm below γ_ij / (‖w_i − w_j‖ L_k Π_{k<l<M} ‖W_l‖₂ L_l
//!   · ‖v‖) can change the prediction, minimum over j (with L_l the Lipschitz constants of the activations); for the last
//!   layer γ_ij / (√2 ‖v‖). Sound, and usually far below the first.
//!
//! The **local Lipschitz constant of the parameters** is the largest singular value of the Jacobian J of the outputs with
//! respect to all weights and biases. J Jᵀ = Σ_k (‖z_{k−1}‖² + 1) U_k U_kᵀ with U_k the gradients of the outputs with
//! respect to s_k, so it needs no iteration. First order, too.
//!
//! Evans and Tanner (arXiv 2601.16880), Theorems 1 and 2.

use merganser_linalg::{Eigen, Matrix, gemm};
use merganser_model::Mlp;
use serde::Serialize;

use crate::certificate::{classifies, length};
use crate::error::Result;
use crate::head::{argmax, second};
use crate::norm::spectral_upper;

/// What one layer can do to the prediction of one sample.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerSensitivity {
    /// Name of the layer.
    pub layer: String,
    /// First-order size of the smallest change that flips the prediction: a sensitivity. Infinite (null in JSON) if the
    /// gradient is 0.
    pub first_order: f64,
    /// Size below which no change of this layer's weights alone can flip it. Infinite (null in JSON) if the layer reads 0.
    pub guaranteed: f64,
}

/// The layers of a network for one sample.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sensitivity {
    /// The predicted class.
    pub prediction: usize,
    /// The class behind it.
    pub runner_up: usize,
    /// By how much it leads.
    pub margin: f64,
    /// Layer by layer, in the order they are applied.
    pub layers: Vec<LayerSensitivity>,
}

/// The sensitivities of samples, given row after row.
///
/// # Errors
/// If `x` does not fit the network, an output is not finite, or the network has no prediction.
pub fn sensitivities(network: &Mlp, x: &[f64]) -> Result<Vec<Sensitivity>> {
    classifies(network)?;
    let depth = network.layers().len();
    let classes = network.outputs();
    let trace = network.forward(x)?;
    // By class, the gradients of its output.
    let gradients = (0..classes)
        .map(|class| {
            let functional: Vec<f64> = (0..trace.samples * classes)
                .map(|i| f64::from(u8::from(i % classes == class)))
                .collect();
            Ok(network.gradients(&trace, &functional)?.pre_activations)
        })
        .collect::<Result<Vec<_>>>()?;
    let reach = downstream(network)?;
    let last = &network.layers()[depth - 1];
    let row = |i: usize| &last.weight[i * last.inputs..][..last.inputs];
    (0..trace.samples)
        .map(|s| {
            let y = &trace.activations[depth][s * classes..][..classes];
            let prediction = argmax(y);
            let runner_up = second(y, prediction);
            let layers = network
                .layers()
                .iter()
                .enumerate()
                .map(|(k, layer)| {
                    let v = length(&trace.activations[k][s * layer.inputs..][..layer.inputs]);
                    let slice =
                        |class: usize| &gradients[class][k][s * layer.outputs..][..layer.outputs];
                    let (mut first_order, mut guaranteed) = (f64::INFINITY, f64::INFINITY);
                    for j in (0..classes).filter(|&j| j != prediction) {
                        let gap = y[prediction] - y[j];
                        let u: Vec<f64> = slice(prediction)
                            .iter()
                            .zip(slice(j))
                            .map(|(a, b)| a - b)
                            .collect();
                        let apart = if k + 1 == depth {
                            std::f64::consts::SQRT_2
                        } else {
                            let rows = row(prediction).iter().zip(row(j));
                            length(&rows.map(|(a, b)| a - b).collect::<Vec<_>>())
                        };
                        first_order = first_order.min(ratio(gap, length(&u) * v));
                        guaranteed = guaranteed.min(ratio(gap, apart * reach[k] * v));
                    }
                    LayerSensitivity {
                        layer: layer.name.clone(),
                        first_order,
                        // A sum of a few thousand rounded terms at most stands behind every factor.
                        guaranteed: guaranteed * (1.0 - 1e-11),
                    }
                })
                .collect();
            Ok(Sensitivity {
                prediction,
                runner_up,
                margin: y[prediction] - y[runner_up],
                layers,
            })
        })
        .collect()
}

/// The largest singular value of the Jacobian of the outputs with respect to all weights, and biases if `bias`, at one
/// sample.
///
/// # Errors
/// If `x` is not one sample of the network or an output is not finite.
pub fn parameter_lipschitz(network: &Mlp, x: &[f64], bias: bool) -> Result<f64> {
    crate::error::check_len("the sample", x.len(), network.inputs())?;
    let trace = network.forward(x)?;
    let classes = network.outputs();
    let mut sum = Matrix::zeros(classes, classes);
    let gradients = (0..classes)
        .map(|class| {
            let mut functional = vec![0.0; classes];
            functional[class] = 1.0;
            Ok(network.gradients(&trace, &functional)?.pre_activations)
        })
        .collect::<Result<Vec<_>>>()?;
    for (k, layer) in network.layers().iter().enumerate() {
        let u = Matrix::from_fn(classes, layer.outputs, |i, j| gradients[i][k][j]);
        let one = f64::from(u8::from(bias && layer.bias.is_some()));
        let weight = length(&trace.activations[k]).powi(2) + one;
        sum.add_scaled(weight, &gemm::mul_nt(&u, &u));
    }
    let largest = Eigen::of(&sum)?.values.first().copied().unwrap_or(0.0);
    Ok(largest.max(0.0).sqrt())
}

/// By layer k, L_k Π_{k<l<M} ‖W_l‖₂ L_l: how much a change of s_k can grow until the last layer reads it; 1 for the last.
fn downstream(network: &Mlp) -> Result<Vec<f64>> {
    let depth = network.layers().len();
    let mut reach = vec![1.0; depth];
    let mut product = 1.0;
    for k in (0..depth.saturating_sub(1)).rev() {
        if k + 2 < depth {
            let next = &network.layers()[k + 1];
            product *= spectral_upper(&Matrix::new(
                next.outputs,
                next.inputs,
                next.weight.clone(),
            )?)?;
        }
        product *= network.activations()[k].lipschitz();
        reach[k] = product;
    }
    Ok(reach)
}

/// a / b for a ≥ 0, where dividing by 0 gives infinity even of 0.
fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { f64::INFINITY }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use merganser_model::Pointwise;
    use proptest::prelude::*;

    use super::*;

    fn network(numbers: &[f64], activation: Pointwise) -> Mlp {
        crate::testing::network(&[4, 5, 5, 3], numbers, activation)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// One layer changed by the guaranteed size: along the back-propagated margin, which hurts most, and at random.
        #[test]
        fn changes_of_the_guaranteed_size_never_flip(
            numbers in prop::collection::vec(-1.5..1.5, 73),
            x in prop::collection::vec(-2.0..2.0, 4),
            random in prop::collection::vec(-1.0..1.0, 25),
            which in 0..4_usize,
        ) {
            let activation = [
                Pointwise::Relu,
                Pointwise::Gelu,
                Pointwise::Tanh,
                Pointwise::Identity,
            ][which];
            let original = network(&numbers, activation);
            let found = &sensitivities(&original, &x).unwrap()[0];
            let trace = original.forward(&x).unwrap();
            let mut functional = vec![0.0; 3];
            (functional[found.prediction], functional[found.runner_up]) = (1.0, -1.0);
            let gradients = original.gradients(&trace, &functional).unwrap();
            for (k, layer) in found.layers.iter().enumerate() {
                if layer.guaranteed.is_finite() && layer.guaranteed > 0.0 {
                    let (rows, cols) = (original.layers()[k].outputs, original.layers()[k].inputs);
                    let worst: Vec<f64> = (0..rows * cols)
                        .map(|i| -gradients.pre_activations[k][i / cols] * trace.activations[k][i % cols])
                        .collect();
                    for direction in [&worst[..], &random[..rows * cols]] {
                        let size = length(direction);
                        prop_assume!(size > 1e-9);
                        let mut layers = original.layers().to_vec();
                        for (w, d) in layers[k].weight.iter_mut().zip(direction) {
                            *w += d / size * layer.guaranteed * (1.0 - 1e-9);
                        }
                        let twin = Mlp::new(layers, original.activations().to_vec()).unwrap();
                        let y = twin.forward(&x).unwrap();
                        prop_assert_eq!(argmax(&y.activations[3]), found.prediction);
                    }
                }
                prop_assert!(layer.guaranteed <= layer.first_order * (1.0 + 1e-9));
            }
        }
    }

    #[test]
    fn dead_layers_are_unbounded_and_written_as_null() {
        let numbers = vec![0.0; 73];
        let found = sensitivities(&network(&numbers, Pointwise::Relu), &[0.0; 4]).unwrap();
        assert!(found[0].layers[0].first_order.is_infinite());
        assert!(found[0].layers[2].guaranteed.is_infinite());
    }
}
