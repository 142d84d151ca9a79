//! Adapters merged as adapters, and applied to their base.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use insta::assert_snapshot;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::models::{golden, input};
use crate::program::{Run, finish, merganser, stable};

/// Two adapters of `llama-base`.
const ADAPTERS: [&str; 2] = ["lora-a", "lora-c"];

fn alone(head: &str) -> String {
    let mut text = format!("{head}\noutput: adapter\nmodels:\n");
    for adapter in ADAPTERS {
        let _ = writeln!(text, "  - model: {}", input(adapter).display());
    }
    text
}

fn on_base(head: &str, weights: [f64; 2]) -> String {
    let base = input("llama-base");
    let base = base.display();
    let mut text = format!("{head}\nbase_model: {base}\ndtype: float32\nmodels:\n");
    for (adapter, weight) in ADAPTERS.iter().zip(weights) {
        let adapter = input(adapter);
        let _ = writeln!(text, "  - model: {base}+{}", adapter.display());
        let _ = writeln!(text, "    parameters: {{weight: {weight}}}");
    }
    text
}

fn merge(dir: &Path, recipe: &str, out: &str, options: &[&str]) -> Run {
    let path = dir.join("recipe.yml");
    fs::write(&path, recipe).expect("a recipe");
    let mut command = merganser();
    command
        .current_dir(dir)
        .arg("merge")
        .arg(&path)
        .arg(dir.join(out))
        .args(options);
    finish(command)
}

fn tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = fs::read(path).expect("weights");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let numbers = |view: &safetensors::tensor::TensorView<'_>| -> Vec<f32> {
        view.data()
            .chunks(4)
            .map(|x| f32::from_le_bytes(x.try_into().expect("four bytes")))
            .collect()
    };
    file.tensors()
        .iter()
        .map(|(name, view)| (name.clone(), numbers(view)))
        .collect()
}

/// The largest distance between two models' tensors.
fn distance(dir: &Path, one: &str, other: &str) -> f32 {
    let [one, other] = [one, other].map(|out| tensors(&dir.join(out).join("model.safetensors")));
    assert_eq!(
        one.keys().collect::<Vec<_>>(),
        other.keys().collect::<Vec<_>>()
    );
    one.iter()
        .flat_map(|(name, numbers)| numbers.iter().zip(&other[name]))
        .map(|(x, y)| (x - y).abs())
        .fold(0.0, f32::max)
}

/// The base with the merged adapter `adapter` applied is written to `out`.
fn applied(dir: &Path, adapter: &str, out: &str) {
    let recipe = format!(
        "merge_method: passthrough\ndtype: float32\nmodels:\n  - model: {}+{}\n",
        input("llama-base").display(),
        dir.join(adapter).display()
    );
    merge(dir, &recipe, out, &[]).done();
}

#[test]
fn an_adapter_and_a_model_of_the_same_recipe_are_the_same_merge() {
    for (head, name) in [
        ("merge_method: core_space", "tsv"),
        (
            "merge_method: core_space\nparameters: {inner: ta, alpha: 0.7}",
            "ta",
        ),
        (
            "merge_method: core_space\nparameters: {inner: dare_ties, drop: 0.3, density: 0.6}\nseed: 5",
            "dare_ties",
        ),
        (
            "merge_method: core_space\nparameters: {inner: iso_c, rank: 3}",
            "iso_c",
        ),
        (
            "merge_method: peft\nparameters: {combination_type: cat}",
            "cat",
        ),
        (
            "merge_method: peft\nparameters: {combination_type: ties_svd, svd_rank: 4}",
            "ties_svd",
        ),
    ] {
        let dir = TempDir::new().expect("a folder");
        let dir = dir.path();
        let allow = ["--allow-missing"];
        merge(dir, &alone(head), "adapter", &allow).done();
        applied(dir, "adapter", "applied");
        merge(dir, &on_base(head, [1.0, 1.0]), "model", &allow).done();
        let found = distance(dir, "applied", "model");
        assert!(found < 1e-6, "{name}: {found}");
    }
}

#[test]
fn sums_of_updates_are_task_arithmetic() {
    let dir = TempDir::new().expect("a folder");
    let dir = dir.path();
    let weights = [0.8, -0.3];
    let plain = on_base("merge_method: task_arithmetic", weights);
    merge(dir, &plain, "plain", &[]).done();
    for (head, out) in [
        ("merge_method: core_space\nparameters: {inner: ta}", "core"),
        (
            "merge_method: peft\nparameters: {combination_type: cat}",
            "cat",
        ),
    ] {
        merge(dir, &on_base(head, weights), out, &["--allow-missing"]).done();
        let found = distance(dir, out, "plain");
        assert!(found < 1e-6, "{out}: {found}");
    }
}

