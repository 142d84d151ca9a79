//! `merganser inspect`: what models are made of and how they differ from the first one.

use std::fmt::Write;

use merganser::Failure;
use merganser::plan::Model;
use merganser::recipe::ModelRef;
use merganser::run::Opener;
use merganser::run::compare::{Comparison, Difference, Sums, compare};
use merganser::run::describe::{Amount, Description, Stack, describe};
use merganser::run::spectra::{MatrixSpectra, Wanted, spectra};
use serde_json::{Value, json};

use super::spectra::{MERGED, Spectra};
use crate::cli::Inspect;
use crate::output::{Output, human};
use crate::table::table;

pub(crate) fn run(
    arguments: &Inspect,
    memory: Option<u64>,
    output: &Output,
) -> Result<(), Failure> {
    let wants_spectra = arguments.spectra || arguments.alignment;
    if wants_spectra && arguments.models.len() < 2 {
        return Err(Failure::Usage(
            "--spectra and --alignment are about task vectors: name the base first, then its fine-tunes".into(),
        ));
    }
    let opener = Opener::new(None);
    let models: Vec<Model> = arguments
        .models
        .iter()
        .map(|text| open(&opener, text))
        .collect::<Result<_, _>>()?;
    let comparison = match models.len() {
        1 => None,
        _ => Some(compare(&models)?),
    };
    let filter = arguments.tensors.as_deref();
    let matrices = if wants_spectra {
        decompose(arguments, &models, &opener, memory)?
    } else {
        Vec::new()
    };
    let decomposed = wants_spectra.then(|| named(arguments, &models, &matrices));
    if output.json {
        let mut event = json!({
            "models": models.iter().map(|model| model_json(model, filter)).collect::<Vec<_>>(),
            "comparison": comparison.as_ref().map(|found| comparison_json(found, &models, filter)),
        });
        if let Some(found) = &decomposed {
            event["spectra"] = found.json(filter);
        }
        Output::event(&event);
        return Ok(());
    }
    let mut text = String::new();
    for model in &models {
        text.push_str(&model_text(&describe(model)));
        if let Some(filter) = filter.filter(|_| comparison.is_none()) {
            text.push('\n');
            text.push_str(&tensors_text(model, filter));
        }
        text.push('\n');
    }
    if let Some(comparison) = &comparison {
        text.push_str(&comparison_text(comparison, &models, filter));
    }
    if let Some(found) = &decomposed {
        text.push_str(&found.text(filter));
    }
    crate::output::result(text.trim_end());
    Ok(())
}

/// Decomposes the task vectors of all matrices.
fn decompose(
    arguments: &Inspect,
    models: &[Model],
    opener: &Opener,
    memory: Option<u64>,
) -> Result<Vec<MatrixSpectra>, Failure> {
    let mut models = models.to_vec();
    if let Some(merged) = &arguments.merged {
        models.push(open(opener, merged)?);
    }
    let wanted = Wanted {
        spectra: arguments.spectra,
        alignment: arguments.alignment,
        merged: arguments.merged.as_ref().map(|_| models.len() - 1),
    };
    Ok(spectra(&models, wanted, memory)?)
}

/// What was found, with names: task vectors go by their numbers, as in the comparison.
fn named<'a>(arguments: &Inspect, models: &[Model], matrices: &'a [MatrixSpectra]) -> Spectra<'a> {
    let mut labels: Vec<String> = (1..models.len()).map(|t| format!("[{t}]")).collect();
    if arguments.merged.is_some() {
        labels.push(MERGED.into());
    }
    let merged = arguments.merged.as_deref();
    Spectra {
        matrices,
        labels,
        merged: merged.unwrap_or("the sum of all task vectors").to_owned(),
    }
}

fn open(opener: &Opener, text: &str) -> Result<Model, Failure> {
    let reference: ModelRef = text
        .parse()
        .map_err(|error| Failure::Usage(format!("'{text}' names no model: {error}")))?;
    opener
        .model(&reference)
        .map_err(|reason| Failure::Usage(format!("cannot open model {reference}: {reason}")))
}

/// Names of a model's tensors that contain `filter`, in layer order.
fn names<'a>(model: &'a Model, filter: &str) -> Vec<&'a str> {
    let mut names: Vec<&str> = model.names().filter(|name| name.contains(filter)).collect();
    names.sort_by_key(|name| merganser::run::compare::place(name));
    names
}

