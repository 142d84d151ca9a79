//! `merganser stats`: statistics of classes, made of features, taken to a newer model and described.

mod report;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use merganser::Failure;
use merganser::certify::network;
use merganser::data::{VectorFile, read_labels};
use merganser::upkeep::Matrix;
use merganser::upkeep::drift::Drift;
use merganser::upkeep::stats::{Adapter, BuildOptions, SampleOptions, Stats, Strategy};
use merganser_model::Pointwise;
use serde::Serialize;
use serde_json::json;

use super::certify::activation;
use super::drift::failure;
use super::head::files;
use crate::output::Output;

/// Statistics of classes, which outlive their features.
#[derive(Debug, Args)]
#[command(after_help = "docs/heads.md explains the formulas and the file.")]
pub(crate) struct StatsArguments {
    #[command(subcommand)]
    pub(crate) what: What,
}

#[derive(Debug, Subcommand)]
pub(crate) enum What {
    /// The mean and number of the features of each class
    Build(Build),
    /// Take statistics to the space of a newer model
    Adapt(Adapt),
    /// Put statistics of several clients or rounds into one file
    Merge(Merge),
    /// Collapse, rank and condition of classes, and how far two files lie apart
    Report(report::ReportArguments),
}

/// Build statistics.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/heads:\n  merganser stats build old.npy --labels labels.npy -o /tmp/client-1.safetensors\n  merganser stats build old.npy --labels labels.npy -o /tmp/client-2.safetensors --cov --gram\n  merganser stats build old.npy --labels labels.npy -o /tmp/client-3.safetensors --parts 3      for few clients\n\nFeatures of Parquet files: features.parquet --labels features.parquet#label"
)]
pub(crate) struct Build {
    /// Features, one a row: .npy, .safetensors or .parquet; FILE#NAME names a tensor or column
    pub(crate) features: String,
    /// The class of each feature, a whole number: .npy, a tensor, or a column of a table
    #[arg(long, value_name = "FILE")]
    pub(crate) labels: String,
    /// Where the statistics go
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Means of up to so many random parts of each class instead of one
    #[arg(long, value_name = "G", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) parts: u16,
    /// Seed of the parts
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// The covariance of each class too, for `head bayes`, `gaussian` and `adagauss`, `stats adapt` and `report`
    #[arg(long)]
    pub(crate) cov: bool,
    /// The Gram matrix of all features too, for `head ridge`
    #[arg(long)]
    pub(crate) gram: bool,
    /// Replace a file that is there
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Adapt statistics.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/heads:\n  merganser stats adapt drift.safetensors stats-v1.safetensors -o /tmp/adapted.safetensors\n  merganser stats adapt --adapter adapter.safetensors stats-v1.safetensors -o /tmp/adapted-too.safetensors --pairs old.npy new.npy\n\nMeans, covariances and Gram matrices follow a shift, a rotation or an affine map exactly.\nThrough a network that bends, features of each class are drawn and taken (AdaGauss)."
)]
pub(crate) struct Adapt {
    /// The drift, as `merganser drift fit` or `chain` writes it, and statistics of its old version; with --adapter the
    /// statistics alone
    #[arg(required = true, num_args = 1..=2, value_name = "DRIFT STATS")]
    pub(crate) given: Vec<PathBuf>,
    /// Where the statistics go
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    pub(crate) overwrite: bool,
    #[command(flatten)]
    pub(crate) network: NetworkOptions,
}