#[test]
fn the_folder_is_one_that_peft_loads() {
    let dir = TempDir::new().expect("a folder");
    let dir = dir.path();
    let done = merge(
        dir,
        &alone("merge_method: core_space"),
        "out",
        &["--allow-missing"],
    );
    assert!(done.stderr.contains("ranks 2 to 8"), "{}", done.stderr);
    done.done();
    let text = fs::read_to_string(dir.join("out/adapter_config.json")).expect("a config");
    let config: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(config["r"], 8);
    assert_eq!(config["lora_alpha"], 8);
    assert_eq!(
        config["target_modules"],
        json!(["down_proj", "q_proj", "v_proj"])
    );
    assert_eq!(config["rank_pattern"], config["alpha_pattern"]);
    assert_eq!(
        config["rank_pattern"][r"model\.layers\.0\.mlp\.down_proj"],
        2
    );
    let found = tensors(&dir.join("out/adapter_model.safetensors"));
    let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    assert_eq!(found[name].len(), 8 * 32);
    for file in ["README.md", "merganser.json", "mergekit_config.yml"] {
        assert!(dir.join("out").join(file).is_file(), "{file}");
    }
    // A second run does not touch it.
    let again = merge(
        dir,
        &alone("merge_method: core_space"),
        "out",
        &["--allow-missing"],
    );
    again.failed();
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let dir = TempDir::new().expect("a folder");
    let dir = dir.path();
    let recipe = alone("merge_method: core_space\nparameters: {inner: dare_ties}");
    for threads in ["1", "2"] {
        merge(
            dir,
            &recipe,
            threads,
            &["--allow-missing", "--threads", threads],
        )
        .done();
    }
    let read =
        |out: &str| fs::read(dir.join(out).join("adapter_model.safetensors")).expect("weights");
    assert_eq!(read("1"), read("2"));
}

#[test]
fn projection_in_the_core_takes_samples_and_gives_an_adapter() {
    let dir = TempDir::new().expect("a folder");
    let dir = dir.path();
    let tokens: Vec<u8> = (0..200_i64)
        .flat_map(|i| (i * 7 % 32).to_le_bytes())
        .collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I64, vec![10, 20], &tokens);
    let samples = dir.join("tokens.safetensors");
    safetensors::serialize_to_file([("input_ids", view.expect("a tensor"))], None, &samples)
        .expect("samples");
    let recipe = |output: &str| {
        let head = format!(
            "merge_method: core_space\noutput: {output}\nparameters: {{inner: projection}}"
        );
        let text = on_base(&head, [1.0, 1.0]);
        text.replace(
            "    parameters",
            "    calibration: tokens.safetensors\n    parameters",
        )
    };
    let allow = ["--allow-missing"];
    merge(dir, &recipe("model"), "model", &allow).done();
    assert!(dir.join("model/report.html").is_file());
    merge(dir, &recipe("adapter"), "adapter", &allow).done();
    applied(dir, "adapter", "applied");
    let found = distance(dir, "applied", "model");
    assert!(found < 1e-5, "{found}");
    // It is another merge than the mean, and without samples it is refused.
    let mean = on_base(
        "merge_method: core_space\nparameters: {inner: mean}",
        [1.0, 1.0],
    );
    merge(dir, &mean, "mean", &allow).done();
    assert!(distance(dir, "mean", "model") > 1e-4);
    let without = on_base(
        "merge_method: core_space\nparameters: {inner: projection}",
        [1.0, 1.0],
    );
    let refused = merge(dir, &without, "without", &allow).refused();
    assert!(
        refused.stderr.contains("no calibration data"),
        "{}",
        refused.stderr
    );
}

/// Name, shape, and the number at every index.
type Made<'a> = (&'a str, &'a [usize], fn(usize) -> f32);

/// Writes tensors.
fn written(path: &Path, tensors: &[Made<'_>]) {
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, shape, number)| {
            (0..shape.iter().product())
                .flat_map(|i| number(i).to_le_bytes())
                .collect()
        })
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, shape, _), data)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), data);
        (*name, view.expect("a tensor"))
    });
    safetensors::serialize_to_file(views, None, path).expect("a file");
}

