//! Audits and backdoor vectors through the program, on the golden cases.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use merganser_model::mlp::Dense;
use merganser_model::{Mlp, Pointwise};
use merganser_testkit::checkpoint::{Entry, write_file};
use merganser_testkit::golden::{Tensor, folder, read_safetensors};
use safetensors::Dtype;
use serde_json::Value;
use tempfile::TempDir;

use crate::program::run;

type Tensors = BTreeMap<String, Tensor>;

/// Writes the models of a case, each a file; what they expect.
pub(crate) fn models(dir: &Path, method: &str, case: &str) -> (Tensors, Tensors) {
    let from = folder().join("continual").join(method).join(case);
    let inputs = read_safetensors(&from.join("inputs.safetensors"));
    let mut all: BTreeMap<&str, Vec<Entry<'_>>> = BTreeMap::new();
    for (key, tensor) in &inputs {
        if let Some((model, name)) = key.split_once('/') {
            let entry = (name, Dtype::F32, tensor.shape.clone(), tensor.f32());
            all.entry(model).or_default().push(entry);
        }
    }
    for (model, tensors) in &all {
        write_file(&dir.join(format!("{model}.safetensors")), tensors);
    }
    (inputs, read_safetensors(&from.join("expected.safetensors")))
}

fn near(found: &Value, expected: f64) {
    let found = found.as_f64().expect("a number");
    assert!(
        (found - expected).abs() <= 1e-6 * expected.abs() + 1e-9,
        "{found} {expected}"
    );
}

fn names(models: &[&str]) -> Vec<String> {
    let file = |model: &&str| format!("{model}.safetensors");
    models.iter().map(file).collect()
}

fn pair(backdoored: &str, clean: &str) -> String {
    format!("{backdoored}.safetensors:{clean}.safetensors")
}

#[test]
fn sequences_are_scored_and_flagged() {
    for (case, count, relative, flagged) in [
        ("clean_t8", 8, "previous", None),
        ("poison_norm_task5", 8, "previous", Some(4)),
        ("digits_contrast_poison_kd", 7, "previous", Some(4)),
        ("relative_to_base", 7, "base", None),
    ] {
        let dir = TempDir::new().expect("a folder");
        let (_, expected) = models(dir.path(), "stp", case);
        let mut args: Vec<String> = ["audit", "sequence", "--json", "--relative-to", relative]
            .map(str::to_owned)
            .to_vec();
        args.extend((0..=count).map(|t| format!("theta{t}.safetensors")));
        let done = run(dir.path(), &args);
        let code = if flagged.is_some() { 3 } else { 0 };
        assert_eq!(done.code, Some(code), "{case}: {}", done.stderr);
        let mut lines = done
            .stdout
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let found = lines.next().expect("an audit");
        for (t, update) in found["updates"]
            .as_array()
            .expect("a list")
            .iter()
            .enumerate()
        {
            for (key, path) in [
                ("norms", "/score/norm"),
                ("relative_norms", "/relative_norm"),
                ("score", "/score/score"),
                ("z_cos", "/score/z_cosine"),
            ] {
                near(update.pointer(path).expect(key), expected[key].values[t]);
            }
            assert_eq!(update["score"]["flagged"], flagged == Some(t));
            for s in 0..count {
                near(
                    &update["cosines"][s],
                    expected["pairwise_cos"].values[t * count + s],
                );
            }
        }
        if flagged.is_some() {
            assert_eq!(lines.next().expect("an event")["event"], "flagged");
            args.retain(|arg| arg != "--json");
            let done = run(dir.path(), &args);
            assert_eq!(done.code, Some(3));
            assert!(
                done.stderr
                    .starts_with("flagged: theta5.safetensors stands out"),
                "{}",
                done.stderr
            );
        }
    }
}

#[test]
fn the_example_is_flagged() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/trust/sequence");
    let args = ["audit".to_owned(), "sequence".into()];
    let models = (0..6).map(|t| format!("{t}.safetensors"));
    let done = run(&examples, args.into_iter().chain(models));
    assert_eq!(done.code, Some(3), "{}", done.stderr);
    let flagged: Vec<&str> = done
        .stdout
        .lines()
        .filter(|line| line.contains("flagged"))
        .collect();
    assert!(
        matches!(&flagged[..], [line] if line.starts_with("5.safetensors")),
        "{}",
        done.stdout
    );
    assert!(
        done.stderr.starts_with("flagged: 5.safetensors"),
        "{}",
        done.stderr
    );
}

