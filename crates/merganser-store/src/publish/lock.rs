//! One writer at a time: an advisory lock on a file in the staging folder.
//!
//! The kernel drops the lock when the process ends, however it ends, so a crash leaves none behind.
//! Parts of one merge share the lock; publishing needs it alone.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::{Error, Result};

const NAME: &str = "lock";

/// A held lock; dropped with the value.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the staging folder `staging` of `out`, or fails at once if another
    /// process holds it. The folder is created if needed.
    pub(super) fn take(out: &Path, staging: &Path, shared: bool) -> Result<Self> {
        let path = staging.join(NAME);
        loop {
            std::fs::create_dir_all(staging)
                .map_err(|cause| Error::io("create", staging, cause))?;
            let file = match OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
            {
                Ok(file) => file,
                // Another process has just published and removed the folder.
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => continue,
                Err(cause) => return Err(Error::io("open", &path, cause)),
            };
            let operation = if shared {
                FlockOperation::NonBlockingLockShared
            } else {
                FlockOperation::NonBlockingLockExclusive
            };
            match rustix::fs::flock(&file, operation) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    return Err(Error::Locked {
                        path: out.to_owned(),
                    });
                }
                // Some cluster file systems have no locks at all; work there must stay possible.
                Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => {
                    return Ok(Self { _file: file });
                }
                Err(errno) => return Err(Error::io("lock", &path, errno.into())),
            }
            // The file may have been removed between opening and locking; then this lock guards
            // nothing that others can see.
            let held = file
                .metadata()
                .map_err(|cause| Error::io("inspect", &path, cause))?;
            if std::fs::metadata(&path)
                .is_ok_and(|seen| (seen.dev(), seen.ino()) == (held.dev(), held.ino()))
            {
                return Ok(Self { _file: file });
            }
        }
    }
}
