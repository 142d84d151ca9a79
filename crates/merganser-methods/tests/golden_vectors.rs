//! Golden cases of the methods that take whole vectors or compare task vectors element by element.

use std::convert::Infallible;

use merganser_methods::{Encoding, Settings, emr, greedy_soup};
use merganser_testkit::reference::{minus, norm};
use merganser_testkit::{Case, assert_close, golden};

mod support;

use support::{Merge, run_encoded, run_program};

/// A merge of the base (input 0) and all tasks of a case.
fn with_base(case: &Case, method: &str) -> Merge {
    let tasks = case.tasks();
    case.names()
        .iter()
        .fold(Merge::new(method, tasks + 1, Some(0)), |merge, name| {
            let base = case.base(name);
            let mut inputs = vec![base.f32()];
            inputs.extend((0..tasks).map(|i| case.task(i, name).f32()));
            merge.tensor(name, &base.shape, &inputs)
        })
}

/// A merge of the tasks of a case, with companions called `companion` if there are any.
fn without_base(case: &Case, method: &str, companion: Option<&str>) -> Merge {
    let tasks = case.tasks();
    case.names()
        .iter()
        .fold(Merge::new(method, tasks, None), |merge, name| {
            let inputs: Vec<Vec<f32>> = (0..tasks).map(|i| case.task(i, name).f32()).collect();
            let companions: Vec<Vec<f32>> = companion
                .map(|kind| {
                    (0..tasks)
                        .map(|i| case.input(&format!("{kind}{i}/{name}")).f32())
                        .collect()
                })
                .unwrap_or_default();
            merge.tensor_with(name, &case.task(0, name).shape, &inputs, &companions)
        })
}

#[track_caller]
fn assert_case(case: &Case, prefix: &str, merge: &Merge) {
    for (name, merged) in merge.run() {
        let what = format!("{} {prefix}{name}", case.name);
        assert_close(
            &merged,
            &case.expect(&format!("{prefix}{name}")).values,
            1e-6,
            1e-6,
            &what,
        );
    }
}

#[test]
fn uniform_soup_is_linear() {
    for case in golden::cases("uniform_soup") {
        let merge = without_base(&case, "linear", None);
        assert_case(
            &case,
            "",
            &merge.set_others("weight", &vec![1.0; case.tasks()]),
        );
    }
}

#[test]
fn magmax() {
    for case in golden::cases("magmax") {
        assert_case(
            &case,
            "",
            &with_base(&case, "magmax").set("lambda", case.number("scaling")),
        );
    }
}

#[test]
fn consensus_and_tall_masks() {
    for case in golden::cases("consensus") {
        let cuts = vec![case.number("tall_lambda"); case.tasks()];
        let merge = with_base(&case, "consensus")
            .set_others("tall_lambda", &cuts)
            .set("threshold", case.number("prun_thre_k") as i64)
            .set("lambda", case.number("scaling"));
        assert_case(&case, "", &merge);
        for task in 0..case.tasks() {
            let merge = with_base(&case, "tall_mask")
                .set_others("tall_lambda", &cuts)
                .set("task", task as i64);
            assert_case(&case, &format!("localized{task}/"), &merge);
        }
    }
}

#[test]
fn emr_models_masks_and_numbers() {
    for case in golden::cases("emr") {
        for task in 0..case.tasks() {
            let merge = with_base(&case, "emr")
                .set("output", "task")
                .set("task", task as i64);
            assert_case(&case, &format!("model{task}/"), &merge);
            let survey = merge.survey().expect("a survey");
            let rescalers: Vec<f32> = survey
                .get(emr::RESCALERS)
                .iter()
                .map(|x| *x as f32)
                .collect();
            assert_close(
                &rescalers,
                &case.expect("rescalers").values,
                1e-6,
                1e-6,
                "rescalers",
            );
        }
        with_base(&case, "emr").with_groups(|groups| {
            for group in groups {
                let unified = run_program(group, &emr::tau_program()).expect("a task vector");
                let key = format!("unified/{}", group.name);
                assert_close(&unified, &case.expect(&key).values, 1e-6, 1e-6, &key);
                for task in 0..case.tasks() {
                    let bits = run_encoded(group, &emr::mask_program(task), Encoding::Bits)
                        .expect("a mask");
                    let set = |j: usize| f64::from(bits[j / 8] >> (j % 8) & 1);
                    let mask: Vec<f64> = (0..group.elements()).map(set).collect();
                    assert_eq!(
                        mask,
                        case.expect(&format!("mask{task}/{}", group.name)).values,
                        "{key}"
                    );
                }
            }
        });
    }
}

