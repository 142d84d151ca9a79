//! A merge by emr stores what its models are rebuilt from, and `merganser rebuild` rebuilds them.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use merganser_testkit::{Dtype, Random, Tensor, assert_close, checkpoint, golden};
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use serde_json::{Value, json};

fn merganser(folder: &Path, arguments: &[&str]) -> Assert {
    let mut command = Command::new(env!("CARGO_BIN_EXE_merganser"));
    command.current_dir(folder).args(arguments).assert()
}

/// Writes `base`, `task0`, `task1`, … of a golden case into `folder`.
fn write_case(folder: &Path, case: &golden::Case) {
    let models = (0..case.tasks()).map(|task| format!("task{task}"));
    for model in std::iter::once("base".to_owned()).chain(models) {
        let names = case.names();
        let tensors: Vec<checkpoint::Entry<'_>> = names
            .iter()
            .map(|name| {
                let tensor = case.input(&format!("{model}/{name}"));
                (
                    name.as_str(),
                    Dtype::F32,
                    tensor.shape.clone(),
                    tensor.f32(),
                )
            })
            .collect();
        checkpoint::write(
            &folder.join(model),
            &json!({ "model_type": "toy" }),
            &tensors,
        );
    }
}

fn recipe(folder: &Path, name: &str, models: &[&str], more: &str) {
    let models: String = models
        .iter()
        .map(|model| format!("  - model: {model}"))
        .collect::<Vec<_>>()
        .join("\n");
    let text = format!("merge_method: emr\nbase_model: base\nmodels:\n{models}\n{more}");
    std::fs::write(folder.join(name), text).unwrap();
}

fn read(path: &Path) -> BTreeMap<String, Tensor> {
    golden::read_safetensors(path)
}

fn read_json(path: PathBuf) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn golden_cases_through_the_program() {
    for case in golden::cases("emr") {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        write_case(folder, &case);
        let models: Vec<String> = (0..case.tasks())
            .map(|task| format!("task{task}"))
            .collect();
        let models: Vec<&str> = models.iter().map(String::as_str).collect();
        recipe(folder, "recipe.yml", &models, "");
        merganser(folder, &["merge", "recipe.yml", "merged"]).success();

        let parts = read(&folder.join("merged/emr.safetensors"));
        let record = read_json(folder.join("merged/emr.json"));
        assert_eq!(record["base"], "base");
        assert_eq!(record["models"], json!(models));
        assert_eq!(record["parameters"]["rescaler"], "mean");
        let found = record["numbers"]["rescalers"].as_array().unwrap();
        let found: Vec<f32> = found.iter().map(|x| x.as_f64().unwrap() as f32).collect();
        assert_close(
            &found,
            &case.expect("rescalers").values,
            1e-6,
            1e-6,
            "rescalers",
        );
        assert_eq!(parts.len(), case.names().len() * (1 + case.tasks()));
        for name in case.names() {
            let key = format!("unified/{name}");
            assert_eq!(record["tensors"][&name]["shape"], json!(parts[&key].shape));
            assert_close(
                &parts[&key].f32(),
                &case.expect(&key).values,
                1e-6,
                1e-6,
                &key,
            );
            for task in 0..case.tasks() {
                let key = format!("mask{task}/{name}");
                let expected = &case.expect(&key).values;
                let bits = &parts[&key];
                assert_eq!(
                    (bits.dtype, &bits.shape),
                    (Dtype::U8, &vec![expected.len().div_ceil(8)])
                );
                let bit = |j: usize| f64::from(bits.values[j / 8] as u8 >> (j % 8) & 1);
                let found: Vec<f64> = (0..expected.len()).map(bit).collect();
                assert_eq!(&found, expected, "{}: {key}", case.name);
            }
        }
        for (task, model) in models.iter().enumerate() {
            let out = format!("rebuilt{task}");
            merganser(folder, &["rebuild", "merged", "--task", model, &out]).success();
            let rebuilt = read(&folder.join(&out).join("model.safetensors"));
            for name in case.names() {
                let key = format!("model{task}/{name}");
                assert_close(
                    &rebuilt[&name].f32(),
                    &case.expect(&key).values,
                    1e-6,
                    1e-5,
                    &key,
                );
            }
        }
    }
}

