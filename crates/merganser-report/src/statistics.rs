//! Rank correlation, and what counts as a number.

/// A value that was measured: NaN and infinity are not.
pub fn finite(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite())
}

/// Ranks from 1; equal values share the mean of their ranks. The values must be finite.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for group in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let shared = first as f64 + (group.len() + 1) as f64 / 2.0;
        for &k in group {
            ranks[k] = shared;
        }
        first += group.len();
    }
    ranks
}

/// Spearman's rank correlation: Pearson's correlation of the ranks, which is exact with ties.
///
/// Pairs with a value that is not finite are left out. `None` with fewer than three pairs, or if
/// either side is constant: there is no order to agree with.
pub fn spearman(pairs: &[(f64, f64)]) -> Option<f64> {
    let pairs = pairs.iter().filter(|(x, y)| x.is_finite() && y.is_finite());
    // Adding 0 makes −0 the same as 0 for the order, too.
    let (x, y): (Vec<f64>, Vec<f64>) = pairs.map(|(x, y)| (x + 0.0, y + 0.0)).unzip();
    if x.len() < 3 {
        return None;
    }
    let (x, y) = (ranks(&x), ranks(&y));
    let mean = (x.len() + 1) as f64 / 2.0;
    let product = |a: &[f64], b: &[f64]| -> f64 {
        let terms = a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean));
        terms.sum()
    };
    let norm = (product(&x, &x) * product(&y, &y)).sqrt();
    (norm > 0.0).then(|| (product(&x, &y) / norm).clamp(-1.0, 1.0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ties_share_a_rank() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [3.5, 1.0, 3.5, 2.0]);
        assert_eq!(ranks(&[7.0; 3]), [2.0; 3]);
        assert_eq!(ranks(&[]), [0.0; 0]);
    }

    #[test]
    fn spearman_of_known_data() {
        let rising = [(0.1, 5.0), (0.2, 6.0), (0.9, 60.0)];
        assert_eq!(spearman(&rising), Some(1.0));
        let falling = rising.map(|(x, y)| (x, -y));
        assert_eq!(spearman(&falling), Some(-1.0));
        // IQ and hours of television, the classical example without ties.
        let x = [106., 100., 86., 101., 99., 103., 97., 113., 112., 110.];
        let y = [7., 27., 2., 50., 28., 29., 20., 12., 6., 17.];
        let pairs: Vec<_> = x.into_iter().zip(y).collect();
        assert!((spearman(&pairs).unwrap() + 29.0 / 165.0).abs() < 1e-12);
        // scipy.stats.spearmanr([1, 2, 2, 4, 5], [1, 3, 2, 2, 5])
        let ties = [(1., 1.), (2., 3.), (2., 2.), (4., 2.), (5., 5.)];
        assert!((spearman(&ties).unwrap() - 0.763_157_894_736_842).abs() < 1e-12);
    }

    #[test]
    fn no_order_no_correlation() {
        assert_eq!(spearman(&[(0.0, 1.0), (1.0, 2.0)]), None);
        assert_eq!(spearman(&[(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)]), None);
        let with_gap = [
            (0.0, 1.0),
            (f64::NAN, 2.0),
            (1.0, f64::INFINITY),
            (2.0, 3.0),
        ];
        assert_eq!(spearman(&with_gap), None);
    }

    #[test]
    fn spearman_does_not_depend_on_monotone_changes() {
        let pairs = [(0.1, 3.0), (0.7, 1.0), (0.3, 3.0), (0.5, 9.0), (0.9, 4.0)];
        let changed = pairs.map(|(x, y): (f64, f64)| (x.exp(), y.powi(3)));
        assert_eq!(spearman(&pairs), spearman(&changed));
    }
}
