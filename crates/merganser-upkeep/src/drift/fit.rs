//! Fits a drift to anchors, the same texts or images embedded by both versions of a model, and says what it is worth.
//!
//! * shift: Δ = mean(n − o) (query drift compensation, arXiv 2506.00037).
//! * orthogonal: Q = U Vᵀ of Σ (n − n̄)(o − ō)ᵀ = U Σ Vᵀ, t = n̄ − Q ō (Schönemann 1966).
//! * affine: [A b] = argmin Σ |A o + b − n|² + r |A|², b free; r = ρ · tr(Σ (o − ō)(o − ō)ᵀ) / d, so that ρ does not
//!   depend on the scale or number of the anchors.
//!
//! How good a map is cannot be told from the anchors it was fitted to: an affine map of d numbers a row passes through d
//! anchors exactly. So the anchors are split into folds, and each fold is taken to the old space by maps fitted to the
//! others.

use std::collections::BTreeMap;
use std::fmt;

use merganser_linalg::{Matrix, Polar, Spd, Symmetric, dot, gemm};
use rayon::prelude::*;
use serde::Serialize;

use super::clusters::{centroids, cluster_shifts};
use super::transport::normalise;
use super::{Affine, Direction, Drift, Map};
use crate::error::{Error, Result, check_range, check_size};
use crate::rows::{centred, mean};

/// Fewest anchors that are split into folds.
const FEWEST: usize = 20;
/// Strengths of ridge regression that are tried where none is given.
const RIDGES: [f64; 4] = [1e-3, 1e-2, 1e-1, 1.0];
/// How far from 1 the length of vectors may be that are taken as unit vectors: what half precision leaves.
const UNIT: f64 = 2e-3;
/// A kind is preferred to a simpler one if it leaves less than this share of the other's error.
const BETTER: f64 = 0.9;
/// Error relative to the spread of the anchors below which nothing has to be done, and below which a map will do.
const NEGLIGIBLE: f64 = 0.02;
const GOOD: f64 = 0.15;

/// The same things embedded by both versions, row by row.
#[derive(Debug, Clone)]
pub struct Anchors {
    old: Matrix,
    new: Matrix,
    unit: bool,
}

