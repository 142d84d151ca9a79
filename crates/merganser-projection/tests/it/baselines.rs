//! Golden cases of the baselines: RegMean, RegMean++, LOT, WUDI, and an independent reconstruction of the projection.

use merganser_linalg::{Matrix, Symmetric, gemm};
use merganser_projection::{
    Basis, Coefficients, InputMoments, Programme, WudiAdam, lot, regmean, wudi, wudi_closed_form,
};
use merganser_testkit::golden::{Case, cases};

use crate::support::{Data, assert_near, matrix, minus, problem};

fn tasks(case: &Case, name: &str) -> Vec<Matrix> {
    (0..case.tasks())
        .map(|t| matrix(case.task(t, name)))
        .collect()
}

fn updates(case: &Case, name: &str) -> Vec<Matrix> {
    let base = matrix(case.base(name));
    tasks(case, name)
        .iter()
        .map(|task| minus(task, &base))
        .collect()
}

fn sum(a: &Matrix, b: &Matrix) -> Matrix {
    let mut sum = a.clone();
    sum.add_scaled(1.0, b);
    sum
}

#[test]
fn regmean_matches_the_published_codes() {
    let mut checked = 0;
    for case in cases("regmean") {
        let alpha = case.number("alpha");
        // −1 stands for no reduction in the code of the paper.
        let alpha = if alpha < 0.0 { 1.0 } else { alpha };
        let weights: Vec<f64> = case.hyper["model_coeffs"].as_array().map_or_else(
            || vec![1.0; case.tasks()],
            |list| list.iter().map(|x| x.as_f64().unwrap()).collect(),
        );
        for name in case.names() {
            let module = name.strip_suffix(".weight").unwrap_or(&name);
            if !case.inputs.contains_key(&format!("gram0/{module}")) {
                continue;
            }
            let models = tasks(&case, &name);
            let inputs: Vec<InputMoments> = (0..case.tasks())
                .map(|t| {
                    let gram = matrix(case.input(&format!("gram{t}/{module}")));
                    let gram = Symmetric::from_square(&gram).unwrap();
                    let sum = vec![0.0; gram.dim()];
                    InputMoments::from_parts(1 << 20, gram, sum, f64::EPSILON).unwrap()
                })
                .map(|mut moments| {
                    // The golden Grams are divided by their number of rows, moments are not.
                    let mut gram = moments.gram().clone();
                    gram.scale((1 << 20) as f64);
                    let sum = moments.sum().to_vec();
                    moments = InputMoments::from_parts(1 << 20, gram, sum, 0.0).unwrap();
                    moments
                })
                .collect();
            let models: Vec<_> = weights
                .iter()
                .zip(&models)
                .zip(&inputs)
                .map(|((&weight, model), input)| (weight, model, input))
                .collect();
            let merged = regmean(&models, alpha).unwrap();
            // Where there is no f64 twin, the expectation is that of f32.
            let twin = case.expected.contains_key(&format!("f64/{name}"));
            let tolerance = if twin { 1e-7 } else { 1e-4 };
            let expected = matrix(case.expect(&name));
            assert_near(
                &format!("{}: {name}", case.name),
                &merged.weight,
                &expected,
                tolerance,
            );
            checked += 1;
        }
    }
    assert!(checked >= 10, "{checked}");
}

/// h = embed(x); three times h = h∘scale + fc2(relu(fc1(h))): the network of the golden case.
struct Toy<'a>(&'a Case, Vec<(String, Matrix)>);

impl Toy<'_> {
    fn merged(&self, name: &str) -> &Matrix {
        &self.1.iter().find(|(known, _)| known == name).unwrap().1
    }

    fn mean(&mut self, name: &str) {
        let models = tasks(self.0, name);
        let mut mean = models[0].clone();
        for model in &models[1..] {
            mean.add_scaled(1.0, model);
        }
        mean.scale(1.0 / models.len() as f64);
        self.1.push((name.to_owned(), mean));
    }
}

fn affine(x: &Matrix, weight: &Matrix, bias: &Matrix) -> Matrix {
    let mut y = gemm::mul_nt(x, weight);
    for i in 0..y.rows() {
        for (y, b) in y.row_mut(i).iter_mut().zip(bias.row(0)) {
            *y += b;
        }
    }
    y
}

fn relu(mut x: Matrix) -> Matrix {
    x.as_mut_slice().iter_mut().for_each(|x| *x = x.max(0.0));
    x
}

