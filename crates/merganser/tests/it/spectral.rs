//! Merges by singular vectors through the program, against the authors' code.

use std::fs;

use merganser_testkit::checkpoint::{self, Entry};
use merganser_testkit::golden::{Case, cases, read_safetensors};
use safetensors::Dtype;
use serde_json::json;
use tempfile::TempDir;

use crate::program::run;

/// Writes the base and the fine-tunes of a case as models whose tensors stand in a layer, and merges them.
fn merged(dir: &TempDir, case: &Case, head: &str) -> Vec<(String, Vec<f64>)> {
    let names = case.names();
    let models: Vec<String> = (0..case.tasks())
        .map(|task| format!("task{task}"))
        .collect();
    for model in models.iter().map(String::as_str).chain(["base"]) {
        let stored: Vec<String> = names.iter().map(|name| in_layer(name)).collect();
        let tensors: Vec<Entry<'_>> = names
            .iter()
            .zip(&stored)
            .map(|(name, stored)| {
                let tensor = case.input(&format!("{model}/{name}"));
                (
                    stored.as_str(),
                    Dtype::F32,
                    tensor.shape.clone(),
                    tensor.f32(),
                )
            })
            .collect();
        checkpoint::write(&dir.path().join(model), &json!({}), &tensors);
    }
    let list = models.join("\n  - model: ");
    let recipe = format!("{head}\nbase_model: base\nmodels:\n  - model: {list}\ndtype: float32\n");
    fs::write(dir.path().join("recipe.yml"), recipe).expect("a recipe");
    let done = run(dir.path(), ["merge", "recipe.yml", "out", "--quiet"]);
    assert_eq!(done.code, Some(0), "{}: {}", case.name, done.stderr);
    let out = read_safetensors(&dir.path().join("out/model.safetensors"));
    names
        .into_iter()
        .map(|name| {
            let values = out[&in_layer(&name)].values.clone();
            (name, values)
        })
        .collect()
}

fn in_layer(name: &str) -> String {
    format!("model.layers.0.{name}")
}

#[test]
fn whole_models_merge_as_published() {
    for method in ["tsv_m", "iso_c", "iso_cts"] {
        for case in cases(method) {
            let dir = TempDir::new().expect("a folder");
            let mut head = format!("merge_method: {method}");
            if method == "iso_cts" {
                let fraction = case.number("common_space_fraction");
                head += &format!("\nparameters: {{common_fraction: {fraction}}}");
            }
            for (name, values) in merged(&dir, &case, &head) {
                // The published code leaves it to the mean, by its name.
                if name == "text_projection" {
                    continue;
                }
                let expected = &case.expect(&name).values;
                for (x, y) in values.iter().zip(expected) {
                    assert!((x - y).abs() < 5e-7, "{method} {}: {name}", case.name);
                }
            }
        }
    }
}

#[test]
fn the_factor_may_differ_from_tensor_to_tensor() {
    let case = &cases("iso_c")[0];
    let dir = TempDir::new().expect("a folder");
    let head =
        "merge_method: iso_c\nparameters: {alpha: [{filter: w.weight, value: 0}, {value: 1}]}";
    let merged = merged(&dir, case, head);
    for (name, values) in merged {
        let base: Vec<f64> = case.base(&name).values.clone();
        assert_eq!(values, base, "{name}");
    }
}

#[test]
fn excluded_tensors_are_averaged() {
    let case = &cases("iso_c")[0];
    let of = |head: &str| merged(&TempDir::new().expect("a folder"), case, head);
    let mean = of("merge_method: task_arithmetic\nparameters: {weight: 1, normalize: true}");
    let excluded = |filter: &str| {
        of(&format!(
            "merge_method: iso_c\nparameters: {{exclude: [{{filter: {filter}, value: true}}, {{value: false}}]}}"
        ))
    };
    assert_eq!(excluded("w.weight"), mean);
    assert_ne!(excluded("other"), mean);
}
