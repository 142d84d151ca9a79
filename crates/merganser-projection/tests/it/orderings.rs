//! The orderings and limits that the mathematics promises, on random layers: few samples, equal tasks, updates of zero,
//! drifted inputs, tall and wide.

use merganser_linalg::{Matrix, gemm};
use merganser_projection::{
    Basis, Captured, Constraint, Core, Error, FactoredTask, InputMoments, Note, Problem, Programme,
    Ridge, Task,
};
use proptest::prelude::*;

use crate::support::{Data, assert_near, minus, moments, problem};

/// A random layer.
#[derive(Debug, Clone)]
struct Layer {
    base: Matrix,
    data: Vec<Data>,
    drifted: bool,
}

fn numbers(rows: usize, cols: usize) -> impl Strategy<Value = Matrix> {
    prop::collection::vec(-1.0..1.0_f64, rows * cols)
        .prop_map(move |data| Matrix::new(rows, cols, data).unwrap())
}

/// What makes a task special.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    Zero,
    LikeTheFirst,
    LowRank,
}

prop_compose! {
    fn layer()(
        (m, d, tasks) in (1_usize..9, 1_usize..9, 1_usize..4),
        drifted in any::<bool>(),
    )(
        base in numbers(m, d),
        deltas in prop::collection::vec(numbers(m, d), tasks),
        kinds in prop::collection::vec(prop::sample::select(vec![Kind::Plain, Kind::Plain, Kind::Zero, Kind::LikeTheFirst, Kind::LowRank]), tasks),
        samples in prop::collection::vec((1_usize..12).prop_flat_map(move |n| (numbers(n, d), numbers(n, d))), tasks),
        weights in prop::collection::vec(0.1..3.0_f64, tasks),
        drifted in Just(drifted),
    ) -> Layer {
        let data = (0..deltas.len()).map(|t| {
            let delta = match kinds[t] {
                Kind::Plain => deltas[t].clone(),
                Kind::Zero => Matrix::zeros(base.rows(), base.cols()),
                Kind::LikeTheFirst => deltas[0].clone(),
                Kind::LowRank => Matrix::from_fn(base.rows(), base.cols(), |i, j| deltas[t].get(i, 0) * deltas[t].get(0, j)),
            };
            let mut tuned = base.clone();
            tuned.add_scaled(1.0, &delta);
            let (x, noise) = &samples[t];
            let mut merged = x.clone();
            merged.add_scaled(0.1, noise);
            let data = Data::new(&base, &tuned, x, drifted.then_some(&merged));
            Data { weight: weights[t], update: delta, ..data }
        }).collect();
        Layer { base, data, drifted }
    }
}

fn at(problem: &Problem, basis: Basis) -> Captured {
    let solution = problem.solve(&Programme::new(basis)).unwrap();
    assert!(solution.update.check_finite().is_ok());
    // The basis said so; any other way to measure must agree.
    let again = problem.evaluate(&solution.update).unwrap();
    assert!((again.objective - solution.captured.objective).abs() <= 1e-9 * again.energy);
    solution.captured
}

/// Rounding, as a share of the energy.
const SLACK: f64 = 1e-7;

