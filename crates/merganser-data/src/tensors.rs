//! Samples that are tensors already: pixels, token ids, masks, labels, from safetensors or NumPy files.
//!
//! | tensor | type | shape |
//! |---|---|---|
//! | `pixel_values` | floating point, normalised | (N, C, H, W) |
//! | `pixels`, `images`, or `pixel_values` of u8 | u8; rescaled and normalised as the model says | (N, H, W, C), (N, H, W) or (N, C, H, W) |
//! | `input_ids` | integers | (N, S) |
//! | `attention_mask`, `token_type_ids` | integers or booleans | (N, S) |
//! | `decoder_input_ids`, `decoder_attention_mask` | integers | (N, S′) |
//! | `labels` | integers (classes) or floating point (scores) | (N) |
//!
//! Names may have a prefix, `test.input_ids`.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use merganser_kernels::convert::{Float, decode};
use merganser_model::kernel_float;
use merganser_store::Dtype;
use merganser_store::checkpoint::{Checkpoint, TensorInfo};
use merganser_store::source::{ReadAt, SourceFile};

use crate::error::{Error, Result, list};
use crate::npy;

/// The tensors that are read, and what each may be called.
const KNOWN: [(&str, &[&str]); 7] = [
    ("pixel_values", &["pixel_values", "pixels", "images"]),
    ("input_ids", &["input_ids"]),
    ("attention_mask", &["attention_mask"]),
    ("token_type_ids", &["token_type_ids"]),
    ("decoder_input_ids", &["decoder_input_ids"]),
    ("decoder_attention_mask", &["decoder_attention_mask"]),
    ("labels", &["labels", "label"]),
];

/// Tensors of one set of samples, by the names of the table above without prefix.
#[derive(Debug)]
pub(crate) struct TensorFile {
    tensors: BTreeMap<&'static str, Array>,
    path: PathBuf,
    /// Names of classes from the file's metadata (`classes`, a JSON list).
    pub(crate) class_names: Option<Vec<String>>,
}

/// One tensor, read as rows.
#[derive(Debug)]
pub(crate) struct Array {
    pub(crate) path: PathBuf,
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    dtype: Dtype,
    data: Data,
}

/// Where the elements lie; they are read row by row.
#[derive(Debug)]
enum Data {
    Checkpoint {
        checkpoint: Arc<Checkpoint>,
        info: TensorInfo,
    },
    Npy {
        file: SourceFile,
        start: u64,
    },
}

/// What the elements of an array are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    Byte,
    Float,
    Integer,
}

impl TensorFile {
    pub(crate) fn safetensors(path: &Path, split: Option<&str>) -> Result<Self> {
        let mut arrays = checkpoint_arrays(path)?;
        let names: Vec<&str> = arrays.keys().map(String::as_str).collect();
        let prefix = prefix(path, &names, split)?;
        let mut tensors = BTreeMap::new();
        for (key, aliases) in KNOWN {
            for alias in aliases {
                if let Some(array) = arrays.remove(&format!("{prefix}{alias}")) {
                    tensors.entry(key).or_insert(array);
                }
            }
        }
        let class_names = metadata(path)?
            .get("classes")
            .and_then(|text| serde_json::from_str(text).ok());
        Ok(Self {
            tensors,
            path: path.to_owned(),
            class_names,
        })
    }

