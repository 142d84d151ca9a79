//! Upper bounds of the spectral norm σ₁(A) that hold, whatever the rounding.
//!
//! A certificate multiplies by spectral norms, so an estimate from below, as power iteration gives one, would make it
//! worthless. Three ways, by the size of the smaller side n of the matrix (the larger one is m):
//!
//! * n ≤ 256: the full singular value decomposition, whose values have an error of a small multiple of ε σ₁; the bound is
//!   σ₁ (1 + 16 (m + n) ε).
//! * n ≤ 8192: an estimate s from power iteration on the Gram matrix G, and then a proof: the Cholesky factorisation of
//!   c I − G, c = s² (1 + δ)², exists in floating-point numbers only if c I − G has no eigenvalue below −(n + 1) ε tr(c I − G)
//!   (Rump, "Verification of positive definiteness", BIT 46, 2006); with the rounding of G itself, at most m ε ‖A‖²_F,
//!   σ₁² ≤ c + 2 ε (m ‖A‖²_F + (n + 1) n c). δ grows from 10⁻⁴ until the factorisation exists.
//! * beyond, and where nothing else is found: σ₁ ≤ min(√(‖A‖₁ ‖A‖_∞), ‖A‖_F), which is always true.

use merganser_linalg::{Matrix, Spd, Svd, gram};

use crate::error::Result;

/// Smaller sides up to this are decomposed.
const DECOMPOSED: usize = 256;
/// Smaller sides up to this are bounded by a verified estimate: a Gram matrix of 512 MiB.
const VERIFIED: usize = 8192;
/// Steps of power iteration: an estimate that is too small only costs another factorisation.
const STEPS: usize = 60;

/// A number that is at least σ₁(A), and usually no more than 1.0001 σ₁(A).
///
/// # Errors
/// If the matrix is not finite.
pub fn spectral_upper(a: &Matrix) -> Result<f64> {
    a.check_finite()?;
    let largest = a.as_slice().iter().fold(0.0_f64, |m, x| m.max(x.abs()));
    if largest > 0.0 && !(1e-100..1e100).contains(&largest) {
        // Squares of such numbers would vanish or overflow, and a bound of 0 would be wrong. A power of two rounds nothing.
        let scale = 2.0_f64.powi(largest.log2().floor().clamp(-1000.0, 1000.0) as i32);
        let mut scaled = a.clone();
        scaled.scale(1.0 / scale);
        return Ok(spectral_upper(&scaled)? * scale);
    }
    let (n, m) = (a.rows().min(a.cols()), a.rows().max(a.cols()));
    let easy = easy_upper(a);
    if n == 0 || easy == 0.0 {
        return Ok(0.0);
    }
    if n <= DECOMPOSED {
        let largest = Svd::of(a)?.values[0];
        let rounding = 16.0 * (m + n) as f64 * f64::EPSILON;
        return Ok((largest * (1.0 + rounding)).min(easy));
    }
    if n <= VERIFIED
        && let Some(bound) = verified(a)?
    {
        return Ok(bound.min(easy));
    }
    Ok(easy)
}

/// min(√(‖A‖₁ ‖A‖_∞), ‖A‖_F) ≥ σ₁(A), with its rounding added.
fn easy_upper(a: &Matrix) -> f64 {
    let mut columns = vec![0.0_f64; a.cols()];
    let mut largest_row = 0.0_f64;
    for i in 0..a.rows() {
        let mut sum = 0.0;
        for (column, x) in columns.iter_mut().zip(a.row(i)) {
            *column += x.abs();
            sum += x.abs();
        }
        largest_row = largest_row.max(sum);
    }
    let largest_column = columns.into_iter().fold(0.0, f64::max);
    let rounding = 1.0 + 4.0 * (a.rows() + a.cols()) as f64 * f64::EPSILON;
    (largest_row.sqrt() * largest_column.sqrt()).min(a.norm()) * rounding
}

