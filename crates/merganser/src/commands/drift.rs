//! `merganser drift`: what moved between two versions of an embedding model, and how to go on with the index of the old one.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use merganser::data::{VectorFile, read_labels, write_numbers};
use merganser::run::RunError;
use merganser::upkeep::drift::{
    Anchors, Diagnostics, Direction, Drift, FitKind, FitOptions, Outcome, Trial,
};
use merganser::upkeep::retrieval::Scoring;
use merganser::upkeep::{Error, Matrix};
use merganser::{Failure, upkeep};
use serde_json::{Value, json};

use super::protos::Protos;
use crate::output::{Output, result};
use crate::table::table;

/// Keep an index in use when its embedding model changes.
#[derive(Debug, Args)]
#[command(
    after_help = "Vectors are read from .npy, .safetensors and .parquet, one a row; FILE#NAME names a tensor or column.\nA drift is always new - old. docs/drift.md explains the formulas and the file."
)]
pub(crate) struct DriftArguments {
    #[command(subcommand)]
    pub(crate) what: What,
}

#[derive(Debug, Subcommand)]
pub(crate) enum What {
    /// Measure the drift on the same texts or images, embedded by both versions
    Fit(Fit),
    /// Take a file of vectors to the other version's space
    Apply(Apply),
    /// Make one drift of several that follow on each other
    Chain(Chain),
    /// What to add to the scores of stored documents, where queries cannot be changed
    Bias(Bias),
    /// Show drifts, and what they do for search on labelled queries
    Report(Report),
    /// Carry means of classes whose data are gone to the space of a newer encoder
    Protos(Box<Protos>),
}

/// Fit a drift.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/drift:\n  merganser drift fit index.safetensors#calib_1_old index.safetensors#calib_1_new -o /tmp/v0-v1.safetensors --from v0 --to v1\n  merganser drift fit index.safetensors#calib_1_old index.safetensors#calib_1_new -o /tmp/affine.safetensors --kind affine\n\nRow i of both files is the same text. 100 to 1000 of them are enough for a shift; a map of d-dimensional vectors wants\nseveral times d. What is said about held-out anchors comes from five folds."
)]
pub(crate) struct Fit {
    /// The anchors' vectors by the old version
    pub(crate) old: String,
    /// The same anchors' vectors by the new version
    pub(crate) new: String,
    /// Where the drift goes
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Name of the old version
    #[arg(long, value_name = "NAME", default_value = "old")]
    pub(crate) from: String,
    /// Name of the new version
    #[arg(long, value_name = "NAME", default_value = "new")]
    pub(crate) to: String,
    /// The kind of map
    #[arg(long, value_enum, default_value_t = Kind::Auto)]
    pub(crate) kind: Kind,
    /// For --kind clusters: how many
    #[arg(long, value_name = "K", default_value_t = 8)]
    pub(crate) clusters: usize,
    /// For --kind affine: strength of the ridge, relative to the anchors' variance [default: chosen on held-out anchors]
    #[arg(long, value_name = "X")]
    pub(crate) ridge: Option<f64>,
    /// Whether vectors are scaled to length 1 [default: where all have that length already]
    #[arg(long, value_name = "BOOL")]
    pub(crate) unit: Option<bool>,
    /// Replace a file that is there
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Kinds of maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// The simplest that is not clearly worse than another on held-out anchors
    Auto,
    /// One vector: the mean of new - old
    Shift,
    /// A rotation and a vector
    Orthogonal,
    /// A matrix and a vector
    Affine,
    /// A vector for each part of the old space
    Clusters,
}

