//! `merganser evaluate` on the models and data of the demo.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::program::{Run, run};

/// The folder of the demo's models.
fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/demo")
}

fn path(name: &str) -> String {
    demo().join(name).display().to_string()
}

fn evaluate(dir: &Path, arguments: &[&str]) -> Run {
    run(dir, [&["evaluate"], arguments].concat())
}

/// A file of two of the demo's tasks.
fn tasks(dir: &Path) -> String {
    let task = |name: &str| {
        json!({
            "name": name,
            "data": {"path": path(&format!("data/{name}.safetensors")), "split": "test"},
            "head": path(&format!("heads/{name}.safetensors")),
            "reference": path(&format!("tasks/{name}")),
        })
    };
    let file = dir.join("tasks.json");
    fs::write(
        &file,
        json!({"tasks": [task("sum"), task("larger")]}).to_string(),
    )
    .expect("written");
    file.display().to_string()
}

#[test]
fn a_file_of_tasks_makes_one_table() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = tasks(dir.path());
    let run = evaluate(
        dir.path(),
        &[
            &path("base"),
            "--tasks",
            &file,
            "--compare",
            &path("tasks/sum"),
            "--samples",
            "120",
        ],
    );
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert!(
        lines[0].starts_with("task") && lines[0].ends_with("fine-tuned"),
        "{}",
        run.stdout
    );
    for (line, start) in lines[1..]
        .iter()
        .zip(["sum", "larger", "average", "normalised"])
    {
        assert!(line.starts_with(start), "{}", run.stdout);
    }
    assert!(run.stdout.contains("difference from"), "{}", run.stdout);
}

#[test]
fn json_holds_every_number_and_scores_do_not_depend_on_batches_or_threads() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = tasks(dir.path());
    let json = |more: &[&str]| -> Value {
        let base = path("base");
        let run = evaluate(
            dir.path(),
            &[
                &[
                    base.as_str(),
                    "--tasks",
                    &file,
                    "--samples",
                    "100",
                    "--json",
                ],
                more,
            ]
            .concat(),
        );
        assert_eq!(run.code, Some(0), "{}{}", run.stdout, run.stderr);
        serde_json::from_str(&run.stdout).expect("JSON")
    };
    let found = json(&[]);
    let task = &found["tasks"][0];
    assert_eq!(
        (task["name"].as_str(), task["metric"].as_str()),
        (Some("sum"), Some("accuracy"))
    );
    assert_eq!(task["scores"][0]["samples"], 100);
    let reference = task["reference"]["score"]["value"]
        .as_f64()
        .expect("a number");
    let value = task["scores"][0]["value"].as_f64().expect("a number");
    assert!(
        reference > value,
        "the fine-tune is better than the base: {reference} {value}"
    );
    assert!(found["averages"][0]["normalised"].is_f64());
    assert_eq!(json(&["--batch-size", "7", "--threads", "1"]), found);
    // Read block by block instead of held.
    assert_eq!(json(&["--memory", "1KB"]), found);
}

#[test]
fn a_head_may_be_given_by_itself() {
    let dir = tempfile::tempdir().expect("a folder");
    let run = evaluate(
        dir.path(),
        &[
            &path("tasks/sum"),
            "--data",
            &path("data/sum.safetensors"),
            "--split",
            "test",
            "--head",
            &path("heads/sum.safetensors"),
            "-v",
        ],
    );
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(
        run.stdout.contains("accuracy") && run.stdout.contains(" of "),
        "{}",
        run.stdout
    );
}

#[test]
fn bad_input_is_said_and_is_code_2() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(
        dir.path().join("bad.yml"),
        "tasks:\n  - {name: a, dta: x}\n",
    )
    .expect("written");
    let (base, data) = (path("base"), path("data/sum.safetensors"));
    for (arguments, expected) in [
        (vec![base.as_str()], "--data <PATH>"),
        (
            vec![&base, "--data", &data],
            "holds the splits `calib`, `test`; choose one",
        ),
        (
            vec![&base, "--data", &data, "--split", "dev"],
            "has no samples under `dev.`",
        ),
        (
            vec![&base, "--data", &data, "--split", "test"],
            "what is to be measured is not clear",
        ),
        (
            vec![
                &base,
                "--data",
                &data,
                "--split",
                "test",
                "--head",
                "none.safetensors",
            ],
            "none.safetensors",
        ),
        (
            vec![
                &base,
                "--data",
                &data,
                "--split",
                "test",
                "--task",
                "perplexity",
            ],
            "perplexity",
        ),
        (
            vec![&base, "--data", "none.jsonl"],
            "cannot open `none.jsonl`",
        ),
        (vec![&base, "--tasks", "bad.yml"], "unknown field `dta`"),
        (
            vec![&base, "--tasks", "bad.yml", "--head", "x"],
            "cannot be used with",
        ),
        (vec!["nowhere/at/all", "--data", &data], "nowhere/at/all"),
        (
            vec![&base, "--data", &data, "--columns", "a"],
            "--columns takes the names of two columns",
        ),
        (
            vec![&base, "--data", &data, "--task", "guess"],
            "unknown task `guess`",
        ),
    ] {
        let run = evaluate(dir.path(), &arguments);
        assert_eq!(
            run.code,
            Some(2),
            "{arguments:?}\n{}{}",
            run.stdout,
            run.stderr
        );
        assert!(
            run.stderr.contains(expected),
            "{arguments:?}\n{}",
            run.stderr
        );
    }
}
