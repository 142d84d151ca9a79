//! Numbers over the whole model, for the methods that need them; taken once and kept for resumed runs and other parts.

use merganser_methods::{Survey, TensorGroup};
use merganser_plan::{Action, Plan};
use merganser_store::publish::Staging;

use crate::execute::Opened;
use crate::{Event, Merge, Observer, RunError};

/// Takes the survey of a merge, or reads the one an earlier run of the same plan left.
pub(crate) fn take(
    job: &Merge<'_>,
    staging: &Staging,
    observer: &dyn Observer,
) -> Result<Survey, RunError> {
    let plan = job.plan;
    if !is_wanted(plan) {
        return Ok(Survey::default());
    }
    let path = staging
        .dir()
        .join(format!("survey-{}.json", &plan.digest[..16]));
    if let Some(numbers) = std::fs::read_to_string(&path)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
    {
        return Ok(Survey { numbers });
    }
    let survey = measure(plan, job.allow_nonfinite, observer)?;
    // Another part may be writing the same numbers: each writes its own file and renames it.
    if let Ok(text) = serde_json::to_string(&survey.numbers) {
        let own = path.with_extension(format!("{}.tmp", std::process::id()));
        if std::fs::write(&own, text).is_ok() {
            let _ = std::fs::rename(&own, &path);
        }
    }
    Ok(survey)
}

fn is_wanted(plan: &Plan) -> bool {
    plan.outputs.iter().any(|output| match &output.action {
        Action::Merge { settings, .. } => {
            output.extra.is_some() || plan.method.needs_survey(settings)
        }
        _ => false,
    })
}

/// Takes the survey of a plan; an empty one if its method needs none.
pub(crate) fn measure(
    plan: &Plan,
    allow_nonfinite: bool,
    observer: &dyn Observer,
) -> Result<Survey, RunError> {
    if !is_wanted(plan) {
        return Ok(Survey::default());
    }
    observer.event(Event::Survey);
    let mut opened = Vec::new();
    for output in plan.tensors() {
        if let Action::Merge {
            inputs,
            base,
            settings,
            ..
        } = &output.action
        {
            opened.push((output, *base, settings, Opened::new(plan, inputs, None)?));
        }
    }
    opened.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    let groups: Vec<TensorGroup<'_>> = opened
        .iter()
        .map(|(output, base, settings, opened)| {
            opened.group(output, *base, settings, allow_nonfinite)
        })
        .collect();
    Ok(plan.method.survey(&groups)?)
}
