//! Writing a program: every call adds an op, checks its tensors and gives the register of its result.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{ModelError, Result};
use crate::network::{Inputs, Network, Outputs, Stage, StageKind};
use crate::op::{
    Activation, Additive, Attention, Embedding, Kind, Layout, Linear, Norm, NormKind, Op, Place,
    Reg, Space,
};

pub(crate) struct Builder<'a> {
    family: &'static str,
    tensors: &'a BTreeMap<String, Vec<usize>>,
    prefix: String,
    spaces: Vec<Space>,
    widths: Vec<usize>,
    stages: Vec<Stage>,
}

/// The normalisation a family uses throughout.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormStyle {
    pub(crate) kind: NormKind,
    pub(crate) eps: f64,
    pub(crate) offset: f64,
}

impl NormStyle {
    pub(crate) fn layer(eps: f64) -> Self {
        Self {
            kind: NormKind::Layer,
            eps,
            offset: 0.0,
        }
    }

    pub(crate) fn rms(eps: f64, offset: f64) -> Self {
        Self {
            kind: NormKind::Rms,
            eps,
            offset,
        }
    }
}

impl<'a> Builder<'a> {
    /// A program over `tensors`, whose names begin with whatever stands before `anchor` in the one name that ends with
    /// it ("bert.", "model.", nothing).
    pub(crate) fn new(
        family: &'static str,
        tensors: &'a BTreeMap<String, Vec<usize>>,
        anchor: &str,
    ) -> Result<Self> {
        let mut prefixes = tensors
            .keys()
            .filter_map(|name| name.strip_suffix(anchor))
            .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'));
        let missing = |hint: String| ModelError::MissingTensor {
            tensor: anchor.to_owned(),
            family,
            hint,
        };
        let prefix = prefixes
            .next()
            .ok_or_else(|| missing("; it was looked for with any prefix".into()))?;
        if let Some(other) = prefixes.next() {
            return Err(missing(format!(
                ", once: it is there with both prefixes `{prefix}` and `{other}`"
            )));
        }
        Ok(Self {
            family,
            tensors,
            prefix: prefix.to_owned(),
            spaces: Vec::new(),
            widths: Vec::new(),
            stages: Vec::new(),
        })
    }

    /// Full name of a tensor; a leading "/" says that the prefix does not apply.
    fn name(&self, name: &str) -> String {
        match name.strip_prefix('/') {
            Some(absolute) => absolute.to_owned(),
            None => format!("{}{name}", self.prefix),
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(&self.name(name))
    }

    /// The shape of a tensor that must be there.
    pub(crate) fn shape(&self, name: &str) -> Result<&'a [usize]> {
        let full = self.name(name);
        match self.tensors.get(&full) {
            Some(shape) => Ok(shape),
            None => Err(ModelError::MissingTensor {
                tensor: full,
                family: self.family,
                hint: String::new(),
            }),
        }
    }

    /// The first extent of a matrix that must be there: the number of classes of a head.
    pub(crate) fn rows(&self, name: &str) -> Result<usize> {
        match *self.shape(name)? {
            [rows, _] if rows > 0 => Ok(rows),
            ref found => Err(ModelError::Shape {
                tensor: self.name(name),
                found: found.to_vec(),
                expected: vec![found.first().copied().unwrap_or(1).max(1), 1],
            }),
        }
    }

    /// The full name of a tensor that must have one of these shapes.
    fn tensor(&self, name: &str, shapes: &[&[usize]]) -> Result<String> {
        let found = self.shape(name)?;
        if shapes.contains(&found) {
            Ok(self.name(name))
        } else {
            Err(ModelError::Shape {
                tensor: self.name(name),
                found: found.to_vec(),
                expected: shapes[0].to_vec(),
            })
        }
    }

    pub(crate) fn stage(&mut self, name: impl Into<String>, kind: StageKind, layer: Option<usize>) {
        self.stages.push(Stage {
            name: name.into(),
            kind,
            layer,
            ops: Vec::new(),
        });
    }

    pub(crate) fn block(&mut self, layer: usize) {
        self.stage(format!("layer {layer}"), StageKind::Block, Some(layer));
    }

