//! Merges by singular vectors through the program, against the authors' code.

use std::fs;

use merganser_testkit::checkpoint::{self, Entry};
use merganser_testkit::golden::{Case, cases, read_safetensors};
use safetensors::Dtype;
use serde_json::json;
use tempfile::TempDir;

use crate::models::{assert_same, bytes};
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

#[test]
fn fused_matrices_may_be_merged_as_three() {
    let dir = TempDir::new().expect("a folder");
    let dir = dir.path();
    let number = |seed: usize, i: usize| ((i * 37 + seed * 101) % 89) as f32 / 44.0 - 1.0;
    let stretch =
        |seed, part: usize| -> Vec<f32> { (0..16).map(|i| number(seed, part * 16 + i)).collect() };
    let config = json!({"n_head": 2, "model_type": "mine"});
    for (seed, model) in ["base", "one", "two"].into_iter().enumerate() {
        let parts: Vec<Vec<f32>> = (0..3).map(|part| stretch(seed, part)).collect();
        let fused = (
            "h.0.attn.qkv_proj.weight",
            Dtype::F32,
            vec![12, 4],
            parts.concat(),
        );
        checkpoint::write(&dir.join("fused").join(model), &config, &[fused]);
        let names: Vec<String> = (0..3).map(|i| format!("h.0.attn.{i}.weight")).collect();
        let single: Vec<Entry<'_>> = names
            .iter()
            .zip(parts)
            .map(|(name, part)| (name.as_str(), Dtype::F32, vec![4, 4], part))
            .collect();
        checkpoint::write(&dir.join("single").join(model), &config, &single);
    }
    let merged = |kind: &str, parameters: &str| -> Vec<f64> {
        let recipe = format!(
            "merge_method: iso_c\nbase_model: {kind}/base\nparameters: {parameters}\nmodels:\n  - model: {kind}/one\n  - model: {kind}/two\n"
        );
        fs::write(dir.join("recipe.yml"), recipe).expect("a recipe");
        run(dir, ["merge", "recipe.yml", "out", "--overwrite"]).done();
        let out = read_safetensors(&dir.join("out/model.safetensors"));
        out.values()
            .flat_map(|tensor| tensor.values.clone())
            .collect()
    };
    let single = merged("single", "{}");
    assert_eq!(merged("fused", "{split_fused_qkv: true}"), single);
    assert_ne!(merged("fused", "{}"), single);
}

/// A recipe of the demo's four fine-tunes.
fn of_the_demo(head: &str) -> String {
    let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/demo");
    let demo = demo.display();
    let tasks = ["turned", "sum", "larger", "difference"];
    let models = tasks.map(|task| format!("  - model: {demo}/tasks/{task}\n"));
    let models = models.concat();
    format!("{head}\nbase_model: {demo}/base\nmodels:\n{models}dtype: float32\n")
}

#[test]
fn random_projection_comes_close_and_says_what_it_left_out() {
    let dir = TempDir::new().expect("a folder");
    let merge = |head: &str, out: &str| {
        fs::write(dir.path().join("recipe.yml"), of_the_demo(head)).expect("a recipe");
        let done = run(dir.path(), ["merge", "recipe.yml", out]);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let tensors = read_safetensors(&dir.path().join(out).join("model.safetensors"));
        (tensors, done.stderr)
    };
    let (exact, plain) = merge("merge_method: tsv_m", "exact");
    assert!(!plain.contains("random projection"), "{plain}");
    let base = of_the_demo("").lines().find_map(|line| {
        let path = line.strip_prefix("base_model: ")?;
        Some(read_safetensors(
            &std::path::Path::new(path).join("model.safetensors"),
        ))
    });
    let base = base.expect("a base");
    for (passes, close) in [("", 0.4), (", passes: 2", 0.25), (", passes: 8", 0.1)] {
        let head = format!("merge_method: tsv_m\nparameters: {{randomized: true{passes}}}");
        let (found, said) = merge(
            &head,
            &format!("found{}", passes.trim_start_matches(", passes: ")),
        );
        assert!(said.contains("random projection left out"), "{said}");
        let (mut off, mut total) = (0.0, 0.0);
        for (name, tensor) in &exact {
            for ((x, y), w) in tensor
                .values
                .iter()
                .zip(&found[name].values)
                .zip(&base[name].values)
            {
                off += (x - y).powi(2);
                total += (x - w).powi(2);
            }
        }
        let relative = (off / total).sqrt();
        assert!(relative > 0.0 && relative < close, "{passes}: {relative}");
    }
}

