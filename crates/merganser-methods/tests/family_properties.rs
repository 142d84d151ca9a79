//! What the task-vector family promises for any tensor: the formula in f64, limits, orderings, awkward shapes, hopeless
//! inputs, and the same bits for any number of threads and any instruction set.

use merganser_kernels::mask::Stream;
use merganser_kernels::simd;
use merganser_testkit::reference::{self, Family, Vector, minus, plus, times, widen};
use merganser_testkit::{Random, assert_close};
use proptest::prelude::*;

mod support;

use support::Merge;

/// Shapes that a cut into chunks, blocks, rows or items could get wrong; the last two have several chunks.
const SHAPES: [&[usize]; 8] = [
    &[],
    &[1],
    &[7],
    &[3, 1],
    &[5, 9],
    &[2, 3, 4, 5],
    &[1800, 37],
    &[67, 2, 500],
];

const WEIGHTS: [f64; 3] = [1.0, 0.5, -0.25];

/// A base and three fine-tunes of it. Values are multiples of 1/256: differences are exact and equal magnitudes abound,
/// so that the choice among them is tested; and no sum of votes is nearly but not exactly 0.
fn models(random: &mut Random, shape: &[usize]) -> Vec<Vec<f32>> {
    let len = shape.iter().product();
    (0..4).map(|_| random.dyadics(len)).collect()
}

/// The base and the task vectors in f64.
fn exact(models: &[Vec<f32>]) -> (Vector, Vec<Vector>) {
    let base = widen(&models[0]);
    let deltas = models[1..]
        .iter()
        .map(|x| minus(&widen(x), &base))
        .collect();
    (base, deltas)
}

#[track_caller]
fn check(merge: &Merge, expected: &[f64], what: &str) {
    assert_close(&merge.one(), expected, 4e-6, 4e-6, what);
}

fn for_each_shape(mut visit: impl FnMut(&[usize], &[Vec<f32>], &str)) {
    let mut random = Random::new(29);
    for shape in SHAPES {
        visit(
            shape,
            &models(&mut random, shape),
            &format!("shape {shape:?}"),
        );
    }
}

fn merge(method: &str, shape: &[usize], models: &[Vec<f32>]) -> Merge {
    Merge::new(method, models.len(), Some(0))
        .set_others("weight", &WEIGHTS)
        .tensor("x", shape, models)
}

/// The kept part of each task vector, brought to the L1 norm of the whole if `rescaled`.
fn thin(deltas: &[Vector], masks: &[Vec<bool>], rescaled: bool) -> Vec<Vector> {
    deltas
        .iter()
        .zip(masks)
        .map(|(delta, mask)| {
            let factor = if rescaled {
                reference::l1_factor(delta, mask)
            } else {
                1.0
            };
            delta
                .iter()
                .zip(mask)
                .map(|(d, kept)| if *kept { factor * d } else { 0.0 })
                .collect()
        })
        .collect()
}

/// Runs a method with and without normalising and rescaling against the formula.
fn check_family(
    method: &str,
    elect: bool,
    shape: &[usize],
    models: &[Vec<f32>],
    density: f64,
    masks: &dyn Fn(&[Vector]) -> Vec<Vec<bool>>,
) {
    let (base, deltas) = exact(models);
    for (normalize, rescale) in [
        (false, "false"),
        (true, "l1"),
        (true, "false"),
        (false, "true"),
    ] {
        let kept = thin(&deltas, &masks(&deltas), rescale != "false");
        let family = Family {
            elect,
            normalize,
            lambda: 0.75,
        };
        let expected = reference::merge_task_vectors(&base, &kept, &WEIGHTS, family);
        let merge = merge(method, shape, models)
            .set_others("density", &[density; 3])
            .set("normalize", normalize)
            .set("rescale", rescale)
            .set("lambda", 0.75);
        let what = format!(
            "{method} of {shape:?}, density {density}, normalize {normalize}, rescale {rescale}"
        );
        assert_close(&merge.one(), &expected, 4e-5, 4e-6, &what);
    }
}

