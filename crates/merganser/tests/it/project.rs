//! Merges that look at data, on the demo's models.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;

use crate::models::input;
use crate::program::{Run, run};

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../examples/demo")
        .canonicalize()
        .expect("the demo's files")
}

/// A recipe over two of the demo's tasks; `head` is its own part, `calibration` what stands at a model.
fn recipe(head: &str, calibration: impl Fn(&str) -> String) -> String {
    let demo = demo();
    let mut text = format!("{head}\nbase_model: {}/base\nmodels:\n", demo.display());
    for task in ["sum", "difference"] {
        text.push_str(&format!("  - model: {}/tasks/{task}\n", demo.display()));
        text.push_str(&calibration(task));
    }
    text + "dtype: float32\n"
}

fn with_data(head: &str, samples: usize) -> String {
    let text = recipe(head, |task| {
        format!(
            "    calibration: {}/data/{task}.safetensors\n",
            demo().display()
        )
    });
    text + &format!("calibration: {{prefix: calib, samples: {samples}}}\n")
}

fn merge(dir: &TempDir, recipe: &str, out: &str, options: &[&str]) -> Run {
    fs::write(dir.path().join("recipe.yml"), recipe).expect("a recipe");
    let mut arguments = vec!["merge", "recipe.yml", out, "--quiet"];
    arguments.extend(options);
    run(dir.path(), arguments)
}

fn weights(dir: &TempDir, out: &str) -> Vec<u8> {
    fs::read(dir.path().join(out).join("model.safetensors")).expect("weights")
}

#[test]
fn a_projection_is_written_with_its_report() {
    let dir = TempDir::new().expect("a folder");
    let done = merge(&dir, &with_data("merge_method: projection", 48), "out", &[]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let out = dir.path().join("out");
    let page = fs::read_to_string(out.join("report.html")).expect("a report");
    assert!(page.contains("<svg") && !page.contains("<script src"));
    let report: Value =
        serde_json::from_str(&fs::read_to_string(out.join("report.json")).expect("JSON"))
            .expect("JSON");
    let layers = report["layers"].as_array().expect("layers");
    assert!(layers.len() > 20);
    for layer in layers {
        let captured = layer["captured"]["this merge"].as_f64().expect("a number");
        assert!(captured <= 1.0 + 1e-9, "{layer}");
    }
    let bytes = weights(&dir, "out");
    let merged = SafeTensors::deserialize(&bytes).expect("safetensors");
    let base = fs::read(demo().join("base/model.safetensors")).expect("the base");
    let base = SafeTensors::deserialize(&base).expect("safetensors");
    let names = |file: &SafeTensors<'_>| {
        let mut names: Vec<String> = file.names().iter().map(|name| (*name).to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&merged), names(&base));
    let record = fs::read_to_string(out.join("merganser.json")).expect("a record");
    assert!(record.contains("\"projection\""));
}

#[test]
fn the_bytes_do_not_depend_on_threads() {
    let dir = TempDir::new().expect("a folder");
    let text = with_data("merge_method: projection", 24);
    for threads in ["1", "2", "3"] {
        let done = merge(
            &dir,
            &text,
            &format!("out{threads}"),
            &["--threads", threads],
        );
        assert_eq!(done.code, Some(0), "{}", done.stderr);
    }
    assert_eq!(weights(&dir, "out1"), weights(&dir, "out2"));
    assert_eq!(weights(&dir, "out1"), weights(&dir, "out3"));
}

