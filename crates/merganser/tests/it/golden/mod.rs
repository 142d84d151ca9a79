//! Every golden case of mergekit, merged by the program and compared by the rules of `tests/golden/mergekit/README.md`.
//!
//! Each case is a test of its own. A case that is not covered is listed with the reason, and a table that has forgotten
//! a case fails.

mod ambiguous;
mod compare;
mod statistics;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::models::{self, names};
use crate::program::{self, Run};

/// Defines one test a case, and the list of their folders.
macro_rules! covered {
    ($($test:ident $folder:literal)*) => {
        const COVERED: &[&str] = &[$($folder),*];
        $(
            #[test]
            fn $test() {
                Case::load($folder).check();
            }
        )*
    };
}

covered! {
    arcee_fusion_takes_what_matters "arcee_fusion-01"
    arcee_fusion_of_halves_keeps_their_type "arcee_fusion-03-bf16"
    breadcrumbs_drop_small_and_large "breadcrumbs-01"
    breadcrumbs_keep_the_density_when_gamma_does_not_fit "breadcrumbs-03-clamped"
    breadcrumbs_ties_normalize "breadcrumbs_ties-02-normalize"
    dare_linear_at_density_one_is_task_arithmetic "dare_linear-01-density1"
    dare_linear_keeps_the_promised_fraction "dare_linear-02-stats"
    dare_ties_at_density_one_elects_signs "dare_ties-01-density1"
    della_keeps_more_of_what_is_large "della-02-stats"
    della_linear_at_density_one_is_task_arithmetic "della_linear-01-density1"
    different_vocabularies_are_refused "error-01-vocab-mismatch"
    slerp_of_three_is_refused "error-03-slerp-three"
    models_and_slices_together_are_refused "error-04-both-models-and-slices"
    slices_of_unequal_length_are_refused "error-05-slice-lengths"
    an_unknown_method_is_refused "error-07-unknown-method"
    mixed_architectures_are_refused "error-08-arch-mix"
    model_stock_of_one_is_refused "error-09-model-stock-two"
    passthrough_of_two_is_refused "error-11-passthrough-two"
    a_model_listed_twice_is_refused "error-13-multislerp-antipodal"
    misspelt_parameters_are_refused_unless_lenient "error-14-typo-parameter"
    a_recipe_without_models_is_refused "error-15-no-models-key"
    karcher_mean "karcher-01-default"
    karcher_mean_of_halves "karcher-03-bf16"
    linear_with_equal_weights "linear-01-equal"
    linear_with_gradients "linear-03-gradient"
    linear_of_halves_rounds_once "linear-05-bf16"
    linear_promotes_to_the_widest_type "linear-07-promote-32"
    linear_promotes_two_kinds_of_halves_to_single "linear-08-promote-16-16"
    linear_of_bert "linear-09-bert"
    linear_into_shards "linear-11-shards"
    linear_averages_the_base_too "linear-13-base-added"
    linear_of_qwen2 "linear-14-qwen2"
    linear_of_gpt2 "linear-15-gpt2"
    linear_reads_pickles "linear-17-pickle-input"
    an_adapter_is_baked_in "lora-01-passthrough"
    adapters_are_task_vectors "lora-03-task-arithmetic"
    an_adapter_is_applied_in_the_type_asked_for "lora-05-dtype32"
    model_stock "model_stock-01"
    model_stock_of_halves "model_stock-03-bf16"
    several_documents_end_in_the_final_one "multi-01-final"
    multislerp_without_base "multislerp-01-nobase"
    multislerp_with_weights_as_they_are "multislerp-03-unnormalized"
    multislerp_of_one_is_that_one "multislerp-04-one-input"
    nearswap "nearswap-01"
    nuslerp_of_whole_tensors "nuslerp-01-flat"
    nuslerp_of_rows "nuslerp-03-not-flat"
    nuslerp_with_weights_that_cancel "nuslerp-05-zero-sum"
    passthrough_repeats_layers "passthrough-01-frankenmerge"
    passthrough_scales "passthrough-03-one-model"
    passthrough_drops_layers "passthrough-04-drop-layers"
    passthrough_by_modules "passthrough-05-modules"
    passthrough_scales_by_a_gradient "passthrough-07-gradient-scale"
    ram "ram-01"
    ramplus "ramplus_tl-02"
    state_dicts "raw-01-linear"
    state_dicts_with_what_they_share "raw-03-intersection"
    sce "sce-01-default"
    sce_of_halves "sce-03-bf16"
    slerp_half_way "slerp-01-half"
    slerp_beyond_the_ends "slerp-03-extrapolate"
    slerp_in_slices "slerp-05-slices"
    parameters_of_slices_take_precedence "slices-02-precedence"
    a_slice_of_no_layers_gives_the_head "slices-03-zero-length"
    task_arithmetic_with_weights "task_arithmetic-01-weights"
    task_arithmetic_normalized "task_arithmetic-03-normalize"
    task_arithmetic_of_halves "task_arithmetic-05-bf16"
    task_arithmetic_with_weights_that_cancel "task_arithmetic-07-cancel-normalize"
    task_arithmetic_with_the_base_among_the_models "task_arithmetic-08-base-listed"
    ties_at_half_density "ties-01-half"
    ties_with_settings_of_each_model "ties-03-per-model"
    ties_rescaled "ties-05-rescale"
    ties_with_a_negative_weight "ties-07-negative-weight"
    ties_with_int8_masks "ties-09-int8"
    ties_of_bert "ties-10-bert"
    ties_of_halves_in_single_precision "ties-11-bf16-dtype32"
    the_base_gives_the_vocabulary "tokenizer-02-base"
    vocabularies_are_truncated_if_asked_for "tokenizer-07-truncate"
}

