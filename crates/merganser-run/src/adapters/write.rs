//! The folder of a merged adapter.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use merganser_kernels::convert;
use merganser_linalg::Matrix;
use merganser_plan::{float_dtype, kernel_float};
use merganser_spectral::Lora;
use merganser_store::Dtype;
use merganser_store::adapter::{Adapter, Delta, TensorRef};
use merganser_store::header::{self, TensorSpec};
use merganser_store::publish::Staging;
use merganser_store::shard::ShardFile;
use serde_json::json;

use super::{AdapterMerge, AdapterSummary, config, low_rank};
use crate::{Provenance, RunError};

const WEIGHTS: &str = "adapter_model.safetensors";

/// One stored tensor.
struct Piece {
    spec: TensorSpec,
    values: Vec<f32>,
}

/// What a merge has made, by tensor of the base.
pub(super) struct Parts<'a> {
    /// Updates of matrices.
    pub(super) factors: &'a BTreeMap<String, Lora>,
    /// Changes of biases.
    pub(super) biases: &'a BTreeMap<String, Matrix>,
    /// What is saved whole.
    pub(super) saved: &'a BTreeMap<String, Vec<f32>>,
}

/// Writes what was merged and the files beside it, and moves all into place.
pub(super) fn publish(
    merge: &AdapterMerge<'_>,
    parts: &Parts<'_>,
    out: &Path,
    overwrite: bool,
    provenance: &Provenance,
) -> Result<AdapterSummary, RunError> {
    let mut pieces = Vec::new();
    let mut ranks: BTreeMap<&str, usize> = BTreeMap::new();
    let mut notes = merge.notes.clone();
    for (tensor, lora) in parts.factors {
        let carrier = lora.rank() == 0 && parts.biases.contains_key(&bias_of(tensor));
        let lora = if carrier {
            notes.push(format!(
                "the updates of '{tensor}' cancel out, and the layer's biases do not: factors of zeros carry them"
            ));
            &no_change(lora)?
        } else {
            lora
        };
        if lora.rank() == 0 {
            notes.push(format!(
                "the updates of '{tensor}' cancel out: it is left out of the adapter"
            ));
            continue;
        }
        let Some(Delta::LowRank { a, b, .. }) = merge
            .adapters
            .iter()
            .find_map(|adapter| low_rank(adapter.modules().get(tensor)?))
        else {
            continue;
        };
        let module = module_of(tensor);
        ranks.insert(module, lora.rank());
        let mut scaled = lora.b().clone();
        scaled.scale(lora.scale());
        let dtype = merge.dtype_of(&[a, b]);
        pieces.push(piece(
            a,
            dtype,
            lora.a(),
            [&[lora.rank()], &a.shape[1..]].concat(),
        ));
        let mut shape = b.shape.clone();
        shape[1] = lora.rank();
        pieces.push(piece(b, dtype, &scaled, shape));
    }
    for (tensor, change) in parts.biases {
        let deltas = |adapter: &'_ Adapter| match adapter.modules().get(tensor).map(Vec::as_slice) {
            Some([Delta::Add { tensor, .. }]) => Some(tensor.clone()),
            _ => None,
        };
        let Some(like) = merge.adapters.iter().find_map(|adapter| deltas(adapter)) else {
            continue;
        };
        pieces.push(piece(
            &like,
            merge.dtype_of(&[&like]),
            change,
            like.shape.clone(),
        ));
    }
    let mut modules = BTreeSet::new();
    for (tensor, values) in parts.saved {
        let Some([Delta::Replace(info)]) = merge
            .adapters
            .iter()
            .find_map(|adapter| adapter.modules().get(tensor).map(Vec::as_slice))
        else {
            continue;
        };
        // Trained biases have no module of their own in `modules_to_save`.
        let parameter = tensor.rsplit('.').next();
        if parameter != Some("bias") || info.name.contains("modules_to_save") {
            modules.insert(module_of(tensor).to_owned());
        }
        pieces.push(Piece {
            spec: TensorSpec {
                name: stored_name(&info.name),
                dtype: merge.dtype_of(&[info]),
                shape: info.shape.clone(),
            },
            values: values.clone(),
        });
    }
    let configs: Vec<_> = merge
        .adapters
        .iter()
        .map(|adapter| adapter.config())
        .collect();
    let modules = named_modules(&configs, modules);
    let config = config::config(&configs, &ranks, &modules, !parts.biases.is_empty());

    let staging = Staging::begin(out, overwrite)?;
    let bytes = write_weights(&staging, &pieces)?;
    let mut names = BTreeSet::from([WEIGHTS.to_owned()]);
    let mut put = |name: &str, text: &str| -> Result<(), RunError> {
        let path = staging.path(name)?;
        names.insert(name.to_owned());
        std::fs::write(&path, text).map_err(RunError::io("write", &path))
    };
    put("adapter_config.json", &config)?;
    put("mergekit_config.yml", &provenance.recipe)?;
    put("merganser.json", &record(merge, provenance, &notes))?;
    if provenance.card {
        put("README.md", &card(merge, provenance))?;
    }
    let digest = blake3::hash(provenance.recipe.as_bytes()).to_hex();
    staging.publish(digest.as_str(), &names)?;
    Ok(AdapterSummary {
        method: merge.recipe.info().name,
        ranks: ranks
            .iter()
            .map(|(module, rank)| ((*module).to_owned(), *rank))
            .collect(),
        biases: parts.biases.len(),
        saved: parts.saved.len(),
        bytes,
        notes,
    })
}

