//! Wrong configs, checkpoints and batches give errors that say what is wrong; nothing panics.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use common::{Case, FAMILIES};
use merganser_model::{Batch, ModelError, Network, State, Tokens};
use proptest::prelude::*;
use serde_json::{Value, json};

type Shapes = BTreeMap<String, Vec<usize>>;

fn parts(name: &str) -> (Value, Shapes) {
    let case = Case::load(name);
    let shapes = case
        .weights
        .iter()
        .map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()))
        .collect();
    (case.config, shapes)
}

fn refusal(name: &str, key: &str, value: Value) -> String {
    let (mut config, shapes) = parts(name);
    let mut place = &mut config;
    for part in key.split('.') {
        place = &mut place[part];
    }
    *place = value;
    Network::new(&config, &shapes).unwrap_err().to_string()
}

#[test]
fn wrong_values_are_named_with_what_is_supported() {
    for (name, key, value, expected) in [
        (
            "bert",
            "model_type",
            json!("mamba"),
            "`model_type` is \"mamba\"; supported are bert, camembert, clip",
        ),
        ("bert", "model_type", Value::Null, "`model_type` is missing"),
        (
            "bert",
            "num_attention_heads",
            json!(0),
            "`num_attention_heads` is 0; expected an integer from 1",
        ),
        (
            "bert",
            "num_attention_heads",
            json!(5),
            "`num_attention_heads` is 5; expected a divisor of the hidden size 32",
        ),
        (
            "bert",
            "num_attention_heads",
            json!("4"),
            "`num_attention_heads` is \"4\"; expected an integer",
        ),
        (
            "bert",
            "hidden_size",
            json!(u64::MAX),
            "`hidden_size` is 18446744073709551615",
        ),
        ("bert", "hidden_size", json!(-32), "`hidden_size` is -32"),
        ("bert", "hidden_size", json!(32.5), "`hidden_size` is 32.5"),
        (
            "bert",
            "hidden_size",
            json!(64),
            "has shape [60, 32]; the config makes it [60, 64]",
        ),
        (
            "bert",
            "hidden_act",
            json!("mish"),
            "`hidden_act` is \"mish\"; expected one of gelu,",
        ),
        (
            "bert",
            "layer_norm_eps",
            json!(1e-300),
            "`layer_norm_eps` is 1e-300; expected a number from 1e-30",
        ),
        (
            "bert",
            "num_hidden_layers",
            json!(3),
            "tensor `bert.encoder.layer.2.attention.self.query.weight` is missing",
        ),
        (
            "bert",
            "num_hidden_layers",
            json!(10_000_000),
            "`num_hidden_layers` is 10000000; expected at most 65536",
        ),
        (
            "bert",
            "position_embedding_type",
            json!("relative_key"),
            "`position_embedding_type` is \"relative_key\"",
        ),
        (
            "vit",
            "patch_size",
            json!(5),
            "`patch_size` is 5; expected a divisor of `image_size` 12",
        ),
        (
            "vit",
            "image_size",
            json!(16),
            "has shape [1, 10, 32]; the config makes it [1, 17, 32]",
        ),
        (
            "clip",
            "vision_config.num_attention_heads",
            json!(3),
            "`vision_config.num_attention_heads` is 3",
        ),
        (
            "clip",
            "vision_config",
            json!([1]),
            "`vision_config` is [1]; expected an object",
        ),
        (
            "llama",
            "num_key_value_heads",
            json!(3),
            "`num_key_value_heads` is 3; expected a divisor of",
        ),
        (
            "llama",
            "rope_parameters",
            json!({"rope_type": "dynamic", "factor": 2}),
            "`rope_parameters.rope_type` is \"dynamic\"",
        ),
        (
            "llama",
            "rope_parameters",
            json!({"rope_type": "llama3"}),
            "`rope_parameters.factor` is missing",
        ),
        (
            "llama",
            "rope_parameters",
            json!({"rope_type": "linear", "factor": 0}),
            "`rope_parameters.factor` is 0",
        ),
        (
            "llama",
            "rope_parameters",
            json!({"rope_type": "longrope", "short_factor": [1]}),
            "`rope_parameters.short_factor` is [1]; expected a list of 4",
        ),
        (
            "llama",
            "rope_parameters",
            json!({"rope_theta": 0.5}),
            "`rope_parameters.rope_theta` is 0.5; expected a number from 1",
        ),
        (
            "llama",
            "rope_parameters",
            json!({"rope_type": "linear", "factor": 1e-300}),
            "`rope_parameters.factor` is 1e-300",
        ),
        (
            "llama",
            "rope_parameters",
            json!({"rope_type": "longrope", "short_factor": [1, 1, 1, 1], "original_max_position_embeddings": 1}),
            "finite frequencies",
        ),
        (
            "llama",
            "rope_parameters",
            json!({"partial_rotary_factor": 0.4}),
            "`rope_parameters.partial_rotary_factor` is 0.4",
        ),
        (
            "gemma3",
            "layer_types",
            json!(["full_attention"]),
            "`layer_types` is [\"full_attention\"]; expected",
        ),
        (
            "gemma3",
            "use_bidirectional_attention",
            json!(true),
            "`use_bidirectional_attention` is true; expected false",
        ),
        (
            "t5",
            "feed_forward_proj",
            json!("gated-tanh"),
            "`feed_forward_proj` is \"gated-tanh\"",
        ),
        (
            "t5",
            "relative_attention_num_buckets",
            json!(6),
            "`relative_attention_num_buckets` is 6",
        ),
        (
            "t5",
            "relative_attention_max_distance",
            json!(4),
            "`relative_attention_max_distance` is 4; expected more than 4",
        ),
    ] {
        let found = refusal(name, key, value);
        assert!(found.contains(expected), "{name}, {key}: {found}");
    }
    let (_, shapes) = parts("bert");
    for config in [json!([]), json!(null), json!("bert"), json!({})] {
        assert!(Network::new(&config, &shapes).is_err());
    }
}

