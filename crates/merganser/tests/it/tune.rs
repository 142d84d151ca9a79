//! `merganser tune` on the models of the demo, and LAME in `merganser evaluate`.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::program::{Run, run};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

/// Three values of lambda on the bundled tasks.
fn tune(dir: &Path, more: &[&str]) -> Run {
    let recipe = examples().join("tune/recipe.yml").display().to_string();
    let tasks = examples().join("tune/tasks.yml").display().to_string();
    let fixed = [
        "tune",
        &recipe,
        "-o",
        "best.yml",
        "--tasks",
        &tasks,
        "--set",
        "lambda=0.1,0.3,0.9",
    ];
    run(dir, [&fixed, more].concat())
}

fn finished(run: &Run) -> Value {
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let last = run.stdout.lines().last().expect("an event");
    serde_json::from_str(last).expect("JSON")
}

#[test]
fn few_labels_find_the_best_lambda_and_entropy_does_not() {
    let dir = tempfile::tempdir().expect("a folder");
    let found = finished(&tune(dir.path(), &["--few", "50", "--json"]));
    assert_eq!(found["by"], "few");
    assert_eq!(found["candidates"][1]["values"]["lambda"], "0.3");
    assert_eq!(found["best"], 1);
    let of = |strategy: &str| -> Value {
        let choices = found["choices"].as_array().expect("choices");
        let choice = choices.iter().find(|c| c["strategy"] == strategy);
        choice.expect(strategy).clone()
    };
    let best = of("accuracy")["accuracy"].as_f64().expect("a number");
    let few = of("few")["accuracy"].as_f64().expect("a number");
    assert!(best - few <= 0.01, "{few} {best}");
    // The known failure of entropy: models that are sure of what is wrong.
    let entropy = of("entropy")["accuracy"].as_f64().expect("a number");
    assert!(best - entropy > 0.2, "{entropy} {best}");
    // The recipe is the old one with another number, and can be merged.
    let text = fs::read_to_string(dir.path().join("best.yml")).expect("written");
    assert!(text.contains("lambda: 0.3\n") && text.starts_with("# The four fine-tunes"));
    let left: Vec<String> = fs::read_dir(dir.path())
        .expect("a folder")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name.contains("candidate"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_interrupted_search_goes_on_and_another_one_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let whole = finished(&tune(dir.path(), &["--json"]));
    let log = dir.path().join("best.yml.log");
    let text = fs::read_to_string(&log).expect("a log");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4);
    // Killed while the last line was being written.
    let half = &lines[3][..lines[3].len() / 2];
    fs::write(&log, [lines[0], lines[1], lines[2], half].join("\n") + "\n").expect("written");
    let run = tune(dir.path(), &["--json"]);
    assert_eq!(run.code, Some(2));
    assert!(run.stdout.contains("exists already"), "{}", run.stdout);
    let again = finished(&tune(dir.path(), &["--json", "--overwrite"]));
    assert_eq!(again["resumed"], 2);
    assert_eq!(again["candidates"], whole["candidates"]);
    let run = tune(dir.path(), &["--overwrite", "--few", "10"]);
    assert_eq!(run.code, Some(2));
    assert!(
        run.stderr.contains("log of a search with other tasks"),
        "{}",
        run.stderr
    );
}

#[test]
fn mistakes_are_named_before_anything_is_merged() {
    let dir = tempfile::tempdir().expect("a folder");
    for (more, expected) in [
        (vec!["--set", "lamda=1,2"], "sets no parameter at `lamda`"),
        (vec!["--set", "lambda=1"], "`lambda` is set twice"),
        (vec!["--by", "luck"], "unknown strategy `luck`"),
        (vec!["--set", "weight=0:1"], "is not FROM:TO:STEP"),
    ] {
        let run = tune(dir.path(), &more);
        assert_eq!(run.code, Some(2), "{more:?}");
        assert!(run.stderr.contains(expected), "{more:?}: {}", run.stderr);
    }
    let run = tune(dir.path(), &["--by", "consistency"]);
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("give --changed"), "{}", run.stderr);
    assert!(!dir.path().join("best.yml").exists());
}

#[test]
fn changed_copies_are_made_for_consistency() {
    let dir = tempfile::tempdir().expect("a folder");
    let args = ["--json", "--by", "consistency", "--changed", "auto"];
    let found = finished(&tune(dir.path(), &args));
    let scores: Vec<f64> = found["candidates"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|candidate| {
            candidate["scores"]["consistency"]
                .as_f64()
                .expect("a score")
        })
        .collect();
    // The copies differ from the samples, and not beyond recognition.
    assert!(scores.iter().all(|x| (1e-3..5.0).contains(x)), "{scores:?}");
    let notes = found["notes"].to_string();
    assert!(notes.contains("changed copies: images moved"), "{notes}");
    let elsewhere = tempfile::tempdir().expect("a folder");
    let again = [&args[..], &["--seed", "1"]].concat();
    let other = finished(&tune(elsewhere.path(), &again));
    assert_ne!(other["candidates"], found["candidates"]);
}

#[test]
fn near_samples_may_decide_and_the_user_is_warned() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| examples().join("demo").join(name).display().to_string();
    let evaluate = |more: &[&str]| {
        let (model, data) = (path("tasks/sum"), path("data/sum.safetensors"));
        let head = path("heads/sum.safetensors");
        let fixed = [
            "evaluate",
            &model,
            "--data",
            &data,
            "--split",
            "test",
            "--head",
            &head,
            "--samples",
            "128",
        ];
        run(dir.path(), [&fixed, more].concat())
    };
    let (plain, drawn) = (evaluate(&[]), evaluate(&["--lame", "knn"]));
    assert_eq!(
        (plain.code, drawn.code),
        (Some(0), Some(0)),
        "{}",
        drawn.stderr
    );
    assert_ne!(plain.stdout, drawn.stdout);
    assert!(
        drawn.stderr.contains("harmful for shuffled samples"),
        "{}",
        drawn.stderr
    );
    assert_eq!(evaluate(&["--lame", "cosine"]).code, Some(2));
}
