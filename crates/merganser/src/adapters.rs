//! Task vectors as things of their own: an adapter or a checkpoint of differences out of a fine-tune, and a model out of a
//! base and some of these.

use std::path::Path;

use merganser_plan::task_vector::{self, Format, Item};
use merganser_plan::{Model, Plan};
use merganser_recipe::ModelRef;
use merganser_run::extract::{self, ExtractLora, Filter, LoraReport, Overrides, Scale, Truncation};
use merganser_run::{Observer, Opener, Provenance};
use merganser_store::Dtype;

use crate::workflow::{carry_out, title};
use crate::{Failure, MergeOptions};

/// How to extract an adapter.
#[derive(Debug, Clone)]
pub struct LoraOptions {
    /// How much is kept of every matrix.
    pub truncation: Truncation,
    /// Which factor carries the singular values.
    pub scale: Scale,
    /// Which modules are wanted.
    pub filter: Filter,
    /// What is factored or saved otherwise than usual.
    pub overrides: Overrides,
    /// Type of what is written; `None` takes the fine-tune's.
    pub dtype: Option<Dtype>,
    /// Replace an adapter that is already in the output folder.
    pub overwrite: bool,
    /// Bytes of working memory that may be used; unless given 2 GiB, or what one matrix takes.
    pub memory: Option<u64>,
}

/// Extracts the LoRA adapter nearest to `fine` − `base` into the folder `out`, on the current rayon pool.
///
/// # Errors
/// See [`Failure`]; `out` is then as it was before.
pub fn extract_lora(
    fine: &str,
    base: &str,
    out: &Path,
    options: LoraOptions,
    observer: &dyn Observer,
) -> Result<LoraReport, Failure> {
    if out.join("config.json").exists() && !out.join("adapter_config.json").exists() {
        return Err(Failure::Usage(format!(
            "'{}' holds a model, which an adapter does not replace; choose another folder",
            out.display()
        )));
    }
    let opener = Opener::new(None);
    let (fine, base) = (reference(fine)?, reference(base)?);
    let (fine, base) = (model(&opener, &fine)?, model(&opener, &base)?);
    let job = ExtractLora {
        fine: &fine,
        base: &base,
        out,
        truncation: options.truncation,
        scale: options.scale,
        filter: options.filter,
        overrides: options.overrides,
        dtype: options.dtype,
        overwrite: options.overwrite,
        memory: options.memory,
    };
    Ok(extract::extract_lora(&job, observer)?)
}

/// Writes `fine` − `base` into the folder `out` as a checkpoint of differences, in `dtype` (float32 by default), on the
/// current rayon pool. Options as in [`rebuild`](crate::rebuild()). Returns the plan that was carried out.
///
/// # Errors
/// See [`Failure`]; `out` is then as it was before.
pub fn extract_task_vector(
    fine: &str,
    base: &str,
    out: &Path,
    dtype: Option<Dtype>,
    options: &MergeOptions,
    observer: &dyn Observer,
) -> Result<Plan, Failure> {
    let opener = Opener::new(None);
    let format = Format {
        dtype,
        shard_size: options.plan.shard_size,
    };
    let fine_model = model(&opener, &reference(fine)?)?;
    let base_model = model(&opener, &reference(base)?)?;
    let plan = task_vector::difference(fine_model, base_model, format).map_err(Failure::Usage)?;
    let recipe = format!("# merganser extract task-vector {fine} {base}\n");
    // A model card would present it as a model.
    let options = MergeOptions {
        card: false,
        ..options.clone()
    };
    carry_out(
        plan,
        &provenance(recipe, out, &options),
        out,
        &options,
        observer,
    )
}

