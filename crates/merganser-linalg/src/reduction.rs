//! The reduction of a symmetric matrix to tridiagonal form, A = Q T Qᵀ.
//!
//! Row i, from the last to the second, is cleared left of its last two numbers by a reflection I − τ v vᵀ, for which A becomes
//! A − v wᵀ − w vᵀ with y = τ A v and w = y − (τ/2)(yᵀv) v. The product A v reads all that is left of A and cannot wait. The
//! update of A can: it is done for [`PANEL`] reflections at once, as one product of matrices, and until then row i and A v are
//! corrected by the pairs (v, w) that are pending. So every step reads the lower triangle once and writes nothing to it
//! (Dongarra, Hammarling and Sorensen, *Block reduction of matrices to condensed forms for eigenvalue computations*, Journal of
//! Computational and Applied Mathematics 27, 1989).

// What is not compiled into the caller is compiled for any processor.
#![allow(clippy::inline_always)]

use faer::{Accum, MatMut, MatRef};
use pulp::bytemuck::{cast_slice, cast_slice_mut};
use pulp::{Arch, Simd, WithSimd};

use crate::gemm::product_in_pieces;
use crate::matrix::dot;
use crate::symmetric::lower_triangle;
use crate::{Matrix, Real, gemm};

/// Reflections whose updates are done at once.
const PANEL: usize = 32;
/// Reflections that turn vectors at once.
const BLOCK: usize = 64;
/// Rows that are read at once, so that the vectors beside them are read less often.
const ROWS: usize = 4;
/// Independent sums in a product of vectors, added up at the end.
const LANES: usize = 8;

/// A = Q T Qᵀ.
pub(crate) struct Reduction<T> {
    /// The diagonal of T.
    pub(crate) diagonal: Vec<T>,
    /// The numbers below it.
    pub(crate) below: Vec<T>,
    /// The vector of reflection i: row i, of i numbers.
    reflections: Matrix<T>,
    /// τ of reflection i.
    factors: Vec<T>,
}

impl<T: Real> Reduction<T> {
    /// Reduces a square of which only the lower triangle is read. Its largest number should be about 1: a row whose square is
    /// below the smallest number of the type counts as zero.
    pub(crate) fn of(a: Matrix<T>) -> Self {
        Arch::new().dispatch(Reduce(a))
    }

    /// Turns eigenvectors of T, as rows, into those of A.
    pub(crate) fn turn(&self, vectors: &mut Matrix<T>) {
        let (k, n) = vectors.shape();
        for start in (1..n).step_by(BLOCK) {
            let end = (start + BLOCK).min(n);
            let mut v = Matrix::zeros(end - start, end);
            for i in start..end {
                v.row_mut(i - start)[..i].copy_from_slice(&self.reflections.row(i)[..i]);
            }
            // The product of the reflections, from the first to the last, is I − Vᵀ S V.
            let products = gemm::mul_nt(&v, &v);
            let mut s = Matrix::zeros(v.rows(), v.rows());
            for j in 0..v.rows() {
                let tau = self.factors[start + j];
                for i in 0..j {
                    let mut sum = T::default();
                    for l in i..j {
                        sum += s.get(i, l) * products.get(l, j);
                    }
                    s.set(i, j, T::default() - tau * sum);
                }
                s.set(j, j, tau);
            }
            let numbers = MatRef::from_row_major_slice(vectors.as_slice(), k, n).subcols(0, end);
            let mut along = Matrix::zeros(k, v.rows());
            product_in_pieces(
                along.columns_mut(),
                Accum::Replace,
                numbers,
                v.view().transpose(),
                1.0,
            );
            let along = gemm::mul(&along, &s);
            let numbers = vectors.columns_mut().subrows_mut(0, end);
            product_in_pieces(numbers, Accum::Add, along.view(), v.view(), -1.0);
        }
    }
}

/// What [`Reduction::of`] does, as one function that is compiled for what the processor can, with all loops in it.
struct Reduce<T>(Matrix<T>);

