//! The parameters that are no matrices: scales and shifts, tables, summands.

use candle_core::{Device, Tensor};
use merganser_linalg::Matrix;
use merganser_model::{Embedding, Norm, Op, Tap, TapKind, Weights};

use super::layer::{self, Sides, values};
use super::matrix::{Prior, finished};
use super::walk::{StageWalk, forward, kind};
use super::{Layer, NetworkError, Rule, Stream};
use crate::{
    Captured, ChannelMoments, ChannelTargets, ChannelTask, Error, Note, Ridge, RowCounts, RowTask,
    mean_residual, solve_channels, solve_rows,
};

/// λ of scales and shifts where that of the matrices is chosen on held-out samples.
const RIDGE: f64 = 1e-2;

/// Merges one parameter and puts it into the student.
pub(super) fn merge(
    walk: &mut StageWalk<'_>,
    op: &Op,
    tap_kind: TapKind<'_>,
    sides: &[Sides],
) -> Result<Option<Layer>, NetworkError> {
    let Some(tap) = op.parameters() else {
        return Ok(None);
    };
    let rule = walk.host.rule(tap.weight);
    // Where nothing is to be merged, only matrices are measured.
    if !rule.applies_to(kind(tap)) {
        return Ok(None);
    }
    let bias = tap.bias.filter(|_| rule.includes_bias());
    let names: Vec<&str> = std::iter::once(tap.weight).chain(bias).collect();
    if let Some(found) = finished(walk.host, &names)? {
        for (name, tensor) in found {
            walk.student.insert(&name, tensor);
        }
        return Ok(None);
    }
    let found = match tap_kind {
        TapKind::Norm(norm) => scale(walk, op, tap, norm, sides, &rule)?,
        TapKind::Embedding(table) => rows(walk, tap, table, sides)?,
        TapKind::Additive(_) => summand(walk, tap)?,
        TapKind::Linear(_) => return Ok(None),
    };
    for (name, tensor) in found.tensors {
        walk.keep(&name, tensor)?;
    }
    let shape = walk
        .base
        .tensor(tap.weight)
        .map_err(forward("the base model"))?
        .dims()
        .to_vec();
    Ok(Some(Layer {
        tensor: tap.weight.to_owned(),
        stage: walk.stage.name.clone(),
        block: walk.stage.layer,
        kind: kind(tap),
        shape,
        basis: "least squares".to_owned(),
        captured: found.captured,
        ridge: found.ridge,
        measured: Vec::new(),
        pairs: None,
        notes: found.notes,
    }))
}

/// Merged tensors and what became of the energy.
struct Found {
    tensors: Vec<(String, Tensor)>,
    captured: Captured,
    ridge: Option<f64>,
    notes: Vec<String>,
}

fn notes(notes: &[Note]) -> Vec<String> {
    notes.iter().map(Note::to_string).collect()
}

/// A vector of one model.
fn vector(weights: &dyn Weights, name: &str, model: &str) -> Result<Vec<f64>, NetworkError> {
    let tensor = weights.tensor(name).map_err(forward(model))?;
    let values = values(&tensor).map_err(layer::host)?;
    Ok(values.into_iter().map(f64::from).collect())
}

fn minus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// `base + update` in the shape the base has.
fn merged(
    walk: &StageWalk<'_>,
    name: &str,
    update: &[f64],
) -> Result<(String, Tensor), NetworkError> {
    let base = walk.base.tensor(name).map_err(forward("the base model"))?;
    let sum: Vec<f32> = values(&base)
        .map_err(layer::host)?
        .iter()
        .zip(update)
        .map(|(base, update)| (f64::from(*base) + update) as f32)
        .collect();
    let tensor = Tensor::from_vec(sum, base.shape(), &Device::Cpu).map_err(layer::host)?;
    Ok((name.to_owned(), tensor))
}

