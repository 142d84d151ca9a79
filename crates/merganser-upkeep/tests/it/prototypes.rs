//! Prototypes carried through an update, against the golden cases of adversarial drift compensation.

use std::collections::BTreeMap;
use std::fs;

use merganser_model::mlp::Dense;
use merganser_model::{Mlp, Pointwise};
use merganser_testkit::golden::{Tensor, folder, read_safetensors};
use merganser_upkeep::Matrix;
use merganser_upkeep::drift::{
    Anchors, Attack, Bandwidth, CarryOptions, Evidence, Method, Probes, StepNorm, carry,
    displacements, features, kept_drift,
};
use merganser_upkeep::heads::{Kind, Pool};
use merganser_upkeep::stats::Stats;
use serde_json::Value;

type Tensors = BTreeMap<String, Tensor>;

/// Inputs, expectations, parameters and tolerance of a case.
struct Case {
    inputs: Tensors,
    expected: Tensors,
    params: Value,
    tolerance: (f64, f64),
}

impl Case {
    fn read(name: &str) -> Self {
        let folder = folder().join("continual/adc").join(name);
        let text = fs::read_to_string(folder.join("params.json")).unwrap();
        let all: Value = serde_json::from_str(&text).unwrap();
        let tolerance = |key: &str| all["tolerance"][key].as_f64().unwrap();
        Self {
            inputs: read_safetensors(&folder.join("inputs.safetensors")),
            expected: read_safetensors(&folder.join("expected.safetensors")),
            tolerance: (tolerance("rtol"), tolerance("atol")),
            params: all["params"].clone(),
        }
    }

    fn number(&self, key: &str) -> f64 {
        self.params[key].as_f64().unwrap()
    }

    fn expect(&self, key: &str, found: &[f64]) {
        let (relative, absolute) = self.tolerance;
        let expected = &self.expected[key].values;
        assert_eq!(found.len(), expected.len(), "{key}");
        for (i, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!(
                (a - b).abs() <= absolute + relative * b.abs(),
                "{key}[{i}]: {a} where {b} was expected"
            );
        }
    }

    /// W2 tanh(W1 x + b1) + b2.
    fn encoder(&self, age: &str) -> Mlp {
        let layer = |k: usize| {
            let weight = &self.inputs[&format!("{age}_W{k}")];
            Dense {
                name: format!("fc{k}"),
                inputs: weight.shape[1],
                outputs: weight.shape[0],
                weight: weight.values.clone(),
                bias: Some(self.inputs[&format!("{age}_b{k}")].values.clone()),
            }
        };
        let activations = vec![Pointwise::Tanh, Pointwise::Identity];
        Mlp::new(vec![layer(1), layer(2)], activations).unwrap()
    }

    fn attack(&self, alpha: &str, norm: StepNorm) -> Attack {
        Attack {
            samples: self.number("sample_limit") as usize,
            steps: self.number("epochs") as usize,
            alpha: self.number(alpha),
            norm,
        }
    }
}

fn matrix(tensor: &Tensor) -> Matrix {
    Matrix::new(tensor.shape[0], tensor.shape[1], tensor.values.clone()).unwrap()
}

/// Statistics whose means are the rows, of one feature each.
fn stats(means: &Matrix) -> Stats {
    Stats {
        classes: (0..means.rows()).collect(),
        counts: vec![1; means.rows()],
        means: means.clone(),
        covs: None,
        gram: None,
    }
}

const NETWORKS: [&str; 3] = ["mlp_k3_basic", "mlp_k2_more_steps", "clamp_active"];

#[test]
fn semantic_drift_is_that_of_the_authors_code() {
    let case = Case::read("sdc_sigma03");
    let (old, new) = (&case.inputs["feats_old"], &case.inputs["feats_new"]);
    let anchors = Anchors::new(matrix(old), matrix(new), Some(false)).unwrap();
    let sigma = Bandwidth::Fixed(case.number("sigma"));
    let found = displacements(&anchors, &matrix(&case.inputs["protos"]), sigma).unwrap();
    let shifts: Vec<f64> = found.into_iter().flat_map(|local| local.shift).collect();
    case.expect("displacement", &shifts);
}

