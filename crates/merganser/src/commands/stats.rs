//! `merganser stats`: statistics of classes, made of features and taken to a newer model.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use merganser::Failure;
use merganser::data::{VectorFile, read_labels};
use merganser::upkeep::drift::Drift;
use merganser::upkeep::stats::{BuildOptions, Stats};
use serde_json::json;

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
}

/// Build statistics.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  merganser stats build features.npy --labels labels.npy -o client-1.safetensors\n  merganser stats build features.parquet --labels features.parquet#label -o client-1.safetensors --gram\n  merganser stats build features.npy --labels labels.npy -o client-1.safetensors --parts 3      for few clients"
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
    #[arg(long, value_name = "G", default_value_t = 1)]
    pub(crate) parts: usize,
    /// Seed of the parts
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// The covariance of each class too, for `head bayes` and `stats adapt`
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
    after_help = "Examples:\n  merganser stats adapt drift.safetensors stats-v1.safetensors -o stats-v2.safetensors\n\nMeans, covariances and Gram matrices follow a shift, a rotation or an affine map exactly."
)]
pub(crate) struct Adapt {
    /// The drift, as `merganser drift fit` or `chain` writes it
    pub(crate) drift: PathBuf,
    /// Statistics of the drift's old version
    pub(crate) stats: PathBuf,
    /// Where the statistics go
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Merge statistics.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  merganser stats merge round-1/ round-2/ -o both.safetensors\n  merganser stats merge all.safetensors client-9.safetensors -o all-2.safetensors\n\nRows are put side by side, sorted, so that the order of the files changes nothing; none is averaged with another, because\n`head fedcof` looks at every mean. Covariances and Gram matrices are kept where all files have them."
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
    let (stats, out, overwrite) = match &arguments.what {
        What::Build(it) => {
            let features = VectorFile::open(&it.features).map_err(|error| failure(error.into()))?;
            let labels = read_labels(&it.labels).map_err(|error| failure(error.into()))?;
            let options = BuildOptions {
                parts: it.parts,
                seed: it.seed,
                cov: it.cov,
                gram: it.gram,
            };
            let stats = Stats::build(&features, &labels, &options).map_err(failure)?;
            (stats, &it.output, it.overwrite)
        }
        What::Adapt(it) => {
            let drift = Drift::read(&it.drift).map_err(failure)?;
            if drift.unit {
                output.note(
                    "note: the drift is one of unit vectors; means and covariances follow its map, not the scaling to \
                     length 1 after it",
                );
            }
            let stats = Stats::read(&it.stats).map_err(failure)?;
            let stats = stats.adapt(&drift).map_err(failure)?;
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
    };
    for note in &notes {
        output.note(&format!("note: {note}"));
    }
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
            "notes": notes,
        }));
    } else {
        output.note(&format!(
            "wrote {} means of {features} features of length {} into {}",
            stats.classes.len(),
            stats.dim(),
            out.display()
        ));
    }
    Ok(())
}