/// Apply a drift.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/drift:\n  merganser drift apply v0-v1.safetensors index.safetensors#q_new -o /tmp/queries.safetensors --to v0      queries, for an old index\n  merganser drift apply v0-v1.safetensors index.safetensors#doc_embeddings -o /tmp/moved.safetensors --to v1      an index, moved\n\nThe file (.npy, .safetensors, .parquet) is read, changed and written block by block, by all threads; other columns and tensors are copied."
)]
pub(crate) struct Apply {
    /// The drift, as `merganser drift fit` or `chain` writes it
    pub(crate) drift: PathBuf,
    /// The vectors
    pub(crate) vectors: String,
    /// Where they go; the same format
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Whose space they go to: `old`, `new`, or the name of a version
    #[arg(long, value_name = "VERSION")]
    pub(crate) to: String,
    /// Whether they come out of length 1 [default: where the drift is of unit vectors]
    #[arg(long, value_name = "BOOL")]
    pub(crate) unit: Option<bool>,
    /// Replace a file that is there
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Chain drifts.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/drift:\n  merganser drift chain v0-v1.safetensors v1-v2.safetensors -o /tmp/v0-v2.safetensors\n\nShifts add up, rotations and affine maps compose; drifts of clusters cannot be chained."
)]
pub(crate) struct Chain {
    /// Drifts from the oldest version to the newest
    #[arg(required = true)]
    pub(crate) drifts: Vec<PathBuf>,
    /// Where the drift goes
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Compute biases of documents.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/drift:\n  merganser drift bias v0-v1.safetensors index.safetensors#doc_embeddings -o /tmp/bias.npy\n\nOne number a document, -drift.d: added to its dot product with a query of the new model, it gives the score of the\ncompensated query."
)]
pub(crate) struct Bias {
    /// A drift of kind shift
    pub(crate) drift: PathBuf,
    /// Documents of the old version
    pub(crate) documents: String,
    /// Where the numbers go: .npy or .safetensors
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Report on drifts.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/drift:\n  merganser drift report v0-v1.safetensors v1-v2.safetensors\n  merganser drift report v0-v1.safetensors v1-v2.safetensors --queries index.safetensors#q_new --query-labels index.safetensors#qrels_topic_query \\\n    --documents index.safetensors#doc_embeddings --document-labels index.safetensors#qrels_topic_doc --versions index.safetensors#doc_version\n\nDocuments with the label of the query count as relevant."
)]
pub(crate) struct Report {
    /// Drifts from the oldest version to the newest
    #[arg(required = true)]
    pub(crate) drifts: Vec<PathBuf>,
    /// Queries embedded by the newest version
    #[arg(long, value_name = "FILE", requires_all = ["query_labels", "documents", "document_labels"])]
    pub(crate) queries: Option<String>,
    /// A whole number a query: .npy, a tensor, or a column of a table
    #[arg(long, value_name = "FILE", requires = "queries")]
    pub(crate) query_labels: Option<String>,
    /// Documents as they are in the index
    #[arg(long, value_name = "FILE", requires = "queries")]
    pub(crate) documents: Option<String>,
    /// A whole number a document
    #[arg(long, value_name = "FILE", requires = "queries")]
    pub(crate) document_labels: Option<String>,
    /// The version that embedded each document, 0 for the oldest [default: all are of the oldest]
    #[arg(long, value_name = "FILE", requires = "queries")]
    pub(crate) versions: Option<String>,
    /// The same documents embedded by the newest version, to compare with
    #[arg(long, value_name = "FILE", requires = "queries")]
    pub(crate) reindexed: Option<String>,
    /// How many documents are looked at
    #[arg(long, short, value_name = "N", default_value_t = 10)]
    pub(crate) k: usize,
    /// Score by dot product instead of cosine
    #[arg(long, requires = "queries")]
    pub(crate) dot: bool,
}

/// What a file or the command line holds is bad input; a disk that fails is a failure.
pub(crate) fn failure(error: Error) -> Failure {
    if error.is_of_system() {
        Failure::Run(RunError::Read(Box::new(error)))
    } else {
        Failure::Usage(error.to_string())
    }
}

fn read(given: &str) -> Result<VectorFile, Failure> {
    VectorFile::open(given).map_err(|error| failure(error.into()))
}

/// All vectors of a file.
pub(crate) fn matrix(given: &str) -> Result<Matrix, Failure> {
    let file = read(given)?;
    let all = file.all().map_err(|error| failure(error.into()))?;
    Matrix::new(file.rows(), file.dim(), all).map_err(|error| failure(error.into()))
}

pub(crate) fn labels(given: &str) -> Result<Vec<usize>, Failure> {
    read_labels(given).map_err(|error| failure(error.into()))
}

pub(crate) fn run(arguments: &DriftArguments, output: &Output) -> Result<(), Failure> {
    match &arguments.what {
        What::Fit(arguments) => fit(arguments, output),
        What::Apply(arguments) => apply(arguments, output),
        What::Chain(arguments) => chain(arguments, output),
        What::Bias(arguments) => bias(arguments, output),
        What::Report(arguments) => report(arguments, output),
        What::Protos(arguments) => super::protos::run(arguments, output),
    }
}

