//! `models`, `slices` and `modules`.

use std::rc::Rc;

use crate::diagnostic::{Diagnostic, quoted};
use crate::recipe::{Body, Module, Slice, Source};
use crate::yaml::{Entry, Kind, Node};

use super::{Fields, Reader, keys};

const SOURCE_IN_MODELS: &str = "- model: org/model";
const SOURCE_IN_SLICE: &str = "{model: org/model, layer_range: [0, 16]}";

impl Reader {
    /// Exactly one of the given `kinds` of body.
    pub(super) fn body(&mut self, fields: &Fields<'_>, what: &str, kinds: &[&str]) -> Option<Body> {
        let one_of = kinds
            .iter()
            .map(|kind| format!("`{kind}`"))
            .collect::<Vec<_>>()
            .join(", ");
        let found: Vec<&Entry> = kinds.iter().filter_map(|kind| fields.get(kind)).collect();
        match found.as_slice() {
            [entry] => match entry.key.value.as_str() {
                "models" => self.models(&entry.value).map(Body::Models),
                "slices" => self.slices(&entry.value).map(Body::Slices),
                _ => self.modules(&entry.value).map(Body::Modules),
            },
            [] => {
                let empty = kinds.iter().find_map(|kind| fields.get_even_null(kind));
                if let Some(entry) = empty {
                    self.empty(entry.key.span, &entry.key.value);
                } else if !kinds.iter().any(|kind| fields.meant.contains(kind)) {
                    self.note(
                        Diagnostic::error(format!("{what} needs one of {one_of}"))
                            .label(fields.span, "none of them is here")
                            .help("to merge whole models, list them under `models:`"),
                    );
                }
                None
            }
            [first, rest @ ..] => {
                let mut note = Diagnostic::error(format!("{what} takes exactly one of {one_of}"));
                // The later ones are the ones too many.
                for entry in rest {
                    note = note.label(entry.key.span, format!("besides `{}`", first.key.value));
                }
                self.note(note.label(first.key.span, "this alone would do").help(
                    "`models` merges whole models, `slices` stacks ranges of layers, `modules` treats parts of a composite model apart",
                ));
                None
            }
        }
    }

    fn empty(&mut self, span: crate::Span, key: &str) {
        let example = match key {
            "models" => "models: [{model: org/a}, {model: org/b}]",
            "modules" => "modules: {text: {models: [{model: org/a}]}}",
            "sources" => "sources: [{model: org/a, layer_range: [0, 16]}]",
            _ => "slices: [{sources: [{model: org/a, layer_range: [0, 16]}]}]",
        };
        self.note(
            Diagnostic::error(format!("`{key}` is empty"))
                .label(span, "at least one is needed")
                .help(format!("for example `{example}`")),
        );
    }

