//! Files of vectors, one a row, as vector databases import and export them: NumPy, safetensors and Parquet.
//!
//! | format | the vectors | written back |
//! |---|---|---|
//! | `.npy` | a two-dimensional array | the same type |
//! | `.safetensors` | the only two-dimensional tensor of real numbers, or `FILE#NAME` | the same type; other tensors as they are |
//! | `.parquet` | the only column of lists of real numbers, or `FILE#NAME` | other columns byte for byte |
//!
//! A file is read block by block, so that its size does not matter. Rows are given in `f32`, or in `f64` if the file has
//! that type.

mod labels;
mod parquet;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod transform;
mod write;

use std::path::{Path, PathBuf};

use merganser_store::Dtype;

pub use labels::read_labels;
pub use write::{write_integers, write_numbers, write_vectors};

use crate::arrays::Arrays;
use crate::error::{Error, Result, list};
use merganser_model::kernel_float;

/// Bytes of vectors that are read at a time.
const BLOCK: usize = 1 << 20;

/// A file of vectors.
#[derive(Debug)]
pub struct VectorFile {
    path: PathBuf,
    /// The tensor or column.
    name: String,
    rows: usize,
    dim: usize,
    dtype: Dtype,
    body: Body,
}

#[derive(Debug)]
enum Body {
    /// All arrays of the file; the vectors are the one of the file's `name`.
    Arrays(Arrays),
    Parquet,
}

/// Some whole rows, back to back.
#[derive(Debug)]
pub enum Rows<'a> {
    /// Of a file of `f32` or a narrower type.
    F32(&'a mut [f32]),
    /// Of a file of `f64`.
    F64(&'a mut [f64]),
}

/// Splits `FILE#NAME`; a file that has such a name itself is meant first.
pub fn file_and_name(given: &str) -> (&Path, Option<&str>) {
    match given.rsplit_once('#') {
        Some((path, name)) if !Path::new(given).exists() => (Path::new(path), Some(name)),
        _ => (Path::new(given), None),
    }
}

impl VectorFile {
    /// Opens `FILE` or `FILE#NAME`, where the name is that of a tensor or a column.
    ///
    /// # Errors
    /// A file that cannot be read, of an unknown format, or that holds no vectors; several columns or tensors of vectors
    /// where none is named.
    pub fn open(given: &str) -> Result<Self> {
        let (path, name) = file_and_name(given);
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        match extension.to_str() {
            Some("parquet") => parquet::open(path, name),
            Some("npy" | "safetensors") => Self::arrays(path, name),
            _ => Err(Error::source(
                path,
                "is no file of vectors by its extension; expected .npy, .safetensors or .parquet",
            )),
        }
    }

    fn arrays(path: &Path, name: Option<&str>) -> Result<Self> {
        let arrays = Arrays::open(path)?;
        let name = if let Some(name) = name {
            name.to_owned()
        } else {
            let matrices: Vec<&str> = arrays
                .names()
                .filter(|name| {
                    arrays.get(name).is_ok_and(|array| {
                        array.shape.len() == 2 && kernel_float(array.dtype()).is_some()
                    })
                })
                .collect();
            match matrices[..] {
                [only] => only.to_owned(),
                [] => {
                    let all: Vec<String> = arrays
                        .names()
                        .filter_map(|name| {
                            let array = arrays.get(name).ok()?;
                            Some(format!("{name} {} {:?}", array.dtype(), array.shape))
                        })
                        .collect();
                    return Err(Error::source(
                        path,
                        format!(
                            "holds no vectors; expected real numbers of shape (vectors, length), found {}",
                            list(&all)
                        ),
                    ));
                }
                _ => {
                    return Err(Error::source(
                        path,
                        format!(
                            "holds several tensors of vectors, {}; name one as `{}#{}`",
                            list(&matrices),
                            path.display(),
                            matrices[0]
                        ),
                    ));
                }
            }
        };
        let array = arrays.get(&name)?;
        let (&[rows, dim], true) = (&array.shape[..], kernel_float(array.dtype()).is_some()) else {
            return Err(array.refuse(format!(
                "{} of shape {:?}; expected real numbers of shape (vectors, length)",
                array.dtype(),
                array.shape
            )));
        };
        if dim == 0 {
            return Err(array.refuse("its vectors have no elements"));
        }
        Ok(Self {
            path: path.to_owned(),
            rows,
            dim,
            dtype: array.dtype(),
            name,
            body: Body::Arrays(arrays),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of vectors.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Length of each.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Type of their elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// An error about this file.
    pub fn refuse(&self, problem: impl Into<String>) -> Error {
        Error::tensor(&self.path, &self.name, problem)
    }

    /// All vectors, back to back.
    ///
    /// # Errors
    /// If the file cannot be read or holds a number that is not finite.
    pub fn all(&self) -> Result<Vec<f64>> {
        let mut all = Vec::with_capacity(self.rows.saturating_mul(self.dim));
        self.visit(&mut |_, rows| {
            all.extend_from_slice(rows);
            Ok(())
        })?;
        Ok(all)
    }

    /// Gives blocks of whole rows, in order, each with the number of its first row.
    ///
    /// # Errors
    /// If the file cannot be read, holds a number that is not finite, or `take` answers so.
    pub fn visit(&self, take: &mut dyn FnMut(usize, &[f64]) -> Result<()>) -> Result<()> {
        match &self.body {
            Body::Parquet => parquet::visit(self, take),
            Body::Arrays(arrays) => {
                let array = arrays.get(&self.name)?;
                let block = self.block();
                for first in (0..self.rows).step_by(block) {
                    let count = block.min(self.rows - first);
                    let numbers = array.numbers(first * self.dim, count * self.dim)?;
                    self.check(first, &numbers)?;
                    take(first, &numbers)?;
                }
                Ok(())
            }
        }
    }

    /// Rows of a block.
    fn block(&self) -> usize {
        (BLOCK / (4 * self.dim)).clamp(1, 1 << 16)
    }

    /// Refuses what is not finite among rows that begin with number `first`.
    fn check(&self, first: usize, numbers: &[f64]) -> Result<()> {
        match numbers.iter().position(|x| !x.is_finite()) {
            None => Ok(()),
            Some(at) => Err(self.not_finite(first + at / self.dim, numbers[at])),
        }
    }

    fn not_finite(&self, row: usize, found: f64) -> Error {
        self.refuse(format!(
            "vector {row} holds {found}; take it out or embed its text again"
        ))
    }
}
