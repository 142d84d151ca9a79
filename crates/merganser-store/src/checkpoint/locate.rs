//! Which files of a folder are the model.
//!
//! The order is that of transformers: safetensors before pickles, one file before shards. A folder
//! where the choice would be a guess is refused with the list of what it holds.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::index::{IndexError, MAX_INDEX_LEN, parse_index};
use crate::error::{Error, Result};
use crate::names::shard_of;
use crate::source::read_text;

/// The files that make up a model.
#[derive(Debug)]
pub(super) struct Located {
    /// Weight files, in name order.
    pub(super) files: Vec<PathBuf>,
    /// The index, if one decided.
    pub(super) index: Option<LocatedIndex>,
    /// Choices a user may want to know about.
    pub(super) notes: Vec<String>,
}

#[derive(Debug)]
pub(super) struct LocatedIndex {
    pub(super) path: PathBuf,
    /// For each tensor, the position of its file in `files`.
    pub(super) entries: Vec<(String, usize)>,
}

/// Names looked for, in order; each also with `.index.json`.
const STANDARD: [&str; 3] = [
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
];
const PICKLE: &str = "pytorch_model.bin";
const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// Regular files (or links to such) directly in `dir` whose names are UTF-8.
pub(super) fn list(dir: &Path) -> Result<BTreeSet<String>> {
    let failed = |cause| Error::io("list", dir, cause);
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // A dangling link is listed so that the error names it instead of overlooking it.
        let is_folder = std::fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_dir());
        if let (false, Ok(name)) = (is_folder, entry.file_name().into_string()) {
            names.insert(name);
        }
    }
    Ok(names)
}

/// Finds the weights in `dir`, whose file names are `names`.
pub(super) fn locate(dir: &Path, names: &BTreeSet<String>) -> Result<Located> {
    for standard in STANDARD {
        let index = format!("{standard}.index.json");
        if names.contains(standard) {
            let mut notes = pickle_note(standard, names);
            if names.contains(&index) {
                notes.push(format!(
                    "`{standard}` is read; `{index}` beside it is ignored"
                ));
            }
            return Ok(Located {
                files: vec![dir.join(standard)],
                index: None,
                notes,
            });
        }
        if names.contains(&index) {
            let mut located = by_index(dir, &dir.join(&index))?;
            located.notes = pickle_note(standard, names);
            return Ok(located);
        }
        // Pickles come last, after safetensors of any name.
        if standard == STANDARD[1]
            && let Some(located) = any_safetensors(dir, names)?
        {
            return Ok(located);
        }
    }
    Err(no_model(dir, names))
}

fn pickle_note(chosen: &str, names: &BTreeSet<String>) -> Vec<String> {
    let both = chosen != PICKLE
        && (names.contains(PICKLE) || names.contains(&format!("{PICKLE}.index.json")));
    if both {
        vec![format!(
            "safetensors are read; `{PICKLE}` beside them is ignored"
        )]
    } else {
        Vec::new()
    }
}

fn by_index(dir: &Path, path: &Path) -> Result<Located> {
    let refused = |problem| Error::Index {
        path: path.to_owned(),
        problem,
    };
    let index = parse_index(&read_text(path, MAX_INDEX_LEN)?).map_err(refused)?;
    let shards: Vec<&str> = index
        .weight_map
        .values()
        .map(String::as_str)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let missing: Vec<_> = shards
        .iter()
        .filter(|shard| !dir.join(shard).exists())
        .collect();
    if let Some(first) = missing.first() {
        return Err(refused(IndexError::ShardMissing {
            shard: (**first).to_owned(),
            count: missing.len(),
            total: shards.len(),
        }));
    }
    let entries = index
        .weight_map
        .iter()
        .filter_map(|(tensor, shard)| {
            Some((tensor.clone(), shards.binary_search(&shard.as_str()).ok()?))
        })
        .collect();
    Ok(Located {
        files: shards.iter().map(|shard| dir.join(shard)).collect(),
        index: Some(LocatedIndex {
            path: path.to_owned(),
            entries,
        }),
        notes: Vec::new(),
    })
}

/// Safetensors of other names: a single one, or a complete set of shards whose index is missing.
fn any_safetensors(dir: &Path, names: &BTreeSet<String>) -> Result<Option<Located>> {
    let found: Vec<&str> = names
        .iter()
        .filter_map(|name| name.strip_suffix(".safetensors"))
        .filter(|&stem| format!("{stem}.safetensors") != ADAPTER_WEIGHTS)
        .collect();
    let refused = |problem| {
        Err(Error::NoModel {
            path: dir.to_owned(),
            problem,
        })
    };
    let mut notes = Vec::new();
    match found[..] {
        [] => return Ok(None),
        [stem] if shard_of(stem).is_none_or(|shard| shard.count == 1) => {
            notes.push(format!("`{stem}.safetensors` is read as the model"));
        }
        _ => {
            let Some(shards) = found
                .iter()
                .map(|stem| shard_of(stem))
                .collect::<Option<Vec<_>>>()
            else {
                return refused(format!(
                    "it holds several safetensors files and no index: {}; give the path of the one that is meant",
                    quoted(found.iter().map(|stem| format!("{stem}.safetensors"))),
                ));
            };
            let first = shards[0];
            let complete = shards.len() as u64 == u64::from(first.count)
                && shards.iter().zip(1..).all(|(shard, number)| {
                    (shard.stem, shard.number, shard.count) == (first.stem, number, first.count)
                });
            if !complete {
                return refused(format!(
                    "it holds {} of the {} shards of `{}` and no index; download or copy the rest",
                    shards.len(),
                    first.count,
                    first.stem,
                ));
            }
            notes.push(format!(
                "the index is missing; the {} shards of `{}` are read as the model",
                first.count, first.stem
            ));
        }
    }
    let files = found
        .iter()
        .map(|stem| dir.join(format!("{stem}.safetensors")))
        .collect();
    Ok(Some(Located {
        files,
        index: None,
        notes,
    }))
}

fn no_model(dir: &Path, names: &BTreeSet<String>) -> Error {
    let has = |suffix: &str| names.iter().any(|name| name.ends_with(suffix));
    let found = if names.contains("adapter_config.json") {
        "it is a PEFT adapter; write `BASE+ADAPTER` to apply it to its base model".to_owned()
    } else if has(".gguf") {
        "it holds GGUF files, which are quantised for inference; use the original safetensors"
            .to_owned()
    } else if names.is_empty() {
        "the folder is empty".to_owned()
    } else {
        format!("it holds only {}", quoted(names.iter()))
    };
    let expected =
        "expected `model.safetensors`, `model.safetensors.index.json` or `pytorch_model.bin`";
    Error::NoModel {
        path: dir.to_owned(),
        problem: format!("{found}; {expected}"),
    }
}

/// The first few of `names` for a message.
pub(crate) fn quoted<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    const SHOWN: usize = 5;
    let mut names = names.into_iter();
    let mut text = names
        .by_ref()
        .take(SHOWN)
        .map(|name| format!("`{}`", name.as_ref()))
        .collect::<Vec<_>>()
        .join(", ");
    let more = names.count();
    if more > 0 {
        let _ = write!(text, " and {more} more");
    }
    text
}
