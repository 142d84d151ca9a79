//! `merganser inspect` on tiny models whose numbers are known.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use merganser_testkit::{Dtype, Random, checkpoint};
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use serde_json::{Value, json};

fn inspect(folder: &Path, arguments: &[&str]) -> Assert {
    let mut command = Command::new(env!("CARGO_BIN_EXE_merganser"));
    command
        .current_dir(folder)
        .arg("inspect")
        .args(arguments)
        .assert()
}

fn inspect_json(folder: &Path, arguments: &[&str]) -> Value {
    let done = inspect(folder, &[arguments, &["--json"]].concat()).success();
    serde_json::from_slice(&done.get_output().stdout).unwrap()
}

/// A model of two layers; `shift` is added to four elements of the second one.
fn write(folder: &Path, name: &str, dtype: Dtype, shift: [f32; 4]) {
    let layer = [2.0, 1.0, 0.0, 2.0];
    let shifted = [0, 1, 2, 3].map(|k| layer[k] + shift[k]).to_vec();
    let tensors = [
        ("model.embed_tokens.weight", dtype, vec![4, 2], vec![0.0; 8]),
        ("model.layers.0.w", dtype, vec![2, 2], layer.to_vec()),
        ("model.layers.1.w", dtype, vec![2, 2], shifted),
        ("model.steps", Dtype::I64, vec![1], vec![shift[0]]),
    ];
    let config = json!({
        "architectures": ["ToyForCausalLM"],
        "model_type": "toy",
        "torch_dtype": "float16",
        "num_hidden_layers": 2,
        "tie_word_embeddings": true,
    });
    checkpoint::write(&folder.join(name), &config, &tensors);
}

#[test]
fn one_model() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "base", Dtype::BF16, [0.0; 4]);
    inspect(dir.path(), &["base"]).success().stdout(
        contains("tensors   4 tensors, 17 parameters, 40 B")
            .and(contains("BF16: 3 tensors, 16 parameters, 32 B"))
            .and(contains("I64: 1 tensor, 1 parameter, 8 B"))
            .and(contains(
                "layers    model.layers: 2 layers, each 1 tensor, 4 parameters, 8 B",
            ))
            .and(contains("the head is tied to model.embed_tokens.weight"))
            .and(contains(
                "config.json says float16, but most of its weights are stored as bfloat16",
            )),
    );
    inspect(dir.path(), &["base", "--tensors", "layers.1"])
        .success()
        .stdout(
            contains("model.layers.1.w  BF16  2×2  8 B\n").and(contains("model.layers.0.w").not()),
        );
    let found = inspect_json(dir.path(), &["base"]);
    assert_eq!(found["comparison"], Value::Null);
    let model = &found["models"][0];
    assert_eq!(
        (&model["label"], &model["model_type"]),
        (&json!("base"), &json!("toy"))
    );
    assert_eq!(
        model["total"],
        json!({ "tensors": 4, "parameters": 17, "bytes": 40 })
    );
    assert_eq!(
        (&model["stacks"][0]["name"], &model["stacks"][0]["layers"]),
        (&json!("model.layers"), &json!(2))
    );
    assert_eq!(model["tensors"].as_array().unwrap().len(), 4);
    assert_eq!(model["tensors"][3]["name"], "model.layers.1.w");
}

