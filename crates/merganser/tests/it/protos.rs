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

use crate::program::{done, refused};

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
        // The α that is found does not depend on the number of threads.
        let automatic = |options: &str| {
            let line = format!(
                "drift protos stats.safetensors --method adc {ENCODERS} -o auto.safetensors --overwrite"
            );
            let found = event(dir, &format!("{line} {options}"));
            let bytes = fs::read(dir.join("auto.safetensors")).expect("a file");
            (found["alpha"].clone(), bytes)
        };
        assert_eq!(automatic("-j 1"), automatic("-j 4"), "{name}");
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
                &format!(
                    "drift protos stats.safetensors --method sdc {given} --sigma 0.3 --no-cap -o {out}"
                ),
            );
            let moved = vectors(&dir.join(out), "mean");
            done(
                dir,
                &format!(
                    "drift protos stats.safetensors --method sdc {given} --sigma 0.3 --no-cap -o one.safetensors --overwrite -j 1"
                ),
            );
            let bytes = |name: &str| fs::read(dir.join(name)).expect("a file");
            assert_eq!(bytes(out), bytes("one.safetensors"), "threads");
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

/// The digits, an update of their encoder, and half of the classes of which no data are left after it.
struct Digits {
    y: Vec<usize>,
    old: Vec<f64>,
    new: Vec<f64>,
    gone: std::ops::Range<usize>,
}

const WIDTH: usize = 48;
/// Images before this one are for training, the others for the test.
const TRAIN: usize = 150;

impl Digits {
    fn new(inputs: &Tensors, update: &str, gone: std::ops::Range<usize>) -> Self {
        let x = &inputs["eval_x"].values;
        let features = |model: &str| {
            let mut trace = digits_encoder(inputs, model).forward(x).expect("features");
            trace.activations.pop().expect("the last layer")
        };
        Self {
            y: inputs["eval_y"]
                .values
                .iter()
                .map(|&y| y as usize)
                .collect(),
            old: features("pre"),
            new: features(update),
            gone,
        }
    }

    /// The mean of a class in the new space, from images for training.
    fn mean(&self, class: usize) -> Vec<f64> {
        let members: Vec<usize> = (0..TRAIN).filter(|&i| self.y[i] == class).collect();
        let mut mean = vec![0.0; WIDTH];
        for &i in &members {
            for (mean, x) in mean.iter_mut().zip(&self.new[WIDTH * i..]) {
                *mean += x / members.len() as f64;
            }
        }
        mean
    }

    /// Images for the test that are nearest by cosine to the mean of their class: of the gone classes, and of all. The
    /// classes with data have the mean of their data in the new space, the others rows of `carried`.
    fn right(&self, carried: &[f64]) -> (usize, usize) {
        let means: Vec<Vec<f64>> = (0..10)
            .map(|class| {
                if self.gone.contains(&class) {
                    let at = class - self.gone.start;
                    carried[WIDTH * at..WIDTH * (at + 1)].to_vec()
                } else {
                    self.mean(class)
                }
            })
            .collect();
        let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        let (mut of_gone, mut of_all) = (0, 0);
        for i in TRAIN..self.y.len() {
            let x = &self.new[WIDTH * i..WIDTH * (i + 1)];
            let score =
                |class: &usize| dot(&means[*class], x) / dot(&means[*class], &means[*class]).sqrt();
            let best = (0..10).max_by(|a, b| score(a).total_cmp(&score(b)));
            if best == Some(self.y[i]) {
                of_all += 1;
                of_gone += usize::from(self.gone.contains(&self.y[i]));
            }
        }
        (of_gone, of_all)
    }
}

/// Everything a user has after the update: both encoders, the statistics of the gone classes by the old one, and the other
/// classes' images.
fn write_digits(dir: &Path, inputs: &Tensors, update: &str, digits: &Digits) {
    for (file, model) in [("old", "pre"), ("new", update)] {
        let names = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"];
        let tensors = names.map(|name| {
            let tensor = &inputs[&format!("{model}/{name}")];
            (name, tensor.shape.clone(), tensor.values.as_slice())
        });
        write(&dir.join(format!("{file}.safetensors")), &tensors);
    }
    let (lost, here): (Vec<usize>, Vec<usize>) =
        (0..TRAIN).partition(|&i| digits.gone.contains(&digits.y[i]));
    let rows = |name: &str, all: &[f64], which: &[usize], width: usize| {
        let values: Vec<f32> = which
            .iter()
            .flat_map(|&i| &all[width * i..width * (i + 1)])
            .map(|&x| x as f32)
            .collect();
        write_vectors(&dir.join(name), false, width, &values).expect("written");
    };
    rows("features.npy", &digits.old, &lost, WIDTH);
    rows("x.npy", &inputs["eval_x"].values, &here, 64);
    let labels: Vec<i64> = lost.iter().map(|&i| digits.y[i] as i64).collect();
    write_integers(&dir.join("labels.npy"), false, "labels", &labels).expect("written");
    done(
        dir,
        "stats build features.npy --labels labels.npy -o stats.safetensors --cov",
    );
}

