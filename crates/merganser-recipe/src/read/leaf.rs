//! The small parts of a recipe: words, whole numbers, types, layer ranges, models.

use crate::diagnostic::{Diagnostic, quoted};
use crate::dtype::FloatType;
use crate::model_ref::{AdapterRef, ModelRef, ModelRefError, path_and_revision};
use crate::span::{Span, Spanned};
use crate::value::Value;
use crate::yaml::{Kind, Node};

use super::{Fields, Reader, keys};

impl Reader {
    /// A word as it is spelled, quoted or not; not empty.
    pub(super) fn text(
        &mut self,
        node: &Node,
        what: &str,
        example: &str,
    ) -> Option<Spanned<String>> {
        match &node.kind {
            Kind::Scalar { text, .. } if text.trim().is_empty() => {
                self.note(
                    Diagnostic::error(format!("{what} is empty"))
                        .label(node.span, "nothing in it")
                        .help(format!("for example `{example}`")),
                );
                None
            }
            Kind::Scalar { text, .. } => Some(Spanned::new(text.clone(), node.span)),
            _ => {
                self.wrong_type(node, what, "text", example);
                None
            }
        }
    }

    /// A whole number of at least `least`.
    pub(super) fn whole(
        &mut self,
        node: &Node,
        what: &str,
        least: u64,
        example: &str,
    ) -> Option<Spanned<u64>> {
        let number = match &node.kind {
            Kind::Scalar {
                value: Value::Int(i),
                ..
            } => u64::try_from(*i).ok(),
            // Beyond 63 bits the value has become a float; its digits still count.
            Kind::Scalar {
                value: Value::Float(_),
                text,
            } => text.replace('_', "").parse().ok(),
            _ => None,
        };
        match number {
            Some(number) if number >= least => Some(Spanned::new(number, node.span)),
            _ => {
                let expected = format!("a whole number of at least {least}");
                self.wrong_type(node, what, &expected, example);
                None
            }
        }
    }

    /// A floating-point type.
    pub(super) fn dtype(&mut self, fields: &Fields<'_>, key: &str) -> Option<Spanned<FloatType>> {
        let node = &fields.get(key)?.value;
        let name = self.text(node, &format!("`{key}`"), &format!("{key}: bfloat16"))?;
        if let Some(dtype) = FloatType::from_name(&name.value) {
            return Some(Spanned::new(dtype, name.span));
        }
        let note = Diagnostic::error(format!(
            "{} is not a type `{key}` can be",
            quoted(&name.value)
        ))
        .label(name.span, "unknown type");
        self.note(match FloatType::suggestion(&name.value) {
            Some(dtype) => note.help(format!("did you mean `{dtype}`?")),
            None => note.did_you_mean("", FloatType::ALL.map(FloatType::name)),
        });
        None
    }

    /// `[a, b]` with a ≤ b.
    pub(super) fn layer_range(&mut self, node: &Node) -> Option<Spanned<[u64; 2]>> {
        const WHAT: &str = "`layer_range`";
        const EXAMPLE: &str = "layer_range: [0, 16]";
        let Kind::Sequence(items) = &node.kind else {
            self.wrong_type(node, WHAT, "a list of two layer numbers", EXAMPLE);
            return None;
        };
        let [first, end] = items.as_slice() else {
            self.note(
                Diagnostic::error(format!(
                    "{WHAT} takes two layer numbers, found {}",
                    items.len()
                ))
                .label(
                    node.span,
                    "expected the first layer and the one after the last",
                )
                .help(format!("for example `{EXAMPLE}`")),
            );
            return None;
        };
        let start = self.whole(first, "a layer number", 0, EXAMPLE);
        let [start, end] = [start?, self.whole(end, "a layer number", 0, EXAMPLE)?];
        if start.value > end.value {
            self.note(
                Diagnostic::error(format!(
                    "{WHAT} ends before it starts: [{}, {}]",
                    start.value, end.value
                ))
                .label(
                    node.span,
                    "the second number must not be less than the first",
                )
                .help(format!(
                    "write `[{}, {}]`; the last layer is not included",
                    end.value, start.value
                )),
            );
            return None;
        }
        Some(Spanned::new([start.value, end.value], node.span))
    }

