//! An output file of known size, written at any offset by any thread.
//!
//! The space is reserved when the file is created, so that a full disk is noticed before the work
//! begins and not after hours of it. File systems that cannot reserve (some network ones), and those in
//! memory, get a sparse file instead.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::error::{Error, Result};

/// An output file being written.
#[derive(Debug)]
pub struct ShardFile {
    file: File,
    path: PathBuf,
    size: u64,
}

impl ShardFile {
    /// Creates the file with `size` bytes of zeros, reserved on disk where possible. A file that is
    /// already there is replaced.
    pub fn create(path: &Path, size: u64) -> Result<Self> {
        // Not truncated in place: readers of an older file under this name keep it.
        match std::fs::remove_file(path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("replace", path, cause));
            }
            _ => {}
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|cause| Error::io("create", path, cause))?;
        let shard = Self {
            file,
            path: path.to_owned(),
            size,
        };
        if let Err(error) = shard.reserve() {
            // A file of the wrong size must not be taken for one to resume.
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        Ok(shard)
    }

    /// Opens a file that an interrupted run left behind, to go on writing. `None` if it is not
    /// there or has another size.
    pub fn reopen(path: &Path, size: u64) -> Result<Option<Self>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(Error::io("open", path, cause)),
        };
        let found = file
            .metadata()
            .map_err(|cause| Error::io("inspect", path, cause))?
            .len();
        Ok((found == size).then(|| Self {
            file,
            path: path.to_owned(),
            size,
        }))
    }

    fn reserve(&self) -> Result<()> {
        if self.size == 0 {
            return Ok(());
        }
        // Asked first: a reservation that fails may fill the disk for a moment, at the expense of
        // everybody else who writes to it.
        let free = free_space(&self.path)?;
        if free < self.size {
            return Err(Error::NoSpace {
                path: self.path.clone(),
                needed: self.size,
                free,
            });
        }
        // To reserve memory is to clear it page by page, before any other thread may write.
        if is_memory(&self.file) {
            return self
                .file
                .set_len(self.size)
                .map_err(|cause| self.failed("resize", self.size, cause));
        }
        let reserved = loop {
            match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, self.size) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        match reserved {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => self
                .file
                .set_len(self.size)
                .map_err(|cause| self.failed("resize", self.size, cause)),
            Err(errno) => Err(self.failed("reserve space for", self.size, errno.into())),
        }
    }

    /// Writes all of `bytes` at `offset`. Many threads may write at once, to places that do not
    /// overlap.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        if offset
            .checked_add(bytes.len() as u64)
            .is_none_or(|end| end > self.size)
        {
            let cause = io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{} bytes at {offset} do not fit in a file of {}",
                    bytes.len(),
                    self.size
                ),
            );
            return Err(Error::io("write", &self.path, cause));
        }
        self.file
            .write_all_at(bytes, offset)
            .map_err(|cause| self.failed("write", bytes.len() as u64, cause))
    }

    /// Fills `buf` with what was written at `offset`, to verify work of an interrupted run.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(buf, offset)
            .map_err(|cause| Error::io("read", &self.path, cause))
    }

    /// Waits until everything written is on disk.
    pub fn sync(&self) -> Result<()> {
        self.file
            .sync_all()
            .map_err(|cause| self.failed("sync", self.size, cause))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its final size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn failed(&self, doing: &'static str, needed: u64, cause: io::Error) -> Error {
        write_error(doing, &self.path, needed, cause)
    }
}

/// Whether the file lies in a tmpfs.
#[cfg(target_os = "linux")]
fn is_memory(file: &File) -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_type as u64 == TMPFS_MAGIC)
}

#[cfg(not(target_os = "linux"))]
fn is_memory(_: &File) -> bool {
    false
}

/// The error of a failed write of `needed` bytes: a full disk (or quota) gets its own words.
pub(crate) fn write_error(
    doing: &'static str,
    path: &Path,
    needed: u64,
    cause: io::Error,
) -> Error {
    if matches!(
        cause.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    ) {
        let free = free_space(path.parent().unwrap_or(path)).unwrap_or(0);
        Error::NoSpace {
            path: path.to_owned(),
            needed,
            free,
        }
    } else {
        Error::io(doing, path, cause)
    }
}

/// Bytes free for this user on the file system that holds `path`, which must exist; `u64::MAX` if
/// the file system does not say.
pub fn free_space(path: &Path) -> Result<u64> {
    let stat =
        rustix::fs::statvfs(path).map_err(|errno| Error::io("inspect", path, errno.into()))?;
    Ok(if stat.f_blocks == 0 {
        u64::MAX
    } else {
        stat.f_bavail.saturating_mul(stat.f_frsize)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn threads_write_to_their_places() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let shard = ShardFile::create(&path, 800).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 800);
        std::thread::scope(|scope| {
            for i in 0..8_u8 {
                let shard = &shard;
                scope.spawn(move || shard.write_at(u64::from(i) * 100, &[i; 100]).unwrap());
            }
        });
        shard.sync().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert!(
            bytes
                .iter()
                .enumerate()
                .all(|(at, &byte)| byte as usize == at / 100)
        );
        let mut buf = [0; 2];
        shard.read_at(299, &mut buf).unwrap();
        assert_eq!(buf, [2, 3]);
    }

    #[test]
    fn a_write_past_the_end_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let shard = ShardFile::create(&dir.path().join("f"), 10).unwrap();
        assert!(shard.write_at(8, b"abc").is_err());
        assert!(shard.write_at(u64::MAX, b"abc").is_err());
        assert_eq!(std::fs::metadata(shard.path()).unwrap().len(), 10);
    }

    #[test]
    fn only_a_file_of_the_right_size_is_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert!(ShardFile::reopen(&path, 3).unwrap().is_none());
        ShardFile::create(&path, 3)
            .unwrap()
            .write_at(1, b"x")
            .unwrap();
        assert!(ShardFile::reopen(&path, 4).unwrap().is_none());
        let mut buf = [0; 3];
        ShardFile::reopen(&path, 3)
            .unwrap()
            .unwrap()
            .read_at(0, &mut buf)
            .unwrap();
        assert_eq!(&buf, b"\0x\0");
        ShardFile::create(&path, 0).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }

    #[test]
    fn more_than_the_disk_holds_is_refused_at_once_with_both_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let error = ShardFile::create(&path, u64::MAX / 2).unwrap_err();
        assert!(
            matches!(error, Error::NoSpace { needed, .. } if needed == u64::MAX / 2),
            "{error}"
        );
        assert!(!path.exists());
        let full = write_error(
            "write",
            &path,
            7,
            io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error()),
        );
        let message = full.to_string();
        assert!(
            message.contains("7 bytes are needed") && message.contains("are free"),
            "{message}"
        );
    }
}
