//! What a recipe that looks at data adds to a plan: the tasks, each with the samples it is known by.

use std::collections::BTreeSet;
use std::path::PathBuf;

use merganser_methods::{MethodInfo, Settings, is_adapter_method, is_matrix_method};
use merganser_recipe::{Body, Diagnostic, Document, Source};

use crate::adapters::other_targets;
use crate::layout::Layout;
use crate::model::{Inputs, Model};
use crate::resolve::{Chosen, Scopes};
use crate::roles::Role;
use crate::{Action, Options, Output};

/// The calibrated part of a plan.
#[derive(Debug, Clone)]
pub struct Calibrated {
    /// Name, parameters and formula of the method.
    pub info: &'static MethodInfo,
    /// Parameters that hold for the merge as a whole, where no tensor's name and no position in a gradient is meant.
    pub settings: Settings,
    /// The method that matrices start from, where it merges whole matrices, and its parameters.
    pub matrix_prior: Option<(&'static MethodInfo, Settings)>,
    /// The fine-tunes, in recipe order.
    pub tasks: Vec<Task>,
}

/// One fine-tune and the samples of its task.
#[derive(Debug, Clone)]
pub struct Task {
    /// Index of the model.
    pub model: usize,
    /// Its samples; `None` if the method needs none.
    pub calibration: Option<Calibration>,
}

/// Where the samples of a task are, and how they are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calibration {
    /// What the recipe calls the file or folder.
    pub name: String,
    /// The file or folder.
    pub path: PathBuf,
    /// A hash of its content, or of the names and sizes of a folder's files.
    pub digest: String,
    /// The column of text in a table.
    pub column: Option<String>,
    /// What the names of ready tensors begin with.
    pub prefix: Option<String>,
    /// At most so many samples.
    pub samples: Option<usize>,
    /// Longer texts are cut to so many tokens.
    pub max_length: Option<usize>,
    /// Which samples are chosen where there are more.
    pub seed: u64,
}

/// What can be told from the recipe alone.
pub(crate) fn check(document: &Document, chosen: &Chosen, options: &Options) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let sources = match &document.body {
        Body::Models(sources) => sources.as_slice(),
        Body::Slices(_) | Body::Modules(_) => &[],
    };
    let Some(info) = chosen.calibrated else {
        let given = sources
            .iter()
            .filter_map(|source| source.calibration.as_ref());
        for calibration in given.chain(&document.calibration) {
            found.push(
                Diagnostic::warning(format!(
                    "`calibration` has no effect on {}",
                    document.merge_method.value
                ))
                .label(calibration.span, "this method looks at no data"),
            );
        }
        return found;
    };
    if options.state_dict {
        found.push(
            Diagnostic::error(format!("{} needs whole models", info.name))
                .label(
                    document.merge_method.span,
                    "the inputs are plain state dicts",
                )
                .help("it runs the networks, so each input is a folder with a config.json"),
        );
    }
    if !matches!(document.body, Body::Models(_)) {
        found.push(
            Diagnostic::error(format!("{} merges whole models", info.name))
                .label(
                    document.merge_method.span,
                    "slices and modules are not supported",
                )
                .help("list the models under `models:`"),
        );
    }
    if document.base_model.is_none() {
        found.push(
            Diagnostic::error(format!("{} needs a base model", info.name))
                .label(document.merge_method.span, "no `base_model` is given")
                .help("add `base_model: <the model the others were fine-tuned from>`"),
        );
    }
    if is_adapter_method(info.name) {
        found.extend(check_adapters(document, sources));
        let inner = document
            .parameters
            .iter()
            .find(|(name, _)| name.value == "inner");
        let by_data = inner.is_some_and(|(_, setting)| {
            setting
                .value
                .values()
                .any(|value| value.value.as_str() == Some("projection"))
        });
        if !by_data {
            return found;
        }
    }
    if is_matrix_method(info.name) {
        return found;
    }
    for source in sources.iter().filter(|source| !is_base(document, source)) {
        if data(document, source).is_none() {
            found.push(
                Diagnostic::error(format!("{} has no calibration data", source.model))
                    .label(source.model.span, "no samples of this model's task")
                    .help("add `calibration: samples.jsonl` to it: a few hundred inputs without labels, or a file of moments"),
            );
        }
    }
    found
}

/// Adapters are merged on one base.
fn check_adapters(document: &Document, sources: &[Source]) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| !is_base(document, source)) {
        let model = &source.model;
        if model.lora.is_none() {
            found.push(
                Diagnostic::error(format!("{model} is no adapter"))
                    .label(model.span, "expected `base+adapter`")
                    .help(
                        "write `base+adapter`, or add `output: adapter` if this is the folder of an adapter; \
                         `merganser extract lora` makes an adapter of a fine-tune",
                    ),
            );
            continue;
        }
        let Some(base) = &document.base_model else {
            continue;
        };
        if base.lora.is_some() || base.path != model.path || base.revision != model.revision {
            found.push(
                Diagnostic::error("an adapter belongs to another model than the base")
                    .label(model.span, "an adapter of another model")
                    .label(base.span, "the base")
                    .help(
                        "adapters of one base can be merged, written `base+adapter` with that base",
                    ),
            );
        }
    }
    found
}

fn is_base(document: &Document, source: &Source) -> bool {
    document.base_model.as_ref() == Some(&source.model)
}

