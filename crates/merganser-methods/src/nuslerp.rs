//! Spherical interpolation between two models by weights, or between their task vectors if there is a base.
//!
//! t = w_2 / (w_1 + w_2). The vectors are the whole tensor (`nuslerp_flatten`), or those along its last dimension, or
//! those along its first one (`nuslerp_row_wise`; the names are mergekit's). Unlike in `slerp`, only exactly parallel
//! vectors are interpolated linearly. Formula and thresholds of mergekit's `nuslerp`.

use merganser_kernels::{angle, elementwise};

use crate::gram::Gram;
use crate::slerp::arc;
use crate::{
    Arity, BasePolicy, Block, Grain, Method, MethodError, MethodInfo, Parameter, Program, Settings,
    Survey, TensorGroup, View,
};

/// See the module's documentation.
pub(crate) struct Nuslerp;

static INFO: MethodInfo = MethodInfo {
    name: "nuslerp",
    summary: "spherical interpolation between two models, or between their task vectors if there is a base",
    formula: "t = w_2/(w_1+w_2); y = sin((1-t)θ)/sin θ · v_1 + sin(tθ)/sin θ · v_2 (+ base), v_i = x_i (- base)",
    source: "mergekit, nuslerp",
    in_mergekit: true,
    base: BasePolicy::Optional,
    inputs: Arity::exactly(2),
    parameters: &[
        Parameter::weight(),
        Parameter::flag(
            "nuslerp_flatten",
            true,
            "take the whole tensor as one vector",
        ),
        Parameter::flag(
            "nuslerp_row_wise",
            false,
            "without nuslerp_flatten: take the vectors along the first dimension instead of the last",
        ),
    ],
};

/// Smallest norm divided by.
const TINY: f64 = 1e-7;

impl Method for Nuslerp {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn passes(&self, settings: &Settings) -> u32 {
        if settings.flag("nuslerp_flatten") || settings.flag("nuslerp_row_wise") {
            2
        } else {
            1
        }
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        _survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        let others = group.exactly::<2>("nuslerp")?;
        let view = if group.base.is_some() {
            View::Deltas
        } else {
            View::Values
        };
        let weights = group.other_floats("weight");
        let t = position(weights[0], weights[1]);
        let settings = group.settings;
        if settings.flag("nuslerp_flatten") || group.shape.len() < 2 {
            let (w1, w2) = coefficients(&Gram::of(group, view, &others)?, t);
            Ok(Program {
                view,
                ..Program::values(move |block, out| combine(block, 0..block.len(), w1, w2, out))
            })
        } else if settings.flag("nuslerp_row_wise") {
            let columns = columns(group, view, t)?;
            Ok(Program {
                view,
                ..Program::values(move |block, out| along_first(block, &columns, out))
            })
        } else {
            let row = group.row_len();
            Ok(Program {
                grain: Grain::Rows,
                view,
                combine: Box::new(move |block, out| along_last(block, row, t, out)),
            })
        }
    }
}

fn position(w1: f64, w2: f64) -> f64 {
    if (w1 + w2).abs() < 1e-6 {
        0.5
    } else {
        w2 / (w1 + w2)
    }
}

fn coefficients(gram: &Gram, t: f64) -> (f32, f32) {
    let (w1, w2) = sines(
        gram.product(0, 0),
        gram.product(1, 1),
        gram.product(0, 1),
        t,
    );
    (w1 as f32, w2 as f32)
}

fn sines(norm_sq_1: f64, norm_sq_2: f64, product: f64, t: f64) -> (f64, f64) {
    let cosine = product / (norm_sq_1.sqrt().max(TINY) * norm_sq_2.sqrt().max(TINY));
    if 1.0 - cosine * cosine <= 1e-16 {
        (1.0 - t, t)
    } else {
        arc(angle::acos(cosine), t)
    }
}

/// out = w1·v_1 + w2·v_2 (+ base) over a part of a block.
fn combine(block: &Block<'_>, part: std::ops::Range<usize>, w1: f32, w2: f32, out: &mut [f32]) {
    let others = block.others();
    elementwise::affine2(
        out,
        w1,
        &others[0][part.clone()],
        w2,
        &others[1][part.clone()],
    );
    if block.has_base() {
        elementwise::add_assign(out, &block.base()[part]);
    }
}

fn along_last(block: &Block<'_>, row: usize, t: f64, out: &mut [f32]) {
    let others = block.others();
    for (i, out) in out.chunks_mut(row).enumerate() {
        let part = i * row..i * row + out.len();
        let gram = Gram::of_slices(&[&others[0][part.clone()], &others[1][part.clone()]]);
        let (w1, w2) = coefficients(&gram, t);
        combine(block, part, w1, w2, out);
    }
}

/// The coefficients of every vector along the first dimension: (of v_1, of v_2), each as long as an item.
fn columns(
    group: &TensorGroup<'_>,
    view: View,
    t: f64,
) -> Result<(Vec<f32>, Vec<f32>), MethodError> {
    let item = group.item_len();
    let runs = group.scan_runs(
        Grain::Elements,
        view,
        || vec![[0.0_f64; 3]; item],
        |sums, block| {
            let others = block.others();
            for_each_item(block.start, block.len(), item, |part, first| {
                let vectors = others[0][part.clone()].iter().zip(&others[1][part]);
                for (sum, (&x, &y)) in sums[first..].iter_mut().zip(vectors) {
                    let (x, y) = (f64::from(x), f64::from(y));
                    *sum = [sum[0] + x * x, sum[1] + y * y, sum[2] + x * y];
                }
            });
        },
    )?;
    let total = |column: usize, k: usize| runs.iter().map(|sums| sums[column][k]).sum::<f64>();
    Ok((0..item)
        .map(|column| sines(total(column, 0), total(column, 1), total(column, 2), t))
        .map(|(w1, w2)| (w1 as f32, w2 as f32))
        .unzip())
}

fn along_first(block: &Block<'_>, (w1, w2): &(Vec<f32>, Vec<f32>), out: &mut [f32]) {
    let others = block.others();
    for_each_item(block.start, block.len(), w1.len(), |part, first| {
        let vectors = others[0][part.clone()].iter().zip(&others[1][part.clone()]);
        let weights = w1[first..].iter().zip(&w2[first..]);
        for ((out, (&x, &y)), (&w1, &w2)) in out[part].iter_mut().zip(vectors).zip(weights) {
            *out = w1 * x + w2 * y;
        }
    });
    if block.has_base() {
        elementwise::add_assign(out, block.base());
    }
}

/// Cuts `len` elements from flat index `start` on at the borders of items of `item` elements: calls `visit` with each
/// part and the place of its first element in its item.
fn for_each_item(
    start: usize,
    len: usize,
    item: usize,
    mut visit: impl FnMut(std::ops::Range<usize>, usize),
) {
    let mut at = 0;
    while at < len {
        let first = (start + at) % item;
        let end = (at + item - first).min(len);
        visit(at..end, first);
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_give_the_position() {
        assert_eq!(
            (position(1.0, 3.0), position(1.0, -1.0), position(0.0, 0.0)),
            (0.75, 0.5, 0.5)
        );
    }

    #[test]
    fn items_are_cut_at_their_borders() {
        let mut parts = Vec::new();
        for_each_item(4, 7, 3, |part, first| parts.push((part, first)));
        assert_eq!(parts, [(0..2, 1), (2..5, 0), (5..7, 0)]);
    }

    #[test]
    fn zero_vectors_stay_finite() {
        let (w1, w2) = sines(0.0, 0.0, 0.0, 0.3);
        assert!(w1.is_finite() && w2.is_finite());
    }
}
