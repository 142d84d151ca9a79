//! A merge of adapters that is written as an adapter: what its recipe says, module by module.
//!
//! There is no plan of outputs as for a model: what is read are the factors, and the base model is not looked at.

use std::collections::BTreeMap;

use merganser_methods::{MethodInfo, Settings, is_adapter_method};
use merganser_recipe::{Body, Diagnostic, Document, FloatType, Severity, Source};

use crate::Options;
use crate::layout::{SliceScope, SourceScope, gradient_position};
use crate::resolve::{Chosen, Scopes, check};
use crate::roles::Role;

/// The recipe of such a merge.
pub struct AdapterRecipe<'r> {
    document: &'r Document,
    sources: Vec<&'r Source>,
    scope: SliceScope<'r>,
    chosen: Chosen,
    info: &'static MethodInfo,
    /// Warnings about the recipe.
    pub warnings: Vec<Diagnostic>,
}

impl<'r> AdapterRecipe<'r> {
    /// Checks method and parameters. The adapters themselves are not looked at.
    ///
    /// # Errors
    /// Everything that is wrong with the recipe.
    pub fn new(document: &'r Document, options: &Options) -> Result<Self, Vec<Diagnostic>> {
        let method = &document.merge_method;
        let (chosen, found) = check(document, options.lenient);
        let (mut errors, warnings): (Vec<_>, Vec<_>) = found
            .into_iter()
            .partition(|found| found.severity == Severity::Error);
        let info = chosen.as_ref().and_then(|chosen| chosen.calibrated);
        let info = info.filter(|info| is_adapter_method(info.name));
        if chosen.is_some() && info.is_none() {
            let place = document
                .output
                .as_ref()
                .map_or(method.span, |output| output.span);
            errors.push(
                Diagnostic::error(format!("{} does not merge adapters", method.value))
                    .label(place, "asks for an adapter")
                    .help("`merge_method: core_space` and `merge_method: peft` do; other methods write whole models"),
            );
        }
        let sources: Vec<&Source> = match &document.body {
            Body::Models(sources) => sources
                .iter()
                .filter(|source| document.base_model.as_ref() != Some(&source.model))
                .collect(),
            Body::Slices(_) | Body::Modules(_) => {
                errors.push(
                    Diagnostic::error(format!("{} merges whole adapters", method.value))
                        .label(method.span, "slices and modules are not supported")
                        .help("list the adapters under `models:`"),
                );
                Vec::new()
            }
        };
        let (Some(chosen), Some(info), true) = (chosen, info, errors.is_empty()) else {
            return Err(errors);
        };
        let scope = SliceScope {
            sources: sources
                .iter()
                .enumerate()
                .map(|(i, source)| SourceScope {
                    model: i,
                    parameters: Some(&source.parameters),
                    span: source.span,
                    range: None,
                })
                .collect(),
            base_model: None,
            slice: None,
            module: None,
            span: document.span,
        };
        Ok(Self {
            document,
            sources,
            scope,
            chosen,
            info,
            warnings,
        })
    }

    /// The method.
    pub fn info(&self) -> &'static MethodInfo {
        self.info
    }

    /// The adapters, in recipe order.
    pub fn sources(&self) -> &[&'r Source] {
        &self.sources
    }

    /// The type that the factors are to be stored in, if the recipe says one.
    pub fn dtype(&self) -> Option<FloatType> {
        let document = self.document;
        let given = document.out_dtype.as_ref().or(document.dtype.as_ref());
        given.map(|dtype| dtype.value)
    }

    /// Seed of random choices.
    pub fn seed(&self, options: &Options) -> u64 {
        let own = self.document.seed.as_ref().map(|seed| seed.value);
        options.seed.or(own).unwrap_or(0)
    }

    /// The parameters for a tensor of the base model, at position `t` of gradients.
    ///
    /// # Errors
    /// If a parameter has no value there.
    pub fn settings(&self, tensor: &str, t: f64) -> Result<Settings, Diagnostic> {
        let scopes = Scopes {
            document: self.document,
            slice: &self.scope,
            models: &[],
            chosen: &self.chosen,
        };
        let inputs: Vec<(usize, &str)> = (0..self.sources.len()).map(|i| (i, tensor)).collect();
        scopes.settings(self.info, (tensor, t), &inputs, None)
    }
}

/// Says that adapter `label` leaves `missing` of the `of` tensors alone that others change.
pub fn other_targets(label: &str, missing: &[&str], of: usize) -> Diagnostic {
    let shown: Vec<&str> = missing.iter().copied().take(3).collect();
    let more = if missing.len() > 3 { ", …" } else { "" };
    let message = format!(
        "{label} does not change {} of {of} tensors that the others change: {}{more}",
        missing.len(),
        shown.join(", ")
    );
    Diagnostic::error(message)
        .help("--allow-missing counts what an adapter does not change as no change")
}

/// The position of every tensor in the gradients: that of its layer among the layers of its stack that are named.
pub fn positions<'n>(tensors: impl Iterator<Item = &'n str> + Clone) -> BTreeMap<&'n str, f64> {
    let mut layers: BTreeMap<&str, usize> = BTreeMap::new();
    for name in tensors.clone() {
        if let Role::Layer { stack, index, .. } = Role::of(name) {
            let known = layers.entry(stack).or_default();
            *known = (*known).max(index + 1);
        }
    }
    tensors
        .map(|name| {
            let t = match Role::of(name) {
                Role::Layer { stack, index, .. } => gradient_position(index, layers[stack]),
                _ => 0.0,
            };
            (name, t)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_run_over_the_layers_of_a_stack() {
        let names = ["a.layers.0.q", "a.layers.2.q", "a.layers.1.k", "head"];
        let found = positions(names.into_iter());
        assert_eq!(found["a.layers.0.q"], 0.0);
        assert_eq!(found["a.layers.1.k"], 0.5);
        assert_eq!(found["a.layers.2.q"], 1.0);
        assert_eq!(found["head"], 0.0);
    }
}
