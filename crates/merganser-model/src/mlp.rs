//! A plain multi-layer perceptron in f64: z_k = φ_k(W_k z_{k−1} + b_k), k = 1 … M.
//!
//! For what needs every number of a small network rather than speed: certificates, and gradients of a linear functional of
//! the output. Weights come from a state dict, with the layers given in order or found by their names. Everything is
//! computed in f64 from the stored values, sample by sample, in one fixed order of additions, so results do not depend on
//! how many samples run together.

use std::cmp::Ordering;

use merganser_kernels::convert::decode;
use merganser_store::Dtype;
use merganser_store::checkpoint::{Checkpoint, TensorInfo};

use crate::error::{ModelError, Result};
use crate::pointwise::Pointwise;
use crate::weights::kernel_float;

/// One linear layer, y = W x + b.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// What messages call it: the prefix of its tensors.
    pub name: String,
    /// Numbers that go in, n.
    pub inputs: usize,
    /// Numbers that come out, m.
    pub outputs: usize,
    /// W, m×n, row after row.
    pub weight: Vec<f64>,
    /// b, of m numbers.
    pub bias: Option<Vec<f64>>,
}

/// A multi-layer perceptron.
#[derive(Debug, Clone, PartialEq)]
pub struct Mlp {
    layers: Vec<Dense>,
    activations: Vec<Pointwise>,
}

/// What a batch is at every place of a network.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Number of samples.
    pub samples: usize,
    /// z_0 (the samples themselves) to z_M (the output), each samples × width, row after row.
    pub activations: Vec<Vec<f64>>,
    /// s_k = W_k z_{k−1} + b_k, k = 1 … M, each samples × width, row after row.
    pub pre_activations: Vec<Vec<f64>>,
}

/// Gradients of one linear functional a sample of the output.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// With respect to z_0: samples × inputs, row after row.
    pub input: Vec<f64>,
    /// With respect to s_k, k = 1 … M: samples × width, row after row.
    pub pre_activations: Vec<Vec<f64>>,
}

impl Dense {
    /// W x, without the bias, added to nothing: `out` is overwritten. Both slices are one sample.
    pub fn product(&self, x: &[f64], out: &mut [f64]) {
        for (out, row) in out.iter_mut().zip(self.weight.chunks_exact(self.inputs)) {
            *out = dot(row, x);
        }
    }
}

impl Mlp {
    /// A network of `layers` with one activation after each.
    ///
    /// # Errors
    /// [`ModelError::Layers`] if there is no layer, if the numbers of a layer do not fit its shape or the next layer, or if
    /// there are not as many activations as layers; [`ModelError::NotFinite`] if a weight is NaN or infinite.
    pub fn new(layers: Vec<Dense>, activations: Vec<Pointwise>) -> Result<Self> {
        let refused = |problem: String| Err(ModelError::Layers(problem));
        if layers.is_empty() {
            return refused("a network needs at least one layer".into());
        }
        if activations.len() != layers.len() {
            return refused(format!(
                "{} activations for {} layers; there is one after each",
                activations.len(),
                layers.len()
            ));
        }
        for layer in &layers {
            let (m, n, name) = (layer.outputs, layer.inputs, &layer.name);
            if m == 0 || n == 0 || m.checked_mul(n) != Some(layer.weight.len()) {
                return refused(format!(
                    "the weight of layer `{name}` has {} numbers for a shape of {m}×{n}",
                    layer.weight.len()
                ));
            }
            let bias = layer.bias.as_deref().unwrap_or_default();
            if layer.bias.is_some() && bias.len() != m {
                return refused(format!(
                    "the bias of layer `{name}` has {} numbers for {m} outputs",
                    bias.len()
                ));
            }
            if !layer.weight.iter().chain(bias).all(|x| x.is_finite()) {
                return Err(ModelError::NotFinite(name.clone()));
            }
        }
        for pair in layers.windows(2) {
            if pair[0].outputs != pair[1].inputs {
                return refused(format!(
                    "layer `{}` reads {} numbers, but `{}` before it gives {}; name the layers in the order they are applied",
                    pair[1].name, pair[1].inputs, pair[0].name, pair[0].outputs
                ));
            }
        }
        Ok(Self {
            layers,
            activations,
        })
    }

