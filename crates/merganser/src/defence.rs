//! `defend` in a recipe: the merge is made in float32, then λ times the mean of injected backdoor vectors is subtracted and
//! the result rounded once. Two passes rather than one, so that it goes with every method, also with those that take
//! matrices apart or look at data, and because λ may depend on all of the merge.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use merganser_plan::{Model, Plan, task_vector};
use merganser_recipe::{Defence, Diagnostic, FloatType, ModelRef, Spanned};
use merganser_run::{Merge, Observer, Opener, Provenance};
use merganser_store::publish::STAGING;

use crate::audit::{injected_mean, subtracted};
use crate::workflow::{Steps, already_made, failure, memory_of, plan_document};
use crate::{Failure, MergeOptions};

/// λ where the recipe gives none.
const LAMBDA: f64 = 0.5;
/// Tensors that a message lists.
const LISTED: usize = 4;

/// Checks the defence of a document against the plan of its merge and says in the plan's notes what will be done. Reads no
/// tensor data.
///
/// # Errors
/// See [`Failure`].
pub(crate) fn announce(
    steps: &Steps,
    document: usize,
    opener: &Opener,
    plan: &mut Plan,
) -> Result<(), Failure> {
    let spoken_of = &steps.recipe.documents[document];
    let Some(defence) = &spoken_of.defence else {
        return Ok(());
    };
    let fail = |diagnostic| failure(&steps.recipe.source, vec![diagnostic]);
    if defence.projected && spoken_of.base_model.is_none() {
        return Err(fail(
            Diagnostic::error("how much there is of a backdoor vector in a merge cannot be told without a base model")
                .label(defence.span, "asks for as much as there is")
                .help("name the `base_model`, or give `lambda` a number"),
        ));
    }
    if let Some(extra) = plan.outputs.iter().find(|output| output.extra.is_some()) {
        return Err(fail(
            Diagnostic::error(format!(
                "{} stores several models in one ('{}' and others), from which no backdoor vector can be subtracted at once",
                plan.info().name,
                extra.name
            ))
            .label(defence.span, "with a defence"),
        ));
    }
    let mut decides = format!(
        "{:?} {}",
        defence.lambda.as_ref().map(|x| x.value),
        defence.projected
    );
    for (reference, model) in open(steps, defence, opener)? {
        decides.push_str(&format!(" {}", model.identity()));
        let misfits = misfits(plan, &model);
        if !misfits.is_empty() {
            let more = misfits.len().saturating_sub(LISTED);
            let mut text = misfits[..misfits.len().min(LISTED)].join("; ");
            if more > 0 {
                text.push_str(&format!("; and {more} more"));
            }
            return Err(fail(
                Diagnostic::error(format!("{reference} does not fit what is merged: {text}"))
                    .label(reference.span, "named here")
                    .help("both models of a pair are fine-tunes of the base of the merge"),
            ));
        }
    }
    plan.depends_on(&decides);
    let count = defence.ibvs.len();
    let amount = match &defence.lambda {
        _ if defence.projected => "as much as there is in the merge of".to_owned(),
        given => format!("{} times", given.as_ref().map_or(LAMBDA, |x| x.value)),
    };
    let what = if count == 1 {
        "an injected backdoor vector".to_owned()
    } else {
        format!("the mean of {count} injected backdoor vectors")
    };
    let elements: usize = plan.tensors().map(merganser_plan::Output::elements).sum();
    plan.notes.push(format!(
        "{amount} {what} is subtracted from the merge, which takes another {:.1} MB of disk while it runs: this weakens a backdoor and does \
         not remove it",
        elements as f64 * 4e-6
    ));
    Ok(())
}

/// What a document with a defence is merged to, and how.
pub(crate) struct Defended<'a> {
    pub(crate) steps: &'a Steps,
    pub(crate) document: usize,
    pub(crate) opener: &'a Opener,
    pub(crate) options: &'a MergeOptions,
    /// Where intermediate models go.
    pub(crate) intermediate: &'a Path,
    pub(crate) provenance: &'a Provenance,
    pub(crate) overwrite: bool,
}