impl AdapterMerge<'_> {
    /// The recipe's type, or the widest of the adapters' own.
    fn dtype_of(&self, like: &[&TensorRef]) -> Dtype {
        if let Some(dtype) = self.recipe.dtype() {
            return float_dtype(dtype);
        }
        let names: Vec<&str> = like.iter().map(|info| info.name.as_str()).collect();
        let own = self.adapters.iter().flat_map(|adapter| {
            let tensors = adapter.checkpoint().tensors();
            names
                .iter()
                .filter_map(|name| Some(tensors.get(*name)?.dtype))
        });
        let all: BTreeSet<Dtype> = own.collect();
        match all.first() {
            Some(dtype) if all.len() == 1 => *dtype,
            _ => Dtype::F32,
        }
    }
}

fn piece(like: &TensorRef, dtype: Dtype, matrix: &Matrix, shape: Vec<usize>) -> Piece {
    Piece {
        spec: TensorSpec {
            name: stored_name(&like.name),
            dtype,
            shape,
        },
        values: matrix.as_slice().iter().map(|x| *x as f32).collect(),
    }
}

/// A stored name without the adapter's own name, which PEFT puts in itself when it loads.
fn stored_name(name: &str) -> String {
    if let Some((module, rest)) = name.split_once(".lora_B.")
        && rest.rsplit('.').next() == Some("bias")
    {
        return format!("{module}.lora_B.bias");
    }
    for (marker, kept) in [
        (".lora_A.", ".lora_A.weight"),
        (".lora_B.", ".lora_B.weight"),
        (".lora_embedding_A", ".lora_embedding_A"),
        (".lora_embedding_B", ".lora_embedding_B"),
    ] {
        if let Some((module, _)) = name.split_once(marker) {
            return format!("{module}{kept}");
        }
    }
    match name.split_once(".modules_to_save.") {
        Some((module, rest)) => {
            let parameter = rest
                .split_once('.')
                .map_or(rest, |(_, parameter)| parameter);
            format!("{module}.{parameter}")
        }
        None => name.to_owned(),
    }
}

/// The bias of the layer that the matrix `tensor` belongs to.
fn bias_of(tensor: &str) -> String {
    format!("{}.bias", module_of(tensor))
}

/// An adapter of rank 1 that changes nothing.
fn no_change(like: &Lora) -> Result<Lora, RunError> {
    let (m, n) = like.shape();
    Lora::new(Matrix::zeros(1, n), Matrix::zeros(m, 1), 1.0)
        .map_err(|problem| RunError::Calibration(problem.to_string()))
}

fn module_of(tensor: &str) -> &str {
    tensor.rsplit_once('.').map_or(tensor, |(module, _)| module)
}

