//! Adapters against what the authors' code gives: KnOTS, core space and, for comparison, whole updates.
//!
//! These expectations were made in f32, after decompositions in f64.

use merganser_linalg::{Matrix, gemm};
use merganser_spectral::{Aligned, InSpan, Inner, Lora, core_space, knots, peft};
use merganser_testkit::golden::{Case, cases};
use proptest::prelude::*;

use crate::support::{assert_close, matrix, minus, numbers, rotation};

const SINGLE: f64 = 5e-6;

/// Names of the matrices that the adapters change, without `.weight`, in name order.
fn layers(case: &Case) -> Vec<String> {
    let names = case.names().into_iter();
    names
        .filter_map(|name| name.strip_suffix(".lora_A.weight").map(str::to_owned))
        .collect()
}

fn adapters(case: &Case, layer: &str, scales: &[f64]) -> Vec<Lora> {
    let factor = |task, name: &str| matrix(case.task(task, &format!("{layer}.lora_{name}.weight")));
    (0..case.tasks())
        .map(|task| {
            let scale = scales.get(task).copied().unwrap_or(1.0);
            Lora::new(factor(task, "A"), factor(task, "B"), scale).unwrap()
        })
        .collect()
}

/// The method that a case of the core-space publication names.
fn method(case: &Case) -> InSpan {
    let density = case.number("topK") / 100.0;
    let drop = case.number("dare_drop");
    let inner = match case.hyper["inner"].as_str().unwrap() {
        "sum" => Inner::TaskArithmetic,
        "mean" => Inner::Mean,
        "ties" => Inner::Ties { density },
        "dare" => Inner::Dare { drop },
        "dare-ties" => Inner::DareTies { drop, density },
        "tsv" => Inner::Tsv,
        "cart" => Inner::Cart {
            rank_fraction: case.number("cart_pruning_rank"),
            scale: case.number("cart_scaling"),
        },
        other => panic!("no inner method {other}"),
    };
    InSpan {
        inner,
        isotropic: case.hyper["isotropize"] == true,
    }
}

/// Whether an entry stays, by the masks of a case.
fn kept(case: &Case, layer: &str, task: usize, index: usize) -> bool {
    case.input(&format!("keep{task}/{layer}.weight")).values[index] == 1.0
}

fn check(case: &Case, layer: &str, mut update: Matrix) {
    update.scale(case.number("scaling"));
    let name = format!("{layer}.weight");
    update.add_scaled(1.0, &matrix(case.base(&name)));
    let what = format!("{}: {name}", case.name);
    assert_close(&what, &update, &matrix(case.expect(&name)), SINGLE);
}

#[test]
fn core_space_is_the_published_one() {
    for case in cases("core_space") {
        for layer in layers(&case) {
            let adapters = adapters(&case, &layer, &[]);
            let keep = |task, index| kept(&case, &layer, task, index);
            let merged = core_space(&adapters, &method(&case), &keep).unwrap();
            check(&case, &layer, merged.update());
        }
    }
}

#[test]
fn directions_without_their_lengths_merge_as_published() {
    for case in cases("knots_perlayer") {
        for layer in layers(&case) {
            let aligned = Aligned::of_adapters(&adapters(&case, &layer, &[])).unwrap();
            let keep = |task, index| kept(&case, &layer, task, index);
            let merged = aligned.merge_directions(&method(&case), &keep).unwrap();
            check(&case, &layer, merged);
        }
    }
}

#[test]
fn whole_updates_merge_as_published() {
    for case in cases("lora_full_space") {
        for layer in layers(&case) {
            let updates: Vec<Matrix> = adapters(&case, &layer, &[])
                .iter()
                .map(Lora::update)
                .collect();
            let keep = |task, index| kept(&case, &layer, task, index);
            let merged = method(&case).merge(&updates, &keep).unwrap();
            check(&case, &layer, merged);
        }
    }
}

#[test]
fn knots_is_the_published_one() {
    for case in cases("knots") {
        let layers = layers(&case);
        let aligned: Vec<Aligned> = layers
            .iter()
            .map(|layer| Aligned::of_adapters(&adapters(&case, layer, &[])).unwrap())
            .collect();
        let masks: Vec<Vec<f64>> = (0..case.tasks())
            .map(|task| {
                let mask = |layer| case.inputs.get(&format!("keep{task}/{layer}"));
                layers
                    .iter()
                    .filter_map(mask)
                    .flat_map(|x| x.values.clone())
                    .collect()
            })
            .collect();
        let merged = knots(
            &aligned,
            case.number("topK") / 100.0,
            case.hyper["dare_drop"].as_f64(),
            &|task, index| masks[task][index] == 1.0,
        );
        for (layer, update) in layers.iter().zip(merged.unwrap()) {
            check(&case, layer, update);
        }
    }
}

