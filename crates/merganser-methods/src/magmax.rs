//! MagMax: of every element, the change of largest magnitude.
//!
//! y = base + λ · d_t* with t* = argmax_t |d_t|, the last model of equals. All task vectors are taken against the
//! same base, also where the models were trained one after the other. The authors use λ = 0.5; the default is 1, as for
//! every `lambda`.
//! Marczak et al., "MagMax: Leveraging Model Merging for Seamless Continual Learning", ECCV 2024 (arXiv 2407.06322).

use merganser_kernels::compete;

use crate::{
    Arity, BasePolicy, Method, MethodError, MethodInfo, Parameter, Program, Scope, Survey,
    TensorGroup,
};

/// See the module's documentation.
pub(crate) struct Magmax;

static INFO: MethodInfo = MethodInfo {
    name: "magmax",
    summary: "adds to the base, for every element, the change of largest magnitude",
    formula: "y = base + lambda · d_t*, t* = argmax_t |d_t| (the last of equals)",
    source: "Marczak et al., MagMax, ECCV 2024 (arXiv 2407.06322)",
    in_mergekit: false,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[Parameter::float(
        "lambda",
        Scope::Shared,
        (f64::NEG_INFINITY, f64::INFINITY),
        1.0,
        "factor of the merged task vector (the authors use 0.5)",
    )],
};

impl Method for Magmax {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    // So does the published code, for which a state of the stream is a model as any other.
    fn keeps_whole_numbers(&self) -> bool {
        true
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        _survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        let lambda = group.settings.float("lambda") as f32;
        // Then every element is one of a model's own: kept exactly, so that a running maximum may go on from it.
        if lambda == 1.0 {
            return Ok(Program::values(|block, out| {
                compete::farthest(out, block.base(), &block.others());
            }));
        }
        Ok(Program::deltas(move |block, out| {
            compete::largest(out, block.base(), &block.others(), lambda);
        }))
    }
}
