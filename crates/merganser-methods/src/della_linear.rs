//! DELLA without election: drop at random by magnitude, then task arithmetic.
//!
//! The masks are those of [`crate::della`].
//!
//! Deep et al., "DELLA-Merging" (2024).

use crate::sparsify::Sparsifier;
use crate::task_vectors::{DENSITY, EPSILON, INT8_MASK, LAMBDA, NORMALIZE, TaskVectors, rescale};
use crate::{Arity, BasePolicy, MethodInfo, Parameter};

/// See the module's documentation.
pub(crate) static DELLA_LINEAR: TaskVectors = TaskVectors {
    info: &INFO,
    sparsifier: Sparsifier::Rank,
    elects: false,
};

static INFO: MethodInfo = MethodInfo {
    name: "della_linear",
    summary: "drop elements at random, small ones rather than large ones, rescale, add up",
    formula: "y = b + λ Σ w_i f_i m_i d_i   (the sum divided by Σ w_i if normalize); m_i = 1 with probability density_i − ε + 2ε rank/(L − 1) in rows of L",
    source: "Deep et al., DELLA-Merging, 2024 (arXiv 2406.11617)",
    in_mergekit: true,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter::weight(),
        DENSITY,
        EPSILON,
        Parameter::flag("normalize", false, NORMALIZE),
        rescale("true"),
        LAMBDA,
        INT8_MASK,
    ],
};
