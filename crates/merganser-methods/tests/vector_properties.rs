//! What the vector methods and the methods that compare task vectors promise for any tensor: the formula in f64, limits,
//! orderings, awkward shapes, hopeless inputs, and the same bits for any number of threads and any instruction set.

use merganser_kernels::simd;
use merganser_testkit::reference::{self, Information, Vector, minus, widen};
use merganser_testkit::{Random, assert_close};
use proptest::prelude::*;

mod support;

use support::Merge;

/// Shapes that a cut into chunks, blocks, rows or columns could get wrong; the last one has several chunks.
const SHAPES: [&[usize]; 8] = [
    &[],
    &[1],
    &[7],
    &[3, 1],
    &[5, 9],
    &[2, 3, 4, 5],
    &[2100, 3],
    &[70, 2, 1000],
];

/// A base and `count` fine-tunes of it.
fn models(random: &mut Random, shape: &[usize], count: usize) -> Vec<Vec<f32>> {
    let base = random.normals(shape.iter().product(), 0.5);
    let tunes: Vec<Vec<f32>> = (0..count).map(|_| random.near(&base, 0.1)).collect();
    std::iter::once(base).chain(tunes).collect()
}

/// The same in exact arithmetic: base, models, and the task vectors as the engine sees them, rounded to f32.
fn exact(models: &[Vec<f32>]) -> (Vector, Vec<Vector>, Vec<Vector>) {
    let base = widen(&models[0]);
    let xs: Vec<Vector> = models[1..].iter().map(|x| widen(x)).collect();
    let round = |d: Vector| d.into_iter().map(|d| f64::from(d as f32)).collect();
    let deltas = xs.iter().map(|x| round(minus(x, &base))).collect();
    (base, xs, deltas)
}

#[track_caller]
fn check(merge: &Merge, expected: &[f64], what: &str) {
    assert_close(&merge.one(), expected, 2e-6, 2e-6, what);
}

/// Calls `visit` with models of every shape.
fn for_each_shape(count: usize, mut visit: impl FnMut(&[usize], &[Vec<f32>], &str)) {
    let mut random = Random::new(17);
    for shape in SHAPES {
        visit(
            shape,
            &models(&mut random, shape, count),
            &format!("shape {shape:?}"),
        );
    }
}

#[test]
fn slerp_and_nearswap() {
    for_each_shape(1, |shape, models, what| {
        let (base, xs, _) = exact(models);
        for t in [0.0, 0.3, 1.0, 1.5] {
            let merge = Merge::new("slerp", 2, Some(0))
                .set("t", t)
                .tensor("x", shape, models);
            check(&merge, &reference::slerp(&base, &xs[0], t), what);
            let merge = Merge::new("nearswap", 2, Some(0))
                .set("t", t / 10.0)
                .tensor("x", shape, models);
            check(&merge, &reference::nearswap(&base, &xs[0], t / 10.0), what);
        }
    });
    // Tensors that are not nearly parallel.
    let mut random = Random::new(3);
    let (a, c) = (random.normals(5000, 1.0), random.normals(5000, 2.0));
    let merge =
        Merge::new("slerp", 2, Some(1))
            .set("t", 0.3)
            .tensor("x", &[5000], &[c.clone(), a.clone()]);
    check(
        &merge,
        &reference::slerp(&widen(&a), &widen(&c), 0.3),
        "wide angle",
    );
}

