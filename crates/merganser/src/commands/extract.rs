//! `merganser extract`: an adapter or a task vector out of a fine-tune.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use merganser::recipe::FloatType;
use merganser::run::extract::{Filter, LoraReport, Overrides, Scale, Sketch, Truncation};
use merganser::store::Dtype;
use merganser::{Failure, LoraOptions, MergeOptions};
use serde_json::json;

use crate::cli::bytes;
use crate::output::{Output, human};
use crate::progress::Progress;
use crate::table::table;

/// Rank of an adapter where no limit is given: mergekit's default.
const RANK: usize = 128;

/// Turn what a fine-tune learned into an adapter or a task vector.
#[derive(Debug, Args)]
pub(crate) struct Extract {
    #[command(subcommand)]
    pub(crate) what: What,
}

#[derive(Debug, Subcommand)]
pub(crate) enum What {
    /// The LoRA adapter nearest to the difference of two models, in PEFT's format
    Lora(Lora),
    /// The difference of two models, tensor by tensor, as a checkpoint
    TaskVector(TaskVector),
}

/// Extract an adapter.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/models:\n  merganser extract lora low-rank base -o /tmp/adapter --rank 4\n\nWith files of your own:\n  merganser extract lora fine-tune/ base/ -o adapter/ --rank 32\n  merganser extract lora fine-tune/ base/ -o adapter/ --energy 0.95      as many directions as that takes, in every module\n  merganser extract lora fine-tune/ base/ -o adapter/ --rank 32 --randomized      for large matrices\n  merganser extract lora fine-tune/ base/ -o adapter/ --exclude 'mlp'\n  merganser extract lora fine-tune/ base/ -o adapter/ --embed-lora --save-module lm_head\n\nSeveral limits together keep what all of them allow. Directions that are no more than the rounding of the fine-tune's\nweights are never kept."
)]
pub(crate) struct Lora {
    /// The fine-tuned model: a folder, a Hub id, base+adapter
    pub(crate) fine: String,
    /// The model it was made from; the adapter names it as it is written here
    pub(crate) base: String,
    /// The folder for the adapter
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// At most so many directions a module [default: 128, if no other limit is given]
    #[arg(long, value_name = "R", alias = "max-rank")]
    pub(crate) rank: Option<usize>,
    /// The fewest directions that keep this share of a module's squared norm, such as 0.95
    #[arg(long, value_name = "SHARE")]
    pub(crate) energy: Option<f64>,
    /// Only directions whose singular value is greater than this
    #[arg(long, value_name = "X", alias = "sv-epsilon")]
    pub(crate) sigma: Option<f64>,
    /// Find the directions by random projection: many times faster where --rank is small; the errors shown are measured
    #[arg(long)]
    pub(crate) randomized: bool,
    /// Only modules in whose path this regular expression is found (may be repeated)
    #[arg(long, short, value_name = "REGEX", alias = "include-regex")]
    pub(crate) include: Vec<String>,
    /// No modules in whose path this regular expression is found (may be repeated)
    #[arg(long, short, value_name = "REGEX", alias = "exclude-regex")]
    pub(crate) exclude: Vec<String>,
    /// Give embeddings and the output head factors too, instead of saving them whole
    #[arg(long = "embed-lora")]
    pub(crate) embeddings: bool,
    /// Save this module whole, changed or not, and whatever -i and -e say: its path or the last word of it (may be repeated)
    #[arg(long, value_name = "NAME")]
    pub(crate) save_module: Vec<String>,
    /// Type of what is written, such as bfloat16 [default: that of the fine-tune]
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    pub(crate) dtype: Option<Dtype>,
    /// Leave the singular values to factor A, so that B is orthonormal, instead of giving both their roots
    #[arg(long)]
    pub(crate) no_distribute_scale: bool,
    /// Replace an adapter that is already there, once the new one is complete
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Extract a task vector.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/models:\n  merganser extract task-vector dense base -o /tmp/tv\n\nWith files of your own:\n  merganser extract task-vector fine-tune/ base/ -o tv/\n  merganser apply base/ tv/@0.8 -o model/"
)]
pub(crate) struct TaskVector {
    /// The fine-tuned model: a folder, a Hub id, base+adapter
    pub(crate) fine: String,
    /// The model it was made from
    pub(crate) base: String,
    /// The folder for the task vector
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Type of the differences; float32 holds those of halves exactly
    #[arg(long, value_name = "TYPE", default_value = "float32", value_parser = dtype)]
    pub(crate) dtype: Dtype,
    /// Largest output file, such as 5GB, 2GiB or a number of bytes
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = bytes)]
    pub(crate) out_shard_size: u64,
    /// Replace what is already there, once the new one is complete
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Reads the name of a type of real numbers.
pub(crate) fn dtype(text: &str) -> Result<Dtype, String> {
    FloatType::from_name(text)
        .and_then(|known| Dtype::from_torch_name(known.name()))
        .filter(|dtype| dtype.is_float())
        .ok_or_else(|| {
            format!("'{text}' is no type of real numbers; use float32, bfloat16 or float16")
        })
}

