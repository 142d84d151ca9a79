//! The full basis: Δ* = prior + (C − prior·G)(G + λ·unit·I)⁻¹.
//!
//! By Cholesky where G (with its ridge) is positive definite beyond rounding; else, without a ridge, the solution of
//! least distance from the prior by the eigenvectors of G. An automatic λ needs one eigendecomposition of the fitted
//! G = V Λ Vᵀ: with A = C Vᵀ, s_i = 1/(Λ_i + λ·unit), the held-out objective of every λ is
//! Σ_ij (AᵀA ∘ V G_h Vᵀ)_ij s_i s_j − 2 Σ_i (Aᵀ C_h Vᵀ)_ii s_i + E_h.

use std::sync::OnceLock;

use merganser_linalg::{Eigen, Matrix, Real, Spd, Svd, gemm};

use crate::moments::symmetrised;
use crate::problem::{Problem, Split};
use crate::quadratic::Quadratic;
use crate::{Basis, Captured, Coefficients, Factors, Note, Result, Ridge, Solution};

/// Widest G that is decomposed into eigenvectors; wider ones get a ridge instead.
const EIGEN_LIMIT: usize = 6144;
/// Steps of iterative refinement of an `f32` solve.
const REFINEMENT: usize = 3;

/// The λ that are tried: 0, then half decades.
pub(crate) fn grid() -> Vec<f64> {
    std::iter::once(0.0)
        .chain((-16..=2).map(|half| 10_f64.powf(f64::from(half) / 2.0)))
        .collect()
}

/// The best update of all.
#[derive(Debug)]
pub(crate) struct FullSolution<T: Real> {
    pub(crate) update: Matrix<T>,
    pub(crate) ridge: f64,
    pub(crate) notes: Vec<Note>,
    /// Orthonormal rows: the eigenvectors of the residual energy matrix K = X (G + ρI) Xᵀ of X = Δ* − prior. All m of
    /// them, or only those with energy where there are many more outputs than inputs.
    energy_basis: OnceLock<Matrix<T>>,
}

/// A solution of a quadratic: the update, λ and what there is to say.
pub(crate) struct Solved<T: Real> {
    pub(crate) update: Matrix<T>,
    pub(crate) ridge: f64,
    pub(crate) notes: Vec<Note>,
}

impl<T: Real> Problem<'_, T> {
    pub(crate) fn solve_full(&self, ridge: Ridge) -> Result<Solution<T>> {
        let full = self.full(ridge)?;
        Ok(Solution {
            update: full.update.clone(),
            basis: Basis::Full,
            coefficients: Coefficients::None,
            factors: None,
            captured: Captured::new(0.0, 0.0, Vec::new()),
            ridge: full.ridge,
            notes: full.notes.clone(),
        })
    }

    pub(crate) fn compute_full(&self, ridge: Ridge) -> Result<FullSolution<T>> {
        let split = match ridge {
            Ridge::Auto => Some(self.split()?),
            Ridge::Relative(_) => None,
        };
        let Solved {
            update,
            ridge,
            notes,
        } = solve(&self.all, split, self.prior.as_ref(), ridge)?;
        Ok(FullSolution {
            update,
            ridge,
            notes,
            energy_basis: OnceLock::new(),
        })
    }

    /// The update of least J among those of rank `rank` beside the prior: Δ* − prior, projected onto the leading
    /// eigenvectors of its energy matrix.
    pub(crate) fn solve_best_rank(&self, rank: usize, ridge: Ridge) -> Result<Solution<T>> {
        let full = self.full(ridge)?;
        let basis = self.energy_basis(&full)?;
        let mut notes = full.notes.clone();
        let taken = rank.min(basis.rows());
        let most = self.shape().0.min(self.shape().1);
        if rank > most {
            notes.push(Note::RankReduced {
                from: rank,
                to: most,
            });
        }
        let q = basis.rows_range(0, taken);
        let a = gemm::mul(&q, &self.beside_prior(&full.update));
        let mut update = gemm::mul_tn(&q, &a);
        if let Some(prior) = &self.prior {
            update.add_scaled(1.0, prior);
        }
        Ok(Solution {
            update,
            basis: Basis::BestRank { rank },
            coefficients: Coefficients::None,
            factors: Some(Factors {
                b: q.transpose(),
                a,
            }),
            captured: Captured::new(0.0, 0.0, Vec::new()),
            ridge: full.ridge,
            notes,
        })
    }

    fn beside_prior(&self, update: &Matrix<T>) -> Matrix<T> {
        let mut rest = update.clone();
        if let Some(prior) = &self.prior {
            rest.add_scaled(-1.0, prior);
        }
        rest
    }

    pub(crate) fn energy_basis<'s>(&self, full: &'s FullSolution<T>) -> Result<&'s Matrix<T>> {
        if let Some(basis) = full.energy_basis.get() {
            return Ok(basis);
        }
        let x = self.beside_prior(&full.update);
        let (m, d) = self.shape();
        let rho = full.ridge * self.all.unit;
        let basis = if m <= 2 * d {
            let mut product = gemm::mul(&x, &self.all.gram);
            product.add_scaled(rho, &x);
            Eigen::of(&symmetrised(&gemm::mul_nt(&product, &x)))?.vectors
        } else {
            // K = U (Σ V (G + ρI) Vᵀ Σ) Uᵀ for X = Uᵀ Σ V, with a matrix in the middle that is d×d and not m×m.
            let svd = Svd::of(&x)?;
            let svd = svd.leading(svd.rank(0.0));
            let mut scaled = svd.right;
            scaled.scale_rows(&svd.values);
            let mut product = gemm::mul(&scaled, &self.all.gram);
            product.add_scaled(rho, &scaled);
            let eigen = Eigen::of(&symmetrised(&gemm::mul_nt(&product, &scaled)))?;
            gemm::mul(&eigen.vectors, &svd.left)
        };
        Ok(full.energy_basis.get_or_init(|| basis))
    }
}

