//! A checkpoint: named tensors in one or more files, seen as one map.
//!
//! Accepted are a folder in the layout of the Hugging Face Hub (`model.safetensors`, shards with an
//! index, `pytorch_model.bin`, …) and a single `.safetensors`, `.bin`, `.pt`, `.pth` or `.ckpt`
//! file. Opening reads headers only. Data is read by [`Checkpoint::read`], from any thread, straight
//! from its place in the file; tensors that torch saved with strides are gathered on the way.

mod index;
mod locate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::de::IgnoredAny;

pub use self::index::{Index, IndexError, MAX_INDEX_LEN, parse_index};
use self::locate::{Located, LocatedIndex};
pub(crate) use self::{index::stays_inside, locate::quoted};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::fingerprint::{Hash, Identity};
use crate::header::{self, HeaderError};
use crate::names::Role;
use crate::pickle;
use crate::source::{ReadAt, SourceFile, read_text};
use crate::strided::{Strided, is_contiguous};

/// Longest `config.json` accepted.
const MAX_CONFIG_LEN: u64 = 64 << 20;

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name in the checkpoint.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Position of its file in [`Checkpoint::files`].
    pub file: usize,
    /// Offset of its first element from the start of the file.
    pub offset: u64,
    /// Bytes of its elements in row-major order.
    pub nbytes: u64,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.nbytes / self.dtype.size() as u64
    }
}

/// One weight file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointFile {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes of the file.
    pub size: u64,
    /// BLAKE3 of the header's bytes (of `data.pkl` and the directory, for a torch file).
    pub header_digest: Hash,
    /// Time of the last change.
    pub modified: SystemTime,
    /// What a safetensors header says besides tensors (`__metadata__`).
    pub metadata: BTreeMap<String, String>,
}

impl CheckpointFile {
    /// Cheap fingerprint: equal for equal files, different once a tensor was added, moved or (in a
    /// torch file) changed.
    pub fn identity(&self) -> Identity {
        Identity {
            size: self.size,
            header_digest: self.header_digest,
        }
    }
}

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<CheckpointFile>,
    sources: Vec<SourceFile>,
    tensors: BTreeMap<String, TensorInfo>,
    /// Places of the tensors that are not stored in row-major order.
    strided: BTreeMap<String, Strided>,
    unlisted: Vec<String>,
    notes: Vec<String>,
    config: Option<String>,
    sidecars: Vec<PathBuf>,
    code: Vec<PathBuf>,
}

