//! The base model plus the weighted sum of the task vectors.
//!
//! y = b + λ Σ w_i d_i with d_i = x_i − b, the sum divided by Σ w_i if `normalize` (not if |Σ w_i| < 1e-8). A negative
//! weight subtracts what a model has learnt. Density is not asked for.
//!
//! Ilharco et al., "Editing Models with Task Arithmetic" (ICLR 2023).

use crate::sparsify::Sparsifier;
use crate::task_vectors::{INT8_MASK, LAMBDA, NORMALIZE, TaskVectors};
use crate::{Arity, BasePolicy, MethodInfo, Parameter};

/// See the module's documentation.
pub(crate) static TASK_ARITHMETIC: TaskVectors = TaskVectors {
    info: &INFO,
    sparsifier: Sparsifier::None,
    elects: false,
};

static INFO: MethodInfo = MethodInfo {
    name: "task_arithmetic",
    summary: "base model plus the weighted sum of the task vectors",
    formula: "y = b + λ Σ w_i d_i   (the sum divided by Σ w_i if normalize)",
    source: "Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023 (arXiv 2212.04089)",
    in_mergekit: true,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter::weight(),
        Parameter::flag("normalize", false, NORMALIZE),
        LAMBDA,
        INT8_MASK,
    ],
};
