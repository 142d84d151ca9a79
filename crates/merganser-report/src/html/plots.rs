//! The plots of the page, from the report.

use std::collections::BTreeMap;

use minijinja::Value;
use serde::Serialize;

use super::safe;
use crate::groups::Group;
use crate::names::role;
use crate::plot::{self, Bar, Cell, Colours, Heat, Point, Positions, Series};
use crate::summary::average;
use crate::text::decimal;
use crate::{Accuracy, Method, Pairwise, Relation, Report, Score};

/// Kinds of tensors a map by kind and depth may have.
const MOST_ROLES: usize = 24;

/// A relation between tasks, drawn.
#[derive(Debug, Serialize)]
pub(super) struct Matrix {
    title: String,
    relation: &'static str,
    plot: Value,
    note: Option<String>,
}

/// References of accuracy plots.
fn references(report: &Report) -> Vec<(&'static str, f64)> {
    let Some(evaluation) = &report.evaluation else {
        return Vec::new();
    };
    let value = |accuracy: &Option<Accuracy>| accuracy.as_ref()?.average.value;
    let both = [
        ("base", value(&evaluation.base)),
        ("fine-tuned", value(&evaluation.individual)),
    ];
    let mut known: Vec<_> = both
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect();
    known.sort_by(|a, b| a.1.total_cmp(&b.1));
    known
}

/// Rows in falling order, what was not measured last.
fn ranked<'a>(
    report: &Report,
    series: &'a [Series],
    score: impl Fn(&Method) -> Score,
) -> Option<Vec<Bar<'a>>> {
    let methods = report.methods.iter().zip(series);
    let mut bars: Vec<Bar> = methods
        .map(|(method, series)| Bar {
            series,
            score: score(method),
        })
        .collect();
    let value = |bar: &Bar| bar.score.value.unwrap_or(f64::NEG_INFINITY);
    bars.sort_by(|a, b| value(b).total_cmp(&value(a)));
    let any = bars.iter().any(|bar| bar.score.value.is_some());
    any.then_some(bars)
}

pub(super) fn captured_bars(report: &Report, series: &[Series]) -> Option<Value> {
    let score = |method: &Method| Score {
        value: method.captured,
        ..Score::default()
    };
    let bars = ranked(report, series, score)?;
    let label = "captured energy of each method over the network";
    Some(safe(plot::bars(label, &bars, &[])))
}

pub(super) fn accuracy_bars(report: &Report, series: &[Series]) -> Option<Value> {
    let score = |method: &Method| method.accuracy.as_ref().map(|it| it.average);
    let mut bars = ranked(report, series, |method| score(method).unwrap_or_default())?;
    // A basis without a merged model cannot be evaluated; its row would say nothing.
    bars.retain(|bar| bar.score.value.is_some());
    let label = "mean accuracy of each method, with confidence intervals";
    Some(safe(plot::bars(label, &bars, &references(report))))
}

pub(super) fn scatter(report: &Report, series: &[Series]) -> Option<Value> {
    let methods = report.methods.iter().zip(series);
    let points: Vec<Point> = methods
        .filter_map(|(method, series)| {
            average(method)?;
            Some(Point {
                series,
                captured: method.captured?,
                accuracy: method.accuracy.as_ref()?.average,
            })
        })
        .collect();
    (points.len() > 1).then(|| safe(plot::scatter(&points, &references(report))))
}

pub(super) fn correlation(report: &Report) -> Option<String> {
    let coefficient = report.spearman?;
    let methods = report.captured_and_accuracy().len();
    let few = if methods < 6 {
        ": few methods, so take it as a hint"
    } else {
        ""
    };
    let output = match report.spearman_output {
        Some(coefficient) => format!(
            " With what they capture at the output of the network it is {} over {}.",
            decimal(Some(coefficient)),
            report.output_and_accuracy().len()
        ),
        None => String::new(),
    };
    Some(format!(
        "Spearman’s rank correlation is {} over {methods} methods{few}.{output}",
        decimal(Some(coefficient))
    ))
}

