//! What a recipe must be before outputs are made of it: carried out in full, of one architecture, with the right number of
//! models.

use merganser_methods::{BasePolicy, Method};
use merganser_recipe::{Diagnostic, Document, ModelRef, Span, TokenizerSource};

use crate::layout::Layout;
use crate::model::Model;
use crate::outputs::base_of;
use crate::task_vector::is_task_vector;

/// Parts of mergekit's format that are read but not carried out.
pub(crate) fn unsupported(document: &Document) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    if let Some(tokenizer) = &document.tokenizer {
        let later = |span: Span, what: &str| {
            Diagnostic::error(format!("{what} is not supported yet"))
                .label(span, "cannot be carried out by this version")
                .help(
                    "nothing was read or written; `source: base` keeps the base model's tokenizer",
                )
        };
        match &tokenizer.source.value {
            TokenizerSource::Base => {}
            TokenizerSource::Union => {
                found.push(later(tokenizer.source.span, "a union of tokenizers"));
            }
            TokenizerSource::Model(model) => {
                if document.base_model.as_ref() != Some(model) {
                    found.push(later(
                        tokenizer.source.span,
                        "the tokenizer of a model other than the base",
                    ));
                }
            }
        }
        if let Some(tokens) = &tokenizer.tokens {
            found.push(later(*tokens, "`tokens`"));
        }
        if let Some(pad) = &tokenizer.pad_to_multiple_of {
            found.push(later(pad.span, "`pad_to_multiple_of`"));
        }
    }
    if let Some(template) = &document.chat_template {
        found.push(
            Diagnostic::error("`chat_template` is not supported yet")
                .label(template.span, "cannot be carried out by this version")
                .help("leave it out: the base model's template is copied"),
        );
    }
    found
}

/// Refuses task vectors among the models.
pub(crate) fn no_task_vectors(
    document: &Document,
    models: &[Model],
    index: &dyn Fn(&ModelRef) -> usize,
) -> Vec<Diagnostic> {
    document
        .model_refs()
        .filter(|reference| is_task_vector(&models[index(reference)]))
        .map(|reference| {
            Diagnostic::error(format!("{reference} is a task vector, not a model"))
                .label(reference.span, "named as a model here")
                .help("`merganser apply` adds it to its base; a recipe takes the result")
        })
        .collect()
}

/// Refuses models of several architectures.
pub(crate) fn same_architecture(
    document: &Document,
    models: &[Model],
    index: &dyn Fn(&ModelRef) -> usize,
) -> Result<(), Vec<Diagnostic>> {
    let references: Vec<&ModelRef> = document.model_refs().collect();
    let known = |reference: &&ModelRef| models[index(reference)].model_type().is_some();
    let Some(first) = references.iter().copied().find(|r| known(r)) else {
        return Ok(());
    };
    let wanted = models[index(first)].model_type().unwrap_or_default();
    let Some(other) = references
        .iter()
        .copied()
        .filter(|r| known(r))
        .find(|r| models[index(r)].model_type() != Some(wanted))
    else {
        return Ok(());
    };
    let kind = models[index(other)].model_type().unwrap_or_default();
    Err(vec![
        Diagnostic::error("the models have different architectures")
            .label(first.span, format!("a {wanted} model"))
            .label(other.span, format!("a {kind} model"))
            .help("--allow-crimes merges the tensors that fit anyway"),
    ])
}

/// Number and choice of inputs, slice by slice.
pub(crate) fn slices(
    document: &Document,
    method: &dyn Method,
    models: &[Model],
    layout: &Layout<'_>,
) -> Vec<Diagnostic> {
    let info = method.info();
    let mut errors = Vec::new();
    for scope in &layout.slices {
        for (i, source) in scope.sources.iter().enumerate() {
            if let Some(twin) = scope.sources[..i]
                .iter()
                .find(|other| other.model == source.model)
            {
                errors.push(
                    Diagnostic::error("the same model is merged with itself")
                        .label(twin.span, "here")
                        .label(source.span, "and here again")
                        .help("name it once, with the sum of the weights"),
                );
            }
        }
        let base = base_of(method, scope);
        if info.base == BasePolicy::Required && base.is_none() {
            let diagnostic = Diagnostic::error(format!("{} needs a base model", info.name));
            errors.push(match scope.base_model {
                None => diagnostic
                    .label(document.merge_method.span, "no `base_model` is given")
                    .help("add `base_model: <the model the others were fine-tuned from>`"),
                Some(model) => diagnostic
                    .label(scope.span, format!("this slice has no layers of the base {}", models[model].label))
                    .help("list the base model among the `sources` of the slice, with its layer_range"),
            });
            continue;
        }
        let others = scope.sources.len() - usize::from(base.is_some());
        let arity = info.inputs;
        if others < arity.min || arity.max.is_some_and(|max| others > max) {
            let wanted = match arity.max {
                Some(max) if max == arity.min => format!("exactly {max}"),
                Some(max) => format!("{} to {max}", arity.min),
                None => format!("at least {}", arity.min),
            };
            let besides = if base.is_some() {
                " besides the base"
            } else {
                ""
            };
            let mut diagnostic = Diagnostic::error(format!(
                "{} merges {wanted} model{}{besides}, but {others} {} given",
                info.name,
                if arity.max == Some(1) { "" } else { "s" },
                if others == 1 { "is" } else { "are" },
            ))
            .label(scope.span, format!("{others} here"));
            if base.is_none() && scope.base_model.is_some() {
                diagnostic =
                    diagnostic.help("the base model counts as one of the inputs of this method");
            }
            errors.push(diagnostic);
        }
    }
    errors
}