fn model_text(found: &Description) -> String {
    let mut rows = Vec::new();
    let mut row = |title: &str, text: String| rows.push((title.to_owned(), text));
    row("model", found.label.clone());
    if let Some(kind) = &found.model_type {
        row("type", kind.clone());
    }
    let size: u64 = found.files.iter().map(|(_, size)| size).sum();
    row(
        "files",
        format!(
            "{}, {}",
            counted(found.files.len() as u64, "file"),
            human(size)
        ),
    );
    row("tensors", amount(found.total));
    for (dtype, part) in &found.dtypes {
        row("", format!("{dtype}: {}", amount(*part)));
    }
    for stack in &found.stacks {
        row("layers", stack_text(stack));
    }
    if !found.stacks.is_empty() && found.outside.tensors > 0 {
        row("", format!("outside of layers: {}", amount(found.outside)));
    }
    if let Some(adapter) = &found.adapter {
        let mut text = format!(
            "{} changed by low-rank updates",
            counted(adapter.low_rank as u64, "tensor")
        );
        if let Some((least, most)) = adapter.ranks {
            let _ = if least == most {
                write!(text, " of rank {least}")
            } else {
                write!(text, " of rank {least} to {most}")
            };
        }
        if adapter.replaced > 0 {
            let _ = write!(text, ", {} replaced", adapter.replaced);
        }
        if adapter.shifted > 0 {
            let _ = write!(text, ", {} shifted", adapter.shifted);
        }
        let _ = write!(text, "; {}", human(adapter.amount.bytes));
        if let Some(base) = &adapter.trained_on {
            let _ = write!(text, "; trained on {base}");
        }
        row("adapter", text);
    }
    for note in &found.notes {
        row("note", note.clone());
    }
    let mut text = String::new();
    for (title, line) in rows {
        let _ = writeln!(text, "{title:<9} {line}");
    }
    text
}

fn stack_text(stack: &Stack) -> String {
    let each = if stack.least == stack.most {
        format!("each {}", amount(stack.most))
    } else {
        format!(
            "each {} to {} parameters",
            quantity(stack.least.parameters),
            quantity(stack.most.parameters)
        )
    };
    format!(
        "{}: {}, {each}; in all {}",
        stack.name,
        counted(stack.layers as u64, "layer"),
        amount(stack.total)
    )
}