#[test]
fn losses_count_and_models_must_fit() {
    let dir = TempDir::new().expect("a folder");
    models(dir.path(), "stp", "clean_t8");
    fs::write(
        dir.path().join("loss.json"),
        "[0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 2.0]",
    )
    .expect("a log");
    let mut args = vec![
        "audit".to_owned(),
        "sequence".into(),
        "--loss".into(),
        "loss.json".into(),
    ];
    args.extend((0..=8).map(|t| format!("theta{t}.safetensors")));
    let done = run(dir.path(), &args);
    assert_eq!(done.code, Some(3), "{}", done.stderr);
    assert!(done.stderr.contains("theta8"));

    let done = run(
        dir.path(),
        [
            "audit",
            "sequence",
            "theta0.safetensors",
            "theta0.safetensors",
        ],
    );
    assert_eq!(done.code, Some(2));
    assert!(done.stderr.contains("changes nothing"), "{}", done.stderr);
    write_file(
        &dir.path().join("other.safetensors"),
        &[("x", Dtype::F32, vec![1], vec![1.0])],
    );
    let done = run(
        dir.path(),
        [
            "audit",
            "sequence",
            "theta0.safetensors",
            "other.safetensors",
        ],
    );
    assert_eq!(done.code, Some(2), "{}", done.stderr);
    assert!(
        done.stderr
            .contains("'conv.weight': not in other.safetensors"),
        "{}",
        done.stderr
    );
}

#[test]
fn backdoor_vectors_are_alike_as_expected() {
    let dir = TempDir::new().expect("a folder");
    let (_, expected) = models(dir.path(), "backdoor_vectors", "bv_similarity_n3");
    let pairs: Vec<String> = (0..3)
        .map(|i| pair(&format!("backdoored{i}"), "clean"))
        .collect();
    let mut args = vec!["bv", "sim", "--json", "--base", "pre.safetensors"];
    args.extend(pairs.iter().map(String::as_str));
    let done = run(dir.path(), &args);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let found: Value = serde_json::from_str(&done.stdout).expect("JSON");
    for i in 0..3 {
        near(&found["norms"][i], expected["bv_norms"].values[i]);
        near(
            &found["cosine_with_clean_task_vector"][i],
            expected["cos_bv_tasktau"].values[i],
        );
        near(
            &found["norm_to_clean_task_vector"][i],
            expected["norm_ratio_bv_tau"].values[i],
        );
        for j in 0..3 {
            near(
                &found["cosines"][i][j],
                expected["cos_matrix"].values[3 * i + j],
            );
            near(
                &found["sign_agreement"][i][j],
                expected["sign_agreement"].values[3 * i + j],
            );
            let tensors = ["a.bias", "a.weight", "b.weight", "ln.weight"];
            for (k, tensor) in tensors.iter().enumerate() {
                let expected = expected["cos_per_tensor"].values[4 * (3 * i + j) + k];
                near(&found["tensors"][*tensor]["cosines"][i][j], expected);
            }
        }
    }
    let done = run(
        dir.path(),
        [
            "bv",
            "diff",
            "backdoored0.safetensors",
            "clean.safetensors",
            "-o",
            "bv",
            "--quiet",
        ],
    );
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let bv = read_safetensors(&dir.path().join("bv/model.safetensors"));
    for (name, tensor) in &bv {
        for (a, b) in tensor
            .values
            .iter()
            .zip(&expected[&format!("bv0/{name}")].values)
        {
            assert!((a - b).abs() < 1e-6);
        }
    }
    let done = run(dir.path(), ["bv", "sim", &pair("clean", "clean")]);
    assert_eq!(done.code, Some(2));
    assert!(
        done.stderr.contains("the two models are equal"),
        "{}",
        done.stderr
    );
}

