//! `merganser methods`: the registry, for people.

use std::fmt::Write;

use merganser::Failure;
use merganser::methods::{
    Arity, BasePolicy, Kind, MethodInfo, Parameter, Scope, Value, calibrated, descriptions,
};
use merganser::recipe::nearest;
use serde_json::json;

use crate::cli::Methods;
use crate::output::Output;

pub(crate) fn run(arguments: &Methods, output: &Output) -> Result<(), Failure> {
    let Some(name) = &arguments.name else {
        if output.json {
            for info in descriptions() {
                Output::event(&as_json(info));
            }
        } else {
            crate::output::result(&list());
        }
        return Ok(());
    };
    let Some(info) = descriptions().find(|info| info.name == name) else {
        let hint = nearest(name, descriptions().map(|info| info.name));
        let hint = hint.map_or(String::new(), |near| format!("; did you mean '{near}'?"));
        return Err(Failure::Usage(format!(
            "there is no merge method called '{name}'{hint}"
        )));
    };
    if output.json {
        Output::event(&as_json(info));
    } else {
        crate::output::result(&explain(info));
    }
    Ok(())
}

/// Where a method stands in the list.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    Mergekit,
    Beyond,
    Calibrated,
}

fn list() -> String {
    let width = descriptions()
        .map(|info| info.name.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    let needs_data = |info: &MethodInfo| calibrated().iter().any(|other| other.name == info.name);
    for (group, title) in [
        (Group::Mergekit, "mergekit's methods"),
        (Group::Beyond, "beyond mergekit"),
        (
            Group::Calibrated,
            "with whole matrices and calibration data",
        ),
    ] {
        let _ = writeln!(text, "{title}:");
        for info in descriptions().filter(|info| {
            group
                == match info {
                    _ if needs_data(info) => Group::Calibrated,
                    _ if info.in_mergekit => Group::Mergekit,
                    _ => Group::Beyond,
                }
        }) {
            let _ = writeln!(text, "  {:<width$}  {}", info.name, info.summary);
        }
        text.push('\n');
    }
    text.push_str("`merganser methods NAME` explains one.\n");
    text
}

fn explain(info: &MethodInfo) -> String {
    let mut text = format!("{}: {}\n\n", info.name, info.summary);
    for line in info.formula.lines() {
        let _ = writeln!(text, "    {line}");
    }
    let _ = writeln!(text, "\nbase model  {}", base(info.base));
    let _ = writeln!(text, "models      {}", arity(info));
    let _ = writeln!(text, "source      {}", info.source);
    if info.parameters.is_empty() {
        text.push_str("\nIt has no parameters.\n");
        return text;
    }
    text.push_str("\nparameters:\n");
    let width = info
        .parameters
        .iter()
        .map(|p| p.name.len())
        .max()
        .unwrap_or(0);
    for parameter in info.parameters {
        let _ = writeln!(text, "  {:<width$}  {}", parameter.name, parameter.summary);
        let _ = writeln!(
            text,
            "  {:<width$}  {}; {}; {}",
            "",
            kind(parameter.kind),
            scope(parameter.scope),
            fallback(parameter)
        );
    }
    text
}

fn base(policy: BasePolicy) -> &'static str {
    match policy {
        BasePolicy::Required => "required",
        BasePolicy::Optional => "optional",
        BasePolicy::Ignored => "one more input, if given",
    }
}

fn arity(info: &MethodInfo) -> String {
    let besides = if info.base == BasePolicy::Ignored {
        ""
    } else {
        " besides the base"
    };
    match info.inputs {
        Arity {
            min,
            max: Some(max),
        } if min == max => format!("exactly {min}{besides}"),
        Arity {
            min,
            max: Some(max),
        } => format!("{min} to {max}{besides}"),
        Arity { min, max: None } => format!("{min} or more{besides}"),
    }
}

fn kind(kind: Kind) -> String {
    let bound = |x: f64| {
        if x.is_finite() {
            format!("{x}")
        } else {
            "…".into()
        }
    };
    match kind {
        Kind::Float { min, max } if min.is_infinite() && max.is_infinite() => "a number".into(),
        Kind::Float { min, max } => format!("a number, {} to {}", bound(min), bound(max)),
        Kind::FloatOrWord { min, max, word } => {
            format!("a number, {} to {}, or {word}", bound(min), bound(max))
        }
        Kind::Int { min, max: i64::MAX } => format!("a whole number, {min} or more"),
        Kind::Int { min, max } => format!("a whole number, {min} to {max}"),
        Kind::Bool => "true or false".into(),
        Kind::Choice(words) => words.join(" | "),
        Kind::Text => "a text".into(),
        Kind::File => "path of a checkpoint".into(),
    }
}

fn scope(scope: Scope) -> &'static str {
    match scope {
        Scope::Shared => "for the merge",
        Scope::PerInput => "per model",
    }
}

fn fallback(parameter: &Parameter) -> String {
    match parameter.default {
        Some(value) => format!("default {}", Value::from(value)),
        None if parameter.required => "required".into(),
        None => "not set by default".into(),
    }
}

fn as_json(info: &MethodInfo) -> serde_json::Value {
    json!({
        "name": info.name,
        "summary": info.summary,
        "formula": info.formula,
        "source": info.source,
        "in_mergekit": info.in_mergekit,
        "base_model": base(info.base),
        "models": { "min": info.inputs.min, "max": info.inputs.max },
        "parameters": info.parameters.iter().map(|p| json!({
            "name": p.name,
            "kind": kind(p.kind),
            "scope": scope(p.scope),
            "default": p.default.map(|value| Value::from(value).to_string()),
            "required": p.required,
            "summary": p.summary,
        })).collect::<Vec<_>>(),
    })
}
