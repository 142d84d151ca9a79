//! From a recipe's text to plans and merged models: the steps every door (program, library, bindings) shares.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use merganser_plan::{Calibrated, Missing, Options, Plan};
use merganser_recipe::{
    Defence, Diagnostic, Diagnostics, OutputKind, ParseOptions, Recipe, SourceText,
};
use merganser_report::Report;
use merganser_run::{CalibrationSummary, Merge, Observer, Opener, Provenance, RunError};
use merganser_store::hub::HubOptions;
use merganser_store::publish;

use crate::defence::{self, Defended};
use crate::stream;

/// How to merge, besides the recipe.
#[derive(Debug, Clone)]
pub struct MergeOptions {
    /// What the planner may do.
    pub plan: Options,
    /// Treat the inputs as plain state dicts; `None` decides by whether they are single files.
    pub state_dict: Option<bool>,
    /// Replace a model that is already in the output folder.
    pub overwrite: bool,
    /// Let NaN and infinity pass.
    pub allow_nonfinite: bool,
    /// Return before the files are on disk: safe against a crash of the process, not of the machine.
    pub no_sync: bool,
    /// Only part `i` of `n`, counted from 1.
    pub part: Option<(usize, usize)>,
    /// Bytes of working memory; [`usual_memory`](merganser_run::usual_memory) unless given.
    pub memory: Option<u64>,
    /// Write a model card.
    pub card: bool,
    /// Hash the content of every input file.
    pub hash_inputs: bool,
    /// Where the intermediate models of a recipe with several documents go; they are kept there.
    pub intermediate: Option<PathBuf>,
    /// The folder of a running maximum: what is in it is merged too, and the outcome is left there. For `magmax` only.
    pub continued: Option<PathBuf>,
    /// For a diagnosis: merged models to be measured too, by name.
    pub compared: Vec<(String, PathBuf)>,
}

impl Default for MergeOptions {
    fn default() -> Self {
        Self {
            plan: Options::default(),
            state_dict: None,
            overwrite: false,
            allow_nonfinite: false,
            no_sync: false,
            part: None,
            memory: None,
            card: true,
            hash_inputs: false,
            intermediate: None,
            continued: None,
            compared: Vec::new(),
        }
    }
}

