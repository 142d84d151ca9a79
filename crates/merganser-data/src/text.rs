//! Texts into token ids, with the tokenizer of the model's folder.

use std::path::PathBuf;

use serde_json::Value;
use tokenizers::{EncodeInput, PostProcessor, Tokenizer, TruncationParams};

use crate::error::{Error, Result};
use crate::model_files::ModelFiles;

/// Most tokens of a sample unless something else is asked for.
pub const DEFAULT_MAX_LENGTH: usize = 512;
/// Texts tokenised at a time: what the tokenizer gives is many times larger than what is kept.
const AT_ONCE: usize = 1024;
/// Above this a `model_max_length` means "no limit".
const NO_LIMIT: f64 = 1e9;

/// Token ids of one sample, without padding.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sequence {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Token types (segment ids); empty if all are 0.
    pub types: Vec<u32>,
    /// What the decoder of an encoder-decoder model reads, from its start token on; empty for other models.
    pub decoder: Vec<u32>,
    /// What the decoder should answer, one id for each of `decoder`; empty if that is not known.
    pub target: Vec<u32>,
}

/// A model's tokenizer and its limits.
pub(crate) struct TextProcessor {
    tokenizer: Tokenizer,
    max_length: usize,
    vocabulary: Option<usize>,
    folder: PathBuf,
}

impl TextProcessor {
    /// The tokenizer in the folder, cutting samples at `max_length` tokens (default: what the model takes, at most
    /// [`DEFAULT_MAX_LENGTH`]).
    pub(crate) fn open(files: &ModelFiles, max_length: Option<usize>) -> Result<Self> {
        let folder = files.folder();
        let path = folder.join("tokenizer.json");
        let Some(bytes) = files.bytes("tokenizer.json")? else {
            let other = [
                "tokenizer.model",
                "spiece.model",
                "sentencepiece.bpe.model",
                "vocab.txt",
                "vocab.json",
            ]
            .into_iter()
            .find(|name| folder.join(name).is_file());
            return Err(Error::model(
                folder,
                match other {
                    Some(name) => format!(
                        "it has `{name}` but no `tokenizer.json`, which texts are tokenised with; save one with \
                         `AutoTokenizer.from_pretrained(…).save_pretrained(…)`"
                    ),
                    None => "it has no `tokenizer.json`, which texts are tokenised with; copy the one the model was \
                             trained with, or give ready token ids"
                        .to_owned(),
                },
            ));
        };
        let mut tokenizer = Tokenizer::from_bytes(&bytes)
            .map_err(|error| Error::model(&path, error.to_string()))?;
        let limit = limit(files)?;
        let length = max_length
            .unwrap_or_else(|| limit.unwrap_or(DEFAULT_MAX_LENGTH).min(DEFAULT_MAX_LENGTH));
        check_length(length, files)?;
        let added = tokenizer
            .get_post_processor()
            .map_or(0, |post| post.added_tokens(true));
        if length <= added {
            return Err(Error::Setting(format!(
                "a maximum length of {length} leaves no room for text: the tokenizer adds {added} tokens of its own"
            )));
        }
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(Some(TruncationParams {
                max_length: length,
                ..TruncationParams::default()
            }))
            .map_err(|error| Error::model(&path, error.to_string()))?;
        Ok(Self {
            tokenizer,
            max_length: length,
            vocabulary: files.vocabulary(),
            folder: folder.to_owned(),
        })
    }

    /// Most tokens of a sample.
    pub(crate) fn max_length(&self) -> usize {
        self.max_length
    }

    /// Ids and types of `texts`, each with the second text of its pair if there are such, and how many were cut.
    pub(crate) fn encode(
        &self,
        texts: &[String],
        pairs: Option<&[String]>,
    ) -> Result<(Vec<Sequence>, usize)> {
        let mut cut = 0;
        let mut sequences = Vec::with_capacity(texts.len());
        for start in (0..texts.len()).step_by(AT_ONCE) {
            let range = start..texts.len().min(start + AT_ONCE);
            let pairs = pairs.map(|pairs| &pairs[range.clone()]);
            let (mut more, more_cut) = self.encode_some(&texts[range], pairs)?;
            sequences.append(&mut more);
            cut += more_cut;
        }
        Ok((sequences, cut))
    }