#[test]
fn an_interrupted_projection_ends_in_the_same_bytes() {
    let dir = TempDir::new().expect("a folder");
    let text = with_data("merge_method: projection", 24);
    assert_eq!(merge(&dir, &text, "whole", &[]).code, Some(0));
    fs::write(dir.path().join("recipe.yml"), &text).expect("a recipe");
    let mut command = crate::program::merganser();
    command
        .current_dir(dir.path())
        .args(["merge", "recipe.yml", "cut", "--quiet"]);
    let journal = dir.path().join("cut/.partial-merganser/journal");
    let enough = || fs::read_to_string(&journal).is_ok_and(|text| text.lines().count() > 60);
    crate::program::interrupt(command, enough);
    let done = merge(&dir, &text, "cut", &[]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(weights(&dir, "whole"), weights(&dir, "cut"));
}

#[test]
fn more_is_captured_with_more_freedom() {
    let dir = TempDir::new().expect("a folder");
    let text = with_data(
        "merge_method: projection\nparameters: {sequential: false}",
        48,
    );
    fs::write(dir.path().join("recipe.yml"), text).expect("a recipe");
    let done = run(
        dir.path(),
        [
            "diagnose",
            "recipe.yml",
            "--json",
            "--quiet",
            "--report",
            "page.html",
        ],
    );
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let report: Value = done
        .stdout
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .find(|value: &Value| value.get("layers").is_some())
        .expect("a report");
    for layer in report["layers"].as_array().expect("layers") {
        let of = |name: &str| layer["captured"][name].as_f64().expect("a number");
        let slack = 1e-6;
        assert!(of("task") <= of("diagonal") + slack, "{layer}");
        assert!(of("diagonal") <= of("full") + slack, "{layer}");
        assert!(of("average") <= of("task") + slack, "{layer}");
    }
    assert!(
        report["suggestion"]["method"].is_string(),
        "{}",
        report["suggestion"]
    );
    assert_eq!(report["pairwise"].as_array().map(Vec::len), Some(3));
    assert!(dir.path().join("page.html").is_file());
    let entries = fs::read_dir(dir.path()).expect("a folder").count();
    assert_eq!(entries, 2, "a diagnosis writes nothing but its report");
}

#[test]
fn finished_models_are_measured_at_the_output_too() {
    let dir = TempDir::new().expect("a folder");
    let scaled = "merge_method: projection\nparameters: {ridge: 0.1, ridge_scale: input}";
    for (out, head) in [
        ("mean", "merge_method: projection\nparameters: {ridge: 0.1}"),
        ("input", scaled),
        (
            "far",
            "merge_method: task_arithmetic\nparameters: {weight: 5}",
        ),
    ] {
        let text = if out == "far" {
            recipe(head, |_| String::new())
        } else {
            with_data(head, 48)
        };
        let done = merge(&dir, &text, out, &[]);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
    }
    assert_ne!(weights(&dir, "mean"), weights(&dir, "input"));
    fs::write(dir.path().join("recipe.yml"), with_data(scaled, 48)).expect("a recipe");
    let mut arguments = vec!["diagnose", "recipe.yml", "--json", "--quiet"];
    for model in ["mean", "input", "far"] {
        arguments.extend(["--compare", model]);
    }
    let done = run(dir.path(), arguments);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let last = done.stdout.lines().last().expect("a line");
    let report: Value = serde_json::from_str(last).expect("a report");
    let output = |name: &str| {
        let methods = report["methods"].as_array().expect("methods");
        let method = methods.iter().find(|method| method["name"] == name);
        method.expect("the model")["output"].as_f64()
    };
    for solved in ["mean", "input"] {
        let captured = output(solved).expect("a number");
        assert!(captured > 0.5 && captured < 1.0, "{solved}: {captured}");
        assert!(output("far") < Some(captured));
    }
    assert_eq!(output("this merge"), None);
}

#[test]
fn methods_that_leave_the_biases_are_diagnosed_too() {
    let dir = TempDir::new().expect("a folder");
    for method in ["regmean", "lot"] {
        fs::write(
            dir.path().join("recipe.yml"),
            with_data(&format!("merge_method: {method}"), 16),
        )
        .expect("a recipe");
        let done = run(dir.path(), ["diagnose", "recipe.yml", "--quiet"]);
        assert_eq!(done.code, Some(0), "{method}: {}", done.stderr);
        assert!(done.stdout.contains("average"), "{method}: {}", done.stdout);
    }
}

/// Heads over a vocabulary are not solved for; where they are the table of embeddings, that has no moments of its own.
#[test]
fn decoders_with_and_without_a_head_of_their_own_are_calibrated_and_merged() {
    for (base, tunes) in [
        ("llama-base", ["llama-ft1", "llama-ft2"]),
        (
            "llama64-bf16-base",
            ["llama64-bf16-ft1", "llama64-bf16-ft2"],
        ),
    ] {
        let dir = TempDir::new().expect("a folder");
        let tokens: Vec<u8> = (0..40_i64)
            .flat_map(|i| (i * 7 % 32).to_le_bytes())
            .collect();
        let view = TensorView::new(Dtype::I64, vec![4, 10], &tokens).expect("a tensor");
        safetensors::serialize_to_file(
            [("input_ids", view)],
            None,
            &dir.path().join("t.safetensors"),
        )
        .expect("samples");
        let from = |file: &dyn Fn(&str) -> String| {
            let mut text = format!(
                "merge_method: projection\nparameters: {{sequential: false}}\nbase_model: {}\nmodels:\n",
                input(base).display()
            );
            for tune in tunes {
                text.push_str(&format!("  - model: {}\n", input(tune).display()));
                text.push_str(&format!("    calibration: {}\n", file(tune)));
            }
            text
        };
        for tune in tunes {
            let moments = format!("{tune}.moments.safetensors");
            let model = input(tune).display().to_string();
            let arguments = [
                "calibrate",
                &model,
                "--data",
                "t.safetensors",
                "-o",
                &moments,
            ];
            let done = run(dir.path(), arguments);
            assert_eq!(done.code, Some(0), "{}", done.stderr);
        }
        let moments = from(&|tune| format!("{tune}.moments.safetensors"));
        for (out, recipe) in [
            ("moments", moments),
            ("samples", from(&|_| "t.safetensors".into())),
        ] {
            let done = merge(&dir, &recipe, out, &[]);
            assert_eq!(done.code, Some(0), "{}", done.stderr);
        }
        let (a, b) = (weights(&dir, "moments"), weights(&dir, "samples"));
        let (a, b) = (
            SafeTensors::deserialize(&a).expect("safetensors"),
            SafeTensors::deserialize(&b).expect("safetensors"),
        );
        let same = |name: &str| {
            a.tensor(name).expect("the tensor").data() == b.tensor(name).expect("the tensor").data()
        };
        // The table is solved for where samples say how often each row is read, and is left to the prior where it is the head.
        assert_eq!(
            same("model.embed_tokens.weight"),
            base == "llama64-bf16-base"
        );
    }
}

#[test]
fn moments_stand_for_samples() {
    let dir = TempDir::new().expect("a folder");
    let demo = demo();
    for task in ["sum", "difference"] {
        let done = run(
            dir.path(),
            [
                "calibrate",
                &format!("{}/tasks/{task}", demo.display()),
                "--data",
                &format!("{}/data/{task}.safetensors", demo.display()),
                "--split",
                "calib",
                "--samples",
                "32",
                "-o",
                &format!("{task}.moments.safetensors"),
            ],
        );
        assert_eq!(done.code, Some(0), "{}", done.stderr);
    }
    let head = "merge_method: projection\nparameters: {sequential: false}";
    let from_moments = recipe(head, |task| {
        format!("    calibration: {task}.moments.safetensors\n")
    });
    assert_eq!(merge(&dir, &from_moments, "moments", &[]).code, Some(0));
    assert_eq!(
        merge(&dir, &with_data(head, 32), "samples", &[]).code,
        Some(0)
    );
    let (a, b) = (weights(&dir, "moments"), weights(&dir, "samples"));
    let (a, b) = (
        SafeTensors::deserialize(&a).expect("safetensors"),
        SafeTensors::deserialize(&b).expect("safetensors"),
    );
    let name = "vit.encoder.layer.1.intermediate.dense.weight";
    let numbers = |file: &SafeTensors<'_>| -> Vec<f32> {
        let bytes = file.tensor(name).expect("the tensor").data().to_vec();
        bytes
            .chunks(4)
            .map(|x| f32::from_le_bytes(x.try_into().expect("four bytes")))
            .collect()
    };
    for (x, y) in numbers(&a).iter().zip(numbers(&b)) {
        assert!((x - y).abs() < 1e-4, "{x} against {y}");
    }
    // A prior of whole matrices counts where the samples say little; held-out rows and other networks' inputs are not there.
    let strong = head.replace("sequential: false", "sequential: false, ridge: 1000");
    let of = |out: &str, recipe: &str| {
        let done = merge(&dir, recipe, out, &[]);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        weights(&dir, out)
    };
    let named = |task: &str| format!("    calibration: {task}.moments.safetensors\n");
    let average = of("average", &recipe(&strong, named));
    let tsv = of("tsv", &recipe(&format!("prior: tsv_m\n{strong}"), named));
    assert_ne!(average, tsv);
    for (head, said) in [
        ("merge_method: regmean++", "regmean++ runs the networks"),
        (
            "merge_method: projection\nparameters: {distill: 5}",
            "distill runs the networks",
        ),
        (
            "merge_method: projection\nparameters: {ridge: auto}",
            "held-out",
        ),
    ] {
        let refused = merge(&dir, &recipe(head, named), "refused", &[]);
        assert_ne!(refused.code, Some(0), "{head}");
        assert!(refused.stderr.contains(said), "{head}: {}", refused.stderr);
        assert!(!dir.path().join("refused/model.safetensors").exists());
    }
    // Of another model.
    let swapped = recipe(head, |task| {
        let other = if task == "sum" { "difference" } else { "sum" };
        format!("    calibration: {other}.moments.safetensors\n")
    });
    let refused = merge(&dir, &swapped, "swapped", &[]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("moments are of model"),
        "{}",
        refused.stderr
    );
    assert!(!dir.path().join("swapped/model.safetensors").exists());
}

