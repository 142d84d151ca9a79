//! Random methods: no element is predictable, but how many are kept, which ones, and by what factor they grow.

use std::collections::BTreeMap;
use std::fs;

use merganser_testkit::Tensor;
use serde_json::Value;

use super::Case;
use crate::models;

/// One tensor: the task vector and what of it was kept.
struct Kept {
    name: String,
    row: usize,
    delta: Vec<f64>,
    merged: Vec<f64>,
}

impl Kept {
    fn is_kept(&self, index: usize) -> bool {
        self.merged[index].abs() > 1e-9
    }

    /// What L1(δ) / L1(kept δ) makes of the kept elements.
    fn factor(&self) -> f64 {
        let all: f64 = self.delta.iter().map(|x| x.abs()).sum();
        let kept: f64 = (0..self.delta.len())
            .filter(|i| self.is_kept(*i))
            .map(|i| self.delta[i].abs())
            .sum();
        all / kept
    }
}

/// Checks what `expected/stats.json` says of a merge of one model with its base.
pub(super) fn check(case: &Case, merged: &BTreeMap<String, Tensor>) {
    let text = fs::read_to_string(case.folder.join("expected/stats.json")).expect("stats.json");
    let stats: Value = serde_json::from_str(&text).expect("stats.json");
    let number = |key: &str| stats[key].as_f64().unwrap_or_else(|| panic!("no {key}"));
    let inputs = case.inputs();
    let [base, tuned] = [&inputs[0], &inputs[1]].map(|folder| models::read(folder));
    let tensors: Vec<Kept> = merged
        .iter()
        .map(|(name, tensor)| {
            let minus = |a: &Tensor| {
                let pairs = a.values.iter().zip(&base[name].values);
                pairs.map(|(a, b)| a - b).collect()
            };
            Kept {
                name: name.clone(),
                row: tensor.shape.last().copied().unwrap_or(1),
                delta: minus(&tuned[name]),
                merged: minus(tensor),
            }
        })
        .collect();

    let total: usize = tensors.iter().map(|tensor| tensor.delta.len()).sum();
    assert_eq!(total as f64, number("total"));
    let kept: usize = tensors
        .iter()
        .map(|tensor| {
            (0..tensor.delta.len())
                .filter(|i| tensor.is_kept(*i))
                .count()
        })
        .sum();
    let fraction = kept as f64 / total as f64;
    let (expected, sigma) = (number("fraction_expected"), number("fraction_sigma"));
    assert!(
        (fraction - expected).abs() <= 4.0 * sigma,
        "{fraction} kept, not {expected}"
    );

    for tensor in &tensors {
        let factor = tensor.factor();
        for (i, (delta, merged)) in tensor.delta.iter().zip(&tensor.merged).enumerate() {
            assert!(
                !tensor.is_kept(i) || (merged - factor * delta).abs() <= 1e-6,
                "element {i} of '{}' grew {}-fold, not {factor}-fold",
                tensor.name,
                merged / delta
            );
        }
    }
    if stats["method"] == "della" {
        rises_with_rank(
            &tensors,
            stats["density"][0].as_f64().expect("a density"),
            stats["epsilon"][0].as_f64().expect("an epsilon"),
        );
    }
}

/// DELLA: within each row of a matrix, the octile of largest magnitude is kept most.
fn rises_with_rank(tensors: &[Kept], density: f64, epsilon: f64) {
    let mut seen = [0_usize; 8];
    let mut kept = [0_usize; 8];
    for tensor in tensors
        .iter()
        .filter(|tensor| tensor.row < tensor.delta.len())
    {
        for start in (0..tensor.delta.len()).step_by(tensor.row) {
            let mut order: Vec<usize> = (start..start + tensor.row).collect();
            order.sort_by(|&a, &b| tensor.delta[a].abs().total_cmp(&tensor.delta[b].abs()));
            for (rank, index) in order.into_iter().enumerate() {
                let octile = rank * 8 / tensor.row;
                seen[octile] += 1;
                kept[octile] += usize::from(tensor.is_kept(index));
            }
        }
    }
    for octile in 0..8 {
        let rate = kept[octile] as f64 / seen[octile] as f64;
        let expected = density - epsilon + 2.0 * epsilon * (octile as f64 + 0.5) / 8.0;
        let sigma = (expected * (1.0 - expected) / seen[octile] as f64).sqrt();
        assert!(
            (rate - expected).abs() <= 4.0 * sigma + 0.01,
            "octile {octile} is kept at a rate of {rate}, not {expected}"
        );
    }
}
