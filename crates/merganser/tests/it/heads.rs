//! `merganser embed`, `stats` and `head` on the models of the demo: features of a real model, statistics of clients, heads
//! without training, and their accuracy by `merganser evaluate`.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use serde_json::Value;
use tempfile::TempDir;

use crate::program::{Run, run};

const CLIENTS: usize = 30;
const TRAIN: usize = 300;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/demo")
}

fn words(dir: &Path, line: &str) -> Run {
    run(dir, line.split_whitespace())
}

fn done(dir: &Path, line: &str) -> Run {
    let run = words(dir, line);
    assert_eq!(run.code, Some(0), "{line}: {}{}", run.stdout, run.stderr);
    run
}

fn refused(dir: &Path, line: &str) -> String {
    let run = words(dir, line);
    assert_eq!(run.code, Some(2), "{line}: {}{}", run.stdout, run.stderr);
    run.stderr
}

/// The labelled images of a task: the first for training, shared among clients, the others for the test.
fn parts(dir: &Path, task: &str) {
    let path = demo().join("data").join(format!("{task}.safetensors"));
    let bytes = fs::read(path).expect("the demo's data");
    let tensors = SafeTensors::deserialize(&bytes).expect("tensors");
    let pixels = tensors.tensor("test.pixels").expect("pixels");
    let labels = tensors.tensor("test.labels").expect("labels");
    let total = labels.shape()[0];
    let size = pixels.data().len() / total;
    let write = |name: &str, rows: std::ops::Range<usize>| {
        let mut shape = pixels.shape().to_vec();
        shape[0] = rows.len();
        let pixels = &pixels.data()[rows.start * size..rows.end * size];
        let labels = &labels.data()[rows.start * 8..rows.end * 8];
        let tensors = [
            (
                "pixels",
                TensorView::new(Dtype::U8, shape, pixels).expect("a view"),
            ),
            (
                "labels",
                TensorView::new(Dtype::I64, vec![rows.len()], labels).expect("a view"),
            ),
        ];
        serialize_to_file(tensors, None, &dir.join(name)).expect("written");
    };
    write("test.safetensors", TRAIN..total);
    for client in 0..CLIENTS {
        let size = TRAIN / CLIENTS;
        write(
            &format!("client-{client}.safetensors"),
            client * size..(client + 1) * size,
        );
    }
}

/// The first value of a score in a result.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Object(map) => map
            .get("value")
            .and_then(Value::as_f64)
            .or_else(|| map.values().find_map(number)),
        Value::Array(all) => all.iter().find_map(number),
        _ => None,
    }
}

fn accuracy(dir: &Path, head: &str) -> f64 {
    let model = demo().join("tasks/turned");
    let done = done(
        dir,
        &format!(
            "evaluate {} --data test.safetensors --head {head} --json",
            model.display()
        ),
    );
    let text = &done.stdout;
    let found: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    number(&found).unwrap_or_else(|| panic!("no score in {text}"))
}

#[test]
fn heads_without_training_read_the_digits() {
    let folder = TempDir::new().expect("a folder");
    let dir = folder.path();
    parts(dir, "turned");
    fs::create_dir(dir.join("stats")).expect("a folder");
    let model = demo().join("tasks/turned");
    for client in 0..CLIENTS {
        done(
            dir,
            &format!(
                "embed {} --data client-{client}.safetensors -o f{client}.npy --labels l{client}.npy",
                model.display()
            ),
        );
        done(
            dir,
            &format!(
                "stats build f{client}.npy --labels l{client}.npy -o stats/{client}.safetensors --cov --gram"
            ),
        );
    }
    for (method, options, least) in [
        ("ncm", "", 0.96),
        ("fedcof", "--gamma auto", 0.97),
        ("ridge", "", 0.96),
        ("bayes", "", 0.97),
    ] {
        let run = done(
            dir,
            &format!("head {method} stats -o {method}.safetensors {options}"),
        );
        assert!(run.stdout.contains("300"), "{}", run.stdout);
        let found = accuracy(dir, &format!("{method}.safetensors"));
        assert!(found > least, "{method}: {found}");
    }
    // The order of the files changes no bit.
    let files: Vec<String> = (0..CLIENTS)
        .rev()
        .map(|client| format!("stats/{client}.safetensors"))
        .collect();
    done(
        dir,
        &format!("head fedcof {} -o again.safetensors", files.join(" ")),
    );
    let bytes = |name: &str| fs::read(dir.join(name)).expect("a head");
    assert_eq!(bytes("fedcof.safetensors"), bytes("again.safetensors"));
    // Statistics that follow a drift: a shift by nothing changes nothing.
    done(
        dir,
        "drift fit f0.npy f0.npy -o same.safetensors --kind shift --unit false",
    );
    done(
        dir,
        "stats adapt same.safetensors stats/0.safetensors -o moved.safetensors",
    );
    assert_eq!(bytes("moved.safetensors"), bytes("stats/0.safetensors"));

    let there = refused(dir, "head ncm stats -o ncm.safetensors");
    assert!(there.contains("--overwrite"), "{there}");
    let few = refused(dir, "head ncm stats -o x.safetensors --classes 3");
    assert!(few.contains("with 3 classes"), "{few}");
    let single = refused(
        dir,
        "head fedcof stats/0.safetensors same.safetensors -o x.safetensors",
    );
    assert!(single.contains("merganser stats build"), "{single}");
    let run = done(
        dir,
        "head ncm stats -o more.safetensors --classes 12 --json",
    );
    let event: Value = serde_json::from_str(&run.stdout).expect("JSON");
    assert_eq!(event["found"]["absent"], serde_json::json!([10, 11]));
    assert!(!dir.join("x.safetensors").exists());
}
