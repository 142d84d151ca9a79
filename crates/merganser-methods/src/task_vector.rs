//! Task vectors as checkpoints of their own: taken from a fine-tune, and added to a base.
//!
//! [`DIFFERENCE`] writes τ = x − base. [`APPLY`] writes base + Σ w_t τ_t, where each τ_t is a stored difference or that of a
//! model (a base with an adapter on it) to the base. Neither is a method of recipes: a stored difference is no model, so the
//! methods of recipes can do nothing with it.
//! Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023 (arXiv 2212.04089).

use merganser_kernels::elementwise;

use crate::sparsify::with_scratch;
use crate::{
    Arity, BasePolicy, Method, MethodError, MethodInfo, Program, Survey, TensorGroup, Value,
};

const SOURCE: &str =
    "Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023 (arXiv 2212.04089)";

/// Name of the number of every input of [`APPLY`] but the first: w_t.
pub const WEIGHT: &str = "weight";

/// Name of the switch of every input of [`APPLY`] but the first: whether it is a model, whose difference to the base counts.
pub const WHOLE: &str = "whole";

/// The difference of two inputs: the fine-tune and its base, in this order.
pub static DIFFERENCE: &dyn Method = &Difference;

/// Adds what the other inputs contribute to the first one, the base; see [`WEIGHT`] and [`WHOLE`].
pub static APPLY: &dyn Method = &Apply;

struct Difference;

static DIFFERENCE_INFO: MethodInfo = MethodInfo {
    name: "task_vector",
    summary: "what a fine-tune changed",
    formula: "τ = x − base",
    source: SOURCE,
    in_mergekit: false,
    base: BasePolicy::Ignored,
    inputs: Arity::exactly(2),
    parameters: &[],
};

impl Method for Difference {
    fn info(&self) -> &'static MethodInfo {
        &DIFFERENCE_INFO
    }

    fn prepare<'a>(
        &self,
        _group: &'a TensorGroup<'a>,
        _survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        Ok(Program::values(|block, out| {
            elementwise::sub(out, block.input(0), block.input(1));
        }))
    }
}

struct Apply;

static APPLY_INFO: MethodInfo = MethodInfo {
    name: "apply",
    summary: "adapters and task vectors added to a base model",
    formula: "y = base + Σ w_t τ_t",
    source: SOURCE,
    in_mergekit: false,
    base: BasePolicy::Ignored,
    inputs: Arity::at_least(2),
    parameters: &[],
};

impl Method for Apply {
    fn info(&self) -> &'static MethodInfo {
        &APPLY_INFO
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        _survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        let settings = group.settings;
        let items: Vec<(f32, bool)> = (1..group.inputs.len())
            .map(|i| {
                let weight = settings.input_float(i, WEIGHT).unwrap_or(1.0) as f32;
                let whole = settings.inputs.get(i).and_then(|own| own.get(WHOLE));
                (weight, whole == Some(&Value::Bool(true)))
            })
            .collect();
        Ok(Program::values(move |block, out| {
            let base = block.input(0);
            out.fill(0.0);
            for (i, (weight, whole)) in items.iter().enumerate() {
                let input = block.input(i + 1);
                if *whole {
                    with_scratch(1, block.len(), |scratch| {
                        elementwise::sub(scratch[0], input, base);
                        elementwise::axpy(out, *weight, scratch[0]);
                    });
                } else {
                    elementwise::axpy(out, *weight, input);
                }
            }
            elementwise::add_assign(out, base);
        }))
    }
}
