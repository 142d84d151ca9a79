//! DARE: drop at random and rescale, then task arithmetic.
//!
//! Every element of a task vector is kept with probability `density`. The masks are a function of (seed, tensor name,
//! model, element), so they do not depend on threads or on the other tensors. With `rescale: true` the L1 norm of the task
//! vector is restored, as in mergekit; `rescale: density` divides by the density, as in the paper.
//!
//! Yu et al., "Language Models are Super Mario" (ICML 2024).

use crate::sparsify::Sparsifier;
use crate::task_vectors::{DENSITY, INT8_MASK, LAMBDA, NORMALIZE, TaskVectors, rescale};
use crate::{Arity, BasePolicy, MethodInfo, Parameter};

/// See the module's documentation.
pub(crate) static DARE_LINEAR: TaskVectors = TaskVectors {
    info: &INFO,
    sparsifier: Sparsifier::Random,
    elects: false,
};

static INFO: MethodInfo = MethodInfo {
    name: "dare_linear",
    summary: "drop elements of the task vectors at random, rescale, add up",
    formula: "y = b + λ Σ w_i f_i m_i d_i   (the sum divided by Σ w_i if normalize); m_i = 1 with probability density_i",
    source: "Yu et al., Language Models are Super Mario (DARE), ICML 2024 (arXiv 2311.03099)",
    in_mergekit: true,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter::weight(),
        DENSITY,
        Parameter::flag("normalize", false, NORMALIZE),
        rescale("true"),
        LAMBDA,
        INT8_MASK,
    ],
};
