//! Semantic drift compensation: a point of the old space moves as the anchors around it do.
//!
//! With o_i and n_i the vectors of anchor i in the old and the new space, a point P moves by
//!
//! Δ = Σ_i w_i (n_i − o_i) / Σ_i w_i, w_i = exp(−|o_i − P|² / 2σ²) + 10⁻⁵
//!
//! (Yu et al., CVPR 2020, arXiv 2004.00440; the 10⁻⁵ is in the code of arXiv 2405.19074, which compares with it). Where no
//! anchor lies within a few σ, the 10⁻⁵ is all that is left and Δ is the mean of all anchors: [`Local::kernel`] shows it.

use merganser_linalg::{Matrix, dot};
use rayon::prelude::*;

use super::Anchors;
use crate::error::{Error, Result, check_range, check_size};

/// What every anchor weighs, however far it is.
const FLOOR: f64 = 1e-5;
/// Halvings of the interval in which σ is looked for: to the last bits of its logarithm.
const HALVINGS: usize = 60;

/// σ, how far around a point anchors count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bandwidth {
    /// The same for every point.
    Fixed(f64),
    /// For each point the σ with which its weights count as so many equal ones, (Σ w)² / Σ w²: it follows the scale of the
    /// vectors, and how densely anchors lie around the point. Of few anchors at most half of them. Weights are relative to
    /// that of the nearest anchor.
    Neighbours(f64),
}

/// How one point moves.
#[derive(Debug, Clone, PartialEq)]
pub struct Local {
    /// Δ.
    pub shift: Vec<f64>,
    /// σ.
    pub sigma: f64,
    /// The share of Σ w_i that is not the 10⁻⁵ of each anchor.
    pub kernel: f64,
    /// |Δ|² over the weighted mean of |n_i − o_i|²: near 1 if the anchors around the point agree. Absent if none of them
    /// moves.
    pub share: Option<f64>,
}

/// The shift of each point, a row of `points` in the old space.
///
/// # Errors
/// If the sizes differ, or σ is not a finite number above 0.
pub fn displacements(
    anchors: &Anchors,
    points: &Matrix,
    bandwidth: Bandwidth,
) -> Result<Vec<Local>> {
    let (old, new) = (anchors.old(), anchors.new_space());
    check_size(
        || "length of the new vectors, which a shift needs to be that of the old".into(),
        new.cols(),
        old.cols(),
    )?;
    check_size(
        || "length of the anchors' old vectors, which must be that of the prototypes".into(),
        old.cols(),
        points.cols(),
    )?;
    match bandwidth {
        Bandwidth::Fixed(sigma) => {
            check_range("sigma", sigma, (1e-12, 1e12), "from 10^-12 to 10^12")?;
        }
        Bandwidth::Neighbours(count) => check_range(
            "the number of neighbours",
            count,
            (1.0, 1e9),
            "from 1 to 10^9",
        )?,
    }
    let drifts = {
        let mut drifts = new.clone();
        drifts.add_scaled(-1.0, old);
        drifts
    };
    (0..points.rows())
        .into_par_iter()
        .map(|k| local(old, &drifts, points.row(k), bandwidth))
        .collect()
}

fn local(old: &Matrix, drifts: &Matrix, point: &[f64], bandwidth: Bandwidth) -> Result<Local> {
    let n = old.rows();
    let mut squares: Vec<f64> = (0..n).map(|i| distance(old.row(i), point)).collect();
    let sigma = match bandwidth {
        Bandwidth::Fixed(sigma) => sigma,
        Bandwidth::Neighbours(count) => {
            let nearest = squares.iter().copied().fold(f64::INFINITY, f64::min);
            for square in &mut squares {
                *square -= nearest;
            }
            sigma_of(&squares, count.min((n as f64 / 2.0).max(1.0)))
        }
    };
    let mut shift = vec![0.0; point.len()];
    let (mut kernel, mut total, mut moved) = (0.0, 0.0, 0.0);
    for (i, square) in squares.iter().enumerate() {
        let near = weight(*square, sigma);
        let weight = near + FLOOR;
        kernel += near;
        total += weight;
        let drift = drifts.row(i);
        moved += weight * dot(drift, drift);
        for (sum, x) in shift.iter_mut().zip(drift) {
            *sum += weight * x;
        }
    }
    for x in &mut shift {
        *x /= total;
    }
    let length = dot(&shift, &shift);
    if !length.is_finite() {
        return Err(Error::Unfit(
            "the drift of the anchors is beyond the range of numbers; look for infinity or huge numbers in them".into(),
        ));
    }
    Ok(Local {
        share: (moved > 0.0).then(|| (length / (moved / total)).min(1.0)),
        shift,
        sigma,
        kernel: kernel / total,
    })
}

