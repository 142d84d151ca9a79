//! Elements of a TIES merge that mergekit decides by chance: its sort is unstable, so which of several elements of the
//! very magnitude of the cut are kept is open, and so is the sign where the votes cancel.

use std::collections::BTreeMap;

use merganser_testkit::Tensor;

use super::Case;
use crate::models;

type Tensors = BTreeMap<String, Tensor>;

/// The inputs of a TIES merge with a weight and a density for every model.
pub(super) struct Ties {
    base: Tensors,
    models: Vec<Model>,
}

struct Model {
    tensors: Tensors,
    weight: f64,
    density: f64,
}

impl Ties {
    pub(super) fn load(case: &Case) -> Self {
        let mut inputs = case
            .inputs()
            .into_iter()
            .map(|folder| models::read(&folder));
        let base = inputs.next().expect("a base");
        let settings = case.numbers("weight").into_iter();
        let settings = settings.zip(case.numbers("density"));
        let models: Vec<Model> = inputs
            .zip(settings)
            .map(|(tensors, (weight, density))| Model {
                tensors,
                weight,
                density,
            })
            .collect();
        assert!(models.len() > 1, "a recipe that is not understood");
        Self { base, models }
    }

    /// Whether chance decides about this element: some input has the magnitude of its cut there, or the votes cancel.
    pub(super) fn is_ambiguous(&self, name: &str, index: usize) -> bool {
        let base = self.base[name].f32();
        let mut sum = 0.0;
        let mut size = 0.0;
        for model in &self.models {
            let tuned = model.tensors[name].f32();
            let delta: Vec<f32> = tuned.iter().zip(&base).map(|(a, b)| a - b).collect();
            let mut sizes: Vec<f32> = delta.iter().map(|x| x.abs()).collect();
            sizes.sort_by(|a, b| b.total_cmp(a));
            let kept = (model.density * sizes.len() as f64) as usize;
            let Some(cut) = kept.checked_sub(1).map(|last| sizes[last]) else {
                continue;
            };
            if delta[index].abs() == cut && sizes.get(kept) == Some(&cut) {
                return true;
            }
            if delta[index].abs() >= cut {
                sum += model.weight * f64::from(delta[index]);
                size += (model.weight * f64::from(delta[index])).abs();
            }
        }
        size > 0.0 && sum.abs() <= 1e-6 * size
    }
}
