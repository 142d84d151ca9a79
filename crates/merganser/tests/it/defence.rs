//! `defend` in a recipe, through the program: against the golden subtraction, on models in folders, and refused.

use std::fs;
use std::path::{Path, PathBuf};

use insta::assert_snapshot;
use merganser_testkit::golden::read_safetensors;
use serde_json::Value;
use tempfile::TempDir;

use crate::audit::models;
use crate::program::{run, stable};

const GOLDEN: &str = "merge_method: task_arithmetic
base_model: pre.safetensors
models:
  - {model: model0.safetensors, parameters: {weight: 0.3}}
  - {model: model1.safetensors, parameters: {weight: 0.3}}
  - {model: model2.safetensors, parameters: {weight: 0.3}}
dtype: float32
";

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/models")
}

/// A folder in which the models of the examples have short names: messages underline them.
fn with_models() -> TempDir {
    let dir = TempDir::new().expect("a folder");
    for name in [
        "base",
        "dense",
        "low-rank",
        "sparse",
        "adapter",
        "adapter-2",
    ] {
        std::os::unix::fs::symlink(examples().join(name), dir.path().join(name)).expect("a link");
    }
    dir
}

/// A merge of the examples in their own bfloat16.
fn recipe(rest: &str) -> String {
    format!(
        "merge_method: task_arithmetic\nbase_model: base\nmodels:\n  - {{model: dense, parameters: {{weight: 0.5}}}}\n{rest}"
    )
}

#[test]
fn a_recipe_subtracts_as_expected() {
    let dir = TempDir::new().expect("a folder");
    let (_, expected) = models(dir.path(), "backdoor_vectors", "ibvs_task_arithmetic");
    let pair = "injected_backdoored.safetensors:injected_clean.safetensors";
    for (amount, key) in [
        ("lambda: 0.5", "defended"),
        ("project: false", "defended"),
        ("lambda: auto", "defended_projection"),
        ("project: true", "defended_projection"),
    ] {
        let text = format!("{GOLDEN}defend: {{ibvs: ['{pair}'], {amount}}}\n");
        fs::write(dir.path().join("recipe.yml"), text).expect("a recipe");
        let args = ["merge", "recipe.yml", "out", "--overwrite", "--json"];
        let done = run(dir.path(), args).done();
        let finished = done.events().pop().expect("an event");
        assert_eq!(finished["method"], "task_arithmetic", "{amount}");
        let found = read_safetensors(&dir.path().join("out/model.safetensors"));
        assert_eq!(found.len(), 4, "{amount}");
        for (name, tensor) in &found {
            let expected = &expected[&format!("{key}/{name}")].values;
            for (a, b) in tensor.values.iter().zip(expected) {
                assert!((a - b).abs() < 1e-6, "{amount} {name}: {a} {b}");
            }
        }
    }
    assert!(!dir.path().join(".out.intermediate").exists());
}

#[test]
fn a_defended_model_is_rounded_once_and_names_who_made_it() {
    let dir = with_models();
    let merge = |name: &str, text: &str| {
        fs::write(dir.path().join(format!("{name}.yml")), text).expect("a recipe");
        run(dir.path(), ["merge", &format!("{name}.yml"), name]).done()
    };
    let single = "out_dtype: float32\n";
    merge("plain", &recipe(single));
    let defence = "defend:\n  ibvs:\n    - {backdoored: low-rank, clean: sparse}\n    - low-rank:base\n  lambda: 0.8\n";
    let done = merge("defended", &recipe(defence));
    assert!(
        done.stderr
            .contains("0.8 times the mean of 2 injected backdoor vectors"),
        "{}",
        done.stderr
    );
    let read = |path: &Path| read_safetensors(&path.join("model.safetensors"));
    let at = |name: &str| dir.path().join(name);
    let (plain, found) = (read(&at("plain")), read(&at("defended")));
    let of = |name: &str| read(&examples().join(name));
    let (base, bad, clean) = (of("base"), of("low-rank"), of("sparse"));
    assert_eq!(plain.len(), found.len());
    let mut differ = 0;
    for (name, tensor) in &found {
        for (i, value) in tensor.values.iter().enumerate() {
            let [plain, base, bad, clean] =
                [&plain, &base, &bad, &clean].map(|model| model[name].values[i]);
            let wanted = plain - 0.4 * (bad - clean) - 0.4 * (bad - base);
            // One rounding to bfloat16: half of its step.
            assert!(
                (value - wanted).abs() <= wanted.abs() / 255.0 + 1e-6,
                "{name} {i}"
            );
            differ += usize::from((value - plain).abs() > plain.abs() / 100.0);
        }
    }
    assert!(differ > 1000, "{differ}");
    let json = |name: &str| -> Value {
        let text = fs::read_to_string(at("defended").join(name)).expect(name);
        serde_json::from_str(&text).expect("JSON")
    };
    assert_eq!(
        json("config.json"),
        serde_json::from_str::<Value>(
            &fs::read_to_string(examples().join("base/config.json")).expect("a config")
        )
        .expect("JSON")
    );
    let record = json("merganser.json");
    let inputs: Vec<&str> = record["inputs"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|input| {
            let path = input["model"].as_str().expect("a name");
            path.rsplit('/').next().unwrap_or(path)
        })
        .collect();
    assert_eq!(
        inputs,
        ["base", "dense", "low-rank", "sparse", "low-rank", "base"]
    );
    assert!(
        at("defended/tokenizer.json").exists() || !examples().join("base/tokenizer.json").exists()
    );
    let card = fs::read_to_string(at("defended/README.md")).expect("a card");
    assert!(
        card.contains("`task_arithmetic`") && card.contains("defend:"),
        "{card}"
    );
    // A second run would replace it.
    let again = run(dir.path(), ["merge", "defended.yml", "defended"]).failed();
    assert!(again.stderr.contains("--overwrite"), "{}", again.stderr);
}

