//! Scores of sequences of updates against independent f64 code.

use merganser_trust::sequence::{Rule, Score, Updates, score};

use crate::support::Case;

#[test]
fn scores_of_sequences() {
    for name in [
        "clean_t8",
        "poison_norm_task5",
        "relative_to_base",
        "digits_contrast_poison_kd",
    ] {
        let case = Case::load("stp", name);
        let tensors = case.params["tensor_order"].as_array().unwrap();
        let tensors: Vec<&str> = tensors.iter().map(|name| name.as_str().unwrap()).collect();
        let count = case.expected("norms").len();
        let from_base = case.params["relative_to"] == "base";
        let mut gram = vec![0.0; count * count];
        let mut tensor_norms = Vec::new();
        for tensor in &tensors {
            let theta = |t: usize| case.input(&format!("theta{t}/{tensor}"));
            let updates: Vec<Vec<f64>> = (1..=count)
                .map(|t| {
                    let before = theta(if from_base { 0 } else { t - 1 });
                    theta(t).iter().zip(before).map(|(a, b)| a - b).collect()
                })
                .collect();
            for (s, a) in updates.iter().enumerate() {
                for (t, b) in updates.iter().enumerate() {
                    gram[s * count + t] += a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                }
            }
            let norm = |update: &Vec<f64>| update.iter().map(|x| x * x).sum::<f64>().sqrt();
            tensor_norms.push(updates.iter().map(norm).collect::<Vec<f64>>());
        }
        let updates = Updates {
            gram: &gram,
            tensor_norms: &tensor_norms,
            losses: None,
        };
        let found = score(updates, Rule::default()).unwrap();
        let column = |of: &dyn Fn(&Score) -> f64| found.iter().map(of).collect::<Vec<f64>>();
        case.assert("norms", &column(&|s| s.norm));
        case.assert("mean_cos_to_history", &column(&|s| s.mean_cosine));
        case.assert("z_norm", &column(&|s| s.z_norm));
        case.assert("z_cos", &column(&|s| s.z_cosine));
        case.assert("score", &column(&|s| s.score));
        case.assert("flagged", &column(&|s| f64::from(u8::from(s.flagged))));
        let by_tensor: Vec<f64> = found
            .iter()
            .flat_map(|s| s.z_norm_by_tensor.clone())
            .collect();
        case.assert("z_norm_per_tensor", &by_tensor);
    }
}
