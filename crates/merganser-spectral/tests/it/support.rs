//! Matrices from golden files and from seeds.

use merganser_linalg::{Matrix, Polar, gemm};
use merganser_testkit::{Case, Tensor};

/// A matrix from a tensor of two dimensions.
pub(crate) fn matrix(tensor: &Tensor) -> Matrix {
    Matrix::new(tensor.shape[0], tensor.shape[1], tensor.values.clone()).unwrap()
}

/// a − b.
pub(crate) fn minus(a: &Matrix, b: &Matrix) -> Matrix {
    let mut difference = a.clone();
    difference.add_scaled(-1.0, b);
    difference
}

/// Asserts that no element differs by more than `tolerance`.
#[track_caller]
pub(crate) fn assert_close(what: &str, found: &Matrix, expected: &Matrix, tolerance: f64) {
    assert_eq!(found.shape(), expected.shape(), "{what}: shapes");
    let error = minus(found, expected)
        .as_slice()
        .iter()
        .fold(0.0_f64, |max, x| {
            if x.is_nan() {
                f64::INFINITY
            } else {
                max.max(x.abs())
            }
        });
    assert!(error <= tolerance, "{what}: differs by {error:e}");
}

/// W_t − W₀ of every task.
pub(crate) fn updates(case: &Case, name: &str) -> Vec<Matrix> {
    let base = matrix(case.base(name));
    (0..case.tasks())
        .map(|task| minus(&matrix(case.task(task, name)), &base))
        .collect()
}

/// Numbers in −1 to 1 without structure.
pub(crate) fn numbers(seed: u64, m: usize, n: usize) -> Matrix {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Matrix::from_fn(m, n, |_, _| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    })
}

/// A random orthogonal matrix.
pub(crate) fn rotation(seed: u64, n: usize) -> Matrix {
    let polar = Polar::of(&numbers(seed, n, n), 0.0).unwrap();
    assert_eq!(polar.rank, n);
    polar.factor
}

/// P A Qᵀ.
pub(crate) fn turned(p: &Matrix, a: &Matrix, q: &Matrix) -> Matrix {
    gemm::mul_nt(&gemm::mul(p, a), q)
}
