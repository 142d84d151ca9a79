//! What statistics, their adaptation and their heads promise.

use merganser_kernels::random::Sequence;
use merganser_linalg::gemm;
use merganser_model::mlp::Dense;
use merganser_model::{Mlp, Pointwise};
use merganser_upkeep::Matrix;
use merganser_upkeep::drift::Affine;
use merganser_upkeep::heads::{GaussianOptions, Kind, Pool};
use merganser_upkeep::report::{Changes, Report};
use merganser_upkeep::stats::collapse::collapse;
use merganser_upkeep::stats::{Adapter, SampleOptions, Stats, Strategy};
use proptest::prelude::*;

fn numbers(seed: u64, rows: usize, cols: usize) -> Matrix {
    let mut sequence = Sequence::new(seed, 0);
    Matrix::from_fn(rows, cols, |_, _| sequence.normal())
}

/// A regular covariance.
fn cov(seed: u64, dim: usize) -> Matrix {
    let rows = numbers(seed, 2 * dim + 1, dim);
    let mut cov = gemm::mul_tn(&rows, &rows);
    cov.scale(1.0 / (2 * dim) as f64);
    cov
}

fn stats(seed: u64, classes: usize, dim: usize) -> Stats {
    Stats {
        classes: (0..classes).collect(),
        counts: (0..classes as u64).map(|class| 5 + class).collect(),
        means: numbers(seed ^ 0x63, classes, dim),
        covs: Some(
            (0..classes as u64)
                .map(|class| cov(seed ^ class, dim))
                .collect(),
        ),
        gram: None,
    }
}

fn mlp(layers: &[(&Matrix, Pointwise)]) -> Adapter {
    let dense = |weight: &Matrix| Dense {
        name: "layer".into(),
        inputs: weight.cols(),
        outputs: weight.rows(),
        weight: weight.as_slice().to_vec(),
        bias: Some(vec![0.25; weight.rows()]),
    };
    let activations = layers.iter().map(|(_, activation)| *activation).collect();
    let layers = layers.iter().map(|(weight, _)| dense(weight)).collect();
    Adapter::new(&Mlp::new(layers, activations).unwrap()).unwrap()
}

fn distance(a: &Matrix, b: &Matrix) -> f64 {
    let mut difference = a.clone();
    difference.add_scaled(-1.0, b);
    difference.norm()
}