fn tensors_text(model: &Model, filter: &str) -> String {
    let rows: Vec<Vec<String>> = names(model, filter)
        .into_iter()
        .filter_map(|name| {
            let (dtype, shape) = model.describe(name)?;
            let adapted = if model.deltas(name).is_empty() {
                ""
            } else {
                "adapter"
            };
            let bytes = (shape.iter().product::<usize>() * dtype.size()) as u64;
            Some(vec![
                name.to_owned(),
                dtype.to_string(),
                shape_text(shape),
                human(bytes),
                adapted.to_owned(),
            ])
        })
        .collect();
    if rows.is_empty() {
        return format!("no tensor's name contains '{filter}'\n");
    }
    // Most models have no adapter: no spaces at the ends of lines then.
    table(&rows)
        .lines()
        .fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

fn comparison_text(found: &Comparison, models: &[Model], filter: Option<&str>) -> String {
    let count = found.total.count;
    let number = |t: usize| format!("[{}]", t + 1);
    let mut text = String::new();
    let _ = writeln!(
        text,
        "compared with {}: {} of real numbers, {} parameters\n",
        models[0].label,
        counted(deltas(found).count() as u64, "tensor"),
        quantity(found.total.elements)
    );
    let cells = |row: &[&str]| {
        row.iter()
            .map(|cell| (*cell).to_owned())
            .collect::<Vec<_>>()
    };
    let mut rows = vec![cells(&[
        "task vector",
        "norm",
        "of the base's",
        "unchanged",
    ])];
    for (t, model) in models[1..].iter().enumerate() {
        rows.push(vec![
            format!("{} {}", number(t), model.label),
            float(Some(found.total.norm(t))),
            float(found.total.relative(t)),
            percent(found.total.unchanged(t)),
        ]);
    }
    text.push_str(&table(&rows));
    if count > 1 {
        let mut square = |title: &str, cell: &dyn Fn(usize, usize) -> String| {
            let head = std::iter::once(title.to_owned())
                .chain((0..count).map(number))
                .collect();
            let rows: Vec<Vec<String>> = std::iter::once(head)
                .chain((0..count).map(|s| {
                    std::iter::once(number(s))
                        .chain((0..count).map(|t| cell(s, t)))
                        .collect()
                }))
                .collect();
            let _ = write!(text, "\n{}", table(&rows));
        };
        square("cosine", &|s, t| cosine(found.total.cosine(s, t)));
        square("opposite signs", &|s, t| {
            percent(found.total.conflict(s, t))
        });
    }
    // A table has no room for every pair of many models; --json has them all.
    let shown: Vec<(usize, usize)> = pairs(count).take_while(|_| count <= 3).collect();
    let head = || {
        let norms = (0..count).map(|t| format!("norm {}", number(t)));
        let same = (0..count).map(|t| format!("unchanged {}", number(t)));
        let both = |(s, t): &(usize, usize)| format!("{}{}", number(*s), number(*t));
        let angles = shown
            .iter()
            .map(move |pair| format!("cosine {}", both(pair)));
        let signs = shown
            .iter()
            .map(move |pair| format!("opposite {}", both(pair)));
        norms.chain(same).chain(angles).chain(signs)
    };
    let line = |sums: &Sums| -> Vec<String> {
        let norms = (0..count).map(|t| float(sums.relative(t)));
        let same = (0..count).map(|t| percent(sums.unchanged(t)));
        let angles = shown.iter().map(|(s, t)| cosine(sums.cosine(*s, *t)));
        let signs = shown.iter().map(|(s, t)| percent(sums.conflict(*s, *t)));
        norms.chain(same).chain(angles).chain(signs).collect()
    };
    let listing = |title: &str, items: &mut dyn Iterator<Item = (&str, &Sums)>| {
        let mut rows = vec![
            std::iter::once(title.to_owned())
                .chain(head())
                .collect::<Vec<_>>(),
        ];
        rows.extend(
            items.map(|(name, sums)| std::iter::once(name.to_owned()).chain(line(sums)).collect()),
        );
        table(&rows)
    };
    let mut layers = found
        .layers
        .iter()
        .map(|(name, sums)| (name.as_str(), sums));
    let _ = write!(
        text,
        "\n{}",
        listing("layer (norms relative to the base's)", &mut layers)
    );
    if let Some(filter) = filter {
        let mut tensors = deltas(found).filter(|(name, _)| name.contains(filter));
        let _ = write!(
            text,
            "\n{}",
            listing("tensor (norms relative to the base's)", &mut tensors)
        );
    }
    let whole = found
        .tensors
        .iter()
        .filter_map(|tensor| match &tensor.result {
            Difference::Equal(same) => Some((&tensor.name, same)),
            Difference::Deltas(_) => None,
        });
    for (name, same) in whole {
        let differ: Vec<String> = (0..count).filter(|t| !same[*t]).map(number).collect();
        if differ.is_empty() {
            let _ = writeln!(text, "\nequal     {name} (not real numbers)");
        } else {
            let _ = writeln!(
                text,
                "\ndiffers   {name} (not real numbers) in {}",
                differ.join(", ")
            );
        }
    }
    if !found.skipped.is_empty() {
        let _ = writeln!(text, "\nnot compared:");
        for skipped in &found.skipped {
            let _ = writeln!(text, "  {}: {}", skipped.name, skipped.reason);
        }
    }
    text
}

/// The compared tensors of real numbers.
fn deltas(found: &Comparison) -> impl Iterator<Item = (&str, &Sums)> {
    found
        .tensors
        .iter()
        .filter_map(|tensor| match &tensor.result {
            Difference::Deltas(sums) => Some((tensor.name.as_str(), sums)),
            Difference::Equal(_) => None,
        })
}

/// Pairs of different task vectors.
fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |s| (s + 1..count).map(move |t| (s, t)))
}

fn model_json(model: &Model, filter: Option<&str>) -> Value {
    let mut object = serde_json::to_value(describe(model)).unwrap_or_default();
    let tensors = names(model, filter.unwrap_or_default())
        .into_iter()
        .filter_map(|name| {
            let (dtype, shape) = model.describe(name)?;
            Some(json!({
                "name": name,
                "dtype": dtype.to_string(),
                "shape": shape,
                "bytes": shape.iter().product::<usize>() * dtype.size(),
                "changed_by_adapter": !model.deltas(name).is_empty(),
            }))
        });
    object["tensors"] = tensors.collect();
    object
}