#[test]
fn adapters_of_convolutions_and_embeddings_are_merged_and_applied() {
    let dir = TempDir::new().expect("a folder");
    let dir = dir.path();
    for name in ["base", "one", "two"] {
        fs::create_dir(dir.join(name)).expect("a folder");
    }
    fs::write(dir.join("base/config.json"), r#"{"model_type": "mine"}"#).expect("a config");
    written(
        &dir.join("base/model.safetensors"),
        &[
            ("conv.weight", &[3, 2, 2, 2], |i| i as f32),
            ("table.weight", &[5, 4], |_| 0.0),
            ("other.weight", &[2], |i| i as f32),
        ],
    );
    for (name, sign) in [("one", 1), ("two", -1)] {
        let config = json!({
            "peft_type": "LORA", "r": 1, "lora_alpha": 2 * sign, "target_modules": ["conv", "table"],
        });
        fs::write(
            dir.join(name).join("adapter_config.json"),
            config.to_string(),
        )
        .expect("a config");
        written(
            &dir.join(name).join("adapter_model.safetensors"),
            &[
                ("base_model.model.conv.lora_A.weight", &[1, 2, 2, 2], |i| {
                    (i + 1) as f32
                }),
                ("base_model.model.conv.lora_B.weight", &[3, 1, 1, 1], |i| {
                    i as f32
                }),
                ("base_model.model.table.lora_embedding_A", &[1, 5], |i| {
                    i as f32
                }),
                ("base_model.model.table.lora_embedding_B", &[4, 1], |i| {
                    (i + 1) as f32
                }),
            ],
        );
    }
    let body = "parameters: {inner: ta}\nmodels:\n  - {model: ./base+./one, parameters: {weight: 2}}\n  - model: ./base+./two\n";
    let recipe = format!("merge_method: core_space\nbase_model: ./base\n{body}");
    merge(dir, &recipe, "model", &[]).done();
    let found = tensors(&dir.join("model/model.safetensors"));
    // 2·2·BA − 2·BA
    let near = |x: f32, y: f32| assert!((x - y).abs() < 1e-5, "{x} against {y}");
    for o in 0..3 {
        for k in 0..8 {
            let update = 2.0 * o as f32 * (k + 1) as f32;
            near(found["conv.weight"][o * 8 + k], (o * 8 + k) as f32 + update);
        }
    }
    for row in 0..5 {
        for column in 0..4 {
            near(
                found["table.weight"][row * 4 + column],
                2.0 * row as f32 * (column + 1) as f32,
            );
        }
    }
    assert_eq!(found["other.weight"], [0.0, 1.0]);
    merge(dir, &format!("{recipe}output: adapter\n"), "adapter", &[]).done();
    let plain = "merge_method: passthrough\nmodels:\n  - model: ./base+./adapter\n";
    merge(dir, plain, "applied", &[]).done();
    assert!(distance(dir, "applied", "model") < 1e-5);
}

/// A base of one layer of 3 outputs and 2 inputs, with a bias or not, and two adapters of it with `lora_bias` and α/r = 2
/// and −2: the bases are `base` and `plain`, the adapters `one` and `two`; `bare` is `two` without a bias.
fn biased(dir: &Path) {
    const DELTA: Made<'_> = ("base_model.model.fc.lora_A.weight", &[1, 2], |i| {
        1.0 + i as f32
    });
    const B: Made<'_> = ("base_model.model.fc.lora_B.weight", &[3, 1], |i| i as f32);
    let own: [Made<'_>; 2] = [
        ("base_model.model.fc.lora_B.bias", &[3], |i| 1.0 + i as f32),
        ("base_model.model.fc.lora_B.bias", &[3], |i| {
            [4.0, -1.0, 0.5][i]
        }),
    ];
    let matrix: Made<'_> = ("fc.weight", &[3, 2], |i| i as f32);
    let bias: Made<'_> = ("fc.bias", &[3], |i| 10.0 * i as f32);
    for (name, tensors) in [("base", &[matrix, bias][..]), ("plain", &[matrix])] {
        fs::create_dir(dir.join(name)).expect("a folder");
        fs::write(
            dir.join(name).join("config.json"),
            r#"{"model_type": "mine"}"#,
        )
        .expect("a config");
        written(&dir.join(name).join("model.safetensors"), tensors);
    }
    for (name, alpha, tensors) in [
        ("one", 2, &[DELTA, B, own[0]][..]),
        ("two", -2, &[DELTA, B, own[1]]),
        ("bare", -2, &[DELTA, B]),
    ] {
        fs::create_dir(dir.join(name)).expect("a folder");
        let config = json!({
            "peft_type": "LORA", "r": 1, "lora_alpha": alpha, "target_modules": ["fc"],
            "lora_bias": tensors.len() == 3,
        });
        fs::write(
            dir.join(name).join("adapter_config.json"),
            config.to_string(),
        )
        .expect("a config");
        written(&dir.join(name).join("adapter_model.safetensors"), tensors);
    }
}