    /// The network of a state dict: `prefixes` in the order they are applied, each the tensors `PREFIX.weight` and, where
    /// present, `PREFIX.bias`; or, if none is given, every matrix called `….weight` in [natural order](natural) of the
    /// names. `activation` acts between layers, `last` after the last one (usually [`Pointwise::Identity`]).
    ///
    /// # Errors
    /// If a tensor is missing, holds no real or no finite numbers, has another shape than a layer has, or cannot be read.
    pub fn read(
        checkpoint: &Checkpoint,
        prefixes: &[String],
        activation: Pointwise,
        last: Pointwise,
    ) -> Result<Self> {
        let found;
        let prefixes = if prefixes.is_empty() {
            found = layers(checkpoint);
            if found.is_empty() {
                return Err(ModelError::Layers(format!(
                    "{} holds no matrix called `….weight`; it has {}",
                    checkpoint.path().display(),
                    some(checkpoint.tensors().keys())
                )));
            }
            &found
        } else {
            prefixes
        };
        let layers = prefixes
            .iter()
            .map(|prefix| dense(checkpoint, prefix))
            .collect::<Result<Vec<_>>>()?;
        let mut activations = vec![activation; layers.len()];
        if let Some(end) = activations.last_mut() {
            *end = last;
        }
        Self::new(layers, activations)
    }

    /// The layers, in the order they are applied.
    pub fn layers(&self) -> &[Dense] {
        &self.layers
    }

    /// The activation after each layer.
    pub fn activations(&self) -> &[Pointwise] {
        &self.activations
    }

    /// Numbers a sample has.
    pub fn inputs(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.inputs)
    }

    /// Numbers an output has.
    pub fn outputs(&self) -> usize {
        self.layers.last().map_or(0, |layer| layer.outputs)
    }

    /// Runs samples, given row after row, and keeps what they are at every place.
    ///
    /// # Errors
    /// [`ModelError::Batch`] if `x` is not a whole number of samples or the output is not finite.
    pub fn forward(&self, x: &[f64]) -> Result<Trace> {
        let width = self.inputs();
        if !x.len().is_multiple_of(width) {
            return Err(ModelError::Batch(format!(
                "{} numbers; the network reads {width} a sample",
                x.len()
            )));
        }
        let samples = x.len() / width;
        let mut activations = vec![x.to_vec()];
        let mut pre_activations = Vec::with_capacity(self.layers.len());
        let mut z = x.to_vec();
        for (layer, activation) in self.layers.iter().zip(&self.activations) {
            let mut s = vec![0.0; samples * layer.outputs];
            for (x, s) in z
                .chunks_exact(layer.inputs)
                .zip(s.chunks_exact_mut(layer.outputs))
            {
                layer.product(x, s);
                for (s, b) in s.iter_mut().zip(layer.bias.iter().flatten()) {
                    *s += b;
                }
            }
            z = s.iter().map(|&s| activation.value(s)).collect();
            pre_activations.push(s);
            activations.push(z.clone());
        }
        if let Some(bad) = z.iter().position(|x| !x.is_finite()) {
            return Err(ModelError::Batch(format!(
                "sample {} has no finite output; look for NaN, infinity or numbers out of range in it",
                bad / self.outputs()
            )));
        }
        Ok(Trace {
            samples,
            activations,
            pre_activations,
        })
    }

    /// Gradients of Σ_i c_i y_i of every sample, for a `functional` c of samples × outputs numbers, by the chain rule back
    /// through `trace`: δ_M = φ'(s_M) ⊙ c, δ_k = φ'(s_k) ⊙ W_{k+1}ᵀ δ_{k+1}, and W_1ᵀ δ_1 for the input.
    ///
    /// # Errors
    /// [`ModelError::Batch`] if `trace` is not of this network or `functional` has another size.
    pub fn gradients(&self, trace: &Trace, functional: &[f64]) -> Result<Gradients> {
        let fits = trace.pre_activations.len() == self.layers.len()
            && self
                .layers
                .iter()
                .zip(&trace.pre_activations)
                .all(|(layer, s)| s.len() == trace.samples * layer.outputs)
            && functional.len() == trace.samples * self.outputs();
        if !fits {
            return Err(ModelError::Batch(format!(
                "a functional of {} numbers for {} samples with {} outputs each, or a trace of another network",
                functional.len(),
                trace.samples,
                self.outputs()
            )));
        }
        let mut pre_activations = Vec::with_capacity(self.layers.len());
        let mut back = functional.to_vec();
        let places = self.layers.iter().zip(&self.activations);
        for ((layer, activation), s) in places.zip(&trace.pre_activations).rev() {
            let delta: Vec<f64> = back
                .iter()
                .zip(s)
                .map(|(&g, &s)| g * activation.derivative(s))
                .collect();
            back = vec![0.0; trace.samples * layer.inputs];
            for (delta, back) in delta
                .chunks_exact(layer.outputs)
                .zip(back.chunks_exact_mut(layer.inputs))
            {
                for (&d, row) in delta.iter().zip(layer.weight.chunks_exact(layer.inputs)) {
                    if d != 0.0 {
                        for (b, w) in back.iter_mut().zip(row) {
                            *b += d * w;
                        }
                    }
                }
            }
            pre_activations.push(delta);
        }
        pre_activations.reverse();
        Ok(Gradients {
            input: back,
            pre_activations,
        })
    }
}

