//! YAML nodes → [`Recipe`]. Mistakes are noted and reading goes on, so that all are reported at once.
//!
//! A function that reads something returns `None` after it has noted why it could not.

mod body;
mod calibration;
mod defence;
mod document;
pub(crate) mod keys;
mod leaf;
mod parameters;
mod tokenizer;

use std::rc::Rc;

use crate::diagnostic::{Diagnostic, Diagnostics, Severity, quoted};
use crate::recipe::{ParseOptions, Recipe};
use crate::span::{SourceText, Span};
use crate::yaml::{self, Entry, Kind, Node};

/// See [`Recipe::parse`].
pub(crate) fn recipe(
    source: SourceText,
    options: ParseOptions,
) -> Result<(Recipe, Vec<Diagnostic>), Diagnostics> {
    let mut reader = Reader {
        notes: Vec::new(),
        lenient: options.lenient,
    };
    let nodes = yaml::parse(&source.text, &mut reader.notes).unwrap_or_else(|error| {
        reader.notes.push(error);
        Vec::new()
    });
    let nodes: Vec<Rc<Node>> = nodes.into_iter().filter(|node| !node.is_null()).collect();
    if nodes.is_empty() && reader.notes.is_empty() {
        reader.note(
            Diagnostic::error("the recipe is empty")
                .help("a recipe starts with `merge_method: linear` and a list of `models:`"),
        );
    }
    let documents = nodes
        .iter()
        .filter_map(|node| reader.document(node))
        .collect();
    let list = reader.finish();
    if list.iter().any(|note| note.severity == Severity::Error) {
        return Err(Diagnostics { source, list });
    }
    Ok((Recipe { source, documents }, list))
}

/// Collects what is wrong while nodes are turned into a recipe.
struct Reader {
    notes: Vec<Diagnostic>,
    lenient: bool,
}

impl Reader {
    fn note(&mut self, diagnostic: Diagnostic) {
        self.notes.push(diagnostic);
    }

    /// The notes in order of the text, each once: an aliased node is read several times.
    ///
    /// Only so many are kept as a person may read.
    fn finish(self) -> Vec<Diagnostic> {
        const MOST: usize = 50;
        let mut notes = self.notes;
        let place = |note: &Diagnostic| note.labels.first().map(|(span, _)| *span);
        notes.sort_by(|a, b| (place(a), &a.message).cmp(&(place(b), &b.message)));
        notes.dedup();
        if notes.len() > MOST {
            let rest = notes.split_off(MOST);
            let severe = rest.iter().any(|note| note.severity == Severity::Error);
            let message = format!("{} more messages are not shown", rest.len());
            notes.push(if severe {
                Diagnostic::error(message)
            } else {
                Diagnostic::warning(message)
            });
        }
        notes
    }

    /// Notes that `what` is of the wrong type. `example` is what could have been written.
    fn wrong_type(&mut self, node: &Node, what: &str, expected: &str, example: &str) {
        let mut help = format!("for example `{example}`");
        if let Kind::Scalar { text, .. } = &node.kind
            && let Some((key, value)) = text.split_once(':').filter(|(key, _)| is_word(key))
        {
            help = format!("a colon needs a space after it: `{key}: {value}`");
        }
        self.note(
            Diagnostic::error(format!(
                "{what} must be {expected}, found {}",
                node.describe()
            ))
            .label(node.span, format!("expected {expected}"))
            .help(help),
        );
    }