fn data<'r>(
    document: &'r Document,
    source: &'r Source,
) -> Option<&'r merganser_recipe::Spanned<String>> {
    let own = source.calibration.as_ref().and_then(|c| c.data.as_ref());
    own.or_else(|| document.calibration.as_ref()?.data.as_ref())
}

/// Refuses adapters that change different tensors.
pub(crate) fn check_targets(
    document: &Document,
    calibrated: &Calibrated,
    models: &[Model],
) -> Result<(), Diagnostic> {
    if !is_adapter_method(calibrated.info.name) {
        return Ok(());
    }
    let models: Vec<&Model> = calibrated
        .tasks
        .iter()
        .map(|task| &models[task.model])
        .collect();
    let adapters = || models.iter().filter_map(|model| model.adapter.as_ref());
    let all: BTreeSet<&String> = adapters()
        .flat_map(|adapter| adapter.modules().keys())
        .collect();
    for model in &models {
        let missing: Vec<&str> = all
            .iter()
            .filter(|tensor| model.deltas(tensor).is_empty())
            .map(|tensor| tensor.as_str())
            .collect();
        if missing.is_empty() {
            continue;
        }
        let mut references = document.model_refs();
        let span = references.find(|reference| reference.to_string() == model.label);
        let span = span.map_or(document.merge_method.span, |reference| reference.span);
        return Err(
            other_targets(&model.label, &missing, all.len()).label(span, "other target modules")
        );
    }
    Ok(())
}

/// Whether a method of whole matrices merges the tensor; all others, and those outside of layers, are the prior's.
pub fn is_matrix_of_layer(output: &Output) -> bool {
    let excluded = |settings: &Settings| settings.flag("exclude");
    output.shape.len() == 2
        && matches!(output.action, Action::Merge { .. })
        && matches!(Role::of(&output.name), Role::Layer { .. })
        && !output.calibrated.as_ref().is_some_and(excluded)
}

/// Says which tensors a method of whole matrices leaves to the prior.
pub(crate) fn rest(calibrated: &Calibrated, outputs: &[Output]) -> Option<String> {
    let info = calibrated.info;
    if !is_matrix_method(info.name) {
        return None;
    }
    let merged = || {
        outputs
            .iter()
            .filter(|o| matches!(o.action, Action::Merge { .. }))
    };
    let matrices = merged().filter(|output| is_matrix_of_layer(output)).count();
    let others = merged().count() - matrices;
    Some(format!(
        "{} merges the {matrices} matrices of the layers; {others} other tensors are the prior's (the average unless the recipe names one)",
        info.name
    ))
}

/// The tasks of a document, with what was found where their samples are said to be.
pub(crate) fn tasks(
    chosen: &Chosen,
    document: &Document,
    layout: &Layout<'_>,
    inputs: &Inputs,
) -> Result<Option<Calibrated>, Diagnostic> {
    let (Some(info), Body::Models(sources)) = (chosen.calibrated, &document.body) else {
        return Ok(None);
    };
    let models: &[Model] = &inputs.models;
    let fine_tunes: Vec<&Source> = sources
        .iter()
        .filter(|source| !is_base(document, source))
        .collect();
    let numbers: Vec<(usize, &str)> = (0..sources.len()).map(|i| (i, "")).collect();
    let base = sources.iter().position(|source| is_base(document, source));
    let scopes = Scopes {
        document,
        slice: &layout.slices[0],
        models,
        chosen,
    };
    let settings = scopes.settings(info, ("", 0.0), &numbers, base)?;
    let tasks = fine_tunes
        .into_iter()
        .map(|source| {
            Ok(Task {
                model: inputs.index(&source.model),
                calibration: calibration(document, source, inputs)?,
            })
        })
        .collect::<Result<_, Diagnostic>>()?;
    let matrix_prior = chosen
        .matrix_prior
        .map(|info| Ok::<_, Diagnostic>((info, scopes.settings(info, ("", 0.0), &numbers, base)?)))
        .transpose()?;
    Ok(Some(Calibrated {
        info,
        settings,
        matrix_prior,
        tasks,
    }))
}

fn calibration(
    document: &Document,
    source: &Source,
    inputs: &Inputs,
) -> Result<Option<Calibration>, Diagnostic> {
    let Some(named) = data(document, source) else {
        return Ok(None);
    };
    let Some((path, digest)) = inputs.calibration(&named.value) else {
        return Err(Diagnostic::error(format!(
            "calibration data '{}' were not opened",
            named.value
        ))
        .label(named.span, "named here"));
    };
    let scopes = [&source.calibration, &document.calibration];
    let scopes = || scopes.into_iter().flatten();
    let text =
        |get: fn(&merganser_recipe::Calibration) -> &Option<merganser_recipe::Spanned<String>>| {
            scopes().find_map(|c| get(c).as_ref().map(|x| x.value.clone()))
        };
    let whole =
        |get: fn(&merganser_recipe::Calibration) -> &Option<merganser_recipe::Spanned<u64>>| {
            scopes().find_map(|c| get(c).as_ref().map(|x| x.value))
        };
    Ok(Some(Calibration {
        name: named.value.clone(),
        path: path.clone(),
        digest: digest.clone(),
        column: text(|c| &c.column),
        prefix: text(|c| &c.prefix),
        samples: whole(|c| &c.samples).map(|n| n as usize),
        max_length: whole(|c| &c.max_length).map(|n| n as usize),
        seed: whole(|c| &c.seed)
            .or(document.seed.as_ref().map(|seed| seed.value))
            .unwrap_or(0),
    }))
}
