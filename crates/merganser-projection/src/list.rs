//! Bases that are lists of matrices: task, sparse, atoms. J(α) = αᵀHα − 2bᵀα + E with H_kl = tr(B_k G B_lᵀ) and
//! b_k = tr(B_k Cᵀ); a ridge adds ρ (αᵀNα − 2pᵀα), N_kl = tr(B_k B_lᵀ), p_k = tr(B_k priorᵀ).
//!
//! All of it is one [`RowTable`]: a table of small programmes, one for each output coordinate, whose sum is the programme
//! of `task`.

use merganser_linalg::qp::{Constraint, minimise, value};
use merganser_linalg::{Matrix, Real, Svd, gemm};
use rayon::prelude::*;

use crate::full::{best, grid};
use crate::problem::Problem;
use crate::quadratic::Quadratic;
use crate::{Basis, Captured, Coefficients, Error, Factors, Note, Result, Ridge, Solution};

/// Most members of a list whose programme is solved as one.
const LIMIT: usize = 4096;

/// Small programmes over the same number of unknowns.
#[derive(Debug, Clone)]
pub(crate) struct RowTable {
    pub(crate) programmes: Vec<Small>,
    /// E of all of them together.
    energy: f64,
    /// What a relative ridge is multiplied by.
    unit: f64,
    epsilon: f64,
}

/// H, b, N and p.
#[derive(Debug, Clone)]
pub(crate) struct Small {
    pub(crate) h: Matrix,
    pub(crate) b: Vec<f64>,
    pub(crate) n: Matrix,
    pub(crate) p: Vec<f64>,
}

/// Coefficients of every programme of a table.
pub(crate) struct Coefficiented {
    /// One vector a programme.
    pub(crate) alphas: Vec<Vec<f64>>,
    pub(crate) ridge: f64,
    pub(crate) notes: Vec<Note>,
}

impl Small {
    fn zeros(unknowns: usize) -> Self {
        Self {
            h: Matrix::zeros(unknowns, unknowns),
            b: vec![0.0; unknowns],
            n: Matrix::zeros(unknowns, unknowns),
            p: vec![0.0; unknowns],
        }
    }

    /// Adds `factor` times another programme of the same unknowns.
    pub(crate) fn add(&mut self, factor: f64, other: &Self) {
        self.h.add_scaled(factor, &other.h);
        self.n.add_scaled(factor, &other.n);
        for (x, y) in self.b.iter_mut().zip(&other.b) {
            *x += factor * y;
        }
        for (x, y) in self.p.iter_mut().zip(&other.p) {
            *x += factor * y;
        }
    }
}

impl RowTable {
    /// The programmes of the rows of some matrices.
    pub(crate) fn of<T: Real>(
        matrices: &[&Matrix<T>],
        quadratic: &Quadratic<T>,
        prior: Option<&Matrix<T>>,
    ) -> Self {
        Self::with_cross(matrices, quadratic, &quadratic.cross, prior)
    }

    /// The same with another C.
    pub(crate) fn with_cross<T: Real>(
        matrices: &[&Matrix<T>],
        quadratic: &Quadratic<T>,
        cross: &Matrix<T>,
        prior: Option<&Matrix<T>>,
    ) -> Self {
        let count = matrices.len();
        let mut programmes = vec![Small::zeros(count); cross.rows()];
        for (s, matrix) in matrices.iter().enumerate() {
            let product = gemm::mul(matrix, &quadratic.gram);
            for (t, other) in matrices.iter().enumerate() {
                // H is symmetric: each of its two halves gives half of both.
                let dots = product.row_dots(other);
                for (programme, x) in programmes.iter_mut().zip(dots) {
                    let (h, half) = (&mut programme.h, x / 2.0);
                    h.set(s, t, h.get(s, t) + half);
                    h.set(t, s, h.get(t, s) + half);
                }
                if t <= s {
                    for (programme, x) in programmes.iter_mut().zip(matrix.row_dots(other)) {
                        programme.n.set(s, t, x);
                        programme.n.set(t, s, x);
                    }
                }
            }
            for (programme, x) in programmes.iter_mut().zip(matrix.row_dots(cross)) {
                programme.b[s] = x;
            }
            if let Some(prior) = prior {
                for (programme, x) in programmes.iter_mut().zip(matrix.row_dots(prior)) {
                    programme.p[s] = x;
                }
            }
        }
        Self {
            programmes,
            energy: quadratic.energy,
            unit: quadratic.unit,
            epsilon: T::EPSILON,
        }
    }

