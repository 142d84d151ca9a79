//! What is finished before its place is known.
//!
//! The ranks decide how long the file's header is, and they are known only when the last matrix is decomposed. Until then
//! factors wait on disk, so that memory does not grow with the number of layers.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use merganser_store::shard::ShardFile;

use crate::RunError;

/// Bytes that are copied at a time.
const PIECE: usize = 1 << 20;

/// A file that grows at its end, by any thread.
pub(super) struct Spool {
    file: File,
    path: PathBuf,
    end: AtomicU64,
}

/// Where something lies in a [`Spool`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    start: u64,
    len: u64,
}

impl Spool {
    /// Creates the file, empty.
    pub(super) fn create(path: &Path) -> Result<Self, RunError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(RunError::io("create", path))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            end: AtomicU64::new(0),
        })
    }

    /// Appends bytes.
    pub(super) fn put(&self, bytes: &[u8]) -> Result<Place, RunError> {
        let len = bytes.len() as u64;
        let start = self.end.fetch_add(len, Ordering::Relaxed);
        self.file
            .write_all_at(bytes, start)
            .map_err(RunError::io("write", &self.path))?;
        Ok(Place { start, len })
    }

    /// Copies what lies at a place to `offset` of a file.
    pub(super) fn copy(&self, place: Place, to: &ShardFile, offset: u64) -> Result<(), RunError> {
        let mut piece = vec![0; PIECE.min(place.len as usize)];
        let mut at = 0;
        while at < place.len {
            let len = (PIECE as u64).min(place.len - at) as usize;
            self.file
                .read_exact_at(&mut piece[..len], place.start + at)
                .map_err(RunError::io("read", &self.path))?;
            to.write_at(offset + at, &piece[..len])?;
            at += len as u64;
        }
        Ok(())
    }
}