    /// A register that is filled from outside, or the output of an op.
    pub(crate) fn register(&mut self, space: Space, width: usize) -> Reg {
        self.spaces.push(space);
        self.widths.push(width);
        Reg(self.spaces.len() as u32 - 1)
    }

    pub(crate) fn width(&self, reg: Reg) -> usize {
        self.widths[reg.index()]
    }

    pub(crate) fn space(&self, reg: Reg) -> Space {
        self.spaces[reg.index()]
    }

    fn push(&mut self, kind: Kind, inputs: &[Reg], outputs: &[Reg]) {
        let op = Op {
            kind,
            inputs: inputs.to_vec(),
            outputs: outputs.to_vec(),
            dies: Vec::new(),
            residual: None,
        };
        if let Some(stage) = self.stages.last_mut() {
            stage.ops.push(op);
        }
    }

    /// An op with one output in the space of its first input.
    pub(crate) fn op(&mut self, kind: Kind, inputs: &[Reg], width: usize) -> Reg {
        let space = self.space(inputs[0]);
        self.op_in(kind, inputs, space, width)
    }

    /// An op with one output.
    pub(crate) fn op_in(&mut self, kind: Kind, inputs: &[Reg], space: Space, width: usize) -> Reg {
        let output = self.register(space, width);
        self.push(kind, inputs, &[output]);
        output
    }

    /// An op with two outputs of equal width in the space of its first input.
    pub(crate) fn pair(&mut self, kind: Kind, inputs: &[Reg], width: usize) -> (Reg, Reg) {
        let space = self.space(inputs[0]);
        let outputs = (self.register(space, width), self.register(space, width));
        self.push(kind, inputs, &[outputs.0, outputs.1]);
        outputs
    }

    pub(crate) fn split(&mut self, x: Reg, widths: &[usize]) -> Vec<Reg> {
        let space = self.space(x);
        let outputs: Vec<Reg> = widths
            .iter()
            .map(|&width| self.register(space, width))
            .collect();
        self.push(Kind::Split(widths.to_vec()), &[x], &outputs);
        outputs
    }

    /// `name.weight`, and `name.bias` if `bias`.
    pub(crate) fn linear(&mut self, x: Reg, name: &str, outputs: usize, bias: bool) -> Result<Reg> {
        let bias = bias.then(|| format!("{name}.bias"));
        self.linear_named(x, &format!("{name}.weight"), bias.as_deref(), outputs)
    }

    pub(crate) fn linear_named(
        &mut self,
        x: Reg,
        weight: &str,
        bias: Option<&str>,
        outputs: usize,
    ) -> Result<Reg> {
        self.matrix(x, weight, bias, outputs, Layout::OutIn, None)
    }

    /// A linear op whose weight may be stored in a shape of its own.
    pub(crate) fn matrix(
        &mut self,
        x: Reg,
        weight: &str,
        bias: Option<&str>,
        outputs: usize,
        layout: Layout,
        stored: Option<&[usize]>,
    ) -> Result<Reg> {
        let inputs = self.width(x);
        let plain = match layout {
            Layout::OutIn => [outputs, inputs],
            Layout::InOut => [inputs, outputs],
        };
        let weight = self.tensor(weight, &[stored.unwrap_or(&plain)])?;
        let bias = bias
            .map(|bias| self.tensor(bias, &[&[outputs]]))
            .transpose()?;
        let linear = Linear {
            weight,
            bias,
            layout,
            inputs,
            outputs,
            tied: false,
        };
        Ok(self.op(Kind::Linear(linear), &[x], outputs))
    }

    /// Scale (and for a layer norm shift) of the width of `x`. The names `gamma` and `beta` of the first BERT checkpoints
    /// are known.
    pub(crate) fn norm(&mut self, x: Reg, name: &str, style: NormStyle) -> Result<Reg> {
        let width = self.width(x);
        let old = self.has(&format!("{name}.gamma"));
        let [scale, shift] = if old {
            ["gamma", "beta"]
        } else {
            ["weight", "bias"]
        };
        let weight = self.tensor(&format!("{name}.{scale}"), &[&[width]])?;
        let bias = match style.kind {
            NormKind::Layer => Some(self.tensor(&format!("{name}.{shift}"), &[&[width]])?),
            NormKind::Rms => None,
        };
        let norm = Norm {
            weight,
            bias,
            kind: style.kind,
            eps: style.eps,
            offset: style.offset,
            width,
        };
        Ok(self.op(Kind::Norm(norm), &[x], width))
    }

