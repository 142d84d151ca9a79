//! `merganser plan`: what a merge would read, write and need.

use std::collections::BTreeMap;
use std::fmt::Write;

use merganser::methods::{Settings, Value as Setting};
use merganser::plan::{Action, Output as Tensor, Plan as Planned};
use merganser::{Failure, MergeOptions, PlannedAdapter};
use serde_json::{Value, json};

use crate::cli::{Global, Plan};
use crate::commands::merge::{planning, read_recipe};
use crate::output::{Output, human};

pub(crate) fn run(arguments: &Plan, global: &Global, output: &Output) -> Result<(), Failure> {
    let text = read_recipe(&arguments.recipe)?;
    let options = MergeOptions {
        plan: planning(&arguments.planning)?,
        state_dict: arguments.planning.state_dict.then_some(true),
        ..MergeOptions::default()
    };
    if merganser::asks_for_adapter(&arguments.recipe, &text, &options)? {
        let planned = merganser::plan_adapters(&arguments.recipe, &text, &options)?;
        if output.json {
            Output::event(&adapter_json(&planned));
        } else {
            crate::output::result(&adapter_text(&planned));
        }
        return Ok(());
    }
    let threads = global.threads.map_or_else(
        || std::thread::available_parallelism().map_or(1, usize::from),
        usize::from,
    );
    for planned in merganser::plan_recipe(&arguments.recipe, &text, &options)? {
        for warning in &planned.plan.warnings {
            output.warning(warning, &planned.source);
        }
        if output.json {
            Output::event(&as_json(
                &planned.plan,
                planned.name.as_deref(),
                arguments,
                threads,
            ));
        } else {
            crate::output::result(&as_text(
                &planned.plan,
                planned.name.as_deref(),
                arguments,
                threads,
            ));
        }
    }
    Ok(())
}

fn adapter_text(planned: &PlannedAdapter) -> String {
    let mut text = format!("method    {}, written as an adapter\n", planned.method);
    for adapter in &planned.adapters {
        let _ = writeln!(text, "adapter   {adapter}");
    }
    for note in &planned.notes {
        let _ = writeln!(text, "note      {note}");
    }
    let _ = writeln!(
        text,
        "{} matrices; the rank of each adapter there:",
        planned.matrices.len()
    );
    for matrix in &planned.matrices {
        let ranks: Vec<String> = matrix.ranks.iter().map(usize::to_string).collect();
        let _ = writeln!(text, "  {}  {}", matrix.tensor, ranks.join(" "));
    }
    if planned.biases > 0 {
        let _ = writeln!(text, "{} biases of B", planned.biases);
    }
    text
}

fn adapter_json(planned: &PlannedAdapter) -> Value {
    let matrices: BTreeMap<&str, &[usize]> = planned
        .matrices
        .iter()
        .map(|matrix| (matrix.tensor.as_str(), matrix.ranks.as_slice()))
        .collect();
    json!({
        "method": planned.method,
        "output": "adapter",
        "adapters": planned.adapters,
        "ranks": matrices,
        "biases": planned.biases,
        "notes": planned.notes,
    })
}

/// Bytes of working memory of a merge with so many threads.
fn peak(plan: &Planned, threads: usize) -> u64 {
    plan.thread_bytes()
        .map_or(0, |(bytes, _)| bytes * threads as u64)
}

