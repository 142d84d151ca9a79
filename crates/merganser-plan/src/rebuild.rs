//! The plan of rebuilding one model from what a merge by `emr` stored: base + λ_t · m_t · τ_u for every merged tensor,
//! a copy of the merged model's for every other.

use std::collections::BTreeMap;

use merganser_methods::{Encoding, Float, Settings, Value, emr};
use merganser_store::Dtype;

use crate::{
    Action, InputRef, Model, Output, Plan, Record, RecordedTensor, digest, kernel_float, shards,
};

/// Positions of the models in the plan.
const BASE: usize = 0;
const PARTS: usize = 1;
const MERGED: usize = 2;

/// The models a rebuilt one is made of.
pub struct Rebuild<'a> {
    /// The merged model: its folder gives config, tokenizer and the tensors that all models share.
    pub merged: Model,
    /// The file of extra tensors.
    pub parts: Model,
    /// What the file says about them.
    pub record: &'a Record,
    /// The base model of the merge.
    pub base: Model,
    /// Which model, counted from 0.
    pub task: usize,
    /// Largest number of data bytes in an output file.
    pub shard_size: u64,
}

impl Rebuild<'_> {
    /// The plan of the rebuilt model.
    ///
    /// # Errors
    /// If the parts are not those of the record, or the base model does not fit them.
    pub fn plan(self) -> Result<Plan, String> {
        let record = self.record;
        if record.method != emr::NAME {
            return Err(format!(
                "a merge by {} cannot be taken apart: only a merge by {} stores its models",
                record.method,
                emr::NAME
            ));
        }
        let lambda = record.numbers.get(emr::RESCALERS);
        let lambda = *lambda
            .and_then(|all| all.get(self.task))
            .ok_or("the record lacks the factor of this task: it was not written by merganser")?;
        let mut settings = Settings {
            inputs: vec![BTreeMap::new(); 3],
            ..Settings::default()
        };
        settings.shared.insert(emr::RESCALER, Value::Float(lambda));
        if let Some(lost) = record.tensors.keys().find(|name| !self.merged.has(name)) {
            return Err(format!(
                "{} lacks the merged tensor '{lost}': it is not the model the record belongs to",
                self.merged.label
            ));
        }
        let mut outputs = Vec::new();
        for tensor in self.merged.checkpoint.tensors().values() {
            let action = match record.tensors.get(&tensor.name) {
                Some(recorded) => Action::Merge {
                    inputs: self.inputs(&tensor.name, recorded)?,
                    base: None,
                    settings: settings.clone(),
                    encoding: Encoding::Float(kernel_float(tensor.dtype).unwrap_or(Float::F32)),
                },
                None => Action::Copy(input(MERGED, tensor.name.clone())),
            };
            outputs.push(Output {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                dtype: tensor.dtype,
                nbytes: tensor.nbytes,
                shard: 0,
                offset: 0,
                t: 0.0,
                action,
                extra: None,
                calibrated: None,
            });
        }
        let mut notes = vec![format!(
            "rebuilt: {}",
            record.models.get(self.task).map_or("", String::as_str)
        )];
        if record.base_identity.as_ref() != Some(&self.base.identity()) {
            notes.push(format!(
                "{} is not, file by file, the base model this merge was made with; make sure that it holds the same \
                 weights",
                self.base.label
            ));
        }
        let config = self.merged.checkpoint.config().map(str::to_owned);
        let models = vec![self.base, self.parts, self.merged];
        let digest = digest::of(
            emr::REBUILD,
            &models,
            &outputs,
            config.as_deref(),
            0,
            self.shard_size,
            None,
        );
        let metadata = digest::metadata(&digest, &models, &record.plan, 0);
        let shards = shards::pack(&mut outputs, self.shard_size, "extras", &metadata)?;
        Ok(Plan {
            merge: None,
            calibrated: None,
            method: emr::REBUILD,
            base: Some(BASE),
            outputs,
            shards,
            config,
            template: Some(MERGED),
            seed: 0,
            notes,
            warnings: Vec::new(),
            digest,
            models,
        })
    }

    /// Base, τ_u and m_t of a tensor, in the order [`emr::REBUILD`] takes them.
    fn inputs(&self, name: &str, recorded: &RecordedTensor) -> Result<Vec<InputRef>, String> {
        let shape = &recorded.shape;
        let elements: usize = shape.iter().product();
        let unified = format!("{}/{name}", emr::TAU_PREFIX);
        let mask = format!("{}/{name}", emr::mask_prefix(self.task));
        let parts = &self.parts;
        let stored = |model: &Model, tensor: &str, fits: &dyn Fn(Dtype, &[usize]) -> bool| {
            let found = model.describe(tensor);
            if found.is_some_and(|(dtype, shape)| fits(dtype, shape)) {
                return Ok(());
            }
            let found = found.map_or("is not there".to_owned(), |(dtype, shape)| {
                format!("is {dtype} {shape:?}")
            });
            Err(format!(
                "{}: tensor '{tensor}' {found}, which does not fit the merged tensor '{name}' {shape:?}; \
                 were the files changed after the merge, or is this another model?",
                model.label
            ))
        };
        stored(parts, &unified, &|dtype, found| {
            dtype.is_float() && found == shape
        })?;
        stored(parts, &mask, &|dtype, found| {
            dtype == Dtype::U8 && found == [elements.div_ceil(8)]
        })?;
        stored(&self.merged, name, &|dtype, found| {
            dtype.is_float() && found == shape
        })?;
        let wanted = recorded.base.as_deref().unwrap_or(name);
        let found = self.base.find(wanted);
        let base = found.as_ref().map_or(wanted, |found| found.name());
        // A vocabulary may have been cut to its first rows.
        stored(&self.base, base, &|dtype, found| {
            let prefix = found.len() == shape.len()
                && !shape.is_empty()
                && found[1..] == shape[1..]
                && found[0] >= shape[0];
            dtype.is_float() && (found == shape || prefix)
        })?;
        let mut base = input(BASE, base.to_owned());
        base.round_to = recorded
            .round_to
            .as_deref()
            .and_then(Dtype::from_torch_name);
        let mut mask = input(PARTS, mask);
        mask.packed = true;
        Ok(vec![base, input(PARTS, unified), mask])
    }
}

fn input(model: usize, tensor: String) -> InputRef {
    InputRef {
        model,
        tensor,
        round_to: None,
        companion: None,
        packed: false,
        rows: None,
    }
}
