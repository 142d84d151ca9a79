//! The update of one matrix, W − W₀, in double precision: of stored numbers of single precision or less it is exact, as far
//! as their exponents allow.

use merganser_linalg::Matrix;
use merganser_methods::{CHUNK, Source};
use merganser_plan::Model;
use merganser_spectral::Precision;
use merganser_store::Dtype;

use crate::{RunError, sources};

/// Bytes that the decomposition of an m×n matrix takes, `rank` of its directions kept: the update, its copy, the Gram
/// matrix of the smaller side and what becomes of it, and the factors.
pub(crate) fn bytes(m: usize, n: usize, rank: usize) -> u64 {
    let (m, n) = (m as u64, n as u64);
    let small = m.min(n);
    let rank = (rank as u64).min(small);
    8 * (2 * m * n + 4 * small * small + 4 * rank * (m + n))
}

/// The format to which a model's tensor is rounded.
pub(crate) fn precision(model: &Model, name: &str) -> Precision {
    // An adapter on top of a model is applied in single precision.
    let stored = model
        .info(name)
        .filter(|_| model.deltas(name).is_empty())
        .map(|info| info.dtype);
    match stored {
        Some(Dtype::BF16) => Precision::BF16,
        Some(Dtype::F16) => Precision::F16,
        Some(Dtype::F8E4M3) => Precision::F8_E4M3,
        Some(Dtype::F8E5M2) => Precision::F8_E5M2,
        // Wider ones are read as single precision.
        _ => Precision::F32,
    }
}

/// Shows the tensor called `name` to `visit`, a few rows of `columns` elements at a time.
///
/// # Errors
/// If it cannot be read, or holds NaN or infinity.
pub(crate) fn rows(
    model: &Model,
    name: &str,
    (rows, columns): (usize, usize),
    mut visit: impl FnMut(usize, &[f32]),
) -> Result<(), RunError> {
    let source: Box<dyn Source + '_> = sources::open(model, name)?;
    let step = (CHUNK / columns.max(1)).max(1);
    let mut raw = Vec::new();
    let mut values = Vec::new();
    for first in (0..rows).step_by(step) {
        let from = first * columns;
        let len = step.min(rows - first) * columns;
        source
            .fetch(from..from + len, &mut raw)
            .map_err(RunError::Read)?;
        values.resize(len, 0.0);
        source.decode(&raw, from, 0, &mut values);
        if !merganser_kernels::convert::all_finite(&values) {
            return Err(RunError::Extract(format!(
                "tensor '{name}' of {} holds NaN or infinity",
                model.label
            )));
        }
        visit(first, &values);
    }
    Ok(())
}

/// W − W₀ of an m×n tensor; `visit` sees the rows of W, each once and in order.
///
/// # Errors
/// Those of [`rows`].
pub(crate) fn update(
    (fine, name): (&Model, &str),
    (base, in_base): (&Model, &str),
    (m, n): (usize, usize),
    mut visit: impl FnMut(&[f32]),
) -> Result<Matrix, RunError> {
    let mut update = Matrix::zeros(m, n);
    let into = |update: &mut Matrix, first: usize, values: &[f32], sign: f64| {
        let to = &mut update.as_mut_slice()[first * n..first * n + values.len()];
        for (x, y) in to.iter_mut().zip(values) {
            *x += sign * f64::from(*y);
        }
    };
    rows(fine, name, (m, n), |first, values| {
        values.chunks(n.max(1)).for_each(&mut visit);
        into(&mut update, first, values, 1.0);
    })?;
    rows(base, in_base, (m, n), |first, values| {
        into(&mut update, first, values, -1.0);
    })?;
    Ok(update)
}

/// A tensor that is read along with another one of the same shape.
pub(crate) struct Reader<'a> {
    source: Box<dyn Source + 'a>,
    at: usize,
    raw: Vec<u8>,
    values: Vec<f32>,
    failed: Option<RunError>,
}

impl<'a> Reader<'a> {
    /// Opens the tensor called `name`.
    pub(crate) fn open(model: &'a Model, name: &str) -> Result<Self, RunError> {
        Ok(Self {
            source: sources::open(model, name)?,
            at: 0,
            raw: Vec::new(),
            values: Vec::new(),
            failed: None,
        })
    }

    /// The next `len` elements; `None` once reading has failed.
    pub(crate) fn next(&mut self, len: usize) -> Option<&[f32]> {
        if self.failed.is_some() {
            return None;
        }
        if let Err(error) = self.source.fetch(self.at..self.at + len, &mut self.raw) {
            self.failed = Some(RunError::Read(error));
            return None;
        }
        self.values.resize(len, 0.0);
        self.source.decode(&self.raw, self.at, 0, &mut self.values);
        self.at += len;
        Some(&self.values)
    }

    /// Whether everything could be read.
    pub(crate) fn finish(self) -> Result<(), RunError> {
        self.failed.map_or(Ok(()), Err)
    }
}
