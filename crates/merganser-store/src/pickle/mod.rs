//! Checkpoints written by `torch.save`, read without Python and without executing anything.
//!
//! Two formats exist. Since torch 1.6: a zip archive with `data.pkl` (the structure) and one
//! uncompressed file `data/<key>` for each storage. Before: a series of pickles followed by the
//! storages one after the other. In both, the structure is a pickle, of which only plain data and
//! tensors are accepted; any other name it refers to ends the reading with an error that gives the
//! name. Tensors are then known by their place in the file, and their data is left alone.
//!
//! Source: `torch/serialization.py`, `torch/_utils.py`.

mod cursor;
mod machine;
mod zip;

use std::collections::{BTreeMap, HashMap};

use self::cursor::Cursor;
use self::machine::{Machine, Storage, Value};
use crate::dtype::Dtype;
use crate::fingerprint::Hash;
use crate::source::ReadAt;
use crate::strided::Strided;

/// Longest pickle accepted. That of a model with 100,000 tensors has 15 MB.
pub const MAX_PICKLE_LEN: u64 = 256 << 20;
/// First pickle of the legacy format.
const LEGACY_MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const LEGACY_PROTOCOL: i128 = 1001;
/// Keys under which training scripts keep the state dict, looked into if there is no tensor beside.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];
/// Most bytes of a tensor whose elements share storage (`torch.expand`): a few stored bytes could
/// otherwise claim any amount of memory.
const MAX_REPEATED: u64 = 1 << 30;
/// How many wrappers may lie in one another.
const MAX_WRAPPERS: usize = 3;

/// Why a torch checkpoint was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PickleError {
    /// It names something that is not plain data.
    #[error(
        "its pickle refers to `{module}.{name}`, which is not plain tensor data; nothing was executed \
         (save only the state dict, or convert it to safetensors with software you trust)"
    )]
    Forbidden {
        /// The Python module.
        module: String,
        /// The name in it.
        name: String,
    },
    /// Elements of a kind that is not read.
    #[error("its pickle holds a `torch.{0}`, an element type that is not supported")]
    Storage(String),
    /// An instruction that checkpoints do not use.
    #[error(
        "its pickle has instruction {opcode:#04x} at byte {at}, which checkpoints do not use; nothing was executed"
    )]
    Opcode {
        /// Offset of the instruction.
        at: u64,
        /// Its code.
        opcode: u8,
    },
    /// The pickle makes no sense.
    #[error("its pickle is damaged at byte {at}: {problem}")]
    Malformed {
        /// Offset of the instruction.
        at: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// The pickle runs for too long.
    #[error("its pickle has more than {0} instructions")]
    TooLong(u64),
    /// The file ends inside the structure.
    #[error(
        "it ends at byte {0}, before its structure does; it is truncated, download or copy it again"
    )]
    Truncated(u64),
    /// It is of no known format.
    #[error("{0}")]
    Format(&'static str),
    /// The archive is damaged.
    #[error("as a zip archive it cannot be read: {0}")]
    Zip(&'static str),
    /// A file in the archive cannot be read in place.
    #[error("`{name}` in it is {problem}; torch stores its files plain")]
    Stored {
        /// The file.
        name: String,
        /// What it is instead.
        problem: &'static str,
    },
    /// A storage is not there, or smaller than said.
    #[error("tensor `{tensor}` needs {needed} bytes of storage `{key}`, which has {found}")]
    Bounds {
        /// The tensor.
        tensor: String,
        /// The storage.
        key: String,
        /// Bytes up to the end of the tensor.
        needed: u64,
        /// Bytes there are.
        found: u64,
    },
    /// A tensor's extents overflow.
    #[error("tensor `{0}` has a shape, strides or offset that overflow 64 bits")]
    Overflow(String),
    /// One stored element stands for many more than plausible.
    #[error(
        "tensor `{tensor}` repeats {stored} stored bytes to {nbytes}; save a contiguous copy of it"
    )]
    Repeated {
        /// The tensor.
        tensor: String,
        /// Bytes it spans in its storage.
        stored: u64,
        /// Bytes it would have.
        nbytes: u64,
    },
    /// It holds no state dict.
    #[error("it holds no tensors by name: {0}")]
    NoTensors(String),
    /// The operating system refused a read.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// One tensor of a torch checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TorchTensor {
    /// Its key in the state dict.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Distance in elements between neighbours along each dimension.
    pub strides: Vec<usize>,
    /// Offset in the file of its first element.
    pub offset: u64,
    /// Bytes of its elements, if they were stored back to back.
    pub nbytes: u64,
}

