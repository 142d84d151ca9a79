//! The arrows between the crates of the workspace, as ARCHITECTURE.md draws them. A new arrow is a decision: it is
//! drawn there and allowed here, or it does not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Which crates of the workspace each crate may use.
const ARROWS: [(&str, &[&str]); 17] = [
    ("merganser-store", &[]),
    ("merganser-kernels", &[]),
    ("merganser-linalg", &[]),
    ("merganser-spectral", &["merganser-linalg"]),
    ("merganser-recipe", &[]),
    ("merganser-report", &[]),
    ("merganser-methods", &["merganser-kernels"]),
    ("merganser-model", &["merganser-kernels", "merganser-store"]),
    (
        "merganser-data",
        &["merganser-kernels", "merganser-model", "merganser-store"],
    ),
    (
        "merganser-eval",
        &["merganser-data", "merganser-model", "merganser-store"],
    ),
    (
        "merganser-projection",
        &[
            "merganser-kernels",
            "merganser-linalg",
            "merganser-model",
            "merganser-spectral",
            "merganser-store",
        ],
    ),
    ("merganser-trust", &["merganser-linalg", "merganser-model"]),
    (
        "merganser-upkeep",
        &[
            "merganser-data",
            "merganser-kernels",
            "merganser-linalg",
            "merganser-model",
            "merganser-store",
        ],
    ),
    (
        "merganser-plan",
        &["merganser-methods", "merganser-recipe", "merganser-store"],
    ),
    (
        "merganser-run",
        &[
            "merganser-data",
            "merganser-kernels",
            "merganser-linalg",
            "merganser-methods",
            "merganser-model",
            "merganser-plan",
            "merganser-projection",
            "merganser-recipe",
            "merganser-report",
            "merganser-spectral",
            "merganser-store",
        ],
    ),
    (
        "merganser",
        &[
            "merganser-data",
            "merganser-eval",
            "merganser-kernels",
            "merganser-linalg",
            "merganser-methods",
            "merganser-model",
            "merganser-plan",
            "merganser-recipe",
            "merganser-report",
            "merganser-run",
            "merganser-store",
            "merganser-trust",
            "merganser-upkeep",
        ],
    ),
    ("merganser-testkit", &[]),
];

/// Crates that only their own room may name: swapping one must touch one crate.
const KEPT_INSIDE: [(&str, &str); 10] = [
    ("granit-parser", "merganser-recipe"),
    ("annotate-snippets", "merganser-recipe"),
    ("hf-hub", "merganser-store"),
    ("rustix", "merganser-store"),
    ("clap", "merganser"),
    ("faer", "merganser-linalg"),
    ("clarabel", "merganser-linalg"),
    ("tokenizers", "merganser-data"),
    ("image", "merganser-data"),
    ("minijinja", "merganser-report"),
];

/// Every package of the workspace and its dependencies, as (name, is a dev-dependency).
fn workspace() -> BTreeMap<String, Vec<(String, bool)>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let list = |value: &Value| value.as_array().expect("an array").clone();
    list(&metadata["packages"])
        .iter()
        .map(|package| {
            let dependencies = list(&package["dependencies"])
                .iter()
                .map(|dependency| (text(&dependency["name"]), dependency["kind"] == "dev"))
                .collect();
            (text(&package["name"]), dependencies)
        })
        .collect()
}

#[test]
fn crates_use_only_what_the_map_shows() {
    let workspace = workspace();
    let known: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    let found: BTreeSet<&str> = workspace.keys().map(String::as_str).collect();
    assert_eq!(found, known, "crates of the workspace");
    for (name, allowed) in ARROWS {
        let used: BTreeSet<&str> = workspace[name]
            .iter()
            .filter(|(dependency, dev)| !dev && known.contains(dependency.as_str()))
            .map(|(dependency, _)| dependency.as_str())
            .collect();
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        assert_eq!(used, allowed, "crates that {name} uses");
    }
}

#[test]
fn only_tests_use_the_testkit() {
    for (name, dependencies) in workspace() {
        assert!(
            !dependencies.contains(&("merganser-testkit".to_owned(), false)),
            "{name} uses merganser-testkit outside its tests"
        );
    }
}

#[test]
fn some_dependencies_stay_in_one_crate() {
    let workspace = workspace();
    for (dependency, owner) in KEPT_INSIDE {
        let users: Vec<&str> = workspace
            .iter()
            .filter(|(_, all)| all.iter().any(|(name, dev)| name == dependency && !dev))
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(users, [owner], "crates that use {dependency}");
    }
}
