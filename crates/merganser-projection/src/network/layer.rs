//! What the networks feed to a parameter, and conversions between tensors and matrices.

use candle_core::{DType, Tensor};
use merganser_linalg::{Matrix, Real};
use merganser_model::{ModelError, Reg, State};
use rayon::prelude::*;

use super::walk::{StageWalk, Track, forward};
use super::{HostError, NetworkError, Stream};

/// One in this many rows is held out where a ridge is to be chosen: the last ones of each batch, whose rows lie sample by
/// sample, so that at most one sample of a batch is on both sides.
pub(super) const HELD_OUT: usize = 5;

/// The inputs of a parameter for one task: real rows, batch by batch.
pub(super) struct Sides {
    pub(super) rows: Vec<Tensor>,
}

impl Sides {
    pub(super) fn of(track: &Track, input: Reg, model: &str) -> Result<Self, NetworkError> {
        let states = track.feeding();
        let rows = states.iter().map(|state| state.rows(input));
        Ok(Self {
            rows: rows.collect::<Result<_, _>>().map_err(forward(model))?,
        })
    }
}

impl Track {
    /// The states of the network whose inputs a layer is solved for.
    pub(super) fn feeding(&self) -> &[State] {
        match self.stream {
            Stream::Merged => &self.student,
            Stream::Taught | Stream::Candidates => &self.taught,
        }
    }
}

/// The values of a tensor, row by row.
pub(super) fn values(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// A tensor of two axes as a matrix.
pub(super) fn matrix<T: Real>(tensor: &Tensor) -> Result<Matrix<T>, ModelError> {
    let (rows, cols) = tensor.dims2()?;
    let values = values(tensor)?;
    Ok(Matrix::from_fn(rows, cols, |i, j| {
        T::from_f64(f64::from(values[i * cols + j]))
    }))
}

/// The first rows, which a ridge is fitted on, and the rest, which it is chosen on.
pub(super) fn fitted_rows(rows: usize) -> usize {
    rows - rows / HELD_OUT
}

impl StageWalk<'_> {
    /// What the teacher of task `t` gives in a register minus what the student has there, for the residual stream.
    pub(super) fn drift(
        &self,
        t: usize,
        reg: Reg,
        batch: usize,
    ) -> Result<Option<Tensor>, NetworkError> {
        let track = &self.tracks[t];
        let Some(student) = track.student.get(batch) else {
            return Ok(None);
        };
        let name = &self.teachers[t].name;
        let taught = track.taught[batch].rows(reg).map_err(forward(name))?;
        let student = student.rows(reg).map_err(forward("the merged model"))?;
        Ok(Some(
            (taught - student).map_err(|e| forward(name)(e.into()))?,
        ))
    }

    /// Residual targets of task `t`: what its teacher gave in `output`, minus what the base gives for the same inputs.
    pub(super) fn targets(
        &self,
        t: usize,
        output: Reg,
        residual: Option<Reg>,
        base: impl Fn(usize) -> Result<Tensor, ModelError> + Sync,
    ) -> Result<Vec<Tensor>, NetworkError> {
        let track = &self.tracks[t];
        let name = &self.teachers[t].name;
        let residual = residual.filter(|_| self.settings.residual_targets);
        (0..track.taught.len())
            .into_par_iter()
            .map(|batch| {
                let taught = track.taught[batch].rows(output).map_err(forward(name))?;
                let base = base(batch).map_err(forward("the base model"))?;
                let mut targets = (taught - base).map_err(|e| forward(name)(e.into()))?;
                if let Some(reg) = residual
                    && let Some(drift) = self.drift(t, reg, batch)?
                {
                    targets = (targets + drift).map_err(|e| forward(name)(e.into()))?;
                }
                Ok(targets)
            })
            .collect()
    }

    /// Hands a merged tensor to the host and gives the student what came back.
    pub(super) fn keep(&mut self, name: &str, merged: Tensor) -> Result<(), NetworkError> {
        let stored = self.host.keep(name, merged).map_err(NetworkError::Host)?;
        self.student.insert(name, stored);
        Ok(())
    }
}

pub(super) fn host(error: impl Into<HostError>) -> NetworkError {
    NetworkError::Host(error.into())
}