macro_rules! ordered {
    ($energy:expr, $($worse:ident <= $better:ident),+ $(,)?) => {
        $(prop_assert!(
            $better.objective <= $worse.objective + SLACK * $energy,
            "{} should capture at least {}: {} {} of {}",
            stringify!($better), stringify!($worse), $better.objective, $worse.objective, $energy
        );)+
    };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn larger_bases_capture_more(layer in layer()) {
        let problem = problem(&layer.data);
        let (m, d) = layer.base.shape();
        let most = m.min(d);
        let task = at(&problem, Basis::Task);
        let diagonal = at(&problem, Basis::Diagonal);
        let rotated = at(&problem, Basis::Rotated);
        let atoms = at(&problem, Basis::Atoms { rank: most });
        let core = at(&problem, Basis::Core { rank: None });
        let full = at(&problem, Basis::Full);
        let energy = problem.energy();
        ordered!(energy,
            task <= diagonal, diagonal <= full, task <= rotated, rotated <= full,
            task <= atoms, atoms <= core, core <= full,
        );
        for captured in [&task, &diagonal, &rotated, &atoms, &core, &full] {
            prop_assert!(captured.fraction >= -SLACK && captured.fraction <= 1.0);
            prop_assert_eq!(captured.tasks.len(), layer.data.len());
        }
        let mut before = f64::INFINITY;
        for rank in 1..=most {
            let best = at(&problem, Basis::BestRank { rank });
            prop_assert!(best.objective <= before + SLACK * energy);
            before = best.objective;
        }
        prop_assert!((before - full.objective).abs() <= SLACK * energy);
        if layer.data.len() == 1 && !layer.drifted {
            prop_assert!(task.objective <= SLACK * energy && full.objective <= SLACK * energy);
        }
        // Nothing beats full: not any update, and not the mean or a sum of the updates.
        let mut mean = Matrix::zeros(m, d);
        for data in &layer.data {
            mean.add_scaled(1.0 / layer.data.len() as f64, &data.update);
        }
        let mean = problem.evaluate(&mean).unwrap();
        ordered!(energy, mean <= task);
        let simplex = problem.solve(&Programme::new(Basis::Task).constraint(Constraint::Simplex)).unwrap().captured;
        ordered!(energy, mean <= simplex);
    }

    #[test]
    fn no_low_rank_update_beats_the_best(layer in layer(), other in numbers(8, 8)) {
        let problem = problem(&layer.data);
        let (m, d) = layer.base.shape();
        let best = at(&problem, Basis::BestRank { rank: 1 });
        // The best update with a random column space of one dimension.
        let q = Matrix::from_fn(1, m, |_, i| other.get(0, i));
        let norm = q.norm();
        prop_assume!(norm > 1e-3);
        let full = problem.solve(&Programme::new(Basis::Full)).unwrap().update;
        let mut update = gemm::mul_tn(&q, &gemm::mul(&q, &full));
        update.scale(1.0 / (norm * norm));
        let random = problem.evaluate(&update).unwrap();
        ordered!(problem.energy(), random <= best);
        prop_assert_eq!(update.shape(), (m, d));
    }

    #[test]
    fn constraints_capture_less(layer in layer(), basis in prop::sample::select(vec![Basis::Task, Basis::Diagonal, Basis::Rotated, Basis::Atoms { rank: 2 }])) {
        let problem = problem(&layer.data);
        let with = |constraint| problem.solve(&Programme::new(basis).constraint(constraint));
        let free = with(Constraint::Free).unwrap().captured;
        let nonneg = with(Constraint::NonNegative).unwrap().captured;
        let boxed = with(Constraint::Box).unwrap().captured;
        ordered!(problem.energy(), nonneg <= free, boxed <= nonneg);
        // Atoms of updates that are all zero cannot sum to one.
        if let (Ok(simplex), Ok(affine)) = (with(Constraint::Simplex), with(Constraint::Affine)) {
            let (simplex, affine) = (simplex.captured, affine.captured);
            ordered!(problem.energy(), simplex <= affine, affine <= free, simplex <= boxed);
        } else {
            prop_assert!(matches!(basis, Basis::Atoms { .. }), "{}", basis);
        }
    }

    #[test]
    fn a_ridge_leads_from_the_optimum_to_the_prior(layer in layer(), prior in numbers(8, 8)) {
        let (m, d) = layer.base.shape();
        let prior = Matrix::from_fn(m, d, |i, j| prior.get(i, j));
        let at_prior = problem(&layer.data).evaluate(&prior).unwrap().objective;
        let problem = problem(&layer.data).with_prior(prior.clone()).unwrap();
        let full = problem.solve(&Programme::new(Basis::Full)).unwrap();
        let mut before = full.captured.objective;
        for lambda in [1e-6, 1e-3, 1.0, 1e3, 1e9] {
            let ridged = problem.solve(&Programme::new(Basis::Full).ridge(Ridge::Relative(lambda))).unwrap();
            prop_assert!(ridged.captured.objective >= before - SLACK * problem.energy());
            before = ridged.captured.objective;
        }
        prop_assert!((before - at_prior).abs() <= 1e-5 * (problem.energy() + at_prior));
        // Directions without data keep the prior: full − prior has no part in them.
        let gram = problem.gram();
        let eigen = merganser_linalg::Eigen::of(gram).unwrap();
        let rank = eigen.rank(eigen.noise(0.0));
        if full.notes.iter().any(|note| matches!(note, Note::MinimumNorm { .. })) {
            let null = eigen.vectors.rows_range(rank, d);
            let outside = gemm::mul_nt(&minus(&full.update, &prior), &null);
            prop_assert!(outside.norm() <= 1e-6 * (1.0 + full.update.norm()));
        }
    }

    #[test]
    fn the_core_of_factors_is_the_core_of_their_products(
        (m, d) in (2_usize..9, 2_usize..9),
        seed in prop::collection::vec(-1.0..1.0_f64, 256),
        drifted in any::<bool>(),
        lambda in prop::sample::select(vec![0.0, 1e-2]),
    ) {
        let take = |rows: usize, cols: usize, from: usize| Matrix::from_fn(rows, cols, |i, j| seed[(from + 31 * i + 7 * j) % seed.len()]);
        let base = take(m, d, 5);
        let factors: Vec<(Matrix, Matrix)> = (0..2).map(|t| (take(m, t + 1, 11 + t), take(t + 1, d, 101 + t))).collect();
        let data: Vec<Data> = factors.iter().enumerate().map(|(t, (b, a))| {
            let mut update = gemm::mul(b, a);
            update.scale(2.0);
            let mut tuned = base.clone();
            tuned.add_scaled(1.0, &update);
            let x = take(3 + 5 * t, d, 57 * t);
            let merged = take(3 + 5 * t, d, 57 * t + 1);
            Data { update, ..Data::new(&base, &tuned, &x, drifted.then_some(&merged)) }
        }).collect();
        let ridge = Ridge::Relative(lambda);
        let dense = problem(&data).solve(&Programme::new(Basis::Core { rank: None }).ridge(ridge)).unwrap();
        let factored: Vec<FactoredTask> = factors.iter().zip(&data).map(|((b, a), data)| FactoredTask {
            weight: 1.0, b, a, scale: 2.0, input: &data.input, target: data.target.as_ref(), held_out: None,
        }).collect();
        let core = Core::new(&factored).unwrap();
        let small = core.problem().unwrap();
        prop_assert!((small.energy() - dense.captured.energy).abs() <= 1e-9 * small.energy());
        let solution = small.solve(&Programme::new(Basis::Full).ridge(ridge)).unwrap();
        prop_assert!((solution.captured.objective - dense.captured.objective).abs() <= SLACK * small.energy());
        let lora = core.factors(&solution.update);
        assert_near("core", &gemm::mul(&lora.b, &lora.a), &dense.update, 1e-6);
        let (b, a) = (dense.factors.as_ref().map(|f| &f.b).unwrap(), dense.factors.as_ref().map(|f| &f.a).unwrap());
        assert_near("factors", &gemm::mul(b, a), &dense.update, 1e-12);
    }
}