#[test]
fn probes_that_look_like_the_target_are_kept() {
    let case = Case::read("drift_from_features");
    let target = case.number("target") as usize;
    let prototypes = matrix(&case.inputs["protos_old"]);
    let (old, new) = (
        matrix(&case.inputs["adv_feats_old"]),
        matrix(&case.inputs["adv_feats_new"]),
    );
    let (kept, shift) = kept_drift(&old, &new, &prototypes, target).unwrap();
    let kept: Vec<f64> = kept
        .into_iter()
        .map(|kept| f64::from(u8::from(kept)))
        .collect();
    case.expect("success", &kept);
    case.expect("drift", &shift.unwrap());

    // The same through the statistics; the other classes have no probe, and no sample to fall back to.
    let evidence = Evidence {
        anchors: None,
        probes: Some(Probes {
            targets: vec![target; old.rows()],
            old,
            new,
            before: None,
        }),
    };
    let mut options = CarryOptions::new(Method::Adversarial);
    options.least = 1;
    let only = Stats {
        classes: vec![target],
        counts: vec![1],
        means: Matrix::new(1, 8, prototypes.row(target).to_vec()).unwrap(),
        covs: None,
        gram: None,
    };
    assert!(carry(&only, &evidence, &options).is_ok());
    let error = carry(&stats(&prototypes), &evidence, &options).unwrap_err();
    assert!(error.to_string().contains("classes 0, 2 and 3"), "{error}");
}

#[test]
fn networks_are_attacked_as_in_the_paper() {
    for name in NETWORKS {
        let case = Case::read(name);
        let (old, new) = (case.encoder("old"), case.encoder("new"));
        let samples = matrix(&case.inputs["x"]);
        let prototypes = matrix(&case.inputs["protos_old"]);
        let (before, after) = (
            features(&old, &samples).unwrap(),
            features(&new, &samples).unwrap(),
        );
        case.expect("feats_old", before.as_slice());
        case.expect("feats_new", after.as_slice());
        let attack = case.attack("paper_alpha", StepNorm::Sample);
        let probes = attack
            .probes((&old, &new), &samples, &before, &prototypes)
            .unwrap();
        let mut options = CarryOptions::new(Method::Adversarial);
        options.cap = None;
        let evidence = Evidence {
            anchors: None,
            probes: Some(probes),
        };
        let (moved, report) = carry(&stats(&prototypes), &evidence, &options).unwrap();
        let successes: Vec<f64> = report
            .classes
            .iter()
            .map(|class| class.successes.unwrap() as f64)
            .collect();
        case.expect("paper_n_success", &successes);
        case.expect("paper_protos_new", moved.means.as_slice());
        let mut drift = moved.means.clone();
        drift.add_scaled(-1.0, &prototypes);
        case.expect("paper_drift", drift.as_slice());
        for class in &report.classes {
            assert!(class.closer.is_some(), "{name}: {class:?}");
        }
        // Semantic drift compensation on the same samples.
        let anchors = Anchors::new(before, after, Some(false)).unwrap();
        let sigma = Bandwidth::Fixed(case.number("sdc_sigma"));
        let found = displacements(&anchors, &prototypes, sigma).unwrap();
        let shifts: Vec<f64> = found.into_iter().flat_map(|local| local.shift).collect();
        case.expect("sdc_displacement", &shifts);
    }
}

/// The authors' code divides by the length of the whole batch's gradient, and compares probes with prototypes of which those
/// of earlier classes have already moved.
#[test]
fn the_authors_code_can_be_followed() {
    for name in NETWORKS {
        let case = Case::read(name);
        let (old, new) = (case.encoder("old"), case.encoder("new"));
        let samples = matrix(&case.inputs["x"]);
        let before = features(&old, &samples).unwrap();
        let mut prototypes = matrix(&case.inputs["protos_old"]);
        let attack = case.attack("alpha", StepNorm::Batch);
        let mut drifts = Vec::new();
        for k in 0..prototypes.rows() {
            let probes = attack
                .perturb(&old, &samples, &before, prototypes.row(k))
                .unwrap();
            let (seen_old, seen_new) = (
                features(&old, &probes).unwrap(),
                features(&new, &probes).unwrap(),
            );
            let (kept, shift) = kept_drift(&seen_old, &seen_new, &prototypes, k).unwrap();
            let rows: Vec<usize> = (0..kept.len()).filter(|&i| kept[i]).collect();
            assert_eq!(rows.len() as f64, case.expected["n_success"].values[k]);
            case.expect(&format!("x_adv_{k}"), probes.gather_rows(&rows).as_slice());
            case.expect(
                &format!("adv_feats_new_{k}"),
                seen_new.gather_rows(&rows).as_slice(),
            );
            let shift = shift.unwrap();
            for (x, by) in prototypes.row_mut(k).iter_mut().zip(&shift) {
                *x += by;
            }
            drifts.extend(shift);
        }
        case.expect("drift", &drifts);
        case.expect("protos_new", prototypes.as_slice());
    }
}

