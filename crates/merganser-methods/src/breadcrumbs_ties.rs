//! Model breadcrumbs with the sign election of TIES.
//!
//! As [`crate::breadcrumbs`], but only task vectors of the elected sign take part.
//!
//! Davari and Belilovsky, "Model Breadcrumbs" (ECCV 2024); election after Yadav et al. (NeurIPS 2023).

use crate::sparsify::Sparsifier;
use crate::task_vectors::{
    AGGREGATE, DENSITY, ELECTION, GAMMA, INT8_MASK, LAMBDA, NORMALIZE, TaskVectors, ZERO_SUM,
    rescale,
};
use crate::{Arity, BasePolicy, MethodInfo, Parameter};

/// See the module's documentation.
pub(crate) static BREADCRUMBS_TIES: TaskVectors = TaskVectors {
    info: &INFO,
    sparsifier: Sparsifier::Outliers,
    elects: true,
};

static INFO: MethodInfo = MethodInfo {
    name: "breadcrumbs_ties",
    summary: "breadcrumbs with the sign election of TIES",
    formula: "y = b + λ Σ D_i of the elected sign, D_i = w_i f_i d̂_i, sign of Σ D_i   (divided by the Σ w_i of the same if normalize); d̂_i: density of |d_i| below the largest gamma",
    source: "Davari and Belilovsky, Model Breadcrumbs, ECCV 2024 (arXiv 2312.06795)",
    in_mergekit: true,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter::weight(),
        DENSITY,
        GAMMA,
        Parameter::flag("normalize", false, NORMALIZE),
        rescale("false"),
        ELECTION,
        AGGREGATE,
        ZERO_SUM,
        LAMBDA,
        INT8_MASK,
    ],
};
