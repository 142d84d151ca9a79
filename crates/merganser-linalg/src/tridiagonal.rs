//! Eigenpairs of a symmetric tridiagonal matrix: all of them, or only the leading ones for a fraction of the work.
//!
//! Divide and conquer tears T into halves, T = diag(T₁, T₂) + ρ u uᵀ, and puts their eigenvectors together. Of a matrix of
//! dimension n the last such step is most of the work, n³ operations, because it multiplies out all vectors. [`leading`] does it
//! for k vectors: n² k. With T_i = Q_i D_i Q_iᵀ and z = diag(Q₁, Q₂)ᵀ u the eigenvalues of T are the roots of
//! 1 + ρ Σ z_i² / (d_i − λ), and the vector of λ has the coordinates ẑ_i / (d_i − λ), where ẑ is the vector whose roots are
//! exactly those that were found, so that vectors come out orthogonal however close their values are (Cuppen, 1981; Gu and
//! Eisenstat, *A stable and efficient algorithm for the rank-one modification of the symmetric eigenproblem*, SIAM Journal on
//! Matrix Analysis and Applications 15, 1994).

// What is not compiled into the caller is compiled for any processor.
#![allow(clippy::inline_always)]

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{
    ComputeEigenvectors, self_adjoint_evd_scratch, tridiagonal_self_adjoint_evd,
};
use faer::prelude::default;
use faer::{Accum, Par};
use pulp::{Arch, Simd, WithSimd};

use crate::eigen::power_of_two;
use crate::gemm::product_in_pieces;
use crate::{Error, Matrix, Real, Result, registers};

/// Up to this dimension a matrix is not torn.
const SMALL: usize = 64;
/// Iterations for one root; a handful is usual, and every one at least keeps the bracket.
const MOST: usize = 100;
/// Independent sums, added up at the end.
const LANES: usize = 8;

/// The pairs of the `k` largest eigenvalues of the matrix with this diagonal and these numbers below it: values in descending
/// order and vectors as rows. In `f64`, except for most pairs of an `f32` matrix.
///
/// # Errors
/// If the iteration does not converge.
pub(crate) fn leading<T: Real>(
    diagonal: &[T],
    below: &[T],
    k: usize,
) -> Result<(Vec<f64>, Matrix<T>)> {
    let all = diagonal.iter().chain(below);
    let largest = all.fold(0.0_f64, |max, x| max.max(x.to_f64().abs()));
    // faer's iteration is exact to an absolute size, and here squares of differences stay in range.
    let scale = power_of_two(largest);
    let scaled = |x: &[T]| x.iter().map(|x| x.to_f64() / scale).collect::<Vec<_>>();
    let (diagonal, mut below) = (scaled(diagonal), scaled(below));
    // Far below rounding, and all that the iteration may not get over.
    for x in &mut below {
        if x.abs() < f64::EPSILON.powi(2) {
            *x = 0.0;
        }
    }
    let (mut values, vectors) = if T::EPSILON > f64::EPSILON && 2 * k > diagonal.len() {
        let single = |x: &[f64]| x.iter().map(|x| T::from_f64(*x)).collect::<Vec<_>>();
        whole(&single(&diagonal), &single(&below), k)?
    } else {
        let (values, vectors) = torn(diagonal, &below, k)?;
        (values, vectors.cast())
    };
    for x in &mut values {
        *x *= scale;
    }
    Ok((values, vectors))
}

/// The same by tearing.
fn torn(mut diagonal: Vec<f64>, below: &[f64], k: usize) -> Result<(Vec<f64>, Matrix)> {
    let n = diagonal.len();
    if n <= SMALL {
        return whole(&diagonal, below, k);
    }
    let half = n / 2;
    let (rho, sign) = (below[half - 1].abs(), below[half - 1].signum());
    diagonal[half - 1] -= rho;
    diagonal[half] -= rho;
    let rest = diagonal.split_off(half);
    let (mut d, first) = torn(diagonal, &below[..half - 1], half)?;
    let (rest, second) = torn(rest, &below[half..], n - half)?;
    d.extend(rest);
    let mut z: Vec<f64> = (0..half).map(|i| first.get(i, half - 1)).collect();
    z.extend((0..n - half).map(|i| sign * second.get(i, 0)));

    let update = RankOne::deflated(d, z, rho);
    let (values, coordinates) = update.leading(k);
    let mut vectors = Matrix::zeros(values.len(), n);
    for (from, part) in [(0, &first), (half, &second)] {
        let own = coordinates.view().subcols(from, part.rows());
        let out = vectors.columns_mut().subrows_mut(from, part.cols());
        product_in_pieces(out, Accum::Replace, own, part.view(), 1.0);
    }
    Ok((values, vectors))
}

