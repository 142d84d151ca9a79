//! Reading: the header at once, sums when they are asked for.

use std::collections::BTreeMap;
use std::path::Path;

use merganser_linalg::{Matrix, Symmetric};
use merganser_store::Dtype;
use merganser_store::header::{self, Header, HeaderTensor};
use merganser_store::source::{ReadAt, SourceFile};

use super::{CHUNK, EntrySpec, FORMAT, HELD_OUT, MomentsInfo, Statistics, StatisticsKind, VERSION};
use crate::{ChannelMoments, Error, InputMoments, Result, RowCounts};

/// A file of moments, opened: its header is in memory, its sums are read when asked for.
#[derive(Debug)]
pub struct MomentsFile {
    source: SourceFile,
    info: MomentsInfo,
    aliases: BTreeMap<String, String>,
    pub(super) epsilon: f64,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    whole: BTreeMap<String, HeaderTensor>,
    held_out: BTreeMap<String, HeaderTensor>,
}

impl MomentsFile {
    /// Opens a file and checks that it is one of moments and complete.
    ///
    /// # Errors
    /// If it cannot be read, is no safetensors file, or does not hold what such a file holds.
    pub fn open(path: &Path) -> Result<Self> {
        let source = SourceFile::open(path)?;
        let Header {
            metadata, tensors, ..
        } = read_header(&source)?;
        let refuse = |problem: String| Error::File {
            path: path.to_owned(),
            problem,
        };
        let text = |key: &str| metadata.get(key).map(String::as_str);
        if text("format") != Some(FORMAT) {
            return Err(refuse(format!(
                "its metadata has no `format` of `{FORMAT}`; write it with `merganser calibrate`"
            )));
        }
        if text("version") != Some(VERSION) {
            return Err(refuse(format!(
                "it has version {:?}; this program reads version {VERSION}",
                text("version").unwrap_or("none")
            )));
        }
        let epsilon = match text("precision") {
            None | Some("float32") => f64::from(f32::EPSILON),
            Some("float64") => f64::EPSILON,
            Some(other) => {
                return Err(refuse(format!(
                    "its `precision` is `{other}`; it must be float32 or float64"
                )));
            }
        };
        let tokens = match text("tokens") {
            None => 0,
            Some(text) => text
                .parse()
                .map_err(|_| refuse(format!("its `tokens` are `{text}`, not a number")))?,
        };
        let aliases: BTreeMap<String, String> = match text("aliases") {
            None => BTreeMap::new(),
            Some(text) => serde_json::from_str(text).map_err(|error| {
                refuse(format!(
                    "its `aliases` are no JSON object of strings: {error}"
                ))
            })?,
        };
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        for tensor in tensors {
            let Some((name, part)) = tensor.name.rsplit_once('.') else {
                return Err(refuse(format!(
                    "tensor `{}` is named neither NAME.gram nor any other part",
                    tensor.name
                )));
            };
            let part = part.to_owned();
            if let Some(name) = name.strip_suffix(&format!(".{HELD_OUT}")) {
                let entry = entries.entry(name.to_owned()).or_default();
                entry.held_out.insert(part, tensor);
            } else {
                let entry = entries.entry(name.to_owned()).or_default();
                entry.whole.insert(part, tensor);
            }
        }
        let file = Self {
            info: MomentsInfo {
                model: text("model").unwrap_or_default().to_owned(),
                dataset: text("dataset").unwrap_or_default().to_owned(),
                tokens,
                writer: text("writer").unwrap_or_default().to_owned(),
            },
            aliases,
            epsilon,
            entries,
            source,
        };
        for name in file.entries.keys() {
            file.spec(name)?;
        }
        for (alias, name) in &file.aliases {
            if !file.entries.contains_key(name) || file.entries.contains_key(alias) {
                return Err(file.refuse(format!(
                    "alias `{alias}` stands for `{name}`, which must be an entry where the alias is none"
                )));
            }
        }
        Ok(file)
    }

