//! Downloading into the cache, through the `hf-hub` crate.
//!
//! Only what a merge reads is fetched: config, tokenizer and other files that are copied along, and
//! one set of weights, safetensors if there are any. The small files come first, since the index
//! names the shards.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hf_hub::repository::RepoTypeModel;
use hf_hub::{HFClient, HFError, HFRepositorySync, split_id};

use super::{HubError, HubOptions, cache};
use crate::checkpoint::{parse_index, stays_inside};
use crate::names::Role;

type Repository = HFRepositorySync<RepoTypeModel>;

/// Downloads what is missing of a model and gives its snapshot in the cache.
pub(super) fn download(
    id: &str,
    revision: &str,
    options: &HubOptions,
) -> Result<PathBuf, HubError> {
    let failure = |what: &str| {
        let what = what.to_owned();
        move |error| explain(id, revision, options, what, error)
    };
    let mut client = HFClient::builder()
        .endpoint(options.endpoint.as_str())
        .cache_dir(options.cache.as_path());
    if let Some(token) = &options.token {
        client = client.token(token);
    }
    let client = client.build_sync().map_err(failure("settings"))?;
    let (owner, name) = split_id(id);
    let repository = client.model(owner, name);

    let info = repository
        .info()
        .revision(revision)
        .send()
        .map_err(failure("file list"))?;
    let names: BTreeSet<String> = info
        .siblings
        .unwrap_or_default()
        .into_iter()
        .map(|sibling| sibling.rfilename)
        .collect();
    let weights = choose(&names).ok_or_else(|| HubError::NoWeights { id: id.to_owned() })?;
    let mut wanted: Vec<String> = names
        .iter()
        .filter(|name| !name.contains('/'))
        .filter(|name| Role::of(name) == Role::Config || Role::of(name).is_carried())
        .cloned()
        .collect();
    wanted.push(weights.clone());
    let snapshot = fetch(&repository, revision, &wanted).map_err(failure(&weights))?;
    if Role::of(&weights) == Role::Index {
        let shards = shards(&snapshot.join(&weights)).map_err(|problem| HubError::Download {
            id: id.to_owned(),
            what: weights.clone(),
            endpoint: options.endpoint.clone(),
            problem,
        })?;
        fetch(&repository, revision, &shards).map_err(failure("shards"))?;
    }
    if cache::has_weights(&snapshot) {
        Ok(snapshot)
    } else {
        Err(HubError::Download {
            id: id.to_owned(),
            what: weights,
            endpoint: options.endpoint.clone(),
            problem: "the hub lists files that it does not deliver".to_owned(),
        })
    }
}

/// The file that stands for the weights: a single one or an index.
fn choose(names: &BTreeSet<String>) -> Option<String> {
    cache::WEIGHTS
        .iter()
        .flat_map(|name| [(*name).to_owned(), format!("{name}.index.json")])
        .find(|name| names.contains(name))
}

/// The shards that an index on disk names.
fn shards(index: &Path) -> Result<Vec<String>, String> {
    let text = std::fs::read_to_string(index).map_err(|error| error.to_string())?;
    let index = parse_index(&text).map_err(|error| error.to_string())?;
    Ok(index
        .weight_map
        .into_values()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect())
}

/// Fetches files that are not in the cache yet. Names with characters that would make them patterns
/// are left out; no model has such.
fn fetch(repository: &Repository, revision: &str, names: &[String]) -> Result<PathBuf, HFError> {
    let plain =
        |name: &&String| stays_inside(name) && !name.contains(['*', '?', '[', ']', '{', '}']);
    let names = names.iter().filter(plain).cloned().collect();
    repository
        .snapshot_download()
        .revision(revision)
        .allow_patterns(names)
        .send()
}

/// The hub's own code in the header `X-Error-Code`.
const REPO_NOT_FOUND: &str = "RepoNotFound";

/// What an error of the crate means to a user.
fn explain(
    id: &str,
    revision: &str,
    options: &HubOptions,
    what: String,
    error: HFError,
) -> HubError {
    let (id, endpoint) = (id.to_owned(), options.endpoint.clone());
    match error {
        HFError::RepoNotFound { .. } => HubError::NotFound { id, endpoint },
        // The hub hides private models from strangers behind the same answer as missing ones.
        HFError::AuthRequired { context }
            if context.error_code.as_deref() == Some(REPO_NOT_FOUND) =>
        {
            HubError::NotFound { id, endpoint }
        }
        HFError::RevisionNotFound {
            context: Some(context),
            ..
        } if context.error_code.as_deref() == Some(REPO_NOT_FOUND) => {
            HubError::NotFound { id, endpoint }
        }
        HFError::RevisionNotFound { .. } => HubError::NoSuchRevision {
            id,
            revision: revision.to_owned(),
        },
        HFError::AuthRequired { context } | HFError::Forbidden { context } => HubError::Refused {
            id,
            endpoint,
            status: context.status.as_u16(),
        },
        other => HubError::Download {
            id,
            what,
            endpoint,
            problem: full_text(&other),
        },
    }
}

/// An error with its causes, which say what really happened ("connection refused").
fn full_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
