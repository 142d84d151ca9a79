//! Heads and statistics against the golden cases of FedCOF.

use std::collections::BTreeMap;
use std::fs;

use merganser_testkit::golden::{Tensor, folder, read_safetensors};
use merganser_upkeep::Matrix;
use merganser_upkeep::heads::{Gamma, Head, Kind, Pool};
use merganser_upkeep::stats::Stats;
use serde_json::Value;

pub(crate) type Tensors = BTreeMap<String, Tensor>;

const CASES: [&str; 8] = [
    "basic_iid_k10_c4_d6",
    "class_absent_everywhere",
    "class_at_single_client",
    "dirichlet01_k30_c10_d16",
    "multi_subset_means_g3",
    "one_client_total",
    "rank_deficient_gamma0",
    "vs_fed3r_and_ncm",
];

pub(crate) fn case(method: &str, name: &str) -> (Tensors, Tensors, Value) {
    let folder = folder().join("continual").join(method).join(name);
    let params = fs::read_to_string(folder.join("params.json")).unwrap();
    (
        read_safetensors(&folder.join("inputs.safetensors")),
        read_safetensors(&folder.join("expected.safetensors")),
        serde_json::from_str(&params).unwrap(),
    )
}

pub(crate) fn matrix(tensor: &Tensor) -> Matrix {
    let cols = tensor.shape[tensor.shape.len() - 1];
    let rows = tensor.values.len() / cols;
    Matrix::new(rows, cols, tensor.values.clone()).unwrap()
}

pub(crate) fn whole(tensor: &Tensor) -> Vec<usize> {
    tensor.values.iter().map(|&x| x as usize).collect()
}

pub(crate) fn close(what: &str, found: &[f64], expected: &[f64], (relative, absolute): (f64, f64)) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= absolute + relative * b.abs(),
            "{what}[{i}]: {a} where {b} was expected"
        );
    }
}

/// The statistics of each client of a case.
fn clients(inputs: &Tensors) -> Vec<Stats> {
    let (of, classes) = (whole(&inputs["client_ids"]), whole(&inputs["class_ids"]));
    let (counts, means) = (whole(&inputs["counts"]), matrix(&inputs["client_means"]));
    let mut ids = of.clone();
    ids.sort_unstable();
    ids.dedup();
    ids.into_iter()
        .map(|id| {
            let rows: Vec<usize> = (0..of.len()).filter(|&i| of[i] == id).collect();
            Stats {
                classes: rows.iter().map(|&i| classes[i]).collect(),
                counts: rows.iter().map(|&i| counts[i] as u64).collect(),
                means: means.gather_rows(&rows),
                covs: None,
                gram: None,
            }
        })
        .collect()
}

fn answers(head: &Head, features: &Matrix) -> Vec<f64> {
    let logits = head.logits(features);
    (0..logits.rows())
        .map(|i| {
            let row = logits.row(i);
            let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a)));
            best.unwrap() as f64
        })
        .collect()
}

#[test]
fn fedcof_is_that_of_its_authors() {
    let loose = (2e-4, 2e-4);
    for name in CASES {
        let (inputs, expected, params) = case("fedcof", name);
        let classes = params["params"]["n_classes"].as_u64().unwrap() as usize;
        let gamma = params["params"]["gamma"].as_f64().unwrap();
        let pool = Pool::new(clients(&inputs), Some(classes)).unwrap();
        let counts: Vec<usize> = pool.counts().iter().map(|&n| n as usize).collect();
        assert_eq!(counts, whole(&expected["class_counts"]), "{name}");
        let means = whole(&expected["n_means_per_class"]);
        assert_eq!(pool.means_of_class(), means, "{name}");
        close(
            name,
            &pool.global_mean(),
            &expected["global_mean"].values,
            (1e-6, 1e-6),
        );
        let covs = &expected["class_cov_raw"].values;
        let size = covs.len() / classes;
        for class in (0..classes).filter(|&class| counts[class] > 0) {
            let cov = pool.covariance(class).unwrap();
            close(name, cov.as_slice(), &covs[class * size..][..size], loose);
        }
        let gram = pool.fedcof_gram(gamma).unwrap();
        let largest = gram
            .as_slice()
            .iter()
            .fold(0.0_f64, |max, x| max.max(x.abs()));
        close(
            name,
            gram.as_slice(),
            &expected["gram"].values,
            (2e-4, 2e-6 * largest),
        );
        let (head, found) = pool.head(Kind::FedCof(Gamma::Fixed(gamma))).unwrap();
        if let Some(weight) = expected.get("W_f64") {
            close(name, head.weight.as_slice(), &weight.values, (1e-6, 1e-6));
        }
        if let Some(rank) = params["params"]["expected_gram_rank"].as_u64() {
            assert_eq!(found.rank, Some(rank as usize));
            assert!(found.notes.iter().any(|note| note.contains("rank 3 of 8")));
        }
        let (ncm, _) = pool.head(Kind::Ncm).unwrap();
        if let Some(features) = inputs.get("test_features").map(matrix) {
            assert_eq!(answers(&head, &features), expected["pred"].values, "{name}");
            assert_eq!(
                answers(&ncm, &features),
                expected["ncm_pred"].values,
                "{name}"
            );
            close(
                name,
                ncm.weight.as_slice(),
                &expected["ncm_W"].values,
                (1e-5, 1e-6),
            );
        }
    }
}

