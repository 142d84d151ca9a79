//! Golden cases of the task-vector family, made with the authors' own code.

use merganser_methods::drop_and_rescale;
use merganser_testkit::{Case, assert_close, golden};

mod support;

use support::Merge;

/// A merge of the base (input 0) and all tasks of a case, the tasks first passed through `change` with their number, the
/// tensor's name and the base.
fn merge_with(
    case: &Case,
    method: &str,
    change: impl Fn(usize, &str, &[f32], Vec<f32>) -> Vec<f32>,
) -> Merge {
    let tasks = case.tasks();
    case.names()
        .iter()
        .fold(Merge::new(method, tasks + 1, Some(0)), |merge, name| {
            let base = case.base(name);
            let mut inputs = vec![base.f32()];
            for task in 0..tasks {
                inputs.push(change(task, name, &inputs[0], case.task(task, name).f32()));
            }
            merge.tensor(name, &base.shape, &inputs)
        })
}

fn merge(case: &Case, method: &str) -> Merge {
    merge_with(case, method, |_, _, _, x| x)
}

/// The same value for every task.
fn all(case: &Case, value: f64) -> Vec<f64> {
    vec![value; case.tasks()]
}

#[track_caller]
fn assert_case(case: &Case, merge: &Merge, tolerance: f64) {
    for (name, merged) in merge.run() {
        let what = format!("{} {name}", case.name);
        assert_close(
            &merged,
            &case.expect(&name).values,
            tolerance,
            tolerance,
            &what,
        );
    }
}

/// TIES as its paper has it.
fn paper(case: &Case, merge: Merge) -> Merge {
    let aggregate = case.hyper["merge_func"].as_str().unwrap_or("dis-mean");
    merge
        .set_others("weight", &all(case, 1.0))
        .set_others("density", &all(case, case.number("K") / 100.0))
        .set("scope", "model")
        .set("zero_sum", "majority")
        .set("aggregate", aggregate.trim_start_matches("dis-"))
        .set("lambda", case.number("scaling"))
}

#[test]
fn task_arithmetic() {
    for case in golden::cases("task_arithmetic") {
        let sign = if case.hyper["op"] == "negate" {
            -1.0
        } else {
            1.0
        };
        let merge = merge(&case, "task_arithmetic")
            .set_others("weight", &all(&case, sign))
            .set("lambda", case.number("scaling"));
        assert_case(&case, &merge, 1e-6);
    }
}

#[test]
fn ties_of_the_paper() {
    for case in golden::cases("ties") {
        // Values are chosen so that every step is exact there.
        let tolerance = if case.name == "ties_in_magnitude_zero_sums" {
            0.0
        } else {
            1e-6
        };
        assert_case(&case, &paper(&case, merge(&case, "ties")), tolerance);
    }
}

#[test]
fn dare_with_the_masks_of_the_case() {
    let cases = golden::cases("dare");
    for case in cases.iter().filter(|case| case.hyper["strategy"].is_null()) {
        let keep = 1.0 - case.number("drop_rate");
        let masked = |task: usize, name: &str, base: &[f32], x: Vec<f32>| -> Vec<f32> {
            let mut delta: Vec<f32> = x.iter().zip(base).map(|(x, b)| x - b).collect();
            let dropped = case.input(&format!("drop{task}/{name}"));
            let mask: Vec<f32> = dropped
                .values
                .iter()
                .map(|dropped| 1.0 - *dropped as f32)
                .collect();
            drop_and_rescale(&mut delta, &mask, keep as f32);
            delta.iter().zip(base).map(|(d, b)| d + b).collect()
        };
        let merge = if case.hyper["inner"] == "ties" {
            paper(case, merge_with(case, "ties", masked))
        } else {
            merge_with(case, "task_arithmetic", masked)
                .set_others("weight", &all(case, 1.0))
                .set("lambda", case.number("scaling"))
        };
        assert_case(case, &merge, 1e-6);
    }
    assert!(
        cases
            .iter()
            .filter(|case| case.hyper["strategy"].is_null())
            .count()
            >= 3
    );
}

/// Dropping the smallest magnitudes and dividing by the density.
#[test]
fn dare_by_magnitude_is_breadcrumbs_without_outliers() {
    let cases = golden::cases("dare");
    let cases: Vec<&Case> = cases
        .iter()
        .filter(|case| case.hyper["strategy"] == "magnitude")
        .collect();
    assert!(!cases.is_empty());
    for case in cases {
        let merge = merge(case, "breadcrumbs")
            .set_others("weight", &all(case, 1.0))
            .set_others("density", &all(case, 1.0 - case.number("drop_rate")))
            .set_others("gamma", &all(case, 0.0))
            .set("rescale", "density")
            .set("lambda", case.number("scaling"));
        assert_case(case, &merge, 1e-6);
    }
}

#[test]
fn pcb() {
    for case in golden::cases("pcb") {
        let merge = merge(&case, "pcb")
            .set("ratio", case.number("pcb_ratio"))
            .set("lambda", case.number("scaling"));
        assert_case(&case, &merge, 1e-6);
    }
}
