//! Prototypes of classes carried through an update of the encoder, when the classes' own data are gone.
//!
//! | method | the mean μ_k of class k becomes | what it looks at |
//! |---|---|---|
//! | adversarial | μ_k + Δ_k, Δ_k the mean drift of probes that the old model takes for the class | probes ([`Attack`]) |
//! | semantic | μ_k + Δ_k, Δ_k the mean drift of anchors, those near μ_k before others | anchors ([`displacements`]) |
//! | mean | μ_k + Δ | anchors |
//! | affine | A μ_k + b | anchors |
//!
//! Probes that have left the data behave as no data do, so that |Δ_k| is held to a quantile of the lengths |n − o| of the
//! samples' own drifts. A class that too few probes reach is moved by its anchors instead, and its entry says so.
//!
//! A class may have several rows in the statistics; all move by the Δ_k of their common mean. Under shifts covariances stay
//! as they are, and the Gram matrix becomes G + Σ_k (s_k Δ_kᵀ + Δ_k s_kᵀ + N_k Δ_k Δ_kᵀ), s_k = N_k μ_k.

use std::collections::BTreeMap;

use merganser_linalg::{Matrix, dot};
use serde::Serialize;

use super::adversarial::{Probes, nearest_prototypes};
use super::semantic::{Bandwidth, displacements, distance};
use super::{Anchors, FitKind, FitOptions};
use crate::error::{Error, Result, check_range, check_size};
use crate::stats::Stats;

/// A kernel that carries less than this share of the weight is said not to reach the anchors.
const REACH: f64 = 0.5;
/// Classes named in a message.
const NAMED: usize = 8;

/// How prototypes are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By probes that look like their class: adversarial drift compensation.
    Adversarial,
    /// By the anchors around them: semantic drift compensation.
    Semantic,
    /// All by one vector, the mean drift of the anchors.
    Mean,
    /// All by one affine map, fitted to the anchors.
    Affine,
}

impl Method {
    /// Its short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Adversarial => "adc",
            Self::Semantic => "sdc",
            Self::Mean => "mean",
            Self::Affine => "affine",
        }
    }
}

/// Settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CarryOptions {
    /// How.
    pub method: Method,
    /// σ of semantic drift compensation, also where it stands in for the adversarial one.
    pub bandwidth: Bandwidth,
    /// Fewest probes that must look like a class for them to speak for it.
    pub least: usize,
    /// Quantile of the lengths of the samples' drifts beyond which no Δ_k goes; none for no limit.
    pub cap: Option<f64>,
    /// For an affine map: strength of the ridge; chosen on anchors held out where none is given.
    pub ridge: Option<f64>,
}

impl CarryOptions {
    /// The usual settings of a method: σ = 0.3, ten probes, the 99th percentile.
    pub fn new(method: Method) -> Self {
        Self {
            method,
            bandwidth: Bandwidth::Fixed(0.3),
            least: 10,
            cap: Some(0.99),
            ridge: None,
        }
    }
}

/// What both models say about samples.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// Samples of the present data.
    pub anchors: Option<Anchors>,
    /// Samples made to look like the classes.
    pub probes: Option<Probes>,
}

/// How a class moved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassDrift {
    /// The class.
    pub class: usize,
    /// The method that moved it: another than the one asked for where too few probes reached it.
    pub method: &'static str,
    /// Probes that were meant to look like it.
    pub probes: Option<usize>,
    /// Probes whose old feature is nearer to its prototype than to any other.
    pub successes: Option<usize>,
    /// Mean distance of its probes to the prototype in the old space, over what it was before they were changed.
    pub closer: Option<f64>,
    /// Distance of the new prototype from the old. Absent if the two spaces differ in dimension.
    pub shift: Option<f64>,
    /// Whether it was held to the limit.
    pub capped: bool,
    /// |Δ_k|² over the mean |n − o|² of the samples it is the mean of: near 1 if they agree.
    pub share: Option<f64>,
    /// σ, where anchors around the prototype moved it.
    pub sigma: Option<f64>,
    /// The share of the anchors' weight that depends on their distance.
    pub kernel: Option<f64>,
}

