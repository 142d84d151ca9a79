//! From a model reference to files on this machine.
//!
//! A reference is a local path or the id of a model on the Hugging Face Hub, `org/name` or `name`,
//! with an optional revision. A path that exists wins. Then the local cache is looked at, in the
//! layout that Python's `huggingface_hub` uses, so that nothing is downloaded twice; then, with
//! the cargo feature `hub` and unless offline, what is missing is downloaded into that cache.

mod cache;
#[cfg(feature = "hub")]
mod download;
mod options;

use std::path::{Path, PathBuf};

pub use self::options::HubOptions;

/// Why a model reference could not be resolved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// It has the form of a path, and nothing is there.
    #[error(
        "`{0}` does not exist; give the path of a folder or file that does, or the id of a model on the Hugging Face Hub such as `org/name`"
    )]
    NoSuchPath(String),
    /// It is neither a path nor an id.
    #[error(
        "`{0}` is neither an existing path nor the id of a model (`org/name`, of letters, digits, `-`, `_` and `.`)"
    )]
    BadId(String),
    /// The revision could lead out of the cache.
    #[error("`{0}` is not a revision: expected a branch, a tag or a commit")]
    BadRevision(String),
    /// Not in the cache, and downloading is not possible.
    #[error("`{id}` (revision `{revision}`) is not in the cache `{}`, and {reason}", cache.display())]
    NotCached {
        /// The model.
        id: String,
        /// The revision.
        revision: String,
        /// The cache folder.
        cache: PathBuf,
        /// Why it is not downloaded, and what to do.
        reason: &'static str,
    },
    /// The hub does not know the model.
    #[error(
        "there is no model `{id}` on {endpoint}; check the spelling, and if it is private set HF_TOKEN to a token that may read it"
    )]
    NotFound {
        /// The model.
        id: String,
        /// The hub asked.
        endpoint: String,
    },
    /// The hub knows the model but not the revision.
    #[error("model `{id}` has no revision `{revision}`; give a branch, a tag or a full commit")]
    NoSuchRevision {
        /// The model.
        id: String,
        /// The revision.
        revision: String,
    },
    /// The hub refuses this user.
    #[error(
        "access to `{id}` was refused (HTTP {status}): accept its conditions at {endpoint}/{id} and set HF_TOKEN to a token that may read it"
    )]
    Refused {
        /// The model.
        id: String,
        /// The hub asked.
        endpoint: String,
        /// Its answer.
        status: u16,
    },
    /// The model has no files that could be merged.
    #[error(
        "`{id}` holds no weights that can be merged: expected safetensors, `pytorch_model.bin` or a PEFT adapter"
    )]
    NoWeights {
        /// The model.
        id: String,
    },
    /// The download failed otherwise.
    #[error(
        "cannot download `{what}` of `{id}` from {endpoint}: {problem}; run again to go on, or download it by other means and give its path"
    )]
    Download {
        /// The model.
        id: String,
        /// The file, or what was asked.
        what: String,
        /// The hub asked.
        endpoint: String,
        /// What went wrong.
        problem: String,
    },
}

/// Longest part of an id, the limit of the hub.
const MAX_ID_LEN: usize = 96;

/// Resolves `reference` to a local folder or file. `revision` (a branch, tag or commit; default
/// `main`) is only used if the reference is not a path.
pub fn resolve(
    reference: &str,
    revision: Option<&str>,
    options: &HubOptions,
) -> Result<PathBuf, HubError> {
    let path = Path::new(reference);
    if path.exists() {
        return Ok(path.to_owned());
    }
    if looks_like_path(reference) {
        return Err(HubError::NoSuchPath(reference.to_owned()));
    }
    if !is_id(reference) {
        return Err(HubError::BadId(reference.to_owned()));
    }
    let revision = revision.unwrap_or("main");
    if !is_revision(revision) {
        return Err(HubError::BadRevision(revision.to_owned()));
    }
    let cached = cache::find(&options.cache, reference, revision);
    match cached {
        Some(snapshot) if cache::is_complete(&snapshot) => Ok(snapshot),
        _ => fetch(reference, revision, options),
    }
}

#[cfg(feature = "hub")]
fn fetch(id: &str, revision: &str, options: &HubOptions) -> Result<PathBuf, HubError> {
    if options.offline {
        return not_cached(
            id,
            revision,
            options,
            "HF_HUB_OFFLINE is set; unset it, or give the path of a local copy",
        );
    }
    download::download(id, revision, options)
}

#[cfg(not(feature = "hub"))]
fn fetch(id: &str, revision: &str, options: &HubOptions) -> Result<PathBuf, HubError> {
    not_cached(
        id,
        revision,
        options,
        "this build cannot download; give the path of a local copy",
    )
}

fn not_cached(
    id: &str,
    revision: &str,
    options: &HubOptions,
    reason: &'static str,
) -> Result<PathBuf, HubError> {
    Err(HubError::NotCached {
        id: id.to_owned(),
        revision: revision.to_owned(),
        cache: options.cache.clone(),
        reason,
    })
}

/// Whether a reference that does not exist can only have been meant as a path.
fn looks_like_path(reference: &str) -> bool {
    reference.starts_with(['/', '.', '~', '\\'])
        || reference.ends_with('/')
        || reference.matches('/').count() > 1
        || [".safetensors", ".bin", ".pt", ".pth", ".ckpt"]
            .iter()
            .any(|end| reference.ends_with(end))
}

fn is_id(reference: &str) -> bool {
    let part = |part: &str| {
        (1..=MAX_ID_LEN).contains(&part.len())
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
            && !part.contains("--")
            && !part.contains("..")
    };
    match reference.split_once('/') {
        Some((owner, name)) => part(owner) && part(name),
        None => part(reference),
    }
}

/// Whether joining `revision` to the folder of refs stays inside it.
fn is_revision(revision: &str) -> bool {
    crate::checkpoint::stays_inside(revision) && revision.len() <= 255
}

#[cfg(test)]
mod tests;