fn scale(
    walk: &StageWalk<'_>,
    op: &Op,
    tap: Tap<'_>,
    norm: &Norm,
    sides: &[Sides],
    rule: &Rule,
) -> Result<Found, NetworkError> {
    let fault = |problem| NetworkError::Layer {
        tensor: tap.weight.to_owned(),
        problem,
    };
    let refused = |t: usize| {
        let model = walk.teachers[t].name.clone();
        move |problem| match problem {
            Error::NotFinite { .. } => NetworkError::NotFinite {
                model: model.clone(),
                tensor: tap.weight.to_owned(),
            },
            problem => fault(problem),
        }
    };
    let bias = tap.bias.filter(|_| rule.includes_bias());
    let mut inputs = Vec::new();
    let mut targets = Vec::new();
    for (t, sides) in sides.iter().enumerate() {
        let mut moments = ChannelMoments::new(norm.width);
        let mut normalised = Vec::new();
        for rows in &sides.rows {
            let x = norm
                .normalize(rows)
                .map_err(forward(&walk.teachers[t].name))?;
            let x = values(&x).map_err(layer::host)?;
            moments.add_rows(&x).map_err(refused(t))?;
            normalised.push(x);
        }
        if walk.settings.stream == Stream::Merged {
            // Shift included, whether it is solved for or not: targets are what is missing of the teacher's output.
            let base = |batch: usize| {
                let scale = (walk.base.tensor(tap.weight)? + norm.offset)?;
                let y = norm.normalize(&sides.rows[batch])?.broadcast_mul(&scale)?;
                match tap.bias {
                    Some(bias) => Ok(y.broadcast_add(&walk.base.tensor(bias)?)?),
                    None => Ok(y),
                }
            };
            let rows = walk.targets(t, op.output(), op.residual, base)?;
            let mut sums = ChannelTargets::new(norm.width);
            for (target, x) in rows.iter().zip(&normalised) {
                let target = values(target).map_err(layer::host)?;
                sums.add_rows(&target, x).map_err(refused(t))?;
            }
            targets.push(sums);
        }
        inputs.push(moments);
    }
    let of = |weights: &dyn Weights,
              model: &str|
     -> Result<(Vec<f64>, Option<Vec<f64>>), NetworkError> {
        let scale = vector(weights, tap.weight, model)?;
        let shift = bias.map(|bias| vector(weights, bias, model)).transpose()?;
        Ok((scale, shift))
    };
    let base = of(&walk.base, "the base model")?;
    let update = |(scale, shift): (Vec<f64>, Option<Vec<f64>>)| {
        let shift = shift
            .zip(base.1.as_ref())
            .map(|(shift, base)| minus(&shift, base));
        (minus(&scale, &base.0), shift)
    };
    let prior = update(of(&Prior(walk.host), "the prior")?);
    let mut updates = Vec::new();
    for (weights, teacher) in walk.taught.iter().zip(walk.teachers) {
        updates.push(update(of(weights, &teacher.name)?));
    }
    let tasks: Vec<ChannelTask<'_>> = updates
        .iter()
        .zip(&inputs)
        .enumerate()
        .map(|(t, ((scale, shift), input))| ChannelTask {
            weight: walk.teachers[t].weight,
            scale,
            shift: shift.as_deref(),
            input,
            target: targets.get(t),
        })
        .collect();
    let ridge = match rule {
        Rule::Programme(programme) | Rule::Sparse { programme, .. } => match programme.ridge {
            Ridge::Relative(ridge) => ridge,
            Ridge::Auto => RIDGE,
        },
        _ => 0.0,
    };
    let prior = (prior.0.as_slice(), prior.1.as_deref());
    let solution = solve_channels(&tasks, Some(prior), ridge).map_err(fault)?;
    let mut tensors = vec![merged(walk, tap.weight, &solution.scale)?];
    if let (Some(bias), Some(shift)) = (bias, &solution.shift) {
        tensors.push(merged(walk, bias, shift)?);
    }
    Ok(Found {
        tensors,
        captured: solution.captured,
        ridge: Some(ridge),
        notes: notes(&solution.notes),
    })
}

