//! SCE: select, calculate, erase.
//!
//! With task vectors d_i = x_i − b of N models:
//!
//! 1. Select: where `select_topk` < 1, only the elements whose variance over the models is among the largest
//!    ⌊`select_topk` · (number of non-zero variances)⌋ are kept, in all models alike; lowest index first among equal ones.
//! 2. Calculate: e_i = mean of d_i² over the tensor, divided by Σ e; 1/N each if Σ e < 1e-6 (an absolute threshold, as in
//!    mergekit).
//! 3. Erase: at every element only the models with the sign of Σ d_i take part (plus if that is 0):
//!    y = b + Σ e_i d_i / max(Σ e_i, 1e-6) over these.
//!
//! Variances are computed in f32 around a mean that is exact where all task vectors agree. Wan et al., "FuseChat:
//! Knowledge Fusion of Chat Models" (2024), as in mergekit.

use std::ops::Range;

use merganser_kernels::keys::magnitude_keys;
use merganser_kernels::{reduce, sparse};

use crate::select::{Cut, Streams};
use crate::sparsify::with_scratch;
use crate::task_vectors::INT8_MASK;
use crate::{
    Arity, BasePolicy, Block, Grain, Method, MethodError, MethodInfo, Parameter, Program, Scope,
    Settings, Survey, TensorGroup, View,
};

/// See the module's documentation.
pub(crate) struct Sce;

static INFO: MethodInfo = MethodInfo {
    name: "sce",
    summary: "keep the elements on which the models differ most, weigh models by energy, leave out minority signs",
    formula: "y = b + Σ e_i d̂_i / max(Σ e_i, 1e-6) over the i with the sign of Σ d̂_i; e_i ∝ mean of d̂_i²; \
              d̂: the select_topk of largest variance over the models",
    source: "Wan et al., FuseChat, 2024 (arXiv 2408.07990)",
    in_mergekit: true,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter::float(
            "select_topk",
            Scope::Shared,
            (0.0, 1.0),
            1.0,
            "share of the elements of non-zero variance that is kept",
        ),
        INT8_MASK,
    ],
};

const LEAST_ENERGY: f64 = 1e-6;

impl Method for Sce {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn passes(&self, settings: &Settings) -> u32 {
        if settings.float("select_topk") < 1.0 {
            3
        } else {
            2
        }
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        _survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        let cut = selected(group, group.settings.float("select_topk"))?;
        let weights = energies(group, cut)?;
        Ok(Program::deltas(move |block, out| {
            let (base, deltas) = (block.base(), block.others());
            sparse::majority_mean(out, base, &deltas, &weights, LEAST_ENERGY as f32);
            with_selection(block, cut, |part, variance, low| {
                sparse::keep_base(&mut out[part.clone()], &base[part], variance, low);
            });
        }))
    }
}

/// The cut on the variances.
fn selected(group: &TensorGroup<'_>, share: f64) -> Result<Cut, MethodError> {
    if share >= 1.0 {
        return Ok(Cut::ALL);
    }
    let len = group.elements() as u64;
    if share <= 0.0 || len == 0 {
        return Ok(Cut::NONE);
    }
    let groups = [group];
    let keys = |_: usize, block: &Block<'_>, keys: &mut [Vec<u32>]| {
        keys[0].resize(block.len(), 0);
        with_scratch(1, block.len(), |scratch| {
            sparse::variance(scratch[0], &block.others());
            magnitude_keys(&mut keys[0], scratch[0]);
        });
    };
    let streams = Streams::new(&groups, View::Deltas, vec![len], &keys);
    // How many variances are not 0 is known only after the counting pass, but a sample knows it nearly; rank 0 tells.
    let sample = streams.sample()?;
    let rank_for = |nonzero: u64| len - ((nonzero as f64 * share) as u64).clamp(1, len);
    let estimate = rank_for((sample.share_of_nonzero(0) * len as f64) as u64);
    let counted = streams.count(sample, &[vec![0, estimate]])?;
    let found = streams.resolve(&counted, &[vec![0, estimate]])?;
    let smallest = &found[0][0];
    let nonzero = len - if smallest.key == 0 { smallest.equal } else { 0 };
    let kept = (nonzero as f64 * share) as u64;
    if kept == 0 {
        return Ok(Cut::NONE);
    }
    let found = streams.resolve(&counted, &[vec![0, rank_for(nonzero)]])?;
    streams.cut_keeping(0, &found[0][1], kept)
}

/// Each model's share of the energy of the selected elements.
fn energies(group: &TensorGroup<'_>, cut: Cut) -> Result<Vec<f32>, MethodError> {
    let tasks = group.others().len();
    let chunks = group.scan(
        Grain::Elements,
        View::Deltas,
        |_| vec![0.0; tasks],
        |sums, block| {
            let deltas = block.others();
            if cut == Cut::ALL {
                for (sum, delta) in sums.iter_mut().zip(&deltas) {
                    *sum += reduce::norm_sq(delta);
                }
            }
            with_selection(block, cut, |part, variance, low| {
                for (sum, delta) in sums.iter_mut().zip(&deltas) {
                    *sum += reduce::norm_sq_where(&delta[part.clone()], variance, low);
                }
            });
        },
    )?;
    let mut energies = vec![0.0; tasks];
    for sums in chunks {
        for (energy, sum) in energies.iter_mut().zip(sums) {
            *energy += sum / group.elements() as f64;
        }
    }
    let total: f64 = energies.iter().sum();
    let share = |energy: f64| {
        if total < LEAST_ENERGY {
            1.0 / tasks as f64
        } else {
            energy / total
        }
    };
    Ok(energies
        .into_iter()
        .map(|energy| share(energy) as f32)
        .collect())
}

/// Shows the variances and the least key that is selected: of the whole block, or of its two parts if the cut changes
/// within it. Nothing is shown where everything is selected.
fn with_selection(block: &Block<'_>, cut: Cut, mut work: impl FnMut(Range<usize>, &[f32], u32)) {
    if cut == Cut::ALL {
        return;
    }
    with_scratch(1, block.len(), |scratch| {
        let variance = &mut *scratch[0];
        sparse::variance(variance, &block.others());
        let len = block.len();
        let boundary = cut.change_within(block.start, len).unwrap_or(len);
        work(0..boundary, &variance[..boundary], cut.key_at(block.start));
        if boundary < len {
            work(boundary..len, &variance[boundary..], cut.after);
        }
    });
}
