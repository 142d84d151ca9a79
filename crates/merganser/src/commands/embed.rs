//! `merganser embed`: what a model makes of samples, as a file of vectors.

use std::path::PathBuf;

use clap::Args;
use merganser::Failure;
use merganser::data::{Labels, LoadOptions, Source, write_integers, write_vectors};
use merganser::eval::{Feature, vectors};
use serde_json::json;

use crate::output::Output;

/// Write the vectors of samples into a file.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/demo:\n  merganser embed base --data data/sum.safetensors --split test --samples 20 -o /tmp/features.npy --labels /tmp/labels.npy\n\nWith files of your own:\n  merganser embed models/new --data queries.jsonl -o new.npy --unit\n\nThe vectors are what `merganser drift fit`, `merganser stats build` and a head under `merganser evaluate` see."
)]
pub(crate) struct Embed {
    /// The model: a folder, a Hub id, base+adapter
    pub(crate) model: String,
    /// Samples: JSONL, JSON, TXT, CSV, TSV, Parquet, a folder of images, safetensors, npy
    #[arg(long, value_name = "PATH")]
    pub(crate) data: PathBuf,
    /// Where the vectors go, in float32: .npy or .safetensors
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Where the numbers of the samples' classes go, row by row
    #[arg(long, value_name = "FILE")]
    pub(crate) labels: Option<PathBuf>,
    /// The column of texts or images
    #[arg(long, value_name = "NAME")]
    pub(crate) column: Option<String>,
    /// What the names of ready tensors begin with, or the split of a table
    #[arg(long, value_name = "NAME")]
    pub(crate) split: Option<String>,
    /// Vector of a sample: cls, mean, last, pooled or embeds [default: by the model]
    #[arg(long)]
    pub(crate) feature: Option<Feature>,
    /// Scale vectors to length 1
    #[arg(long)]
    pub(crate) unit: bool,
    /// At most so many samples
    #[arg(long, value_name = "N")]
    pub(crate) samples: Option<usize>,
    /// Which samples are chosen where there are more
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Cut texts at this many tokens
    #[arg(long, value_name = "N")]
    pub(crate) max_length: Option<usize>,
    /// Samples that pass through the model at a time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) batch_size: u16,
    /// Replace files that are there
    #[arg(long)]
    pub(crate) overwrite: bool,
}

pub(crate) fn run(arguments: &Embed, memory: u64, output: &Output) -> Result<(), Failure> {
    let fail = super::evaluate::failure;
    let data = |error: merganser::data::Error| super::drift::failure(error.into());
    let model = super::evaluate::open(&arguments.model, memory).map_err(fail)?;
    let source = Source {
        split: arguments.split.clone(),
        column: arguments.column.clone(),
        ..Source::new(&arguments.data)
    };
    let options = LoadOptions {
        samples: arguments.samples,
        seed: arguments.seed,
        max_length: arguments.max_length,
        labels: arguments.labels.is_some(),
    };
    let samples = model.processor().load(&source, &options).map_err(data)?;
    for note in &samples.notes {
        output.note(&format!("note: {note}"));
    }
    let classes = match (&arguments.labels, &samples.labels) {
        (Some(_), Some(Labels::Classes { ids, .. } | Labels::Names { ids, .. })) => {
            Some(ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>())
        }
        (Some(_), _) => {
            return Err(Failure::Usage(format!(
                "the labels of `{}` are no classes; leave out --labels",
                arguments.data.display()
            )));
        }
        (None, _) => None,
    };
    let found = vectors(
        &model,
        &samples,
        arguments.feature,
        arguments.unit,
        arguments.batch_size.into(),
    )
    .map_err(fail)?;
    write_vectors(
        &arguments.output,
        arguments.overwrite,
        found.width,
        &found.values,
    )
    .map_err(data)?;
    if let (Some(path), Some(classes)) = (&arguments.labels, &classes) {
        write_integers(path, arguments.overwrite, "labels", classes).map_err(data)?;
    }
    if output.json {
        Output::event(&json!({
            "event": "finished",
            "out": arguments.output.to_string_lossy(),
            "rows": found.len(),
            "dim": found.width,
            "notes": samples.notes,
        }));
    } else {
        output.note(&format!(
            "wrote {} vectors of length {} into {}",
            found.len(),
            found.width,
            arguments.output.display()
        ));
    }
    Ok(())
}
