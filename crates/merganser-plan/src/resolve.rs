//! Parameters: checks every name and value of a recipe against the method, then resolves them tensor by tensor.
//!
//! Scopes, highest first: the source's own parameters (per-input ones only), the slice's, the module's, the
//! document's, the method's default. Shared parameters test their filters on the output tensor's name, per-input
//! parameters on the input tensor's.

use std::collections::{BTreeMap, BTreeSet};

use merganser_methods::{
    BasePolicy, Kind, Method, MethodInfo, Parameter, Scope, Settings, Value, registry,
};
use merganser_recipe::{Body, Diagnostic, Document, Parameters, Slice, Source, Spanned, nearest};

use crate::layout::{Row, SliceScope};
use crate::model::Model;

/// Finds the method and checks all parameters of the document. Warnings and errors come together.
pub(crate) fn check(
    document: &Document,
    lenient: bool,
) -> (Option<&'static dyn Method>, Vec<Diagnostic>) {
    let wanted = &document.merge_method;
    let Some(method) = merganser_methods::find(&wanted.value) else {
        let names = registry().iter().map(|method| method.info().name);
        let mut diagnostic = Diagnostic::error(format!(
            "there is no merge method called '{}'",
            wanted.value
        ))
        .label(wanted.span, "unknown method");
        diagnostic = match nearest(&wanted.value, names) {
            Some(name) => diagnostic.help(format!(
                "did you mean `{name}`? `merganser methods` lists them all"
            )),
            None => diagnostic.help("`merganser methods` lists them all"),
        };
        return (None, vec![diagnostic]);
    };
    let mut check = Check {
        info: method.info(),
        lenient,
        found: Vec::new(),
        seen: BTreeSet::new(),
    };
    check.scope(&document.parameters, false);
    check.body(&document.body);
    (Some(method), check.found)
}

struct Check {
    info: &'static MethodInfo,
    lenient: bool,
    found: Vec<Diagnostic>,
    seen: BTreeSet<usize>,
}

impl Check {
    fn body(&mut self, body: &Body) {
        match body {
            Body::Models(sources) => self.sources(sources),
            Body::Slices(slices) => self.slices(slices),
            Body::Modules(modules) => {
                for (_, module) in modules {
                    self.scope(&module.parameters, false);
                    self.body(&module.body);
                }
            }
        }
    }

    fn sources(&mut self, sources: &[Source]) {
        for source in sources {
            self.scope(&source.parameters, true);
        }
    }

    fn slices(&mut self, slices: &[Slice]) {
        for slice in slices {
            self.scope(&slice.parameters, false);
            self.sources(&slice.sources);
        }
    }

    fn scope(&mut self, parameters: &Parameters, of_model: bool) {
        for (name, setting) in parameters.iter() {
            // A YAML anchor may put the same text in several places: one message is enough.
            if !self.seen.insert(name.span.start) {
                continue;
            }
            let Some(parameter) = self.info.parameters.iter().find(|p| p.name == name.value) else {
                self.unknown(name);
                continue;
            };
            if of_model && parameter.scope == Scope::Shared {
                let message = format!(
                    "'{}' belongs to the whole merge, not to one model",
                    name.value
                );
                let diagnostic = self
                    .mistake(message)
                    .label(name.span, "has no effect here")
                    .help("move it to the `parameters` of the slice or of the recipe");
                self.found.push(diagnostic);
            }
            for value in setting.value.values() {
                if let Err(reason) = convert(parameter, &value.value) {
                    self.found.push(
                        Diagnostic::error(format!("'{}' cannot be {}", name.value, value.value))
                            .label(value.span, reason)
                            .help(format!("{}: {}", name.value, describe(parameter))),
                    );
                }
            }
        }
    }

    fn unknown(&mut self, name: &Spanned<String>) {
        let elsewhere: Vec<&str> = registry()
            .iter()
            .filter(|method| {
                method
                    .info()
                    .parameters
                    .iter()
                    .any(|p| p.name == name.value)
            })
            .map(|method| method.info().name)
            .collect();
        let here = self.info.parameters.iter().map(|p| p.name);
        let method = self.info.name;
        let diagnostic = if elsewhere.is_empty() {
            let diagnostic = self
                .mistake(format!("'{}' is no parameter of {method}", name.value))
                .label(name.span, "unknown parameter");
            match nearest(&name.value, here.clone()) {
                Some(close) => diagnostic.help(format!("did you mean `{close}`?")),
                None if self.info.parameters.is_empty() => {
                    diagnostic.help(format!("{method} has no parameters"))
                }
                None => diagnostic.help(format!(
                    "{method} knows: {}",
                    here.collect::<Vec<_>>().join(", ")
                )),
            }
        } else {
            Diagnostic::warning(format!("'{}' has no effect on {method}", name.value)).label(
                name.span,
                format!("a parameter of {}", elsewhere.join(", ")),
            )
        };
        self.found.push(diagnostic);
    }

    fn mistake(&self, message: String) -> Diagnostic {
        if self.lenient {
            Diagnostic::warning(message)
        } else {
            Diagnostic::error(message)
        }
    }
}

