//! Arcee fusion: take over only the elements that matter.
//!
//! importance = |x − b| · K with K = Σ p ln(p/q) over the row (last dimension) of the element, p = softmax(x) + 1e-8 and
//! q = softmax(b) + 1e-8. With the quartiles of all importances of the tensor, each the element at place ⌊q (n − 1)⌋ of
//! the ascending order,
//!
//! ```text
//! threshold = median + 1.5 (q3 − q1)
//! y = b + (x − b) · [importance ≥ threshold]
//! ```
//!
//! As in mergekit, but the quartiles are those of all elements and not of a random million, and K is computed in f64: in
//! bfloat16 it is little more than rounding noise.

use merganser_kernels::keys::{key_to_ordered, ordered_key, ordered_keys};
use merganser_kernels::special;

use crate::select::Streams;
use crate::sparsify::with_scratch;
use crate::{
    Arity, BasePolicy, Block, Grain, Method, MethodError, MethodInfo, Program, Settings, Survey,
    TensorGroup, View,
};

/// See the module's documentation.
pub(crate) struct ArceeFusion;

static INFO: MethodInfo = MethodInfo {
    name: "arcee_fusion",
    summary: "take over the elements whose change is important: far from the base, in rows whose softmax moved",
    formula: "y = b + (x − b) [ |x − b| K ≥ median + 1.5 (q3 − q1) ], K = Σ p ln(p/q) per row, p, q = softmax of x, b",
    source: "Arcee AI, mergekit (arcee_fusion), 2025",
    in_mergekit: true,
    base: BasePolicy::Required,
    inputs: Arity::exactly(1),
    parameters: &[],
};

const EPSILON: f64 = 1e-8;

impl Method for ArceeFusion {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn passes(&self, _settings: &Settings) -> u32 {
        3
    }

    fn grain(&self, _settings: &Settings) -> Grain {
        Grain::Rows
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        _survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        let divergences = divergences(group)?;
        let threshold = ordered_key(threshold(group, &divergences)?);
        Ok(Program::values(move |block, out| {
            let Some(other) = block.others().first().copied() else {
                return out.copy_from_slice(block.base());
            };
            with_importances(group, &divergences, block, |importances| {
                special::choose(out, other, block.base(), importances, threshold);
            });
        }))
    }
}

/// K of every row.
fn divergences(group: &TensorGroup<'_>) -> Result<Vec<f32>, MethodError> {
    let row = group.row_len().max(1);
    let chunks = group.scan(
        Grain::Rows,
        View::Values,
        |_| Vec::new(),
        |found: &mut Vec<f32>, block| {
            if let Some(other) = block.others().first() {
                let rows = other.chunks(row).zip(block.base().chunks(row));
                found.extend(rows.map(|(x, b)| special::softmax_divergence(x, b, EPSILON) as f32));
            }
        },
    )?;
    Ok(chunks.concat())
}

fn threshold(group: &TensorGroup<'_>, divergences: &[f32]) -> Result<f32, MethodError> {
    let len = group.elements() as u64;
    if len == 0 {
        return Ok(0.0);
    }
    let groups = [group];
    let keys = |_: usize, block: &Block<'_>, keys: &mut [Vec<u32>]| {
        keys[0].resize(block.len(), 0);
        with_importances(group, divergences, block, |importances| {
            ordered_keys(&mut keys[0], importances);
        });
    };
    let place = |q: f64| (q * (len - 1) as f64) as u64;
    let ranks = [vec![place(0.25), place(0.5), place(0.75)]];
    let found = Streams::new(&groups, View::Values, vec![len], &keys).select(&ranks)?;
    let [q1, median, q3] = [0, 1, 2].map(|i| key_to_ordered(found[0][i].key));
    Ok(median + 1.5 * (q3 - q1))
}

fn with_importances(
    group: &TensorGroup<'_>,
    divergences: &[f32],
    block: &Block<'_>,
    work: impl FnOnce(&[f32]),
) {
    let row = group.row_len().max(1);
    let (Some(other), base) = (block.others().first().copied(), block.base()) else {
        return;
    };
    with_scratch(1, block.len(), |scratch| {
        let importances = &mut *scratch[0];
        let mut at = 0;
        while at < block.len() {
            let index = block.start + at;
            let to = (at + row - index % row).min(block.len());
            let divergence = divergences.get(index / row).copied().unwrap_or(0.0);
            special::scaled_distance(
                &mut importances[at..to],
                &other[at..to],
                &base[at..to],
                divergence,
            );
            at = to;
        }
        work(importances);
    });
}
