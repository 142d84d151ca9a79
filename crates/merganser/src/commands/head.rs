//! `merganser head`: a classifier from statistics of classes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use merganser::Failure;
use merganser::upkeep::heads::{Found, Gamma, Gaussian, GaussianOptions, Head, Kind, Pool};
use merganser::upkeep::stats::Stats;
use serde_json::json;

use super::drift::failure;
use crate::output::{Output, result};
use crate::table::table;

/// Make a classifier from statistics of classes.
#[derive(Debug, Args)]
#[command(
    after_help = "Statistics are files that `merganser stats build` writes, one a client, shard or round, or folders of them.\nThe head runs under `merganser evaluate --head`. docs/heads.md explains the formulas and both files."
)]
pub(crate) struct HeadArguments {
    #[command(subcommand)]
    pub(crate) what: What,
}

#[derive(Debug, Subcommand)]
pub(crate) enum What {
    /// FedCOF: ridge regression on covariances estimated from the clients' means
    Fedcof(FedCof),
    /// Nearest class mean
    Ncm(Ncm),
    /// Ridge regression on all features, from their Gram or covariance matrices
    Ridge(Ridge),
    /// Linear discriminant analysis: Gaussian classes of one covariance
    #[command(alias = "lda")]
    Bayes(Bayes),
    /// Gaussian classes, each with a covariance of its own: log-likelihoods
    #[command(alias = "qda")]
    Gaussian(GaussianArguments),
    /// Gaussian classes by distance alone, as AdaGauss classifies
    Adagauss(AdaGauss),
}

/// What every head needs.
#[derive(Debug, Args)]
pub(crate) struct Given {
    /// Files of statistics, or folders of such files
    #[arg(required = true)]
    pub(crate) stats: Vec<PathBuf>,
    /// Where the head goes: safetensors, for `merganser evaluate --head`
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Number of classes [default: as the largest class number says]
    #[arg(long, value_name = "N")]
    pub(crate) classes: Option<usize>,
    /// Replace a file that is there
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// FedCOF.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/heads:\n  merganser head fedcof clients -o /tmp/head.safetensors\n  merganser head fedcof clients -o /tmp/head-1.safetensors --gamma 1\n\nWhoever sends means and counts shows them: this is no protection of privacy by itself."
)]
pub(crate) struct FedCof {
    #[command(flatten)]
    pub(crate) given: Given,
    /// What is added to the covariances: a number, `auto` for the mean variance within classes, `auto*0.1` for a tenth of it
    #[arg(long, value_name = "G", default_value = "auto", value_parser = gamma)]
    pub(crate) gamma: Gamma,
}

/// Nearest class mean.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/heads:\n  merganser head ncm clients -o /tmp/head.safetensors"
)]
pub(crate) struct Ncm {
    #[command(flatten)]
    pub(crate) given: Given,
}

/// Ridge regression.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/heads:\n  merganser head ridge clients -o /tmp/head.safetensors --lambda 0.01\n\nEvery file needs `gram` or `cov` (merganser stats build --gram)."
)]
pub(crate) struct Ridge {
    #[command(flatten)]
    pub(crate) given: Given,
    /// Strength of the ridge
    #[arg(long, value_name = "X", default_value_t = 0.01)]
    pub(crate) lambda: f64,
}

/// Linear discriminant analysis.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/heads:\n  merganser head bayes clients -o /tmp/head.safetensors --shrink 0.1\n\nThe covariance is exact where every file has `cov`, otherwise estimated from means as FedCOF does."
)]
pub(crate) struct Bayes {
    #[command(flatten)]
    pub(crate) given: Given,
    /// Added to the pooled covariance's diagonal: so many times its mean
    #[arg(long, value_name = "X", default_value_t = 0.1)]
    pub(crate) shrink: f64,
}

/// Gaussian classes.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/heads:\n  merganser head gaussian stats-v1.safetensors -o /tmp/head.safetensors\n  merganser head gaussian stats-v1.safetensors -o /tmp/head-0.safetensors --pooled 0 --shrink 0.05      for many features a class\n\nCovariances are exact where every file has `cov`, otherwise estimated from means as FedCOF does. With --pooled 1 it is\n`head bayes`."
)]
pub(crate) struct GaussianArguments {
    #[command(flatten)]
    pub(crate) given: Given,
    /// Added to the diagonal of each covariance: so many times its mean
    #[arg(long, value_name = "X", default_value_t = 0.1)]
    pub(crate) shrink: f64,
    /// Share of the covariance within classes in that of each class, 0 to 1
    #[arg(long, value_name = "A", default_value_t = 0.8)]
    pub(crate) pooled: f64,
}

/// AdaGauss.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/heads:\n  merganser head adagauss stats-v1.safetensors -o /tmp/head.safetensors\n  merganser head adagauss stats-v1.safetensors -o /tmp/head-n.safetensors --normalize\n\nThe classifier of the paper: no determinant, no prior. Where classes differ in volume, `head gaussian` is better."
)]
pub(crate) struct AdaGauss {
    #[command(flatten)]
    pub(crate) given: Given,
    /// Added to the diagonal of each covariance: so many times its mean
    #[arg(long, value_name = "X", default_value_t = 3.0)]
    pub(crate) shrink: f64,
    /// Scale covariances to correlation matrices, features and means to length 1
    #[arg(long)]
    pub(crate) normalize: bool,
}