/// What the adapters call their saved modules, if they name them; a module may be the parent of several tensors.
fn named_modules(
    configs: &[&merganser_store::adapter::AdapterConfig],
    found: BTreeSet<String>,
) -> BTreeSet<String> {
    let named: BTreeSet<String> = configs
        .iter()
        .filter_map(|config| config.raw().get("modules_to_save")?.as_array())
        .flatten()
        .filter_map(|name| Some(name.as_str()?.to_owned()))
        .collect();
    if named.is_empty() { found } else { named }
}

fn write_weights(staging: &Staging, pieces: &[Piece]) -> Result<u64, RunError> {
    let specs: Vec<TensorSpec> = pieces.iter().map(|piece| piece.spec.clone()).collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let layout =
        header::compose(&metadata, &specs).map_err(|problem| RunError::Read(Box::new(problem)))?;
    let file = ShardFile::create(&staging.path(WEIGHTS)?, layout.file_len)?;
    file.write_at(0, &layout.header)?;
    for (piece, offset) in pieces.iter().zip(&layout.offsets) {
        file.write_at(*offset, &encoded(piece)?)?;
    }
    file.sync()?;
    Ok(layout.file_len)
}

fn encoded(piece: &Piece) -> Result<Vec<u8>, RunError> {
    let TensorSpec { name, dtype, .. } = &piece.spec;
    let kind = kernel_float(*dtype).ok_or_else(|| RunError::NotFloat {
        tensor: name.clone(),
        dtype: *dtype,
    })?;
    let mut bytes = vec![0; piece.values.len() * kind.size()];
    convert::encode(kind, &piece.values, &mut bytes);
    let mut back = vec![0.0; piece.values.len()];
    convert::decode(kind, &bytes, &mut back);
    match back.iter().position(|x| !x.is_finite()) {
        None => Ok(bytes),
        Some(index) => Err(RunError::Calibration(format!(
            "tensor '{name}': element {index} of the merged factor, {}, is no finite number of type {dtype}; choose a wider `dtype`",
            piece.values[index]
        ))),
    }
}

fn record(merge: &AdapterMerge<'_>, provenance: &Provenance, notes: &[String]) -> String {
    let inputs: Vec<_> = merge
        .adapters
        .iter()
        .zip(&merge.labels)
        .map(|(adapter, label)| {
            let files: Vec<_> = adapter
                .checkpoint()
                .files()
                .iter()
                .map(|file| json!({ "size": file.size, "header_blake3": file.header_digest.to_string() }))
                .collect();
            json!({ "adapter": label, "trained_on": adapter.config().base_model, "files": files })
        })
        .collect();
    let record = json!({
        "merganser": env!("CARGO_PKG_VERSION"),
        "method": merge.recipe.info().name,
        "seed": merge.seed,
        "recipe": blake3::hash(provenance.recipe.as_bytes()).to_hex().as_str(),
        "inputs": inputs,
        "notes": notes,
    });
    serde_json::to_string_pretty(&record).unwrap_or_default() + "\n"
}

fn card(merge: &AdapterMerge<'_>, provenance: &Provenance) -> String {
    let info = merge.recipe.info();
    let mut text = String::from("---\n");
    let base = merge
        .adapters
        .iter()
        .find_map(|a| a.config().base_model.as_deref());
    // A folder is no name on the Hub.
    if let Some(base) = base.filter(|base| base.split('/').count() == 2 && !base.starts_with('.')) {
        let _ = writeln!(text, "base_model: {base}");
    }
    text.push_str("library_name: peft\ntags:\n- mergekit\n- merge\n- merganser\n- lora\n---\n");
    let _ = writeln!(text, "# {}\n", provenance.title);
    let _ = writeln!(
        text,
        "A merge of LoRA adapters, made with merganser {}.\n",
        env!("CARGO_PKG_VERSION")
    );
    let _ = writeln!(
        text,
        "## Method\n\n`{}`: {}.\n\n```text\n{}\n```\n\nSource: {}.\n",
        info.name, info.summary, info.formula, info.source
    );
    text.push_str("## Adapters\n\n");
    for label in &merge.labels {
        let _ = writeln!(text, "- {label}");
    }
    let _ = writeln!(
        text,
        "\n## Recipe\n\n```yaml\n{}\n```",
        provenance.recipe.trim_end()
    );
    text
}
