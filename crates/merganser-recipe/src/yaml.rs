//! YAML text → a tree of nodes that know their bytes.
//!
//! Anchors, aliases and merge keys (`<<`) are resolved here. Aliases share their node, so memory stays
//! small; what the tree would amount to written out is counted and limited, which stops alias bombs.
//! Words keep their spelling and whether they were quoted; [`crate::scalar`] says what they mean.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, StructureStyle, Tag};

use crate::diagnostic::{Diagnostic, quoted};
use crate::scalar;
use crate::span::{Span, Spanned};
use crate::value::Value;

/// Recipes are written by hand or by small scripts; anything longer is another kind of file.
const LONGEST_TEXT: usize = 4 << 20;
/// Bytes a document may amount to with all aliases written out, [`NODE_COST`] included.
const LARGEST_DOCUMENT: usize = 16 << 20;
/// What a node costs besides its text.
const NODE_COST: usize = 32;
/// Lists and mappings within each other, aliases written out.
const DEEPEST_NESTING: usize = 64;

/// A piece of YAML.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Null,
    Scalar { text: String, value: Value },
    Sequence(Vec<Rc<Node>>),
    Mapping(Vec<Entry>),
}

/// One `key: value` of a mapping.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: Spanned<String>,
    pub(crate) value: Rc<Node>,
}

impl Node {
    pub(crate) fn is_null(&self) -> bool {
        matches!(self.kind, Kind::Null)
    }

    /// What this is, for messages.
    pub(crate) fn describe(&self) -> String {
        match &self.kind {
            Kind::Null => "nothing".into(),
            Kind::Scalar { text, value } => match value {
                Value::Text(_) => format!("the text {}", quoted(text)),
                _ => format!(
                    "{} {}",
                    value.kind().replacen("a ", "the ", 1),
                    quoted(text)
                ),
            },
            Kind::Sequence(_) => "a list".into(),
            Kind::Mapping(_) => "a mapping".into(),
        }
    }
}

/// The documents of a YAML text; mistakes that leave the structure readable go to `mistakes`.
///
/// # Errors
/// What makes the rest of the text unreadable.
pub(crate) fn parse(
    text: &str,
    mistakes: &mut Vec<Diagnostic>,
) -> Result<Vec<Rc<Node>>, Diagnostic> {
    if text.len() > LONGEST_TEXT {
        return Err(Diagnostic::error(format!(
            "the file is {} bytes long, a recipe has at most {LONGEST_TEXT}",
            text.len()
        ))
        .help("is this the recipe, or a model's file?"));
    }
    let mut options = granit_parser::options! {
        flow_nesting_limit: DEEPEST_NESTING,
        block_nesting_limit: DEEPEST_NESTING,
    };
    options.set_emit_comments(false);
    let mut builder = Builder::new(mistakes);
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| builder.unreadable(text, &error))?;
        builder.take(event, &span)?;
    }
    Ok(builder.documents)
}

/// A finished node, with what it amounts to written out.
#[derive(Clone)]
struct Built {
    node: Rc<Node>,
    size: usize,
    depth: usize,
}

/// A list or mapping being read.
struct Open {
    contents: Contents,
    span: Span,
    flow: bool,
    anchor: usize,
    size: usize,
    depth: usize,
}

enum Contents {
    Sequence(Vec<Rc<Node>>),
    Mapping {
        entries: Vec<Entry>,
        merged: Vec<Rc<Node>>,
        key: Option<Key>,
    },
}

/// A key whose value has not come yet.
enum Key {
    Word(Spanned<String>),
    Merge,
    /// Not a word, already reported; its value is dropped.
    Invalid,
}

struct Builder<'m> {
    open: Vec<Open>,
    anchors: HashMap<usize, Built>,
    documents: Vec<Rc<Node>>,
    mistakes: &'m mut Vec<Diagnostic>,
}

impl<'m> Builder<'m> {
    fn new(mistakes: &'m mut Vec<Diagnostic>) -> Self {
        Self {
            open: Vec::new(),
            anchors: HashMap::new(),
            documents: Vec::new(),
            mistakes,
        }
    }