    pub(crate) fn npy(files: &[(String, PathBuf)], split: Option<&str>) -> Result<Self> {
        let path = match files {
            [(_, path)] => path.clone(),
            _ => files
                .first()
                .and_then(|(_, path)| path.parent())
                .map(Path::to_owned)
                .unwrap_or_default(),
        };
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        let known = |name: &str| KNOWN.iter().any(|(_, aliases)| aliases.contains(&name));
        let mut tensors = BTreeMap::new();
        if let [(name, file)] = files
            && !known(name.rsplit('.').next().unwrap_or(name))
        {
            // A single array under any name is told by its type and shape.
            let array = read_npy(name, file)?;
            let key = match (array.element(), array.shape.len()) {
                (Element::Byte, 3 | 4) | (Element::Float, 4) => "pixel_values",
                (Element::Integer, 2) => "input_ids",
                _ => {
                    return Err(Error::tensor(
                        file,
                        name,
                        format!(
                            "shape {:?} is neither pixels (N, H, W, C) nor token ids (N, S)",
                            array.shape
                        ),
                    ));
                }
            };
            tensors.insert(key, array);
        } else {
            let prefix = prefix(&path, &names, split)?;
            for (key, aliases) in KNOWN {
                for alias in aliases {
                    let wanted = format!("{prefix}{alias}");
                    if let Some((name, file)) = files.iter().find(|(name, _)| *name == wanted) {
                        let array = read_npy(name, file)?;
                        tensors.entry(key).or_insert(array);
                    }
                }
            }
        }
        Ok(Self {
            tensors,
            path,
            class_names: None,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<Array> {
        self.tensors.remove(name)
    }
}

/// Every tensor of a file, by name.
pub(crate) fn checkpoint_arrays(path: &Path) -> Result<BTreeMap<String, Array>> {
    let checkpoint = Arc::new(Checkpoint::open(path)?);
    let tensors = checkpoint.tensors().values();
    Ok(tensors
        .map(|info| {
            let array = Array {
                path: path.to_owned(),
                name: info.name.clone(),
                shape: info.shape.clone(),
                dtype: info.dtype,
                data: Data::Checkpoint {
                    checkpoint: checkpoint.clone(),
                    info: info.clone(),
                },
            };
            (info.name.clone(), array)
        })
        .collect())
}

/// The metadata of a safetensors file. Its header was validated before.
pub(crate) fn metadata(path: &Path) -> Result<BTreeMap<String, String>> {
    use std::io::Read;
    let failed = |cause| Error::io("read", path, cause);
    let mut file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix).map_err(failed)?;
    let length = u64::from_le_bytes(prefix).min(size);
    let mut bytes = prefix.to_vec();
    file.take(length).read_to_end(&mut bytes).map_err(failed)?;
    Ok(merganser_store::header::parse(&bytes, size)
        .map(|header| header.metadata)
        .unwrap_or_default())
}

/// What stands before the known names: nothing, `split` and a point, or the only prefix there is.
fn prefix(path: &Path, names: &[&str], split: Option<&str>) -> Result<String> {
    let inputs = |name: &str| {
        KNOWN[..2]
            .iter()
            .flat_map(|(_, aliases)| *aliases)
            .find_map(|alias| name.strip_suffix(alias))
            .map(str::to_owned)
    };
    let mut found: Vec<String> = names.iter().filter_map(|name| inputs(name)).collect();
    found.retain(|prefix| prefix.is_empty() || prefix.ends_with('.'));
    found.sort();
    found.dedup();
    let shown: Vec<&str> = found
        .iter()
        .map(|prefix| prefix.trim_end_matches('.'))
        .filter(|prefix| !prefix.is_empty())
        .collect();
    if let Some(split) = split {
        let wanted = format!("{}.", split.trim_end_matches('.'));
        if found.contains(&wanted) {
            return Ok(wanted);
        }
        return Err(Error::source(
            path,
            format!(
                "has no samples under `{wanted}`; the prefixes it has are {}",
                list(&shown)
            ),
        ));
    }
    match &found[..] {
        [only] => Ok(only.clone()),
        [first, ..] if first.is_empty() => Ok(String::new()),
        [] => {
            let labels = names.iter().any(|name| name.ends_with("labels"));
            Err(Error::source(
                path,
                format!(
                    "holds {} no `input_ids` and no `pixel_values`; its tensors are {}",
                    if labels { "labels but" } else { "" },
                    list(names)
                )
                .replace("holds  no", "holds no"),
            ))
        }
        _ => Err(Error::source(
            path,
            format!("holds the splits {}; choose one", list(&shown)),
        )),
    }
}

impl Array {
    /// Number of samples.
    pub(crate) fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(0)
    }

    pub(crate) fn element(&self) -> Element {
        match self.dtype {
            Dtype::U8 => Element::Byte,
            dtype if kernel_float(dtype).is_some() => Element::Float,
            _ => Element::Integer,
        }
    }

    pub(crate) fn refuse(&self, problem: impl Into<String>) -> Error {
        Error::tensor(&self.path, &self.name, problem)
    }

    /// Elements of a row.
    fn width(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// One row as it is stored, which is what 8-bit elements are.
    pub(crate) fn bytes(&self, row: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.width() * self.dtype.size()];
        self.read(row as u64 * bytes.len() as u64, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `bytes` with what is stored from byte `offset` of the array on.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        match &self.data {
            Data::Checkpoint { checkpoint, info } => checkpoint.read(info, offset, bytes)?,
            Data::Npy { file, start } => file
                .read_exact_at(bytes, start.saturating_add(offset))
                .map_err(|cause| Error::io("read", &self.path, cause))?,
        }
        Ok(())
    }

    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// `count` elements from element `from` on, as they are stored.
    fn elements(&self, from: usize, count: usize) -> Result<Vec<u8>> {
        let size = self.dtype.size();
        let all: usize = self.shape.iter().product();
        if from.checked_add(count).is_none_or(|end| end > all) {
            return Err(self.refuse(format!(
                "elements {from} to {} were asked for, of {all}",
                from.saturating_add(count)
            )));
        }
        let mut bytes = vec![0; count * size];
        self.read((from * size) as u64, &mut bytes)?;
        Ok(bytes)
    }

    /// `count` elements of any type, from element `from` on.
    pub(crate) fn numbers(&self, from: usize, count: usize) -> Result<Vec<f64>> {
        let bytes = self.elements(from, count)?;
        match kernel_float(self.dtype) {
            Some(Float::F64) => {
                let (numbers, _) = bytes.as_chunks::<8>();
                Ok(numbers.iter().map(|b| f64::from_le_bytes(*b)).collect())
            }
            Some(kind) => {
                let mut values = vec![0.0; count];
                decode(kind, &bytes, &mut values);
                Ok(values.into_iter().map(f64::from).collect())
            }
            None => {
                let whole = integers(self.dtype, &bytes).ok_or_else(|| {
                    self.refuse(format!("found {}, expected numbers", self.dtype))
                })?;
                Ok(whole.into_iter().map(|x| x as f64).collect())
            }
        }
    }

    /// `count` elements of whole numbers, from element `from` on.
    pub(crate) fn whole(&self, from: usize, count: usize) -> Result<Vec<i64>> {
        integers(self.dtype, &self.elements(from, count)?)
            .ok_or_else(|| self.refuse(format!("found {}, expected integers", self.dtype)))
    }

    /// One row of floating-point elements.
    pub(crate) fn floats(&self, row: usize) -> Result<Vec<f32>> {
        let Some(kind) = kernel_float(self.dtype) else {
            return Err(self.refuse(format!(
                "found {}, expected floating-point numbers",
                self.dtype
            )));
        };
        let mut values = vec![0.0; self.width()];
        decode(kind, &self.bytes(row)?, &mut values);
        Ok(values)
    }

    /// One row of integers.
    pub(crate) fn integers(&self, row: usize) -> Result<Vec<i64>> {
        integers(self.dtype, &self.bytes(row)?)
            .ok_or_else(|| self.refuse(format!("found {}, expected integers", self.dtype)))
    }
}

fn integers(dtype: Dtype, bytes: &[u8]) -> Option<Vec<i64>> {
    fn each<const N: usize>(bytes: &[u8], one: impl Fn([u8; N]) -> i64) -> Vec<i64> {
        let mut out = Vec::with_capacity(bytes.len() / N);
        let (chunks, _) = bytes.as_chunks::<N>();
        out.extend(chunks.iter().map(|chunk| one(*chunk)));
        out
    }
    Some(match dtype {
        Dtype::I64 => each(bytes, i64::from_le_bytes),
        Dtype::I32 => each(bytes, |b| i64::from(i32::from_le_bytes(b))),
        Dtype::I16 => each(bytes, |b| i64::from(i16::from_le_bytes(b))),
        Dtype::I8 => each(bytes, |b| i64::from(i8::from_le_bytes(b))),
        // Ids above i64::MAX become negative and are refused as such.
        Dtype::U64 => each(bytes, |b| u64::from_le_bytes(b) as i64),
        Dtype::U32 => each(bytes, |b| i64::from(u32::from_le_bytes(b))),
        Dtype::U16 => each(bytes, |b| i64::from(u16::from_le_bytes(b))),
        Dtype::U8 | Dtype::Bool => each(bytes, |[b]| i64::from(b)),
        _ => return None,
    })
}

pub(crate) fn read_npy(name: &str, path: &Path) -> Result<Array> {
    let file = SourceFile::open(path)?;
    let mut prefix = vec![0; npy::MAX_PREFIX.min(file.size() as usize)];
    file.read_exact_at(&mut prefix, 0)
        .map_err(|cause| Error::io("read", path, cause))?;
    let header =
        npy::parse(&prefix, file.size()).map_err(|problem| Error::tensor(path, name, problem))?;
    Ok(Array {
        path: path.to_owned(),
        name: name.to_owned(),
        shape: header.shape,
        dtype: header.dtype,
        data: Data::Npy {
            file,
            start: header.data_start,
        },
    })
}
