use proptest::prelude::*;

use super::*;
use crate::gemm;

const BOUNDED: [Constraint; 3] = [
    Constraint::NonNegative,
    Constraint::Box,
    Constraint::Simplex,
];

/// H = AᵀA of `rank` rows and b in its range, plus what is needed for J to be bounded below in any case: nothing.
fn programme(n: usize, rank: usize, numbers: &[f64]) -> (Matrix, Vec<f64>) {
    let a = Matrix::from_fn(rank, n, |i, j| numbers[(i * n + j) % numbers.len()]);
    let target = Matrix::from_fn(1, rank, |_, i| numbers[(7 * i + 3) % numbers.len()]);
    let b = gemm::mul(&target, &a).into_vec();
    (gemm::mul_tn(&a, &a), b)
}

/// Every face of the set tried in turn: the smallest J over those whose minimiser is in the set.
fn by_enumeration(h: &Matrix, b: &[f64], constraint: Constraint) -> f64 {
    let n = b.len();
    let states = if constraint == Constraint::Box {
        3
    } else {
        2_usize
    };
    let mut best = f64::INFINITY;
    for code in 0..states.pow(n as u32) {
        let digit = |i: usize| code / states.pow(i as u32) % states;
        let free: Vec<usize> = (0..n).filter(|&i| digit(i) == 1).collect();
        let held: Vec<f64> = (0..n).map(|i| f64::from(u8::from(digit(i) == 2))).collect();
        if constraint == Constraint::Simplex && free.is_empty() {
            continue;
        }
        let shifted: Vec<f64> = (0..n).map(|i| b[i] - crate::dot(h.row(i), &held)).collect();
        let x = if free.is_empty() {
            held
        } else {
            let sum = constraint.sums_to_one().then_some(1.0);
            let (x, _) = equality(h, &shifted, &free, sum, 0.0).unwrap();
            x.iter().zip(&held).map(|(x, held)| x + held).collect()
        };
        let inside = x
            .iter()
            .all(|&x| x >= -1e-9 && x <= constraint.upper() + 1e-9);
        if inside {
            best = best.min(value(h, b, &x));
        }
    }
    best
}

#[test]
fn known_minima() {
    let h = Matrix::new(2, 2, vec![2.0, 0.0, 0.0, 1.0]).unwrap();
    let b = [-1.0, 3.0];
    let at = |constraint| minimise(&h, &b, constraint, 0.0).unwrap().x;
    assert_eq!(at(Constraint::Free), [-0.5, 3.0]);
    assert_eq!(at(Constraint::NonNegative), [0.0, 3.0]);
    assert_eq!(at(Constraint::Box), [0.0, 1.0]);
    assert_eq!(at(Constraint::Simplex), [0.0, 1.0]);
    let affine = at(Constraint::Affine);
    assert!((affine[0] + 1.0).abs() < 1e-14 && (affine[1] - 2.0).abs() < 1e-14);
}

#[test]
fn a_singular_programme_has_its_least_solution() {
    let h = Matrix::new(2, 2, vec![1.0; 4]).unwrap();
    let minimum = minimise(&h, &[1.0, 1.0], Constraint::Free, 0.0).unwrap();
    assert_eq!(minimum.rank, 1);
    assert!(minimum.x.iter().all(|x| (x - 0.5).abs() < 1e-15));
    let zero = minimise(&Matrix::zeros(2, 2), &[0.0, 0.0], Constraint::Simplex, 0.0).unwrap();
    assert!((zero.x.iter().sum::<f64>() - 1.0).abs() < 1e-15);
}

#[test]
fn equal_unknowns_share_what_they_sum_to() {
    // Rounding leaves something of H on the hyperplane, which must not be divided by.
    let h = Matrix::new(2, 2, vec![1.0, 1.0 - 1e-16, 1.0 + 2e-16, 1.0]).unwrap();
    let b = [0.3 + 1e-15, 0.3];
    for constraint in [Constraint::Affine, Constraint::Simplex] {
        let x = minimise(&h, &b, constraint, 0.0).unwrap().x;
        assert!(x.iter().all(|x| (x - 0.5).abs() < 1e-12), "{x:?}");
    }
}