fn answers(scores: &Matrix) -> Vec<usize> {
    let best = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
    (0..scores.rows())
        .map(|i| best(scores.row(i)).unwrap())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn samples_converge_to_the_exact_affine_image(seed: u64, dim in 1_usize..5) {
        let stats = stats(seed, 2, dim);
        let weight = numbers(seed ^ 5, dim + 1, dim);
        let linear = mlp(&[(&weight, Pointwise::Identity)]);
        let exact = stats.adapt_affine(&linear.as_affine().unwrap()).unwrap();
        let error = |samples| {
            let options = SampleOptions { samples, ..SampleOptions::default() };
            let found = stats.adapt_by_samples(&linear, &options).unwrap().stats;
            let (a, b) = (found.covs.unwrap(), exact.covs.as_ref().unwrap().clone());
            let covs = a.iter().zip(&b).map(|(a, b)| distance(a, b) / b.norm()).fold(0.0, f64::max);
            covs.max(distance(&found.means, &exact.means) / b[0].norm().sqrt())
        };
        // √(2 / N), a few times over.
        prop_assert!(error(1000) < 0.4, "{}", error(1000));
        prop_assert!(error(40_000) < 0.06, "{}", error(40_000));
    }

    #[test]
    fn of_equal_covariances_the_gaussian_head_is_linear_discriminant_analysis(seed: u64, dim in 1_usize..6) {
        let mut given = stats(seed, 4, dim);
        let one = cov(seed ^ 0x11, dim);
        given.covs = Some(vec![one; 4]);
        let pool = Pool::new(vec![given.clone()], None).unwrap();
        let features = numbers(seed ^ 3, 200, dim);
        let (linear, _) = pool.head(Kind::Bayes(0.1)).unwrap();
        let (gaussian, _) = pool.gaussian(&GaussianOptions::likelihood(0.1, 0.0)).unwrap();
        prop_assert_eq!(answers(&linear.logits(&features)), answers(&gaussian.scores(&features)));
        // Whatever the covariances, if only the one within classes counts.
        given.covs = stats(seed ^ 8, 4, dim).covs;
        let pool = Pool::new(vec![given], None).unwrap();
        let (linear, _) = pool.head(Kind::Bayes(0.1)).unwrap();
        let (gaussian, _) = pool.gaussian(&GaussianOptions::likelihood(0.1, 1.0)).unwrap();
        prop_assert_eq!(answers(&linear.logits(&features)), answers(&gaussian.scores(&features)));
    }

    #[test]
    fn classes_may_come_in_parts(seed: u64, dim in 1_usize..5, cut in 2_usize..8) {
        // Two shards of each class against all of its features.
        let rows = numbers(seed, 20, dim);
        let of = |rows: &Matrix| {
            let n = rows.rows() as f64;
            let mean = Matrix::from_fn(1, dim, |_, j| (0..rows.rows()).map(|i| rows.get(i, j)).sum::<f64>() / n);
            let centred = Matrix::from_fn(rows.rows(), dim, |i, j| rows.get(i, j) - mean.get(0, j));
            let mut cov = gemm::mul_tn(&centred, &centred);
            cov.scale(1.0 / (n - 1.0));
            Stats {
                classes: vec![0],
                counts: vec![rows.rows() as u64],
                means: mean,
                covs: Some(vec![cov]),
                gram: None,
            }
        };
        let whole = of(&rows);
        let parts = vec![of(&rows.rows_range(0, cut)), of(&rows.rows_range(cut, 20))];
        let pool = Pool::new(parts, None).unwrap();
        let expected = &whole.covs.as_ref().unwrap()[0];
        prop_assert!(distance(&pool.class_covariance(0).unwrap().unwrap(), expected) < 1e-10);
        prop_assert!(distance(&pool.total_covariance().unwrap().unwrap(), expected) < 1e-10);
    }

    #[test]
    fn the_score_of_healthy_features_is_minus_beta(seed: u64, dim in 1_usize..8) {
        let mut cov = cov(seed, dim);
        // Above 1 in every direction.
        for i in 0..dim {
            cov.set(i, i, cov.get(i, i) + 1.0);
        }
        let found = collapse(&cov, 1.0).unwrap();
        prop_assert!((found.score + 1.0).abs() < 1e-12);
        prop_assert_eq!(found.collapsed, 0);
        prop_assert!(found.effective_rank <= dim as f64 + 1e-9);
    }

    #[test]
    fn statistics_do_not_differ_from_themselves_and_both_ways_alike(seed: u64, dim in 1_usize..5) {
        let pool = |seed| Pool::new(vec![stats(seed, 3, dim)], None).unwrap();
        let (a, b) = (pool(seed), pool(seed ^ 1));
        let none = Changes::between(&a, &a, 0.0).unwrap();
        for change in &none.classes {
            prop_assert_eq!((change.mean, change.covariance), (0.0, Some(0.0)));
            prop_assert!(change.divergence.unwrap() < 1e-8);
        }
        let (there, back) = (Changes::between(&a, &b, 0.1).unwrap(), Changes::between(&b, &a, 0.1).unwrap());
        for (x, y) in there.classes.iter().zip(&back.classes) {
            let (x, y) = (x.divergence.unwrap(), y.divergence.unwrap());
            prop_assert!(x > 0.0 && (x - y).abs() < 1e-9 * x);
        }
    }
}