/// nuslerp on whole tensors, rows and columns, with and without a base.
#[test]
fn nuslerp() {
    for_each_shape(2, |shape, models, what| {
        let (base, xs, deltas) = exact(models);
        let row = shape.last().copied().unwrap_or(1);
        let items = if shape.len() < 2 { 1 } else { shape[0] };
        let item = base.len() / items;
        for has_base in [false, true] {
            let (vs, skip) = if has_base { (&deltas, 0) } else { (&xs, 1) };
            let with_base = |v: Vector| {
                if has_base {
                    reference::plus(&base, &v)
                } else {
                    v
                }
            };
            let merge = || {
                Merge::new("nuslerp", 3 - skip, has_base.then_some(0))
                    .set_others("weight", &[1.0, 3.0])
                    .tensor("x", shape, &models[skip..])
            };
            let slerp = |a: &[f64], b: &[f64]| reference::nuslerp(a, b, 1.0, 3.0);
            check(&merge(), &with_base(slerp(&vs[0], &vs[1])), what);

            let by_row: Vector = vs[0]
                .chunks(row)
                .zip(vs[1].chunks(row))
                .flat_map(|(a, b)| slerp(a, b))
                .collect();
            let rows = merge().set("nuslerp_flatten", false);
            // Rows of one or two elements can be parallel up to rounding, where the two formulas differ by it.
            check(&rows, &with_base(by_row), what);

            let mut by_column = vec![0.0; base.len()];
            for column in 0..item {
                let of = |v: &Vector| (0..items).map(|i| v[i * item + column]).collect::<Vector>();
                for (i, y) in slerp(&of(&vs[0]), &of(&vs[1])).into_iter().enumerate() {
                    by_column[i * item + column] = y;
                }
            }
            let by_column = if shape.len() < 2 {
                slerp(&vs[0], &vs[1])
            } else {
                by_column
            };
            let columns = merge()
                .set("nuslerp_flatten", false)
                .set("nuslerp_row_wise", true);
            check(&columns, &with_base(by_column), what);
        }
    });
}

#[test]
fn multislerp_and_karcher() {
    for_each_shape(3, |shape, models, what| {
        let (base, xs, deltas) = exact(models);
        let weights = [0.5, 1.0, 0.3];
        for normalize in [true, false] {
            let merge = |skip: usize, base| {
                Merge::new("multislerp", 4 - skip, base)
                    .set_others("weight", &weights)
                    .set("normalize_weights", normalize)
                    .set("eps", 1e-3)
                    .tensor("x", shape, &models[skip..])
            };
            let mean = reference::multislerp(&xs, &weights, normalize, 1e-3).expect("a direction");
            check(&merge(1, None), &mean, what);
            let mean =
                reference::multislerp(&deltas, &weights, normalize, 1e-3).expect("a direction");
            check(&merge(0, Some(0)), &reference::plus(&base, &mean), what);
        }
        let merge = Merge::new("karcher", 3, None).tensor("x", shape, &models[1..]);
        check(&merge, &reference::karcher(&xs, 10, 1e-5), what);
    });
    let mut random = Random::new(8);
    let wide: Vec<Vec<f32>> = (0..4).map(|_| random.normals(300, 1.0)).collect();
    let exact: Vec<Vector> = wide.iter().map(|x| widen(x)).collect();
    for steps in [0, 1, 10] {
        let merge = Merge::new("karcher", 4, None)
            .set("max_iter", steps)
            .tensor("x", &[300], &wide);
        check(
            &merge,
            &reference::karcher(&exact, steps as usize, 1e-5),
            "wide angles",
        );
    }
}

#[test]
fn model_stock() {
    for_each_shape(3, |shape, models, what| {
        let (base, xs, _) = exact(models);
        let merge = || Merge::new("model_stock", 4, Some(0)).tensor("x", shape, models);
        check(&merge(), &reference::model_stock(&base, &xs), what);
        let degrees = reference::model_stock_degrees(&base, &xs);
        check(&merge().set("angles", "degrees"), &degrees, what);
        let row = shape.last().copied().unwrap_or(1);
        let by_row = (0..base.len() / row).flat_map(|i| {
            let part = i * row..(i + 1) * row;
            let xs: Vec<Vector> = xs.iter().map(|x| x[part.clone()].to_vec()).collect();
            reference::model_stock(&base[part], &xs)
        });
        // A short row can come near the pole of the ratio, where rounding is amplified without bound.
        if row > 4 {
            check(
                &merge().set("filter_wise", true),
                &by_row.collect::<Vector>(),
                what,
            );
        }
    });
}

