//! Matrices in files: between [`Matrix`] and tensors of safetensors.

use merganser_data::Arrays;
use merganser_linalg::Matrix;
use merganser_store::Dtype;
use merganser_store::header::TensorSpec;

use crate::error::Result;

/// A tensor of `f64`, ready to be written.
pub(crate) fn tensor(name: &str, shape: &[usize], values: &[f64]) -> (TensorSpec, Vec<u8>) {
    let mut bytes = Vec::with_capacity(8 * values.len());
    bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
    (spec(name, Dtype::F64, shape), bytes)
}

pub(crate) fn spec(name: &str, dtype: Dtype, shape: &[usize]) -> TensorSpec {
    TensorSpec {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
    }
}

/// A tensor of two dimensions.
pub(crate) fn matrix_of(arrays: &Arrays, name: &str) -> Result<Matrix> {
    let shape = arrays.shape(name)?;
    let &[rows, cols] = shape else {
        return Err(arrays
            .refuse(name, format!("shape {shape:?}; expected two dimensions"))
            .into());
    };
    Ok(Matrix::new(rows, cols, arrays.numbers(name)?)?)
}