/// Cases that another command than `merge` covers, and where they are tested.
const ELSEWHERE: &[(&str, &str)] = &[("extract_lora-01-rank4", "../adapters.rs")];

/// Cases that are not covered, and why.
const DEFERRED: &[(&str, &str)] = &[
    ("tokenizer-01-union", "no union of vocabularies yet"),
    (
        "tokenizer-03-path",
        "no vocabulary of another model than the base yet",
    ),
    ("tokenizer-05-pad", "no union of vocabularies yet"),
    ("tokenizer-09-union-nobase", "no union of vocabularies yet"),
    ("moe-01-cheap", "no mixtures of experts yet"),
    ("tokensurgeon-01-omp", "another tool of mergekit's"),
    ("tokensurgeon-03-mean-prefix", "another tool of mergekit's"),
];

/// Where `config.json` deliberately says something else than mergekit's: case, key, mergekit's value, ours.
/// The type is that of the stored tensors, and the vocabulary is as large as the embeddings.
const CONFIG_DIFFERENCES: &[(&str, &str, &str, &str)] = &[
    (
        "linear-08-promote-16-16",
        "dtype",
        "\"bfloat16\"",
        "\"float32\"",
    ),
    ("lora-05-dtype32", "dtype", "\"bfloat16\"", "\"float32\""),
    ("tokenizer-07-truncate", "vocab_size", "96", "92"),
];

#[test]
fn no_case_is_forgotten() {
    let listed: Vec<&str> = COVERED
        .iter()
        .copied()
        .chain(ELSEWHERE.iter().chain(DEFERRED).map(|(name, _)| *name))
        .collect();
    let unique: BTreeSet<String> = listed.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(unique.len(), listed.len(), "a case is listed twice");
    let found: BTreeSet<String> = names(&models::golden().join("open")).into_iter().collect();
    assert_eq!(unique, found);
}

/// A case and its folder.
struct Case {
    name: &'static str,
    folder: PathBuf,
    info: Value,
}

impl Case {
    fn load(name: &'static str) -> Self {
        let folder = models::golden().join("open").join(name);
        let text = fs::read_to_string(folder.join("case.json")).expect("case.json");
        Self {
            name,
            info: serde_json::from_str(&text).expect("case.json"),
            folder,
        }
    }

    /// The models the recipe names, in its order.
    fn inputs(&self) -> Vec<PathBuf> {
        let names = self.after("./inputs/");
        names.iter().map(|name| models::input(name)).collect()
    }

