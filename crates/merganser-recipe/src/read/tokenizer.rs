//! `tokenizer`, and the older `tokenizer_source`.

use crate::diagnostic::Diagnostic;
use crate::recipe::{TokenizerSource, TokenizerSpec};
use crate::span::{Span, Spanned};
use crate::yaml::{Entry, Kind, Node};

use super::leaf::entry_span;
use super::{Fields, Reader, keys};

const EXAMPLE: &str = "tokenizer: {source: union}";

impl Reader {
    pub(super) fn tokenizer(&mut self, fields: &Fields<'_>) -> Option<TokenizerSpec> {
        match (fields.get("tokenizer"), fields.get("tokenizer_source")) {
            (None, None) => None,
            (Some(entry), None) => self.tokenizer_mapping(&entry.value),
            (None, Some(entry)) => {
                let source = self.tokenizer_source(&entry.value, "`tokenizer_source`")?;
                let span = entry_span(entry);
                Some(TokenizerSpec {
                    source,
                    tokens: None,
                    pad_to_multiple_of: None,
                    span,
                })
            }
            (Some(new), Some(old)) => {
                self.note(
                    Diagnostic::error("`tokenizer` and `tokenizer_source` are both given")
                        .label(old.key.span, "the older way to say it")
                        .label(new.key.span, "besides this")
                        .help("keep `tokenizer` and write the source into it"),
                );
                None
            }
        }
    }

    fn tokenizer_mapping(&mut self, node: &Node) -> Option<TokenizerSpec> {
        if let Kind::Scalar { text, .. } = &node.kind {
            self.note(
                Diagnostic::error(format!(
                    "`tokenizer` must be a mapping, found {}",
                    node.describe()
                ))
                .label(node.span, "expected a mapping")
                .help(format!("write `tokenizer: {{source: {text}}}`")),
            );
            return None;
        }
        let fields = self.fields(node, "`tokenizer`", keys::TOKENIZER, EXAMPLE)?;
        let source = match fields.get("source") {
            Some(entry) => self.tokenizer_source(&entry.value, "`source` of the tokenizer"),
            None => Some(Spanned::new(TokenizerSource::Union, node.span)),
        };
        let pad_to_multiple_of = fields.get("pad_to_multiple_of").and_then(|entry| {
            self.whole(
                &entry.value,
                "`pad_to_multiple_of`",
                1,
                "pad_to_multiple_of: 64",
            )
        });
        let tokens = fields.get("tokens").and_then(|entry| self.tokens(entry));
        Some(TokenizerSpec {
            source: source?,
            tokens,
            pad_to_multiple_of,
            span: node.span,
        })
    }

    /// Where the rules for single tokens stand, if there are any.
    fn tokens(&mut self, entry: &Entry) -> Option<Span> {
        let node = &entry.value;
        if let Kind::Mapping(tokens) = &node.kind {
            return (!tokens.is_empty()).then(|| entry_span(entry));
        }
        let example = "tokens: {<|im_start|>: {source: org/model}}";
        self.wrong_type(node, "`tokens`", "a mapping from tokens to rules", example);
        None
    }

    fn tokenizer_source(&mut self, node: &Node, what: &str) -> Option<Spanned<TokenizerSource>> {
        let source = match &node.kind {
            Kind::Scalar { text, .. } if text == "base" => TokenizerSource::Base,
            Kind::Scalar { text, .. } if text == "union" => TokenizerSource::Union,
            _ => TokenizerSource::Model(self.model(node, what, EXAMPLE)?),
        };
        Some(Spanned::new(source, node.span))
    }
}