/// A kind of map, its ridge, and the squared error and sum of cosines it leaves on some anchors.
type Judged = (&'static str, Option<f64>, f64, f64);

impl Anchors {
    /// Anchors of finite vectors. With `unit` they are scaled to length 1; without an answer they are where all of them
    /// have that length up to rounding.
    ///
    /// # Errors
    /// If the two differ in number, there are none, or a vector is zero where all should have length 1.
    pub fn new(mut old: Matrix, mut new: Matrix, unit: Option<bool>) -> Result<Self> {
        check_size(
            || "number of vectors of the new version, one for each of the old".into(),
            new.rows(),
            old.rows(),
        )?;
        if old.rows() == 0 {
            return Err(Error::Unfit("there are no anchors".into()));
        }
        let off = |rows: &Matrix| {
            (0..rows.rows())
                .map(|i| (norm(rows.row(i)) - 1.0).abs())
                .fold(0.0, f64::max)
        };
        let unit = unit.unwrap_or_else(|| off(&old) < UNIT && off(&new) < UNIT);
        if unit {
            for rows in [&mut old, &mut new] {
                if let Some(row) = (0..rows.rows()).find(|&i| norm(rows.row(i)) == 0.0) {
                    return Err(Error::Unfit(format!(
                        "vector {row} is zero and has no direction; take it out of both files"
                    )));
                }
                normalise(rows);
            }
        }
        Ok(Self { old, new, unit })
    }

    /// Their vectors in the old space.
    pub fn old(&self) -> &Matrix {
        &self.old
    }

    /// Their vectors in the new space.
    pub fn new_space(&self) -> &Matrix {
        &self.new
    }

    fn rows(&self, rows: &[usize]) -> Self {
        Self {
            old: self.old.gather_rows(rows),
            new: self.new.gather_rows(rows),
            unit: self.unit,
        }
    }

    fn same_size(&self) -> bool {
        self.old.cols() == self.new.cols()
    }
}

fn norm(x: &[f64]) -> f64 {
    dot(x, x).sqrt()
}

/// mean(new − old) over the rows.
///
/// # Errors
/// If the sizes differ or there is no row.
pub fn shift(old: &Matrix, new: &Matrix) -> Result<Vec<f64>> {
    check_size(|| "number of vectors".into(), new.rows(), old.rows())?;
    check_size(
        || "length of the new vectors, which a shift needs to be that of the old".into(),
        new.cols(),
        old.cols(),
    )?;
    check_size(|| "vectors".into(), usize::from(old.rows() > 0), 1)?;
    let mut difference = new.clone();
    difference.add_scaled(-1.0, old);
    Ok(mean(&difference))
}

/// The orthogonal Q and the t for which Q o + t is nearest to n over the rows, in the least squares. In directions that the
/// anchors do not show, Q turns as little as it can.
///
/// # Errors
/// If the sizes differ, there is no row, or the decomposition fails.
pub fn orthogonal(old: &Matrix, new: &Matrix) -> Result<Affine> {
    // Checks the sizes.
    shift(old, new)?;
    procrustes(old, new, f64::EPSILON)
}

fn procrustes(old: &Matrix, new: &Matrix, epsilon: f64) -> Result<Affine> {
    let (mean_old, mean_new) = (mean(old), mean(new));
    let mut cross = gemm::mul_tn(&centred(new, &mean_new), &centred(old, &mean_old));
    let dim = old.cols();
    let mut polar = Polar::of(&cross, epsilon)?;
    if polar.rank < dim {
        // The nearest rotation to the identity among the best: a pull towards it that only empty directions feel.
        let pull = match polar.nuclear_norm {
            0.0 => 1.0,
            norm => 1e-5 * norm / polar.rank.max(1) as f64,
        };
        for i in 0..dim {
            cross.set(i, i, cross.get(i, i) + pull);
        }
        polar = Polar::of(&cross, f64::EPSILON)?;
    }
    let turned = gemm::mul_nt(&Matrix::from_fn(1, dim, |_, j| mean_old[j]), &polar.factor);
    Ok(Affine {
        bias: mean_new
            .iter()
            .zip(turned.as_slice())
            .map(|(n, o)| n - o)
            .collect(),
        weight: polar.factor,
    })
}

/// The affine map from rows of `from` to rows of `to`, by ridge regression of strength ρ = `ridge`.
///
/// # Errors
/// If the numbers of rows differ, there is none, or ρ is negative.
pub fn affine(from: &Matrix, to: &Matrix, ridge: f64) -> Result<Affine> {
    Ok(affines(from, to, &[ridge])?.swap_remove(0))
}

/// The same for several strengths, with one Gram matrix.
fn affines(from: &Matrix, to: &Matrix, ridges: &[f64]) -> Result<Vec<Affine>> {
    check_size(|| "number of vectors".into(), to.rows(), from.rows())?;
    check_size(|| "vectors".into(), usize::from(from.rows() > 0), 1)?;
    let (mean_from, mean_to) = (mean(from), mean(to));
    let x = centred(from, &mean_from);
    let mut gram = Symmetric::zeros(from.cols());
    gram.add_rows(x.as_slice())?;
    let cross = gemm::mul_tn(&centred(to, &mean_to), &x);
    let scale = gram.trace() / from.cols() as f64;
    let gram: Matrix = gram.to_square();
    ridges
        .iter()
        .map(|&ridge| {
            check_range("the ridge", ridge, (0.0, 1e6), "from 0 to a million")?;
            // Anchors that are all the same say nothing but the shift.
            let weight = if scale > 0.0 {
                let (spd, _) = Spd::factor_escalating(gram.clone(), ridge * scale, 1e-12 * scale)?;
                let mut weight = spd.solve_rows(&cross);
                spd.refine(&cross, &mut weight, 2);
                weight
            } else {
                Matrix::zeros(to.cols(), from.cols())
            };
            let image = gemm::mul_nt(
                &Matrix::from_fn(1, mean_from.len(), |_, j| mean_from[j]),
                &weight,
            );
            let bias = mean_to
                .iter()
                .zip(image.as_slice())
                .map(|(n, o)| n - o)
                .collect();
            Ok(Affine { weight, bias })
        })
        .collect()
}

/// Which map is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FitKind {
    /// The simplest one that is not clearly worse than another on anchors held out; a shift where there are few.
    Auto,
    /// One vector.
    Shift,
    /// A rotation and a vector.
    Orthogonal,
    /// A matrix and a vector.
    Affine,
    /// A vector for each of so many clusters of the old space.
    Clusters(usize),
}

