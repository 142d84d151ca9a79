//! The methods that look at samples: what a recipe may say about them.
//!
//! They see whole matrices, the moments of their inputs and often whole networks, so they are no [`Method`](crate::Method)s:
//! they start from a data-free merge, their *prior*, and replace the tensors they know more about. How is the business
//! of `merganser-projection`; here stand their names, parameters and formulas.

use crate::{Arity, BasePolicy, Fallback, Kind, MethodInfo, Parameter, Scope, Settings};

const UNBOUNDED: (i64, i64) = (1, i64::MAX);

/// A whole number of at least 1 that may be left out.
const fn optional_count(name: &'static str, summary: &'static str) -> Parameter {
    Parameter {
        name,
        scope: Scope::Shared,
        kind: Kind::Int {
            min: UNBOUNDED.0,
            max: UNBOUNDED.1,
        },
        default: None,
        required: false,
        summary,
    }
}

const TASK_WEIGHT: Parameter = Parameter::float(
    "task_weight",
    Scope::PerInput,
    (0.0, f64::INFINITY),
    1.0,
    "weight of the task's output error",
);

const RIDGE: Parameter = Parameter {
    name: "ridge",
    scope: Scope::Shared,
    kind: Kind::FloatOrWord {
        min: 0.0,
        max: f64::INFINITY,
        word: "auto",
    },
    default: Some(Fallback::Float(0.01)),
    required: false,
    summary: "pull to the prior, relative to the mean of the Gram's diagonal; `auto` holds samples out to find it",
};

const RIDGE_SCALE: Parameter = Parameter::choice(
    "ridge_scale",
    &["mean", "input"],
    "mean",
    "what the ridge of a matrix is relative to: the mean of the Gram's diagonal, or each input's own entry there",
);

const SEQUENTIAL: Parameter = Parameter::flag(
    "sequential",
    true,
    "solve every layer for the inputs that the merged layers before it give",
);

const TARGETS: Parameter = Parameter::choice(
    "targets",
    &["residual", "layer"],
    "residual",
    "`residual` also corrects the drift of the residual stream where a layer writes into it, `layer` does not",
);

const ALPHA: Parameter = Parameter::float(
    "alpha",
    Scope::Shared,
    (f64::NEG_INFINITY, f64::INFINITY),
    1.0,
    "factor of the merged update",
);

const EXCLUDE: Parameter = Parameter::flag(
    "exclude",
    false,
    "average the tensor instead; with filters, `exclude: [{filter: text_projection, value: true}]`",
);

const SPLIT: Parameter = Parameter::flag(
    "split_fused_qkv",
    false,
    "merge the queries, keys and values of one matrix (`c_attn`, `qkv_proj`, `in_proj_weight`) as three",
);

const RANK_FRACTION: Parameter = Parameter::float(
    "rank_fraction",
    Scope::Shared,
    (0.0, 1.0),
    0.04,
    "share of the singular directions of each distance that is kept",
);

const TASK_SCALE: Parameter = Parameter::float(
    "task_scale",
    Scope::Shared,
    (f64::NEG_INFINITY, f64::INFINITY),
    0.1,
    "factor of the distances",
);

