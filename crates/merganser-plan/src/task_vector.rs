//! Plans around stored task vectors: the difference of a fine-tune and its base, and a base with adapters and task vectors
//! added to it. They go through the same executor and writer as every merge.

use std::collections::{BTreeMap, BTreeSet};

use merganser_methods::{Encoding, Float, Method, Settings, Value, task_vector};
use merganser_store::Dtype;
use merganser_store::checkpoint::CheckpointFile;
use serde_json::Value as Json;

use crate::{
    Action, Config, Found, InputRef, Model, Output, Plan, digest, kernel_float, roles, shards,
};

/// Entry of the header of every file of a task vector, and key of its config.json.
pub const MARK: &str = "merganser_task_vector";

/// What goes into a plan besides models.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    /// Type of real numbers; `None` keeps that of the base (to apply) or takes float32 (a difference).
    pub dtype: Option<Dtype>,
    /// Largest number of data bytes in an output file.
    pub shard_size: u64,
}

/// The plan of a fine-tune's task vector: a checkpoint of x − base for every tensor.
///
/// # Errors
/// What does not fit, by the names of tensors and models.
pub fn difference(fine: Model, base: Model, format: Format) -> Result<Plan, String> {
    same_architecture(&base, &fine)?;
    let dtype = format.dtype.unwrap_or(Dtype::F32);
    let mut outputs = Vec::new();
    let mut lacking = Vec::new();
    for name in fine.names() {
        let Some(found) = base.find(name) else {
            if !roles::is_rebuilt_buffer(name) {
                lacking.push(name.to_owned());
            }
            continue;
        };
        let inputs = vec![input(0, name), input(1, found.name())];
        let ((own, shape), (other, wanted)) = both(&fine, name, &base, found.name())?;
        if shape != wanted {
            return Err(shapes_differ(name, &fine, shape, &base, wanted));
        }
        outputs.push(if own.is_float() && other.is_float() {
            merged(name, shape, dtype, inputs, Settings::default())
        } else if own == other {
            output(name, shape, own, Action::Identical(inputs))
        } else {
            return Err(format!(
                "tensor '{name}' is {own} in {} and {other} in {}; a difference needs two of real numbers",
                fine.label, base.label
            ));
        });
    }
    if !lacking.is_empty() {
        return Err(format!(
            "{} has what {} lacks, so that there is nothing to take the difference to: {}; is it a fine-tune of that base?",
            fine.label,
            base.label,
            some(&lacking)
        ));
    }
    let gone: Vec<String> = base
        .names()
        .filter(|name| fine.find(name).is_none() && !roles::is_rebuilt_buffer(name))
        .map(str::to_owned)
        .collect();
    if !gone.is_empty() {
        return Err(format!(
            "{} lacks tensors of {}: {}; is it a fine-tune of that base?",
            fine.label,
            base.label,
            some(&gone)
        ));
    }
    let mut config = config_of(&fine)?;
    if let Some(config) = &mut config {
        set_dtype(config, dtype)?;
        config
            .set(&[MARK], &Json::Bool(true))
            .map_err(|error| error.to_string())?;
    }
    let notes = vec!["a task vector is no model: `merganser apply` adds it to its base".to_owned()];
    let recipe = format!("{} - {}", fine.label, base.label);
    Parts {
        method: task_vector::DIFFERENCE,
        models: vec![fine, base],
        base: Some(1),
        template: 0,
        outputs,
        config,
        notes,
        mark: Some(recipe),
        digest: None,
    }
    .plan(format.shard_size)
}

/// What is added to a base, and how much of it.
pub struct Item {
    /// A task vector; or the base with an adapter on it, or another fine-tune of it, of which the difference counts.
    pub model: Model,
    /// w_t.
    pub weight: f64,
    /// Whether an adapter of the model lies on the base itself, so that it leaves alone what it does not change.
    pub on_base: bool,
}

/// The plan of base + Σ w_t τ_t.
///
/// # Errors
/// What does not fit, by the names of tensors and models.
pub fn apply(base: Model, items: Vec<Item>, format: Format) -> Result<Plan, String> {
    let mut config = config_of(&base)?;
    if let (Some(config), Some(dtype)) = (&mut config, format.dtype) {
        set_dtype(config, dtype)?;
    }
    sum(base, items, &|_| format.dtype, config)?.plan(format.shard_size)
}

