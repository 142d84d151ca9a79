//! Files of moments: safetensors, so that any program can write and read them. See `docs/moments.md`.
//!
//! A name stands for an input (or an embedding); several layers may read the same one, which `aliases` says. Under a name
//! are `NAME.count` and one of
//!
//! * `NAME.gram` and `NAME.sum`: Σ x xᵀ and Σ x of an input; the Gram as a square or as its packed lower triangle,
//! * `NAME.square` and `NAME.sum`: Σ x̂² and Σ x̂ of a normalised input,
//! * `NAME.rows` alone: how often each row of an embedding was looked up,
//!
//! and, for the samples held out to choose a ridge, the same under `NAME.held_out`. Sums are not divided by anything.
//! Files are read and written tensor by tensor: no more than one entry is in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use merganser_linalg::{Matrix, Symmetric};
use merganser_store::Dtype;
use merganser_store::header::{self, Header, HeaderTensor, TensorSpec};
use merganser_store::shard::ShardFile;
use merganser_store::source::{ReadAt, SourceFile};

use crate::{ChannelMoments, Error, InputMoments, Result, RowCounts};

/// Value of the metadata key `format`.
const FORMAT: &str = "merganser-moments";
/// Value of the metadata key `version`.
const VERSION: &str = "1";
/// Between a name and its held-out part.
const HELD_OUT: &str = "held_out";
/// Bytes converted at a time.
const CHUNK: usize = 4 << 20;

/// Where moments come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MomentsInfo {
    /// Fingerprint of the model whose inputs they are.
    pub model: String,
    /// The samples, in words or as a path.
    pub dataset: String,
    /// Tokens (patches, rows) that were run through the model.
    pub tokens: u64,
    /// The program that wrote them, with its version; filled in by the writer.
    pub writer: String,
}

/// What is known under a name.
#[derive(Debug, Clone, PartialEq)]
pub enum Statistics {
    /// Of an input of linear layers.
    Input(InputMoments),
    /// Of an input of a scale and shift.
    Channels(ChannelMoments),
    /// Of an embedding.
    Rows(RowCounts),
}

/// The shape of an entry, which a writer needs to know before it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntrySpec {
    /// Name.
    pub name: String,
    /// What kind of statistics.
    pub kind: StatisticsKind,
    /// Numbers of an input, or rows of an embedding.
    pub size: usize,
    /// Whether there is a held-out part.
    pub held_out: bool,
}

/// Kinds of statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatisticsKind {
    /// [`Statistics::Input`].
    Input,
    /// [`Statistics::Channels`].
    Channels,
    /// [`Statistics::Rows`].
    Rows,
}

impl Statistics {
    /// What kind they are.
    pub fn kind(&self) -> StatisticsKind {
        match self {
            Self::Input(_) => StatisticsKind::Input,
            Self::Channels(_) => StatisticsKind::Channels,
            Self::Rows(_) => StatisticsKind::Rows,
        }
    }

    /// Numbers of an input, or rows of an embedding.
    pub fn size(&self) -> usize {
        match self {
            Self::Input(moments) => moments.dim(),
            Self::Channels(moments) => moments.channels(),
            Self::Rows(counts) => counts.counts().len(),
        }
    }

    /// Adds the statistics of other samples.
    ///
    /// # Errors
    /// If they are of another kind or size.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        match (self, other) {
            (Self::Input(a), Self::Input(b)) => a.merge(b),
            (Self::Channels(a), Self::Channels(b)) => a.merge(b),
            (Self::Rows(a), Self::Rows(b)) => a.merge(b),
            (a, b) => Err(crate::error::shape(
                "the kind of statistics",
                b.kind(),
                a.kind(),
            )),
        }
    }

    /// The entry these statistics would be, under a name.
    pub fn spec(&self, name: &str, held_out: bool) -> EntrySpec {
        EntrySpec {
            name: name.to_owned(),
            kind: self.kind(),
            size: self.size(),
            held_out,
        }
    }
}

