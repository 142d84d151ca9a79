//! How models differ from their base, measured in one pass over all of them.
//!
//! With the task vectors d_t = x_t − base, per tensor, per layer and in total: ‖d_t‖ and ‖d_t‖ / ‖base‖; the share of
//! elements with d_t = 0; cos(d_s, d_t) = ⟨d_s, d_t⟩ / (‖d_s‖ ‖d_t‖); the share of elements where d_s and d_t have
//! opposite signs (the conflicts that sign election resolves, Yadav et al., NeurIPS 2023, arXiv 2306.01708). All follow
//! from sums over elements, so layers and totals are sums of tensors. Differences are taken in f32, sums in f64 in a
//! fixed order: the numbers do not depend on the number of threads.

use std::collections::BTreeSet;

use merganser_kernels::reduce;
use merganser_methods::{CHUNK, Grain, Input, Settings, Source, TensorGroup, View};
use merganser_plan::{Found, Model, Role};
use merganser_store::Dtype;
use rayon::prelude::*;

use crate::{RunError, sources};

/// Bytes of a piece of a tensor that is compared as it is.
const PIECE: u64 = 1 << 20;

/// Sums over some elements of the base and of `count` other models.
#[derive(Debug, Clone, PartialEq)]
pub struct Sums {
    /// Number of other models.
    pub count: usize,
    /// Number of elements.
    pub elements: u64,
    /// Σ base².
    pub base: f64,
    /// By model, elements whose task vector is 0.
    pub unchanged: Vec<u64>,
    /// Σ d_s d_t, by s · count + t.
    pub dots: Vec<f64>,
    /// Elements where d_s and d_t have opposite signs, by s · count + t.
    pub conflicts: Vec<u64>,
}

impl Sums {
    /// Sums over no element.
    pub fn new(count: usize) -> Self {
        Self {
            count,
            elements: 0,
            base: 0.0,
            unchanged: vec![0; count],
            dots: vec![0.0; count * count],
            conflicts: vec![0; count * count],
        }
    }

    /// Adds the sums over other elements of the same models.
    pub fn add(&mut self, other: &Self) {
        self.elements += other.elements;
        self.base += other.base;
        let pairs = |a: &mut [u64], b: &[u64]| a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        pairs(&mut self.unchanged, &other.unchanged);
        pairs(&mut self.conflicts, &other.conflicts);
        for (a, b) in self.dots.iter_mut().zip(&other.dots) {
            *a += b;
        }
    }

    /// Length of task vector `t`, ‖d_t‖.
    pub fn norm(&self, t: usize) -> f64 {
        self.dots[t * self.count + t].sqrt()
    }

    /// Length of task vector `t` relative to the base's, ‖d_t‖ / ‖base‖; `None` if the base is 0.
    pub fn relative(&self, t: usize) -> Option<f64> {
        (self.base > 0.0).then(|| self.norm(t) / self.base.sqrt())
    }

    /// Share of elements that model `t` has in common with the base, 0 to 1.
    pub fn unchanged(&self, t: usize) -> f64 {
        self.unchanged[t] as f64 / self.elements.max(1) as f64
    }

    /// Cosine of the angle between two task vectors; `None` if one of them is 0.
    pub fn cosine(&self, s: usize, t: usize) -> Option<f64> {
        let lengths = self.norm(s) * self.norm(t);
        (lengths > 0.0).then(|| (self.dots[s * self.count + t] / lengths).clamp(-1.0, 1.0))
    }

    /// Share of elements where two task vectors have opposite signs, 0 to 1.
    pub fn conflict(&self, s: usize, t: usize) -> f64 {
        self.conflicts[s * self.count + t] as f64 / self.elements.max(1) as f64
    }

    fn is_finite(&self) -> bool {
        self.base.is_finite() && self.dots.iter().all(|dot| dot.is_finite())
    }

    fn take(&mut self, base: &[f32], deltas: &[&[f32]]) {
        self.elements += base.len() as u64;
        self.base += reduce::norm_sq(base);
        for (s, a) in deltas.iter().enumerate() {
            self.unchanged[s] += a.len() as u64 - reduce::count_nonzero(a);
            self.dots[s * self.count + s] += reduce::norm_sq(a);
            for (t, b) in deltas.iter().enumerate().skip(s + 1) {
                let (dot, opposite) = (reduce::dot(a, b), opposite(a, b));
                for at in [s * self.count + t, t * self.count + s] {
                    self.dots[at] += dot;
                    self.conflicts[at] += opposite;
                }
            }
        }
    }
}

