//! pickle
use crate::{dtype::Dtype, fingerprint::Hash, source::ReadAt};
/// e
#[derive(Debug, thiserror::Error)]
pub enum PickleError {
    /// e
    #[error("e")]
    E,
}
/// A tensor.
#[derive(Debug)]
pub struct TorchTensor {
    /// Name.
    pub name: String,
    /// dt
    pub dtype: Dtype,
    /// sh
    pub shape: Vec<usize>,
    /// st
    pub strides: Vec<usize>,
    /// of
    pub offset: u64,
    /// nb
    pub nbytes: u64,
}
/// file
#[derive(Debug)]
pub struct TorchFile {
    /// t
    pub tensors: Vec<TorchTensor>,
    /// i
    pub ignored: Vec<String>,
    /// d
    pub digest: Hash,
}
/// p
pub fn parse<R: ReadAt + ?Sized>(_source: &R) -> Result<TorchFile, PickleError> {
    Err(PickleError::E)
}