#[test]
fn task_arithmetic() {
    for_each_shape(|shape, models, what| {
        let (base, deltas) = exact(models);
        for normalize in [false, true] {
            let family = Family {
                elect: false,
                normalize,
                lambda: -0.5,
            };
            let expected = reference::merge_task_vectors(&base, &deltas, &WEIGHTS, family);
            check(
                &merge("task_arithmetic", shape, models)
                    .set("normalize", normalize)
                    .set("lambda", -0.5),
                &expected,
                what,
            );
        }
    });
}

#[test]
fn ties_and_breadcrumbs() {
    for_each_shape(|shape, models, _| {
        for density in [0.0, 0.01, 0.3, 0.9, 1.0] {
            let largest = |deltas: &[Vector]| {
                deltas
                    .iter()
                    .map(|d| reference::magnitude(d, density))
                    .collect()
            };
            check_family("ties", true, shape, models, density, &largest);
            let middle = |deltas: &[Vector]| {
                deltas
                    .iter()
                    .map(|d| reference::outliers(d, density, 0.01))
                    .collect()
            };
            check_family("breadcrumbs", false, shape, models, density, &middle);
            check_family("breadcrumbs_ties", true, shape, models, density, &middle);
        }
    });
}

/// The random numbers of task `task` of tensor "x", seed 0.
fn numbers(task: usize, len: usize) -> Vec<f32> {
    let mut numbers = vec![0.0; len];
    Stream::new(0, "x", task as u32).uniform(0, &mut numbers);
    numbers
}

#[test]
fn dare() {
    for_each_shape(|shape, models, _| {
        for density in [0.0, 0.1, 0.8, 1.0] {
            let masks = |deltas: &[Vector]| {
                let mask = |(task, d): (usize, &Vector)| {
                    numbers(task, d.len())
                        .iter()
                        .map(|u| *u < density as f32)
                        .collect()
                };
                deltas.iter().enumerate().map(mask).collect()
            };
            check_family("dare_linear", false, shape, models, density, &masks);
            check_family("dare_ties", true, shape, models, density, &masks);
        }
    });
}

/// The keep probabilities of DELLA in the order of the tensor: along the last dimension of a matrix, along dimension 1 of
/// anything larger.
fn della_probabilities(shape: &[usize], delta: &[f64], density: f64, epsilon: f64) -> Vector {
    let (row, stride) = match shape {
        [] => (1, 1),
        [n] => (*n, 1),
        [_, row, rest @ ..] => (*row, rest.iter().product::<usize>()),
    };
    let mut probabilities = vec![0.0; delta.len()];
    for start in (0..delta.len()).filter(|i| i / stride % row == 0) {
        let places: Vec<usize> = (0..row).map(|i| start + i * stride).collect();
        let values: Vector = places.iter().map(|i| delta[*i]).collect();
        let found = reference::della_keep_probabilities(&values, row, density, epsilon);
        places
            .into_iter()
            .zip(found)
            .for_each(|(i, p)| probabilities[i] = p);
    }
    probabilities
}

/// What DELLA keeps: an element whose random number lies between the two ends of the probability is compared with the
/// other element of its row that the number points at.
fn della_mask(shape: &[usize], delta: &[f64], density: f64, task: usize) -> Vec<bool> {
    let (row, stride) = match shape {
        [] => (1, 1),
        [n] => (*n, 1),
        [_, row, rest @ ..] => (*row, rest.iter().product::<usize>()),
    };
    let epsilon = if row == 1 { 0.0 } else { 0.15 };
    let (low, high) = ((density - epsilon) as f32, (density + epsilon) as f32);
    let numbers = numbers(task, delta.len());
    let keeps = |at: usize| {
        let u = numbers[at];
        if row == 1 || u < low || u >= high {
            return u < low;
        }
        let (i, first) = (at / stride % row, at - at / stride % row * stride);
        let others: Vec<usize> = (0..row).filter(|j| *j != i).collect();
        let place = (u - low) * ((row - 1) as f32 / (high - low));
        let j = others[(place as usize).min(row - 2)];
        (delta[first + j * stride].abs(), j) < (delta[at].abs(), i)
    };
    (0..delta.len()).map(keeps).collect()
}

