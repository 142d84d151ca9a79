//! What the program says: the mistakes people make, the help, the plan, and the events for machines.
//!
//! Every message is a snapshot, so that a change of wording is seen and read before it is released.

use std::fmt::Write;
use std::fs;

use insta::assert_snapshot;
use merganser_testkit::checkpoint;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::models::{self, chunky, golden, input};
use crate::program::{self, Run, finish, merganser, stable};

/// Merges a recipe whose inputs are the golden ones.
fn merge(recipe: &str, options: &[&str]) -> (TempDir, Run) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("recipe.yml");
    fs::write(&path, recipe).expect("a recipe");
    let mut command = merganser();
    command.current_dir(golden()).arg("merge").arg(&path);
    command.arg(folder.path().join("out")).args(options);
    let run = finish(command);
    (folder, run)
}

/// The message by which a recipe is refused; nothing may have been written.
#[track_caller]
fn refusal(recipe: &str) -> String {
    let (folder, run) = merge(recipe, &[]);
    let run = run.refused();
    assert!(!folder.path().join("out").exists());
    // As people see it, but for the place.
    stable(&run.stderr, &golden()).replace(&*folder.path().to_string_lossy(), "[DIR]")
}

#[test]
fn a_typo_in_the_method() {
    assert_snapshot!(refusal(
        "merge_method: tise\nbase_model: ./inputs/llama-base\nmodels:\n  - model: ./inputs/llama-ft1\n"
    ));
}

#[test]
fn a_typo_in_a_parameter() {
    assert_snapshot!(refusal(
        "merge_method: ties
base_model: ./inputs/llama-base
models:
  - model: ./inputs/llama-ft1
    parameters:
      weight: 1.0
      densty: 0.5
parameters:
  normalise: true
"
    ));
}

#[test]
fn a_typo_in_a_key() {
    assert_snapshot!(refusal(
        "merge_methd: linear\nmodels:\n  - model: ./inputs/llama-ft1\n    parameters: {weight: 1}\n"
    ));
}

#[test]
fn broken_yaml() {
    assert_snapshot!(refusal(
        "merge_method: linear\nmodels:\n  - model: [./inputs/llama-ft1\n"
    ));
}

#[test]
fn a_missing_weight() {
    assert_snapshot!(refusal(
        "merge_method: linear\nmodels:\n  - model: ./inputs/llama-ft1\n    parameters: {weight: 0.5}\n  - model: ./inputs/llama-ft2\n"
    ));
}

#[test]
fn a_weight_that_is_no_number() {
    assert_snapshot!(refusal(
        "merge_method: linear\nmodels:\n  - model: ./inputs/llama-ft1\n    parameters: {weight: half}\n"
    ));
}

#[test]
fn a_density_out_of_range() {
    assert_snapshot!(refusal(
        "merge_method: ties\nbase_model: ./inputs/llama-base\nmodels:\n  - model: ./inputs/llama-ft1\n    parameters: {weight: 1, density: 50}\n"
    ));
}

#[test]
fn a_missing_base() {
    assert_snapshot!(refusal(
        "merge_method: ties\nmodels:\n  - model: ./inputs/llama-ft1\n    parameters: {weight: 1, density: 0.5}\n"
    ));
}

#[test]
fn layers_that_do_not_exist() {
    assert_snapshot!(refusal(
        "merge_method: passthrough\nslices:\n  - sources:\n      - model: ./inputs/llama-base\n        layer_range: [0, 2]\n  - sources:\n      - model: ./inputs/llama-ft1\n        layer_range: [2, 8]\n"
    ));
}

#[test]
fn models_of_different_widths() {
    assert_snapshot!(refusal(
        "merge_method: linear\nmodels:\n  - model: ./inputs/llama-base\n  - model: ./inputs/llama64-bf16-base\nparameters: {weight: 1}\n"
    ));
}

#[test]
fn tensors_that_one_model_lacks() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let whole = models::read(&input("llama-base"));
    let lacking = [
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.3.mlp.up_proj.weight",
    ];
    let tensors: Vec<checkpoint::Entry<'_>> = whole
        .iter()
        .filter(|(name, _)| !lacking.contains(&name.as_str()))
        .map(|(name, tensor)| {
            (
                name.as_str(),
                tensor.dtype,
                tensor.shape.clone(),
                tensor.f32(),
            )
        })
        .collect();
    let text = fs::read_to_string(input("llama-base").join("config.json")).expect("a config");
    let config: Value = serde_json::from_str(&text).expect("a config");
    checkpoint::write(&folder.path().join("lacking"), &config, &tensors);
    let recipe = format!(
        "merge_method: linear\nmodels:\n  - model: ./inputs/llama-base\n  - model: {}\nparameters: {{weight: 1}}\n",
        folder.path().join("lacking").display()
    );
    let said = refusal(&recipe).replace(&*folder.path().to_string_lossy(), "[MODELS]");
    assert_snapshot!(said);

    // The remedy it names works.
    let (out, run) = merge(&recipe, &["--allow-missing"]);
    run.done();
    assert_eq!(models::read(&out.path().join("out")).len(), whole.len());
}

