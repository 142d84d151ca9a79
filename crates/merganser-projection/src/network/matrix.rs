//! One matrix, with its bias where that is solved for too: the same whether samples or a file of moments speak for it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use merganser_linalg::{Matrix, Real};
use merganser_model::{Layout, Linear, ModelError, Weights};

use super::evidence::{Inputs, Targets};
use super::layer::{self, values};
use super::pairs::Pairs;
use super::solve::{label, solve};
use super::units::Units;
use super::walk::forward;
use super::{Host, Layer, LayerKind, NetworkError, Rule, Settings};
use crate::{DataFree, Error, HeldOut, Problem, Task};

/// Widest input whose matrices are held in f64.
const WIDE: usize = 4096;

/// Tensors by name.
type Tensors = BTreeMap<String, Tensor>;

/// A fine-tune: what it is called, ω_t, and its tensors.
pub(super) type Tuned<'a> = (&'a str, f64, &'a dyn Weights);

/// A matrix to be merged, and all that is known of it.
pub(super) struct Asked<'a> {
    pub(super) host: &'a dyn Host,
    pub(super) settings: &'a Settings,
    pub(super) base: &'a dyn Weights,
    pub(super) tuned: Vec<Tuned<'a>>,
    pub(super) linear: &'a Linear,
    pub(super) inputs: &'a [Inputs],
    /// Empty where the inputs are those the fine-tunes saw.
    pub(super) targets: Vec<Targets>,
    /// Name of the stage it belongs to, and its block.
    pub(super) stage: (&'a str, Option<usize>),
}

/// What was found out, and the tensors as they are stored now; none where the prior stays.
pub(super) struct Merged {
    pub(super) layer: Layer,
    pub(super) stored: Vec<(String, Tensor)>,
}

