//! The numbers of factors: where they go in PEFT's tensors, and in which type.

use merganser_kernels::convert;
use merganser_linalg::Matrix;
use merganser_methods::CHUNK;
use merganser_plan::{Model, kernel_float};
use merganser_store::Dtype;

use super::parts::{Part, Piece};
use crate::RunError;

/// Names and shapes of the factors A (rank × inputs) and B (outputs × rank) in PEFT: of a convolution, A has its kernel and B
/// one of a single element.
pub(super) fn layout(
    piece: &Piece,
    (outputs, inputs): (usize, usize),
    rank: usize,
) -> [(&'static str, Vec<usize>); 2] {
    let kernel = piece.kernel();
    if piece.part == Part::Embedding {
        return [
            ("lora_embedding_A", vec![rank, inputs]),
            ("lora_embedding_B", vec![outputs, rank]),
        ];
    }
    let channels = inputs / kernel.iter().product::<usize>().max(1);
    let ones = vec![1; kernel.len()];
    [
        ("lora_A.weight", [&[rank, channels], kernel].concat()),
        ("lora_B.weight", [&[outputs, rank], &ones[..]].concat()),
    ]
}

/// The bytes of a tensor in its model's file.
pub(super) fn stored(model: &Model, name: &str) -> Result<Vec<u8>, RunError> {
    let info = model.info(name).ok_or_else(|| RunError::Vanished {
        tensor: name.to_owned(),
        model: model.label.clone(),
    })?;
    Ok(model.checkpoint.read_all(info)?)
}

/// A matrix in the type in which it is stored, as bytes and as numbers.
pub(super) fn encoded(
    matrix: &Matrix,
    dtype: Dtype,
    name: &str,
) -> Result<(Vec<u8>, Matrix), RunError> {
    let mut values = matrix.cast::<f32>().into_vec();
    let bytes = encode(&values, dtype, name)?;
    if let Some(kind) = kernel_float(dtype) {
        convert::decode(kind, &bytes, &mut values);
    }
    let values = values.into_iter().map(f64::from).collect();
    let rounded = Matrix::new(matrix.rows(), matrix.cols(), values)
        .map_err(|error| RunError::Read(error.into()))?;
    Ok((bytes, rounded))
}

pub(super) fn encode(values: &[f32], dtype: Dtype, name: &str) -> Result<Vec<u8>, RunError> {
    let kind = kernel_float(dtype).ok_or_else(|| RunError::NotFloat {
        tensor: name.to_owned(),
        dtype,
    })?;
    let mut bytes = vec![0; values.len() * dtype.size()];
    for (values, out) in values
        .chunks(CHUNK)
        .zip(bytes.chunks_mut(CHUNK * dtype.size()))
    {
        convert::encode(kind, values, out);
    }
    if !convert::encoded_finite(kind, &bytes) {
        return Err(RunError::Extract(format!(
            "'{name}' holds values that {dtype} cannot hold; choose another type with --dtype"
        )));
    }
    Ok(bytes)
}