/// How a drift is fitted.
#[derive(Debug, Clone, Copy)]
pub struct FitOptions {
    /// Which map.
    pub kind: FitKind,
    /// Strength ρ of ridge regression; chosen on anchors held out where none is given.
    pub ridge: Option<f64>,
}

impl Default for FitOptions {
    fn default() -> Self {
        Self {
            kind: FitKind::Auto,
            ridge: None,
        }
    }
}

/// How well one kind of map takes anchors it was not fitted to back to the old space.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HeldOut {
    /// The kind.
    pub kind: &'static str,
    /// Strength of the ridge, for an affine map.
    pub ridge: Option<f64>,
    /// What is left of the mean square of the drift: 0 if the map explains all of it, 1 if it explains nothing.
    pub left: f64,
    /// Mean cosine with the anchors' old vectors.
    pub cosine: f64,
}

/// What to do about a drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Advice {
    /// Nothing: the spaces are the same for search.
    Nothing,
    /// Take queries to the old space.
    Compensate,
    /// Take queries to the old space for now, and embed the documents again.
    ReindexSoon,
    /// There are too few anchors to tell.
    MoreAnchors,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing has to be done",
            Self::Compensate => "compensate queries; the index can stay",
            Self::ReindexSoon => "compensate queries for now, and embed the documents again",
            Self::MoreAnchors => "too few anchors to tell",
        })
    }
}

/// What the anchors say about a drift.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diagnostics {
    /// Number of anchors.
    pub anchors: usize,
    /// Length of the vectors in the old space.
    pub dim: usize,
    /// Whether they have length 1.
    pub unit: bool,
    /// |Δ|, the length of the mean of new − old. Absent if the two spaces differ in dimension, like what follows from it.
    pub shift: Option<f64>,
    /// Its standard error: the length of the difference to be expected from other anchors, √(Σ variances / n).
    pub standard_error: Option<f64>,
    /// √ of the mean of |new − old|².
    pub drift: Option<f64>,
    /// |Δ|² / mean |new − old|²: the share of the drift that the mean explains.
    pub share: Option<f64>,
    /// Mean cosine of new and old vectors.
    pub cosine_before: Option<f64>,
    /// Mean cosine of new − Δ and old vectors.
    pub cosine_after: Option<f64>,
    /// √ of the mean square distance of the old vectors from their mean, the scale on which a drift is large or small.
    pub spread: f64,
    /// What each kind leaves on anchors held out; empty where there are too few.
    pub held_out: Vec<HeldOut>,
    /// The error that is left on anchors held out, relative to the spread of the anchors: mean square over mean square.
    pub error: Option<f64>,
    /// What to do.
    pub advice: Advice,
}

impl Anchors {
    /// Fits the drift from the version `from` to the version `to`.
    ///
    /// # Errors
    /// If the kind does not fit the anchors (a shift between spaces of different dimension, more clusters than anchors), or
    /// linear algebra fails.
    pub fn fit(&self, from: &str, to: &str, options: &FitOptions) -> Result<(Drift, Diagnostics)> {
        let n = self.old.rows();
        if !self.same_size() && !matches!(options.kind, FitKind::Auto | FitKind::Affine) {
            return Err(Error::Shape {
                what: "length of the new vectors".into(),
                found: self.new.cols().to_string(),
                expected: format!(
                    "{} as the old have, or --kind affine, which may change it",
                    self.old.cols()
                ),
            });
        }
        let mut held_out = self.held_out(options)?;
        let of = |held: &[HeldOut], kind: &str| held.iter().find(|h| h.kind == kind).cloned();
        let chosen = match options.kind {
            FitKind::Auto if !self.same_size() => FitKind::Affine,
            FitKind::Auto => simplest(&held_out, self.unit),
            kind => kind,
        };
        let ridge = options
            .ridge
            .or_else(|| of(&held_out, "affine").and_then(|h| h.ridge))
            .unwrap_or(0.1);
        let map = match chosen {
            FitKind::Auto | FitKind::Shift => Map::Shift(shift(&self.old, &self.new)?),
            FitKind::Orthogonal => Map::Orthogonal(orthogonal(&self.old, &self.new)?),
            FitKind::Affine => Map::Affine {
                forward: affine(&self.old, &self.new, ridge)?,
                backward: Some(affine(&self.new, &self.old, ridge)?),
            },
            FitKind::Clusters(k) => {
                let centroids = centroids(&self.old, k)?;
                let (shifts, _) = cluster_shifts(&centroids, &self.old, &self.new)?;
                Map::Clusters {
                    centroids,
                    shifts,
                    mean: shift(&self.old, &self.new)?,
                }
            }
        };
        // The kind that was fitted first, for whoever reads only one line.
        held_out.sort_by_key(|held| held.kind != map.kind());
        let left = of(&held_out, map.kind());
        let diagnostics = self.diagnostics(held_out, left.as_ref())?;
        let mut measured = BTreeMap::new();
        let mut note = |key: &str, value: Option<f64>| {
            if let Some(value) = value.filter(|x| x.is_finite()) {
                measured.insert(key.to_owned(), value);
            }
        };
        note("shift", diagnostics.shift);
        note("standard_error", diagnostics.standard_error);
        note("drift", diagnostics.drift);
        note("share", diagnostics.share);
        note("cosine_before", diagnostics.cosine_before);
        note("spread", Some(diagnostics.spread));
        note("error", diagnostics.error);
        if let Some(left) = &left {
            note("left", Some(left.left));
            note("cosine_after", Some(left.cosine));
        } else {
            note("cosine_after", diagnostics.cosine_after);
        }
        let drift = Drift {
            from: from.to_owned(),
            to: to.to_owned(),
            unit: self.unit,
            anchors: n,
            map,
            measured,
        };
        Ok((drift, diagnostics))
    }