/// |a − b|².
pub(super) fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum()
}

fn weight(square: f64, sigma: f64) -> f64 {
    (-square / (2.0 * sigma * sigma)).exp()
}

/// The σ whose weights count as `count` equal ones. That number grows with σ, from how many anchors are nearest to how many
/// there are. `squares` are squared distances less that of the nearest.
fn sigma_of(squares: &[f64], count: f64) -> f64 {
    let farthest = squares.iter().copied().fold(0.0, f64::max).sqrt();
    if farthest == 0.0 {
        return 1.0;
    }
    let counted = |sigma: f64| {
        let (sum, square) = squares.iter().fold((0.0, 0.0), |(sum, square), &d| {
            let w = weight(d, sigma);
            (sum + w, square + w * w)
        });
        sum * sum / square
    };
    let (mut low, mut high) = ((1e-9 * farthest).ln(), (1e3 * farthest).ln());
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        if counted(middle.exp()) < count {
            low = middle;
        } else {
            high = middle;
        }
    }
    high.exp()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Two places, each with a drift of its own.
    fn two_places(scale: f64) -> Anchors {
        let old = Matrix::from_fn(80, 2, |i, j| {
            let wave = ((i * 2 + j) as f64 * 1.3).sin();
            scale * (wave + if i % 2 == 0 { 0.0 } else { 10.0 })
        });
        let new = Matrix::from_fn(80, 2, |i, j| {
            let side = if i % 2 == j { 1.0 } else { -1.0 };
            old.get(i, j) + scale * side
        });
        Anchors::new(old, new, Some(false)).unwrap()
    }

    #[test]
    fn points_move_as_the_anchors_around_them() {
        let points = Matrix::new(2, 2, vec![0.0, 0.0, 10.0, 10.0]).unwrap();
        let found = displacements(&two_places(1.0), &points, Bandwidth::Fixed(1.0)).unwrap();
        for (local, expected) in found.iter().zip([[1.0, -1.0], [-1.0, 1.0]]) {
            assert!((local.shift[0] - expected[0]).abs() < 1e-3, "{local:?}");
            assert!((local.shift[1] - expected[1]).abs() < 1e-3, "{local:?}");
            assert!(local.kernel > 0.99 && local.share.unwrap() > 0.99);
        }
    }

    #[test]
    fn a_narrow_kernel_leaves_the_mean_of_all_and_says_so() {
        let points = Matrix::new(1, 2, vec![4000.0, 0.0]).unwrap();
        let found = displacements(&two_places(1000.0), &points, Bandwidth::Fixed(0.3)).unwrap();
        assert!(found[0].kernel == 0.0 && found[0].shift[0].abs() < 1e-9);
    }

    #[test]
    fn neighbours_follow_the_scale() {
        for scale in [1e-6, 1.0, 1e6] {
            let points = Matrix::new(1, 2, vec![0.0, 0.0]).unwrap();
            let found =
                displacements(&two_places(scale), &points, Bandwidth::Neighbours(30.0)).unwrap();
            let local = &found[0];
            assert!((local.shift[0] / scale - 1.0).abs() < 1e-2, "{local:?}");
            assert!((local.sigma / scale - 1.0).abs() < 1.0, "{local:?}");
        }
        // Anchors that all lie at one place count alike.
        let old = Matrix::zeros(4, 2);
        let new = Matrix::from_fn(4, 2, |i, _| i as f64);
        let same = Anchors::new(old, new, Some(false)).unwrap();
        let points = Matrix::new(1, 2, vec![3.0, 4.0]).unwrap();
        let found = displacements(&same, &points, Bandwidth::Neighbours(2.0)).unwrap();
        assert!((found[0].shift[0] - 1.5).abs() < 1e-12);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let anchors = two_places(1.0);
        let points = Matrix::zeros(1, 2);
        for sigma in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(displacements(&anchors, &points, Bandwidth::Fixed(sigma)).is_err());
            assert!(displacements(&anchors, &points, Bandwidth::Neighbours(sigma)).is_err());
        }
        let three = Matrix::zeros(1, 3);
        let error = displacements(&anchors, &three, Bandwidth::Fixed(1.0)).unwrap_err();
        assert!(error.to_string().contains("found 2, expected 3"), "{error}");
    }
}
