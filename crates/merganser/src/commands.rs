//! One file a command.

pub(crate) mod apply;
pub(crate) mod audit;
pub(crate) mod bv;
mod calibrate;
pub(crate) mod certify;
mod demo;
mod diagnose;
pub(crate) mod drift;
pub(crate) mod embed;
pub(crate) mod evaluate;
pub(crate) mod extract;
pub(crate) mod head;
mod inspect;
mod manual;
mod merge;
mod methods;
mod plan;
mod protos;
mod rebuild;
mod seal;
mod spectra;
pub(crate) mod stats;
pub(crate) mod tune;

use std::path::Path;

use merganser::Failure;
use merganser::plan::Plan;
use serde_json::json;

use crate::cli::{Cli, Command};
use crate::output::{Output, human};
use crate::progress::Progress;

/// Runs the command that was asked for.
pub(crate) fn run(arguments: &Cli, output: &Output) -> Result<(), Failure> {
    if let Err(problem) = merganser::kernels::simd::requested() {
        return Err(Failure::Usage(problem));
    }
    let threads = arguments.global.threads.map_or(0, usize::from);
    // Only commands that merge start threads; the global pool exists once.
    let pool = || {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()
            .map_err(|error| Failure::Usage(format!("cannot start {threads} threads: {error}")))
    };
    match &arguments.command {
        Command::Merge(merge) => {
            pool()?;
            merge::run(merge, arguments.global.memory, output)
        }
        Command::Plan(plan) => plan::run(plan, &arguments.global, output),
        Command::Calibrate(calibrate) => {
            pool()?;
            calibrate::run(calibrate, output)
        }
        Command::Demo(demo) => {
            pool()?;
            demo::run(demo, output)
        }
        Command::Diagnose(diagnose) => {
            pool()?;
            diagnose::run(diagnose, output)
        }
        Command::Evaluate(evaluate) => {
            pool()?;
            evaluate::run(evaluate, arguments.global.memory(), output)
        }
        Command::Extract(extract) => {
            pool()?;
            extract::run(extract, arguments.global.memory, output)
        }
        Command::Apply(apply) => {
            pool()?;
            apply::run(apply, arguments.global.memory, output)
        }
        Command::Drift(drift) => {
            pool()?;
            drift::run(drift, output)
        }
        Command::Embed(embed) => {
            pool()?;
            embed::run(embed, arguments.global.memory(), output)
        }
        Command::Stats(stats) => {
            pool()?;
            stats::run(stats, output)
        }
        Command::Head(head) => {
            pool()?;
            head::run(head, output)
        }
        Command::Tune(tune) => {
            pool()?;
            tune::run(tune, arguments.global.memory, output)
        }
        Command::Audit(audit) => {
            pool()?;
            audit::run(audit, output)
        }
        Command::Bv(bv) => {
            pool()?;
            bv::run(bv, arguments.global.memory, output)
        }
        Command::Certify(certify) => {
            pool()?;
            certify::run(certify, output)
        }
        Command::Seal(seal) => seal::run(seal, output),
        Command::Inspect(inspect) => {
            pool()?;
            inspect::run(inspect, arguments.global.memory, output)
        }
        Command::Methods(methods) => methods::run(methods, output),
        Command::Rebuild(rebuild) => {
            pool()?;
            rebuild::run(rebuild, arguments.global.memory, output)
        }
        Command::Completions { shell } => {
            manual::completions(*shell);
            Ok(())
        }
        Command::Man { dir } => manual::pages(dir),
    }
}

/// Says what a command that carries out one plan has written; `verb` says what it did to the tensors.
fn written(
    verb: &str,
    done: Result<Plan, Failure>,
    progress: &Progress<'_>,
    out: &Path,
    output: &Output,
) -> Result<(), Failure> {
    let (bytes, seconds) = progress.finish();
    let plan = done?;
    for note in &plan.notes {
        output.note(&format!("note: {note}"));
    }
    let tensors = plan.tensors().count();
    if output.json {
        Output::event(&json!({
            "event": "finished",
            "out": out.to_string_lossy(),
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
            "{verb} {tensors} tensors ({}) into {} in {seconds:.1} s",
            human(plan.output_bytes()),
            out.display()
        ));
    }
    Ok(())
}
