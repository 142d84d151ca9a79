//! The combinations of adapters that PEFT offers as `add_weighted_adapter`, under their names there.
//!
//! With s_t the scale of adapter t and w_t its weight:
//!
//! * `linear`: A = Σ ± √|w_t s_t| A_t with the sign of w_t s_t, B = Σ √|w_t s_t| B_t. Of the factors, not of the updates: the product holds
//!   terms B_i A_j of different tasks.
//! * `cat`: the factors side by side, so that B A = Σ w_t s_t B_t A_t exactly; the ranks add up.
//! * `svd`: the best approximation of that sum of a given rank.
//! * `ties`, `dare_linear`, `dare_ties`, `magnitude_prune`: on the lists of A_t and of B_t, with the weights of `linear`.
//! * the same with `_svd`: on the updates s_t B_t A_t with the weights w_t, and then the best approximation.
//!
//! In two points it is not what PEFT does. Up to its release 0.20 the `svd` family multiplies by s_t twice. And a combination of
//! rank-stabilised adapters inherits their flag there, which makes it √r times too strong; here the scale of every result
//! is 1, and whoever writes it has to write α = r without the flag.

use merganser_linalg::{Matrix, Svd, gemm};

use crate::elementwise::dare;
use crate::error::{check_range, check_shape};
use crate::lora::common_shape;
use crate::updates::checked_shape;
use crate::{CoreSpace, Error, Lora, NOISE, Result};

/// How adapters are combined.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Combination {
    /// Weighted sums of the factors.
    Linear,
    /// The factors side by side.
    Cat,
    /// The weighted sum of the updates, of reduced rank.
    Svd {
        /// The rank; the largest one of the adapters if `None`.
        rank: Option<usize>,
    },
    /// Of the factors, with entries left out.
    Sparse(Sparse),
    /// Of the updates, with entries left out, of reduced rank.
    SparseSvd {
        /// Which entries stay and how they are added.
        sparse: Sparse,
        /// The rank; the largest one of the adapters if `None`.
        rank: Option<usize>,
    },
}

/// Which entries of factors or updates stay, and how they are added.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sparse {
    /// Share of entries that stay. With 1 or more, all do.
    pub density: f64,
    /// Whether the entries that stay are chosen at random and scaled up (DARE); otherwise they are the largest.
    pub random: bool,
    /// How a sign is elected, if only entries that have it are averaged (TIES); otherwise entries are summed.
    pub elect: Option<Majority>,
}

/// What decides on the sign of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Majority {
    /// The sum of the entries.
    Total,
    /// The number of entries of each sign.
    Frequency,
}

/// What a random choice is made in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The factor A.
    A,
    /// The factor B.
    B,
    /// The whole update.
    Update,
}

/// Whether entry `index` (in row-major order) of a part of task `task` stays.
pub type KeepPart<'a> = &'a (dyn Fn(Part, usize, usize) -> bool + Sync);

/// The combined adapter, of scale 1. A single adapter is always combined as by [`Combination::Linear`].
///
/// # Errors
/// If there is no adapter, there is not one finite weight for each, shapes differ, ranks differ where factors are added, a
/// density is negative (or 0 at random), a rank is 0, or a decomposition does not converge.
pub fn combine(
    adapters: &[Lora],
    weights: &[f64],
    combination: &Combination,
    keep: KeepPart<'_>,
) -> Result<Lora> {
    let (m, n) = common_shape(adapters)?;
    check_weights(weights, adapters.len())?;
    let largest = || adapters.iter().map(Lora::rank).max().unwrap_or(0);
    match *combination {
        Combination::Cat if adapters.len() > 1 => side_by_side(adapters, weights),
        Combination::Svd { rank } if adapters.len() > 1 => {
            let space = CoreSpace::of(adapters)?;
            let (left, right) = (space.left(), space.right());
            let mut core = Matrix::zeros(left.rows(), right.rows());
            for (own, &weight) in space.cores().iter().zip(weights) {
                core.add_scaled(weight, own);
            }
            let svd = Svd::of(&core)?.leading(checked(rank.unwrap_or_else(largest))?);
            factored(&Svd {
                left: gemm::mul(&svd.left, left),
                values: svd.values,
                right: gemm::mul(&svd.right, right),
            })
        }
        Combination::SparseSvd { sparse, rank } if adapters.len() > 1 => {
            let rank = checked(rank.unwrap_or_else(largest))?;
            let updates: Vec<Matrix> = adapters.iter().map(Lora::update).collect();
            let merged = sparse.merge(&updates, weights, |t, i| keep(Part::Update, t, i))?;
            factored(&Svd::truncated(&merged, rank.min(m).min(n), NOISE)?)
        }
        Combination::Sparse(sparse) if adapters.len() > 1 => {
            factor_by_factor(adapters, weights, |part, factors, weights| {
                sparse.merge(factors, weights, |t, i| keep(part, t, i))
            })
        }
        _ => factor_by_factor(adapters, weights, |_, factors, weights| {
            Ok(weighted_sum(factors, weights))
        }),
    }
}

