//! Small models and files to load samples from.

use std::path::PathBuf;

use merganser_data::{Inputs, LoadOptions, Processor, Result, Samples, Sequence, Source};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with a model and files of samples.
pub(crate) struct Place {
    pub(crate) dir: TempDir,
}

/// Words of the tokenizer, by id.
pub(crate) const WORDS: [&str; 10] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "a", "mat",
];

pub(crate) fn tokenizer() -> Value {
    let special: Vec<Value> = (0..4)
        .map(|id| json!({"id": id, "content": WORDS[id], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}))
        .collect();
    let vocab: serde_json::Map<String, Value> = WORDS
        .iter()
        .zip(0..)
        .map(|(word, id)| ((*word).into(), json!(id)))
        .collect();
    let cls = json!({"SpecialToken": {"id": "[CLS]", "type_id": 0}});
    let sep = |kind: u32| json!({"SpecialToken": {"id": "[SEP]", "type_id": kind}});
    let part = |name: &str, kind: u32| json!({"Sequence": {"id": name, "type_id": kind}});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special,
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [cls, part("A", 0), sep(0)],
            "pair": [cls, part("A", 0), sep(0), part("B", 1), sep(1)],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
            },
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    })
}

impl Place {
    /// A folder with an empty model.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("model")).unwrap();
        Self { dir }
    }

    /// A model that reads up to 16 tokens of the ten words.
    pub(crate) fn text() -> Self {
        let place = Self::new();
        place.config(&json!({"model_type": "bert", "vocab_size": 10, "max_position_embeddings": 16, "pad_token_id": 0}));
        place.json("model/tokenizer.json", &tokenizer());
        place.json(
            "model/tokenizer_config.json",
            &json!({"pad_token": "[PAD]"}),
        );
        place
    }

    /// A model that reads images of 4×4 pixels.
    pub(crate) fn vision() -> Self {
        let place = Self::new();
        place.config(&json!({"model_type": "vit", "image_size": 4, "num_channels": 3}));
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn json(&self, name: &str, value: &Value) -> PathBuf {
        self.write(name, value.to_string())
    }

    pub(crate) fn config(&self, value: &Value) {
        self.json("model/config.json", value);
    }

    pub(crate) fn load(&self, source: &Source, options: &LoadOptions) -> Result<Samples> {
        Processor::open(&self.path("model"))?.load(source, options)
    }

    /// Loads `name` with labels and no other wish.
    pub(crate) fn labelled(&self, name: &str) -> Result<Samples> {
        self.load(&Source::new(self.path(name)), &labels())
    }

    pub(crate) fn plain(&self, name: &str) -> Result<Samples> {
        self.load(&Source::new(self.path(name)), &LoadOptions::default())
    }

    /// The message of the refusal, with the folder taken out of it.
    pub(crate) fn refusal(&self, source: &Source, options: &LoadOptions) -> String {
        let message = match self.load(source, options) {
            Err(error) => error.to_string(),
            Ok(samples) => match samples.to_batches(4) {
                Err(error) => error.to_string(),
                Ok(_) => panic!("not refused: {samples:?}"),
            },
        };
        self.strip(&message)
    }

    pub(crate) fn strip(&self, message: &str) -> String {
        message.replace(&format!("{}/", self.dir.path().display()), "")
    }

    pub(crate) fn plain_refusal(&self, name: &str) -> String {
        self.refusal(&Source::new(self.path(name)), &LoadOptions::default())
    }

    pub(crate) fn labelled_refusal(&self, name: &str) -> String {
        self.refusal(&Source::new(self.path(name)), &labels())
    }

    /// A safetensors file.
    pub(crate) fn tensors(
        &self,
        name: &str,
        tensors: &[Stored],
        metadata: &[(&str, &str)],
    ) -> PathBuf {
        let views: Vec<(&str, TensorView<'_>)> = tensors
            .iter()
            .map(|t| {
                (
                    t.name,
                    TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap(),
                )
            })
            .collect();
        let metadata = metadata
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect();
        self.write(name, safetensors::serialize(views, Some(metadata)).unwrap())
    }
}

pub(crate) struct Stored {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

pub(crate) fn u8s(name: &'static str, shape: &[usize], values: &[u8]) -> Stored {
    Stored {
        name,
        dtype: Dtype::U8,
        shape: shape.to_vec(),
        bytes: values.to_vec(),
    }
}

pub(crate) fn i64s(name: &'static str, shape: &[usize], values: &[i64]) -> Stored {
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    Stored {
        name,
        dtype: Dtype::I64,
        shape: shape.to_vec(),
        bytes,
    }
}

pub(crate) fn i32s(name: &'static str, shape: &[usize], values: &[i32]) -> Stored {
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    Stored {
        name,
        dtype: Dtype::I32,
        shape: shape.to_vec(),
        bytes,
    }
}

pub(crate) fn f32s(name: &'static str, shape: &[usize], values: &[f32]) -> Stored {
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    Stored {
        name,
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        bytes,
    }
}

pub(crate) fn labels() -> LoadOptions {
    LoadOptions {
        labels: true,
        ..LoadOptions::default()
    }
}

pub(crate) fn sequences(samples: &Samples) -> &[Sequence] {
    match &samples.inputs {
        Inputs::Text { sequences, .. } => sequences,
        Inputs::Images(_) => panic!("images"),
    }
}

pub(crate) fn ids(samples: &Samples) -> Vec<Vec<u32>> {
    sequences(samples).iter().map(|s| s.ids.clone()).collect()
}

/// All pixels of the samples in order, with the shape of one.
pub(crate) fn pixels(samples: &Samples) -> (Vec<f32>, Vec<usize>) {
    let all: Vec<usize> = (0..samples.len()).collect();
    let pixels = samples.batch(&all).unwrap().pixels.unwrap();
    let shape = pixels.dims()[1..].to_vec();
    (pixels.flatten_all().unwrap().to_vec1().unwrap(), shape)
}

/// A PNG of `width`×`height` RGB pixels.
pub(crate) fn png(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> Vec<u8> {
    let image = image::RgbImage::from_fn(width, height, |x, y| image::Rgb(pixel(x, y)));
    let mut bytes = Vec::new();
    image
        .write_to(
            &mut std::io::Cursor::new(&mut bytes),
            image::ImageFormat::Png,
        )
        .unwrap();
    bytes
}
