//! The leading part of a matrix from random combinations of its rows or columns, with a measured residual.
//!
//! For A (m×n, m ≤ n) and p random sign vectors Ω, the columns of (A Aᵀ)^q A Ω span nearly what the p leading left singular
//! vectors span; with an orthonormal basis Q of them A ≈ Q (Qᵀ A), and the triples of the small matrix Qᵀ A are those of A
//! (Halko, Martinsson and Tropp, *Finding structure with randomness*, SIAM Review 2011, algorithms 4.4 and 5.1). What is
//! outside of the basis is known exactly: ‖A − Q Qᵀ A‖² = ‖A‖² − ‖Qᵀ A‖². A flat spectrum needs more passes q; no number of
//! them tells singular values apart that are equal.

use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::householder;
use faer::linalg::qr::no_pivoting::factor;
use faer::prelude::default;
use faer::{Conj, Mat, MatMut, Par};

use crate::{Matrix, Real, Result, Svd, gemm, registers};

/// How much work a randomised decomposition does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sketch {
    /// Directions beyond those asked for.
    pub oversampling: usize,
    /// Passes q of power iteration; each multiplies by A twice.
    pub passes: usize,
    /// The same seed gives the same bits.
    pub seed: u64,
}

impl Default for Sketch {
    /// 10 directions more and 2 passes.
    fn default() -> Self {
        Self {
            oversampling: 10,
            passes: 2,
            seed: 0,
        }
    }
}

/// Leading triples, and how much of the matrix they leave out.
#[derive(Debug, Clone, PartialEq)]
pub struct Sketched {
    /// Approximate leading triples, without those that are rounding.
    pub svd: Svd,
    /// ‖A − Q Qᵀ A‖_F / ‖A‖_F, 0 to 1, of the basis Q that was found: what no triple of it can tell. 0 for A = 0.
    pub residual: f64,
}

impl Sketch {
    /// About the `k` largest singular triples of a matrix of numbers with this ε; the products run in the type of A. Where
    /// the basis would be the whole smaller side, they are those of [`Svd::truncated`].
    ///
    /// # Errors
    /// If the matrix is not finite or a small decomposition does not converge.
    pub fn leading<T: Real>(&self, a: &Matrix<T>, k: usize, epsilon: f64) -> Result<Sketched> {
        let (m, n) = a.shape();
        let size = k.saturating_add(self.oversampling);
        // What is not finite has no norm in this range.
        let norm = a.norm();
        if size >= m.min(n) || k == 0 || !(1e-30..1e30).contains(&norm) {
            let svd = Svd::truncated(a, k, epsilon)?;
            return Ok(Sketched { svd, residual: 0.0 });
        }
        let wide = m <= n;
        // Rows: combinations of A's columns if A is wide, of its rows if it is tall; so is the basis, on the smaller side.
        let onto_basis_side = |x: &Matrix<T>| {
            if wide {
                gemm::mul_nt(x, a)
            } else {
                gemm::mul(x, a)
            }
        };
        let onto_other_side = |q: &Matrix<T>| {
            if wide {
                gemm::mul(q, a)
            } else {
                gemm::mul_nt(q, a)
            }
        };
        let mut basis = orthonormalised(&onto_basis_side(&signs(size, m.max(n), self.seed)));
        for _ in 0..self.passes {
            let other = orthonormalised(&onto_other_side(&basis));
            basis = orthonormalised(&onto_basis_side(&other));
        }
        let coordinates = onto_other_side(&basis).cast::<f64>();
        let total = norm.powi(2);
        let residual = ((total - coordinates.norm().powi(2)) / total)
            .max(0.0)
            .sqrt();
        // Of coordinates (p × other side) = U' Σ W'ᵀ: U' turns the basis.
        let small = Svd::truncated(&coordinates, k, epsilon.max(T::EPSILON))?;
        let own = gemm::mul(&small.left, &basis.cast());
        let (left, right) = if wide {
            (own, small.right)
        } else {
            (small.right, own)
        };
        let svd = Svd {
            left,
            values: small.values,
            right,
        };
        Ok(Sketched {
            svd: svd.signed(),
            residual,
        })
    }
}

/// Orthonormal rows that span the rows of a p×d matrix with p ≤ d (and more, if those are dependent).
fn orthonormalised<T: Real>(rows: &Matrix<T>) -> Matrix<T> {
    let (p, d) = rows.shape();
    let block = factor::recommended_block_size::<T>(d, p);
    let scratch = StackReq::any_of(&[
        factor::qr_in_place_scratch::<T>(d, p, block, Par::Seq, default()),
        householder::apply_block_householder_sequence_on_the_left_in_place_scratch::<T>(
            d, block, p,
        ),
    ]);
    let mut memory = MemBuffer::new(scratch);
    // faer works on columns, which are the rows of our matrices.
    let mut reflections = rows.clone();
    let mut reflections = MatMut::from_column_major_slice_mut(reflections.as_mut_slice(), d, p);
    let mut factors = Mat::<T>::zeros(block, p);
    factor::qr_in_place(
        reflections.as_mut(),
        factors.as_mut(),
        Par::Seq,
        MemStack::new(&mut memory),
        default(),
    );
    let mut q = Matrix::from_fn(p, d, |i, j| T::from_f64(f64::from(u8::from(i == j))));
    householder::apply_block_householder_sequence_on_the_left_in_place_with_conj(
        reflections.as_ref(),
        factors.as_ref(),
        Conj::No,
        MatMut::from_column_major_slice_mut(q.as_mut_slice(), d, p),
        Par::Seq,
        MemStack::new(&mut memory),
    );
    registers::clear();
    q
}