/// Elements of opposite signs. A block's count fits 32 bits, which vectorises better than 64.
fn opposite(a: &[f32], b: &[f32]) -> u64 {
    let differ = |(a, b): (&f32, &f32)| u32::from((*a > 0.0 && *b < 0.0) || (*a < 0.0 && *b > 0.0));
    u64::from(a.iter().zip(b).map(differ).sum::<u32>())
}

/// One tensor that all models have.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// Its name in the base.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its type, by model.
    pub dtypes: Vec<Dtype>,
    /// What was found.
    pub result: Difference,
}

/// How one tensor of the other models differs from the base's.
#[derive(Debug, Clone, PartialEq)]
pub enum Difference {
    /// Real numbers: the sums over its elements.
    Deltas(Sums),
    /// Whole numbers or switches: by model, whether its bytes are the base's.
    Equal(Vec<bool>),
}

/// A tensor that could not be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its name.
    pub name: String,
    /// Why: who lacks it, which shapes it has, where it is not finite.
    pub reason: String,
}

/// The outcome of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Every tensor that all models have, in layer order.
    pub tensors: Vec<Compared>,
    /// The others.
    pub skipped: Vec<Skipped>,
    /// Sums over each layer (`model.layers.0`), and over what lies outside of layers (`outside the layers`).
    pub layers: Vec<(String, Sums)>,
    /// Sums over all tensors of real numbers.
    pub total: Sums,
}

/// Name under which [`Comparison::layers`] has the tensors that belong to no layer.
pub const OUTSIDE: &str = "outside the layers";

/// Compares models with the first of them, on the current rayon pool.
///
/// # Errors
/// If a tensor cannot be read.
pub fn compare(models: &[Model]) -> Result<Comparison, RunError> {
    let count = models.len().saturating_sub(1);
    let mut skipped = Vec::new();
    let mut rows = Vec::new();
    for name in names(models) {
        match row(models, &name) {
            Ok(row) => rows.push(row),
            Err(reason) => skipped.push(Skipped { name, reason }),
        }
    }
    // Small tensors side by side, large ones chunk by chunk: either way a thread holds one chunk of every model.
    let (small, large): (Vec<&Row>, Vec<&Row>) =
        rows.iter().partition(|row| row.elements() <= CHUNK);
    let mut done: Vec<(&Row, Difference)> = small
        .into_par_iter()
        .map(|row| Ok((row, difference(models, row)?)))
        .collect::<Result<_, RunError>>()?;
    for row in large {
        done.push((row, difference(models, row)?));
    }
    done.sort_by_key(|(row, _)| place(&row.name));
    let mut total = Sums::new(count);
    let mut layers: Vec<(String, Sums)> = Vec::new();
    let mut outside = Sums::new(count);
    let mut tensors = Vec::new();
    for (row, result) in done {
        if let Difference::Deltas(sums) = &result {
            if !sums.is_finite() {
                let reason = not_finite(models, sums);
                skipped.push(Skipped {
                    name: row.name.clone(),
                    reason,
                });
                continue;
            }
            total.add(sums);
            match Role::of(&row.name) {
                Role::Layer { stack, index, .. } => {
                    let label = format!("{stack}.{index}");
                    // Tensors come in layer order.
                    match layers.last_mut() {
                        Some((last, layer)) if *last == label => layer.add(sums),
                        _ => layers.push((label, sums.clone())),
                    }
                }
                Role::Pre | Role::Post => outside.add(sums),
            }
        }
        tensors.push(Compared {
            name: row.name.clone(),
            shape: row.shape.clone(),
            dtypes: row.dtypes.clone(),
            result,
        });
    }
    if outside.elements > 0 {
        layers.push((OUTSIDE.into(), outside));
    }
    Ok(Comparison {
        tensors,
        skipped,
        layers,
        total,
    })
}