/// The same by faer's iteration. It starts at the end and may not converge where numbers rise by many orders of magnitude
/// towards it, so that it gets them the other way round.
fn whole<T: Real>(diagonal: &[T], below: &[T], k: usize) -> Result<(Vec<f64>, Matrix<T>)> {
    let n = diagonal.len();
    let size = |x: Option<&T>| x.map_or(0.0, |x| x.to_f64().abs());
    let rises = size(diagonal.first()) < size(diagonal.last());
    let of = |x: &[T]| {
        let mut out = Diag::<T>::zeros(n);
        for (i, number) in x.iter().enumerate() {
            out[if rises { x.len() - 1 - i } else { i }] = *number;
        }
        out
    };
    let mut values = Diag::<T>::zeros(n);
    let mut vectors = Matrix::<T>::zeros(n, n);
    let scratch = self_adjoint_evd_scratch::<T>(n, ComputeEigenvectors::Yes, Par::Seq, default());
    tridiagonal_self_adjoint_evd(
        of(diagonal).as_ref(),
        of(below).as_ref(),
        values.as_mut(),
        Some(faer::MatMut::from_column_major_slice_mut(
            vectors.as_mut_slice(),
            n,
            n,
        )),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        default(),
    )
    .map_err(|_| Error::NoConvergence("eigendecomposition"))?;
    registers::clear();
    let values: Vec<f64> = (0..n).map(|i| values[i].to_f64()).collect();
    if values.iter().any(|x| !x.is_finite()) {
        return Err(Error::NoConvergence("eigendecomposition"));
    }
    let order = descending(&values, k);
    let values = order.iter().map(|&i| values[i]).collect();
    let mut vectors = vectors.gather_rows(&order);
    if rises {
        for i in 0..order.len() {
            vectors.row_mut(i).reverse();
        }
    }
    Ok((values, vectors))
}

/// The places of the `k` largest values, the largest first.
fn descending(values: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[j].total_cmp(&values[i]));
    order.truncate(k);
    order
}

/// D + ρ z zᵀ after the coordinates that the update does not change were set aside.
struct RankOne {
    /// The diagonal; of coordinates set aside these are eigenvalues.
    d: Vec<f64>,
    /// Coordinates that the update does change, in ascending order of d.
    active: Vec<usize>,
    /// Their z.
    z: Vec<f64>,
    rho: f64,
    /// Rotations (p, q, c, s) that made z_p = 0 where d_p and d_q nearly agree, in the order they were done.
    rotations: Vec<(usize, usize, f64, f64)>,
    /// Loops are compiled for what the processor can; the bits are the same.
    arch: Arch,
}

/// A root λ = d[pole] + offset: as close to a pole as it may lie, the offset is known to its own precision.
#[derive(Clone, Copy)]
struct Root {
    pole: usize,
    offset: f64,
}

impl RankOne {
    fn deflated(mut d: Vec<f64>, mut z: Vec<f64>, rho: f64) -> Self {
        let largest = |x: &[f64]| x.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
        let tolerance = 8.0 * f64::EPSILON * largest(&d).max(rho * largest(&z));
        let mut order: Vec<usize> = (0..d.len()).collect();
        order.sort_by(|&i, &j| d[i].total_cmp(&d[j]));
        let (mut active, mut rotations) = (Vec::<usize>::new(), Vec::new());
        for q in order {
            if rho * z[q].abs() <= tolerance {
                continue;
            }
            if let Some(&p) = active.last() {
                let length = z[p].hypot(z[q]);
                let (c, s) = (z[q] / length, -z[p] / length);
                if ((d[q] - d[p]) * c * s).abs() <= tolerance {
                    rotations.push((p, q, c, s));
                    (z[p], z[q]) = (0.0, length);
                    (d[p], d[q]) = (d[p] * c * c + d[q] * s * s, d[p] * s * s + d[q] * c * c);
                    active.pop();
                }
            }
            active.push(q);
        }
        let z = active.iter().map(|&i| z[i]).collect();
        Self {
            d,
            active,
            z,
            rho,
            rotations,
            arch: Arch::new(),
        }
    }