/// A heat map over depth before it is drawn.
pub(super) struct Map {
    pub(super) rows: Vec<String>,
    cells: Vec<Vec<Cell>>,
}

impl Map {
    /// The map, unless it has no value at all.
    fn new(rows: Vec<String>, cells: Vec<Vec<Cell>>) -> Option<Self> {
        let map = Self { rows, cells };
        map.values().next()?;
        Some(map)
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        self.cells.iter().flatten().filter_map(|cell| match cell {
            Cell::Value(value) => Some(*value),
            Cell::Absent | Cell::Missing => None,
        })
    }

    pub(super) fn draw(&self, label: &str, groups: &[Group], positions: &Positions) -> String {
        let columns: Vec<String> = groups.iter().map(|group| group.name.clone()).collect();
        let heat = Heat {
            label,
            rows: &self.rows,
            columns: &columns,
            cells: &self.cells,
            colours: Colours::captured(self.values()),
        };
        heat.over_depth(positions)
    }
}

pub(super) fn by_task(report: &Report, groups: &[Group]) -> Option<Map> {
    let tasks = report.tasks.iter().enumerate();
    let row = |task: usize| {
        let groups = groups.iter();
        groups.map(move |group| group.by_task.get(task).copied().flatten().into())
    };
    let (names, cells) = tasks
        .map(|(task, it)| (it.name.clone(), row(task).collect()))
        .unzip();
    Map::new(names, cells)
}

/// Captured energy of each kind of tensor that several blocks have.
pub(super) fn by_role(report: &Report, groups: &[Group]) -> Option<Map> {
    let chosen = report.chosen.as_ref()?;
    let places = groups.iter().enumerate();
    let places: BTreeMap<&str, usize> = places.map(|(k, it)| (it.name.as_str(), k)).collect();
    let mut rows: Vec<String> = Vec::new();
    let mut cells: BTreeMap<String, Vec<Cell>> = BTreeMap::new();
    for layer in &report.layers {
        let role = role(layer);
        let row = cells.entry(role.clone()).or_insert_with(|| {
            rows.push(role);
            vec![Cell::Absent; groups.len()]
        });
        if rows.len() > 4 * MOST_ROLES {
            return None;
        }
        let captured = layer.captured.get(chosen).copied().flatten();
        if let Some(&place) = places.get(layer.block.as_str()) {
            row[place] = captured.into();
        }
    }
    let present = |row: &[Cell]| row.iter().filter(|cell| **cell != Cell::Absent).count();
    rows.retain(|role| cells.get(role).is_some_and(|row| present(row) > 1));
    if rows.len() < 2 || rows.len() > MOST_ROLES {
        return None;
    }
    let cells = rows.iter().filter_map(|role| cells.remove(role)).collect();
    Map::new(rows, cells)
}

pub(super) fn pairwise(report: &Report) -> Vec<Matrix> {
    let names: Vec<String> = report.tasks.iter().map(|task| task.name.clone()).collect();
    if names.len() < 2 {
        return Vec::new();
    }
    let matrix = |it: &Pairwise| {
        let (relation, colours) = match it.relation {
            Relation::Cosine => ("cosine", Colours::Cosine),
            Relation::Conflict => ("conflict", Colours::Conflict),
        };
        let row = |row: &Vec<Option<f64>>| row.iter().map(|&value| value.into()).collect();
        let cells: Vec<Vec<Cell>> = it.values.iter().map(row).collect();
        let heat = Heat {
            label: &it.title,
            rows: &names,
            columns: &names,
            cells: &cells,
            colours,
        };
        Matrix {
            title: it.title.clone(),
            relation,
            plot: safe(heat.square()),
            note: it.note.clone(),
        }
    };
    report.pairwise.iter().map(matrix).collect()
}
