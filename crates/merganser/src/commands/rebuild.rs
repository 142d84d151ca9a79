//! `merganser rebuild`: the model of one task from a merge by `emr`.

use merganser::{Failure, MergeOptions};
use serde_json::json;

use crate::cli::Rebuild;
use crate::output::{Output, human};
use crate::progress::Progress;

pub(crate) fn run(arguments: &Rebuild, memory: u64, output: &Output) -> Result<(), Failure> {
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
    let (bytes, seconds) = progress.finish();
    let plan = done?;
    for note in &plan.notes {
        output.note(&format!("note: {note}"));
    }
    let tensors = plan.tensors().count();
    if output.json {
        Output::event(&json!({
            "event": "finished",
            "out": arguments.out.to_string_lossy(),
            "method": plan.method.info().name,
            "tensors": tensors,
            "output_bytes": plan.output_bytes(),
            "moved_bytes": bytes,
            "seconds": seconds,
            "plan": plan.digest,
            "notes": plan.notes,
        }));
    } else {
        output.note(&format!(
            "rebuilt {tensors} tensors ({}) into {} in {seconds:.1} s",
            human(plan.output_bytes()),
            arguments.out.display()
        ));
    }
    Ok(())
}
