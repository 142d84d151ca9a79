//! What each file of a model folder is, by its name.
//!
//! Two decisions rest on this: which files of an input belong in the output beside the weights
//! (`Checkpoint::sidecars`), and which files of an old model `--overwrite` may replace. A name that
//! is not known is neither copied nor touched.

/// Role of a file in a model folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Tensor data, of the model or of an adapter.
    Weights,
    /// Which shard holds which tensor.
    Index,
    /// `config.json` or `adapter_config.json`: what a loader looks for first.
    Config,
    /// Tokenizer, chat template, pre-processor and generation settings: copied as they are.
    Sidecar,
    /// Licence, notice, use policy: copied as they are.
    Licence,
    /// Model card; belongs to one model, not copied.
    Card,
    /// Python code that `trust_remote_code` would run: never copied.
    Code,
    /// Anything else.
    Other,
}

const SIDECARS: [&str; 13] = [
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
    "feature_extraction_config.json",
    "normalizer.json",
    "bpe.codes",
    "tekken.json",
];

impl Role {
    /// The role of the file called `name` (a plain file name, no folders).
    pub fn of(name: &str) -> Self {
        let lower = name.to_ascii_lowercase();
        let ends = |suffix: &str| lower.ends_with(suffix);
        let starts = |prefix: &str| lower.starts_with(prefix);
        if name == "config.json" || name == "adapter_config.json" {
            Self::Config
        } else if is_weights(name) {
            Self::Weights
        } else if ends(".safetensors.index.json") || ends(".bin.index.json") {
            Self::Index
        } else if SIDECARS.contains(&lower.as_str())
            || (starts("tokenizer") && (ends(".json") || ends(".txt") || lower.contains(".model")))
            || (starts("vocab") && (ends(".json") || ends(".txt") || ends(".bpe")))
            || (starts("chat_template") && (ends(".json") || ends(".jinja")))
            // SentencePiece, under whatever name.
            || ends(".model")
            || ends(".tiktoken")
        {
            Self::Sidecar
        } else if ["licence", "license", "notice", "use_policy"]
            .iter()
            .any(|stem| starts(stem))
        {
            Self::Licence
        } else if lower == "readme.md" {
            Self::Card
        } else if ends(".py") {
            Self::Code
        } else {
            Self::Other
        }
    }

    /// Whether a copy of a model carries this file along.
    pub const fn is_carried(self) -> bool {
        matches!(self, Self::Sidecar | Self::Licence)
    }
}

/// Whether `name` is one that a loader takes for weights. Other `*.safetensors` files may be
/// anything (an embedding, moments of a calibration), so they do not count.
fn is_weights(name: &str) -> bool {
    let Some((stem, extension)) = name.rsplit_once('.') else {
        return false;
    };
    if !["safetensors", "bin", "pt", "pth"].contains(&extension) {
        return false;
    }
    let stem = shard_of(stem).map_or(stem, |shard| shard.stem);
    [
        "model",
        "pytorch_model",
        "diffusion_pytorch_model",
        "adapter_model",
        "consolidated",
    ]
    .contains(&stem)
}

/// The parts of a shard's name: `model-00002-of-00005` is shard 2 of 5 of `model`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShardName<'a> {
    pub(crate) stem: &'a str,
    pub(crate) number: u32,
    pub(crate) count: u32,
}

/// Takes apart a shard's file name without its extension.
pub(crate) fn shard_of(stem: &str) -> Option<ShardName<'_>> {
    let digits = |text: &str| -> Option<u32> {
        text.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse().ok())?
    };
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    Some(ShardName {
        stem,
        number: digits(number)?,
        count: digits(count)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_real_model_folders() {
        for (role, names) in [
            (Role::Config, &["config.json", "adapter_config.json"][..]),
            (
                Role::Weights,
                &[
                    "model.safetensors",
                    "model-00001-of-00163.safetensors",
                    "pytorch_model.bin",
                    "pytorch_model-00002-of-00002.bin",
                    "diffusion_pytorch_model.safetensors",
                    "adapter_model.safetensors",
                    "adapter_model.bin",
                    "consolidated.safetensors",
                ],
            ),
            (
                Role::Index,
                &[
                    "model.safetensors.index.json",
                    "pytorch_model.bin.index.json",
                ],
            ),
            (
                Role::Sidecar,
                &[
                    "tokenizer.json",
                    "tokenizer.model",
                    "tokenizer.model.v3",
                    "tekken.json",
                    "tokenizer_config.json",
                    "vocab.json",
                    "vocab.txt",
                    "merges.txt",
                    "special_tokens_map.json",
                    "added_tokens.json",
                    "chat_template.jinja",
                    "chat_template.json",
                    "generation_config.json",
                    "preprocessor_config.json",
                    "video_preprocessor_config.json",
                    "processor_config.json",
                    "spiece.model",
                    "source.spm.model",
                    "qwen.tiktoken",
                ],
            ),
            (
                Role::Licence,
                &[
                    "LICENSE",
                    "LICENSE.txt",
                    "NOTICE",
                    "USE_POLICY.md",
                    "License.md",
                ],
            ),
            (Role::Card, &["README.md"]),
            (
                Role::Code,
                &[
                    "modeling_phi3.py",
                    "configuration_phi3.py",
                    "tokenization_qwen.py",
                ],
            ),
            (
                Role::Other,
                &[
                    "moments.safetensors",
                    "training_args.bin",
                    "optimizer.pt",
                    "notes.txt",
                    "merganser.json",
                    ".gitattributes",
                    "mymodel.safetensors",
                ],
            ),
        ] {
            for name in names {
                assert_eq!(Role::of(name), role, "{name}");
            }
        }
    }

    #[test]
    fn shard_names() {
        assert_eq!(
            shard_of("model-00002-of-00005"),
            Some(ShardName {
                stem: "model",
                number: 2,
                count: 5
            })
        );
        assert_eq!(
            shard_of("a-b-1-of-2"),
            Some(ShardName {
                stem: "a-b",
                number: 1,
                count: 2
            })
        );
        for name in [
            "model",
            "model-of-5",
            "model-x-of-5",
            "model-1-of-",
            "model-1-of--2",
            "model-1-of-+2",
        ] {
            assert_eq!(shard_of(name), None, "{name}");
        }
    }
}
