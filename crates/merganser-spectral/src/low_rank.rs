//! Updates of low rank: found as such in whole weights, and merged in the space they span.
//!
//! A fine-tune that was an adapter once is stored as W = round(W₀ + B A). Its update D = W − W₀ has full rank, because the
//! rounding of W has: methods that make all directions equally long would then merge rounding. D is taken for B A if
//!
//! - the directions of D longer than rounding can be ([`Rounding`]), or than it is likely to be, are few, r ≤ 0.15 m n/(m + n), and
//! - every entry of W, but for one in a thousand, is what B A rounds to: |D − B A| ≤ (ulp(W) + ulp(D))/2 + 4 s √(r/m + r/n),
//!   s² the mean variance of the rounding.
//!
//! The last term is what the estimate of B A has of the rounding, which the limit of r keeps below the ulp by which a weight
//! moves at least. So an update whose entries are a few single ulps, as small steps in half precision leave them, is none of
//! low rank, however little of it is longer than rounding.
//!
//! With orthonormal bases Û and V̂ of all B_t and A_t, D_t = Û M_t V̂. A method that commutes with orthogonal changes of basis
//! merges the small M_t and gives what it would give on the D_t without their rounding.

use std::collections::BTreeSet;

use merganser_linalg::{Matrix, Real, Sketch, gemm, orthonormal_rows};

use crate::cart::cart_of;
use crate::error::check_shape;
use crate::lora::common_shape;
use crate::tsv::tsv_m_of;
use crate::{
    Aligned, CoreSpace, Error, Lora, NOISE, Precision, Result, Rounding, iso_c, iso_cts, knots,
};

/// Largest r (1/m + 1/n).
const SHARE: f64 = 0.15;
/// Standard deviations of an estimated entry that are allowed for.
const DEVIATIONS: f64 = 4.0;
/// Largest rank that is looked for.
const MOST: usize = 256;
/// What random projection may leave of an update, in squares, times the variance of the rounding: it finds a little less than
/// the leading directions do.
const LEFT: f64 = 16.0;
/// Residuals below this are not told from zero: bases in `f32` are orthonormal to 10⁻⁷, and residuals are roots.
const TOLD: f64 = 1e-2;
/// Rows of an update that are looked at together.
const ROWS: usize = 256;
/// Share of entries that may be off by more than rounding.
const OUTLIERS: f64 = 1e-3;

/// The factors of an update D = W − W₀ that is of low rank up to the rounding of W to its `precision`; `None` for any other.
/// The adapter has scale 1, and rank 0 if D = 0.
///
/// # Errors
/// If shapes differ, D is not finite, or a small decomposition does not converge.
pub fn adapter_of<T: Real>(
    update: &Matrix<T>,
    base: &Matrix<T>,
    precision: Precision,
) -> Result<Option<Lora>> {
    check_shape(|| "the base".into(), base.shape(), update.shape())?;
    update.check_finite().map_err(|problem| Error::NotFinite {
        what: "the update".into(),
        problem,
    })?;
    let (m, n) = update.shape();
    let square = update.norm().powi(2);
    if square == 0.0 {
        return Lora::new(Matrix::zeros(0, n), Matrix::zeros(m, 0), 1.0).map(Some);
    }
    let per_direction = 1.0 / m as f64 + 1.0 / n as f64;
    let most = ((SHARE / per_direction) as usize).min(MOST);
    if most == 0 {
        return Ok(None);
    }
    let stored = |i: usize| -> Vec<f32> {
        let both = update.row(i).iter().zip(base.row(i));
        both.map(|(d, w)| (d.to_f64() + w.to_f64()) as f32)
            .collect()
    };
    let mut rounding = Rounding::new(precision, n);
    (0..m).for_each(|i| rounding.take(&stored(i)));

    // What is of low rank needs no power iteration to be found, and most of what is not is told by this.
    let sketch = Sketch {
        passes: 0,
        ..Sketch::default()
    };
    let found = sketch.leading(update, most, NOISE)?;
    let left = found.residual.powi(2) * square;
    if found.residual > TOLD && left > LEFT * rounding.square() {
        return Ok(None);
    }
    // No rounding is longer than the bound; that of weights of about one size is hardly longer than the second.
    let deviation = (rounding.square() / (m * n) as f64).sqrt();
    let edge = 1.5 * deviation * ((m as f64).sqrt() + (n as f64).sqrt());
    let bounds = [rounding.norm(), edge];
    let longer = |bound| found.svd.values.iter().filter(|x| **x > bound).count();
    let ranks = BTreeSet::from(bounds.map(longer));
    for rank in ranks.into_iter().filter(|rank| *rank > 0) {
        let fit = Fit {
            update,
            stored: &stored,
            precision,
            slack: DEVIATIONS * deviation * (rank as f64 * per_direction).sqrt(),
        };
        if let Some(lora) = fit.adapter(&found.svd.right.rows_range(0, rank))? {
            return Ok(Some(lora));
        }
    }
    Ok(None)
}