    /// The numbers that follow `key: ` in the recipe, in its order.
    fn numbers(&self, key: &str) -> Vec<f64> {
        let words = self.after(&format!("{key}: "));
        words.iter().filter_map(|word| word.parse().ok()).collect()
    }

    /// The words that follow `text` in the recipe, which is simple enough not to need a parser.
    fn after(&self, text: &str) -> Vec<String> {
        let recipe = fs::read_to_string(self.folder.join("config.yml")).expect("config.yml");
        let rests = recipe.split(text).skip(1);
        rests
            .filter_map(|rest| rest.split([' ', ',', '}', '\n']).next())
            .map(str::to_owned)
            .collect()
    }

    fn merge(&self, temporary: &std::path::Path, more: &[&str]) -> Run {
        let given = self.info["args"].as_array().expect("arguments");
        let scratch = temporary.to_string_lossy();
        let given = given
            .iter()
            .map(|arg| arg.as_str().expect("text").replace("{TMP}", &scratch));
        let recipe = self.folder.join("config.yml");
        let mut args = vec![
            "merge".to_owned(),
            recipe.to_string_lossy().into_owned(),
            temporary.join("out").to_string_lossy().into_owned(),
        ];
        args.extend(given);
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        program::run(&models::golden(), args)
    }

    fn check(&self) {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let out = temporary.path().join("out");
        let rule = self.info["tolerance"]["rule"].as_str().expect("a rule");
        if rule == "refuse" || rule == "see note" {
            let run = self.merge(temporary.path(), &[]).refused();
            assert!(run.stderr.starts_with("error: "), "{}", run.stderr);
            assert!(!out.exists(), "a refused recipe left something behind");
            if rule == "refuse" {
                return;
            }
            // mergekit ignores what it does not know; so do we, but only if told to, and not in silence.
            assert!(run.stderr.contains("'densty'") && run.stderr.contains("'normalise'"));
            let run = self.merge(temporary.path(), &["--lenient"]).done();
            assert!(run.stderr.contains("'densty'") && run.stderr.contains("'normalise'"));
        } else {
            self.merge(temporary.path(), &[]).done();
        }
        let merged = models::read(&out);
        if rule == "stats" {
            statistics::check(self, &merged);
        } else {
            let expected = models::read(&self.folder.join("expected"));
            compare::check(self, rule, &merged, &expected);
        }
        self.check_config(&out);
        if let Some(limit) = self.shard_size() {
            for name in names(&out) {
                let size = fs::metadata(out.join(&name)).expect("a file").len();
                let header = 16 << 10;
                assert!(
                    !models::has_extension(&name, "safetensors") || size <= limit + header,
                    "'{name}' has {size} bytes"
                );
            }
            assert!(out.join("model.safetensors.index.json").exists());
        }
    }

    fn shard_size(&self) -> Option<u64> {
        let args = self.info["args"].as_array()?;
        let at = args.iter().position(|arg| arg == "--out-shard-size")?;
        args.get(at + 1)?.as_str()?.parse().ok()
    }

    fn check_config(&self, out: &std::path::Path) {
        let read = |path: PathBuf| -> Option<Value> {
            let text = fs::read_to_string(path).ok()?;
            Some(serde_json::from_str(&text).expect("config.json is JSON"))
        };
        let expected = read(self.folder.join("expected/config.json"));
        let merged = read(out.join("config.json"));
        let (Some(expected), Some(merged)) = (&expected, &merged) else {
            assert_eq!(expected, merged, "config.json");
            return;
        };
        for key in [
            "architectures",
            "model_type",
            "num_hidden_layers",
            "n_layer",
            "vocab_size",
            "dtype",
            "tie_word_embeddings",
        ] {
            let known = CONFIG_DIFFERENCES
                .iter()
                .find(|(case, differs, ..)| *case == self.name && *differs == key);
            if let Some((_, _, theirs, ours)) = known {
                assert_eq!(&expected[key].to_string(), theirs, "{key} of mergekit");
                assert_eq!(&merged[key].to_string(), ours, "{key}");
            } else {
                assert_eq!(merged[key], expected[key], "{key} of config.json");
            }
        }
    }
}
