//! Golden networks, and files of samples and heads made of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use merganser_data::{LoadOptions, Samples, Source};
use merganser_eval::{EvalError, Evaluation, Loaded, Options, Task, evaluate};
use tempfile::TempDir;

pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// The folder of a golden network.
pub(crate) fn golden(name: &str) -> PathBuf {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/forward");
    PathBuf::from(root).join(name)
}

pub(crate) fn read(path: &Path) -> Tensors {
    candle_core::safetensors::load(path, &Device::Cpu)
        .unwrap()
        .into_iter()
        .collect()
}

pub(crate) fn write(path: &Path, tensors: &Tensors) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let tensors: std::collections::HashMap<_, _> = tensors.clone().into_iter().collect();
    candle_core::safetensors::save(&tensors, path).unwrap();
}

/// What PyTorch found.
pub(crate) fn expected(name: &str, what: &str) -> Tensor {
    let tensors = read(&golden(name).join("expected.safetensors"));
    tensors[what].to_dtype(candle_core::DType::F32).unwrap()
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn open(path: &Path) -> Loaded {
    Loaded::open(&path.display().to_string(), path, None, u64::MAX).unwrap()
}

/// The golden inputs of a network as samples.
pub(crate) fn inputs(name: &str) -> Samples {
    let source = Source::new(golden(name).join("inputs.safetensors"));
    open(&golden(name))
        .processor()
        .load(&source, &LoadOptions::default())
        .unwrap()
}

/// A folder for one test.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// A copy of a golden network with other tensors.
    pub(crate) fn model(&self, name: &str, like: &str, tensors: &Tensors) -> PathBuf {
        let folder = self.path(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(golden(like).join("config.json"), folder.join("config.json")).unwrap();
        write(&folder.join("model.safetensors"), tensors);
        folder
    }

    /// A copy of a golden network with a tokenizer of numbered words, `w0` to `w59`.
    pub(crate) fn with_tokenizer(&self, name: &str) -> PathBuf {
        let path = self.model(name, name, &read(&golden(name).join("model.safetensors")));
        let vocab: serde_json::Map<String, serde_json::Value> =
            (0..60).map(|id| (format!("w{id}"), id.into())).collect();
        let tokenizer = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w1"},
        });
        self.file(&format!("{name}/tokenizer.json"), &tokenizer.to_string());
        path
    }

    /// The golden inputs of a network with labels.
    pub(crate) fn labelled(&self, name: &str, labels: &[u32]) -> PathBuf {
        let path = self.path(&format!("{name}.safetensors"));
        let mut tensors = read(&golden(name).join("inputs.safetensors"));
        let labels: Vec<i64> = labels.iter().map(|&id| i64::from(id)).collect();
        tensors.insert("labels".into(), Tensor::new(labels, &Device::Cpu).unwrap());
        write(&path, &tensors);
        path
    }

    pub(crate) fn strip(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.path().display()), "")
            .replace(
                &format!("{}/", golden("").display()).replace("//", "/"),
                "golden/",
            )
    }
}

/// Evaluates models in folders.
pub(crate) fn run(models: &[&Path], tasks: &[Task]) -> Result<Evaluation, EvalError> {
    let models: Vec<String> = models
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let open = |name: &str| Loaded::open(name, Path::new(name), None, u64::MAX);
    evaluate(&models, tasks, &Options::default(), &open, &mut |_| {})
}

/// The row of the largest value of each row of a matrix.
pub(crate) fn argmax(logits: &Tensor) -> Vec<u32> {
    logits
        .argmax(candle_core::D::Minus1)
        .unwrap()
        .to_vec1()
        .unwrap()
}

pub(crate) fn close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (at, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * b.abs().max(1.0),
            "{at}: {a} {b}"
        );
    }
}