impl<T: Real> WithSimd for Reduce<T> {
    type Output = Reduction<T>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Reduction<T> {
        let Self(mut a) = self;
        let n = a.rows();
        let mut out = Reduction {
            diagonal: vec![T::default(); n],
            below: vec![T::default(); n.saturating_sub(1)],
            reflections: Matrix::zeros(0, 0),
            factors: vec![T::default(); n],
        };
        let mut end = n;
        while end > 0 {
            // Rows `start..end`. Pairs that are pending: v and w in turn.
            let start = end.saturating_sub(PANEL);
            let mut pairs = Matrix::zeros(2 * (end - start), end);
            for i in (start..end).rev() {
                let pending = &pairs.as_slice()[..2 * (end - 1 - i) * end];
                let of_row: Vec<T> = swapped(pending.chunks(end).map(|x| x[i]));
                subtract(&mut a.row_mut(i)[..=i], pending, &of_row);
                out.diagonal[i] = a.get(i, i);
                if i == 0 {
                    break;
                }
                let v = &mut a.row_mut(i)[..i];
                let (tau, beta) = reflect(v);
                (out.factors[i], out.below[i - 1]) = (tau, beta);
                if tau == T::default() {
                    continue;
                }
                let v = &a.row(i)[..i];
                let mut y = vec![T::default(); i];
                multiply(simd, &mut y, a.as_slice(), n, v);
                let mut products = vec![T::default(); pending.len() / end];
                for (product, x) in products.iter_mut().zip(pending.chunks(end)) {
                    *product = sum_of_products(&x[..i], v);
                }
                subtract(&mut y, pending, &swapped(products.into_iter()));
                let shift = T::from_f64(0.5 * tau.to_f64() * dot(&y, v));
                for (y, &v) in y.iter_mut().zip(v) {
                    *y = tau * (*y - shift * v);
                }
                let pair = 2 * (end - 1 - i);
                pairs.row_mut(pair)[..i].copy_from_slice(v);
                pairs.row_mut(pair + 1)[..i].copy_from_slice(&y);
            }
            if start > 0 {
                let order: Vec<usize> = swapped(0..pairs.rows());
                let others = pairs.gather_rows(&order);
                let rows = MatMut::from_column_major_slice_with_stride_mut(
                    a.as_mut_slice(),
                    start,
                    start,
                    n,
                );
                let (pairs, others) = (
                    pairs.view().subcols(0, start),
                    others.view().subcols(0, start),
                );
                lower_triangle(rows, Accum::Add, pairs.transpose(), others, -1.0);
            }
            end = start;
        }
        out.reflections = a;
        out
    }
}

/// Numbers of pairs, each pair the other way round.
fn swapped<T: Copy>(numbers: impl Iterator<Item = T>) -> Vec<T> {
    let mut out: Vec<T> = numbers.collect();
    for pair in out.chunks_exact_mut(2) {
        pair.swap(0, 1);
    }
    out
}

/// Makes x the vector v, with last number 1, of the reflection I − τ v vᵀ that turns x into β times the last unit vector; τ
/// and β. Where x is that already τ is zero.
fn reflect<T: Real>(x: &mut [T]) -> (T, T) {
    let Some((last, rest)) = x.split_last_mut() else {
        return (T::default(), T::default());
    };
    let (alpha, square) = (last.to_f64(), dot(rest, rest));
    if square <= T::SMALLEST {
        rest.fill(T::default());
        return (T::default(), *last);
    }
    let beta = -(alpha * alpha + square).sqrt().copysign(alpha);
    let scale = T::from_f64(1.0 / (alpha - beta));
    for x in rest {
        *x *= scale;
    }
    *last = T::from_f64(1.0);
    (T::from_f64((beta - alpha) / beta), T::from_f64(beta))
}

