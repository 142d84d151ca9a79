//! DELLA: drop at random by magnitude, elect sign, disjoint merge.
//!
//! In every row of L elements (the last dimension of a matrix, a whole vector, the second dimension of anything larger) the
//! element of rank r (0 for the smallest magnitude) is kept with probability density − ε + 2ε r/(L − 1). With
//! `rescale: true` the L1 norm is restored, as in mergekit; `rescale: density` divides every element by its own keep
//! probability, as in the paper. Rows of one element are kept with the density itself.
//!
//! Deep et al., "DELLA-Merging" (2024).

use crate::sparsify::Sparsifier;
use crate::task_vectors::{
    AGGREGATE, DENSITY, ELECTION, EPSILON, INT8_MASK, LAMBDA, NORMALIZE, TaskVectors, ZERO_SUM,
    rescale,
};
use crate::{Arity, BasePolicy, MethodInfo, Parameter};

/// See the module's documentation.
pub(crate) static DELLA: TaskVectors = TaskVectors {
    info: &INFO,
    sparsifier: Sparsifier::Rank,
    elects: true,
};

static INFO: MethodInfo = MethodInfo {
    name: "della",
    summary: "drop elements at random, small ones rather than large ones, rescale, elect signs, merge what agrees",
    formula: "y = b + λ Σ D_i of the elected sign, D_i = w_i f_i m_i d_i, sign of Σ D_i   (divided by the Σ w_i of the same if normalize); m_i = 1 with probability density_i − ε + 2ε rank/(L − 1) in rows of L",
    source: "Deep et al., DELLA-Merging, 2024 (arXiv 2406.11617)",
    in_mergekit: true,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter::weight(),
        DENSITY,
        EPSILON,
        Parameter::flag("normalize", true, NORMALIZE),
        rescale("true"),
        ELECTION,
        AGGREGATE,
        ZERO_SUM,
        LAMBDA,
        INT8_MASK,
    ],
};