#[test]
fn the_divergence_is_that_of_the_formula() {
    // N(0, 1) and N(3, 4): ½ (1/4 + 4 + 9 (1 + 1/4)) − 1.
    let pool = |mean: f64, variance: f64| {
        let stats = Stats {
            classes: vec![0],
            counts: vec![9],
            means: Matrix::new(1, 1, vec![mean]).unwrap(),
            covs: Some(vec![Matrix::new(1, 1, vec![variance]).unwrap()]),
            gram: None,
        };
        Pool::new(vec![stats], None).unwrap()
    };
    let found = Changes::between(&pool(0.0, 1.0), &pool(3.0, 4.0), 0.0).unwrap();
    let change = &found.classes[0];
    assert!((change.divergence.unwrap() - 6.75).abs() < 1e-12);
    assert_eq!((change.mean, change.covariance), (3.0, Some(3.0)));
}

#[test]
fn networks_bend_what_they_are_given_the_same_way_on_any_number_of_threads() {
    let stats = stats(4, 3, 6);
    let (first, second) = (numbers(1, 40, 6), numbers(2, 5, 40));
    let adapter = mlp(&[(&first, Pointwise::Gelu), (&second, Pointwise::Identity)]);
    assert!(adapter.as_affine().is_none());
    let options = SampleOptions {
        samples: 3000,
        ..SampleOptions::default()
    };
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| stats.adapt_by_samples(&adapter, &options).unwrap())
    };
    let one = run(1);
    assert_eq!(one, run(4));
    assert_eq!(one.stats.means.shape(), (3, 5));
    let other = SampleOptions { seed: 1, ..options };
    assert_ne!(
        one.stats,
        stats.adapt_by_samples(&adapter, &other).unwrap().stats
    );
    // A class has the same features whichever classes are there besides.
    let last = Stats {
        classes: vec![2],
        counts: vec![stats.counts[2]],
        means: stats.means.gather_rows(&[2]),
        covs: stats.covs.as_ref().map(|covs| vec![covs[2].clone()]),
        gram: None,
    };
    let alone = last.adapt_by_samples(&adapter, &options).unwrap().stats;
    assert_eq!(alone.means.row(0), one.stats.means.row(2));
    // Layers without activation are one map.
    let (a, b) = (numbers(1, 4, 6), numbers(2, 3, 4));
    let linear = mlp(&[(&a, Pointwise::Identity), (&b, Pointwise::Identity)]);
    let map: Affine = linear.as_affine().unwrap();
    let rows = numbers(3, 10, 6);
    assert!(distance(&map.apply(&rows), &linear.apply(&rows).unwrap()) < 1e-12);
}

#[test]
fn what_cannot_be_adapted_is_refused_and_what_was_assumed_is_said() {
    let square = numbers(1, 3, 3);
    let bent = mlp(&[(&square, Pointwise::Tanh)]);
    let full = SampleOptions {
        samples: 50,
        ..SampleOptions::default()
    };
    let refused = |stats: &Stats, adapter: &Adapter, options: &SampleOptions| {
        stats
            .adapt_by_samples(adapter, options)
            .unwrap_err()
            .to_string()
    };
    let good = stats(1, 2, 3);
    assert!(refused(&stats(1, 2, 4), &bent, &full).contains("found 4, expected 3"));
    let mut bare = good.clone();
    bare.covs = None;
    assert!(refused(&bare, &bent, &full).contains("--strategy mean"));
    let means = SampleOptions {
        strategy: Strategy::Mean,
        ..full
    };
    assert!(bare.adapt_by_samples(&bent, &means).is_ok());
    let narrow = numbers(1, 2, 3);
    let narrow = mlp(&[(&narrow, Pointwise::Tanh)]);
    assert!(refused(&good, &narrow, &means).contains("--strategy full"));
    for samples in [0, 1] {
        assert!(refused(&good, &bent, &SampleOptions { samples, ..full }).contains("samples"));
    }
    assert!(
        refused(
            &good,
            &bent,
            &SampleOptions {
                shrink: f64::NAN,
                ..full
            }
        )
        .contains("shrink")
    );
    let mut wrong = good.clone();
    wrong.covs = Some(vec![
        Matrix::from_fn(3, 3, |i, j| f64::from(u8::from(
            i != j
        )));
        2
    ]);
    assert!(refused(&wrong, &bent, &full).contains("class 0 has collapsed"));
    let mut huge = good.clone();
    huge.means.scale(1e308);
    let weight = numbers(6, 3, 3);
    let straight = mlp(&[(&weight, Pointwise::Relu)]);
    assert!(refused(&huge, &straight, &full).contains("not finite"));

    // One feature, and features on a line.
    let mut odd = good.clone();
    let line = Matrix::from_fn(3, 3, |_, _| 1.0);
    odd.covs = Some(vec![Matrix::zeros(3, 3), line]);
    odd.gram = Some(Matrix::identity(3));
    let found = odd.adapt_by_samples(&bent, &full).unwrap();
    assert_eq!(found.notes.len(), 3, "{:?}", found.notes);
    assert_eq!(found.stats.covs.unwrap()[0].norm(), 0.0);
}

