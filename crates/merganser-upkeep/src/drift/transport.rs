//! A drift made ready to be applied to rows in one direction.
//!
//! A shift costs one pass over a row in registers: the row is scaled, moved and scaled again in `f64` and rounded once. A map
//! is a product of a block of rows with a matrix, in the type of the rows.

use merganser_data::Rows;
use merganser_linalg::{Matrix, Real, dot, gemm};

use super::{Affine, Direction, Drift, Map};
use crate::error::{Error, Result};

/// A drift in one direction.
#[derive(Debug, Clone)]
pub struct Transport {
    step: Step,
    dim: usize,
    /// Whether rows are scaled to length 1 before.
    unit_in: bool,
    /// Whether rows are scaled to length 1 after.
    unit_out: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Add(Vec<f64>),
    Map {
        map: Affine,
        /// The same in `f32`, for rows of that type.
        single: Matrix<f32>,
    },
    Clusters {
        centroids: Matrix,
        /// What is added to a row of each cluster.
        add: Matrix,
        /// What is added before the cluster is looked for.
        before: Vec<f64>,
    },
}

impl Drift {
    /// Makes the drift ready for one direction. Rows come out of length 1 if `unit` says so; by default they do where the
    /// drift is one of unit vectors. (Scores of an index need it wherever vectors of several versions are compared.)
    ///
    /// # Errors
    /// If the way to the old space is not known.
    pub fn transport(&self, direction: Direction, unit: Option<bool>) -> Result<Transport> {
        let sign = match direction {
            Direction::ToOld => -1.0,
            Direction::ToNew => 1.0,
        };
        let scaled = |v: &[f64]| -> Vec<f64> { v.iter().map(|x| sign * x).collect() };
        let with_single = |map: Affine| Step::Map {
            single: map.weight.cast(),
            map,
        };
        let step = match (&self.map, direction) {
            (Map::Shift(shift), _) => Step::Add(scaled(shift)),
            (Map::Orthogonal(map) | Map::Affine { forward: map, .. }, Direction::ToNew) => {
                with_single(map.clone())
            }
            (Map::Orthogonal(map), Direction::ToOld) => with_single(transposed(map)),
            (Map::Affine { backward, .. }, Direction::ToOld) => match backward {
                Some(map) => with_single(map.clone()),
                None => {
                    return Err(Error::Unfit(format!(
                        "the drift from `{}` to `{}` knows the way to the new space only; fit it with `merganser drift fit`, \
                         which finds both, or take the documents to the new space",
                        self.from, self.to
                    )));
                }
            },
            (
                Map::Clusters {
                    centroids,
                    shifts,
                    mean,
                },
                _,
            ) => {
                let mut add = shifts.clone();
                add.scale(sign);
                Step::Clusters {
                    centroids: centroids.clone(),
                    add,
                    before: match direction {
                        Direction::ToOld => scaled(mean),
                        Direction::ToNew => vec![0.0; mean.len()],
                    },
                }
            }
        };
        Ok(Transport {
            dim: match direction {
                Direction::ToOld => self.map.dim_new(),
                Direction::ToNew => self.map.dim(),
            },
            step,
            unit_in: self.unit,
            unit_out: unit.unwrap_or(self.unit),
        })
    }
}

/// x ↦ Qᵀ(x − t).
pub(super) fn transposed(map: &Affine) -> Affine {
    let weight = map.weight.transpose();
    let t = Matrix::from_fn(1, map.bias.len(), |_, j| -map.bias[j]);
    Affine {
        bias: gemm::mul_nt(&t, &weight).into_vec(),
        weight,
    }
}

impl Transport {
    /// Length of the vectors it takes.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Length of the vectors it gives.
    pub fn dim_out(&self) -> usize {
        match &self.step {
            Step::Add(_) | Step::Clusters { .. } => self.dim,
            Step::Map { map, .. } => map.bias.len(),
        }
    }

    /// Moves rows in place.
    ///
    /// # Errors
    /// If the map changes the length of vectors, or a result is not finite.
    pub fn rows(&self, rows: Rows<'_>) -> Result<(), String> {
        match rows {
            Rows::F32(rows) => self.move_rows(rows, |step| match step {
                Step::Map { single, .. } => Some(single),
                _ => None,
            }),
            Rows::F64(rows) => self.move_rows(rows, |step| match step {
                Step::Map { map, .. } => Some(&map.weight),
                _ => None,
            }),
        }
    }

