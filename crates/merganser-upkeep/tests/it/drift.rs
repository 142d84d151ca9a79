//! Query drift compensation against the golden cases.

use std::collections::BTreeMap;
use std::fs;

use merganser_testkit::golden::{Tensor, folder, read_safetensors};
use merganser_upkeep::Matrix;
use merganser_upkeep::drift::{
    Anchors, Direction, Drift, FitKind, FitOptions, Map, assign, cluster_shifts, shift,
};
use merganser_upkeep::retrieval::{Scoring, Search, quality};
use serde_json::Value;

type Tensors = BTreeMap<String, Tensor>;

/// Inputs, expectations and tolerance of a case.
fn case(name: &str) -> (Tensors, Tensors, (f64, f64)) {
    let folder = folder().join("continual/qdc").join(name);
    let params: Value =
        serde_json::from_str(&fs::read_to_string(folder.join("params.json")).unwrap()).unwrap();
    let tolerance = |key: &str| params["tolerance"][key].as_f64().unwrap();
    (
        read_safetensors(&folder.join("inputs.safetensors")),
        read_safetensors(&folder.join("expected.safetensors")),
        (tolerance("rtol"), tolerance("atol")),
    )
}

fn matrix(tensor: &Tensor) -> Matrix {
    Matrix::new(tensor.shape[0], tensor.shape[1], tensor.values.clone()).unwrap()
}

fn close(what: &str, found: &[f64], expected: &[f64], (relative, absolute): (f64, f64)) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= absolute + relative * b.abs(),
            "{what}[{i}]: {a} where {b} was expected"
        );
    }
}

fn drift(from: &str, to: &str, old: &Matrix, new: &Matrix) -> Drift {
    Drift {
        from: from.into(),
        to: to.into(),
        unit: false,
        anchors: old.rows(),
        map: Map::Shift(shift(old, new).unwrap()),
        measured: BTreeMap::new(),
    }
}

/// The distillation losses of training are 1 minus the mean cosine that a fit reports; its contrastive loss is that of a
/// search in which one document belongs to each query.
#[test]
fn reports_hold_the_losses_of_training() {
    let (inputs, expected, (relative, _)) = case("losses_n8_neg7");
    let (queries, documents) = (matrix(&inputs["queries"]), matrix(&inputs["documents"]));
    // Behind every document for a query stand seven that are hard to tell from it.
    let labels: Vec<usize> = (0..documents.rows())
        .map(|i| if i % 8 == 0 { i / 8 } else { usize::MAX })
        .collect();
    let own: Vec<usize> = (0..queries.rows()).collect();
    let mut search = Search::new(vec![queries], Scoring::Cosine, 1)
        .unwrap()
        .with_labels(&own, &labels)
        .unwrap();
    for first in [0, 24] {
        let rows: Vec<usize> = (first..if first == 0 { 24 } else { 64 }).collect();
        let block = documents.gather_rows(&rows);
        search.documents(first, &block, None).unwrap();
    }
    let contrastive = search.contrastive_loss().unwrap();
    close(
        "info_nce",
        &[contrastive],
        &expected["info_nce"].values,
        (relative, 1e-6),
    );
    let mut total = contrastive;
    for (which, key) in [("queries", "kd_query"), ("documents", "kd_doc")] {
        let unit = |name: &str| {
            let mut rows = matrix(&inputs[name]);
            let lengths: Vec<f64> = rows
                .row_dots(&rows)
                .iter()
                .map(|x| 1.0 / x.sqrt())
                .collect();
            rows.scale_rows(&lengths);
            rows
        };
        let old = unit(&format!("{which}_old"));
        let anchors = Anchors::new(old, unit(which), None).unwrap();
        let (_, found) = anchors.fit("old", "new", &FitOptions::default()).unwrap();
        let loss = 1.0 - found.cosine_before.unwrap();
        total += loss;
        close(key, &[loss], &expected[key].values, (relative, 1e-5));
    }
    close(
        "total",
        &[total],
        &expected["total"].values,
        (relative, 1e-5),
    );
}