#[test]
fn singular_covariances_make_no_head_unless_they_are_shrunk() {
    let mut given = stats(1, 3, 3);
    given.covs.as_mut().unwrap()[1] = Matrix::from_fn(3, 3, |_, _| 1.0);
    given.counts[2] = 1;
    given.covs.as_mut().unwrap()[2] = Matrix::zeros(3, 3);
    let pool = Pool::new(vec![given.clone()], Some(5)).unwrap();
    let error = pool
        .gaussian(&GaussianOptions::likelihood(0.0, 0.0))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("class 1 (6 features of length 3) has collapsed"),
        "{error}"
    );
    assert!(error.contains("--shrink"), "{error}");
    let (head, found) = pool
        .gaussian(&GaussianOptions::adagauss(3.0, false))
        .unwrap();
    assert_eq!(found.absent, [3, 4]);
    assert!(
        found
            .notes
            .iter()
            .any(|note| note.contains("1 classes (2) are too small")),
        "{:?}",
        found.notes
    );
    let scores = head.scores(&numbers(3, 10, 3));
    assert!(answers(&scores).iter().all(|&class| class < 3));
    assert!(scores.as_slice().iter().all(|x| x.is_finite()));
    for wrong in [f64::NAN, -1.0] {
        assert!(
            pool.gaussian(&GaussianOptions::likelihood(wrong, 0.0))
                .is_err()
        );
        assert!(
            pool.gaussian(&GaussianOptions::likelihood(0.0, wrong))
                .is_err()
        );
    }
    // From means of several clients, without covariances.
    given.covs = None;
    let alone = Pool::new(vec![given.clone()], None).unwrap();
    assert!(
        alone
            .gaussian(&GaussianOptions::likelihood(0.1, 0.0))
            .is_err()
    );
    let mut other = given.clone();
    other.means = numbers(77, 3, 3);
    let both = Pool::new(vec![given, other], None).unwrap();
    let (_, found) = both
        .gaussian(&GaussianOptions::likelihood(0.5, 0.5))
        .unwrap();
    assert!(
        found
            .notes
            .iter()
            .any(|note| note.contains("estimated from 3 means")),
        "{:?}",
        found.notes
    );
}

#[test]
fn reports_say_what_is_missing_and_what_has_collapsed() {
    let mut given = stats(1, 3, 3);
    given.classes = vec![0, 1, 3];
    given.counts = vec![9, 1, 2];
    let pool = Pool::new(vec![given.clone()], Some(5)).unwrap();
    let report = Report::of(&pool, 1.0).unwrap();
    assert_eq!(
        (report.missing.as_slice(), report.features),
        (&[2, 4][..], 12)
    );
    assert!(report.classes[0].collapse.is_some() && report.classes[1].collapse.is_none());
    assert!(
        report
            .notes
            .iter()
            .any(|note| note.contains("2 classes have no more features")),
        "{:?}",
        report.notes
    );
    given.covs = None;
    let bare = Pool::new(vec![given], None).unwrap();
    let report = Report::of(&bare, 1.0).unwrap();
    assert!(report.within.is_none() && report.all.is_none());
    assert!(report.notes.iter().any(|note| note.contains("--cov")));
    assert!(Report::of(&bare, 0.0).is_ok() && Report::of(&pool, -1.0).is_err());
}
