//! The local cache of `huggingface_hub`:
//! `models--org--name/{refs/<revision>, snapshots/<commit>/<files>, blobs/…}`.
//!
//! Source: <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>.

use std::path::{Path, PathBuf};

use crate::checkpoint::parse_index;

/// Files that hold a model or an adapter, in the order of preference. Each but the adapters may
/// also be in shards, with an index.
pub(super) const WEIGHTS: [&str; 5] = [
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
];

/// Longest ref file that is believed.
const MAX_REF_LEN: u64 = 256;

/// Folder of a model in the cache.
pub(super) fn folder(cache: &Path, id: &str) -> PathBuf {
    cache.join(format!("models--{}", id.replace('/', "--")))
}

/// The snapshot of a revision, if the cache knows it.
pub(super) fn find(cache: &Path, id: &str, revision: &str) -> Option<PathBuf> {
    let folder = folder(cache, id);
    let reference = folder.join("refs").join(revision);
    let commit = if reference.is_file() {
        let small = std::fs::metadata(&reference).ok()?.len() <= MAX_REF_LEN;
        small
            .then(|| std::fs::read_to_string(reference).ok())??
            .trim()
            .to_owned()
    } else {
        revision.to_owned()
    };
    // A commit is a name, not a path: a ref file must not lead elsewhere.
    let is_name = !commit.is_empty()
        && commit
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    let snapshot = is_name.then(|| folder.join("snapshots").join(commit))?;
    snapshot.is_dir().then_some(snapshot)
}

/// Whether a snapshot holds all that a merge needs: config and weights, of a model or an adapter.
/// Python often downloads single files, so a snapshot may hold only a tokenizer.
pub(super) fn is_complete(snapshot: &Path) -> bool {
    let config = ["config.json", "adapter_config.json"];
    config.iter().any(|name| snapshot.join(name).is_file()) && has_weights(snapshot)
}

/// Whether a snapshot holds a whole set of weights.
pub(super) fn has_weights(snapshot: &Path) -> bool {
    WEIGHTS.iter().any(|name| {
        let index = snapshot.join(format!("{name}.index.json"));
        snapshot.join(name).is_file() || (index.is_file() && has_shards(snapshot, &index))
    })
}

fn has_shards(snapshot: &Path, index: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(index) else {
        return false;
    };
    // A broken index is all there is to download; opening it will say what is wrong.
    parse_index(&text).map_or(true, |index| {
        index
            .weight_map
            .values()
            .all(|shard| snapshot.join(shard).is_file())
    })
}
