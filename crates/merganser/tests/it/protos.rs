//! `merganser drift protos`: prototypes carried through an update of an encoder, on the golden cases of adversarial drift
//! compensation and on digits, and `merganser stats merge`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use merganser::data::{VectorFile, write_integers, write_vectors};
use merganser_model::mlp::Dense;
use merganser_model::{Mlp, Pointwise};
use merganser_testkit::golden::{Tensor, folder, read_safetensors};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::Value;
use tempfile::TempDir;

use crate::program::{Run, run};

type Tensors = BTreeMap<String, Tensor>;

fn case(name: &str) -> (Tensors, Tensors, Value) {
    let folder = folder().join("continual").join(name);
    let params = fs::read_to_string(folder.join("params.json")).expect("parameters");
    (
        read_safetensors(&folder.join("inputs.safetensors")),
        read_safetensors(&folder.join("expected.safetensors")),
        serde_json::from_str(&params).expect("JSON"),
    )
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

/// What a command with `--json` says.
fn event(dir: &Path, line: &str) -> Value {
    let run = done(dir, &format!("{line} --json"));
    serde_json::from_str(&run.stdout).expect("JSON")
}

/// Tensors of float32 in one file.
fn write(path: &Path, tensors: &[(&str, Vec<usize>, &[f64])]) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(.., values)| {
            values
                .iter()
                .flat_map(|&x| (x as f32).to_le_bytes())
                .collect()
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a view");
        (*name, view)
    });
    serialize_to_file(views, None, path).expect("written");
}

/// Statistics whose means are the rows of a tensor, of one feature each.
fn write_stats(path: &Path, means: &Tensor) {
    let counts = vec![1.0; means.shape[0]];
    write(
        path,
        &[
            ("mean", means.shape.clone(), &means.values),
            ("count", vec![means.shape[0]], &counts),
        ],
    );
}

fn write_rows(path: &Path, tensor: &Tensor) {
    let values: Vec<f32> = tensor.values.iter().map(|&x| x as f32).collect();
    write_vectors(path, false, tensor.shape[1], &values).expect("written");
}

fn vectors(path: &Path, name: &str) -> Vec<f64> {
    let given = format!("{}#{name}", path.to_str().expect("UTF-8"));
    let file = VectorFile::open(&given).expect("vectors");
    file.all().expect("numbers")
}

fn close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= tolerance + 5e-4 * b.abs(),
            "{what}[{i}]: {a} where {b} was expected"
        );
    }
}

/// The encoders, samples and prototypes of a case with networks.
fn write_networks(dir: &Path, inputs: &Tensors) {
    for age in ["old", "new"] {
        let of = |name: &str| {
            let tensor = &inputs[&format!("{age}_{name}")];
            (tensor.shape.clone(), tensor.values.as_slice())
        };
        let names = [
            ("fc1.weight", "W1"),
            ("fc1.bias", "b1"),
            ("fc2.weight", "W2"),
            ("fc2.bias", "b2"),
        ];
        let tensors = names.map(|(name, key)| {
            let (shape, values) = of(key);
            (name, shape, values)
        });
        write(&dir.join(format!("{age}.safetensors")), &tensors);
    }
    write_rows(&dir.join("x.npy"), &inputs["x"]);
    write_stats(&dir.join("stats.safetensors"), &inputs["protos_old"]);
}

const ENCODERS: &str =
    "--encoder-old old.safetensors --encoder-new new.safetensors --samples x.npy --activation tanh";

