//! The `adapter_config.json` of a merged adapter: that of the first one, with what a merge changes.

use std::collections::{BTreeMap, BTreeSet};

use merganser_store::adapter::AdapterConfig;
use serde_json::{Map, Value, json};

/// Keys that say which modules of the base are adapted, beside `target_modules`.
const SELECTIONS: [&str; 3] = ["layers_to_transform", "layers_pattern", "exclude_modules"];

/// The text, for the ranks of the merged modules and the modules that are saved whole. Scale is 1 everywhere: α is the
/// rank of each module. `biases` says whether second factors have some.
pub(super) fn config(
    configs: &[&AdapterConfig],
    ranks: &BTreeMap<&str, usize>,
    saved: &BTreeSet<String>,
    biases: bool,
) -> String {
    let mut map = configs
        .first()
        .map_or_else(Map::new, |config| config.raw().clone());
    let largest = ranks.values().copied().max().unwrap_or(1).max(1);
    let others: Map<String, Value> = ranks
        .iter()
        .filter(|(_, rank)| **rank != largest)
        .map(|(module, rank)| (escaped(module), json!(rank)))
        .collect();
    let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
    put("r", json!(largest));
    put("lora_alpha", json!(largest));
    put("rank_pattern", Value::Object(others.clone()));
    put("alpha_pattern", Value::Object(others));
    put("use_rslora", json!(false));
    put("lora_bias", json!(biases));
    put("inference_mode", json!(true));
    put("init_lora_weights", json!(true));
    put("target_modules", targets(configs, ranks));
    let saved = (!saved.is_empty()).then(|| json!(saved));
    put("modules_to_save", saved.unwrap_or(Value::Null));
    for key in SELECTIONS {
        map.remove(key);
    }
    serde_json::to_string_pretty(&Value::Object(map)).unwrap_or_default() + "\n"
}

/// The suffixes that the adapters name, if all do so and nothing else restricts them; else every module by its path.
fn targets(configs: &[&AdapterConfig], ranks: &BTreeMap<&str, usize>) -> Value {
    let suffixes = |config: &&AdapterConfig| -> Option<BTreeSet<String>> {
        let raw = config.raw();
        let restricted = |key: &&str| raw.get(*key).is_some_and(|value| !value.is_null());
        if SELECTIONS.iter().any(restricted) {
            return None;
        }
        let list = raw.get("target_modules")?.as_array()?;
        list.iter()
            .map(|name| Some(name.as_str()?.to_owned()))
            .collect()
    };
    let named: Option<Vec<BTreeSet<String>>> = configs.iter().map(suffixes).collect();
    match named {
        Some(sets) => json!(sets.into_iter().flatten().collect::<BTreeSet<_>>()),
        None => json!(ranks.keys().collect::<Vec<_>>()),
    }
}

/// A module's path as a regular expression.
fn escaped(module: &str) -> String {
    module.replace('.', r"\.")
}