/// The content of a torch checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TorchFile {
    /// The tensors in the order of the state dict. All lie inside the file.
    pub tensors: Vec<TorchTensor>,
    /// Entries that are not tensors, as `key (kind)`.
    pub ignored: Vec<String>,
    /// BLAKE3 of the structure (and of the archive's directory).
    pub digest: Hash,
}

/// Reads the structure of the checkpoint in `source`, a file or bytes in memory. Tensor data is not
/// read.
pub fn parse<R: ReadAt + ?Sized>(source: &R) -> Result<TorchFile, PickleError> {
    let mut start = [0; 8];
    let len = source.size().min(8) as usize;
    source.read_exact_at(&mut start[..len], 0)?;
    match &start {
        b"version " => Err(PickleError::Format(
            "it is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository",
        )),
        [b'P', b'K', 3, 4, ..] => parse_zip(source),
        [0x80, ..] => parse_legacy(source),
        _ => Err(PickleError::Format(
            "it is not a torch checkpoint: neither a zip archive nor a pickle",
        )),
    }
}

fn parse_zip<R: ReadAt + ?Sized>(source: &R) -> Result<TorchFile, PickleError> {
    let zip::Directory { entries, bytes } = zip::directory(source)?;
    let root = entries
        .iter()
        .filter_map(|entry| entry.name.strip_suffix("data.pkl"))
        .find(|root| root.is_empty() || (root.ends_with('/') && root.matches('/').count() == 1))
        .ok_or(PickleError::Format(
            "it is a zip archive without `data.pkl`, not a torch checkpoint",
        ))?
        .to_owned();
    let files: HashMap<&str, &zip::Entry> = entries
        .iter()
        .filter_map(|entry| Some((entry.name.strip_prefix(&root)?, entry)))
        .collect();
    if files.contains_key("constants.pkl") {
        return Err(PickleError::Format(
            "it is a TorchScript programme; save its state dict instead",
        ));
    }
    let read = |entry: &zip::Entry| -> Result<Vec<u8>, PickleError> {
        let mut bytes = vec![0; entry.size.min(MAX_PICKLE_LEN) as usize];
        source.read_exact_at(&mut bytes, entry.data_offset(source)?)?;
        Ok(bytes)
    };
    if let Some(entry) = files.get("byteorder")
        && read(entry)? != b"little"
    {
        return Err(BIG_ENDIAN);
    }
    let structure = files["data.pkl"];
    if structure.size > MAX_PICKLE_LEN {
        return Err(PickleError::Format("its `data.pkl` is implausibly long"));
    }
    let structure = read(structure)?;
    let mut machine = Machine::default();
    let top = machine.run(&mut Cursor::new(&structure[..], 0, structure.len() as u64))?;

    let mut hasher = blake3::Hasher::new();
    hasher.update(&structure).update(&bytes);
    let mut known = HashMap::new();
    collect(&machine, top, hasher.finalize(), |key, _| {
        if let Some(&place) = known.get(key) {
            return Ok(place);
        }
        let place = match files.get(format!("data/{key}").as_str()) {
            Some(entry) => (entry.data_offset(source)?, entry.size),
            None => (0, 0),
        };
        known.insert(key.to_owned(), place);
        Ok(place)
    })
}

const BIG_ENDIAN: PickleError = PickleError::Format(
    "it was written on a big-endian machine; save it again on a little-endian one",
);