    fn encode_some(
        &self,
        texts: &[String],
        pairs: Option<&[String]>,
    ) -> Result<(Vec<Sequence>, usize)> {
        let inputs: Vec<EncodeInput<'_>> = match pairs {
            None => texts.iter().map(|text| text.as_str().into()).collect(),
            Some(pairs) => texts
                .iter()
                .zip(pairs)
                .map(|(text, pair)| (text.as_str(), pair.as_str()).into())
                .collect(),
        };
        let encodings = self.tokenizer.encode_batch(inputs, true).map_err(|error| {
            Error::model(&self.folder.join("tokenizer.json"), error.to_string())
        })?;
        let cut = encodings
            .iter()
            .filter(|encoding| !encoding.get_overflowing().is_empty())
            .count();
        let sequences = encodings
            .iter()
            .map(|encoding| {
                let ids = encoding.get_ids().to_vec();
                self.check(&ids)?;
                let types = encoding.get_type_ids();
                Ok(Sequence {
                    ids,
                    types: if types.iter().all(|&kind| kind == 0) {
                        Vec::new()
                    } else {
                        types.to_vec()
                    },
                    ..Sequence::default()
                })
            })
            .collect::<Result<_>>()?;
        Ok((sequences, cut))
    }

    /// Ids of a long text, its special tokens around the whole, in windows of the maximum length.
    pub(crate) fn windows(&self, text: &str) -> Result<Vec<Sequence>> {
        let failed = |error: tokenizers::Error| {
            Error::model(&self.folder.join("tokenizer.json"), error.to_string())
        };
        let mut tokenizer = self.tokenizer.clone();
        tokenizer.with_truncation(None).map_err(failed)?;
        let encoding = tokenizer.encode(text, true).map_err(failed)?;
        self.check(encoding.get_ids())?;
        let windows = encoding.get_ids().chunks(self.max_length);
        Ok(windows
            .map(|ids| Sequence {
                ids: ids.to_vec(),
                ..Sequence::default()
            })
            .collect())
    }

    /// Refuses ids that the model has no row for.
    fn check(&self, ids: &[u32]) -> Result<()> {
        let Some(id) = outside(ids, self.vocabulary) else {
            return Ok(());
        };
        Err(Error::model(
            &self.folder,
            format!(
                "its tokenizer gives token {id} (`{}`), but the model's vocabulary has {} tokens; the tokenizer belongs to \
                 another model",
                self.tokenizer.id_to_token(id).unwrap_or_default(),
                self.vocabulary.unwrap_or(0)
            ),
        ))
    }

    /// The id of padding: what the tokenizer's files or the config name; `None` if they name none.
    pub(crate) fn pad(&self, files: &ModelFiles) -> Result<Option<u32>> {
        let named = |value: Option<Value>| -> Option<u32> {
            let value = value?;
            let token = value.get("pad_token")?;
            let text = token.as_str().or_else(|| token.get("content")?.as_str())?;
            self.tokenizer.token_to_id(text)
        };
        for name in ["tokenizer_config.json", "special_tokens_map.json"] {
            if let Some(id) = named(files.json(name)?) {
                return Ok(Some(id));
            }
        }
        Ok(config_pad(files))
    }
}

/// The padding id of config.json.
pub(crate) fn config_pad(files: &ModelFiles) -> Option<u32> {
    u32::try_from(files.text("pad_token_id")?.as_u64()?).ok()
}

/// Most tokens the model takes: its positions, or the tokenizer's limit if that is lower.
fn limit(files: &ModelFiles) -> Result<Option<usize>> {
    let stated = files
        .json("tokenizer_config.json")?
        .and_then(|config| config.get("model_max_length")?.as_f64())
        .filter(|&n| (1.0..NO_LIMIT).contains(&n))
        .map(|n| n as usize);
    Ok(match (files.positions(), stated) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    })
}

/// Refuses a length that the model's table of positions does not have.
pub(crate) fn check_length(length: usize, files: &ModelFiles) -> Result<()> {
    match files.positions() {
        Some(limit) if length > limit => Err(Error::Setting(format!(
            "samples of {length} tokens are too long: the model has {limit} positions"
        ))),
        _ => Ok(()),
    }
}

/// The first id that is no row of the model's vocabulary.
pub(crate) fn outside(ids: &[u32], vocabulary: Option<usize>) -> Option<u32> {
    let limit = vocabulary?;
    ids.iter().copied().find(|&id| id as usize >= limit)
}