#[test]
fn the_relatives_run() {
    let dir = TempDir::new().expect("a folder");
    for method in ["regmean", "regmean++", "lot"] {
        let done = merge(
            &dir,
            &with_data(&format!("merge_method: {method}"), 16),
            method,
            &[],
        );
        assert_eq!(done.code, Some(0), "{method}: {}", done.stderr);
    }
    for head in [
        "merge_method: wudi",
        "merge_method: wudi\nparameters: {solver: closed}",
        "merge_method: tsv_m",
        "merge_method: iso_c\nparameters: {alpha: 1.3}",
        "merge_method: iso_cts\nparameters: {common_fraction: 0.5}",
        "merge_method: knots\nparameters: {density: 0.3}",
        "merge_method: cart\nparameters: {rank_fraction: 0.1, task_scale: 0.5}",
    ] {
        let done = merge(
            &dir,
            &recipe(head, |_| String::new()),
            "data-free",
            &["--overwrite"],
        );
        assert_eq!(done.code, Some(0), "{head}: {}", done.stderr);
    }
    for (name, parameters) in [
        (
            "bases",
            "{basis: [{filter: attention, value: diagonal}, {filter: output, value: best-rank}, {value: task}], rank: 4}",
        ),
        ("sparse", "{basis: sparse, mask: sign, constraint: box}"),
        ("auto", "{basis: auto, ridge: auto}"),
        ("distilled", "{distill: 3}"),
    ] {
        let head = format!("merge_method: projection\nprior: tsv_m\nparameters: {parameters}");
        let done = merge(&dir, &with_data(&head, 16), name, &[]);
        assert_eq!(done.code, Some(0), "{name}: {}", done.stderr);
    }
    let mut merges = std::collections::BTreeSet::new();
    for prior in ["tsv_m", "iso_c", "iso_cts", "knots", "cart"] {
        let head = format!("merge_method: projection\nprior: {prior}\nparameters: {{ridge: 10}}");
        let done = merge(&dir, &with_data(&head, 16), prior, &[]);
        assert_eq!(done.code, Some(0), "{prior}: {}", done.stderr);
        assert!(merges.insert(weights(&dir, prior)), "{prior}");
    }
}

