//! Model breadcrumbs: task arithmetic without the smallest and the very largest elements.
//!
//! Of every task vector the largest `gamma` and all but the next `density` magnitudes are dropped, tensor by tensor.
//!
//! Davari and Belilovsky, "Model Breadcrumbs" (ECCV 2024).

use crate::sparsify::Sparsifier;
use crate::task_vectors::{DENSITY, GAMMA, INT8_MASK, LAMBDA, NORMALIZE, TaskVectors, rescale};
use crate::{Arity, BasePolicy, MethodInfo, Parameter};

/// See the module's documentation.
pub(crate) static BREADCRUMBS: TaskVectors = TaskVectors {
    info: &INFO,
    sparsifier: Sparsifier::Outliers,
    elects: false,
};

static INFO: MethodInfo = MethodInfo {
    name: "breadcrumbs",
    summary: "drop the smallest and the very largest elements of the task vectors, add up",
    formula: "y = b + λ Σ w_i f_i d̂_i   (the sum divided by Σ w_i if normalize); d̂_i: density of |d_i| below the largest gamma",
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
        LAMBDA,
        INT8_MASK,
    ],
};