/// An adapter that is a network.
#[derive(Debug, Args)]
#[command(next_help_heading = "Adapters that are networks")]
pub(crate) struct NetworkOptions {
    /// Weights of a multi-layer perceptron from the old features to the new, in place of a drift
    #[arg(long, value_name = "FILE")]
    pub(crate) adapter: Option<PathBuf>,
    /// Its layers in the order they are applied, such as fc1,fc2 [default: all matrices NAME.weight in natural order]
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        requires = "adapter"
    )]
    pub(crate) layers: Vec<String>,
    /// Between its layers: identity, relu, leaky_relu, leaky_relu:SLOPE, tanh, sigmoid, gelu, silu
    #[arg(long, value_name = "NAME", value_parser = activation, default_value = "gelu", requires = "adapter")]
    pub(crate) activation: Pointwise,
    /// What is adapted
    #[arg(long, value_enum, default_value = "full", requires = "adapter")]
    pub(crate) strategy: Adapted,
    /// Features that are drawn of each class
    #[arg(long, value_name = "N", default_value_t = 10_000, requires = "adapter")]
    pub(crate) samples: usize,
    /// Seed of these features
    #[arg(long, value_name = "N", default_value_t = 0, requires = "adapter")]
    pub(crate) seed: u64,
    /// So many times the mean of its diagonal is added to the diagonal of each new covariance
    #[arg(long, value_name = "X", default_value_t = 0.0, requires = "adapter")]
    pub(crate) shrink: f64,
    /// Features of the same samples by the old and the new model: say how well the adapter fits them
    #[arg(long, value_names = ["OLD", "NEW"], num_args = 2, requires = "adapter")]
    pub(crate) pairs: Vec<String>,
}

/// What is adapted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Adapted {
    /// Means and covariances
    Full,
    /// Means and variances: new covariances are diagonal
    Diag,
    /// Means only; covariances stay as they are
    Mean,
}

/// Merge statistics.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/heads:\n  merganser stats merge clients -o /tmp/all.safetensors\n  merganser stats merge clients/0.safetensors clients/1.safetensors -o /tmp/both.safetensors\n\nRows are put side by side, sorted, so that the order of the files changes nothing; none is averaged with another, because\n`head fedcof` looks at every mean. Covariances and Gram matrices are kept where all files have them."
)]
pub(crate) struct Merge {
    /// Files of statistics, or folders of them
    #[arg(required = true)]
    pub(crate) stats: Vec<PathBuf>,
    /// Where the statistics go
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    pub(crate) overwrite: bool,
}

pub(crate) fn run(arguments: &StatsArguments, output: &Output) -> Result<(), Failure> {
    let mut notes = Vec::new();
    let mut fit = None;
    let (stats, out, overwrite) = match &arguments.what {
        What::Build(it) => {
            let features = VectorFile::open(&it.features).map_err(|error| failure(error.into()))?;
            let labels = read_labels(&it.labels).map_err(|error| failure(error.into()))?;
            let options = BuildOptions {
                parts: it.parts.into(),
                seed: it.seed,
                cov: it.cov,
                gram: it.gram,
            };
            let stats = Stats::build(&features, &labels, &options).map_err(failure)?;
            (stats, &it.output, it.overwrite)
        }
        What::Adapt(it) => {
            let stats = adapt(it, &mut notes, &mut fit)?;
            (stats, &it.output, it.overwrite)
        }
        What::Merge(it) => {
            let parts = files(&it.stats)?
                .iter()
                .map(|path| Stats::read(path).map_err(failure))
                .collect::<Result<Vec<_>, _>>()?;
            let (stats, found) = Stats::merge(&parts).map_err(failure)?;
            notes = found;
            (stats, &it.output, it.overwrite)
        }
        What::Report(it) => return report::run(it, output),
    };
    stats.write(out, overwrite).map_err(failure)?;
    let features: u64 = stats.counts.iter().sum();
    if output.json {
        Output::event(&json!({
            "event": "finished",
            "out": out.to_string_lossy(),
            "means": stats.classes.len(),
            "features": features,
            "dim": stats.dim(),
            "cov": stats.covs.is_some(),
            "gram": stats.gram.is_some(),
            "fit": fit,
            "notes": notes,
        }));
    } else {
        for note in &notes {
            output.note(&format!("note: {note}"));
        }
        if let Some(fit) = &fit {
            output.note(&format!(
                "mean square error of the adapter on {} pairs: {:.6}, where the new features vary by {:.6}",
                fit.pairs, fit.mean_square_error, fit.variance
            ));
        }
        output.note(&format!(
            "wrote {} means of {features} features of length {} into {}",
            stats.classes.len(),
            stats.dim(),
            out.display()
        ));
    }
    Ok(())
}

