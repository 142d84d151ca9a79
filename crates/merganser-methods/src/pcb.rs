//! PCB merging: parameters compete, within their task and between tasks.
//!
//! With task vectors τ_t of T tasks and d elements (of the whole model, or of one tensor if `scope: tensor`):
//!
//! 1. a_t = |τ_t| clamped to the order statistics at ⌊1e-4 d⌋ and ⌊(1 − 1e-4) d − 1⌋ of its own magnitudes;
//! 2. β_t = exp(T m_t²) · tanh(τ_t Σ_s τ_s), with m_t = a_t brought to [0, 1];
//! 3. β_t clamped below at its own order statistic ⌊(1 − ratio) d⌋ and brought to [0, 1], so that all but the largest
//!    `ratio` compete for nothing;
//! 4. y = b + λ Σ β_t sign(τ_t) a_t / max(Σ β_t, 1e-12).
//!
//! A task whose magnitudes or balances are all equal (one that is all zero, say) contributes nothing instead of NaN.
//!
//! Du et al., "Parameter Competition Balancing for Model Merging" (NeurIPS 2024), as in the authors' code: the softmax of
//! the paper is an exponential there.

use merganser_kernels::keys::{key_to_magnitude, key_to_ordered, magnitude_keys, ordered_keys};
use merganser_kernels::order::Statistic;
use merganser_kernels::special::{self, Competitor};

use crate::select::{Keys, Streams};
use crate::sparsify::with_scratch;
use crate::task_vectors::{LAMBDA, scope};
use crate::{
    Arity, BasePolicy, Block, Method, MethodError, MethodInfo, Parameter, Program, Scope, Settings,
    Survey, TensorGroup, View,
};

/// See the module's documentation.
pub(crate) struct Pcb;

static INFO: MethodInfo = MethodInfo {
    name: "pcb",
    summary: "weigh every element of every task vector by how it competes within its task and between tasks",
    formula: "y = b + λ Σ β_t sign(τ_t) a_t / Σ β_t; β_t = exp(T minmax(a_t)²) tanh(τ_t Σ τ_s), its largest ratio brought to [0, 1]; \
              a_t = |τ_t| without its 1e-4 extremes",
    source: "Du et al., Parameter Competition Balancing for Model Merging, NeurIPS 2024 (arXiv 2410.02396)",
    in_mergekit: false,
    base: BasePolicy::Required,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter::float(
            "ratio",
            Scope::Shared,
            (0.0, 1.0),
            0.1,
            "share of each task vector that competes",
        ),
        LAMBDA,
        scope("model"),
    ],
};

/// Share of the magnitudes that is clamped at either end.
const EXTREMES: f64 = 1e-4;
const LEAST_DIVISOR: f32 = 1e-12;
/// Survey: the four numbers of each task, in model order of the group.
const COMPETITORS: &str = "competitors";

impl Method for Pcb {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn needs_survey(&self, settings: &Settings) -> bool {
        settings.text("scope") == Some("model")
    }

