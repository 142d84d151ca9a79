//! The keys each part of a recipe may have. The JSON schema is tested against these lists.

pub(crate) const DOCUMENT: &[&str] = &[
    "name",
    "merge_method",
    "base_model",
    "models",
    "slices",
    "modules",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer",
    "tokenizer_source",
    "chat_template",
    "seed",
    "prior",
    "calibration",
    "output",
    "defend",
];
pub(crate) const MODULE: &[&str] = &["models", "slices", "parameters"];
pub(crate) const SLICE: &[&str] = &["sources", "base_model", "parameters", "residual_weight"];
pub(crate) const INPUT: &[&str] = &["model", "parameters", "calibration"];
pub(crate) const SOURCE: &[&str] = &["model", "layer_range", "parameters"];
pub(crate) const CASE: &[&str] = &["value", "filter"];
pub(crate) const MODEL: &[&str] = &["model", "lora", "override_architecture"];
pub(crate) const PATH: &[&str] = &["path", "revision"];
pub(crate) const TOKENIZER: &[&str] = &["source", "tokens", "pad_to_multiple_of"];
pub(crate) const PRIOR: &[&str] = &["merge_method", "parameters"];
pub(crate) const DEFENCE: &[&str] = &["ibvs", "lambda", "project"];
pub(crate) const PAIR: &[&str] = &["backdoored", "clean"];
pub(crate) const CALIBRATION: &[&str] =
    &["data", "column", "prefix", "samples", "max_length", "seed"];