    /// The entries of a mapping that may have `keys`.
    ///
    /// Keys outside the list are errors, or warnings if reading leniently.
    fn fields<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        keys: &[&'static str],
        example: &str,
    ) -> Option<Fields<'n>> {
        let Kind::Mapping(entries) = &node.kind else {
            self.wrong_type(node, what, "a mapping", example);
            return None;
        };
        let mut meant = Vec::new();
        for entry in entries
            .iter()
            .filter(|entry| !keys.contains(&entry.key.value.as_str()))
        {
            meant.extend(self.unknown_key(entry, what, keys));
        }
        if self.lenient {
            meant.clear();
        }
        Some(Fields {
            entries,
            span: node.span,
            meant,
        })
    }

    /// Notes that a key is not one of `keys`; returns the one that was probably meant.
    fn unknown_key(
        &mut self,
        entry: &Entry,
        what: &str,
        keys: &[&'static str],
    ) -> Option<&'static str> {
        let Entry { key, value } = entry;
        let message = format!("unknown key {} in {what}", quoted(&key.value));
        let mut note = if self.lenient {
            Diagnostic::warning(message).label(key.span, "ignored")
        } else {
            Diagnostic::error(message).label(key.span, "unknown key")
        };
        let mut meant = None;
        let no_space = key
            .value
            .split_once(':')
            .filter(|(word, _)| value.is_null() && is_word(word));
        if let Some((word, value)) = no_space {
            note = note.help(format!("a colon needs a space after it: `{word}: {value}`"));
            meant = keys.iter().find(|key| **key == word).copied();
        } else if let Some(near) = crate::nearest(&key.value, keys.iter().copied()) {
            note = note.help(format!("did you mean `{near}`?"));
            meant = Some(near);
        } else if let Some((place, instead_of)) = misplaced(&key.value) {
            note = note.help(place);
            meant = instead_of;
        } else {
            note = note.did_you_mean(&key.value, keys.iter().copied());
            if keys.contains(&"parameters") {
                let valid = note.help.take().unwrap_or_default();
                note = note.help(format!(
                    "{valid}; parameters of the method go under `parameters:`"
                ));
            }
        }
        self.note(note);
        meant
    }

    /// The entry for a key that must be there, or a note that it is missing.
    fn required<'n>(
        &mut self,
        fields: &Fields<'n>,
        key: &str,
        what: &str,
        example: &str,
    ) -> Option<&'n Entry> {
        if let Some(entry) = fields.get(key) {
            return Some(entry);
        }
        // A misspelt key has been noted already.
        if !fields.meant.contains(&key) {
            let note = match fields.get_even_null(key) {
                Some(entry) => Diagnostic::error(format!("`{key}` of {what} has no value"))
                    .label(entry.key.span, "nothing follows"),
                None => Diagnostic::error(format!("{what} has no `{key}`"))
                    .label(fields.span, format!("`{key}` is missing")),
            };
            self.note(note.help(format!("for example `{example}`")));
        }
        None
    }
}

/// The entries of a mapping.
struct Fields<'n> {
    entries: &'n [Entry],
    span: Span,
    /// Valid keys that unknown ones were probably meant to be.
    meant: Vec<&'n str>,
}

impl<'n> Fields<'n> {
    /// The entry for a key; a key with nothing behind it counts as absent, as in mergekit.
    fn get(&self, key: &str) -> Option<&'n Entry> {
        self.get_even_null(key)
            .filter(|entry| !entry.value.is_null())
    }

    fn get_even_null(&self, key: &str) -> Option<&'n Entry> {
        self.entries.iter().find(|entry| entry.key.value == key)
    }
}

/// Where a key belongs that stands in the wrong place, and the key that is missing there instead.
fn misplaced(key: &str) -> Option<(&'static str, Option<&'static str>)> {
    Some(match key {
        "layer_range" => (
            "`models` takes whole models; layers are chosen in `slices: [{sources: [{model: …, layer_range: …}]}]`",
            None,
        ),
        "sources" => (
            "`sources` belong into the entries of `slices`",
            Some("slices"),
        ),
        "path" | "revision" => (
            "it belongs one level deeper: `model: {model: {path: …, revision: …}}`",
            Some("model"),
        ),
        "lora" | "override_architecture" => (
            "it belongs to the model: `model: {model: …, lora: …}`",
            None,
        ),
        "tokens" | "pad_to_multiple_of" => ("it belongs under `tokenizer:`", None),
        _ => return None,
    })
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