#[test]
fn methods_that_compare_task_vectors() {
    for_each_shape(3, |shape, models, what| {
        let (base, _, deltas) = exact(models);
        let merge = |method| Merge::new(method, 4, Some(0)).tensor("x", shape, models);
        check(
            &merge("ram").set("epsilon", 0.08),
            &reference::ram(&base, &deltas, f64::from(0.08_f32)),
            what,
        );
        let bonus = reference::ramplus_tl(&base, &deltas, f64::from(0.08_f32), 0.5, 3.0);
        check(
            &merge("ramplus_tl")
                .set("epsilon", 0.08)
                .set("r", 0.5)
                .set("alpha", 3.0),
            &bonus,
            what,
        );
        check(
            &merge("magmax").set("lambda", 0.5),
            &reference::magmax(&base, &deltas, 0.5),
            what,
        );
        let cuts = [0.25, 0.5, 0.75];
        let consensus = reference::consensus(&base, &deltas, &cuts, 2, 0.5);
        check(
            &merge("consensus")
                .set_others("tall_lambda", &cuts)
                .set("lambda", 0.5),
            &consensus,
            what,
        );
        let localized = reference::tall_localized(&base, &deltas, 2, 0.75, 0.5);
        let tall = merge("tall_mask")
            .set_others("tall_lambda", &cuts)
            .set("task", 2)
            .set("lambda", 0.5);
        check(&tall, &localized, what);
        let emr = reference::emr(&deltas);
        check(&merge("emr"), &reference::plus(&base, &emr.unified), what);
        let factor = reference::emr_rescalers(std::slice::from_ref(&deltas))[1];
        let own = emr
            .unified
            .iter()
            .zip(&emr.masks[1])
            .map(|(u, kept)| if *kept { factor * u } else { 0.0 });
        let rebuilt = reference::plus(&base, &own.collect::<Vector>());
        for rescaler in ["mean", "total"] {
            check(
                &merge("emr")
                    .set("output", "task")
                    .set("task", 1)
                    .set("rescaler", rescaler),
                &rebuilt,
                what,
            );
        }
    });
}

#[test]
fn fisher() {
    for_each_shape(2, |shape, models, what| {
        let (_, xs, _) = exact(models);
        let mut random = Random::new(5);
        let information: Vec<Vec<f32>> = (0..2)
            .map(|_| {
                random
                    .normals(xs[0].len(), 1e-3)
                    .iter()
                    .map(|x| x * x)
                    .collect()
            })
            .collect();
        let exact: Vec<Vector> = information.iter().map(|f| widen(f)).collect();
        let norms: Vector = exact.iter().map(|f| reference::norm(f)).collect();
        let weights = [0.7, 0.2];
        for (normalize, variant, favor_target) in [
            (true, "mergelm", true),
            (false, "mergelm", true),
            (true, "matena", true),
            (false, "matena", false),
        ] {
            let form = if variant == "matena" {
                Information::Matena { favor_target }
            } else {
                Information::MergeLm
            };
            let norms = normalize.then_some(norms.as_slice());
            let merge = Merge::new("fisher", 2, None)
                .set_others("weight", &weights)
                .set("variant", variant)
                .set("normalize", normalize)
                .set("favor_target", favor_target)
                .tensor_with("x", shape, &models[1..], &information);
            check(
                &merge,
                &reference::fisher(&xs, &exact, &weights, norms, f64::from(1e-6_f32), form),
                what,
            );
        }
    });
}