/// Reads γ.
fn gamma(text: &str) -> Result<Gamma, String> {
    let number = |text: &str| {
        text.parse::<f64>()
            .ok()
            .filter(|x| x.is_finite() && *x >= 0.0)
            .ok_or_else(|| format!("'{text}' is no number from 0; use auto, auto*0.1 or 1"))
    };
    match text.strip_prefix("auto") {
        Some("") => Ok(Gamma::Auto(1.0)),
        Some(rest) => number(rest.strip_prefix('*').unwrap_or(text)).map(Gamma::Auto),
        None => number(text).map(Gamma::Fixed),
    }
}

/// The files that are named, or lie in the folders that are.
pub(crate) fn files(given: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for path in given {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).map_err(|error| {
            Failure::Usage(format!(
                "cannot read the folder `{}`: {error}",
                path.display()
            ))
        })?;
        let before = files.len();
        for entry in entries {
            let entry = entry.map_err(|error| {
                Failure::Usage(format!(
                    "cannot read the folder `{}`: {error}",
                    path.display()
                ))
            })?;
            let found = entry.path();
            if found.extension().is_some_and(|e| e == "safetensors") {
                files.push(found);
            }
        }
        files[before..].sort();
        if files.len() == before {
            return Err(Failure::Usage(format!(
                "the folder `{}` holds no .safetensors file",
                path.display()
            )));
        }
    }
    Ok(files)
}

/// A head, by its form.
enum Made {
    Linear(Head),
    Gaussian(Gaussian),
}

pub(crate) fn run(arguments: &HeadArguments, output: &Output) -> Result<(), Failure> {
    let linear = |given: &Given, kind: Kind| {
        let pool = pool(given)?;
        let (head, found) = pool.head(kind).map_err(failure)?;
        finish(given, head.method, &Made::Linear(head), &found, output)
    };
    let gaussian = |given: &Given, method: &str, options: &GaussianOptions| {
        let pool = pool(given)?;
        let (head, found) = pool.gaussian(options).map_err(failure)?;
        finish(given, method, &Made::Gaussian(head), &found, output)
    };
    match &arguments.what {
        What::Fedcof(it) => linear(&it.given, Kind::FedCof(it.gamma)),
        What::Ncm(it) => linear(&it.given, Kind::Ncm),
        What::Ridge(it) => linear(&it.given, Kind::Ridge(it.lambda)),
        What::Bayes(it) => linear(&it.given, Kind::Bayes(it.shrink)),
        What::Gaussian(it) => {
            let options = GaussianOptions::likelihood(it.shrink, it.pooled);
            gaussian(&it.given, "gaussian", &options)
        }
        What::Adagauss(it) => {
            let options = GaussianOptions::adagauss(it.shrink, it.normalize);
            gaussian(&it.given, "adagauss", &options)
        }
    }
}

fn pool(given: &Given) -> Result<Pool, Failure> {
    let stats = files(&given.stats)?
        .iter()
        .map(|path| Stats::read(path).map_err(failure))
        .collect::<Result<Vec<_>, _>>()?;
    Pool::new(stats, given.classes).map_err(failure)
}

/// Writes a head and says what it is made of.
fn finish(
    given: &Given,
    method: &str,
    head: &Made,
    found: &Found,
    output: &Output,
) -> Result<(), Failure> {
    let facts: BTreeMap<String, String> = [
        ("writer", format!("merganser {}", env!("CARGO_PKG_VERSION"))),
        ("features", found.features.to_string()),
        ("method", method.to_owned()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect();
    match head {
        Made::Linear(head) => head.write(&given.output, given.overwrite, &facts),
        Made::Gaussian(head) => head.write(&given.output, given.overwrite, &facts),
    }
    .map_err(failure)?;
    if output.json {
        Output::event(&json!({
            "event": "finished",
            "out": given.output.to_string_lossy(),
            "method": method,
            "found": found,
        }));
        return Ok(());
    }
    for note in &found.notes {
        output.note(&format!("note: {note}"));
    }
    if !output.quiet {
        let number = |x: Option<f64>| x.map_or("–".to_owned(), |x| format!("{x:.3e}"));
        let head = [
            "method", "clients", "means", "features", "classes", "dim", "added", "pivot", "uneven",
        ];
        let values = vec![
            method.to_owned(),
            found.clients.to_string(),
            found.means.to_string(),
            found.features.to_string(),
            found.classes.to_string(),
            found.dim.to_string(),
            number(found.regularised),
            number(found.smallest_pivot),
            found.uneven.map_or("–".to_owned(), |x| format!("{x:.2}")),
        ];
        result(&table(&[head.map(str::to_owned).to_vec(), values]));
    }
    written(&given.output, output);
    Ok(())
}

fn written(out: &Path, output: &Output) {
    output.note(&format!("wrote the head into {}", out.display()));
}
