//! The report as one page: the numbers and plots, laid out by `page.html`.
//!
//! The page asks for nothing: no font, no script, no image. A content security policy in its head
//! makes the browser refuse even what a name in the report might smuggle in.

mod plots;
mod rows;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Output, State, Value, context, escape_formatter};
use serde::Serialize;

use self::plots::{Map, Matrix};
use self::rows::{LayerRow, MOST_ROWS, MethodRow, TaskRow};
use crate::groups::{self, tensors};
use crate::names::{short_blocks, short_tensors};
use crate::palette;
use crate::plot::{self, Positions};
use crate::summary::FULL;
use crate::text::{count, counted, harmless, percent};
use crate::{Method, Report, Result};

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

impl Page {
    fn new(report: &Report) -> Self {
        let series = plot::series(report);
        let groups = groups::blocks(&report.layers);
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
        let by_task = plots::by_task(report, &groups);
        let by_role = if few {
            None
        } else {
            plots::by_role(report, &groups)
        };
        let maps = by_task.iter().chain(&by_role);
        let rows = maps.flat_map(|map| &map.rows);
        let positions = Positions::new(&groups, &short, rows);
        let heat = |label, map: Map| safe(map.draw(label, &groups, &positions));
        let several = groups.len() > 1;
        let chosen = report.chosen.as_deref();
        Self {
            summary: facts(report, blocks),
            figures: figures(report),
            captured_bars: plots::captured_bars(report, &series),
            accuracy_bars: plots::accuracy_bars(report, &series),
            scatter: plots::scatter(report, &series),
            correlation: plots::correlation(report),
            methods: rows::methods(report, &series),
            positions: if few { "tensor" } else { "block" },
            depth: several.then(|| safe(plot::depth(&positions, &series))),
            shares: (several && groups.iter().any(|it| it.share.is_some()))
                .then(|| safe(plot::shares(&positions, chosen))),
            by_task: by_task.map(|map| heat("captured energy of each task over depth", map)),
            by_role: by_role
                .map(|map| heat("captured energy of each kind of tensor over depth", map)),
            pairwise: plots::pairwise(report),
            tasks: rows::tasks(report),
            layers: rows::layers(report),
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
