//! `merganser stats report`: what statistics of classes are worth, and how far two of them lie apart.

use std::path::Path;

use clap::Args;
use merganser::Failure;
use merganser::data::{Arrays, VectorFile, file_and_name, read_labels};
use merganser::upkeep::heads::Pool;
use merganser::upkeep::report::{Changes, Report};
use merganser::upkeep::stats::collapse::Collapse;
use merganser::upkeep::stats::{BuildOptions, Stats};
use serde_json::json;

use crate::commands::drift::failure;
use crate::output::{Output, result};
use crate::table::table;

/// Most classes that a table shows; JSON has all.
const SHOWN: usize = 20;

/// Report on statistics.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/heads:\n  merganser stats report stats-v1.safetensors                         collapse, rank and condition of each class\n  merganser stats report old.npy --labels labels.npy                  the same of features\n  merganser stats report stats-v1.safetensors stats-v2.safetensors    and how far each class lies from that of a second file\n\nThe score is -β where every direction varies by β or more, 0 where none does: the anti-collapse loss of AdaGauss."
)]
pub(crate) struct ReportArguments {
    /// Statistics, or a file of features; a second one is compared with the first
    #[arg(required = true, num_args = 1..=2, value_name = "STATS")]
    pub(crate) given: Vec<String>,
    /// The class of each feature, where features are given; may be named for each of two files
    #[arg(long, value_name = "FILE")]
    pub(crate) labels: Vec<String>,
    /// The standard deviation from which on a direction is healthy
    #[arg(long, value_name = "B", default_value_t = 1.0)]
    pub(crate) beta: f64,
    /// For the divergence of two files: so many times the mean of its diagonal is added to each covariance's diagonal
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub(crate) shrink: f64,
    /// Number of classes [default: as the largest class number says]
    #[arg(long, value_name = "N")]
    pub(crate) classes: Option<usize>,
}

pub(crate) fn run(arguments: &ReportArguments, output: &Output) -> Result<(), Failure> {
    if arguments.labels.len() > arguments.given.len() {
        return Err(Failure::Usage(format!(
            "{} files of labels for {} of features; there is one for each, or one for both",
            arguments.labels.len(),
            arguments.given.len()
        )));
    }
    let labels = |at: usize| arguments.labels.get(at).or(arguments.labels.first());
    let pool = |at: usize| pool(&arguments.given[at], labels(at), arguments.classes);
    let first = pool(0)?;
    let report = Report::of(&first, arguments.beta).map_err(failure)?;
    let changes = if arguments.given.len() > 1 {
        let changes = Changes::between(&first, &pool(1)?, arguments.shrink);
        Some(changes.map_err(failure)?)
    } else {
        None
    };
    if output.json {
        Output::event(&json!({
            "event": "report",
            "beta": arguments.beta,
            "report": report,
            "changes": changes,
        }));
        return Ok(());
    }
    let more = changes.iter().flat_map(|changes| &changes.notes);
    for note in report.notes.iter().chain(more) {
        output.note(&format!("note: {note}"));
    }
    result(&text(&report, changes.as_ref()));
    Ok(())
}

/// Statistics of a file, or of the features in it. Features without labels are of one class.
fn pool(given: &str, labels: Option<&String>, classes: Option<usize>) -> Result<Pool, Failure> {
    let (path, name) = file_and_name(given);
    let stats = if name.is_none() && is_statistics(path)? {
        Stats::read(path).map_err(failure)?
    } else {
        let features = VectorFile::open(given).map_err(|error| failure(error.into()))?;
        let labels = match labels {
            Some(labels) => read_labels(labels).map_err(|error| failure(error.into()))?,
            None => vec![0; features.rows()],
        };
        let options = BuildOptions {
            cov: true,
            ..BuildOptions::default()
        };
        Stats::build(&features, &labels, &options).map_err(failure)?
    };
    Pool::new(vec![stats], classes).map_err(failure)
}

/// Whether a file holds statistics: the mean and the count of classes.
fn is_statistics(path: &Path) -> Result<bool, Failure> {
    if path.extension().is_none_or(|e| e != "safetensors") {
        return Ok(false);
    }
    let arrays = Arrays::open(path).map_err(|error| failure(error.into()))?;
    Ok(arrays.contains("mean") && arrays.contains("count"))
}

fn text(report: &Report, changes: Option<&Changes>) -> String {
    let row = |name: String, count: String, collapse: Option<&Collapse>| {
        let none = || "–".to_owned();
        let mut row = vec![name, count];
        match collapse {
            None => row.extend(std::iter::repeat_with(none).take(5)),
            Some(it) => row.extend([
                format!("{:.4}", it.score),
                it.collapsed.to_string(),
                it.rank.to_string(),
                format!("{:.1}", it.effective_rank),
                it.condition.map_or_else(none, |x| format!("{x:.2e}")),
            ]),
        }
        row
    };
    let header = [
        "class",
        "features",
        "score",
        "collapsed",
        "rank",
        "effective rank",
        "condition",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for it in report.classes.iter().take(SHOWN) {
        let count = it.count.to_string();
        rows.push(row(it.class.to_string(), count, it.collapse.as_ref()));
    }
    let total = || report.features.to_string();
    rows.push(row(
        "within classes".into(),
        total(),
        report.within.as_ref(),
    ));
    rows.push(row("all".into(), total(), report.all.as_ref()));
    let mut text = table(&rows);
    if report.classes.len() > SHOWN {
        text.push_str(&format!(
            "the first {SHOWN} of {} classes; --json has all\n",
            report.classes.len()
        ));
    }
    if let Some(changes) = changes {
        let number = |x: Option<f64>| x.map_or("–".to_owned(), |x| format!("{x:.4}"));
        let header = ["class", "|μ − μ′|", "|Σ − Σ′|", "divergence"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        for it in changes.classes.iter().take(SHOWN) {
            rows.push(vec![
                it.class.to_string(),
                number(Some(it.mean)),
                number(it.covariance),
                number(it.divergence),
            ]);
        }
        text.push('\n');
        text.push_str(&table(&rows));
    }
    text
}
