//! What users see when a recipe is wrong.

use insta::assert_snapshot;
use merganser_recipe::{ParseOptions, Recipe};

/// The messages for a recipe that is refused.
fn refused(text: &str) -> String {
    Recipe::parse("recipe.yml", text, ParseOptions::default())
        .expect_err("a recipe that is refused")
        .to_string()
}

/// The warnings for a recipe that is read.
fn warned(text: &str, lenient: bool) -> String {
    let (recipe, warnings) = Recipe::parse("recipe.yml", text, ParseOptions { lenient })
        .unwrap_or_else(|errors| panic!("refused:\n{errors}"));
    let shown: Vec<String> = warnings
        .iter()
        .map(|w| w.render(&recipe.source, false))
        .collect();
    shown.join("\n\n")
}

fn misordered(text: &str) -> String {
    let (recipe, _) =
        Recipe::parse("recipe.yml", text, ParseOptions::default()).expect("readable documents");
    recipe
        .documents_in_order()
        .expect_err("no order")
        .render(&recipe.source, false)
}

const MODELS: &str = "models:\n  - model: org/a\n  - model: org/b\n";

#[test]
fn typo_in_a_key() {
    assert_snapshot!(refused(&format!(
        "merge_mehtod: ties\n{MODELS}base-model: org/base\n"
    )));
}

#[test]
fn unknown_key() {
    assert_snapshot!(refused(&format!(
        "merge_method: ties\n{MODELS}density: 0.5\n"
    )));
}

#[test]
fn unknown_keys_leniently() {
    assert_snapshot!(warned(
        &format!("merge_method: ties\n{MODELS}paramters: {{t: 1}}\nflux: 1\n"),
        true
    ));
}

#[test]
fn models_and_slices() {
    assert_snapshot!(refused(
        "merge_method: linear\nmodels:\n  - model: a\nslices:\n  - sources:\n      - {model: a, layer_range: [0, 4]}\n"
    ));
}

#[test]
fn neither_models_nor_slices() {
    assert_snapshot!(refused("merge_method: linear\nbase_model: org/base\n"));
}

#[test]
fn empty_models() {
    assert_snapshot!(refused("merge_method: linear\nmodels:\n"));
}

#[test]
fn bad_layer_ranges() {
    assert_snapshot!(refused(
        "merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [8, 4]}]
  - sources: [{model: a, layer_range: 0-4}]
  - sources: [{model: a, layer_range: [0, 4, 8]}]
  - sources: [{model: a, layer_range: [0, 3.5]}]
  - sources: [{model: a, layer_range: [-1, 4]}]
  - sources: [{model: a}]
"
    ));
}

#[test]
fn unequal_slices() {
    assert_snapshot!(refused(
        "merge_method: linear
slices:
  - sources:
      - model: org/a
        layer_range: [0, 3]
      - model: org/b
        layer_range: [0, 2]
"
    ));
}

#[test]
fn layer_range_in_models() {
    assert_snapshot!(refused(
        "merge_method: linear\nmodels:\n  - model: org/a\n    layer_range: [0, 4]\n"
    ));
}

#[test]
fn bad_types() {
    assert_snapshot!(refused(&format!(
        "merge_method: linear\n{MODELS}dtype: bf16\nout_dtype: auto\nseed: -1\nchat_template: [a]\n"
    )));
}

#[test]
fn duplicate_key() {
    assert_snapshot!(refused(&format!(
        "merge_method: linear\n{MODELS}dtype: float32\nmerge_method: ties\n"
    )));
}

#[test]
fn circle_of_documents() {
    assert_snapshot!(misordered(
        "name: first
merge_method: linear
models:
  - model: second
---
name: second
merge_method: slerp
base_model: first
models:
  - model: org/a
---
merge_method: linear
models:
  - model: first
"
    ));
}

#[test]
fn same_name_twice() {
    assert_snapshot!(misordered(&format!(
        "name: avg\nmerge_method: linear\n{MODELS}---\nname: avg\nmerge_method: linear\n{MODELS}"
    )));
}

#[test]
fn two_without_a_name() {
    assert_snapshot!(misordered(&format!(
        "merge_method: linear\n{MODELS}---\nmerge_method: linear\n{MODELS}"
    )));
}

#[test]
fn parameter_mistakes() {
    assert_snapshot!(refused(
        "merge_method: ties
models:
  - model: org/a
    parameters:
      weight:
      density: [0.5, yes]
  - model: org/b
    parameters: {weight:0.5}
    density: 0.5
parameters:
  t: {self_attn: 0.5}
  lambda: [{filter: mlp, value: 0.5}, 1.0]
  eps: {value: {value: 1}}
"
    ));
}

#[test]
fn model_mistakes() {
    assert_snapshot!(refused(
        "merge_method: linear
base_model: org/a+x+y
models:
  - org/a
  - model:org/a
  - model: {path: org/a}
  - model: {model: {path: org/a@odd, revison: main}}
  - model: ''
"
    ));
}

#[test]
fn tokenizer_mistakes() {
    assert_snapshot!(refused(&format!(
        "merge_method: linear\n{MODELS}tokenizer: union\n---\nname: b\nmerge_method: linear\n{MODELS}tokenizer: {{source: base, pad_to_multiple_of: 0, tokens: [a]}}\n---\nname: c\nmerge_method: linear\n{MODELS}tokenizer: {{}}\ntokenizer_source: base\n"
    )));
}

#[test]
fn useless_residual_weight() {
    assert_snapshot!(warned(
        "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [0, 4]}]\n    residual_weight: 0.5\n",
        false
    ));
}

#[test]
fn tab_as_indentation() {
    assert_snapshot!(refused("merge_method: linear\nmodels:\n\t- model: org/a\n"));
}

#[test]
fn broken_yaml() {
    assert_snapshot!(refused(
        "merge_method: linear\nmodels: [{model: org/a}\ndtype: float32\n"
    ));
}

#[test]
fn not_a_recipe() {
    assert_snapshot!(refused("just some words\n"));
}

#[test]
fn empty_file() {
    assert_snapshot!(refused("# nothing but a comment\n---\n"));
}

#[test]
fn moe_recipe() {
    assert_snapshot!(refused(
        "base_model: org/a\ngate_mode: hidden\nexperts:\n  - source_model: org/b\n    positive_prompts: [x]\n"
    ));
}

#[test]
fn many_mistakes_are_cut() {
    let keys: Vec<String> = (0..70).map(|i| format!("key_{i:02}: 1\n")).collect();
    let shown = refused(&format!("merge_method: linear\n{MODELS}{}", keys.concat()));
    assert!(
        shown.contains("`key_49`") && !shown.contains("`key_50`"),
        "{shown}"
    );
    assert!(
        shown.contains("error: 20 more messages are not shown"),
        "{shown}"
    );
}

#[test]
fn misplaced_keys() {
    assert_snapshot!(refused(
        "merge_method: linear
sources: [{model: a}]
pad_to_multiple_of: 64
---
merge_method: linear
models:
  - {model: org/a, lora: org/b}
  - model: {path: org/a}
"
    ));
}

#[test]
fn foreign_tags_and_keys() {
    assert_snapshot!(refused(&format!(
        "merge_method: !!python/object:os.system linear\n{MODELS}parameters:\n  ? [a, b]\n  : 1\n  <<: 5\n"
    )));
}
