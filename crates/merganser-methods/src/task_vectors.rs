//! The engine of the task-arithmetic family: thin, weigh, elect, add up.
//!
//! For each element, with task vectors d_i = x_i − base, thinned to d̂_i and rescaled by f_i ([`crate::sparsify`]):
//!
//! ```text
//! D_i = w_i f_i d̂_i
//! without election   mixed = Σ D_i                           divisor = Σ w_i        (|divisor| < 1e-8 counts as 1)
//! with election      mixed = Σ D_i of the elected sign       divisor = Σ w_i of the same   (0 counts as 1)
//! y = base + λ · mixed           (λ · mixed / divisor if `normalize`)
//! ```
//!
//! The elected sign of an element is that of Σ D_i, plus if that is 0; see [`merganser_kernels::elect`].
//!
//! Ilharco et al., "Editing Models with Task Arithmetic" (ICLR 2023), and the papers of the single methods.

use std::collections::BTreeMap;

use merganser_kernels::elect::{self, Aggregate, Election, MergeOptions, ZeroSum};
use merganser_kernels::elementwise;
use merganser_kernels::keys::magnitude_keys;

use crate::select::Streams;
use crate::sparsify::{Rescale, Sparsifier, Thinned, with_scratch};
use crate::{
    Block, Fallback, Grain, Kind, Method, MethodError, MethodInfo, Parameter, Program, Scope,
    Settings, Survey, TensorGroup, View,
};

/// A method of the family.
pub(crate) struct TaskVectors {
    pub(crate) info: &'static MethodInfo,
    pub(crate) sparsifier: Sparsifier,
    /// Whether minority signs are left out.
    pub(crate) elects: bool,
}

pub(crate) const NORMALIZE: &str = "divide by the sum of the weights that take part";

/// `lambda`.
pub(crate) const LAMBDA: Parameter = Parameter::float(
    "lambda",
    Scope::Shared,
    (f64::NEG_INFINITY, f64::INFINITY),
    1.0,
    "factor of the merged task vector",
);

/// `density`.
pub(crate) const DENSITY: Parameter = Parameter::float(
    "density",
    Scope::PerInput,
    (0.0, 1.0),
    1.0,
    "share of the task vector that is kept",
);

/// `gamma`.
pub(crate) const GAMMA: Parameter = Parameter::float(
    "gamma",
    Scope::PerInput,
    (0.0, 1.0),
    0.01,
    "share of the largest elements that is dropped",
);

/// `epsilon` of DELLA.
pub(crate) const EPSILON: Parameter = Parameter::float(
    "epsilon",
    Scope::PerInput,
    (0.0, 1.0),
    0.15,
    "half the range of the keep probabilities around the density",
);

/// `int8_mask`, which only chose the type of a temporary.
pub(crate) const INT8_MASK: Parameter = Parameter::flag(
    "int8_mask",
    false,
    "accepted for old recipes; has no effect on the result",
);

/// `rescale`.
pub(crate) const fn rescale(default: &'static str) -> Parameter {
    Parameter::choice(
        "rescale",
        &["false", "true", "l1", "density"],
        default,
        "enlarge what is kept: l1 (= true) restores the L1 norm, density divides by the probability of being kept",
    )
}

/// `election`.
pub(crate) const ELECTION: Parameter = Parameter::choice(
    "election",
    &["sum", "count"],
    "sum",
    "what elects the sign of an element: the sum of the weighted task vectors, or the count of their signs",
);

/// `aggregate`.
pub(crate) const AGGREGATE: Parameter = Parameter {
    name: "aggregate",
    scope: Scope::Shared,
    kind: Kind::Choice(&["mean", "sum", "max"]),
    default: None,
    required: false,
    summary: "how the values of the elected sign are put together; if unset, mean or sum as `normalize` says",
};

/// `zero_sum`.
pub(crate) const ZERO_SUM: Parameter = Parameter {
    name: "zero_sum",
    scope: Scope::Shared,
    kind: Kind::Choice(&["positive", "majority"]),
    default: Some(Fallback::Text("positive")),
    required: false,
    summary: "the sign where the votes add up to 0: plus, or that of most elements (the paper's)",
};