    pub(crate) fn embedding(
        &mut self,
        ids: Reg,
        weight: &str,
        rows: usize,
        width: usize,
    ) -> Result<Reg> {
        let weight = self.tensor(weight, &[&[rows, width]])?;
        let table = Embedding {
            weight,
            rows,
            width,
        };
        Ok(self.op(Kind::Embedding(table), &[ids], width))
    }

    pub(crate) fn additive(&mut self, x: Reg, weight: &str, place: Place) -> Result<Reg> {
        let width = self.width(x);
        let weight = match place {
            Place::At(_) => self.tensor(weight, &[&[1, 1, width], &[1, width], &[width]])?,
            Place::Each(len) => self.tensor(weight, &[&[1, len, width], &[len, width]])?,
        };
        let additive = Additive {
            weight,
            place,
            width,
        };
        Ok(self.op(Kind::Additive(additive), &[x], width))
    }

    /// `inputs` are q, k, v and perhaps a bias.
    pub(crate) fn attention(&mut self, inputs: &[Reg], attention: Attention) -> Reg {
        let width = attention.heads * attention.head_dim;
        self.op(Kind::Attention(attention), inputs, width)
    }

    pub(crate) fn activation(&mut self, x: Reg, activation: Activation) -> Reg {
        let width = self.width(x);
        self.op(Kind::Activation(activation), &[x], width)
    }

    pub(crate) fn add(&mut self, x: Reg, y: Reg) -> Reg {
        let width = self.width(x);
        self.op(Kind::Add, &[x, y], width)
    }

    pub(crate) fn mul(&mut self, x: Reg, y: Reg) -> Reg {
        let width = self.width(x);
        self.op(Kind::Mul, &[x, y], width)
    }

    pub(crate) fn scale(&mut self, x: Reg, factor: f64) -> Reg {
        let width = self.width(x);
        self.op(Kind::Scale(factor), &[x], width)
    }

    /// The finished program: registers die after their last use, residual targets and tied heads are marked.
    pub(crate) fn finish(self, inputs: Inputs, outputs: Outputs) -> Network {
        let mut stages = self.stages;
        stages.retain(|stage| !stage.ops.is_empty());
        let kept: BTreeSet<Reg> = [
            Some(outputs.hidden),
            outputs.pooled,
            outputs.embeds,
            outputs.logits,
        ]
        .into_iter()
        .flatten()
        .collect();

        let mut reads: BTreeMap<Reg, usize> = BTreeMap::new();
        let mut streams: BTreeMap<Reg, Reg> = BTreeMap::new();
        let mut tables: BTreeSet<String> = BTreeSet::new();
        for op in stages.iter().flat_map(|stage| &stage.ops) {
            for &reg in &op.inputs {
                *reads.entry(reg).or_default() += 1;
            }
            if let (Kind::Add, &[x, y]) = (&op.kind, &op.inputs[..]) {
                streams.insert(x, y);
                streams.insert(y, x);
            }
            if let Kind::Embedding(table) = &op.kind {
                tables.insert(table.weight.clone());
            }
        }

        let mut alive: BTreeSet<Reg> = kept;
        for op in stages
            .iter_mut()
            .rev()
            .flat_map(|stage| stage.ops.iter_mut().rev())
        {
            for &reg in op.outputs.iter().chain(&op.inputs) {
                if alive.insert(reg) {
                    op.dies.push(reg);
                }
            }
            let output = op.outputs[0];
            if reads.get(&output) == Some(&1) {
                op.residual = streams.get(&output).copied();
            }
            if let Kind::Linear(linear) = &mut op.kind {
                linear.tied = tables.contains(&linear.weight);
            }
        }
        Network {
            stages,
            family: self.family,
            spaces: self.spaces,
            inputs,
            outputs,
        }
    }
}
