//! A PEFT LoRA adapter, seen as updates of the tensors of its base model.
//!
//! The stored names are those of PEFT's wrapped model: `base_model.model.` + path of the module +
//! `.lora_A.weight`, sometimes with the adapter's own name (`.lora_A.default.weight`). They are
//! mapped to the base tensor that each changes. The full update matrices are never formed here:
//! the two factors are left where they are and read when wanted.
//!
//! LoRA: Hu et al. 2021, <https://arxiv.org/abs/2106.09685>; file format: PEFT 0.4 to 0.18.

mod config;

use std::collections::BTreeMap;
use std::path::Path;

pub use self::config::{AdapterConfig, AdapterError, parse_config};
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::source::read_text;

/// A tensor of the adapter's own checkpoint; read it with [`Adapter::read`].
pub type TensorRef = TensorInfo;

/// One change of one base tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// Adds `scale`·B·A, or its transpose, to a matrix.
    LowRank {
        /// Factor A, shape [rank, in], of a convolution [rank, in, height, width].
        a: TensorRef,
        /// Factor B, shape [out, rank], of a convolution [out, rank, 1, 1].
        b: TensorRef,
        /// Inner dimension of the product.
        rank: usize,
        /// Factor of the product: α/r or α/√r.
        scale: f64,
        /// Whether (B·A)ᵀ is what the base tensor has the shape of: embeddings, and matrices stored
        /// as [in, out] if the config says `fan_in_fan_out`.
        ///
        /// PEFT overrules `fan_in_fan_out` by the type of the module (a GPT-2 `Conv1D` is always
        /// transposed, a `Linear` never); a caller that knows the type should do the same.
        transposed: bool,
    },
    /// Takes the place of the base tensor: `modules_to_save`, saved embeddings, trained biases.
    Replace(TensorRef),
    /// Adds `scale` times a tensor: the bias of B, if the adapter was trained with `lora_bias`.
    Add {
        /// What is added.
        tensor: TensorRef,
        /// Its factor, that of the module's low-rank update.
        scale: f64,
    },
}

impl Delta {
    /// Shape that the base tensor must have.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::LowRank {
                a, b, transposed, ..
            } => {
                let (rows, inputs) = (b.shape[0], &a.shape[1..]);
                if *transposed {
                    [inputs, &[rows]].concat()
                } else {
                    [&[rows], inputs].concat()
                }
            }
            Self::Replace(tensor) | Self::Add { tensor, .. } => tensor.shape.clone(),
        }
    }
}

/// An open adapter.
#[derive(Debug)]
pub struct Adapter {
    checkpoint: Checkpoint,
    config: AdapterConfig,
    modules: BTreeMap<String, Vec<Delta>>,
}

impl Adapter {
    /// Opens the adapter in the folder `path`: `adapter_config.json` beside
    /// `adapter_model.safetensors` or `adapter_model.bin`.
    pub fn open(path: &Path) -> Result<Self> {
        let refused = |problem| Error::Adapter {
            path: path.to_owned(),
            problem,
        };
        let config_path = path.join("adapter_config.json");
        if !config_path.exists() {
            return Err(refused(AdapterError::Missing("`adapter_config.json`")));
        }
        let text = read_text(&config_path, config::MAX_CONFIG_LEN)?;
        let config = parse_config(&text).map_err(refused)?;
        let weights = ["adapter_model.safetensors", "adapter_model.bin"]
            .map(|name| path.join(name))
            .into_iter()
            .find(|file| file.exists())
            .ok_or_else(|| {
                refused(AdapterError::Missing(
                    "`adapter_model.safetensors` or `adapter_model.bin`",
                ))
            })?;
        let checkpoint = Checkpoint::open(&weights)?;
        let modules = deltas(&config, checkpoint.tensors()).map_err(refused)?;
        Ok(Self {
            checkpoint,
            config,
            modules,
        })
    }

