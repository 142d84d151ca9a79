//! The header of a safetensors file: read and validated, or composed.
//!
//! The format: 8 bytes little-endian length N, N bytes of JSON (an object from tensor name to
//! `{"dtype", "shape", "data_offsets": [begin, end]}` plus an optional `__metadata__` object of
//! strings; may be padded with spaces), then the data, to which the offsets are relative. The
//! tensors must cover the data exactly: no hole, no overlap, nothing after the last.
//! Source: <https://huggingface.co/docs/safetensors>.
//!
//! The parser is our own because a merge wants more than the reference one gives: duplicate keys
//! are refused (there the last one wins silently) and every message names the tensor, what was
//! found and what was expected. The tests hold it against the `safetensors` crate.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Write as _};

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::dtype::{Dtype, DtypeError};

/// Bytes of the length field before the JSON.
pub const PREFIX_LEN: usize = 8;
/// Longest JSON accepted, the limit of the reference implementation.
pub const MAX_HEADER_LEN: u64 = 100_000_000;
/// Most dimensions accepted; torch's own limit is 64.
pub const MAX_RANK: usize = 64;
/// The data, hence the header with its prefix, is aligned to this many bytes.
pub const ALIGNMENT: usize = 8;
/// The key that holds metadata instead of a tensor.
pub const METADATA_KEY: &str = "__metadata__";

/// A validated header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The `__metadata__` strings.
    pub metadata: BTreeMap<String, String>,
    /// The tensors in the order of their data.
    pub tensors: Vec<HeaderTensor>,
    /// Offset in the file of the first byte of data.
    pub data_start: u64,
}

/// One tensor as a header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderTensor {
    /// Name, unique in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Offset of its data from the start of the file.
    pub offset: u64,
    /// Bytes of data, equal to the product of `shape` times the size of `dtype`.
    pub nbytes: u64,
}

/// Why a header was refused or cannot be composed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// Not even the length field is there.
    #[error("the file has {0} bytes; a header needs at least {PREFIX_LEN}")]
    NoPrefix(u64),
    /// The header ends after the file does.
    #[error(
        "the header claims {header} bytes but the file has only {file}; it is truncated or of another format"
    )]
    LongerThanFile {
        /// Bytes of JSON claimed.
        header: u64,
        /// Bytes of the whole file.
        file: u64,
    },
    /// Not the file but a stand-in for it.
    #[error("it is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository")]
    LfsPointer,
    /// The header is longer than any real one.
    #[error("the header claims {0} bytes; at most {MAX_HEADER_LEN} are accepted")]
    TooLong(u64),
    /// The header is not UTF-8.
    #[error("the header is not valid UTF-8 at byte {0}")]
    NotUtf8(usize),
    /// The header is not JSON of the right form; the text names the tensor if it is known.
    #[error("the header is malformed: {0}")]
    Malformed(String),
    /// The element type cannot be used.
    #[error("tensor `{tensor}`: {problem}")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// Why its type was refused.
        problem: DtypeError,
    },
    /// Shape times element size overflows.
    #[error("tensor `{tensor}`: shape {shape:?} of {dtype} overflows 64 bits")]
    Overflow {
        /// The tensor.
        tensor: String,
        /// Its extents.
        shape: Vec<usize>,
        /// Its element type.
        dtype: Dtype,
    },
    /// Offsets disagree with the shape.
    #[error(
        "tensor `{tensor}`: offsets {begin}..{end} disagree with shape {shape:?} of {dtype}, which needs {expected} bytes"
    )]
    Size {
        /// The tensor.
        tensor: String,
        /// First byte, relative to the data.
        begin: u64,
        /// One past the last byte.
        end: u64,
        /// Its extents.
        shape: Vec<usize>,
        /// Its element type.
        dtype: Dtype,
        /// Bytes the shape needs.
        expected: u64,
    },
    /// Two tensors overlap, or bytes between them belong to none.
    #[error("tensor `{tensor}` begins at data byte {found} where {expected} was expected: the tensors {what}", what = if found < expected { "overlap" } else { "leave a hole" })]
    Gap {
        /// The tensor after the gap.
        tensor: String,
        /// Where it begins.
        found: u64,
        /// Where the tensor before it ends.
        expected: u64,
    },
    /// The file is shorter or longer than its header says.
    #[error("the header describes a file of {expected} bytes but it has {found}: {what}", what = if found < expected { "it is truncated; download or copy it again" } else { "bytes follow the last tensor" })]
    FileLen {
        /// Bytes found.
        found: u64,
        /// Bytes the header describes.
        expected: u64,
    },
    /// A name that a tensor may not have, or that is used twice.
    #[error("cannot write a tensor named `{tensor}`: {problem}")]
    Name {
        /// The name.
        tensor: String,
        /// Why not.
        problem: &'static str,
    },
}

