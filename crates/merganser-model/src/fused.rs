//! The element-wise parts of a pass on a processor, each in one parallel, vectorised sweep: what stands between the matrix
//! products. They have no gradient; other devices, other types and differentiable passes compose candle's ops instead.
//!
//! Every row is the work of one thread and sums have fixed lanes, so the bits do not depend on the number of threads.
//!
//! The exponential is that of Cephes: x = n ln 2 + r with |r| ≤ ln 2 / 2, a polynomial in r, and n put into the exponent;
//! its error is within 2 units of the last place. The error function is 7.1.26 of Abramowitz and Stegun (1964), with an
//! absolute error of 1.5e-7, which is that of f32 next to 1.

use candle_core::{CpuStorage, DType, InplaceOp1, Storage, Tensor};
use rayon::prelude::*;

use crate::attention::Sight;
use crate::error::Result;
use crate::op::{Activation, NormKind};

/// Numbers of a vector register or more, the lanes of sums.
const LANES: usize = 16;
/// Elements that a thread takes at a time, about.
const GRAIN: usize = 1 << 15;

/// Whether `x` can be worked on here.
pub(crate) fn suits(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// Calls `work` on the elements of `x`, which [`suits`].
fn read<R>(x: &Tensor, work: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => {
            let start = layout.start_offset();
            let len = layout.shape().elem_count();
            Ok(work(&storage.as_slice::<f32>()?[start..start + len]))
        }
        _ => Err(candle_core::Error::Msg("expected a tensor on the processor".into()).into()),
    }
}

/// Compiles `work` for the widest vectors of this machine, if all it calls is inlined.
#[inline(always)]
#[allow(clippy::inline_always)]
fn wide<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

#[inline(always)]
#[allow(clippy::inline_always)]
fn exp(x: f32) -> f32 {
    // Adding it leaves the nearest integer in the last bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.3);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = p * r + c;
    }
    let power = shifted
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127)
        << 23;
    let y = (p * r * r + r + 1.0) * f32::from_bits(power);
    if x < -87.3 { 0.0 } else { y }
}

/// `1 / (1 + e^(−x))`
#[inline(always)]
#[allow(clippy::inline_always)]
fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
#[allow(clippy::inline_always)]
fn tanh(x: f32) -> f32 {
    // Near 0 the difference below loses what is small.
    let square = x * x;
    let near = x * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 - square * (17.0 / 315.0))));
    let far = 1.0 - 2.0 / (1.0 + exp(2.0 * x));
    if x.abs() < 0.25 { near } else { far }
}

#[inline(always)]
#[allow(clippy::inline_always)]
fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let mut p = 1.061_405_4;
    for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = p * t + c;
    }
    // Half of 1 − erf(z), so half of 1 + erf(−z).
    let tail = 0.5 * p * t * exp(-z * z);
    x * if x < 0.0 { tail } else { 1.0 - tail }
}

fn map(x: &Tensor, f: impl Fn(f32) -> f32 + Copy + Sync) -> Result<Tensor> {
    let values = read(x, |x| {
        let mut y = vec![0.0; x.len()];
        let parts = x.par_chunks(GRAIN).zip(y.par_chunks_mut(GRAIN));
        parts.for_each(|(x, y)| {
            wide(
                #[inline(always)]
                || {
                    for (x, y) in x.iter().zip(y) {
                        *y = f(*x);
                    }
                },
            );
        });
        y
    })?;
    Ok(Tensor::from_vec(values, x.shape(), x.device())?)
}

/// `f(x)` element by element.
pub(crate) fn activation(activation: Activation, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Gelu => map(x, gelu),
        // ½ (1 + tanh u) = logistic(2u), u = √(2/π) (x + 0.044715 x³)
        Activation::GeluTanh => map(
            x,
            #[inline(always)]
            |x| x * logistic(1.595_769 * x * (1.0 + 0.044_715 * x * x)),
        ),
        Activation::QuickGelu => map(
            x,
            #[inline(always)]
            |x| x * logistic(1.702 * x),
        ),
        Activation::Silu => map(
            x,
            #[inline(always)]
            |x| x * logistic(x),
        ),
        Activation::Relu => map(
            x,
            #[inline(always)]
            |x| x.max(0.0),
        ),
        Activation::Tanh => map(x, tanh),
    }
}

