//! Moments: the sums over samples that are all a merge needs to know of its calibration data.
//!
//! [`InputMoments`] belong to an input, not to a layer: the query, key and value projections of a block read the same
//! input and share one. They hold Σ x xᵀ, Σ x and n, not divided by anything, so that moments of two halves of the data
//! add up to those of the whole; a problem divides by n when it combines tasks.
//!
//! [`TargetMoments`] belong to a layer whose input differs from the one its teacher saw: Σ r x̃ᵀ, Σ r and Σ ‖r‖² for the
//! residual targets r = W_t x − W₀ x̃. Where the inputs are the same they follow from the update and the input's moments.

use merganser_linalg::{Matrix, Real, Symmetric, gemm};

use crate::error::shape;
use crate::{Error, Result};

/// The moments of one input over the samples of one task.
#[derive(Debug, Clone, PartialEq)]
pub struct InputMoments {
    count: u64,
    gram: Symmetric,
    sum: Vec<f64>,
    epsilon: f64,
}

impl InputMoments {
    /// Moments of no sample, for inputs of `dim` numbers.
    pub fn new(dim: usize) -> Self {
        Self {
            count: 0,
            gram: Symmetric::zeros(dim),
            sum: vec![0.0; dim],
            epsilon: f64::EPSILON,
        }
    }

    /// Moments known from elsewhere: n, Σ x xᵀ and Σ x over the samples, and the relative rounding with which the
    /// products were taken (`f32::EPSILON` for most programs); directions that weaker than that count as absent.
    ///
    /// # Errors
    /// If the sizes differ, a number is not finite, or the diagonal is negative somewhere.
    pub fn from_parts(count: u64, gram: Symmetric, sum: Vec<f64>, epsilon: f64) -> Result<Self> {
        if sum.len() != gram.dim() {
            return Err(shape("the sum of the inputs", sum.len(), gram.dim()));
        }
        Matrix::new(1, sum.len(), sum.clone())?
            .check_finite()
            .map_err(|problem| Error::NotFinite {
                what: "the sum of the inputs".into(),
                problem,
            })?;
        if let Some(i) = gram.diagonal().iter().position(|&x| x < 0.0) {
            return Err(Error::Range {
                what: format!("element ({i}, {i}) of a Gram matrix"),
                found: gram.get(i, i),
                expected: "at least 0",
            });
        }
        Ok(Self {
            count,
            gram,
            sum,
            epsilon,
        })
    }

    /// Adds samples: whole rows of [`dim`](Self::dim) numbers. Products are taken in the type of the rows, sums in `f64`.
    ///
    /// # Errors
    /// If the data are no whole number of rows, or not finite.
    pub fn add_rows<T: Real>(&mut self, rows: &[T]) -> Result<()> {
        self.gram
            .add_rows(rows)
            .map_err(|problem| refused("the inputs", problem))?;
        add_row_sum(&mut self.sum, rows);
        self.count += (rows.len() / self.dim()) as u64;
        self.epsilon = self.epsilon.max(T::EPSILON);
        Ok(())
    }

    /// Adds the moments of other samples.
    ///
    /// # Errors
    /// If they are of inputs of another size.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        self.combine(other, 1.0)?;
        self.count += other.count;
        Ok(())
    }

    /// The moments without those of `part`, a subset of the samples.
    ///
    /// # Errors
    /// If they are of inputs of another size or of more samples.
    pub fn minus(&self, part: &Self) -> Result<Self> {
        let mut rest = self.clone();
        rest.count = count_without(self.count, part.count)?;
        rest.combine(part, -1.0)?;
        Ok(rest)
    }

    fn combine(&mut self, other: &Self, factor: f64) -> Result<()> {
        if other.dim() != self.dim() {
            return Err(shape("inputs of other moments", other.dim(), self.dim()));
        }
        self.gram.add_scaled(factor, &other.gram);
        for (sum, x) in self.sum.iter_mut().zip(&other.sum) {
            *sum += factor * x;
        }
        self.epsilon = self.epsilon.max(other.epsilon);
        Ok(())
    }

    /// The moments of the input with one more coordinate that is always 1: what a bias is multiplied by.
    #[must_use]
    pub fn with_bias(&self) -> Self {
        let mut sum = self.sum.clone();
        sum.push(self.count as f64);
        Self {
            count: self.count,
            gram: self.gram.bordered(&self.sum, self.count as f64),
            sum,
            epsilon: self.epsilon,
        }
    }

    /// The moments of the input whose coordinates are multiplied by `factors`.
    pub(crate) fn scaled(&self, factors: &[f64]) -> Self {
        let mut scaled = self.clone();
        scaled.gram.scale_both(factors);
        for (sum, factor) in scaled.sum.iter_mut().zip(factors) {
            *sum *= factor;
        }
        scaled
    }

    /// The moments of V x, for the rows of V.
    pub(crate) fn projected<T: Real>(&self, v: &Matrix<T>) -> Result<Self> {
        let v: Matrix = v.cast();
        let product = gemm::mul(&v, &self.gram.to_square());
        let sum = Matrix::new(1, self.dim(), self.sum.clone())?;
        Ok(Self {
            count: self.count,
            gram: Symmetric::from_square(&symmetrised(&gemm::mul_nt(&product, &v)))?,
            sum: gemm::mul_nt(&sum, &v).into_vec(),
            epsilon: self.epsilon,
        })
    }

    /// Numbers of an input.
    pub fn dim(&self) -> usize {
        self.gram.dim()
    }

    /// Samples: rows, tokens or patches.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Σ x xᵀ.
    pub fn gram(&self) -> &Symmetric {
        &self.gram
    }

    /// Σ x.
    pub fn sum(&self) -> &[f64] {
        &self.sum
    }

    /// The relative rounding of the products.
    pub fn epsilon(&self) -> f64 {
        self.epsilon
    }
}