fn as_text(plan: &Planned, name: Option<&str>, arguments: &Plan, threads: usize) -> String {
    let info = plan.info();
    let mut text = String::new();
    if let Some(name) = name {
        let _ = writeln!(text, "document  {name}");
    }
    let _ = writeln!(text, "method    {}: {}", info.name, info.summary);
    for (i, model) in plan.models.iter().enumerate() {
        let files = model.checkpoint.files();
        let size: u64 = files.iter().map(|file| file.size).sum();
        let role = if plan.base == Some(i) {
            "base"
        } else {
            "model"
        };
        let adapter = model.adapter.as_ref().map_or(String::new(), |adapter| {
            format!(", adapter changes {} tensors", adapter.modules().len())
        });
        let _ = writeln!(
            text,
            "{role:<9} {}  ({} tensors, {}{adapter})",
            model.label,
            model.checkpoint.tensors().len(),
            human(size)
        );
    }
    let passes = plan
        .outputs
        .iter()
        .map(|output| plan.passes(output))
        .max()
        .unwrap_or(1);
    let reads: u64 = plan
        .outputs
        .iter()
        .map(|output| plan.input_bytes_of(output) * u64::from(plan.passes(output)))
        .sum();
    let _ = writeln!(
        text,
        "reads     {} in up to {passes} pass{}",
        human(reads),
        if passes == 1 { "" } else { "es" }
    );
    let shards = plan.shards.len();
    let _ = writeln!(
        text,
        "writes    {} tensors, {} in {shards} file{}",
        plan.outputs.len(),
        human(written(plan)),
        if shards == 1 { "" } else { "s" }
    );
    let _ = writeln!(
        text,
        "memory    about {} for buffers with {threads} thread{}",
        human(peak(plan, threads)),
        if threads == 1 { "" } else { "s" }
    );
    if let Some((bytes, name)) = merganser_run::matrix_bytes(plan) {
        let _ = writeln!(
            text,
            "          about {} for each matrix that is merged at a time ('{name}')",
            human(bytes)
        );
    }
    let mut kinds: BTreeMap<(&str, String), (usize, u64)> = BTreeMap::new();
    for tensor in &plan.outputs {
        let entry = kinds
            .entry((action(plan, tensor), tensor.dtype.to_string()))
            .or_default();
        entry.0 += 1;
        entry.1 += tensor.nbytes;
    }
    for ((what, dtype), (count, bytes)) in kinds {
        let _ = writeln!(text, "  {count:>6} × {what} → {dtype}  {}", human(bytes));
    }
    if info
        .parameters
        .iter()
        .any(|parameter| matches!(parameter.name, "seed"))
        || plan.seed != 0
    {
        let _ = writeln!(text, "seed      {}", plan.seed);
    }
    for note in &plan.notes {
        let _ = writeln!(text, "note      {note}");
    }
    if let Some(filter) = &arguments.tensors {
        let _ = writeln!(text);
        for tensor in plan
            .outputs
            .iter()
            .filter(|tensor| tensor.name.contains(filter.as_str()))
        {
            text.push_str(&tensor_text(plan, tensor));
        }
    }
    if let Some(parts) = arguments.parts {
        let _ = writeln!(
            text,
            "\nparts     shared out by output file; each reads and writes:"
        );
        for (i, part) in plan.parts(usize::from(parts)).iter().enumerate() {
            let _ = writeln!(
                text,
                "  {:>4}/{parts}  {:>2} {}  {}",
                i + 1,
                part.shards.len(),
                if part.shards.len() == 1 {
                    "file "
                } else {
                    "files"
                },
                human(part.cost)
            );
        }
        if usize::from(parts) > shards {
            let _ = writeln!(
                text,
                "  there are fewer files than parts: a smaller --out-shard-size would share the work better"
            );
        }
    }
    text
}

/// Bytes of all tensors, those beside the model included.
fn written(plan: &Planned) -> u64 {
    plan.outputs.iter().map(|output| output.nbytes).sum()
}

fn action(plan: &Planned, tensor: &Tensor) -> &'static str {
    match &tensor.action {
        _ if tensor.extra.is_some() => "stored beside the model",
        Action::Copy(_) => "copied",
        Action::Cast { .. } => "converted",
        Action::Identical(_) => "compared and copied",
        Action::Merge { .. } => plan.method.info().name,
    }
}