/// Three bf16 models of several shapes with a buffer of whole numbers, a tokenizer and a config.
fn write_models(folder: &Path) {
    let mut random = Random::new(7);
    let shapes: [(&str, Vec<usize>); 5] = [
        ("model.embed_tokens.weight", vec![300, 251]),
        ("model.layers.0.mlp.weight", vec![7, 11]),
        ("model.layers.1.mlp.weight", vec![7, 11]),
        ("model.layers.1.mlp.bias", vec![13]),
        ("model.norm.weight", vec![1]),
    ];
    let base: Vec<Vec<f32>> = shapes
        .iter()
        .map(|(_, shape)| random.normals(shape.iter().product(), 1.0))
        .collect();
    for model in ["base", "math", "code"] {
        let mut tensors: Vec<checkpoint::Entry<'_>> = shapes
            .iter()
            .zip(&base)
            .map(|((name, shape), values)| {
                let own = if model == "base" {
                    values.clone()
                } else {
                    random.near(values, 0.1)
                };
                (*name, Dtype::BF16, shape.clone(), own)
            })
            .collect();
        tensors.push((
            "model.position_ids",
            Dtype::I64,
            vec![4],
            vec![0.0, 1.0, 2.0, 3.0],
        ));
        let config = json!({ "model_type": "toy", "dtype": "bfloat16", "num_hidden_layers": 2 });
        checkpoint::write(&folder.join(model), &config, &tensors);
        std::fs::write(
            folder.join(model).join("tokenizer_config.json"),
            "{\"from\": 1}\n",
        )
        .unwrap();
    }
}

/// All tensors of a model folder, whatever its files.
fn model(folder: &Path) -> BTreeMap<String, Tensor> {
    let index = folder.join("model.safetensors.index.json");
    if !index.exists() {
        return read(&folder.join("model.safetensors"));
    }
    let files = read_json(index)["weight_map"].clone();
    let files = files
        .as_object()
        .unwrap()
        .values()
        .map(|file| file.as_str().unwrap().to_owned());
    let files: std::collections::BTreeSet<String> = files.collect();
    files
        .into_iter()
        .flat_map(|file| read(&folder.join(file)))
        .collect()
}

#[test]
fn a_rebuilt_model_is_the_one_that_output_task_writes() {
    for dtype in ["bfloat16", "float32"] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        write_models(folder);
        let out_dtype = format!("out_dtype: {dtype}\n");
        recipe(folder, "all.yml", &["math", "code"], &out_dtype);
        merganser(
            folder,
            &["merge", "all.yml", "merged", "--out-shard-size", "2000"],
        )
        .success();
        let index = read_json(folder.join("merged/model.safetensors.index.json"));
        let listed = index["weight_map"].as_object().unwrap();
        assert_eq!(listed.len(), 6, "{listed:?}");
        assert!(listed.values().all(|file| file != "emr.safetensors"));

        for (task, name) in [(0, "math"), (1, "code")] {
            let more = format!("{out_dtype}parameters: {{output: task, task: {task}}}\n");
            recipe(folder, "one.yml", &["math", "code"], &more);
            let direct = folder.join(format!("direct{task}"));
            merganser(folder, &["merge", "one.yml", direct.to_str().unwrap()]).success();
            assert!(!direct.join("emr.json").exists() && !direct.join("emr.safetensors").exists());

            let rebuilt = folder.join(format!("rebuilt{task}"));
            let task = if task == 0 {
                name.to_owned()
            } else {
                task.to_string()
            };
            merganser(
                folder,
                &[
                    "rebuild",
                    "merged",
                    "--task",
                    &task,
                    rebuilt.to_str().unwrap(),
                ],
            )
            .success()
            .stderr(contains("rebuilt 6 tensors"));
            let (direct_model, rebuilt_model) = (model(&direct), model(&rebuilt));
            assert_eq!(
                direct_model.keys().collect::<Vec<_>>(),
                rebuilt_model.keys().collect::<Vec<_>>()
            );
            // τ_u was rounded to the output's type on the way: half a unit of 8 bits of a task vector below 1, and
            // of the sum.
            let atol = if dtype == "float32" { 1e-6 } else { 4e-3 };
            let rtol = if dtype == "float32" { 1e-6 } else { 8e-3 };
            for (name, tensor) in &rebuilt_model {
                let expected = &direct_model[name];
                assert_eq!(
                    (tensor.dtype, &tensor.shape),
                    (expected.dtype, &expected.shape)
                );
                assert_close(&tensor.f32(), &expected.values, atol, rtol, name);
            }
            assert_eq!(
                read_json(rebuilt.join("config.json")),
                read_json(direct.join("config.json"))
            );
            assert!(rebuilt.join("tokenizer_config.json").exists());
            let card = std::fs::read_to_string(rebuilt.join("README.md")).unwrap();
            assert!(
                card.contains(&format!("the model of {name}, rebuilt")),
                "{card}"
            );
        }
    }
}