#[test]
fn a_model_listed_twice() {
    assert_snapshot!(refusal(
        "merge_method: linear\nmodels:\n  - model: ./inputs/llama-ft1\n  - model: ./inputs/llama-ft1\nparameters: {weight: 1}\n"
    ));
}

#[test]
fn vocabularies_of_different_sizes() {
    assert_snapshot!(refusal(
        "merge_method: linear\nmodels:\n  - model: ./inputs/llama-base\n  - model: ./inputs/llama-ext\nparameters: {weight: 1}\n"
    ));
}

#[test]
fn different_architectures() {
    assert_snapshot!(refusal(
        "merge_method: linear\nmodels:\n  - model: ./inputs/llama-base\n  - model: ./inputs/gpt2-ft1\nparameters: {weight: 1}\n"
    ));
}

#[test]
fn an_adapter_of_another_base() {
    assert_snapshot!(refusal(
        "merge_method: passthrough\nmodels:\n  - model: ./inputs/llama64-bf16-base+./inputs/lora-a\n"
    ));
}

#[test]
fn an_adapter_given_as_a_model() {
    assert_snapshot!(refusal(
        "merge_method: passthrough\nmodels:\n  - model: ./inputs/lora-a\n"
    ));
}

#[test]
fn a_model_given_as_an_adapter() {
    assert_snapshot!(refusal(
        "merge_method: passthrough\nmodels:\n  - model: ./inputs/llama-base+./inputs/llama-ft1\n"
    ));
}

#[test]
fn a_union_of_tokenizers() {
    assert_snapshot!(refusal(
        "merge_method: linear\nbase_model: ./inputs/llama-base\nmodels:\n  - model: ./inputs/llama-base\n  - model: ./inputs/llama-ext\nparameters: {weight: 1}\ntokenizer: {source: union}\n"
    ));
}

#[test]
fn a_mixture_of_experts() {
    let recipe = fs::read_to_string(golden().join("open/moe-01-cheap/config.yml")).expect("yaml");
    assert_snapshot!(refusal(&recipe));
}

#[test]
fn too_little_memory() {
    let recipe = "merge_method: linear\nmodels:\n  - model: ./inputs/llama-ft1\n  - model: ./inputs/llama-ft2\nparameters: {weight: 1}\n";
    let (folder, run) = merge(recipe, &["--memory", "1KB"]);
    let run = run.failed();
    assert!(!folder.path().join("out").exists());
    assert_snapshot!(run.said(folder.path()));
}

#[test]
fn options_that_make_no_sense() {
    let recipe = "merge_method: passthrough\nmodels:\n  - model: ./inputs/llama-ft1\n";
    let mut text = String::new();
    for options in [
        &["--part", "6/5"][..],
        &["--part", "five"],
        &["--part", "auto/4"],
        &["--threads", "0"],
        &["--memory", "lots"],
        &["--out-shard-size", "3 apples"],
        &["--tensor-union"],
        &["--lora-merge-dtype", "float12"],
        &["--no-such-option"],
    ] {
        let (folder, run) = merge(recipe, options);
        let run = run.refused();
        let said = run.said(folder.path());
        let _ = writeln!(text, "## {}\n{said}", options.join(" "));
    }
    assert_snapshot!(text);
}

#[test]
fn instructions_this_machine_does_not_have() {
    let mut command = merganser();
    command.args(["methods"]).env("MERGANSER_SIMD", "abacus");
    let run = finish(command).refused();
    assert!(
        run.stderr.contains("MERGANSER_SIMD=\"abacus\""),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("scalar"), "{}", run.stderr);
}

#[test]
fn the_help_of_every_command() {
    let here = tempfile::tempdir().expect("a temporary folder");
    let top = program::run(here.path(), ["--help"]).done().stdout;
    let commands: Vec<&str> = top
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(
        commands.contains(&"merge") && commands.contains(&"inspect"),
        "{commands:?}"
    );
    for name in &commands {
        let help = program::run(here.path(), [name, "--help"]).done().stdout;
        assert_snapshot!(format!("help_{name}"), help);
    }
    for name in ["lora", "task-vector"] {
        let help = program::run(here.path(), ["extract", name, "--help"]);
        assert_snapshot!(format!("help_extract_{name}"), help.done().stdout);
    }
    assert_snapshot!("help", top);
}

