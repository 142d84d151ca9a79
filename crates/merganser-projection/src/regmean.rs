//! RegMean (Jin et al., *Dataless Knowledge Fusion by Merging Weights of Language Models*, ICLR 2023):
//! W* = (Σ_t W_t G̃_t)(Σ_t G̃_t)⁻¹, G̃_t = a G_t/n_t + (1 − a) diag(G_t/n_t).
//!
//! It is the full basis with W₀ = 0. We solve for W* − W̄, W̄ the mean of the models, which is the same where Σ G̃_t is
//! regular; where it is not (features that are never active, a = 1 with few samples) W̄ is kept, where the published
//! inverse gives garbage in silence. RegMean++ (arXiv 2508.03121) is this with moments of the merged network's inputs:
//! the caller runs a block of every model on what the merged blocks before it give.

use merganser_linalg::{Matrix, Real, Symmetric, gemm};

use crate::error::shape;
use crate::full::solve;
use crate::moments::refused;
use crate::quadratic::Quadratic;
use crate::rows::check_weights;
use crate::{Error, InputMoments, Note, Result, Ridge};

/// A merged weight.
#[derive(Debug, Clone, PartialEq)]
pub struct RegMean<T: Real = f64> {
    /// W*, m×d.
    pub weight: Matrix<T>,
    /// What a reader of the answer should know.
    pub notes: Vec<Note>,
}

/// Merges the weights of one layer. `models` are (task weight, W_t, moments of its input); `off_diagonal` is a, 0 to 1:
/// published choices are 0.9 for encoders, 0.1 for T5 and DeBERTa, 0.95 for RegMean++.
///
/// # Errors
/// If there is no model, sizes differ, a number is not finite, weights are negative or all zero, moments hold no
/// samples, or `off_diagonal` is out of range.
pub fn regmean<T: Real>(
    models: &[(f64, &Matrix<T>, &InputMoments)],
    off_diagonal: f64,
) -> Result<RegMean<T>> {
    let (m, d) = models.first().ok_or(Error::NoTasks)?.1.shape();
    if !(0.0..=1.0).contains(&off_diagonal) {
        return Err(Error::Range {
            what: "the off-diagonal factor".into(),
            found: off_diagonal,
            expected: "between 0 and 1",
        });
    }
    check_weights(models.iter().map(|model| model.0))?;
    let total: f64 = models.iter().map(|model| model.0).sum();
    let mut mean = Matrix::<T>::zeros(m, d);
    for (t, (weight, model, input)) in models.iter().enumerate() {
        if model.shape() != (m, d) {
            return Err(shape(
                format!("the weight of model {t}"),
                model.shape(),
                (m, d),
            ));
        }
        if input.dim() != d {
            return Err(shape(format!("the inputs of model {t}"), input.dim(), d));
        }
        if input.count() == 0 {
            return Err(Error::NoSamples { task: t });
        }
        model
            .check_finite()
            .map_err(|problem| refused(&format!("the weight of model {t}"), problem))?;
        mean.add_scaled(weight / total, model);
    }
    let mut sum = Symmetric::zeros(d);
    let mut cross = Matrix::<T>::zeros(m, d);
    let (mut samples, mut epsilon) = (0, T::EPSILON);
    for (weight, model, input) in models {
        let factor = weight / input.count() as f64;
        sum.add_scaled(factor, input.gram());
        samples += input.count();
        epsilon = epsilon.max(input.epsilon());
        let mut difference = (*model).clone();
        difference.add_scaled(-1.0, &mean);
        let square: Matrix<T> = reduced(input.gram().to_square_scaled(factor), off_diagonal);
        gemm::add_mul(&mut cross, 1.0, &difference, &square);
    }
    let unit = sum.trace() / d.max(1) as f64;
    let quadratic = Quadratic {
        gram: reduced(sum.to_square(), off_diagonal),
        cross,
        energy: 0.0,
        energies: Vec::new(),
        unit,
        epsilon,
        // A strengthened diagonal makes up for missing samples.
        samples: if off_diagonal < 1.0 {
            u64::MAX
        } else {
            samples
        },
    };
    let solved = solve(&quadratic, None, None, Ridge::Relative(0.0))?;
    mean.add_scaled(1.0, &solved.update);
    Ok(RegMean {
        weight: mean,
        notes: solved.notes,
    })
}

/// a A + (1 − a) diag(A).
fn reduced<T: Real>(mut square: Matrix<T>, a: f64) -> Matrix<T> {
    if a < 1.0 {
        let diagonal: Vec<T> = (0..square.rows()).map(|i| square.get(i, i)).collect();
        square.scale(a);
        for (i, x) in diagonal.into_iter().enumerate() {
            square.set(i, i, x);
        }
    }
    square
}
