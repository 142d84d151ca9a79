//! `merganser drift` on the golden cases of query drift compensation, through files of every format.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use merganser::data::{VectorFile, write_integers, write_vectors};
use merganser_testkit::golden::{Tensor, folder, read_safetensors};
use serde_json::Value;
use tempfile::TempDir;

use crate::program::{Run, run};

type Tensors = BTreeMap<String, Tensor>;

fn case(name: &str) -> (Tensors, Tensors) {
    let folder = folder().join("continual/qdc").join(name);
    (
        read_safetensors(&folder.join("inputs.safetensors")),
        read_safetensors(&folder.join("expected.safetensors")),
    )
}

/// Runs `merganser drift` with words parted by spaces.
fn drift(dir: &Path, line: &str) -> Run {
    let words: Vec<&str> = ["drift"]
        .into_iter()
        .chain(line.split_whitespace())
        .collect();
    run(dir, words)
}

fn done(dir: &Path, line: &str) -> Run {
    let run = drift(dir, line);
    assert_eq!(run.code, Some(0), "{line}: {}{}", run.stdout, run.stderr);
    run
}

fn refused(dir: &Path, line: &str) -> String {
    let run = drift(dir, line);
    assert_eq!(run.code, Some(2), "{line}: {}{}", run.stdout, run.stderr);
    run.stderr
}

/// Every tensor of a case as a `.npy` file.
fn write(dir: &Path, tensors: &Tensors) {
    for (name, tensor) in tensors {
        let path = dir.join(format!("{name}.npy"));
        if let [_, dim] = tensor.shape[..] {
            let values: Vec<f32> = tensor.values.iter().map(|&x| x as f32).collect();
            write_vectors(&path, false, dim, &values).expect("written");
        } else {
            let values: Vec<i64> = tensor.values.iter().map(|&x| x as i64).collect();
            write_integers(&path, false, name, &values).expect("written");
        }
    }
}

fn vectors(path: &Path) -> Vec<f64> {
    let file = VectorFile::open(path.to_str().expect("UTF-8")).expect("vectors");
    file.all().expect("numbers")
}

fn close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= tolerance,
            "[{i}]: {a} where {b} was expected"
        );
    }
}

#[test]
fn queries_go_to_the_old_space_and_documents_to_the_new() {
    let (inputs, expected) = case("drift_basic_n200_d16");
    let dir = TempDir::new().expect("a folder");
    let dir = dir.path();
    write(dir, &inputs);
    let fitted = done(
        dir,
        "fit q_old.npy q_new.npy -o d.safetensors --from v1 --to v2 --kind shift --json",
    );
    let event: Value = serde_json::from_str(&fitted.stdout).expect("JSON");
    close(
        &[event["diagnostics"]["cosine_before"]
            .as_f64()
            .expect("a number")],
        &expected["mean_cos_before"].values,
        1e-5,
    );
    done(
        dir,
        "apply d.safetensors q_new.npy -o moved.npy --to v1 --unit false",
    );
    close(
        &vectors(&dir.join("moved.npy")),
        &expected["q_compensated"].values,
        2e-6,
    );
    done(dir, "apply d.safetensors q_new.npy -o unit.npy --to old");
    close(
        &vectors(&dir.join("unit.npy")),
        &expected["q_compensated_normalized"].values,
        2e-6,
    );
    // There and back again.
    done(
        dir,
        "apply d.safetensors q_old.npy -o there.npy --to new --unit false",
    );
    let there: Vec<f64> = vectors(&dir.join("there.npy"));
    let shift = &expected["drift"].values;
    for (i, x) in there.iter().enumerate() {
        let old = inputs["q_old"].values[i] + shift[i % 16];
        assert!((x - old).abs() < 2e-6, "element {i}");
    }
}

