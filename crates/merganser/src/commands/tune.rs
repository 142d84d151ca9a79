//! `merganser tune`: which parameters a recipe should have, with labels or without.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use merganser::eval::{Options, read_tasks};
use merganser::store::new_file::NewFile;
use merganser::{Failure, Knob, MergeOptions, Quiet, Strategy, TuneOptions, Tuned};
use merganser_run::USUAL_MEMORY;
use serde_json::json;

use super::evaluate::{failure, open};
use crate::output::Output;
use crate::table::table;

/// Values of one range, at most.
const MOST: usize = 1000;

/// Choose a recipe's parameters, with labels or without.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/tune:\n  merganser tune recipe.yml -o /tmp/best.yml --set lambda=0.2:0.8:0.2 --tasks tasks.yml --few 50 --changed auto\n\nWith files of your own:\n  merganser tune recipe.yml -o best.yml --set lambda=0.2,0.4 --set density=0.1:0.9:0.2 --tasks tasks.yml --by entropy\n  merganser tune recipe.yml -o best.yml --set models.1.weight=0:1:0.1 --tasks tasks.yml --few 100 --random 8\n\nEvery candidate is merged and run on the samples of the tasks (docs/evaluate.md); labels are used where there are any.\nA search that was interrupted goes on when the same command is run again. See docs/tune.md."
)]
pub(crate) struct Tune {
    /// The recipe; every parameter that is searched must stand in it
    pub(crate) recipe: PathBuf,
    /// Where the best recipe is written; the log of the search is put beside it
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// A parameter and its values: NAME=V,V,… or NAME=FROM:TO:STEP; NAME, prior.NAME, models.I.NAME or defend.lambda (may be repeated)
    #[arg(long, value_name = "NAME=VALUES", required = true, value_parser = knob)]
    pub(crate) set: Vec<Knob>,
    /// A YAML or JSON file of classification tasks: samples and heads
    #[arg(long, value_name = "FILE")]
    pub(crate) tasks: PathBuf,
    /// What decides: snd, entropy, consistency, captured, source, few or accuracy [default: few with --few, else accuracy]
    #[arg(long, value_name = "STRATEGY")]
    pub(crate) by: Option<Strategy>,
    /// Take the accuracy of so many labelled samples of each task as `few`
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) few: usize,
    /// For `consistency`: the tasks with changed copies of the same samples, or `auto` to change these a little
    #[arg(long, value_name = "FILE|auto")]
    pub(crate) changed: Option<PathBuf>,
    /// Labelled tasks of other data, for `source`
    #[arg(long, value_name = "FILE")]
    pub(crate) source: Option<PathBuf>,
    /// Try so many random combinations instead of all
    #[arg(long, value_name = "N")]
    pub(crate) random: Option<usize>,
    /// Seed of the random combinations and of `--changed auto`
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Samples that are run together; scores do not depend on it
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) batch_size: u16,
    /// Replace a recipe that is already there
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Reads `NAME=V,V,…` or `NAME=FROM:TO:STEP`.
fn knob(text: &str) -> Result<Knob, String> {
    let (name, values) = text
        .split_once('=')
        .filter(|(name, values)| !name.trim().is_empty() && !values.trim().is_empty())
        .ok_or_else(|| format!("'{text}' is not NAME=VALUES, as in lambda=0.2,0.4"))?;
    let values = match values.split(':').collect::<Vec<_>>()[..] {
        [from, to, step] => range(from, to, step)?,
        [_] => values.split(',').map(|v| v.trim().to_owned()).collect(),
        _ => return Err(format!("'{values}' is not FROM:TO:STEP, as in 0.1:1.0:0.1")),
    };
    Ok(Knob {
        name: name.trim().to_owned(),
        values,
    })
}

fn range(from: &str, to: &str, step: &str) -> Result<Vec<String>, String> {
    let number = |text: &str| {
        text.trim()
            .parse::<f64>()
            .ok()
            .filter(|x| x.is_finite())
            .ok_or_else(|| format!("'{text}' is no number"))
    };
    let (from, to, step) = (number(from)?, number(to)?, number(step)?);
    let count = ((to - from) / step + 1e-9).floor();
    if step == 0.0 || !(0.0..MOST as f64).contains(&count) {
        return Err(format!(
            "the range from {from} to {to} in steps of {step} has no values, or more than {MOST}"
        ));
    }
    // Twelve digits: 0.1 + 0.2 is to be written as 0.3.
    let value = |i: usize| format!("{:.12}", from + i as f64 * step);
    Ok((0..=count as usize)
        .map(|i| {
            let text = value(i);
            let text = text.trim_end_matches('0').trim_end_matches('.');
            if text == "-0" {
                "0".into()
            } else {
                text.to_owned()
            }
        })
        .collect())
}