#[test]
fn any_tensor_that_is_missing_or_of_another_shape_is_named() {
    for family in FAMILIES {
        let (config, shapes) = parts(family);
        let network = Network::new(&config, &shapes).unwrap();
        let taps: Vec<String> = network
            .ops()
            .filter_map(|(_, op)| op.parameters())
            .flat_map(|tap| {
                [Some(tap.weight), tap.bias]
                    .into_iter()
                    .flatten()
                    .map(str::to_owned)
            })
            .collect();
        for name in taps {
            let mut wrong = shapes.clone();
            wrong.insert(name.clone(), vec![7, 3, 2]);
            let error = Network::new(&config, &wrong).unwrap_err();
            let named = matches!(&error, ModelError::Shape { tensor, .. } if *tensor == name);
            assert!(named, "{family}, {name}: {error}");

            let mut less = shapes.clone();
            less.remove(&name);
            // Without the tensor that shows there is a head, there is none.
            if let Err(error) = Network::new(&config, &less) {
                assert!(
                    matches!(error, ModelError::MissingTensor { .. }),
                    "{family}, {name}: {error}"
                );
            } else {
                let heads = [
                    "classifier",
                    "pooler",
                    "score",
                    "projection",
                    "predictions",
                    "lm_head",
                    "distillation",
                    "decoder.block.0",
                ];
                assert!(
                    heads.iter().any(|head| name.contains(head)),
                    "{family}: {name} is not missed"
                );
            }
        }
    }
}

