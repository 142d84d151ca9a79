//! What the maps between two spaces promise.

use merganser_linalg::gemm;
use merganser_upkeep::Matrix;
use merganser_upkeep::drift::{
    Anchors, Direction, Drift, FitKind, FitOptions, Map, affine, orthogonal,
};
use proptest::prelude::*;

fn numbers(seed: u64, rows: usize, cols: usize) -> Matrix {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    Matrix::from_fn(rows, cols, |_, _| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64 * 2.0 - 1.0
    })
}

fn distance(a: &Matrix, b: &Matrix) -> f64 {
    let mut difference = a.clone();
    difference.add_scaled(-1.0, b);
    difference.norm()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn rotations_are_orthogonal_even_with_fewer_anchors_than_dimensions(seed: u64, n in 1_usize..12, d in 1_usize..8) {
        let map = orthogonal(&numbers(seed, n, d), &numbers(seed ^ 7, n, d)).unwrap();
        let square = gemm::mul_tn(&map.weight, &map.weight);
        prop_assert!(distance(&square, &Matrix::identity(d)) < 1e-8, "{square:?}");
    }

    #[test]
    fn affine_data_are_mapped_exactly(seed: u64, d in 1_usize..6) {
        let old = numbers(seed, 8 * d, d);
        let (a, b) = (numbers(seed ^ 1, d, d), numbers(seed ^ 2, 1, d));
        let mut new = gemm::mul_nt(&old, &a);
        for i in 0..new.rows() {
            for (x, b) in new.row_mut(i).iter_mut().zip(b.row(0)) {
                *x += b;
            }
        }
        let map = affine(&old, &new, 0.0).unwrap();
        prop_assert!(distance(&map.weight, &a) < 1e-6);
        prop_assert!(distance(&map.apply(&old), &new) < 1e-8);
    }

    #[test]
    fn no_drift_changes_nothing(seed: u64, n in 20_usize..40, d in 2_usize..6) {
        let rows = numbers(seed, n, d);
        let anchors = Anchors::new(rows.clone(), rows.clone(), Some(false)).unwrap();
        let (drift, found) = anchors.fit("a", "b", &FitOptions::default()).unwrap();
        prop_assert_eq!(drift.map.kind(), "shift");
        prop_assert_eq!(found.advice, merganser_upkeep::drift::Advice::Nothing);
        for direction in [Direction::ToOld, Direction::ToNew] {
            let moved = drift.transport(direction, None).unwrap().matrix(&rows).unwrap();
            prop_assert_eq!(&moved, &rows);
        }
    }

    #[test]
    fn the_way_there_and_back_ends_where_it_began(seed: u64, d in 2_usize..6) {
        let (old, new) = (numbers(seed, 30, d), numbers(seed ^ 3, 30, d));
        let anchors = Anchors::new(old.clone(), new, Some(false)).unwrap();
        for kind in [FitKind::Shift, FitKind::Orthogonal] {
            let options = FitOptions { kind, ridge: None };
            let (drift, _) = anchors.fit("a", "b", &options).unwrap();
            let there = drift.transport(Direction::ToNew, None).unwrap().matrix(&old).unwrap();
            let back = drift.transport(Direction::ToOld, None).unwrap().matrix(&there).unwrap();
            prop_assert!(distance(&back, &old) < 1e-9);
        }
    }

    #[test]
    fn a_chain_does_what_its_drifts_do_one_after_the_other(seed: u64, d in 2_usize..5) {
        let spaces: Vec<Matrix> = (0..4).map(|v| numbers(seed ^ v, 25, d)).collect();
        let kinds = [FitKind::Shift, FitKind::Orthogonal, FitKind::Affine];
        let drifts: Vec<Drift> = (0..3).map(|v| {
            let anchors = Anchors::new(spaces[v].clone(), spaces[v + 1].clone(), Some(false)).unwrap();
            let options = FitOptions { kind: kinds[v], ridge: Some(0.1) };
            anchors.fit(&v.to_string(), &(v + 1).to_string(), &options).unwrap().0
        }).collect();
        let all = Drift::chain(&drifts).unwrap();
        let mut rows = spaces[3].clone();
        for drift in drifts.iter().rev() {
            rows = drift.transport(Direction::ToOld, None).unwrap().matrix(&rows).unwrap();
        }
        let at_once = all.transport(Direction::ToOld, None).unwrap().matrix(&spaces[3]).unwrap();
        prop_assert!(distance(&rows, &at_once) < 1e-9);
        prop_assert!(Drift::chain(&[drifts[1].clone(), drifts[0].clone()]).is_err());
    }
}

#[test]
fn a_drift_is_read_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (numbers(1, 40, 5), numbers(2, 40, 5));
    let anchors = Anchors::new(old, new, Some(true)).unwrap();
    for (at, kind) in [
        FitKind::Shift,
        FitKind::Orthogonal,
        FitKind::Affine,
        FitKind::Clusters(3),
    ]
    .into_iter()
    .enumerate()
    {
        let (drift, _) = anchors
            .fit("v1", "v2", &FitOptions { kind, ridge: None })
            .unwrap();
        let path = dir.path().join(format!("{at}.safetensors"));
        drift.write(&path, false).unwrap();
        assert_eq!(Drift::read(&path).unwrap(), drift);
        assert!(drift.write(&path, false).is_err(), "it would be replaced");
    }
}

#[test]
fn an_affine_file_without_a_way_back_says_so() {
    let drift = Drift {
        from: "a".into(),
        to: "b".into(),
        unit: false,
        anchors: 0,
        map: Map::Affine {
            forward: affine(&numbers(1, 9, 2), &numbers(2, 9, 2), 0.1).unwrap(),
            backward: None,
        },
        measured: std::collections::BTreeMap::new(),
    };
    let error = drift.transport(Direction::ToOld, None).unwrap_err();
    assert!(error.to_string().contains("drift fit"), "{error}");
}