    fn survey(&self, groups: &[TensorGroup<'_>]) -> Result<Survey, MethodError> {
        TensorGroup::check_same_models(groups, INFO.name)?;
        let groups: Vec<&TensorGroup<'_>> = groups.iter().collect();
        let mut survey = Survey::default();
        let numbers = competitors(&groups)?
            .iter()
            .flat_map(|c| {
                [c.magnitudes.0, c.magnitudes.1, c.balances.0, c.balances.1].map(f64::from)
            })
            .collect();
        survey.numbers.insert(COMPETITORS.to_owned(), numbers);
        Ok(survey)
    }

    fn passes(&self, _settings: &Settings) -> u32 {
        3
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        let competitors = if self.needs_survey(group.settings) {
            let numbers = survey.get(COMPETITORS);
            if numbers.len() != 4 * group.others().len() {
                return Err(group.undefined(
                    INFO.name,
                    "the survey of the whole model is missing; take it over all tensors first",
                ));
            }
            let competitor = |n: &[f64]| Competitor {
                magnitudes: (n[0] as f32, n[1] as f32),
                balances: (n[2] as f32, n[3] as f32),
            };
            numbers.chunks_exact(4).map(competitor).collect()
        } else {
            competitors(&[group])?
        };
        let lambda = group.settings.float("lambda") as f32;
        Ok(Program::deltas(move |block, out| {
            merge(block, &competitors, lambda, out);
        }))
    }
}

/// The thresholds of each task, over all the groups.
fn competitors(groups: &[&TensorGroup<'_>]) -> Result<Vec<Competitor>, MethodError> {
    let len: u64 = groups.iter().map(|group| group.elements() as u64).sum();
    let (Some(first), true) = (groups.first(), len > 0) else {
        return Ok(vec![
            Competitor::default();
            groups.first().map_or(0, |group| group.others().len())
        ]);
    };
    let (tasks, d) = (first.others().len(), len as f64);
    let lens = || vec![len; tasks];
    let select = |keys: &Keys<'_>, ranks: [f64; 2]| {
        let ranks = ranks
            .map(|rank| (rank.max(0.0) as u64).min(len - 1))
            .to_vec();
        Streams::new(groups, View::Deltas, lens(), keys).select(&vec![ranks; tasks])
    };
    let magnitudes = |_: usize, block: &Block<'_>, keys: &mut [Vec<u32>]| {
        for (keys, delta) in keys.iter_mut().zip(block.others()) {
            keys.resize(block.len(), 0);
            magnitude_keys(keys, delta);
        }
    };
    let range =
        |found: &[Statistic], number: fn(u32) -> f32| (number(found[0].key), number(found[1].key));
    let magnitudes: Vec<(f32, f32)> =
        select(&magnitudes, [d * EXTREMES, d * (1.0 - EXTREMES) - 1.0])?
            .iter()
            .map(|found| range(found, key_to_magnitude))
            .collect();
    let balances = |_: usize, block: &Block<'_>, keys: &mut [Vec<u32>]| {
        with_balances(block, &magnitudes, |task, balances| {
            keys[task].resize(block.len(), 0);
            ordered_keys(&mut keys[task], balances);
        });
    };
    let ratio = first.settings.float("ratio");
    let balances = select(&balances, [d * (1.0 - ratio), d - 1.0])?;
    let balances = balances.iter().map(|found| range(found, key_to_ordered));
    Ok(magnitudes
        .into_iter()
        .zip(balances)
        .map(|(magnitudes, balances)| Competitor {
            magnitudes,
            balances,
        })
        .collect())
}

/// Shows the balances β of every task in turn, before they are clamped.
fn with_balances(
    block: &Block<'_>,
    magnitudes: &[(f32, f32)],
    mut work: impl FnMut(usize, &[f32]),
) {
    let deltas = block.others();
    with_scratch(2, block.len(), |scratch| {
        let [total, balances] = scratch else { return };
        total.fill(0.0);
        for delta in &deltas {
            merganser_kernels::elementwise::add_assign(total, delta);
        }
        for (task, (delta, magnitudes)) in deltas.iter().zip(magnitudes).enumerate() {
            special::balance(balances, delta, total, *magnitudes, deltas.len() as f64);
            work(task, balances);
        }
    });
}

fn merge(block: &Block<'_>, competitors: &[Competitor], lambda: f32, out: &mut [f32]) {
    let deltas = block.others();
    let magnitudes: Vec<(f32, f32)> = competitors
        .iter()
        .map(|competitor| competitor.magnitudes)
        .collect();
    let mut divisor = vec![0.0; block.len()];
    out.fill(0.0);
    with_balances(block, &magnitudes, |task, balances| {
        special::add_competitor(
            out,
            &mut divisor,
            deltas[task],
            balances,
            &competitors[task],
        );
    });
    for ((out, &base), &divisor) in out.iter_mut().zip(block.base()).zip(&divisor) {
        *out = base + lambda * (*out / divisor.max(LEAST_DIVISOR));
    }
}