fn verified(a: &Matrix) -> Result<Option<f64>> {
    let (n, m) = (a.rows().min(a.cols()), a.rows().max(a.cols()));
    let total = a.norm();
    // Squares of what is far from 1 would overflow or vanish.
    if !(1e-100..1e100).contains(&total) {
        return Ok(None);
    }
    let g = gram(a)?;
    let estimate = largest_eigenvalue(&g);
    for delta in [1e-4, 1e-3, 1e-2, 0.05, 0.2] {
        let c = estimate * (1.0_f64 + delta).powi(2);
        let mut gap = g.clone();
        gap.scale(-1.0);
        for i in 0..n {
            gap.set(i, i, gap.get(i, i) + c);
        }
        if Spd::factor(gap, 0.0).is_ok() {
            let (n, m) = (n as f64, m as f64);
            let rounding = 2.0 * f64::EPSILON * (m * total * total + (n + 1.0) * n * c);
            return Ok(Some((c + rounding).sqrt()));
        }
    }
    Ok(None)
}

/// An estimate of the largest eigenvalue of a Gram matrix, from below.
fn largest_eigenvalue(g: &Matrix) -> f64 {
    let n = g.rows();
    // Any start that is not orthogonal to the leading eigenvector; this one is fixed, so that results are.
    let mut x: Vec<f64> = (0..n)
        .map(|i| 1.0 + ((i * 37) % 101) as f64 / 101.0)
        .collect();
    let mut value = 0.0;
    for _ in 0..STEPS {
        let length = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        if length == 0.0 {
            return value;
        }
        for x in &mut x {
            *x /= length;
        }
        let y: Vec<f64> = (0..n)
            .map(|i| merganser_linalg::dot(g.row(i), &x))
            .collect();
        value = merganser_linalg::dot(&x, &y);
        x = y;
    }
    value
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn noise(rows: usize, cols: usize, seed: f64) -> Matrix {
        Matrix::from_fn(rows, cols, |i, j| {
            ((i * cols + j) as f64 * 12.9898 + seed).sin() * 43_758.545_3 % 1.0
        })
    }

    #[test]
    fn bounds_are_above_and_near_on_every_path() {
        for (rows, cols) in [(7, 12), (12, 7), (1, 9), (300, 280), (270, 400)] {
            let a = noise(rows, cols, 0.7);
            let exact = Svd::of(&a).unwrap().values[0];
            let bound = spectral_upper(&a).unwrap();
            assert!(bound >= exact, "{rows}×{cols}");
            assert!(bound <= exact * 1.011, "{rows}×{cols}: {bound} {exact}");
            assert!(easy_upper(&a) >= exact);
        }
    }

    #[test]
    fn equal_leading_values_slow_the_estimate_but_never_break_the_bound() {
        // An orthogonal-like block: all singular values are 1.
        let identity = Matrix::identity(300);
        let bound = spectral_upper(&identity).unwrap();
        assert!((1.0..1.001).contains(&bound));
        // Power iteration has no direction to prefer here.
        let mut two = Matrix::identity(300);
        two.set(299, 299, 1.01);
        let bound = spectral_upper(&two).unwrap();
        assert!((1.01..1.03).contains(&bound), "{bound}");
    }

    #[test]
    fn edges() {
        assert_eq!(spectral_upper(&Matrix::zeros(3, 4)).unwrap(), 0.0);
        assert_eq!(spectral_upper(&Matrix::zeros(0, 4)).unwrap(), 0.0);
        let mut a = Matrix::zeros(2, 2);
        a.set(0, 1, f64::NAN);
        assert!(spectral_upper(&a).is_err());
        for size in [1e-200, 1e200] {
            let extreme = Matrix::from_fn(300, 300, |i, j| size * f64::from(u8::from(i == j)));
            let bound = spectral_upper(&extreme).unwrap();
            assert!((1.0..1.001).contains(&(bound / size)));
        }
    }
}
