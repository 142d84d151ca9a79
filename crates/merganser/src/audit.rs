//! Audits of fine-tunes by their weights: sequences of updates, contributors of a merge against injected backdoors, and the
//! subtraction of backdoor vectors.

use std::path::Path;

use merganser_plan::task_vector::{self, Format, Item};
use merganser_plan::{Model, Plan};
use merganser_recipe::{InjectedPair, ModelRef};
use merganser_run::differences::{Differences, differences};
use merganser_run::{Observer, Opener};
use merganser_store::Dtype;
use merganser_trust::vectors::{AgainstMean, against_mean};

use crate::adapters::{model, provenance, reference};
use crate::workflow::{carry_out, plan_recipe};
use crate::{Failure, MergeOptions};

/// Products of the updates of a sequence of models, `models[0]` the first: each against the one before it, or all against
/// the first.
///
/// # Errors
/// See [`Failure`].
pub fn updates(models: &[String], from_first: bool) -> Result<Differences, Failure> {
    let references = models
        .iter()
        .map(|name| reference(name))
        .collect::<Result<Vec<_>, _>>()?;
    let opened = open(references.iter())?;
    let pairs: Vec<(usize, usize)> = (1..opened.len())
        .map(|t| (t, if from_first { 0 } else { t - 1 }))
        .collect();
    Ok(differences(&opened, &pairs)?)
}

/// Products of backdoor vectors, and behind them, with `base`, of the clean models' task vectors.
///
/// # Errors
/// If a clean model is of another base, unless `force` is set; see [`Failure`].
pub fn backdoor_vectors(
    pairs: &[InjectedPair],
    base: Option<&str>,
    force: bool,
) -> Result<Differences, Failure> {
    let opened = open_pairs(pairs, base)?;
    let mut wanted = vectors(pairs.len());
    if base.is_some() {
        let last = opened.len() - 1;
        wanted.extend((0..pairs.len()).map(|i| (2 * i + 1, last)));
    }
    let found = differences(&opened, &wanted)?;
    if base.is_some() && !force {
        same_base(&found, pairs.len(), &opened, &wanted)?;
    }
    Ok(found)
}

/// The contributors of a merge beside backdoor vectors.
#[derive(Debug)]
pub struct Contributors {
    /// What the recipe calls them.
    pub labels: Vec<String>,
    /// Products of their task vectors, behind them those of the backdoor vectors, and then those of the task vectors of the
    /// clean models of the pairs.
    pub differences: Differences,
}

/// Products of the task vectors of a recipe's models and of injected backdoor vectors.
///
/// # Errors
/// If the recipe cannot be planned, has several documents or no base model, or a clean model is of another base, unless
/// `force` is set; see [`Failure`].
pub fn contributors(
    recipe: &Path,
    text: &str,
    injected: &[InjectedPair],
    force: bool,
    options: &MergeOptions,
) -> Result<Contributors, Failure> {
    let mut planned = plan_recipe(recipe, text, options)?;
    let (Some(planned), true) = (planned.pop(), planned.is_empty()) else {
        return Err(Failure::Usage(
            "the recipe has several merges; audit one at a time, each from a recipe of its own"
                .into(),
        ));
    };
    let Some(base) = planned.plan.base else {
        return Err(Failure::Usage(
            "the recipe names no base_model, so that its models have no task vectors to compare"
                .into(),
        ));
    };
    let mut models = planned.plan.models;
    let own: Vec<usize> = (0..models.len()).filter(|&i| i != base).collect();
    let labels = own.iter().map(|&i| models[i].label.clone()).collect();
    let mut wanted: Vec<(usize, usize)> = own.iter().map(|&i| (i, base)).collect();
    let first = models.len();
    models.extend(open_pairs(injected, None)?);
    let shifted = vectors(injected.len()).into_iter();
    wanted.extend(shifted.map(|(a, b)| (a + first, b + first)));
    let behind = wanted.len();
    wanted.extend((0..injected.len()).map(|i| (first + 2 * i + 1, base)));
    let found = differences(&models, &wanted)?;
    if !force {
        same_base(&found, behind, &models, &wanted)?;
    }
    Ok(Contributors {
        labels,
        differences: found,
    })
}

/// How much of the mean backdoor vector is subtracted.
#[derive(Debug, Clone, PartialEq)]
pub enum Amount {
    /// This much.
    Given(f64),
    /// As much as there is of it in the difference to this base model; never less than 0.
    Projected(String),
}