static PROJECTION: MethodInfo = MethodInfo {
    name: "projection",
    summary: "the update of least output error on the calibration samples, layer by layer",
    formula: "Δ = argmin Σ_t ω_t/n_t ‖(W_0 + Δ) X̃_t − W_t X_t‖² + λ tr(G)/d ‖Δ − Δ_prior‖²   over the chosen basis",
    source: "Evans, Etheridge, Roberts, Tanner, Model Merging by Output-Space Projection, 2026 (arXiv 2605.29101)",
    in_mergekit: false,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter::choice(
            "basis",
            &[
                "full",
                "auto",
                "task",
                "sparse",
                "diagonal",
                "rotated",
                "atoms",
                "core",
                "best-rank",
                "none",
            ],
            "full",
            "what the update is a combination of; `none` keeps the prior",
        ),
        optional_count(
            "rank",
            "rank of `best-rank`, or of each task's `atoms` and `core`",
        ),
        Parameter::choice(
            "constraint",
            &["free", "nonneg", "box", "simplex", "affine"],
            "free",
            "what the coefficients of `task`, `sparse`, `diagonal` and `atoms` may be",
        ),
        RIDGE,
        RIDGE_SCALE,
        Parameter::float(
            "tolerance",
            Scope::Shared,
            (0.0, 1.0),
            0.02,
            "captured energy that basis `auto` may give away for a cheaper basis",
        ),
        Parameter::choice(
            "mask",
            &["magnitude", "random", "sign", "magmax"],
            "magnitude",
            "which entries of the task vectors basis `sparse` keeps",
        ),
        Parameter::float(
            "mask_density",
            Scope::Shared,
            (0.0, 1.0),
            0.2,
            "share of entries that basis `sparse` keeps",
        ),
        SEQUENTIAL,
        TARGETS,
        Parameter::int(
            "distill",
            (0, 1_000_000),
            0,
            "steps of gradient descent on the features of the whole network, after the projection",
        ),
        Parameter::float(
            "distill_rate",
            Scope::Shared,
            (0.0, 10.0),
            0.05,
            "learning rate of these steps, relative to the size of the task vectors",
        ),
        Parameter::float(
            "distill_hidden",
            Scope::Shared,
            (0.0, f64::INFINITY),
            1.0,
            "weight of the hidden states after each block, beside the final feature",
        ),
        Parameter::choice(
            "feature",
            &["auto", "first", "mean", "tokens"],
            "auto",
            "what of the last hidden state is distilled: the first token, the mean, or all tokens",
        ),
        TASK_WEIGHT,
    ],
};

static REGMEAN: MethodInfo = MethodInfo {
    name: "regmean",
    summary: "least squares on the outputs of the fine-tunes, with shrunk Grams",
    formula: "W = (Σ_t ω_t W_t Ĝ_t) (Σ_t ω_t Ĝ_t)⁻¹,   Ĝ = G with its off-diagonal multiplied by off_diagonal",
    source: "Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models, ICLR 2023 (arXiv 2212.09849)",
    in_mergekit: false,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter::float(
            "off_diagonal",
            Scope::Shared,
            (0.0, 1.0),
            0.9,
            "factor of the off-diagonal of the Grams",
        ),
        TASK_WEIGHT,
    ],
};

static REGMEAN_PLUS: MethodInfo = MethodInfo {
    name: "regmean++",
    summary: "RegMean on the inputs that the merged layers before give",
    formula: "as regmean, with Grams of the merged network's own inputs, layer by layer",
    source: "RegMean++, 2025 (arXiv 2508.03121)",
    in_mergekit: false,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter::float(
            "off_diagonal",
            Scope::Shared,
            (0.0, 1.0),
            0.95,
            "factor of the off-diagonal of the Grams",
        ),
        TASK_WEIGHT,
    ],
};

static LOT: MethodInfo = MethodInfo {
    name: "lot",
    summary: "one solve a layer for the task vectors' outputs, minimum norm where the samples say nothing",
    formula: "Δ = (Σ_t ω_t Δ_t G_t) (Σ_t ω_t G_t)⁺",
    source: "Sun et al., LOT Merging, NeurIPS 2025 (arXiv 2505.23859)",
    in_mergekit: false,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[TASK_WEIGHT],
};

static WUDI: MethodInfo = MethodInfo {
    name: "wudi",
    summary: "least interference between task vectors, without data: each is its own sample",
    formula: "min_Δ Σ_t ‖(Δ − Δ_t) Δ_tᵀ‖² / ‖Δ_t‖²   by Adam as published, or in closed form",
    source: "Cheng et al., Whoever Started the Interference Should End It, ICML 2025 (arXiv 2503.08099)",
    in_mergekit: false,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter::choice(
            "solver",
            &["adam", "closed"],
            "adam",
            "the iteration of the paper, or its limit",
        ),
        Parameter::int("steps", UNBOUNDED, 300, "steps of Adam"),
        Parameter::float(
            "learning_rate",
            Scope::Shared,
            (0.0, f64::INFINITY),
            1e-5,
            "step size of Adam",
        ),
    ],
};

const LOW_RANK: Parameter = Parameter::flag(
    "low_rank",
    true,
    "merge task vectors that are of low rank up to the rounding of their weights in the space they span, without that rounding",
);