fn combination(case: &Case) -> peft::Combination {
    let name = case.hyper["combination_type"].as_str().unwrap();
    let rank = case.hyper["svd_rank"].as_u64().map(|x| x as usize);
    let majority = match case.hyper["majority_sign_method"].as_str() {
        Some("frequency") => peft::Majority::Frequency,
        _ => peft::Majority::Total,
    };
    let plain = name.trim_end_matches("_svd");
    let sparse = || peft::Sparse {
        density: case.number("density"),
        random: plain.starts_with("dare"),
        elect: plain.ends_with("ties").then_some(majority),
    };
    match name {
        "linear" => peft::Combination::Linear,
        "cat" => peft::Combination::Cat,
        "svd" => peft::Combination::Svd { rank },
        _ if plain == name => peft::Combination::Sparse(sparse()),
        _ => peft::Combination::SparseSvd {
            sparse: sparse(),
            rank,
        },
    }
}

#[test]
fn combinations_are_those_of_peft() {
    let numbers = |case: &Case, name: &str| -> Vec<f64> {
        let list = case.hyper[name].as_array().unwrap();
        list.iter().map(|x| x.as_f64().unwrap()).collect()
    };
    for kind in [
        "linear",
        "svd",
        "ties",
        "ties_svd",
        "dare_ties",
        "dare_linear_svd",
        "magnitude_prune",
        "magnitude_prune_svd",
    ] {
        for case in cases(&format!("peft_{kind}")) {
            for layer in layers(&case) {
                let keep = |part, task: usize, index: usize| {
                    let part = match part {
                        peft::Part::A => format!("{layer}.lora_A"),
                        peft::Part::B => format!("{layer}.lora_B"),
                        peft::Part::Update => format!("delta/{layer}"),
                    };
                    case.input(&format!("keep{task}/{part}.weight")).values[index] == 1.0
                };
                let merged = peft::combine(
                    &adapters(&case, &layer, &numbers(&case, "scaling_in")),
                    &numbers(&case, "weights"),
                    &combination(&case),
                    &keep,
                )
                .unwrap();
                let what = format!("{kind} {}: {layer}", case.name);
                let expected = matrix(case.expect(&format!("delta/{layer}.weight")));
                assert_close(&what, &merged.update(), &expected, SINGLE);
                if !kind.ends_with("svd") {
                    for (name, factor) in [("A", merged.a()), ("B", merged.b())] {
                        let expected = matrix(case.expect(&format!("{layer}.lora_{name}.weight")));
                        assert_close(&what, factor, &expected, SINGLE);
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn core_space_loses_nothing(
        seed in any::<u32>(), m in 1..20_usize, n in 1..20_usize, ranks in prop::collection::vec(1..5_usize, 1..4),
    ) {
        let seed = u64::from(seed) * 64;
        let adapters: Vec<Lora> = (0..)
            .zip(&ranks)
            .map(|(t, &rank)| {
                let (a, b) = (numbers(seed + t, rank, n), numbers(seed + 32 + t, m, rank));
                Lora::new(a, b, 1.0 / (1.0 + t as f64)).unwrap()
            })
            .collect();
        let updates: Vec<Matrix> = adapters.iter().map(Lora::update).collect();
        for inner in [Inner::TaskArithmetic, Inner::Mean, Inner::IsoC] {
            let method = InSpan::from(inner);
            let core = core_space(&adapters, &method, &|_, _| true).unwrap().update();
            let full = method.merge(&updates, &|_, _| true).unwrap();
            let sum = updates.iter().map(Matrix::norm).sum::<f64>();
            let error = minus(&core, &full).norm();
            // Iso-C of a sum close to singular is known no better than its condition allows.
            prop_assert!(error <= 1e-6 * sum.max(1.0), "{inner:?}: {error:e} of {sum:e}");
        }
    }

    #[test]
    fn core_space_turns_with_the_adapters(seed in any::<u32>(), tasks in 1..4_u64) {
        let seed = u64::from(seed) * 64;
        let (m, n) = (12, 10);
        let (p, q) = (rotation(seed + 60, m), rotation(seed + 61, n));
        let adapter = |t, turn: bool| {
            let (mut a, mut b) = (numbers(seed + t, 3, n), numbers(seed + 32 + t, m, 3));
            if turn {
                (a, b) = (gemm::mul_nt(&a, &q), gemm::mul(&p, &b));
            }
            Lora::new(a, b, 1.0).unwrap()
        };
        let merge = |turn| {
            let adapters: Vec<Lora> = (0..tasks).map(|t| adapter(t, turn)).collect();
            // TIES works on coordinates, but on the same ones in either case.
            core_space(&adapters, &Inner::Ties { density: 1.0 }.into(), &|_, _| true).unwrap()
        };
        let expected = gemm::mul_nt(&gemm::mul(&p, &merge(false).update()), &q);
        assert_close("turned", &merge(true).update(), &expected, 1e-6);
    }
}