/// A layer with three tasks and a fifth of the samples held out.
fn held_out(n: usize, m: usize, d: usize, drifted: bool) -> Vec<Data> {
    let wave = |rows: usize, cols: usize, phase: f64| {
        Matrix::from_fn(rows, cols, |i, j| {
            ((i * cols + j) as f64 * 12.9898 + phase).sin() * 43.758 % 1.0
        })
    };
    let base = wave(m, d, 0.1);
    (0..3)
        .map(|t| {
            let mut tuned = base.clone();
            tuned.add_scaled(0.3, &wave(m, d, 1.0 + t as f64));
            let (x, noise) = (wave(n, d, 7.0 + t as f64), wave(n, d, 17.0 + t as f64));
            let mut merged = x.clone();
            merged.add_scaled(0.05, &noise);
            let merged = drifted.then_some(merged);
            let fifth = n / 5;
            let part = merged.as_ref().map(|merged| merged.rows_range(0, fifth));
            let held = moments(&base, &tuned, &x.rows_range(0, fifth), part.as_ref());
            Data {
                held_out: Some(held),
                ..Data::new(&base, &tuned, &x, merged.as_ref())
            }
        })
        .collect()
}

#[test]
fn an_automatic_ridge_is_the_best_of_the_path() {
    for drifted in [false, true] {
        let data = held_out(25, 6, 20, drifted);
        let problem = problem(&data);
        for basis in [
            Basis::Task,
            Basis::Diagonal,
            Basis::Rotated,
            Basis::Atoms { rank: 2 },
            Basis::Core { rank: Some(2) },
            Basis::BestRank { rank: 2 },
            Basis::Full,
        ] {
            let solution = problem
                .solve(&Programme::new(basis).ridge(Ridge::Auto))
                .unwrap();
            let chosen = solution.notes.iter().find_map(|note| match note {
                Note::RidgeChosen { ridge, held_out } => Some((*ridge, *held_out)),
                _ => None,
            });
            let (ridge, score) = chosen.unwrap();
            assert_eq!(ridge, solution.ridge, "{basis}");
            // Fitted on four fifths with any ridge, no other does better on the last.
            let fitted: Vec<Data> = data
                .iter()
                .map(|task| {
                    let held = task.held_out.as_ref().unwrap();
                    Data {
                        input: task.input.minus(&held.0).unwrap(),
                        target: task
                            .target
                            .as_ref()
                            .map(|target| target.minus(held.1.as_ref().unwrap()).unwrap()),
                        held_out: None,
                        ..task.clone()
                    }
                })
                .collect();
            let rest: Vec<Data> = data
                .iter()
                .map(|task| {
                    let held = task.held_out.clone().unwrap();
                    Data {
                        input: held.0,
                        target: held.1,
                        held_out: None,
                        ..task.clone()
                    }
                })
                .collect();
            if basis == Basis::Rotated {
                continue; // its coordinates are those of all samples
            }
            let (fit, judge) = (
                crate::support::problem(&fitted),
                crate::support::problem(&rest),
            );
            let mut best = f64::NEG_INFINITY;
            for lambda in [0.0, 1e-6, 1e-4, 1e-2, 1e-1, 1.0, 10.0] {
                let other = fit
                    .solve(&Programme::new(basis).ridge(Ridge::Relative(lambda)))
                    .unwrap();
                best = best.max(judge.evaluate(&other.update).unwrap().fraction);
            }
            // Best-rank takes the ridge of full.
            if !matches!(basis, Basis::BestRank { .. }) {
                assert!(score >= best - 1e-6, "{basis}: {score} {best}");
            }
        }
    }
}