#[test]
fn biases_of_second_factors_are_merged_like_vectors() {
    // What the adapters add to the bias: 2·(1, 2, 3) and −2·(4, −1, 0.5); weights 1 and 0.5.
    for (head, change) in [
        (
            "core_space\nparameters: {inner: ta, alpha: 0.5}",
            [-1.0, 2.5, 2.75],
        ),
        ("core_space\nparameters: {inner: mean}", [-1.0, 2.5, 2.75]),
        ("core_space", [-1.0, 2.5, 2.75]),
        (
            "core_space\nparameters: {inner: ties, density: 1}",
            [-4.0, 2.5, 6.0],
        ),
        (
            "peft\nparameters: {combination_type: svd}",
            [-2.0, 5.0, 5.5],
        ),
        (
            "peft\nparameters: {combination_type: cat}",
            [-2.0, 5.0, 5.5],
        ),
        (
            "peft\nparameters: {combination_type: linear}",
            [-2.0, 5.0, 5.5],
        ),
        (
            "peft\nparameters: {combination_type: ties_svd, density: 0.7}",
            [-4.0, 2.5, 6.0],
        ),
    ] {
        let dir = TempDir::new().expect("a folder");
        let dir = dir.path();
        biased(dir);
        let body = "models:\n  - {model: ./base+./one, parameters: {weight: 1}}\n  - {model: ./base+./two, parameters: {weight: 0.5}}\n";
        let recipe = format!("merge_method: {head}\nbase_model: ./base\n{body}");
        let done = merge(dir, &recipe, "model", &[]).done();
        assert_eq!(
            done.stderr
                .contains("1 biases of B (`lora_bias`) are averaged"),
            head == "core_space",
            "{}",
            done.stderr
        );
        let found = tensors(&dir.join("model/model.safetensors"));
        for (i, x) in found["fc.bias"].iter().enumerate() {
            let expected = 10.0 * i as f32 + change[i];
            assert!((x - expected).abs() < 1e-5, "{head}: {x}, not {expected}");
        }
        let done = merge(dir, &format!("{recipe}output: adapter\n"), "adapter", &[]).done();
        assert!(done.stderr.contains("1 biases of B"), "{}", done.stderr);
        let text = fs::read_to_string(dir.join("adapter/adapter_config.json")).expect("a config");
        let config: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(config["lora_bias"], true);
        let stored = tensors(&dir.join("adapter/adapter_model.safetensors"));
        let bias = &stored["base_model.model.fc.lora_B.bias"];
        for (x, expected) in bias.iter().zip(change) {
            assert!((x - expected).abs() < 1e-5, "{head}: {x}, not {expected}");
        }
        let plain = "merge_method: passthrough\nmodels:\n  - model: ./base+./adapter\n";
        merge(dir, plain, "applied", &[]).done();
        assert!(distance(dir, "applied", "model") < 1e-5, "{head}");
    }
}

#[test]
fn random_choices_in_biases_are_those_of_the_seed() {
    let dir = TempDir::new().expect("a folder");
    let dir = dir.path();
    biased(dir);
    for (name, head) in [
        (
            "core",
            "core_space\nparameters: {inner: dare_ties, drop: 0.4, density: 0.9}",
        ),
        (
            "peft",
            "peft\nparameters: {combination_type: dare_linear_svd, density: 0.6}",
        ),
    ] {
        let body = "models:\n  - ./base+./one\n  - ./base+./two\n".replace("- ./", "- model: ./");
        let recipe = format!("merge_method: {head}\nseed: 9\nbase_model: ./base\n{body}");
        let (model, adapter) = (format!("{name}-model"), format!("{name}-adapter"));
        merge(dir, &recipe, &model, &[]).done();
        merge(dir, &format!("{recipe}output: adapter\n"), &adapter, &[]).done();
        let applied = format!("{name}-applied");
        let plain = format!("merge_method: passthrough\nmodels:\n  - model: ./base+./{adapter}\n");
        merge(dir, &plain, &applied, &[]).done();
        assert!(distance(dir, &applied, &model) < 1e-5, "{name}");
    }
    let plan = |recipe: &str| {
        let mut command = merganser();
        command.current_dir(dir).args(["plan", recipe]);
        finish(command).done().stdout
    };
    let recipe =
        "merge_method: peft\noutput: adapter\nmodels:\n  - model: ./one\n  - model: ./two\n";
    fs::write(dir.join("adapters.yml"), recipe).expect("a recipe");
    assert!(plan("adapters.yml").contains("1 biases of B"));
}