/// What became of all.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Carried {
    /// The method that was asked for.
    pub method: &'static str,
    /// Number of anchors.
    pub anchors: usize,
    /// Number of probes.
    pub probes: usize,
    /// The limit of |Δ_k|.
    pub limit: Option<f64>,
    /// The classes in order.
    pub classes: Vec<ClassDrift>,
    /// Warnings.
    pub notes: Vec<String>,
}

/// Which probes look like their target to the old model, and the mean drift of those that do; none if none does. `target` is
/// a row of `prototypes`.
///
/// # Errors
/// If sizes differ.
pub fn kept_drift(
    old: &Matrix,
    new: &Matrix,
    prototypes: &Matrix,
    target: usize,
) -> Result<(Vec<bool>, Option<Vec<f64>>)> {
    check_pair(old, new, prototypes.cols())?;
    let kept: Vec<bool> = nearest_prototypes(prototypes, old)
        .into_iter()
        .map(|nearest| nearest == target)
        .collect();
    let rows: Vec<usize> = (0..kept.len()).filter(|&i| kept[i]).collect();
    let shift = if rows.is_empty() {
        None
    } else {
        Some(super::shift(
            &old.gather_rows(&rows),
            &new.gather_rows(&rows),
        )?)
    };
    Ok((kept, shift))
}

fn check_pair(old: &Matrix, new: &Matrix, dim: usize) -> Result<()> {
    check_size(
        || "number of new features, one for each of the old".into(),
        new.rows(),
        old.rows(),
    )?;
    check_size(
        || "length of the old features, which must be that of the prototypes".into(),
        old.cols(),
        dim,
    )?;
    check_size(
        || "length of the new features, which a shift needs to be that of the old".into(),
        new.cols(),
        dim,
    )?;
    old.check_finite()?;
    Ok(new.check_finite()?)
}

/// The classes of statistics, how many features each has, and their means.
struct Prototypes {
    classes: Vec<usize>,
    counts: Vec<f64>,
    means: Matrix,
}

impl Prototypes {
    fn of(stats: &Stats) -> Result<Self> {
        let mut rows: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, &class) in stats.classes.iter().enumerate() {
            rows.entry(class).or_default().push(i);
        }
        if rows.is_empty() {
            return Err(Error::Unfit(
                "the statistics hold no feature: there is no prototype to move".into(),
            ));
        }
        let mut means = Matrix::zeros(rows.len(), stats.dim());
        let mut counts = Vec::with_capacity(rows.len());
        for (k, rows) in rows.values().enumerate() {
            let count: f64 = rows.iter().map(|&i| stats.counts[i] as f64).sum();
            for &i in rows {
                let weight = stats.counts[i] as f64 / count;
                for (sum, x) in means.row_mut(k).iter_mut().zip(stats.means.row(i)) {
                    *sum += weight * x;
                }
            }
            counts.push(count);
        }
        means.check_finite()?;
        Ok(Self {
            classes: rows.into_keys().collect(),
            counts,
            means,
        })
    }
}

impl Stats {
    /// The classes that have features, in order, and the mean of each: what probes have to look like.
    ///
    /// # Errors
    /// If there is no class, or a mean is not finite.
    pub fn prototypes(&self) -> Result<(Vec<usize>, Matrix)> {
        let all = Prototypes::of(self)?;
        Ok((all.classes, all.means))
    }
}