#[test]
fn auto_takes_the_smallest_basis_that_is_good_enough() {
    let data = held_out(40, 6, 10, false);
    let problem = problem(&data);
    let full = problem.solve(&Programme::new(Basis::Full)).unwrap();
    let mut before = 0;
    for tolerance in [1.0, 0.3, 0.1, 0.01, 0.0] {
        let solution = problem
            .solve(&Programme::new(Basis::Auto { tolerance }))
            .unwrap();
        let gap = full.captured.fraction - solution.captured.fraction;
        assert!(gap <= tolerance + 1e-9, "{tolerance}: {gap}");
        let order = [
            Basis::Task,
            Basis::Diagonal,
            Basis::Rotated,
            Basis::Core { rank: None },
            Basis::Full,
        ];
        let place = order
            .iter()
            .position(|&basis| basis == solution.basis)
            .unwrap();
        assert!(place >= before);
        before = place;
    }
    assert_eq!(before, 4);
}

#[test]
fn single_precision_agrees() {
    let data = held_out(200, 12, 30, true);
    let reference = problem(&data);
    let updates: Vec<Matrix<f32>> = data.iter().map(|task| task.update.cast()).collect();
    let tasks = data.iter().zip(&updates).map(|(data, update)| Task {
        weight: 1.0,
        update,
        input: &data.input,
        target: data.target.as_ref(),
        held_out: None,
    });
    let single = Problem::new(tasks.collect()).unwrap();
    for basis in [
        Basis::Task,
        Basis::Diagonal,
        Basis::Rotated,
        Basis::Atoms { rank: 3 },
        Basis::Core { rank: Some(3) },
        Basis::BestRank { rank: 3 },
        Basis::Full,
    ] {
        let a = reference.solve(&Programme::new(basis)).unwrap();
        let b = single.solve(&Programme::new(basis)).unwrap();
        assert!(
            (a.captured.fraction - b.captured.fraction).abs() < 1e-4,
            "{basis}: {} {}",
            a.captured.fraction,
            b.captured.fraction
        );
    }
}