/// Half of the digits' classes have no data any more when the encoder changes; the numbers are those of docs/drift.md.
#[test]
fn digits_without_data_are_read_after_the_encoder_changed() {
    let (inputs, ..) = case("backdoor_vectors/end_to_end_digits");
    for (update, gone, least) in [
        ("clean3", 0..5, [62, 65, 66, 66, 65]),
        ("backdoored1", 0..5, [16, 44, 57, 59, 59]),
        ("backdoored1", 5..10, [23, 59, 68, 61, 73]),
    ] {
        let digits = Digits::new(&inputs, update, gone);
        let folder = TempDir::new().expect("a folder");
        let dir = folder.path();
        write_digits(dir, &inputs, update, &digits);
        let carried = |options: &str| {
            let found = event(
                dir,
                &format!(
                    "drift protos stats.safetensors --encoder-old old.safetensors --encoder-new new.safetensors --samples x.npy \
                     --activation relu --last relu -o moved.safetensors --overwrite --method {options}"
                ),
            );
            let means = vectors(&dir.join("moved.safetensors"), "mean");
            (digits.right(&means).0, found)
        };
        let stale = digits
            .right(&vectors(&dir.join("stats.safetensors"), "mean"))
            .0;
        let of = ["mean", "sdc", "adc", "affine"].map(|method| carried(method).0);
        let found = [stale, of[0], of[1], of[2], of[3]];
        // One image of room for other processors; without compensation it is no better than it was measured.
        assert!(found[0] <= least[0] + 1, "{update}: {found:?}");
        for (found, least) in found.iter().zip(least).skip(1) {
            assert!(
                found + 1 >= least,
                "{update}: {found} where {least} was measured"
            );
        }
        // The steps of the paper are for images of another scale.
        let (far, event) = carried("adc --alpha 25");
        assert!(
            far < of[2] || update == "clean3",
            "{far} with far too long steps"
        );
        let notes = event["carried"]["notes"].to_string();
        assert!(notes.contains("look like class"), "{notes}");
        let (narrow, event) = carried("sdc --sigma 0.3");
        assert_eq!(
            narrow, of[0],
            "a kernel that reaches nothing is the mean of all"
        );
        let notes = event["carried"]["notes"].to_string();
        assert!(notes.contains("sigma is too small for classes"), "{notes}");
        done(dir, "head ncm moved.safetensors -o head.safetensors");
        // Covariances stay as they are.
        let covs = |name: &str| {
            let all = read_safetensors(&dir.join(name));
            all["cov"].values.clone()
        };
        assert_eq!(covs("moved.safetensors"), covs("stats.safetensors"));
    }
}

#[test]
fn statistics_of_several_rounds_are_put_together() {
    let folder = TempDir::new().expect("a folder");
    let dir = folder.path();
    for (round, options) in [(1, "--gram"), (2, "--gram"), (3, "")] {
        let values: Vec<f32> = (0..120)
            .map(|i| ((i * round) as f32 * 0.7).sin() + (i / 40) as f32)
            .collect();
        write_vectors(&dir.join("f.npy"), true, 4, &values).expect("written");
        let labels: Vec<i64> = (0..30).map(|i| i / 10).collect();
        write_integers(&dir.join("l.npy"), true, "labels", &labels).expect("written");
        done(
            dir,
            &format!("stats build f.npy --labels l.npy -o {round}.safetensors {options}"),
        );
    }
    let found = event(
        dir,
        "stats merge 2.safetensors 1.safetensors -o both.safetensors",
    );
    assert_eq!(
        (&found["means"], &found["features"], &found["gram"]),
        (&6.into(), &60.into(), &true.into())
    );
    done(
        dir,
        "stats merge 1.safetensors 2.safetensors -o again.safetensors",
    );
    let bytes = |name: &str| fs::read(dir.join(name)).expect("a file");
    assert_eq!(bytes("both.safetensors"), bytes("again.safetensors"));
    // A head of the one file is that of the two.
    done(dir, "head fedcof both.safetensors -o one.safetensors");
    done(
        dir,
        "head fedcof 1.safetensors 2.safetensors -o two.safetensors",
    );
    assert_eq!(bytes("one.safetensors"), bytes("two.safetensors"));
    // What not all have is left out, and copies are noted.
    let run = done(
        dir,
        "stats merge both.safetensors 3.safetensors 3.safetensors -o all.safetensors",
    );
    assert!(
        run.stderr.contains("1 of 3 files have the Gram matrix"),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr.contains("3 of 12 rows hold the same"),
        "{}",
        run.stderr
    );
    assert!(!read_safetensors(&dir.join("all.safetensors")).contains_key("gram"));
    let there = refused(dir, "stats merge 1.safetensors -o all.safetensors");
    assert!(there.contains("--overwrite"), "{there}");
    write_vectors(&dir.join("f.npy"), true, 3, &[0.0, 1.0, 2.0]).expect("written");
    write_integers(&dir.join("l.npy"), true, "labels", &[0]).expect("written");
    done(dir, "stats build f.npy --labels l.npy -o wide.safetensors");
    let wide = refused(
        dir,
        "stats merge 1.safetensors wide.safetensors -o x.safetensors",
    );
    assert!(wide.contains("found 3, expected 4"), "{wide}");
}