#[test]
fn task_vectors_of_two_models() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "base", Dtype::F32, [0.0; 4]);
    write(dir.path(), "a", Dtype::BF16, [3.0, 4.0, 0.0, 0.0]);
    write(dir.path(), "b", Dtype::F32, [-3.0, 4.0, 0.0, 0.0]);
    let found = inspect_json(dir.path(), &["base", "a", "b"]);
    let compared = &found["comparison"];
    let total = &compared["total"];
    assert_eq!(total["elements"], 16);
    assert_eq!(total["norm"], json!([5.0, 5.0]));
    assert_eq!(total["unchanged"], json!([14.0 / 16.0, 14.0 / 16.0]));
    assert_eq!(
        total["sign_conflict"],
        json!([[0.0, 1.0 / 16.0], [1.0 / 16.0, 0.0]])
    );
    let cosine = total["cosine"][0][1].as_f64().unwrap();
    assert!((cosine - 7.0 / 25.0).abs() < 1e-12, "{cosine}");
    let relative = total["relative_norm"][1].as_f64().unwrap();
    assert!(
        (relative - 5.0 / 18.0_f64.sqrt()).abs() < 1e-12,
        "{relative}"
    );

    let layers = compared["layers"].as_array().unwrap();
    let names: Vec<&str> = layers
        .iter()
        .map(|layer| layer["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        ["model.layers.0", "model.layers.1", "outside the layers"]
    );
    assert_eq!(layers[0]["norm"], json!([0.0, 0.0]));
    assert_eq!(
        layers[0]["cosine"][0][1],
        Value::Null,
        "two vectors of length 0 have no angle"
    );
    assert_eq!(layers[1]["norm"], json!([5.0, 5.0]));
    assert_eq!(layers[1]["relative_norm"][0], 5.0 / 3.0);
    assert_eq!(
        layers[2]["relative_norm"][0],
        Value::Null,
        "the base is 0 there"
    );
    let steps = compared["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .find(|t| t["name"] == "model.steps");
    assert_eq!(steps.unwrap()["equal"], json!([false, false]));

    inspect(dir.path(), &["base", "a", "b", "--tensors", "layers.1"])
        .success()
        .stdout(
            contains("[1] a")
                .and(contains(
                    "\ncosine    [1]    [2]\n[1]     1.000  0.280\n[2]     0.280  1.000\n",
                ))
                .and(contains(
                    "differs   model.steps (not real numbers) in [1], [2]",
                ))
                .and(contains("model.layers.1.w")),
        );
}

#[test]
fn the_numbers_are_those_of_a_plain_computation_whatever_the_threads() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(3);
    let n = 300 * 257;
    let base = random.normals(n, 1.0);
    let models: Vec<Vec<f32>> = (0..2).map(|_| random.near(&base, 0.05)).collect();
    for (name, values) in [("base", &base), ("a", &models[0]), ("b", &models[1])] {
        let tensors = [("w", Dtype::F32, vec![300, 257], values.clone())];
        checkpoint::write(&dir.path().join(name), &json!({}), &tensors);
    }
    let one = inspect_json(dir.path(), &["base", "a", "b", "-j", "1"]);
    assert_eq!(
        one,
        inspect_json(dir.path(), &["base", "a", "b", "-j", "3"])
    );
    let delta = |t: usize, j: usize| f64::from(models[t][j] - base[j]);
    let dot = |s: usize, t: usize| (0..n).map(|j| delta(s, j) * delta(t, j)).sum::<f64>();
    let expected = dot(0, 1) / (dot(0, 0) * dot(1, 1)).sqrt();
    let total = &one["comparison"]["total"];
    let found = total["cosine"][0][1].as_f64().unwrap();
    assert!(
        (found - expected).abs() < 1e-9,
        "{found} instead of {expected}"
    );
    let conflicts = (0..n).filter(|j| delta(0, *j) * delta(1, *j) < 0.0).count();
    assert_eq!(
        total["sign_conflict"][0][1].as_f64().unwrap(),
        conflicts as f64 / n as f64
    );
}

#[test]
fn what_cannot_be_compared_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    let plain = |name: &'static str, shape: Vec<usize>, x: f32| {
        let n = shape.iter().product();
        (name, Dtype::F32, shape, vec![x; n])
    };
    let base = [
        plain("ok", vec![2], 1.0),
        plain("only.base", vec![1], 1.0),
        plain("shape", vec![2, 3], 1.0),
        plain("nan", vec![2], 1.0),
        ("type", Dtype::I32, vec![1], vec![1.0]),
    ];
    let other = [
        plain("ok", vec![2], 2.0),
        plain("only.other", vec![1], 1.0),
        plain("shape", vec![3, 2], 1.0),
        plain("nan", vec![2], f32::NAN),
        plain("type", vec![1], 1.0),
    ];
    checkpoint::write(&dir.path().join("base"), &json!({}), &base);
    checkpoint::write(&dir.path().join("other"), &json!({}), &other);
    let found = inspect_json(dir.path(), &["base", "other"]);
    let compared = &found["comparison"];
    assert_eq!(compared["total"]["elements"], 2);
    let mut listed: Vec<(&str, &str)> = compared["not_compared"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            (
                entry["name"].as_str().unwrap(),
                entry["reason"].as_str().unwrap(),
            )
        })
        .collect();
    listed.sort_unstable();
    let expected = [
        ("nan", "holds NaN or infinity in other"),
        ("only.base", "not in other"),
        ("only.other", "not in base"),
        ("shape", "shape [2, 3] in base, [3, 2] in other"),
        ("type", "type I32 in base, F32 in other"),
    ];
    assert_eq!(listed, expected);
    inspect(dir.path(), &["base", "other"])
        .success()
        .stdout(contains("not compared:").and(contains("  only.base: not in other")));
}

#[test]
fn names_with_another_prefix_and_tied_heads_are_matched() {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({ "architectures": ["ToyForCausalLM"], "tie_word_embeddings": true });
    let w = |name: &'static str, x: f32| (name, Dtype::F32, vec![2, 1], vec![x, 1.0]);
    checkpoint::write(
        &dir.path().join("base"),
        &config,
        &[w("model.embed_tokens.weight", 1.0)],
    );
    let other = [
        w("model.embed_tokens.weight", 1.0),
        w("lm_head.weight", 4.0),
    ];
    checkpoint::write(&dir.path().join("other"), &config, &other);
    let found = inspect_json(dir.path(), &["base", "other"]);
    assert_eq!(found["comparison"]["not_compared"], json!([]));
    let tensors = found["comparison"]["tensors"].as_array().unwrap();
    let head = tensors
        .iter()
        .find(|tensor| tensor["name"] == "lm_head.weight")
        .unwrap();
    assert_eq!(
        head["norm"],
        json!([3.0]),
        "against the embedding that the base's head is tied to"
    );
}

#[test]
fn a_model_that_is_not_there_is_bad_input() {
    let dir = tempfile::tempdir().unwrap();
    inspect(dir.path(), &["./nowhere"])
        .code(2)
        .stderr(contains("cannot open model ./nowhere"));
    inspect(dir.path(), &["a+b+c"])
        .code(2)
        .stderr(contains("'a+b+c' names no model"));
}