#[test]
fn a_pair_may_be_an_adapter_on_its_base() {
    let dir = with_models();
    let merge = |name: &str, rest: &str| {
        fs::write(dir.path().join("recipe.yml"), recipe(rest)).expect("a recipe");
        run(dir.path(), ["merge", "recipe.yml", name]).done();
        read_safetensors(&dir.path().join(name).join("model.safetensors"))
    };
    let plain = merge("plain", "");
    let found = merge(
        "defended",
        "defend: {ibvs: ['base+adapter:base'], lambda: 1}\n",
    );
    let mut moved = Vec::new();
    for (name, tensor) in &found {
        if tensor.values != plain[name].values {
            moved.push(name.as_str());
        }
    }
    // Only what the adapter changes has a backdoor vector.
    assert!(!moved.is_empty());
    assert!(
        moved
            .iter()
            .all(|name| name.contains("q_proj") || name.contains("v_proj")),
        "{moved:?}"
    );
    fs::write(dir.path().join("recipe.yml"), recipe("")).expect("a recipe");
    let other = ["apply", "dense", "base+adapter", "-o", "x"];
    let refused = run(dir.path(), other).refused();
    assert!(
        refused.stderr.contains("name the adapter alone"),
        "{}",
        refused.stderr
    );
}

#[test]
fn an_interrupted_defence_goes_on() {
    let dir = with_models();
    let text = recipe("defend: {ibvs: ['low-rank:sparse'], lambda: auto}\n");
    fs::write(dir.path().join("recipe.yml"), &text).expect("a recipe");
    run(dir.path(), ["merge", "recipe.yml", "whole"]).done();
    // The disk is full when the merge is there and the subtraction begins: a file stands where its staging folder goes.
    fs::create_dir_all(dir.path().join("out")).expect("a folder");
    fs::write(dir.path().join("out/.partial-merganser"), "").expect("a file");
    let failed = run(dir.path(), ["merge", "recipe.yml", "out"]);
    assert_ne!(failed.code, Some(0));
    let left = dir.path().join(".out.intermediate/.undefended-.merganser");
    assert!(left.join("model.safetensors").exists(), "{}", failed.stderr);
    fs::remove_file(dir.path().join("out/.partial-merganser")).expect("a file");
    let done = run(dir.path(), ["merge", "recipe.yml", "out", "--json"]).done();
    let moved = done.events().pop().expect("an event")["moved_bytes"].as_u64();
    assert!(moved.is_some_and(|bytes| bytes > 0));
    assert!(!left.exists());
    let bytes = |name: &str| fs::read(dir.path().join(name).join("model.safetensors")).expect(name);
    assert_eq!(bytes("whole"), bytes("out"));
}

#[test]
fn defences_that_cannot_be_are_refused() {
    let dir = with_models();
    let mut said = String::new();
    let pair = "ibvs: ['low-rank:sparse']";
    let core = "merge_method: core_space\nbase_model: base\nmodels:\n  - model: base+adapter\n  - model: base+adapter-2\noutput: adapter\n";
    for (what, text, args) in [
        (
            "no such model",
            recipe("defend: {ibvs: ['low-rank:./nowhere']}\n"),
            &[][..],
        ),
        (
            "two amounts",
            recipe(&format!("defend: {{{pair}, lambda: 1, project: true}}\n")),
            &[],
        ),
        ("no pair", recipe("defend: {ibvs: [low-rank]}\n"), &[]),
        (
            "equal models",
            recipe("defend: {ibvs: ['low-rank:low-rank']}\n"),
            &[],
        ),
        (
            "in parts",
            recipe(&format!("defend: {{{pair}}}\n")),
            &["--part", "1/2"],
        ),
        (
            "no base",
            recipe(&format!("defend: {{{pair}, lambda: auto}}\n"))
                .replace("task_arithmetic", "linear")
                .lines()
                .filter(|line| !line.starts_with("base_model"))
                .fold(String::new(), |text, line| text + line + "\n"),
            &[],
        ),
        (
            "several models in one",
            recipe(&format!("defend: {{{pair}}}\n"))
                .replace("task_arithmetic", "emr")
                .replace(", parameters: {weight: 0.5}", ""),
            &[],
        ),
        (
            "an adapter",
            format!("{core}defend: {{ibvs: [a:b]}}\n"),
            &[],
        ),
        (
            "fewer layers",
            "merge_method: passthrough\nslices:\n  - sources: [{model: base, layer_range: [0, 1]}]\ndefend: {ibvs: ['low-rank:sparse']}\n".to_owned(),
            &[],
        ),
    ] {
        fs::write(dir.path().join("recipe.yml"), text).expect("a recipe");
        let mut all = vec!["merge", "recipe.yml", "out"];
        all.extend(args);
        let refused = run(dir.path(), &all);
        assert_eq!(refused.code, Some(2), "{what}: {}", refused.stderr);
        assert!(!dir.path().join("out").exists(), "{what}");
        assert!(!dir.path().join(".out.intermediate").exists(), "{what}");
        let shown = stable(&refused.stderr, dir.path());
        let shown =
            stable(&shown, &examples()).replace(&examples().display().to_string(), "[MODELS]");
        said.push_str(&format!("# {what}\n{shown}\n"));
    }
    assert_snapshot!(said);
}