/// The prefixes of all matrices called `….weight`, in natural order: `fc2` before `fc10`.
pub fn layers(checkpoint: &Checkpoint) -> Vec<String> {
    let mut names: Vec<String> = checkpoint
        .tensors()
        .values()
        .filter(|tensor| tensor.shape.len() == 2)
        .filter_map(|tensor| tensor.name.strip_suffix(".weight").map(str::to_owned))
        .collect();
    names.sort_by(|a, b| natural(a, b));
    names
}

/// Compares names with runs of digits taken as numbers.
pub fn natural(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        let (x, y) = (digits(left), digits(right));
        if x > 0 && y > 0 {
            let number = |text: &str| text.trim_start_matches('0').to_owned();
            let (p, q) = (number(&left[..x]), number(&right[..y]));
            let order = p.len().cmp(&q.len()).then(p.cmp(&q));
            if order.is_ne() {
                return order;
            }
            (left, right) = (&left[x..], &right[y..]);
            continue;
        }
        let (mut p, mut q) = (left.chars(), right.chars());
        match (p.next(), q.next()) {
            (Some(x), Some(y)) if x == y => (left, right) = (p.as_str(), q.as_str()),
            // Names that differ in leading zeros only still have one order.
            (x, y) => return x.cmp(&y).then(a.cmp(b)),
        }
    }
}

fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

/// All numbers of a tensor, row after row, as they are stored: `F64` without rounding.
///
/// # Errors
/// [`ModelError::NotFloat`] if it holds integers or truth values, [`ModelError::NotFinite`] if a number is NaN or infinite,
/// and what reading the file gives.
pub fn read_real(checkpoint: &Checkpoint, tensor: &TensorInfo) -> Result<Vec<f64>> {
    let bytes = checkpoint.read_all(tensor)?;
    let values = decode_real(tensor.dtype, &bytes).ok_or_else(|| ModelError::NotFloat {
        tensor: tensor.name.clone(),
        found: tensor.dtype.name().to_owned(),
    })?;
    if values.iter().all(|x| x.is_finite()) {
        Ok(values)
    } else {
        Err(ModelError::NotFinite(tensor.name.clone()))
    }
}