impl Checkpoint {
    /// Opens the model at `path`, a folder or a single file, and reads its headers.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|cause| Error::io("open", path, cause))?;
        if !metadata.is_dir() {
            let located = Located {
                files: vec![path.to_owned()],
                index: None,
                notes: Vec::new(),
            };
            return Self::load(path, located);
        }
        let names = locate::list(path)?;
        let mut checkpoint = Self::load(path, locate::locate(path, &names)?)?;
        if names.contains("config.json") {
            checkpoint.config = Some(read_json_object(&path.join("config.json"), MAX_CONFIG_LEN)?);
        }
        for name in &names {
            match Role::of(name) {
                Role::Code => checkpoint.code.push(path.join(name)),
                role if role.is_carried() => checkpoint.sidecars.push(path.join(name)),
                _ => {}
            }
        }
        Ok(checkpoint)
    }

    fn load(path: &Path, located: Located) -> Result<Self> {
        let mut checkpoint = Self {
            path: path.to_owned(),
            files: Vec::new(),
            sources: Vec::new(),
            tensors: BTreeMap::new(),
            strided: BTreeMap::new(),
            unlisted: Vec::new(),
            notes: located.notes,
            config: None,
            sidecars: Vec::new(),
            code: Vec::new(),
        };
        for file in &located.files {
            let source = SourceFile::open(file)?;
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("safetensors") => checkpoint.add_safetensors(source)?,
                Some("bin" | "pt" | "pth" | "ckpt") => checkpoint.add_torch(source)?,
                _ => {
                    return Err(Error::NoModel {
                        path: file.clone(),
                        problem:
                            "expected a folder, or a .safetensors, .bin, .pt, .pth or .ckpt file"
                                .into(),
                    });
                }
            }
        }
        if let Some(index) = located.index {
            checkpoint.apply_index(index)?;
        }
        Ok(checkpoint)
    }

    fn add_safetensors(&mut self, source: SourceFile) -> Result<()> {
        let refused = |problem| Error::Header {
            path: source.path().to_owned(),
            problem,
        };
        let size = source.size();
        if size < header::PREFIX_LEN as u64 {
            return Err(refused(HeaderError::NoPrefix(size)));
        }
        let mut prefix = [0; header::PREFIX_LEN];
        source
            .read_exact_at(&mut prefix, 0)
            .map_err(|cause| Error::io("read", source.path(), cause))?;
        let json_len = header::json_len(prefix, size).map_err(refused)?;
        let bytes = source.read_vec(0, header::PREFIX_LEN + json_len)?;
        let header = header::parse(&bytes, size).map_err(refused)?;
        let file = self.add_file(source, blake3::hash(&bytes));
        self.files[file].metadata = header.metadata;
        for tensor in header.tensors {
            let header::HeaderTensor {
                name,
                dtype,
                shape,
                offset,
                nbytes,
            } = tensor;
            self.add_tensor(TensorInfo {
                name,
                dtype,
                shape,
                file,
                offset,
                nbytes,
            })?;
        }
        Ok(())
    }

    fn add_torch(&mut self, source: SourceFile) -> Result<()> {
        let torch = pickle::parse(&source).map_err(|problem| Error::Pickle {
            path: source.path().to_owned(),
            problem,
        })?;
        if !torch.ignored.is_empty() {
            let name = source
                .path()
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            self.notes.push(format!(
                "`{name}`: entries that are not tensors are ignored: {}",
                quoted(&torch.ignored)
            ));
        }
        let file = self.add_file(source, torch.digest);
        for tensor in torch.tensors {
            let pickle::TorchTensor {
                name,
                dtype,
                shape,
                strides,
                offset,
                nbytes,
            } = tensor;
            if !is_contiguous(&shape, &strides) {
                let strided = Strided {
                    offset,
                    item: dtype.size(),
                    shape: shape.clone(),
                    strides,
                };
                self.strided.insert(name.clone(), strided);
            }
            self.add_tensor(TensorInfo {
                name,
                dtype,
                shape,
                file,
                offset,
                nbytes,
            })?;
        }
        Ok(())
    }

    fn add_file(&mut self, source: SourceFile, header_digest: Hash) -> usize {
        self.files.push(CheckpointFile {
            path: source.path().to_owned(),
            size: source.size(),
            header_digest,
            modified: source.modified(),
            metadata: BTreeMap::new(),
        });
        self.sources.push(source);
        self.files.len() - 1
    }

    fn add_tensor(&mut self, tensor: TensorInfo) -> Result<()> {
        if let Some(other) = self.tensors.get(&tensor.name) {
            let file = |tensor: &TensorInfo| self.files[tensor.file].path.display().to_string();
            let problem = IndexError::Duplicate {
                first: file(other),
                second: file(&tensor),
                tensor: tensor.name,
            };
            return Err(Error::Index {
                path: self.path.clone(),
                problem,
            });
        }
        self.tensors.insert(tensor.name.clone(), tensor);
        Ok(())
    }

    /// Checks the index against what the shards hold, and puts aside tensors it does not list, as
    /// transformers would.
    fn apply_index(&mut self, index: LocatedIndex) -> Result<()> {
        let mut kept = BTreeMap::new();
        let mut missing = Vec::new();
        for (name, file) in index.entries {
            match self.tensors.remove(&name) {
                Some(tensor) if tensor.file == file => {
                    kept.insert(name, tensor);
                }
                _ => missing.push((name, file)),
            }
        }
        if let Some((tensor, file)) = missing.first() {
            let shard = self.files[*file]
                .path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let problem = IndexError::TensorMissing {
                tensor: tensor.clone(),
                shard,
                count: missing.len(),
            };
            return Err(Error::Index {
                path: index.path,
                problem,
            });
        }
        self.unlisted = std::mem::replace(&mut self.tensors, kept)
            .into_keys()
            .collect();
        Ok(())
    }

    /// The folder or file it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The weight files; [`TensorInfo::file`] counts in this list.
    pub fn files(&self) -> &[CheckpointFile] {
        &self.files
    }

    /// Tensors that are in a shard but not in the index. They are not part of the model.
    pub fn unlisted(&self) -> &[String] {
        &self.unlisted
    }

    /// Choices made while opening that a user may want to know: which of two formats was read,
    /// which entries of a pickle were ignored.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Text of `config.json`, a JSON object; `None` if there is none or a single file was opened.
    pub fn config(&self) -> Option<&str> {
        self.config.as_deref()
    }

    /// Files that belong beside the weights of a copy: tokenizer, chat template, pre-processors,
    /// generation settings, licence. Sorted by name.
    pub fn sidecars(&self) -> Vec<PathBuf> {
        self.sidecars.clone()
    }

    /// Python files in the folder. They are never copied or run; a model that has some needs
    /// `trust_remote_code` and its user should fetch them from the original.
    pub fn code(&self) -> &[PathBuf] {
        &self.code
    }

    /// Fills `buf` with the bytes of `tensor` from `byte_offset` on, in row-major order. Many
    /// threads may read at once.
    ///
    /// Fails if the range is not inside the tensor, or if the file cannot be read or has become
    /// shorter since it was opened.
    pub fn read(&self, tensor: &TensorInfo, byte_offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = byte_offset.saturating_add(buf.len() as u64);
        let source = self.sources.get(tensor.file);
        let (Some(source), true) = (source, end <= tensor.nbytes) else {
            return Err(Error::Range {
                tensor: tensor.name.clone(),
                start: byte_offset,
                end,
                nbytes: tensor.nbytes,
            });
        };
        let offset = tensor.offset.saturating_add(byte_offset);
        let read = match self.strided.get(&tensor.name) {
            Some(strided) => strided.read(source, byte_offset, buf),
            None => source.read_exact_at(buf, offset),
        };
        read.map_err(|cause| Error::Tensor {
            path: source.path().to_owned(),
            tensor: tensor.name.clone(),
            offset,
            cause: if cause.kind() == std::io::ErrorKind::UnexpectedEof {
                let problem = format!(
                    "the file ends early; it had {} bytes when it was opened",
                    source.size()
                );
                std::io::Error::new(cause.kind(), problem)
            } else {
                cause
            },
        })
    }

    /// All bytes of `tensor`.
    pub fn read_all(&self, tensor: &TensorInfo) -> Result<Vec<u8>> {
        let mut bytes = vec![0; tensor.nbytes as usize];
        self.read(tensor, 0, &mut bytes)?;
        Ok(bytes)
    }
}

/// A JSON object of anything, for checking that a text is one.
#[derive(serde::Deserialize)]
struct Object {
    #[serde(flatten)]
    _entries: IgnoredAny,
}

/// Reads a file that must be a JSON object, and gives its text.
pub(crate) fn read_json_object(path: &Path, limit: u64) -> Result<String> {
    let text = read_text(path, limit)?;
    serde_json::from_str::<Object>(&text).map_err(|error| Error::Json {
        path: path.to_owned(),
        problem: error.to_string(),
    })?;
    Ok(text)
}

#[cfg(test)]
mod tests;