fn parse_legacy<R: ReadAt + ?Sized>(source: &R) -> Result<TorchFile, PickleError> {
    const NOT_TORCH: PickleError = PickleError::Format(
        "it is a pickle, but not one written by `torch.save`; nothing was executed",
    );
    let mut cursor = Cursor::new(source, 0, MAX_PICKLE_LEN);
    let magic = Machine::default().run(&mut cursor)?;
    if magic != Value::Int(LEGACY_MAGIC) {
        return Err(NOT_TORCH);
    }
    if Machine::default().run(&mut cursor)? != Value::Int(LEGACY_PROTOCOL) {
        return Err(NOT_TORCH);
    }
    let mut system = Machine::default();
    let Value::Dict(dict) = system.run(&mut cursor)? else {
        return Err(NOT_TORCH);
    };
    let little = system.dicts[dict].iter().any(|&(key, value)| {
        matches!(key, Value::Str(key) if system.strings[key] == "little_endian")
            && value == Value::Bool(true)
    });
    if !little {
        return Err(BIG_ENDIAN);
    }
    let mut machine = Machine::default();
    let top = machine.run(&mut cursor)?;
    let mut list = Machine::default();
    let Value::Seq(keys) = list.run(&mut cursor)? else {
        return Err(NOT_TORCH);
    };
    let structure_end = cursor.offset();
    let mut structure = vec![0; structure_end as usize];
    source.read_exact_at(&mut structure, 0)?;

    // The storages follow in the order of the keys, each with its length before it.
    let sizes: HashMap<&str, u64> = machine
        .storages
        .iter()
        .map(|Storage { dtype, key, .. }| {
            (
                machine.strings[*key].as_str(),
                dtype.map_or(1, |dtype| dtype.size() as u64),
            )
        })
        .collect();
    let mut places = HashMap::new();
    let mut cursor = Cursor::new(source, structure_end, u64::MAX);
    for key in &list.seqs[keys] {
        let Value::Str(key) = *key else {
            return Err(NOT_TORCH);
        };
        let key = list.strings[key].as_str();
        let item = *sizes.get(key).ok_or(PickleError::Format(
            "it holds a storage that its structure does not mention",
        ))?;
        let numel = u64::from_le_bytes(cursor.array()?);
        let (start, len) = (cursor.offset(), numel.saturating_mul(item));
        let end = start.saturating_add(len);
        if end > source.size() {
            return Err(PickleError::Truncated(source.size()));
        }
        places.insert(key.to_owned(), (start, len));
        cursor.seek(end);
    }
    collect(&machine, top, blake3::hash(&structure), |key, _| {
        Ok(places.get(key).copied().unwrap_or((0, 0)))
    })
}

/// Turns the state dict under `top` into tensors with places in the file. `place` gives offset and
/// length of a storage, (0, 0) if it is not there.
fn collect(
    machine: &Machine,
    top: Value,
    digest: Hash,
    mut place: impl FnMut(&str, &Storage) -> Result<(u64, u64), PickleError>,
) -> Result<TorchFile, PickleError> {
    let entries = state_dict(machine, top)?;
    let mut ignored = Vec::new();
    // A key may be set twice; the last value counts, as in Python, at the place of the first.
    let mut order: Vec<TorchTensor> = Vec::new();
    let mut positions: BTreeMap<&str, usize> = BTreeMap::new();
    for &(key, value) in entries {
        let name = match key {
            Value::Str(key) => machine.strings[key].as_str(),
            _ => "(key that is not a string)",
        };
        let (Value::Str(_), Value::Tensor(tensor)) = (key, value) else {
            ignored.push(format!("{name} ({})", kind(value)));
            continue;
        };
        let tensor = &machine.tensors[tensor];
        let storage = &machine.storages[tensor.storage];
        let key = machine.strings[storage.key].as_str();
        let tensor = located(name, tensor, storage, key, place(key, storage)?)?;
        if let Some(&position) = positions.get(name) {
            order[position] = tensor;
        } else {
            positions.insert(name, order.len());
            order.push(tensor);
        }
    }
    Ok(TorchFile {
        tensors: order,
        ignored,
        digest,
    })
}

