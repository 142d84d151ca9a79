//! Intervals of 95 % confidence, and rank correlation.
//!
//! - A proportion k of n: Wilson's score interval (Wilson 1927), which holds for few samples and near 0 and 1.
//! - A mean of values, or a ratio Σa / Σb over samples (tokens within a text are not independent, texts are): the normal
//!   interval of the ratio estimator, variance n/(n−1) · Σ (aᵢ − r·bᵢ)² / (Σ bᵢ)² (Cochran, "Sampling techniques", §2.11).
//! - Spearman's ρ: Fisher's z with standard error √((1 + ρ²/2)/(n − 3)) (Bonett and Wright 2000).
//!
//! Sums run in order, in f64: the same numbers for any number of threads.

/// Quantile 0.975 of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Lower and upper end.
pub type Interval = [f64; 2];

/// Wilson's interval of a proportion; `None` of no samples.
pub fn wilson(successes: usize, samples: usize) -> Option<Interval> {
    if samples == 0 {
        return None;
    }
    let n = samples as f64;
    let p = successes as f64 / n;
    let middle = p + Z * Z / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    // At the ends rounding could step over 0 or 1.
    Some([
        ((middle - half) / scale).clamp(0.0, p),
        ((middle + half) / scale).clamp(p, 1.0),
    ])
}

/// Σ `numerators` / Σ `denominators` over samples, and its interval if there are two samples or more.
pub fn ratio(numerators: &[f64], denominators: &[f64]) -> (f64, Option<Interval>) {
    let n = numerators.len() as f64;
    let total: f64 = denominators.iter().sum();
    let r = numerators.iter().sum::<f64>() / total;
    if numerators.len() < 2 {
        return (r, None);
    }
    let squares: f64 = numerators
        .iter()
        .zip(denominators)
        .map(|(a, b)| (a - r * b).powi(2))
        .sum();
    let half = Z * (n / (n - 1.0) * squares).sqrt() / total;
    (r, Some([r - half, r + half]))
}

/// The mean of `values`, and its interval if there are two or more.
pub fn mean(values: &[f64]) -> (f64, Option<Interval>) {
    ratio(values, &vec![1.0; values.len()])
}

/// Spearman's rank correlation, with its interval from four samples on; `None` where one side is constant.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<(f64, Option<Interval>)> {
    let (a, b) = (ranks(a), ranks(b));
    let n = a.len() as f64;
    let middle = f64::midpoint(n, 1.0);
    let moment = |x: &[f64], y: &[f64]| -> f64 {
        x.iter()
            .zip(y)
            .map(|(x, y)| (x - middle) * (y - middle))
            .sum()
    };
    let (aa, bb) = (moment(&a, &a), moment(&b, &b));
    if aa <= 0.0 || bb <= 0.0 {
        return None;
    }
    let rho = (moment(&a, &b) / (aa * bb).sqrt()).clamp(-1.0, 1.0);
    let interval = (a.len() > 3).then(|| {
        let half = Z * ((1.0 + rho * rho / 2.0) / (n - 3.0)).sqrt();
        // The transform is infinite at ±1, where the interval is the point.
        if rho.abs() == 1.0 {
            [rho, rho]
        } else {
            [(rho.atanh() - half).tanh(), (rho.atanh() + half).tanh()]
        }
    });
    Some((rho, interval))
}

/// Ranks from 1, ties at their mean.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for tie in order.chunk_by(|&i, &j| values[i] == values[j]) {
        let rank = start as f64 + f64::midpoint(tie.len() as f64, 1.0);
        for &at in tie {
            ranks[at] = rank;
        }
        start += tie.len();
    }
    ranks
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-6
    }

    #[test]
    fn wilson_is_the_published_example() {
        // Wilson's interval of 81 of 263 (Newcombe 1998, table I, method 3): 0.2553 to 0.3662.
        let [low, high] = wilson(81, 263).unwrap();
        assert!(
            (low - 0.2553).abs() < 5e-5 && (high - 0.3662).abs() < 5e-5,
            "{low} {high}"
        );
        // 0 of 20: 0 to 0.1611.
        let [low, high] = wilson(0, 20).unwrap();
        assert!(low == 0.0 && (high - 0.1611).abs() < 5e-5);
        assert_eq!(wilson(0, 0), None);
    }

    #[test]
    fn a_mean_has_the_interval_of_its_standard_error() {
        let (value, interval) = mean(&[1.0, 2.0, 3.0, 4.0]);
        let error = (5.0_f64 / 3.0 / 4.0).sqrt();
        assert!(close(value, 2.5));
        assert!(close(interval.unwrap()[1], 2.5 + Z * error));
        assert_eq!(mean(&[3.0]), (3.0, None));
    }

    #[test]
    fn ranks_share_ties() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, -2.0]), [3.5, 2.0, 3.5, 1.0]);
    }

    #[test]
    fn spearman_is_that_of_a_worked_example() {
        // IQ and hours of television, the example of textbooks: ρ = −29/165.
        let iq = [
            106.0, 100.0, 86.0, 101.0, 99.0, 103.0, 97.0, 113.0, 112.0, 110.0,
        ];
        let hours = [7.0, 27.0, 2.0, 50.0, 28.0, 29.0, 20.0, 12.0, 6.0, 17.0];
        let (rho, interval) = spearman(&iq, &hours).unwrap();
        assert!(close(rho, -29.0 / 165.0));
        let [low, high] = interval.unwrap();
        assert!(low < rho && rho < high && low > -1.0 && high < 1.0);
        assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), None);
    }

    proptest! {
        #[test]
        fn intervals_hold_their_value_and_narrow_with_samples(k in 0_usize..50, more in 0_usize..50) {
            let n = k + more + 1;
            let [low, high] = wilson(k, n).unwrap();
            let p = k as f64 / n as f64;
            prop_assert!(0.0 <= low && low <= p && p <= high && high <= 1.0);
            let [low2, high2] = wilson(4 * k, 4 * n).unwrap();
            prop_assert!(high2 - low2 <= high - low);
        }

        #[test]
        fn rank_correlation_knows_order_only(values in prop::collection::vec(-1e3_f64..1e3, 5..30)) {
            let cubes: Vec<f64> = values.iter().map(|x| x.powi(3)).collect();
            prop_assume!(ranks(&values) == ranks(&cubes));
            if let Some((rho, _)) = spearman(&values, &cubes) {
                prop_assert!(close(rho, 1.0));
            }
        }
    }
}