#[test]
fn few_samples_are_said_and_solved() {
    let data = held_out(5, 4, 40, false);
    let problem = problem(&data);
    let solution = problem.solve(&Programme::new(Basis::Full)).unwrap();
    assert!((solution.captured.fraction - 1.0).abs() < 1e-9);
    assert!(solution.notes.contains(&Note::FewSamples {
        samples: 15,
        inputs: 40
    }));
    assert!(
        solution
            .notes
            .contains(&Note::MinimumNorm { rank: 15, of: 40 })
    );
}

#[test]
fn no_energy_is_said_and_nothing_is_changed() {
    let zeros = Matrix::<f64>::zeros(3, 2);
    let mut input = InputMoments::new(2);
    input.add_rows(&[1.0, 2.0, 3.0, -1.0]).unwrap();
    let problem = Problem::new(vec![Task::new(&zeros, &input)]).unwrap();
    for basis in [
        "task",
        "diagonal",
        "rotated",
        "atoms(1)",
        "core",
        "best-rank(1)",
        "full",
        "auto",
    ] {
        let solution = problem
            .solve(&Programme::new(basis.parse().unwrap()))
            .unwrap();
        assert_eq!(solution.update, zeros, "{basis}");
        assert_eq!(solution.captured.fraction, 1.0, "{basis}");
        assert!(solution.notes.contains(&Note::NoEnergy), "{basis}");
    }
    // Inputs of zero leave everything undetermined.
    let ones = Matrix::from_fn(3, 2, |_, _| 1.0);
    let mut input = InputMoments::new(2);
    input.add_rows(&[0.0; 4]).unwrap();
    let problem = Problem::new(vec![Task::new(&ones, &input)]).unwrap();
    let solution = problem.solve(&Programme::new(Basis::Full)).unwrap();
    assert_eq!(solution.update, zeros);
    assert!(
        solution
            .notes
            .contains(&Note::MinimumNorm { rank: 0, of: 2 })
    );
}

#[test]
fn bad_problems_are_refused() {
    let update = Matrix::<f64>::identity(2);
    let nan = Matrix::from_fn(2, 2, |_, _| f64::NAN);
    let mut input = InputMoments::new(2);
    input.add_rows(&[1.0, 2.0]).unwrap();
    let message = |tasks: Vec<Task>| Problem::new(tasks).map(|_| ()).unwrap_err().to_string();
    assert_eq!(message(Vec::new()), "there is no task to merge");
    assert!(message(vec![Task::new(&nan, &input)]).contains("the update of task 0"));
    assert!(message(vec![Task::new(&update, &InputMoments::new(2))]).contains("no samples"));
    assert!(message(vec![Task::new(&update, &InputMoments::new(3))]).contains("samples"));
    let wide = Matrix::zeros(2, 3);
    assert!(
        message(vec![Task::new(&update, &input), Task::new(&wide, &input)])
            .contains("(2, 3) where (2, 2)")
    );
    for weight in [-1.0, f64::NAN, f64::INFINITY] {
        let task = Task {
            weight,
            ..Task::new(&update, &input)
        };
        assert!(message(vec![task]).contains("the weight of task 0"));
    }
    let task = Task {
        weight: 0.0,
        ..Task::new(&update, &input)
    };
    assert!(message(vec![task]).contains("all tasks are zero"));

    let problem = Problem::new(vec![Task::new(&update, &input)]).unwrap();
    assert!(problem.evaluate(&nan).is_err());
    assert!(problem.evaluate(&wide).is_err());
    for lambda in [-1.0, f64::NAN, f64::INFINITY] {
        let programme = Programme::new(Basis::Full).ridge(Ridge::Relative(lambda));
        assert!(problem.solve(&programme).is_err());
    }
    let auto = Programme::new(Basis::Full).ridge(Ridge::Auto);
    assert!(matches!(
        problem.solve(&auto),
        Err(Error::NoHeldOut { task: 0 })
    ));
    let constrained = Programme::new(Basis::Full).constraint(Constraint::Box);
    assert!(
        problem
            .solve(&constrained)
            .unwrap()
            .notes
            .contains(&Note::ConstraintIgnored)
    );
    assert!(
        problem
            .solve_span(&[&wide], Constraint::Free, Ridge::Relative(0.0))
            .is_err()
    );
    assert!(
        Problem::new(vec![Task::new(&update, &input)])
            .unwrap()
            .with_prior(nan)
            .is_err()
    );
}