impl Asked<'_> {
    /// Merges the matrix and hands it to the host.
    pub(super) fn merge(self) -> Result<Merged, NetworkError> {
        if self.linear.inputs <= WIDE {
            self.merge_in::<f64>()
        } else {
            self.merge_in::<f32>()
        }
    }

    fn merge_in<T: Real>(self) -> Result<Merged, NetworkError> {
        let Self {
            host,
            settings,
            linear,
            ..
        } = self;
        let name = linear.weight.as_str();
        let fault = |problem| NetworkError::Layer {
            tensor: name.to_owned(),
            problem,
        };
        let rule = host.rule(name);
        let bias = linear.bias.as_deref().filter(|_| rule.includes_bias());
        let base: Matrix<T> =
            joined(linear, self.base, bias.is_some()).map_err(forward("the base model"))?;
        let plain = |weights: &dyn Weights, model: &str| {
            let mut update = joined(linear, weights, bias.is_some()).map_err(forward(model))?;
            update.add_scaled(-1.0, &base);
            Ok::<Matrix<T>, NetworkError>(update)
        };
        let mut updates = self
            .tuned
            .iter()
            .map(|(model, _, weights)| plain(*weights, model))
            .collect::<Result<Vec<_>, _>>()?;
        let mut prior = plain(&Prior(host), "the prior")?;
        let data_free = settings
            .matrix_prior
            .as_ref()
            .filter(|_| self.stage.1.is_some());
        if let Some(data_free) = data_free {
            let merged = without_bias(data_free, linear.inputs, &updates).map_err(fault)?;
            for i in 0..prior.rows() {
                prior.row_mut(i)[..linear.inputs].copy_from_slice(merged.row(i));
            }
        }
        let (mut inputs, mut targets) = (Cow::Borrowed(self.inputs), self.targets);
        if bias.is_some() {
            inputs = inputs.iter().map(Inputs::with_bias).collect();
            targets = targets.iter().map(Targets::with_bias).collect();
        }
        let units = (settings.ridge_by_input && rule.has_ridge()).then(|| {
            let weights = self.tuned.iter().map(|(_, weight, _)| *weight);
            Units::of(weights.zip(inputs.iter()))
        });
        if let Some(units) = &units {
            inputs = inputs.iter().map(|x| units.inputs(x)).collect();
            targets = targets.iter().map(|x| units.targets(x)).collect();
            for update in &mut updates {
                units.apply(update);
            }
            units.apply(&mut prior);
        }
        let update = |weights: &dyn Weights, model: &str| {
            let mut update = plain(weights, model)?;
            if let Some(units) = &units {
                units.apply(&mut update);
            }
            Ok::<_, NetworkError>(update)
        };
        let tasks: Vec<Task<'_, T>> = updates
            .iter()
            .zip(inputs.iter())
            .enumerate()
            .map(|(t, (update, input))| Task {
                weight: self.tuned[t].1,
                update,
                input: &input.all,
                target: targets.get(t).map(|targets| &targets.all),
                held_out: input.held_out.as_ref().map(|held| HeldOut {
                    input: held,
                    target: targets.get(t).and_then(|targets| targets.held_out.as_ref()),
                }),
            })
            .collect();
        let problem = Problem::new(tasks.clone())
            .and_then(|problem| problem.with_prior(prior.clone()))
            .map_err(fault)?;
        let mut layer = Layer {
            tensor: name.to_owned(),
            stage: self.stage.0.to_owned(),
            block: self.stage.1,
            kind: LayerKind::Linear,
            shape: vec![linear.outputs, linear.inputs],
            basis: label(&rule),
            captured: problem.evaluate(&prior).map_err(fault)?,
            ridge: None,
            measured: Vec::new(),
            pairs: None,
            notes: Vec::new(),
        };
        for programme in &settings.measured {
            let solution = problem.solve(programme).map_err(fault)?;
            layer
                .measured
                .push((programme.basis.to_string(), solution.captured));
        }
        for (rival, tensors) in rivals(host, name, bias)? {
            let captured = problem
                .evaluate(&update(&tensors, &rival)?)
                .map_err(fault)?;
            layer.measured.push((rival, captured));
        }
        if !settings.measured.is_empty() {
            let plain = units.as_ref().map(|units| {
                let mut plain = updates.clone();
                for update in &mut plain {
                    units.undo(update);
                }
                plain
            });
            let plain = plain.as_deref().unwrap_or(&updates);
            layer.pairs = Some(Pairs::of(plain, &updates, problem.gram()));
        }
        if rule == Rule::Prior {
            return Ok(Merged {
                layer,
                stored: Vec::new(),
            });
        }
        let names: Vec<&str> = std::iter::once(name).chain(bias).collect();
        if let Some(found) = finished(host, &names)? {
            layer.captured = problem
                .evaluate(&update(&found, "the merged model")?)
                .map_err(fault)?;
            layer.notes.push("taken from an interrupted run".to_owned());
            return Ok(Merged {
                layer,
                stored: found.into_iter().collect(),
            });
        }
        let solved = solve(&rule, &problem, &tasks, &updates, name).map_err(fault)?;
        let mut merged = if let Some(solved) = solved {
            layer.captured = solved.captured;
            layer.basis = solved.label;
            layer.ridge = solved.ridge;
            layer.notes = solved.notes;
            solved.update
        } else {
            layer.basis = data_free.map_or(layer.basis, |data_free| data_free.name().to_owned());
            prior
        };
        if let Some(units) = &units {
            units.undo(&mut merged);
        }
        merged.add_scaled(1.0, &base);
        let shape = self.base.tensor(name).map_err(forward("the base model"))?;
        let (w, b) = parted(linear, &merged, shape.dims()).map_err(layer::host)?;
        let keep = |name: &str, merged: Tensor| {
            let stored = host.keep(name, merged).map_err(NetworkError::Host)?;
            Ok::<_, NetworkError>((name.to_owned(), stored))
        };
        let mut stored = vec![keep(name, w)?];
        if let (Some(name), Some(b)) = (bias, b) {
            stored.push(keep(name, b)?);
        }
        Ok(Merged { layer, stored })
    }
}