/// Adds adapters and task vectors, each written `ITEM[@WEIGHT]`, to the model `base` and writes the result into the folder
/// `out`, in `dtype` (the base's by default), on the current rayon pool. Options as in [`rebuild`](crate::rebuild()).
/// Returns the plan that was carried out.
///
/// # Errors
/// See [`Failure`]; `out` is then as it was before.
pub fn apply(
    base: &str,
    items: &[String],
    out: &Path,
    dtype: Option<Dtype>,
    options: &MergeOptions,
    observer: &dyn Observer,
) -> Result<Plan, Failure> {
    let opener = Opener::new(None);
    let reference = reference(base)?;
    if reference.lora.is_some() && !items.is_empty() {
        return Err(Failure::Usage(format!(
            "'{base}' has an adapter already: name it among what is applied"
        )));
    }
    let base_model = model(&opener, &reference)?;
    if task_vector::is_task_vector(&base_model) {
        return Err(Failure::Usage(format!(
            "{base} is a task vector, not a model: name the base first"
        )));
    }
    let mut opened = Vec::new();
    for text in items {
        let (name, weight) = weighted(text)?;
        let item = self::reference(name)?;
        let model = opener
            .addition(&reference, &item)
            .map_err(|reason| Failure::Usage(format!("cannot open {name}: {reason}")))?;
        if model.adapter.is_none() && !task_vector::is_task_vector(&model) {
            return Err(Failure::Usage(format!(
                "{name} is a model, neither an adapter nor a task vector; take its difference with `merganser extract \
                 task-vector`, or merge it with a recipe"
            )));
        }
        if item.lora.is_some()
            && (&item.path, &item.revision) != (&reference.path, &reference.revision)
        {
            return Err(Failure::Usage(format!(
                "{name} is an adapter on another base than {base}; name the adapter alone to put it on {base}"
            )));
        }
        opened.push(Item {
            model,
            weight,
            on_base: true,
        });
    }
    let format = Format {
        dtype,
        shard_size: options.plan.shard_size,
    };
    let plan = task_vector::apply(base_model, opened, format).map_err(Failure::Usage)?;
    let recipe = format!("# merganser apply {base} {}\n", items.join(" "));
    carry_out(
        plan,
        &provenance(recipe, out, options),
        out,
        options,
        observer,
    )
}

pub(crate) fn provenance(recipe: String, out: &Path, options: &MergeOptions) -> Provenance {
    Provenance {
        recipe,
        title: title(None, out),
        card: options.card,
        hash_inputs: options.hash_inputs,
    }
}

pub(crate) fn reference(text: &str) -> Result<ModelRef, Failure> {
    text.parse()
        .map_err(|error| Failure::Usage(format!("'{text}' names no model: {error}")))
}

pub(crate) fn model(opener: &Opener, reference: &ModelRef) -> Result<Model, Failure> {
    opener
        .model(reference)
        .map_err(|reason| Failure::Usage(format!("cannot open model {reference}: {reason}")))
}

/// Takes the weight off an item: what follows the last `@`, if it is a number. A revision that is one needs a weight after
/// it.
fn weighted(text: &str) -> Result<(&str, f64), Failure> {
    let Some((name, weight)) = text.rsplit_once('@') else {
        return Ok((text, 1.0));
    };
    match weight.trim().parse::<f64>() {
        Ok(weight) if weight.is_finite() => Ok((name, weight)),
        Ok(_) => Err(Failure::Usage(format!(
            "the weight of '{text}' is not finite"
        ))),
        Err(_) => Ok((text, 1.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_follow_the_last_at_sign() {
        let read = |text| weighted(text).ok();
        assert_eq!(read("a/b"), Some(("a/b", 1.0)));
        assert_eq!(read("a/b@0.5"), Some(("a/b", 0.5)));
        assert_eq!(read("a/b@-1"), Some(("a/b", -1.0)));
        assert_eq!(read("a/b@main"), Some(("a/b@main", 1.0)));
        assert_eq!(read("a/b@main@2"), Some(("a/b@main", 2.0)));
        assert_eq!(read("a@nan"), None);
    }
}