#[test]
fn an_index_of_several_versions_is_searched_by_the_query_of_each() {
    for name in ["chain3_old_index", "chain3_mixed_index"] {
        let (inputs, expected) = case(name);
        let folder = TempDir::new().expect("a folder");
        let dir = folder.path();
        write(dir, &inputs);
        for (step, from, to) in [(1, "v0", "v1"), (2, "v1", "v2")] {
            done(
                dir,
                &format!(
                    "fit calib_{step}_old.npy calib_{step}_new.npy -o {step}.safetensors --from {from} --to {to} --kind shift \
                     --unit false"
                ),
            );
        }
        let report = |dot: &str| -> Value {
            let found = done(
                dir,
                &format!(
                    "report 1.safetensors 2.safetensors --queries q_new.npy --query-labels qrels_topic_query.npy --documents \
                     doc_embeddings.npy --document-labels qrels_topic_doc.npy --versions doc_version.npy --json {dot}"
                ),
            );
            let event: Value = serde_json::from_str(&found.stdout).expect("JSON");
            event["search"].clone()
        };
        let ndcg = |found: &Value| found["ndcg"].as_f64().expect("a number");
        let cosine = report("");
        let of = |key: &str| expected[key].values[0];
        close(&[ndcg(&cosine["as_is"])], &[of("metrics_plain")], 1e-6);
        close(&[ndcg(&cosine["compensated"])], &[of("metrics_cos")], 1e-6);
        let dot = report("--dot");
        close(&[ndcg(&dot["compensated"])], &[of("metrics_dot")], 1e-6);
        assert!(ndcg(&cosine["compensated"]) > ndcg(&cosine["as_is"]));

        // The whole chain in one file, and as a number a document for those of the oldest version.
        done(
            dir,
            "chain 1.safetensors 2.safetensors -o chain.safetensors",
        );
        done(dir, "bias chain.safetensors doc_embeddings.npy -o bias.npy");
        let bias = merganser::data::Arrays::open(&dir.join("bias.npy")).expect("an array");
        let name = bias.names().next().expect("a name").to_owned();
        let bias = bias.numbers(&name).expect("numbers");
        for (i, version) in inputs["doc_version"].values.iter().enumerate() {
            if *version == 0.0 {
                close(&[bias[i]], &[expected["doc_bias_dot"].values[i]], 1e-5);
            }
        }
        let report = done(dir, "report chain.safetensors").stdout;
        assert!(report.contains("v0 → v2  shift"), "{report}");
    }
}

#[test]
fn advice_follows_what_the_anchors_show() {
    let folder = TempDir::new().expect("a folder");
    let dir = folder.path();
    // A rotation in the first two of four dimensions, and a shift.
    let old: Vec<f32> = (0..400)
        .map(|i| ((i * i) as f32 * 0.37 + i as f32).sin())
        .collect();
    let new: Vec<f32> = old
        .chunks(4)
        .flat_map(|x| [-x[1] + 0.5, x[0], x[2], x[3]])
        .collect();
    write_vectors(&dir.join("old.npy"), false, 4, &old).expect("written");
    write_vectors(&dir.join("new.npy"), false, 4, &new).expect("written");
    let text = done(dir, "fit old.npy new.npy -o d.safetensors").stdout;
    assert!(text.contains("orthogonal"), "{text}");
    assert!(
        text.contains("compensate queries; the index can stay"),
        "{text}"
    );
    let same = done(dir, "fit old.npy old.npy -o same.safetensors").stdout;
    assert!(same.contains("nothing has to be done"), "{same}");
    done(dir, "apply d.safetensors new.npy -o back.npy --to old");
    let back = vectors(&dir.join("back.npy"));
    let expected: Vec<f64> = old.iter().map(|&x| x.into()).collect();
    close(&back, &expected, 1e-5);
}

#[test]
fn refusals_say_what_to_do() {
    let folder = TempDir::new().expect("a folder");
    let dir = folder.path();
    write_vectors(&dir.join("a.npy"), false, 2, &[1.0, 0.0, 0.0, 1.0]).expect("written");
    write_vectors(&dir.join("b.npy"), false, 2, &[0.0, 1.0]).expect("written");
    write_vectors(&dir.join("c.npy"), false, 3, &[0.0, 1.0, 2.0]).expect("written");
    write_vectors(&dir.join("nan.npy"), false, 2, &[0.0, f32::NAN]).expect("written");
    fs::write(dir.join("text.npy"), "no array").expect("written");
    let unequal = refused(dir, "fit a.npy b.npy -o d.safetensors");
    assert!(unequal.contains("found 1, expected 2"), "{unequal}");
    let nan = refused(dir, "fit b.npy nan.npy -o d.safetensors");
    assert!(nan.contains("vector 0 holds NaN"), "{nan}");
    let names = refused(dir, "fit a.npy a.npy -o d.safetensors --from new");
    assert!(names.contains("--from and --to"), "{names}");
    refused(dir, "fit text.npy a.npy -o d.safetensors");
    refused(dir, "fit none.npy a.npy -o d.safetensors");
    assert!(!dir.join("d.safetensors").exists());
    done(dir, "fit a.npy a.npy -o d.safetensors --kind shift");
    let there = refused(dir, "fit a.npy a.npy -o d.safetensors");
    assert!(there.contains("--overwrite"), "{there}");
    let version = refused(dir, "apply d.safetensors a.npy -o x.npy --to v7");
    assert!(version.contains("from `old` to `new`"), "{version}");
    let length = refused(dir, "apply d.safetensors c.npy -o x.npy --to old");
    assert!(length.contains("3 elements"), "{length}");
    let order = refused(dir, "chain d.safetensors d.safetensors -o x.safetensors");
    assert!(order.contains("oldest version to the newest"), "{order}");
    let none = refused(dir, "apply a.npy a.npy -o x.npy --to old");
    assert!(none.contains("merganser drift fit"), "{none}");
    done(
        dir,
        "fit a.npy a.npy -o turned.safetensors --kind orthogonal",
    );
    let bias = refused(dir, "bias turned.safetensors a.npy -o x.npy");
    assert!(bias.contains("--kind shift"), "{bias}");
    assert!(!dir.join("x.npy").exists());
}