#[test]
fn biases_that_cannot_be_carried_are_refused_or_noted() {
    let dir = TempDir::new().expect("a folder");
    let dir = dir.path();
    biased(dir);
    let list = |head: &str, models: [&str; 2]| {
        let [one, two] = models;
        format!("merge_method: {head}\nmodels:\n  - model: {one}\n  - model: {two}\n")
    };
    // The updates of the matrix cancel out, the biases do not.
    let recipe = list(
        "peft\noutput: adapter\nparameters: {combination_type: svd}",
        ["./one", "./two"],
    );
    let done = merge(dir, &recipe, "zeros", &[]).done();
    let stored = tensors(&dir.join("zeros/adapter_model.safetensors"));
    assert_eq!(
        stored["base_model.model.fc.lora_B.bias"],
        [-6.0, 6.0, 5.0],
        "{}",
        done.stderr
    );
    // PEFT loads no biases of B beside factors of an embedding.
    fs::create_dir(dir.join("table")).expect("a folder");
    let config = json!({ "peft_type": "LORA", "r": 1, "lora_alpha": 1 });
    fs::write(dir.join("table/adapter_config.json"), config.to_string()).expect("a config");
    written(
        &dir.join("table/adapter_model.safetensors"),
        &[
            ("base_model.model.table.lora_embedding_A", &[1, 5], |i| {
                i as f32
            }),
            ("base_model.model.table.lora_embedding_B", &[4, 1], |i| {
                i as f32
            }),
        ],
    );
    let recipe = list("peft\noutput: adapter", ["./table", "./one"]);
    let said = merge(dir, &recipe, "out", &["--allow-missing"])
        .refused()
        .stderr;
    assert!(
        said.contains("'fc.bias' of ./one is a bias of B")
            && said.contains("factors of an embedding"),
        "{said}"
    );
    // One of the adapters has no bias.
    let recipe = list(
        "core_space\noutput: adapter\nparameters: {inner: ta}",
        ["./one", "./bare"],
    );
    let said = merge(dir, &recipe, "out", &[]).refused().stderr;
    assert!(
        said.contains("./bare does not change 1 of 2 tensors") && said.contains("fc.bias"),
        "{said}"
    );
    merge(dir, &recipe, "allowed", &["--allow-missing"]).done();
    let stored = tensors(&dir.join("allowed/adapter_model.safetensors"));
    assert_eq!(stored["base_model.model.fc.lora_B.bias"], [2.0, 4.0, 6.0]);
    // A base without a bias has no place for one.
    let on_plain = list(
        "peft\nbase_model: ./plain",
        ["./plain+./one", "./plain+./two"],
    );
    for (recipe, expected) in [
        (
            on_plain,
            "the adapter adds to 'fc.bias' (`lora_bias`), and that layer of the model has no bias",
        ),
        (
            list(
                "core_space\noutput: adapter\nbase_model: ./base\ncalibration: {data: none.jsonl}\nparameters: {inner: projection}",
                ["./base+./one", "./base+./two"],
            ),
            "is a bias of B (`lora_bias`)",
        ),
    ] {
        let said = merge(dir, &recipe, "out", &[]).refused().stderr;
        assert!(said.contains(expected), "{said}");
        assert!(!dir.join("out").exists());
    }
    let mut command = merganser();
    command
        .current_dir(dir)
        .args(["apply", "plain", "one", "-o", "out"]);
    let said = finish(command).refused().stderr;
    assert!(
        said.contains("that layer of the model has no bias"),
        "{said}"
    );
    let mut command = merganser();
    command
        .current_dir(dir)
        .args(["apply", "base", "one@0.5", "-o", "applied"]);
    finish(command).done();
    let found = tensors(&dir.join("applied/model.safetensors"));
    assert_eq!(found["fc.bias"], [1.0, 12.0, 23.0]);
}