/// Sorting key: stack and layer by number, then name; what lies outside of layers comes first.
pub fn place(name: &str) -> (Option<(&str, usize)>, &str) {
    match Role::of(name) {
        Role::Layer {
            stack,
            index,
            suffix,
        } => (Some((stack, index)), suffix),
        Role::Pre | Role::Post => (None, name),
    }
}

/// The same tensor of all models.
pub(crate) struct Row {
    pub(crate) name: String,
    /// Its name in each model.
    pub(crate) found: Vec<String>,
    pub(crate) dtypes: Vec<Dtype>,
    pub(crate) shape: Vec<usize>,
}

/// The tensors that all models have in one shape, by name.
pub(crate) fn rows(models: &[Model]) -> Vec<Row> {
    let names = names(models);
    names
        .iter()
        .filter_map(|name| row(models, name).ok())
        .collect()
}

impl Row {
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Names of all tensors: the base's, and those of the others that are none of the base's under another name.
pub(crate) fn names(models: &[Model]) -> BTreeSet<String> {
    let Some((base, others)) = models.split_first() else {
        return BTreeSet::new();
    };
    let mut names: BTreeSet<String> = base.names().map(str::to_owned).collect();
    for name in others.iter().flat_map(Model::names) {
        if !matches!(base.find(name), Some(Found::Same(_) | Found::Renamed(_))) {
            names.insert(name.to_owned());
        }
    }
    names
}

pub(crate) fn row(models: &[Model], name: &str) -> Result<Row, String> {
    let found: Vec<Option<Found>> = models.iter().map(|model| model.find(name)).collect();
    let lacking: Vec<&str> = models
        .iter()
        .zip(&found)
        .filter_map(|(model, found)| found.is_none().then_some(model.label.as_str()))
        .collect();
    if !lacking.is_empty() {
        return Err(format!("not in {}", lacking.join(", ")));
    }
    let found: Vec<String> = found
        .iter()
        .flatten()
        .map(|found| found.name().to_owned())
        .collect();
    let described: Vec<(Dtype, Vec<usize>)> = models
        .iter()
        .zip(&found)
        .filter_map(|(model, name)| {
            model
                .describe(name)
                .map(|(dtype, shape)| (dtype, shape.to_vec()))
        })
        .collect();
    let each = |texts: Vec<String>| {
        let all = models.iter().zip(texts);
        all.map(|(model, text)| format!("{text} in {}", model.label))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let (dtype, shape) = described.first().cloned().ok_or("no model has it")?;
    if described.iter().any(|(_, other)| *other != shape) {
        let shapes = described.iter().map(|(_, shape)| format!("{shape:?}"));
        return Err(format!("shape {}", each(shapes.collect())));
    }
    let mixes = |other: Dtype| other != dtype && !(other.is_float() && dtype.is_float());
    if described.iter().any(|(other, _)| mixes(*other)) {
        let dtypes = described.iter().map(|(dtype, _)| dtype.to_string());
        return Err(format!("type {}", each(dtypes.collect())));
    }
    let dtypes = described.into_iter().map(|(dtype, _)| dtype).collect();
    Ok(Row {
        name: name.to_owned(),
        found,
        dtypes,
        shape,
    })
}

fn difference(models: &[Model], row: &Row) -> Result<Difference, RunError> {
    if !row.dtypes.iter().all(|dtype| dtype.is_float()) {
        return Ok(Difference::Equal(equal(models, row)?));
    }
    let count = models.len() - 1;
    let opened: Vec<Box<dyn Source + '_>> = models
        .iter()
        .zip(&row.found)
        .map(|(model, name)| sources::open(model, name))
        .collect::<Result<_, _>>()?;
    let inputs = models
        .iter()
        .zip(&opened)
        .map(|(model, source)| Input {
            model: &model.label,
            source: source.as_ref(),
            companion: None,
            round_to: None,
        })
        .collect();
    let settings = Settings::default();
    let group = TensorGroup {
        name: &row.name,
        shape: &row.shape,
        inputs,
        base: Some(0),
        settings: &settings,
        seed: 0,
        allow_nonfinite: true,
    };
    let chunks = group.scan(
        Grain::Elements,
        View::Deltas,
        |_| Sums::new(count),
        |sums, block| sums.take(block.base(), &block.others()),
    )?;
    let mut sums = Sums::new(count);
    for chunk in &chunks {
        sums.add(chunk);
    }
    Ok(Difference::Deltas(sums))
}

/// By model but the base, whether its bytes are the base's.
fn equal(models: &[Model], row: &Row) -> Result<Vec<bool>, RunError> {
    let stored = |i: usize| {
        let model: &Model = &models[i];
        let info = model
            .info(&row.found[i])
            .ok_or_else(|| RunError::Vanished {
                tensor: row.found[i].clone(),
                model: model.label.clone(),
            })?;
        Ok::<_, RunError>((&model.checkpoint, info))
    };
    let (base, info) = stored(0)?;
    let mut result = Vec::new();
    let (mut bytes, mut other) = (Vec::new(), Vec::new());
    for i in 1..models.len() {
        let (checkpoint, its) = stored(i)?;
        let mut same = true;
        let mut at = 0;
        while same && at < info.nbytes {
            let len = PIECE.min(info.nbytes - at) as usize;
            bytes.resize(len, 0);
            other.resize(len, 0);
            base.read(info, at, &mut bytes)?;
            checkpoint.read(its, at, &mut other)?;
            same = bytes == other;
            at += len as u64;
        }
        result.push(same);
    }
    Ok(result)
}

/// Names the models whose values are not finite.
fn not_finite(models: &[Model], sums: &Sums) -> String {
    let bad = |i: usize| match i.checked_sub(1) {
        None => !sums.base.is_finite(),
        // The base's values spread to every difference: only it is to blame then.
        Some(t) => sums.base.is_finite() && !sums.norm(t).is_finite(),
    };
    let labels: Vec<&str> = (0..models.len())
        .filter(|i| bad(*i))
        .map(|i| models[i].label.as_str())
        .collect();
    format!("holds NaN or infinity in {}", labels.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(base: &[f32], deltas: &[&[f32]]) -> Sums {
        let mut sums = Sums::new(deltas.len());
        sums.take(base, deltas);
        sums
    }

    #[test]
    fn the_numbers_follow_their_definitions() {
        let sums = sums(
            &[2.0, 0.0, 0.0, 0.0],
            &[&[3.0, 4.0, 0.0, 0.0], &[-4.0, 3.0, 0.0, 1.0], &[0.0; 4]],
        );
        assert_eq!(sums.norm(0), 5.0);
        assert_eq!(sums.relative(0), Some(2.5));
        assert_eq!(
            (sums.unchanged(0), sums.unchanged(1), sums.unchanged(2)),
            (0.5, 0.25, 1.0)
        );
        assert_eq!(sums.cosine(0, 0), Some(1.0));
        assert_eq!(sums.cosine(0, 1), Some(0.0));
        assert_eq!(sums.cosine(0, 2), None);
        assert_eq!(
            (
                sums.conflict(0, 1),
                sums.conflict(1, 0),
                sums.conflict(0, 2)
            ),
            (0.25, 0.25, 0.0)
        );
    }

    #[test]
    fn sums_of_pieces_are_the_sums_of_the_whole() {
        let (base, a, b) = ([1.0, 2.0, 3.0], [1.0, -1.0, 0.0], [-1.0, -1.0, 4.0]);
        let mut pieces = sums(&base[..1], &[&a[..1], &b[..1]]);
        pieces.add(&sums(&base[1..], &[&a[1..], &b[1..]]));
        assert_eq!(pieces, sums(&base, &[&a, &b]));
        assert_eq!((pieces.elements, pieces.conflict(0, 1)), (3, 1.0 / 3.0));
    }

    #[test]
    fn a_base_of_zeros_has_no_relative_length() {
        assert_eq!(sums(&[0.0], &[&[1.0]]).relative(0), None);
        assert_eq!(Sums::new(1).unchanged(0), 0.0);
    }

    #[test]
    fn tiny_values_of_opposite_signs_conflict() {
        // Their product would round to zero.
        assert_eq!(opposite(&[1e-40, -1e-30, 0.0], &[-1e-40, 1e-30, 1.0]), 2);
    }

    #[test]
    fn layers_are_ordered_by_number() {
        let mut names = ["h.10.w", "norm", "h.2.w", "h.2.b"];
        names.sort_by_key(|name| place(name));
        assert_eq!(names, ["norm", "h.2.b", "h.2.w", "h.10.w"]);
    }
}
