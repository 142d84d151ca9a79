//! Named arrays of numbers: the tensors of a safetensors file, or the one array of a NumPy file.
//!
//! What small files of results are read with: statistics, prototypes, maps between embedding spaces, labels.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use merganser_store::source::SourceFile;

use crate::error::{Error, Result, list};
use crate::tensors::{Array, Element, checkpoint_arrays, metadata, read_npy};

/// An opened file: its header is in memory, its numbers are read when asked for.
#[derive(Debug)]
pub struct Arrays {
    path: PathBuf,
    named: BTreeMap<String, Array>,
    metadata: BTreeMap<String, String>,
}

impl Arrays {
    /// Opens a `.npy` file, whose array is called by the name of the file without `.npy`, or a safetensors file.
    ///
    /// # Errors
    /// If it cannot be read, or is neither.
    pub fn open(path: &Path) -> Result<Self> {
        let mut arrays = BTreeMap::new();
        let mut strings = BTreeMap::new();
        if is_npy(path) {
            let name = path.file_stem().unwrap_or_default();
            let name = name.to_string_lossy().into_owned();
            let array = read_npy(&name, path)?;
            arrays.insert(name, array);
        } else {
            // A folder would be taken for a model.
            SourceFile::open(path)?;
            arrays = checkpoint_arrays(path)?;
            strings = metadata(path)?;
        }
        Ok(Self {
            path: path.to_owned(),
            named: arrays,
            metadata: strings,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the arrays, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.named.keys().map(String::as_str)
    }

    /// The strings in the header of a safetensors file.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Whether there is an array of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.named.contains_key(name)
    }

    /// The first of these names that the file has.
    ///
    /// # Errors
    /// If it has none of them.
    pub fn any_of<'a>(&self, names: &[&'a str]) -> Result<&'a str> {
        names
            .iter()
            .find(|name| self.contains(name))
            .copied()
            .ok_or_else(|| self.missing(&names.join("` or `")))
    }

    /// Extents of an array.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.get(name)?.shape)
    }

    /// Whether an array holds floating-point numbers.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn is_float(&self, name: &str) -> Result<bool> {
        Ok(self.get(name)?.element() == Element::Float)
    }

    /// All numbers of an array, whatever their type.
    ///
    /// # Errors
    /// If there is none of this name, it cannot be read, or holds a number that is not finite.
    pub fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        let count = self.get(name)?.shape.iter().product();
        self.numbers_from(name, 0, count)
    }

    /// `count` numbers of an array from number `from` on, in row-major order.
    ///
    /// # Errors
    /// Those of [`numbers`](Self::numbers); a range that is not inside the array.
    pub fn numbers_from(&self, name: &str, from: usize, count: usize) -> Result<Vec<f64>> {
        let array = self.get(name)?;
        let numbers = array.numbers(from, count)?;
        if let Some(at) = numbers.iter().position(|x| !x.is_finite()) {
            return Err(array.refuse(format!(
                "number {} is {}; expected finite numbers",
                from + at,
                numbers[at]
            )));
        }
        Ok(numbers)
    }

    /// All numbers of an array of whole numbers or booleans.
    ///
    /// # Errors
    /// If there is none of this name, it cannot be read, or holds floating-point numbers.
    pub fn integers(&self, name: &str) -> Result<Vec<i64>> {
        let array = self.get(name)?;
        array.whole(0, array.shape.iter().product())
    }

    /// An error about an array: what was found, what was expected.
    pub fn refuse(&self, name: &str, problem: impl Into<String>) -> Error {
        Error::tensor(&self.path, name, problem)
    }

    pub(crate) fn get(&self, name: &str) -> Result<&Array> {
        self.named.get(name).ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> Error {
        let names: Vec<&str> = self.names().collect();
        Error::source(
            &self.path,
            format!("has no tensor `{name}`; it holds {}", list(&names)),
        )
    }
}

pub(crate) fn is_npy(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("npy"))
}
