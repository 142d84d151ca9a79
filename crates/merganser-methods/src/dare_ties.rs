//! DARE with the sign election of TIES: drop at random, rescale, elect, disjoint merge.
//!
//! As [`crate::dare_linear`], but only task vectors of the elected sign take part. There is no trimming besides the random
//! one.
//!
//! Yu et al., "Language Models are Super Mario" (ICML 2024); election after Yadav et al. (NeurIPS 2023).

use crate::sparsify::Sparsifier;
use crate::task_vectors::{
    AGGREGATE, DENSITY, ELECTION, INT8_MASK, LAMBDA, NORMALIZE, TaskVectors, ZERO_SUM, rescale,
};
use crate::{Arity, BasePolicy, MethodInfo, Parameter};

/// See the module's documentation.
pub(crate) static DARE_TIES: TaskVectors = TaskVectors {
    info: &INFO,
    sparsifier: Sparsifier::Random,
    elects: true,
};

static INFO: MethodInfo = MethodInfo {
    name: "dare_ties",
    summary: "drop elements of the task vectors at random, rescale, elect signs, merge what agrees",
    formula: "y = b + λ Σ D_i of the elected sign, D_i = w_i f_i m_i d_i, sign of Σ D_i   (divided by the Σ w_i of the same if normalize); m_i = 1 with probability density_i",
    source: "Yu et al., Language Models are Super Mario (DARE), ICML 2024 (arXiv 2311.03099)",
    in_mergekit: true,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter::weight(),
        DENSITY,
        Parameter::flag("normalize", false, NORMALIZE),
        rescale("true"),
        ELECTION,
        AGGREGATE,
        ZERO_SUM,
        LAMBDA,
        INT8_MASK,
    ],
};
