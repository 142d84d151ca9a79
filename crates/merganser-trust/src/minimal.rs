//! The smallest change of one linear layer that has a wanted effect.
//!
//! A layer W (m×n) reads x and is to give an output that differs by d: ΔW x = d. Row by row this asks for the smallest w
//! with w·x = d_i, which by duality is |d_i| / ‖x‖_s for a norm ‖·‖_r with 1/r + 1/s = 1:
//!
//! | norm of ΔW | smallest | taken by |
//! |---|---|---|
//! | Frobenius, spectral, nuclear (ΔW has rank one) | ‖d‖ / ‖x‖ | d xᵀ / ‖x‖² |
//! | largest element | max ∣d_i∣ / ‖x‖₁ | d_i sign(x_j) / ‖x‖₁ |
//! | sum of magnitudes | Σ ∣d_i∣ / ‖x‖_∞ | d_i / x_p in the column p of largest ∣x_p∣ |
//!
//! If the bias may change too, x is extended by a 1. For K samples at once, X (n×K) and D (m×K), ΔW = D X⁺ is smallest in
//! every unitarily invariant norm; it exists if D (I − X⁺X) = 0, and is the least-squares change otherwise. Singular values
//! of X at or below 10⁻¹⁰ of the largest count as 0.
//!
//! Evans and Tanner, "Minimal weight perturbations" (arXiv 2601.16880), Theorem 1; the entry-wise norms are ours.

use merganser_linalg::{Matrix, Svd, gemm};

use crate::error::{Error, Result, check_finite, check_len};

/// Singular values up to this share of the largest are taken for 0.
const CUTOFF: f64 = 1e-10;
/// A residual up to this share of what was asked for is rounding.
const RESIDUAL: f64 = 1e-8;

/// In which norm a change is to be small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Norm {
    /// Root of the sum of squares. A change of one sample's output has rank one: this is its spectral norm too.
    #[default]
    Frobenius,
    /// Magnitude of the largest element.
    Max,
    /// Sum of all magnitudes.
    Sum,
}

/// A change of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// ΔW, m×n.
    pub weight: Matrix,
    /// Δb, of m numbers, if the bias may change.
    pub bias: Option<Vec<f64>>,
    /// Its norm, over ΔW and Δb.
    pub size: f64,
}

/// A change of a layer for several samples at once.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchChange {
    /// ΔW = D X⁺, m×n.
    pub weight: Matrix,
    /// Rank of X.
    pub rank: usize,
    /// Whether ΔW X = D up to rounding; otherwise ΔW is the least-squares change.
    pub feasible: bool,
    /// ‖ΔW X − D‖_F.
    pub residual: f64,
    /// ‖ΔW‖_F.
    pub frobenius: f64,
    /// Largest singular value of ΔW.
    pub spectral: f64,
    /// Sum of the singular values of ΔW.
    pub nuclear: f64,
}

/// Norms of one input, extended by a 1 if the bias may change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct InputNorms {
    /// ‖x‖₁
    pub(crate) sum: f64,
    /// ‖x‖
    pub(crate) euclid: f64,
    /// ‖x‖_∞
    pub(crate) max: f64,
}

impl InputNorms {
    pub(crate) fn of(x: &[f64], bias: bool) -> Self {
        let one = f64::from(u8::from(bias));
        let max = x.iter().fold(one, |max, x| max.max(x.abs()));
        // Scaled, so that no square overflows or vanishes.
        let euclid = if max > 0.0 {
            let squares = |x: f64| (x / max).powi(2);
            (x.iter().map(|&x| squares(x)).sum::<f64>() + squares(one)).sqrt() * max
        } else {
            0.0
        };
        Self {
            sum: x.iter().map(|x| x.abs()).sum::<f64>() + one,
            euclid,
            max,
        }
    }

    /// The size of the smallest change whose effect has ‖d‖, max |d_i| and Σ |d_i| as given.
    pub(crate) fn dual(self, norm: Norm) -> f64 {
        match norm {
            Norm::Frobenius => self.euclid,
            Norm::Max => self.sum,
            Norm::Sum => self.max,
        }
    }
}