/// `scope`.
pub(crate) const fn scope(default: &'static str) -> Parameter {
    Parameter::choice(
        "scope",
        &["tensor", "model"],
        default,
        "what the thresholds are taken over: each tensor alone, or the whole model as one vector",
    )
}

/// The inputs besides the base, each with the name under which the survey knows the threshold of its model: the key of
/// the least magnitude that is kept. A label that occurs again gets a number.
fn cut_names(group: &TensorGroup<'_>) -> Vec<(usize, String)> {
    let others = group.others();
    let label = |i: usize| group.inputs[i].model;
    let name = |(at, i): (usize, &usize)| {
        let earlier = others[..at]
            .iter()
            .filter(|j| label(**j) == label(*i))
            .count();
        (
            *i,
            if earlier == 0 {
                format!("cut {}", label(*i))
            } else {
                format!("cut {} #{}", label(*i), earlier + 1)
            },
        )
    };
    others.iter().enumerate().map(name).collect()
}

/// Survey: elements with positive votes less those with negative ones.
const BALANCE: &str = "sign balance";

fn is_model_scope(settings: &Settings) -> bool {
    settings.text("scope") == Some("model")
}

fn asks_majority(settings: &Settings) -> bool {
    settings.text("zero_sum") == Some("majority")
}

fn is_thinned(settings: &Settings) -> bool {
    (0..settings.inputs.len())
        .filter_map(|i| settings.input_float(i, "density"))
        .any(|density| density < 1.0)
}

impl Method for TaskVectors {
    fn info(&self) -> &'static MethodInfo {
        self.info
    }

    fn check(
        &self,
        _shape: &[usize],
        _base: Option<usize>,
        settings: &Settings,
    ) -> Result<(), String> {
        if self.sparsifier != Sparsifier::Rank {
            return Ok(());
        }
        for i in 0..settings.inputs.len() {
            let (Some(density), Some(epsilon)) = (
                settings.input_float(i, "density"),
                settings.input_float(i, "epsilon"),
            ) else {
                continue;
            };
            if density < 1.0 && (density - epsilon <= 0.0 || density + epsilon >= 1.0) {
                return Err(format!(
                    "the keep probabilities run from density - epsilon = {} to density + epsilon = {}, which must lie \
                     strictly between 0 and 1; choose a smaller epsilon (density {density}, epsilon {epsilon})",
                    rounded(density - epsilon),
                    rounded(density + epsilon)
                ));
            }
        }
        Ok(())
    }

    fn grain(&self, _settings: &Settings) -> Grain {
        if self.sparsifier == Sparsifier::Rank {
            Grain::Items
        } else {
            Grain::Elements
        }
    }

    fn needs_survey(&self, settings: &Settings) -> bool {
        is_model_scope(settings) && (is_thinned(settings) || asks_majority(settings))
    }

    fn survey(&self, groups: &[TensorGroup<'_>]) -> Result<Survey, MethodError> {
        let groups: Vec<&TensorGroup<'_>> = groups.iter().collect();
        let mut survey = Survey::default();
        for (model, key) in model_cuts(&groups)? {
            survey.numbers.insert(model, vec![f64::from(key)]);
        }
        if groups.iter().any(|group| asks_majority(group.settings)) {
            let mut balance = 0;
            for group in groups {
                balance += sign_balance(group, &surveyed(self.info.name, group, &survey)?)?;
            }
            survey
                .numbers
                .insert(BALANCE.to_owned(), vec![balance as f64]);
        }
        Ok(survey)
    }

    fn passes(&self, settings: &Settings) -> u32 {
        let thinned = self.sparsifier != Sparsifier::None && is_thinned(settings);
        let selects = matches!(
            self.sparsifier,
            Sparsifier::Magnitude | Sparsifier::Outliers
        );
        1 + u32::from(thinned && selects)
            + u32::from(thinned && Rescale::of(settings) == Rescale::L1)
            + u32::from(self.elects && asks_majority(settings))
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        let settings = group.settings;
        let thinned = if self.needs_survey(settings) {
            surveyed(self.info.name, group, survey)?
        } else {
            Thinned::new(group, self.sparsifier, Rescale::of(settings))?
        };
        let weights = group.other_floats("weight");
        if !self.elects {
            return Ok(sum_program(thinned, &weights, settings));
        }
        let zero_sum = match (asks_majority(settings), is_model_scope(settings)) {
            (false, _) => ZeroSum::Positive,
            (true, false) => ZeroSum::Majority(sign_balance(group, &thinned)? as f32),
            (true, true) => ZeroSum::Majority(
                survey
                    .get(BALANCE)
                    .first()
                    .map_or(0.0, |balance| *balance as f32),
            ),
        };
        Ok(elect_program(thinned, &weights, settings, zero_sum))
    }
}