fn tensor_text(plan: &Planned, tensor: &Tensor) -> String {
    let mut text = format!(
        "{}  {:?} {}  {}  gradient position {:.3}\n",
        tensor.name,
        tensor.shape,
        tensor.dtype,
        action(plan, tensor),
        tensor.t
    );
    let settings = match &tensor.action {
        Action::Merge { settings, .. } => Some(settings),
        _ => None,
    };
    if let Some(shared) = settings.filter(|settings| !settings.shared.is_empty()) {
        let _ = writeln!(text, "    {}", pairs(&shared.shared));
    }
    for (i, input) in tensor.inputs().iter().enumerate() {
        let own = settings
            .and_then(|settings| settings.inputs.get(i))
            .map(pairs)
            .unwrap_or_default();
        let _ = writeln!(
            text,
            "    {} {}  {own}",
            plan.models[input.model].label, input.tensor
        );
    }
    text
}

fn pairs(values: &BTreeMap<&'static str, Setting>) -> String {
    values
        .iter()
        .map(|(name, value)| match value {
            Setting::Float(x) => format!("{name} = {}", short(*x)),
            other => format!("{name} = {other}"),
        })
        .collect::<Vec<_>>()
        .join(", ")
}

/// A number with as many digits as a reader wants.
fn short(x: f64) -> String {
    if x != 0.0 && x.abs() < 1e-4 {
        return format!("{x:e}");
    }
    let text = format!("{x:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn as_json(plan: &Planned, name: Option<&str>, arguments: &Plan, threads: usize) -> Value {
    let tensors: Vec<Value> = plan
        .outputs
        .iter()
        .filter(|tensor| arguments.tensors.as_deref().is_none_or(|filter| tensor.name.contains(filter)))
        .map(|tensor| {
            let settings = match &tensor.action {
                Action::Merge { settings, .. } => Some(settings_json(settings)),
                _ => None,
            };
            json!({
                "name": tensor.name,
                "shape": tensor.stored_shape(),
                "dtype": tensor.dtype.to_string(),
                "bytes": tensor.nbytes,
                "file": plan.shards[tensor.shard].file,
                "offset": tensor.offset,
                "action": action(plan, tensor),
                "t": tensor.t,
                "inputs": tensor.inputs().iter().map(|input| json!({ "model": plan.models[input.model].label, "tensor": input.tensor })).collect::<Vec<_>>(),
                "settings": settings,
            })
        })
        .collect();
    json!({
        "document": name,
        "method": plan.method.info().name,
        "digest": plan.digest,
        "seed": plan.seed,
        "models": plan.models.iter().map(|model| model.label.as_str()).collect::<Vec<_>>(),
        "base": plan.base.map(|base| plan.models[base].label.as_str()),
        "read_bytes": plan.outputs.iter().map(|output| plan.input_bytes_of(output) * u64::from(plan.passes(output))).sum::<u64>(),
        "write_bytes": written(plan),
        "buffer_bytes": peak(plan, threads),
        "matrix_bytes": merganser_run::matrix_bytes(plan).map(|(bytes, _)| bytes),
        "files": plan.shards.iter().map(|shard| json!({ "name": shard.file, "size": shard.size, "tensors": shard.outputs.len() })).collect::<Vec<_>>(),
        "notes": plan.notes,
        "tensors": tensors,
        "parts": arguments.parts.map(|parts| plan.parts(usize::from(parts)).iter().map(|part| json!({ "files": part.shards.iter().map(|i| plan.shards[*i].file.as_str()).collect::<Vec<_>>(), "bytes": part.cost })).collect::<Vec<_>>()),
    })
}

fn settings_json(settings: &Settings) -> Value {
    let object = |values: &BTreeMap<&'static str, Setting>| -> Value {
        values
            .iter()
            .map(|(name, value)| {
                let value = match value {
                    Setting::Float(x) => json!(x),
                    Setting::Int(x) => json!(x),
                    Setting::Bool(x) => json!(x),
                    Setting::Text(x) => json!(x),
                };
                ((*name).to_owned(), value)
            })
            .collect::<serde_json::Map<String, Value>>()
            .into()
    };
    json!({ "shared": object(&settings.shared), "inputs": settings.inputs.iter().map(object).collect::<Vec<_>>() })
}
