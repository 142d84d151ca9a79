//! Where samples come from, and which files of a folder they are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, list};
use crate::table::TableFormat;

/// Depth to which folders are searched.
const MAX_DEPTH: usize = 16;
/// Names that files and folders of data sets have for their parts.
const SPLITS: [&str; 7] = [
    "train",
    "test",
    "validation",
    "valid",
    "val",
    "dev",
    "calib",
];

/// Samples as a user names them: a path, and what it takes to read it where that is not obvious.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Source {
    /// A file, or a folder of images, arrays or files of one format.
    pub path: PathBuf,
    /// The format, if the extension does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// The part that is meant: rows whose `split` column has this value, tensors with this prefix (`test.input_ids`),
    /// the files or the sub-folder of this name.
    #[serde(alias = "prefix", skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// The column of texts or images. Default: `text`, or the only one of strings; `image` or `img`, or the only one of
    /// images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// The column of second texts, for models that read pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pair: Option<String>,
    /// The column of texts for the decoder of an encoder-decoder model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The column of labels. Default: `label` or `labels`, or the only one of whole numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

impl Source {
    /// The samples at `path`, with every choice left to what is found there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            ..Self::default()
        }
    }
}

/// How samples are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object or string a line (`.jsonl`, `.ndjson`).
    Jsonl,
    /// A JSON array of objects or strings, or an object with one such array (`.json`).
    Json,
    /// One sample a line (`.txt`).
    Txt,
    /// Comma-separated values with a header line (`.csv`).
    Csv,
    /// Tab-separated values with a header line (`.tsv`).
    Tsv,
    /// Apache Parquet (`.parquet`).
    Parquet,
    /// Image files in folders; the first folder names the class.
    Images,
    /// Ready tensors (`.safetensors`).
    Safetensors,
    /// Ready NumPy arrays (`.npy`).
    Npy,
}

impl Format {
    const NAMES: &'static str = "jsonl, json, txt, csv, tsv, parquet, images, safetensors, npy";

    fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        Some(match extension.as_str() {
            "jsonl" | "ndjson" => Self::Jsonl,
            "json" => Self::Json,
            "txt" => Self::Txt,
            "csv" => Self::Csv,
            "tsv" => Self::Tsv,
            "parquet" => Self::Parquet,
            "safetensors" => Self::Safetensors,
            "npy" => Self::Npy,
            "png" | "jpg" | "jpeg" | "webp" | "bmp" | "tif" | "tiff" | "gif" => Self::Images,
            _ => return None,
        })
    }

    fn table(self) -> Option<TableFormat> {
        Some(match self {
            Self::Jsonl => TableFormat::JsonLines,
            Self::Json => TableFormat::Json,
            Self::Txt => TableFormat::Text,
            Self::Csv => TableFormat::Csv,
            Self::Tsv => TableFormat::Tsv,
            Self::Parquet => TableFormat::Parquet,
            Self::Images | Self::Safetensors | Self::Npy => return None,
        })
    }
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        serde_json::from_value(serde_json::Value::from(text.to_ascii_lowercase()))
            .map_err(|_| format!("unknown format `{text}`; expected one of {}", Self::NAMES))
    }
}

/// What a source turned out to be.
#[derive(Debug)]
pub(crate) enum Found {
    /// Files of rows. `split` is what is left to look for in a column.
    Table {
        files: Vec<PathBuf>,
        format: TableFormat,
        split: Option<String>,
    },
    /// Image files, each with its class if it is in a sub-folder.
    Images {
        files: Vec<(PathBuf, Option<u32>)>,
        classes: Vec<String>,
    },
    /// A file of tensors.
    Safetensors(PathBuf),
    /// Arrays by name.
    Npy(Vec<(String, PathBuf)>),
}

/// Looks at the path of a source.
pub(crate) fn find(source: &Source) -> Result<Found> {
    let path = &source.path;
    let metadata = std::fs::metadata(path).map_err(|cause| Error::io("open", path, cause))?;
    if metadata.is_dir() {
        return find_in_folder(source);
    }
    let Some(format) = source.format.or_else(|| Format::of(path)) else {
        return Err(Error::source(
            path,
            format!(
                "has no extension that is known here; name its format, one of {}",
                Format::NAMES
            ),
        ));
    };
    if metadata.len() == 0 {
        return Err(Error::source(path, "is empty"));
    }
    let split = source.split.clone();
    Ok(match (format.table(), format) {
        (Some(format), _) => Found::Table {
            files: vec![path.clone()],
            format,
            split,
        },
        (None, Format::Safetensors) => Found::Safetensors(path.clone()),
        (None, Format::Npy) => Found::Npy(vec![(stem(path), path.clone())]),
        (None, _) => Found::Images {
            files: vec![(path.clone(), None)],
            classes: Vec::new(),
        },
    })
}