/// The minimiser of a quadratic over all Δ, drawn to a prior.
pub(crate) fn solve<T: Real>(
    all: &Quadratic<T>,
    split: Option<&Split<T>>,
    prior: Option<&Matrix<T>>,
    ridge: Ridge,
) -> Result<Solved<T>> {
    let mut notes = Vec::new();
    let lambda = match (ridge, split) {
        (Ridge::Relative(lambda), _) => lambda,
        (Ridge::Auto, None) => 0.0,
        (Ridge::Auto, Some(split)) => {
            let (lambda, held_out) = choose(split, prior)?;
            notes.push(Note::RidgeChosen {
                ridge: lambda,
                held_out,
            });
            lambda
        }
    };
    let right = shifted_cross(all, prior);
    let (mut update, ridge) = solve_with(all, &right, lambda, &mut notes)?;
    if let Some(prior) = prior {
        update.add_scaled(1.0, prior);
    }
    Ok(Solved {
        update,
        ridge,
        notes,
    })
}

/// C − prior·G.
fn shifted_cross<T: Real>(quadratic: &Quadratic<T>, prior: Option<&Matrix<T>>) -> Matrix<T> {
    let mut cross = quadratic.cross.clone();
    if let Some(prior) = prior {
        gemm::add_mul(&mut cross, -1.0, prior, &quadratic.gram);
    }
    cross
}

/// X with X (G + λ·unit·I) = C, and the λ that was needed.
fn solve_with<T: Real>(
    quadratic: &Quadratic<T>,
    right: &Matrix<T>,
    lambda: f64,
    notes: &mut Vec<Note>,
) -> Result<(Matrix<T>, f64)> {
    let d = quadratic.gram.rows();
    let unit = quadratic.unit;
    if d == 0 || unit <= 0.0 {
        if d > 0 {
            notes.push(Note::MinimumNorm { rank: 0, of: d });
        }
        return Ok((Matrix::zeros(right.rows(), d), lambda));
    }
    if lambda == 0.0 && d <= EIGEN_LIMIT {
        // A factor of a singular matrix exists where rounding was kind, and is noise.
        let factor = (quadratic.samples >= d as u64)
            .then(|| Spd::factor(quadratic.gram.clone(), 0.0).ok())
            .flatten()
            .filter(|factor| !factor.is_singular(quadratic.epsilon));
        let Some(factor) = factor else {
            let eigen = Eigen::of(&quadratic.gram)?;
            let cutoff = eigen.noise(quadratic.epsilon);
            notes.push(Note::MinimumNorm {
                rank: eigen.rank(cutoff),
                of: d,
            });
            return Ok((eigen.solve_rows(right, cutoff), 0.0));
        };
        return Ok((refined(&factor, right, notes), 0.0));
    }
    // Beyond the limit a singular matrix gets the least ridge that lifts it out of rounding.
    let floor = 4.0 * (d as f64).sqrt() * quadratic.epsilon;
    let start = if lambda == 0.0 && quadratic.samples < d as u64 {
        floor
    } else {
        lambda
    };
    let attempt =
        |lambda: f64| Spd::factor_escalating(quadratic.gram.clone(), lambda * unit, floor * unit);
    let (factor, escalation) = match attempt(start)? {
        (factor, _) if factor.ridge() == 0.0 && factor.is_singular(quadratic.epsilon) => {
            drop(factor); // two at a time would be too much memory
            attempt(floor)?
        }
        solvable => solvable,
    };
    let used = escalation.ridge / unit;
    if escalation.ridge > lambda * unit {
        notes.push(Note::RidgeRaised {
            from: lambda,
            to: used,
        });
    }
    Ok((refined(&factor, right, notes), used))
}

