//! The merge methods, one file each.
//!
//! A method sees one output tensor as a [`TensorGroup`]: the same tensor of every input model, readable in chunks.
//! It may first take statistics ([`TensorGroup::scan`]: norms, thresholds, counts), then answers with a [`Program`]:
//! a pure function from one block of inputs to one block of output. The executor runs that function in a single
//! fused pass (read, convert to f32, combine, round once, write), so no method ever holds a whole tensor.
//!
//! A method knows nothing of files or recipes. Adding one = one file here + one line in [`registry`] + its golden
//! cases + its row in the docs.

mod calibrated;
mod error;
mod group;
mod memory;
mod method;
mod registry;
mod settings;

mod gram;
mod masks;
mod ranks;
mod select;
mod sparsify;
mod task_vectors;

mod arcee_fusion;
mod breadcrumbs;
mod breadcrumbs_ties;
mod dare_linear;
mod dare_ties;
mod della;
mod della_linear;
pub mod emr;
mod fisher;
mod karcher;
mod linear;
mod magmax;
mod model_stock;
mod multislerp;
mod nearswap;
mod nuslerp;
mod passthrough;
mod pcb;
mod ram;
mod sce;
mod slerp;
mod soup;
mod tall;
mod task_arithmetic;
pub mod task_vector;
mod ties;

pub use calibrated::{
    calibrated, descriptions, is_adapter_method, is_matrix_method, looks_at_data,
};
pub use error::MethodError;
pub use group::{
    BLOCK, Block, CHUNK, Encoding, Grain, Input, Source, TensorGroup, View, chunk_len,
    scratch_bytes,
};
pub use masks::drop_and_rescale;
pub use memory::Memory;
pub use merganser_kernels::convert::Float;
pub use method::{
    Arity, BasePolicy, Combine, Extra, Fallback, Kind, Method, MethodInfo, Parameter, Program,
    Scope, Survey,
};
pub use registry::{find, registry};
pub use settings::{Settings, Value};
pub use soup::{Soup, greedy_soup};