/// Bytes of JSON after the prefix, from the first 8 bytes of a file of `file_len` bytes.
pub fn json_len(prefix: [u8; PREFIX_LEN], file_len: u64) -> Result<usize, HeaderError> {
    let len = u64::from_le_bytes(prefix);
    if &prefix == b"version " {
        Err(HeaderError::LfsPointer)
    } else if len > file_len.saturating_sub(PREFIX_LEN as u64) {
        Err(HeaderError::LongerThanFile {
            header: len,
            file: file_len,
        })
    } else if len > MAX_HEADER_LEN {
        Err(HeaderError::TooLong(len))
    } else {
        Ok(len as usize)
    }
}

/// Parses and validates the header at the beginning of a file of `file_len` bytes. `bytes` must
/// hold the length field and the whole JSON; what follows is not looked at.
pub fn parse(bytes: &[u8], file_len: u64) -> Result<Header, HeaderError> {
    let prefix = bytes
        .first_chunk()
        .ok_or(HeaderError::NoPrefix(bytes.len() as u64))?;
    let len = json_len(*prefix, file_len)?;
    let json = bytes[PREFIX_LEN..]
        .get(..len)
        .ok_or(HeaderError::LongerThanFile {
            header: len as u64,
            file: bytes.len() as u64,
        })?;
    let text = std::str::from_utf8(json)
        .map_err(|error| HeaderError::NotUtf8(PREFIX_LEN + error.valid_up_to()))?;

    let mut deserializer = serde_json::Deserializer::from_str(text);
    let raw = deserializer
        .deserialize_map(HeaderVisitor)
        .and_then(|raw| deserializer.end().map(|()| raw))
        .map_err(|error| HeaderError::Malformed(error.to_string()))?;
    validate(raw, (PREFIX_LEN + len) as u64, file_len)
}

fn validate(mut raw: RawHeader, data_start: u64, file_len: u64) -> Result<Header, HeaderError> {
    // Empty tensors share their begin with the next one: the end orders them.
    raw.tensors.sort_by_key(|(_, info)| (info.begin, info.end));
    let mut expected = 0;
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (
        name,
        RawTensor {
            dtype,
            shape,
            begin,
            end,
        },
    ) in raw.tensors
    {
        let dtype: Dtype = match dtype.parse() {
            Ok(dtype) => dtype,
            Err(problem) => {
                return Err(HeaderError::Dtype {
                    tensor: name,
                    problem,
                });
            }
        };
        let Some(nbytes) = dtype.nbytes(&shape) else {
            return Err(HeaderError::Overflow {
                tensor: name,
                shape,
                dtype,
            });
        };
        if end.checked_sub(begin) != Some(nbytes) {
            return Err(HeaderError::Size {
                tensor: name,
                begin,
                end,
                shape,
                dtype,
                expected: nbytes,
            });
        }
        if begin != expected {
            return Err(HeaderError::Gap {
                tensor: name,
                found: begin,
                expected,
            });
        }
        expected = end;
        tensors.push(HeaderTensor {
            name,
            dtype,
            shape,
            offset: data_start.saturating_add(begin),
            nbytes,
        });
    }
    match data_start.checked_add(expected) {
        Some(end) if end == file_len => Ok(Header {
            metadata: raw.metadata,
            tensors,
            data_start,
        }),
        end => Err(HeaderError::FileLen {
            found: file_len,
            expected: end.unwrap_or(u64::MAX),
        }),
    }
}

/// What the JSON says, before it is believed.
#[derive(Default)]
struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawTensor)>,
}

