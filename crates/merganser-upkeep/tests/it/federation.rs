//! FedCOF's estimate of a covariance from means of parts is unbiased, whoever has which feature.
//!
//! A pool of N features of one class with the mean μ and the covariance S (divisor N − 1) is shared at random among K clients
//! of n_k features each. The mean of n of them, drawn without putting back, has the covariance (1/n)(1 − n/N) S, so that
//! E Σ_k n_k (m_k − μ)(m_k − μ)ᵀ / (K − 1) = Σ_k (1 − n_k/N) S / (K − 1) = S, whatever the n_k.

use merganser_upkeep::Matrix;
use merganser_upkeep::heads::Pool;
use merganser_upkeep::stats::Stats;
use proptest::prelude::*;

/// S_c from the means of parts of `sizes` features, in the order of `order`.
fn estimate(pool: &Matrix, order: &[usize], sizes: &[usize]) -> Matrix {
    let mut at = 0;
    let clients = sizes
        .iter()
        .map(|&size| {
            let part = pool.gather_rows(&order[at..at + size]);
            at += size;
            let mean = |j: usize| (0..size).map(|i| part.get(i, j)).sum::<f64>() / size as f64;
            Stats {
                classes: vec![0],
                counts: vec![size as u64],
                means: Matrix::from_fn(1, part.cols(), |_, j| mean(j)),
                covs: None,
                gram: None,
            }
        })
        .collect();
    let pool = Pool::new(clients, None).unwrap();
    pool.covariance(0).unwrap()
}

/// The covariance of all features with divisor N − 1: each of them a client.
fn covariance(pool: &Matrix) -> Matrix {
    let order: Vec<usize> = (0..pool.rows()).collect();
    estimate(pool, &order, &vec![1; pool.rows()])
}

/// Calls `visit` with every order of `0..n` (Heap's algorithm).
fn permutations(n: usize, visit: &mut impl FnMut(&[usize])) {
    fn step(k: usize, order: &mut [usize], visit: &mut impl FnMut(&[usize])) {
        if k <= 1 {
            visit(order);
            return;
        }
        for i in 0..k {
            step(k - 1, order, visit);
            if i + 1 < k {
                order.swap(if k.is_multiple_of(2) { i } else { 0 }, k - 1);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    step(n, &mut order, visit);
}

/// Sizes of at least two clients that share `n` features: a client ends where a bit of `cuts` is set.
fn sizes(n: usize, cuts: u32) -> Vec<usize> {
    let mut sizes = vec![1];
    for i in 1..n {
        let last = sizes.len() - 1;
        if cuts >> i & 1 == 1 || (i == n - 1 && last == 0) {
            sizes.push(1);
        } else {
            sizes[last] += 1;
        }
    }
    sizes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_mean_over_all_ways_to_share_is_the_covariance(
        features in prop::collection::vec(-3.0..3.0, 12),
        n in 3_usize..=6,
        cuts: u32,
    ) {
        let pool = Matrix::new(n, 2, features[..2 * n].to_vec()).unwrap();
        let sizes = sizes(n, cuts);
        let (mut sum, mut count) = (Matrix::zeros(2, 2), 0.0);
        permutations(n, &mut |order| {
            sum.add_scaled(1.0, &estimate(&pool, order, &sizes));
            count += 1.0;
        });
        sum.scale(1.0 / count);
        let expected = covariance(&pool);
        for (a, b) in sum.as_slice().iter().zip(expected.as_slice()) {
            prop_assert!((a - b).abs() < 1e-10, "{sizes:?}: {sum:?}, {expected:?}");
        }
    }
}

/// The same for a pool too large to try all ways: the mean of random ones is within five of its standard errors.
#[test]
fn random_ways_to_share_scatter_around_the_covariance() {
    const DRAWS: usize = 3000;
    let pool = Matrix::from_fn(60, 3, |i, j| {
        ((i * 3 + j) as f64 * 1.7).sin() + 0.02 * i as f64
    });
    let expected = covariance(&pool);
    let mut state = 7_u64;
    let mut next = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize % below
    };
    let mut order: Vec<usize> = (0..60).collect();
    let (mut sum, mut squares) = (vec![0.0; 9], vec![0.0; 9]);
    for _ in 0..DRAWS {
        for i in (1..60).rev() {
            order.swap(i, next(i + 1));
        }
        let found = estimate(&pool, &order, &[30, 15, 8, 4, 2, 1]);
        for (k, x) in found.as_slice().iter().enumerate() {
            sum[k] += x;
            squares[k] += x * x;
        }
    }
    for (k, expected) in expected.as_slice().iter().enumerate() {
        let mean = sum[k] / DRAWS as f64;
        let error = ((squares[k] / DRAWS as f64 - mean * mean) / DRAWS as f64).sqrt();
        assert!(
            (mean - expected).abs() < 5.0 * error,
            "{mean} ± {error} where {expected} was expected"
        );
        assert!(error < 0.05, "the draws say too little: {error}");
    }
}