#[test]
fn prefixes_that_are_ambiguous_are_refused() {
    let (config, mut shapes) = parts("bert");
    let copies: Shapes = shapes
        .iter()
        .map(|(name, shape)| (format!("teacher.{name}"), shape.clone()))
        .collect();
    shapes.extend(copies);
    let error = Network::new(&config, &shapes).unwrap_err().to_string();
    assert!(
        error.contains("both prefixes `bert.` and `teacher.bert.`"),
        "{error}"
    );
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let start =
        |name: &str, batch: &Batch| State::new(&Case::load(name).network, batch, &Device::Cpu);
    let refused = |name: &str, batch: &Batch, expected: &str| {
        let error = start(name, batch).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let text = |ids: Vec<u32>| Batch::text(Tokens::new(&[ids], 0).unwrap());
    refused("bert", &Batch::default(), "a bert network reads token ids");
    refused(
        "bert",
        &text(vec![3; 21]),
        "samples of 21 tokens; this network has positions for 20",
    );
    refused("roberta", &text(vec![3; 19]), "positions for 18");
    refused("t5", &text(vec![3]), "a t5 network reads decoder ids");
    refused("vit", &text(vec![3]), "a vit network reads pixels");
    let pixels =
        |shape: &[usize]| Batch::images(Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap());
    refused("vit", &pixels(&[2, 3, 12, 16]), "[samples, 3, 12, 12]");
    refused("vit", &pixels(&[0, 3, 12, 12]), "[samples, 3, 12, 12]");
    refused("vit", &pixels(&[12, 12]), "[samples, 3, 12, 12]");

    assert!(Tokens::new(&[], 0).is_err());
    assert!(Tokens::new(&[vec![]], 0).is_err());
    assert!(
        Tokens::new(&[vec![1], vec![]], 0)
            .unwrap_err()
            .to_string()
            .contains("sample 1 has no token")
    );
    assert!(Tokens::padded(2, 2, vec![1; 3], vec![true; 4]).is_err());
    assert!(Tokens::padded(usize::MAX, 2, vec![], vec![]).is_err());
    assert!(
        Tokens::new(&[vec![1]], 0)
            .unwrap()
            .with_types(vec![0; 2])
            .is_err()
    );

    // An id outside the vocabulary is found when its row is read.
    let case = Case::load("bert");
    let mut state = start("bert", &text(vec![3, 60])).unwrap();
    let (_, first) = case.network.ops().next().unwrap();
    let error = case
        .network
        .run(first, &mut state, &case.weights)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "row 60 of tensor `bert.embeddings.word_embeddings.weight` was asked for, which has 60"
    );
}

#[test]
fn clip_needs_the_end_of_text() {
    let case = Case::load_modality("clip", Some(merganser_model::Modality::Text));
    let batch = Batch::text(Tokens::new(&[vec![3, 4]], 0).unwrap());
    let mut state = State::new(&case.network, &batch, &Device::Cpu).unwrap();
    let end = case
        .network
        .ops()
        .try_for_each(|(_, op)| case.network.run(op, &mut state, &case.weights));
    assert!(
        end.unwrap_err()
            .to_string()
            .contains("sample 0 has no token 59")
    );
}

/// Paths of all values of a config.
fn paths(value: &Value, prefix: &str) -> Vec<String> {
    let Some(map) = value.as_object() else {
        return Vec::new();
    };
    let inner = |(key, value): (&String, &Value)| {
        let pointer = format!("{prefix}/{key}");
        let mut all = paths(value, &pointer);
        all.push(pointer);
        all
    };
    map.iter().flat_map(inner).collect()
}

fn strange() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0u64..70).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-4.0..4.0f64).prop_map(Value::from),
        "[a-z_]{0,8}".prop_map(Value::from),
        Just(json!([1, 2, "full_attention"])),
        Just(json!({"rope_type": "yarn", "factor": 3.0})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// A config changed anywhere is refused, or gives a network that runs without panic and, if it runs, without NaN.
    #[test]
    fn changed_configs_are_refused_or_run(values in prop::collection::vec(strange(), 8)) {
        for family in FAMILIES {
            let case = Case::load(family);
            let shapes: Shapes =
                case.weights.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
            let pointers = paths(&case.config, "");
            for (i, value) in values.iter().enumerate() {
                let mut config = case.config.clone();
                // Spread over the keys without drawing each.
                let pick = (i * 7919 + value.to_string().len() * 31 + values[0].to_string().len()) % pointers.len();
                *config.pointer_mut(&pointers[pick]).unwrap() = value.clone();
                let Ok(network) = Network::new(&config, &shapes) else { continue };
                let Ok(mut state) = State::new(&network, &case.batch, &Device::Cpu) else { continue };
                let ran = network.ops().try_for_each(|(_, op)| network.run(op, &mut state, &case.weights));
                if ran.is_ok() {
                    let hidden = state.get(network.outputs().hidden).unwrap();
                    let sum = hidden.sum_all().unwrap().to_scalar::<f32>().unwrap();
                    prop_assert!(sum.is_finite(), "{family}: {} = {value} gives {sum}", pointers[pick]);
                }
            }
        }
    }
}