    /// Empties the programmes whose H is nothing but rounding of the others: a rotation leaves some of every row in all.
    pub(crate) fn silence_rounding(&mut self) {
        let trace = |small: &Small| (0..small.b.len()).map(|i| small.h.get(i, i)).sum::<f64>();
        let largest = self.programmes.iter().map(trace).fold(0.0, f64::max);
        let rounding = (16.0 * self.epsilon).powi(2) * largest;
        for small in &mut self.programmes {
            if trace(small) <= rounding {
                small.h.scale(0.0);
                small.b.fill(0.0);
            }
        }
    }

    /// One programme instead of many: the same coefficients in every row.
    pub(crate) fn summed(&self) -> Self {
        let unknowns = self.programmes.first().map_or(0, |small| small.b.len());
        let mut sum = Small::zeros(unknowns);
        for programme in &self.programmes {
            sum.add(1.0, programme);
        }
        Self {
            programmes: vec![sum],
            ..*self
        }
    }

    /// The minimisers with λ, and the sums of ranks and unknowns.
    fn minima(&self, constraint: Constraint, lambda: f64) -> Result<(Vec<Vec<f64>>, usize, usize)> {
        let rho = lambda * self.unit;
        let minima: Vec<_> = self
            .programmes
            .par_iter()
            .map(|small| {
                if rho == 0.0 {
                    return minimise(&small.h, &small.b, constraint, self.epsilon);
                }
                let mut ridged = small.clone();
                ridged.h.add_scaled(rho, &small.n);
                for (b, p) in ridged.b.iter_mut().zip(&small.p) {
                    *b += rho * p;
                }
                minimise(&ridged.h, &ridged.b, constraint, self.epsilon)
            })
            .collect::<Result<_, _>>()?;
        let rank = minima.iter().map(|minimum| minimum.rank).sum();
        let affine = matches!(constraint, Constraint::Affine | Constraint::Simplex);
        let unknowns = self
            .programmes
            .iter()
            .map(|small| small.b.len() - usize::from(affine && !small.b.is_empty()))
            .sum();
        let alphas = minima.into_iter().map(|minimum| minimum.x).collect();
        Ok((alphas, rank, unknowns))
    }

    /// J of some coefficients.
    fn value(&self, alphas: &[Vec<f64>]) -> f64 {
        let sum: f64 = self
            .programmes
            .iter()
            .zip(alphas)
            .map(|(small, alpha)| value(&small.h, &small.b, alpha))
            .sum();
        sum + self.energy
    }

    /// The coefficients of least J, with λ given or chosen with the tables of `split` (fitted, held out).
    pub(crate) fn solve(
        &self,
        split: Option<(Self, Self)>,
        constraint: Constraint,
        ridge: Ridge,
    ) -> Result<Coefficiented> {
        let mut notes = Vec::new();
        let lambda = match (ridge, split) {
            (Ridge::Relative(lambda), _) => lambda,
            (Ridge::Auto, None) => 0.0,
            (Ridge::Auto, Some((fitted, held_out))) => {
                let mut objectives = Vec::new();
                for lambda in grid() {
                    let (alphas, _, _) = fitted.minima(constraint, lambda)?;
                    objectives.push((lambda, held_out.value(&alphas)));
                }
                let (ridge, captured) = best(&objectives, held_out.energy);
                notes.push(Note::RidgeChosen {
                    ridge,
                    held_out: captured,
                });
                ridge
            }
        };
        let (alphas, rank, of) = self.minima(constraint, lambda)?;
        if rank < of {
            notes.push(Note::MinimumNorm { rank, of });
        }
        Ok(Coefficiented {
            alphas,
            ridge: lambda,
            notes,
        })
    }
}