#[test]
fn della() {
    for_each_shape(|shape, models, _| {
        for density in [0.3, 0.7, 1.0] {
            let masks = |deltas: &[Vector]| {
                let mask = |(task, d): (usize, &Vector)| -> Vec<bool> {
                    if density < 1.0 {
                        della_mask(shape, d, density, task)
                    } else {
                        vec![true; d.len()]
                    }
                };
                deltas.iter().enumerate().map(mask).collect()
            };
            check_family("della", true, shape, models, density, &masks);
            check_family("della_linear", false, shape, models, density, &masks);
        }
    });
}

/// Probabilities and mask of a task vector, given its number.
type Masks<'a> = &'a dyn Fn(&Vector, usize) -> (Vector, Vec<bool>);

/// The papers divide what is kept by its keep probability.
#[test]
fn rescaling_by_density() {
    for_each_shape(|shape, models, what| {
        let (base, deltas) = exact(models);
        let thinned = |masks: Masks<'_>| -> Vec<Vector> {
            let thin = |(task, d): (usize, &Vector)| {
                let (p, kept) = masks(d, task);
                (0..d.len())
                    .map(|j| if kept[j] { d[j] / p[j] } else { 0.0 })
                    .collect()
            };
            deltas.iter().enumerate().map(thin).collect()
        };
        let family = Family {
            elect: false,
            normalize: false,
            lambda: 1.0,
        };
        let run = |method: &str, kept: &[Vector]| {
            let expected = reference::merge_task_vectors(&base, kept, &WEIGHTS, family);
            let merge = merge(method, shape, models)
                .set_others("density", &[0.5; 3])
                .set("rescale", "density");
            assert_close(
                &merge.one(),
                &expected,
                1e-4,
                1e-5,
                &format!("{method} of {what}"),
            );
        };
        let dare = |d: &Vector, task: usize| {
            let kept = numbers(task, d.len()).iter().map(|u| *u < 0.5).collect();
            (vec![0.5; d.len()], kept)
        };
        let della = |d: &Vector, task: usize| {
            let p = della_probabilities(shape, d, 0.5, 0.15);
            (p, della_mask(shape, d, 0.5, task))
        };
        run("dare_linear", &thinned(&dare));
        run("della_linear", &thinned(&della));
    });
}

#[test]
fn sce() {
    for_each_shape(|shape, models, what| {
        let (base, deltas) = exact(models);
        let merge = |topk: f64| {
            Merge::new("sce", 4, Some(0))
                .set("select_topk", topk)
                .tensor("x", shape, models)
        };
        check(&merge(1.0), &reference::sce(&base, &deltas, 1.0), what);
        check(&merge(0.0), &base, what);
    });
    // Variances of f32 and f64 order alike only where they are not nearly equal: random magnitudes, and many zeros.
    let mut random = Random::new(31);
    for len in [1, 50, 3001, 100_000] {
        let base = vec![0.0; len];
        let values: Vec<f64> = (0..len).map(|_| 0.5 + random.uniform()).collect();
        let zero: Vec<bool> = (0..len).map(|_| random.below(3) == 0).collect();
        let signs: Vec<Vec<f64>> = (0..3)
            .map(|_| (0..len).map(|_| random.below(3) as f64 - 1.0).collect())
            .collect();
        let task = |signs: &Vec<f64>| -> Vec<f32> {
            (0..len)
                .map(|j| {
                    if zero[j] {
                        0.0
                    } else {
                        (values[j] * (signs[j] + 0.25)) as f32
                    }
                })
                .collect()
        };
        let models = [base, task(&signs[0]), task(&signs[1]), task(&signs[2])];
        let (base, deltas) = exact(&models);
        for topk in [0.1, 0.5, 0.99] {
            let merge = Merge::new("sce", 4, Some(0))
                .set("select_topk", topk)
                .tensor("x", &[len], &models);
            let (got, expected) = (merge.one(), reference::sce(&base, &deltas, topk));
            let far = |j: &usize| (f64::from(got[*j]) - expected[*j]).abs() > 1e-4;
            let off = (0..len).filter(far).count();
            assert!(
                off <= len / 10_000,
                "{off} of {len} elements differ at select_topk {topk}"
            );
        }
    }
}