/// The sum of `f(x)`, in lanes.
#[inline(always)]
#[allow(clippy::inline_always)]
fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in whole {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += f(*x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += f(*x);
    }
    fold(lanes, |a, b| a + b)
}

#[inline(always)]
#[allow(clippy::inline_always)]
fn largest(values: &[f32]) -> f32 {
    let pick = |a: f32, b: f32| if b > a { b } else { a };
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in whole {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = pick(*lane, *x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = pick(*lane, *x);
    }
    fold(lanes, pick)
}

#[inline(always)]
#[allow(clippy::inline_always)]
fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// `scale ∘ x̂ + shift` along the last axis. The variance is taken around the mean, in a second sweep.
pub(crate) fn norm(
    kind: NormKind,
    eps: f32,
    x: &Tensor,
    scale: &Tensor,
    shift: Option<&Tensor>,
) -> Result<Tensor> {
    let scale = scale.to_vec1::<f32>()?;
    let shift = shift.map(Tensor::to_vec1::<f32>).transpose()?;
    let width = scale.len();
    let normalize = |x: &[f32], y: &mut [f32]| {
        let count = width as f32;
        let mean = match kind {
            NormKind::Layer => sum(x, |x| x) / count,
            NormKind::Rms => 0.0,
        };
        let power = sum(x, |x| (x - mean) * (x - mean)) / count;
        let factor = (power + eps).sqrt().recip();
        match &shift {
            Some(shift) => {
                for (((y, x), scale), shift) in y.iter_mut().zip(x).zip(&scale).zip(shift) {
                    *y = (x - mean) * factor * scale + shift;
                }
            }
            None => {
                for ((y, x), scale) in y.iter_mut().zip(x).zip(&scale) {
                    *y = (x - mean) * factor * scale;
                }
            }
        }
    };
    let values = read(x, |x| {
        let mut y = vec![0.0; x.len()];
        let grain = (GRAIN / width).max(1) * width;
        let parts = x.par_chunks(grain).zip(y.par_chunks_mut(grain));
        parts.for_each(|(x, y)| {
            wide(
                #[inline(always)]
                || {
                    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
                        normalize(x, y);
                    }
                },
            );
        });
        y
    })?;
    Ok(Tensor::from_vec(values, x.shape(), x.device())?)
}

/// Scores to probabilities, in place: scale, soft cap, bias, what a query sees, softmax.
pub(crate) struct Probabilities<'a> {
    pub(crate) heads: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) scale: f32,
    pub(crate) softcap: Option<f32>,
    /// (heads, 2·keys − 1) by distance.
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) sight: &'a Sight<'a>,
}

impl Probabilities<'_> {
    /// Replaces `scores`, contiguous (B, heads, queries, keys) that nothing else reads.
    pub(crate) fn replace(&self, scores: &Tensor) -> Result<()> {
        Ok(scores.inplace_op1(self)?)
    }

    #[inline(always)]
    #[allow(clippy::inline_always)]
    fn row(&self, number: usize, row: &mut [f32]) {
        let query = number % self.queries;
        let head = number / self.queries % self.heads;
        let sample = number / (self.queries * self.heads);
        let seen = self.sight.range(query, self.keys);
        row[..seen.start].fill(0.0);
        row[seen.end..].fill(0.0);
        let row = &mut row[seen.clone()];
        match self.softcap {
            Some(cap) => row
                .iter_mut()
                .for_each(|x| *x = cap * tanh(*x * (self.scale / cap))),
            None => row.iter_mut().for_each(|x| *x *= self.scale),
        }
        if let Some(bias) = &self.bias {
            let start = head * (2 * self.keys - 1) + self.keys - 1 - query + seen.start;
            for (x, bias) in row.iter_mut().zip(&bias[start..]) {
                *x += bias;
            }
        }
        let real = self.sight.real(sample, self.keys);
        if let Some(real) = real {
            for (x, real) in row.iter_mut().zip(&real[seen]) {
                *x = if *real { *x } else { f32::NEG_INFINITY };
            }
        }
        let top = largest(row);
        if top == f32::NEG_INFINITY {
            // A query that sees nothing, which only padding can be.
            row.fill((row.len().max(1) as f32).recip());
            return;
        }
        for x in row.iter_mut() {
            *x = exp(*x - top);
        }
        let factor = sum(row, |x| x).recip();
        for x in row.iter_mut() {
            *x *= factor;
        }
    }
}