fn comparison_json(found: &Comparison, models: &[Model], filter: Option<&str>) -> Value {
    let tensors = found
        .tensors
        .iter()
        .filter(|tensor| filter.is_none_or(|filter| tensor.name.contains(filter)));
    let tensors = tensors.map(|tensor| {
        let mut object = match &tensor.result {
            Difference::Deltas(sums) => sums_json(sums),
            Difference::Equal(same) => json!({ "equal": same }),
        };
        object["name"] = tensor.name.as_str().into();
        object["shape"] = tensor.shape.clone().into();
        object["dtypes"] = tensor
            .dtypes
            .iter()
            .map(|dtype| Value::from(dtype.to_string()))
            .collect();
        object
    });
    let layers = found.layers.iter().map(|(name, sums)| {
        let mut object = sums_json(sums);
        object["name"] = name.as_str().into();
        object
    });
    json!({
        "base": models[0].label,
        "models": models[1..].iter().map(|model| model.label.as_str()).collect::<Vec<_>>(),
        "total": sums_json(&found.total),
        "layers": layers.collect::<Vec<_>>(),
        "tensors": tensors.collect::<Vec<_>>(),
        "not_compared": found.skipped.iter().map(|skipped| json!({ "name": skipped.name, "reason": skipped.reason })).collect::<Vec<_>>(),
    })
}

fn sums_json(sums: &Sums) -> Value {
    let all = 0..sums.count;
    let square = |cell: &dyn Fn(usize, usize) -> Value| -> Value {
        let rows = all
            .clone()
            .map(|s| all.clone().map(|t| cell(s, t)).collect::<Vec<_>>());
        rows.collect::<Vec<_>>().into()
    };
    json!({
        "elements": sums.elements,
        "base_norm": sums.base.sqrt(),
        "norm": all.clone().map(|t| sums.norm(t)).collect::<Vec<_>>(),
        "relative_norm": all.clone().map(|t| sums.relative(t)).collect::<Vec<_>>(),
        "unchanged": all.clone().map(|t| sums.unchanged(t)).collect::<Vec<_>>(),
        "cosine": square(&|s, t| sums.cosine(s, t).into()),
        "sign_conflict": square(&|s, t| sums.conflict(s, t).into()),
    })
}

fn amount(amount: Amount) -> String {
    let parameters = match amount.parameters {
        1 => "1 parameter".into(),
        n => format!("{} parameters", quantity(n)),
    };
    format!(
        "{}, {parameters}, {}",
        counted(amount.tensors, "tensor"),
        human(amount.bytes)
    )
}

fn counted(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// A large number for people: `7.24 billion`.
fn quantity(n: u64) -> String {
    match n {
        n if n >= 1_000_000_000 => format!("{:.2} billion", n as f64 / 1e9),
        n if n >= 1_000_000 => format!("{:.2} million", n as f64 / 1e6),
        n => n.to_string(),
    }
}

fn shape_text(shape: &[usize]) -> String {
    if shape.is_empty() {
        return "scalar".into();
    }
    shape
        .iter()
        .map(usize::to_string)
        .collect::<Vec<_>>()
        .join("×")
}

/// Four significant digits.
fn float(x: Option<f64>) -> String {
    match x {
        None => "-".into(),
        Some(0.0) => "0".into(),
        Some(x) if (1e-3..1e5).contains(&x.abs()) => {
            let digits = (3 - x.abs().log10().floor() as i32).max(0) as usize;
            format!("{x:.digits$}")
        }
        Some(x) => format!("{x:.3e}"),
    }
}

fn cosine(x: Option<f64>) -> String {
    x.map_or_else(|| "-".into(), |x| format!("{x:.3}"))
}

/// A share. What is not all or nothing is never shown as 0 % or 100 %.
fn percent(share: f64) -> String {
    let shown = format!("{:.1} %", share * 100.0);
    match shown.as_str() {
        "0.0 %" if share > 0.0 => "< 0.1 %".into(),
        "100.0 %" if share < 1.0 => "> 99.9 %".into(),
        _ => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(float(Some(0.012_345)), "0.01235");
        assert_eq!(float(Some(12.345_67)), "12.35");
        assert_eq!(float(Some(1e-7)), "1.000e-7");
        assert_eq!(float(Some(0.0)), "0");
        assert_eq!(float(None), "-");
        assert_eq!(quantity(7_241_732_096), "7.24 billion");
        assert_eq!(
            (quantity(0), counted(1, "tensor")),
            ("0".into(), "1 tensor".into())
        );
    }

    #[test]
    fn shares_never_pretend_to_be_all_or_nothing() {
        assert_eq!(
            (percent(0.0).as_str(), percent(1.0).as_str()),
            ("0.0 %", "100.0 %")
        );
        assert_eq!(
            (percent(1e-6).as_str(), percent(0.999_999).as_str()),
            ("< 0.1 %", "> 99.9 %")
        );
        assert_eq!(percent(0.1234), "12.3 %");
    }
}
