//! The recipe as data: documents, slices, sources, tokenizer.

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::dtype::FloatType;
use crate::injected::InjectedPair;
use crate::model_ref::ModelRef;
use crate::setting::Parameters;
use crate::span::{SourceText, Span, Spanned};

/// How strict reading is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParseOptions {
    /// Unknown keys are warnings instead of errors.
    pub lenient: bool,
}

/// A whole recipe: one merge, or several that build on each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// The text all spans point into.
    pub source: SourceText,
    /// The merges in order of writing, at least one; empty YAML documents are left out.
    pub documents: Vec<Document>,
}

/// One merge.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// What other documents of the recipe call the result.
    pub name: Option<Spanned<String>>,
    /// The method's name as written; which names exist is not known here.
    pub merge_method: Spanned<String>,
    /// The model that task vectors are measured from.
    pub base_model: Option<ModelRef>,
    /// What is merged.
    pub body: Body,
    /// Parameters for all slices and sources.
    pub parameters: Parameters,
    /// Type to convert inputs to before merging.
    pub dtype: Option<Spanned<FloatType>>,
    /// Type of the written tensors.
    pub out_dtype: Option<Spanned<FloatType>>,
    /// Which tokenizer the result gets.
    pub tokenizer: Option<TokenizerSpec>,
    /// `auto`, the name of a template or a Jinja text.
    pub chat_template: Option<Spanned<String>>,
    /// Seed of random methods; a key mergekit does not have.
    pub seed: Option<Spanned<u64>>,
    /// The data-free merge that a calibrated method starts from; a key mergekit does not have.
    pub prior: Option<Prior>,
    /// What all models' calibration data have in common; a key mergekit does not have.
    pub calibration: Option<Calibration>,
    /// Whether a model or an adapter is written; a key mergekit does not have.
    pub output: Option<Spanned<OutputKind>>,
    /// What is subtracted from the merge; a key mergekit does not have.
    pub defence: Option<Defence>,
    /// The whole document.
    pub span: Span,
}

/// What a merge of adapters is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// A whole model: the base with the merged adapter applied.
    Model,
    /// An adapter.
    Adapter,
}

/// Injected backdoor vectors, backdoored − clean, whose mean is subtracted from what was merged (injection-BV subtraction,
/// "Backdoor Vectors", arXiv 2510.08016).
#[derive(Clone, Debug, PartialEq)]
pub struct Defence {
    /// Pairs of fine-tunes of the merge's base; not empty.
    pub ibvs: Vec<InjectedPair>,
    /// λ, how much of the mean is subtracted, if a number was written.
    pub lambda: Option<Spanned<f64>>,
    /// λ is what there is of the mean in the merge: `lambda: auto` or `project: true`. Then `lambda` is absent.
    pub projected: bool,
    /// The whole entry.
    pub span: Span,
}

/// What a document or module merges.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Whole models; not empty, no source has a layer range.
    Models(Vec<Source>),
    /// Stacked ranges of layers; not empty.
    Slices(Vec<Slice>),
    /// Parts of a composite model by name; not empty, names are unique.
    Modules(Vec<(Spanned<String>, Module)>),
}

/// What one named part of a composite model is merged from.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// Models or slices, never modules.
    pub body: Body,
    /// Parameters for this module, before those of the document.
    pub parameters: Parameters,
    /// The whole module.
    pub span: Span,
}

/// A stretch of output layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// The merged layers of each model; not empty, every one with a layer range of the same length.
    pub sources: Vec<Source>,
    /// Base model of this slice instead of the document's.
    pub base_model: Option<ModelRef>,
    /// Parameters for this slice, before those of the module.
    pub parameters: Parameters,
    /// The whole slice.
    pub span: Span,
}

/// One input of a merge.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The model.
    pub model: ModelRef,
    /// Layers `[a, b)` of the model, a ≤ b; present exactly in slices. May exceed the model's layers.
    pub layer_range: Option<Spanned<[u64; 2]>>,
    /// Parameters of this input, before those of the slice.
    pub parameters: Parameters,
    /// Samples of the task this model was fine-tuned for; a key mergekit does not have.
    pub calibration: Option<Calibration>,
    /// The whole entry.
    pub span: Span,
}

/// The data-free merge that a calibrated method starts from, and falls back to where its data say nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Prior {
    /// The method's name as written.
    pub merge_method: Spanned<String>,
    /// Parameters for the whole merge, before those of the document.
    pub parameters: Parameters,
    /// The whole entry.
    pub span: Span,
}