    /// The `k` largest eigenvalues and their vectors' coordinates, as rows.
    fn leading(&self, k: usize) -> (Vec<f64>, Matrix) {
        let n = self.d.len();
        let d: Vec<f64> = self.active.iter().map(|&i| self.d[i]).collect();
        let roots: Vec<Root> = (0..d.len()).map(|i| self.root(&d, i)).collect();
        let z = self.exact_for(&d, &roots);
        // An eigenvalue by coordinate: of the active ones the roots, in their order.
        let mut values = self.d.clone();
        let mut root_of = vec![None; n];
        for (root, &i) in roots.iter().zip(&self.active) {
            values[i] = d[root.pole] + root.offset;
            root_of[i] = Some(*root);
        }
        let order = descending(&values, k);
        let mut coordinates = Matrix::zeros(order.len(), n);
        for (to, &from) in order.iter().enumerate() {
            let row = coordinates.row_mut(to);
            let Some(root) = root_of[from] else {
                row[from] = 1.0;
                continue;
            };
            let mut square = 0.0;
            for ((&i, d_i), z_i) in self.active.iter().zip(&d).zip(&z) {
                let x = z_i / (d_i - d[root.pole] - root.offset);
                square += x * x;
                row[i] = x;
            }
            let scale = 1.0 / square.sqrt();
            for &i in &self.active {
                row[i] *= scale;
            }
        }
        for i in 0..order.len() {
            let row = coordinates.row_mut(i);
            for &(p, q, c, s) in self.rotations.iter().rev() {
                (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
            }
        }
        (order.iter().map(|&i| values[i]).collect(), coordinates)
    }

    /// Root number i, between d_i and the next pole (the last one: at most ρ ‖z‖² above d_i).
    fn root(&self, d: &[f64], i: usize) -> Root {
        let square: f64 = self.z.iter().map(|z| z * z).sum();
        let last = i + 1 == d.len();
        let width = if last {
            self.rho * square
        } else {
            d[i + 1] - d[i]
        };
        // The pole it is nearer to: the function rises from one to the next.
        let pole = if last || self.at(d, i, i, width / 2.0).total >= 0.0 {
            i
        } else {
            i + 1
        };
        let (mut low, mut high) = match (last, pole == i) {
            (true, _) => (0.0, width),
            (_, true) => (0.0, width / 2.0),
            _ => (-width / 2.0, 0.0),
        };
        let mut offset = f64::midpoint(low, high);
        for _ in 0..MOST {
            let here = self.at(d, i, pole, offset);
            if here.total.abs() <= here.rounding {
                break;
            }
            if here.total < 0.0 {
                low = offset;
            } else {
                high = offset;
            }
            let own = d[i] - d[pole] - offset;
            let next = if last {
                offset
                    + own
                    + here.slope_left * own * own / (1.0 + here.left - here.slope_left * own)
            } else {
                offset + here.step(own, d[i + 1] - d[pole] - offset)
            };
            // What leaves the bracket, or is no number, is replaced by its middle.
            let inside = next > low && next < high;
            let next = if inside {
                next
            } else {
                f64::midpoint(low, high)
            };
            if next == offset || high - low <= f64::EPSILON * low.abs().max(high.abs()) {
                break;
            }
            offset = next;
        }
        Root { pole, offset }
    }

    /// The function at d[pole] + offset; its terms up to number i are those of poles on the left.
    fn at(&self, d: &[f64], i: usize, pole: usize, offset: f64) -> Value {
        let at = d[pole];
        let sums = |from, to| {
            self.arch.dispatch(Sums {
                d: &d[from..to],
                z: &self.z[from..to],
                pole: at,
                offset,
            })
        };
        let ((left, slope_left), (right, slope_right)) = (sums(0, i + 1), sums(i + 1, d.len()));
        let [left, slope_left, right, slope_right] =
            [left, slope_left, right, slope_right].map(|x| x * self.rho);
        Value {
            total: 1.0 + left + right,
            left,
            right,
            slope_left,
            slope_right,
            rounding: f64::EPSILON
                * (8.0 * (1.0 + left.abs() + right.abs())
                    + offset.abs() * (slope_left + slope_right)),
        }
    }

    /// The z for which the roots that were found are exact.
    fn exact_for(&self, d: &[f64], roots: &[Root]) -> Vec<f64> {
        let squares = self.arch.dispatch(Squares {
            d,
            roots,
            rho: self.rho,
        });
        squares
            .iter()
            .zip(&self.z)
            .map(|(square, z)| square.max(0.0).sqrt().copysign(*z))
            .collect()
    }
}

/// Σ z_j² / (d_j − λ) and Σ z_j² / (d_j − λ)² for λ = pole + offset.
struct Sums<'a> {
    d: &'a [f64],
    z: &'a [f64],
    pole: f64,
    offset: f64,
}

