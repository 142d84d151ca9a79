//! The single input itself, optionally times a factor: the method of frankenmerges.

use crate::{
    Arity, BasePolicy, Kind, Method, MethodError, MethodInfo, Parameter, Program, Scope, Settings,
    Survey, TensorGroup,
};

/// See the module's documentation.
pub(crate) struct Passthrough;

static INFO: MethodInfo = MethodInfo {
    name: "passthrough",
    summary: "the tensor of the one input, unchanged or scaled",
    formula: "y = x, or scale · x",
    source: "mergekit, passthrough",
    in_mergekit: true,
    base: BasePolicy::Ignored,
    inputs: Arity::exactly(1),
    parameters: &[Parameter {
        name: "scale",
        scope: Scope::PerInput,
        kind: Kind::Float {
            min: f64::NEG_INFINITY,
            max: f64::INFINITY,
        },
        default: None,
        required: false,
        summary: "factor; without it the bytes are copied",
    }],
};

impl Method for Passthrough {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn is_copy(&self, settings: &Settings) -> bool {
        settings.input_float(0, "scale").is_none()
    }

    fn passes(&self, settings: &Settings) -> u32 {
        u32::from(!self.is_copy(settings))
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        _survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        let scale = group
            .settings
            .input_float(0, "scale")
            .map(|scale| scale as f32);
        Ok(Program::values(move |block, out| {
            out.copy_from_slice(block.input(0));
            if let Some(scale) = scale {
                merganser_kernels::elementwise::scale(out, scale);
            }
        }))
    }
}