#[test]
fn updates_with_fewer_directions_than_their_shape_are_named() {
    let dir = TempDir::new().expect("a folder");
    let tensor = |scale: f32| -> Vec<Entry<'static>> {
        let values = (0..12 * 8)
            .map(|i| scale * ((i / 8) as f32 - 4.0) * ((i % 8) as f32 + 1.0))
            .collect();
        vec![("model.layers.0.q.weight", Dtype::F32, vec![12, 8], values)]
    };
    for (name, scale) in [("base", 0.0), ("fine", 0.25)] {
        checkpoint::write(&dir.path().join(name), &json!({}), &tensor(scale));
    }
    let recipe =
        "merge_method: iso_c\nbase_model: base\nmodels:\n  - model: fine\ndtype: float32\n";
    fs::write(dir.path().join("recipe.yml"), recipe).expect("a recipe");
    let done = run(dir.path(), ["merge", "recipe.yml", "out"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let said = "iso_c: the updates of 1 of 1 matrices have fewer directions than their shape allows; the others are \
                rounding and were left out. Fewest: 1 of 8, 'model.layers.0.q.weight'";
    assert!(done.stderr.contains(said), "{}", done.stderr);
}

/// Numbers in −1 to 1 without structure.
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9);
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (2.0 * f64::from(state) / f64::from(u32::MAX) - 1.0) as f32
    };
    (0..count).map(next).collect()
}