#[test]
fn regmean_plus_plus_is_regmean_on_merged_inputs() {
    for case in cases("regmean_pp") {
        let alpha = case.number("alpha");
        let tasks_count = case.tasks();
        let mut toy = Toy(&case, Vec::new());
        toy.mean("embed.weight");
        toy.mean("embed.bias");
        let mut hidden: Vec<Matrix> = (0..tasks_count)
            .map(|t| {
                let x = matrix(case.input(&format!("input{t}")));
                affine(&x, toy.merged("embed.weight"), toy.merged("embed.bias"))
            })
            .collect();
        for layer in 0..3 {
            let name = |part: &str| format!("layers.{layer}.{part}");
            for part in ["scale", "fc1.bias", "fc2.bias"] {
                toy.mean(&name(part));
            }
            // The model's own block on the inputs of the merged one.
            let mut inputs = [Vec::new(), Vec::new()];
            for (t, hidden) in hidden.iter().enumerate() {
                let own = |part: &str| matrix(case.task(t, &name(part)));
                let inner = relu(affine(hidden, &own("fc1.weight"), &own("fc1.bias")));
                for (list, rows) in inputs.iter_mut().zip([hidden, &inner]) {
                    let mut moments = InputMoments::new(rows.cols());
                    moments.add_rows(rows.as_slice()).unwrap();
                    list.push(moments);
                }
            }
            for (part, inputs) in ["fc1.weight", "fc2.weight"].iter().zip(&inputs) {
                let models = tasks(&case, &name(part));
                let models: Vec<_> = models
                    .iter()
                    .zip(inputs)
                    .map(|(model, input)| (1.0, model, input))
                    .collect();
                let merged = regmean(&models, alpha).unwrap().weight;
                let expected = matrix(case.expect(&name(part)));
                assert_near(
                    &format!("{}: {}", case.name, name(part)),
                    &merged,
                    &expected,
                    1e-6,
                );
                toy.1.push((name(part), merged));
            }
            for hidden in &mut hidden {
                let merged = |part: &str| toy.merged(&name(part));
                let inner = relu(affine(hidden, merged("fc1.weight"), merged("fc1.bias")));
                let mut next = affine(&inner, merged("fc2.weight"), merged("fc2.bias"));
                let mut kept = hidden.clone();
                kept.scale_cols(merged("scale").row(0));
                next.add_scaled(1.0, &kept);
                *hidden = next;
            }
        }
    }
}

#[test]
fn wudi_takes_the_published_steps() {
    let mut checked = 0;
    for case in cases("wudi") {
        let adam = WudiAdam {
            steps: case.number("iter_num") as u32,
            rate: case.number("lr"),
            ..WudiAdam::default()
        };
        for name in case.names() {
            if case.base(&name).shape.len() != 2 {
                continue;
            }
            let deltas = updates(&case, &name);
            let merged = wudi(&deltas.iter().collect::<Vec<_>>(), &adam).unwrap();
            let found = sum(&matrix(case.base(&name)), &merged);
            let expected = matrix(case.expect(&name));
            assert_near(&format!("{}: {name}", case.name), &found, &expected, 1e-7);
            checked += 1;
        }
    }
    assert!(checked >= 8, "{checked}");
}

#[test]
fn the_closed_form_of_wudi_is_its_stationary_point() {
    for case in cases("wudi_closed_form") {
        for name in case.names() {
            let deltas = updates(&case, &name);
            let merged = wudi_closed_form(&deltas.iter().collect::<Vec<_>>()).unwrap();
            let found = sum(&matrix(case.base(&name)), &merged);
            assert_near(&case.name, &found, &matrix(case.expect(&name)), 1e-7);
        }
    }
}

fn data(case: &Case, name: &str) -> Vec<Data> {
    let base = matrix(case.base(name));
    tasks(case, name)
        .iter()
        .enumerate()
        .map(|(t, tuned)| {
            let x = matrix(case.input(&format!("input{t}")));
            let data = Data::new(&base, tuned, &x, None);
            Data {
                weight: x.rows() as f64,
                ..data
            }
        })
        .collect()
}

#[test]
fn lot_keeps_the_base_outside_the_data() {
    for case in cases("lot") {
        let data = data(&case, "w");
        let pairs: Vec<_> = data
            .iter()
            .map(|task| (&task.update, &task.input))
            .collect();
        let found = sum(&matrix(case.base("w")), &lot(&pairs).unwrap().update);
        assert_near(&case.name, &found, &matrix(case.expect("w")), 1e-7);
    }
}

#[test]
fn an_independent_reconstruction_agrees() {
    for case in cases("output_space_qp") {
        let data = data(&case, "w");
        let problem = problem(&data);
        let base = matrix(case.base("w"));
        let energy = case.number("total_residual_energy");
        assert!((problem.energy() - energy).abs() < 1e-8 * energy);
        for (key, basis) in [
            ("p0", Basis::Task),
            ("p1", Basis::Diagonal),
            ("p2", Basis::Full),
            ("p3_k1", Basis::BestRank { rank: 1 }),
            ("p3_k4", Basis::BestRank { rank: 4 }),
        ] {
            let what = format!("{}: {key}", case.name);
            let solution = problem.solve(&Programme::new(basis)).unwrap();
            let captured = case.hyper["energy_fraction"][key].as_f64().unwrap();
            assert!(
                (solution.captured.fraction - captured).abs() < 1e-8,
                "{what}"
            );
            let found = sum(&base, &solution.update);
            assert_near(
                &what,
                &found,
                &matrix(case.expect(&format!("{key}/w"))),
                1e-7,
            );
            if let Some(alpha) = case.expected.get(&format!("{key}/alpha")) {
                let found = match solution.coefficients {
                    Coefficients::List(list) => Matrix::new(1, list.len(), list).unwrap(),
                    Coefficients::PerOutput(matrix) => matrix,
                    Coefficients::None => panic!("{what}: no coefficients"),
                };
                assert_near(&what, &found, &matrix(alpha), 1e-6);
            }
        }
    }
}