struct RawTensor {
    dtype: String,
    shape: Vec<usize>,
    begin: u64,
    end: u64,
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader::default();
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(de::Error::custom(format_args!("duplicate key `{name}`")));
            }
            if name == METADATA_KEY {
                header.metadata = map.next_value().map_err(|error| named(&name, &error))?;
            } else {
                let info = map
                    .next_value_seed(TensorSeed)
                    .map_err(|error| named(&name, &error))?;
                header.tensors.push((name, info));
            }
        }
        Ok(header)
    }
}

fn named<E: de::Error>(name: &str, error: &E) -> E {
    E::custom(format_args!("`{name}`: {error}"))
}

struct TensorSeed;

impl<'de> DeserializeSeed<'de> for TensorSeed {
    type Value = RawTensor;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<RawTensor, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TensorSeed {
    type Value = RawTensor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `dtype`, `shape` and `data_offsets`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawTensor, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let duplicate = match key.as_str() {
                "dtype" => dtype.replace(map.next_value::<String>()?).is_some(),
                "shape" => shape.replace(map.next_value_seed(ShapeSeed)?).is_some(),
                "data_offsets" => offsets.replace(map.next_value::<[u64; 2]>()?).is_some(),
                _ => {
                    return Err(de::Error::unknown_field(
                        &key,
                        &["dtype", "shape", "data_offsets"],
                    ));
                }
            };
            if duplicate {
                return Err(de::Error::custom(format_args!("duplicate key `{key}`")));
            }
        }
        let [begin, end] = offsets.ok_or_else(|| de::Error::missing_field("data_offsets"))?;
        Ok(RawTensor {
            dtype: dtype.ok_or_else(|| de::Error::missing_field("dtype"))?,
            shape: shape.ok_or_else(|| de::Error::missing_field("shape"))?,
            begin,
            end,
        })
    }
}

/// A shape, with its rank limited while it is read so that hostile ones cost no memory.
struct ShapeSeed;

impl<'de> DeserializeSeed<'de> for ShapeSeed {
    type Value = Vec<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<usize>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ShapeSeed {
    type Value = Vec<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a shape of at most {MAX_RANK} non-negative integers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<usize>, A::Error> {
        let mut shape = Vec::new();
        while let Some(extent) = seq.next_element()? {
            if shape.len() == MAX_RANK {
                return Err(de::Error::invalid_length(MAX_RANK + 1, &self));
            }
            shape.push(extent);
        }
        Ok(shape)
    }
}

/// A tensor to be written: what a header needs to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name, unique in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
}

/// A composed header and where everything goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The first bytes of the file: length field and JSON, padded with spaces to [`ALIGNMENT`].
    pub header: Vec<u8>,
    /// Offset in the file of the data of each tensor, in the order they were given.
    pub offsets: Vec<u64>,
    /// Bytes of the whole file.
    pub file_len: u64,
}

/// Composes the header of a file that holds `tensors` in this order, data back to back. The same
/// arguments give the same bytes.
///
/// The format leaves no room between tensors; put wide element types first if the data should be
/// aligned for readers that map it.
pub fn compose(
    metadata: &BTreeMap<String, String>,
    tensors: &[TensorSpec],
) -> Result<Layout, HeaderError> {
    let mut json = String::from("{");
    if !metadata.is_empty() {
        let _ = write!(
            json,
            "{}:{}",
            quote(METADATA_KEY),
            serde_json::json!(metadata)
        );
    }
    let mut seen = HashSet::new();
    let mut offsets = Vec::with_capacity(tensors.len());
    let mut end = 0_u64;
    for TensorSpec { name, dtype, shape } in tensors {
        let refused = |problem| {
            Err(HeaderError::Name {
                tensor: name.clone(),
                problem,
            })
        };
        if name == METADATA_KEY {
            return refused("the format keeps this name for its metadata");
        }
        if !seen.insert(name.as_str()) {
            return refused("the name is used twice");
        }
        let begin = end;
        end = dtype
            .nbytes(shape)
            .and_then(|nbytes| begin.checked_add(nbytes))
            .ok_or_else(|| HeaderError::Overflow {
                tensor: name.clone(),
                shape: shape.clone(),
                dtype: *dtype,
            })?;
        offsets.push(begin);
        if json.len() > 1 {
            json.push(',');
        }
        let _ = write!(
            json,
            "{}:{{\"dtype\":\"{dtype}\",\"shape\":{},\"data_offsets\":[{begin},{end}]}}",
            quote(name),
            serde_json::json!(shape),
        );
    }
    json.push('}');
    while !json.len().is_multiple_of(ALIGNMENT) {
        json.push(' ');
    }
    let json_len = json.len() as u64;
    if json_len > MAX_HEADER_LEN {
        return Err(HeaderError::TooLong(json_len));
    }
    let data_start = PREFIX_LEN as u64 + json_len;
    let mut header = json_len.to_le_bytes().to_vec();
    header.extend_from_slice(json.as_bytes());
    for offset in &mut offsets {
        *offset += data_start;
    }
    Ok(Layout {
        header,
        offsets,
        file_len: data_start + end,
    })
}

fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file of `json` and `data` zero bytes; its parse.
    fn parse_json(json: &str, data: u64) -> Result<Header, HeaderError> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        parse(&bytes, bytes.len() as u64 + data)
    }

    fn message(json: &str, data: u64) -> String {
        parse_json(json, data).unwrap_err().to_string()
    }

    #[test]
    fn a_header_gives_absolute_offsets_in_data_order() {
        let json = r#"{"b":{"dtype":"F32","shape":[2],"data_offsets":[2,10]},"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}}  "#;
        let header = parse_json(json, 10).unwrap();
        let start = 8 + json.len() as u64;
        assert_eq!(header.data_start, start);
        assert_eq!(header.metadata["format"], "pt");
        let found: Vec<_> = header
            .tensors
            .iter()
            .map(|t| (t.name.as_str(), t.offset - start, t.nbytes))
            .collect();
        assert_eq!(found, [("a", 0, 2), ("b", 2, 8)]);
    }

    #[test]
    fn hostile_headers_are_refused_by_name() {
        let tensor = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        for (json, data, expected) in [
            (tensor("F32", "[-1]", "[0,4]"), 4, "`w`: invalid value: integer `-1`"),
            (tensor("F32", "[1.5]", "[0,4]"), 4, "`w`: invalid type: floating point"),
            (tensor("F32", "[4294967296,4294967296,4]", "[0,4]"), 4, "tensor `w`: shape [4294967296, 4294967296, 4] of F32 overflows"),
            (tensor("F32", "[2]", "[0,4]"), 4, "tensor `w`: offsets 0..4 disagree with shape [2] of F32, which needs 8 bytes"),
            (tensor("F32", "[1]", "[4,0]"), 4, "tensor `w`: offsets 4..0 disagree"),
            (tensor("F32", "[1]", "[4,8]"), 8, "tensor `w` begins at data byte 4 where 0 was expected: the tensors leave a hole"),
            (tensor("F32", "[1]", "[0,4]"), 3, "it is truncated"),
            (tensor("F32", "[1]", "[0,4]"), 5, "bytes follow the last tensor"),
            (tensor("F4", "[2]", "[0,1]"), 1, "tensor `w`: unsupported dtype `F4`"),
            (tensor("Q9", "[2]", "[0,1]"), 1, "tensor `w`: unknown dtype `Q9`"),
            (tensor("U8", &format!("[{}1]", "1,".repeat(64)), "[0,1]"), 1, "`w`: invalid length 65, expected a shape of at most 64"),
            (tensor("U8", "[1]", "[0,18446744073709551616]"), 1, "`w`: "),
            ("{}x".into(), 0, "malformed"),
            ("[]".into(), 0, "expected an object of tensors"),
            (String::new(), 0, "malformed"),
            (r#"{"__metadata__":{"a":1}}"#.into(), 0, "`__metadata__`: invalid type: integer `1`, expected a string"),
            (r#"{"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#.into(), 0, "duplicate key `w`"),
            (r#"{"w":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#.into(), 0, "`w`: duplicate key `dtype`"),
            (r#"{"w":{"dtype":"U8","shape":[0]}}"#.into(), 0, "`w`: missing field `data_offsets`"),
            (r#"{"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}}"#.into(), 0, "`w`: unknown field `x`"),
            (r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#.into(), 3, "the tensors overlap"),
        ] {
            let found = message(&json, data);
            assert!(found.contains(expected), "{json}\n  found: {found}\n  expected: {expected}");
        }
    }

    #[test]
    fn lengths_are_checked_before_memory_is_taken() {
        assert_eq!(parse(b"abc", 3), Err(HeaderError::NoPrefix(3)));
        assert_eq!(
            parse(b"version https://git-lfs", 100),
            Err(HeaderError::LfsPointer)
        );
        let huge = u64::MAX.to_le_bytes();
        assert_eq!(
            parse(&huge, 8),
            Err(HeaderError::LongerThanFile {
                header: u64::MAX,
                file: 8
            })
        );
        assert_eq!(
            json_len((MAX_HEADER_LEN + 1).to_le_bytes(), u64::MAX),
            Err(HeaderError::TooLong(MAX_HEADER_LEN + 1))
        );
        // The length field may be right for the file while the caller's buffer is too short.
        assert!(matches!(
            parse(&9_u64.to_le_bytes(), 100),
            Err(HeaderError::LongerThanFile { .. })
        ));
    }

    #[test]
    fn bad_utf8_is_located() {
        let mut bytes = 4_u64.to_le_bytes().to_vec();
        bytes.extend(b"{\"\xff}");
        assert_eq!(parse(&bytes, 12), Err(HeaderError::NotUtf8(10)));
    }

    #[test]
    fn empty_tensors_may_sit_anywhere() {
        let json = r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[1,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"c":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        assert_eq!(parse_json(json, 2).unwrap().tensors.len(), 3);
    }

    #[test]
    fn names_that_cannot_be_written_are_refused() {
        let spec = |name: &str| TensorSpec {
            name: name.into(),
            dtype: Dtype::F32,
            shape: vec![1],
        };
        assert!(compose(&BTreeMap::new(), &[spec(METADATA_KEY)]).is_err());
        assert!(compose(&BTreeMap::new(), &[spec("a"), spec("a")]).is_err());
    }

    fn specs() -> impl Strategy<Value = Vec<TensorSpec>> {
        let dtype = prop::sample::select(Dtype::ALL.to_vec());
        let shape = prop::collection::vec(0_usize..5, 0..4);
        prop::collection::btree_map(".{0,12}", (dtype, shape), 0..8).prop_map(|tensors| {
            tensors
                .into_iter()
                .filter(|(name, _)| name != METADATA_KEY)
                .map(|(name, (dtype, shape))| TensorSpec { name, dtype, shape })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn composed_headers_are_read_back_by_us_and_by_the_safetensors_crate(
            specs in specs(),
            metadata in prop::collection::btree_map(".{0,8}", ".{0,8}", 0..3),
        ) {
            let layout = compose(&metadata, &specs).unwrap();
            prop_assert_eq!(layout.header.len() % ALIGNMENT, 0);
            let header = parse(&layout.header, layout.file_len).unwrap();
            prop_assert_eq!(&header.metadata, &metadata);
            let mut file = layout.header.clone();
            file.resize(layout.file_len as usize, 0);
            let theirs = safetensors::SafeTensors::deserialize(&file).unwrap();
            prop_assert_eq!(theirs.len(), specs.len());
            for (spec, &offset) in specs.iter().zip(&layout.offsets) {
                let ours = header.tensors.iter().find(|t| t.name == spec.name).unwrap();
                prop_assert_eq!((ours.dtype, &ours.shape, ours.offset), (spec.dtype, &spec.shape, offset));
                let view = theirs.tensor(&spec.name).unwrap();
                prop_assert_eq!(view.shape(), &spec.shape[..]);
                prop_assert_eq!(view.data().len() as u64, ours.nbytes);
                if ours.nbytes > 0 {
                    prop_assert_eq!(view.data().as_ptr() as usize - file.as_ptr() as usize, ours.offset as usize);
                }
            }
        }

        #[test]
        fn any_bytes_are_parsed_or_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), extra in 0_u64..16) {
            let _ = parse(&bytes, bytes.len() as u64 + extra);
        }

        #[test]
        fn what_we_accept_the_safetensors_crate_accepts(
            specs in specs(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let layout = compose(&BTreeMap::new(), &specs).unwrap();
            let mut file = layout.header;
            file.resize(layout.file_len as usize, 0);
            let at = at.index(file.len());
            file[at] = byte;
            if parse(&file, file.len() as u64).is_ok() {
                prop_assert!(safetensors::SafeTensors::deserialize(&file).is_ok());
            }
        }
    }
}
