//! Forward passes of transformers on candle that can stop at every parameter.
//!
//! A [`Network`] is data: stages of [`Op`]s over registers, made by [`Network::new`] from a config and the names and
//! shapes of a checkpoint. A [`State`] holds the registers of one [`Batch`]. [`Weights`] give tensors by name, so the same
//! program runs on a base model, on its fine-tunes and on a half-merged one:
//!
//! ```no_run
//! use candle_core::Device;
//! use merganser_model::{Batch, CheckpointWeights, Network, State, Tokens, shapes, walk};
//! use merganser_store::checkpoint::Checkpoint;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = Checkpoint::open("models/bert".as_ref())?;
//! let config = serde_json::from_str(checkpoint.config().unwrap_or("{}"))?;
//! let network = Network::new(&config, &shapes(&checkpoint))?;
//! let batch = Batch::text(Tokens::new(&[vec![101, 7592, 102], vec![101, 102]], 0)?);
//!
//! // Op by op, stopping wherever one likes …
//! let weights = CheckpointWeights::new(&checkpoint, Device::Cpu);
//! let mut state = State::new(&network, &batch, &Device::Cpu)?;
//! for (_, op) in network.ops() {
//!     if let Some(tap) = op.parameters() {
//!         println!("{} acts on {:?}", tap.weight, state.rows(tap.input)?.shape());
//!     }
//!     network.run(op, &mut state, &weights)?;
//! }
//! // … or all batches at once, with the weights of one stage resident.
//! let mut states = [State::new(&network, &batch, &Device::Cpu)?];
//! walk(&network, &weights, &mut states, &mut ())?;
//! let hidden = states[0].get(network.outputs().hidden)?;
//! # Ok(())
//! # }
//! ```
//!
//! [`Mlp`] is apart from all this: a plain multi-layer perceptron in f64 that keeps every activation and gradient.
//!
//! Supported `model_type`s: bert (with it MiniLM), roberta, xlm-roberta, camembert, distilbert; vit, deit; clip with both towers;
//! llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text, phi3, gpt2; t5. Anything else is refused by name.

mod attention;
mod batch;
mod builder;
mod config;
mod distances;
mod error;
mod families;
mod fused;
mod head;
pub mod mlp;
mod network;
mod op;
mod pointwise;
mod run;
mod state;
mod walk;
mod weights;

pub use batch::{Batch, Tokens};
pub use error::{ModelError, Result};
pub use mlp::Mlp;
pub use network::{Inputs, Modality, Network, Outputs, Stage, StageKind};
pub use op::{
    Activation, Additive, Attention, Distances, Embedding, Kind, Layout, Linear, Norm, NormKind,
    Op, Place, Reg, Rotary, RotaryTable, Select, Space, Tap, TapKind,
};
pub use pointwise::Pointwise;
pub use state::State;
pub use walk::{Observer, walk};
pub use weights::{CheckpointWeights, StageWeights, Weights, kernel_float, shapes};