/// Unlabelled samples of one task, or moments that were taken from them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calibration {
    /// A file of samples, a folder of images or a file of moments.
    pub data: Option<Spanned<String>>,
    /// The column of text in a table.
    pub column: Option<Spanned<String>>,
    /// What the names of ready tensors begin with in a file of several splits.
    pub prefix: Option<Spanned<String>>,
    /// At most so many samples.
    pub samples: Option<Spanned<u64>>,
    /// Longer texts are cut to so many tokens.
    pub max_length: Option<Spanned<u64>>,
    /// Which samples are chosen where there are more.
    pub seed: Option<Spanned<u64>>,
    /// The whole entry.
    pub span: Span,
}

/// Which tokenizer the result gets, from `tokenizer` or the older `tokenizer_source`.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizerSpec {
    /// Where its vocabulary comes from; the union if not said.
    pub source: Spanned<TokenizerSource>,
    /// Where special rules for single tokens stand, if there are any; their content is not read.
    pub tokens: Option<Span>,
    /// Pad the vocabulary to a multiple of this many rows, at least 1.
    pub pad_to_multiple_of: Option<Spanned<u64>>,
    /// The whole entry.
    pub span: Span,
}

/// Where the vocabulary of the result comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerSource {
    /// The base model's tokenizer.
    Base,
    /// All tokens of all models.
    Union,
    /// The tokenizer of one model.
    Model(ModelRef),
}

impl Recipe {
    /// Reads a recipe from the text of a YAML file; `file_name` is only shown in messages.
    ///
    /// On success the warnings come with the recipe, in order of the text.
    ///
    /// # Errors
    /// As many mistakes as can be found at once, in order of the text: broken YAML, unknown, duplicate
    /// or missing keys, values of a wrong type, contradictions between keys.
    pub fn parse(
        file_name: &str,
        text: &str,
        options: ParseOptions,
    ) -> Result<(Self, Vec<Diagnostic>), Diagnostics> {
        crate::read::recipe(SourceText::new(file_name, text), options)
    }
}

impl Document {
    /// Every mention of a model that is merged: base model, sources, base models of slices, the tokenizer's model. Those
    /// of a defence are [`Defence::model_refs`].
    ///
    /// In order of use; a model mentioned twice comes twice, each time with its own span.
    pub fn model_refs(&self) -> impl Iterator<Item = &ModelRef> {
        let tokenizer =
            self.tokenizer
                .as_ref()
                .and_then(|tokenizer| match &tokenizer.source.value {
                    TokenizerSource::Model(model) => Some(model),
                    TokenizerSource::Base | TokenizerSource::Union => None,
                });
        self.base_model
            .iter()
            .chain(self.body.model_refs())
            .chain(tokenizer)
    }
}

impl Defence {
    /// Every mention of a model, pair by pair, the backdoored one first.
    pub fn model_refs(&self) -> impl Iterator<Item = &ModelRef> {
        self.ibvs.iter().flat_map(InjectedPair::models)
    }
}

impl Body {
    /// Every mention of a model in sources and as base model of a slice, in order of writing.
    pub fn model_refs(&self) -> Box<dyn Iterator<Item = &ModelRef> + '_> {
        match self {
            Self::Models(sources) => Box::new(sources.iter().map(|source| &source.model)),
            Self::Slices(slices) => Box::new(slices.iter().flat_map(|slice| {
                slice
                    .base_model
                    .iter()
                    .chain(slice.sources.iter().map(|source| &source.model))
            })),
            Self::Modules(modules) => Box::new(
                modules
                    .iter()
                    .flat_map(|(_, module)| module.body.model_refs()),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mention_of_a_model_is_found() {
        let text = "merge_method: m\nbase_model: a\ntokenizer: {source: t}\nmodules:\n  x:\n    slices:\n      - base_model: b\n        sources: [{model: c, layer_range: [0, 1]}]\n  y:\n    models: [{model: d}, {model: c}]\n";
        let (recipe, _) = Recipe::parse("r", text, ParseOptions::default()).expect("valid");
        let found: Vec<(String, &str)> = recipe.documents[0]
            .model_refs()
            .map(|model| (model.to_string(), recipe.source.slice(model.span)))
            .collect();
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c", "d", "c", "t"]);
        assert!(found.iter().all(|(name, words)| name == words), "{found:?}");
    }
}
