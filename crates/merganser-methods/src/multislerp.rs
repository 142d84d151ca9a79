//! Weighted mean direction of several models, at their weighted mean norm.
//!
//! With v_i = x_i (or x_i − base) and u_i = v_i/(‖v_i‖ + ε): m = Σ w_i u_i / ‖Σ w_i u_i‖ is the base point of a tangent
//! space, the weighted tangent mean is added there, and the result is scaled by Σ w_i ‖v_i‖. In mergekit's form, kept
//! here, the tangent mean is identically zero because m is the weighted mean itself, so its exponential is the factor
//! cos ε on m and nothing else: y = cos ε · m · Σ w_i ‖v_i‖ (+ base).

use merganser_kernels::{angle, elementwise};

use crate::gram::Gram;
use crate::{
    Arity, BasePolicy, Method, MethodError, MethodInfo, Parameter, Program, Scope, Settings,
    Survey, TensorGroup, View,
};

/// See the module's documentation.
pub(crate) struct Multislerp;

static INFO: MethodInfo = MethodInfo {
    name: "multislerp",
    summary: "weighted mean direction of the models (or of their task vectors) at their weighted mean norm",
    formula: "y = (Σ w_i u_i)/‖Σ w_i u_i‖ · Σ w_i ‖v_i‖ (+ base), v_i = x_i (- base), u_i = v_i/(‖v_i‖ + eps)",
    source: "mergekit, multislerp",
    in_mergekit: true,
    base: BasePolicy::Optional,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter::weight(),
        Parameter::flag("normalize_weights", true, "divide the weights by their sum"),
        Parameter::float(
            "eps",
            Scope::Shared,
            (0.0, 1.0),
            1e-8,
            "added to norms; below it a mean direction is none",
        ),
    ],
};

impl Method for Multislerp {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn check(
        &self,
        _shape: &[usize],
        base: Option<usize>,
        settings: &Settings,
    ) -> Result<(), String> {
        let weights: Vec<f64> = (0..settings.inputs.len())
            .filter(|i| Some(*i) != base)
            .map(|i| settings.input_float(i, "weight").unwrap_or(0.0))
            .collect();
        if settings.flag("normalize_weights")
            && weights.len() > 1
            && weights.iter().sum::<f64>() == 0.0
        {
            return Err("the weights sum to 0, so they cannot be normalised; \
                        change them or set normalize_weights: false"
                .into());
        }
        Ok(())
    }

    fn passes(&self, _settings: &Settings) -> u32 {
        2
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        _survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        let others = group.others();
        if let [only] = others[..] {
            return Ok(Program::values(move |block, out| {
                out.copy_from_slice(block.input(only));
            }));
        }
        let mut weights = group.other_floats("weight");
        if group.settings.flag("normalize_weights") {
            let total: f64 = weights.iter().sum();
            for w in &mut weights {
                *w /= total;
            }
        }
        let view = if group.base.is_some() {
            View::Deltas
        } else {
            View::Values
        };
        let gram = Gram::of(group, view, &others)?;
        let coefficients = coefficients(&gram, &weights, group.settings.float("eps"))
            .ok_or_else(|| group.undefined("multislerp", CANCELLED))?;
        Ok(Program {
            view,
            ..Program::values(move |block, out| {
                elementwise::linear_combination(out, &coefficients, &block.others());
                if block.has_base() {
                    elementwise::add_assign(out, block.base());
                }
            })
        })
    }
}

const CANCELLED: &str = "the weighted directions of the models cancel, so they have no mean direction; \
                         change the weights, or merge two of the models first";

/// The factor of each v_i in the result; `None` if the directions cancel.
fn coefficients(gram: &Gram, weights: &[f64], eps: f64) -> Option<Vec<f32>> {
    let norms = gram.norms();
    // Coefficients of Σ w_i u_i; a vector of norm 0 has no direction, and eps = 0 must not divide by it.
    let mean: Vec<f64> = weights
        .iter()
        .zip(&norms)
        .map(|(w, n)| if *n > 0.0 { w / (n + eps) } else { 0.0 })
        .collect();
    let length = gram.norm_of(&mean);
    if length > 0.0 && length >= eps {
        let radius: f64 = weights.iter().zip(&norms).map(|(w, n)| w * n).sum();
        let scale = radius * angle::cos(eps) / length;
        return Some(mean.iter().map(|c| (c * scale) as f32).collect());
    }
    // Without directions the weighted sum is all there is; with two models mergekit takes it for antipodal ones too.
    let without_direction = norms.iter().all(|n| *n <= eps);
    (weights.len() == 2 || without_direction).then(|| weights.iter().map(|w| *w as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orthogonal_vectors() {
        let gram = Gram::of_slices(&[&[2.0, 0.0], &[0.0, 4.0]]);
        let c = coefficients(&gram, &[0.5, 0.5], 0.0).expect("a direction");
        let half = 0.5_f32.sqrt() * 3.0;
        assert!((c[0] * 2.0 - half).abs() < 1e-6 && (c[1] * 4.0 - half).abs() < 1e-6);
    }

    #[test]
    fn directions_that_cancel() {
        let antipodal = Gram::of_slices(&[&[1.0], &[-1.0]]);
        assert_eq!(
            coefficients(&antipodal, &[0.5, 0.5], 1e-8),
            Some(vec![0.5, 0.5])
        );
        let three = Gram::of_slices(&[&[1.0], &[-1.0], &[0.0]]);
        assert_eq!(coefficients(&three, &[0.4, 0.4, 0.2], 1e-8), None);
        let zeros = Gram::of_slices(&[&[0.0], &[0.0], &[0.0]]);
        assert_eq!(
            coefficients(&zeros, &[0.5, 0.25, 0.25], 1e-8),
            Some(vec![0.5, 0.25, 0.25])
        );
    }
}
