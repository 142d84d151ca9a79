//! A single file that appears under its name when it is complete, and not before.
//!
//! The data go to `NAME.partial` beside it, whose space is reserved at once. [`NewFile::finish`] waits until they are on
//! disk and renames the file; one that is dropped before is removed. A reader never sees half of it, and a file that was
//! there under the name keeps its content until then.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::header::{self, TensorSpec};
use crate::shard::ShardFile;

/// A file being written.
#[derive(Debug)]
pub struct NewFile {
    shard: ShardFile,
    path: PathBuf,
    staging: PathBuf,
}

impl NewFile {
    /// Reserves `size` bytes for the file `path`.
    ///
    /// # Errors
    /// If something is there under this name and `overwrite` is not set, the disk is too full, or the file cannot be
    /// created.
    pub fn create(path: &Path, size: u64, overwrite: bool) -> Result<Self> {
        let staging = staging(path, overwrite)?;
        Ok(Self {
            shard: ShardFile::create(&staging, size)?,
            path: path.to_owned(),
            staging,
        })
    }

    /// Writes all of `bytes` at `offset`. Many threads may write at once, to places that do not overlap.
    ///
    /// # Errors
    /// If the bytes do not fit into the size announced, or the disk fails.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.shard.write_at(offset, bytes)
    }

    /// Waits until everything is on disk and gives the file its name.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn finish(self) -> Result<()> {
        self.shard.sync()?;
        std::fs::rename(&self.staging, &self.path)
            .map_err(|cause| Error::io("rename", &self.staging, cause))
    }
}

/// What was not finished is not left behind.
impl Drop for NewFile {
    fn drop(&mut self) {
        // A finished file has its own name by now; one that cannot be removed is made anew by the next writer.
        let _ = std::fs::remove_file(&self.staging);
    }
}

/// Where the data of `path` go until they are complete.
///
/// # Errors
/// If something is there under this name that may not be replaced: any file unless `overwrite` is set, and whatever is no
/// regular file.
pub fn staging(path: &Path, overwrite: bool) -> Result<PathBuf> {
    if let Ok(metadata) = std::fs::metadata(path)
        && (!overwrite || !metadata.is_file())
    {
        return Err(Error::FileExists {
            path: path.to_owned(),
            regular: metadata.is_file(),
        });
    }
    let mut staging = path.as_os_str().to_owned();
    staging.push(".partial");
    Ok(PathBuf::from(staging))
}

/// Writes a safetensors file whose tensors are all in memory.
///
/// # Errors
/// Those of [`NewFile`]; a name that is used twice, or bytes that are not as many as the shape asks for.
pub fn write_tensors(
    path: &Path,
    overwrite: bool,
    metadata: &BTreeMap<String, String>,
    tensors: &[(TensorSpec, Vec<u8>)],
) -> Result<()> {
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let layout = header::compose(metadata, &specs).map_err(|problem| Error::Header {
        path: path.to_owned(),
        problem,
    })?;
    let file = NewFile::create(path, layout.file_len, overwrite)?;
    file.write_at(0, &layout.header)?;
    for ((spec, bytes), &offset) in tensors.iter().zip(&layout.offsets) {
        if spec.dtype.nbytes(&spec.shape) != Some(bytes.len() as u64) {
            return Err(Error::Range {
                tensor: spec.name.clone(),
                start: 0,
                end: bytes.len() as u64,
                nbytes: spec.dtype.nbytes(&spec.shape).unwrap_or(0),
            });
        }
        file.write_at(offset, bytes)?;
    }
    file.finish()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Dtype;

    #[test]
    fn a_file_appears_when_it_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        let file = NewFile::create(&path, 4, false).unwrap();
        file.write_at(0, b"abcd").unwrap();
        assert!(!path.exists());
        file.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"abcd");
        assert!(file_names(dir.path()) == ["a.bin"]);
    }

    #[test]
    fn what_is_there_is_replaced_on_request_only_and_when_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        std::fs::write(&path, "old").unwrap();
        let error = NewFile::create(&path, 3, false).unwrap_err();
        assert!(error.to_string().contains("--overwrite"), "{error}");
        let file = NewFile::create(&path, 3, true).unwrap();
        file.write_at(0, b"new").unwrap();
        drop(file);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert!(file_names(dir.path()) == ["a.bin"]);
        assert!(NewFile::create(dir.path(), 3, true).is_err());
    }

    #[test]
    fn tensors_have_the_bytes_their_shape_asks_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let spec = TensorSpec {
            name: "x".into(),
            dtype: Dtype::F32,
            shape: vec![2],
        };
        assert!(
            write_tensors(
                &path,
                false,
                &BTreeMap::new(),
                &[(spec.clone(), vec![0; 4])]
            )
            .is_err()
        );
        assert!(file_names(dir.path()).is_empty());
        write_tensors(&path, false, &BTreeMap::new(), &[(spec, vec![0; 8])]).unwrap();
        let read = crate::checkpoint::Checkpoint::open(&path).unwrap();
        assert_eq!(read.tensors()["x"].shape, [2]);
    }

    fn file_names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect()
    }
}
