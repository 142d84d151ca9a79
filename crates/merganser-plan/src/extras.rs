//! What a method stores beside the merged model, and the record that makes it usable later.
//!
//! Every merged tensor gets one more output per [`Extra`], made from the same inputs right after it, while they are
//! still in the page cache. All of them lie in one file of their own, which loaders of the model do not look at.

use std::collections::{BTreeMap, BTreeSet};

use merganser_methods::{Encoding, Extra, Method, Value};
use merganser_store::Dtype;
use serde::{Deserialize, Serialize};

use crate::dtypes::kernel_float;
use crate::{Action, Output, Plan, model::Model};

/// What is needed to use the extra tensors of a merge: the text of `<method>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Name of the method.
    pub method: String,
    /// Digest of the plan of the merge.
    pub plan: String,
    /// Label of the base model, if the method has one.
    pub base: Option<String>,
    /// [`Model::identity`] of the base model.
    pub base_identity: Option<String>,
    /// Labels of the other models, in the order in which the method counts them.
    pub models: Vec<String>,
    /// The parameters of the merge, as text.
    pub parameters: BTreeMap<String, String>,
    /// The numbers the method took over the whole model.
    pub numbers: BTreeMap<String, Vec<f64>>,
    /// The merged tensors.
    pub tensors: BTreeMap<String, RecordedTensor>,
}

/// One merged tensor of a [`Record`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedTensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its name in the base model.
    pub base: Option<String>,
    /// The type that the base model's values are rounded to first, as torch calls it.
    pub round_to: Option<String>,
}

impl Record {
    /// The record of a plan whose survey found `numbers`; `None` if the plan stores nothing beside the model.
    pub fn new(plan: &Plan, numbers: &BTreeMap<String, Vec<f64>>) -> Option<Self> {
        plan.outputs.iter().find(|output| output.extra.is_some())?;
        let mut record = Self {
            method: plan.method.info().name.to_owned(),
            plan: plan.digest.clone(),
            base: None,
            base_identity: None,
            models: Vec::new(),
            parameters: BTreeMap::new(),
            numbers: numbers.clone(),
            tensors: BTreeMap::new(),
        };
        for output in plan.tensors() {
            let Action::Merge {
                inputs,
                base,
                settings,
                ..
            } = &output.action
            else {
                continue;
            };
            let model = |i: usize| &plan.models[inputs[i].model];
            if record.tensors.is_empty() {
                let text = |(name, value): (&&str, &Value)| ((*name).to_owned(), value.to_string());
                record.parameters = settings.shared.iter().map(text).collect();
                record.base = base.map(|base| model(base).label.clone());
                record.base_identity = base.map(|base| model(base).identity());
                let others = (0..inputs.len()).filter(|i| Some(*i) != *base);
                record.models = others.map(|i| model(i).label.clone()).collect();
            }
            let base = base.map(|base| &inputs[base]);
            let tensor = RecordedTensor {
                shape: output.shape.clone(),
                base: base.map(|input| input.tensor.clone()),
                round_to: base.and_then(|input| Some(input.round_to?.torch_name().to_owned())),
            };
            record.tensors.insert(output.name.clone(), tensor);
        }
        Some(record)
    }

