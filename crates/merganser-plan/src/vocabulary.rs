//! Vocabulary rows of models whose tokenizers differ, put in the order of the base model's tokenizer.
//!
//! `tokenizer_source: base` keeps the base's tokenizer. Row i of every embedding and head is then the row of the base's
//! token i: a model that has the token gives its own row for it, one that lacks it gets the base's row, so that the
//! token comes out as the base had it. If all tokenizers are equal nothing is moved, padding rows included.

use std::collections::HashMap;
use std::sync::Arc;

use merganser_recipe::{Diagnostic, Document, TokenizerSource};

use crate::model::Model;

/// What the plan needs to know of a tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokenizer {
    /// Row of every token.
    pub tokens: HashMap<String, u32>,
    /// One more than the largest row.
    pub rows: usize,
    /// Hash of the vocabulary.
    pub digest: String,
}

impl Tokenizer {
    /// Takes tokens with their rows.
    pub fn new(tokens: HashMap<String, u32>) -> Self {
        let rows = tokens.values().max().map_or(0, |last| *last as usize + 1);
        let mut sorted: Vec<(u32, &str)> = tokens
            .iter()
            .map(|(token, row)| (*row, token.as_str()))
            .collect();
        sorted.sort_unstable();
        let digest = blake3::hash(format!("{sorted:?}").as_bytes())
            .to_hex()
            .to_string();
        Self {
            tokens,
            rows,
            digest,
        }
    }
}

/// Where each row of a re-indexed tensor comes from.
#[derive(Clone, PartialEq, Eq)]
pub struct RowMap {
    /// The model's own row for each output row; [`RowMap::FROM_BASE`] where the base's row stands in.
    pub rows: Arc<[u32]>,
    /// Index of the base model.
    pub base: usize,
}

impl RowMap {
    /// Marks a row that the model lacks.
    pub const FROM_BASE: u32 = u32::MAX;
}

impl std::fmt::Debug for RowMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes: Vec<u8> = self.rows.iter().flat_map(|row| row.to_le_bytes()).collect();
        write!(
            f,
            "rows {} of model {}",
            blake3::hash(&bytes).to_hex(),
            self.base
        )
    }
}

/// The re-indexing of all models of a merge.
pub(crate) struct Reindexing {
    maps: HashMap<usize, RowMap>,
    /// Rows of the output.
    pub(crate) rows: usize,
    /// What the user should know.
    pub(crate) notes: Vec<String>,
}

impl Reindexing {
    /// The map of a model; `None` for the base itself, whose rows stay.
    pub(crate) fn map(&self, model: usize) -> Option<&RowMap> {
        self.maps.get(&model)
    }

    /// Whether a document asks for it and its models need it.
    pub(crate) fn of(
        document: &Document,
        models: &[Model],
        base: Option<usize>,
    ) -> Result<Option<Self>, Diagnostic> {
        let Some(spec) = &document.tokenizer else {
            return Ok(None);
        };
        let wanted = match &spec.source.value {
            TokenizerSource::Base => true,
            TokenizerSource::Model(model) => document.base_model.as_ref() == Some(model),
            TokenizerSource::Union => false,
        };
        if !wanted {
            return Ok(None);
        }
        let fail = |message: String, help: &str| {
            Diagnostic::error(message)
                .label(spec.source.span, "asked for here")
                .help(help)
        };
        let Some(base) = base else {
            return Err(fail(
                "the base model's tokenizer is wanted, but there is no base model".into(),
                "add `base_model`",
            ));
        };
        let sources: Vec<usize> = (0..models.len())
            .filter(|model| models[*model].is_language_model())
            .collect();
        if sources
            .iter()
            .all(|model| models[*model].same_vocabulary(&models[base]))
        {
            return Ok(None);
        }
        let read = |model: usize| {
            models[model].tokenizer().ok_or_else(|| {
                fail(
                    format!("{} has no tokenizer.json that can be read, so its rows cannot be matched by token", models[model].label),
                    "save its tokenizer in the fast format (tokenizer.json) beside the model",
                )
            })
        };
        let of_base = read(base)?;
        let stored = |model: usize| models[model].vocabulary_rows().unwrap_or(usize::MAX);
        let rows = of_base.rows.min(stored(base));
        let mut notes = vec![format!(
            "vocabulary: {rows} rows in the order of {}'s tokenizer",
            models[base].label
        )];
        let mut maps = HashMap::new();
        for model in sources.into_iter().filter(|model| *model != base) {
            let own = read(model)?;
            let mut map = vec![RowMap::FROM_BASE; rows];
            let mut shared = 0;
            for (token, row) in &of_base.tokens {
                if let (Some(to), Some(from)) = (map.get_mut(*row as usize), own.tokens.get(token))
                {
                    // A tokenizer may know more tokens than its model has rows.
                    if (*from as usize) < stored(model) {
                        *to = *from;
                        shared += 1;
                    }
                }
            }
            if own.digest != of_base.digest {
                let label = &models[model].label;
                notes.push(format!("vocabulary: {label} has {shared} of these tokens, the base's rows stand in for the others"));
            }
            maps.insert(
                model,
                RowMap {
                    rows: map.into(),
                    base,
                },
            );
        }
        Ok(Some(Self { maps, rows, notes }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokenizer_counts_rows_not_tokens() {
        let tokens = HashMap::from([("a".to_owned(), 0), ("b".to_owned(), 7)]);
        let tokenizer = Tokenizer::new(tokens.clone());
        assert_eq!(tokenizer.rows, 8);
        assert_eq!(tokenizer.digest, Tokenizer::new(tokens).digest);
        assert_ne!(tokenizer.digest, Tokenizer::new(HashMap::new()).digest);
    }

    #[test]
    fn maps_are_told_apart_by_their_rows() {
        let one = RowMap {
            rows: vec![0, 1].into(),
            base: 0,
        };
        let other = RowMap {
            rows: vec![1, 0].into(),
            base: 0,
        };
        assert_ne!(format!("{one:?}"), format!("{other:?}"));
    }
}