/// The smallest change, in `norm`, that adds `d` to what the layer gives for `x`; with `bias`, its bias changes too.
///
/// # Errors
/// If a number is not finite, or if `x` is 0 and the bias is fixed while `d` is not 0: no weight can do it then.
pub fn smallest_change(x: &[f64], d: &[f64], bias: bool, norm: Norm) -> Result<Change> {
    check_finite("the input of the layer", x)?;
    check_finite("the change of the output", d)?;
    let norms = InputNorms::of(x, bias);
    if norms.max == 0.0 && d.iter().any(|&d| d != 0.0) {
        return Err(Error::Refused(
            "the input of the layer is 0 for this sample: no change of the weights alone can change the output; \
             let the bias change too"
                .into(),
        ));
    }
    // What every output's row is multiples of.
    let row = |x: f64, leads: bool| match norm {
        _ if norms.max == 0.0 => 0.0,
        Norm::Frobenius => x / norms.euclid / norms.euclid,
        Norm::Max if x == 0.0 => 0.0,
        Norm::Max => x.signum() / norms.sum,
        Norm::Sum if leads => 1.0 / x,
        Norm::Sum => 0.0,
    };
    let lead = x.iter().position(|x| x.abs() == norms.max);
    let direction: Vec<f64> = (0..)
        .zip(x)
        .map(|(j, &x)| row(x, Some(j) == lead))
        .collect();
    let weight = Matrix::from_fn(d.len(), x.len(), |i, j| d[i] * direction[j]);
    let share = row(1.0, lead.is_none());
    let bias = bias.then(|| d.iter().map(|d| d * share).collect());
    let reach = norms.dual(norm);
    let effect = match norm {
        Norm::Frobenius => d.iter().map(|d| d * d).sum::<f64>().sqrt(),
        Norm::Max => d.iter().fold(0.0, |max: f64, d| max.max(d.abs())),
        Norm::Sum => d.iter().map(|d| d.abs()).sum(),
    };
    Ok(Change {
        weight,
        bias,
        size: if effect == 0.0 { 0.0 } else { effect / reach },
    })
}

/// The smallest change that adds column k of `d` (m×K) to what the layer gives for column k of `x` (n×K), for all k.
///
/// # Errors
/// If the numbers of columns differ, a number is not finite, or a decomposition fails.
pub fn smallest_change_of_batch(x: &Matrix, d: &Matrix) -> Result<BatchChange> {
    check_len("the change of the outputs (columns)", d.cols(), x.cols())?;
    d.check_finite()?;
    let svd = Svd::of(x)?;
    let cutoff = CUTOFF * svd.values.first().copied().unwrap_or(0.0);
    let rank = svd.values.iter().take_while(|&&s| s > cutoff).count();
    let svd = svd.leading(rank);
    // D V, then Σ⁻¹, then Uᵀ.
    let mut seen = gemm::mul_nt(d, &svd.right);
    let mut missed = gemm::mul(&seen, &svd.right);
    missed.add_scaled(-1.0, d);
    let inverse: Vec<f64> = svd.values.iter().map(|s| 1.0 / s).collect();
    seen.scale_cols(&inverse);
    let weight = gemm::mul(&seen, &svd.left);
    let values = Svd::of(&weight)?.values;
    let residual = missed.norm();
    Ok(BatchChange {
        rank,
        feasible: residual <= RESIDUAL * d.norm(),
        residual,
        frobenius: weight.norm(),
        spectral: values.first().copied().unwrap_or(0.0),
        nuclear: values.iter().sum(),
        weight,
    })
}