/// Statistics of the old space taken to the new one, and how each class moved.
///
/// # Errors
/// If the evidence the method needs is missing, sizes do not fit, a setting is out of range, or too few probes reach a class
/// and there are no anchors to move it by.
pub fn carry(
    stats: &Stats,
    evidence: &Evidence,
    options: &CarryOptions,
) -> Result<(Stats, Carried)> {
    let prototypes = Prototypes::of(stats)?;
    let mut report = Carried {
        method: options.method.name(),
        anchors: evidence.anchors.as_ref().map_or(0, |a| a.old().rows()),
        probes: evidence.probes.as_ref().map_or(0, |p| p.old.rows()),
        limit: None,
        classes: Vec::new(),
        notes: Vec::new(),
    };
    if let Some(anchors) = &evidence.anchors {
        anchors.old().check_finite()?;
        anchors.new_space().check_finite()?;
    }
    let missing =
        |what: &str| Error::Unfit(format!("the method {} needs {what}", options.method.name()));
    let anchors = || {
        let what = "the features of the same samples by both models";
        evidence.anchors.as_ref().ok_or_else(|| missing(what))
    };
    let shifts = match options.method {
        Method::Adversarial => {
            let what = "probes: samples changed to look like the classes, as both models see them";
            let probes = evidence.probes.as_ref().ok_or_else(|| missing(what))?;
            adversarial(&prototypes, probes, evidence, options, &mut report)?
        }
        Method::Semantic => {
            let all: Vec<usize> = (0..prototypes.classes.len()).collect();
            semantic(&prototypes, &all, anchors()?, options, &mut report)?
        }
        Method::Mean | Method::Affine => {
            let out = mapped(stats, &prototypes, anchors()?, options, &mut report)?;
            return in_range(out, report);
        }
    };
    let out = moved(stats, &prototypes, shifts, evidence, options, &mut report)?;
    in_range(out, report)
}

/// Refuses statistics that have left the range of numbers.
fn in_range(stats: Stats, report: Carried) -> Result<(Stats, Carried)> {
    if stats.means.check_finite().is_err() {
        return Err(Error::Unfit(
            "the moved means are not finite: the features are too large for their squares or sums"
                .into(),
        ));
    }
    Ok((stats, report))
}

/// Moves all by one map that is fitted to the anchors.
fn mapped(
    stats: &Stats,
    prototypes: &Prototypes,
    anchors: &Anchors,
    options: &CarryOptions,
    report: &mut Carried,
) -> Result<Stats> {
    let affine = options.method == Method::Affine;
    let fit = FitOptions {
        kind: if affine {
            FitKind::Affine
        } else {
            FitKind::Shift
        },
        ridge: options.ridge,
    };
    let (drift, found) = anchors.fit("old", "new", &fit)?;
    let out = stats.adapt(&drift)?;
    if affine && options.ridge.is_none() && found.held_out.is_empty() {
        report.notes.push(format!(
            "{} samples are too few to choose the ridge on some held out; it is 0.1",
            report.anchors
        ));
    }
    let after = Prototypes::of(&out)?;
    for (k, &class) in prototypes.classes.iter().enumerate() {
        let same = out.dim() == stats.dim();
        report.classes.push(ClassDrift {
            shift: same.then(|| distance(after.means.row(k), prototypes.means.row(k)).sqrt()),
            share: found.share.filter(|_| !affine),
            ..ClassDrift::new(class, options.method)
        });
    }
    Ok(out)
}

impl ClassDrift {
    fn new(class: usize, method: Method) -> Self {
        Self {
            class,
            method: method.name(),
            probes: None,
            successes: None,
            closer: None,
            shift: None,
            capped: false,
            share: None,
            sigma: None,
            kernel: None,
        }
    }
}

/// Moves the prototypes numbered `which` by the anchors around them: the shift of each, and its entry in the report.
fn semantic(
    prototypes: &Prototypes,
    which: &[usize],
    anchors: &Anchors,
    options: &CarryOptions,
    report: &mut Carried,
) -> Result<Vec<Vec<f64>>> {
    let found = displacements(
        anchors,
        &prototypes.means.gather_rows(which),
        options.bandwidth,
    )?;
    let mut far = Vec::new();
    for (&k, local) in which.iter().zip(&found) {
        let class = prototypes.classes[k];
        if local.kernel < REACH {
            far.push(class);
        }
        report.classes.push(ClassDrift {
            share: local.share,
            sigma: Some(local.sigma),
            kernel: Some(local.kernel),
            ..ClassDrift::new(class, Method::Semantic)
        });
    }
    if !far.is_empty() {
        let all = if found.iter().all(|local| local.kernel < 1e-3) {
            ", as the method mean takes it"
        } else {
            ""
        };
        report.notes.push(format!(
            "sigma is too small for {}: hardly any sample lies within it, and what is taken is nearly the mean of all \
             samples{all}; a sigma of auto follows the scale of the features",
            named(&far)
        ));
    }
    Ok(found.into_iter().map(|local| local.shift).collect())
}

