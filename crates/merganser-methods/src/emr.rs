//! EMR: elect, mask, rescale. One unified task vector for all models, one bit an element and one number for each.
//!
//! With d_t = x_t − base: γ = +1 where Σ d_t > 0, else −1; τ_u = γ · max{ |d_t| : γ d_t > 0 } (0 if there is none);
//! m_t = 1 where γ d_t > 0, else 0; model t is rebuilt as base + λ_t · m_t · τ_u. The authors' code takes
//! λ_t = Σ_n mean|d_t,n| / Σ_n mean|m_t τ_u,n| over the tensors n, so that a bias weighs as much as a matrix (`mean`);
//! their paper takes the ratio of the sums over all elements (`total`).
//!
//! The method writes base + τ_u or one rebuilt model. With base + τ_u it stores, beside the model, τ_u
//! ([`tau_program`], as floats), every m_t ([`mask_program`], as bits) and the numbers [`RESCALERS`] of the survey;
//! [`REBUILD`] makes any of the models from them.
//! Huang et al., "EMR-Merging: Tuning-Free High-Performance Model Merging", NeurIPS 2024 (arXiv 2405.17461).

use std::cell::RefCell;
use std::thread::LocalKey;

use merganser_kernels::{compete, elementwise, reduce};

use crate::{
    Arity, BasePolicy, Block, Extra, Grain, Method, MethodError, MethodInfo, Parameter, Program,
    Settings, Survey, TensorGroup, View,
};

/// Name under which the survey holds λ_t, one for every model but the base.
pub const RESCALERS: &str = "rescalers";

/// Name of the method.
pub const NAME: &str = "emr";

/// Prefix of τ_u beside the model.
pub const TAU_PREFIX: &str = "unified";

/// Prefix of m_t beside the model; `task` counts the models that are not the base, from 0.
pub fn mask_prefix(task: usize) -> String {
    format!("mask{task}")
}

/// See the module's documentation.
pub(crate) struct Emr;

static INFO: MethodInfo = MethodInfo {
    name: NAME,
    summary: "one task vector for all models; rebuilds any of them with a bit mask and a number",
    formula: "γ = sign Σ d_t; τ_u = γ max{|d_t| : γ d_t > 0}; unified: base + τ_u; task t: base + λ_t [γ d_t > 0] τ_u",
    source: "Huang et al., EMR-Merging, NeurIPS 2024 (arXiv 2405.17461)",
    in_mergekit: false,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter::choice(
            "output",
            &["unified", "task"],
            "unified",
            "what is written: base + τ_u, or one rebuilt model",
        ),
        Parameter::int(
            "task",
            (0, i64::MAX),
            0,
            "output: task: which model; 0 is the first one that is not the base",
        ),
        Parameter::choice(
            "rescaler",
            &["mean", "total"],
            "mean",
            "λ_t from the sum of the tensors' means (the authors' code) or of all elements (their paper)",
        ),
    ],
};

impl Method for Emr {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn check(
        &self,
        _shape: &[usize],
        base: Option<usize>,
        settings: &Settings,
    ) -> Result<(), String> {
        if wants_task(settings) {
            settings.check_task(base)
        } else {
            Ok(())
        }
    }

    fn needs_survey(&self, settings: &Settings) -> bool {
        wants_task(settings)
    }

    fn survey(&self, groups: &[TensorGroup<'_>]) -> Result<Survey, MethodError> {
        survey(groups)
    }

    fn extras(&self, settings: &Settings, tasks: usize) -> Vec<Extra> {
        if wants_task(settings) {
            return Vec::new();
        }
        let unified = Extra {
            prefix: TAU_PREFIX.into(),
            bits: false,
        };
        let masks = (0..tasks).map(|task| Extra {
            prefix: mask_prefix(task),
            bits: true,
        });
        std::iter::once(unified).chain(masks).collect()
    }

    fn extra<'a>(
        &self,
        _group: &'a TensorGroup<'a>,
        number: usize,
    ) -> Result<Program<'a>, MethodError> {
        Ok(number.checked_sub(1).map_or_else(tau_program, mask_program))
    }

    fn passes(&self, settings: &Settings) -> u32 {
        if wants_task(settings) { 2 } else { 1 }
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        if !wants_task(group.settings) {
            return Ok(Program::deltas(|block, out| {
                compete::unify(out, &block.others());
                elementwise::add_assign(out, block.base());
            }));
        }
        let task = group.task("emr")?;
        let lambda = *survey
            .get(RESCALERS)
            .get(task)
            .ok_or_else(|| group.undefined("emr", "the numbers over all tensors were not taken"))?;
        let lambda = lambda as f32;
        Ok(Program::deltas(move |block, out| {
            masked(block, task, out);
            elementwise::scale(out, lambda);
            elementwise::add_assign(out, block.base());
        }))
    }
}