#[test]
fn the_methods() {
    let here = tempfile::tempdir().expect("a temporary folder");
    let list = program::run(here.path(), ["methods"]).done().stdout;
    assert_snapshot!("methods", list);
    let ties = program::run(here.path(), ["methods", "ties"]).done().stdout;
    assert_snapshot!("methods_ties", ties);
    let typo = program::run(here.path(), ["methods", "tise"]).refused();
    assert_snapshot!("methods_tise", typo.stderr);

    let all = program::run(here.path(), ["methods", "--json"])
        .done()
        .events();
    let names: Vec<&str> = all
        .iter()
        .filter_map(|method| method["name"].as_str())
        .collect();
    assert_eq!(names.len(), all.len());
    assert!(names.iter().all(|name| list.contains(name)));
}

/// A recipe whose weights change from layer to layer.
const GRADIENT: &str = "merge_method: linear
models:
  - model: ./inputs/llama-ft1
    parameters:
      weight:
        - filter: mlp
          value: [0, 1]
        - value: 0.25
  - model: ./inputs/llama-ft2
    parameters: {weight: [1.0, 0.0, 0.5]}
";

fn plan(recipe: &str, options: &[&str]) -> Run {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("recipe.yml");
    fs::write(&path, recipe).expect("a recipe");
    let mut command = merganser();
    command
        .current_dir(golden())
        .arg("plan")
        .arg(&path)
        .args(options);
    finish(command).done()
}

#[test]
fn a_plan_shows_gradients_as_numbers() {
    let run = plan(GRADIENT, &["--tensors", "mlp.up_proj", "-j", "2"]);
    assert_snapshot!(run.stdout);
}

#[test]
fn a_plan_shows_who_does_what() {
    assert_snapshot!(
        plan(
            GRADIENT,
            &["--parts", "3", "--out-shard-size", "40000", "-j", "2"]
        )
        .stdout
    );
}

#[test]
fn a_plan_for_machines_is_one_object() {
    let events = plan(GRADIENT, &["--json", "--tensors", ""]).events();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["method"], "linear");
}

#[test]
fn events_are_one_object_a_line_and_end_with_the_end() {
    let model = |name: &str| chunky().join(name).display().to_string();
    let recipe = format!(
        "merge_method: slerp\nbase_model: {0}\nmodels:\n  - model: {0}\n  - model: {1}\nparameters: {{t: 0.5}}\n",
        model("base"),
        model("ft1")
    );
    let (folder, run) = merge(&recipe, &["--json", "--verbose"]);
    let run = run.done();
    assert!(run.stderr.is_empty(), "{}", run.stderr);
    let events = run.events();
    let of = |kind: &str| {
        events
            .iter()
            .filter(|e| e["event"] == kind)
            .collect::<Vec<_>>()
    };
    let tensors = models::read(&folder.path().join("out")).len();
    assert_eq!(events[0]["event"], "started");
    assert_eq!(
        (&events[0]["tensors"], &events[0]["reused"]),
        (&json!(tensors), &json!(0))
    );
    assert_eq!(of("tensor").len(), tensors);
    assert_eq!(of("finished").len(), 1);
    let last = events.last().expect("an event");
    assert_eq!(
        (&last["event"], &last["method"]),
        (&json!("finished"), &json!("slerp"))
    );
    assert_eq!(last["tensors"], tensors);

    // Progress reaches exactly what was announced.
    let bytes: Vec<u64> = of("progress")
        .iter()
        .filter_map(|e| e["bytes"].as_u64())
        .collect();
    assert!(
        bytes.iter().max() == events[0]["bytes"].as_u64().as_ref(),
        "{bytes:?}"
    );
}

#[test]
fn errors_for_machines_are_one_object_with_the_place() {
    let recipe = "merge_method: linear\nmodels:\n  - model: ./inputs/llama-ft1\n    parameters: {wieght: 1}\n";
    let (_folder, run) = merge(recipe, &["--json"]);
    let run = run.refused();
    assert!(run.stderr.is_empty(), "{}", run.stderr);
    let events = run.events();
    let [event] = &events[..] else {
        panic!("one event, not {events:?}")
    };
    assert_eq!(event["event"], "error");
    let first = &event["errors"][0];
    assert_eq!((&first["line"], &first["column"]), (&json!(4), &json!(18)));
    assert!(
        first["message"]
            .as_str()
            .is_some_and(|text| text.contains("wieght"))
    );
    assert!(first["help"].to_string().contains("weight"));
}

#[test]
fn quiet_is_quiet_and_a_recipe_may_come_from_a_pipe() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = assert_cmd::Command::from_std(merganser());
    command
        .current_dir(golden())
        .args(["merge", "-"])
        .arg(folder.path().join("out"));
    command
        .arg("--quiet")
        .write_stdin("merge_method: passthrough\nmodels:\n  - model: ./inputs/llama-ft1\n");
    command.assert().success().stdout("").stderr("");
    assert_eq!(
        models::read(&folder.path().join("out")),
        models::read(&input("llama-ft1"))
    );
}
