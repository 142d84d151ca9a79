//! Tensors of the inputs and of data-free merges, whole and in f32, under the names of the output.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use merganser_kernels::convert::{self, Float};
use merganser_methods::{Encoding, Method, Program, Settings, Survey, TensorGroup, View};
use merganser_model::{ModelError, Weights};
use merganser_plan::{Action, InputRef, Model, Output, Plan};

use crate::execute::Opened;
use crate::{RunError, sources};

/// The tensors a plan speaks of, found by the names of its outputs.
pub(crate) struct Tensors<'a> {
    pub(crate) plan: &'a Plan,
    allow_nonfinite: bool,
    outputs: HashMap<&'a str, &'a Output>,
}

impl<'a> Tensors<'a> {
    pub(crate) fn new(plan: &'a Plan, allow_nonfinite: bool) -> Self {
        Self {
            plan,
            allow_nonfinite,
            outputs: plan
                .tensors()
                .map(|output| (output.name.as_str(), output))
                .collect(),
        }
    }

    pub(crate) fn output(&self, name: &str) -> Option<&'a Output> {
        self.outputs.get(name).copied()
    }

    /// The tensors of one input model.
    pub(crate) fn of_model(&'a self, model: usize) -> ModelTensors<'a> {
        ModelTensors {
            tensors: self,
            model,
        }
    }

    /// An output as the plan's data-free method makes it, not yet rounded.
    pub(crate) fn merged(&self, output: &Output, survey: &Survey) -> Result<Tensor, RunError> {
        match &output.action {
            Action::Copy(input) | Action::Cast { input, .. } => self.input(output, input),
            Action::Identical(inputs) => self.input(output, &inputs[0]),
            Action::Merge {
                inputs,
                base,
                settings,
                ..
            } => self.by_method(self.plan.method, output, (inputs, *base), settings, survey),
        }
    }

    /// An output as another data-free method makes it.
    pub(crate) fn by_method(
        &self,
        method: &dyn Method,
        output: &Output,
        (inputs, base): (&[InputRef], Option<usize>),
        settings: &Settings,
        survey: &Survey,
    ) -> Result<Tensor, RunError> {
        let opened = Opened::new(self.plan, inputs, None)?;
        let group = opened.group(output, base, settings, self.allow_nonfinite);
        let program = method.prepare(&group, survey)?;
        tensor(&group, &program)
    }

    fn input(&self, output: &Output, input: &InputRef) -> Result<Tensor, RunError> {
        let settings = Settings::default();
        let opened = Opened::new(self.plan, std::slice::from_ref(input), None)?;
        let group = opened.group(output, None, &settings, self.allow_nonfinite);
        tensor(&group, &copy())
    }
}

fn copy() -> Program<'static> {
    Program::values(|block, out| out.copy_from_slice(block.input(0)))
}

fn tensor(group: &TensorGroup<'_>, program: &Program<'_>) -> Result<Tensor, RunError> {
    let pieces = group.run(program, Encoding::Float(Float::F32), |_, bytes| {
        let mut values = vec![0.0; bytes.len() / 4];
        convert::decode(Float::F32, bytes, &mut values);
        Ok(values)
    })?;
    Tensor::from_vec(pieces.concat(), group.shape, &Device::Cpu)
        .map_err(|error| RunError::Read(error.into()))
}

/// The tensors of one input model, under the names of the output.
pub(crate) struct ModelTensors<'a> {
    tensors: &'a Tensors<'a>,
    model: usize,
}

impl ModelTensors<'_> {
    fn find(&self, name: &str) -> Result<(&Output, &InputRef), ModelError> {
        let missing = || ModelError::NoWeight(name.to_owned());
        let output = self.tensors.output(name).ok_or_else(missing)?;
        let mut inputs = output.inputs().iter();
        let input = inputs.find(|input| input.model == self.model);
        // What all models share, or what only one has, is copied: every model has the same.
        let input = input.or_else(|| output.inputs().first());
        Ok((output, input.ok_or_else(missing)?))
    }
}

impl Weights for ModelTensors<'_> {
    fn tensor(&self, name: &str) -> merganser_model::Result<Tensor> {
        let (output, input) = self.find(name)?;
        self.tensors.input(output, input).map_err(source)
    }

    fn rows(&self, name: &str, rows: &[u32]) -> merganser_model::Result<Tensor> {
        let (output, input) = self.find(name)?;
        let settings = Settings::default();
        let inputs = std::slice::from_ref(input);
        let opened = Opened::new(self.tensors.plan, inputs, None).map_err(source)?;
        let group = opened.group(output, None, &settings, self.tensors.allow_nonfinite);
        let (count, width) = (output.shape.first().copied().unwrap_or(0), group.item_len());
        let mut values = Vec::with_capacity(rows.len() * width);
        for row in rows {
            let first = *row as usize * width;
            if *row as usize >= count {
                return Err(ModelError::Row {
                    tensor: name.to_owned(),
                    row: *row,
                    rows: count,
                });
            }
            group
                .read(View::Values, first..first + width, |block| {
                    values.extend_from_slice(block.input(0));
                })
                .map_err(|error| source(error.into()))?;
        }
        Ok(Tensor::from_vec(values, (rows.len(), width), &Device::Cpu)?)
    }
}

fn source(error: RunError) -> ModelError {
    ModelError::Source(Box::new(error))
}

/// The tensors of a model that no plan speaks of, under their own names.
pub(crate) struct Stored<'a>(pub(crate) &'a Model);

impl Weights for Stored<'_> {
    fn tensor(&self, name: &str) -> merganser_model::Result<Tensor> {
        let missing = || ModelError::NoWeight(name.to_owned());
        let (_, shape) = self.0.describe(name).ok_or_else(missing)?;
        let elements = shape.iter().product();
        Ok(Tensor::from_vec(
            self.read(name, 0..elements)?,
            shape,
            &Device::Cpu,
        )?)
    }

    fn rows(&self, name: &str, rows: &[u32]) -> merganser_model::Result<Tensor> {
        let missing = || ModelError::NoWeight(name.to_owned());
        let (_, shape) = self.0.describe(name).ok_or_else(missing)?;
        let count = shape.first().copied().unwrap_or(0);
        let width: usize = shape.iter().skip(1).product();
        let mut values = Vec::with_capacity(rows.len() * width);
        for row in rows {
            let at = *row as usize;
            if at >= count {
                return Err(ModelError::Row {
                    tensor: name.to_owned(),
                    row: *row,
                    rows: count,
                });
            }
            values.extend(self.read(name, at * width..(at + 1) * width)?);
        }
        Ok(Tensor::from_vec(values, (rows.len(), width), &Device::Cpu)?)
    }
}

impl Stored<'_> {
    fn read(&self, name: &str, range: std::ops::Range<usize>) -> Result<Vec<f32>, ModelError> {
        let opened = sources::open(self.0, name).map_err(source)?;
        let mut raw = Vec::new();
        opened
            .fetch(range.clone(), &mut raw)
            .map_err(ModelError::Source)?;
        let mut values = vec![0.0; range.len()];
        opened.decode(&raw, range.start, 0, &mut values);
        Ok(values)
    }
}