/// How well an adapter fits features of the same samples in both spaces.
#[derive(Debug, Serialize)]
struct Fit {
    /// Number of samples.
    pairs: usize,
    /// The mean of (ψ(x) − y)² over all elements.
    mean_square_error: f64,
    /// The mean of (y − ȳ)²: the error of an adapter that knows nothing but the mean.
    variance: f64,
}

/// Statistics taken to the newer model.
fn adapt(
    arguments: &Adapt,
    notes: &mut Vec<String>,
    fit: &mut Option<Fit>,
) -> Result<Stats, Failure> {
    let options = &arguments.network;
    match (&options.adapter, &arguments.given[..]) {
        (None, [drift, stats]) => {
            let drift = Drift::read(drift).map_err(failure)?;
            if drift.unit {
                notes.push(
                    "the drift is one of unit vectors; means and covariances follow its map, not the scaling to length 1 \
                     after it"
                        .into(),
                );
            }
            let stats = Stats::read(stats).map_err(failure)?;
            stats.adapt(&drift).map_err(failure)
        }
        (Some(adapter), [stats]) => {
            let layers = &options.layers;
            let mlp = network(adapter, layers, options.activation, Pointwise::Identity)?;
            let adapter = Adapter::new(&mlp).map_err(failure)?;
            let stats = Stats::read(stats).map_err(failure)?;
            if let [old, new] = &options.pairs[..] {
                *fit = Some(fitted(&adapter, old, new)?);
            }
            through(&adapter, &stats, options, notes)
        }
        (None, _) => Err(Failure::Usage(
            "name a drift and the statistics of its old version, or an adapter with --adapter"
                .into(),
        )),
        (Some(_), _) => Err(Failure::Usage(
            "--adapter stands in place of a drift; name the statistics alone".into(),
        )),
    }
}

fn through(
    adapter: &Adapter,
    stats: &Stats,
    options: &NetworkOptions,
    notes: &mut Vec<String>,
) -> Result<Stats, Failure> {
    let straight = adapter
        .as_affine()
        .filter(|_| options.strategy == Adapted::Full && options.shrink == 0.0);
    if let Some(map) = straight {
        notes.push(
            "the adapter is an affine map, which statistics follow exactly: nothing is drawn"
                .into(),
        );
        return stats.adapt_affine(&map).map_err(failure);
    }
    let sample = SampleOptions {
        strategy: match options.strategy {
            Adapted::Full => Strategy::Full,
            Adapted::Diag => Strategy::Diagonal,
            Adapted::Mean => Strategy::Mean,
        },
        samples: options.samples,
        seed: options.seed,
        shrink: options.shrink,
    };
    let found = stats.adapt_by_samples(adapter, &sample).map_err(failure)?;
    notes.extend(found.notes);
    Ok(found.stats)
}

fn fitted(adapter: &Adapter, old: &str, new: &str) -> Result<Fit, Failure> {
    let read = |given: &str| -> Result<Matrix, Failure> {
        let file = VectorFile::open(given).map_err(|error| failure(error.into()))?;
        let all = file.all().map_err(|error| failure(error.into()))?;
        Matrix::new(file.rows(), file.dim(), all).map_err(|error| failure(error.into()))
    };
    let (old, new) = (read(old)?, read(new)?);
    Ok(Fit {
        pairs: new.rows(),
        mean_square_error: adapter.mean_square_error(&old, &new).map_err(failure)?,
        variance: spread(&new),
    })
}

/// The mean over all elements of the square of their difference from the mean of their column.
fn spread(rows: &Matrix) -> f64 {
    let (n, dim) = rows.shape();
    let mut mean = vec![0.0; dim];
    for i in 0..n {
        for (mean, x) in mean.iter_mut().zip(rows.row(i)) {
            *mean += x / n as f64;
        }
    }
    let squares = (0..n).map(|i| {
        let pairs = rows.row(i).iter().zip(&mean);
        pairs.map(|(x, mean)| (x - mean).powi(2)).sum::<f64>()
    });
    squares.sum::<f64>() / (n * dim).max(1) as f64
}
