//! Configs and names of earlier releases give the same programs as those of today.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::Case;
use merganser_model::Network;
use serde_json::{Map, Value, json};

/// Changes the config of a case and compares the program.
fn same_program(name: &str, change: impl FnOnce(&mut Map<String, Value>)) {
    let case = Case::load(name);
    let shapes = case
        .weights
        .iter()
        .map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()))
        .collect();
    let mut config = case.config.clone();
    change(config.as_object_mut().unwrap());
    assert_ne!(config, case.config);
    let network = Network::new(&config, &shapes).unwrap();
    assert_eq!(network.stages, case.network.stages, "{name}");
}

#[test]
fn rotary_settings_beside_each_other() {
    same_program("llama", |config| {
        let mut scaling = config.remove("rope_parameters").unwrap();
        let theta = scaling
            .as_object_mut()
            .unwrap()
            .remove("rope_theta")
            .unwrap();
        config.insert("rope_theta".into(), theta);
        config.insert("rope_scaling".into(), scaling);
    });
    same_program("llama_linear", |config| {
        config.remove("rope_parameters");
        config.insert("rope_theta".into(), json!(500.0));
        config.insert(
            "rope_scaling".into(),
            json!({"type": "linear", "factor": 2.5}),
        );
    });
    same_program("mistral", |config| {
        config.remove("rope_parameters");
        config.insert("rope_theta".into(), json!(10_000.0));
        config.insert("rope_scaling".into(), Value::Null);
    });
    same_program("phi3", |config| {
        config.remove("rope_parameters");
        config.insert("rope_theta".into(), json!(1000.0));
        config.insert("partial_rotary_factor".into(), json!(0.5));
    });
    same_program("phi3_longrope", |config| {
        config.remove("rope_parameters");
        config.insert("rope_theta".into(), json!(100.0));
        let short = [1.0, 1.2, 1.5, 2.0];
        let factors = json!({"type": "su", "short_factor": short, "long_factor": [2, 3, 4, 5]});
        config.insert("rope_scaling".into(), factors);
    });
}

#[test]
fn gemma_3_with_a_pattern_and_a_local_base() {
    same_program("gemma3", |config| {
        config.remove("rope_parameters");
        config.remove("layer_types");
        config.remove("_sliding_window_pattern");
        config.insert("sliding_window_pattern".into(), json!(2));
        config.insert("rope_local_base_freq".into(), json!(100.0));
        config.insert("rope_theta".into(), json!(5000.0));
        config.insert(
            "rope_scaling".into(),
            json!({"rope_type": "linear", "factor": 8.0}),
        );
    });
}

#[test]
fn the_first_gemma_says_gelu_and_means_its_approximation() {
    same_program("gemma", |config| {
        config.insert("hidden_act".into(), json!("gelu"));
    });
}

#[test]
fn t5_tells_by_the_tying_whether_its_output_is_scaled() {
    same_program("t5", |config| {
        config.remove("scale_decoder_outputs");
    });
    same_program("t5_gated", |config| {
        config.remove("scale_decoder_outputs");
        config.insert("tie_word_embeddings".into(), json!(false));
    });
}

#[test]
fn bert_with_gamma_and_beta() {
    let case = Case::load("bert");
    let old = |name: &str| {
        name.replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta")
    };
    let shapes: BTreeMap<_, _> = case
        .weights
        .iter()
        .map(|(name, tensor)| (old(name), tensor.dims().to_vec()))
        .collect();
    let network = Network::new(&case.config, &shapes).unwrap();
    let names = |network: &Network| -> Vec<String> {
        let taps = network.ops().filter_map(|(_, op)| op.parameters());
        taps.map(|tap| tap.weight.to_owned()).collect()
    };
    let expected: Vec<String> = names(&case.network).iter().map(|name| old(name)).collect();
    assert_eq!(names(&network), expected);
}

#[test]
fn weights_without_a_prefix() {
    let case = Case::load("gpt2");
    let shapes = case
        .weights
        .iter()
        .map(|(name, tensor)| {
            let bare = name.trim_start_matches("transformer.").to_owned();
            (bare, tensor.dims().to_vec())
        })
        .collect();
    let network = Network::new(&case.config, &shapes).unwrap();
    assert_eq!(network.ops().count(), case.network.ops().count());
}