#[test]
fn rounding_does_not_make_a_programme_unbounded() {
    // Along (1, 1) H is 0 up to rounding, and b is not: without bounds above, J seems to fall for ever.
    let h = Matrix::new(2, 2, vec![1.0, -1.0, -1.0, 1.0 - 1e-16]).unwrap();
    let minimum = minimise(
        &h,
        &[0.5 + 1e-15, -0.5 + 2e-15],
        Constraint::NonNegative,
        0.0,
    )
    .unwrap();
    assert!((minimum.x[0] - minimum.x[1] - 0.5).abs() < 1e-12 && minimum.x[0] < 10.0);
}

#[test]
fn bad_programmes_are_refused() {
    let nan = Matrix::new(1, 1, vec![f64::NAN]).unwrap();
    assert!(minimise(&nan, &[1.0], Constraint::Free, 0.0).is_err());
    assert!(minimise(&Matrix::identity(1), &[f64::INFINITY], Constraint::Box, 0.0).is_err());
    assert!(minimise(&Matrix::zeros(0, 0), &[], Constraint::Simplex, 0.0).is_err());
    assert!(minimise(&Matrix::zeros(0, 0), &[], Constraint::Free, 0.0).is_ok());
}

#[test]
fn many_unknowns_are_solved_exactly_too() {
    let numbers: Vec<f64> = (0..9973).map(|i| (f64::from(i) * 0.7391).sin()).collect();
    for constraint in BOUNDED {
        let (h, b) = programme(3 * DENSE, 4 * DENSE, &numbers);
        let minimum = minimise(&h, &b, constraint, 0.0).unwrap();
        let gradient: Vec<f64> = (0..b.len())
            .map(|i| crate::dot(h.row(i), &minimum.x) - b[i])
            .collect();
        let free: Vec<usize> = (0..b.len())
            .filter(|&i| minimum.x[i] > 0.0 && minimum.x[i] < constraint.upper())
            .collect();
        let level = if constraint == Constraint::Simplex {
            gradient[free[0]]
        } else {
            0.0
        };
        assert!(free.len() > 3);
        assert!(free.iter().all(|&i| (gradient[i] - level).abs() < 1e-9));
    }
}

proptest! {
    #[test]
    fn the_active_set_finds_what_enumeration_finds(
        n in 1_usize..5,
        missing in 0_usize..3,
        numbers in prop::collection::vec(-2.0..2.0_f64, 25),
    ) {
        let (h, b) = programme(n, n.saturating_sub(missing).max(1), &numbers);
        for constraint in BOUNDED {
            let minimum = minimise(&h, &b, constraint, 0.0).unwrap();
            prop_assert!(minimum.x.iter().all(|&x| x >= 0.0 && x <= constraint.upper()));
            if constraint == Constraint::Simplex {
                prop_assert!((minimum.x.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            }
            let best = by_enumeration(&h, &b, constraint);
            prop_assert!((minimum.value - best).abs() < 1e-8 * (1.0 + best.abs()), "{:?} {} {}", constraint, minimum.value, best);
        }
    }

    #[test]
    fn clarabel_agrees(
        n in 2_usize..12,
        numbers in prop::collection::vec(-2.0..2.0_f64, 163),
    ) {
        let (h, b) = programme(n, n + 2, &numbers);
        for constraint in BOUNDED.into_iter().chain([Constraint::Affine]) {
            let minimum = minimise(&h, &b, constraint, 0.0).unwrap();
            let other = value(&h, &b, &conic::minimise(&h, &b, constraint).unwrap());
            prop_assert!((minimum.value - other).abs() < 1e-6 * (1.0 + other.abs()), "{:?} {} {}", constraint, minimum.value, other);
        }
    }

    #[test]
    fn smaller_sets_have_larger_minima(
        n in 1_usize..9,
        numbers in prop::collection::vec(-2.0..2.0_f64, 101),
    ) {
        let (h, b) = programme(n, n, &numbers);
        let at = |constraint| minimise(&h, &b, constraint, 0.0).unwrap().value;
        let [free, nonneg, boxed, simplex, affine] = [
            Constraint::Free, Constraint::NonNegative, Constraint::Box, Constraint::Simplex, Constraint::Affine,
        ].map(at);
        let slack = 1e-9 * (1.0 + free.abs());
        prop_assert!(free <= nonneg + slack && nonneg <= boxed + slack && boxed <= simplex + slack);
        prop_assert!(free <= affine + slack && affine <= simplex + slack);
    }
}