impl<T: Real> Problem<'_, T> {
    pub(crate) fn solve_task(&self, constraint: Constraint, ridge: Ridge) -> Result<Solution<T>> {
        let updates: Vec<&Matrix<T>> = self.tasks.iter().map(|task| task.update).collect();
        let split = self.split_tables(&updates, ridge, |table| table.summed())?;
        let solved = self.task_rows().summed().solve(split, constraint, ridge)?;
        Ok(self.combined(&updates, solved))
    }

    pub(crate) fn solve_list(
        &self,
        matrices: &[&Matrix<T>],
        constraint: Constraint,
        ridge: Ridge,
    ) -> Result<Solution<T>> {
        let split = self.split_tables(matrices, ridge, |table| table.summed())?;
        let table = RowTable::of(matrices, &self.all, self.prior.as_ref()).summed();
        let solved = table.solve(split, constraint, ridge)?;
        Ok(self.combined(matrices, solved))
    }

    /// The tables a ridge is chosen with, if it is to be chosen.
    pub(crate) fn split_tables(
        &self,
        matrices: &[&Matrix<T>],
        ridge: Ridge,
        finish: impl Fn(RowTable) -> RowTable,
    ) -> Result<Option<(RowTable, RowTable)>> {
        if ridge != Ridge::Auto {
            return Ok(None);
        }
        let split = self.split()?;
        let table = |quadratic| finish(RowTable::of(matrices, quadratic, self.prior.as_ref()));
        Ok(Some((table(&split.fitted), table(&split.held_out))))
    }

    /// Σ α_k B_k.
    fn combined(&self, matrices: &[&Matrix<T>], solved: Coefficiented) -> Solution<T> {
        let alpha = solved.alphas.into_iter().next().unwrap_or_default();
        let (m, d) = self.shape();
        let mut update = Matrix::zeros(m, d);
        for (matrix, &factor) in matrices.iter().zip(&alpha) {
            update.add_scaled(factor, matrix);
        }
        Solution {
            update,
            basis: Basis::Task,
            coefficients: Coefficients::List(alpha),
            factors: None,
            captured: Captured::new(0.0, 0.0, Vec::new()),
            ridge: solved.ridge,
            notes: solved.notes,
        }
    }

    pub(crate) fn solve_atoms(
        &self,
        rank: usize,
        constraint: Constraint,
        ridge: Ridge,
    ) -> Result<Solution<T>> {
        let mut notes = Vec::new();
        let pairs: Vec<Svd<T>> = self
            .decompositions()?
            .iter()
            .map(|svd| svd.leading(rank.min(svd.rank(0.0))))
            .collect();
        let most = pairs.iter().map(|svd| svd.values.len()).max().unwrap_or(0);
        if most < rank {
            notes.push(Note::RankReduced {
                from: rank,
                to: most,
            });
        }
        let left = Matrix::stack_rows(pairs.iter().map(|svd| &svd.left));
        let right = Matrix::stack_rows(pairs.iter().map(|svd| &svd.right));
        if left.rows() > LIMIT {
            return Err(Error::TooMany {
                basis: Basis::Atoms { rank }.to_string(),
                found: left.rows(),
                limit: LIMIT,
            });
        }
        let table = |quadratic: &Quadratic<T>| self.atom_table(&left, &right, quadratic);
        let split = match ridge {
            Ridge::Auto => {
                let split = self.split()?;
                Some((table(&split.fitted), table(&split.held_out)))
            }
            Ridge::Relative(_) => None,
        };
        let solved = table(&self.all).solve(split, constraint, ridge)?;
        notes.extend(solved.notes);
        let alpha = solved.alphas.into_iter().next().unwrap_or_default();
        let mut b = left;
        b.scale_rows(&alpha);
        let (m, d) = self.shape();
        let update = if alpha.is_empty() {
            Matrix::zeros(m, d)
        } else {
            gemm::mul_tn(&b, &right)
        };
        Ok(Solution {
            update,
            basis: Basis::Atoms { rank },
            coefficients: Coefficients::List(alpha),
            factors: self.prior.is_none().then(|| Factors {
                b: b.transpose(),
                a: right,
            }),
            captured: Captured::new(0.0, 0.0, Vec::new()),
            ridge: solved.ridge,
            notes,
        })
    }

    /// H = (UUᵀ)∘(VGVᵀ), b_k = u_k C v_kᵀ.
    fn atom_table(
        &self,
        left: &Matrix<T>,
        right: &Matrix<T>,
        quadratic: &Quadratic<T>,
    ) -> RowTable {
        let count = left.rows();
        let mut small = Small::zeros(count);
        if count > 0 {
            let outer = gemm::mul_nt(left, left);
            let inner = gemm::mul_nt(&gemm::mul(right, &quadratic.gram), right);
            let plain = gemm::mul_nt(right, right);
            let entry = |inner: &Matrix<T>, i: usize, j: usize| {
                let symmetric = f64::midpoint(inner.get(i, j).to_f64(), inner.get(j, i).to_f64());
                outer.get(i.min(j), i.max(j)).to_f64() * symmetric
            };
            small.h = Matrix::from_fn(count, count, |i, j| entry(&inner, i, j));
            small.n = Matrix::from_fn(count, count, |i, j| entry(&plain, i, j));
            small.b = gemm::mul(left, &quadratic.cross).row_dots(right);
            if let Some(prior) = &self.prior {
                small.p = gemm::mul(left, prior).row_dots(right);
            }
        }
        RowTable {
            programmes: vec![small],
            energy: quadratic.energy,
            unit: quadratic.unit,
            epsilon: T::EPSILON,
        }
    }
}