/// A table: only the rows that a sample looked up change.
fn rows(
    walk: &StageWalk<'_>,
    tap: Tap<'_>,
    table: &Embedding,
    sides: &[Sides],
) -> Result<Found, NetworkError> {
    let fault = |problem| NetworkError::Layer {
        tensor: tap.weight.to_owned(),
        problem,
    };
    let mut ids: Vec<Vec<u32>> = Vec::new();
    for sides in sides {
        let mut own = Vec::new();
        for rows in &sides.rows {
            own.extend(
                rows.flatten_all()
                    .and_then(|ids| ids.to_vec1::<u32>())
                    .map_err(layer::host)?,
            );
        }
        ids.push(own);
    }
    let mut seen: Vec<u32> = ids.iter().flatten().copied().collect();
    seen.sort_unstable();
    seen.dedup();
    let place = |id: u32| seen.partition_point(|other| *other < id) as u32;
    let looked_up = |weights: &dyn Weights, model: &str| -> Result<Matrix, NetworkError> {
        let rows = weights.rows(tap.weight, &seen).map_err(forward(model))?;
        layer::matrix(&rows).map_err(forward(model))
    };
    let base = looked_up(&walk.base, "the base model")?;
    let mut updates = Vec::new();
    let mut counts = Vec::new();
    for ((weights, teacher), ids) in walk.taught.iter().zip(walk.teachers).zip(&ids) {
        let mut update = looked_up(weights, &teacher.name)?;
        update.add_scaled(-1.0, &base);
        updates.push(update);
        let mut count = RowCounts::new(seen.len());
        let places: Vec<u32> = ids.iter().map(|id| place(*id)).collect();
        count.add(&places).map_err(fault)?;
        counts.push(count);
    }
    let tasks: Vec<RowTask<'_>> = updates
        .iter()
        .zip(&counts)
        .zip(walk.teachers)
        .map(|((update, counts), teacher)| RowTask {
            weight: teacher.weight,
            update,
            counts,
        })
        .collect();
    let solution = solve_rows(&tasks, None).map_err(fault)?;
    let prior = walk.host.prior(tap.weight).map_err(NetworkError::Host)?;
    let mut all = values(&prior).map_err(layer::host)?;
    for (k, id) in seen.iter().enumerate() {
        let row = &mut all[*id as usize * table.width..][..table.width];
        for (j, x) in row.iter_mut().enumerate() {
            *x = (base.get(k, j) + solution.update.get(k, j)) as f32;
        }
    }
    let merged = Tensor::from_vec(all, prior.shape(), &Device::Cpu).map_err(layer::host)?;
    Ok(Found {
        tensors: vec![(tap.weight.to_owned(), merged)],
        captured: solution.captured,
        ridge: None,
        notes: vec![format!(
            "{} of {} rows were seen; the others are the prior's",
            seen.len(),
            table.rows
        )],
    })
}

fn summand(walk: &StageWalk<'_>, tap: Tap<'_>) -> Result<Found, NetworkError> {
    let base = vector(&walk.base, tap.weight, "the base model")?;
    let mut residuals = Vec::new();
    for (weights, teacher) in walk.taught.iter().zip(walk.teachers) {
        residuals.push(minus(&vector(weights, tap.weight, &teacher.name)?, &base));
    }
    let tasks: Vec<(f64, &[f64])> = walk
        .teachers
        .iter()
        .zip(&residuals)
        .map(|(teacher, residual)| (teacher.weight, residual.as_slice()))
        .collect();
    let (update, captured) = mean_residual(&tasks).map_err(|problem| NetworkError::Layer {
        tensor: tap.weight.to_owned(),
        problem,
    })?;
    Ok(Found {
        tensors: vec![merged(walk, tap.weight, &update)?],
        captured,
        ridge: None,
        notes: Vec::new(),
    })
}