impl WithSimd for Sums<'_> {
    type Output = (f64, f64);

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> (f64, f64) {
        let (mut sum, mut slope) = ([0.0; LANES], [0.0; LANES]);
        let (d_rows, d_rest) = self.d.as_chunks::<LANES>();
        let (z_rows, z_rest) = self.z.as_chunks::<LANES>();
        for (d, z) in d_rows.iter().zip(z_rows) {
            for lane in 0..LANES {
                let x = z[lane] / (d[lane] - self.pole - self.offset);
                sum[lane] += z[lane] * x;
                slope[lane] += x * x;
            }
        }
        for (lane, (d, z)) in d_rest.iter().zip(z_rest).enumerate() {
            let x = z / (d - self.pole - self.offset);
            sum[lane] += z * x;
            slope[lane] += x * x;
        }
        (sum.iter().sum(), slope.iter().sum())
    }
}

/// The squares of the ẑ for which the roots that were found are exact, by Löwner's formula.
struct Squares<'a> {
    d: &'a [f64],
    roots: &'a [Root],
    rho: f64,
}

impl WithSimd for Squares<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Vec<f64> {
        let d = self.d;
        let mut squares = vec![1.0; d.len()];
        for (j, root) in self.roots.iter().enumerate() {
            let (pole, offset, own) = (d[root.pole], root.offset, squares[j]);
            for (square, d_i) in squares.iter_mut().zip(d) {
                *square *= ((pole - d_i) + offset) / (d[j] - d_i);
            }
            squares[j] = own * (((pole - d[j]) + offset) / self.rho);
        }
        squares
    }
}

/// 1 + ρ Σ z_j² / (d_j − λ) at some λ.
struct Value {
    total: f64,
    /// Terms of the poles left of the root, and of the others.
    left: f64,
    right: f64,
    slope_left: f64,
    slope_right: f64,
    /// What of the value is rounding.
    rounding: f64,
}

