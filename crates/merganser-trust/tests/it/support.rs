//! Golden cases and comparisons.

use std::collections::BTreeMap;
use std::fs;

use merganser_linalg::Matrix;
use merganser_model::mlp::Dense;
use merganser_model::{Mlp, Pointwise};
use merganser_testkit::golden::{Tensor, folder, read_safetensors};
use serde_json::Value;

/// One case of continual learning and security.
pub(crate) struct Case {
    name: String,
    inputs: BTreeMap<String, Tensor>,
    expected: BTreeMap<String, Tensor>,
    pub(crate) params: Value,
    rtol: f64,
    atol: f64,
}

impl Case {
    pub(crate) fn load(method: &str, name: &str) -> Self {
        let folder = folder().join("continual").join(method).join(name);
        let text = fs::read_to_string(folder.join("params.json")).unwrap();
        let mut params: Value = serde_json::from_str(&text).unwrap();
        let tolerance = |key: &str| params["tolerance"][key].as_f64().unwrap();
        let (rtol, atol) = (tolerance("rtol"), tolerance("atol"));
        Self {
            name: name.to_owned(),
            inputs: read_safetensors(&folder.join("inputs.safetensors")),
            expected: read_safetensors(&folder.join("expected.safetensors")),
            params: params["params"].take(),
            rtol,
            atol,
        }
    }

    pub(crate) fn input(&self, key: &str) -> &[f64] {
        &self.inputs[key].values
    }

    pub(crate) fn expected(&self, key: &str) -> &[f64] {
        &self.expected[key].values
    }

    pub(crate) fn matrix(&self, key: &str) -> Matrix {
        let tensor = &self.inputs[key];
        let [rows, cols] = tensor.shape[..] else {
            panic!("{}: {key} is no matrix", self.name)
        };
        Matrix::new(rows, cols, tensor.values.clone()).unwrap()
    }

    /// Whether `found` is what is expected of `key`, to the tolerances of the case. Equal infinities are equal.
    pub(crate) fn assert(&self, key: &str, found: &[f64]) {
        let expected = self.expected(key);
        assert_eq!(found.len(), expected.len(), "{}: {key}", self.name);
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            let near = found == expected
                || (found - expected).abs() <= self.atol + self.rtol * expected.abs();
            assert!(
                near,
                "{}: {key}[{i}] is {found}, expected {expected}",
                self.name
            );
        }
    }

    /// The network of `W1`, `b1` (if there), `W2`, …; with `change`, each moved by `dW1`, …
    pub(crate) fn network(&self, activation: Pointwise, change: bool) -> Mlp {
        let count = (1..=self.inputs.len())
            .take_while(|k| self.inputs.contains_key(&format!("W{k}")))
            .count();
        let layers = (1..=count)
            .map(|k| {
                let mut weight = self.matrix(&format!("W{k}"));
                if change {
                    weight.add_scaled(1.0, &self.matrix(&format!("dW{k}")));
                }
                Dense {
                    name: format!("fc{k}"),
                    outputs: weight.rows(),
                    inputs: weight.cols(),
                    weight: weight.as_slice().to_vec(),
                    bias: self
                        .inputs
                        .get(&format!("b{k}"))
                        .map(|bias| bias.values.clone()),
                }
            })
            .collect();
        let mut activations = vec![activation; count];
        activations[count - 1] = Pointwise::Identity;
        Mlp::new(layers, activations).unwrap()
    }
}
