//! adapter_config.json, as PEFT reads it.

use std::collections::{BTreeMap, BTreeSet};

use merganser_plan::Model;
use serde_json::{Value, json};

/// What an adapter consists of.
pub(super) struct Contents<'a> {
    /// What its base is called.
    pub(super) base: &'a Model,
    /// Rank of every module with factors.
    pub(super) ranks: BTreeMap<&'a str, usize>,
    /// Modules with tensors that are saved whole.
    pub(super) saved: BTreeSet<&'a str>,
    /// Paths of all modules of the base and of their parents.
    pub(super) modules: &'a BTreeSet<String>,
    /// Whether second factors have biases.
    pub(super) biases: bool,
    /// Whether the base stores matrices as inputs × outputs.
    pub(super) fan_in_fan_out: bool,
}

impl Contents<'_> {
    /// The largest rank; α is the same, so that every update has scale 1.
    pub(super) fn rank(&self) -> usize {
        self.ranks.values().copied().max().unwrap_or(0)
    }

    /// The configuration.
    pub(super) fn json(&self) -> Value {
        let most = self.rank();
        let pattern: BTreeMap<&str, usize> = self
            .ranks
            .iter()
            .filter(|(_, rank)| **rank != most)
            .map(|(module, rank)| (*module, *rank))
            .collect();
        let targets: BTreeSet<&str> = self.ranks.keys().copied().collect();
        // A module's last word names all modules that have it; PEFT compares whole words for targets.
        let targets = shortened(&targets, self.modules, |path, word| last(path) == word);
        // Of what is saved, PEFT compares the end of the text.
        let saved = outermost(&self.saved);
        let saved = shortened(&saved, self.modules, |path, word| path.ends_with(word));
        json!({
            "peft_type": "LORA",
            "task_type": task(self.base),
            "base_model_name_or_path": self.base.label,
            "r": most,
            "lora_alpha": most,
            "target_modules": targets,
            "modules_to_save": if saved.is_empty() { Value::Null } else { json!(saved) },
            "rank_pattern": pattern,
            "alpha_pattern": pattern,
            "use_rslora": false,
            "use_dora": false,
            "lora_dropout": 0.0,
            "bias": "none",
            "lora_bias": self.biases,
            "fan_in_fan_out": self.fan_in_fan_out,
            "init_lora_weights": true,
            "inference_mode": true,
        })
    }
}

fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// The paths without those that lie in another of them: PEFT wraps a module with all that is in it.
fn outermost<'a>(paths: &BTreeSet<&'a str>) -> BTreeSet<&'a str> {
    paths
        .iter()
        .copied()
        .filter(|path| !paths.iter().any(|outer| is_inside(path, outer)))
        .collect()
}

/// Whether the module `path` lies in the module `outer`, and is not that module.
pub(super) fn is_inside(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer)
        .is_some_and(|rest| rest.starts_with('.'))
}

/// Last words in place of paths, wherever a word means no module that is not among the paths.
fn shortened(
    paths: &BTreeSet<&str>,
    modules: &BTreeSet<String>,
    means: impl Fn(&str, &str) -> bool,
) -> BTreeSet<String> {
    let all_chosen = |word: &str| {
        modules
            .iter()
            .filter(|module| means(module, word))
            .all(|module| paths.contains(module.as_str()))
    };
    paths
        .iter()
        .map(|path| {
            let word = last(path);
            if all_chosen(word) { word } else { path }.to_owned()
        })
        .collect()
}

/// Whether the base is a language model with an output head, by its class.
pub(super) fn generates_text(base: &Model) -> bool {
    matches!(task(base), Some("CAUSAL_LM" | "SEQ_2_SEQ_LM"))
}

/// PEFT's name of what the base is for, by its class.
fn task(base: &Model) -> Option<&'static str> {
    let class = base.config_value("architectures")?.get(0)?.as_str()?;
    [
        ("ForCausalLM", "CAUSAL_LM"),
        ("LMHeadModel", "CAUSAL_LM"),
        ("ForSequenceClassification", "SEQ_CLS"),
        ("ForTokenClassification", "TOKEN_CLS"),
        ("ForQuestionAnswering", "QUESTION_ANS"),
        ("T5ForConditionalGeneration", "SEQ_2_SEQ_LM"),
        ("BartForConditionalGeneration", "SEQ_2_SEQ_LM"),
        ("ForSeq2SeqLM", "SEQ_2_SEQ_LM"),
    ]
    .into_iter()
    .find_map(|(end, task)| class.ends_with(end).then_some(task))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set<'a>(paths: &[&'a str]) -> BTreeSet<&'a str> {
        paths.iter().copied().collect()
    }

    #[test]
    fn words_stand_for_paths_only_where_they_mean_no_other() {
        let modules = ["a.0.q", "a.1.q", "a.0.k", "a.1.k", "a.0.q_norm", "norm"];
        let modules = modules.map(str::to_owned).into();
        let chosen = set(&["a.0.q", "a.1.q", "a.0.k", "norm"]);
        let targets = shortened(&chosen, &modules, |path, word| last(path) == word);
        assert_eq!(
            targets.iter().map(String::as_str).collect::<Vec<_>>(),
            ["a.0.k", "norm", "q"]
        );
        let modules = ["a.0.norm", "a.1.norm", "a.0.q_norm"];
        let modules = modules.map(str::to_owned).into();
        // By its end, `a.0.q_norm` is a norm too.
        let ends = |path: &str, word: &str| path.ends_with(word);
        let saved = shortened(&set(&["a.0.norm", "a.1.norm"]), &modules, ends);
        assert_eq!(saved, ["a.0.norm", "a.1.norm"].map(str::to_owned).into());
        let saved = shortened(&set(&["a.0.q_norm"]), &modules, ends);
        assert_eq!(saved, ["q_norm"].map(str::to_owned).into());
    }

    #[test]
    fn a_module_inside_a_saved_one_is_not_named() {
        assert_eq!(
            outermost(&set(&["a", "a.b", "ab", "c.d"])),
            set(&["a", "ab", "c.d"])
        );
    }
}
