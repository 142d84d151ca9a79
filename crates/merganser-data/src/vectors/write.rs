//! New files of vectors and whole numbers, and the headers of NumPy files.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use merganser_store::Dtype;
use merganser_store::header::TensorSpec;
use merganser_store::new_file::{NewFile, write_tensors};

use crate::arrays::is_npy;
use crate::error::{Error, Result};

/// The header of a NumPy file, of a length that aligns the data to 64 bytes.
pub(super) fn npy_header(dtype: Dtype, shape: &[usize]) -> Option<Vec<u8>> {
    let descr = match dtype {
        Dtype::F64 => "<f8",
        Dtype::F32 => "<f4",
        Dtype::F16 => "<f2",
        Dtype::I64 => "<i8",
        // NumPy has no bfloat16 and no 8-bit floats.
        _ => return None,
    };
    let mut extents = String::new();
    for extent in shape {
        let _ = write!(extents, "{extent}, ");
    }
    let extents = match shape.len() {
        1 => extents.trim_end().to_owned(),
        _ => extents.trim_end_matches(", ").to_owned(),
    };
    let mut dictionary =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({extents}), }}");
    while !(10 + dictionary.len() + 1).is_multiple_of(64) {
        dictionary.push(' ');
    }
    dictionary.push('\n');
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((dictionary.len() as u16).to_le_bytes());
    header.extend(dictionary.as_bytes());
    Some(header)
}

/// Writes vectors of length `dim` in `f32` to a `.npy` file, or as tensor `vectors` to a `.safetensors` file.
///
/// # Errors
/// If the file is there and `overwrite` is not set, it has another extension, or the disk fails.
pub fn write_vectors(path: &Path, overwrite: bool, dim: usize, values: &[f32]) -> Result<()> {
    let mut bytes = Vec::with_capacity(4 * values.len());
    bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
    let shape = vec![values.len() / dim.max(1), dim];
    write(path, overwrite, "vectors", Dtype::F32, shape, bytes)
}

/// Writes one number a row in `f32` to a `.npy` file, or as tensor `name` to a `.safetensors` file.
///
/// # Errors
/// Those of [`write_vectors`].
pub fn write_numbers(path: &Path, overwrite: bool, name: &str, values: &[f32]) -> Result<()> {
    let mut bytes = Vec::with_capacity(4 * values.len());
    bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
    write(path, overwrite, name, Dtype::F32, vec![values.len()], bytes)
}

/// Writes whole numbers to a `.npy` file, or as tensor `name` to a `.safetensors` file.
///
/// # Errors
/// Those of [`write_vectors`].
pub fn write_integers(path: &Path, overwrite: bool, name: &str, values: &[i64]) -> Result<()> {
    let mut bytes = Vec::with_capacity(8 * values.len());
    bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
    write(path, overwrite, name, Dtype::I64, vec![values.len()], bytes)
}

fn write(
    path: &Path,
    overwrite: bool,
    name: &str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
) -> Result<()> {
    if is_npy(path) {
        let header = npy_header(dtype, &shape).unwrap_or_default();
        let start = header.len() as u64;
        let file = NewFile::create(path, start + bytes.len() as u64, overwrite)?;
        file.write_at(0, &header)?;
        file.write_at(start, &bytes)?;
        return Ok(file.finish()?);
    }
    if path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("safetensors"))
    {
        let spec = TensorSpec {
            name: name.to_owned(),
            dtype,
            shape,
        };
        return Ok(write_tensors(
            path,
            overwrite,
            &BTreeMap::new(),
            &[(spec, bytes)],
        )?);
    }
    Err(Error::source(
        path,
        "cannot be written by its extension; choose .npy or .safetensors",
    ))
}