/// Merges that leave a model as it is.
#[test]
fn limits() {
    for_each_shape(1, |shape, models, what| {
        let (base, x) = (&models[0], &models[1]);
        let twice = |base: Option<usize>, method| {
            let mut inputs = vec![x.clone(); 2];
            if base.is_some() {
                inputs.insert(0, models[0].clone());
            }
            Merge::new(method, inputs.len(), base).tensor("x", shape, &inputs)
        };
        let same = |merge: Merge, expected: &[f32]| check(&merge, &widen(expected), what);
        same(
            Merge::new("slerp", 2, Some(0))
                .set("t", 0.0)
                .tensor("x", shape, models),
            base,
        );
        same(
            Merge::new("slerp", 2, Some(0))
                .set("t", 1.0)
                .tensor("x", shape, models),
            x,
        );
        same(twice(None, "nuslerp").set_others("weight", &[1.0, 2.0]), x);
        same(
            twice(Some(0), "nuslerp").set_others("weight", &[1.0, 2.0]),
            x,
        );
        same(
            twice(None, "multislerp").set_others("weight", &[1.0, 2.0]),
            x,
        );
        same(twice(None, "karcher"), x);
        same(twice(Some(0), "model_stock"), x);
        same(twice(Some(0), "ram").set("epsilon", 0.0), x);
        same(twice(Some(0), "magmax"), x);
        same(twice(Some(0), "magmax").set("lambda", 0.0), base);
        same(twice(Some(0), "consensus").set("lambda", 0.5), x);
        same(twice(Some(0), "consensus").set("lambda", 0.0), base);
        same(twice(Some(0), "emr"), x);
        same(
            twice(Some(0), "emr").set("output", "task").set("task", 1),
            x,
        );
        same(
            twice(None, "greedy_soup")
                .set_others("score", &[1.0, 2.0])
                .set("ingredients", 2),
            x,
        );
        same(
            Merge::new("multislerp", 1, None)
                .set_others("weight", &[0.3])
                .tensor("x", shape, &models[1..]),
            x,
        );
        same(
            Merge::new("karcher", 1, None).tensor("x", shape, &models[1..]),
            x,
        );
        same(
            Merge::new("passthrough", 1, None).tensor("x", shape, &models[1..]),
            x,
        );
        let halved: Vec<f32> = x.iter().map(|x| x / 2.0).collect();
        same(
            Merge::new("passthrough", 1, None)
                .set_input(0, "scale", 0.5)
                .tensor("x", shape, &models[1..]),
            &halved,
        );
    });
}

/// Every method of this file with settings that work for any input, on the given models (the base first).
fn all_methods(shape: &[usize], models: &[Vec<f32>]) -> Vec<Merge> {
    let count = models.len() - 1;
    let with =
        |method, n: usize| Merge::new(method, n + 1, Some(0)).tensor("x", shape, &models[..=n]);
    let without = |method, n: usize| Merge::new(method, n, None).tensor("x", shape, &models[1..=n]);
    let weights = vec![0.5; count];
    let information: Vec<Vec<f32>> = models[1..]
        .iter()
        .map(|x| x.iter().map(|x| x * x).collect())
        .collect();
    vec![
        with("slerp", 1).set("t", 0.3),
        with("nearswap", 1).set("t", 0.01),
        with("nuslerp", 2).set_others("weight", &weights[..2]),
        without("nuslerp", 2)
            .set_others("weight", &weights[..2])
            .set("nuslerp_flatten", false),
        with("nuslerp", 2)
            .set_others("weight", &weights[..2])
            .set("nuslerp_flatten", false)
            .set("nuslerp_row_wise", true),
        with("multislerp", count).set_others("weight", &weights),
        without("karcher", count),
        with("model_stock", count),
        with("model_stock", count).set("angles", "degrees"),
        with("model_stock", count).set("filter_wise", true),
        with("ram", count),
        with("ramplus_tl", count),
        with("magmax", count),
        with("consensus", count),
        with("tall_mask", count).set("task", 1),
        with("emr", count),
        with("emr", count).set("output", "task"),
        Merge::new("fisher", count, None).tensor_with("x", shape, &models[1..], &information),
        Merge::new("fisher", count, None)
            .set("variant", "matena")
            .set("floor", 0.0)
            .tensor_with("x", shape, &models[1..], &information),
        without("greedy_soup", count)
            .set_others("score", &weights)
            .set("ingredients", 2),
    ]
}

