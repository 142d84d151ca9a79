//! Every recipe of the golden cases is read, or refused for the right reason.

use std::fs;
use std::path::Path;

use merganser_recipe::{Body, FloatType, ParseOptions, Recipe, TokenizerSource, Value};

/// Recipes that must be refused, and what the message says.
const REFUSED: [(&str, &str); 4] = [
    (
        "error-04-both-models-and-slices",
        "exactly one of `models`, `slices`, `modules`",
    ),
    (
        "error-05-slice-lengths",
        "differ in length: 3 layers and 2 layers",
    ),
    ("error-15-no-models-key", "unknown key `modles`"),
    ("moe-01-cheap", "MoE recipes are not supported yet"),
];

fn text(case: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{case}.yml"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn read(case: &str) -> Recipe {
    let (recipe, warnings) = Recipe::parse(case, &text(case), ParseOptions::default())
        .unwrap_or_else(|errors| panic!("{case} is refused:\n{errors}"));
    assert!(warnings.is_empty(), "{case}: {warnings:?}");
    recipe
}

#[test]
fn all_are_read_but_the_broken_ones() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases: Vec<String> = fs::read_dir(folder)
        .expect("the folder of golden recipes")
        .map(|entry| entry.expect("a readable entry").path())
        .map(|path| {
            path.file_stem()
                .expect("a file name")
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    cases.sort();
    assert_eq!(cases.len(), 82);
    for case in &cases {
        match REFUSED.iter().find(|(refused, _)| refused == case) {
            None => {
                let recipe = read(case);
                assert!(recipe.documents_in_order().is_ok(), "{case}");
            }
            Some((_, reason)) => {
                let errors = Recipe::parse(case, &text(case), ParseOptions::default())
                    .expect_err("a broken recipe");
                assert_eq!(errors.list.len(), 1, "{errors}");
                assert!(errors.list[0].message.contains(reason), "{errors}");
            }
        }
    }
}

#[test]
fn scopes_and_filters_are_kept_apart() {
    let recipe = read("slices-02-precedence");
    let document = &recipe.documents[0];
    let Body::Slices(slices) = &document.body else {
        panic!("slices expected")
    };
    let q = "model.layers.0.self_attn.q_proj.weight";
    let k = "model.layers.0.self_attn.k_proj.weight";
    let weight = |parameters: &merganser_recipe::Parameters, tensor| {
        parameters
            .get("weight")
            .and_then(|setting| setting.value.resolve(tensor, 0.0))
    };
    let source = &slices[0].sources[0].parameters;
    assert_eq!(
        (weight(source, q), weight(source, k)),
        (Some(Value::Float(5.0)), None)
    );
    let slice = &slices[0].parameters;
    assert_eq!(
        (weight(slice, q), weight(slice, k)),
        (None, Some(Value::Float(3.0)))
    );
    assert!(slices[0].sources[1].parameters.is_empty());
    assert_eq!(weight(&document.parameters, k), Some(Value::Float(1.0)));
}

#[test]
fn gradients_are_read_in_order() {
    let recipe = read("linear-03-gradient");
    let Body::Models(models) = &recipe.documents[0].body else {
        panic!("models expected")
    };
    let weight = models[1].parameters.get("weight").expect("a weight");
    assert!(weight.value.is_gradient());
    let values: Vec<(&str, Option<f64>)> = weight
        .value
        .values()
        .map(|value| (recipe.source.slice(value.span), value.value.as_f64()))
        .collect();
    assert_eq!(
        values,
        [("1.0", Some(1.0)), ("0.4", Some(0.4)), ("0.2", Some(0.2))]
    );
    let middle = weight
        .value
        .resolve("x", 0.25)
        .and_then(|value| value.as_f64());
    assert_eq!(middle, Some(0.5 * 1.0 + 0.5 * 0.4));
    assert_eq!(recipe.source.slice(weight.span), "[1.0, 0.4, 0.2]");
}

#[test]
fn layer_ranges_may_be_empty() {
    let recipe = read("slices-03-zero-length");
    let Body::Slices(slices) = &recipe.documents[0].body else {
        panic!("slices expected")
    };
    assert_eq!(
        slices[1].sources[0].layer_range.map(|range| range.value),
        Some([4, 4])
    );
}

#[test]
fn modules_hold_slices() {
    let recipe = read("passthrough-05-modules");
    let Body::Modules(modules) = &recipe.documents[0].body else {
        panic!("modules expected")
    };
    assert_eq!(modules[0].0.value, "default");
    let Body::Slices(slices) = &modules[0].1.body else {
        panic!("slices expected")
    };
    assert_eq!(slices.len(), 2);
}

#[test]
fn documents_build_on_each_other() {
    let recipe = read("multi-01-final");
    assert_eq!(recipe.documents_in_order(), Ok(vec![0, 1, 2]));
    assert_eq!(recipe.final_documents(), Ok(vec![2]));
    let base = recipe.documents[1]
        .base_model
        .as_ref()
        .expect("a base model");
    assert_eq!(recipe.document_for(base), Some(0));
}

#[test]
fn types_tokenizers_and_adapters_are_read() {
    let document = read("ties-11-bf16-dtype32").documents.remove(0);
    assert_eq!(
        document.dtype.map(|dtype| dtype.value),
        Some(FloatType::Float32)
    );
    assert_eq!(
        document.out_dtype.map(|dtype| dtype.value),
        Some(FloatType::BFloat16)
    );

    let tokenizer = read("tokenizer-05-pad")
        .documents
        .remove(0)
        .tokenizer
        .expect("a tokenizer");
    assert_eq!(tokenizer.source.value, TokenizerSource::Union);
    assert_eq!(
        tokenizer.pad_to_multiple_of.map(|rows| rows.value),
        Some(32)
    );
    assert_eq!(tokenizer.tokens, None);

    let document = read("lora-01-passthrough").documents.remove(0);
    let model = document.model_refs().next().expect("a model");
    assert_eq!(model.path, "./inputs/llama-base");
    assert_eq!(
        model.lora.as_ref().map(|lora| lora.path.as_str()),
        Some("./inputs/lora-a")
    );
}
