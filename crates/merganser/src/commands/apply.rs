//! `merganser apply`: a base model with adapters and task vectors added to it.

use std::path::PathBuf;

use clap::Args;
use merganser::store::Dtype;
use merganser::{Failure, MergeOptions};

use super::extract::dtype;
use crate::cli::bytes;
use crate::output::Output;
use crate::progress::Progress;

/// Add adapters and task vectors to a model.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/models:\n  merganser apply base adapter@0.7 adapter-2@0.5 -o /tmp/model\n\nWith files of your own:\n  merganser apply base/ adapter/ -o model/\n  merganser apply base/ math-adapter/@0.7 code-tv/@0.5 -o model/\n  merganser apply base/ toxic-tv/@-1 -o model/            forget what it learned\n\nAn item is a folder or Hub id, path[@revision][@weight]. Weights need not sum to 1."
)]
pub(crate) struct Apply {
    /// The base model: a folder or a Hub id
    pub(crate) base: String,
    /// LoRA adapters and task vectors, each with its weight [default: 1]
    #[arg(required = true, value_name = "ITEM[@WEIGHT]")]
    pub(crate) items: Vec<String>,
    /// The folder for the model
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Type of the model's real numbers [default: that of every tensor of the base]
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    pub(crate) dtype: Option<Dtype>,
    /// Largest output file, such as 5GB, 2GiB or a number of bytes
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = bytes)]
    pub(crate) out_shard_size: u64,
    /// Replace a model that is already there, once the new one is complete
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Accept inputs that hold NaN or infinity
    #[arg(long)]
    pub(crate) allow_nonfinite: bool,
}

pub(crate) fn run(arguments: &Apply, memory: Option<u64>, output: &Output) -> Result<(), Failure> {
    let mut options = MergeOptions {
        overwrite: arguments.overwrite,
        allow_nonfinite: arguments.allow_nonfinite,
        memory,
        ..MergeOptions::default()
    };
    options.plan.shard_size = arguments.out_shard_size;
    let progress = Progress::new(output);
    let done = merganser::apply(
        &arguments.base,
        &arguments.items,
        &arguments.output,
        arguments.dtype,
        &options,
        &progress,
    );
    super::written("made", done, &progress, &arguments.output, output)
}
