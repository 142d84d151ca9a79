//! MagMax over a stream of fine-tunes.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::models::input;
use crate::program::{Run, run};

fn merge(dir: &Path, models: &[&str], extra: &str, arguments: &[&str]) -> Run {
    let base = input(
        &models[0]
            .replace("ft1", "base")
            .replace("ft2", "base")
            .replace("ft3", "base"),
    );
    let mut recipe = format!(
        "merge_method: magmax\nbase_model: {}\n{extra}models:\n",
        base.display()
    );
    for model in models {
        recipe.push_str(&format!("  - model: {}\n", input(model).display()));
    }
    fs::write(dir.join("recipe.yml"), recipe).expect("a recipe");
    run(dir, [&["merge", "recipe.yml"], arguments].concat())
}

/// All tensors' bytes; headers name the plan.
fn weights(dir: &Path, out: &str) -> Vec<u8> {
    let bytes = fs::read(dir.join(out).join("model.safetensors")).expect("weights");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    bytes[8 + header..].to_vec()
}

#[test]
fn one_after_the_other_is_all_at_once() {
    for prefix in ["llama", "llama64-bf16"] {
        let names = ["ft1", "ft2", "ft3"].map(|name| format!("{prefix}-{name}"));
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        for extra in [
            "",
            "parameters: {lambda: 0.5}\n",
            "parameters: {lambda: 0.5}\ndtype: float32\nout_dtype: float16\n",
        ] {
            let dir = TempDir::new().expect("a folder");
            let dir = dir.path();
            merge(dir, &all, extra, &["at-once"]).done();
            for (i, name) in all.iter().enumerate() {
                let out = i.to_string();
                merge(dir, &[name], extra, &[&out, "--continue", "state"]).done();
            }
            assert!(
                weights(dir, "2") == weights(dir, "at-once"),
                "{prefix} {extra}"
            );
        }
    }
}

#[test]
fn other_methods_cannot_be_continued() {
    let dir = TempDir::new().expect("a folder");
    let dir = dir.path();
    let recipe = format!(
        "merge_method: linear\nmodels:\n  - model: {}\n    parameters: {{weight: 1}}\n",
        input("llama-ft1").display()
    );
    fs::write(dir.join("recipe.yml"), recipe).expect("a recipe");
    let refused = run(dir, ["merge", "recipe.yml", "out", "--continue", "state"]).refused();
    assert!(
        refused.stderr.contains("only magmax can be continued"),
        "{}",
        refused.stderr
    );
    assert!(!dir.join("out").exists() && !dir.join("state").exists());
}