    /// The text of the file.
    pub fn text(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

/// Adds the extra outputs of the method, each group right after the tensor it belongs to.
pub(crate) fn add(
    method: &dyn Method,
    models: &[Model],
    outputs: Vec<Output>,
    notes: &mut BTreeSet<String>,
) -> Vec<Output> {
    let mut wishes = outputs
        .iter()
        .filter_map(|output| Some((output, wish(method, output)?)));
    let Some((_, first)) = wishes.next() else {
        return outputs;
    };
    if let Some((odd, _)) = wishes.find(|(_, wish)| *wish != first) {
        if !first.extras.is_empty() {
            notes.insert(format!(
                "{name}.safetensors and {name}.json are not written: '{}' is not merged from the same models \
                 ({}) with the same parameters as the other tensors",
                odd.name,
                odd.inputs()
                    .iter()
                    .map(|input| models[input.model].label.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
                name = method.info().name,
            ));
        }
        return outputs;
    }
    let mut all = Vec::with_capacity(outputs.len() * (1 + first.extras.len()));
    for output in outputs {
        let beside: Vec<Output> = match &output.action {
            Action::Merge { .. } => first
                .extras
                .iter()
                .enumerate()
                .map(|(number, extra)| beside(&output, number, extra))
                .collect(),
            _ => Vec::new(),
        };
        all.push(output);
        all.extend(beside);
    }
    all
}

/// What must be the same for every merged tensor.
#[derive(PartialEq)]
struct Wish {
    extras: Vec<Extra>,
    models: Vec<usize>,
    base: Option<usize>,
}

fn wish(method: &dyn Method, output: &Output) -> Option<Wish> {
    let Action::Merge {
        inputs,
        base,
        settings,
        ..
    } = &output.action
    else {
        return None;
    };
    Some(Wish {
        extras: method.extras(settings, inputs.len() - usize::from(base.is_some())),
        models: inputs.iter().map(|input| input.model).collect(),
        base: *base,
    })
}

fn beside(output: &Output, number: usize, extra: &Extra) -> Output {
    let mut made = output.clone();
    made.name = format!("{}/{}", extra.prefix, output.name);
    made.extra = Some(number);
    if extra.bits {
        made.dtype = Dtype::U8;
    }
    if let Action::Merge { encoding, .. } = &mut made.action {
        let float = kernel_float(output.dtype).map_or(*encoding, Encoding::Float);
        *encoding = if extra.bits { Encoding::Bits } else { float };
        made.nbytes = encoding.bytes(output.elements()) as u64;
    }
    made
}

#[cfg(test)]
mod tests {
    use merganser_methods::{Float, Settings};

    use super::*;
    use crate::InputRef;

    fn merged(name: &str, models: &[usize]) -> Output {
        let inputs: Vec<InputRef> = models
            .iter()
            .map(|model| InputRef {
                model: *model,
                tensor: name.to_owned(),
                round_to: None,
                companion: None,
                packed: false,
                rows: None,
            })
            .collect();
        Output {
            name: name.to_owned(),
            shape: vec![3, 7],
            dtype: Dtype::BF16,
            nbytes: 42,
            shard: 0,
            offset: 0,
            t: 0.0,
            action: Action::Merge {
                base: Some(0),
                settings: Settings {
                    inputs: vec![BTreeMap::new(); inputs.len()],
                    ..Settings::default()
                },
                inputs,
                encoding: Encoding::Float(Float::BF16),
            },
            extra: None,
            calibrated: None,
        }
    }

    fn added(method: &str, outputs: Vec<Output>) -> Vec<Output> {
        let method = merganser_methods::find(method).expect("a method");
        add(method, &[], outputs, &mut BTreeSet::new())
    }

    #[test]
    fn emr_stores_a_task_vector_and_a_mask_for_each_model() {
        let outputs = added("emr", vec![merged("w", &[0, 1, 2])]);
        let told: Vec<_> = outputs
            .iter()
            .map(|output| {
                (
                    output.name.as_str(),
                    output.dtype,
                    output.stored_shape(),
                    output.nbytes,
                    output.extra,
                )
            })
            .collect();
        let expected = [
            ("w", Dtype::BF16, vec![3, 7], 42, None),
            ("unified/w", Dtype::BF16, vec![3, 7], 42, Some(0)),
            ("mask0/w", Dtype::U8, vec![3], 3, Some(1)),
            ("mask1/w", Dtype::U8, vec![3], 3, Some(2)),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn other_methods_store_nothing() {
        assert_eq!(added("ties", vec![merged("w", &[0, 1, 2])]).len(), 1);
    }

    #[test]
    fn a_record_survives_its_text() {
        let tensor = RecordedTensor {
            shape: vec![2],
            base: None,
            round_to: Some("bfloat16".into()),
        };
        let record = Record {
            method: "emr".into(),
            plan: "0".into(),
            base: Some("base".into()),
            base_identity: None,
            models: vec!["a".into()],
            parameters: [("rescaler".to_owned(), "mean".to_owned())].into(),
            numbers: [("rescalers".to_owned(), vec![0.1, 1.0 / 3.0])].into(),
            tensors: [("w".to_owned(), tensor)].into(),
        };
        assert_eq!(
            serde_json::from_str::<Record>(&record.text()).ok(),
            Some(record)
        );
    }
}
