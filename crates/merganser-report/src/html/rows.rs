//! The rows of the tables of the page, as text.

use minijinja::Value;
use serde::Serialize;

use super::{chosen, safe};
use crate::groups::{task_mean, total_energy};
use crate::plot::{self, Series};
use crate::summary::FULL;
use crate::text::{MISSING, count, percent, score, shape, short, shorten};
use crate::{Accuracy, Layer, Method, MethodKind, Report, Task};

/// Rows of the table of all tensors: more make the page heavy, and are in the JSON.
pub(super) const MOST_ROWS: usize = 2000;

/// A method in numbers.
#[derive(Debug, Serialize)]
pub(super) struct MethodRow {
    swatch: Value,
    name: String,
    short: String,
    kind: &'static str,
    chosen: bool,
    captured: String,
    gap: String,
    /// Captured at the output, where any method's was measured.
    output: Option<String>,
    accuracy: String,
    normalised: String,
    tasks: Vec<String>,
    note: Option<String>,
}

/// A task in numbers.
#[derive(Debug, Serialize)]
pub(super) struct TaskRow {
    name: String,
    model: Option<String>,
    samples: String,
    tokens: String,
    weight: String,
    share: String,
    captured: String,
    base: String,
    chosen: String,
    individual: String,
}

/// A tensor in numbers.
#[derive(Debug, Serialize)]
pub(super) struct LayerRow {
    name: String,
    kind: String,
    shape: String,
    energy: String,
    share: String,
    captured: String,
    conflict: String,
    ridge: String,
    basis: String,
    notes: String,
}

pub(super) fn methods(report: &Report, series: &[Series]) -> Vec<MethodRow> {
    let full = report.methods.iter().find(|method| method.name == FULL);
    let full = full.and_then(|method| method.captured);
    let at_output = report.methods.iter().any(|method| method.output.is_some());
    let rows = report.methods.iter().zip(series);
    let row = |(method, series): (&Method, &Series)| {
        let accuracy = method.accuracy.clone().unwrap_or_default();
        let gap = full.zip(method.captured).map(|(full, own)| full - own);
        let tasks = (0..report.tasks.len()).map(|task| {
            let score = accuracy.tasks.get(task).copied();
            percent(score.and_then(|score| score.value))
        });
        MethodRow {
            swatch: safe(plot::swatch(series)),
            name: method.name.clone(),
            short: shorten(&method.name, 32),
            kind: match method.kind {
                MethodKind::Basis => "basis",
                MethodKind::Merge => "merge",
            },
            chosen: series.chosen,
            captured: percent(method.captured),
            gap: percent(gap),
            output: at_output.then(|| percent(method.output)),
            accuracy: score(accuracy.average),
            normalised: score(accuracy.normalised),
            tasks: tasks.collect(),
            note: method.note.clone(),
        }
    };
    rows.map(row).collect()
}

pub(super) fn tasks(report: &Report) -> Vec<TaskRow> {
    let layers: Vec<&Layer> = report.layers.iter().collect();
    let energies: Vec<Option<f64>> = (0..report.tasks.len())
        .map(|task| {
            let own = |layer: &&Layer| layer.energy_by_task.get(task).copied().flatten();
            let energies = layers.iter().filter_map(own);
            energies.reduce(|sum, energy| sum + energy)
        })
        .collect();
    let total: f64 = energies.iter().flatten().sum();
    let accuracy = |accuracy: Option<&Accuracy>, task: usize| {
        let score = accuracy.and_then(|it| it.tasks.get(task).copied());
        percent(score.and_then(|score| score.value))
    };
    let evaluation = report.evaluation.as_ref();
    let known = |value: Option<u64>| value.map_or_else(|| MISSING.to_owned(), count);
    let row = |(task, it): (usize, &Task)| TaskRow {
        name: it.name.clone(),
        model: it.model.clone(),
        samples: known(it.samples),
        tokens: known(it.tokens),
        weight: short(Some(it.weight.unwrap_or(1.0)).filter(|it| it.is_finite())),
        share: percent(
            energies[task]
                .map(|it| it / total)
                .filter(|it| it.is_finite()),
        ),
        captured: percent(task_mean(&layers, task)),
        base: accuracy(evaluation.and_then(|it| it.base.as_ref()), task),
        chosen: accuracy(chosen(report).and_then(|it| it.accuracy.as_ref()), task),
        individual: accuracy(evaluation.and_then(|it| it.individual.as_ref()), task),
    };
    report.tasks.iter().enumerate().map(row).collect()
}

/// All tensors in forward order; of very many, those where most energy is lost.
pub(super) fn layers(report: &Report) -> Vec<LayerRow> {
    let total = total_energy(&report.layers);
    let captured = |layer: &Layer| {
        let chosen = report.chosen.as_ref()?;
        layer.captured.get(chosen).copied().flatten()
    };
    let lost = |layer: &Layer| {
        let share = 1.0 - captured(layer).unwrap_or(0.0);
        layer.energy.unwrap_or(0.0) * share
    };
    let mut order: Vec<usize> = (0..report.layers.len()).collect();
    if order.len() > MOST_ROWS {
        order.sort_by(|&a, &b| lost(&report.layers[b]).total_cmp(&lost(&report.layers[a])));
        order.truncate(MOST_ROWS);
    }
    let row = |layer: &Layer| LayerRow {
        name: layer.name.clone(),
        kind: layer.kind.to_string(),
        shape: shape(&layer.shape),
        energy: short(layer.energy),
        share: percent(
            layer
                .energy
                .map(|it| it / total)
                .filter(|it| it.is_finite()),
        ),
        captured: percent(captured(layer)),
        conflict: percent(layer.conflict),
        ridge: short(layer.ridge),
        basis: layer.basis.clone().unwrap_or_default(),
        notes: layer.notes.join("; "),
    };
    order.iter().map(|&k| row(&report.layers[k])).collect()
}