    /// The optional `base_model`.
    pub(super) fn base_model(&mut self, fields: &Fields<'_>) -> Option<ModelRef> {
        let node = &fields.get("base_model")?.value;
        self.model(node, "`base_model`", "base_model: org/model")
    }

    /// A model, as text or as a mapping.
    pub(super) fn model(&mut self, node: &Node, what: &str, example: &str) -> Option<ModelRef> {
        match &node.kind {
            Kind::Scalar { text, .. } => match text.parse::<ModelRef>() {
                Ok(model) => Some(ModelRef {
                    span: node.span,
                    ..model
                }),
                Err(error) => self.bad_model(node, what, &error),
            },
            Kind::Mapping(_) => self.model_mapping(node, what),
            _ => {
                self.wrong_type(node, what, "a model", example);
                None
            }
        }
    }

    pub(super) fn bad_model<T>(
        &mut self,
        node: &Node,
        what: &str,
        error: &ModelRefError,
    ) -> Option<T> {
        self.note(
            Diagnostic::error(format!("{what} names no model: {error}"))
                .label(node.span, "expected `path[@revision][+adapter[@revision]]`")
                .help("a path with `@` or `+` in it is written as `{model: {path: …}, lora: {path: …}}`"),
        );
        None
    }

    fn model_mapping(&mut self, node: &Node, what: &str) -> Option<ModelRef> {
        const EXAMPLE: &str = "{model: {path: org/model, revision: main}}";
        let fields = self.fields(node, what, keys::MODEL, EXAMPLE)?;
        let lora = fields
            .get("lora")
            .map(|entry| self.path(&entry.value, "`lora`"));
        let override_architecture = fields
            .get("override_architecture")
            .map(|entry| self.text(&entry.value, "`override_architecture`", "LlamaForCausalLM"));
        let model = self.required(&fields, "model", what, EXAMPLE)?;
        let (path, revision) = self.path(&model.value, "`model`")?;
        let lora = match lora {
            Some(lora) => {
                let (path, revision) = lora?;
                Some(Box::new(AdapterRef { path, revision }))
            }
            None => None,
        };
        let override_architecture = match override_architecture {
            Some(name) => Some(name?.value),
            None => None,
        };
        Some(ModelRef {
            path,
            revision,
            lora,
            override_architecture,
            span: node.span,
        })
    }

    /// `path[@revision]`, or a mapping in which the path may contain anything.
    fn path(&mut self, node: &Node, what: &str) -> Option<(String, Option<String>)> {
        const EXAMPLE: &str = "{path: org/model, revision: main}";
        match &node.kind {
            Kind::Scalar { text, .. } => match path_and_revision(text, "the path") {
                Ok(found) => Some(found),
                Err(error) => self.bad_model(node, what, &error),
            },
            Kind::Mapping(_) => {
                let fields = self.fields(node, what, keys::PATH, EXAMPLE)?;
                let revision = fields
                    .get("revision")
                    .map(|entry| self.text(&entry.value, "`revision`", "revision: main"));
                let path = self.required(&fields, "path", what, EXAMPLE)?;
                let path = self.text(&path.value, "`path`", "path: org/model")?.value;
                let revision = match revision {
                    Some(revision) => Some(revision?.value),
                    None => None,
                };
                Some((path, revision))
            }
            _ => {
                self.wrong_type(node, what, "a path", EXAMPLE);
                None
            }
        }
    }
}

/// Key and value together.
pub(super) fn entry_span(entry: &crate::yaml::Entry) -> Span {
    // An aliased value stands elsewhere; the key alone is then the place.
    if entry.value.span.start >= entry.key.span.end {
        entry.key.span.join(entry.value.span)
    } else {
        entry.key.span
    }
}
