//! The last step: the files beside the weights, and everything into place.

use std::path::Path;

use merganser_plan::Plan;
use merganser_store::publish::Staging;
use serde::{Deserialize, Serialize};

use crate::{provenance, Provenance, RunError};

/// The mark of a finished part.
#[derive(Serialize, Deserialize)]
struct Mark {
    plan: String,
    part: usize,
    parts: usize,
    files: Vec<String>,
}

/// Records that a part is finished.
pub(crate) fn mark(plan: &Plan, staging: &Staging, (part, parts): (usize, usize)) -> Result<(), RunError> {
    let share = plan.parts(parts).swap_remove(part - 1);
    let files = share.shards.iter().map(|shard| plan.shards[*shard].file.clone()).collect();
    let mark = Mark { plan: plan.digest.clone(), part, parts, files };
    let text = serde_json::to_string_pretty(&mark).unwrap_or_default();
    write(staging.dir(), &mark_name(part, parts), &text)
}

fn mark_name(part: usize, parts: usize) -> String {
    format!("part-{part:05}-of-{parts:05}.done.json")
}

/// Puts the finished parts of a merge together: checks that all are there and publishes the model.
///
/// # Errors
/// If parts are missing or belong to another plan.
pub fn seal(plan: &Plan, out: &Path, overwrite: bool, provenance: &Provenance) -> Result<(), RunError> {
    let staging = Staging::begin(out, overwrite)?;
    let marks = marks(staging.dir());
    let Some(parts) = marks.iter().map(|mark| mark.parts).max() else {
        return Err(RunError::NothingToSeal(out.to_owned()));
    };
    if marks.iter().any(|mark| mark.plan != plan.digest || mark.parts != parts) {
        return Err(RunError::OtherPlan { out: out.to_owned(), staging: staging.dir().to_owned() });
    }
    let missing: Vec<usize> = (1..=parts).filter(|part| !marks.iter().any(|mark| mark.part == *part)).collect();
    if !missing.is_empty() {
        let list = missing.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        return Err(RunError::Unfinished { missing: missing.len(), parts, list });
    }
    publish(plan, provenance, staging)
}

fn marks(dir: &Path) -> Vec<Mark> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(".done.json"))
        .filter_map(|entry| serde_json::from_str(&std::fs::read_to_string(entry.path()).ok()?).ok())
        .collect()
}

/// Writes the small files and moves everything into place.
pub(crate) fn publish(plan: &Plan, provenance: &Provenance, staging: Staging) -> Result<(), RunError> {
    let dir = staging.dir().to_owned();
    let mut files: Vec<String> = plan.shards.iter().map(|shard| shard.file.clone()).collect();
    let mut put = |name: &str, text: &str| -> Result<(), RunError> {
        files.push(name.to_owned());
        write(&dir, name, text)
    };
    if let Some(index) = plan.index_json() {
        put("model.safetensors.index.json", &index)?;
    }
    put("mergekit_config.yml", &provenance.recipe)?;
    put("merganser.json", &provenance::record(plan, provenance)?)?;
    if provenance.card && plan.template.is_some() {
        put("README.md", &crate::card(plan, provenance))?;
    }
    if let Some(config) = &plan.config {
        put("config.json", config)?;
    }
    if let Some(template) = plan.template {
        for path in plan.models[template].checkpoint.sidecars() {
            let Some(name) = path.file_name() else { continue };
            let bytes = std::fs::read(&path).map_err(|cause| merganser_store::Error::io("read", &path, cause))?;
            let to = dir.join(name);
            std::fs::write(&to, bytes).map_err(|cause| merganser_store::Error::io("write", &to, cause))?;
            files.push(name.to_string_lossy().into_owned());
        }
    }
    staging.publish(&files)?;
    Ok(())
}

fn write(dir: &Path, name: &str, text: &str) -> Result<(), RunError> {
    let path = dir.join(name);
    std::fs::write(&path, text).map_err(|cause| merganser_store::Error::io("write", &path, cause))?;
    Ok(())
}
