//! What the folder of a model says about its inputs: config.json, the tokenizer's files, preprocessor_config.json.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};

/// Longest JSON file read here; tokenizers of large vocabularies have some ten MB.
const MAX_LEN: u64 = 512 << 20;

/// The folder of a model.
#[derive(Debug)]
pub(crate) struct ModelFiles {
    folder: PathBuf,
    config: Option<Value>,
}

impl ModelFiles {
    /// Reads config.json, if there is one.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        if !folder.is_dir() {
            return Err(Error::model(
                folder,
                "is not a folder; samples are prepared with the tokenizer or image settings of the model's folder",
            ));
        }
        let mut files = Self {
            folder: folder.to_owned(),
            config: None,
        };
        files.config = files.json("config.json")?;
        Ok(files)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A JSON file of the folder; `None` if it is not there.
    pub(crate) fn json(&self, name: &str) -> Result<Option<Value>> {
        let path = self.folder.join(name);
        match self.bytes(name)? {
            None => Ok(None),
            Some(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| Error::model(&path, format!("not valid JSON: {error}"))),
        }
    }

    /// A file of the folder; `None` if it is not there.
    pub(crate) fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.folder.join(name);
        match std::fs::metadata(&path) {
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(Error::io("open", &path, cause)),
            Ok(metadata) if metadata.len() > MAX_LEN => {
                return Err(Error::model(
                    &path,
                    format!(
                        "has {} bytes; at most {MAX_LEN} are expected",
                        metadata.len()
                    ),
                ));
            }
            Ok(_) => {}
        }
        std::fs::read(&path)
            .map(Some)
            .map_err(|cause| Error::io("read", &path, cause))
    }

    /// A value of config.json that describes the side of the model which reads text: `key` at the top, or in the part
    /// of a two-tower or multimodal model.
    pub(crate) fn text(&self, key: &str) -> Option<&Value> {
        self.value(&["text_config"], key)
    }

    /// The same for the side that reads images.
    pub(crate) fn vision(&self, key: &str) -> Option<&Value> {
        self.value(&["vision_config"], key)
    }

    fn value(&self, parts: &[&str], key: &str) -> Option<&Value> {
        let config = self.config.as_ref()?;
        parts
            .iter()
            .filter_map(|part| config.get(*part)?.get(key))
            .chain(config.get(key))
            .find(|value| !value.is_null())
    }

    /// A positive whole number of config.json.
    pub(crate) fn size(value: Option<&Value>) -> Option<usize> {
        value?
            .as_u64()
            .filter(|&n| n > 0)
            .and_then(|n| usize::try_from(n).ok())
    }

    /// Number of rows of the table of tokens.
    pub(crate) fn vocabulary(&self) -> Option<usize> {
        Self::size(self.text("vocab_size"))
    }

    /// Most tokens a sample may have, by the model's table of positions.
    pub(crate) fn positions(&self) -> Option<usize> {
        let stated = [
            "max_position_embeddings",
            "n_positions",
            "n_ctx",
            "max_seq_len",
        ]
        .iter()
        .find_map(|key| Self::size(self.text(key)))?;
        // RoBERTa counts positions from the padding id + 1.
        let offset = match self.text("model_type").and_then(Value::as_str) {
            Some("roberta" | "xlm-roberta" | "camembert" | "mpnet" | "longformer") => {
                1 + self
                    .text("pad_token_id")
                    .and_then(Value::as_u64)
                    .unwrap_or(1) as usize
            }
            _ => 0,
        };
        Some(stated.saturating_sub(offset).max(1))
    }

    /// Whether an encoder feeds a decoder.
    pub(crate) fn encoder_decoder(&self) -> bool {
        self.value(&[], "is_encoder_decoder")
            .and_then(Value::as_bool)
            .unwrap_or(false)
    }

    /// The token a decoder's text begins with.
    pub(crate) fn decoder_start(&self) -> Option<u32> {
        ["decoder_start_token_id", "pad_token_id"]
            .iter()
            .find_map(|key| self.value(&[], key)?.as_u64())
            .and_then(|id| u32::try_from(id).ok())
    }

    /// Names of the classes of the model's head, in the order of its rows; `None` if they are missing or only the
    /// placeholders `LABEL_0`, ….
    pub(crate) fn class_names(&self) -> Option<Vec<String>> {
        let map = self.value(&[], "id2label")?.as_object()?;
        let names: Vec<String> = (0..map.len())
            .map(|id| map.get(&id.to_string())?.as_str().map(str::to_owned))
            .collect::<Option<_>>()?;
        let placeholder = |name: &String| name.starts_with("LABEL_");
        (!names.is_empty() && !names.iter().all(placeholder)).then_some(names)
    }
}