impl EntrySpec {
    /// The tensors of the entry, in the order they are written.
    fn tensors(&self, prefix: &str) -> Vec<TensorSpec> {
        let tensor = |part: &str, dtype, shape| TensorSpec {
            name: format!("{prefix}.{part}"),
            dtype,
            shape,
        };
        let n = self.size;
        match self.kind {
            StatisticsKind::Input => vec![
                tensor("gram", Dtype::F64, vec![n * (n + 1) / 2]),
                tensor("sum", Dtype::F64, vec![n]),
                tensor("count", Dtype::I64, vec![1]),
            ],
            StatisticsKind::Channels => vec![
                tensor("square", Dtype::F64, vec![n]),
                tensor("sum", Dtype::F64, vec![n]),
                tensor("count", Dtype::I64, vec![1]),
            ],
            StatisticsKind::Rows => vec![tensor("rows", Dtype::I64, vec![n])],
        }
    }
}

/// A file of moments, opened: its header is in memory, its sums are read when asked for.
#[derive(Debug)]
pub struct MomentsFile {
    source: SourceFile,
    info: MomentsInfo,
    aliases: BTreeMap<String, String>,
    epsilon: f64,
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

    fn refuse(&self, problem: String) -> Error {
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

/// A file of moments being written, entry by entry in any order. It appears under its name when finished.
#[derive(Debug)]
pub struct MomentsWriter {
    shard: ShardFile,
    path: PathBuf,
    staging: PathBuf,
    specs: BTreeMap<String, EntrySpec>,
    offsets: BTreeMap<String, u64>,
    missing: BTreeSet<String>,
}

impl MomentsWriter {
    /// Reserves the space for these entries. `precision` is the rounding the moments were taken with: `f32::EPSILON` if
    /// any product was taken in `f32`.
    ///
    /// # Errors
    /// If the file cannot be created, a name is used twice, or an alias stands for no entry.
    pub fn create(
        path: &Path,
        info: &MomentsInfo,
        aliases: &BTreeMap<String, String>,
        entries: &[EntrySpec],
        precision: f64,
    ) -> Result<Self> {
        let refuse = |problem: String| Error::File {
            path: path.to_owned(),
            problem,
        };
        let specs: BTreeMap<String, EntrySpec> = entries
            .iter()
            .map(|spec| (spec.name.clone(), spec.clone()))
            .collect();
        for (alias, name) in aliases {
            if !specs.contains_key(name) || specs.contains_key(alias) {
                return Err(refuse(format!(
                    "alias `{alias}` stands for `{name}`, which must be an entry where the alias is none"
                )));
            }
        }
        let mut tensors = Vec::new();
        for spec in entries {
            tensors.extend(spec.tensors(&spec.name));
            if spec.held_out {
                tensors.extend(spec.tensors(&format!("{}.{HELD_OUT}", spec.name)));
            }
        }
        let float32 = precision > 1e-12;
        let mut metadata: BTreeMap<String, String> = [
            ("format", FORMAT.to_owned()),
            ("version", VERSION.to_owned()),
            ("model", info.model.clone()),
            ("dataset", info.dataset.clone()),
            ("tokens", info.tokens.to_string()),
            ("writer", format!("merganser {}", env!("CARGO_PKG_VERSION"))),
            (
                "precision",
                if float32 { "float32" } else { "float64" }.to_owned(),
            ),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
        if !aliases.is_empty() {
            metadata.insert("aliases".into(), serde_json::json!(aliases).to_string());
        }
        let layout = header::compose(&metadata, &tensors).map_err(|problem| {
            merganser_store::Error::Header {
                path: path.to_owned(),
                problem,
            }
        })?;
        let mut staging = path.as_os_str().to_owned();
        staging.push(".partial");
        let staging = PathBuf::from(staging);
        let shard = ShardFile::create(&staging, layout.file_len)?;
        shard.write_at(0, &layout.header)?;
        Ok(Self {
            shard,
            path: path.to_owned(),
            staging,
            missing: specs.keys().cloned().collect(),
            specs,
            offsets: tensors
                .into_iter()
                .map(|tensor| tensor.name)
                .zip(layout.offsets)
                .collect(),
        })
    }

    /// Writes one entry.
    ///
    /// # Errors
    /// If there is no such entry, the statistics are not of the kind and size it was announced with, or the disk is full.
    pub fn write(
        &mut self,
        name: &str,
        whole: &Statistics,
        held_out: Option<&Statistics>,
    ) -> Result<()> {
        let announced = self.specs.get(name);
        let found = whole.spec(name, held_out.is_some());
        let held = held_out.map(|part| part.spec(name, true));
        if announced != Some(&found) || held.is_some_and(|held| held != found) {
            return Err(Error::File {
                path: self.path.clone(),
                problem: format!("entry `{name}` was announced as {announced:?} and is {found:?}"),
            });
        }
        self.write_statistics(name, whole)?;
        if let Some(held_out) = held_out {
            self.write_statistics(&format!("{name}.{HELD_OUT}"), held_out)?;
        }
        self.missing.remove(name);
        Ok(())
    }

    /// Waits until everything is on disk and gives the file its name.
    ///
    /// # Errors
    /// If an entry was not written, or the disk fails.
    pub fn finish(self) -> Result<()> {
        if let Some(name) = self.missing.first() {
            return Err(Error::File {
                path: self.path.clone(),
                problem: format!("entry `{name}` was announced and never written"),
            });
        }
        self.shard.sync()?;
        std::fs::rename(&self.staging, &self.path).map_err(|cause| {
            Error::Store(merganser_store::Error::Io {
                doing: "rename",
                path: self.staging.clone(),
                cause,
            })
        })
    }

    fn write_statistics(&self, prefix: &str, statistics: &Statistics) -> Result<()> {
        let put = |part: &str, numbers: &mut dyn Iterator<Item = [u8; 8]>| {
            let mut at = self.offsets[&format!("{prefix}.{part}")];
            let mut buffer = Vec::with_capacity(CHUNK);
            loop {
                buffer.clear();
                buffer.extend((&mut *numbers).take(CHUNK / 8).flatten());
                if buffer.is_empty() {
                    return Ok::<(), Error>(());
                }
                self.shard.write_at(at, &buffer)?;
                at += buffer.len() as u64;
            }
        };
        let floats =
            |part: &str, numbers: &[f64]| put(part, &mut numbers.iter().map(|x| x.to_le_bytes()));
        let integers =
            |part: &str, numbers: &[u64]| put(part, &mut numbers.iter().map(|x| x.to_le_bytes()));
        match statistics {
            Statistics::Input(moments) => {
                floats("gram", moments.gram().packed())?;
                floats("sum", moments.sum())?;
                integers("count", &[moments.count()])
            }
            Statistics::Channels(moments) => {
                floats("square", moments.square())?;
                floats("sum", moments.sum())?;
                integers("count", &[moments.count()])
            }
            Statistics::Rows(counts) => integers("rows", counts.counts()),
        }
    }
}

/// Writes a small file of moments whose entries are all in memory: (name, whole, held out).
///
/// # Errors
/// As [`MomentsWriter`].
pub fn write_moments(
    path: &Path,
    info: &MomentsInfo,
    aliases: &BTreeMap<String, String>,
    entries: &[(String, Statistics, Option<Statistics>)],
) -> Result<()> {
    let specs: Vec<EntrySpec> = entries
        .iter()
        .map(|(name, whole, held_out)| whole.spec(name, held_out.is_some()))
        .collect();
    let precision = entries
        .iter()
        .map(|(_, whole, _)| match whole {
            Statistics::Input(moments) => moments.epsilon(),
            _ => 0.0,
        })
        .fold(0.0, f64::max);
    let mut writer = MomentsWriter::create(path, info, aliases, &specs, precision)?;
    for (name, whole, held_out) in entries {
        writer.write(name, whole, held_out.as_ref())?;
    }
    writer.finish()
}

/// Adds the moments of two files, say of two parts of the samples, into a third. One entry is in memory at a time.
///
/// # Errors
/// If they are of different models, or do not hold the same entries.
pub fn merge_files(first: &MomentsFile, second: &MomentsFile, path: &Path) -> Result<()> {
    second.expect_model(&first.info.model)?;
    if !first.names().eq(second.names()) || first.aliases != second.aliases {
        let odd = first
            .names()
            .find(|name| !second.entries.contains_key(*name))
            .or_else(|| {
                second
                    .names()
                    .find(|name| !first.entries.contains_key(*name))
            });
        return Err(second.refuse(format!(
            "it does not hold the entries and aliases of `{}`{}",
            first.path().display(),
            odd.map_or(String::new(), |name| format!(
                ": `{name}` is in one of them only"
            ))
        )));
    }
    let info = MomentsInfo {
        dataset: format!("{} + {}", first.info.dataset, second.info.dataset),
        tokens: first.info.tokens.saturating_add(second.info.tokens),
        ..first.info.clone()
    };
    let mut specs = Vec::new();
    for name in first.names() {
        let (spec, other) = (first.spec(name)?, second.spec(name)?);
        if spec != other {
            return Err(second.refuse(format!(
                "`{name}` is {other:?}, and {spec:?} in `{}`",
                first.path().display()
            )));
        }
        specs.push(spec);
    }
    let precision = first.epsilon.max(second.epsilon);
    let mut writer = MomentsWriter::create(path, &info, &first.aliases, &specs, precision)?;
    for spec in &specs {
        let mut whole = first.read(&spec.name)?;
        whole.merge(&second.read(&spec.name)?)?;
        let held_out = match (
            first.read_held_out(&spec.name)?,
            second.read_held_out(&spec.name)?,
        ) {
            (Some(mut a), Some(b)) => {
                a.merge(&b)?;
                Some(a)
            }
            _ => None,
        };
        writer.write(&spec.name, &whole, held_out.as_ref())?;
    }
    writer.finish()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn input(seed: usize, rows: usize) -> Statistics {
        let mut moments = InputMoments::new(3);
        let data: Vec<f32> = (0..3 * rows)
            .map(|i| ((i * 7 + seed) % 11) as f32 - 5.0)
            .collect();
        moments.add_rows(&data).unwrap();
        Statistics::Input(moments)
    }

    fn entries(seed: usize) -> Vec<(String, Statistics, Option<Statistics>)> {
        let mut channels = ChannelMoments::new(2);
        channels
            .add_rows(&[1.0_f32, 2.0, seed as f32, 4.0])
            .unwrap();
        let counts = RowCounts::from_counts(vec![seed as u64, 0, 5]);
        vec![
            (
                "layers.0.q_proj".into(),
                input(seed, 9),
                Some(input(seed, 2)),
            ),
            ("layers.0.norm".into(), Statistics::Channels(channels), None),
            ("embed".into(), Statistics::Rows(counts), None),
        ]
    }

    fn info() -> MomentsInfo {
        MomentsInfo {
            model: "abc".into(),
            dataset: "poems".into(),
            tokens: 18,
            writer: String::new(),
        }
    }

    fn aliases() -> BTreeMap<String, String> {
        [("layers.0.k_proj".to_owned(), "layers.0.q_proj".to_owned())].into()
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("moments.safetensors");
        write_moments(&path, &info(), &aliases(), &entries(1)).unwrap();
        let file = MomentsFile::open(&path).unwrap();
        assert_eq!(
            file.names().collect::<Vec<_>>(),
            ["embed", "layers.0.norm", "layers.0.q_proj"]
        );
        for (name, whole, held_out) in entries(1) {
            assert_eq!(file.read(&name).unwrap(), whole);
            assert_eq!(file.read_held_out(&name).unwrap(), held_out);
        }
        assert_eq!(file.resolve("layers.0.k_proj"), Some("layers.0.q_proj"));
        assert_eq!(file.read("layers.0.k_proj").unwrap(), entries(1)[0].1);
        assert_eq!(file.resolve("layers.1.k_proj"), None);
        assert_eq!(file.info().tokens, 18);
        assert!(file.info().writer.starts_with("merganser "));
        file.expect_model("abc").unwrap();
        let error = file.expect_model("xyz").unwrap_err().to_string();
        assert!(error.contains("of model `abc`, not of `xyz`"), "{error}");
        let error = file.read("layers.9").unwrap_err().to_string();
        assert!(error.contains("no moments of `layers.9`"), "{error}");
    }

    #[test]
    fn files_of_two_halves_add_up() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a", "b", "sum"].map(|name| dir.path().join(name));
        write_moments(&paths[0], &info(), &aliases(), &entries(1)).unwrap();
        write_moments(&paths[1], &info(), &aliases(), &entries(2)).unwrap();
        let [first, second] = [0, 1].map(|i| MomentsFile::open(&paths[i]).unwrap());
        merge_files(&first, &second, &paths[2]).unwrap();
        let sum = MomentsFile::open(&paths[2]).unwrap();
        assert_eq!(sum.info().tokens, 36);
        for ((name, mut whole, _), (_, other, _)) in entries(1).into_iter().zip(entries(2)) {
            whole.merge(&other).unwrap();
            assert_eq!(sum.read(&name).unwrap(), whole);
        }
        let other = MomentsInfo {
            model: "xyz".into(),
            ..info()
        };
        write_moments(&paths[1], &other, &aliases(), &entries(2)).unwrap();
        let second = MomentsFile::open(&paths[1]).unwrap();
        assert!(merge_files(&first, &second, &paths[2]).is_err());
        write_moments(&paths[1], &info(), &BTreeMap::new(), &entries(2)[..2]).unwrap();
        let second = MomentsFile::open(&paths[1]).unwrap();
        let error = merge_files(&first, &second, &paths[2])
            .unwrap_err()
            .to_string();
        assert!(error.contains("`embed` is in one of them only"), "{error}");
    }

    #[test]
    fn squares_of_other_programs_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let metadata = [("format", FORMAT), ("version", VERSION), ("model", "abc")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        let tensor = |name: &str, dtype, shape: &[usize]| TensorSpec {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
        };
        let specs = [
            tensor("x.gram", Dtype::F32, &[2, 2]),
            tensor("x.sum", Dtype::F32, &[2]),
            tensor("x.count", Dtype::I64, &[]),
        ];
        let layout = header::compose(&metadata.into(), &specs).unwrap();
        let mut bytes = layout.header;
        for x in [2.0_f32, 1.0, 1.0, 3.0, 0.5, -0.5] {
            bytes.extend(x.to_le_bytes());
        }
        bytes.extend(7_i64.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let Statistics::Input(moments) = MomentsFile::open(&path).unwrap().read("x").unwrap()
        else {
            panic!("an input was written");
        };
        assert_eq!(moments.gram().packed(), [2.0, 1.0, 3.0]);
        assert_eq!((moments.count(), moments.sum()), (7, &[0.5, -0.5][..]));
        assert_eq!(moments.epsilon(), f64::from(f32::EPSILON));
        // The same with a Gram that is not symmetric, one that is not finite, and a negative count.
        let start = bytes.len() - 8 - 24;
        for (at, value) in [(start + 4, -1.0_f32), (start, f32::NAN), (start, -2.0)] {
            let mut bad = bytes.clone();
            bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
            std::fs::write(&path, &bad).unwrap();
            assert!(MomentsFile::open(&path).unwrap().read("x").is_err());
        }
        let end = bytes.len();
        bytes[end - 8..].copy_from_slice(&(-1_i64).to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let error = MomentsFile::open(&path).unwrap().read("x").unwrap_err();
        assert!(
            error.to_string().contains("the count of `x` is -1"),
            "{error}"
        );
    }

    #[test]
    fn files_that_are_none_of_moments_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let open = |metadata: &[(&str, &str)], specs: &[(&str, Dtype, &[usize])]| {
            let metadata = metadata
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect();
            let specs: Vec<TensorSpec> = specs
                .iter()
                .map(|(name, dtype, shape)| TensorSpec {
                    name: (*name).into(),
                    dtype: *dtype,
                    shape: shape.to_vec(),
                })
                .collect();
            let layout = header::compose(&metadata, &specs).unwrap();
            let mut bytes = layout.header;
            bytes.resize(layout.file_len as usize, 0);
            std::fs::write(&path, bytes).unwrap();
            MomentsFile::open(&path)
                .map(|_| ())
                .map_err(|error| error.to_string())
        };
        let good = [("format", FORMAT), ("version", VERSION)];
        let gram: (&str, Dtype, &[usize]) = ("x.gram", Dtype::F64, &[3]);
        let sum: (&str, Dtype, &[usize]) = ("x.sum", Dtype::F64, &[2]);
        let count: (&str, Dtype, &[usize]) = ("x.count", Dtype::I64, &[1]);
        assert_eq!(open(&good, &[gram, sum, count]), Ok(()));
        for (metadata, specs, expected) in [
            (&[][..], vec![gram, sum, count], "no `format`"),
            (
                &[("format", FORMAT), ("version", "9")],
                vec![],
                "reads version 1",
            ),
            (
                &[good[0], good[1], ("precision", "int8")],
                vec![],
                "`precision` is `int8`",
            ),
            (
                &[good[0], good[1], ("tokens", "many")],
                vec![],
                "not a number",
            ),
            (
                &[good[0], good[1], ("aliases", "[]")],
                vec![],
                "`aliases` are no JSON",
            ),
            (
                &[good[0], good[1], ("aliases", "{\"a\":\"b\"}")],
                vec![],
                "alias `a` stands for `b`",
            ),
            (
                &good[..],
                vec![gram, sum],
                "`x` has gram [3], sum [2]; expected are",
            ),
            (
                &good[..],
                vec![("x.gram", Dtype::F64, &[4]), sum, count],
                "`x` has",
            ),
            (
                &good[..],
                vec![("x.gram", Dtype::F64, &[2, 3]), sum, count],
                "`x` has",
            ),
            (
                &good[..],
                vec![("lonely", Dtype::F64, &[4])],
                "named neither",
            ),
            (
                &good[..],
                vec![gram, sum, count, ("x.held_out.rows", Dtype::I64, &[3])],
                "another kind or size",
            ),
        ] {
            let error = open(metadata, &specs).unwrap_err();
            assert!(error.contains(expected), "{error}\n{expected}");
        }
        std::fs::write(&path, b"abc").unwrap();
        assert!(MomentsFile::open(&path).is_err());
    }

    #[test]
    fn a_writer_holds_what_was_announced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let specs = [input(0, 1).spec("x", false)];
        let create =
            || MomentsWriter::create(&path, &info(), &BTreeMap::new(), &specs, 0.0).unwrap();
        assert!(create().write("y", &input(0, 1), None).is_err());
        assert!(
            create()
                .write("x", &input(0, 1), Some(&input(0, 1)))
                .is_err()
        );
        assert!(
            create()
                .finish()
                .unwrap_err()
                .to_string()
                .contains("never written")
        );
        assert!(!path.exists());
    }
}
