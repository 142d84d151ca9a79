//! `merganser rebuild`: the model of one task from a merge by `emr`.

use merganser::{Failure, MergeOptions};

use crate::cli::Rebuild;
use crate::output::Output;
use crate::progress::Progress;

pub(crate) fn run(
    arguments: &Rebuild,
    memory: Option<u64>,
    output: &Output,
) -> Result<(), Failure> {
    let options = MergeOptions {
        overwrite: arguments.overwrite,
        memory,
        ..MergeOptions::default()
    };
    let progress = Progress::new(output);
    let done = merganser::rebuild(
        &arguments.merged,
        &arguments.task,
        arguments.base.as_deref(),
        &arguments.out,
        &options,
        &progress,
    );
    super::written("rebuilt", done, &progress, &arguments.out, output)
}