/// The smallest ‖d‖ that makes class `target` the largest of `logits` + d, ahead of every other by at least `buffer`.
///
/// The outputs above the final level t of the target come down to it, and the target comes up: with the others, plus the
/// buffer, in descending order, t = (y_target + Σ_S z_k) / (∣S∣ + 1), where S grows as long as z_k > t. d_target = t −
/// y_target, d_k = t − z_k for k in S, 0 elsewhere.
///
/// # Errors
/// If there is no such class or a number is not finite.
pub fn targeted_output_change(logits: &[f64], target: usize, buffer: f64) -> Result<Vec<f64>> {
    check_finite("the output", logits)?;
    check_finite("the buffer", &[buffer])?;
    let Some(&own) = logits.get(target) else {
        return Err(Error::Refused(format!(
            "there is no class {target}: the layer has {}, counted from 0",
            logits.len()
        )));
    };
    let mut others: Vec<(usize, f64)> = (0..)
        .zip(logits)
        .filter(|(k, _)| *k != target)
        .map(|(k, y)| (k, y + buffer))
        .collect();
    others.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let (mut level, mut sum, mut count) = (own, own, 0);
    for (_, z) in &others {
        if *z <= level {
            break;
        }
        sum += z;
        count += 1;
        level = sum / f64::from(count + 1);
    }
    let mut change = vec![0.0; logits.len()];
    change[target] = level - own;
    for (k, z) in &others[..count as usize] {
        change[*k] = level - z;
    }
    Ok(change)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(change: &Change, norm: Norm) -> f64 {
        let all = change.weight.as_slice().iter();
        let all = all.chain(change.bias.iter().flatten());
        match norm {
            Norm::Frobenius => all.map(|x| x * x).sum::<f64>().sqrt(),
            Norm::Max => all.fold(0.0, |max: f64, x| max.max(x.abs())),
            Norm::Sum => all.map(|x| x.abs()).sum(),
        }
    }

    proptest! {
        #[test]
        fn a_change_does_what_was_asked_at_the_size_it_says(
            x in prop::collection::vec(-3.0..3.0, 6),
            d in prop::collection::vec(-2.0..2.0, 4),
            bias in any::<bool>(),
        ) {
            for norm in [Norm::Frobenius, Norm::Max, Norm::Sum] {
                let change = smallest_change(&x, &d, bias, norm).unwrap();
                for (i, d) in d.iter().enumerate() {
                    let effect = merganser_linalg::dot(change.weight.row(i), &x)
                        + change.bias.as_ref().map_or(0.0, |b| b[i]);
                    prop_assert!((effect - d).abs() < 1e-12);
                }
                prop_assert!((size(&change, norm) - change.size).abs() <= 1e-12 * change.size);
            }
        }

        #[test]
        fn no_other_change_with_the_same_effect_is_smaller(
            x in prop::collection::vec(-3.0..3.0, 5),
            d in prop::collection::vec(-2.0..2.0, 3),
            other in prop::collection::vec(-1.0..1.0, 15),
        ) {
            // Any matrix that sends x to 0 can be added.
            let square: f64 = x.iter().map(|x| x * x).sum();
            prop_assume!(square > 1e-3);
            let mut free = Matrix::new(3, 5, other).unwrap();
            for i in 0..3 {
                let along = merganser_linalg::dot(free.row(i), &x) / square;
                for (w, x) in free.row_mut(i).iter_mut().zip(&x) {
                    *w -= along * x;
                }
            }
            for norm in [Norm::Frobenius, Norm::Max, Norm::Sum] {
                let best = smallest_change(&x, &d, false, norm).unwrap();
                let mut rival = best.clone();
                rival.weight.add_scaled(1.0, &free);
                prop_assert!(size(&rival, norm) >= best.size * (1.0 - 1e-9));
            }
        }

        #[test]
        fn targets_win_and_no_smaller_change_lets_them(
            y in prop::collection::vec(-3.0..3.0, 6),
            target in 0..6_usize,
            buffer in 0.0..0.5,
            direction in prop::collection::vec(-1.0..1.0, 6),
        ) {
            let change = targeted_output_change(&y, target, buffer).unwrap();
            let moved: Vec<f64> = y.iter().zip(&change).map(|(y, d)| y + d).collect();
            let size = change.iter().map(|d| d * d).sum::<f64>().sqrt();
            for (k, z) in moved.iter().enumerate() {
                prop_assert!(k == target || moved[target] >= z + buffer - 1e-12);
            }
            // Another feasible change in a random direction away from this one is never shorter: the set is convex.
            let rival: Vec<f64> = change.iter().zip(&direction).map(|(d, r)| d + r).collect();
            let feasible = (0..6).all(|k| {
                k == target || y[target] + rival[target] >= y[k] + rival[k] + buffer
            });
            let length = rival.iter().map(|d| d * d).sum::<f64>().sqrt();
            prop_assert!(!feasible || length >= size - 1e-12);
        }
    }

    #[test]
    fn an_input_of_zeros_needs_the_bias() {
        let d = [1.0, -1.0];
        let message = smallest_change(&[0.0; 3], &d, false, Norm::Max).unwrap_err();
        assert!(message.to_string().contains("let the bias change too"));
        for norm in [Norm::Frobenius, Norm::Max, Norm::Sum] {
            let change = smallest_change(&[0.0; 3], &d, true, norm).unwrap();
            assert_eq!(change.bias, Some(vec![1.0, -1.0]));
            assert!(change.weight.as_slice().iter().all(|&x| x == 0.0));
            let nothing = smallest_change(&[0.0; 3], &[0.0], false, norm).unwrap();
            assert_eq!((nothing.size, nothing.weight.get(0, 0)), (0.0, 0.0));
        }
    }

    #[test]
    fn a_target_that_leads_already_needs_nothing() {
        assert_eq!(
            targeted_output_change(&[1.0, 3.0, 2.0], 1, 0.5).unwrap(),
            [0.0; 3]
        );
        assert!(targeted_output_change(&[1.0, 3.0], 2, 0.0).is_err());
    }
}