    /// Whether a file says of itself that it holds moments. Whether it is sound is asked when it is opened.
    pub fn is_one(path: &Path) -> bool {
        let header = SourceFile::open(path)
            .ok()
            .and_then(|source| read_header(&source).ok());
        header.is_some_and(|header| header.metadata.get("format").is_some_and(|it| it == FORMAT))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// Where the moments come from.
    pub fn info(&self) -> &MomentsInfo {
        &self.info
    }

    /// Names of the entries, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Other names of entries: (alias, name).
    pub fn aliases(&self) -> &BTreeMap<String, String> {
        &self.aliases
    }

    /// The entry that a name or an alias stands for.
    pub fn resolve<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        let name = self.aliases.get(name).map_or(name, String::as_str);
        self.entries.contains_key(name).then_some(name)
    }

    /// Refuses moments of another model.
    ///
    /// # Errors
    /// If the file says that they are of a model with another fingerprint.
    pub fn expect_model(&self, fingerprint: &str) -> Result<()> {
        if self.info.model == fingerprint {
            return Ok(());
        }
        Err(self.refuse(format!(
            "its moments are of model `{}`, not of `{fingerprint}`; calibrate again with this model",
            self.info.model
        )))
    }

    /// The shape of an entry.
    ///
    /// # Errors
    /// If there is no such entry, or its tensors do not make one.
    pub fn spec(&self, name: &str) -> Result<EntrySpec> {
        let entry = self.entry(name)?;
        let (kind, size) = self.kind(name, &entry.whole)?;
        let held_out = !entry.held_out.is_empty();
        if held_out && self.kind(name, &entry.held_out)? != (kind, size) {
            return Err(self.refuse(format!(
                "the held-out part of `{name}` is of another kind or size than the whole"
            )));
        }
        Ok(EntrySpec {
            name: name.to_owned(),
            kind,
            size,
            held_out,
        })
    }

    /// The statistics of an entry or alias.
    ///
    /// # Errors
    /// If there is no such entry, it cannot be read, or its numbers make no sense.
    pub fn read(&self, name: &str) -> Result<Statistics> {
        let entry = self.entry(name)?;
        self.statistics(name, &entry.whole)
    }