    /// The items of a list that must not be empty.
    fn list<'n>(&mut self, node: &'n Node, key: &str, example: &str) -> Option<&'n [Rc<Node>]> {
        match &node.kind {
            Kind::Sequence(items) if items.is_empty() => {
                self.empty(node.span, key);
                None
            }
            Kind::Sequence(items) => Some(items),
            _ => {
                self.wrong_type(node, &format!("`{key}`"), "a list", example);
                None
            }
        }
    }

    fn models(&mut self, node: &Node) -> Option<Vec<Source>> {
        let items = self.list(node, "models", "models: [{model: org/a}, {model: org/b}]")?;
        let sources: Vec<Option<Source>> = items
            .iter()
            .map(|item| self.source(item, "an entry of `models`", false))
            .collect();
        sources.into_iter().collect()
    }

    fn slices(&mut self, node: &Node) -> Option<Vec<Slice>> {
        let example = "slices: [{sources: [{model: org/a, layer_range: [0, 16]}]}]";
        let items = self.list(node, "slices", example)?;
        let slices: Vec<Option<Slice>> = items.iter().map(|item| self.slice(item)).collect();
        slices.into_iter().collect()
    }

    fn modules(&mut self, node: &Node) -> Option<Vec<(crate::Spanned<String>, Module)>> {
        let example = "modules: {text: {models: [{model: org/a}]}}";
        let Kind::Mapping(entries) = &node.kind else {
            self.wrong_type(
                node,
                "`modules`",
                "a mapping from names to modules",
                example,
            );
            return None;
        };
        if entries.is_empty() {
            self.empty(node.span, "modules");
            return None;
        }
        let modules: Vec<Option<_>> = entries
            .iter()
            .map(|Entry { key, value }| {
                let what = format!("module {}", quoted(&key.value));
                let fields = self.fields(value, &what, keys::MODULE, example)?;
                let body = self.body(&fields, &what, &["models", "slices"]);
                let parameters = self.parameters(&fields);
                Some((
                    key.clone(),
                    Module {
                        body: body?,
                        parameters,
                        span: value.span,
                    },
                ))
            })
            .collect();
        modules.into_iter().collect()
    }

    fn slice(&mut self, node: &Node) -> Option<Slice> {
        const WHAT: &str = "a slice";
        const EXAMPLE: &str = "sources: [{model: org/a, layer_range: [0, 16]}]";
        let fields = self.fields(node, WHAT, keys::SLICE, EXAMPLE)?;
        let base_model = self.base_model(&fields);
        let parameters = self.parameters(&fields);
        if let Some(entry) = fields.get("residual_weight") {
            self.note(
                Diagnostic::warning("`residual_weight` has no effect (mergekit ignores it too)")
                    .label(entry.key.span, "ignored")
                    .help("remove it"),
            );
        }
        let entry = self.required(&fields, "sources", WHAT, EXAMPLE)?;
        let items = self.list(&entry.value, "sources", EXAMPLE)?;
        let sources: Vec<Option<Source>> = items
            .iter()
            .map(|item| self.source(item, "a source", true))
            .collect();
        let sources: Vec<Source> = sources.into_iter().collect::<Option<_>>()?;
        self.equal_lengths(&sources)?;
        Some(Slice {
            sources,
            base_model,
            parameters,
            span: node.span,
        })
    }

    fn equal_lengths(&mut self, sources: &[Source]) -> Option<()> {
        let mut ranges = sources.iter().filter_map(|source| source.layer_range);
        let first = ranges.next()?;
        let length = |range: [u64; 2]| range[1] - range[0];
        let layers = |n: u64| {
            if n == 1 {
                "1 layer".into()
            } else {
                format!("{n} layers")
            }
        };
        let Some(other) = ranges.find(|range| length(range.value) != length(first.value)) else {
            return Some(());
        };
        self.note(
            Diagnostic::error(format!(
                "the sources of a slice differ in length: {} and {}",
                layers(length(first.value)),
                layers(length(other.value))
            ))
            .label(other.span, layers(length(other.value)))
            .label(first.span, layers(length(first.value)))
            .help("layers are merged one by one, so every source needs as many as the first"),
        );
        None
    }

    fn source(&mut self, node: &Node, what: &str, in_slice: bool) -> Option<Source> {
        let example = if in_slice {
            SOURCE_IN_SLICE
        } else {
            SOURCE_IN_MODELS
        };
        // `model:name` gets the advice on colons instead.
        if let Kind::Scalar { text, .. } = &node.kind
            && !text.starts_with("model:")
        {
            let found = node.describe();
            self.note(
                Diagnostic::error(format!("{what} must be a mapping, found {found}"))
                    .label(node.span, "expected a mapping with a `model`")
                    .help(format!("write `model: {text}`")),
            );
            return None;
        }
        let keys = if in_slice { keys::SOURCE } else { keys::INPUT };
        let fields = self.fields(node, what, keys, example)?;
        let model = self
            .required(&fields, "model", what, example)
            .and_then(|entry| self.model(&entry.value, "`model`", "model: org/model"));
        let parameters = self.parameters(&fields);
        let calibration = if in_slice {
            None
        } else {
            self.calibration(&fields)
        };
        let layer_range = if in_slice {
            let range = self
                .required(&fields, "layer_range", what, "layer_range: [0, 16]")
                .and_then(|entry| self.layer_range(&entry.value));
            Some(range?)
        } else {
            None
        };
        Some(Source {
            model: model?,
            layer_range,
            parameters,
            calibration,
            span: node.span,
        })
    }
}