/// Rows of random signs: the splitmix64 sequence of the seed, one bit a number.
fn signs<T: Real>(rows: usize, cols: usize, seed: u64) -> Matrix<T> {
    let mut state = seed;
    let (mut bits, mut left) = (0_u64, 0);
    Matrix::from_fn(rows, cols, |_, _| {
        if left == 0 {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (bits, left) = (z ^ (z >> 31), 64);
        }
        let sign = if bits & 1 == 0 { 1.0 } else { -1.0 };
        bits >>= 1;
        left -= 1;
        T::from_f64(sign)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Orthonormal factors around the given singular values.
    fn with_spectrum(m: usize, n: usize, values: &[f64]) -> Matrix {
        let left = orthonormalised(&signs::<f64>(values.len(), m, 1));
        let mut right = orthonormalised(&signs::<f64>(values.len(), n, 2));
        right.scale_rows(values);
        gemm::mul_tn(&left, &right)
    }

    #[test]
    fn a_falling_spectrum_is_found_and_the_residual_is_what_is_left() {
        let values: Vec<f64> = (0..60).map(|i| 0.7_f64.powi(i)).collect();
        for (m, n) in [(80, 120), (120, 80)] {
            let a = with_spectrum(m, n, &values);
            let exact = Svd::truncated(&a, 12, 0.0).unwrap();
            let found = Sketch::default().leading(&a, 12, 0.0).unwrap();
            for i in 0..12 {
                let error = (found.svd.values[i] / exact.values[i] - 1.0).abs();
                assert!(error < 1e-4, "value {i}: {error}");
            }
            let close = gemm::mul_nt(&found.svd.left, &exact.left);
            for i in 0..12 {
                assert!(close.get(i, i).abs() > 0.9999, "vector {i}");
            }
            // At best the 22 largest values are in the basis.
            let rest = |from: usize| values[from..].iter().map(|x| x * x).sum::<f64>().sqrt();
            let best = rest(22) / rest(0);
            assert!(found.residual >= 0.99 * best && found.residual < 1.5 * best);
        }
    }

    #[test]
    fn an_update_of_low_rank_is_exact_in_both_precisions() {
        let a = with_spectrum(90, 200, &[3.0, 2.0, 1.5, 0.5]);
        let found = Sketch::default().leading(&a, 8, 0.0).unwrap();
        assert_eq!(found.svd.values.len(), 4);
        assert!(found.residual < 1e-7);
        let mut right = found.svd.right.clone();
        right.scale_rows(&found.svd.values);
        let mut rebuilt = gemm::mul_tn(&found.svd.left, &right);
        rebuilt.add_scaled(-1.0, &a);
        assert!(rebuilt.norm() < 1e-12 * a.norm());
        let single = Sketch::default()
            .leading(&a.cast::<f32>(), 8, f64::from(f32::EPSILON))
            .unwrap();
        assert_eq!(single.svd.values.len(), 4);
        assert!((single.svd.values[3] - 0.5).abs() < 1e-5);
    }

    #[test]
    fn the_seed_decides_the_bits() {
        let values: Vec<f64> = (0..40).map(|i| 1.0 / f64::from(i + 1)).collect();
        let a = with_spectrum(50, 60, &values);
        let of = |seed| {
            let sketch = Sketch {
                seed,
                ..Sketch::default()
            };
            sketch.leading(&a, 5, 0.0).unwrap()
        };
        assert_eq!(of(3), of(3));
        assert_ne!(of(3), of(4));
    }

    #[test]
    fn small_zero_and_hostile_matrices() {
        let sketch = Sketch::default();
        let zero = sketch.leading(&Matrix::<f64>::zeros(30, 40), 4, 0.0);
        let zero = zero.unwrap();
        assert_eq!((zero.svd.values.len(), zero.residual), (0, 0.0));
        let a = with_spectrum(9, 14, &[2.0, 1.0]);
        let exact = sketch.leading(&a, 4, 0.0).unwrap();
        assert_eq!(exact.svd, Svd::truncated(&a, 4, 0.0).unwrap());
        assert_eq!(sketch.leading(&a, 0, 0.0).unwrap().svd.values.len(), 0);
        let nan = Matrix::from_fn(40, 40, |_, _| f64::NAN);
        assert!(sketch.leading(&nan, 4, 0.0).is_err());
        assert!(
            sketch
                .leading(&Matrix::<f32>::zeros(0, 5), 4, 0.0)
                .unwrap()
                .svd
                .values
                .is_empty()
        );
    }
}