/// What an adapter must come near to.
struct Fit<'a, T, S> {
    update: &'a Matrix<T>,
    /// A row of W.
    stored: &'a S,
    precision: Precision,
    /// How far the estimate of an entry may be off.
    slack: f64,
}

impl<T: Real, S: Fn(usize) -> Vec<f32>> Fit<'_, T, S> {
    /// The update in `f64`, some rows at a time, with the number of the first.
    fn blocks(&self) -> impl Iterator<Item = (usize, Matrix)> {
        let m = self.update.rows();
        (0..m).step_by(ROWS).map(move |first| {
            let block = self.update.rows_range(first, m.min(first + ROWS));
            (first, block.cast())
        })
    }

    /// The adapter over about the span of these right singular vectors, if W is what it rounds to.
    fn adapter(&self, right: &Matrix) -> Result<Option<Lora>> {
        let (m, n) = self.update.shape();
        // One pass of power iteration, in `f64`: what was found is as coarse as the type in which the update is held.
        let mut turned = Matrix::zeros(right.rows(), n);
        for (_, block) in self.blocks() {
            gemm::add_mul(&mut turned, 1.0, &gemm::mul_nt(right, &block), &block);
        }
        let right = orthonormal_rows(&turned, 0.0)?;
        let (mut left, mut outliers) = (Vec::new(), 0);
        for (first, block) in self.blocks() {
            let coordinates = gemm::mul_nt(&block, &right);
            let estimated = gemm::mul(&coordinates, &right);
            for i in 0..block.rows() {
                let both = block.row(i).iter().zip(estimated.row(i));
                outliers += both
                    .zip((self.stored)(first + i))
                    .filter(|((d, estimate), w)| {
                        let ulps = self.precision.ulp(*w) + self.precision.ulp(**d as f32);
                        (**d - **estimate).abs() > ulps / 2.0 + self.slack
                    })
                    .count();
            }
            left.push(coordinates);
        }
        if outliers as f64 > OUTLIERS * (m * n) as f64 {
            return Ok(None);
        }
        Lora::new(right, Matrix::stack_rows(&left), 1.0).map(Some)
    }
}

/// The updates of one matrix, all of low rank, and the space they span.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    adapters: Vec<Lora>,
    space: CoreSpace,
}

impl LowRank {
    /// Of the factors that [`adapter_of`] finds. `None` if they are no easier to merge than whole matrices: if none changes
    /// anything, or they span more than half of the directions there are.
    ///
    /// # Errors
    /// If there is none, shapes differ, or a decomposition does not converge.
    pub fn of(adapters: Vec<Lora>) -> Result<Option<Self>> {
        let (m, n) = common_shape(&adapters)?;
        let total: usize = adapters.iter().map(Lora::rank).sum();
        if total == 0 || 2 * total > m.min(n) {
            return Ok(None);
        }
        let space = CoreSpace::of(&adapters)?;
        Ok(Some(Self { adapters, space }))
    }