impl Defended<'_> {
    /// Merges the document as `plan` says, and defends what comes out, into `out`. Returns the plan that was carried out last
    /// and the report of the merge.
    ///
    /// # Errors
    /// See [`Failure`]; `out` is then as it was before.
    pub(crate) fn merge(
        &self,
        plan: Plan,
        defence: &Defence,
        out: &Path,
        observer: &dyn Observer,
    ) -> Result<(Plan, Option<merganser_report::Report>), Failure> {
        let count = defence.ibvs.len();
        let of = |reference: &ModelRef| {
            let found = self.opener.model(reference);
            found.map_err(|reason| Failure::Usage(format!("cannot open {reference}: {reason}")))
        };
        let mut models: Vec<Model> = open(self.steps, defence, self.opener)?
            .into_iter()
            .map(|(_, model)| model)
            .collect();
        if let Some(base) = &self.steps.recipe.documents[self.document].base_model {
            models.push(of(base)?);
        }
        merganser_run::refuse_own_inputs(out, &models)?;
        // What is wrong with the vectors is found before the merge, which takes longer.
        injected_mean(&models, count)?;
        let (undefended, report) = self.undefended(observer)?;
        let mut merged = of(&ModelRef::local(&undefended.display().to_string()))?;
        merged.label = "the merge".into();
        models.push(merged);
        let lambda = match &defence.lambda {
            _ if defence.projected => injected_mean(&models, count)?.coefficient.max(0.0),
            given => given.as_ref().map_or(LAMBDA, |lambda| lambda.value),
        };
        let merged = models.swap_remove(models.len() - 1);
        models.truncate(2 * count);
        let shard_size = self.options.plan.shard_size;
        let items = subtracted(models, lambda);
        let mut plan =
            task_vector::add_to_merged(merged, items, plan, shard_size).map_err(Failure::Usage)?;
        if defence.projected {
            plan.notes.push(if lambda == 0.0 {
                "there is nothing of it in the merge and nothing was subtracted, which does not say that the merge has no \
                 backdoor"
                    .into()
            } else {
                format!("there is {lambda:.6} times of it in the merge")
            });
        }
        merganser_run::merge(
            &Merge {
                plan: &plan,
                out,
                overwrite: self.overwrite,
                allow_nonfinite: self.options.allow_nonfinite,
                no_sync: self.options.no_sync,
                part: None,
                memory: memory_of(self.options, &plan),
                provenance: self.provenance,
            },
            observer,
        )?;
        for name in ["report.html", "report.json"] {
            let from = undefended.join(name);
            if from.exists() {
                let to = out.join(name);
                std::fs::copy(from, &to).map_err(|error| {
                    Failure::Usage(format!(
                        "the model is complete, but '{}' cannot be written: {error}",
                        to.display()
                    ))
                })?;
                let note = "the report is that of the merge before the subtraction";
                if !plan.notes.iter().any(|known| known == note) {
                    plan.notes.push(note.into());
                }
            }
        }
        // A cache of ours, twice as large as the result: if it cannot be removed, the merge is still good.
        let _ = std::fs::remove_dir_all(&undefended);
        Ok((plan, report))
    }

    /// The folder with the merge in float32, made now unless an interrupted run has left it.
    fn undefended(
        &self,
        observer: &dyn Observer,
    ) -> Result<(PathBuf, Option<merganser_report::Report>), Failure> {
        let mut steps = self.steps.clone();
        let document = &mut steps.recipe.documents[self.document];
        document.out_dtype = Some(Spanned::new(FloatType::Float32, document.span));
        let name = document.name.as_ref().map_or("", |name| &name.value);
        let folder = self
            .intermediate
            .join(format!(".undefended-{name}.merganser"));
        let occupied = std::fs::read_dir(&folder).is_ok_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != STAGING))
        });
        if occupied && !folder.join("merganser.json").exists() {
            return Err(Failure::Usage(format!(
                "'{}' is where the merge goes before it is defended, and holds other files; move them",
                folder.display()
            )));
        }
        let plan = plan_document(&steps, self.document, self.opener, self.options)?;
        if already_made(&folder, &plan) {
            return Ok((folder, None));
        }
        let provenance = Provenance {
            card: false,
            ..self.provenance.clone()
        };
        let job = Merge {
            plan: &plan,
            out: &folder,
            overwrite: true,
            allow_nonfinite: self.options.allow_nonfinite,
            no_sync: self.options.no_sync,
            part: None,
            memory: memory_of(self.options, &plan),
            provenance: &provenance,
        };
        let report = merganser_run::merge(&job, observer)?;
        Ok((folder, report))
    }
}

fn open<'a>(
    steps: &Steps,
    defence: &'a Defence,
    opener: &Opener,
) -> Result<Vec<(&'a ModelRef, Model)>, Failure> {
    let mut opened = Vec::new();
    let mut errors = Vec::new();
    for reference in defence.model_refs() {
        match opener.model(reference) {
            Ok(model) if task_vector::is_task_vector(&model) => errors.push(
                Diagnostic::error(format!("{reference} is a task vector, not a model"))
                    .label(reference.span, "named here")
                    .help("name the two models themselves; their difference is taken here"),
            ),
            Ok(model) => opened.push((reference, model)),
            Err(reason) => errors.push(
                Diagnostic::error(format!("cannot open model {reference}: {reason}"))
                    .label(reference.span, "named here"),
            ),
        }
    }
    if errors.is_empty() {
        Ok(opened)
    } else {
        Err(failure(&steps.recipe.source, errors))
    }
}

/// Where a model has not what is merged, and where it has more.
fn misfits(plan: &Plan, model: &Model) -> Vec<String> {
    let mut found = Vec::new();
    let mut known = BTreeSet::new();
    for output in plan.tensors() {
        let Some(own) = model.find(&output.name) else {
            if !merganser_plan::is_rebuilt_buffer(&output.name) {
                found.push(format!("it has no tensor '{}'", output.name));
            }
            continue;
        };
        known.insert(own.name().to_owned());
        match model.describe(own.name()) {
            Some((_, shape)) if shape == output.shape => {}
            shape => found.push(format!(
                "'{}' has shape {:?} there and {:?} here",
                output.name,
                shape.map_or(&[][..], |(_, shape)| shape),
                output.shape
            )),
        }
    }
    let more = model.names().filter(|name| {
        !known.contains(*name)
            && !merganser_plan::is_rebuilt_buffer(name)
            && !plan.tensors().any(|output| output.name == *name)
    });
    found.extend(more.map(|name| format!("its '{name}' is not in the merge")));
    found
}