/// The combined change of a bias, of what each adapter adds to it as a matrix of one row (`lora_bias`: s_t times the bias
/// of B_t): Σ w_t b_t, or the sparse forms on the b_t. A bias has no factors, so that `ties` and `ties_svd` are the same.
/// PEFT's own function leaves biases out.
///
/// # Errors
/// If there is no vector, there is not one finite weight for each, lengths differ, or a density is negative (or 0 at
/// random).
pub fn combine_vectors(
    vectors: &[Matrix],
    weights: &[f64],
    combination: &Combination,
    keep: KeepPart<'_>,
) -> Result<Matrix> {
    let references: Vec<&Matrix> = vectors.iter().collect();
    checked_shape(&references)?;
    check_weights(weights, vectors.len())?;
    match combination {
        Combination::Sparse(sparse) | Combination::SparseSvd { sparse, .. }
            if vectors.len() > 1 =>
        {
            sparse.merge(vectors, weights, |t, i| keep(Part::Update, t, i))
        }
        _ => Ok(weighted_sum(vectors, weights)),
    }
}

fn check_weights(weights: &[f64], adapters: usize) -> Result<()> {
    check_shape(
        || "the weights of the adapters".into(),
        (weights.len(), 1),
        (adapters, 1),
    )?;
    for &weight in weights {
        check_range("a weight", weight, (f64::MIN, f64::MAX), "finite")?;
    }
    Ok(())
}

fn checked(rank: usize) -> Result<usize> {
    check_range(
        "the rank of the combination",
        rank as f64,
        (1.0, f64::MAX),
        "at least 1",
    )?;
    Ok(rank)
}

/// B = U Σ and A = Vᵀ.
fn factored(svd: &Svd) -> Result<Lora> {
    let mut b = svd.left.transpose();
    b.scale_cols(&svd.values);
    Lora::new(svd.right.clone(), b, 1.0)
}

fn side_by_side(adapters: &[Lora], weights: &[f64]) -> Result<Lora> {
    let rows: Vec<Matrix> = adapters
        .iter()
        .zip(weights)
        .map(|(adapter, weight)| {
            let mut a = adapter.a().clone();
            a.scale(weight * adapter.scale());
            a
        })
        .collect();
    let columns: Vec<Matrix> = adapters.iter().map(|x| x.b().transpose()).collect();
    Lora::new(
        Matrix::stack_rows(&rows),
        Matrix::stack_rows(&columns).transpose(),
        1.0,
    )
}

/// Merges the A_t and the B_t, each list with weights whose products are w_t s_t.
fn factor_by_factor(
    adapters: &[Lora],
    weights: &[f64],
    merge: impl Fn(Part, &[Matrix], &[f64]) -> Result<Matrix>,
) -> Result<Lora> {
    let rank = adapters[0].rank();
    for (t, adapter) in adapters.iter().enumerate() {
        let (found, expected) = ((adapter.rank(), 1), (rank, 1));
        check_shape(|| format!("the rank of adapter {t}"), found, expected)?;
    }
    let scales = || adapters.iter().zip(weights).map(|(x, w)| w * x.scale());
    let roots: Vec<f64> = scales().map(|x| x.abs().sqrt()).collect();
    let signed: Vec<f64> = scales().map(|x| x.signum() * x.abs().sqrt()).collect();
    let a: Vec<Matrix> = adapters.iter().map(|x| x.a().clone()).collect();
    let b: Vec<Matrix> = adapters.iter().map(|x| x.b().clone()).collect();
    Lora::new(
        merge(Part::A, &a, &signed)?,
        merge(Part::B, &b, &roots)?,
        1.0,
    )
}

