//! `merganser calibrate`: the moments of a model, to a file.

use merganser::data::{LoadOptions, Source};
use merganser::{Failure, calibrate};
use serde_json::json;

use crate::cli::Calibrate;
use crate::output::Output;
use crate::progress::Progress;

pub(crate) fn run(arguments: &Calibrate, output: &Output) -> Result<(), Failure> {
    if arguments.output.exists() && !arguments.overwrite {
        return Err(Failure::Usage(format!(
            "'{}' exists; give another name or --overwrite",
            arguments.output.display()
        )));
    }
    let source = Source {
        column: arguments.column.clone(),
        split: arguments.split.clone(),
        ..Source::new(&arguments.data)
    };
    let options = LoadOptions {
        samples: Some(arguments.samples),
        seed: arguments.seed,
        max_length: arguments.max_length,
        labels: false,
    };
    let progress = Progress::new(output);
    let done = calibrate(
        &arguments.model,
        &source,
        &options,
        &arguments.output,
        &progress,
    );
    let (_, seconds) = progress.finish();
    let done = done?;
    for note in &done.notes {
        output.note(&format!("note: {note}"));
    }
    if output.json {
        Output::event(&json!({
            "event": "finished",
            "out": arguments.output.to_string_lossy(),
            "samples": done.samples,
            "tokens": done.tokens,
            "inputs": done.inputs,
            "taps": done.taps,
            "seconds": seconds,
        }));
    } else {
        output.note(&format!(
            "moments of {} inputs of {} matrices on {} samples ({} rows) in {} in {seconds:.1} s",
            done.inputs,
            done.taps,
            done.samples,
            done.tokens,
            arguments.output.display()
        ));
    }
    Ok(())
}