#[test]
fn arcee_fusion() {
    let mut random = Random::new(37);
    for shape in SHAPES {
        let len: usize = shape.iter().product();
        let base = random.normals(len, 1.0);
        let x = random.near(&base, 0.3);
        let row = shape.last().copied().unwrap_or(1);
        let expected = reference::arcee_fusion(&widen(&base), &widen(&x), row);
        let merged = Merge::new("arcee_fusion", 2, Some(0))
            .tensor("x", shape, &[base, x])
            .one();
        let off = merged
            .iter()
            .zip(&expected)
            .filter(|(a, e)| f64::from(**a) != **e)
            .count();
        // An importance may round to the other side of the threshold.
        assert!(off <= 1, "{off} of {len} elements differ, shape {shape:?}");
    }
}

#[test]
fn pcb() {
    let mut random = Random::new(41);
    for shape in SHAPES {
        let base = random.normals(shape.iter().product(), 0.5);
        let models: Vec<Vec<f32>> = std::iter::once(base.clone())
            .chain((0..3).map(|_| random.near(&base, 0.1)))
            .collect();
        let base = widen(&models[0]);
        let round = |d: Vector| -> Vector { d.into_iter().map(|d| f64::from(d as f32)).collect() };
        let deltas: Vec<Vector> = models[1..]
            .iter()
            .map(|x| round(minus(&widen(x), &base)))
            .collect();
        for (ratio, scope) in [
            (0.05, "tensor"),
            (0.3, "model"),
            (1.0, "tensor"),
            (0.0, "tensor"),
        ] {
            let merge = Merge::new("pcb", 4, Some(0))
                .set("ratio", ratio)
                .set("scope", scope)
                .set("lambda", 0.5);
            let expected = plus(&base, &times(0.5, &reference::pcb(&deltas, ratio)));
            check(
                &merge.tensor("x", shape, &models),
                &expected,
                &format!("{shape:?}, ratio {ratio}"),
            );
        }
    }
}

/// One threshold over several tensors is the threshold over their concatenation.
#[test]
fn model_scope_is_one_long_tensor() {
    let mut random = Random::new(43);
    let parts: [&[usize]; 4] = [&[3, 5], &[0], &[70_001], &[13]];
    let tensors: Vec<Vec<Vec<f32>>> = parts
        .iter()
        .map(|shape| models(&mut random, shape))
        .collect();
    let whole: Vec<Vec<f32>> = (0..4)
        .map(|i| {
            tensors
                .iter()
                .flat_map(|models| models[i].clone())
                .collect()
        })
        .collect();
    let ties = |merge: Merge| {
        merge
            .set_others("weight", &WEIGHTS)
            .set_others("density", &[0.2, 0.5, 0.9])
            .set("scope", "model")
            .set("zero_sum", "majority")
    };
    let pcb = |merge: Merge| merge.set("ratio", 0.2);
    for (method, set) in [("ties", &ties as &dyn Fn(Merge) -> Merge), ("pcb", &pcb)] {
        let one = set(Merge::new(method, 4, Some(0)))
            .tensor("x", &[whole[0].len()], &whole)
            .one();
        let several = parts
            .iter()
            .zip(&tensors)
            .enumerate()
            .fold(set(Merge::new(method, 4, Some(0))), |merge, (i, part)| {
                merge.tensor(&format!("part {i}"), part.0, part.1)
            });
        assert_eq!(
            several.run().into_values().flatten().collect::<Vec<_>>(),
            one,
            "{method}"
        );
    }
}