fn weighted_sum(matrices: &[Matrix], weights: &[f64]) -> Matrix {
    let (m, n) = matrices.first().map_or((0, 0), Matrix::shape);
    let mut sum = Matrix::zeros(m, n);
    for (matrix, &weight) in matrices.iter().zip(weights) {
        sum.add_scaled(weight, matrix);
    }
    sum
}

impl Sparse {
    fn merge(
        &self,
        matrices: &[Matrix],
        weights: &[f64],
        keep: impl Fn(usize, usize) -> bool,
    ) -> Result<Matrix> {
        let least = if self.random { f64::MIN_POSITIVE } else { 0.0 };
        let expected = "at least 0, and more than 0 where entries are dropped at random";
        check_range("the density", self.density, (least, f64::MAX), expected)?;
        let mut pruned = matrices.to_vec();
        if self.density < 1.0 {
            for (t, matrix) in pruned.iter_mut().enumerate() {
                if self.random {
                    dare(matrix.as_mut_slice(), 1.0 - self.density, |i| keep(t, i));
                } else {
                    keep_largest(matrix.as_mut_slice(), self.density);
                }
            }
        }
        let Some(majority) = self.elect else {
            return Ok(weighted_sum(&pruned, weights));
        };
        let (m, n) = pruned.first().ok_or(Error::NoTasks)?.shape();
        let votes = |x: f64| match majority {
            Majority::Total => x,
            Majority::Frequency if x == 0.0 => 0.0,
            Majority::Frequency => x.signum(),
        };
        Ok(Matrix::from_fn(m, n, |i, j| {
            let entries = || pruned.iter().map(|matrix| matrix.get(i, j));
            let positive = entries().map(votes).sum::<f64>() >= 0.0;
            let (mut sum, mut count) = (0.0, 0.0_f64);
            for (x, weight) in entries().zip(weights) {
                if x != 0.0 && (x > 0.0) == positive {
                    sum += weight * x;
                    count += 1.0;
                }
            }
            sum / count.max(1.0)
        }))
    }
}