    /// The statistics of the samples held out of an entry or alias, if there are any.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_held_out(&self, name: &str) -> Result<Option<Statistics>> {
        let entry = self.entry(name)?;
        if entry.held_out.is_empty() {
            return Ok(None);
        }
        self.statistics(name, &entry.held_out).map(Some)
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        let resolved = self.aliases.get(name).map_or(name, String::as_str);
        self.entries
            .get(resolved)
            .ok_or_else(|| self.refuse(format!("it has no moments of `{name}`")))
    }

    pub(super) fn refuse(&self, problem: String) -> Error {
        Error::File {
            path: self.path().to_owned(),
            problem,
        }
    }

    fn kind(
        &self,
        name: &str,
        parts: &BTreeMap<String, HeaderTensor>,
    ) -> Result<(StatisticsKind, usize)> {
        let names: Vec<&str> = parts.keys().map(String::as_str).collect();
        let shape = |part: &str| parts.get(part).map_or(&[][..], |tensor| &tensor.shape);
        let vector = |part: &str, size: usize| shape(part) == [size];
        let scalar = |part: &str| {
            parts
                .get(part)
                .is_some_and(|tensor| tensor.shape.iter().product::<usize>() == 1)
        };
        let found = match names[..] {
            ["count", "gram", "sum"] if scalar("count") => {
                let size = shape("sum").first().copied().unwrap_or(0);
                let packed = size.checked_add(1).and_then(|n| n.checked_mul(size));
                let fits = match shape("gram") {
                    [a, b] => (*a, *b) == (size, size),
                    [n] => packed.is_some_and(|packed| *n == packed / 2),
                    _ => false,
                };
                (fits && vector("sum", size)).then_some((StatisticsKind::Input, size))
            }
            ["count", "square", "sum"] if scalar("count") => {
                let size = shape("square").first().copied().unwrap_or(0);
                (vector("square", size) && vector("sum", size))
                    .then_some((StatisticsKind::Channels, size))
            }
            ["rows"] => match shape("rows") {
                [size] => Some((StatisticsKind::Rows, *size)),
                _ => None,
            },
            _ => None,
        };
        found.ok_or_else(|| {
            let found: Vec<String> = parts
                .iter()
                .map(|(part, tensor)| format!("{part} {:?}", tensor.shape))
                .collect();
            self.refuse(format!(
                "`{name}` has {}; expected are gram [d, d] or [d(d+1)/2], sum [d] and count [1]; or square [d], sum [d] and count [1]; or rows [V]",
                found.join(", ")
            ))
        })
    }

    fn statistics(&self, name: &str, parts: &BTreeMap<String, HeaderTensor>) -> Result<Statistics> {
        let (kind, size) = self.kind(name, parts)?;
        let numbers = |part: &str| self.numbers(&parts[part]);
        let count = || -> Result<u64> {
            let count = numbers("count")?[0];
            if count >= 0.0 && count.fract() == 0.0 && count < 9e15 {
                Ok(count as u64)
            } else {
                Err(self.refuse(format!("the count of `{name}` is {count}")))
            }
        };
        let wrong = |problem: Error| self.refuse(format!("`{name}`: {problem}"));
        match kind {
            StatisticsKind::Input => {
                let data = numbers("gram")?;
                let gram = if parts["gram"].shape.len() == 2 {
                    Matrix::new(size, size, data).and_then(|square| Symmetric::from_square(&square))
                } else {
                    Symmetric::from_packed(size, data)
                };
                let gram = gram.map_err(|problem| wrong(problem.into()))?;
                InputMoments::from_parts(count()?, gram, numbers("sum")?, self.epsilon)
                    .map(Statistics::Input)
                    .map_err(wrong)
            }
            StatisticsKind::Channels => {
                ChannelMoments::from_parts(count()?, numbers("square")?, numbers("sum")?)
                    .map(Statistics::Channels)
                    .map_err(wrong)
            }
            StatisticsKind::Rows => {
                let counts = numbers("rows")?;
                if let Some(bad) = counts.iter().find(|x| !(**x >= 0.0 && **x < 9e15)) {
                    return Err(self.refuse(format!("`{name}`: a count of {bad}")));
                }
                let counts = counts.into_iter().map(|x| x as u64).collect();
                Ok(Statistics::Rows(RowCounts::from_counts(counts)))
            }
        }
    }

    /// The elements of a tensor.
    fn numbers(&self, tensor: &HeaderTensor) -> Result<Vec<f64>> {
        let width = tensor.dtype.size();
        let convert: fn(&[u8]) -> f64 = match tensor.dtype {
            Dtype::F64 => |bytes| f64::from_le_bytes(fixed(bytes)),
            Dtype::F32 => |bytes| f64::from(f32::from_le_bytes(fixed(bytes))),
            Dtype::I64 => |bytes| i64::from_le_bytes(fixed(bytes)) as f64,
            Dtype::I32 => |bytes| f64::from(i32::from_le_bytes(fixed(bytes))),
            other => {
                return Err(self.refuse(format!(
                    "tensor `{}` is of type {other}; F64, F32, I64 and I32 can be read",
                    tensor.name
                )));
            }
        };
        let mut numbers = Vec::with_capacity((tensor.nbytes as usize).div_ceil(width));
        let mut buffer = vec![0; CHUNK.min(tensor.nbytes as usize)];
        let mut at = 0;
        while at < tensor.nbytes {
            let len = (tensor.nbytes - at).min(CHUNK as u64) as usize;
            self.source
                .read_exact_at(&mut buffer[..len], tensor.offset + at)
                .map_err(|cause| merganser_store::Error::Tensor {
                    path: self.path().to_owned(),
                    tensor: tensor.name.clone(),
                    offset: tensor.offset + at,
                    cause,
                })?;
            numbers.extend(buffer[..len].chunks_exact(width).map(convert));
            at += len as u64;
        }
        Ok(numbers)
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}

fn read_header(source: &SourceFile) -> Result<Header> {
    let path = source.path();
    let io = |cause| merganser_store::Error::Io {
        doing: "read",
        path: path.to_owned(),
        cause,
    };
    let wrong = |problem| merganser_store::Error::Header {
        path: path.to_owned(),
        problem,
    };
    let mut prefix = [0; header::PREFIX_LEN];
    if source.size() < header::PREFIX_LEN as u64 {
        return Err(wrong(header::HeaderError::NoPrefix(source.size())).into());
    }
    source.read_exact_at(&mut prefix, 0).map_err(io)?;
    let len = header::json_len(prefix, source.size()).map_err(wrong)?;
    let mut bytes = vec![0; header::PREFIX_LEN + len];
    source.read_exact_at(&mut bytes, 0).map_err(io)?;
    Ok(header::parse(&bytes, source.size()).map_err(wrong)?)
}