fn find_in_folder(source: &Source) -> Result<Found> {
    let mut root = source.path.clone();
    let mut split = source.split.clone();
    // A sub-folder of the name of the split settles it.
    if let Some(name) = &split {
        let inside = root.join(name);
        if !name.contains(['/', '\\']) && name != ".." && inside.is_dir() {
            root = inside;
            split = None;
        }
    }
    let mut files = Vec::new();
    walk(&root, 0, &mut files)?;
    let mut groups: BTreeMap<&'static str, (Format, Vec<PathBuf>)> = BTreeMap::new();
    for path in files {
        if let Some(format) = Format::of(&path) {
            let name = match format {
                Format::Jsonl => "JSON lines",
                Format::Json => "JSON",
                Format::Txt => "text",
                Format::Csv => "CSV",
                Format::Tsv => "TSV",
                Format::Parquet => "Parquet",
                Format::Images => "image",
                Format::Safetensors => "safetensors",
                Format::Npy => "npy",
            };
            groups
                .entry(name)
                .or_insert_with(|| (format, Vec::new()))
                .1
                .push(path);
        }
    }
    if let Some(format) = source.format {
        groups.retain(|_, (found, _)| *found == format);
    } else if groups.len() > 1 {
        // A licence, a card or a config beside the data.
        groups.retain(|_, (found, _)| !matches!(found, Format::Json | Format::Txt));
    }
    let described: Vec<String> = groups
        .iter()
        .map(|(name, (_, files))| format!("{} {name}", files.len()))
        .collect();
    let mut groups = groups.into_values();
    let (format, files) = match (groups.next(), groups.next()) {
        (Some(group), None) => group,
        (None, _) => {
            return Err(Error::source(
                &root,
                match source.format {
                    Some(format) => format!("holds no files of format {format:?}"),
                    None => format!("holds no files of a known format ({})", Format::NAMES),
                },
            ));
        }
        (Some(_), Some(_)) => {
            return Err(Error::source(
                &root,
                format!(
                    "holds files of several formats ({}); name the one that is meant",
                    described.join(", ")
                ),
            ));
        }
    };
    match (format.table(), format) {
        (Some(format), _) => {
            let (files, split) = of_split(&root, files, split)?;
            Ok(Found::Table {
                files,
                format,
                split,
            })
        }
        (None, Format::Images) => images(&root, files, source),
        (None, Format::Npy) => Ok(Found::Npy(
            files.into_iter().map(|path| (stem(&path), path)).collect(),
        )),
        (None, _) => match &files[..] {
            [file] => Ok(Found::Safetensors(file.clone())),
            _ => Err(Error::source(
                &root,
                format!(
                    "holds {} safetensors files; give the path of the one that is meant",
                    files.len()
                ),
            )),
        },
    }
}

/// Files of a folder and its sub-folders, in the order of their paths. Hidden ones are left out.
fn walk(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::source(
            folder,
            format!("is more than {MAX_DEPTH} folders deep; do links go in a circle?"),
        ));
    }
    let failed = |cause| Error::io("list", folder, cause);
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        entries.push(entry.map_err(failed)?.path());
    }
    entries.sort();
    for path in entries {
        if path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
        {
            continue;
        }
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => walk(&path, depth + 1, files)?,
            // A link to nothing is kept: reading it will name it.
            _ => files.push(path),
        }
    }
    Ok(())
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The split a file belongs to by its name, `test-00000-of-00001`, or by its folder.
fn split_of<'a>(path: &Path, known: &[&'a str]) -> Option<&'a str> {
    let stem = stem(path).to_ascii_lowercase();
    let folder = path
        .parent()
        .and_then(Path::file_name)
        .map(|name| name.to_string_lossy().to_ascii_lowercase())
        .unwrap_or_default();
    known
        .iter()
        .find(|split| {
            let word = split.to_ascii_lowercase();
            folder == word
                || stem
                    .strip_prefix(&word)
                    .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
        })
        .copied()
}

/// Files of the split asked for; the split that is left to be looked for in a column.
fn of_split(
    root: &Path,
    files: Vec<PathBuf>,
    split: Option<String>,
) -> Result<(Vec<PathBuf>, Option<String>)> {
    if let Some(name) = &split {
        let chosen: Vec<PathBuf> = files
            .iter()
            .filter(|path| split_of(path, &[name]).is_some())
            .cloned()
            .collect();
        return Ok(if chosen.is_empty() {
            (files, split)
        } else {
            (chosen, None)
        });
    }
    let mut found: Vec<&str> = files
        .iter()
        .filter_map(|path| split_of(path, &SPLITS))
        .collect();
    found.sort_unstable();
    found.dedup();
    if found.len() > 1 {
        return Err(Error::source(
            root,
            format!("holds the splits {}; choose one", list(&found)),
        ));
    }
    Ok((files, None))
}

fn images(root: &Path, files: Vec<PathBuf>, source: &Source) -> Result<Found> {
    let class_of = |path: &Path| -> Option<String> {
        let inside = path.strip_prefix(root).ok()?;
        let mut parts = inside.components();
        let first = parts.next()?;
        parts.next()?;
        Some(first.as_os_str().to_string_lossy().into_owned())
    };
    let mut classes: Vec<String> = files.iter().filter_map(|path| class_of(path)).collect();
    classes.sort();
    classes.dedup();
    if source.split.is_none()
        && classes.len() > 1
        && classes
            .iter()
            .all(|class| SPLITS.contains(&class.to_ascii_lowercase().as_str()))
    {
        return Err(Error::source(
            root,
            format!("holds the splits {}; choose one", list(&classes)),
        ));
    }
    let files = files
        .into_iter()
        .map(|path| {
            let class = class_of(&path)
                .and_then(|class| classes.binary_search(&class).ok())
                .map(|index| index as u32);
            (path, class)
        })
        .collect();
    Ok(Found::Images { files, classes })
}
