//! `merganser diagnose`: how good a merge will be, before it is made.

use std::path::Path;

use merganser::report::Report;
use merganser::{Failure, MergeOptions};

use crate::cli::Diagnose;
use crate::commands::merge::{planning, read_recipe};
use crate::output::Output;
use crate::progress::Progress;

pub(crate) fn run(arguments: &Diagnose, output: &Output) -> Result<(), Failure> {
    let text = read_recipe(&arguments.recipe)?;
    let options = MergeOptions {
        plan: planning(&arguments.planning)?,
        allow_nonfinite: arguments.allow_nonfinite,
        compared: arguments
            .compare
            .iter()
            .map(|path| (path.display().to_string(), path.clone()))
            .collect(),
        ..MergeOptions::default()
    };
    let progress = Progress::new(output);
    let done = merganser::diagnose_recipe(&arguments.recipe, &text, &options, &progress);
    progress.finish();
    for planned in &done? {
        for warning in &planned.plan.warnings {
            output.warning(warning, &planned.source);
        }
        let Some(report) = &planned.report else {
            continue;
        };
        if output.json {
            let json = report.to_json().map_err(failed)?;
            let json: serde_json::Value = serde_json::from_str(&json).map_err(failed)?;
            Output::event(&json);
        } else {
            crate::output::result(&report.to_table(100));
        }
        if let Some(path) = &arguments.report {
            write(path, report)?;
            output.note(&format!("report: {}", path.display()));
        }
    }
    Ok(())
}

/// Writes a report as a page, whole or not at all.
pub(crate) fn write(path: &Path, report: &Report) -> Result<(), Failure> {
    let page = report.to_html().map_err(failed)?;
    let fail = |error: std::io::Error| {
        Failure::Usage(format!(
            "cannot write the report '{}': {error}",
            path.display()
        ))
    };
    let whole = path.with_extension("html.partial");
    std::fs::write(&whole, page).map_err(fail)?;
    std::fs::rename(&whole, path).map_err(fail)
}

pub(crate) fn failed(error: impl std::error::Error) -> Failure {
    Failure::Usage(error.to_string())
}