#[test]
fn perceptrons_are_attacked_as_in_the_paper() {
    for name in ["mlp_k3_basic", "mlp_k2_more_steps", "clamp_active"] {
        let (inputs, expected, params) = case(&format!("adc/{name}"));
        let folder = TempDir::new().expect("a folder");
        let dir = folder.path();
        write_networks(dir, &inputs);
        let setting = |key: &str| params["params"][key].to_string();
        let found = event(
            dir,
            &format!(
                "drift protos stats.safetensors --method adc {ENCODERS} --alpha {} --steps {} --probes {} --no-cap -o \
                 moved.safetensors",
                setting("paper_alpha"),
                setting("epochs"),
                setting("sample_limit")
            ),
        );
        let classes = found["carried"]["classes"].as_array().expect("classes");
        let successes: Vec<f64> = classes
            .iter()
            .map(|class| class["successes"].as_f64().expect("a number"))
            .collect();
        assert_eq!(successes, expected["paper_n_success"].values, "{name}");
        close(
            name,
            &vectors(&dir.join("moved.safetensors"), "mean"),
            &expected["paper_protos_new"].values,
            5e-5,
        );
        // The samples' own features, as a user with another network would bring them.
        for key in ["feats_old", "feats_new"] {
            write_rows(&dir.join(format!("{key}.npy")), &expected[key]);
        }
        let features = "--old feats_old.npy --new feats_new.npy";
        for (given, out) in [(features, "a.safetensors"), (ENCODERS, "b.safetensors")] {
            done(
                dir,
                &format!("drift protos stats.safetensors --method sdc {given} --no-cap -o {out}"),
            );
            let moved = vectors(&dir.join(out), "mean");
            let before = &inputs["protos_old"].values;
            let shift: Vec<f64> = moved.iter().zip(before).map(|(a, b)| a - b).collect();
            close(name, &shift, &expected["sdc_displacement"].values, 5e-5);
        }
    }
}

#[test]
fn probes_of_another_framework_are_taken() {
    let (inputs, expected, _) = case("adc/drift_from_features");
    let folder = TempDir::new().expect("a folder");
    let dir = folder.path();
    for key in ["adv_feats_old", "adv_feats_new"] {
        write_rows(&dir.join(format!("{key}.npy")), &inputs[key]);
    }
    write_integers(&dir.join("targets.npy"), false, "targets", &[1; 25]).expect("written");
    write_stats(&dir.join("stats.safetensors"), &inputs["protos_old"]);
    let probes =
        "--probes-old adv_feats_old.npy --probes-new adv_feats_new.npy --targets targets.npy";
    let line = format!(
        "drift protos stats.safetensors --method adc {probes} --min-successes 1 --no-cap -o moved.safetensors"
    );
    // The other three classes have no probe, and there is nothing else to move them by.
    let lacking = refused(dir, &line);
    assert!(lacking.contains("classes 0, 2 and 3"), "{lacking}");
    assert!(!dir.join("moved.safetensors").exists());
    let with = format!("{line} --old adv_feats_old.npy --new adv_feats_new.npy");
    let run = done(dir, &with);
    assert!(
        run.stderr
            .contains("moved by semantic drift compensation instead"),
        "{}",
        run.stderr
    );
    let kept = expected["success"].values.iter().sum::<f64>();
    assert!(
        run.stdout.contains(&format!("{kept} of 25")),
        "{}",
        run.stdout
    );
    let moved = vectors(&dir.join("moved.safetensors"), "mean");
    close(
        "prototype",
        &moved[8..16],
        &expected["proto_new"].values,
        1e-5,
    );

    let there = refused(dir, &with);
    assert!(there.contains("--overwrite"), "{there}");
    let none = refused(
        dir,
        "drift protos stats.safetensors --method sdc -o x.safetensors",
    );
    assert!(none.contains("--old and --new"), "{none}");
    let other = refused(
        dir,
        &format!("drift protos stats.safetensors --method sdc {probes} -o x.safetensors"),
    );
    assert!(other.contains("probes are for --method adc"), "{other}");
    let lone = refused(
        dir,
        "drift protos stats.safetensors --method adc --old adv_feats_old.npy --new adv_feats_new.npy -o x.safetensors",
    );
    assert!(lone.contains("the method adc needs probes"), "{lone}");
    write_integers(&dir.join("nine.npy"), false, "targets", &[9; 25]).expect("written");
    let nine = refused(
        dir,
        "drift protos stats.safetensors --method adc --probes-old adv_feats_old.npy --probes-new adv_feats_new.npy --targets \
         nine.npy -o x.safetensors",
    );
    assert!(nine.contains("probe 0 has the target 9"), "{nine}");
    for bad in ["--sigma 0", "--sigma wide", "--sigma nan"] {
        let line = format!("drift protos stats.safetensors --method sdc {bad} -o x.safetensors");
        assert!(refused(dir, &line).contains("auto"), "{bad}");
    }
    assert!(!dir.join("x.safetensors").exists());
}

