//! The planner: puts roles, parameters, types, shapes and places together.

use merganser_recipe::{Diagnostic, ModelRef, Recipe, Severity};

use crate::layout;
use crate::model::Inputs;
use crate::output_config::output_config;
use crate::outputs::Maker;
use crate::vocabulary::Reindexing;
use crate::{Options, Plan, calibrated, checks, digest, extras, resolve, shards};

pub(crate) fn plan(
    recipe: &Recipe,
    document: usize,
    inputs: Inputs,
    options: &Options,
) -> Result<Plan, Vec<Diagnostic>> {
    let index: &dyn Fn(&ModelRef) -> usize = &|reference| inputs.index(reference);
    let models = &inputs.models;
    let document = &recipe.documents[document];
    let (chosen, mut found) = resolve::check(document, options.lenient);
    found.extend(checks::unsupported(document));
    let Some(chosen) = chosen else {
        return Err(found);
    };
    let method = chosen.method;
    found.extend(calibrated::check(document, &chosen, options));
    stop_on_errors(&mut found)?;
    stop_on_errors(&mut checks::no_task_vectors(document, models, index))?;
    if !options.allow_crimes && !options.state_dict {
        checks::same_architecture(document, models, index)?;
    }
    let layout = layout::layout(document, models, index, options.state_dict)?;
    let base = document.base_model.as_ref().map(index);
    let reindexing = Reindexing::of(document, models, base).map_err(|error| vec![error])?;
    stop_on_errors(&mut checks::slices(document, method, models, &layout))?;
    let mut maker = Maker::new(document, &inputs, &chosen, options, reindexing.as_ref());
    let outputs = maker.outputs(&layout);
    stop_on_errors(&mut maker.errors)?;
    if outputs.is_empty() {
        return Err(vec![
            Diagnostic::error("there is nothing to merge: the models share no tensor")
                .label(document.merge_method.span, "no output tensor"),
        ]);
    }
    let template = base.or_else(|| {
        layout
            .slices
            .first()?
            .sources
            .first()
            .map(|source| source.model)
    });
    let config = match template.filter(|_| !options.state_dict) {
        Some(template) => output_config(
            document,
            models,
            &models[template],
            &layout,
            &outputs,
            maker.rows,
            &mut maker.notes,
        )
        .map_err(|error| vec![error])?,
        None => None,
    };
    let calibration =
        calibrated::tasks(&chosen, document, &layout, &inputs).map_err(|error| vec![error])?;
    if let Some(calibration) = &calibration
        && !options.allow_missing
    {
        calibrated::check_targets(document, calibration, models).map_err(|error| vec![error])?;
    }
    let mut outputs = extras::add(method, models, outputs, &mut maker.notes);
    let rest = calibration
        .as_ref()
        .and_then(|calibrated| calibrated::rest(calibrated, &outputs));
    let notes = maker.notes.into_iter().chain(rest).collect();
    let seed = options
        .seed
        .or(document.seed.as_ref().map(|seed| seed.value))
        .unwrap_or(0);
    let digest = digest::of(
        method,
        models,
        &outputs,
        config.as_deref(),
        seed,
        options.shard_size,
        calibration.as_ref(),
    );
    let metadata = digest::metadata(&digest, models, &recipe.source.text, seed);
    let shards = shards::pack(
        &mut outputs,
        options.shard_size,
        chosen.calibrated.unwrap_or(method.info()).name,
        &metadata,
    )
    .map_err(|error| vec![Diagnostic::error(error)])?;
    Ok(Plan {
        merge: None,
        method,
        calibrated: calibration,
        base,
        outputs,
        shards,
        config,
        template: template.filter(|_| !options.state_dict),
        seed,
        notes,
        warnings: found,
        digest,
        models: inputs.models,
    })
}

fn stop_on_errors(found: &mut Vec<Diagnostic>) -> Result<(), Vec<Diagnostic>> {
    if found
        .iter()
        .any(|diagnostic| diagnostic.severity == Severity::Error)
    {
        return Err(std::mem::take(found));
    }
    Ok(())
}