/// Moves every prototype by the probes that look like it, or where they are too few by the anchors around it.
fn adversarial(
    prototypes: &Prototypes,
    probes: &Probes,
    evidence: &Evidence,
    options: &CarryOptions,
    report: &mut Carried,
) -> Result<Vec<Vec<f64>>> {
    check_pair(&probes.old, &probes.new, prototypes.means.cols())?;
    check_size(
        || "number of targets, one a probe".into(),
        probes.targets.len(),
        probes.old.rows(),
    )?;
    if options.least == 0 {
        return Err(Error::Unfit(
            "at least one probe has to reach a class to speak for it".into(),
        ));
    }
    let mut members = vec![Vec::new(); prototypes.classes.len()];
    for (i, target) in probes.targets.iter().enumerate() {
        let Ok(k) = prototypes.classes.binary_search(target) else {
            return Err(Error::Unfit(format!(
                "probe {i} has the target {target}; the statistics have {}",
                named(&prototypes.classes)
            )));
        };
        members[k].push(i);
    }
    let mut shifts = Vec::with_capacity(members.len());
    let (mut few, mut farther) = (Vec::new(), Vec::new());
    for (k, members) in members.iter().enumerate() {
        let (old, new) = (
            probes.old.gather_rows(members),
            probes.new.gather_rows(members),
        );
        let (kept, shift) = kept_drift(&old, &new, &prototypes.means, k)?;
        let successes = kept.iter().filter(|&&kept| kept).count();
        let class = prototypes.classes[k];
        let closer = probes.before.as_ref().and_then(|before| {
            let before: f64 = members.iter().filter_map(|&i| before.get(i)).sum();
            let after: f64 = (0..old.rows())
                .map(|i| distance(old.row(i), prototypes.means.row(k)).sqrt())
                .sum();
            (before > 0.0).then(|| after / before)
        });
        if closer.is_some_and(|closer| closer > 1.0) {
            farther.push(class);
        }
        report.classes.push(ClassDrift {
            probes: Some(members.len()),
            successes: Some(successes),
            closer,
            share: shift
                .as_ref()
                .and_then(|shift| agreement(&old, &new, &kept, shift)),
            ..ClassDrift::new(class, Method::Adversarial)
        });
        if successes < options.least {
            few.push(k);
        }
        shifts.push(shift.unwrap_or_default());
    }
    if !farther.is_empty() {
        report.notes.push(format!(
            "the probes of {} ended farther from the prototype than they began: alpha is too large",
            named(&farther)
        ));
    }
    if few.is_empty() {
        return Ok(shifts);
    }
    let classes: Vec<usize> = few.iter().map(|&k| prototypes.classes[k]).collect();
    let Some(anchors) = &evidence.anchors else {
        return Err(Error::Unfit(format!(
            "fewer than {} probes look like {} to the old model, and there are no other samples to move them by; give the \
             features of ordinary samples by both models, make more probes, or ask for fewer",
            options.least,
            named(&classes)
        )));
    };
    report.notes.push(format!(
        "fewer than {} probes look like {} to the old model: moved by semantic drift compensation instead",
        options.least,
        named(&classes)
    ));
    let before = report.classes.len();
    let instead = semantic(prototypes, &few, anchors, options, report)?;
    let entries: Vec<ClassDrift> = report.classes.drain(before..).collect();
    for ((&k, shift), entry) in few.iter().zip(instead).zip(entries) {
        shifts[k] = shift;
        let tried = &report.classes[k];
        report.classes[k] = ClassDrift {
            probes: tried.probes,
            successes: tried.successes,
            closer: tried.closer,
            ..entry
        };
    }
    Ok(shifts)
}