/// The paper's form on one tensor, all aggregates, against the paper's formula; weights of 1.
#[test]
fn ties_of_the_paper() {
    for_each_shape(|shape, models, what| {
        let (base, deltas) = exact(models);
        for (name, aggregate) in [
            ("mean", reference::Aggregate::Mean),
            ("sum", reference::Aggregate::Sum),
            ("max", reference::Aggregate::Max),
        ] {
            for density in [0.2, 0.9, 1.0] {
                let merge = Merge::new("ties", 4, Some(0))
                    .set_others("weight", &[1.0; 3])
                    .set_others("density", &[density; 3])
                    .set("scope", "model")
                    .set("zero_sum", "majority")
                    .set("aggregate", name)
                    .tensor("x", shape, models);
                check(
                    &merge,
                    &plus(&base, &reference::ties_paper(&deltas, density, aggregate)),
                    what,
                );
            }
        }
    });
}

/// Every method of this file with settings that work for any input, on a base and three models.
fn all_methods(shape: &[usize], models: &[Vec<f32>]) -> Vec<Merge> {
    all_methods_with(shape, models, &[0.5, 0.3, 1.0])
}

fn all_methods_with(shape: &[usize], models: &[Vec<f32>], densities: &[f64]) -> Vec<Merge> {
    let family = |method: &str| merge(method, shape, models).set_others("weight", &[0.5; 3]);
    let thinned = |method: &str| family(method).set_others("density", densities);
    let mut all = vec![
        family("task_arithmetic"),
        thinned("ties").set("rescale", "l1"),
        thinned("ties")
            .set("election", "count")
            .set("zero_sum", "majority"),
        thinned("ties")
            .set("scope", "model")
            .set("aggregate", "max"),
        thinned("dare_linear"),
        thinned("dare_ties"),
        thinned("breadcrumbs"),
        thinned("breadcrumbs_ties").set("rescale", "l1"),
        thinned("della"),
        thinned("della_linear").set("rescale", "density"),
    ];
    let plain = |method| Merge::new(method, 4, Some(0)).tensor("x", shape, models);
    all.extend([
        plain("sce"),
        plain("sce").set("select_topk", 0.3),
        plain("pcb"),
        plain("pcb").set("scope", "tensor"),
    ]);
    all.push(Merge::new("arcee_fusion", 2, Some(0)).tensor("x", shape, &models[..2]));
    all
}

#[test]
fn zeros_and_equal_models_stay_finite() {
    for shape in SHAPES {
        let x = Random::new(1).normals(shape.iter().product(), 1.0);
        for models in [vec![vec![0.0; x.len()]; 4], vec![x; 4]] {
            for merge in all_methods(shape, &models) {
                let what = format!("{} of {shape:?}", merge.method.info().name);
                assert_close(&merge.one(), &widen(&models[0]), 0.0, 0.0, &what);
            }
        }
    }
}

/// A task that changed nothing neither spoils nor stops a merge.
#[test]
fn an_unchanged_model_is_harmless() {
    let mut random = Random::new(47);
    for shape in SHAPES {
        let mut models = models(&mut random, shape);
        models[2] = models[0].clone();
        for merge in all_methods(shape, &models) {
            assert!(
                merge.one().iter().all(|x| x.is_finite()),
                "{} of {shape:?}",
                merge.method.info().name
            );
        }
    }
}