    fn diagnostics(&self, held_out: Vec<HeldOut>, left: Option<&HeldOut>) -> Result<Diagnostics> {
        let n = self.old.rows() as f64;
        let mean_old = mean(&self.old);
        let spread = centred(&self.old, &mean_old).norm().powi(2) / n;
        let mut out = Diagnostics {
            anchors: self.old.rows(),
            dim: self.old.cols(),
            unit: self.unit,
            shift: None,
            standard_error: None,
            drift: None,
            share: None,
            cosine_before: None,
            cosine_after: None,
            spread: spread.sqrt(),
            held_out,
            error: None,
            advice: Advice::MoreAnchors,
        };
        if !self.same_size() {
            out.error = left.map(|held| held.left);
            out.advice = match out.error {
                None => Advice::MoreAnchors,
                Some(error) if error < GOOD => Advice::Compensate,
                Some(_) => Advice::ReindexSoon,
            };
            return Ok(out);
        }
        let delta = shift(&self.old, &self.new)?;
        let mut difference = self.new.clone();
        difference.add_scaled(-1.0, &self.old);
        let square = difference.norm().powi(2) / n;
        let mean_square = dot(&delta, &delta);
        out.shift = Some(mean_square.sqrt());
        out.drift = Some(square.sqrt());
        out.share = (square > 0.0).then(|| (mean_square / square).min(1.0));
        out.standard_error =
            (n > 1.0).then(|| ((square - mean_square).max(0.0) / (n - 1.0)).sqrt());
        out.cosine_before = Some(mean_cosine(&self.old, &self.new));
        out.cosine_after = Some(mean_cosine(&self.old, &centred(&self.new, &delta)));
        // Held out if it can be, else what the fit itself leaves.
        out.error = left
            .filter(|_| spread > 0.0)
            .map(|held| held.left * square / spread);
        out.advice = if square <= NEGLIGIBLE * spread {
            Advice::Nothing
        } else {
            match out.error {
                None => Advice::MoreAnchors,
                Some(error) if error < GOOD => Advice::Compensate,
                Some(_) => Advice::ReindexSoon,
            }
        };
        Ok(out)
    }

    /// The error of each kind on folds it was not fitted to.
    fn held_out(&self, options: &FitOptions) -> Result<Vec<HeldOut>> {
        let (n, dim) = self.old.shape();
        if n < FEWEST {
            return Ok(Vec::new());
        }
        // Decompositions of large matrices take minutes.
        let folds = if dim.max(self.new.cols()) <= 1024 {
            5
        } else {
            2
        };
        let ridges = options.ridge.map_or(RIDGES.to_vec(), |ridge| vec![ridge]);
        let parts = (0..folds)
            .into_par_iter()
            .map(|fold| self.fold(fold, folds, &ridges, options.kind))
            .collect::<Result<Vec<_>>>()?;
        let mut drift = self.new.clone();
        let square = if self.same_size() {
            drift.add_scaled(-1.0, &self.old);
            drift.norm().powi(2)
        } else {
            // Relative to the spread then, since there is no difference.
            centred(&self.old, &mean(&self.old)).norm().powi(2)
        };
        let mut out: Vec<HeldOut> = Vec::new();
        for at in 0..parts[0].len() {
            let (kind, ridge, ..) = parts[0][at];
            let error: f64 = parts.iter().map(|part| part[at].2).sum();
            let cosine: f64 = parts.iter().map(|part| part[at].3).sum();
            let found = HeldOut {
                kind,
                ridge,
                left: if square > 0.0 { error / square } else { 0.0 },
                cosine: cosine / n as f64,
            };
            match out.iter_mut().find(|other| other.kind == kind) {
                Some(other) if found.left < other.left => *other = found,
                Some(_) => {}
                None => out.push(found),
            }
        }
        Ok(out)
    }