#[test]
fn one_vector_takes_queries_to_the_old_space() {
    for name in [
        "drift_basic_n200_d16",
        "drift_single_query",
        "identical_models",
    ] {
        let (inputs, expected, tolerance) = case(name);
        let (old, new) = (matrix(&inputs["q_old"]), matrix(&inputs["q_new"]));
        let anchors = Anchors::new(old, new.clone(), None).unwrap();
        let options = FitOptions {
            kind: FitKind::Shift,
            ridge: None,
        };
        let (drift, found) = anchors.fit("1", "2", &options).unwrap();
        assert!(drift.unit, "{name}: the vectors have length 1");
        let Map::Shift(delta) = &drift.map else {
            panic!("a shift was asked for");
        };
        close(name, delta, &expected["drift"].values, tolerance);
        let moved = |unit| {
            let transport = drift.transport(Direction::ToOld, Some(unit)).unwrap();
            transport.matrix(&new).unwrap()
        };
        close(
            name,
            moved(false).as_slice(),
            &expected["q_compensated"].values,
            tolerance,
        );
        for (key, value) in [
            ("mean_cos_before", found.cosine_before),
            ("mean_cos_after", found.cosine_after),
        ] {
            if let Some(expected) = expected.get(key) {
                close(key, &[value.unwrap()], &expected.values, tolerance);
            }
        }
        if let Some(expected) = expected.get("q_compensated_normalized") {
            close(name, moved(true).as_slice(), &expected.values, tolerance);
        }
    }
}

#[test]
fn indexes_of_several_versions_are_searched_by_the_query_of_each() {
    for name in ["chain3_old_index", "chain3_mixed_index"] {
        let (inputs, expected, tolerance) = case(name);
        let steps: Vec<Drift> = (1..3)
            .map(|s| {
                let of = |age: &str| matrix(&inputs[&format!("calib_{s}_{age}")]);
                drift(&(s - 1).to_string(), &s.to_string(), &of("old"), &of("new"))
            })
            .collect();
        let queries = matrix(&inputs["q_new"]);
        let documents = matrix(&inputs["doc_embeddings"]);
        let whole =
            |key: &str| -> Vec<usize> { inputs[key].values.iter().map(|&x| x as usize).collect() };
        let versions = whole("doc_version");
        let mut own = Vec::new();
        let cumulative = matrix(&expected["cumulative_drift_by_index_version"]);
        for version in 0..3 {
            if version == 2 {
                own.push(queries.clone());
                continue;
            }
            let all = Drift::chain(&steps[version..]).unwrap();
            let Map::Shift(delta) = &all.map else {
                panic!("shifts add up to a shift");
            };
            close("cumulative", delta, cumulative.row(version), tolerance);
            let transport = all.transport(Direction::ToOld, None).unwrap();
            own.push(transport.matrix(&queries).unwrap());
        }
        for (scoring, key) in [
            (Scoring::Cosine, "metrics_cos"),
            (Scoring::Dot, "metrics_dot"),
        ] {
            let mut search = Search::new(own.clone(), scoring, 10).unwrap();
            // In two parts, as a large index comes.
            search
                .documents(0, &documents.rows_range(0, 50), Some(&versions[..50]))
                .unwrap();
            search
                .documents(50, &documents.rows_range(50, 120), Some(&versions[50..]))
                .unwrap();
            let found = search.finish();
            if scoring == Scoring::Cosine {
                let top: Vec<f64> = found.iter().flatten().map(|&i| i as f64).collect();
                assert_eq!(top, expected["top10_cos"].values, "{name}");
            }
            let quality = quality(
                &found,
                10,
                &whole("qrels_topic_query"),
                &whole("qrels_topic_doc"),
            )
            .unwrap();
            let expected = &expected[key].values;
            close(key, &[quality.ndcg], &expected[..1], (1e-6, 1e-9));
        }
        // −Δ·d, added to the score of a document, does what the compensated query does.
        for (i, version) in versions.iter().enumerate() {
            let dot: f64 = (0..24)
                .map(|j| -cumulative.get(*version, j) * documents.get(i, j))
                .sum();
            close(
                "bias",
                &[dot],
                &[expected["doc_bias_dot"].values[i]],
                tolerance,
            );
        }
    }
}

#[test]
fn clusters_have_shifts_of_their_own() {
    let (inputs, expected, tolerance) = case("clustered_drift_own_variant");
    let (old, new) = (matrix(&inputs["q_old"]), matrix(&inputs["q_new"]));
    let centroids = matrix(&inputs["centroids_old"]);
    let (shifts, _) = cluster_shifts(&centroids, &old, &new).unwrap();
    close(
        "shifts",
        shifts.as_slice(),
        &expected["cluster_drift"].values,
        tolerance,
    );
    let members: Vec<f64> = assign(&centroids, &old).iter().map(|&c| c as f64).collect();
    assert_eq!(members, expected["assign_calib"].values);
    let drift = Drift {
        from: "1".into(),
        to: "2".into(),
        unit: false,
        anchors: 160,
        map: Map::Clusters {
            centroids,
            shifts,
            mean: shift(&old, &new).unwrap(),
        },
        measured: BTreeMap::new(),
    };
    let moved = drift
        .transport(Direction::ToOld, None)
        .unwrap()
        .matrix(&matrix(&inputs["queries"]))
        .unwrap();
    close(
        "queries",
        moved.as_slice(),
        &expected["q_compensated"].values,
        tolerance,
    );
}