fn fit(arguments: &Fit, output: &Output) -> Result<(), Failure> {
    if arguments.from == arguments.to {
        return Err(Failure::Usage(format!(
            "both versions are called `{}`; name them apart with --from and --to",
            arguments.from
        )));
    }
    let options = FitOptions {
        kind: match arguments.kind {
            Kind::Auto => FitKind::Auto,
            Kind::Shift => FitKind::Shift,
            Kind::Orthogonal => FitKind::Orthogonal,
            Kind::Affine => FitKind::Affine,
            Kind::Clusters => FitKind::Clusters(arguments.clusters),
        },
        ridge: arguments.ridge,
    };
    let anchors = Anchors::new(
        matrix(&arguments.old)?,
        matrix(&arguments.new)?,
        arguments.unit,
    )
    .map_err(failure)?;
    let (drift, found) = anchors
        .fit(&arguments.from, &arguments.to, &options)
        .map_err(failure)?;
    drift
        .write(&arguments.output, arguments.overwrite)
        .map_err(failure)?;
    if output.json {
        Output::event(&json!({
            "event": "finished",
            "out": arguments.output.to_string_lossy(),
            "drift": described(&drift),
            "diagnostics": found,
        }));
        return Ok(());
    }
    if !output.quiet {
        result(&diagnosis(&drift, &found));
    }
    output.note(&format!(
        "wrote the drift from {} to {} into {}",
        drift.from,
        drift.to,
        arguments.output.display()
    ));
    Ok(())
}

/// The diagnostics for people.
fn diagnosis(drift: &Drift, found: &Diagnostics) -> String {
    let number = |x: f64| format!("{x:.4}");
    let mut lines = vec![
        ("kind", drift.map.kind().to_owned()),
        (
            "anchors",
            format!(
                "{} of {} elements{}",
                found.anchors,
                found.dim,
                if found.unit { ", of length 1" } else { "" }
            ),
        ),
    ];
    let mut given = |name, value: Option<f64>| lines.extend(value.map(|x| (name, number(x))));
    given("spread of the anchors", Some(found.spread));
    given("drift (root mean square)", found.drift);
    given("length of the mean drift", found.shift);
    given("its standard error", found.standard_error);
    given("share explained by the mean", found.share);
    given("cosine of new and old", found.cosine_before);
    given("the same after the shift", found.cosine_after);
    given("squared error left / spread", found.error);
    lines.push(("advice", found.advice.to_string()));
    let mut text = String::new();
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<30}{value}");
    }
    if !found.held_out.is_empty() {
        text.push_str("\non anchors held out:\n");
        let head = ["kind", "drift left", "cosine", "ridge"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(found.held_out.iter().map(|held| {
            vec![
                held.kind.to_owned(),
                format!("{:.1} %", 100.0 * held.left),
                number(held.cosine),
                held.ridge.map_or("–".into(), |ridge| ridge.to_string()),
            ]
        }));
        text.push_str(&table(&rows));
    }
    text
}

/// A drift as JSON.
fn described(drift: &Drift) -> Value {
    json!({
        "kind": drift.map.kind(),
        "from": drift.from,
        "to": drift.to,
        "dim": drift.map.dim(),
        "unit": drift.unit,
        "anchors": drift.anchors,
        "measured": drift.measured,
    })
}

fn direction(drift: &Drift, to: &str) -> Result<Direction, Failure> {
    // Names go first: somebody may call the version before last `new`.
    match to {
        to if to == drift.from => Ok(Direction::ToOld),
        to if to == drift.to => Ok(Direction::ToNew),
        "old" => Ok(Direction::ToOld),
        "new" => Ok(Direction::ToNew),
        _ => Err(Failure::Usage(format!(
            "--to {to} is no version of this drift, which goes from `{}` to `{}`; give one of them, or old or new",
            drift.from, drift.to
        ))),
    }
}

fn apply(arguments: &Apply, output: &Output) -> Result<(), Failure> {
    let drift = Drift::read(&arguments.drift).map_err(failure)?;
    let direction = direction(&drift, &arguments.to)?;
    let vectors = read(&arguments.vectors)?;
    let started = std::time::Instant::now();
    drift
        .apply(
            &vectors,
            direction,
            arguments.unit,
            &arguments.output,
            arguments.overwrite,
        )
        .map_err(failure)?;
    let seconds = started.elapsed().as_secs_f64();
    let (version, space) = match direction {
        Direction::ToOld => (&drift.from, "old"),
        Direction::ToNew => (&drift.to, "new"),
    };
    if output.json {
        Output::event(&json!({
            "event": "finished",
            "out": arguments.output.to_string_lossy(),
            "to": version,
            "space": space,
            "rows": vectors.rows(),
            "dim": vectors.dim(),
            "seconds": seconds,
        }));
    } else {
        output.note(&format!(
            "took {} vectors to the {space} space ({version}), into {}, in {seconds:.1} s",
            vectors.rows(),
            arguments.output.display()
        ));
    }
    Ok(())
}