    /// The changes of each base tensor, by the name of that tensor. Usually one; to be applied in
    /// order where there are more (a saved embedding that has low-rank factors too: first
    /// [`Delta::Replace`], then [`Delta::LowRank`]).
    pub fn modules(&self) -> &BTreeMap<String, Vec<Delta>> {
        &self.modules
    }

    /// Its configuration.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The stored tensors, under their stored names.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// All bytes of a tensor, row-major, and their type.
    pub fn read(&self, tensor: &TensorRef) -> Result<(Dtype, Vec<u8>)> {
        Ok((tensor.dtype, self.checkpoint.read_all(tensor)?))
    }
}

/// What one stored tensor is to its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    /// A parameter of the base itself (`weight`, `bias`, …), which is replaced.
    Own(&'a str),
    A,
    B,
    BiasOfB,
    EmbeddingA,
    EmbeddingB,
}

impl Part<'_> {
    fn stored_name(self) -> &'static str {
        match self {
            Self::Own(_) => "weight",
            Self::A => "lora_A",
            Self::B => "lora_B",
            Self::BiasOfB => "lora_B.bias",
            Self::EmbeddingA => "lora_embedding_A",
            Self::EmbeddingB => "lora_embedding_B",
        }
    }
}

/// Splits a stored name into the path of the module in the base model and the part. `None` for the
/// untrained copy that PEFT keeps of a saved module.
fn part_of(stored: &str) -> Result<Option<(String, Part<'_>)>, AdapterError> {
    let unknown = || AdapterError::UnknownTensor(stored.to_owned());
    let name = stored.strip_prefix("base_model.model.").unwrap_or(stored);
    if name.contains(".lora_magnitude_vector") {
        return Err(AdapterError::Unsupported(
            "it is a DoRA adapter, which rescales the base weight".into(),
        ));
    }
    if name.contains(".original_module.") {
        return Ok(None);
    }
    for (marker, part) in [
        (".lora_A.", Part::A),
        (".lora_B.", Part::B),
        (".lora_embedding_A", Part::EmbeddingA),
        (".lora_embedding_B", Part::EmbeddingB),
    ] {
        let Some((module, rest)) = name.split_once(marker) else {
            continue;
        };
        let embedding = matches!(part, Part::EmbeddingA | Part::EmbeddingB);
        // What follows may begin with the adapter's name.
        let last = rest.rsplit('.').next().unwrap_or(rest);
        let part = match last {
            _ if embedding && rest.trim_start_matches('.').matches('.').count() == 0 => part,
            "weight" if !embedding => part,
            "bias" if part == Part::B => Part::BiasOfB,
            _ => return Err(unknown()),
        };
        return Ok(Some((module.replace(".base_layer", ""), part)));
    }
    if name.contains("lora_") {
        return Err(unknown());
    }
    let (module, parameter) = name.rsplit_once('.').ok_or_else(unknown)?;
    let module = match module.split_once(".modules_to_save") {
        // `classifier.modules_to_save.default.dense`: the adapter's name, then the inner module.
        Some((outer, rest)) => match rest.trim_start_matches('.').split_once('.') {
            Some((_adapter, inner)) => format!("{outer}.{inner}"),
            None => outer.to_owned(),
        },
        None => module.replace(".base_layer", ""),
    };
    Ok(Some((module, Part::Own(parameter))))
}

