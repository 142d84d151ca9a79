//! Sparse backdoor vectors and projections against independent f64 code.

use merganser_trust::vectors::{Mask, against_mean, sparse};

use crate::support::Case;

fn flat(case: &Case, model: &str, minus: &str) -> Vec<f64> {
    let tensors = case.params["tensor_order"].as_array().unwrap();
    tensors
        .iter()
        .flat_map(|name| {
            let name = name.as_str().unwrap();
            let (a, b) = (
                case.input(&format!("{model}/{name}")),
                case.input(&format!("{minus}/{name}")),
            );
            a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f64>>()
        })
        .collect()
}

#[test]
fn sparse_vectors() {
    let case = Case::load("backdoor_vectors", "sbv_sign_consistent_n3");
    let vectors: Vec<Vec<f64>> = (0..3)
        .map(|i| flat(&case, &format!("backdoored{i}"), "clean"))
        .collect();
    let vectors: Vec<&[f64]> = vectors.iter().map(Vec::as_slice).collect();
    let share = |key: &str| case.params[key].as_f64().unwrap();
    case.assert("mean_bv", &sparse(&vectors, Mask::Majority(0.0)).unwrap());
    let consistent = sparse(&vectors, Mask::SignConsistent).unwrap();
    case.assert("sbv_sc", &consistent);
    let majority = Mask::Majority(share("majority_q"));
    case.assert("sbv_majority", &sparse(&vectors, majority).unwrap());
    let top = Mask::Top(share("topk_fraction"));
    case.assert("sbv_topk", &sparse(&vectors, top).unwrap());
    let kept = consistent.iter().filter(|x| **x != 0.0).count();
    case.assert("sbv_sc_density", &[kept as f64 / consistent.len() as f64]);
}

#[test]
fn contributors_and_the_projection() {
    let case = Case::load("backdoor_vectors", "ibvs_task_arithmetic");
    let bv = flat(&case, "injected_backdoored", "injected_clean");
    let taus: Vec<Vec<f64>> = (0..3)
        .map(|i| flat(&case, &format!("model{i}"), "pre"))
        .collect();
    let scale = case.params["lambda_merge"].as_f64().unwrap();
    let merged: Vec<f64> = (0..bv.len())
        .map(|p| scale * taus.iter().map(|tau| tau[p]).sum::<f64>())
        .collect();
    let all: Vec<&Vec<f64>> = taus.iter().chain([&merged, &bv]).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let gram: Vec<f64> = all
        .iter()
        .flat_map(|a| all.iter().map(|b| dot(a, b)).collect::<Vec<f64>>())
        .collect();
    let found: Vec<_> = (0..4)
        .map(|v| against_mean(&gram, 5, v, &[4]).unwrap())
        .collect();
    let cosines: Vec<f64> = found.iter().map(|found| found.cosine).collect();
    case.assert("cos_tau_ibv", &cosines[..3]);
    case.assert("cos_merged_ibv", &cosines[3..]);
    case.assert("coef_projection", &[found[3].coefficient]);
}
