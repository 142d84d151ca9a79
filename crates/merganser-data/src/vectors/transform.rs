//! A file of vectors into another of the same rows, block by block.
//!
//! Blocks are read, changed and written by as many threads as there are, each with buffers of its own; every row is
//! computed by one thread, so the file does not depend on their number. What is resident is a few blocks a thread.

use std::collections::BTreeMap;
use std::path::Path;

use merganser_kernels::convert::{Float, all_finite, decode, encode};
use merganser_model::kernel_float;
use merganser_store::Dtype;
use merganser_store::header::{self, TensorSpec};
use merganser_store::new_file::NewFile;
use rayon::prelude::*;

use super::write::npy_header;
use super::{Body, Rows, VectorFile, parquet};
use crate::arrays::{Arrays, is_npy};
use crate::error::{Error, Result};
use crate::tensors::Array;

/// What is done to rows; the number of the first is given. The answer to rows that cannot be used is what is wrong.
pub(super) type Change<'a> = dyn Fn(usize, Rows<'_>) -> Result<(), String> + Sync + 'a;

/// Buffers of a thread.
#[derive(Default)]
struct Buffers {
    bytes: Vec<u8>,
    singles: Vec<f32>,
    doubles: Vec<f64>,
}

impl VectorFile {
    /// Writes the file `out` with every row changed by `change`, which is given whole rows and the number of the first of
    /// them. The format and element type stay; whatever else is in the file is copied.
    ///
    /// # Errors
    /// If `out` is there and `overwrite` is not set, or has another extension than this file; if a row is not finite or
    /// `change` refuses it; if a file cannot be read or written.
    pub fn transform(
        &self,
        out: &Path,
        overwrite: bool,
        change: &(dyn Fn(usize, Rows<'_>) -> Result<(), String> + Sync),
    ) -> Result<()> {
        let extension = |path: &Path| path.extension().unwrap_or_default().to_ascii_lowercase();
        if extension(out) != extension(&self.path) {
            return Err(Error::source(
                out,
                format!(
                    "has another extension than `{}`; vectors are written in the format they are read in",
                    self.path.display()
                ),
            ));
        }
        match &self.body {
            Body::Parquet => parquet::transform(self, out, overwrite, change),
            Body::Arrays(arrays) => self.transform_arrays(arrays, out, overwrite, change),
        }
    }

    fn transform_arrays(
        &self,
        arrays: &Arrays,
        out: &Path,
        overwrite: bool,
        change: &Change<'_>,
    ) -> Result<()> {
        let array = arrays.get(&self.name)?;
        let Some(kind) = kernel_float(self.dtype) else {
            return Err(self.refuse(format!("found {}, expected real numbers", self.dtype)));
        };
        if is_npy(out) {
            let shape = [self.rows, self.dim];
            let header = npy_header(self.dtype, &shape).unwrap_or_default();
            let start = header.len() as u64;
            let bytes = self.dtype.nbytes(&shape).unwrap_or(u64::MAX);
            let file = NewFile::create(out, start.saturating_add(bytes), overwrite)?;
            file.write_at(0, &header)?;
            self.blocks(array, kind, &file, start, change)?;
            return Ok(file.finish()?);
        }
        let specs: Vec<TensorSpec> = arrays
            .names()
            .filter_map(|name| {
                let array = arrays.get(name).ok()?;
                Some(TensorSpec {
                    name: name.to_owned(),
                    dtype: array.dtype(),
                    shape: array.shape.clone(),
                })
            })
            .collect();
        let metadata: &BTreeMap<String, String> = arrays.metadata();
        let layout = header::compose(metadata, &specs).map_err(|problem| {
            merganser_store::Error::Header {
                path: out.to_owned(),
                problem,
            }
        })?;
        let file = NewFile::create(out, layout.file_len, overwrite)?;
        file.write_at(0, &layout.header)?;
        for (spec, &start) in specs.iter().zip(&layout.offsets) {
            if spec.name == self.name {
                self.blocks(array, kind, &file, start, change)?;
            } else {
                copy(arrays.get(&spec.name)?, &file, start)?;
            }
        }
        Ok(file.finish()?)
    }

    fn blocks(
        &self,
        array: &Array,
        kind: Float,
        file: &NewFile,
        start: u64,
        change: &Change<'_>,
    ) -> Result<()> {
        let block = self.block();
        let firsts = (0..self.rows.div_ceil(block)).into_par_iter();
        firsts.try_for_each_init(Buffers::default, |buffers, at| {
            let first = at * block;
            let count = block.min(self.rows - first) * self.dim;
            let size = self.dtype.size();
            let offset = (first * self.dim * size) as u64;
            buffers.bytes.resize(count * size, 0);
            array.read(offset, &mut buffers.bytes)?;
            if self.dtype == Dtype::F64 {
                buffers.doubles.clear();
                let (numbers, _) = buffers.bytes.as_chunks::<8>();
                let numbers = numbers.iter().map(|b| f64::from_le_bytes(*b));
                buffers.doubles.extend(numbers);
                self.check(first, &buffers.doubles)?;
                change(first, Rows::F64(&mut buffers.doubles))
                    .map_err(|problem| self.refuse(problem))?;
                let (out, _) = buffers.bytes.as_chunks_mut::<8>();
                for (out, x) in out.iter_mut().zip(&buffers.doubles) {
                    *out = x.to_le_bytes();
                }
            } else {
                buffers.singles.resize(count, 0.0);
                decode(kind, &buffers.bytes, &mut buffers.singles);
                self.change_singles(first, &mut buffers.singles, change)?;
                encode(kind, &buffers.singles, &mut buffers.bytes);
            }
            Ok(file.write_at(start + offset, &buffers.bytes)?)
        })
    }

    /// Checks rows of `f32` and changes them.
    pub(super) fn change_singles(
        &self,
        first: usize,
        rows: &mut [f32],
        change: &Change<'_>,
    ) -> Result<()> {
        if !all_finite(rows) {
            let at = rows.iter().position(|x| !x.is_finite()).unwrap_or(0);
            return Err(self.not_finite(first + at / self.dim, rows[at].into()));
        }
        change(first, Rows::F32(rows)).map_err(|problem| self.refuse(problem))
    }
}

/// Copies an array as it is.
fn copy(array: &Array, file: &NewFile, start: u64) -> Result<()> {
    let total = array.dtype().nbytes(&array.shape).unwrap_or(0);
    let mut buffer = vec![0; total.min(1 << 22) as usize];
    let mut at = 0;
    while at < total {
        let part = &mut buffer[..(total - at).min(1 << 22) as usize];
        array.read(at, part)?;
        file.write_at(start + at, part)?;
        at += part.len() as u64;
    }
    Ok(())
}