    /// The rows of a matrix, moved.
    ///
    /// # Errors
    /// If they have another length than the drift's vectors, or a result is not finite.
    pub fn matrix(&self, rows: &Matrix) -> Result<Matrix> {
        crate::error::check_size(|| "length of the vectors".into(), rows.cols(), self.dim)?;
        let mut rows = rows.clone();
        if let Step::Map { map, .. } = &self.step
            && map.bias.len() != self.dim
        {
            if self.unit_in {
                normalise(&mut rows);
            }
            let mut out = map.apply(&rows);
            if self.unit_out {
                normalise(&mut out);
            }
            return Ok(out);
        }
        self.rows(Rows::F64(rows.as_mut_slice()))
            .map_err(Error::Unfit)?;
        Ok(rows)
    }

    fn move_rows<T: Real>(
        &self,
        rows: &mut [T],
        weight: impl Fn(&Step) -> Option<&Matrix<T>>,
    ) -> Result<(), String> {
        let dim = self.dim;
        if self.dim_out() != dim {
            return Err(format!(
                "cannot be changed in place: the drift takes vectors of {dim} to such of {}",
                self.dim_out()
            ));
        }
        if !rows.len().is_multiple_of(dim) {
            return Err(format!(
                "has vectors of another length than the drift's, {dim}"
            ));
        }
        match &self.step {
            Step::Add(add) => {
                let mut buffer = vec![0.0; dim];
                for row in rows.chunks_mut(dim) {
                    self.load(row, &mut buffer);
                    for (x, add) in buffer.iter_mut().zip(add) {
                        *x += add;
                    }
                    self.store(&buffer, row);
                }
            }
            Step::Clusters {
                centroids,
                add,
                before,
            } => {
                let (mut buffer, mut moved) = (vec![0.0; dim], vec![0.0; dim]);
                for row in rows.chunks_mut(dim) {
                    self.load(row, &mut buffer);
                    for ((moved, x), before) in moved.iter_mut().zip(&buffer).zip(before) {
                        *moved = x + before;
                    }
                    let cluster = super::clusters::nearest(centroids, &moved);
                    for (x, add) in buffer.iter_mut().zip(add.row(cluster)) {
                        *x += add;
                    }
                    self.store(&buffer, row);
                }
            }
            Step::Map { map, .. } => {
                let Some(weight) = weight(&self.step) else {
                    return Err("cannot be mapped".into());
                };
                let mut buffer = vec![0.0; dim];
                let count = rows.len() / dim;
                let mut input = Matrix::<T>::zeros(count, dim);
                for (row, input) in rows.chunks(dim).zip(input.as_mut_slice().chunks_mut(dim)) {
                    self.load(row, &mut buffer);
                    for (input, &x) in input.iter_mut().zip(&buffer) {
                        *input = T::from_f64(x);
                    }
                }
                let image = gemm::mul_nt(&input, weight);
                for (row, image) in rows.chunks_mut(dim).zip(image.as_slice().chunks(dim)) {
                    for ((out, x), b) in buffer.iter_mut().zip(image).zip(&map.bias) {
                        *out = x.to_f64() + b;
                    }
                    self.store(&buffer, row);
                }
            }
        }
        // Of finite rows only sums beyond the range of the type are not.
        if rows
            .iter()
            .fold(true, |finite, x| finite & x.to_f64().is_finite())
        {
            Ok(())
        } else {
            Err("becomes larger than its type can hold".into())
        }
    }

    /// A row in `f64`, scaled if it should be.
    fn load<T: Real>(&self, row: &[T], out: &mut [f64]) {
        for (out, x) in out.iter_mut().zip(row) {
            *out = x.to_f64();
        }
        if self.unit_in {
            scale_to_unit(out);
        }
    }

    /// A result, scaled if it should be and rounded.
    fn store<T: Real>(&self, result: &[f64], row: &mut [T]) {
        let factor = if self.unit_out {
            unit_factor(result)
        } else {
            1.0
        };
        for (row, x) in row.iter_mut().zip(result) {
            *row = T::from_f64(factor * x);
        }
    }
}

/// 1 / |x|, or 1 for the zero vector.
fn unit_factor(x: &[f64]) -> f64 {
    let norm = dot(x, x).sqrt();
    if norm > 0.0 { 1.0 / norm } else { 1.0 }
}

fn scale_to_unit(x: &mut [f64]) {
    let factor = unit_factor(x);
    for x in x {
        *x *= factor;
    }
}

/// Scales every row to length 1; zero stays zero.
pub(crate) fn normalise(rows: &mut Matrix) {
    for i in 0..rows.rows() {
        scale_to_unit(rows.row_mut(i));
    }
}