/// A copy of an adapter with some of its configuration changed.
fn changed(dir: &Path, name: &str, change: &[(&str, Value)]) {
    let (from, to) = (input("lora-a"), dir.join(name));
    fs::create_dir(&to).expect("a folder");
    fs::copy(
        from.join("adapter_model.safetensors"),
        to.join("adapter_model.safetensors"),
    )
    .expect("a copy");
    let text = fs::read_to_string(from.join("adapter_config.json")).expect("a config");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    for (key, value) in change {
        config[*key] = value.clone();
    }
    fs::write(to.join("adapter_config.json"), config.to_string()).expect("a config");
}

fn copied(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("a file");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}

#[test]
fn adapters_that_do_not_belong_together_are_refused() {
    let dir = TempDir::new().expect("a folder");
    let dir = dir.path();
    changed(dir, "no-alpha", &[("lora_alpha", json!(0))]);
    changed(dir, "no-rank", &[("r", json!(0))]);
    changed(dir, "turned", &[("fan_in_fan_out", json!(true))]);
    changed(dir, "dora", &[("use_dora", json!(true))]);
    let half = dir.join("half");
    changed(dir, "half", &[]);
    let path = half.join("adapter_model.safetensors");
    let bytes = fs::read(&path).expect("weights");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let kept = file
        .tensors()
        .into_iter()
        .filter(|(name, _)| !name.contains("layers.1.self_attn.v_proj.lora_B"));
    safetensors::serialize_to_file(kept, None, &path).expect("weights");
    drop(bytes);

    // Relative names, so that what is underlined has the same length everywhere.
    for name in ["lora-a", "lora-c", "lora-bf16", "llama-base", "llama-ext"] {
        copied(&input(name), &dir.join(name));
    }
    let a = "./lora-a";
    let list = |method: &str, output: &str, models: &[String]| {
        let models: Vec<String> = models
            .iter()
            .map(|model| format!("  - model: {model}\n"))
            .collect();
        format!(
            "merge_method: {method}\n{output}models:\n{}",
            models.concat()
        )
    };
    let adapter = "output: adapter\n";
    let own = |name: &str| vec![a.to_string(), format!("./{name}")];
    let base = "./llama-base".to_owned();
    let other = "./llama-ext".to_owned();
    let mut said = String::new();
    for (title, recipe) in [
        (
            "other target modules",
            list(
                "core_space",
                adapter,
                &[a.to_string(), "./lora-c".to_owned()],
            ),
        ),
        (
            "another base, by shape",
            list(
                "core_space",
                adapter,
                &[a.to_string(), "./lora-bf16".to_owned()],
            ),
        ),
        (
            "another base, by name",
            list(
                "peft",
                adapter,
                &[format!("{base}+{a}"), format!("{other}+{a}")],
            ),
        ),
        ("alpha 0", list("core_space", adapter, &own("no-alpha"))),
        ("rank 0", list("core_space", adapter, &own("no-rank"))),
        (
            "another layout",
            list("core_space", adapter, &own("turned")),
        ),
        ("DoRA", list("peft", adapter, &own("dora"))),
        (
            "a missing factor",
            list("core_space", adapter, &own("half")),
        ),
        (
            "a whole model",
            list("core_space", adapter, &[a.to_string(), base.clone()]),
        ),
        (
            "a method that merges models",
            list("ties", adapter, &own("half")),
        ),
        (
            "a misspelt output",
            list("core_space", "output: lora\n", &own("half")),
        ),
        (
            "a bare adapter for a model",
            list(
                "core_space",
                &format!("base_model: {base}\n"),
                &[a.to_string()],
            ),
        ),
        (
            "an adapter of another model than the base",
            list(
                "core_space",
                &format!("base_model: {base}\n"),
                &[format!("{other}+{a}")],
            ),
        ),
        (
            "ranks of linear",
            list(
                "peft\nparameters: {combination_type: linear}",
                adapter,
                &[a.to_string(), "./lora-c".to_owned()],
            ),
        ),
    ] {
        let refused = merge(dir, &recipe, "out", &[]).refused();
        assert!(!dir.join("out").exists(), "{title}");
        let text = stable(&refused.stderr, &golden()).replace(&*dir.to_string_lossy(), "[DIR]");
        let _ = writeln!(said, "## {title}\n{text}");
    }
    assert_snapshot!(said);
}
