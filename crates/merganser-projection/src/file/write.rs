//! Writing: the space at once, entries in any order, and the name when all are there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use merganser_store::header;
use merganser_store::shard::ShardFile;

use super::{CHUNK, EntrySpec, FORMAT, HELD_OUT, MomentsInfo, Statistics, VERSION};
use crate::{Error, Result};

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

/// A file that was not finished is not left behind.
impl Drop for MomentsWriter {
    fn drop(&mut self) {
        // A finished file has its own name by now; one that cannot be removed is made anew by the next writer.
        let _ = std::fs::remove_file(&self.staging);
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
