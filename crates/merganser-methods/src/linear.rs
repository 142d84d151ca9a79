//! Weighted average of the inputs.
//!
//! y = Σ w_i x_i, divided by Σ w_i when `normalize` is on. With equal weights this is the uniform soup
//! (Wortsman et al., "Model soups", ICML 2022).

use merganser_kernels::elementwise;

use crate::{
    Arity, BasePolicy, Method, MethodError, MethodInfo, Parameter, Program, Settings, Survey,
    TensorGroup,
};

/// See the module's documentation.
pub(crate) struct Linear;

static INFO: MethodInfo = MethodInfo {
    name: "linear",
    summary: "weighted average of the models",
    formula: "y = Σ w_i x_i / Σ w_i   (without the division if normalize is false)",
    source: "Wortsman et al., Model soups, ICML 2022 (arXiv 2203.05482)",
    in_mergekit: true,
    base: BasePolicy::Ignored,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter::weight(),
        Parameter::flag("normalize", true, "divide by the sum of the weights"),
    ],
};

impl Method for Linear {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn check(
        &self,
        _shape: &[usize],
        _base: Option<usize>,
        settings: &Settings,
    ) -> Result<(), String> {
        if settings.flag("normalize") && weights(settings).iter().sum::<f64>() == 0.0 {
            return Err("the weights sum to 0, so they cannot be normalised; change them or set normalize: false".into());
        }
        Ok(())
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        _survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        let mut weights = weights(group.settings);
        if group.settings.flag("normalize") {
            let total: f64 = weights.iter().sum();
            for w in &mut weights {
                *w /= total;
            }
        }
        let weights: Vec<f32> = weights.iter().map(|w| *w as f32).collect();
        Ok(Program::values(move |block, out| {
            elementwise::linear_combination(out, &weights, &block.all());
        }))
    }
}

fn weights(settings: &Settings) -> Vec<f64> {
    (0..settings.inputs.len())
        .map(|i| settings.input_float(i, "weight").unwrap_or(0.0))
        .collect()
}
