//! RAM: the mean of those task vectors that change an element at all.
//!
//! d_i counts at an element if |d_i| > ε; y = base + the mean of those that count. The `_plus_tl` form multiplies what
//! one model changes alone by λ_i = 1 + r · clamp(shared_i / unique_i, 0, α), from how many elements of the tensor model
//! i shares with others and has for itself. Formulas of mergekit's `ram` and `ramplus_tl`.

use merganser_kernels::compete;

use crate::{
    Arity, BasePolicy, Grain, Method, MethodError, MethodInfo, Parameter, Program, Scope, Settings,
    Survey, TensorGroup, View,
};

/// `ram`: see the module's documentation.
pub(crate) struct Ram;

/// `ramplus_tl`: see the module's documentation.
pub(crate) struct RamPlus;

const EPSILON: Parameter = Parameter::float(
    "epsilon",
    Scope::Shared,
    (0.0, f64::INFINITY),
    1e-5,
    "largest change that counts as none",
);

static RAM: MethodInfo = MethodInfo {
    name: "ram",
    summary: "adds to the base the mean of those task vectors that change the element",
    formula: "y = base + mean{d_i : |d_i| > epsilon}",
    source: "mergekit, ram",
    in_mergekit: true,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[EPSILON],
};

static RAM_PLUS: MethodInfo = MethodInfo {
    name: "ramplus_tl",
    summary: "ram that strengthens what one model changes alone, the more the model shares elsewhere",
    formula: "as ram, but an element that model i alone changes gets (1 + r·clamp(shared_i/unique_i, 0, alpha)) d_i",
    source: "mergekit, ramplus_tl",
    in_mergekit: true,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        EPSILON,
        Parameter::float(
            "r",
            Scope::Shared,
            (f64::NEG_INFINITY, f64::INFINITY),
            0.1,
            "strength of the bonus",
        ),
        Parameter::float(
            "alpha",
            Scope::Shared,
            (0.0, f64::INFINITY),
            0.2,
            "largest ratio of shared to unique",
        ),
    ],
};

impl Method for Ram {
    fn info(&self) -> &'static MethodInfo {
        &RAM
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        _survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        Ok(mean_of_active(group, vec![1.0; group.others().len()]))
    }
}

impl Method for RamPlus {
    fn info(&self) -> &'static MethodInfo {
        &RAM_PLUS
    }

    fn passes(&self, _settings: &Settings) -> u32 {
        2
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        _survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        let settings = group.settings;
        let (epsilon, count) = (settings.float("epsilon"), group.others().len());
        let parts = group.scan(
            Grain::Elements,
            View::Deltas,
            |_| (vec![0; count], vec![0; count]),
            |(unique, shared), block| {
                compete::count_active(&block.others(), epsilon as f32, unique, shared);
            },
        )?;
        let alone = (0..count).map(|i| {
            let unique: u64 = parts.iter().map(|part| part.0[i]).sum();
            let shared: u64 = parts.iter().map(|part| part.1[i]).sum();
            bonus(
                unique as f64,
                shared as f64,
                epsilon,
                settings.float("r"),
                settings.float("alpha"),
            ) as f32
        });
        Ok(mean_of_active(group, alone.collect()))
    }
}

fn bonus(unique: f64, shared: f64, epsilon: f64, r: f64, alpha: f64) -> f64 {
    // With epsilon = 0 and nothing unique there is no element that the bonus could reach.
    let ratio = shared / unique.max(epsilon).max(f64::MIN_POSITIVE);
    1.0 + r * ratio.clamp(0.0, alpha)
}

fn mean_of_active<'a>(group: &TensorGroup<'_>, alone: Vec<f32>) -> Program<'a> {
    let epsilon = group.settings.float("epsilon") as f32;
    Program::deltas(move |block, out| {
        compete::mean_of_active(out, block.base(), &block.others(), epsilon, &alone);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bonus_is_bounded() {
        assert_eq!(bonus(10.0, 1.0, 1e-5, 0.1, 0.2), 1.01);
        assert_eq!(bonus(1.0, 10.0, 1e-5, 0.1, 0.2), 1.02);
        assert_eq!(bonus(0.0, 10.0, 0.0, 0.1, 0.2), 1.02);
        assert_eq!(bonus(0.0, 0.0, 0.0, 0.1, 0.2), 1.0);
    }
}