/// The moments of the residual targets of one layer over the samples of one task.
#[derive(Debug, Clone, PartialEq)]
pub struct TargetMoments {
    count: u64,
    cross: Matrix,
    sum: Vec<f64>,
    energy: f64,
}

impl TargetMoments {
    /// Moments of no sample, for a layer of `rows` outputs and `cols` inputs.
    pub fn new(rows: usize, cols: usize) -> Self {
        Self {
            count: 0,
            cross: Matrix::zeros(rows, cols),
            sum: vec![0.0; rows],
            energy: 0.0,
        }
    }

    /// Adds samples: whole rows r of residual targets and x̃ of inputs of the merged network, as many of each.
    ///
    /// # Errors
    /// If the data are no whole rows, their numbers differ, or they are not finite.
    pub fn add_rows<T: Real>(&mut self, targets: &[T], inputs: &[T]) -> Result<()> {
        let (m, d) = self.cross.shape();
        let count = |what: &str, found: usize, size: usize| {
            if size > 0 && found.is_multiple_of(size) {
                Ok(found / size)
            } else {
                Err(shape(
                    format!("numbers of {what}"),
                    found,
                    format!("whole rows of {size}"),
                ))
            }
        };
        let n = count("the targets", targets.len(), m)?;
        let inputs_n = count("the inputs", inputs.len(), d)?;
        if n != inputs_n {
            return Err(shape("rows of inputs", inputs_n, n));
        }
        for (what, data, width) in [("the targets", targets, m), ("the inputs", inputs, d)] {
            merganser_linalg::check_finite(data, width)
                .map_err(|problem| refused(what, problem))?;
        }
        gemm::add_outer(&mut self.cross, targets, inputs);
        add_row_sum(&mut self.sum, targets);
        self.energy += targets
            .chunks(m)
            .map(|row| merganser_linalg::dot(row, row))
            .sum::<f64>();
        self.count += n as u64;
        if self.cross.check_finite().is_err() || !self.energy.is_finite() {
            return Err(Error::Range {
                what: "the energy of the targets".into(),
                found: self.energy,
                expected: "within the range of the targets' type",
            });
        }
        Ok(())
    }

    /// Adds the moments of other samples.
    ///
    /// # Errors
    /// If they are of a layer of another shape.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        self.combine(other, 1.0)?;
        self.count += other.count;
        Ok(())
    }

    /// The moments without those of `part`, a subset of the samples.
    ///
    /// # Errors
    /// If they are of a layer of another shape or of more samples.
    pub fn minus(&self, part: &Self) -> Result<Self> {
        let mut rest = self.clone();
        rest.count = count_without(self.count, part.count)?;
        rest.combine(part, -1.0)?;
        rest.energy = rest.energy.max(0.0);
        Ok(rest)
    }

    fn combine(&mut self, other: &Self, factor: f64) -> Result<()> {
        if other.cross.shape() != self.cross.shape() {
            return Err(shape(
                "the layer of other moments",
                other.cross.shape(),
                self.cross.shape(),
            ));
        }
        self.cross.add_scaled(factor, &other.cross);
        for (sum, x) in self.sum.iter_mut().zip(&other.sum) {
            *sum += factor * x;
        }
        self.energy += factor * other.energy;
        Ok(())
    }

    /// The moments for inputs with one more coordinate that is always 1, the bias being the last column of the update.
    #[must_use]
    pub fn with_bias(&self) -> Self {
        let (m, d) = self.cross.shape();
        Self {
            count: self.count,
            cross: Matrix::from_fn(m, d + 1, |i, j| {
                if j < d {
                    self.cross.get(i, j)
                } else {
                    self.sum[i]
                }
            }),
            sum: self.sum.clone(),
            energy: self.energy,
        }
    }

    /// The moments for inputs whose coordinates are multiplied by `factors`.
    pub(crate) fn scaled(&self, factors: &[f64]) -> Self {
        let mut scaled = self.clone();
        scaled.cross.scale_cols(factors);
        scaled
    }

    /// The moments of U r against V x, for the rows of U and V. The energy stays that of r.
    pub(crate) fn projected<T: Real>(&self, u: &Matrix<T>, v: &Matrix<T>) -> Result<Self> {
        let (u, v): (Matrix, Matrix) = (u.cast(), v.cast());
        let sum = Matrix::new(1, self.sum.len(), self.sum.clone())?;
        Ok(Self {
            count: self.count,
            cross: gemm::mul_nt(&gemm::mul(&u, &self.cross), &v),
            sum: gemm::mul_nt(&sum, &u).into_vec(),
            energy: self.energy,
        })
    }

    /// Samples.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Σ r x̃ᵀ.
    pub fn cross(&self) -> &Matrix {
        &self.cross
    }

    /// Σ r.
    pub fn sum(&self) -> &[f64] {
        &self.sum
    }

    /// Σ ‖r‖².
    pub fn energy(&self) -> f64 {
        self.energy
    }
}