#[test]
fn zeros_and_equal_models_stay_finite() {
    for shape in SHAPES {
        let len = shape.iter().product();
        let x = Random::new(1).normals(len, 1.0);
        for models in [vec![vec![0.0; len]; 4], vec![x; 4]] {
            for merge in all_methods(shape, &models) {
                let merged = widen(&merge.one());
                let expected: Vector = widen(&models[0]);
                let what = format!("{} of {shape:?}", merge.method.info().name);
                let merged: Vec<f32> = merged.iter().map(|x| *x as f32).collect();
                assert_close(&merged, &expected, 1e-6, 1e-6, &what);
            }
        }
    }
}

#[test]
fn empty_tensors_are_merged_into_empty_tensors() {
    for shape in [[0, 3], [3, 0]] {
        for merge in all_methods(&shape, &vec![Vec::new(); 4]) {
            assert!(merge.one().is_empty(), "{}", merge.method.info().name);
        }
    }
}

/// Threads and instruction sets change nothing.
#[test]
fn the_bits_are_always_the_same() {
    let mut random = Random::new(23);
    for shape in [&[131, 1501][..], &[40, 7, 3]] {
        let models = models(&mut random, shape, 3);
        for merge in all_methods(shape, &models) {
            let bits = || merge.one().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let pool = |threads| {
                rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .expect("threads")
            };
            let expected = pool(1).install(bits);
            assert!(
                pool(2).install(bits) == expected,
                "{}: two threads",
                merge.method.info().name
            );
            for level in simd::available() {
                let got = pool(1).install(|| simd::with_level(level, bits));
                assert!(
                    got == expected,
                    "{}: {}",
                    merge.method.info().name,
                    level.name()
                );
            }
        }
    }
}

#[test]
fn refusals_say_what_to_do() {
    let x = || vec![vec![1.0, 2.0], vec![2.0, 1.0], vec![3.0, 5.0]];
    let refused = |merge: Merge, words: &str| {
        let reason = merge
            .tensor("x", &[2], &x())
            .try_run()
            .expect_err("a refusal");
        assert!(reason.contains(words), "{reason}");
    };
    refused(
        Merge::new("multislerp", 3, None).set_others("weight", &[1.0, -1.0, 0.0]),
        "weights sum to 0",
    );
    refused(
        Merge::new("consensus", 3, Some(0)).set("threshold", 3),
        "lower it",
    );
    refused(
        Merge::new("tall_mask", 3, Some(0)).set("task", 2),
        "task 2 does not exist",
    );
    refused(
        Merge::new("emr", 3, Some(0))
            .set("output", "task")
            .set("task", 7),
        "task 7 does not exist",
    );
    refused(Merge::new("fisher", 3, None), "no Fisher information");
    refused(
        Merge::new("fisher", 3, None)
            .set_others("weight", &[0.0; 3])
            .set("normalize", false),
        "all weights are 0",
    );
    refused(
        Merge::new("greedy_soup", 3, None)
            .set_others("score", &[1.0; 3])
            .set("ingredients", 4),
        "lower it",
    );
    refused(
        Merge::new("slerp", 3, Some(0)).set("t", 0.5),
        "takes 1 models besides the base, not 2",
    );
    refused(Merge::new("slerp", 3, None).set("t", 0.5), "base_model");
    let opposed = [vec![1.0, 2.0], vec![-1.0, -2.0], vec![0.0, 0.0]];
    let merge = Merge::new("multislerp", 3, None)
        .set_others("weight", &[1.0; 3])
        .tensor("x", &[2], &opposed);
    assert!(
        merge
            .try_run()
            .expect_err("no direction")
            .contains("cancel")
    );
}