/// The plan of merged + Σ w_t τ_t where `merged` is what the plan `merge` makes, but in float32: types, config, notes and
/// warnings are those of `merge`, and so is the digest: it has to know of the items (see [`Plan::depends_on`]).
///
/// # Errors
/// What does not fit, by the names of tensors and models.
pub fn add_to_merged(
    merged: Model,
    items: Vec<Item>,
    mut merge: Plan,
    shard_size: u64,
) -> Result<Plan, String> {
    let dtypes: BTreeMap<&str, Dtype> = merge
        .tensors()
        .map(|output| (output.name.as_str(), output.dtype))
        .collect();
    let config = merge.config.as_deref().map(Config::parse).transpose();
    let config = config.map_err(|error| error.to_string())?;
    let dtype = |name: &str| dtypes.get(name).copied();
    let mut parts = sum(merged, items, &dtype, config)?;
    parts.digest = Some(merge.digest.clone());
    let mut plan = parts.plan(shard_size)?;
    plan.template = merge.template.and(plan.template);
    plan.notes.splice(0..0, std::mem::take(&mut merge.notes));
    plan.warnings = std::mem::take(&mut merge.warnings);
    plan.merge = Some(Box::new(merge));
    Ok(plan)
}

/// Base + Σ w_t τ_t, with what is said of the type of each tensor and the base's own where nothing is.
fn sum(
    base: Model,
    items: Vec<Item>,
    dtype: &dyn Fn(&str) -> Option<Dtype>,
    mut config: Option<Config>,
) -> Result<Parts, String> {
    for item in &items {
        same_architecture(&base, &item.model)?;
    }
    let mut names: BTreeSet<&str> = base.names().collect();
    for item in &items {
        names.extend(
            item.model.names().filter(|name| {
                !matches!(base.find(name), Some(Found::Same(_) | Found::Renamed(_)))
            }),
        );
    }
    let mut notes = partial(&base, &items)?;
    let mut outputs = Vec::new();
    let mut untied = false;
    for name in names {
        let Some(in_base) = base.find(name) else {
            if roles::is_rebuilt_buffer(name) {
                continue;
            }
            outputs.push(added(name, &base, &items, dtype(name))?);
            continue;
        };
        untied |= matches!(in_base, Found::Tied(_));
        outputs.push(one(name, &base, in_base.name(), &items, dtype(name))?);
    }
    if let Some(config) = &mut config
        && untied
        && config.get(&["tie_word_embeddings"]) != Some(Json::Bool(false))
    {
        notes.push("config.json: the head is no longer tied to the embedding".to_owned());
        config
            .set(&["tie_word_embeddings"], &Json::Bool(false))
            .map_err(|error| error.to_string())?;
    }
    let mut models = vec![base];
    models.extend(items.into_iter().map(|item| item.model));
    Ok(Parts {
        method: task_vector::APPLY,
        models,
        base: Some(0),
        template: 0,
        outputs,
        config,
        notes,
        mark: None,
        digest: None,
    })
}

/// Whether a model is a stored task vector, as its config or the headers of its files say.
pub fn is_task_vector(model: &Model) -> bool {
    let marked = |file: &CheckpointFile| file.metadata.contains_key(MARK);
    model.config_value(MARK) == Some(&Json::Bool(true))
        || model.checkpoint.files().iter().any(marked)
}

/// Notes about task vectors that say nothing of some tensors.
fn partial(base: &Model, items: &[Item]) -> Result<Vec<String>, String> {
    let mut notes = Vec::new();
    for item in items.iter().filter(|item| is_task_vector(&item.model)) {
        let silent = |name: &&str| item.model.find(name).is_none();
        let (all, without) = (base.names().count(), base.names().filter(silent).count());
        if without == all {
            return Err(format!(
                "{} has no tensor of {}: it is the task vector of another model",
                item.model.label, base.label
            ));
        }
        if without > 0 {
            notes.push(format!(
                "{} has nothing for {without} of {all} tensors: it leaves them as they are",
                item.model.label
            ));
        }
    }
    Ok(notes)
}