/// Little-endian numbers of a real type as f64, without rounding; nothing for other types. Bytes beyond the last whole
/// number are left out.
pub fn decode_real(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f64>> {
    if dtype == Dtype::F64 {
        let whole = bytes.as_chunks::<8>().0;
        return Some(whole.iter().map(|&b| f64::from_le_bytes(b)).collect());
    }
    let float = kernel_float(dtype)?;
    let count = bytes.len() / float.size();
    let mut narrow = vec![0.0_f32; count];
    decode(float, &bytes[..count * float.size()], &mut narrow);
    Some(narrow.into_iter().map(f64::from).collect())
}

fn dense(checkpoint: &Checkpoint, prefix: &str) -> Result<Dense> {
    let name = format!("{prefix}.weight");
    let tensors = checkpoint.tensors();
    let weight = tensors.get(&name).ok_or_else(|| {
        ModelError::Layers(format!(
            "{} holds no tensor `{name}`; it has {}",
            checkpoint.path().display(),
            some(tensors.keys())
        ))
    })?;
    let [outputs, inputs] = weight.shape[..] else {
        return Err(ModelError::Layers(format!(
            "tensor `{name}` has shape {:?}; the weight of a layer is a matrix, outputs × inputs",
            weight.shape
        )));
    };
    let bias = match tensors.get(&format!("{prefix}.bias")) {
        None => None,
        Some(bias) if bias.shape == [outputs] => Some(read_real(checkpoint, bias)?),
        Some(bias) => {
            return Err(ModelError::Shape {
                tensor: bias.name.clone(),
                found: bias.shape.clone(),
                expected: vec![outputs],
            });
        }
    };
    Ok(Dense {
        name: prefix.to_owned(),
        inputs,
        outputs,
        weight: read_real(checkpoint, weight)?,
        bias,
    })
}

/// A few names, for messages.
fn some<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> String {
    let count = names.len();
    let first: Vec<String> = names.take(8).map(|name| format!("`{name}`")).collect();
    match count {
        0 => "no tensor".to_owned(),
        1..=8 => first.join(", "),
        _ => format!("{} and {} more", first.join(", "), count - 8),
    }
}

/// Four running sums, which the processor adds side by side; the order is the same on every machine.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a4, a1) = a.as_chunks::<4>();
    let (b4, b1) = b.as_chunks::<4>();
    let mut lanes = [0.0; 4];
    for (x, y) in a4.iter().zip(b4) {
        for i in 0..4 {
            lanes[i] += x[i] * y[i];
        }
    }
    let rest: f64 = a1.iter().zip(b1).map(|(x, y)| x * y).sum();
    (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]) + rest
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use merganser_store::header::{TensorSpec, compose};
    use proptest::prelude::*;

    use super::*;

    const SIZES: [usize; 4] = [5, 7, 6, 3];

    fn network(seed: f64, activation: Pointwise) -> Mlp {
        let wave = |i: usize, k: usize| ((i as f64 + 1.0) * (1.7 + seed) + k as f64 * 3.1).sin();
        let layers = (0..3).map(|k| {
            let (n, m) = (SIZES[k], SIZES[k + 1]);
            Dense {
                name: format!("fc{k}"),
                inputs: n,
                outputs: m,
                weight: (0..m * n).map(|i| wave(i, k)).collect(),
                bias: (k != 1).then(|| (0..m).map(|i| wave(i, k + 9)).collect()),
            }
        });
        let activations = vec![activation, activation, Pointwise::Identity];
        Mlp::new(layers.collect(), activations).unwrap()
    }

    fn written(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let specs: Vec<TensorSpec> = tensors
            .iter()
            .map(|(name, dtype, shape, _)| TensorSpec {
                name: (*name).to_owned(),
                dtype: *dtype,
                shape: shape.to_vec(),
            })
            .collect();
        let layout = compose(&std::collections::BTreeMap::new(), &specs).unwrap();
        let mut bytes = layout.header.clone();
        bytes.resize(layout.file_len as usize, 0);
        for ((_, _, _, data), offset) in tensors.iter().zip(&layout.offsets) {
            let start = *offset as usize;
            bytes[start..start + data.len()].copy_from_slice(data);
        }
        std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        folder
    }

    fn f64s(values: &[f64]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    proptest! {
        #[test]
        fn gradients_are_differences(
            x in prop::collection::vec(-2.0..2.0, 10),
            c in prop::collection::vec(-1.0..1.0, 6),
            seed in 0.0..5.0,
        ) {
            let mlp = network(seed, Pointwise::Gelu);
            let value = |x: &[f64]| -> Vec<f64> {
                let y = &mlp.forward(x).unwrap().activations[3];
                y.chunks(3).zip(c.chunks(3)).map(|(y, c)| dot(y, c)).collect()
            };
            let trace = mlp.forward(&x).unwrap();
            let gradients = mlp.gradients(&trace, &c).unwrap();
            let h = 1e-5;
            for i in 0..10 {
                let moved = |by: f64| {
                    let mut x = x.clone();
                    x[i] += by;
                    value(&x)[i / 5]
                };
                let measured = (moved(h) - moved(-h)) / (2.0 * h);
                prop_assert!((measured - gradients.input[i]).abs() < 1e-6);
            }
            // A bias moves the pre-activation of every sample alike.
            for k in [0, 2] {
                for j in 0..SIZES[k + 1] {
                    let moved = |by: f64| {
                        let mut layers = mlp.layers().to_vec();
                        layers[k].bias.as_mut().unwrap()[j] += by;
                        let other = Mlp::new(layers, mlp.activations().to_vec()).unwrap();
                        dot(&other.forward(&x).unwrap().activations[3], &c)
                    };
                    let measured = (moved(h) - moved(-h)) / (2.0 * h);
                    let delta = &gradients.pre_activations[k];
                    let sum = delta[j] + delta[j + SIZES[k + 1]];
                    prop_assert!((measured - sum).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn a_sample_has_the_same_bits_in_every_batch() {
        let mlp = network(0.3, Pointwise::Tanh);
        let x: Vec<f64> = (0..50).map(|i| f64::from(i).cos()).collect();
        let whole = mlp.forward(&x).unwrap();
        let one = mlp.forward(&x[20..25]).unwrap();
        for (k, &size) in SIZES.iter().enumerate() {
            let row = &whole.activations[k][4 * size..5 * size];
            assert_eq!(row, &one.activations[k][..]);
        }
        assert_eq!((whole.samples, one.samples), (10, 1));
        assert_eq!(mlp.forward(&[]).unwrap().samples, 0);
    }

    #[test]
    fn layers_are_found_in_natural_order_and_read_in_full_precision() {
        let third = 1.0 / 3.0;
        let half = |values: &[f32]| -> Vec<u8> {
            let bf16 = |x: &f32| (x.to_bits() >> 16) as u16;
            values.iter().flat_map(|x| bf16(x).to_le_bytes()).collect()
        };
        let folder = written(&[
            ("fc10.weight", Dtype::F64, &[1, 2], f64s(&[third, -third])),
            ("fc2.bias", Dtype::F64, &[2], f64s(&[0.5, 0.25])),
            ("fc2.weight", Dtype::BF16, &[2, 1], half(&[1.5, -2.0])),
            ("norm.weight", Dtype::F64, &[2], f64s(&[9.0, 9.0])),
            ("steps", Dtype::I64, &[1], vec![0; 8]),
        ]);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let relu = Pointwise::Relu;
        let mlp = Mlp::read(&checkpoint, &[], relu, Pointwise::Identity).unwrap();
        let names: Vec<&str> = mlp.layers().iter().map(|l| l.name.as_str()).collect();
        assert_eq!(names, ["fc2", "fc10"]);
        let trace = mlp.forward(&[2.0]).unwrap();
        assert_eq!(trace.pre_activations[0], [3.5, -3.75]);
        assert_eq!(trace.activations[2], [3.5 * third]);

        let swapped = ["fc10".to_owned(), "fc2".to_owned()];
        let refused = |prefixes: &[String]| {
            let error = Mlp::read(&checkpoint, prefixes, relu, relu).unwrap_err();
            error.to_string()
        };
        // Only widths can tell a wrong order; here they fit by chance.
        assert!(Mlp::read(&checkpoint, &swapped, relu, relu).is_ok());
        assert!(refused(&["fc3".to_owned()]).contains("holds no tensor `fc3.weight`; it has"));
        assert!(refused(&["norm".to_owned()]).contains("is a matrix"));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let dense = |name: &str, m: usize, n: usize| Dense {
            name: name.to_owned(),
            inputs: n,
            outputs: m,
            weight: vec![1.0; m * n],
            bias: None,
        };
        let refused = |layers: Vec<Dense>| {
            let activations = vec![Pointwise::Relu; layers.len()];
            Mlp::new(layers, activations).unwrap_err().to_string()
        };
        assert!(
            refused(vec![dense("a", 2, 3), dense("b", 4, 3)]).contains("`a` before it gives 2")
        );
        assert!(refused(vec![]).contains("at least one layer"));
        let mut nan = dense("a", 2, 3);
        nan.weight[4] = f64::NAN;
        assert!(refused(vec![nan]).contains("`a`"));
        let mlp = network(0.0, Pointwise::Relu);
        assert!(mlp.forward(&[1.0; 7]).is_err());
        assert!(mlp.forward(&[f64::NAN; 5]).is_err());
        let trace = mlp.forward(&[1.0; 5]).unwrap();
        assert!(mlp.gradients(&trace, &[1.0; 2]).is_err());
    }

    #[test]
    fn numbers_in_names_are_numbers() {
        let mut names = ["l10", "l2", "l02", "head", "l2.b", "l"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["head", "l", "l02", "l2", "l2.b", "l10"]);
    }
}
