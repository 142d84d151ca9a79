//! What can go wrong between a config, a checkpoint, a batch and a forward pass.

/// Result of this crate.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

/// Why a network could not be built or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The config does not name a kind of network that is known here.
    #[error(
        "config.json: `model_type` is {found}; supported are {supported}; for any other network the moments can be \
         recorded in PyTorch instead"
    )]
    UnknownFamily {
        /// The value as JSON, or "missing".
        found: String,
        /// All supported values.
        supported: String,
    },
    /// A value of the config is missing, malformed or not supported.
    #[error("config.json: `{key}` is {found}; expected {expected}")]
    Config {
        /// The key, with a dotted path for nested ones.
        key: String,
        /// The value as JSON, or "missing".
        found: String,
        /// What is supported.
        expected: String,
    },
    /// The checkpoint lacks a tensor that the config asks for.
    #[error(
        "tensor `{tensor}` is missing from the checkpoint; a {family} network of this config needs it{hint}"
    )]
    MissingTensor {
        /// The full name that was looked for.
        tensor: String,
        /// The family.
        family: &'static str,
        /// What may help, beginning with "; ", or nothing.
        hint: String,
    },
    /// A tensor has another shape than the config says.
    #[error("tensor `{tensor}` has shape {found:?}; the config makes it {expected:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape in the checkpoint.
        found: Vec<usize>,
        /// The shape that follows from the config.
        expected: Vec<usize>,
    },
    /// A batch does not fit the network.
    #[error("batch: {0}")]
    Batch(String),
    /// A register was read that holds nothing: its operation has not run, or it was its last use.
    #[error("register {0} holds no value: its operation has not run yet, or its last reader has")]
    EmptyRegister(usize),
    /// The network lacks an output that was asked for.
    #[error("the checkpoint has no {what}: {why}")]
    NoOutput {
        /// The output.
        what: &'static str,
        /// What was looked for.
        why: String,
    },
    /// A tensor is stored in a type that is not a number format for weights.
    #[error("tensor `{tensor}` holds {found}; expected floating-point numbers")]
    NotFloat {
        /// The tensor.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// The layers of a multi-layer perceptron do not make a network.
    #[error("{0}")]
    Layers(String),
    /// A weight is NaN or infinite.
    #[error("`{0}` holds NaN or infinity; a network needs finite weights")]
    NotFinite(String),
    /// A weight could not be read from where it lies.
    #[error(transparent)]
    Source(Box<dyn std::error::Error + Send + Sync>),
    /// A weight was asked for that the source does not hold.
    #[error("tensor `{0}` is not among the weights")]
    NoWeight(String),
    /// A row of a table was asked for that it does not have.
    #[error("row {row} of tensor `{tensor}` was asked for, which has {rows}")]
    Row {
        /// The table.
        tensor: String,
        /// The row.
        row: u32,
        /// How many there are.
        rows: usize,
    },
    /// Reading the checkpoint failed.
    #[error(transparent)]
    Store(#[from] merganser_store::Error),
    /// The tensor library refused an operation.
    #[error("{0}")]
    Compute(#[from] candle_core::Error),
}