/// Writes the model `merged` without λ times the mean of backdoor vectors into the folder `out`, on the current rayon pool.
/// Returns the plan that was carried out, and λ.
///
/// # Errors
/// See [`Failure`]; `out` is then as it was before.
pub fn subtract(
    merged: &str,
    injected: &[InjectedPair],
    amount: &Amount,
    out: &Path,
    dtype: Option<Dtype>,
    options: &MergeOptions,
    observer: &dyn Observer,
) -> Result<(Plan, f64), Failure> {
    let base = match amount {
        Amount::Projected(base) => Some(base.as_str()),
        Amount::Given(_) => None,
    };
    let mut models = open_pairs(injected, base)?;
    let whole = model(&Opener::new(None), &reference(merged)?)?;
    let (lambda, whole) = match amount {
        Amount::Given(lambda) => {
            injected_mean(&models, injected.len())?;
            (*lambda, whole)
        }
        Amount::Projected(_) => {
            models.push(whole);
            let mean = injected_mean(&models, injected.len())?;
            let whole = models.swap_remove(models.len() - 1);
            (mean.coefficient.max(0.0), whole)
        }
    };
    models.truncate(2 * injected.len());
    if let Some(part) = models
        .iter()
        .chain([&whole])
        .find(|model| task_vector::is_task_vector(model))
    {
        return Err(Failure::Usage(format!(
            "{} is a task vector; name the models themselves",
            part.label
        )));
    }
    let items = subtracted(models, lambda);
    let format = Format {
        dtype,
        shard_size: options.plan.shard_size,
    };
    let plan = task_vector::apply(whole, items, format).map_err(Failure::Usage)?;
    let list: Vec<String> = injected.iter().map(InjectedPair::to_string).collect();
    let recipe = format!(
        "# merganser bv apply {merged} --injected {} --lambda {lambda}\n",
        list.join(" --injected ")
    );
    let plan = carry_out(
        plan,
        &provenance(recipe, out, options),
        out,
        options,
        observer,
    )?;
    Ok((plan, lambda))
}

/// The mean of `count` backdoor vectors. `models` are their pairs, behind these their base if it is known, and then a merged
/// model if its likeness counts.
///
/// # Errors
/// If the two models of a pair are equal, the mean is 0, or a clean model is of another base.
pub(crate) fn injected_mean(models: &[Model], count: usize) -> Result<AgainstMean, Failure> {
    let (base, merged) = (2 * count, 2 * count + 1);
    let mut wanted = vectors(count);
    if models.len() > base {
        wanted.extend((0..count).map(|i| (2 * i + 1, base)));
    }
    if models.len() > merged {
        wanted.push((merged, base));
    }
    let found = differences(models, &wanted)?;
    if let Some(i) = (0..count).find(|&i| found.total.norm(i) == 0.0) {
        return Err(Failure::Usage(format!(
            "the backdoor vector of {}:{} is 0: the two models are equal",
            models[2 * i].label,
            models[2 * i + 1].label
        )));
    }
    let behind = &wanted[..wanted.len().min(2 * count)];
    same_base(&found, count, models, behind)?;
    let all: Vec<usize> = (0..count).collect();
    // Without a merged model only that the mean is not 0.
    Ok(against_mean(
        &found.total.dots,
        wanted.len(),
        wanted.len() - 1,
        &all,
    )?)
}

/// Refuses clean models, the first of the pairs from number `first` on, that are no nearer to their base, the second, than a
/// model of zeros would be: they are fine-tunes of something else.
fn same_base(
    found: &Differences,
    first: usize,
    models: &[Model],
    pairs: &[(usize, usize)],
) -> Result<(), Failure> {
    for (t, &(clean, base)) in pairs.iter().enumerate().skip(first) {
        let own = found.total.subtracted[t].sqrt();
        let apart = found.total.norm(t);
        if own > 0.0 && apart >= own {
            return Err(Failure::Usage(format!(
                "{} is {:.2} of the length of {} away from it, as models are that have nothing to do with each other: both models \
                 of a pair must be fine-tunes of this base; leave this pair out",
                models[clean].label,
                apart / own,
                models[base].label
            )));
        }
    }
    Ok(())
}

/// What takes λ times the mean of backdoor vectors off a model θ, from their pairs:
/// θ − (λ/n) Σ (b_i − c_i) = θ − (λ/n) Σ (b_i − θ) + (λ/n) Σ (c_i − θ).
pub(crate) fn subtracted(pairs: Vec<Model>, lambda: f64) -> Vec<Item> {
    let share = lambda / (pairs.len() / 2) as f64;
    pairs
        .into_iter()
        .enumerate()
        .map(|(i, model)| Item {
            model,
            weight: if i % 2 == 0 { -share } else { share },
            on_base: false,
        })
        .collect()
}

fn vectors(count: usize) -> Vec<(usize, usize)> {
    (0..count).map(|i| (2 * i, 2 * i + 1)).collect()
}

fn open<'a>(references: impl Iterator<Item = &'a ModelRef>) -> Result<Vec<Model>, Failure> {
    let opener = Opener::new(None);
    references
        .map(|reference| model(&opener, reference))
        .collect()
}

/// The models of pairs, and behind them that of `base`.
fn open_pairs(pairs: &[InjectedPair], base: Option<&str>) -> Result<Vec<Model>, Failure> {
    let base = base.map(reference).transpose()?;
    open(pairs.iter().flat_map(InjectedPair::models).chain(&base))
}