/// Six decimals at most, for messages.
fn rounded(x: f64) -> f64 {
    (x * 1e6).round() / 1e6
}

fn sum_program<'a>(thinned: Thinned<'a>, weights: &[f64], settings: &Settings) -> Program<'a> {
    let total: f64 = weights.iter().sum();
    let divisor = if settings.flag("normalize") && total.abs() >= 1e-8 {
        total
    } else {
        1.0
    };
    let lambda = settings.float("lambda");
    let factors = thinned.factors.iter();
    let weights: Vec<f32> = weights
        .iter()
        .zip(factors)
        .map(|(w, f)| (lambda / divisor * w * f64::from(*f)) as f32)
        .collect();
    let grain = thinned.grain();
    let combine = move |block: &Block<'_>, out: &mut [f32]| {
        let deltas = block.others();
        if thinned.is_whole() {
            elementwise::delta_combination(out, block.base(), &weights, &deltas, 1.0);
        } else {
            with_kept(&thinned, block, &deltas, |kept| {
                elementwise::delta_combination(out, block.base(), &weights, kept, 1.0);
            });
        }
    };
    Program {
        grain,
        ..Program::deltas(combine)
    }
}

fn elect_program<'a>(
    thinned: Thinned<'a>,
    weights: &[f64],
    settings: &Settings,
    zero_sum: ZeroSum,
) -> Program<'a> {
    let options = MergeOptions {
        election: election(settings),
        aggregate: match (settings.text("aggregate"), settings.flag("normalize")) {
            (Some("max"), _) => Aggregate::Max,
            (Some("mean"), _) | (None, true) => Aggregate::Mean,
            _ => Aggregate::Sum,
        },
        zero_sum,
        lambda: settings.float("lambda") as f32,
    };
    let weights: Vec<f32> = weights.iter().map(|w| *w as f32).collect();
    let grain = thinned.grain();
    let combine = move |block: &Block<'_>, out: &mut [f32]| {
        with_trimmed(&thinned, block, |deltas, cuts| {
            elect::disjoint_merge(
                out,
                block.base(),
                deltas,
                cuts,
                &thinned.factors,
                &weights,
                &options,
            );
        });
    };
    Program {
        grain,
        ..Program::deltas(combine)
    }
}

fn election(settings: &Settings) -> Election {
    if settings.text("election") == Some("count") {
        Election::Count
    } else {
        Election::Sum
    }
}

/// Shows the kept parts of the task vectors.
fn with_kept(
    thinned: &Thinned<'_>,
    block: &Block<'_>,
    deltas: &[&[f32]],
    work: impl FnOnce(&[&[f32]]),
) {
    with_scratch(deltas.len(), block.len(), |kept| {
        for (task, (kept, delta)) in kept.iter_mut().zip(deltas).enumerate() {
            thinned.apply(block, task, delta, kept);
        }
        work(&kept.iter().map(|kept| &**kept).collect::<Vec<_>>());
    });
}

/// Shows the task vectors with cuts where cuts describe what is kept, or else their kept parts.
fn with_trimmed(
    thinned: &Thinned<'_>,
    block: &Block<'_>,
    work: impl FnOnce(&[&[f32]], Option<&[u32]>),
) {
    let deltas = block.others();
    if thinned.is_whole() {
        work(&deltas, None);
    } else if let Some(cuts) = thinned.keys_within(block) {
        work(&deltas, Some(&cuts));
    } else {
        with_kept(thinned, block, &deltas, |kept| work(kept, None));
    }
}

