//! Certificates through the program, on the small files of examples/trust and on golden cases.

use std::fs;
use std::path::{Path, PathBuf};

use merganser_testkit::golden::{folder, read_safetensors};
use serde_json::Value;
use tempfile::TempDir;

use crate::program::{Run, run};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/trust")
}

fn certify(args: &[&str]) -> Run {
    let done = run(&examples(), [&["certify"], args].concat());
    assert_eq!(done.code, Some(0), "{args:?}: {}", done.stderr);
    done
}

fn json(done: &Run) -> Value {
    serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {}", done.stdout))
}

fn near(found: &Value, expected: f64) {
    let found = found.as_f64().expect("a number");
    assert!(
        (found - expected).abs() <= 1e-6 * expected.abs() + 1e-9,
        "{found} {expected}"
    );
}

const HEAD: [&str; 4] = ["head", "head.safetensors", "-f", "features.safetensors"];

#[test]
fn radii_of_a_head_are_those_of_the_golden_case() {
    let found = json(&certify(&[&HEAD[..], &["--json"]].concat()));
    let case = folder().join("continual/minpert/margin_last_layer/expected.safetensors");
    let expected = read_safetensors(&case);
    let samples = found["samples"].as_array().expect("samples");
    assert_eq!(samples.len(), 20);
    for (s, sample) in samples.iter().enumerate() {
        let radii = &sample["radii"];
        assert_eq!(
            radii["prediction"].as_f64(),
            Some(expected["pred"].values[s])
        );
        // The example stores the case's numbers in float32.
        let close = |found: &Value, key: &str| {
            let (found, expected) = (found.as_f64().expect("a number"), expected[key].values[s]);
            assert!(
                (found - expected).abs() < 1e-5 * (1.0 + expected),
                "{key}: {found} {expected}"
            );
        };
        close(&radii["frobenius"], "radius_frobenius");
        close(&radii["max"], "radius_entry_inf");
        close(&radii["sum"], "radius_entry_l1");
    }
    let hashes = merganser::certify::fingerprints(&examples().join("head.safetensors"));
    let hashes = hashes.expect("a file");
    assert_eq!(
        found["files"]["weights"]["blake3"].as_str(),
        Some(hashes[0].1.as_str())
    );
    let text = certify(&HEAD).stdout;
    assert!(text.contains("share of samples"), "{text}");
}

#[test]
fn a_twin_changes_nothing_that_is_certified() {
    for args in [
        [&HEAD[..], &["--compressed", "head-int6.safetensors"]].concat(),
        vec![
            "mlp",
            "mlp.safetensors",
            "-f",
            "inputs.safetensors",
            "--activation",
            "relu",
            "--compressed",
            "mlp-int8.safetensors",
        ],
    ] {
        let found = json(&certify(&[&args[..], &["--json"]].concat()));
        let samples = found["samples"].as_array().expect("samples");
        let mut certified = 0;
        for sample in samples {
            let twin = sample.get("twin").unwrap_or(sample);
            if twin["certified"] == true {
                certified += 1;
                assert_eq!(twin["prediction"], twin["twin_prediction"]);
            }
        }
        assert!(certified > 0);
        assert_eq!(found["certified"], certified);
        assert!(certify(&args).stdout.contains("certified by any of these"));
    }
    // The counts of the golden case by certificate.
    let found = json(&certify(&[
        "mlp",
        "mlp.safetensors",
        "-f",
        "inputs.safetensors",
        "--activation",
        "relu",
        "--compressed",
        "mlp-int8.safetensors",
        "--json",
    ]));
    let count = |key: &str| {
        let samples = found["samples"].as_array().expect("samples");
        samples.iter().filter(|sample| sample[key] == true).count()
    };
    assert_eq!(count("certified_norm_only"), 10);
    assert_eq!(count("certified_data_aware"), 11);
    assert_eq!(count("certified_pairwise"), 12);
}