    /// For each kind: its name, its ridge, the squared error and the sum of cosines over the anchors of one fold.
    fn fold(
        &self,
        fold: usize,
        folds: usize,
        ridges: &[f64],
        wanted: FitKind,
    ) -> Result<Vec<Judged>> {
        let n = self.old.rows();
        let (held, rest): (Vec<usize>, Vec<usize>) = (0..n).partition(|i| i % folds == fold);
        let (held, rest) = (self.rows(&held), self.rows(&rest));
        let mut out = Vec::new();
        let mut judge = |ridge: Option<f64>, map: Map| -> Result<()> {
            let kind = map.kind();
            let drift = Drift {
                from: String::new(),
                to: String::new(),
                unit: false,
                anchors: n,
                map,
                measured: BTreeMap::new(),
            };
            let moved = drift
                .transport(Direction::ToOld, Some(false))?
                .matrix(&held.new)?;
            let mut error = moved.clone();
            error.add_scaled(-1.0, &held.old);
            let cosines = mean_cosine(&held.old, &moved) * held.old.rows() as f64;
            out.push((kind, ridge, error.norm().powi(2), cosines));
            Ok(())
        };
        if self.same_size() {
            judge(None, Map::Shift(shift(&rest.old, &rest.new)?))?;
            if let FitKind::Clusters(k) = wanted
                && k <= rest.old.rows()
            {
                let centroids = centroids(&rest.old, k)?;
                let (shifts, _) = cluster_shifts(&centroids, &rest.old, &rest.new)?;
                let mean = shift(&rest.old, &rest.new)?;
                judge(
                    None,
                    Map::Clusters {
                        centroids,
                        shifts,
                        mean,
                    },
                )?;
            }
            let turned = procrustes(&rest.old, &rest.new, f32::EPSILON.into())?;
            judge(None, Map::Orthogonal(turned))?;
        }
        let backwards = affines(&rest.new, &rest.old, ridges)?;
        for (&ridge, backward) in ridges.iter().zip(backwards) {
            // Only the way back is judged.
            let forward = Affine {
                weight: Matrix::zeros(self.new.cols(), self.old.cols()),
                bias: vec![0.0; self.new.cols()],
            };
            judge(
                Some(ridge),
                Map::Affine {
                    forward,
                    backward: Some(backward),
                },
            )?;
        }
        Ok(out)
    }
}

/// The simplest kind that no other is clearly better than. Of unit vectors the direction counts: there a map is judged by
/// 1 − cosine, because ridge regression leaves less of the squares by making vectors shorter.
fn simplest(held_out: &[HeldOut], unit: bool) -> FitKind {
    let error = |kind: &str| {
        let found = held_out.iter().find(|held| held.kind == kind);
        found.map_or(f64::INFINITY, |held| {
            if unit { 1.0 - held.cosine } else { held.left }
        })
    };
    let best = error("shift").min(error("orthogonal")).min(error("affine"));
    if best.is_infinite() || BETTER * error("shift") <= best {
        FitKind::Shift
    } else if BETTER * error("orthogonal") <= best {
        FitKind::Orthogonal
    } else {
        FitKind::Affine
    }
}

/// Mean cosine of the rows of two matrices; a zero row counts as 0.
fn mean_cosine(a: &Matrix, b: &Matrix) -> f64 {
    let total: f64 = (0..a.rows())
        .map(|i| {
            let norms = norm(a.row(i)) * norm(b.row(i));
            if norms > 0.0 {
                dot(a.row(i), b.row(i)) / norms
            } else {
                0.0
            }
        })
        .sum();
    total / a.rows().max(1) as f64
}
