//! TIES: trim, elect sign, disjoint merge.
//!
//! Every task vector keeps its largest magnitudes; the sign of Σ D_i is elected for every element, and only task vectors
//! of that sign take part: see [`crate::task_vectors`] and [`crate::sparsify`]. The defaults are mergekit's: thresholds by
//! tensor, exactly ⌊ρn⌋ elements kept, weighted mean, plus where the votes cancel.
//!
//! The paper's own code is `scope: model` (one threshold a model over all its tensors as one vector, with all ties of the
//! threshold: ⌊ρd⌋ + 1 elements and more), `zero_sum: majority` and `aggregate: mean`, `sum` or `max`, with weights of 1.
//!
//! Yadav et al., "TIES-Merging: Resolving Interference When Merging Models" (NeurIPS 2023).

use crate::sparsify::Sparsifier;
use crate::task_vectors::{
    AGGREGATE, DENSITY, ELECTION, INT8_MASK, LAMBDA, NORMALIZE, TaskVectors, ZERO_SUM, rescale,
    scope,
};
use crate::{Arity, BasePolicy, MethodInfo, Parameter};

/// See the module's documentation.
pub(crate) static TIES: TaskVectors = TaskVectors {
    info: &INFO,
    sparsifier: Sparsifier::Magnitude,
    elects: true,
};

static INFO: MethodInfo = MethodInfo {
    name: "ties",
    summary: "trim the task vectors, elect a sign for every element, merge what agrees",
    formula: "y = b + λ Σ D_i of the elected sign, D_i = w_i f_i d̂_i, sign of Σ D_i   (divided by the Σ w_i of the same if normalize); d̂_i: the largest density of |d_i|",
    source: "Yadav et al., TIES-Merging, NeurIPS 2023 (arXiv 2306.01708)",
    in_mergekit: true,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter::weight(),
        DENSITY,
        scope("tensor"),
        Parameter::flag("normalize", true, NORMALIZE),
        rescale("false"),
        ELECTION,
        AGGREGATE,
        ZERO_SUM,
        LAMBDA,
        INT8_MASK,
    ],
};