static TSV_M: MethodInfo = MethodInfo {
    name: "tsv_m",
    summary: "the leading singular vectors of every task vector, made orthogonal to each other",
    formula: "Δ = α polar([U_1 … U_T]) diag(s) polar([V_1 … V_T])ᵀ,   ⌊min(m, n)/T⌋ leading triples of each task",
    source: "Gargiulo et al., Task Singular Vectors, CVPR 2025 (arXiv 2412.00081)",
    in_mergekit: false,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        ALPHA,
        EXCLUDE,
        SPLIT,
        LOW_RANK,
        Parameter::flag(
            "randomized",
            false,
            "find the singular vectors by random projection: faster, and the merge says how much they left out",
        ),
        Parameter::int(
            "passes",
            (0, 100),
            1,
            "with `randomized`, passes of power iteration: each comes nearer to the exact vectors",
        ),
    ],
};

static ISO_C: MethodInfo = MethodInfo {
    name: "iso_c",
    summary: "the sum of the task vectors with all its singular values made equal",
    formula: "Δ = α σ̄ U Vᵀ,   Σ_t Δ_t = U diag(σ) Vᵀ,   σ̄ the mean of σ",
    source: "Marczak et al., No Task Left Behind: Isotropic Model Merging, ICML 2025 (arXiv 2502.04959)",
    in_mergekit: false,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[ALPHA, EXCLUDE, SPLIT, LOW_RANK],
};

static ISO_CTS: MethodInfo = MethodInfo {
    name: "iso_cts",
    summary: "iso_c whose weakest directions give way to each task's own",
    formula: "Δ = α σ̄ polar([U_c U_1 … U_T]) polar([V_c V_1 … V_T])ᵀ,   U_t of (I − U_c U_cᵀ) Δ_t,   σ̄ the mean of all σ",
    source: "Marczak et al., No Task Left Behind: Isotropic Model Merging, ICML 2025 (arXiv 2502.04959)",
    in_mergekit: false,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        ALPHA,
        EXCLUDE,
        SPLIT,
        LOW_RANK,
        Parameter::float(
            "common_fraction",
            Scope::Shared,
            (0.0, 1.0),
            0.8,
            "share of the directions that are those of the sum",
        ),
    ],
};

static KNOTS: MethodInfo = MethodInfo {
    name: "knots",
    summary: "ties over the output directions that all task vectors share",
    formula: "Δ = α U ties(Uᵀ Δ_1, …, Uᵀ Δ_T),   [Δ_1 … Δ_T] = U Σ Vᵀ",
    source: "Stoica et al., Model Merging with SVD to Tie the Knots, ICLR 2025 (arXiv 2410.19735)",
    in_mergekit: false,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[ALPHA, EXCLUDE, SPLIT, LOW_RANK, DENSITY],
};

static CART: MethodInfo = MethodInfo {
    name: "cart",
    summary: "the average, and of every task's distance from it the leading singular directions",
    formula: "Δ = α (Δ̄ + task_scale Σ_t ⌊Δ_t − Δ̄⌋_k),   Δ̄ the mean,   k = ⌈rank_fraction min(m, n)⌉",
    source: "Choi et al., Revisiting Weight Averaging for Model Merging, 2024 (arXiv 2412.12153)",
    in_mergekit: false,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[ALPHA, EXCLUDE, SPLIT, LOW_RANK, RANK_FRACTION, TASK_SCALE],
};

const WEIGHT: Parameter = Parameter::float(
    "weight",
    Scope::PerInput,
    (f64::NEG_INFINITY, f64::INFINITY),
    1.0,
    "factor of the adapter",
);

const DENSITY: Parameter = Parameter::float(
    "density",
    Scope::Shared,
    (0.0, 1.0),
    0.2,
    "share of each task's coordinates that is kept",
);