impl Value {
    /// How far the root of a + b/(d_i − λ) + c/(d_{i+1} − λ) lies that agrees with the terms and slopes of both sides here,
    /// at distances `own` and `next` from the two poles (Bunch, Nielsen and Sorensen, 1978).
    fn step(&self, own: f64, next: f64) -> f64 {
        let (b, c) = (self.slope_left * own * own, self.slope_right * next * next);
        let a = 1.0 + self.left + self.right - self.slope_left * own - self.slope_right * next;
        // a η² − linear η + constant = 0.
        let linear = a * (own + next) + b + c;
        let constant = own * next * self.total;
        let root = (linear * linear - 4.0 * a * constant).max(0.0).sqrt();
        if linear <= 0.0 {
            (linear - root) / (2.0 * a)
        } else {
            2.0 * constant / (linear + root)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::gemm;
    use proptest::prelude::*;

    fn check(diagonal: &[f64], below: &[f64], k: usize) {
        let n = diagonal.len();
        let (values, vectors) = leading(diagonal, below, k).unwrap();
        let size = diagonal
            .iter()
            .chain(below)
            .fold(0.0_f64, |max, x| max.max(x.abs()));
        // faer's iteration is exact to an absolute size.
        let scaled = |x: &[f64]| x.iter().map(|x| x / size.max(1e-300)).collect::<Vec<_>>();
        let (expected, _) = whole(&scaled(diagonal), &scaled(below), k).unwrap();
        let expected: Vec<f64> = expected.iter().map(|x| x * size).collect();
        let close = 1e-13 * (n as f64).sqrt();
        assert_eq!(values.len(), k.min(n));
        for (x, y) in values.iter().zip(&expected) {
            assert!((x - y).abs() <= close * size, "{x} {y}");
        }
        let mut gram = gemm::mul_nt(&vectors, &vectors);
        gram.add_scaled(-1.0, &Matrix::identity(values.len()));
        assert!(gram.norm() < close * 30.0, "{}", gram.norm());
        for (i, value) in values.iter().enumerate() {
            let v = vectors.row(i);
            for j in 0..n {
                let mut x = (diagonal[j] - value) * v[j];
                if j > 0 {
                    x += below[j - 1] * v[j - 1];
                }
                if j + 1 < n {
                    x += below[j] * v[j + 1];
                }
                assert!(x.abs() <= close * size, "row {j} of pair {i}: {x}");
            }
        }
    }

    #[test]
    fn pairs_of_matrices_of_all_kinds() {
        let n = 150;
        let wave = |i: usize| ((i * i) as f64 * 0.7).sin();
        let numbers: Vec<f64> = (0..n).map(wave).collect();
        let graded: Vec<f64> = (0..n).map(|i| 0.8_f64.powi(i as i32)).collect();
        let rising: Vec<f64> = (0..n).map(|i| i as f64).collect();
        // Wilkinson's: pairs of eigenvalues that agree to the last digit.
        let wilkinson: Vec<f64> = (0..n).map(|i| (i as f64 - 74.5).abs()).collect();
        let (ones, zeros, twos) = (vec![1.0; n], vec![0.0; n], vec![2.0; n]);
        let signs: Vec<f64> = (0..n)
            .map(|i| if i % 2 == 0 { 1.0 } else { -1.0 })
            .collect();
        let mut torn = numbers.clone();
        torn[74] = 0.0;
        for diagonal in [&numbers, &graded, &rising, &wilkinson, &twos, &zeros] {
            for below in [&numbers, &graded, &ones, &zeros, &signs, &torn] {
                for k in [1, 20, 150] {
                    check(diagonal, &below[..n - 1], k);
                }
            }
        }
    }

    #[test]
    fn numbers_of_all_orders_of_magnitude() {
        for n in [8_usize, 30, 64, 100] {
            let rising = |i: usize| 300.0 * (i as f64 / n as f64 - 1.0);
            let falling = |i: usize| rising(n - 1 - i);
            let peak = |i: usize| rising(2 * i.min(n - 1 - i));
            let valley = |i: usize| rising(2 * i.max(n - 1 - i) - n);
            let exponents: [&dyn Fn(usize) -> f64; 4] = [&rising, &falling, &peak, &valley];
            for exponent in exponents {
                let diagonal: Vec<f64> = (0..n)
                    .map(|i| 10_f64.powf(exponent(i)) * (1.0 + (i as f64).sin().abs()))
                    .collect();
                let (mean, min, max) = (|x: f64, y: f64| (x * y).sqrt(), f64::min, f64::max);
                let between: [&dyn Fn(f64, f64) -> f64; 3] = [&mean, &min, &max];
                for between in between {
                    let pairs = diagonal.windows(2);
                    let below: Vec<f64> = pairs.map(|d| between(d[0], d[1])).collect();
                    let (values, vectors) = leading(&diagonal, &below, n).unwrap();
                    assert!(values.iter().all(|x| x.is_finite()));
                    let mut gram = gemm::mul_nt(&vectors, &vectors);
                    gram.add_scaled(-1.0, &Matrix::identity(n));
                    assert!(gram.norm() < 1e-12);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn pairs_of_random_matrices_with_clusters(
            entries in prop::collection::vec((0_u8..5, 0_u8..5, -1.0..1.0_f64), 64..200),
            k in 1_usize..32,
        ) {
            // Few different numbers, so that eigenvalues meet; and couplings that vanish or nearly do.
            let diagonal: Vec<f64> = entries.iter().map(|(a, _, x)| f64::from(*a) + if *a > 2 { *x } else { 0.0 }).collect();
            let below: Vec<f64> = entries.iter().map(|(_, b, x)| [0.0, 1e-14, 1e-7, 1.0, *x][usize::from(*b)]).collect();
            check(&diagonal, &below[1..], k);
        }
    }

    #[test]
    fn scales_and_small_sizes() {
        for n in [1_usize, 2, 64, 65, 129] {
            for scale in [1e-120, 1.0, 1e120] {
                let diagonal: Vec<f64> = (0..n).map(|i| scale * (i as f64).cos()).collect();
                let below: Vec<f64> = (1..n).map(|i| scale * (i as f64 * 1.3).sin()).collect();
                check(&diagonal, &below, n.div_ceil(4));
            }
        }
    }

    #[test]
    fn small_numbers_in_single_precision_keep_their_digits() {
        let diagonal: Vec<f32> = (0..200).map(|i| 1e-6 * (i as f32).cos()).collect();
        let below: Vec<f32> = (1..200).map(|i| 1e-6 * (i as f32 * 1.3).sin()).collect();
        let (values, _) = leading(&diagonal, &below, 200).unwrap();
        let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        let (expected, _) = leading(&wide(&diagonal), &wide(&below), 200).unwrap();
        for (x, y) in values.iter().zip(&expected) {
            assert!((x - y).abs() < 1e-10, "{x} {y}");
        }
    }

    #[test]
    fn single_precision_is_computed_in_double() {
        let diagonal: Vec<f32> = (0..90).map(|i| (i as f32).cos()).collect();
        let below: Vec<f32> = (1..90).map(|i| (i as f32 * 1.3).sin()).collect();
        let (values, vectors) = leading(&diagonal, &below, 10).unwrap();
        let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        let (expected, exact) = leading(&wide(&diagonal), &wide(&below), 10).unwrap();
        assert_eq!(values, expected);
        assert_eq!(vectors, exact.cast());
    }
}