/// (A + Aᵀ)/2.
pub(crate) fn symmetrised<T: Real>(a: &Matrix<T>) -> Matrix<T> {
    let mut sum = a.transpose();
    sum.add_scaled(1.0, a);
    sum.scale(0.5);
    sum
}

fn add_row_sum<T: Real>(sum: &mut [f64], rows: &[T]) {
    for row in rows.chunks_exact(sum.len().max(1)) {
        for (sum, x) in sum.iter_mut().zip(row) {
            *sum += x.to_f64();
        }
    }
}

fn count_without(whole: u64, part: u64) -> Result<u64> {
    whole
        .checked_sub(part)
        .ok_or_else(|| shape("samples of a part", part, format!("at most {whole}")))
}

/// The error of data that linear algebra refused.
pub(crate) fn refused(what: &str, problem: merganser_linalg::Error) -> Error {
    match problem {
        merganser_linalg::Error::NotFinite { .. } => Error::NotFinite {
            what: what.to_owned(),
            problem,
        },
        other => Error::Algebra(other),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rows(n: usize, width: usize) -> Vec<f32> {
        (0..n * width)
            .map(|i| ((i * i) % 13) as f32 - 6.0)
            .collect()
    }

    #[test]
    fn moments_of_halves_add_up_and_subtract() {
        let data = rows(10, 3);
        let whole = {
            let mut moments = InputMoments::new(3);
            moments.add_rows(&data).unwrap();
            moments
        };
        let [mut first, mut second] = [InputMoments::new(3), InputMoments::new(3)];
        first.add_rows(&data[..12]).unwrap();
        second.add_rows(&data[12..]).unwrap();
        assert_eq!(whole.minus(&first).unwrap(), second);
        first.merge(&second).unwrap();
        assert_eq!(first, whole);
        assert_eq!(whole.count(), 10);
        assert!(second.minus(&whole).is_err());
        assert!(second.merge(&InputMoments::new(4)).is_err());
    }

    #[test]
    fn a_bias_is_an_input_of_one() {
        let data = rows(10, 3);
        let mut plain = InputMoments::new(3);
        plain.add_rows(&data).unwrap();
        let longer: Vec<f32> = data
            .chunks(3)
            .flat_map(|row| [row[0], row[1], row[2], 1.0])
            .collect();
        let mut augmented = InputMoments::new(4);
        augmented.add_rows(&longer).unwrap();
        assert_eq!(plain.with_bias(), augmented);
        let targets = rows(10, 2);
        let [mut plain, mut augmented] = [TargetMoments::new(2, 3), TargetMoments::new(2, 4)];
        plain.add_rows(&targets, &data).unwrap();
        augmented.add_rows(&targets, &longer).unwrap();
        assert_eq!(plain.with_bias(), augmented);
    }

    #[test]
    fn bad_data_are_refused_by_name() {
        let mut moments = InputMoments::new(2);
        let error = moments.add_rows(&[1.0_f32, f32::NAN]).unwrap_err();
        assert!(error.to_string().contains("the inputs holds"), "{error}");
        assert_eq!(moments, InputMoments::new(2));
        let mut targets = TargetMoments::new(2, 2);
        assert!(targets.add_rows(&[1.0_f32; 4], &[1.0; 2]).is_err());
        assert!(targets.add_rows(&[1.0_f32; 3], &[1.0; 2]).is_err());
        assert!(targets.add_rows(&[f64::INFINITY; 2], &[1.0; 2]).is_err());
        assert!(targets.add_rows(&[1e200_f64; 2], &[1e200; 2]).is_err());
    }
}
