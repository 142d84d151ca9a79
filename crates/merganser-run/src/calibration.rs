//! Finds calibration data: where they are, and a hash of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use merganser_recipe::{Body, Calibration, Diagnostic, Document, Span};

/// Files up to this size are hashed whole, larger ones by their size and a sample.
const HASHED: u64 = 256 << 20;
/// Bytes of the first, middle and last part of a larger file that are hashed.
const SAMPLE: u64 = 1 << 20;

/// Every calibration file or folder that a document names, with where it was found and a hash of its content.
///
/// # Errors
/// One diagnostic for each that cannot be found or read.
pub(crate) fn find(
    document: &Document,
    recipe_dir: Option<&Path>,
) -> Result<BTreeMap<String, (PathBuf, String)>, Vec<Diagnostic>> {
    let mut found = BTreeMap::new();
    let mut errors = Vec::new();
    for (name, span) in named(document) {
        if found.contains_key(&name) {
            continue;
        }
        let path = locate(&name, recipe_dir);
        match digest(&path) {
            Ok(digest) => {
                found.insert(name, (path, digest));
            }
            Err(error) => errors.push(
                Diagnostic::error(format!("cannot read calibration data '{name}': {error}"))
                    .label(span, "named here")
                    .help("a path is looked for in the working directory, then beside the recipe"),
            ),
        }
    }
    if errors.is_empty() {
        Ok(found)
    } else {
        Err(errors)
    }
}

fn named(document: &Document) -> Vec<(String, Span)> {
    let Body::Models(sources) = &document.body else {
        return Vec::new();
    };
    let own = sources
        .iter()
        .filter_map(|source| source.calibration.as_ref());
    own.chain(&document.calibration)
        .filter_map(|calibration: &Calibration| calibration.data.as_ref())
        .map(|data| (data.value.clone(), data.span))
        .collect()
}

fn locate(name: &str, recipe_dir: Option<&Path>) -> PathBuf {
    let path = PathBuf::from(name);
    match recipe_dir.map(|dir| dir.join(name)) {
        Some(beside) if !path.exists() && beside.exists() => beside,
        _ => path,
    }
}

fn digest(path: &Path) -> std::io::Result<String> {
    use std::os::unix::fs::FileExt;
    let mut hasher = blake3::Hasher::new();
    if path.is_dir() {
        for (name, size) in files(path, path)? {
            hasher.update(format!("{name} {size}\n").as_bytes());
        }
        return Ok(hasher.finalize().to_hex().to_string());
    }
    let file = std::fs::File::open(path)?;
    let size = file.metadata()?.len();
    if size <= HASHED {
        hasher.update_reader(&file)?;
    } else {
        let mut bytes = vec![0; SAMPLE as usize];
        hasher.update(&size.to_le_bytes());
        for at in [0, size / 2, size - SAMPLE] {
            file.read_exact_at(&mut bytes, at)?;
            hasher.update(&bytes);
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Names and sizes of the files in a folder and its sub-folders, sorted.
fn files(root: &Path, dir: &Path) -> std::io::Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let metadata = std::fs::metadata(&path)?;
        if metadata.is_dir() {
            found.extend(files(root, &path)?);
        } else {
            let name = path.strip_prefix(root).unwrap_or(&path);
            found.push((name.display().to_string(), metadata.len()));
        }
    }
    found.sort();
    Ok(found)
}