pub(crate) fn run(arguments: &Tune, memory: Option<u64>, output: &Output) -> Result<(), Failure> {
    if arguments.output.exists() && !arguments.overwrite {
        return Err(Failure::Usage(format!(
            "'{}' exists already; name another file, or give --overwrite",
            arguments.output.display()
        )));
    }
    let text = std::fs::read_to_string(&arguments.recipe).map_err(|error| {
        Failure::Usage(format!(
            "cannot read '{}': {error}",
            arguments.recipe.display()
        ))
    })?;
    let tasks = |path: &Option<PathBuf>| match path {
        Some(path) => read_tasks(path).map_err(failure),
        None => Ok(Vec::new()),
    };
    let of_models = memory.unwrap_or(USUAL_MEMORY);
    let evaluate = Options {
        batch_size: usize::from(arguments.batch_size),
        memory: of_models,
    };
    let automatic = arguments.changed.as_deref() == Some(Path::new("auto"));
    let options = TuneOptions {
        knobs: arguments.set.clone(),
        random: arguments.random.map(|n| (n, arguments.seed)),
        tasks: tasks(&Some(arguments.tasks.clone()))?,
        changed: tasks(&arguments.changed.clone().filter(|_| !automatic))?,
        change: automatic.then_some(arguments.seed),
        source: tasks(&arguments.source)?,
        labels: arguments.few,
        by: arguments.by,
        merge: MergeOptions {
            memory,
            ..MergeOptions::default()
        },
        evaluate,
    };
    if !options.changed.is_empty() && options.changed.len() != options.tasks.len() {
        return Err(Failure::Usage(format!(
            "there are {} tasks and {} tasks of changed copies; the files must list the same tasks in the same order",
            options.tasks.len(),
            options.changed.len()
        )));
    }
    let log = log_of(&arguments.output);
    let open = |text: &str| open(text, of_models);
    let found = merganser::tune(
        &arguments.recipe,
        &text,
        &log,
        &options,
        &Quiet,
        &open,
        &mut |number, of, values| {
            if output.json {
                Output::event(&json!({
                    "event": "candidate", "number": number + 1, "of": of, "values": values,
                }));
            } else {
                output.note(&format!("{} of {of}  {}", number + 1, shown(values)));
            }
        },
    )?;
    write(&arguments.output, &found.recipe)?;
    report(&found, arguments, &log, output)
}

fn log_of(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(".log");
    out.with_file_name(name)
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let bytes = text.as_bytes();
    let write = || {
        let file = NewFile::create(path, bytes.len() as u64, true)?;
        file.write_at(0, bytes)?;
        file.finish()
    };
    write().map_err(|error| Failure::Run(error.into()))
}

fn shown(values: &BTreeMap<String, String>) -> String {
    let each: Vec<String> = values.iter().map(|(k, v)| format!("{k}={v}")).collect();
    each.join(" ")
}

fn report(found: &Tuned, arguments: &Tune, log: &Path, output: &Output) -> Result<(), Failure> {
    if output.json {
        let mut event =
            serde_json::to_value(found).map_err(|error| Failure::Usage(error.to_string()))?;
        event["event"] = "finished".into();
        event["out"] = arguments.output.to_string_lossy().into();
        event["log"] = log.to_string_lossy().into();
        Output::event(&event);
        return Ok(());
    }
    for note in &found.notes {
        output.note(&format!("note: {note}"));
    }
    if found.resumed > 0 {
        output.note(&format!(
            "{} of {} candidates were measured by an earlier run",
            found.resumed,
            found.candidates.len()
        ));
    }
    crate::output::result(&text(found));
    output.note(&format!(
        "{} is best by {}; its recipe is {}",
        shown(&found.candidates[found.best].values),
        found.by.name(),
        arguments.output.display()
    ));
    Ok(())
}

/// The candidates, then what each strategy would have taken.
fn text(found: &Tuned) -> String {
    let measured: Vec<&str> = Strategy::ALL
        .into_iter()
        .map(Strategy::name)
        .filter(|name| {
            found
                .candidates
                .iter()
                .any(|c| c.scores.contains_key(*name))
        })
        .collect();
    let mut rows = vec![
        std::iter::once("candidate".to_owned())
            .chain(measured.iter().map(|&name| name.to_owned()))
            .collect::<Vec<String>>(),
    ];
    for candidate in &found.candidates {
        let mut row = vec![shown(&candidate.values)];
        row.extend(measured.iter().map(|name| {
            let value = candidate.scores.get(*name);
            value.map_or_else(|| "-".to_owned(), |x| format!("{x:.4}"))
        }));
        if candidate.collapsed.is_some() {
            row.push("collapsed".into());
        }
        rows.push(row);
    }
    let mut text = table(&rows);
    let labelled = found.choices.iter().any(|choice| choice.accuracy.is_some());
    let mut head = vec!["strategy".to_owned(), "takes".to_owned()];
    if labelled {
        head.extend(["accuracy there", "rank correlation with accuracy"].map(str::to_owned));
    }
    let mut rows = vec![head];
    for choice in &found.choices {
        let mut row = vec![
            choice.strategy.name().to_owned(),
            shown(&found.candidates[choice.candidate].values),
        ];
        if labelled {
            let number = |x: Option<f64>| x.map_or_else(|| "-".into(), |x| format!("{x:.3}"));
            row.extend([number(choice.accuracy), number(choice.agreement)]);
        }
        rows.push(row);
    }
    text.push('\n');
    text.push_str(&table(&rows));
    let mut collapsed = found.candidates.iter().filter(|c| c.collapsed.is_some());
    if let Some(first) = collapsed.next() {
        text.push_str(&format!(
            "\ncollapsed, not taken by snd, entropy or consistency: {} ({}){}\n",
            shown(&first.values),
            first.collapsed.as_deref().unwrap_or_default(),
            match collapsed.count() {
                0 => String::new(),
                more => format!(", and {more} more"),
            }
        ));
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges_of_values() {
        let of = |text: &str| knob(text).map(|knob| knob.values);
        assert_eq!(of("lambda=0.1:0.5:0.2").unwrap(), ["0.1", "0.3", "0.5"]);
        assert_eq!(of("lambda=1:0:-0.5").unwrap(), ["1", "0.5", "0"]);
        assert_eq!(of("basis=full, task").unwrap(), ["full", "task"]);
        for wrong in [
            "lambda",
            "=1",
            "lambda=",
            "a=1:2",
            "a=0:1:0",
            "a=0:1:x",
            "a=0:1e9:1",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