#[test]
fn the_nearest_mean_is_the_head_ncm() {
    let case = Case::read("ncm_eval");
    let pool = Pool::new(vec![stats(&matrix(&case.inputs["protos"]))], None).unwrap();
    let (head, _) = pool.head(Kind::Ncm).unwrap();
    let logits = head.logits(&matrix(&case.inputs["features"]));
    let found: Vec<f64> = (0..logits.rows())
        .map(|i| {
            let row = logits.row(i);
            let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a)));
            best.unwrap() as f64
        })
        .collect();
    case.expect("pred", &found);
}

/// On the toys the true prototypes of the new space are known: the root of the mean square distance from them.
#[test]
fn carried_prototypes_are_nearer_to_the_true_ones() {
    for name in NETWORKS {
        let case = Case::read(name);
        let (old, new) = (case.encoder("old"), case.encoder("new"));
        let samples = matrix(&case.inputs["x"]);
        let prototypes = matrix(&case.inputs["protos_old"]);
        let truth = matrix(&case.expected["true_protos_new"]);
        let (before, after) = (
            features(&old, &samples).unwrap(),
            features(&new, &samples).unwrap(),
        );
        let error = |means: &Matrix| {
            let mut difference = means.clone();
            difference.add_scaled(-1.0, &truth);
            difference.norm() / (means.rows() as f64).sqrt()
        };
        let anchors = Anchors::new(before.clone(), after, Some(false)).unwrap();
        let run = |method, bandwidth, alpha: f64| {
            let attack = Attack {
                alpha,
                ..case.attack("paper_alpha", StepNorm::Sample)
            };
            let probes = attack
                .probes((&old, &new), &samples, &before, &prototypes)
                .unwrap();
            let evidence = Evidence {
                anchors: Some(anchors.clone()),
                probes: Some(probes),
            };
            let mut options = CarryOptions::new(method);
            options.bandwidth = bandwidth;
            let (moved, report) = carry(&stats(&prototypes), &evidence, &options).unwrap();
            (error(&moved.means), report)
        };
        let none = error(&prototypes);
        let sigma = Bandwidth::Fixed(0.3);
        let attack = case.attack("paper_alpha", StepNorm::Sample);
        let alpha = attack
            .closest_alpha(&old, &samples, &before, &prototypes)
            .unwrap();
        let (adc, report) = run(Method::Adversarial, sigma, alpha);
        assert!(adc < 0.3 * none, "{name}: {adc} of {none}, alpha {alpha}");
        assert!(report.notes.is_empty(), "{:?}", report.notes);
        let (sdc, _) = run(Method::Semantic, sigma, 1.0);
        assert!(sdc < 0.4 * none, "{name}: {sdc} of {none}");
        let (auto, _) = run(Method::Semantic, Bandwidth::Neighbours(10.0), 1.0);
        assert!(auto < 0.4 * none, "{name}: {auto} of {none}");
        let (affine, _) = run(Method::Affine, sigma, 1.0);
        assert!(affine < 0.2 * none, "{name}: {affine} of {none}");
        let (mean, _) = run(Method::Mean, sigma, 1.0);
        assert!(mean < none, "{name}: {mean} of {none}");
        // Steps that go too far show: the probes end farther from the prototypes than they began.
        let (wild, report) = run(Method::Adversarial, sigma, 16.0);
        assert!(wild > 2.0 * adc, "{name}: {wild}, {adc}");
        assert!(
            report.notes[0].contains("alpha is too large"),
            "{:?}",
            report.notes
        );
    }
}

/// Statistics with covariances, a Gram matrix and two rows of one class.
fn full() -> Stats {
    let rows = Matrix::new(3, 2, vec![1.0, 0.0, 3.0, 0.5, -2.0, 1.0]).unwrap();
    Stats {
        classes: vec![4, 4, 7],
        counts: vec![3, 1, 2],
        means: rows,
        covs: Some(vec![
            Matrix::identity(2),
            Matrix::zeros(2, 2),
            Matrix::identity(2),
        ]),
        gram: Some(Matrix::new(2, 2, vec![22.0, -3.0, -3.0, 5.0]).unwrap()),
    }
}

