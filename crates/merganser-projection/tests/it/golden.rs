//! Every golden case of output-space projection: an independent f64 implementation, to its own tolerances.

use std::fs;
use std::path::Path;

use merganser_linalg::Matrix;
use merganser_projection::{Basis, Coefficients, Constraint, Problem, Programme, Ridge, Solution};
use merganser_testkit::golden::{folder, read_safetensors};
use serde_json::Value;

use crate::support::{Data, assert_near, matrix, problem};

fn constraint(name: &str) -> Constraint {
    match name {
        "free" => Constraint::Free,
        "nonneg" => Constraint::NonNegative,
        "box" => Constraint::Box,
        "simplex" => Constraint::Simplex,
        "affine" => Constraint::Affine,
        other => panic!("no constraint {other}"),
    }
}

/// The update with the entries of magnitude below a quantile set to 0.
fn masked(update: &Matrix, quantile: f64) -> Matrix {
    let mut sizes: Vec<f64> = update.as_slice().iter().map(|x| x.abs()).collect();
    sizes.sort_by(f64::total_cmp);
    let at = quantile * (sizes.len() - 1) as f64;
    let (low, high) = (sizes[at.floor() as usize], sizes[at.ceil() as usize]);
    let threshold = low + at.fract() * (high - low);
    let kept = update
        .as_slice()
        .iter()
        .map(|&x| if x.abs() < threshold { 0.0 } else { x })
        .collect();
    Matrix::new(update.rows(), update.cols(), kept).unwrap()
}

fn solve(problem: &Problem, data: &[Data], name: &str, params: &Value) -> Solution {
    let rank = params["svd_rank"].as_u64().unwrap() as usize;
    let (basis, set) = name.split_once('.').unwrap_or((name, ""));
    let programme = match basis {
        "task" => Programme::new(Basis::Task).constraint(constraint(set)),
        "diagonal" => Programme::new(Basis::Diagonal).constraint(constraint(set)),
        "rotated" => Programme::new(Basis::Rotated).constraint(constraint(set)),
        "atoms" => Programme::new(Basis::Atoms { rank }).constraint(constraint(set)),
        "core" => Programme::new(Basis::Core { rank: Some(rank) }),
        "full" if set == "ridge" => {
            let absolute = params["ridge_absolute"].as_f64().unwrap();
            let ridge = Ridge::Relative(absolute / problem.ridge_unit());
            Programme::new(Basis::Full).ridge(ridge)
        }
        "full" => Programme::new(Basis::Full),
        "best_rank" => Programme::new(Basis::BestRank {
            rank: set.parse().unwrap(),
        }),
        "task_masked" => {
            let quantile = params["masked_quantile"].as_f64().unwrap();
            let kept: Vec<Matrix> = data
                .iter()
                .map(|task| masked(&task.update, quantile))
                .collect();
            let kept: Vec<&Matrix> = kept.iter().collect();
            return problem
                .solve_span(&kept, constraint(set), Ridge::Relative(0.0))
                .unwrap();
        }
        other => panic!("no programme {other}"),
    };
    problem.solve(&programme).unwrap()
}

fn check(folder: &Path) -> usize {
    let case = folder.file_name().unwrap().to_string_lossy().into_owned();
    let inputs = read_safetensors(&folder.join("inputs.safetensors"));
    let expected = read_safetensors(&folder.join("expected.safetensors"));
    let params: Value =
        serde_json::from_str(&fs::read_to_string(folder.join("params.json")).unwrap()).unwrap();
    let base = matrix(&inputs["base"]);
    let data: Vec<Data> = params["task_weights"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .map(|(t, weight)| {
            let tensor = |part: &str| inputs.get(&format!("task.{t}.{part}")).map(matrix);
            let data = Data::new(
                &base,
                &tensor("weight").unwrap(),
                &tensor("input").unwrap(),
                tensor("merged_input").as_ref(),
            );
            Data {
                weight: weight.as_f64().unwrap(),
                ..data
            }
        })
        .collect();
    let problem = problem(&data);
    assert_near(&case, problem.gram(), &matrix(&expected["gram"]), 1e-12);
    assert_near(&case, problem.cross(), &matrix(&expected["cross"]), 1e-11);
    let energy = expected["energy"].values[0];
    assert!((problem.energy() - energy).abs() < 1e-11 * energy, "{case}");

    let mut checked = 0;
    for (name, result) in params["results"].as_object().unwrap() {
        let what = format!("{case}: {name}");
        let update = &expected.get(&format!("{name}.update"));
        let (objective, captured) = (
            result["objective"].as_f64().unwrap(),
            result["captured"].as_f64().unwrap(),
        );
        let set = name.rsplit('.').next().unwrap();
        let tolerance = match set {
            "nonneg" | "box" | "simplex" | "affine" => 1e-6,
            _ => 1e-8,
        };
        let found = if name == "mean" {
            problem.evaluate(&matrix(update.unwrap())).unwrap()
        } else {
            let solution = solve(&problem, &data, name, &params);
            if let Some(update) = update {
                assert_near(&what, &solution.update, &matrix(update), tolerance);
                checked += 1;
            }
            if let Some(coefficients) = expected.get(&format!("{name}.coefficients")) {
                let found = match solution.coefficients {
                    Coefficients::List(list) => Matrix::new(1, list.len(), list).unwrap(),
                    Coefficients::PerOutput(matrix) => matrix,
                    Coefficients::None => panic!("{what}: no coefficients"),
                };
                assert_near(&what, &found, &matrix(coefficients), 10.0 * tolerance);
            }
            solution.captured
        };
        assert!(
            (found.objective - objective).abs() <= 1e-8 * energy,
            "{what}: {} {objective}",
            found.objective
        );
        assert!(
            (found.fraction - captured).abs() <= 1e-8,
            "{what}: {} {captured}",
            found.fraction
        );
    }
    checked
}

#[test]
fn the_golden_cases_of_the_specification() {
    let folder = folder().join("projection/open");
    let mut checked = 0;
    for entry in fs::read_dir(folder).unwrap() {
        checked += check(&entry.unwrap().path());
    }
    assert!(checked >= 70, "only {checked} updates were compared");
}