static CORE_SPACE: MethodInfo = MethodInfo {
    name: "core_space",
    summary: "adapters merged in the small space that holds all of them",
    formula: "Δ = α Û M V̂,   M = inner(M_1, …, M_T),   M_t = s_t Ûᵀ B_t A_t V̂ᵀ,   Û, V̂ orthonormal bases of all B_t and A_t",
    source: "Panariello et al., Accurate and Efficient Low-Rank Model Merging in Core Space, NeurIPS 2025 (arXiv 2509.17786)",
    in_mergekit: false,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter::choice(
            "inner",
            &[
                "ta",
                "mean",
                "ties",
                "dare",
                "dare_ties",
                "tsv",
                "iso_c",
                "cart",
                "projection",
            ],
            "tsv",
            "how the cores are merged",
        ),
        ALPHA,
        Parameter::flag(
            "isotropic",
            false,
            "make all singular values of the merged core equal",
        ),
        DENSITY,
        Parameter::float(
            "drop",
            Scope::Shared,
            (0.0, 1.0),
            0.5,
            "probability that `dare` drops a coordinate",
        ),
        RANK_FRACTION,
        TASK_SCALE,
        optional_count(
            "rank",
            "rank that a merged adapter is cut down to; all of it is kept unless given",
        ),
        RIDGE,
        RIDGE_SCALE,
        SEQUENTIAL,
        TARGETS,
        TASK_WEIGHT,
        WEIGHT,
    ],
};

static PEFT: MethodInfo = MethodInfo {
    name: "peft",
    summary: "adapters combined as PEFT's add_weighted_adapter does",
    formula: "svd: Δ = ⌊Σ_t w_t s_t B_t A_t⌋_r;   linear: A = Σ ±√|w_t s_t| A_t, B = Σ √|w_t s_t| B_t;   cat: factors side by side",
    source: "PEFT, https://huggingface.co/docs/peft/developer_guides/model_merging",
    in_mergekit: false,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter::choice(
            "combination_type",
            &[
                "linear",
                "cat",
                "svd",
                "ties",
                "ties_svd",
                "dare_linear",
                "dare_linear_svd",
                "dare_ties",
                "dare_ties_svd",
                "magnitude_prune",
                "magnitude_prune_svd",
            ],
            "svd",
            "how the adapters are combined",
        ),
        optional_count(
            "svd_rank",
            "rank of the `svd` forms; the largest one of the adapters unless given",
        ),
        Parameter::float(
            "density",
            Scope::Shared,
            (0.0, 1.0),
            0.5,
            "share of entries that the sparse forms keep",
        ),
        Parameter::choice(
            "majority_sign_method",
            &["total", "frequency"],
            "total",
            "what elects the sign of an entry in the `ties` forms",
        ),
        WEIGHT,
    ],
};

static METHODS: [&MethodInfo; 12] = [
    &PROJECTION,
    &REGMEAN,
    &REGMEAN_PLUS,
    &LOT,
    &WUDI,
    &TSV_M,
    &ISO_C,
    &ISO_CTS,
    &KNOTS,
    &CART,
    &CORE_SPACE,
    &PEFT,
];

/// The methods that look at samples, in the order of the documentation.
pub fn calibrated() -> &'static [&'static MethodInfo] {
    &METHODS
}

/// Whether a method merges whole matrices without looking at data, so that it can be a prior of one that does.
pub fn is_matrix_method(name: &str) -> bool {
    [&WUDI, &TSV_M, &ISO_C, &ISO_CTS, &KNOTS, &CART]
        .iter()
        .any(|info| info.name == name)
}

/// Whether a method with these parameters looks at samples.
pub fn looks_at_data(info: &MethodInfo, settings: &Settings) -> bool {
    let calibrated = METHODS.iter().any(|other| other.name == info.name);
    let data_free = is_matrix_method(info.name) || is_adapter_method(info.name);
    calibrated && (!data_free || settings.text("inner") == Some("projection"))
}

/// Whether a method merges the factors of adapters.
pub fn is_adapter_method(name: &str) -> bool {
    [&CORE_SPACE, &PEFT].iter().any(|info| info.name == name)
}

/// Every method's description: those of the [`registry`](crate::registry) first, then the calibrated ones.
pub fn descriptions() -> impl Iterator<Item = &'static MethodInfo> {
    let data_free = crate::registry().iter().map(|method| method.info());
    data_free.chain(METHODS.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_name_is_given_once() {
        let names: Vec<&str> = descriptions().map(|info| info.name).collect();
        let different: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(names.len(), different.len(), "{names:?}");
    }
}
