//! What tests of several files need.

use merganser_model::mlp::Dense;
use merganser_model::{Mlp, Pointwise};

/// A perceptron of layers of these sizes; weights and biases are taken from `numbers` in order, and the outputs are plain.
pub(crate) fn network(sizes: &[usize], numbers: &[f64], activation: Pointwise) -> Mlp {
    let mut rest = numbers.iter().copied();
    let layers: Vec<Dense> = sizes
        .windows(2)
        .enumerate()
        .map(|(k, sizes)| Dense {
            name: format!("fc{k}"),
            inputs: sizes[0],
            outputs: sizes[1],
            weight: rest.by_ref().take(sizes[0] * sizes[1]).collect(),
            bias: Some(rest.by_ref().take(sizes[1]).collect()),
        })
        .collect();
    let mut activations = vec![activation; layers.len()];
    activations.pop();
    activations.push(Pointwise::Identity);
    Mlp::new(layers, activations).expect("layers that fit")
}