/// Why a recipe was not merged.
#[derive(Debug)]
pub enum Failure {
    /// The recipe is wrong or does not fit its models; nothing was written.
    Recipe(Diagnostics),
    /// The merge could not be carried out; the output folder is as it was.
    Run(RunError),
    /// The request cannot be met; nothing was written.
    Usage(String),
    /// An audit was carried out and found something; what it wrote is complete.
    Flagged(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Recipe(diagnostics) => f.write_str(diagnostics.render(false).trim_end()),
            Self::Run(error) => error.fmt(f),
            Self::Usage(text) | Self::Flagged(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Failure {}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        Self::Run(error)
    }
}

/// What is wrong with numbers is wrong with the files they come from.
impl From<merganser_trust::Error> for Failure {
    fn from(error: merganser_trust::Error) -> Self {
        Self::Usage(error.to_string())
    }
}

/// The plan of one document and its name.
pub struct Planned {
    /// Name of the document, if it has one.
    pub name: Option<String>,
    /// Its plan.
    pub plan: Plan,
    /// The recipe's text, for messages.
    pub source: SourceText,
    /// What a merge or a diagnosis found out with its samples.
    pub report: Option<Report>,
}

/// A recipe read and put in order.
#[derive(Clone)]
pub(crate) struct Steps {
    pub(crate) recipe: Recipe,
    pub(crate) warnings: Vec<Diagnostic>,
    order: Vec<usize>,
    last: BTreeSet<usize>,
}

pub(crate) fn read(name: &Path, text: &str, options: &MergeOptions) -> Result<Steps, Failure> {
    let parse = ParseOptions {
        lenient: options.plan.lenient,
    };
    let (recipe, warnings) =
        Recipe::parse(&name.display().to_string(), text, parse).map_err(Failure::Recipe)?;
    let fail = |diagnostic| failure(&recipe.source, vec![diagnostic]);
    let order = recipe.documents_in_order().map_err(fail)?;
    let last = recipe
        .final_documents()
        .map_err(fail)?
        .into_iter()
        .collect();
    Ok(Steps {
        order,
        last,
        warnings,
        recipe,
    })
}

pub(crate) fn failure(source: &SourceText, list: Vec<Diagnostic>) -> Failure {
    Failure::Recipe(Diagnostics {
        source: source.clone(),
        list,
    })
}

pub(crate) fn opener(recipe: &Path) -> Opener {
    let parent = recipe.parent().filter(|dir| !dir.as_os_str().is_empty());
    Opener {
        recipe_dir: parent.map(Path::to_owned),
        hub: HubOptions::from_env(),
        named: BTreeMap::new(),
    }
}

pub(crate) fn plan_document(
    steps: &Steps,
    document: usize,
    opener: &Opener,
    options: &MergeOptions,
) -> Result<Plan, Failure> {
    let fail = |list| failure(&steps.recipe.source, list);
    let mut settings = options.plan.clone();
    let spoken_of = &steps.recipe.documents[document];
    settings.state_dict = options
        .state_dict
        .unwrap_or_else(|| opener.is_state_dicts(spoken_of));
    if !settings.state_dict && settings.missing != Missing::Error {
        return Err(Failure::Usage(
            "--tensor-intersection and --tensor-union are for plain state dicts; for models use --allow-missing".into(),
        ));
    }
    let inputs = opener.open(spoken_of).map_err(fail)?;
    let mut plan = Plan::new(&steps.recipe, document, inputs, &settings).map_err(fail)?;
    plan.warnings.splice(0..0, steps.warnings.iter().cloned());
    Ok(plan)
}

/// Refuses a recipe that makes an adapter where a model is to be made.
fn makes_models(steps: &Steps) -> Result<(), Failure> {
    let outputs = steps
        .recipe
        .documents
        .iter()
        .filter_map(|d| d.output.as_ref());
    let Some(output) = outputs.into_iter().find(|o| o.value == OutputKind::Adapter) else {
        return Ok(());
    };
    Err(failure(
        &steps.recipe.source,
        vec![
            Diagnostic::error("this recipe makes an adapter, not a model")
                .label(output.span, "asked for here")
                .help("`output: model` applies the merged adapter to the base"),
        ],
    ))
}

/// Plans a recipe without writing anything. Documents that build on other documents of the recipe are left out: their
/// inputs do not exist yet.
///
/// # Errors
/// Everything that is wrong with the recipe or its models.
pub fn plan_recipe(
    path: &Path,
    text: &str,
    options: &MergeOptions,
) -> Result<Vec<Planned>, Failure> {
    let steps = read(path, text, options)?;
    makes_models(&steps)?;
    let opener = opener(path);
    let mut planned = Vec::new();
    for document in steps
        .order
        .iter()
        .copied()
        .filter(|document| !builds_on_others(&steps, *document))
    {
        let name = steps.recipe.documents[document]
            .name
            .as_ref()
            .map(|name| name.value.clone());
        let mut plan = plan_document(&steps, document, &opener, options)?;
        defence::announce(&steps, document, &opener, &mut plan)?;
        planned.push(Planned {
            name,
            plan,
            source: steps.recipe.source.clone(),
            report: None,
        });
    }
    Ok(planned)
}

fn builds_on_others(steps: &Steps, document: usize) -> bool {
    let document = &steps.recipe.documents[document];
    let defence = document.defence.iter().flat_map(Defence::model_refs);
    document
        .model_refs()
        .chain(defence)
        .any(|reference| steps.recipe.document_for(reference).is_some())
}

/// Merges a recipe into `out`, on the current rayon pool. With several documents, the last one goes to `out` itself
/// (or each final one to a folder of its name in it) and the others to the intermediate folder.
///
/// Returns the plans that were carried out, the final one last.
///
/// # Errors
/// See [`Failure`]; `out` is then as it was before.
pub fn merge_recipe(
    path: &Path,
    text: &str,
    out: &Path,
    options: &MergeOptions,
    observer: &dyn Observer,
) -> Result<Vec<Planned>, Failure> {
    let mut steps = read(path, text, options)?;
    makes_models(&steps)?;
    let mut opener = opener(path);
    if let Some(state) = &options.continued {
        stream::include(&mut steps, state)?;
    }
    let several = steps.order.len() > 1;
    let defends = steps.recipe.documents.iter().any(|d| d.defence.is_some());
    if several && options.part.is_some() {
        return Err(Failure::Usage(
            "a recipe with several documents cannot be merged in parts: put each document in a file of its own".into(),
        ));
    }
    if defends && (options.part.is_some() || options.continued.is_some()) {
        return Err(Failure::Usage(
            "a merge with `defend` goes twice over the model: it takes neither --part nor --continue".into(),
        ));
    }
    let intermediate = options.intermediate.clone().unwrap_or_else(|| beside(out));
    let place = |document: usize| {
        let name = steps.recipe.documents[document].name.as_ref();
        let is_last = steps.last.contains(&document);
        match name {
            Some(name) if !is_last => intermediate.join(&name.value),
            Some(name) if steps.last.len() > 1 => out.join(&name.value),
            _ => out.to_owned(),
        }
    };
    if several || defends {
        // Found before the intermediate models are made.
        for &document in &steps.last {
            publish::check(&place(document), options.overwrite).map_err(RunError::from)?;
        }
    }
    let mut done = Vec::new();
    for document in steps.order.iter().copied() {
        let name = steps.recipe.documents[document]
            .name
            .as_ref()
            .map(|name| name.value.clone());
        let is_last = steps.last.contains(&document);
        let to = place(document);
        let mut plan = plan_document(&steps, document, &opener, options)?;
        defence::announce(&steps, document, &opener, &mut plan)?;
        for &last in &steps.last {
            merganser_run::refuse_own_inputs(&place(last), &plan.models)?;
        }
        let provenance = Provenance {
            recipe: text.to_owned(),
            title: title(name.as_deref(), out),
            card: options.card,
            hash_inputs: options.hash_inputs,
        };
        let overwrite = options.overwrite || !is_last;
        let defence = &steps.recipe.documents[document].defence;
        let (plan, report) = if !is_last && already_made(&to, &plan) {
            (plan, None)
        } else if let Some(defence) = defence {
            let defended = Defended {
                steps: &steps,
                document,
                opener: &opener,
                options,
                intermediate: &intermediate,
                provenance: &provenance,
                overwrite,
            };
            defended.merge(plan, defence, &to, observer)?
        } else {
            let looks_at_data = |calibrated: &Calibrated| {
                merganser_methods::looks_at_data(calibrated.info, &calibrated.settings)
            };
            if plan.calibrated.as_ref().is_some_and(looks_at_data) && options.part.is_some() {
                return Err(Failure::Usage(format!(
                    "{} merges layer after layer, each with what the ones before give: it cannot be cut into parts",
                    plan.info().name
                )));
            }
            let job = Merge {
                plan: &plan,
                out: &to,
                overwrite,
                allow_nonfinite: options.allow_nonfinite,
                no_sync: options.no_sync,
                part: options.part,
                memory: memory_of(options, &plan),
                provenance: &provenance,
            };
            let report = merganser_run::merge(&job, observer)?;
            (plan, report)
        };
        opener.named.extend(name.clone().map(|name| (name, to)));
        done.push(Planned {
            name,
            plan,
            source: steps.recipe.source.clone(),
            report,
        });
    }
    if let Some(state) = &options.continued {
        let plan = plan_document(&stream::state_of(&steps), 0, &opener, options)?;
        let provenance = Provenance {
            recipe: text.to_owned(),
            title: title(None, state),
            card: false,
            hash_inputs: false,
        };
        let options = MergeOptions {
            overwrite: true,
            ..options.clone()
        };
        // The state is what it is made from, and one of its fine-tunes more.
        carry_out_anywhere(plan, &provenance, state, &options, observer)?;
    }
    if (several || defends) && options.intermediate.is_none() {
        // Only a cache of ours: if it cannot be removed, the merge is still good.
        let _ = std::fs::remove_dir_all(&intermediate);
    }
    Ok(done)
}

/// Runs samples through a model (a folder, a Hub id, `base+adapter`) and writes the moments of its layers' inputs to a
/// file, which recipes take as `calibration:` of the model.
///
/// # Errors
/// A model that cannot be opened or run, samples that cannot be used; there is no file then.
pub fn calibrate(
    model: &str,
    source: &merganser_data::Source,
    options: &merganser_data::LoadOptions,
    out: &Path,
    observer: &dyn Observer,
) -> Result<CalibrationSummary, Failure> {
    let reference: merganser_recipe::ModelRef = model
        .parse()
        .map_err(|error| Failure::Usage(format!("'{model}': {error}")))?;
    let model = Opener::new(None)
        .model(&reference)
        .map_err(|reason| Failure::Usage(format!("cannot open model {model}: {reason}")))?;
    Ok(merganser_run::calibrate(
        &model, source, options, out, observer,
    )?)
}

/// Measures, without writing anything, what the calibrated merges of a recipe would do and what other bases and methods
/// would do in their place.
///
/// # Errors
/// Those of a merge; if no document of the recipe looks at data.
pub fn diagnose_recipe(
    path: &Path,
    text: &str,
    options: &MergeOptions,
    observer: &dyn Observer,
) -> Result<Vec<Planned>, Failure> {
    let mut planned = plan_recipe(path, text, options)?;
    planned.retain(|planned| planned.plan.calibrated.is_some());
    if planned.is_empty() {
        return Err(Failure::Usage(
            "there is nothing to diagnose: no document of the recipe looks at data; use `merge_method: projection` and \
             give every model its `calibration`"
                .into(),
        ));
    }
    let mut compared = Vec::new();
    for (name, folder) in &options.compared {
        let reference = merganser_recipe::ModelRef::local(&folder.display().to_string());
        let model = Opener::new(None).model(&reference).map_err(|reason| {
            Failure::Usage(format!("cannot open {}: {reason}", folder.display()))
        })?;
        compared.push((name.clone(), model));
    }
    for planned in &mut planned {
        let title = title(planned.name.as_deref(), path);
        let found = merganser_run::diagnose(
            &planned.plan,
            (&title, text),
            &compared,
            options.allow_nonfinite,
            observer,
        )?;
        planned.report = Some(found);
    }
    Ok(planned)
}

/// Carries out a plan that is no recipe's own.
pub(crate) fn carry_out(
    plan: Plan,
    provenance: &Provenance,
    out: &Path,
    options: &MergeOptions,
    observer: &dyn Observer,
) -> Result<Plan, Failure> {
    merganser_run::refuse_own_inputs(out, &plan.models)?;
    carry_out_anywhere(plan, provenance, out, options, observer)
}

pub(crate) fn memory_of(options: &MergeOptions, plan: &Plan) -> u64 {
    let usual = || merganser_run::usual_memory(plan);
    options.memory.unwrap_or_else(usual)
}

fn carry_out_anywhere(
    plan: Plan,
    provenance: &Provenance,
    out: &Path,
    options: &MergeOptions,
    observer: &dyn Observer,
) -> Result<Plan, Failure> {
    let job = Merge {
        plan: &plan,
        out,
        overwrite: options.overwrite,
        allow_nonfinite: options.allow_nonfinite,
        no_sync: options.no_sync,
        part: None,
        memory: memory_of(options, &plan),
        provenance,
    };
    merganser_run::merge(&job, observer)?;
    Ok(plan)
}

pub(crate) fn title(name: Option<&str>, out: &Path) -> String {
    let folder = || {
        out.file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    name.map(str::to_owned)
        .or_else(folder)
        .unwrap_or_else(|| "merge".into())
}

/// The hidden folder beside `out` that holds intermediate models until the last one is finished.
fn beside(out: &Path) -> PathBuf {
    let name = out
        .file_name()
        .map_or_else(|| "out".into(), |name| name.to_string_lossy().into_owned());
    out.with_file_name(format!(".{name}.intermediate"))
}

/// Whether an earlier run left exactly this model.
pub(crate) fn already_made(folder: &Path, plan: &Plan) -> bool {
    let record = std::fs::read_to_string(folder.join("merganser.json")).unwrap_or_default();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap_or_default();
    record.get("plan").and_then(|digest| digest.as_str()) == Some(&plan.digest)
        && plan.shards.iter().all(|shard| {
            std::fs::metadata(folder.join(&shard.file)).is_ok_and(|found| found.len() == shard.size)
        })
}