#[test]
fn a_class_nobody_has_is_never_the_answer() {
    let (inputs, ..) = case("fedcof", "class_absent_everywhere");
    let pool = Pool::new(clients(&inputs), Some(5)).unwrap();
    for kind in [Kind::Ncm, Kind::FedCof(Gamma::Fixed(1.0)), Kind::Bayes(0.1)] {
        let (head, found) = pool.head(kind).unwrap();
        assert_eq!(found.absent, [3, 4]);
        assert!(
            found
                .notes
                .iter()
                .any(|note| note.contains("2 of 5 classes (3, 4)"))
        );
        assert!(head.weight.row(3).iter().all(|&x| x == 0.0));
        // Features that point away from every class.
        let mut away = Matrix::zeros(1, 5);
        for class in 0..3 {
            for (x, w) in away.row_mut(0).iter_mut().zip(pool.means().row(class)) {
                *x -= 100.0 * w;
            }
        }
        assert!(answers(&head, &away)[0] < 3.0);
    }
    // Without the number of classes there are as many as the largest known.
    assert_eq!(Pool::new(clients(&inputs), None).unwrap().classes(), 3);
    assert!(Pool::new(clients(&inputs), Some(2)).is_err());
}

#[test]
fn ridge_on_covariances_is_ridge_on_features() {
    let (inputs, expected, params) = case("fedcof", "vs_fed3r_and_ncm");
    let lambda = params["params"]["fed3r_lambda"].as_f64().unwrap();
    let features = matrix(&inputs["features"]);
    let (of, labels) = (whole(&inputs["clients"]), whole(&inputs["labels"]));
    let groups: std::collections::BTreeSet<(usize, usize)> =
        of.iter().copied().zip(labels.iter().copied()).collect();
    let stats: Vec<Stats> = groups
        .into_iter()
        .map(|(client, class)| {
            let rows: Vec<usize> = (0..of.len())
                .filter(|&i| (of[i], labels[i]) == (client, class))
                .collect();
            let rows = features.gather_rows(&rows);
            let n = rows.rows() as f64;
            let mean = Matrix::from_fn(1, rows.cols(), |_, j| {
                (0..rows.rows()).map(|i| rows.get(i, j)).sum::<f64>() / n
            });
            let mut cov = Matrix::from_fn(rows.cols(), rows.cols(), |a, b| {
                (0..rows.rows())
                    .map(|i| (rows.get(i, a) - mean.get(0, a)) * (rows.get(i, b) - mean.get(0, b)))
                    .sum()
            });
            cov.scale(1.0 / (n - 1.0).max(1.0));
            Stats {
                classes: vec![class],
                counts: vec![n as u64],
                means: mean,
                covs: Some(vec![cov]),
                gram: None,
            }
        })
        .collect();
    let pool = Pool::new(stats, None).unwrap();
    let (head, _) = pool.head(Kind::Ridge(lambda)).unwrap();
    close(
        "W",
        head.weight.as_slice(),
        &expected["fed3r_W"].values,
        (2e-4, 2e-4),
    );
    let test = matrix(&inputs["test_features"]);
    assert_eq!(answers(&head, &test), expected["fed3r_pred"].values);
    // The covariance within classes is that of all features together, whatever the clients are.
    let within = pool.within_classes().unwrap();
    let direct = Matrix::from_fn(within.rows(), within.cols(), |a, b| {
        let centred = |i: usize, j: usize| features.get(i, j) - pool.means().get(labels[i], j);
        (0..labels.len())
            .map(|i| centred(i, a) * centred(i, b))
            .sum::<f64>()
            / (labels.len() - pool.classes()) as f64
    });
    close("within", within.as_slice(), direct.as_slice(), (1e-6, 1e-6));
    let (bayes, _) = pool.head(Kind::Bayes(0.01)).unwrap();
    let truth = whole(&inputs["test_labels"]);
    let found = answers(&bayes, &test);
    let right = found
        .iter()
        .zip(&truth)
        .filter(|(a, b)| **a as usize == **b);
    assert!(right.count() * 10 > truth.len() * 6);
}

#[test]
fn clients_may_come_in_any_order_and_in_rounds() {
    let (inputs, ..) = case("fedcof", "dirichlet01_k30_c10_d16");
    let all = clients(&inputs);
    let mut turned: Vec<Stats> = all.iter().rev().cloned().collect();
    turned.rotate_left(7);
    let head = |clients: Vec<Stats>| {
        let pool = Pool::new(clients, Some(10)).unwrap();
        pool.head(Kind::FedCof(Gamma::Auto(1.0))).unwrap()
    };
    // Bit for bit.
    assert_eq!(head(all), head(turned));
}

#[test]
fn gamma_follows_the_scale_of_the_features() {
    let (inputs, ..) = case("fedcof", "basic_iid_k10_c4_d6");
    let mut scaled = clients(&inputs);
    for client in &mut scaled {
        client.means.scale(1024.0);
    }
    let head = |clients| {
        let pool = Pool::new(clients, None).unwrap();
        pool.head(Kind::FedCof(Gamma::Auto(0.1))).unwrap()
    };
    let ((one, small), (other, large)) = (head(clients(&inputs)), head(scaled));
    close(
        "W",
        one.weight.as_slice(),
        other.weight.as_slice(),
        (1e-9, 1e-12),
    );
    let ratio = large.regularised.unwrap() / small.regularised.unwrap();
    assert!((ratio / 1024.0_f64.powi(2) - 1.0).abs() < 1e-9);
    let (single, ..) = case("fedcof", "one_client_total");
    let pool = Pool::new(clients(&single), None).unwrap();
    let error = pool
        .head(Kind::FedCof(Gamma::Auto(1.0)))
        .unwrap_err()
        .to_string();
    assert!(error.contains("--gamma a number"), "{error}");
    assert!(
        pool.head(Kind::Ridge(1.0))
            .unwrap_err()
            .to_string()
            .contains("--gram")
    );
}