#[test]
fn a_recipe_dtype_rounds_the_base_of_a_rebuilt_model_too() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    for (model, x) in [("base", 1.001), ("math", 1.5)] {
        let tensors = [("w", Dtype::F32, vec![2], vec![x, -x])];
        checkpoint::write(&folder.join(model), &json!({}), &tensors);
    }
    recipe(
        folder,
        "r.yml",
        &["math"],
        "dtype: bfloat16\nout_dtype: float32\n",
    );
    merganser(folder, &["merge", "r.yml", "merged"]).success();
    merganser(folder, &["rebuild", "merged", "--task", "0", "out"]).success();
    // 1.001 is 1 in bfloat16; with one model τ_u is its own task vector and λ is 1.
    assert_eq!(model(&folder.join("out"))["w"].values, [1.5, -1.5]);
}

#[test]
fn parts_store_the_same_as_a_whole_merge() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    write_models(folder);
    recipe(folder, "r.yml", &["math", "code"], "");
    let size = ["--out-shard-size", "2000"];
    merganser(folder, &[&["merge", "r.yml", "whole"], &size[..]].concat()).success();
    for part in ["2/2", "1/2"] {
        let part = [&["merge", "r.yml", "parts", "--part", part], &size[..]].concat();
        merganser(folder, &part).success();
    }
    merganser(folder, &["seal", "parts"]).success();
    for file in [
        "emr.safetensors",
        "emr.json",
        "model.safetensors.index.json",
    ] {
        let bytes = |out: &str| std::fs::read(folder.join(out).join(file)).unwrap();
        assert!(bytes("whole") == bytes("parts"), "{file} differs");
    }
}

#[test]
fn plan_tells_what_lies_beside_the_model() {
    let dir = tempfile::tempdir().unwrap();
    write_models(dir.path());
    recipe(dir.path(), "r.yml", &["math", "code"], "");
    merganser(dir.path(), &["plan", "r.yml"]).success().stdout(
        contains("10 × stored beside the model → U8")
            .and(contains("5 × stored beside the model → BF16")),
    );
}

#[test]
fn slices_of_different_models_store_nothing_and_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    write_models(folder);
    let text = "merge_method: emr\nbase_model: base\nslices:\n\
                - sources: [{model: base, layer_range: [0, 1]}, {model: math, layer_range: [0, 1]}]\n\
                - sources: [{model: base, layer_range: [1, 2]}, {model: code, layer_range: [1, 2]}]\n";
    std::fs::write(folder.join("r.yml"), text).unwrap();
    merganser(folder, &["merge", "r.yml", "out"])
        .success()
        .stderr(contains("emr.safetensors and emr.json are not written"));
    assert!(!folder.join("out/emr.json").exists() && !folder.join("out/emr.safetensors").exists());
}

#[test]
fn what_cannot_be_rebuilt_is_said_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    write_models(folder);
    recipe(folder, "r.yml", &["math", "code"], "");
    merganser(folder, &["merge", "r.yml", "merged"]).success();
    let fails = |arguments: &[&str], message: &str| {
        merganser(folder, arguments)
            .code(2)
            .stderr(contains(message));
        assert!(!folder.join("out").exists());
    };
    fails(
        &["rebuild", "merged", "--task", "prose", "out"],
        "there is no task 'prose' in this merge; its tasks are 0 (math), 1 (code)",
    );
    fails(
        &["rebuild", "merged", "--task", "2", "out"],
        "there is no task '2'",
    );
    fails(
        &["rebuild", "base", "--task", "0", "out"],
        "merge_method: emr",
    );

    checkpoint::write(
        &folder.join("other"),
        &json!({}),
        &[("x", Dtype::F32, vec![1], vec![1.0])],
    );
    fails(
        &["rebuild", "merged", "--task", "0", "--base", "other", "out"],
        "other: tensor 'model.embed_tokens.weight' is not there",
    );

    std::fs::rename(folder.join("base"), folder.join("moved")).unwrap();
    fails(
        &["rebuild", "merged", "--task", "0", "out"],
        "give it with --base",
    );
    merganser(
        folder,
        &[
            "rebuild", "merged", "--task", "0", "--base", "moved", "fine",
        ],
    )
    .success();
    std::fs::rename(folder.join("moved"), folder.join("base")).unwrap();

    merganser(
        folder,
        &[
            "rebuild", "merged", "--task", "0", "--base", "math", "doubtful",
        ],
    )
    .success()
    .stderr(contains("is not, file by file, the base model"));

    let path = folder.join("merged/emr.json");
    let record = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &record[..record.len() / 2]).unwrap();
    fails(
        &["rebuild", "merged", "--task", "0", "out"],
        "is not the record of a merge by emr",
    );
    std::fs::write(&path, &record).unwrap();

    // Another merge takes the folder; the record of the old one stays behind.
    let linear = "merge_method: linear\nmodels: [{model: math, parameters: {weight: 1}}]\n";
    std::fs::write(folder.join("linear.yml"), linear).unwrap();
    merganser(folder, &["merge", "linear.yml", "merged", "--overwrite"]).success();
    fails(
        &["rebuild", "merged", "--task", "0", "out"],
        "belongs to another merge",
    );
}
