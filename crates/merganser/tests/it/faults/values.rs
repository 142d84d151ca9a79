//! Inputs that hold NaN or infinity.

use insta::assert_snapshot;
use merganser_testkit::{Dtype, checkpoint};
use serde_json::json;

use super::{Place, copy_of};
use crate::models;

/// Two models of one tensor; the second holds `value` at element 5.
fn with(value: f32, dtype: Dtype) -> Place {
    let place = Place::new();
    let config = json!({ "model_type": "llama", "num_hidden_layers": 0 });
    let mut x = vec![0.5; 8];
    let tensor = |x: &[f32]| [("model.norm.weight", dtype, vec![8], x.to_vec())];
    checkpoint::write(&place.join("good"), &config, &tensor(&x));
    x[5] = value;
    checkpoint::write(&place.join("bad"), &config, &tensor(&x));
    place
}

const MEAN: &str =
    "merge_method: linear\nmodels:\n  - model: ./good\n  - model: ./bad\nparameters: {weight: 1}\n";

#[test]
fn what_is_not_finite_is_refused_by_name() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
            for recipe in [MEAN, &copy_of("./bad")] {
                let place = with(value, dtype);
                let said = place.merge(recipe, &[]).failed().said(place.path());
                for part in ["model.norm.weight", "./bad", "5", &value.to_string()] {
                    assert!(said.contains(part), "no '{part}' in: {said}");
                }
                assert!(!place.join("out/config.json").exists());
                if value.is_nan() && dtype == Dtype::F32 && recipe == MEAN {
                    assert_snapshot!(said);
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_merged_if_allowed() {
    let place = with(f32::INFINITY, Dtype::F32);
    place.merge(MEAN, &["--allow-nonfinite"]).done();
    let merged = models::read(&place.join("out"));
    let values = &merged["model.norm.weight"].values;
    assert_eq!(values[5], f64::INFINITY);
    assert!((0..8).filter(|i| *i != 5).all(|i| values[i] == 0.5));
}

#[test]
fn a_failed_merge_can_be_repeated_with_other_options() {
    let place = with(f32::NAN, Dtype::BF16);
    place.merge(MEAN, &[]).failed();
    place.merge(MEAN, &["--allow-nonfinite"]).done();
    assert!(models::read(&place.join("out"))["model.norm.weight"].values[5].is_nan());
    assert!(!models::names(&place.join("out")).contains(&".partial-merganser".to_owned()));
}
