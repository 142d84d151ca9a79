//! What can go wrong while a method runs.

/// An error of one output tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MethodError {
    /// An input holds NaN or infinity.
    #[error(
        "tensor '{tensor}' of {model} holds {value} at element {index}: a merge would spread it; \
         repair the model, or pass --allow-nonfinite to merge it as it is"
    )]
    NonFinite {
        /// Name of the tensor.
        tensor: String,
        /// Label of the input model.
        model: String,
        /// Flat index of the first such element.
        index: usize,
        /// The value found.
        value: f32,
    },
    /// The result does not fit the output type, or is not a number.
    #[error(
        "the merged tensor '{tensor}' is {value} at element {index}, which {dtype} cannot hold{hint}"
    )]
    Overflow {
        /// Name of the output tensor.
        tensor: String,
        /// Flat index of the first such element.
        index: usize,
        /// The value before rounding.
        value: f32,
        /// The output type.
        dtype: &'static str,
        /// What to do about it, starting with `; `, or empty.
        hint: &'static str,
    },
    /// The inputs make the formula of the method meaningless.
    #[error("method '{method}' has no answer for tensor '{tensor}': {reason}")]
    Undefined {
        /// Name of the method.
        method: &'static str,
        /// Name of the output tensor.
        tensor: String,
        /// Why, and what to do.
        reason: String,
    },
    /// Reading an input failed.
    #[error(transparent)]
    Source(#[from] Box<dyn std::error::Error + Send + Sync>),
}