/// The elements of one tensor with positive votes, less those with negative ones.
fn sign_balance(group: &TensorGroup<'_>, thinned: &Thinned<'_>) -> Result<i64, MethodError> {
    let weights: Vec<f32> = group
        .other_floats("weight")
        .iter()
        .map(|w| *w as f32)
        .collect();
    let election = election(group.settings);
    let chunks = group.scan(
        thinned.grain(),
        View::Deltas,
        |_| 0i64,
        |balance, block| {
            with_trimmed(thinned, block, |deltas, cuts| {
                *balance += elect::sign_balance(deltas, cuts, &thinned.factors, &weights, election);
            });
        },
    )?;
    Ok(chunks.into_iter().sum())
}

/// The models of the groups besides the base, with the key from which their task vector is kept: that of the
/// (d − ⌊ρd⌋)-th smallest of d magnitudes, all ties included, as in the code of the TIES paper; everything if ⌊ρd⌋ = d,
/// nothing if ρ = 0. Where the density differs from tensor to tensor, ⌊ρd⌋ is the sum of their shares.
fn model_cuts(groups: &[&TensorGroup<'_>]) -> Result<Vec<(String, u32)>, MethodError> {
    let names: Vec<Vec<(usize, String)>> = groups.iter().map(|group| cut_names(group)).collect();
    // For every model: elements by density, in bits so that equal densities meet.
    let mut models: Vec<(&str, BTreeMap<u64, u64>)> = Vec::new();
    for (group, names) in groups.iter().zip(&names) {
        for (i, name) in names {
            let at = models
                .iter()
                .position(|(other, _)| other == name)
                .unwrap_or_else(|| {
                    models.push((name, BTreeMap::new()));
                    models.len() - 1
                });
            let density = group.settings.input_float(*i, "density").unwrap_or(1.0);
            *models[at].1.entry(density.to_bits()).or_default() += group.elements() as u64;
        }
    }
    let mut cuts: Vec<(String, u32)> = models
        .iter()
        .map(|(name, _)| ((*name).to_owned(), 0))
        .collect();
    let (mut streams, mut lens, mut ranks) = (Vec::new(), Vec::new(), Vec::new());
    for (at, (_, elements)) in models.iter().enumerate() {
        let len: u64 = elements.values().sum();
        let kept: f64 = elements
            .iter()
            .map(|(density, n)| f64::from_bits(*density) * *n as f64)
            .sum();
        if kept <= 0.0 {
            cuts[at].1 = u32::MAX;
        } else if (kept as u64) < len {
            streams.push(at);
            lens.push(len);
            ranks.push(vec![len - kept as u64 - 1]);
        }
    }
    let keys = |g: usize, block: &Block<'_>, keys: &mut [Vec<u32>]| {
        for (keys, at) in keys.iter_mut().zip(&streams) {
            if let Some((i, _)) = names[g].iter().find(|(_, name)| name == models[*at].0) {
                keys.resize(block.len(), 0);
                magnitude_keys(keys, block.input(*i));
            }
        }
    };
    if !streams.is_empty() {
        let found = Streams::new(groups, View::Deltas, lens, &keys).select(&ranks)?;
        for (at, found) in streams.iter().zip(found) {
            cuts[*at].1 = found[0].key;
        }
    }
    Ok(cuts)
}

/// The task vectors of a group cut where the survey says.
fn surveyed<'a>(
    method: &'static str,
    group: &'a TensorGroup<'a>,
    survey: &Survey,
) -> Result<Thinned<'a>, MethodError> {
    let cut = |(i, name): (usize, String)| {
        let missing = || {
            let model = group.inputs[i].model;
            group.undefined(
                method,
                &format!("the survey of the whole model has no threshold for {model}; take it over all tensors first"),
            )
        };
        survey
            .get(&name)
            .first()
            .map(|key| *key as u32)
            .ok_or_else(missing)
    };
    let cuts: Vec<u32> = cut_names(group)
        .into_iter()
        .map(cut)
        .collect::<Result<_, _>>()?;
    Thinned::at_keys(group, &cuts, Rescale::of(group.settings))
}
