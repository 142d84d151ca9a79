//! `merganser merge`: from a recipe to a model.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::Read;
use std::path::Path;

use merganser::plan::{Missing, Options};
use merganser::recipe::FloatType;
use merganser::store::Dtype;
use merganser::{Failure, MergeOptions};
use serde_json::json;

use crate::cli::{Merge, Planning};
use crate::output::{Output, human};
use crate::progress::Progress;

pub(crate) fn run(arguments: &Merge, memory: Option<u64>, output: &Output) -> Result<(), Failure> {
    let text = read_recipe(&arguments.recipe)?;
    let options = MergeOptions {
        plan: planning(&arguments.planning)?,
        state_dict: arguments.planning.state_dict.then_some(true),
        overwrite: arguments.overwrite,
        allow_nonfinite: arguments.allow_nonfinite,
        no_sync: arguments.no_sync,
        part: arguments.part.as_deref().map(part).transpose()?,
        memory,
        card: !arguments.no_card,
        hash_inputs: arguments.hash_inputs,
        intermediate: arguments.intermediate_dir.clone(),
        continued: arguments.continued.clone(),
        compared: Vec::new(),
    };
    let ignored = arguments.ignored.given();
    if !ignored.is_empty() {
        output.note(&format!(
            "note: {} makes no difference here",
            ignored.join(", ")
        ));
    }
    let progress = Progress::new(output);
    if merganser::asks_for_adapter(&arguments.recipe, &text, &options)? {
        return adapter(arguments, &text, &options, &progress, output);
    }
    let done = merganser::merge_recipe(
        &arguments.recipe,
        &text,
        &arguments.out,
        &options,
        &progress,
    );
    let (bytes, seconds) = progress.finish();
    let done = done?;
    for planned in &done {
        for warning in &planned.plan.warnings {
            output.warning(warning, &planned.source);
        }
        for note in &planned.plan.notes {
            output.note(&format!("note: {note}"));
        }
        let said = |text: &String| planned.plan.warnings.iter().any(|w| &w.message == text);
        let found = planned.report.iter().flat_map(|report| &report.warnings);
        for text in found.filter(|text| !said(text)) {
            output.note(&format!("note: {text}"));
        }
    }
    let Some(last) = done.last() else {
        return Ok(());
    };
    let out = arguments.out.display();
    if output.json {
        Output::event(&json!({
            "event": "finished",
            "out": arguments.out.to_string_lossy(),
            "method": last.plan.info().name,
            "tensors": last.plan.tensors().count(),
            "output_bytes": last.plan.output_bytes(),
            "moved_bytes": bytes,
            "seconds": seconds,
            "plan": last.plan.digest,
            "notes": last.plan.notes,
        }));
        return Ok(());
    }
    let rate = human((bytes as f64 / seconds.max(1e-9)) as u64);
    let size = human(last.plan.output_bytes());
    match options.part {
        None => output.note(&format!(
            "merged {} tensors ({size}) by {} into {out} in {seconds:.1} s ({rate}/s)",
            last.plan.tensors().count(),
            last.plan.info().name,
        )),
        Some((part, parts)) => output.note(&format!("part {part} of {parts} is finished in {seconds:.1} s; when all are: merganser seal {out}")),
    }
    Ok(())
}