const RECIPE: &str = "merge_method: task_arithmetic
base_model: pre.safetensors
models:
";

fn recipe(dir: &Path, models: &[&str], weight: f64) {
    let list: Vec<String> = names(models)
        .iter()
        .map(|name| format!("  - model: {name}\n    parameters: {{weight: {weight}}}\n"))
        .collect();
    let recipe = format!("{RECIPE}{}dtype: float32\n", list.concat());
    fs::write(dir.join("recipe.yml"), recipe).expect("a recipe");
    let done = run(dir, ["merge", "recipe.yml", "merged", "--quiet"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
}

fn defend(dir: &Path, injected: &[String], rest: &[&str]) -> Tensors {
    let mut args = vec![
        "bv",
        "apply",
        "merged",
        "-o",
        "defended",
        "--overwrite",
        "--quiet",
    ];
    for pair in injected {
        args.extend(["--injected", pair]);
    }
    args.extend(rest);
    let done = run(dir, &args);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    read_safetensors(&dir.join("defended/model.safetensors"))
}

#[test]
fn models_of_another_base_are_refused() {
    let dir = TempDir::new().expect("a folder");
    let (inputs, _) = models(dir.path(), "backdoor_vectors", "ibvs_task_arithmetic");
    recipe(dir.path(), &["model0", "model1"], 0.3);
    // As far from the base as two models that were drawn at random.
    for name in ["injected_backdoored", "injected_clean"] {
        let prefix = format!("{name}/");
        let tensors: Vec<Entry<'_>> = inputs
            .iter()
            .filter_map(|(key, tensor)| Some((key.strip_prefix(&prefix)?, tensor)))
            .map(|(key, tensor)| {
                let turned = tensor.f32().iter().rev().map(|x| -x).collect();
                (key, Dtype::F32, tensor.shape.clone(), turned)
            })
            .collect();
        write_file(
            &dir.path().join(format!("other_{name}.safetensors")),
            &tensors,
        );
    }
    let other = pair("other_injected_backdoored", "other_injected_clean");
    let audit = ["audit", "merge", "recipe.yml", "--injected", &other];
    let sim = ["bv", "sim", &other, "--base", "pre.safetensors"];
    let project = [
        "bv",
        "apply",
        "merged",
        "-o",
        "x",
        "--injected",
        &other,
        "--project",
    ];
    let project = [&project[..], &["--base", "pre.safetensors"]].concat();
    for args in [&audit[..], &sim, &project] {
        let done = run(dir.path(), args).refused();
        let text = "fine-tunes of this base";
        assert!(done.stderr.contains(text), "{args:?}: {}", done.stderr);
    }
    for args in [&audit[..], &sim] {
        run(dir.path(), [args, &["--force"]].concat()).done();
    }
    let text = fs::read_to_string(dir.path().join("recipe.yml")).expect("a recipe");
    let text = format!("{text}defend: {{ibvs: ['{other}']}}\n");
    fs::write(dir.path().join("recipe.yml"), text).expect("a recipe");
    let done = run(dir.path(), ["merge", "recipe.yml", "out"]).refused();
    assert!(
        done.stderr.contains("fine-tunes of this base"),
        "{}",
        done.stderr
    );
}

#[test]
fn subtraction_and_projection_are_as_expected() {
    let dir = TempDir::new().expect("a folder");
    let (_, expected) = models(dir.path(), "backdoor_vectors", "ibvs_task_arithmetic");
    recipe(dir.path(), &["model0", "model1", "model2"], 0.3);
    let injected = [pair("injected_backdoored", "injected_clean")];
    for (args, key) in [
        (vec!["--lambda", "0.5"], "defended"),
        (
            vec!["--project", "--base", "pre.safetensors"],
            "defended_projection",
        ),
    ] {
        let found = defend(dir.path(), &injected, &args);
        assert_eq!(found.len(), 4);
        for (name, tensor) in &found {
            let expected = &expected[&format!("{key}/{name}")].values;
            for (a, b) in tensor.values.iter().zip(expected) {
                assert!((a - b).abs() < 1e-6, "{key}/{name}: {a} {b}");
            }
        }
    }
    let done = run(
        dir.path(),
        [
            "bv",
            "apply",
            "merged",
            "-o",
            "x",
            "--injected",
            &pair("injected_clean", "injected_clean"),
        ],
    );
    assert_eq!(done.code, Some(2));
    assert!(
        done.stderr.contains("the two models are equal"),
        "{}",
        done.stderr
    );
    assert!(!dir.path().join("x").exists());
}

/// Clean accuracy and attack success of a model of the digits, as its case measures them.
fn measure(model: &Tensors, x: &Tensor, y: &Tensor) -> (f64, f64) {
    let layers = ["fc1", "fc2", "head"].map(|name| {
        let weight = &model[&format!("{name}.weight")];
        Dense {
            name: name.to_owned(),
            outputs: weight.shape[0],
            inputs: weight.shape[1],
            weight: weight.values.clone(),
            bias: Some(model[&format!("{name}.bias")].values.clone()),
        }
    });
    let relu = Pointwise::Relu;
    let network =
        Mlp::new(layers.to_vec(), vec![relu, relu, Pointwise::Identity]).expect("a network");
    let predict = |x: &[f64]| -> Vec<usize> {
        let trace = network.forward(x).expect("outputs");
        trace.activations[3]
            .chunks(10)
            .map(merganser::trust::head::argmax)
            .collect()
    };
    let clean = predict(&x.values);
    let right = clean
        .iter()
        .zip(&y.values)
        .filter(|(a, b)| **a as f64 == **b)
        .count();
    let mut triggered = x.values.clone();
    for image in triggered.chunks_mut(64) {
        for pixel in [54, 55, 62, 63] {
            image[pixel] = 1.0;
        }
    }
    let (mut hit, mut all) = (0, 0);
    for (class, y) in predict(&triggered).iter().zip(&y.values) {
        if *y != 3.0 {
            all += 1;
            hit += usize::from(*class == 3);
        }
    }
    (
        right as f64 / y.values.len() as f64,
        hit as f64 / all as f64,
    )
}

#[test]
fn a_backdoor_of_digits_is_found_and_weakened() {
    let dir = TempDir::new().expect("a folder");
    let (inputs, expected) = models(dir.path(), "backdoor_vectors", "end_to_end_digits");
    let (x, y) = (&inputs["eval_x"], &inputs["eval_y"]);
    recipe(dir.path(), &["backdoored1", "clean2", "clean3"], 0.6);
    let merged = read_safetensors(&dir.path().join("merged/model.safetensors"));
    let (accuracy, attack) = measure(&merged, x, y);
    let undefended = &expected["ca_asr_pre_clean_bd_merged_mergedclean"].values[6..8];
    assert!((accuracy - undefended[0]).abs() < 0.007 && (attack - undefended[1]).abs() < 0.007);
    for name in ["same_trigger", "other_location", "other_target"] {
        let injected = [pair(&format!("inj_{name}"), "inj_clean")];
        let curve = &expected[&format!("ibvs_curve/{name}")].values;
        for row in [4, 7] {
            let point = &curve[3 * row..][..3];
            let found = defend(dir.path(), &injected, &["--lambda", &point[0].to_string()]);
            let (accuracy, attack) = measure(&found, x, y);
            assert!(
                (accuracy - point[1]).abs() < 0.007,
                "{name}: {accuracy} {point:?}"
            );
            assert!(
                (attack - point[2]).abs() < 0.007,
                "{name}: {attack} {point:?}"
            );
        }
    }
    // The poisoned contributor comes first, with triggers of other places and targets than the attacker's.
    let other = pair("inj_other_location", "inj_clean");
    let done = run(
        dir.path(),
        [
            "audit",
            "merge",
            "recipe.yml",
            "--json",
            "--injected",
            &other,
        ],
    );
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let found: Value = serde_json::from_str(&done.stdout).expect("JSON");
    let order = found["contributors"].as_array().expect("a list");
    assert_eq!(order[0]["model"], "backdoored1.safetensors");
    assert!(order[0]["cosine_with_mean"].as_f64() > order[1]["cosine_with_mean"].as_f64());
    assert!(order[0]["tensors"]["fc1.weight"].is_number());
}
