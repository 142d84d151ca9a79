//! What the output says about itself: merganser.json, the model card, the recipe.

use std::collections::BTreeMap;
use std::fmt::Write;

use merganser_plan::{Model, Plan};
use merganser_store::{checkpoint::Checkpoint, fingerprint};
use serde_json::{Value, json};

use crate::RunError;

/// Where a merge comes from, as far as the plan does not know it.
#[derive(Debug, Clone, Default)]
pub struct Provenance {
    /// The recipe's text.
    pub recipe: String,
    /// Name of the result, for the model card.
    pub title: String,
    /// Write a README.md.
    pub card: bool,
    /// Hash the full content of every input file, not only its header and a sample.
    pub hash_inputs: bool,
}

/// The text of merganser.json.
///
/// # Errors
/// If an input file cannot be read to be hashed.
pub(crate) fn record(plan: &Plan, provenance: &Provenance) -> Result<String, RunError> {
    let mut inputs = Vec::new();
    for (model, _) in contributors(plan) {
        let mut entry = json!({ "model": model.label, "identity": model.identity(), "files": files(&model.checkpoint, provenance)? });
        if let Some(adapter) = &model.adapter {
            entry["adapter_files"] = files(adapter.checkpoint(), provenance)?;
        }
        inputs.push(entry);
    }
    let record = json!({
        "merganser": env!("CARGO_PKG_VERSION"),
        "method": plan.info().name,
        "seed": plan.seed,
        "plan": plan.digest,
        "recipe": blake3::hash(provenance.recipe.as_bytes()).to_hex().as_str(),
        "inputs": inputs,
        "outputs": plan.shards.iter().map(|shard| json!({ "file": shard.file, "size": shard.size, "tensors": shard.outputs.len() })).collect::<Vec<_>>(),
        "notes": plan.notes,
        "warnings": plan.warnings.iter().map(|warning| warning.message.as_str()).collect::<Vec<_>>(),
    });
    Ok(serde_json::to_string_pretty(&record).unwrap_or_default() + "\n")
}

/// The models that a plan's output comes from, and what they are to it. What was merged on the way is none of them: a plan
/// that goes on with a merge is that of a defence.
fn contributors(plan: &Plan) -> Vec<(&Model, &'static str)> {
    let of = |plan: &'_ Plan, i: usize| if plan.base == Some(i) { " (base)" } else { "" };
    let Some(merge) = &plan.merge else {
        let models = plan.models.iter().enumerate();
        return models.map(|(i, model)| (model, of(plan, i))).collect();
    };
    let mut found = contributors(merge);
    let added = plan.models.iter().skip(1);
    found.extend(added.map(|model| {
        (
            model,
            " (of an injected backdoor vector, which was subtracted)",
        )
    }));
    found
}

fn files(checkpoint: &Checkpoint, provenance: &Provenance) -> Result<Value, RunError> {
    let mut list = Vec::new();
    for file in checkpoint.files() {
        let name = file
            .path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        let mut entry = json!({ "name": name, "size": file.size, "header_blake3": file.header_digest.to_string() });
        if provenance.hash_inputs {
            entry["blake3"] = fingerprint::hash_file(&file.path)?.to_string().into();
        }
        list.push(entry);
    }
    Ok(Value::from(list))
}

/// The text of the model card: what Hugging Face shows of a merged model.
pub fn card(plan: &Plan, provenance: &Provenance) -> String {
    let on_hub: Vec<&str> = contributors(plan)
        .into_iter()
        .flat_map(|(model, _)| hub_ids(model))
        .collect();
    let info = plan.info();
    let mut text = String::from("---\n");
    if !on_hub.is_empty() {
        text.push_str("base_model:\n");
        let mut seen = std::collections::BTreeSet::new();
        for id in on_hub.into_iter().filter(|id| seen.insert(*id)) {
            let _ = writeln!(text, "- {id}");
        }
    }
    if plan
        .config
        .as_deref()
        .is_some_and(|config| config.contains("\"architectures\""))
    {
        text.push_str("library_name: transformers\n");
    }
    text.push_str("tags:\n- mergekit\n- merge\n- merganser\n---\n");
    let _ = writeln!(text, "# {}\n", provenance.title);
    let _ = writeln!(
        text,
        "A merge of pretrained models, made with merganser {}.\n",
        env!("CARGO_PKG_VERSION")
    );
    let _ = writeln!(
        text,
        "## Method\n\n`{}`: {}.\n\n```text\n{}\n```\n\nSource: {}.\n",
        info.name, info.summary, info.formula, info.source
    );
    text.push_str("## Models\n\n");
    for (model, role) in contributors(plan) {
        let _ = writeln!(text, "- {}{role}", model.label);
    }
    let mut types: BTreeMap<String, usize> = BTreeMap::new();
    for output in plan.tensors() {
        *types.entry(output.dtype.to_string()).or_default() += output.elements();
    }
    let types: Vec<String> = types
        .iter()
        .map(|(dtype, n)| format!("{n} {dtype}"))
        .collect();
    let _ = writeln!(
        text,
        "\n{} tensors; parameters by type: {}.\n",
        plan.tensors().count(),
        types.join(", ")
    );
    let _ = writeln!(
        text,
        "## Recipe\n\n```yaml\n{}\n```\n",
        provenance.recipe.trim_end()
    );
    text.push_str("Hashes of the inputs and all notes are in `merganser.json`.\n");
    text
}

/// The parts of a label that are names on the Hugging Face Hub.
pub(crate) fn hub_ids(model: &Model) -> impl Iterator<Item = &str> {
    model
        .label
        .split('+')
        .map(|part| part.split('@').next().unwrap_or(part))
        .filter(|id| is_hub_id(id))
}

fn is_hub_id(id: &str) -> bool {
    let mut words = id.split('/');
    let plain = |word: &str| {
        !word.is_empty()
            && !word.starts_with('.')
            && word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    words.next().is_some_and(plain)
        && words.next().is_some_and(plain)
        && words.next().is_none()
        && !std::path::Path::new(id).exists()
}
