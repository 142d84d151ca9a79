//! YAML as people write it: anchors, merge keys, quoting, several documents, hostile input.

use std::fmt::Write as _;

use merganser_recipe::{Body, Document, ParseOptions, Recipe, Span, Value};
use proptest::prelude::*;

fn read(text: &str) -> Recipe {
    Recipe::parse("recipe.yml", text, ParseOptions::default())
        .unwrap_or_else(|errors| panic!("refused:\n{errors}"))
        .0
}

fn refused(text: &str) -> String {
    Recipe::parse("recipe.yml", text, ParseOptions::default())
        .expect_err("refused")
        .to_string()
}

fn parameter(document: &Document, name: &str) -> Value {
    let setting = document
        .parameters
        .get(name)
        .unwrap_or_else(|| panic!("no {name}"));
    setting
        .value
        .resolve("x", 0.0)
        .unwrap_or_else(|| panic!("no value for {name}"))
}

#[test]
fn anchors_aliases_and_merge_keys() {
    let recipe = read(
        "
merge_method: ties
base_model: &base org/base
models:
  - &first
    model: org/a
    parameters: &shared {weight: 0.5, density: 0.3}
  - <<: *first
    model: org/b
  - model: org/c
    parameters:
      <<: [{density: 0.9}, *shared]
      weight: 1.0
tokenizer: {source: *base}
",
    );
    let document = &recipe.documents[0];
    let Body::Models(models) = &document.body else {
        panic!("models expected")
    };
    let number = |i: usize, name: &str| {
        models[i]
            .parameters
            .get(name)
            .and_then(|s| s.value.resolve("", 0.0))
            .and_then(|v| v.as_f64())
    };
    assert_eq!(models[1].model.path, "org/b");
    assert_eq!(
        (number(1, "weight"), number(1, "density")),
        (Some(0.5), Some(0.3))
    );
    assert_eq!(
        (number(2, "weight"), number(2, "density")),
        (Some(1.0), Some(0.9))
    );
    assert_eq!(
        document
            .model_refs()
            .last()
            .map(|model| model.path.as_str()),
        Some("org/base")
    );
}

#[test]
fn words_and_quotes() {
    let recipe = read(
        "
merge_method: linear
models: [{model: 2024}, {model: 'a#b'}]
parameters:
  yes_word: yes
  quoted: 'yes'
  tagged: !!str 1.5
  forced: !!float '2'
  exponent: 1e-5
  grouped: 1_000
  hex: 0x10
  infinite: -.inf
",
    );
    let document = &recipe.documents[0];
    for (name, value) in [
        ("yes_word", Value::Bool(true)),
        ("quoted", Value::Text("yes".into())),
        ("tagged", Value::Text("1.5".into())),
        ("forced", Value::Int(2)),
        ("exponent", Value::Float(1e-5)),
        ("grouped", Value::Int(1000)),
        ("hex", Value::Int(16)),
        ("infinite", Value::Float(f64::NEG_INFINITY)),
    ] {
        assert_eq!(parameter(document, name), value, "{name}");
    }
    let models: Vec<&str> = document
        .model_refs()
        .map(|model| model.path.as_str())
        .collect();
    assert_eq!(models, ["2024", "a#b"]);
}

#[test]
fn keys_without_value_are_absent() {
    let recipe = read(
        "
name:
merge_method: linear
base_model: ~
models:
  - {model: a, parameters: }
slices:
parameters: null
dtype: null
tokenizer:
",
    );
    let document = &recipe.documents[0];
    assert!(document.name.is_none() && document.base_model.is_none());
    assert!(document.parameters.is_empty() && document.dtype.is_none());
    assert!(document.tokenizer.is_none());
}

#[test]
fn models_as_mappings() {
    let recipe = read(
        "
merge_method: linear
base_model: {model: org/base@v1}
models:
  - model:
      model: {path: 'dir+x@y', revision: main}
      lora: {path: org/lora}
      override_architecture: LlamaForCausalLM
",
    );
    let models: Vec<_> = recipe.documents[0].model_refs().collect();
    assert_eq!(models[0].to_string(), "org/base@v1");
    assert_eq!(models[1].path, "dir+x@y");
    assert_eq!(models[1].to_string(), "dir+x@y@main+org/lora");
    assert_eq!(
        models[1].override_architecture.as_deref(),
        Some("LlamaForCausalLM")
    );
}

