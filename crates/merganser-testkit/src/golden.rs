//! Golden cases: folders of `params.json`, `inputs.safetensors` and `expected.safetensors` made with the authors' code.
//!
//! Names inside the files: `base/NAME`, `task0/NAME`, `task1/NAME`, … for the models; anything else (`fisher0/NAME`,
//! `drop1/NAME`) as the case says. Among the expectations a plain `NAME` is the merged tensor as the authors' code gives
//! it in f32, and `f64/NAME`, where present, the same code run on f64 copies of the inputs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::float;

/// One tensor, its elements as `f64` whatever the file holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Element type in the file.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// Elements in row-major order.
    pub values: Vec<f64>,
}

impl Tensor {
    /// The elements rounded to `f32`, which is exact for every type but `F64` and wide integers.
    pub fn f32(&self) -> Vec<f32> {
        self.values.iter().map(|&x| x as f32).collect()
    }
}

/// Every tensor of a safetensors file, by name.
///
/// # Panics
/// If the file cannot be read or is not a safetensors file.
pub fn read_safetensors(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.iter()
        .map(|(name, view)| {
            let values = float::decode(view.dtype(), view.data());
            (
                name.to_owned(),
                Tensor {
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                    values,
                },
            )
        })
        .collect()
}

/// A golden case.
#[derive(Debug, Clone)]
pub struct Case {
    /// Name of its folder.
    pub name: String,
    /// Its hyperparameters (`hyper` of `params.json`).
    pub hyper: Value,
    /// Tensors of `inputs.safetensors`.
    pub inputs: BTreeMap<String, Tensor>,
    /// Tensors of `expected.safetensors`.
    pub expected: BTreeMap<String, Tensor>,
}

impl Case {
    /// Reads one case.
    ///
    /// # Panics
    /// If one of its three files is missing or malformed.
    pub fn load(folder: &Path) -> Self {
        let path = folder.join("params.json");
        let text =
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut params: Value = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self {
            name: folder
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            hyper: params["hyper"].take(),
            inputs: read_safetensors(&folder.join("inputs.safetensors")),
            expected: read_safetensors(&folder.join("expected.safetensors")),
        }
    }

    /// Number of fine-tuned models.
    pub fn tasks(&self) -> usize {
        let has_task = |i: &usize| {
            self.inputs
                .keys()
                .any(|key| key.starts_with(&format!("task{i}/")))
        };
        (0..self.inputs.len()).take_while(has_task).count()
    }

    /// Names of the tensors of the models, in name order.
    pub fn names(&self) -> Vec<String> {
        self.inputs
            .keys()
            .filter_map(|key| key.strip_prefix("task0/").map(str::to_owned))
            .collect()
    }

    /// Tensor `name` of the base model.
    ///
    /// # Panics
    /// If the case has none.
    pub fn base(&self, name: &str) -> &Tensor {
        self.input(&format!("base/{name}"))
    }

    /// Tensor `name` of fine-tuned model `task`.
    ///
    /// # Panics
    /// If the case has none.
    pub fn task(&self, task: usize, name: &str) -> &Tensor {
        self.input(&format!("task{task}/{name}"))
    }

    /// The input called `key` in the file.
    ///
    /// # Panics
    /// If the case has none.
    pub fn input(&self, key: &str) -> &Tensor {
        self.inputs
            .get(key)
            .unwrap_or_else(|| panic!("case {}: no input '{key}'", self.name))
    }

    /// The expectation called `key`: its f64 twin where there is one.
    ///
    /// # Panics
    /// If the case has neither.
    pub fn expect(&self, key: &str) -> &Tensor {
        let twin = self.expected.get(&format!("f64/{key}"));
        twin.or_else(|| self.expected.get(key))
            .unwrap_or_else(|| panic!("case {}: '{key}' is not expected", self.name))
    }

    /// Hyperparameter `name`, a number.
    ///
    /// # Panics
    /// If the case has no such number.
    pub fn number(&self, name: &str) -> f64 {
        self.hyper[name]
            .as_f64()
            .unwrap_or_else(|| panic!("case {}: no number '{name}' in {}", self.name, self.hyper))
    }
}

/// The repository's folder of golden data.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

/// Every golden case of a merge method, in name order.
///
/// # Panics
/// If there is none: a test over no case would pass without testing anything.
pub fn cases(method: &str) -> Vec<Case> {
    let folder = folder().join("methods").join(method);
    let entries =
        fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut folders: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    assert!(!folders.is_empty(), "{}: no golden cases", folder.display());
    folders.iter().map(|folder| Case::load(folder)).collect()
}
