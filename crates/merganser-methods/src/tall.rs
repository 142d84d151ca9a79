//! TALL masks: where a task's own change outweighs what the merge does to it, and Consensus merging by their votes.
//!
//! With τ = Σ d_t, the mask of task t is m_t = [ |d_t| > λ_t |τ − d_t| ]. `tall_mask` rebuilds one task, base + m_t τ;
//! `consensus` keeps τ where at least k masks are set, dropping what no task ("catastrophic") or a single one
//! ("selfish") needs.
//! Wang et al., "Localizing Task Information for Improved Model Merging and Compression", ICML 2024 (arXiv 2405.07813).

use merganser_kernels::compete;

use crate::{
    Arity, BasePolicy, Method, MethodError, MethodInfo, Parameter, Program, Scope, Settings,
    Survey, TensorGroup,
};

/// `consensus`: see the module's documentation.
pub(crate) struct Consensus;

/// `tall_mask`: see the module's documentation.
pub(crate) struct TallMask;

const SOURCE: &str = "Wang et al., Localizing Task Information, ICML 2024 (arXiv 2405.07813)";

const TALL_LAMBDA: Parameter = Parameter::float(
    "tall_lambda",
    Scope::PerInput,
    (0.0, f64::INFINITY),
    0.4,
    "how far a task's change must outweigh that of the others (the authors choose from 0.2 to 0.6 per task)",
);

const LAMBDA: Parameter = Parameter::float(
    "lambda",
    Scope::Shared,
    (f64::NEG_INFINITY, f64::INFINITY),
    1.0,
    "factor of the merged task vector",
);

static CONSENSUS: MethodInfo = MethodInfo {
    name: "consensus",
    summary: "the sum of the task vectors where enough tasks need it",
    formula: "y = base + lambda · τ · [Σ_t m_t >= threshold], τ = Σ d_t, m_t = [|d_t| > tall_lambda_t |τ - d_t|]",
    source: SOURCE,
    in_mergekit: false,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        TALL_LAMBDA,
        Parameter::int(
            "threshold",
            (0, u32::MAX as i64),
            2,
            "tasks that must need an element",
        ),
        LAMBDA,
    ],
};

static TALL_MASK: MethodInfo = MethodInfo {
    name: "tall_mask",
    summary: "rebuilds one fine-tune from the sum of all task vectors and its own mask",
    formula: "y = base + lambda · τ · m_task, τ = Σ d_t, m_t = [|d_t| > tall_lambda_t |τ - d_t|]",
    source: SOURCE,
    in_mergekit: false,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        TALL_LAMBDA,
        Parameter::int(
            "task",
            (0, i64::MAX),
            0,
            "which model is rebuilt: 0 is the first one that is not the base",
        )
        .required(),
        LAMBDA,
    ],
};

impl Method for Consensus {
    fn info(&self) -> &'static MethodInfo {
        &CONSENSUS
    }

    fn check(
        &self,
        _shape: &[usize],
        base: Option<usize>,
        settings: &Settings,
    ) -> Result<(), String> {
        let (threshold, tasks) = (settings.int("threshold"), settings.tasks(base));
        if threshold > tasks as i64 {
            return Err(format!(
                "threshold {threshold} asks for more models than the {tasks} that are merged, which would give the \
                 base model; lower it"
            ));
        }
        Ok(())
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        _survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        let cuts = cuts(group);
        let threshold = group.settings.int("threshold") as u32;
        let lambda = group.settings.float("lambda") as f32;
        Ok(Program::deltas(move |block, out| {
            compete::consensus(out, block.base(), &block.others(), &cuts, threshold, lambda);
        }))
    }
}

impl Method for TallMask {
    fn info(&self) -> &'static MethodInfo {
        &TALL_MASK
    }

    fn check(
        &self,
        _shape: &[usize],
        base: Option<usize>,
        settings: &Settings,
    ) -> Result<(), String> {
        settings.check_task(base)
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        _survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        let task = group.task("tall_mask")?;
        let cut = cuts(group)[task];
        let lambda = group.settings.float("lambda") as f32;
        Ok(Program::deltas(move |block, out| {
            compete::localize(out, block.base(), &block.others(), task, cut, lambda);
        }))
    }
}

fn cuts(group: &TensorGroup<'_>) -> Vec<f32> {
    group
        .other_floats("tall_lambda")
        .into_iter()
        .map(|cut| cut as f32)
        .collect()
}
