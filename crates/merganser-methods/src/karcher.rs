//! Riemannian (Karcher) mean of the models' directions on the sphere, at their mean norm.
//!
//! Fixed-point iteration m ← exp_m(mean of log_m(u_i)) on the unit vectors u_i = x_i/‖x_i‖, started at their normalised
//! sum. m stays in the span of the inputs, so the iteration runs on coefficients and the Gram matrix. Models of norm
//! ≤ tol have no direction but count in the mean norm.
//! Karcher, "Riemannian center of mass", Comm. Pure Appl. Math. 1977; iteration and tolerances of mergekit.

use merganser_kernels::{angle, elementwise};

use crate::gram::Gram;
use crate::{
    Arity, BasePolicy, Method, MethodError, MethodInfo, Parameter, Program, Scope, Settings,
    Survey, TensorGroup, View,
};

/// See the module's documentation.
pub(crate) struct Karcher;

static INFO: MethodInfo = MethodInfo {
    name: "karcher",
    summary: "Riemannian mean of the models' directions on the sphere, at their mean norm",
    formula: "y = (1/N Σ ‖x_i‖) · argmin_m Σ angle(m, x_i)² over unit m",
    source: "Karcher, Riemannian center of mass and mollifier smoothing, 1977; iteration of mergekit",
    in_mergekit: true,
    base: BasePolicy::Ignored,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter::int("max_iter", (0, 1_000_000), 10, "most iterations"),
        Parameter::float(
            "tol",
            Scope::Shared,
            (0.0, 1.0),
            1e-5,
            "smallest step, angle and norm that count",
        ),
    ],
};

impl Method for Karcher {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn passes(&self, _settings: &Settings) -> u32 {
        2
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        _survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        let all: Vec<usize> = (0..group.inputs.len()).collect();
        let gram = Gram::of(group, View::Values, &all)?;
        let settings = group.settings;
        let coefficients = mean(&gram, settings.int("max_iter"), settings.float("tol"));
        Ok(Program::values(move |block, out| {
            elementwise::linear_combination(out, &coefficients, &block.all());
        }))
    }
}

/// The factor of each input in the mean.
fn mean(gram: &Gram, max_iter: i64, tol: f64) -> Vec<f32> {
    let norms = gram.norms();
    let mean_norm = norms.iter().sum::<f64>() / gram.size() as f64;
    let with_direction: Vec<usize> = (0..gram.size()).filter(|&i| norms[i] > tol).collect();
    let direction = direction(gram, &with_direction, max_iter, tol);
    (0..gram.size())
        .map(|i| (mean_norm * direction[i]) as f32)
        .collect()
}

/// The mean direction as coefficients of the inputs themselves; zeros if no input has a direction.
fn direction(gram: &Gram, inputs: &[usize], max_iter: i64, tol: f64) -> Vec<f64> {
    let alpha = 1.0 / inputs.len() as f64;
    let mut m = vec![0.0; gram.size()];
    for &i in inputs {
        m[i] = alpha / gram.norm(i);
    }
    if let (Some(&first), true) = (inputs.first(), gram.norm_of(&m) < tol) {
        m.fill(0.0);
        m[first] = 1.0 / gram.norm(first);
    }
    normalize(gram, &mut m);
    for _ in 0..max_iter {
        let mut tangent = vec![0.0; m.len()];
        for &i in inputs {
            let cosine = (gram.product_with(i, &m) / gram.norm(i)).clamp(-1.0, 1.0);
            let theta = angle::acos(cosine);
            let sine = angle::sin(theta);
            // The antipode of m has no direction to be reached in.
            if theta < tol || sine < 1e-12 {
                continue;
            }
            let scale = alpha * theta / sine;
            tangent[i] += scale / gram.norm(i);
            for (tangent, m) in tangent.iter_mut().zip(&m) {
                *tangent -= scale * cosine * m;
            }
        }
        let step = gram.norm_of(&tangent);
        if step < tol || step == 0.0 {
            break;
        }
        let (sine, cosine) = (angle::sin(step), angle::cos(step));
        for (m, tangent) in m.iter_mut().zip(&tangent) {
            *m = cosine * *m + sine * tangent / step;
        }
        normalize(gram, &mut m);
    }
    m
}

fn normalize(gram: &Gram, m: &mut [f64]) {
    let norm = gram.norm_of(m);
    if norm > 0.0 {
        for c in m {
            *c /= norm;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_model_is_its_own_mean() {
        assert_eq!(mean(&Gram::of_slices(&[&[3.0, 4.0]]), 10, 1e-5), [1.0]);
    }

    #[test]
    fn two_models_meet_halfway() {
        let c = mean(&Gram::of_slices(&[&[2.0, 0.0], &[0.0, 4.0]]), 10, 1e-5);
        let half = 3.0 * 0.5_f32.sqrt();
        assert!((c[0] * 2.0 - half).abs() < 1e-6 && (c[1] * 4.0 - half).abs() < 1e-6);
    }

    #[test]
    fn zeros_count_in_the_norm_only() {
        assert_eq!(
            mean(&Gram::of_slices(&[&[0.0], &[0.0]]), 10, 1e-5),
            [0.0, 0.0]
        );
        assert_eq!(
            mean(&Gram::of_slices(&[&[4.0], &[0.0]]), 10, 1e-5),
            [0.5, 0.0]
        );
    }

    #[test]
    fn antipodes_stay_finite() {
        assert!(
            mean(&Gram::of_slices(&[&[1.0, 0.0], &[-1.0, 0.0]]), 10, 1e-5)
                .iter()
                .all(|c| c.is_finite())
        );
    }
}
