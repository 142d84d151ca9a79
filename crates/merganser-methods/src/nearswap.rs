//! Moves the base towards one model by at most t an element.
//!
//! ω = clamp(t / max(|base − x|, 10⁻⁶), 0, 1); y = ω·x + (1 − ω)·base. Where the models are nearer than t to each other
//! the other model's value is taken. Alchemonaut's NearSwap, as in mergekit.

use merganser_kernels::swap;

use crate::{
    Arity, BasePolicy, Method, MethodError, MethodInfo, Parameter, Program, Scope, Survey,
    TensorGroup,
};

/// See the module's documentation.
pub(crate) struct Nearswap;

static INFO: MethodInfo = MethodInfo {
    name: "nearswap",
    summary: "moves every element of the base towards the other model's by at most t",
    formula: "ω = clamp(t / max(|base - x|, 1e-6), 0, 1); y = ω·x + (1-ω)·base",
    source: "Alchemonaut, QuartetAnemoi-70B (NearSwap); mergekit",
    in_mergekit: true,
    base: BasePolicy::Required,
    inputs: Arity::exactly(1),
    parameters: &[Parameter::float(
        "t",
        Scope::Shared,
        (f64::NEG_INFINITY, f64::INFINITY),
        0.0,
        "longest step of an element, in the units of the weights",
    )
    .required()],
};

impl Method for Nearswap {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        _survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        let (base, [other]) = (group.base_index("nearswap")?, group.exactly("nearswap")?);
        let t = group.settings.float("t") as f32;
        Ok(Program::values(move |block, out| {
            swap::step_towards(out, block.input(base), block.input(other), t);
        }))
    }
}
