//! The `merganser` program: arguments in, one command out, and the exit code: 0 done, 1 failed, 2 bad input, 3 flagged
//! by an audit.

// Errors say everything a user needs, and are made once.
#![allow(clippy::result_large_err)]

mod cli;
mod commands;
mod output;
mod progress;
mod table;

use std::process::ExitCode;

use clap::Parser;
use merganser::Failure;

use crate::output::Output;

fn main() -> ExitCode {
    let arguments = match cli::Cli::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are printed to stdout and are no failure. A closed pipe is none either.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let output = Output::new(&arguments.global);
    match commands::run(&arguments, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(match failure {
                Failure::Run(error) if error.is_bad_input() => 2,
                Failure::Run(_) => 1,
                Failure::Recipe(_) | Failure::Usage(_) => 2,
                Failure::Flagged(_) => 3,
            })
        }
    }
}
