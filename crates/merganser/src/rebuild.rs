//! From the folder of a merge by `emr` back to the model of one task.

use std::path::Path;

use merganser_plan::{Plan, Rebuild, Record};
use merganser_recipe::{ModelRef, Span};
use merganser_run::{Observer, Opener, Provenance};

use crate::workflow::carry_out;
use crate::{Failure, MergeOptions};

/// Rebuilds the model of `task` (its number, counted from 0, or its name in the recipe) from the folder `merged` into
/// the folder `out`, on the current rayon pool. `base` is the base model, if it is no longer where the recipe had it.
///
/// Of the options, those about writing count: `overwrite`, `allow_nonfinite`, `no_sync`, `memory`, `card`,
/// `hash_inputs` and the plan's `shard_size`. Returns the plan that was carried out.
///
/// # Errors
/// See [`Failure`]; `out` is then as it was before.
pub fn rebuild(
    merged: &Path,
    task: &str,
    base: Option<&str>,
    out: &Path,
    options: &MergeOptions,
    observer: &dyn Observer,
) -> Result<Plan, Failure> {
    let record = record(merged)?;
    let number = task_number(&record, task)?;
    let opener = Opener::new(None);
    // Paths as they are: a `+` or `@` in them means nothing.
    let local = |path: &Path| ModelRef {
        path: path.to_string_lossy().into_owned(),
        revision: None,
        lora: None,
        override_architecture: None,
        span: Span::default(),
    };
    let parts = merged.join(format!("{}.safetensors", record.method));
    let merged_model = open(&opener, &local(merged))?;
    let parts = open(&opener, &local(&parts))?;
    let label = base.or(record.base.as_deref()).ok_or_else(|| {
        Failure::Usage("the record names no base model: give it with --base".into())
    })?;
    let reference: ModelRef = label
        .parse()
        .map_err(|error| Failure::Usage(format!("'{label}' names no model: {error}")))?;
    let base_model = open(&opener, &reference).map_err(|failure| match base {
        Some(_) => failure,
        None => Failure::Usage(format!(
            "{failure}; if the base model moved, give it with --base"
        )),
    })?;
    let plan = Rebuild {
        merged: merged_model,
        parts,
        record: &record,
        base: base_model,
        task: number,
        shard_size: options.plan.shard_size,
    };
    let plan = plan.plan().map_err(Failure::Usage)?;
    let name = &record.models[number];
    let provenance = Provenance {
        recipe: format!(
            "# the model of {name}, rebuilt from the merge that this recipe describes\n{}",
            std::fs::read_to_string(merged.join("mergekit_config.yml")).unwrap_or_default()
        ),
        title: out
            .file_name()
            .map_or_else(|| name.clone(), |name| name.to_string_lossy().into_owned()),
        card: options.card,
        hash_inputs: options.hash_inputs,
    };
    carry_out(plan, &provenance, out, options, observer)
}

fn open(opener: &Opener, reference: &ModelRef) -> Result<merganser_plan::Model, Failure> {
    let model = opener.model(reference);
    model.map_err(|reason| Failure::Usage(format!("cannot open model {reference}: {reason}")))
}

/// Reads the record of a merge by `emr` and checks that it belongs to the model beside it.
fn record(merged: &Path) -> Result<Record, Failure> {
    let path = merged.join("emr.json");
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Failure::Usage(format!(
            "cannot read '{}': {error}; a model can be rebuilt from the folder that a recipe with `merge_method: emr` \
             (and `output: unified`, its default) was merged into",
            path.display()
        ))
    })?;
    let record: Record = serde_json::from_str(&text).map_err(|error| {
        Failure::Usage(format!(
            "'{}' is not the record of a merge by emr: {error}",
            path.display()
        ))
    })?;
    let beside = std::fs::read_to_string(merged.join("merganser.json")).unwrap_or_default();
    let beside: serde_json::Value = serde_json::from_str(&beside).unwrap_or_default();
    match beside.get("plan").and_then(|plan| plan.as_str()) {
        Some(plan) if plan != record.plan => Err(Failure::Usage(format!(
            "'{}' belongs to another merge than the model in '{}', which replaced it: merge the emr recipe again",
            path.display(),
            merged.display()
        ))),
        _ => Ok(record),
    }
}

/// The task called `text`: by the name of its model in the recipe, or by its number.
fn task_number(record: &Record, text: &str) -> Result<usize, Failure> {
    let named = record.models.iter().position(|model| model == text);
    let numbered = || {
        let number: usize = text.parse().ok()?;
        (number < record.models.len()).then_some(number)
    };
    named.or_else(numbered).ok_or_else(|| {
        let known = record.models.iter().enumerate();
        let known: Vec<String> = known.map(|(i, model)| format!("{i} ({model})")).collect();
        Failure::Usage(format!(
            "there is no task '{text}' in this merge; its tasks are {}",
            known.join(", ")
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_go_by_name_or_number() {
        let record = Record {
            method: "emr".into(),
            plan: String::new(),
            base: None,
            base_identity: None,
            models: vec!["math".into(), "0".into()],
            parameters: [].into(),
            numbers: [].into(),
            tensors: [].into(),
        };
        let number = |text| task_number(&record, text).ok();
        assert_eq!((number("math"), number("1")), (Some(0), Some(1)));
        assert_eq!(number("0"), Some(1), "a name comes before a number");
        assert_eq!(
            (number("2"), number("-1"), number("mat")),
            (None, None, None)
        );
    }
}