/// y += A v for a symmetric A, of which the lower triangle is read.
#[inline(always)]
fn multiply<T: Real, S: Simd>(simd: S, y: &mut [T], a: &[T], stride: usize, v: &[T]) {
    let n = v.len();
    for first in (0..n).step_by(ROWS) {
        let height = ROWS.min(n - first);
        let (above, own) = y.split_at_mut(first);
        let lines = &a[first * stride..];
        // At the end some rows come twice, with a factor of zero.
        let row = |r: usize| &lines[r.min(height - 1) * stride..];
        let factor = |r: usize| {
            if r < height {
                v[first + r]
            } else {
                T::default()
            }
        };
        let rows = std::array::from_fn(|r| &row(r)[..first]);
        let sums = both(simd, above, rows, &v[..first], std::array::from_fn(factor));
        for r in 0..height {
            let corner = &row(r)[first..];
            own[r] += sums[r] + corner[r] * factor(r);
            for c in 0..r {
                own[r] += corner[c] * factor(c);
                own[c] += corner[c] * factor(r);
            }
        }
    }
}

/// y += Σ factor · row; the products of the rows and v.
#[inline(always)]
fn both<T: Real, S: Simd>(
    simd: S,
    y: &mut [T],
    rows: [&[T]; ROWS],
    v: &[T],
    factors: [T; ROWS],
) -> [T; ROWS] {
    let ctx = T::simd_ctx(simd);
    let mul_add = |a, b, c| T::simd_mul_add::<S>(&ctx, a, b, c);
    let whole = y.len() - y.len() % lanes::<T, S>();
    let (y, y_rest) = y.split_at_mut(whole);
    let y: &mut [T::SimdVec<S>] = cast_slice_mut(y);
    let [a, b, c, d]: [&[T::SimdVec<S>]; ROWS] = rows.map(|row| cast_slice(&row[..whole]));
    let splat = factors.map(|x| T::simd_splat::<S>(&ctx, &x));
    let mut sums = [T::simd_splat::<S>(&ctx, &T::default()); ROWS];
    let v_whole: &[T::SimdVec<S>] = cast_slice(&v[..whole]);
    for (((((y, v), a), b), c), d) in y.iter_mut().zip(v_whole).zip(a).zip(b).zip(c).zip(d) {
        let mut here = *y;
        for ((row, sum), factor) in [a, b, c, d].into_iter().zip(&mut sums).zip(splat) {
            *sum = mul_add(*row, *v, *sum);
            here = mul_add(*row, factor, here);
        }
        *y = here;
    }
    let mut out = sums.map(|sum| T::simd_reduce_sum::<S>(&ctx, sum));
    for ((out, row), factor) in out.iter_mut().zip(rows).zip(factors) {
        for ((y, v), x) in y_rest.iter_mut().zip(&v[whole..]).zip(&row[whole..]) {
            *out += *x * *v;
            *y += *x * factor;
        }
    }
    out
}

/// Numbers in a vector of the processor.
#[inline(always)]
fn lanes<T: Real, S: Simd>() -> usize {
    size_of::<T::SimdVec<S>>() / size_of::<T>()
}

/// x − Σ factor · row, for rows that may be longer than x.
#[inline(always)]
fn subtract<T: Real>(x: &mut [T], rows: &[T], factors: &[T]) {
    let Some(stride) = rows.len().checked_div(factors.len()) else {
        return;
    };
    let n = x.len();
    for (rows, factors) in rows.chunks(2 * stride).zip(factors.chunks(2)) {
        let (first, second) = (&rows[..n], &rows[stride..][..n]);
        for ((x, a), b) in x.iter_mut().zip(first).zip(second) {
            *x -= *a * factors[0] + *b * factors[1];
        }
    }
}

/// Σ a b in the type of the data.
#[inline(always)]
fn sum_of_products<T: Real>(a: &[T], b: &[T]) -> T {
    let mut sums = [T::default(); LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let [p, q, r, s, t, u, v, w] = sums;
    let mut sum = ((p + t) + (q + u)) + ((r + v) + (s + w));
    for (a, b) in a_rest.iter().zip(b_rest) {
        sum += *a * *b;
    }
    sum
}
