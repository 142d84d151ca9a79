//! Whole numbers, one a row: classes, topics, versions of the model a document was embedded with.

use std::path::Path;

use super::file_and_name;
use crate::arrays::Arrays;
use crate::columns::read_columns;
use crate::error::{Error, Result};
use crate::source::Source;

/// Reads one whole number a row from `FILE` or `FILE#NAME`: a `.npy` array, a tensor of a safetensors file (default: the
/// only one-dimensional one of whole numbers, or the one called `labels`), or a column of a table (default: `label`).
///
/// # Errors
/// A file that cannot be read, without such numbers, or with several where none is named; a negative number.
pub fn read_labels(given: &str) -> Result<Vec<usize>> {
    let (path, name) = file_and_name(given);
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    let numbers = match extension.to_str() {
        Some("npy" | "safetensors") => tensor(path, name)?,
        _ => column(path, name.unwrap_or("label"))?,
    };
    numbers
        .into_iter()
        .enumerate()
        .map(|(row, x)| {
            usize::try_from(x).map_err(|_| {
                Error::source(
                    path,
                    format!("holds {x} in row {row}; expected numbers from 0 on"),
                )
            })
        })
        .collect()
}

fn tensor(path: &Path, name: Option<&str>) -> Result<Vec<i64>> {
    let arrays = Arrays::open(path)?;
    let whole = |name: &str| {
        arrays.shape(name).is_ok_and(|shape| shape.len() == 1)
            && arrays.is_float(name).is_ok_and(|float| !float)
    };
    let name = if let Some(name) = name {
        name
    } else {
        let found: Vec<&str> = arrays.names().filter(|name| whole(name)).collect();
        match &found[..] {
            [only] => only,
            found if found.contains(&"labels") => "labels",
            [] => {
                return Err(Error::source(
                    path,
                    "holds no tensor of whole numbers with one a row",
                ));
            }
            [first, ..] => {
                return Err(Error::source(
                    path,
                    format!(
                        "holds several tensors of whole numbers; name one as `{}#{first}`",
                        path.display()
                    ),
                ));
            }
        }
    };
    if arrays.shape(name)?.len() != 1 {
        return Err(arrays.refuse(
            name,
            format!(
                "shape {:?}; expected one whole number a row",
                arrays.shape(name)?
            ),
        ));
    }
    arrays.integers(name)
}

fn column(path: &Path, name: &str) -> Result<Vec<i64>> {
    let columns = read_columns(&Source::new(path), &[], Some(name), None, 0)?;
    if !columns.notes.is_empty() {
        // Rows would no longer be those of the vectors.
        return Err(Error::source(
            path,
            format!("has rows without a value in column `{name}`; every vector needs one"),
        ));
    }
    let scores = columns.scores.unwrap_or_default();
    scores
        .iter()
        .enumerate()
        .map(|(row, &x)| {
            if x.fract() == 0.0 && x.abs() < 9e15 {
                Ok(x as i64)
            } else {
                Err(Error::source(
                    path,
                    format!("holds {x} in row {row} of `{name}`; expected whole numbers"),
                ))
            }
        })
        .collect()
}
