//! The last step: the files beside the weights, and everything into place.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use merganser_methods::Survey;
use merganser_plan::{Plan, Record};
use merganser_report::Report;
use merganser_store::publish::Staging;
use serde::{Deserialize, Serialize};

use crate::{Provenance, RunError, provenance};

/// The mark of a finished part. It names everything that will be published, so that sealing needs neither the
/// recipe nor the inputs.
#[derive(Serialize, Deserialize)]
struct Mark {
    plan: String,
    part: usize,
    parts: usize,
    weights: BTreeMap<String, u64>,
    names: BTreeSet<String>,
}

/// Records that a part is finished.
pub(crate) fn mark(
    plan: &Plan,
    provenance: &Provenance,
    survey: &Survey,
    staging: &Staging,
    (part, parts): (usize, usize),
) -> Result<(), RunError> {
    let mark = Mark {
        plan: plan.digest.clone(),
        part,
        parts,
        weights: plan
            .shards
            .iter()
            .map(|shard| (shard.file.clone(), shard.size))
            .collect(),
        names: stage(plan, provenance, survey, staging)?,
    };
    let text = serde_json::to_string_pretty(&mark).unwrap_or_default();
    write(
        staging.dir(),
        &format!("part-{part:05}-of-{parts:05}.done.json"),
        text.as_bytes(),
    )
}

/// Puts the finished parts of a merge together: checks that all are there and publishes the model.
/// Returns the names of the published files.
///
/// # Errors
/// If parts are missing or belong to different plans.
pub fn seal(out: &Path, overwrite: bool) -> Result<Vec<String>, RunError> {
    if !out.join(merganser_store::publish::STAGING).is_dir() {
        return Err(RunError::NothingToSeal(out.to_owned()));
    }
    let staging = Staging::begin(out, overwrite)?;
    let marks = marks(staging.dir());
    let Some(first) = marks.first() else {
        return Err(RunError::NothingToSeal(out.to_owned()));
    };
    if marks
        .iter()
        .any(|mark| mark.plan != first.plan || mark.parts != first.parts)
    {
        return Err(RunError::OtherPlan {
            out: out.to_owned(),
            staging: staging.dir().to_owned(),
        });
    }
    let parts = first.parts;
    let missing: Vec<usize> = (1..=parts)
        .filter(|part| !marks.iter().any(|mark| mark.part == *part))
        .collect();
    if !missing.is_empty() {
        let list = missing
            .iter()
            .map(usize::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        return Err(RunError::Unfinished {
            missing: missing.len(),
            parts,
            list,
        });
    }
    for (file, size) in &first.weights {
        let path = staging.files().join(file);
        let found = std::fs::metadata(&path)
            .map_err(RunError::io("find", &path))?
            .len();
        if found != *size {
            return Err(RunError::WrongSize {
                path,
                found,
                expected: *size,
            });
        }
    }
    Ok(staging.publish(&first.plan, &first.names)?.files)
}

fn marks(dir: &Path) -> Vec<Mark> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(".done.json"))
        .filter_map(|entry| serde_json::from_str(&std::fs::read_to_string(entry.path()).ok()?).ok())
        .collect()
}

/// Writes the small files and moves everything into place.
pub(crate) fn publish(
    plan: &Plan,
    provenance: &Provenance,
    survey: &Survey,
    report: Option<&Report>,
    staging: Staging,
) -> Result<(), RunError> {
    let mut names = stage(plan, provenance, survey, &staging)?;
    if let Some(report) = report {
        let dir = staging.files();
        for (name, text) in [
            ("report.html", report.to_html()),
            ("report.json", report.to_json()),
        ] {
            let text = text.map_err(|error| RunError::Read(error.into()))?;
            write(dir, name, text.as_bytes())?;
            names.insert(name.to_owned());
        }
    }
    staging.publish(&plan.digest, &names)?;
    Ok(())
}

/// Writes the small files into the staging folder and names all files to be published.
fn stage(
    plan: &Plan,
    provenance: &Provenance,
    survey: &Survey,
    staging: &Staging,
) -> Result<BTreeSet<String>, RunError> {
    let dir = staging.files();
    let mut names: BTreeSet<String> = plan.shards.iter().map(|shard| shard.file.clone()).collect();
    let mut put = |name: &str, bytes: &[u8]| -> Result<(), RunError> {
        names.insert(name.to_owned());
        write(dir, name, bytes)
    };
    if let Some(template) = plan.template {
        for path in plan.models[template].checkpoint.sidecars() {
            if let Some(name) = path.file_name() {
                let bytes = std::fs::read(&path).map_err(RunError::io("read", &path))?;
                put(&name.to_string_lossy(), &bytes)?;
            }
        }
    }
    if let Some(index) = plan.index_json() {
        put("model.safetensors.index.json", index.as_bytes())?;
    }
    if let Some(record) = Record::new(plan, &survey.numbers) {
        put(&format!("{}.json", record.method), record.text().as_bytes())?;
    }
    put("mergekit_config.yml", provenance.recipe.as_bytes())?;
    put(
        "merganser.json",
        provenance::record(plan, provenance)?.as_bytes(),
    )?;
    if provenance.card && plan.template.is_some() {
        put("README.md", crate::card(plan, provenance).as_bytes())?;
    }
    if let Some(config) = &plan.config {
        put("config.json", config.as_bytes())?;
    }
    Ok(names)
}

/// Writes a file whole: parts that write the same one at the same time do not disturb each other.
fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), RunError> {
    let own = dir.join(format!(".{name}.{}", std::process::id()));
    std::fs::write(&own, bytes).map_err(RunError::io("write", &own))?;
    let path = dir.join(name);
    std::fs::rename(&own, &path).map_err(RunError::io("write", &path))
}
