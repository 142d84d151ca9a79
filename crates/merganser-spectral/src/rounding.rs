//! How much of an update can be the rounding of the weights it was computed from.
//!
//! A stored weight is off by up to half a unit in the last place, evenly spread, so its error has the deviation
//! s = ulp / √12. The spectral norm of a matrix of independent errors with deviations s_ij is about
//! max_i (Σ_j s_ij²)^½ + max_j (Σ_i s_ij²)^½ and exceeds it by a few times max s_ij at most (Bandeira and van Handel, Annals
//! of Probability 2016, arXiv 1408.6185). A direction of an update W − W₀ with a smaller singular value cannot be told from
//! the rounding of W. If the weights are about equally large, min(m, n) such directions have a Frobenius norm of at most about
//! twice that of the rounding itself, so that nothing is lost with them that W knew.

/// A floating-point format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Precision {
    /// Digits of the significand in binary, the hidden one included.
    pub digits: i32,
    /// Exponent of the smallest normal number.
    pub least: i32,
}

impl Precision {
    /// `float32`.
    pub const F32: Self = Self::of(24, -126);
    /// `bfloat16`.
    pub const BF16: Self = Self::of(8, -126);
    /// `float16`.
    pub const F16: Self = Self::of(11, -14);
    /// `float8_e4m3fn`.
    pub const F8_E4M3: Self = Self::of(4, -6);
    /// `float8_e5m2`.
    pub const F8_E5M2: Self = Self::of(3, -14);

    const fn of(digits: i32, least: i32) -> Self {
        Self { digits, least }
    }

    /// The distance from `x` to the next number of the format that is further from 0.
    pub fn ulp(self, x: f32) -> f64 {
        let bits = (x.abs().to_bits() >> 23) as i32;
        let exponent = (bits - 127).max(self.least);
        // The power of two by its bits: this is asked of every weight, and its exponent is never that of a subnormal f64.
        f64::from_bits(((exponent - self.digits + 1 + 1023) as u64) << 52)
    }
}

/// The bound on the norm of the rounding errors of a matrix, taken row by row.
#[derive(Debug, Clone)]
pub struct Rounding {
    precision: Precision,
    /// Σ_i s_ij² so far.
    columns: Vec<f64>,
    /// max_i Σ_j s_ij² so far.
    row: f64,
    /// max s_ij² so far.
    element: f64,
}

impl Rounding {
    /// Of a matrix of `columns` columns stored in `precision`.
    pub fn new(precision: Precision, columns: usize) -> Self {
        Self {
            precision,
            columns: vec![0.0; columns],
            row: 0.0,
            element: 0.0,
        }
    }

    /// Takes the next row.
    pub fn take(&mut self, row: &[f32]) {
        let mut sum = 0.0;
        for (column, x) in self.columns.iter_mut().zip(row) {
            let ulp = self.precision.ulp(*x);
            let variance = ulp * ulp / 12.0;
            *column += variance;
            sum += variance;
            self.element = self.element.max(variance);
        }
        self.row = self.row.max(sum);
    }

    /// Σ s_ij² of the rows taken: what ‖error‖²_F is likely to be.
    pub fn square(&self) -> f64 {
        self.columns.iter().sum()
    }

    /// The bound for the rows taken.
    pub fn norm(&self) -> f64 {
        let column = self.columns.iter().fold(0.0_f64, |max, x| max.max(*x));
        self.row.sqrt() + column.sqrt() + 4.0 * self.element.sqrt()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use merganser_linalg::{Matrix, Svd};

    use super::*;
    use crate::testing::update;

    #[test]
    fn units_in_the_last_place() {
        assert_eq!(Precision::F32.ulp(1.0), f64::from(f32::EPSILON));
        assert_eq!(Precision::F32.ulp(-1.99), f64::from(f32::EPSILON));
        assert_eq!(Precision::BF16.ulp(4.0), 4.0 / 128.0);
        assert_eq!(Precision::F32.ulp(0.0), f64::from(f32::from_bits(1)));
        assert_eq!(Precision::F16.ulp(1e-7), 2.0_f64.powi(-24));
    }

    #[test]
    fn rounding_stays_below_the_bound_and_close_to_it() {
        for (seed, m, n) in [(1, 30, 40), (2, 120, 35), (3, 200, 200), (4, 1, 50)] {
            // Rows of very different lengths, as weights have them.
            let weights = update(seed, m, n);
            let scaled = Matrix::from_fn(m, n, |i, j| {
                weights.get(i, j) * (1.0 + (i % 7) as f64) / 10.0
            });
            let mut rounding = Rounding::new(Precision::BF16, n);
            let error = Matrix::from_fn(m, n, |i, j| {
                let x = scaled.get(i, j) as f32;
                // To nearest, ties to even.
                let bits = x.to_bits();
                let rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
                f64::from(f32::from_bits(rounded)) - f64::from(x)
            });
            for i in 0..m {
                let row: Vec<f32> = scaled.row(i).iter().map(|x| *x as f32).collect();
                rounding.take(&row);
            }
            let largest = Svd::of(&error).unwrap().values[0];
            let bound = rounding.norm();
            assert!(
                largest <= bound && bound < 4.0 * largest,
                "{largest} and {bound}"
            );
        }
    }
}