/// The output of a tensor that the base has.
fn one(
    name: &str,
    base: &Model,
    in_base: &str,
    items: &[Item],
    dtype: Option<Dtype>,
) -> Result<Output, String> {
    let (own, shape) = described(base, in_base)?;
    let dtype = dtype.filter(|_| own.is_float()).unwrap_or(own);
    let mut inputs = vec![input(0, in_base)];
    let mut same = inputs.clone();
    let mut settings = Settings {
        inputs: vec![BTreeMap::new()],
        ..Settings::default()
    };
    for (i, item) in items.iter().enumerate() {
        let (model, whole) = (&item.model, !is_task_vector(&item.model));
        // An adapter leaves most tensors as they are; a head tied in the base is where the base's embedding is.
        let found = model.find(name).or_else(|| model.find(in_base));
        let Some(found) = found else { continue };
        if item.on_base && model.adapter.is_some() && model.deltas(found.name()).is_empty() {
            continue;
        }
        let (other, found_shape) = described(model, found.name())?;
        if shape != found_shape {
            return Err(shapes_differ(name, base, shape, model, found_shape));
        }
        if !own.is_float() || !other.is_float() {
            // A task vector holds whole numbers as they are; they are equal in fine-tune and base. Between two models that are
            // both added and subtracted there is no difference of them.
            if own == other && (!whole || !item.on_base) {
                continue;
            }
            // So does an adapter that saves a module with all that is in it.
            if own == other && model.adapter.is_some() {
                same.push(input(i + 1, found.name()));
                continue;
            }
            return Err(format!(
                "tensor '{name}' is {own} in {} and {other} in {}: only real numbers can be added",
                base.label, model.label
            ));
        }
        inputs.push(input(i + 1, found.name()));
        settings.inputs.push(BTreeMap::from([
            (task_vector::WEIGHT, Value::Float(item.weight)),
            (task_vector::WHOLE, Value::Bool(whole)),
        ]));
    }
    let encoding = Encoding::Float(kernel_float(dtype).unwrap_or(Float::F32));
    let action = match &inputs[..] {
        [_] if same.len() > 1 => Action::Identical(same),
        [only] if dtype == own => Action::Copy(only.clone()),
        [only] => Action::Cast {
            input: only.clone(),
            encoding,
        },
        // With its whole weight, base + (adapted − base) is the adapted tensor, without two roundings on the way.
        [_, adapted] if items[adapted.model - 1].on_base && lone_adapter(&settings) => {
            Action::Cast {
                input: adapted.clone(),
                encoding,
            }
        }
        _ => return Ok(merged(name, shape, dtype, inputs, settings)),
    };
    Ok(output(name, shape, dtype, action))
}

fn lone_adapter(settings: &Settings) -> bool {
    settings.input_float(1, task_vector::WEIGHT) == Some(1.0)
        && settings.inputs[1].get(task_vector::WHOLE) == Some(&Value::Bool(true))
}

/// The output of a tensor that only an item has: the head that an adapter brings along.
fn added(name: &str, base: &Model, items: &[Item], dtype: Option<Dtype>) -> Result<Output, String> {
    let mut owners = items
        .iter()
        .enumerate()
        .filter(|(_, item)| item.model.has(name));
    let (Some((i, item)), None) = (owners.next(), owners.next()) else {
        return Err(format!(
            "tensor '{name}' is in several of what is applied, but not in {}: they cannot be added up",
            base.label
        ));
    };
    if item.weight != 1.0 || is_task_vector(&item.model) {
        return Err(format!(
            "tensor '{name}' of {} is not in {}, so that it can only be taken as it is, from an adapter of weight 1",
            item.model.label, base.label
        ));
    }
    let (own, shape) = described(&item.model, name)?;
    let dtype = dtype.filter(|_| own.is_float()).unwrap_or(own);
    let encoding = Encoding::Float(kernel_float(dtype).ok_or_else(|| {
        format!(
            "tensor '{name}' of {} is {own}, which an adapter cannot bring along",
            item.model.label
        )
    })?);
    let action = Action::Cast {
        input: input(i + 1, name),
        encoding,
    };
    Ok(output(name, shape, dtype, action))
}

/// What a plan is made of.
struct Parts {
    method: &'static dyn Method,
    models: Vec<Model>,
    base: Option<usize>,
    template: usize,
    outputs: Vec<Output>,
    config: Option<Config>,
    notes: Vec<String>,
    /// For a task vector: what it is the difference of.
    mark: Option<String>,
    /// The digest, if it is not that of the parts alone.
    digest: Option<String>,
}