/// |Δ|² over the mean square of the drifts it is the mean of.
fn agreement(old: &Matrix, new: &Matrix, kept: &[bool], shift: &[f64]) -> Option<f64> {
    let rows = (0..kept.len()).filter(|&i| kept[i]);
    let (count, square) = rows.fold((0, 0.0), |(count, sum), i| {
        (count + 1, sum + distance(new.row(i), old.row(i)))
    });
    let mean = square / f64::from(count.max(1));
    (mean > 0.0).then(|| (dot(shift, shift) / mean).min(1.0))
}

/// Holds the shifts to the limit, and moves the statistics by them.
fn moved(
    stats: &Stats,
    prototypes: &Prototypes,
    mut shifts: Vec<Vec<f64>>,
    evidence: &Evidence,
    options: &CarryOptions,
    report: &mut Carried,
) -> Result<Stats> {
    report.limit = options
        .cap
        .map(|quantile| limit(evidence, quantile))
        .transpose()?;
    let mut capped = Vec::new();
    for (shift, entry) in shifts.iter_mut().zip(&mut report.classes) {
        let mut length = dot(shift, shift).sqrt();
        // A mean of equal drifts may be longer than they are by rounding.
        if let Some(limit) = report.limit.filter(|limit| length > limit * (1.0 + 1e-9)) {
            for x in shift.iter_mut() {
                *x *= limit / length;
            }
            length = limit;
            entry.capped = true;
            capped.push(entry.class);
        }
        entry.shift = Some(length);
    }
    if let (Some(limit), Some(quantile), false) = (report.limit, options.cap, capped.is_empty()) {
        report.notes.push(format!(
            "the shift of {} was shortened to {limit:.4}, the {quantile} quantile of the lengths of the samples' own drifts",
            named(&capped)
        ));
    }
    let mut out = stats.clone();
    for (i, class) in stats.classes.iter().enumerate() {
        if let Ok(k) = prototypes.classes.binary_search(class) {
            for (x, by) in out.means.row_mut(i).iter_mut().zip(&shifts[k]) {
                *x += by;
            }
        }
    }
    if let Some(gram) = &mut out.gram {
        for (k, shift) in shifts.iter().enumerate() {
            let (count, mean) = (prototypes.counts[k], prototypes.means.row(k));
            for i in 0..gram.rows() {
                for j in 0..gram.cols() {
                    let more = mean[i] * shift[j] + shift[i] * mean[j] + shift[i] * shift[j];
                    gram.set(i, j, gram.get(i, j) + count * more);
                }
            }
        }
        gram.check_finite()?;
    }
    out.means.check_finite()?;
    Ok(out)
}

/// The quantile of the lengths of the drifts of the anchors, or if there are none of the probes: the smallest length that so
/// large a share of them does not exceed.
fn limit(evidence: &Evidence, quantile: f64) -> Result<f64> {
    check_range(
        "the quantile of the cap",
        quantile,
        (1e-6, 1.0),
        "above 0 and at most 1",
    )?;
    let pair = match (&evidence.anchors, &evidence.probes) {
        (Some(anchors), _) => Some((anchors.old(), anchors.new_space())),
        (None, probes) => probes.as_ref().map(|probes| (&probes.old, &probes.new)),
    };
    let mut lengths: Vec<f64> = pair.map_or_else(Vec::new, |(old, new)| {
        (0..old.rows())
            .map(|i| distance(new.row(i), old.row(i)).sqrt())
            .collect()
    });
    lengths.sort_by(f64::total_cmp);
    let at = (quantile * lengths.len() as f64).ceil() as usize;
    Ok(lengths
        .get(at.saturating_sub(1))
        .copied()
        .unwrap_or(f64::INFINITY))
}

/// "class 3", "classes 1, 2 and 4", or some of many.
fn named(classes: &[usize]) -> String {
    let list = |part: &[usize]| {
        let words: Vec<String> = part.iter().map(ToString::to_string).collect();
        words.join(", ")
    };
    match classes {
        [] => "no class".into(),
        [one] => format!("class {one}"),
        [first @ .., last] if classes.len() <= NAMED => {
            format!("classes {} and {last}", list(first))
        }
        all => format!(
            "classes {} and {} more",
            list(&all[..NAMED]),
            all.len() - NAMED
        ),
    }
}
