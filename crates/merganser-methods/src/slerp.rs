//! Spherical interpolation between the base and one model.
//!
//! The whole tensor is one vector. With θ the angle between a = base and c = other,
//! y = sin((1 − t)θ)/sin θ · a + sin(tθ)/sin θ · c, applied to the tensors as they are, not to their directions.
//! Nearly parallel or antiparallel tensors (|cos θ| > 0.9995) are interpolated linearly.
//! Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985; thresholds of mergekit.

use merganser_kernels::{angle, elementwise};

use crate::gram::Gram;
use crate::{
    Arity, BasePolicy, Method, MethodError, MethodInfo, Parameter, Program, Scope, Settings,
    Survey, TensorGroup, View,
};

/// See the module's documentation.
pub(crate) struct Slerp;

/// |cos θ| above which the tensors count as parallel.
const PARALLEL: f64 = 0.9995;
/// Norms up to this are not divided by.
const TINY: f64 = 1e-8;

static INFO: MethodInfo = MethodInfo {
    name: "slerp",
    summary: "spherical interpolation between the base model (t = 0) and one other (t = 1)",
    formula: "y = sin((1-t)θ)/sin θ · base + sin(tθ)/sin θ · x, θ the angle between the tensors; \
              (1-t)·base + t·x if |cos θ| > 0.9995",
    source: "Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985; thresholds of mergekit",
    in_mergekit: true,
    base: BasePolicy::Required,
    inputs: Arity::exactly(1),
    parameters: &[Parameter::float(
        "t",
        Scope::Shared,
        (f64::NEG_INFINITY, f64::INFINITY),
        0.5,
        "position between the base (0) and the other model (1); outside [0, 1] extrapolates",
    )
    .required()],
};

impl Method for Slerp {
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
        let base = group.base_index("slerp")?;
        let [other] = group.exactly("slerp")?;
        let gram = Gram::of(group, View::Values, &[base, other])?;
        let (wa, wc) = coefficients(&gram, group.settings.float("t"));
        Ok(Program::values(move |block, out| {
            elementwise::affine2(out, wa, block.input(base), wc, block.input(other));
        }))
    }
}

fn coefficients(gram: &Gram, t: f64) -> (f32, f32) {
    let norm = |i| {
        if gram.norm(i) > TINY {
            gram.norm(i)
        } else {
            1.0
        }
    };
    let cosine = (gram.product(0, 1) / (norm(0) * norm(1))).clamp(-1.0, 1.0);
    let (wa, wc) = if cosine.abs() > PARALLEL {
        (1.0 - t, t)
    } else {
        arc(angle::acos(cosine), t)
    };
    (wa as f32, wc as f32)
}

/// The two sine ratios of the slerp formula.
pub(crate) fn arc(theta: f64, t: f64) -> (f64, f64) {
    let sine = angle::sin(theta);
    (
        angle::sin((1.0 - t) * theta) / sine,
        angle::sin(t * theta) / sine,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orthogonal_vectors_meet_in_the_middle() {
        let gram = Gram::of_slices(&[&[2.0, 0.0], &[0.0, 3.0]]);
        let half = std::f32::consts::FRAC_1_SQRT_2;
        assert_eq!(coefficients(&gram, 0.5), (half, half));
        assert_eq!(coefficients(&gram, 0.0), (1.0, 0.0));
        assert_eq!(coefficients(&gram, 1.0), (0.0, 1.0));
    }

    #[test]
    fn parallel_antiparallel_and_zero_vectors() {
        for (a, c) in [([1.0, 0.0], [2.0, 0.0]), ([1.0, 0.0], [-1.0, 0.0])] {
            assert_eq!(
                coefficients(&Gram::of_slices(&[&a, &c]), 0.25),
                (0.75, 0.25)
            );
        }
        // Without a direction the angle is taken for a right one.
        let (wa, wc) = coefficients(&Gram::of_slices(&[&[0.0, 0.0], &[1.0, 0.0]]), 0.5);
        assert!(wa.is_finite() && wc == std::f32::consts::FRAC_1_SQRT_2);
    }
}