pub(crate) fn run(
    arguments: &Extract,
    memory: Option<u64>,
    output: &Output,
) -> Result<(), Failure> {
    match &arguments.what {
        What::Lora(lora) => extract_lora(lora, memory, output),
        What::TaskVector(vector) => extract_task_vector(vector, memory, output),
    }
}

fn extract_lora(arguments: &Lora, memory: Option<u64>, output: &Output) -> Result<(), Failure> {
    let unlimited = arguments.energy.is_none() && arguments.sigma.is_none();
    let options = LoraOptions {
        truncation: Truncation {
            rank: arguments.rank.or(unlimited.then_some(RANK)),
            energy: arguments.energy,
            sigma: arguments.sigma,
            sketch: arguments.randomized.then(Sketch::default),
        },
        scale: if arguments.no_distribute_scale {
            Scale::InA
        } else {
            Scale::Shared
        },
        filter: Filter::new(&arguments.include, &arguments.exclude)?,
        overrides: Overrides {
            embeddings: arguments.embeddings,
            save: arguments.save_module.clone(),
        },
        dtype: arguments.dtype,
        overwrite: arguments.overwrite,
        memory,
    };
    let progress = Progress::new(output);
    let done = merganser::extract_lora(
        &arguments.fine,
        &arguments.base,
        &arguments.output,
        options,
        &progress,
    );
    let (_, seconds) = progress.finish();
    let report = done?;
    if output.json {
        let mut event = json!({
            "event": "finished",
            "out": arguments.output.to_string_lossy(),
            "seconds": seconds,
        });
        if let (Some(event), Ok(serde_json::Value::Object(report))) =
            (event.as_object_mut(), serde_json::to_value(&report))
        {
            event.extend(report);
        }
        Output::event(&event);
        return Ok(());
    }
    for note in &report.notes {
        output.note(&format!("note: {note}"));
    }
    if !output.quiet {
        crate::output::result(&modules(&report));
    }
    let kept = report.modules.iter().filter(|module| module.rank > 0);
    output.note(&format!(
        "extracted an adapter of {} modules, rank up to {} ({}), relative error {:.3e}, and {} tensors saved whole into {} \
         in {seconds:.1} s",
        kept.count(),
        report.rank,
        human(report.bytes),
        report.error,
        report.saved.len(),
        arguments.output.display()
    ));
    Ok(())
}

/// What was kept of every module.
fn modules(report: &LoraReport) -> String {
    let head = ["module", "shape", "rank", "energy kept", "relative error"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(report.modules.iter().map(|module| {
        vec![
            module.module.clone(),
            format!("{}×{}", module.shape[0], module.shape[1]),
            module.rank.to_string(),
            format!("{:.4}", module.energy),
            format!("{:.3e}", module.error),
        ]
    }));
    table(&rows)
}

fn extract_task_vector(
    arguments: &TaskVector,
    memory: Option<u64>,
    output: &Output,
) -> Result<(), Failure> {
    let mut options = MergeOptions {
        overwrite: arguments.overwrite,
        memory,
        ..MergeOptions::default()
    };
    options.plan.shard_size = arguments.out_shard_size;
    let progress = Progress::new(output);
    let done = merganser::extract_task_vector(
        &arguments.fine,
        &arguments.base,
        &arguments.output,
        Some(arguments.dtype),
        &options,
        &progress,
    );
    super::written("extracted", done, &progress, &arguments.output, output)
}
