//! Matrices that share an input: one Gram for all, a problem for each.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use merganser_linalg::{Matrix, Real};
use merganser_model::{Layout, Linear, Op, StageKind, Tap, TapKind, Weights};

use super::layer::{self, Sides, fitted_rows, values};
use super::simple::PriorOf;
use super::walk::{StageWalk, forward};
use super::{Layer, LayerKind, NetworkError, Rule, Stream, measure};
use crate::{
    DataFree, Error, HeldOut, InputMoments, Note, Problem, Programme, Ridge, Solution,
    TargetMoments, Task, lot, regmean,
};

/// Widest input whose matrices are held in f64.
const WIDE: usize = 4096;

/// Merges the matrices of `ops`, which share an input, and puts them into the student.
pub(super) fn merge(
    walk: &mut StageWalk<'_>,
    ops: &[&Op],
    sides: &[Sides],
) -> Result<Vec<Layer>, NetworkError> {
    let taps: Vec<(&Op, Tap<'_>, &Linear)> = ops
        .iter()
        .filter_map(|op| {
            let tap = op.parameters()?;
            match tap.kind {
                TapKind::Linear(linear) => Some((*op, tap, linear)),
                _ => None,
            }
        })
        .collect();
    let Some((_, first, linear)) = taps.first() else {
        return Ok(Vec::new());
    };
    let width = linear.inputs;
    let auto = walk
        .settings
        .measured
        .iter()
        .any(|p| p.ridge == Ridge::Auto)
        || taps
            .iter()
            .any(|(_, tap, _)| chooses_ridge(&walk.host.rule(tap.weight)));
    let inputs = sides
        .iter()
        .zip(walk.teachers)
        .map(|(sides, teacher)| {
            Inputs::of(sides, width, auto)
                .map_err(|problem| refused(problem, &teacher.name, first.weight))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut layers = Vec::with_capacity(taps.len());
    for (op, tap, linear) in taps {
        layers.push(if width <= WIDE {
            one::<f64>(walk, op, tap, linear, sides, &inputs)?
        } else {
            one::<f32>(walk, op, tap, linear, sides, &inputs)?
        });
    }
    Ok(layers)
}

fn chooses_ridge(rule: &Rule) -> bool {
    matches!(rule, Rule::Programme(p) | Rule::Sparse { programme: p, .. } if p.ridge == Ridge::Auto)
}

fn refused(problem: Error, model: &str, tensor: &str) -> NetworkError {
    match problem {
        Error::NotFinite { .. } => NetworkError::NotFinite {
            model: model.to_owned(),
            tensor: tensor.to_owned(),
        },
        problem => NetworkError::Layer {
            tensor: tensor.to_owned(),
            problem,
        },
    }
}

/// Moments of the inputs of one task.
struct Inputs {
    all: InputMoments,
    held_out: Option<InputMoments>,
}

impl Inputs {
    fn of(sides: &Sides, width: usize, auto: bool) -> Result<Self, Error> {
        let mut all = InputMoments::new(width);
        let mut held_out = auto.then(|| InputMoments::new(width));
        for rows in &sides.rows {
            let rows = numbers(rows, width);
            match &mut held_out {
                None => all.add_rows(&rows)?,
                Some(held_out) => {
                    let fitted = fitted_rows(rows.len() / width) * width;
                    all.add_rows(&rows[..fitted])?;
                    held_out.add_rows(&rows[fitted..])?;
                }
            }
        }
        if let Some(held_out) = &held_out {
            all.merge(held_out)?;
        }
        Ok(Self { all, held_out })
    }

    fn with_bias(&self) -> Self {
        Self {
            all: self.all.with_bias(),
            held_out: self.held_out.as_ref().map(InputMoments::with_bias),
        }
    }
}

/// Moments of the targets of one task.
struct Targets {
    all: TargetMoments,
    held_out: Option<TargetMoments>,
}

impl Targets {
    fn of(
        targets: &[Tensor],
        inputs: &[Tensor],
        (rows, cols): (usize, usize),
        auto: bool,
    ) -> Result<Self, Error> {
        let mut all = TargetMoments::new(rows, cols);
        let mut held_out = auto.then(|| TargetMoments::new(rows, cols));
        for (r, x) in targets.iter().zip(inputs) {
            let (r, x) = (numbers(r, rows), numbers(x, cols));
            match &mut held_out {
                None => all.add_rows(&r, &x)?,
                Some(held_out) => {
                    let fitted = fitted_rows(x.len() / cols);
                    all.add_rows(&r[..fitted * rows], &x[..fitted * cols])?;
                    held_out.add_rows(&r[fitted * rows..], &x[fitted * cols..])?;
                }
            }
        }
        if let Some(held_out) = &held_out {
            all.merge(held_out)?;
        }
        Ok(Self { all, held_out })
    }

    fn with_bias(&self) -> Self {
        Self {
            all: self.all.with_bias(),
            held_out: self.held_out.as_ref().map(TargetMoments::with_bias),
        }
    }
}

/// The numbers of some rows; where they cannot be read, NaN, which the moments refuse.
fn numbers(rows: &Tensor, width: usize) -> Vec<f32> {
    values(rows).unwrap_or_else(|_| vec![f32::NAN; width])
}

/// W and b of one model as one matrix, m×d or m×(d+1).
pub(super) fn joined<T: Real>(
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

fn one<T: Real>(
    walk: &mut StageWalk<'_>,
    op: &Op,
    tap: Tap<'_>,
    linear: &Linear,
    sides: &[Sides],
    inputs: &[Inputs],
) -> Result<Layer, NetworkError> {
    let fault = |problem| NetworkError::Layer {
        tensor: tap.weight.to_owned(),
        problem,
    };
    let rule = walk.host.rule(tap.weight);
    let with_bias = linear.bias.is_some() && rule.includes_bias();
    let base: Matrix<T> =
        joined(linear, &walk.base, with_bias).map_err(forward("the base model"))?;
    let minus_base = |mut other: Matrix<T>| {
        other.add_scaled(-1.0, &base);
        other
    };
    let updates = walk
        .taught
        .iter()
        .zip(walk.teachers)
        .map(|(weights, teacher)| {
            Ok(minus_base(
                joined(linear, weights, with_bias).map_err(forward(&teacher.name))?,
            ))
        })
        .collect::<Result<Vec<_>, NetworkError>>()?;
    let auto = inputs.iter().any(|inputs| inputs.held_out.is_some());
    let mut targets = Vec::new();
    if walk.settings.stream == Stream::Merged {
        for (t, sides) in sides.iter().enumerate() {
            let base = |batch: usize| linear.apply(&sides.rows[batch], &walk.base);
            let rows = walk.targets(t, op.output(), op.residual, base)?;
            targets.push(
                Targets::of(&rows, &sides.rows, (linear.outputs, linear.inputs), auto)
                    .map_err(|problem| refused(problem, &walk.teachers[t].name, tap.weight))?,
            );
        }
    }
    let inputs: Vec<Inputs> = if with_bias {
        targets = targets.iter().map(Targets::with_bias).collect();
        inputs.iter().map(Inputs::with_bias).collect()
    } else {
        inputs
            .iter()
            .map(|i| Inputs {
                all: i.all.clone(),
                held_out: i.held_out.clone(),
            })
            .collect()
    };
    let tasks: Vec<Task<'_, T>> = updates
        .iter()
        .zip(&inputs)
        .enumerate()
        .map(|(t, (update, input))| Task {
            weight: walk.teachers[t].weight,
            update,
            input: &input.all,
            target: targets.get(t).map(|targets| &targets.all),
            held_out: input.held_out.as_ref().map(|held| HeldOut {
                input: held,
                target: targets.get(t).and_then(|targets| targets.held_out.as_ref()),
            }),
        })
        .collect();
    let bias = tap.bias.filter(|_| with_bias);
    let names: Vec<&str> = std::iter::once(tap.weight).chain(bias).collect();
    let mut prior =
        minus_base(joined(linear, &PriorOf(walk), with_bias).map_err(forward("the prior"))?);
    let data_free = walk.settings.matrix_prior.as_ref();
    if let Some(data_free) = data_free.filter(|_| walk.stage.kind == StageKind::Block) {
        replace_columns(
            &mut prior,
            &without_bias(data_free, linear, &updates).map_err(fault)?,
        );
    }
    let problem = Problem::new(tasks.clone())
        .and_then(|problem| problem.with_prior(prior.clone()))
        .map_err(fault)?;
    let mut layer = Layer {
        tensor: tap.weight.to_owned(),
        stage: walk.stage.name.clone(),
        block: walk.stage.layer,
        kind: LayerKind::Linear,
        shape: vec![linear.outputs, linear.inputs],
        basis: "prior".to_owned(),
        captured: problem.evaluate(&prior).map_err(fault)?,
        ridge: None,
        measured: Vec::new(),
        output_cosine: None,
        notes: Vec::new(),
    };
    measure::linear(walk, linear, &problem, &updates, &base, &mut layer)?;
    if rule == Rule::Prior {
        return Ok(layer);
    }
    if let Some(found) = walk.finished(&names)? {
        let stored: BTreeMap<String, Tensor> = names
            .iter()
            .map(|name| (*name).to_owned())
            .zip(found)
            .collect();
        let update =
            minus_base(joined(linear, &stored, with_bias).map_err(forward("the merged model"))?);
        layer.captured = problem.evaluate(&update).map_err(fault)?;
        layer.basis = label(&rule);
        layer.notes.push("taken from an interrupted run".to_owned());
        for (name, tensor) in stored {
            walk.student.insert(&name, tensor);
        }
        return Ok(layer);
    }
    let solution = match &rule {
        Rule::MatrixPrior => Solved {
            captured: layer.captured.clone(),
            update: prior,
            label: data_free.map_or("prior", DataFree::name).to_owned(),
            ridge: None,
            notes: Vec::new(),
        },
        rule => solve(rule, &problem, &tasks, &updates).map_err(fault)?,
    };
    let (mut merged, captured) = (solution.update, solution.captured);
    merged.add_scaled(1.0, &base);
    let shape = walk
        .base
        .tensor(tap.weight)
        .map_err(forward("the base model"))?
        .dims()
        .to_vec();
    let (w, b) = parted(linear, &merged, &shape).map_err(layer::host)?;
    walk.keep(tap.weight, w)?;
    if let (Some(name), Some(b)) = (bias, b) {
        walk.keep(name, b)?;
    }
    layer.captured = captured;
    layer.basis = solution.label;
    layer.ridge = solution.ridge;
    layer.notes = solution.notes;
    Ok(layer)
}

/// The data-free merge of the weights alone, m×d.
fn without_bias<T: Real>(
    data_free: &DataFree,
    linear: &Linear,
    updates: &[Matrix<T>],
) -> Result<Matrix<T>, Error> {
    let d = linear.inputs;
    let weights: Vec<Matrix<T>> = updates
        .iter()
        .map(|update| Matrix::from_fn(update.rows(), d, |i, j| update.get(i, j)))
        .collect();
    data_free.update(&weights.iter().collect::<Vec<_>>())
}

fn replace_columns<T: Real>(matrix: &mut Matrix<T>, columns: &Matrix<T>) {
    for i in 0..matrix.rows() {
        matrix.row_mut(i)[..columns.cols()].copy_from_slice(columns.row(i));
    }
}

/// An update and how it came about.
#[derive(Debug, Clone)]
pub struct Solved<T: Real> {
    /// Δ.
    pub update: Matrix<T>,
    /// What it captures.
    pub captured: crate::Captured,
    /// The rule or basis it is by.
    pub label: String,
    /// λ, as used.
    pub ridge: Option<f64>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

impl<T: Real> From<Solution<T>> for Solved<T> {
    fn from(solution: Solution<T>) -> Self {
        Self {
            label: solution.basis.to_string(),
            ridge: Some(solution.ridge),
            // A few samples are the rule, and the ridge says what became of it.
            notes: solution
                .notes
                .iter()
                .filter(|note| !matches!(note, Note::FewSamples { .. }))
                .map(Note::to_string)
                .collect(),
            update: solution.update,
            captured: solution.captured,
        }
    }
}

fn label(rule: &Rule) -> String {
    match rule {
        Rule::Prior => "prior".to_owned(),
        Rule::Programme(programme) => programme.basis.to_string(),
        Rule::Sparse { .. } => "sparse".to_owned(),
        Rule::RegMean { .. } => "regmean".to_owned(),
        Rule::Lot => "lot".to_owned(),
        Rule::MatrixPrior => "matrix prior".to_owned(),
    }
}

/// The update that a rule finds for one matrix; `problem` is made of `tasks`, whose updates `updates` are.
///
/// # Errors
/// Those of the rule; rules that leave a matrix to its prior find none.
pub fn solve<T: Real>(
    rule: &Rule,
    problem: &Problem<'_, T>,
    tasks: &[Task<'_, T>],
    updates: &[Matrix<T>],
) -> Result<Solved<T>, Error> {
    Ok(match rule {
        Rule::Programme(programme) => problem.solve(programme)?.into(),
        Rule::Sparse { mask, programme } => {
            let masked = measure::masked(updates, *mask);
            let matrices: Vec<&Matrix<T>> = masked.iter().collect();
            let Programme {
                constraint, ridge, ..
            } = *programme;
            let mut solved: Solved<T> = problem.solve_span(&matrices, constraint, ridge)?.into();
            solved.label = label(rule);
            solved
        }
        Rule::RegMean { off_diagonal } => {
            let models: Vec<_> = tasks
                .iter()
                .map(|task| (task.weight, task.update, task.input))
                .collect();
            let merged = regmean(&models, *off_diagonal)?;
            Solved {
                captured: problem.evaluate(&merged.weight)?,
                update: merged.weight,
                label: label(rule),
                ridge: None,
                notes: merged.notes.iter().map(Note::to_string).collect(),
            }
        }
        Rule::Lot => {
            let models: Vec<_> = tasks.iter().map(|task| (task.update, task.input)).collect();
            let mut solved: Solved<T> = lot(&models)?.into();
            solved.captured = problem.evaluate(&solved.update)?;
            solved.label = label(rule);
            solved
        }
        Rule::Prior | Rule::MatrixPrior => {
            return Err(Error::UnknownBasis { found: label(rule) });
        }
    })
}