/// Makes the model of one task from three inputs (the base, τ_u and m_t, in this order) and the shared number
/// [`RESCALER`], λ_t. Not a method of recipes: the inputs are what a merge by `emr` left.
pub static REBUILD: &dyn Method = &Rebuild;

/// Name of the number that [`REBUILD`] takes.
pub const RESCALER: &str = "lambda";

struct Rebuild;

static REBUILD_INFO: MethodInfo = MethodInfo {
    name: "emr_rebuild",
    summary: "the model of one task, rebuilt from what a merge by emr stored",
    formula: "base + λ_t m_t τ_u",
    source: INFO.source,
    in_mergekit: false,
    base: BasePolicy::Ignored,
    inputs: Arity::exactly(3),
    parameters: &[],
};

impl Method for Rebuild {
    fn info(&self) -> &'static MethodInfo {
        &REBUILD_INFO
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        _survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        let lambda = group.settings.float(RESCALER) as f32;
        Ok(Program::values(move |block, out| {
            out.copy_from_slice(block.input(1));
            elementwise::mul_assign(out, block.input(2));
            elementwise::scale(out, lambda);
            elementwise::add_assign(out, block.input(0));
        }))
    }
}

fn wants_task(settings: &Settings) -> bool {
    settings.text("output") == Some("task")
}

/// Writes τ_u.
pub fn tau_program() -> Program<'static> {
    Program::deltas(|block, out| compete::unify(out, &block.others()))
}

/// Writes m_t as 1 and 0; `task` counts the models that are not the base, from 0.
pub fn mask_program(task: usize) -> Program<'static> {
    Program::deltas(move |block, out| {
        masked(block, task, out);
        for x in out {
            *x = f32::from(u8::from(*x != 0.0));
        }
    })
}

/// Takes λ_t of every model over all tensors, as [`RESCALERS`].
///
/// # Errors
/// Unreadable or non-finite inputs; tensors that are not all merged from the same models in the same order.
pub fn survey(groups: &[TensorGroup<'_>]) -> Result<Survey, MethodError> {
    TensorGroup::check_same_models(groups, INFO.name)?;
    let mut lengths: Vec<[f64; 2]> = Vec::new();
    for group in groups {
        let count = group.others().len();
        let parts = group.scan(
            Grain::Elements,
            View::Deltas,
            |_| vec![[0.0; 2]; count],
            |sums, block| {
                let others = block.others();
                with_scratch(&UNIFIED, block.len(), |unified| {
                    compete::unify(unified, &others);
                    with_scratch(&KEPT, block.len(), |kept| {
                        for (sum, delta) in sums.iter_mut().zip(others) {
                            compete::where_signs_agree(kept, unified, delta);
                            sum[0] += reduce::sum_abs(delta);
                            sum[1] += reduce::sum_abs(kept);
                        }
                    });
                });
            },
        )?;
        let by_total = group.settings.text("rescaler") == Some("total");
        let weight = if by_total {
            1.0
        } else {
            1.0 / group.elements().max(1) as f64
        };
        lengths.resize(count.max(lengths.len()), [0.0; 2]);
        for (task, length) in lengths.iter_mut().enumerate().take(count) {
            for k in 0..2 {
                length[k] += weight * parts.iter().map(|sums| sums[task][k]).sum::<f64>();
            }
        }
    }
    // A model equal to the base has an empty mask, so its factor does not matter.
    let ratio = |[own, kept]: [f64; 2]| if kept == 0.0 { 1.0 } else { own / kept };
    let rescalers = lengths.into_iter().map(ratio).collect();
    Ok(Survey {
        numbers: [(RESCALERS.to_owned(), rescalers)].into(),
    })
}

/// out = m_task · τ_u.
fn masked(block: &Block<'_>, task: usize, out: &mut [f32]) {
    let others = block.others();
    with_scratch(&UNIFIED, block.len(), |unified| {
        compete::unify(unified, &others);
        compete::where_signs_agree(out, unified, others[task]);
    });
}

thread_local! {
    static UNIFIED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static KEPT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends `f` the first `len` elements of this thread's `buffer`.
fn with_scratch<R>(
    buffer: &'static LocalKey<RefCell<Vec<f32>>>,
    len: usize,
    f: impl FnOnce(&mut [f32]) -> R,
) -> R {
    buffer.with_borrow_mut(|buffer| {
        buffer.resize(len.max(buffer.len()), 0.0);
        f(&mut buffer[..len])
    })
}