/// The two hidden layers of a network of the digits' case.
fn digits_encoder(inputs: &Tensors, model: &str) -> Mlp {
    let layers = ["fc1", "fc2"].map(|name| {
        let weight = &inputs[&format!("{model}/{name}.weight")];
        Dense {
            name: name.to_owned(),
            inputs: weight.shape[1],
            outputs: weight.shape[0],
            weight: weight.values.clone(),
            bias: Some(inputs[&format!("{model}/{name}.bias")].values.clone()),
        }
    });
    Mlp::new(layers.to_vec(), vec![Pointwise::Relu; 2]).expect("a network")
}

#[test]
#[ignore = "exploration"]
fn explore_digits() {
    let (inputs, ..) = case("backdoor_vectors/end_to_end_digits");
    let x = &inputs["eval_x"].values;
    let y: Vec<usize> = inputs["eval_y"]
        .values
        .iter()
        .map(|&y| y as usize)
        .collect();
    let feats = |model: &str| {
        digits_encoder(&inputs, model)
            .forward(x)
            .unwrap()
            .activations
            .pop()
            .unwrap()
    };
    for base in ["pre", "clean1", "clean2"] {
        for model in ["clean1", "clean2", "clean3", "backdoored1", "inj_clean"] {
            let (old, new) = (feats(base), feats(model));
            let n = y.len();
            let row = |f: &Vec<f64>, i: usize| f[48 * i..48 * (i + 1)].to_vec();
            // prototypes of all classes from first half by old
            let proto = |f: &Vec<f64>| -> Vec<Vec<f64>> {
                (0..10)
                    .map(|c| {
                        let idx: Vec<usize> = (0..n / 2).filter(|&i| y[i] == c).collect();
                        let mut m = vec![0.0; 48];
                        for &i in &idx {
                            for (m, x) in m.iter_mut().zip(row(f, i)) {
                                *m += x / idx.len() as f64;
                            }
                        }
                        m
                    })
                    .collect()
            };
            let acc = |p: &[Vec<f64>], f: &Vec<f64>, classes: std::ops::Range<usize>| {
                let (mut hit, mut all) = (0, 0);
                for i in n / 2..n {
                    if !classes.contains(&y[i]) {
                        continue;
                    }
                    let x = row(f, i);
                    let s = |p: &Vec<f64>| {
                        let d: f64 = p.iter().zip(&x).map(|(a, b)| a * b).sum();
                        d / p.iter().map(|a| a * a).sum::<f64>().sqrt()
                    };
                    let best = (0..10)
                        .max_by(|&a, &b| s(&p[a]).total_cmp(&s(&p[b])))
                        .unwrap();
                    hit += usize::from(best == y[i]);
                    all += 1;
                }
                (hit, all)
            };
            let (po, pn) = (proto(&old), proto(&new));
            let mut mixed = po.clone();
            for c in 5..10 {
                mixed[c] = pn[c].clone();
            }
            let dist: f64 = (0..5)
                .map(|c| {
                    po[c]
                        .iter()
                        .zip(&pn[c])
                        .map(|(a, b)| (a - b).powi(2))
                        .sum::<f64>()
                })
                .sum::<f64>()
                .sqrt();
            let spread: f64 = (0..5)
                .map(|c| po[c].iter().map(|a| a.powi(2)).sum::<f64>())
                .sum::<f64>()
                .sqrt();
            println!(
                "{base}->{model}: old protos old feats {:?}, stale {:?}, mixed {:?} / {:?}, true {:?} / {:?} drift {dist:.2} of {spread:.2}",
                acc(&po, &old, 0..5),
                acc(&po, &new, 0..5),
                acc(&mixed, &new, 0..5),
                acc(&mixed, &new, 0..10),
                acc(&pn, &new, 0..5),
                acc(&pn, &new, 0..10)
            );
        }
    }
}