fn deltas(
    config: &AdapterConfig,
    tensors: &BTreeMap<String, TensorInfo>,
) -> Result<BTreeMap<String, Vec<Delta>>, AdapterError> {
    let mut parts: BTreeMap<String, BTreeMap<Part<'_>, &TensorInfo>> = BTreeMap::new();
    for (stored, tensor) in tensors {
        let Some((module, part)) = part_of(stored)? else {
            continue;
        };
        let of_module = parts.entry(module.clone()).or_default();
        if of_module.insert(part, tensor).is_some() {
            return Err(AdapterError::Twice {
                module,
                part: part.stored_name().to_owned(),
            });
        }
    }
    let mut deltas: BTreeMap<String, Vec<Delta>> = BTreeMap::new();
    let mut push = |module: &str, parameter: &str, delta| {
        deltas
            .entry(format!("{module}.{parameter}"))
            .or_default()
            .push(delta);
    };
    for (module, parts) in &parts {
        // `Own` sorts first, so that what replaces a tensor comes before what is added to it.
        for (part, tensor) in parts {
            if let Part::Own(parameter) = part {
                push(module, parameter, Delta::Replace((*tensor).clone()));
            }
        }
        for (first, second, embedding) in [
            (Part::A, Part::B, false),
            (Part::EmbeddingA, Part::EmbeddingB, true),
        ] {
            let unpaired = |found: Part<'_>, missing: Part<'_>| AdapterError::Unpaired {
                module: module.clone(),
                found: found.stored_name(),
                missing: missing.stored_name(),
            };
            let (a, b) = match (parts.get(&first), parts.get(&second)) {
                (Some(a), Some(b)) => (*a, *b),
                (Some(_), None) => return Err(unpaired(first, second)),
                (None, Some(_)) => return Err(unpaired(second, first)),
                (None, None) => continue,
            };
            let transposed = embedding || config.fan_in_fan_out;
            push(
                module,
                "weight",
                low_rank(config, module, a, b, transposed)?,
            );
        }
        if let Some(bias) = parts.get(&Part::BiasOfB) {
            let Some(b) = parts.get(&Part::B) else {
                return Err(AdapterError::Unpaired {
                    module: module.clone(),
                    found: Part::BiasOfB.stored_name(),
                    missing: Part::B.stored_name(),
                });
            };
            check_bias(module, bias, b.shape[0])?;
            let (_, scale) = config.rank_and_scale(module);
            push(
                module,
                "bias",
                Delta::Add {
                    tensor: (*bias).clone(),
                    scale,
                },
            );
        }
    }
    if deltas.is_empty() {
        return Err(AdapterError::Empty);
    }
    Ok(deltas)
}

fn low_rank(
    config: &AdapterConfig,
    module: &str,
    a: &TensorInfo,
    b: &TensorInfo,
    transposed: bool,
) -> Result<Delta, AdapterError> {
    let (rank, scale) = config.rank_and_scale(module);
    // A convolution's A is [rank, in, height, width], its B a convolution with kernels of one element.
    let fits = match (&a.shape[..], &b.shape[..]) {
        ([ra, _], [_, rb]) => *ra == rank && *rb == rank,
        ([ra, _, kernel @ ..], [_, rb, ones @ ..]) => {
            *ra == rank
                && *rb == rank
                && kernel.len() == ones.len()
                && ones.iter().all(|&x| x == 1)
                && !transposed
        }
        _ => false,
    };
    if !fits {
        return Err(AdapterError::Shape {
            module: module.to_owned(),
            a: a.shape.clone(),
            b: b.shape.clone(),
            rank,
        });
    }
    check_float(a)?;
    check_float(b)?;
    Ok(Delta::LowRank {
        a: a.clone(),
        b: b.clone(),
        rank,
        scale,
        transposed,
    })
}

fn check_bias(module: &str, bias: &TensorInfo, outputs: usize) -> Result<(), AdapterError> {
    if bias.shape != [outputs] {
        return Err(AdapterError::Bias {
            module: module.to_owned(),
            found: bias.shape.clone(),
            outputs,
        });
    }
    check_float(bias)
}

fn check_float(factor: &TensorInfo) -> Result<(), AdapterError> {
    if factor.dtype.is_float() {
        return Ok(());
    }
    Err(AdapterError::Unsupported(format!(
        "factor `{}` is {}, not a floating-point tensor",
        factor.name, factor.dtype
    )))
}

#[cfg(test)]
mod tests;
