//! The instructions a network is made of.
//!
//! An [`Op`] reads registers and writes registers. Four kinds have parameters, and each such op is a *tap*: the one place
//! where a named tensor of the checkpoint acts, with its input and its output at hand.
//!
//! | kind | what it computes, row by row | parameters |
//! |---|---|---|
//! | [`Linear`] | `y = W x + b` | `W` (m×d, or d×m for GPT-2), `b` (m) |
//! | [`Norm`] | `y = γ ∘ x̂ + β` | `γ` (d), `β` (d) |
//! | [`Embedding`] | `y = E[id]` | `E` (rows×d) |
//! | [`Additive`] | `y = x + p` | `p` (d, or one d for each position) |
//!
//! All other kinds have none. Shapes: token registers are (B, S, …), one sample a row are (B, …); a parametrised op acts
//! on the last axis.

use candle_core::{D, Tensor};

use crate::error::Result;

/// A register of a program: the place of one intermediate value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reg(pub(crate) u32);

impl Reg {
    /// Position in the register file.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What the rows of a register stand for, which decides the rows that are real.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    /// Tokens of the input (of the encoder, for T5); the attention mask says which are real.
    Tokens,
    /// Tokens of the decoder's input (T5).
    DecoderTokens,
    /// Patches of images, class token included; all real.
    Patches,
    /// One row a sample.
    Samples,
    /// Rows that belong to no sample: distances between positions (T5). All count as real.
    Shared,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq)]
pub struct Op {
    /// What it does.
    pub kind: Kind,
    /// Registers it reads, in the order its kind documents.
    pub inputs: Vec<Reg>,
    /// Registers it writes.
    pub outputs: Vec<Reg>,
    /// Registers that nothing reads after it; [`Network::run`](crate::Network::run) empties them.
    pub dies: Vec<Reg>,
    /// If the output is only ever added to another register (the residual stream), that register.
    pub residual: Option<Reg>,
}

impl Op {
    /// The first input: for a parametrised op, what its parameter acts on. Ops that follow one another with equal inputs
    /// (query, key, value; gate, up) share their input and so its Gram matrix.
    pub fn input(&self) -> Reg {
        self.inputs[0]
    }

    /// The first output.
    pub fn output(&self) -> Reg {
        self.outputs[0]
    }

    /// The tap of this op; `None` if it has no parameters.
    pub fn parameters(&self) -> Option<Tap<'_>> {
        let (kind, weight, bias) = match &self.kind {
            Kind::Linear(op) => (TapKind::Linear(op), &op.weight, op.bias.as_ref()),
            Kind::Norm(op) => (TapKind::Norm(op), &op.weight, op.bias.as_ref()),
            Kind::Embedding(op) => (TapKind::Embedding(op), &op.weight, None),
            Kind::Additive(op) => (TapKind::Additive(op), &op.weight, None),
            _ => return None,
        };
        Some(Tap {
            kind,
            weight,
            bias: bias.map(String::as_str),
            input: self.input(),
            output: self.output(),
        })
    }
}

/// A parametrised op, seen as the place where its tensors act.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tap<'a> {
    /// The op's own data.
    pub kind: TapKind<'a>,
    /// Name of its weight in the checkpoint.
    pub weight: &'a str,
    /// Name of its bias in the checkpoint, if it has one.
    pub bias: Option<&'a str>,
    /// What it acts on.
    pub input: Reg,
    /// What it gives.
    pub output: Reg,
}

/// The four kinds of taps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TapKind<'a> {
    /// A matrix.
    Linear(&'a Linear),
    /// A scale, perhaps with a shift.
    Norm(&'a Norm),
    /// A table.
    Embedding(&'a Embedding),
    /// A summand.
    Additive(&'a Additive),
}

/// What an [`Op`] does. Inputs and outputs are listed as `inputs → outputs`.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// `x → y`
    Linear(Linear),
    /// `x → y`
    Norm(Norm),
    /// `ids → y`
    Embedding(Embedding),
    /// `x → y`
    Additive(Additive),
    /// `q, k, v → y` or `q, k, v, bias → y`; bias is the (2S−1)×heads output of a table over [`Kind::Distances`].
    Attention(Attention),
    /// `x, cos, sin → y`
    Rotary(Rotary),
    /// `positions → cos, sin`, each (B, S, r) for r rotated pairs
    RotaryTable(RotaryTable),
    /// `x → y`, element by element
    Activation(Activation),
    /// `x, y → x + y`
    Add,
    /// `x, y → x ∘ y`
    Mul,
    /// `x → c x`
    Scale(f64),
    /// `x → c tanh(x / c)`
    Softcap(f64),
    /// `x → x₁, x₂, …`: the last axis cut into pieces of these widths
    Split(Vec<usize>),
    /// `x → y`: (B, S, h·e) seen as (B, S, h, e)
    Heads(usize),
    /// `pixels → patches`: (B, c, H, W) to (B, P, c·k·k) for squares of side k, row by row, in the order of a
    /// convolution's weight
    Patches(usize),
    /// `x → y`: (B, P, d) with this many rows of zeros before the first
    Prepend(usize),
    /// `x → y`: (B, S, d) to (B, d)
    Select(Select),
    /// `x → buckets`: the relative positions −(S−1) … S−1 (key − query) as rows of a T5 table; x gives S
    Distances(Distances),
}

/// `y = W x + b`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linear {
    /// Name of `W`.
    pub weight: String,
    /// Name of `b`.
    pub bias: Option<String>,
    /// How `W` is stored.
    pub layout: Layout,
    /// Width of x.
    pub inputs: usize,
    /// Width of y.
    pub outputs: usize,
    /// Whether `W` is also the table of an [`Embedding`] (a tied head).
    pub tied: bool,
}

/// Which axis of a stored matrix is the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// m×d, as torch's `Linear`; also a convolution's (m, c, k, k), read as m × c·k·k.
    OutIn,
    /// d×m, as the `Conv1D` of GPT-2.
    InOut,
}

