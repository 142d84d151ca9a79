//! Parameters: checks every name and value of a recipe against the method, then resolves them tensor by tensor.
//!
//! Scopes, highest first: the source's own parameters (per-input ones only), the slice's, the module's, the
//! document's, the method's default. Shared parameters test their filters on the output tensor's name, per-input
//! parameters on the input tensor's.

use std::collections::{BTreeMap, BTreeSet};

use merganser_methods::{
    BasePolicy, Kind, Method, MethodInfo, Parameter, Scope, Settings, Value,
    calibrated as all_calibrated, descriptions, is_adapter_method, is_matrix_method,
};
use merganser_recipe::{Body, Diagnostic, Document, Parameters, Slice, Source, Spanned, nearest};

use crate::layout::SliceScope;
use crate::model::Model;

/// The method that makes the output tensors, and what a calibrated method adds to it.
#[derive(Clone)]
pub(crate) struct Chosen {
    /// The data-free method: the recipe's own, or the prior of a calibrated one.
    pub(crate) method: &'static dyn Method,
    /// The calibrated method the recipe names, if it is one.
    pub(crate) calibrated: Option<&'static MethodInfo>,
    /// The prior of a calibrated method, where it merges whole matrices; other tensors are then averaged.
    pub(crate) matrix_prior: Option<&'static MethodInfo>,
    /// Values of the prior's parameters where a recipe says nothing: the prior is the average, and asks for no weights.
    defaults: Vec<(&'static str, Value)>,
}

/// The prior of a calibrated method whose recipe names none: with its sum normalised, the average of the fine-tunes.
const PRIOR: &str = "task_arithmetic";

/// A method that stores more than a model beside it, which would not fit the tensors that samples decide.
const COMPRESSED: &str = "emr";

/// Finds the method and checks all parameters of the document. Warnings and errors come together.
pub(crate) fn check(document: &Document, lenient: bool) -> (Option<Chosen>, Vec<Diagnostic>) {
    let wanted = &document.merge_method;
    let calibrated = all_calibrated()
        .iter()
        .find(|info| info.name == wanted.value);
    let prior = document.prior.as_ref().map(|prior| &prior.merge_method);
    let matrix_prior = prior
        .filter(|prior| is_matrix_method(&prior.value))
        .and_then(|prior| {
            all_calibrated()
                .iter()
                .find(|info| info.name == prior.value)
        });
    let average = prior.is_none() || matrix_prior.is_some();
    let data_free = match (calibrated, prior) {
        (None, _) => wanted.value.as_str(),
        (Some(_), Some(prior)) if !average => prior.value.as_str(),
        (Some(_), _) => PRIOR,
    };
    let fits = calibrated.is_none() || data_free != COMPRESSED;
    let Some(method) = merganser_methods::find(data_free).filter(|_| fits) else {
        let named = if calibrated.is_some() {
            prior.unwrap_or(wanted)
        } else {
            wanted
        };
        return (None, vec![unknown_method(named, calibrated.is_some())]);
    };
    let mut defaults = Vec::new();
    if calibrated.is_some() {
        defaults.push(("weight", Value::Float(1.0)));
        if average {
            defaults.push(("normalize", Value::Bool(true)));
        }
    }
    let prior_info = matrix_prior.copied().unwrap_or(method.info());
    let infos = calibrated.into_iter().copied().chain([prior_info]);
    let mut check = Check {
        infos: infos.collect(),
        lenient,
        found: Vec::new(),
        seen: BTreeSet::new(),
    };
    check.scope(&document.parameters, false);
    check.body(&document.body);
    match (&document.prior, calibrated) {
        (Some(prior), Some(_)) => {
            check.infos = vec![prior_info];
            check.scope(&prior.parameters, false);
        }
        (Some(prior), None) => check.found.push(
            Diagnostic::warning(format!("`prior` has no effect on {}", wanted.value))
                .label(prior.span, "only methods that look at data have a prior"),
        ),
        (None, _) => {}
    }
    let chosen = Chosen {
        method,
        calibrated: calibrated.copied(),
        matrix_prior: matrix_prior.copied(),
        defaults,
    };
    (Some(chosen), check.found)
}

fn unknown_method(name: &Spanned<String>, as_prior: bool) -> Diagnostic {
    let known = descriptions().any(|info| info.name == name.value);
    if name.value == COMPRESSED && as_prior {
        return Diagnostic::error(format!("'{COMPRESSED}' cannot be a prior"))
            .label(name.span, "it makes several models, not one")
            .help("a prior is a data-free merge such as `linear`, `task_arithmetic` or `ties`");
    }
    if known && as_prior {
        return Diagnostic::error(format!("'{}' cannot be a prior", name.value))
            .label(
                name.span,
                if is_adapter_method(&name.value) {
                    "it merges adapters"
                } else {
                    "it needs calibration data itself"
                },
            )
            .help("a prior is a data-free merge such as `linear`, `task_arithmetic` or `ties`");
    }
    let diagnostic = Diagnostic::error(format!("there is no merge method called '{}'", name.value))
        .label(name.span, "unknown method");
    match nearest(&name.value, descriptions().map(|info| info.name)) {
        Some(near) => diagnostic.help(format!(
            "did you mean `{near}`? `merganser methods` lists them all"
        )),
        None => diagnostic.help("`merganser methods` lists them all"),
    }
}

struct Check {
    /// The recipe's method, and the prior of a calibrated one.
    infos: Vec<&'static MethodInfo>,
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
            let Some(parameter) = self.parameters().find(|p| p.name == name.value) else {
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

    fn parameters(&self) -> impl Iterator<Item = &'static Parameter> + Clone + use<> {
        let infos = self.infos.clone();
        infos.into_iter().flat_map(|info| info.parameters)
    }

