//! Surrogates, their choices and LAME against the published code's numbers (tests/golden/continual/tta).

use std::collections::BTreeMap;
use std::path::Path;

use merganser_eval::surrogates::{
    TEMPERATURE, consistency, entropy, neighbourhood_density, probabilities, smallest,
};
use merganser_eval::{Affinity, Vectors, lame};
use merganser_testkit::golden::{Tensor, read_safetensors};
use serde_json::Value;

type Tensors = BTreeMap<String, Tensor>;

fn case(name: &str) -> (Tensors, Tensors, Value) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/continual/tta")
        .join(name);
    let params = std::fs::read_to_string(folder.join("params.json")).expect("params.json");
    (
        read_safetensors(&folder.join("inputs.safetensors")),
        read_safetensors(&folder.join("expected.safetensors")),
        serde_json::from_str(&params).expect("JSON"),
    )
}

fn vectors(tensor: &Tensor) -> Vectors {
    Vectors {
        width: tensor.shape[1],
        values: tensor.f32(),
    }
}

fn close(what: &str, found: f64, expected: f64, params: &Value) {
    let tolerance = &params["tolerance"];
    let (rtol, atol) = (
        tolerance["rtol"].as_f64().unwrap(),
        tolerance["atol"].as_f64().unwrap(),
    );
    assert!(
        (found - expected).abs() <= atol + rtol * expected.abs(),
        "{what}: {found}, expected {expected}"
    );
}

/// The rows of `all`, `size` at a time.
fn batches(all: &Vectors, size: usize) -> Vec<Vectors> {
    all.values
        .chunks(size * all.width)
        .map(|values| Vectors {
            width: all.width,
            values: values.to_vec(),
        })
        .collect()
}

fn raw(vectors: &Vectors) -> Vec<Vec<f64>> {
    (0..vectors.len())
        .map(|i| vectors.row(i).iter().map(|&x| f64::from(x)).collect())
        .collect()
}

#[test]
fn surrogates_are_the_published_ones() {
    for name in [
        "surrogates_b10",
        "surrogates_confident",
        "surrogates_ragged_batches",
    ] {
        let (inputs, expected, params) = case(name);
        let size = params["params"]["batch_size"].as_u64().unwrap() as usize;
        let (logits, changed) = (vectors(&inputs["logits"]), vectors(&inputs["logits_aug"]));
        let check = |key: &str, at: usize, found: f64| {
            close(
                &format!("{name}, {key}"),
                found,
                expected[key].values[at],
                &params,
            );
        };
        for (at, (own, other)) in batches(&logits, size)
            .iter()
            .zip(batches(&changed, size))
            .enumerate()
        {
            check("entropy_per_batch", at, entropy(own));
            check(
                "consistency_per_batch",
                at,
                consistency(own, &other).unwrap(),
            );
            let density = neighbourhood_density(&raw(own), TEMPERATURE).unwrap();
            check("snd_per_batch", at, -density);
        }
        let whole = neighbourhood_density(&raw(&logits), TEMPERATURE).unwrap();
        check("snd_loss_full_logits", 0, -whole);
        let whole = neighbourhood_density(&probabilities(&logits), TEMPERATURE).unwrap();
        check("snd_loss_full_softmax", 0, -whole);
    }
}

#[test]
fn every_strategy_takes_the_first_smallest() {
    let (inputs, expected, params) = case("selection_table");
    let columns = inputs["target_error"].shape[1];
    for (strategy, metric) in [
        ("CONSISTENCY", "metric/CONSISTENCY"),
        ("CROSS", "cross_dataset_error"),
        ("ENTROPY", "metric/ENTROPY"),
        ("ORACLE", "target_error"),
        ("SMALL_mean_error", "metric/SMALL_mean_error"),
        ("SND", "metric/SND"),
        ("SOURCE_mean", "metric/SOURCE_mean"),
    ] {
        let rows = inputs[metric].values.chunks(columns);
        for (seed, (row, errors)) in rows
            .zip(inputs["target_error"].values.chunks(columns))
            .enumerate()
        {
            let choice = smallest(row).unwrap();
            let wanted = expected[&format!("choice/{strategy}")].values[seed];
            assert_eq!(choice as f64, wanted, "{strategy}");
            if let Some(accuracy) = expected.get(&format!("accuracy/{strategy}")) {
                close(
                    strategy,
                    100.0 - errors[choice],
                    accuracy.values[seed],
                    &params,
                );
            }
        }
    }
}

#[test]
fn corrected_predictions_are_the_published_ones() {
    let (inputs, expected, params) = case("lame_rbf");
    let (logits, features) = (vectors(&inputs["logits"]), vectors(&inputs["features"]));
    let found = lame(&logits, &features, Affinity::Rbf).unwrap();
    for (found, expected) in found.values.iter().zip(&expected["probs"].values) {
        close("probability", f64::from(*found), *expected, &params);
    }
    // All of a mixed batch is drawn into one class: what the page warns of.
    let (labels, given) = (&inputs["labels"].values, &expected["pred"].values);
    let right = labels.iter().zip(given).filter(|(a, b)| a == b).count();
    let plain = (0..logits.len()).filter(|&i| {
        let row = logits.row(i);
        let best = (0..row.len()).fold(0, |best, c| if row[c] > row[best] { c } else { best });
        best as f64 == labels[i]
    });
    assert!(right < plain.count());
}

#[test]
fn few_labels_estimate_the_accuracy() {
    let (inputs, expected, params) = case("few_labels_estimate");
    let logits = vectors(&inputs["logits"]);
    let right = |i: usize| {
        let row = logits.row(i);
        let best = (0..row.len()).fold(0, |best, c| if row[c] > row[best] { c } else { best });
        f64::from(u8::from(best as f64 == inputs["labels"].values[i]))
    };
    let share = |rows: &[usize]| rows.iter().map(|&i| right(i)).sum::<f64>() / rows.len() as f64;
    let all: Vec<usize> = (0..logits.len()).collect();
    let few: Vec<usize> = inputs["sample_index"]
        .values
        .iter()
        .map(|&i| i as usize)
        .collect();
    close("all", share(&all), expected["accuracy"].values[0], &params);
    close(
        "few",
        share(&few),
        expected["small_accuracy"].values[0],
        &params,
    );
}