#[test]
fn layers_have_sensitivities_and_guarantees() {
    let args = [
        "mlp",
        "mlp.safetensors",
        "-f",
        "inputs.safetensors",
        "--activation",
        "relu",
    ];
    let found = json(&certify(&[&args[..], &["--json"]].concat()));
    assert_eq!(found["event"], "sensitivity");
    assert_eq!(found["layers"], serde_json::json!(["fc1", "fc2", "fc3"]));
    assert!(certify(&args).stdout.contains("not a guarantee"));
}

#[test]
fn a_head_may_lie_in_the_folder_of_a_model() {
    let dir = TempDir::new().expect("a folder");
    let copy = |name: &str| fs::copy(examples().join(name), dir.path().join(name)).expect(name);
    copy("features.safetensors");
    fs::create_dir(dir.path().join("model")).expect("a folder");
    let file = dir.path().join("model/model.safetensors");
    fs::copy(examples().join("head.safetensors"), file).expect("a head");
    let found = json(
        &run(
            dir.path(),
            [
                "certify",
                "head",
                "model",
                "-f",
                "features.safetensors",
                "--json",
            ],
        )
        .done(),
    );
    let alone = json(&certify(&[&HEAD[..], &["--json"]].concat()));
    assert_eq!(found["samples"], alone["samples"]);
    assert_eq!(
        found["files"]["weights"]["files"]["model.safetensors"],
        alone["files"]["weights"]["blake3"]
    );
}

#[test]
fn thresholds_hold_when_tried() {
    let args = [
        "threshold",
        "head.safetensors",
        "-f",
        "features.safetensors",
    ];
    let found = json(&certify(&[&args[..], &["--json"]].concat()));
    let all = &found["shares"][0];
    near(&all["share"], 1.0);
    let bits = all["thresholds"]["bits"].as_u64().expect("bits");
    assert!((2..=16).contains(&bits));
    assert!(certify(&args).stdout.contains("rank"));
}

#[test]
fn an_edit_gives_one_sample_another_class() {
    let dir = TempDir::new().expect("a folder");
    let out = dir.path().join("edited.safetensors");
    let path = out.to_str().expect("a path");
    let args = [
        "edit",
        "head.safetensors",
        "-f",
        "features.safetensors",
        "--sample",
        "0",
        "--to",
        "2",
        "-o",
        path,
    ];
    let found = json(&certify(&[&args[..], &["--json"]].concat()));
    assert_eq!(found["after"], 2);
    let again = certify(&["head", path, "-f", "features.safetensors", "--json"]);
    assert_eq!(json(&again)["samples"][0]["radii"]["prediction"], 2);

    let before = fs::read(&out).expect("the file");
    let refused = run(&examples(), [&["certify"], &args[..]].concat());
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("--overwrite"), "{}", refused.stderr);
    assert_eq!(fs::read(&out).expect("the file"), before);
    certify(&[&args[..], &["--overwrite"]].concat());
    assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 1);
}

#[test]
fn what_does_not_fit_is_refused() {
    for (args, expected) in [
        (
            vec!["head", "head.safetensors", "-f", "inputs.safetensors"],
            "6 numbers each",
        ),
        (
            vec!["head", "mlp.safetensors", "-f", "features.safetensors"],
            "--weight",
        ),
        (
            vec!["head", "missing.safetensors", "-f", "features.safetensors"],
            "missing.safetensors",
        ),
        (
            vec![
                "edit",
                "head.safetensors",
                "-f",
                "features.safetensors",
                "--sample",
                "20",
                "--to",
                "0",
                "-o",
                "x",
            ],
            "no sample 20",
        ),
        (
            vec![
                "edit",
                "head.safetensors",
                "-f",
                "features.safetensors",
                "--sample",
                "0",
                "--to",
                "5",
                "-o",
                "x",
            ],
            "no class 5",
        ),
    ] {
        let done = run(&examples(), [&["certify"], &args[..]].concat());
        assert_eq!(done.code, Some(2), "{args:?}");
        assert!(done.stderr.contains(expected), "{args:?}: {}", done.stderr);
    }
}