    fn take(&mut self, event: Event<'_>, at: &granit_parser::Span) -> Result<(), Diagnostic> {
        let bytes = |at: granit_parser::Span| at.byte_range().map(|r| Span::new(r.start, r.end));
        let span = bytes(*at).unwrap_or_default();
        let tag_span = at.tag_span().and_then(bytes).unwrap_or(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                let kind = self.scalar(text.into_owned(), plain, tag.as_deref(), tag_span);
                let size = match &kind {
                    Kind::Scalar { text, .. } => text.len() + NODE_COST,
                    _ => NODE_COST,
                };
                let is_merge = plain && tag.is_none();
                self.close(
                    Built {
                        node: Rc::new(Node { kind, span }),
                        size,
                        depth: 0,
                    },
                    anchor,
                    is_merge,
                )
            }
            Event::SequenceStart(style, anchor, tag) => {
                self.check_tag(tag.as_deref(), "seq", tag_span);
                self.start(Contents::Sequence(Vec::new()), style, anchor, span);
                Ok(())
            }
            Event::MappingStart(style, anchor, tag) => {
                self.check_tag(tag.as_deref(), "map", tag_span);
                let contents = Contents::Mapping {
                    entries: Vec::new(),
                    merged: Vec::new(),
                    key: None,
                };
                self.start(contents, style, anchor, span);
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(span),
            Event::Alias(id) => match self.anchors.get(&id) {
                Some(built) => {
                    let built = built.clone();
                    self.close(built, 0, false)
                }
                None => Err(
                    Diagnostic::error("an alias stands for something it is part of")
                        .label(span, "refers to what it stands in")
                        .help("an anchor can only be used after the end of what it names"),
                ),
            },
            _ => Ok(()),
        }
    }

    /// Why the parser could not go on.
    fn unreadable(&self, text: &str, error: &ScanError) -> Diagnostic {
        let at = error
            .marker()
            .byte_offset()
            .unwrap_or(text.len())
            .min(text.len());
        let line_start = text
            .get(..at)
            .and_then(|before| before.rfind('\n'))
            .map_or(0, |i| i + 1);
        let line = text
            .get(line_start..)
            .and_then(|rest| rest.lines().next())
            .unwrap_or_default();
        let indentation = line.len() - line.trim_start().len();
        let note = Diagnostic::error(format!("this is not valid YAML: {}", error.info()));
        if let Some(tab) = line[..indentation].find('\t') {
            let tab = line_start + tab;
            return note
                .label(Span::new(tab, tab + 1), "a tab")
                .help("indent with spaces; YAML does not allow tabs there");
        }
        let note = note.label(Span::new(at, at), "reading stops here");
        match self.open.iter().rfind(|open| open.flow) {
            Some(open) => {
                let bracket = Span::new(open.span.start, open.span.start + 1);
                note.label(bracket, "opened here")
                    .help("is a closing bracket or brace missing?")
            }
            None => note,
        }
    }

    fn start(&mut self, contents: Contents, style: StructureStyle, anchor: usize, span: Span) {
        let flow = style == StructureStyle::Flow;
        self.open.push(Open {
            contents,
            span,
            flow,
            anchor,
            size: NODE_COST,
            depth: 1,
        });
    }

    fn end(&mut self, span: Span) -> Result<(), Diagnostic> {
        let Some(open) = self.open.pop() else {
            return Ok(());
        };
        let mut whole = open.span;
        if open.flow {
            whole = whole.join(span);
        }
        let kind = match open.contents {
            Contents::Sequence(items) => {
                if let (false, Some(last)) = (open.flow, items.last()) {
                    whole.end = whole.end.max(last.span.end);
                }
                Kind::Sequence(items)
            }
            Contents::Mapping {
                entries, merged, ..
            } => {
                if let (false, Some(last)) = (open.flow, entries.last()) {
                    whole.end = whole.end.max(last.key.span.end).max(last.value.span.end);
                }
                Kind::Mapping(self.mapping(entries, &merged))
            }
        };
        let node = Rc::new(Node { kind, span: whole });
        self.close(
            Built {
                node,
                size: open.size,
                depth: open.depth,
            },
            open.anchor,
            false,
        )
    }

