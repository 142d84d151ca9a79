//! What holds for all updates.

use merganser_linalg::{Matrix, Polar, Svd, gemm};
use merganser_spectral::{Result, cart, iso_c, iso_cts, tsv_m};
use proptest::prelude::*;

use crate::support::{assert_close, numbers, rotation, turned};

type Merge = (&'static str, fn(&[&Matrix]) -> Result<Matrix>);

const MERGES: [Merge; 4] = [
    ("tsv_m", |updates| Ok(tsv_m(updates, None)?.update)),
    ("iso_c", |updates| Ok(iso_c(updates)?.update)),
    ("iso_cts", |updates| Ok(iso_cts(updates, 0.6)?.update)),
    ("cart", |updates| cart(updates, 0.3, 0.5)),
];

/// Whether singular vectors of the updates are known well enough to compare: no two values are close to each other.
fn separated(a: &Matrix) -> bool {
    let values = Svd::of(a).unwrap().values;
    values.windows(2).all(|w| w[0] - w[1] > 1e-3 * values[0])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_change_of_basis_before_is_one_after(
        seed in any::<u32>(), m in 1..14_usize, n in 1..14_usize, tasks in 1..4_usize,
    ) {
        let seed = u64::from(seed) * 16;
        let updates: Vec<Matrix> = (0..tasks as u64).map(|t| numbers(seed + t, m, n)).collect();
        let mut sum = Matrix::zeros(m, n);
        for update in &updates {
            sum.add_scaled(1.0, update);
        }
        prop_assume!(updates.iter().chain([&sum]).all(separated));
        let (p, q) = (rotation(seed + 8, m), rotation(seed + 9, n));
        let others: Vec<Matrix> = updates.iter().map(|u| turned(&p, u, &q)).collect();
        for (name, merge) in MERGES {
            let one = merge(&updates.iter().collect::<Vec<_>>()).unwrap();
            let other = merge(&others.iter().collect::<Vec<_>>()).unwrap();
            assert_close(name, &other, &turned(&p, &one, &q), 1e-6 * one.norm().max(1.0));
        }
    }

    #[test]
    fn polar_factors_are_orthonormal(seed in any::<u32>(), m in 1..30_usize, n in 1..30_usize) {
        let a = numbers(u64::from(seed), m, n);
        let polar = Polar::of(&a, f64::from(f32::EPSILON)).unwrap();
        let factor = polar.factor;
        let gram = if m <= n { gemm::mul_nt(&factor, &factor) } else { gemm::mul_tn(&factor, &factor) };
        prop_assert_eq!(polar.rank, m.min(n));
        assert_close("the Gram", &gram, &Matrix::identity(m.min(n)), 1e-9);
        // A = P H with H symmetric and positive: the trace of PᵀA is the nuclear norm.
        prop_assert!((factor.dot(&a) / polar.nuclear_norm - 1.0).abs() < 1e-9);
    }

    #[test]
    fn no_merge_of_low_rank_is_ever_nan(
        seed in any::<u32>(), m in 1..12_usize, n in 1..12_usize, rank in 0..4_usize, scale in -6..6_i32,
    ) {
        let seed = u64::from(seed) * 16;
        let update = |t: u64| {
            let mut u = gemm::mul(&numbers(seed + t, m, rank), &numbers(seed + 4 + t, rank, n));
            u.scale(10.0_f64.powi(scale));
            u.cast::<f32>()
        };
        let updates = [update(0), update(1), update(1), Matrix::zeros(m, n)];
        let updates: Vec<&Matrix<f32>> = updates.iter().collect();
        prop_assert!(tsv_m(&updates, None).unwrap().update.check_finite().is_ok());
        prop_assert!(iso_c(&updates).unwrap().update.check_finite().is_ok());
        prop_assert!(iso_cts(&updates, 0.6).unwrap().update.check_finite().is_ok());
        prop_assert!(cart(&updates, 0.3, 0.5).unwrap().check_finite().is_ok());
    }
}

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    let updates: Vec<Matrix> = (0..3).map(|t| numbers(t, 150, 420)).collect();
    let updates: Vec<&Matrix> = updates.iter().collect();
    let within = |threads, merge: fn(&[&Matrix]) -> Result<Matrix>| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| merge(&updates).unwrap())
    };
    for (name, merge) in MERGES {
        assert_eq!(within(1, merge), within(3, merge), "{name}");
    }
}
