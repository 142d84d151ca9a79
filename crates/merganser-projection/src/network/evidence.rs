//! Moments of the inputs and targets of one matrix, as the walk takes them.

use candle_core::Tensor;

use super::layer::{Sides, fitted_rows, values};
use super::{NetworkError, layer};
use crate::{Error, InputMoments, TargetMoments};

/// What keeps moments from being taken.
pub(super) enum Failure {
    /// The rows could not be read.
    Rows(candle_core::Error),
    /// They are no rows to take moments of.
    Moments(Error),
}

impl From<candle_core::Error> for Failure {
    fn from(error: candle_core::Error) -> Self {
        Self::Rows(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Moments(error)
    }
}

impl Failure {
    /// The error about `tensor`, whose inputs or outputs `model` gave.
    pub(super) fn of(self, model: &str, tensor: &str) -> NetworkError {
        match self {
            Self::Rows(error) => layer::host(error),
            Self::Moments(Error::NotFinite { .. }) => NetworkError::NotFinite {
                model: model.to_owned(),
                tensor: tensor.to_owned(),
            },
            Self::Moments(problem) => NetworkError::Layer {
                tensor: tensor.to_owned(),
                problem,
            },
        }
    }
}

/// Moments of the inputs of one task.
#[derive(Clone)]
pub(super) struct Inputs {
    pub(super) all: InputMoments,
    pub(super) held_out: Option<InputMoments>,
}

impl Inputs {
    pub(super) fn of(sides: &Sides, width: usize, auto: bool) -> Result<Self, Failure> {
        let mut all = InputMoments::new(width);
        let mut held_out = auto.then(|| InputMoments::new(width));
        for rows in &sides.rows {
            let rows = values(rows)?;
            match &mut held_out {
                None => all.add_rows(&rows)?,
                Some(held_out) => {
                    let fitted = fitted_rows(rows.len() / width) * width;
                    all.add_rows(&rows[..fitted])?;
                    held_out.add_rows(&rows[fitted..])?;
                }
            }
        }
        if let Some(held_out) = &held_out {
            all.merge(held_out)?;
        }
        Ok(Self { all, held_out })
    }

    pub(super) fn with_bias(&self) -> Self {
        Self {
            all: self.all.with_bias(),
            held_out: self.held_out.as_ref().map(InputMoments::with_bias),
        }
    }

    pub(super) fn scaled(&self, factors: &[f64]) -> Self {
        let scaled = |moments: &InputMoments| moments.scaled(factors);
        Self {
            all: scaled(&self.all),
            held_out: self.held_out.as_ref().map(scaled),
        }
    }
}

/// Moments of the targets of one task.
pub(super) struct Targets {
    pub(super) all: TargetMoments,
    pub(super) held_out: Option<TargetMoments>,
}

impl Targets {
    pub(super) fn of(
        targets: &[Tensor],
        inputs: &[Tensor],
        (rows, cols): (usize, usize),
        auto: bool,
    ) -> Result<Self, Failure> {
        let mut all = TargetMoments::new(rows, cols);
        let mut held_out = auto.then(|| TargetMoments::new(rows, cols));
        for (r, x) in targets.iter().zip(inputs) {
            let (r, x) = (values(r)?, values(x)?);
            match &mut held_out {
                None => all.add_rows(&r, &x)?,
                Some(held_out) => {
                    let fitted = fitted_rows(x.len() / cols);
                    all.add_rows(&r[..fitted * rows], &x[..fitted * cols])?;
                    held_out.add_rows(&r[fitted * rows..], &x[fitted * cols..])?;
                }
            }
        }
        if let Some(held_out) = &held_out {
            all.merge(held_out)?;
        }
        Ok(Self { all, held_out })
    }

    pub(super) fn with_bias(&self) -> Self {
        Self {
            all: self.all.with_bias(),
            held_out: self.held_out.as_ref().map(TargetMoments::with_bias),
        }
    }

    pub(super) fn scaled(&self, factors: &[f64]) -> Self {
        let scaled = |moments: &TargetMoments| moments.scaled(factors);
        Self {
            all: scaled(&self.all),
            held_out: self.held_out.as_ref().map(scaled),
        }
    }
}
