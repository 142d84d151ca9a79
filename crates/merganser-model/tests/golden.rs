//! Every family against what transformers computes (tests/golden/forward, made by scripts/make_forward_fixtures.py).

#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{DType, Tensor};
use common::{Case, FAMILIES, largest_difference, run_all};
use merganser_model::{Modality, walk};

const TOLERANCE: f32 = 1e-4;

/// Differences of real rows only: what padding rows hold is nobody's business.
fn compare(case: &Case, key: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims(), "{}: {key}", case.name);
    let difference = largest_difference(found, expected);
    assert!(
        difference <= TOLERANCE,
        "{}: {key} differs by {difference}",
        case.name
    );
    // A comparison with zeros or with itself would pass too.
    let size = largest_difference(expected, &expected.zeros_like().unwrap());
    assert!(size > 0.1, "{}: {key} is nearly zero", case.name);
}

fn check(case: &Case, prefix: &str) {
    let state = run_all(case, false);
    let outputs = case.network.outputs();
    let mut compared = 0;
    for (key, reg) in [
        ("last_hidden_state", Some(outputs.hidden)),
        ("pooled", outputs.pooled),
        ("embeds", outputs.embeds),
        ("logits", outputs.logits),
    ] {
        let expected = case.expected.get(&format!("{prefix}{key}"));
        if let Some(expected) = expected {
            let reg = reg.unwrap_or_else(|| panic!("{}: no {key}", case.name));
            let found = state.get(reg).unwrap();
            let (found, expected) = case.real_rows(found, expected);
            compare(case, key, &found, &expected);
            compared += 1;
        }
    }
    assert!(compared > 0, "{}", case.name);
}

#[test]
fn every_family_gives_what_transformers_gives() {
    for name in FAMILIES {
        let case = Case::load(name);
        check(&case, if *name == "clip" { "vision." } else { "" });
    }
}

#[test]
fn the_walk_gives_the_same_bits_as_op_by_op() {
    for name in FAMILIES {
        let case = Case::load(name);
        let one = run_all(&case, false);
        let mut states = [case.state(), case.state()];
        walk(&case.network, &case.weights, &mut states, &mut ()).unwrap();
        let hidden = case.network.outputs().hidden;
        for state in &states {
            assert_eq!(
                largest_difference(state.get(hidden).unwrap(), one.get(hidden).unwrap()),
                0.0,
                "{name}"
            );
        }
    }
}

#[test]
fn the_differentiable_way_gives_the_same_numbers() {
    for name in FAMILIES {
        let case = Case::load(name);
        let (fast, slow) = (run_all(&case, false), run_all(&case, true));
        let hidden = case.network.outputs().hidden;
        let difference =
            largest_difference(&fast.rows(hidden).unwrap(), &slow.rows(hidden).unwrap());
        assert!(difference < 2e-5, "{name}: {difference}");
        assert_eq!(fast.get(hidden).unwrap().dtype(), DType::F32);
    }
}

#[test]
fn the_text_tower_of_clip() {
    check(&Case::load_modality("clip", Some(Modality::Text)), "text.");
}