    /// The largest rank of an update.
    pub fn rank(&self) -> usize {
        self.adapters.iter().map(Lora::rank).max().unwrap_or(0)
    }

    /// Directions of an update that is not of low rank.
    fn full(&self) -> usize {
        self.space.left().cols().min(self.space.right().cols())
    }

    fn merged(&self, method: impl Fn(&[&Matrix]) -> Result<Matrix>) -> Result<Matrix> {
        let cores: Vec<&Matrix> = self.space.cores().iter().collect();
        Ok(self.space.adapter(&method(&cores)?)?.update())
    }

    /// [`tsv_m`](crate::tsv_m) of the updates.
    ///
    /// # Errors
    /// Its own.
    pub fn tsv_m(&self) -> Result<Matrix> {
        let each = self.full() / self.adapters.len();
        self.merged(|cores| Ok(tsv_m_of(cores, each, None)?.update))
    }

    /// [`iso_c`] of the updates.
    ///
    /// # Errors
    /// Its own.
    pub fn iso_c(&self) -> Result<Matrix> {
        self.merged(|cores| Ok(iso_c(cores)?.update))
    }

    /// [`iso_cts`] of the updates.
    ///
    /// # Errors
    /// Its own.
    pub fn iso_cts(&self, common_fraction: f64) -> Result<Matrix> {
        self.merged(|cores| Ok(iso_cts(cores, common_fraction)?.update))
    }

    /// [`cart`](crate::cart) of the updates.
    ///
    /// # Errors
    /// Its own.
    pub fn cart(&self, rank_fraction: f64, scale: f64) -> Result<Matrix> {
        self.merged(|cores| cart_of(cores, self.full(), rank_fraction, scale))
    }

