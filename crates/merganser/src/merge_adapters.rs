//! From a recipe with `output: adapter` to a merged adapter.

use std::collections::BTreeMap;
use std::path::Path;

use merganser_plan::AdapterRecipe;
use merganser_recipe::{Diagnostic, OutputKind};
use merganser_run::{
    AdapterMerge, AdapterSummary, MergedMatrix, Observer, Provenance, project_factors,
};

use crate::workflow::{Steps, failure, opener, plan_document, read, title};
use crate::{Failure, MergeOptions};

/// What a recipe for an adapter would do.
#[derive(Debug, Clone)]
pub struct PlannedAdapter {
    /// Name of the method.
    pub method: &'static str,
    /// The adapters, as the recipe names them.
    pub adapters: Vec<String>,
    /// The matrices that are merged.
    pub matrices: Vec<MergedMatrix>,
    /// How many biases of second factors are merged.
    pub biases: usize,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Whether a recipe asks for an adapter rather than a model.
///
/// # Errors
/// If the recipe cannot be read.
pub fn asks_for_adapter(path: &Path, text: &str, options: &MergeOptions) -> Result<bool, Failure> {
    let steps = read(path, text, options)?;
    let documents = &steps.recipe.documents;
    let asks =
        |output: &&merganser_recipe::Spanned<OutputKind>| output.value == OutputKind::Adapter;
    let Some(output) = documents
        .iter()
        .filter_map(|d| d.output.as_ref())
        .find(asks)
    else {
        return Ok(false);
    };
    if documents.len() > 1 {
        return Err(failure(
            &steps.recipe.source,
            vec![
                Diagnostic::error("a recipe with several documents cannot write an adapter")
                    .label(output.span, "asked for here")
                    .help("put this document in a file of its own"),
            ],
        ));
    }
    if let Some(defence) = documents.iter().find_map(|d| d.defence.as_ref()) {
        return Err(failure(
            &steps.recipe.source,
            vec![
                Diagnostic::error("backdoor vectors of models cannot be subtracted from an adapter")
                    .label(defence.span, "with `output: adapter`")
                    .help("`output: model` applies the merged adapter to the base and subtracts them from that"),
            ],
        ));
    }
    Ok(true)
}

/// Merges the adapters of a recipe into the adapter `out`, on the current rayon pool. Their base model is not read.
///
/// # Errors
/// See [`Failure`]; `out` is then as it was before.
pub fn merge_adapters(
    path: &Path,
    text: &str,
    out: &Path,
    options: &MergeOptions,
    observer: &dyn Observer,
) -> Result<AdapterSummary, Failure> {
    if options.part.is_some() {
        return Err(Failure::Usage(
            "an adapter is merged in seconds: it is not cut into parts".into(),
        ));
    }
    let steps = read(path, text, options)?;
    let mut merge = open(&steps, path, options)?;
    let provenance = Provenance {
        recipe: text.to_owned(),
        title: title(None, out),
        card: options.card,
        hash_inputs: options.hash_inputs,
    };
    let known = if merge.looks_at_data() {
        let plan = plan_document(&steps, 0, &opener(path), options)?;
        let words = (provenance.title.as_str(), text);
        let found = project_factors(&plan, words, options.allow_nonfinite, observer)?;
        merge.notes.extend(found.1.warnings);
        found.0
    } else {
        BTreeMap::new()
    };
    Ok(merge.carry_out(&known, out, options.overwrite, &provenance, observer)?)
}

/// Says what [`merge_adapters`] would merge, without writing anything.
///
/// # Errors
/// Everything that is wrong with the recipe or its adapters.
pub fn plan_adapters(
    path: &Path,
    text: &str,
    options: &MergeOptions,
) -> Result<PlannedAdapter, Failure> {
    let steps = read(path, text, options)?;
    let merge = open(&steps, path, options)?;
    Ok(PlannedAdapter {
        method: merge.method(),
        adapters: merge.labels().to_vec(),
        matrices: merge.matrices().to_vec(),
        biases: merge.biases(),
        notes: merge.notes.clone(),
    })
}

fn open<'s>(
    steps: &'s Steps,
    path: &Path,
    options: &MergeOptions,
) -> Result<AdapterMerge<'s>, Failure> {
    let fail = |list| failure(&steps.recipe.source, list);
    let document = &steps.recipe.documents[0];
    let recipe = AdapterRecipe::new(document, &options.plan).map_err(fail)?;
    let warnings: Vec<String> = steps
        .warnings
        .iter()
        .chain(&recipe.warnings)
        .map(|warning| warning.message.clone())
        .collect();
    let mut merge = AdapterMerge::open(recipe, &opener(path), &options.plan).map_err(fail)?;
    merge.notes.splice(0..0, warnings);
    Ok(merge)
}
