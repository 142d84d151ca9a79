//! Spectra of task vectors, and how much of each lies in the leading space of a merged one.
//!
//! Only matrices of layers count, as in the paper; see `merganser_spectral` for the definitions. Every matrix costs one
//! decomposition a model, in `f64`, so that a caller asks for this.

use merganser_linalg::Matrix;
use merganser_plan::{Model, Role};
use merganser_spectral::{alignment, leading_space, spectrum, stable_rank};

use crate::compare::{self, Row};
use crate::lanes::{affordable, in_lanes};
use crate::{RunError, updates};

/// What is to be computed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// Singular values and stable ranks.
    pub spectra: bool,
    /// Subspace alignment ratios.
    pub alignment: bool,
    /// Position among the models, counted from the base's 0, of the merged one; `None` takes the sum of all task vectors.
    pub merged: Option<usize>,
}

/// What was found about one matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct MatrixSpectra {
    /// Its name in the base.
    pub name: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// By task vector, its singular values in descending order as far as they stand out of rounding.
    pub values: Vec<Vec<f64>>,
    /// By task vector, ‖Δ‖²_F / ‖Δ‖²_2; `None` if it is 0.
    pub stable_ranks: Vec<Option<f64>>,
    /// Number k of directions of the merged update that the alignment is taken with.
    pub space: Option<usize>,
    /// By task vector, ‖Π_k Δ_t‖_F / ‖Δ_t‖_F; `None` if it is 0, or not a task but the merged model.
    pub alignment: Vec<Option<f64>>,
}

impl MatrixSpectra {
    /// What kind of matrix it is: its name without its layer.
    pub fn kind(&self) -> &str {
        match Role::of(&self.name) {
            Role::Layer { suffix, .. } => suffix,
            Role::Pre | Role::Post => &self.name,
        }
    }
}

/// Decomposes the task vectors of all matrices of layers that all models have, in layer order, on the current rayon pool.
///
/// # Errors
/// If a tensor cannot be read or is not finite, or if a given `memory` has no room for one matrix.
pub fn spectra(
    models: &[Model],
    wanted: Wanted,
    memory: Option<u64>,
) -> Result<Vec<MatrixSpectra>, RunError> {
    let mut rows: Vec<Row> = compare::rows(models)
        .into_iter()
        .filter(|row| {
            row.shape.len() == 2
                && row.shape.iter().all(|&n| n > 0)
                && row.dtypes.iter().all(|dtype| dtype.is_float())
                && matches!(Role::of(&row.name), Role::Layer { .. })
        })
        .collect();
    rows.sort_by(|a, b| compare::place(&a.name).cmp(&compare::place(&b.name)));
    let tasks = models.len().saturating_sub(1);
    let bytes = |row: &Row| {
        let (m, n) = (row.shape[0], row.shape[1]);
        // Beside the update that is decomposed there are the merged one and its space.
        updates::bytes(m, n, m.min(n)) + 16 * (m * n) as u64
    };
    let largest = rows.iter().map(|row| (bytes(row), row.name.as_str())).max();
    let lanes = match largest {
        Some((bytes, name)) => affordable(memory, bytes, name)?,
        None => 1,
    };
    in_lanes(&rows, lanes, |row| one(models, row, tasks, wanted))
}

fn one(
    models: &[Model],
    row: &Row,
    tasks: usize,
    wanted: Wanted,
) -> Result<MatrixSpectra, RunError> {
    let (m, n) = (row.shape[0], row.shape[1]);
    let update = |t: usize| -> Result<Matrix, RunError> {
        updates::update(
            (&models[t + 1], &row.found[t + 1]),
            (&models[0], &row.found[0]),
            (m, n),
            |_| {},
        )
    };
    let fail = |problem: merganser_spectral::Error| {
        RunError::Extract(format!("tensor '{}': {problem}", row.name))
    };
    let mut found = MatrixSpectra {
        name: row.name.clone(),
        shape: [m, n],
        values: Vec::new(),
        stable_ranks: Vec::new(),
        space: None,
        alignment: Vec::new(),
    };
    let merged_task = wanted.merged.and_then(|merged| merged.checked_sub(1));
    let space = if wanted.alignment {
        let mut merged = Matrix::zeros(m, n);
        let chosen = match merged_task {
            Some(t) => t..t + 1,
            None => 0..tasks,
        };
        for t in chosen {
            merged.add_scaled(1.0, &update(t)?);
        }
        Some(leading_space(&merged).map_err(fail)?)
    } else {
        None
    };
    for t in 0..tasks {
        let update = update(t)?;
        if wanted.spectra {
            let values = spectrum(&update).map_err(fail)?;
            found.stable_ranks.push(stable_rank(&values));
            found.values.push(values);
        }
        if let Some(space) = &space {
            let ratio = alignment(space, &update).filter(|_| merged_task != Some(t));
            found.alignment.push(ratio);
        }
    }
    found.space = space.map(|space| space.rows());
    Ok(found)
}