#[test]
fn fine_tunes_that_were_adapters_are_merged_in_their_span() {
    const SIDE: usize = 96;
    let dir = TempDir::new().expect("a folder");
    let named = |model: &str, name: &str, dtype: Dtype, values: Vec<f32>| {
        let tensor = (name, dtype, vec![SIDE, SIDE], values);
        checkpoint::write(&dir.path().join(model), &json!({}), &[tensor]);
    };
    let stored =
        |model: &str, dtype, values| named(model, "model.layers.0.q.weight", dtype, values);
    // W₀, which bf16 holds exactly, and what an adapter of two directions of about equal length makes of it.
    let base = numbers(1, SIDE * SIDE).into_iter().map(|x| 0.05 * x);
    let base: Vec<f32> = base
        .map(|x| f32::from_bits(x.to_bits() & 0xffff_0000))
        .collect();
    let adapted = |seed: u32| -> Vec<f32> {
        let (a, b) = (numbers(seed, 2 * SIDE), numbers(seed + 10, 2 * SIDE));
        let entry = |i: usize, j: usize| b[2 * i] * a[j] + b[2 * i + 1] * a[SIDE + j];
        let change = (0..SIDE * SIDE).map(|k| 0.01 * entry(k / SIDE, k % SIDE));
        base.iter().zip(change).map(|(w, x)| w + x).collect()
    };
    for (suffix, dtype) in [("f32", Dtype::F32), ("bf16", Dtype::BF16)] {
        stored(&format!("base-{suffix}"), dtype, base.clone());
        stored(&format!("one-{suffix}"), dtype, adapted(2));
        stored(&format!("two-{suffix}"), dtype, adapted(3));
    }
    let merge = |method: &str, suffix: &str, parameters: &str| {
        let recipe = format!(
            "merge_method: {method}\nbase_model: base-{suffix}\nparameters: {{{parameters}}}\nmodels:\n  - model: one-{suffix}\n  - model: two-{suffix}\ndtype: float32\n"
        );
        fs::write(dir.path().join("recipe.yml"), recipe).expect("a recipe");
        let done = run(dir.path(), ["merge", "recipe.yml", "out", "--overwrite"]).done();
        let out = read_safetensors(&dir.path().join("out/model.safetensors"));
        let merged = &out["model.layers.0.q.weight"].values;
        let update: Vec<f64> = merged
            .iter()
            .zip(&base)
            .map(|(x, w)| x - f64::from(*w))
            .collect();
        (update, done.stderr)
    };
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let off = |x: &[f64], y: &[f64]| {
        let difference: Vec<f64> = x.iter().zip(y).map(|(x, y)| x - y).collect();
        norm(&difference) / norm(y)
    };
    for method in ["tsv_m", "iso_c", "iso_cts", "cart", "knots"] {
        // Single precision knows the adapter well enough for the whole matrices to give what their span gives.
        let (expected, _) = merge(method, "f32", "low_rank: false");
        let (exact, said) = merge(method, "f32", "");
        assert!(
            said.contains("of 1 of 1 matrices are adapters of rank 2 at most"),
            "{method}: {said}"
        );
        assert!(off(&exact, &expected) < 1e-4, "{method}");
        let (found, said) = merge(method, "bf16", "");
        assert!(said.contains("are adapters of rank 2"), "{method}: {said}");
        assert!(off(&found, &expected) < 0.05, "{method}");
        let (_, said) = merge(method, "bf16", "low_rank: false");
        assert!(!said.contains("adapters"), "{method}: {said}");
    }
    // A fine-tune that names its tensors without the prefix is known by its own rounding as well.
    named("two-bf16", "layers.0.q.weight", Dtype::BF16, adapted(3));
    let (found, said) = merge("iso_c", "bf16", "");
    assert!(said.contains("are adapters of rank 2"), "{said}");
    let (expected, _) = merge("iso_c", "f32", "low_rank: false");
    assert!(off(&found, &expected) < 0.05);
    stored("two-bf16", Dtype::BF16, adapted(3));
    // Of 96 equally long directions 92 are rounding.
    let (expected, _) = merge("iso_c", "f32", "");
    let (noisy, _) = merge("iso_c", "bf16", "low_rank: false");
    assert!(off(&noisy, &expected) > 0.5);
}

#[test]
fn neither_memory_nor_parts_matter_to_whole_matrices() {
    let dir = TempDir::new().expect("a folder");
    for method in ["tsv_m", "iso_c", "iso_cts", "cart", "knots", "wudi"] {
        let recipe = of_the_demo(&format!("merge_method: {method}"));
        fs::write(dir.path().join("recipe.yml"), recipe).expect("a recipe");
        let merge = |out: &str, options: &[&str]| {
            let shards = ["merge", "recipe.yml", out, "--out-shard-size", "60KB"];
            run(dir.path(), shards.iter().chain(options))
        };
        let plain = format!("{method}-plain");
        merge(&plain, &["--threads", "3"]).done();
        let plain = bytes(&dir.path().join(plain));
        assert!(plain.len() > 3, "the output was to be sharded");

        let one = format!("{method}-one");
        merge(&one, &["--memory", "12MiB", "--threads", "3"]).done();
        assert_same(&plain, &bytes(&dir.path().join(one)), method);

        let parts = format!("{method}-parts");
        for part in ["1/3", "2/3", "3/3"] {
            merge(&parts, &["--part", part]).done();
        }
        run(dir.path(), ["seal", &parts]).done();
        assert_same(&plain, &bytes(&dir.path().join(parts)), method);

        let small = merge("small", &["--memory", "400KiB"]);
        assert_eq!(small.code, Some(1), "{method}: {}", small.stderr);
        assert!(
            small
                .stderr
                .contains("--memory 400.0 KiB is too small: one thread needs"),
            "{}",
            small.stderr
        );
        assert!(!dir.path().join("small").exists());
    }
}
