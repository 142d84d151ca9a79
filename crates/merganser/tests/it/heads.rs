//! `merganser embed`, `stats` and `head` on the models of the demo: features of a real model, statistics of clients, heads
//! without training, and their accuracy by `merganser evaluate`.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use serde_json::Value;
use tempfile::TempDir;

use crate::program::{done, refused};

const CLIENTS: usize = 30;
const TRAIN: usize = 300;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/demo")
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
    write("train.safetensors", 0..TRAIN);
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
        ("gaussian", "", 0.97),
        ("adagauss", "", 0.95),
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

/// The file of an adapter: layers without bias, by name.
fn network(path: &Path, layers: &[(&str, usize, usize, Vec<f32>)]) {
    let bytes: Vec<Vec<u8>> = layers
        .iter()
        .map(|(.., values)| values.iter().flat_map(|x| x.to_le_bytes()).collect())
        .collect();
    let tensors = layers.iter().zip(&bytes).map(|((name, m, n, _), bytes)| {
        let view = TensorView::new(Dtype::F32, vec![*m, *n], bytes).expect("a view");
        (format!("{name}.weight"), view)
    });
    serialize_to_file(tensors, None, path).expect("written");
}

/// d×d, x on the diagonal.
fn diagonal(d: usize, x: f32) -> Vec<f32> {
    (0..d * d)
        .map(|k| if k % (d + 1) == 0 { x } else { 0.0 })
        .collect()
}