#[test]
fn fisher() {
    for case in golden::cases("fisher") {
        let matena = case.hyper["variant"] == "matena";
        let floor = case.number(if matena {
            "floor"
        } else {
            "minimal_fisher_weight"
        });
        let mut merge = without_base(&case, "fisher", Some("fisher"))
            .set("variant", if matena { "matena" } else { "mergelm" })
            .set("normalize", case.hyper["normalize"] == true)
            .set("floor", floor);
        if let Some(weights) = case.hyper["coefficients"].as_array() {
            let weights: Vec<f64> = weights.iter().filter_map(serde_number).collect();
            merge = merge.set_others("weight", &weights);
        }
        assert_case(&case, "", &merge);
    }
}

fn serde_number(value: &impl std::fmt::Display) -> Option<f64> {
    value.to_string().parse().ok()
}

#[test]
fn model_stock_with_angles() {
    for case in golden::cases("model_stock") {
        let ignored = case.hyper["ignore_keys"].to_string();
        let stock = with_base(&case, "model_stock")
            .set("angles", "degrees")
            .run();
        let mean = without_base(&case, "linear", None)
            .set_others("weight", &vec![1.0; case.tasks()])
            .run();
        for name in case.names() {
            let merged = if ignored.contains(&format!("{name:?}")) {
                &mean[&name]
            } else {
                &stock[&name]
            };
            let what = format!("{} {name}", case.name);
            assert_close(merged, &case.expect(&name).values, 1e-6, 1e-6, &what);
        }
    }
}

/// The score of a soup is minus its distance to a target that the case holds.
#[test]
fn greedy_soup_chooses_and_averages() {
    for case in golden::cases("greedy_soup") {
        let evaluate = |models: &[usize]| -> f64 {
            let square = |name: &String| {
                let target = &case.input(&format!("target/{name}")).values;
                let mut mean = vec![0.0; target.len()];
                for &model in models {
                    for (mean, x) in mean.iter_mut().zip(&case.task(model, name).values) {
                        *mean += x / models.len() as f64;
                    }
                }
                norm(&minus(&mean, target)).powi(2)
            };
            -case.names().iter().map(square).sum::<f64>().sqrt()
        };
        let scores: Vec<f64> = (0..case.tasks()).map(|i| evaluate(&[i])).collect();
        let Ok(soup) = greedy_soup(&scores, |models| Ok::<_, Infallible>(evaluate(models)));
        let names: Vec<String> = soup
            .ingredients
            .iter()
            .map(|i| format!("model_{i}"))
            .collect();
        assert_eq!(
            format!("{names:?}").replace(' ', ""),
            case.hyper["ingredients"].to_string()
        );
        let merge = without_base(&case, "greedy_soup", None)
            .set_others("score", &scores)
            .set("ingredients", soup.ingredients.len() as i64);
        assert_case(&case, "", &merge);
    }
}

#[test]
fn defaults_are_complete() {
    let empty = Settings::default();
    for method in merganser_methods::registry() {
        assert!(
            !method.info().formula.is_empty() && !method.info().source.is_empty(),
            "{}",
            method.info().name
        );
        assert!(method.passes(&empty) <= 3, "{}", method.info().name);
    }
}