    /// [`knots`] of the updates, this matrix trimmed by itself.
    ///
    /// # Errors
    /// Its own.
    pub fn knots(&self, density: f64) -> Result<Matrix> {
        let layer = Aligned::of_adapters(&self.adapters)?;
        let mut merged = knots(&[layer], density, None, &|_, _| true)?;
        Ok(merged.swap_remove(0))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{distance, low_rank, update};
    use crate::{cart, tsv_m};

    /// To nearest, ties to even.
    fn rounded(x: f64, precision: Precision) -> f64 {
        let ulp = precision.ulp(x as f32);
        (x / ulp).round_ties_even() * ulp
    }

    fn stored(x: &Matrix, precision: Precision) -> Matrix {
        Matrix::from_fn(x.rows(), x.cols(), |i, j| rounded(x.get(i, j), precision))
    }

    /// The update of a base by `change`, both as they are stored.
    fn stored_update(base: &Matrix, change: &Matrix, precision: Precision) -> Matrix {
        let mut fine = base.clone();
        fine.add_scaled(1.0, change);
        let mut update = stored(&fine, precision);
        update.add_scaled(-1.0, base);
        update
    }

    fn scaled(mut x: Matrix, scale: f64) -> Matrix {
        x.scale(scale);
        x
    }

    #[test]
    fn an_adapter_is_found_in_rounded_weights() {
        for precision in [Precision::BF16, Precision::F32] {
            for (m, n, rank) in [(300, 200, 4), (200, 400, 8), (256, 256, 6)] {
                let base = stored(&scaled(update(1, m, n), 0.05), precision);
                let change = scaled(low_rank(2, m, n, rank), 0.002);
                let update = stored_update(&base, &change, precision);
                let found = adapter_of(&update, &base, precision).unwrap().unwrap();
                assert_eq!(found.rank(), rank);
                let (off, before) = (
                    distance(&found.update(), &change),
                    distance(&update, &change),
                );
                assert!(off < 0.4 * before, "{off} {before}");
                // In f32, as large matrices are held.
                let (update, base) = (update.cast::<f32>(), base.cast::<f32>());
                let found = adapter_of(&update, &base, precision).unwrap().unwrap();
                assert_eq!(found.rank(), rank);
            }
        }
    }

    #[test]
    fn what_is_no_adapter_is_not_taken_for_one() {
        let (m, n) = (256, 256);
        let base = stored(&scaled(update(1, m, n), 0.05), Precision::BF16);
        let none = |update: &Matrix| {
            adapter_of(update, &base, Precision::BF16)
                .unwrap()
                .is_none()
        };
        // A whole fine-tune.
        let whole = scaled(update(5, m, n), 0.003);
        assert!(none(&stored_update(&base, &whole, Precision::BF16)));
        // Small steps in half precision: a few weights moved by one unit in the last place, alone or beside an adapter.
        for share in [0.002, 0.05, 0.5] {
            let moved = update(6, m, n);
            let steps = Matrix::from_fn(m, n, |i, j| {
                let x = moved.get(i, j);
                let ulp = Precision::BF16.ulp(base.get(i, j) as f32);
                if x.abs() < share {
                    ulp * x.signum()
                } else {
                    0.0
                }
            });
            assert!(none(&steps), "{share}");
            if share > 0.01 {
                let mut both =
                    stored_update(&base, &scaled(low_rank(2, m, n, 4), 0.002), Precision::BF16);
                both.add_scaled(1.0, &steps);
                assert!(none(&both), "{share}, beside an adapter");
            }
        }
        // An adapter of many directions, and of a matrix too small to tell.
        let many = scaled(low_rank(3, m, n, 40), 0.002);
        assert!(none(&stored_update(&base, &many, Precision::BF16)));
        let small = adapter_of(&update(1, 8, 8), &update(2, 8, 8), Precision::F32);
        assert!(small.unwrap().is_none());
    }

    #[test]
    fn nothing_is_of_rank_zero_and_bad_input_an_error() {
        let base = update(1, 40, 50);
        let zero = Matrix::zeros(40, 50);
        assert_eq!(
            adapter_of(&zero, &base, Precision::BF16)
                .unwrap()
                .unwrap()
                .rank(),
            0
        );
        let nan = Matrix::from_fn(40, 50, |_, _| f64::NAN);
        assert!(adapter_of(&nan, &base, Precision::BF16).is_err());
        assert!(adapter_of(&zero, &update(1, 50, 40), Precision::BF16).is_err());
        let none = || Lora::new(Matrix::zeros(0, 50), Matrix::zeros(40, 0), 1.0).unwrap();
        assert!(LowRank::of(vec![none(), none()]).unwrap().is_none());
        assert!(LowRank::of(Vec::new()).is_err());
    }

    #[test]
    fn merges_in_the_span_are_those_of_the_whole_matrices() {
        for (m, n) in [(60, 90), (90, 60), (64, 64)] {
            let adapters: Vec<Lora> = [(1, 3), (2, 8), (3, 0), (4, 5)]
                .map(|(seed, rank)| {
                    Lora::new(update(seed, rank, n), update(seed + 50, m, rank), 0.7).unwrap()
                })
                .into();
            let whole: Vec<Matrix> = adapters.iter().map(Lora::update).collect();
            let whole: Vec<&Matrix> = whole.iter().collect();
            let found = LowRank::of(adapters).unwrap().unwrap();
            assert_eq!(found.rank(), 8);
            let pairs = [
                (found.tsv_m(), tsv_m(&whole, None).map(|x| x.update)),
                (found.iso_c(), iso_c(&whole).map(|x| x.update)),
                (found.iso_cts(0.6), iso_cts(&whole, 0.6).map(|x| x.update)),
                (found.cart(0.04, 0.5), cart(&whole, 0.04, 0.5)),
                (
                    found.knots(0.3),
                    knots(
                        &[Aligned::of_updates(&whole).unwrap()],
                        0.3,
                        None,
                        &|_, _| true,
                    )
                    .map(|mut x| x.swap_remove(0)),
                ),
            ];
            for (i, (span, whole)) in pairs.into_iter().enumerate() {
                let (span, whole) = (span.unwrap(), whole.unwrap());
                let off = distance(&span, &whole);
                assert!(off < 1e-6 * whole.norm(), "method {i}, {m}×{n}: {off}");
            }
        }
    }
}