impl InplaceOp1 for Probabilities<'_> {
    fn name(&self) -> &'static str {
        "attention-probabilities"
    }

    fn cpu_fwd(
        &self,
        storage: &mut CpuStorage,
        layout: &candle_core::Layout,
    ) -> candle_core::Result<()> {
        let CpuStorage::F32(values) = storage else {
            return Err(candle_core::Error::Msg("expected scores in f32".into()));
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            return Err(candle_core::Error::Msg("expected contiguous scores".into()));
        };
        let rows = (GRAIN / self.keys).max(1);
        let parts = values[start..end].par_chunks_mut(rows * self.keys);
        parts.enumerate().for_each(|(part, values)| {
            wide(
                #[inline(always)]
                || {
                    for (i, row) in values.chunks_exact_mut(self.keys).enumerate() {
                        self.row(part * rows + i, row);
                    }
                },
            );
        });
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn sweep(from: f64, to: f64) -> impl Iterator<Item = f64> {
        (0..=4000).map(move |i| f64::from((from + (to - from) * f64::from(i) / 4000.0) as f32))
    }

    #[test]
    fn the_exponential_is_exact_to_two_units() {
        for x in sweep(-87.0, 88.0) {
            let found = f64::from(exp(x as f32));
            assert!((found / x.exp() - 1.0).abs() < 2.4e-7, "{x}: {found}");
        }
        assert_eq!((exp(-88.0), exp(f32::NEG_INFINITY)), (0.0, 0.0));
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::INFINITY).is_finite());
    }

    #[test]
    fn the_hyperbolic_tangent_is_exact_near_zero_too() {
        for x in sweep(-12.0, 12.0)
            .chain(sweep(-0.3, 0.3))
            .chain(sweep(-1e-4, 1e-4))
        {
            let (found, expected) = (f64::from(tanh(x as f32)), x.tanh());
            assert!(
                (found - expected).abs() <= 1e-6 * expected.abs(),
                "{x}: {found}"
            );
        }
    }

    #[test]
    fn activations_are_those_of_candle() {
        let values: Vec<f32> = sweep(-15.0, 15.0).map(|x| x as f32).collect();
        let x = Tensor::new(values, &Device::Cpu).unwrap();
        for kind in [
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::QuickGelu,
            Activation::Silu,
            Activation::Relu,
            Activation::Tanh,
        ] {
            let difference = (activation(kind, &x).unwrap() - kind.composed(&x).unwrap())
                .unwrap()
                .abs()
                .unwrap()
                .max(0)
                .unwrap()
                .to_scalar::<f32>()
                .unwrap();
            assert!(difference < 2e-6, "{kind:?}: {difference}");
        }
    }

    #[test]
    fn a_norm_survives_a_large_mean() {
        // E[x²] − E[x]² would leave nothing of this variance.
        let values: Vec<f32> = (0..64).map(|i| 4000.0 + (i % 2) as f32).collect();
        let x = Tensor::from_vec(values, (1, 64), &Device::Cpu).unwrap();
        let one = Tensor::ones(64, DType::F32, &Device::Cpu).unwrap();
        let y = norm(NormKind::Layer, 1e-12, &x, &one, None).unwrap();
        for (i, y) in y.to_vec2::<f32>().unwrap()[0].iter().enumerate() {
            let expected = if i % 2 == 0 { -1.0 } else { 1.0 };
            assert!((y - expected).abs() < 1e-5, "{i}: {y}");
        }
    }
}