/// Other merges of a matrix and its bias, by name.
fn rivals(
    host: &dyn Host,
    weight: &str,
    bias: Option<&str>,
) -> Result<Vec<(String, Tensors)>, NetworkError> {
    let mut found: Vec<(String, Tensors)> = Vec::new();
    for name in std::iter::once(weight).chain(bias) {
        for (k, (rival, tensor)) in host
            .rivals(name)
            .map_err(NetworkError::Host)?
            .into_iter()
            .enumerate()
        {
            if found.len() == k {
                found.push((rival, Tensors::new()));
            }
            found[k].1.insert(name.to_owned(), tensor);
        }
    }
    Ok(found)
}

/// The tensors as an earlier run left them, if all are there.
pub(super) fn finished(host: &dyn Host, names: &[&str]) -> Result<Option<Tensors>, NetworkError> {
    let mut found = Tensors::new();
    for name in names {
        match host.finished(name).map_err(NetworkError::Host)? {
            Some(tensor) => found.insert((*name).to_owned(), tensor),
            None => return Ok(None),
        };
    }
    Ok(Some(found))
}

/// The data-free merge of the weights alone, m×d.
fn without_bias<T: Real>(
    data_free: &DataFree,
    width: usize,
    updates: &[Matrix<T>],
) -> Result<Matrix<T>, Error> {
    let weights: Vec<Matrix<T>> = updates
        .iter()
        .map(|update| Matrix::from_fn(update.rows(), width, |i, j| update.get(i, j)))
        .collect();
    let merged = data_free.update(&weights.iter().collect::<Vec<_>>())?;
    Ok(merged.update)
}

/// The prior, as weights.
pub(super) struct Prior<'a>(pub(super) &'a dyn Host);

impl Weights for Prior<'_> {
    fn tensor(&self, name: &str) -> merganser_model::Result<Tensor> {
        self.0.prior(name).map_err(ModelError::Source)
    }
}

/// W and b of one model as one matrix, m×d or m×(d+1).
fn joined<T: Real>(
    linear: &Linear,
    weights: &dyn Weights,
    with_bias: bool,
) -> Result<Matrix<T>, merganser_model::ModelError> {
    let stored = weights.tensor(&linear.weight)?;
    let w = values(&linear.matrix(&stored)?)?;
    let bias = match linear.bias.as_ref().filter(|_| with_bias) {
        Some(name) => Some(values(&weights.tensor(name)?)?),
        None => None,
    };
    let d = linear.inputs;
    let number = |x: f32| T::from_f64(f64::from(x));
    Ok(match bias {
        None => Matrix::from_fn(linear.outputs, d, |i, j| number(w[i * d + j])),
        Some(b) => Matrix::from_fn(linear.outputs, d + 1, |i, j| {
            number(if j < d { w[i * d + j] } else { b[i] })
        }),
    })
}

/// The opposite of [`joined`]: W in its stored shape, and b.
fn parted<T: Real>(
    linear: &Linear,
    matrix: &Matrix<T>,
    shape: &[usize],
) -> candle_core::Result<(Tensor, Option<Tensor>)> {
    let (m, d) = (linear.outputs, linear.inputs);
    let mut w = Vec::with_capacity(m * d);
    let mut b = Vec::new();
    for i in 0..m {
        let row = matrix.row(i);
        w.extend(row[..d].iter().map(|x| x.to_f64() as f32));
        b.extend(row[d..].iter().map(|x| x.to_f64() as f32));
    }
    let w = Tensor::from_vec(w, (m, d), &Device::Cpu)?;
    let w = match linear.layout {
        Layout::OutIn => w.reshape(shape)?,
        Layout::InOut => w.t()?.contiguous()?,
    };
    let b = if b.is_empty() {
        None
    } else {
        Some(Tensor::from_vec(b, m, &Device::Cpu)?)
    };
    Ok((w, b))
}