/// One number a model means nothing if tensors come from different models.
#[test]
fn surveys_need_the_same_models_everywhere() {
    for merge in [
        Merge::new("emr", 2, Some(0)).set("output", "task"),
        Merge::new("fisher", 2, None),
    ] {
        let x = [vec![1.0], vec![2.0]];
        let merge = merge
            .tensor_with("x", &[1], &x, &x)
            .tensor_with("y", &[1], &x, &x);
        merge.with_groups(|groups| merge.method.survey(groups).expect("the same models"));
        let reason = merge.with_groups_changed(
            |groups| groups[1].inputs[1].model = "another",
            |groups| {
                merge
                    .method
                    .survey(groups)
                    .expect_err("other models")
                    .to_string()
            },
        );
        assert!(
            reason.contains("'y'") && reason.contains("another"),
            "{reason}"
        );
    }
}

/// Models in another order give the same result up to rounding.
fn assert_order_does_not_matter(method: &str, models: &[Vec<f32>]) {
    let len = models[0].len();
    let merge = |models: Vec<Vec<f32>>| {
        let merge = Merge::new(method, 4, Some(0));
        let weighted = merge
            .method
            .info()
            .parameters
            .iter()
            .any(|parameter| parameter.name == "weight");
        let merge = if weighted {
            merge.set_others("weight", &[1.0; 3])
        } else {
            merge
        };
        merge.tensor("x", &[len], &models).one()
    };
    let there = merge(models.to_vec());
    let back = merge(
        [
            &models[..1],
            &[models[3].clone(), models[1].clone(), models[2].clone()],
        ]
        .concat(),
    );
    assert_close(&there, &widen(&back), 1e-5, 1e-5, method);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_order_of_the_models_does_not_matter(seed in any::<u64>(), len in 1_usize..40) {
        let models = models(&mut Random::new(seed), &[len], 3);
        for method in ["multislerp", "ram", "ramplus_tl", "consensus", "emr", "magmax"] {
            assert_order_does_not_matter(method, &models);
        }
        // In few dimensions the ratio can have a pole.
        if len > 20 {
            assert_order_does_not_matter("model_stock", &models);
        }
    }

    #[test]
    fn slerp_of_unit_vectors_stays_on_the_sphere(seed in any::<u64>(), len in 2_usize..50, t in 0.0..1.0) {
        let mut random = Random::new(seed);
        let unit = |random: &mut Random| {
            let x = random.normals(len, 1.0);
            let norm = reference::norm(&widen(&x)) as f32;
            x.iter().map(|x| x / norm).collect::<Vec<f32>>()
        };
        let models = [unit(&mut random), unit(&mut random)];
        let merge = Merge::new("slerp", 2, Some(0)).set("t", t).tensor("x", &[len], &models);
        let norm = reference::norm(&widen(&merge.one()));
        // Nearly parallel or opposed vectors are interpolated linearly.
        let cosine = reference::dot(&widen(&models[0]), &widen(&models[1]));
        prop_assert!(cosine.abs() > 0.999 || (norm - 1.0).abs() < 1e-4, "{}", norm);
    }

    #[test]
    fn nearswap_never_leaves_the_interval(seed in any::<u64>(), t in 0.0..0.2_f64) {
        let models = models(&mut Random::new(seed), &[64], 1);
        let merged = Merge::new("nearswap", 2, Some(0)).set("t", t).tensor("x", &[64], &models).one();
        for ((y, b), x) in merged.iter().zip(&models[0]).zip(&models[1]) {
            prop_assert!(*y >= b.min(*x) - 1e-6 && *y <= b.max(*x) + 1e-6);
            prop_assert!(f64::from((y - b).abs()) <= t + 1e-6);
        }
    }

    #[test]
    fn magmax_takes_one_of_the_changes(seed in any::<u64>()) {
        let models = models(&mut Random::new(seed), &[64], 4);
        let merged = Merge::new("magmax", 5, Some(0)).tensor("x", &[64], &models).one();
        for j in 0..64 {
            let far = models.iter().map(|x| (x[j] - models[0][j]).abs()).fold(0.0, f32::max);
            prop_assert!(((merged[j] - models[0][j]).abs() - far).abs() < 1e-6);
        }
    }
}
