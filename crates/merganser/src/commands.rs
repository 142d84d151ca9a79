//! One file a command.

mod calibrate;
mod demo;
mod diagnose;
pub(crate) mod evaluate;
mod inspect;
mod manual;
mod merge;
mod methods;
mod plan;
mod rebuild;
mod seal;

use merganser::Failure;

use crate::cli::{Cli, Command};
use crate::output::Output;

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
            evaluate::run(evaluate, arguments.global.memory, output)
        }
        Command::Seal(seal) => seal::run(seal, output),
        Command::Inspect(inspect) => {
            pool()?;
            inspect::run(inspect, output)
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