#[test]
fn empty_tensors_are_merged_into_empty_tensors() {
    for shape in [&[0][..], &[0, 3], &[3, 0], &[2, 0, 4]] {
        for merge in all_methods(shape, &vec![Vec::new(); 4]) {
            assert!(merge.one().is_empty(), "{}", merge.method.info().name);
        }
    }
}

/// Threads and instruction sets change nothing.
#[test]
fn the_bits_are_always_the_same() {
    let mut random = Random::new(53);
    for shape in [&[131, 501][..], &[70, 1000], &[40, 70, 25]] {
        let models = models(&mut random, shape);
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

/// λ = 0 gives the base; one model of density 1 and weight 1 gives the model; equal models give that model.
#[test]
fn limits() {
    let family = [
        "ties",
        "dare_linear",
        "dare_ties",
        "breadcrumbs",
        "breadcrumbs_ties",
        "della",
        "della_linear",
    ];
    for_each_shape(|shape, models, what| {
        for method in family.into_iter().chain(["task_arithmetic"]) {
            let what = format!("{method}, {what}");
            let thinned = merge(method, shape, models).set("lambda", 0.0);
            let thinned = if method == "task_arithmetic" {
                thinned
            } else {
                thinned.set_others("density", &[0.4; 3])
            };
            check(&thinned, &widen(&models[0]), &what);
            let one = Merge::new(method, 2, Some(0))
                .set_others("weight", &[1.0])
                .tensor("x", shape, &models[..2]);
            check(&one, &widen(&models[1]), &what);
            let equal = [&models[..1], &vec![models[1].clone(); 3]].concat();
            let equal = Merge::new(method, 4, Some(0))
                .set_others("weight", &[0.2, 0.3, 0.5])
                .tensor("x", shape, &equal);
            check(&equal.set("normalize", true), &widen(&models[1]), &what);
        }
        let equal = [&models[..1], &vec![models[1].clone(); 3]].concat();
        check(
            &Merge::new("sce", 4, Some(0)).tensor("x", shape, &equal),
            &widen(&models[1]),
            what,
        );
    });
}

/// A base without fine-tunes of this tensor stays as it is.
#[test]
fn no_model_at_all_gives_the_base() {
    let x = Random::new(59).normals(100, 1.0);
    for method in [
        "task_arithmetic",
        "ties",
        "dare_linear",
        "breadcrumbs",
        "della",
        "sce",
        "pcb",
    ] {
        let merge = Merge::new(method, 1, Some(0)).tensor("x", &[10, 10], std::slice::from_ref(&x));
        match merge.try_run() {
            Ok(merged) => assert_eq!(merged["x"], x, "{method}"),
            Err(reason) => assert!(reason.contains("besides the base"), "{method}: {reason}"),
        }
    }
}

#[test]
fn refusals_say_what_to_do() {
    let models = vec![vec![1.0, 2.0]; 2];
    let della = |density: f64, epsilon: f64| {
        Merge::new("della", 2, Some(0))
            .set_others("weight", &[1.0])
            .set_others("density", &[density])
            .set_others("epsilon", &[epsilon])
            .tensor("x", &[2], &models)
            .try_run()
    };
    for (density, epsilon) in [(0.1, 0.15), (0.9, 0.15), (0.5, 0.5)] {
        let reason = della(density, epsilon).expect_err("not a probability");
        assert!(reason.contains("choose a smaller epsilon"), "{reason}");
    }
    assert!(della(1.0, 0.5).is_ok() && della(0.5, 0.49).is_ok());
}

/// How often every input is read is what the method says.
#[test]
fn passes_are_told_truly() {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use merganser_methods::{Encoding, Float, Input, Memory, Source, Survey, TensorGroup};

    /// Counts the elements that are fetched.
    struct Counting<'a>(Memory<'a>, AtomicUsize);

    impl Source for Counting<'_> {
        fn fetch(
            &self,
            range: std::ops::Range<usize>,
            raw: &mut Vec<u8>,
        ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            self.1.fetch_add(range.len(), Ordering::Relaxed);
            self.0.fetch(range, raw)
        }

        fn decode(&self, raw: &[u8], first: usize, skip: usize, out: &mut [f32]) {
            self.0.decode(raw, first, skip, out);
        }
    }

    let shape = [900, 800];
    let models = models(&mut Random::new(61), &shape);
    for merge in all_methods(&shape, &models) {
        let count = merge.settings.inputs.len();
        let bytes: Vec<Vec<u8>> = models[..count]
            .iter()
            .map(|x| x.iter().flat_map(|x| x.to_le_bytes()).collect())
            .collect();
        let sources: Vec<Counting<'_>> = bytes
            .iter()
            .map(|bytes| Counting(Memory::new(Float::F32, bytes), AtomicUsize::new(0)))
            .collect();
        let labels = ["base", "a", "b", "c"];
        let inputs = sources.iter().zip(labels).map(|(source, model)| Input {
            model,
            source,
            companion: None,
            round_to: None,
        });
        let group = [TensorGroup {
            name: "x",
            shape: &shape,
            inputs: inputs.collect(),
            base: Some(0),
            settings: &merge.settings,
            seed: 0,
            allow_nonfinite: false,
        }];
        let surveys = merge.method.needs_survey(&merge.settings);
        let survey = if surveys {
            merge.method.survey(&group).expect("a survey")
        } else {
            Survey::default()
        };
        let program = merge.method.prepare(&group[0], &survey).expect("a program");
        group[0]
            .run(&program, Encoding::Float(Float::F32), |_, _| Ok(()))
            .expect("a merge");
        let read = sources[1].1.load(Ordering::Relaxed) as f64 / 7.2e5;
        let passes = f64::from(merge.method.passes(&merge.settings));
        // Samples and the search for the last of several equal magnitudes read a little more.
        let what = format!("{} {:?}", merge.method.info().name, merge.settings.shared);
        assert!(
            (passes..passes + 0.4).contains(&read),
            "{what}: {read} passes instead of {passes}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_order_of_the_models_does_not_matter(seed in any::<u64>(), len in 1_usize..60) {
        let models = models(&mut Random::new(seed), &[len]);
        let order = [0, 3, 1, 2];
        let moved: Vec<Vec<f32>> = order.iter().map(|i| models[*i].clone()).collect();
        let back = all_methods_with(&[len], &moved, &[1.0, 0.5, 0.3]);
        for (there, back) in all_methods(&[len], &models).into_iter().zip(back) {
            let name = there.method.info().name;
            // Masks belong to places; fusion has one model.
            if !["dare_linear", "dare_ties", "della", "della_linear", "arcee_fusion"].contains(&name) {
                assert_close(&back.one(), &widen(&there.one()), 1e-5, 1e-5, name);
            }
        }
    }

    /// What is trimmed is a subset, so a task vector alone never grows without rescaling.
    #[test]
    fn thinning_keeps_or_drops(seed in any::<u64>(), density in 0.0..1.0_f64) {
        let models = models(&mut Random::new(seed), &[9, 33]);
        for method in ["ties", "breadcrumbs", "dare_linear"] {
            let merged = Merge::new(method, 2, Some(0))
                .set_others("weight", &[1.0])
                .set_others("density", &[density])
                .set("rescale", "false")
                .tensor("x", &[9, 33], &models[..2])
                .one();
            for ((y, b), x) in merged.iter().zip(&models[0]).zip(&models[1]) {
                prop_assert!((y - b).abs() < 1e-6 || (y - x).abs() < 1e-6, "{} of {} and {}", y, b, x);
            }
            if method != "dare_linear" {
                let changed = merged.iter().zip(&models[0]).filter(|(y, b)| y != b).count();
                prop_assert!(changed as f64 <= (density * 297.0).max(1.0), "{} {}", changed, density);
            }
        }
    }
}
