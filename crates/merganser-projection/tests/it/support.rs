//! Matrices from golden files, and the moments of data in memory.

use merganser_linalg::{Matrix, gemm};
use merganser_projection::{HeldOut, InputMoments, Problem, TargetMoments, Task};
use merganser_testkit::Tensor;

/// A matrix from a tensor of two dimensions, or one row from one of fewer.
pub(crate) fn matrix(tensor: &Tensor) -> Matrix {
    let cols = tensor.shape.last().copied().unwrap_or(1);
    Matrix::new(
        tensor.values.len() / cols.max(1),
        cols,
        tensor.values.clone(),
    )
    .unwrap()
}

/// a − b.
pub(crate) fn minus(a: &Matrix, b: &Matrix) -> Matrix {
    let mut difference = a.clone();
    difference.add_scaled(-1.0, b);
    difference
}

/// Asserts ‖found − expected‖ ≤ tolerance · ‖expected‖.
#[track_caller]
pub(crate) fn assert_near(what: &str, found: &Matrix, expected: &Matrix, tolerance: f64) {
    assert_eq!(found.shape(), expected.shape(), "{what}: shapes");
    let (error, scale) = (minus(found, expected).norm(), expected.norm());
    assert!(
        error <= tolerance * scale.max(1e-300),
        "{what}: differs by {error:e} of {scale:e}"
    );
}

/// The data of one task of a layer.
#[derive(Debug, Clone)]
pub(crate) struct Data {
    pub(crate) weight: f64,
    /// Δ_t.
    pub(crate) update: Matrix,
    pub(crate) input: InputMoments,
    pub(crate) target: Option<TargetMoments>,
    pub(crate) held_out: Option<(InputMoments, Option<TargetMoments>)>,
}

impl Data {
    /// A task with the teacher's inputs `x` (one sample a row) and, where they differ, those of the merged network.
    pub(crate) fn new(base: &Matrix, tuned: &Matrix, x: &Matrix, merged: Option<&Matrix>) -> Self {
        let (input, target) = moments(base, tuned, x, merged);
        Self {
            weight: 1.0,
            update: minus(tuned, base),
            input,
            target,
            held_out: None,
        }
    }

    pub(crate) fn task(&self) -> Task<'_> {
        Task {
            weight: self.weight,
            update: &self.update,
            input: &self.input,
            target: self.target.as_ref(),
            held_out: self.held_out.as_ref().map(|(input, target)| HeldOut {
                input,
                target: target.as_ref(),
            }),
        }
    }
}

pub(crate) fn moments(
    base: &Matrix,
    tuned: &Matrix,
    x: &Matrix,
    merged: Option<&Matrix>,
) -> (InputMoments, Option<TargetMoments>) {
    let seen = merged.unwrap_or(x);
    let mut input = InputMoments::new(seen.cols());
    input.add_rows(seen.as_slice()).unwrap();
    let target = merged.map(|merged| {
        let residual = minus(&gemm::mul_nt(x, tuned), &gemm::mul_nt(merged, base));
        let mut target = TargetMoments::new(base.rows(), base.cols());
        target
            .add_rows(residual.as_slice(), merged.as_slice())
            .unwrap();
        target
    });
    (input, target)
}

pub(crate) fn problem(data: &[Data]) -> Problem<'_> {
    Problem::new(data.iter().map(Data::task).collect()).unwrap()
}