#[test]
fn statistics_follow_a_network_and_are_reported() {
    let folder = TempDir::new().expect("a folder");
    let dir = folder.path();
    parts(dir, "turned");
    let model = demo().join("tasks/turned");
    done(
        dir,
        &format!(
            "embed {} --data train.safetensors -o f.npy --labels l.npy",
            model.display()
        ),
    );
    done(
        dir,
        "stats build f.npy --labels l.npy -o s.safetensors --cov --gram",
    );
    let json = |line: &str| -> Value {
        serde_json::from_str(&done(dir, &format!("{line} --json")).stdout).expect("JSON")
    };
    // Of features and of their statistics the same is said.
    let report = json("stats report s.safetensors");
    let same = json("stats report f.npy --labels l.npy");
    let classes = |report: &Value| report["report"]["classes"].clone();
    assert_eq!(classes(&report), classes(&same));
    let d = report["report"]["dim"].as_u64().expect("a number") as usize;
    let all = &report["report"]["all"];
    let score = all["score"].as_f64().expect("a number");
    assert!((-1.0..0.0).contains(&score), "{report}");
    let unlabelled = json("stats report f.npy");
    let difference = score - unlabelled["report"]["all"]["score"].as_f64().expect("one");
    assert!(difference.abs() < 1e-6);

    // ψ(x) = relu(x) − relu(−x) = x, by samples.
    let mut first = diagonal(d, 1.0);
    first.extend(diagonal(d, -1.0));
    let second: Vec<f32> = (0..d)
        .flat_map(|i| {
            (0..2 * d).map(move |j| {
                if j == i {
                    1.0
                } else if j == d + i {
                    -1.0
                } else {
                    0.0
                }
            })
        })
        .collect();
    network(
        &dir.join("bent.safetensors"),
        &[("fc1", 2 * d, d, first), ("fc2", d, 2 * d, second)],
    );
    let bent = "stats adapt --adapter bent.safetensors s.safetensors --activation relu";
    let event = json(&format!("{bent} -o full.safetensors --pairs f.npy f.npy"));
    assert_eq!(event["cov"], true);
    assert_eq!(event["gram"], false);
    assert!(event["fit"]["mean_square_error"].as_f64().expect("one") < 1e-9);
    let changed = json("stats report s.safetensors full.safetensors --shrink 0.5");
    for change in changed["changes"]["classes"].as_array().expect("classes") {
        let of = |key: &str| change[key].as_f64().expect("a number");
        assert!(of("mean") < 0.2, "{change}");
        assert!(of("divergence") < 0.05, "{change}");
    }
    done(dir, &format!("{bent} -o again.safetensors"));
    let bytes = |name: &str| fs::read(dir.join(name)).expect("statistics");
    assert_eq!(bytes("full.safetensors"), bytes("again.safetensors"));
    done(dir, &format!("{bent} -o mean.safetensors --strategy mean"));
    done(
        dir,
        &format!("{bent} -o diag.safetensors --strategy diag --samples 500 --seed 3 --shrink 0.1"),
    );
    let changed = json("stats report s.safetensors mean.safetensors");
    let first = &changed["changes"]["classes"][0];
    assert!(first["mean"].as_f64().expect("one") < 1e-6, "{first}");
    assert_eq!(first["covariance"].as_f64(), Some(0.0));
    // One layer is an affine map.
    network(
        &dir.join("twice.safetensors"),
        &[("fc", d, d, diagonal(d, 2.0))],
    );
    let run = done(
        dir,
        "stats adapt --adapter twice.safetensors s.safetensors -o twice-s.safetensors",
    );
    assert!(run.stderr.contains("exactly"), "{}", run.stderr);
    // Heads of what was adapted, and in the other form of the classifier.
    for (name, line, least) in [
        ("a", "head gaussian full.safetensors", 0.95),
        ("b", "head gaussian diag.safetensors", 0.9),
        ("c", "head adagauss s.safetensors --normalize", 0.9),
    ] {
        done(dir, &format!("{line} -o {name}.safetensors"));
        let found = accuracy(dir, &format!("{name}.safetensors"));
        assert!(found > least, "{line}: {found}");
    }

    let mut nan = diagonal(d, 1.0);
    nan[0] = f32::NAN;
    network(&dir.join("nan.safetensors"), &[("fc", d, d, nan)]);
    network(
        &dir.join("wide.safetensors"),
        &[("fc", 2, d + 1, vec![0.0; 2 * (d + 1)])],
    );
    done(dir, "stats build f.npy --labels l.npy -o bare.safetensors");
    for (line, part) in [
        (
            "stats adapt --adapter nan.safetensors s.safetensors -o x.safetensors",
            "nan.safetensors",
        ),
        (
            "stats adapt --adapter wide.safetensors s.safetensors -o x.safetensors",
            "as the map reads them",
        ),
        (
            "stats adapt --adapter s.safetensors s.safetensors -o x.safetensors",
            "holds no matrix",
        ),
        (
            "stats adapt --adapter bent.safetensors bare.safetensors -o x.safetensors",
            "--strategy mean",
        ),
        (
            "stats adapt --adapter bent.safetensors s.safetensors -o x.safetensors --samples 1",
            "samples",
        ),
        (
            "stats adapt --adapter bent.safetensors s.safetensors s.safetensors -o x.safetensors",
            "in place of a drift",
        ),
        ("stats adapt s.safetensors -o x.safetensors", "name a drift"),
        (
            "stats adapt s.safetensors --seed 1 -o x.safetensors",
            "--adapter",
        ),
        (
            "head gaussian s.safetensors -o x.safetensors --shrink 0 --pooled 0",
            "has collapsed",
        ),
        (
            "head gaussian s.safetensors -o a.safetensors",
            "--overwrite",
        ),
        (
            "head gaussian s.safetensors -o x.safetensors --pooled 2",
            "from 0 to 1",
        ),
        ("head adagauss bare.safetensors -o x.safetensors", "--cov"),
        ("stats report s.safetensors --beta 0", "beta"),
        (
            "stats report f.npy --labels l.npy --labels l.npy",
            "files of labels",
        ),
        ("stats report nothing.safetensors", "nothing.safetensors"),
    ] {
        let told = refused(dir, line);
        assert!(told.contains(part), "{line}: {told}");
    }
    assert!(!dir.join("x.safetensors").exists());
}