impl Linear {
    /// `W` as an (outputs × inputs) view of the stored tensor.
    pub fn matrix(&self, stored: &Tensor) -> Result<Tensor> {
        Ok(match self.layout {
            Layout::OutIn => stored.reshape((self.outputs, self.inputs))?,
            Layout::InOut => stored.t()?,
        })
    }
}

/// `y = γ ∘ x̂ + β` with x̂ the normalised row.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// Name of `γ`.
    pub weight: String,
    /// Name of `β`.
    pub bias: Option<String>,
    /// How x̂ is made.
    pub kind: NormKind,
    /// Added to the variance (mean square).
    pub eps: f64,
    /// `γ` is the stored weight plus this: 1 for Gemma, else 0.
    pub offset: f64,
    /// Width of a row.
    pub width: usize,
}

/// How a row is normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x̂ = (x − mean) / √(variance + ε)`
    Layer,
    /// `x̂ = x / √(mean square + ε)`
    Rms,
}

impl Norm {
    /// x̂, without scale and shift, along the last axis; differentiable.
    pub fn normalize(&self, x: &Tensor) -> Result<Tensor> {
        let x = match self.kind {
            NormKind::Layer => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
            NormKind::Rms => x.clone(),
        };
        let power = x.sqr()?.mean_keepdim(D::Minus1)?;
        Ok(x.broadcast_div(&(power + self.eps)?.sqrt()?)?)
    }
}

/// `y = E[id]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Embedding {
    /// Name of the table.
    pub weight: String,
    /// Rows of the table.
    pub rows: usize,
    /// Width of a row.
    pub width: usize,
}

/// `y = x + p`, p stored under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Additive {
    /// Name of `p`.
    pub weight: String,
    /// Where `p` is added.
    pub place: Place,
    /// Width of a row.
    pub width: usize,
}

/// Which rows of a sample a summand goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// p has d elements and goes to the row at this position (a class token, onto the zeros of [`Kind::Prepend`]).
    At(usize),
    /// p has S·d elements, row s for position s (position embeddings of images).
    Each(usize),
}

/// `softmax(scale · q kᵀ + bias + mask) v`, head by head.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values; query head h reads key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f64,
    /// Whether a token sees only itself and earlier ones.
    pub causal: bool,
    /// If set, a token sees only keys less than this many positions before it.
    pub window: Option<usize>,
    /// If set, scores become `c tanh(score / c)`.
    pub softcap: Option<f64>,
    /// The rows of the keys, whose mask hides padding.
    pub keys: Space,
}

impl Attention {
    /// Full attention with as many key heads as query heads and the usual scale `1/√head_dim`.
    pub(crate) fn bidirectional(heads: usize, head_dim: usize, keys: Space) -> Self {
        Self {
            heads,
            kv_heads: heads,
            head_dim,
            scale: (head_dim as f64).sqrt().recip(),
            causal: false,
            window: None,
            softcap: None,
            keys,
        }
    }
}

/// Rotation of pairs (i, i + r) of the first 2r elements of every head by the angles of a [`RotaryTable`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotary {
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Elements of a head that are rotated, 2r.
    pub rotated: usize,
}

/// Angles `position · frequency`, their cosines and sines times `factor`.
#[derive(Debug, Clone, PartialEq)]
pub struct RotaryTable {
    /// One frequency for each rotated pair.
    pub frequencies: Vec<f64>,
    /// Factor on cosines and sines (longrope, YaRN); usually 1.
    pub factor: f64,
}

/// Element-wise functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x Φ(x)`, exact
    Gelu,
    /// `x Φ(x)`, approximated by tanh
    GeluTanh,
    /// `x σ(1.702 x)`
    QuickGelu,
    /// `x σ(x)`
    Silu,
    /// `max(x, 0)`
    Relu,
    /// `tanh(x)`
    Tanh,
}

/// Which row stands for a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Select {
    /// The first (class token).
    First,
    /// The one at this position.
    At(usize),
    /// The mean of all from this position on.
    MeanFrom(usize),
    /// The last real one.
    Last,
    /// The first whose token is this id (CLIP's end of text).
    Token(u32),
    /// The one with the largest id (CLIP's end of text in configs of the first release).
    LargestId,
}

/// T5's buckets of relative positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distances {
    /// Rows of the table.
    pub buckets: usize,
    /// Distances from this on share the last bucket.
    pub max_distance: usize,
    /// Whether keys after the query have buckets of their own.
    pub bidirectional: bool,
}