    /// Hands a finished node to whatever it is part of.
    fn close(&mut self, built: Built, anchor: usize, may_merge: bool) -> Result<(), Diagnostic> {
        if anchor != 0 {
            self.anchors.insert(anchor, built.clone());
        }
        let Built { node, size, depth } = built;
        let Some(open) = self.open.last_mut() else {
            self.documents.push(node);
            return Ok(());
        };
        open.size = open.size.saturating_add(size);
        open.depth = open.depth.max(depth + 1);
        if open.size > LARGEST_DOCUMENT {
            return Err(Diagnostic::error(
                "the recipe is too large, counting what its aliases stand for",
            )
            .label(node.span, "at this point")
            .help(
                "is this a recipe? thousands of entries are fine, hundreds of thousands are not",
            ));
        }
        if open.depth > DEEPEST_NESTING {
            return Err(
                Diagnostic::error("lists and mappings are nested too deeply")
                    .label(node.span, format!("more than {DEEPEST_NESTING} levels")),
            );
        }
        match &mut open.contents {
            Contents::Sequence(items) => items.push(node),
            Contents::Mapping {
                entries,
                merged,
                key,
            } => match key.take() {
                Some(Key::Word(key)) => entries.push(Entry { key, value: node }),
                Some(Key::Merge) => merged.push(node),
                Some(Key::Invalid) => {}
                None => {
                    *key = Some(match &node.kind {
                        Kind::Scalar { text, .. } if may_merge && text == "<<" => Key::Merge,
                        Kind::Scalar { text, .. } => {
                            Key::Word(Spanned::new(text.clone(), node.span))
                        }
                        _ => {
                            let found = node.describe();
                            self.mistakes.push(
                                Diagnostic::error(format!("a key must be a word, found {found}"))
                                    .label(node.span, "not a key")
                                    .help("write `key: value`; text that starts with `{`, `[`, `?` or `*` needs quotes"),
                            );
                            Key::Invalid
                        }
                    });
                }
            },
        }
        Ok(())
    }

    /// Reports duplicate keys and adds the entries of merge keys, which the mapping's own go before.
    fn mapping(&mut self, entries: Vec<Entry>, merged: &[Rc<Node>]) -> Vec<Entry> {
        let mut first: HashMap<&str, Span> = HashMap::new();
        for Entry { key, .. } in &entries {
            if let Some(first) = first.insert(&key.value, key.span) {
                self.mistakes.push(
                    Diagnostic::error(format!("the key {} is given twice", quoted(&key.value)))
                        .label(key.span, "given again here")
                        .label(first, "first given here")
                        .help("remove one of them"),
                );
            }
        }
        if merged.is_empty() {
            return entries;
        }
        let mut seen: HashSet<String> = first.into_keys().map(str::to_owned).collect();
        let mut all = entries;
        for node in merged.iter().flat_map(|node| match &node.kind {
            Kind::Sequence(items) => items.as_slice(),
            _ => std::slice::from_ref(node),
        }) {
            let Kind::Mapping(entries) = &node.kind else {
                self.mistakes.push(
                    Diagnostic::error(format!("`<<` merges mappings, found {}", node.describe()))
                        .label(node.span, "not a mapping")
                        .help("name an anchored mapping, as in `<<: *defaults`"),
                );
                continue;
            };
            for entry in entries {
                if seen.insert(entry.key.value.clone()) {
                    all.push(entry.clone());
                }
            }
        }
        all
    }

    fn scalar(&mut self, text: String, plain: bool, tag: Option<&Tag>, span: Span) -> Kind {
        let quoted_text = |text: String| Kind::Scalar {
            value: Value::Text(text.clone()),
            text,
        };
        let plain_word = |text: String| {
            if scalar::is_null(&text) {
                Kind::Null
            } else {
                Kind::Scalar {
                    value: scalar::resolve(&text),
                    text,
                }
            }
        };
        match tag.map(|tag| (tag, tag.core_suffix())) {
            None if plain => plain_word(text),
            None | Some((_, Some("str"))) => quoted_text(text),
            Some((tag, None)) if tag.original() == "!" => quoted_text(text),
            Some((_, Some("int" | "float" | "bool" | "null"))) => plain_word(text),
            Some((tag, _)) => {
                self.unknown_tag(tag, span);
                quoted_text(text)
            }
        }
    }

    fn check_tag(&mut self, tag: Option<&Tag>, expected: &str, span: Span) {
        if let Some(tag) = tag.filter(|tag| !tag.is_yaml_core_schema_tag(expected)) {
            self.unknown_tag(tag, span);
        }
    }

    fn unknown_tag(&mut self, tag: &Tag, span: Span) {
        self.mistakes.push(
            Diagnostic::error(format!(
                "the tag {} does not belong here",
                quoted(&tag.original())
            ))
            .label(span, "this tag")
            .help("recipes are plain YAML; remove the tag"),
        );
    }
}
