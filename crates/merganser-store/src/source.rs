//! Positioned reads: the one way this crate looks into a file.
//!
//! A read names its offset, so many threads can share one open file, and a file that became
//! shorter than it was gives `UnexpectedEof` instead of the `SIGBUS` of a memory map.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{Error, Result};

/// Bytes that can be read at any offset, from any thread.
pub trait ReadAt {
    /// Number of bytes when the source was opened.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset`; `UnexpectedEof` if the source ends before `buf` is full.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buf.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}

/// A regular file opened for reading, with the path for messages.
#[derive(Debug)]
pub struct SourceFile {
    file: File,
    path: PathBuf,
    size: u64,
    modified: SystemTime,
}

impl SourceFile {
    /// Opens `path`. Fails if it is missing, unreadable, or not a regular file.
    pub fn open(path: &Path) -> Result<Self> {
        // Asked first, because opening a FIFO would block.
        let kind = std::fs::metadata(path).map_err(|cause| Error::io("open", path, cause))?;
        if !kind.is_file() {
            return Err(Error::NotAFile {
                path: path.to_owned(),
            });
        }
        let file = File::open(path).map_err(|cause| Error::io("open", path, cause))?;
        let metadata = file
            .metadata()
            .map_err(|cause| Error::io("inspect", path, cause))?;
        Ok(Self {
            path: path.to_owned(),
            size: metadata.len(),
            modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            file,
        })
    }

    /// Path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Time of the last change, when it was opened.
    pub fn modified(&self) -> SystemTime {
        self.modified
    }

    /// Reads `len` bytes from `offset`, or says which file failed.
    pub(crate) fn read_vec(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read_exact_at(&mut bytes, offset)
            .map_err(|cause| Error::io("read", &self.path, cause))?;
        Ok(bytes)
    }
}

impl ReadAt for SourceFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}

/// Reads a whole text file of at most `limit` bytes.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let source = SourceFile::open(path)?;
    if source.size > limit {
        return Err(Error::TooLarge {
            path: path.to_owned(),
            found: source.size,
            limit,
        });
    }
    let bytes = source.read_vec(0, source.size as usize)?;
    String::from_utf8(bytes).map_err(|error| Error::NotUtf8 {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn slices_refuse_reads_past_their_end() {
        let bytes: &[u8] = b"abcdef";
        let mut buf = [0; 3];
        bytes.read_exact_at(&mut buf, 3).unwrap();
        assert_eq!(&buf, b"def");
        for offset in [4, 6, 7, u64::MAX] {
            assert_eq!(
                bytes.read_exact_at(&mut buf, offset).unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof
            );
        }
    }

    #[test]
    fn a_folder_is_not_opened_as_a_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            SourceFile::open(dir.path()),
            Err(Error::NotAFile { .. })
        ));
    }

    #[test]
    fn text_must_be_utf8_and_of_sane_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, b"ab\xff").unwrap();
        assert!(matches!(
            read_text(&path, 10),
            Err(Error::NotUtf8 { offset: 2, .. })
        ));
        assert!(matches!(
            read_text(&path, 2),
            Err(Error::TooLarge {
                found: 3,
                limit: 2,
                ..
            })
        ));
    }
}