fn adapter(
    arguments: &Merge,
    text: &str,
    options: &MergeOptions,
    progress: &Progress,
    output: &Output,
) -> Result<(), Failure> {
    let (recipe, out) = (&arguments.recipe, &arguments.out);
    let done = merganser::merge_adapters(recipe, text, out, options, progress);
    let (_, seconds) = progress.finish();
    let done = done?;
    for note in &done.notes {
        output.note(&format!("note: {note}"));
    }
    if output.json {
        Output::event(&json!({
            "event": "finished",
            "out": out.to_string_lossy(),
            "method": done.method,
            "ranks": done.ranks.iter().cloned().collect::<BTreeMap<_, _>>(),
            "biases": done.biases,
            "saved": done.saved,
            "output_bytes": done.bytes,
            "seconds": seconds,
            "notes": done.notes,
        }));
        return Ok(());
    }
    let ranks = || done.ranks.iter().map(|(_, rank)| *rank);
    let rank = match (ranks().min(), ranks().max()) {
        (Some(least), Some(most)) if least < most => format!("ranks {least} to {most}"),
        (_, most) => format!("rank {}", most.unwrap_or(0)),
    };
    let mut more = String::new();
    for (count, what) in [
        (done.biases, "biases of B"),
        (done.saved, "tensors that are saved whole"),
    ] {
        if count > 0 {
            let _ = write!(more, " and {count} {what}");
        }
    }
    output.note(&format!(
        "merged adapters of {} modules ({rank}){more} by {} into the adapter {} ({}) in {seconds:.1} s",
        done.ranks.len(),
        done.method,
        out.display(),
        human(done.bytes)
    ));
    Ok(())
}

/// Reads a recipe file, or standard input for `-`.
pub(crate) fn read_recipe(path: &Path) -> Result<String, Failure> {
    let fail = |error: std::io::Error| {
        Failure::Usage(format!(
            "cannot read the recipe '{}': {error}",
            path.display()
        ))
    };
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(fail)?;
        return Ok(text);
    }
    let bytes = std::fs::read(path).map_err(fail)?;
    String::from_utf8(bytes).map_err(|error| {
        Failure::Usage(format!(
            "the recipe '{}' is not UTF-8 text (byte {})",
            path.display(),
            error.utf8_error().valid_up_to()
        ))
    })
}

/// The planner's options from the command line.
pub(crate) fn planning(arguments: &Planning) -> Result<Options, Failure> {
    let adapter_dtype = arguments
        .lora_merge_dtype
        .as_deref()
        .map(float)
        .transpose()?;
    Ok(Options {
        lenient: arguments.lenient,
        allow_crimes: arguments.allow_crimes,
        allow_missing: arguments.allow_missing,
        truncate_embeddings: arguments.unsafe_truncate_embeddings,
        adapter_dtype,
        shard_size: arguments.out_shard_size,
        state_dict: arguments.state_dict,
        missing: match (arguments.tensor_intersection, arguments.tensor_union) {
            (true, _) => Missing::Intersection,
            (_, true) => Missing::Union,
            _ => Missing::Error,
        },
        seed: arguments.seed,
    })
}

fn float(name: &str) -> Result<Dtype, Failure> {
    let dtype = FloatType::from_name(name).and_then(|float| Dtype::from_torch_name(float.name()));
    dtype.ok_or_else(|| {
        Failure::Usage(format!(
            "--lora-merge-dtype: '{name}' is no type; use float32, bfloat16 or float16"
        ))
    })
}

/// Reads `3/16`, or `auto/16` with the number taken from the scheduler's environment.
fn part(text: &str) -> Result<(usize, usize), Failure> {
    let fail = || {
        Failure::Usage(format!(
            "--part '{text}': write it as 3/16, or auto/16 inside a job array"
        ))
    };
    let (index, count) = text.split_once('/').ok_or_else(fail)?;
    let count: usize = count
        .parse()
        .ok()
        .filter(|count| *count > 0)
        .ok_or_else(fail)?;
    let index = if index == "auto" {
        from_scheduler(text)?
    } else {
        index.parse().map_err(|_| fail())?
    };
    if index == 0 || index > count {
        return Err(Failure::Usage(format!(
            "--part {index}/{count}: parts count from 1 to {count}"
        )));
    }
    Ok((index, count))
}

fn from_scheduler(text: &str) -> Result<usize, Failure> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
    if let Some(task) = number("SLURM_ARRAY_TASK_ID") {
        // Arrays may start anywhere; the first task is part 1.
        return Ok((task + 1).saturating_sub(number("SLURM_ARRAY_TASK_MIN").unwrap_or(1)));
    }
    // Kubernetes counts from 0.
    number("JOB_COMPLETION_INDEX")
        .map(|index| index + 1)
        .ok_or_else(|| {
            Failure::Usage(format!(
                "--part {text}: neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set"
            ))
        })
}