fn drifts(paths: &[PathBuf]) -> Result<Vec<Drift>, Failure> {
    paths
        .iter()
        .map(|path| Drift::read(path).map_err(failure))
        .collect()
}

fn finished(out: &Path, what: &str, mut event: Value, output: &Output) {
    if output.json {
        event["event"] = "finished".into();
        event["out"] = out.to_string_lossy().into();
        Output::event(&event);
    } else {
        output.note(&format!("{what} into {}", out.display()));
    }
}

fn chain(arguments: &Chain, output: &Output) -> Result<(), Failure> {
    let all = Drift::chain(&drifts(&arguments.drifts)?).map_err(failure)?;
    all.write(&arguments.output, arguments.overwrite)
        .map_err(failure)?;
    let what = format!(
        "wrote the drift from {} to {}, {},",
        all.from,
        all.to,
        all.map.kind()
    );
    finished(
        &arguments.output,
        &what,
        json!({ "drift": described(&all) }),
        output,
    );
    Ok(())
}

fn bias(arguments: &Bias, output: &Output) -> Result<(), Failure> {
    let drift = Drift::read(&arguments.drift).map_err(failure)?;
    let bias = drift.bias(&read(&arguments.documents)?).map_err(failure)?;
    write_numbers(&arguments.output, arguments.overwrite, "bias", &bias)
        .map_err(|error| failure(error.into()))?;
    finished(
        &arguments.output,
        &format!("wrote the biases of {} documents", bias.len()),
        json!({ "documents": bias.len() }),
        output,
    );
    Ok(())
}

fn report(arguments: &Report, output: &Output) -> Result<(), Failure> {
    let drifts = drifts(&arguments.drifts)?;
    let outcome = match (
        &arguments.queries,
        &arguments.query_labels,
        &arguments.documents,
        &arguments.document_labels,
    ) {
        (Some(queries), Some(query_labels), Some(documents), Some(document_labels)) => {
            let optional = |given: &Option<String>| given.as_deref().map(read).transpose();
            let reindexed = optional(&arguments.reindexed)?;
            let versions = arguments.versions.as_deref().map(labels).transpose()?;
            let trial = Trial {
                queries: &read(queries)?,
                query_labels: &labels(query_labels)?,
                documents: &read(documents)?,
                document_labels: &labels(document_labels)?,
                versions: versions.as_deref(),
                reindexed: reindexed.as_ref(),
                scoring: if arguments.dot {
                    Scoring::Dot
                } else {
                    Scoring::Cosine
                },
                k: arguments.k,
            };
            Some(trial.run(&drifts).map_err(failure)?)
        }
        _ => None,
    };
    if output.json {
        Output::event(&json!({
            "drifts": drifts.iter().map(described).collect::<Vec<_>>(),
            "k": outcome.map(|_| arguments.k),
            "search": outcome,
        }));
        return Ok(());
    }
    let head = [
        "drift",
        "kind",
        "anchors",
        "|mean|",
        "± error",
        "share of mean",
        "error left",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(drifts.iter().map(|drift: &upkeep::drift::Drift| {
        let measured = |key: &str| {
            drift
                .measured
                .get(key)
                .map_or("–".to_owned(), |x| format!("{x:.4}"))
        };
        vec![
            format!("{} → {}", drift.from, drift.to),
            drift.map.kind().to_owned(),
            drift.anchors.to_string(),
            measured("shift"),
            measured("standard_error"),
            measured("share"),
            measured("error"),
        ]
    }));
    let mut text = table(&rows);
    if let Some(outcome) = &outcome {
        text.push('\n');
        text.push_str(&searches(outcome, arguments.k));
    }
    result(&text);
    Ok(())
}

fn searches(outcome: &Outcome, k: usize) -> String {
    let mut rows = vec![vec![
        "search".to_owned(),
        format!("nDCG@{k}"),
        format!("recall@{k}"),
        "contrastive".to_owned(),
        "queries".to_owned(),
    ]];
    for (name, quality) in [
        ("as it is", outcome.as_is),
        ("compensated", Some(outcome.compensated)),
        ("embedded again", outcome.reindexed),
    ] {
        rows.extend(quality.map(|quality| {
            vec![
                name.to_owned(),
                format!("{:.4}", quality.ndcg),
                format!("{:.4}", quality.recall),
                quality
                    .contrastive_loss
                    .map_or("–".into(), |loss| format!("{loss:.4}")),
                quality.queries.to_string(),
            ]
        }));
    }
    table(&rows)
}
