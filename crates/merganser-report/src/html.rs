//! The report as one page: the numbers and plots, laid out by `page.html`.
//!
//! The page asks for nothing: no font, no script, no image. A content security policy in its head
//! makes the browser refuse even what a name in the report might smuggle in.

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Output, State, Value, context, escape_formatter};
use serde::Serialize;

use crate::names::{role, short_blocks, short_tensors};
use crate::palette;
use crate::plot::{self, Bar, Cell, Colours, Heat, Point, Positions, Series};
use crate::summary::{self, FULL, Group, average, task_mean, tensors, total_energy};
use crate::text::{
    MISSING, count, counted, decimal, harmless, percent, score, shape, short, shorten,
};
use crate::{Accuracy, Layer, Method, MethodKind, Pairwise, Relation, Report, Result, Score};

/// Rows of the table of all tensors: more make the page heavy, and are in the JSON.
const MOST_ROWS: usize = 2000;

/// Kinds of tensors a map by kind and depth may have.
const MOST_ROLES: usize = 24;

impl Report {
    /// The report as one self-contained HTML file.
    ///
    /// It needs no network and no script, follows the reader's light or dark theme and prints on
    /// paper. All text of the report is escaped. Equal reports give equal bytes.
    ///
    /// # Errors
    /// [`Error::Page`](crate::Error::Page) if the page could not be laid out, which is a defect of
    /// merganser.
    pub fn to_html(&self) -> Result<String> {
        let report = self.completed();
        let page = Page::new(&report);
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        environment.set_syntax(syntax.trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_formatter(write_escaped);
        environment.add_template("page.html", include_str!("page.html"))?;
        let style = format!("{}{}", include_str!("page.css"), palette::style_sheet());
        // The rows of layers are made; there may be tens of thousands.
        let report = Report {
            layers: Vec::new(),
            ..report
        };
        Ok(environment.get_template("page.html")?.render(context! {
            style => safe(style),
            report => Value::from(Serde(report)),
            page => Value::from(Serde(page)),
        })?)
    }
}

/// What the template shows beyond the report itself.
#[derive(Debug, Serialize)]
struct Page {
    summary: Vec<String>,
    figures: Vec<Figure>,
    captured_bars: Option<Value>,
    accuracy_bars: Option<Value>,
    scatter: Option<Value>,
    correlation: Option<String>,
    methods: Vec<MethodRow>,
    positions: &'static str,
    depth: Option<Value>,
    shares: Option<Value>,
    by_task: Option<Value>,
    by_role: Option<Value>,
    pairwise: Vec<Matrix>,
    tasks: Vec<TaskRow>,
    layers: Vec<LayerRow>,
    layers_in_all: String,
    layers_cut: bool,
    fallbacks: String,
}

/// One of the large figures at the top.
#[derive(Debug, Serialize)]
struct Figure {
    value: String,
    name: String,
    detail: String,
}

#[derive(Debug, Serialize)]
struct MethodRow {
    swatch: Value,
    name: String,
    short: String,
    kind: &'static str,
    chosen: bool,
    captured: String,
    gap: String,
    accuracy: String,
    normalised: String,
    tasks: Vec<String>,
    note: Option<String>,
}

#[derive(Debug, Serialize)]
struct Matrix {
    title: String,
    relation: &'static str,
    plot: Value,
    note: Option<String>,
}

#[derive(Debug, Serialize)]
struct TaskRow {
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

#[derive(Debug, Serialize)]
struct LayerRow {
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

impl Page {
    fn new(report: &Report) -> Self {
        let series = plot::series(report);
        let groups = summary::blocks(&report.layers);
        let blocks = groups.len();
        let few = blocks < 2;
        // A network of one block is shown tensor by tensor.
        let (groups, short) = if few {
            (tensors(&report.layers), short_tensors(&report.layers))
        } else {
            let names: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
            let short = short_blocks(&names);
            (groups, short)
        };
        let by_task = by_task(report, &groups);
        let by_role = if few { None } else { by_role(report, &groups) };
        let maps = by_task.iter().chain(&by_role);
        let rows = maps.flat_map(|map| &map.rows);
        let positions = Positions::new(&groups, &short, rows);
        let heat = |label, map: Map| safe(map.draw(label, &groups, &positions));
        let several = groups.len() > 1;
        let chosen = report.chosen.as_deref();
        Self {
            summary: facts(report, blocks),
            figures: figures(report),
            captured_bars: captured_bars(report, &series),
            accuracy_bars: accuracy_bars(report, &series),
            scatter: scatter(report, &series),
            correlation: correlation(report),
            methods: methods(report, &series),
            positions: if few { "tensor" } else { "block" },
            depth: several.then(|| safe(plot::depth(&positions, &series))),
            shares: (several && groups.iter().any(|it| it.share.is_some()))
                .then(|| safe(plot::shares(&positions, chosen))),
            by_task: by_task.map(|map| heat("captured energy of each task over depth", map)),
            by_role: by_role
                .map(|map| heat("captured energy of each kind of tensor over depth", map)),
            pairwise: pairwise(report),
            tasks: tasks(report),
            layers: layers(report),
            layers_in_all: count(report.layers.len() as u64),
            layers_cut: report.layers.len() > MOST_ROWS,
            fallbacks: counted(report.fallbacks.len(), "tensor"),
        }
    }
}

/// Escapes as HTML wants it, and replaces characters that would turn the direction of writing.
fn write_escaped(
    output: &mut Output,
    state: &mut State,
    value: &Value,
) -> std::result::Result<(), minijinja::Error> {
    match value.as_str() {
        Some(text) if !value.is_safe() => {
            let keep = |c| {
                if c == '\n' || c == '\t' {
                    c
                } else {
                    harmless(c)
                }
            };
            let text: String = text.chars().map(keep).collect();
            escape_formatter(output, state, &Value::from(text))
        }
        _ => escape_formatter(output, state, value),
    }
}

fn safe(markup: String) -> Value {
    Value::from_safe_string(markup)
}

fn facts(report: &Report, blocks: usize) -> Vec<String> {
    let mut parts = Vec::new();
    if let Some(base) = &report.provenance.base {
        parts.push(format!("base model {base}"));
    }
    parts.push(counted(report.tasks.len(), "task"));
    parts.push(format!(
        "{} in {}",
        counted(report.layers.len(), "tensor"),
        counted(blocks, "block")
    ));
    let samples: Option<u64> = report.tasks.iter().map(|task| task.samples).sum();
    if let Some(samples) = samples.filter(|&samples| samples > 0) {
        parts.push(format!("{} calibration samples", count(samples)));
    }
    parts.extend(report.provenance.date.clone());
    parts
}

fn chosen(report: &Report) -> Option<&Method> {
    let name = report.chosen.as_ref()?;
    report.methods.iter().find(|method| &method.name == name)
}

fn figures(report: &Report) -> Vec<Figure> {
    let mut figures = Vec::new();
    let mut figure = |value: Option<f64>, name: String, detail: String| {
        if value.is_some() {
            let value = percent(value);
            figures.push(Figure {
                value,
                name,
                detail,
            });
        }
    };
    let full = report.methods.iter().find(|method| method.name == FULL);
    let full = full.and_then(|method| method.captured);
    if let Some(method) = chosen(report).filter(|method| method.name != FULL) {
        let detail = full
            .zip(method.captured)
            .filter(|(full, _)| *full > 0.0)
            .map(|(full, captured)| {
                format!("{} of the best possible", percent(Some(captured / full)))
            });
        figure(
            method.captured,
            format!("captured by {}", method.name),
            detail.unwrap_or_default(),
        );
    }
    figure(
        full,
        "captured at best".to_owned(),
        "by full, the basis of every matrix".to_owned(),
    );
    figure(
        full.map(|full| 1.0 - full),
        "irreducible conflict".to_owned(),
        "lost to any merge of these layers".to_owned(),
    );
    if let Some(accuracy) = chosen(report).and_then(|method| method.accuracy.as_ref()) {
        let detail = accuracy
            .normalised
            .value
            .map(|normalised| format!("{} of the fine-tuned models", percent(Some(normalised))));
        figure(
            accuracy.average.value,
            "mean accuracy".to_owned(),
            detail.unwrap_or_default(),
        );
    }
    figures
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

fn captured_bars(report: &Report, series: &[Series]) -> Option<Value> {
    let score = |method: &Method| Score {
        value: method.captured,
        ..Score::default()
    };
    let bars = ranked(report, series, score)?;
    let label = "captured energy of each method over the network";
    Some(safe(plot::bars(label, &bars, &[])))
}

fn accuracy_bars(report: &Report, series: &[Series]) -> Option<Value> {
    let score = |method: &Method| method.accuracy.as_ref().map(|it| it.average);
    let mut bars = ranked(report, series, |method| score(method).unwrap_or_default())?;
    // A basis without a merged model cannot be evaluated; its row would say nothing.
    bars.retain(|bar| bar.score.value.is_some());
    let label = "mean accuracy of each method, with confidence intervals";
    Some(safe(plot::bars(label, &bars, &references(report))))
}

fn scatter(report: &Report, series: &[Series]) -> Option<Value> {
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

fn correlation(report: &Report) -> Option<String> {
    let coefficient = report.spearman?;
    let methods = report.captured_and_accuracy().len();
    let few = if methods < 6 {
        ": few methods, so take it as a hint"
    } else {
        ""
    };
    Some(format!(
        "Spearman’s rank correlation is {} over {methods} methods{few}.",
        decimal(Some(coefficient))
    ))
}

fn methods(report: &Report, series: &[Series]) -> Vec<MethodRow> {
    let full = report.methods.iter().find(|method| method.name == FULL);
    let full = full.and_then(|method| method.captured);
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
            accuracy: score(accuracy.average),
            normalised: score(accuracy.normalised),
            tasks: tasks.collect(),
            note: method.note.clone(),
        }
    };
    rows.map(row).collect()
}

/// A heat map over depth before it is drawn.
struct Map {
    rows: Vec<String>,
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

    fn draw(&self, label: &str, groups: &[Group], positions: &Positions) -> String {
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

fn by_task(report: &Report, groups: &[Group]) -> Option<Map> {
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
fn by_role(report: &Report, groups: &[Group]) -> Option<Map> {
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

fn pairwise(report: &Report) -> Vec<Matrix> {
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

fn tasks(report: &Report) -> Vec<TaskRow> {
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
    let row = |(task, it): (usize, &crate::Task)| TaskRow {
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
fn layers(report: &Report) -> Vec<LayerRow> {
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