#[test]
fn bad_samples_are_refused_before_anything_is_written() {
    let dir = TempDir::new().expect("a folder");
    let file =
        |name: &str, content: &[u8]| fs::write(dir.path().join(name), content).expect("a file");
    file("empty.jsonl", b"");
    file(
        "texts.jsonl",
        b"{\"text\": \"a text for a network that reads images\"}\n",
    );
    let tensors = |name: &str, shape: Vec<usize>, values: &[f32], key: &str| {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &bytes)
            .expect("a view");
        safetensors::serialize_to_file([(key, view)], None, &dir.path().join(name))
            .expect("a file");
    };
    tensors(
        "large.safetensors",
        vec![2, 1, 20, 20],
        &[0.5; 800],
        "pixel_values",
    );
    tensors(
        "nan.safetensors",
        vec![2, 1, 16, 16],
        &[f32::NAN; 512],
        "pixel_values",
    );
    tensors("labels.safetensors", vec![2], &[1.0; 2], "labels");
    for (name, said) in [
        ("missing.jsonl", "cannot read calibration data"),
        ("empty.jsonl", "empty.jsonl"),
        ("texts.jsonl", "tokenizer"),
        ("large.safetensors", "20"),
        ("nan.safetensors", "NaN"),
        ("labels.safetensors", "labels"),
    ] {
        let text = recipe("merge_method: projection", |_| {
            format!("    calibration: {name}\n")
        });
        let refused = merge(&dir, &text, "out", &[]);
        assert_eq!(refused.code, Some(2), "{name}: {}", refused.stderr);
        assert!(refused.stderr.contains(said), "{name}: {}", refused.stderr);
        assert!(!dir.path().join("out/model.safetensors").exists(), "{name}");
    }
    let none = merge(
        &dir,
        &recipe("merge_method: projection", |_| String::new()),
        "out",
        &[],
    );
    assert_eq!(none.code, Some(2));
    assert!(
        none.stderr.contains("has no calibration data"),
        "{}",
        none.stderr
    );
    let parts = merge(
        &dir,
        &with_data("merge_method: projection", 8),
        "out",
        &["--part", "1/2"],
    );
    assert_eq!(parts.code, Some(2), "{}", parts.stderr);
    let typo = with_data("merge_method: projection\nparameters: {basiss: full}", 8);
    let refused = merge(&dir, &typo, "out", &[]);
    assert!(
        refused.stderr.contains("did you mean `basis`?"),
        "{}",
        refused.stderr
    );
}