/// A recipe's value as the parameter's type, or what is wrong with it.
fn convert(parameter: &Parameter, value: &merganser_recipe::Value) -> Result<Value, String> {
    match parameter.kind {
        Kind::Float { min, max } => {
            let x = value.as_f64().ok_or("expected a number")?;
            if !x.is_finite() {
                return Err("expected a finite number".into());
            }
            in_range(x, min, max)?;
            Ok(Value::Float(x))
        }
        Kind::Int { min, max } => {
            let x = value.as_i64().ok_or("expected a whole number")?;
            in_range(x as f64, min as f64, max as f64)?;
            Ok(Value::Int(x))
        }
        Kind::Bool => Ok(Value::Bool(
            value.as_bool().ok_or("expected true or false")?,
        )),
        Kind::Choice(words) => {
            // `rescale: true` and `rescale: l1` are the same parameter: a switch may be a word.
            let word = match value {
                merganser_recipe::Value::Bool(true) => "true",
                merganser_recipe::Value::Bool(false) => "false",
                other => other
                    .as_str()
                    .ok_or_else(|| format!("expected one of: {}", words.join(", ")))?,
            };
            if words.contains(&word) {
                Ok(Value::Text(word.to_owned()))
            } else {
                Err(match nearest(word, words.iter().copied()) {
                    Some(close) => format!("did you mean `{close}`?"),
                    None => format!("expected one of: {}", words.join(", ")),
                })
            }
        }
        Kind::Text | Kind::File => Ok(Value::Text(
            value.as_str().ok_or("expected a text")?.to_owned(),
        )),
    }
}

fn in_range(x: f64, min: f64, max: f64) -> Result<(), String> {
    if x < min || x > max {
        return Err(match (min.is_finite(), max.is_finite()) {
            (true, true) => format!("out of range: expected {min} to {max}"),
            (true, false) => format!("out of range: expected {min} or more"),
            _ => format!("out of range: expected {max} or less"),
        });
    }
    Ok(())
}

fn describe(parameter: &Parameter) -> String {
    let range = match parameter.kind {
        Kind::Float { min, max } if min.is_finite() && max.is_finite() => {
            format!(" (a number from {min} to {max})")
        }
        Kind::Float { min, .. } if min.is_finite() => format!(" (a number, {min} or more)"),
        Kind::Choice(words) => format!(" ({})", words.join(", ")),
        _ => String::new(),
    };
    format!("{}{range}", parameter.summary)
}

/// The settings of one output tensor. `inputs` maps the method's inputs to sources of the slice and the names of
/// their tensors; `base` is an index into them.
pub(crate) fn settings(
    method: &dyn Method,
    document: &Document,
    scope: &SliceScope<'_>,
    row: &Row,
    inputs: &[(usize, &str)],
    base: Option<usize>,
    models: &[Model],
) -> Result<Settings, Diagnostic> {
    let info = method.info();
    let shared_scopes = [scope.slice, scope.module, Some(&document.parameters)];
    let mut settings = Settings::default();
    for parameter in info.parameters.iter().filter(|p| p.scope == Scope::Shared) {
        let value = look_up(
            parameter,
            &row.name,
            row.t,
            shared_scopes.iter().copied().flatten(),
        )?;
        match value {
            Some(value) => {
                settings.shared.insert(parameter.name, value);
            }
            None if parameter.required => {
                return Err(
                    missing(document, info, parameter, None, &row.name).help(format!(
                        "add `{}` to `parameters`: {}",
                        parameter.name,
                        describe(parameter)
                    )),
                );
            }
            None => {}
        }
    }
    for (i, (source, tensor)) in inputs.iter().enumerate() {
        let mut own = BTreeMap::new();
        if base != Some(i) || info.base == BasePolicy::Ignored {
            let source = &scope.sources[*source];
            let scopes = std::iter::once(source.parameters)
                .chain(shared_scopes)
                .flatten();
            let scopes: Vec<&Parameters> = scopes.collect();
            for parameter in info
                .parameters
                .iter()
                .filter(|p| p.scope == Scope::PerInput)
            {
                match look_up(parameter, tensor, row.t, scopes.iter().copied())? {
                    Some(value) => {
                        own.insert(parameter.name, value);
                    }
                    None if parameter.required => {
                        let label = &models[source.model].label;
                        return Err(missing(document, info, parameter, Some(label), tensor)
                            .label(
                                source.span,
                                format!("no `{}` for this model", parameter.name),
                            )
                            .help(format!("{}: {}", parameter.name, describe(parameter))));
                    }
                    None => {}
                }
            }
        }
        settings.inputs.push(own);
    }
    Ok(settings)
}

fn look_up<'a>(
    parameter: &Parameter,
    tensor: &str,
    t: f64,
    scopes: impl Iterator<Item = &'a Parameters>,
) -> Result<Option<Value>, Diagnostic> {
    for scope in scopes {
        let Some((name, setting)) = scope.iter().find(|(name, _)| name.value == parameter.name)
        else {
            continue;
        };
        let fault = |reason: String| {
            Diagnostic::error(format!(
                "'{}' has no value for tensor '{tensor}'",
                parameter.name
            ))
            .label(name.span, reason)
        };
        if let Some(value) = setting.value.resolve(tensor, t) {
            return convert(parameter, &value).map(Some).map_err(fault);
        }
    }
    Ok(parameter.default.map(Value::from))
}

fn missing(
    document: &Document,
    info: &MethodInfo,
    parameter: &Parameter,
    model: Option<&str>,
    tensor: &str,
) -> Diagnostic {
    let of = model.map_or(String::new(), |model| format!(" for model {model}"));
    Diagnostic::error(format!(
        "{} needs `{}`{of} (tensor '{tensor}')",
        info.name, parameter.name
    ))
    .label(
        document.merge_method.span,
        format!("this method has no default for `{}`", parameter.name),
    )
}