/// The dict that holds tensors: the top one, or one inside a known wrapper.
fn state_dict(machine: &Machine, top: Value) -> Result<&[(Value, Value)], PickleError> {
    let mut value = top;
    for _ in 0..=MAX_WRAPPERS {
        let Value::Dict(dict) = value else { break };
        let entries = &machine.dicts[dict];
        if entries
            .iter()
            .any(|(_, value)| matches!(value, Value::Tensor(_)))
        {
            return Ok(entries);
        }
        let inner = WRAPPERS.iter().find_map(|wrapper| {
            entries
                .iter()
                .rev()
                .find_map(|&(key, value)| match (key, value) {
                    (Value::Str(key), Value::Dict(_)) if machine.strings[key] == *wrapper => {
                        Some(value)
                    }
                    _ => None,
                })
        });
        if let Some(inner) = inner {
            value = inner;
            continue;
        }
        if entries.is_empty() {
            return Err(PickleError::NoTensors("its dict is empty".to_owned()));
        }
        let keys = entries.iter().filter_map(|(key, _)| match key {
            Value::Str(key) => Some(&machine.strings[*key]),
            _ => None,
        });
        let keys = crate::checkpoint::quoted(keys);
        return Err(PickleError::NoTensors(format!("its keys are {keys}")));
    }
    Err(PickleError::NoTensors(format!("it is a {}", kind(value))))
}

fn kind(value: Value) -> &'static str {
    match value {
        Value::None => "None",
        Value::Bool(_) => "bool",
        Value::Int(_) => "int",
        Value::Opaque => "number or bytes",
        Value::Str(_) => "str",
        Value::Seq(_) => "list or tuple",
        Value::Dict(_) => "dict",
        Value::Global(_) => "type",
        Value::Storage(_) => "storage",
        Value::Tensor(_) => "tensor",
    }
}

/// Checks that a tensor lies inside its storage, and gives its place in the file.
fn located(
    name: &str,
    tensor: &machine::Tensor,
    storage: &Storage,
    key: &str,
    (start, len): (u64, u64),
) -> Result<TorchTensor, PickleError> {
    let overflow = || PickleError::Overflow(name.to_owned());
    let machine::Tensor {
        dtype,
        offset,
        shape,
        strides,
        ..
    } = tensor;
    let item = dtype.size() as u64;
    let nbytes = dtype.nbytes(shape).ok_or_else(overflow)?;
    let strided = Strided {
        offset: 0,
        item: dtype.size(),
        shape: shape.clone(),
        strides: strides.clone(),
    };
    let span = strided.span().ok_or_else(overflow)?;
    // Everything counts in bytes from the start of the storage from here on.
    let unit = storage.dtype.map_or(1, |dtype| dtype.size() as u64);
    let storage_start = storage.start.checked_mul(unit).ok_or_else(overflow)?;
    let storage_len = storage.numel.checked_mul(unit).ok_or_else(overflow)?;
    let first = offset.checked_mul(item).ok_or_else(overflow)?;
    let end = span
        .checked_mul(item)
        .and_then(|bytes| first.checked_add(bytes))
        .ok_or_else(overflow)?;
    let found = storage_len.min(len.saturating_sub(storage_start));
    if span > 0 && end > found {
        return Err(PickleError::Bounds {
            tensor: name.to_owned(),
            key: key.to_owned(),
            needed: end,
            found,
        });
    }
    let stored = end - first;
    if nbytes > stored.max(MAX_REPEATED) {
        return Err(PickleError::Repeated {
            tensor: name.to_owned(),
            stored,
            nbytes,
        });
    }
    Ok(TorchTensor {
        name: name.to_owned(),
        dtype: *dtype,
        shape: shape.clone(),
        strides: strides.clone(),
        offset: if span > 0 {
            start + storage_start + first
        } else {
            start
        },
        nbytes,
    })
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