#[test]
fn empty_documents_are_left_out() {
    let recipe = read("---\nmerge_method: linear\nmodels: [{model: a}]\n---\n# end\n---\n");
    assert_eq!(recipe.documents.len(), 1);
}

#[test]
fn spans_are_the_words_even_behind_multibyte_text() {
    let text = "\u{feff}# Größe 🦆\r\nmerge_method: \"ties\"\r\nmodels:\r\n  - model: café/模型  # 🦆\r\nseed: 7\r\n";
    let recipe = read(text);
    let document = &recipe.documents[0];
    let words = |span: Span| recipe.source.slice(span);
    assert_eq!(words(document.merge_method.span), "\"ties\"");
    let Body::Models(models) = &document.body else {
        panic!("models expected")
    };
    assert_eq!(words(models[0].model.span), "café/模型");
    assert_eq!(words(models[0].span), "model: café/模型");
    assert_eq!(document.seed.map(|seed| words(seed.span)), Some("7"));
}

#[test]
fn large_seeds_fit() {
    let recipe = read("merge_method: a\nmodels: [{model: a}]\nseed: 18446744073709551615\n");
    assert_eq!(
        recipe.documents[0].seed.map(|seed| seed.value),
        Some(u64::MAX)
    );
}

#[test]
fn alias_bombs_are_refused() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let list = vec![format!("*a{}", i - 1); 10].join(", ");
        let _ = writeln!(bomb, "a{i}: &a{i} [{list}]");
    }
    assert!(refused(&bomb).contains("too large, counting what its aliases"));
}

#[test]
fn deep_nesting_is_refused() {
    let error = refused(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)));
    assert!(error.contains("not valid YAML"), "{error}");
    let mut chain = String::from("a0: &a0 [x]\n");
    for i in 1..5000 {
        let _ = writeln!(chain, "a{i}: &a{i} [*a{}]", i - 1);
    }
    assert!(refused(&chain).contains("nested too deeply"));
}

#[test]
fn an_alias_to_itself_is_refused() {
    assert!(refused("a: &a [*a]\n").contains("part of"));
    assert!(refused("a: *nothing\n").contains("not valid YAML"));
}

#[test]
fn a_models_file_is_refused() {
    assert!(refused(&"x".repeat(5 << 20)).contains("bytes long"));
    assert!(!refused("\0\u{1}\u{2}binary\0").contains('\0'));
}

#[test]
fn a_mistake_behind_an_alias_is_told_once() {
    let errors = Recipe::parse(
        "r",
        "merge_method: a\nmodels:\n  - model: a\n    parameters: &p {weight: [1, yes]}\n  - {model: b, parameters: *p}\n",
        ParseOptions::default(),
    )
    .expect_err("a mixed gradient");
    assert_eq!(errors.list.len(), 1, "{errors}");
}

/// Texts that are nearly recipes, so that more than the YAML layer is exercised.
fn nearly_recipe() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "merge_method",
        "models",
        "slices",
        "modules",
        "sources",
        "model",
        "layer_range",
        "parameters",
        "weight",
        "value",
        "filter",
        "tokenizer",
        "source",
        "tokens",
        "lora",
        "path",
        "dtype",
        "seed",
        ": ",
        ":",
        "\n",
        "\n  ",
        "\n    ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "&a ",
        "*a",
        "<<: ",
        "---\n",
        "0",
        "4",
        "1.5",
        "-1",
        "yes",
        "null",
        "'",
        "\"",
        "\t",
        "#",
        "!!str ",
        "é🦆",
        "|\n",
        "? ",
        "a+b@c",
        "experts",
    ]);
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

fn check(text: &str) -> Result<(), TestCaseError> {
    for lenient in [false, true] {
        match Recipe::parse("r", text, ParseOptions { lenient }) {
            Ok((recipe, _)) => {
                prop_assert!(!recipe.documents.is_empty());
                let _ = recipe.documents_in_order();
            }
            Err(errors) => {
                prop_assert!(!errors.list.is_empty());
                prop_assert!(errors.to_string().contains("error: "));
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_text_is_read_or_refused(text in "(?s).{0,200}") {
        check(&text)?;
    }

    #[test]
    fn any_near_recipe_is_read_or_refused(text in nearly_recipe()) {
        check(&text)?;
    }

    #[test]
    fn a_cut_recipe_is_read_or_refused(cut in 0usize..400) {
        let text = include_str!("golden/slices-02-precedence.yml");
        check(text.get(..cut).unwrap_or(text))?;
    }
}