impl Parts {
    fn plan(mut self, shard_size: u64) -> Result<Plan, String> {
        self.outputs.sort_by(|a, b| a.name.cmp(&b.name));
        let config = self.config.map(|config| config.text().to_owned());
        let digest = self.digest.take().unwrap_or_else(|| {
            digest::of(
                self.method,
                &self.models,
                &self.outputs,
                config.as_deref(),
                0,
                shard_size,
                None,
            )
        });
        let mut metadata = digest::metadata(&digest, &self.models, self.method.info().name, 0);
        if let Some(mark) = self.mark {
            metadata.insert(MARK.to_owned(), mark);
        }
        let shards = shards::pack(&mut self.outputs, shard_size, "extras", &metadata)?;
        Ok(Plan {
            merge: None,
            calibrated: None,
            method: self.method,
            base: self.base,
            outputs: self.outputs,
            shards,
            config,
            template: Some(self.template),
            seed: 0,
            notes: self.notes,
            warnings: Vec::new(),
            digest,
            models: self.models,
        })
    }
}

/// Refuses models of different architectures.
pub fn same_architecture(base: &Model, other: &Model) -> Result<(), String> {
    match (base.model_type(), other.model_type()) {
        (Some(a), Some(b)) if a != b => Err(format!(
            "{} is a {a} model and {} a {b} model: one cannot be a fine-tune of the other",
            base.label, other.label
        )),
        _ => Ok(()),
    }
}

fn merged(
    name: &str,
    shape: &[usize],
    dtype: Dtype,
    inputs: Vec<InputRef>,
    settings: Settings,
) -> Output {
    let action = Action::Merge {
        inputs,
        base: None,
        settings,
        encoding: Encoding::Float(kernel_float(dtype).unwrap_or(Float::F32)),
    };
    output(name, shape, dtype, action)
}

fn output(name: &str, shape: &[usize], dtype: Dtype, action: Action) -> Output {
    Output {
        name: name.to_owned(),
        shape: shape.to_vec(),
        dtype,
        nbytes: (shape.iter().product::<usize>() * dtype.size()) as u64,
        shard: 0,
        offset: 0,
        t: 0.0,
        action,
        extra: None,
        calibrated: None,
    }
}

fn input(model: usize, tensor: &str) -> InputRef {
    InputRef {
        model,
        tensor: tensor.to_owned(),
        round_to: None,
        companion: None,
        packed: false,
        rows: None,
    }
}

fn described<'a>(model: &'a Model, name: &str) -> Result<(Dtype, &'a [usize]), String> {
    model
        .describe(name)
        .ok_or_else(|| format!("{} has no tensor '{name}'", model.label))
}

type Described<'a> = (Dtype, &'a [usize]);

fn both<'a>(
    a: &'a Model,
    in_a: &str,
    b: &'a Model,
    in_b: &str,
) -> Result<(Described<'a>, Described<'a>), String> {
    Ok((described(a, in_a)?, described(b, in_b)?))
}

fn shapes_differ(name: &str, a: &Model, in_a: &[usize], b: &Model, in_b: &[usize]) -> String {
    let hint = if roles::is_vocabulary(name) {
        "their vocabularies differ; give both the same number of rows first"
    } else {
        "are they models of the same size?"
    };
    format!(
        "tensor '{name}' has shape {in_a:?} in {} and {in_b:?} in {}: {hint}",
        a.label, b.label
    )
}

/// The first few of many names.
fn some(names: &[String]) -> String {
    let mut text = names[..names.len().min(4)].join(", ");
    if names.len() > 4 {
        text.push_str(&format!(" and {} more", names.len() - 4));
    }
    text
}

fn config_of(model: &Model) -> Result<Option<Config>, String> {
    let text = model.checkpoint.config();
    text.map(Config::parse)
        .transpose()
        .map_err(|error| format!("{}: {error}", model.label))
}

/// Makes the keys of the type that are there agree with what is stored.
fn set_dtype(config: &mut Config, dtype: Dtype) -> Result<(), String> {
    for key in ["dtype", "torch_dtype"] {
        if config.get(&[key]).is_some() {
            config
                .set(&[key], &Json::from(dtype.torch_name()))
                .map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}