    fn unknown(&mut self, name: &Spanned<String>) {
        let elsewhere: Vec<&str> = descriptions()
            .filter(|info| info.parameters.iter().any(|p| p.name == name.value))
            .map(|info| info.name)
            .collect();
        let here = self.parameters().map(|p| p.name);
        let method = self.infos[0].name;
        let diagnostic = if elsewhere.is_empty() {
            let diagnostic = self
                .mistake(format!("'{}' is no parameter of {method}", name.value))
                .label(name.span, "unknown parameter");
            match nearest(&name.value, here.clone()) {
                Some(close) => diagnostic.help(format!("did you mean `{close}`?")),
                None if self.parameters().next().is_none() => {
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
        Kind::FloatOrWord { min, max, word } => {
            if value.as_str() == Some(word) {
                return Ok(Value::Text(word.to_owned()));
            }
            let x = value
                .as_f64()
                .filter(|x| x.is_finite())
                .ok_or_else(|| format!("expected a number or `{word}`"))?;
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
        Kind::FloatOrWord { min, word, .. } => format!(" (a number, {min} or more, or {word})"),
        Kind::Choice(words) => format!(" ({})", words.join(", ")),
        _ => String::new(),
    };
    format!("{}{range}", parameter.summary)
}

/// Where parameters are looked up: the recipe, the slice, and what a recipe need not say.
pub(crate) struct Scopes<'a> {
    pub(crate) document: &'a Document,
    pub(crate) slice: &'a SliceScope<'a>,
    pub(crate) models: &'a [Model],
    pub(crate) chosen: &'a Chosen,
}

impl<'a> Scopes<'a> {
    /// The blocks that hold for all inputs. The prior's own parameters belong to the prior alone.
    fn shared(&self, info: &MethodInfo) -> Vec<&'a Parameters> {
        let is_prior =
            self.chosen.calibrated.is_some() && info.name == self.chosen.method.info().name;
        let prior = self.document.prior.as_ref().filter(|_| is_prior);
        [
            prior.map(|prior| &prior.parameters),
            self.slice.slice,
            self.slice.module,
            Some(&self.document.parameters),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn default(&self, info: &MethodInfo, name: &str) -> Option<Value> {
        let known = self
            .chosen
            .defaults
            .iter()
            .find(|(known, _)| *known == name);
        known
            .filter(|_| info.name == self.chosen.method.info().name)
            .map(|(_, value)| value.clone())
    }

    /// The settings of `info` for one output tensor. `inputs` maps the method's inputs to sources of the slice and the
    /// names of their tensors; `base` is an index into them.
    pub(crate) fn settings(
        &self,
        info: &MethodInfo,
        (name, t): (&str, f64),
        inputs: &[(usize, &str)],
        base: Option<usize>,
    ) -> Result<Settings, Diagnostic> {
        let shared_scopes = self.shared(info);
        let mut settings = Settings::default();
        for parameter in info.parameters.iter().filter(|p| p.scope == Scope::Shared) {
            let value = look_up(parameter, name, t, shared_scopes.iter().copied())?
                .or_else(|| self.default(info, parameter.name))
                .or(parameter.default.map(Value::from));
            match value {
                Some(value) => {
                    settings.shared.insert(parameter.name, value);
                }
                None if parameter.required => {
                    return Err(
                        missing(self.document, info, parameter, None, name).help(format!(
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
                let source = &self.slice.sources[*source];
                let scopes = source.parameters.into_iter();
                let scopes: Vec<&Parameters> =
                    scopes.chain(shared_scopes.iter().copied()).collect();
                // A prior is made of the fine-tunes: the base is no input of it, even where the method would take it.
                let is_base = self.slice.base_model == Some(source.model);
                for parameter in info
                    .parameters
                    .iter()
                    .filter(|p| p.scope == Scope::PerInput)
                {
                    let value = look_up(parameter, tensor, t, scopes.iter().copied())?
                        .or_else(|| self.default(info, parameter.name))
                        .or(parameter.default.map(Value::from));
                    match value {
                        Some(_)
                            if parameter.name == "weight"
                                && is_base
                                && self.chosen.calibrated.is_some() =>
                        {
                            own.insert(parameter.name, Value::Float(0.0));
                        }
                        Some(value) => {
                            own.insert(parameter.name, value);
                        }
                        None if parameter.required => {
                            let label = self
                                .models
                                .get(source.model)
                                .map(|model| model.label.as_str());
                            return Err(missing(self.document, info, parameter, label, tensor)
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
    Ok(None)
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