fn refined<T: Real>(factor: &Spd<T>, right: &Matrix<T>, notes: &mut Vec<Note>) -> Matrix<T> {
    let mut x = factor.solve_rows(right);
    if T::EPSILON > f64::EPSILON {
        let refinement = factor.refine(right, &mut x, REFINEMENT);
        notes.push(Note::Refined {
            steps: refinement.steps,
            residual: refinement.last,
        });
    }
    x
}

/// The λ of the grid with the least held-out J, and the fraction of the held-out energy it captures.
fn choose<T: Real>(split: &Split<T>, prior: Option<&Matrix<T>>) -> Result<(f64, f64)> {
    let Split { fitted, held_out } = split;
    let right = shifted_cross(fitted, prior);
    let held_right = shifted_cross(held_out, prior);
    let start = prior.map_or(held_out.energy, |prior| held_out.value(prior));
    let objectives: Vec<(f64, f64)> = if fitted.gram.rows() <= EIGEN_LIMIT {
        let eigen = Eigen::of(&fitted.gram)?;
        let cutoff = eigen.noise(fitted.epsilon);
        let a = gemm::mul_nt(&right, &eigen.vectors);
        let b = gemm::mul_nt(&held_right, &eigen.vectors);
        let inner = gemm::mul_nt(&gemm::mul(&eigen.vectors, &held_out.gram), &eigen.vectors);
        let weights = gemm::mul_tn(&a, &a);
        let linear = a.transpose().row_dots(&b.transpose());
        let value = |lambda: f64| {
            let inverse: Vec<f64> = eigen
                .values
                .iter()
                .map(|&x| {
                    let x = if x > cutoff { x } else { 0.0 };
                    let sum = x + lambda * fitted.unit;
                    if sum > 0.0 { 1.0 / sum } else { 0.0 }
                })
                .collect();
            let quadratic: f64 = (0..inverse.len())
                .map(|i| {
                    let row: f64 = (0..inverse.len())
                        .map(|j| weights.get(i, j).to_f64() * inner.get(i, j).to_f64() * inverse[j])
                        .sum();
                    row * inverse[i]
                })
                .sum();
            let linear: f64 = linear.iter().zip(&inverse).map(|(x, s)| x * s).sum();
            quadratic - 2.0 * linear + start
        };
        grid()
            .into_iter()
            .map(|lambda| (lambda, value(lambda)))
            .collect()
    } else {
        let mut objectives = Vec::new();
        for lambda in [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0] {
            let (x, _) = solve_with(fitted, &right, lambda, &mut Vec::new())?;
            let product = gemm::mul(&x, &held_out.gram);
            let value = product.dot(&x) - 2.0 * x.dot(&held_right) + start;
            objectives.push((lambda, value));
        }
        objectives
    };
    Ok(best(&objectives, held_out.energy))
}

/// The entry of least objective (the first of equals, and never one that is not a number), with the fraction it captures.
pub(crate) fn best(objectives: &[(f64, f64)], energy: f64) -> (f64, f64) {
    let mut best = (0.0, f64::INFINITY);
    for &(lambda, objective) in objectives {
        if objective < best.1 {
            best = (lambda, objective);
        }
    }
    (best.0, Captured::new(best.1, energy, Vec::new()).fraction)
}
