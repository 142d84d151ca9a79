//! Several drifts, one after the other, as one.
//!
//! Shifts add up: Δ^{v→w} = Σ Δ^{s−1→s}. Rotations and affine maps compose. A mixed chain is affine; it keeps the way back if
//! all of its parts have one.

use std::collections::BTreeMap;

use merganser_linalg::Matrix;

use super::{Affine, Direction, Drift, Map};
use crate::error::{Error, Result};

impl Drift {
    /// The drift from the oldest version to the newest, of drifts in the order of the versions.
    ///
    /// # Errors
    /// If there is none, one does not begin where the one before it ends, their vectors differ in length, or one is of
    /// clusters, which do not add up.
    pub fn chain(drifts: &[Self]) -> Result<Self> {
        let Some((first, rest)) = drifts.split_first() else {
            return Err(Error::Unfit("there is no drift to chain".into()));
        };
        let mut all = first.clone();
        for next in rest {
            all = all.then(next)?;
        }
        if !rest.is_empty() {
            all.measured = BTreeMap::new();
            // Errors of independent means: variances add up.
            let errors: Option<Vec<f64>> = drifts
                .iter()
                .map(|drift| drift.measured.get("standard_error").copied())
                .collect();
            if let (Map::Shift(shift), Some(errors)) = (&all.map, errors) {
                let square: f64 = errors.iter().map(|x| x * x).sum();
                let length = merganser_linalg::dot(shift, shift).sqrt();
                all.measured.insert("standard_error".into(), square.sqrt());
                all.measured.insert("shift".into(), length);
            }
        }
        Ok(all)
    }

    fn then(&self, next: &Self) -> Result<Self> {
        if self.to != next.from {
            return Err(Error::Unfit(format!(
                "a drift to `{}` cannot be followed by one from `{}`; give them from the oldest version to the newest",
                self.to, next.from
            )));
        }
        crate::error::check_size(
            || format!("length of the vectors of `{}`", next.from),
            next.map.dim(),
            self.map.dim_new(),
        )?;
        if self.unit != next.unit {
            return Err(Error::Unfit(format!(
                "the drift to `{}` is one of {}, the drift from it one of {}; fit both with or both without --unit",
                self.to,
                lengths(self.unit),
                lengths(next.unit)
            )));
        }
        let map = match (&self.map, &next.map) {
            (Map::Clusters { .. }, _) | (_, Map::Clusters { .. }) => {
                return Err(Error::Unfit(
                    "drifts of clusters do not add up; fit the chain's drifts without --clusters, or fit one drift between \
                     the first and the last version"
                        .into(),
                ));
            }
            (Map::Shift(a), Map::Shift(b)) => {
                Map::Shift(a.iter().zip(b).map(|(a, b)| a + b).collect())
            }
            (Map::Shift(_) | Map::Orthogonal(_), Map::Shift(_) | Map::Orthogonal(_)) => {
                let forward = self.as_affine(Direction::ToNew);
                let next = next.as_affine(Direction::ToNew);
                match (forward, next) {
                    (Some(forward), Some(next)) => Map::Orthogonal(forward.then(&next)),
                    _ => return Err(Error::Unfit("a drift without a way forward".into())),
                }
            }
            _ => {
                let (Some(forward), Some(after)) = (
                    self.as_affine(Direction::ToNew),
                    next.as_affine(Direction::ToNew),
                ) else {
                    return Err(Error::Unfit("a drift without a way forward".into()));
                };
                let back = next.as_affine(Direction::ToOld);
                let before = self.as_affine(Direction::ToOld);
                Map::Affine {
                    forward: forward.then(&after),
                    backward: back.zip(before).map(|(back, before)| back.then(&before)),
                }
            }
        };
        Ok(Self {
            from: self.from.clone(),
            to: next.to.clone(),
            unit: self.unit,
            anchors: self.anchors.min(next.anchors),
            map,
            measured: BTreeMap::new(),
        })
    }

    /// The map in one direction as an affine one, if it is known and is one.
    pub fn as_affine(&self, direction: Direction) -> Option<Affine> {
        let back = direction == Direction::ToOld;
        match &self.map {
            Map::Shift(shift) => Some(Affine {
                weight: Matrix::identity(shift.len()),
                bias: shift.iter().map(|x| if back { -x } else { *x }).collect(),
            }),
            Map::Orthogonal(map) if back => Some(super::transport::transposed(map)),
            Map::Orthogonal(map) => Some(map.clone()),
            Map::Affine { backward, .. } if back => backward.clone(),
            Map::Affine { forward, .. } => Some(forward.clone()),
            Map::Clusters { .. } => None,
        }
    }
}

fn lengths(unit: bool) -> &'static str {
    if unit {
        "unit vectors"
    } else {
        "vectors of any length"
    }
}
