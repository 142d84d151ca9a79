//! Core space: adapters merged in the small space that holds all of them.
//!
//! With V̂ an orthonormal basis of the rows of all A_t and Û of the columns of all B_t, each of at most R = Σ r_t vectors,
//! M_t = s_t Ûᵀ B_t A_t V̂ᵀ says all about an update: Û M_t V̂ = s_t B_t A_t. An inner method merges the M_t to M, and
//! Δ = Û M V̂ is again an adapter, B = Û M and A = V̂ (Panariello et al., *Core Space*, NeurIPS 2025, arXiv 2509.17786). A
//! method that commutes with orthogonal changes of basis (sum, mean, TSV-M, Iso-C, CART) gives what it would give on the
//! whole matrices, restricted to what the adapters span; TIES and DARE act on the coordinates in this basis.
//!
//! The bases are singular vectors of the stacked factors. With [B_1 … B_T] = Û S L, Ûᵀ B_t is the block of S L that belongs
//! to task t, and likewise on the other side, so that no product with m or n is needed for M_t, and no m×n matrix at all.

use merganser_linalg::{Matrix, Svd, gemm};

use crate::lora::common_shape;
use crate::span::{InSpan, Keep};
use crate::{Lora, Result};

/// The space that some adapters of one matrix share.
#[derive(Debug, Clone, PartialEq)]
pub struct CoreSpace {
    left: Matrix,
    right: Matrix,
    cores: Vec<Matrix>,
}

impl CoreSpace {
    /// Of adapters of one m×n matrix, of any ranks. Directions that are rounding of `f64` are left out.
    ///
    /// # Errors
    /// If there is no adapter, shapes differ, or a decomposition does not converge.
    pub fn of(adapters: &[Lora]) -> Result<Self> {
        common_shape(adapters)?;
        let ranks: Vec<usize> = adapters.iter().map(Lora::rank).collect();
        let transposed: Vec<Matrix> = adapters.iter().map(|x| x.b().transpose()).collect();
        let side = |factors: Matrix| -> Result<_> {
            let svd = Svd::of(&factors)?;
            let svd = svd.leading(svd.rank(0.0));
            Ok((blocks(&svd, &ranks), svd.right))
        };
        let (outputs, inputs) = rayon::join(
            || side(Matrix::stack_rows(&transposed)),
            || side(Matrix::stack_rows(adapters.iter().map(Lora::a))),
        );
        let ((outputs, left), (inputs, right)) = (outputs?, inputs?);
        let cores = outputs
            .iter()
            .zip(&inputs)
            .zip(adapters)
            .map(|((output, input), adapter)| {
                let mut core = gemm::mul_nt(output, input);
                core.scale(adapter.scale());
                core
            })
            .collect();
        Ok(Self { left, right, cores })
    }

    /// M_t of every task.
    pub fn cores(&self) -> &[Matrix] {
        &self.cores
    }

    /// Û with a vector a row, of m numbers: orthonormal.
    pub fn left(&self) -> &Matrix {
        &self.left
    }

    /// V̂ with a vector a row, of n numbers: orthonormal.
    pub fn right(&self) -> &Matrix {
        &self.right
    }

    /// The adapter Û M V̂, of scale 1.
    ///
    /// # Errors
    /// If M is not finite.
    ///
    /// # Panics
    /// If M does not have the shape of the cores.
    pub fn adapter(&self, core: &Matrix) -> Result<Lora> {
        Lora::new(self.right.clone(), gemm::mul_tn(&self.left, core), 1.0)
    }
}

/// The merged adapter, of scale 1 and of the rank of what the adapters span together; `keep` says which coordinates
/// DARE keeps.
///
/// # Errors
/// If there is no adapter, shapes differ, a share of the inner method is out of range, or a decomposition does not converge.
pub fn core_space(adapters: &[Lora], method: &InSpan, keep: Keep<'_>) -> Result<Lora> {
    let space = CoreSpace::of(adapters)?;
    space.adapter(&method.merge(&space.cores, keep)?)
}

/// Of the decomposition of stacked rows, diag(σ) times the left vectors, cut into what belongs to each task.
pub(crate) fn blocks(svd: &Svd, sizes: &[usize]) -> Vec<Matrix> {
    let mut from = 0;
    sizes
        .iter()
        .map(|&size| {
            let block = Matrix::from_fn(svd.values.len(), size, |k, j| {
                svd.values[k] * svd.left.get(k, from + j)
            });
            from += size;
            block
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::span::Inner;
    use crate::testing::{distance, update};

    fn adapters(m: usize, n: usize, ranks: &[usize]) -> Vec<Lora> {
        (0_u32..)
            .zip(ranks)
            .map(|(t, &rank)| {
                let scale = 0.5 + f64::from(t);
                Lora::new(update(t, rank, n), update(t + 50, m, rank), scale).unwrap()
            })
            .collect()
    }

    #[test]
    fn nothing_of_an_update_is_lost() {
        for (m, n, ranks) in [
            (30, 20, vec![2, 4, 3]),
            (5, 20, vec![4, 4]),
            (9, 1, vec![2]),
            (6, 6, vec![0, 2]),
        ] {
            let adapters = adapters(m, n, &ranks);
            let space = CoreSpace::of(&adapters).unwrap();
            for (adapter, core) in adapters.iter().zip(space.cores()) {
                let back = space.adapter(core).unwrap().update();
                assert!(distance(&back, &adapter.update()) < 1e-12);
            }
        }
    }

    #[test]
    fn dependent_factors_span_less() {
        let one = adapters(10, 8, &[3]).remove(0);
        let merged = core_space(&[one.clone(), one.clone()], &Inner::Mean.into(), &|_, _| {
            true
        })
        .unwrap();
        assert_eq!(merged.rank(), 3);
        assert!(distance(&merged.update(), &one.update()) < 1e-12);
    }

    #[test]
    fn adapters_of_nothing_merge_to_nothing() {
        let zero = Lora::new(update(1, 2, 5), Matrix::zeros(4, 2), 1.0).unwrap();
        for inner in [
            Inner::TaskArithmetic,
            Inner::Tsv,
            Inner::IsoC,
            Inner::Ties { density: 0.5 },
        ] {
            let merged = core_space(&[zero.clone(), zero.clone()], &inner.into(), &|_, _| true);
            assert_eq!(merged.unwrap().update(), Matrix::zeros(4, 5));
        }
        assert!(core_space(&[], &Inner::Mean.into(), &|_, _| true).is_err());
    }
}