#[test]
fn covariances_stay_under_shifts_and_gram_matrices_follow() {
    let old = Matrix::from_fn(40, 2, |i, j| ((i * 2 + j) as f64 * 0.7).sin());
    let new = Matrix::from_fn(40, 2, |i, j| old.get(i, j) + [0.5, -0.25][j]);
    let evidence = Evidence {
        anchors: Some(Anchors::new(old, new, Some(false)).unwrap()),
        probes: None,
    };
    let before = full();
    let (sdc, report) = carry(&before, &evidence, &CarryOptions::new(Method::Semantic)).unwrap();
    assert_eq!(sdc.covs, before.covs);
    assert_eq!(
        (&sdc.classes, &sdc.counts),
        (&before.classes, &before.counts)
    );
    // Every anchor moves alike, so that the method mean, which has a formula of its own, says the same.
    let (mean, _) = carry(&before, &evidence, &CarryOptions::new(Method::Mean)).unwrap();
    for (a, b) in [
        (sdc.means.as_slice(), mean.means.as_slice()),
        (
            sdc.gram.as_ref().unwrap().as_slice(),
            mean.gram.as_ref().unwrap().as_slice(),
        ),
    ] {
        assert!(
            a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9),
            "{a:?} {b:?}"
        );
    }
    let classes: Vec<usize> = report.classes.iter().map(|class| class.class).collect();
    assert_eq!(classes, [4, 7]);
    assert!(
        report
            .classes
            .iter()
            .all(|class| !class.capped && class.share.unwrap() > 0.999)
    );
}

#[test]
fn few_probes_are_replaced_by_anchors_and_long_shifts_shortened() {
    let old = Matrix::from_fn(40, 2, |i, j| ((i * 2 + j) as f64 * 0.7).sin());
    let new = Matrix::from_fn(40, 2, |i, j| old.get(i, j) + [0.5, 0.0][j]);
    let anchors = Anchors::new(old, new, Some(false)).unwrap();
    // Twelve probes for class 4, all of which drift far, and three for class 7.
    let at = |i: usize| if i < 12 { [1.5, 0.1] } else { [-2.0, 1.0] };
    let probes = Probes {
        old: Matrix::from_fn(15, 2, |i, j| at(i)[j]),
        new: Matrix::from_fn(15, 2, |i, j| at(i)[j] + [0.0, 7.0][j]),
        targets: (0..15).map(|i| if i < 12 { 4 } else { 7 }).collect(),
        before: None,
    };
    let mut evidence = Evidence {
        anchors: Some(anchors),
        probes: Some(probes),
    };
    let options = CarryOptions::new(Method::Adversarial);
    let (moved, report) = carry(&full(), &evidence, &options).unwrap();
    let (four, seven) = (&report.classes[0], &report.classes[1]);
    assert_eq!(
        (four.method, four.successes, four.capped),
        ("adc", Some(12), true)
    );
    assert_eq!(
        (seven.method, seven.successes, seven.capped),
        ("sdc", Some(3), false)
    );
    let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
    // No anchor goes farther than 0.5. Both rows of class 4 move.
    assert!(close(moved.means.get(0, 1), 0.5) && close(moved.means.get(1, 1), 1.0));
    assert!(close(moved.means.get(2, 0), -1.5));
    assert!(
        report
            .notes
            .iter()
            .any(|note| note.contains("fewer than 10")),
        "{:?}",
        report.notes
    );
    assert!(
        report
            .notes
            .iter()
            .any(|note| note.contains("shortened to 0.5")),
        "{:?}",
        report.notes
    );

    let free = CarryOptions {
        cap: None,
        ..options
    };
    let (moved, report) = carry(&full(), &evidence, &free).unwrap();
    assert!(close(moved.means.get(0, 1), 7.0) && report.limit.is_none());
    evidence.anchors = None;
    let refused = carry(&full(), &evidence, &options).unwrap_err().to_string();
    assert!(
        refused.contains("fewer than 10 probes look like class 7"),
        "{refused}"
    );
    let few = CarryOptions {
        least: 3,
        ..options
    };
    assert!(carry(&full(), &evidence, &few).is_ok());
    let semantic = CarryOptions::new(Method::Semantic);
    let refused = carry(&full(), &evidence, &semantic)
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("the method sdc needs the features"),
        "{refused}"
    );
}