/// Zeroes all but the ⌊density n⌋ largest entries; of equal ones, the first stay.
fn keep_largest(entries: &mut [f64], density: f64) {
    let kept = (density * entries.len() as f64) as usize;
    let mut order: Vec<usize> = (0..entries.len()).collect();
    if kept < order.len() {
        let larger = |&i: &usize, &j: &usize| {
            entries[j]
                .abs()
                .total_cmp(&entries[i].abs())
                .then(i.cmp(&j))
        };
        order.select_nth_unstable_by(kept, larger);
        for &i in &order[kept..] {
            entries[i] = 0.0;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{distance, update};

    fn adapters(ranks: &[usize]) -> Vec<Lora> {
        (0_u32..)
            .zip(ranks)
            .map(|(t, &rank)| Lora::new(update(t, rank, 7), update(t + 9, 9, rank), 2.0).unwrap())
            .collect()
    }

    fn all(_: Part, _: usize, _: usize) -> bool {
        true
    }

    fn sum(adapters: &[Lora], weights: &[f64]) -> Matrix {
        let updates: Vec<Matrix> = adapters.iter().map(Lora::update).collect();
        weighted_sum(&updates, weights)
    }

    #[test]
    fn cat_and_a_large_enough_svd_are_exact() {
        let (adapters, weights) = (adapters(&[2, 3]), [0.7, -0.4]);
        let expected = sum(&adapters, &weights);
        for combination in [Combination::Cat, Combination::Svd { rank: Some(5) }] {
            let merged = combine(&adapters, &weights, &combination, &all).unwrap();
            assert_eq!((merged.rank(), merged.scale()), (5, 1.0));
            assert!(distance(&merged.update(), &expected) < 1e-12);
        }
        let svd = combine(&adapters, &weights, &Combination::Svd { rank: None }, &all).unwrap();
        let best = Svd::of(&expected).unwrap().values[3..]
            .iter()
            .map(|x| x * x)
            .sum::<f64>();
        assert_eq!(svd.rank(), 3);
        assert!((distance(&svd.update(), &expected) - best.sqrt()).abs() < 1e-10);
    }

    #[test]
    fn one_adapter_is_itself_under_every_name() {
        let adapter = adapters(&[3]);
        let sparse = Sparse {
            density: 0.1,
            random: false,
            elect: None,
        };
        for combination in [
            Combination::Linear,
            Combination::Cat,
            Combination::Svd { rank: Some(1) },
            Combination::Sparse(sparse),
        ] {
            let merged = combine(&adapter, &[-0.5], &combination, &all).unwrap();
            assert!(distance(&merged.update(), &sum(&adapter, &[-0.5])) < 1e-12);
        }
    }

    #[test]
    fn biases_are_summed_or_thinned_out() {
        let rows = |x: [f64; 4]| Matrix::new(1, 4, x.to_vec()).unwrap();
        let (one, two) = (rows([4.0, -1.0, 2.0, 0.0]), rows([-1.0, 3.0, 1.0, 2.0]));
        let of = |vectors: &[Matrix], combination| {
            let merged = combine_vectors(vectors, &[1.0, 0.5][..vectors.len()], &combination, &all);
            merged.unwrap().into_vec()
        };
        let both = [one.clone(), two];
        for combination in [
            Combination::Linear,
            Combination::Cat,
            Combination::Svd { rank: Some(1) },
        ] {
            assert_eq!(of(&both, combination), [3.5, 0.5, 2.5, 1.0]);
        }
        let sparse = |elect| Sparse {
            density: 0.5,
            random: false,
            elect,
        };
        let pruned = Combination::Sparse(sparse(None));
        assert_eq!(of(&both, pruned), [4.0, 1.5, 2.0, 1.0]);
        let ties = Combination::SparseSvd {
            sparse: sparse(Some(Majority::Total)),
            rank: None,
        };
        assert_eq!(of(&both, ties), [4.0, 1.5, 2.0, 1.0]);
        assert_eq!(of(&[one], pruned), [4.0, -1.0, 2.0, 0.0]);
        assert!(combine_vectors(&[], &[], &pruned, &all).is_err());
        assert!(combine_vectors(&both, &[1.0], &pruned, &all).is_err());
    }

    #[test]
    fn the_largest_entries_stay_and_the_first_of_equals() {
        let mut entries = [1.0, -3.0, 2.0, -2.0, 0.0];
        keep_largest(&mut entries, 0.5);
        assert_eq!(entries, [0.0, -3.0, 2.0, 0.0, 0.0]);
        keep_largest(&mut entries, 0.0);
        assert_eq!(entries, [0.0; 5]);
    }

    #[test]
    fn bad_input_is_an_error() {
        let linear = Combination::Linear;
        assert!(combine(&[], &[], &linear, &all).is_err());
        assert!(combine(&adapters(&[2, 3]), &[1.0, 1.0], &linear, &all).is_err());
        assert!(combine(&adapters(&[2, 2]), &[1.0], &linear, &all).is_err());
        assert!(combine(&adapters(&[2, 2]), &[1.0, f64::NAN], &linear, &all).is_err());
        let svd = Combination::Svd { rank: Some(0) };
        assert!(combine(&adapters(&[2, 2]), &[1.0, 1.0], &svd, &all).is_err());
        let sparse = Sparse {
            density: 0.0,
            random: true,
            elect: None,
        };
        let sparse = Combination::Sparse(sparse);
        assert!(combine(&adapters(&[2, 2]), &[1.0, 1.0], &sparse, &all).is_err());
    }
}
