//! config.json of the merged model: the base's, with number of layers, type, vocabulary size and tied embeddings made
//! to agree with the tensors that are written.

use std::collections::{BTreeMap, BTreeSet};

use merganser_recipe::{Diagnostic, Document};
use merganser_store::Dtype;

use crate::config::Config;
use crate::layout::Layout;
use crate::model::Model;
use crate::{Action, Output, roles};

/// The text of the output's config.json: that of `template`, with the keys changed that must.
///
/// `rows` is the new number of vocabulary rows, if it changes.
pub(crate) fn output_config(
    document: &Document,
    models: &[Model],
    template: &Model,
    layout: &Layout<'_>,
    outputs: &[Output],
    rows: Option<usize>,
    notes: &mut BTreeSet<String>,
) -> Result<Option<String>, Diagnostic> {
    let Some(text) = template.checkpoint.config() else {
        notes.insert(format!(
            "{} has no config.json: none is written",
            template.label
        ));
        return Ok(None);
    };
    let fail = |error: &dyn std::fmt::Display| {
        Diagnostic::error(format!("{}: {error}", template.label))
            .label(document.merge_method.span, "while writing config.json")
    };
    let mut config = Config::parse(text).map_err(|error| fail(&error))?;
    let mut changed = Vec::new();
    if let [origin] = layout.origins.as_slice() {
        match config.set_layers(origin).map_err(|error| fail(&error))? {
            Some(key) => changed.push(key),
            None => {
                notes.insert(
                    "config.json has no key for the number of layers: it is left as it is".into(),
                );
            }
        }
    }
    let mut weights: BTreeMap<Dtype, u64> = BTreeMap::new();
    for output in outputs.iter().filter(|output| output.dtype.is_float()) {
        *weights.entry(output.dtype).or_default() += output.nbytes;
    }
    if let Some((dtype, _)) = weights.into_iter().max_by_key(|(_, bytes)| *bytes) {
        let name = serde_json::Value::from(dtype.torch_name());
        let keys = ["dtype", "torch_dtype"];
        let present: Vec<&str> = keys
            .into_iter()
            .filter(|key| config.get(&[key]).is_some())
            .collect();
        let narrow = outputs
            .iter()
            .any(|output| matches!(output.action, Action::Merge { .. }) || output.dtype == dtype);
        for key in present {
            if narrow && config.get(&[key]) != Some(name.clone()) {
                config.set(&[key], &name).map_err(|error| fail(&error))?;
                changed.push(key.to_owned());
            }
        }
    }
    if let Some(rows) = rows {
        let rows = serde_json::Value::from(rows);
        for path in [&["vocab_size"][..], &["text_config", "vocab_size"]] {
            if config.get(path).is_some_and(|value| value != rows) {
                config.set(path, &rows).map_err(|error| fail(&error))?;
                changed.push(path.join("."));
            }
        }
    }
    if head_is_untied(models, outputs) {
        for path in [
            &["tie_word_embeddings"][..],
            &["text_config", "tie_word_embeddings"],
        ] {
            if config.get(path) == Some(serde_json::Value::Bool(true)) {
                config
                    .set(path, &serde_json::Value::Bool(false))
                    .map_err(|error| fail(&error))?;
                changed.push(path.join("."));
            }
        }
    }
    if !changed.is_empty() {
        notes.insert(format!("config.json: changed {}", changed.join(", ")));
    }
    Ok(Some(config.text().to_owned()))
}

/// Whether the output stores a head of its own that some input did not tie to its embedding.
fn head_is_untied(models: &[Model], outputs: &[Output]) -> bool {
    outputs
        .iter()
        .filter(|output| roles::is_output_head(&output.name))
        .flat_map(Output::inputs)
        .any(|input| roles::is_output_head(&input.tensor) && !models[input.model].is_tied())
}
