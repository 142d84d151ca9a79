//! Fingerprints of files: the whole content (slow, certain) or the header and size (instant).
//!
//! Both are BLAKE3. The cheap one is enough to notice that an input was replaced between two runs
//! of the same merge; only the whole one proves which weights went into a model.

use std::fmt;
use std::path::Path;

use crate::error::{Error, Result};
use crate::source::{ReadAt, SourceFile};

/// Bytes read at a time: large enough for BLAKE3 to use several threads.
const CHUNK: usize = 4 << 20;

/// A BLAKE3 hash; prints as 64 hexadecimal digits.
pub use blake3::Hash;

/// What tells two versions of a file apart without reading its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Bytes of the file.
    pub size: u64,
    /// Hash of its header: names, types, shapes and places of all tensors (and, for a torch file,
    /// the checksums of their data).
    pub header_digest: Hash,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.size, self.header_digest)
    }
}

/// Hashes the whole content of the file at `path`, in bounded memory, on rayon's threads.
pub fn hash_file(path: &Path) -> Result<Hash> {
    let source = SourceFile::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK.min(source.size() as usize)];
    let mut offset = 0;
    while offset < source.size() {
        let len = (source.size() - offset).min(CHUNK as u64) as usize;
        source
            .read_exact_at(&mut buffer[..len], offset)
            .map_err(|cause| Error::io("read", path, cause))?;
        hasher.update_rayon(&buffer[..len]);
        offset += len as u64;
    }
    Ok(hasher.finalize())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1] {
            let content: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
            std::fs::write(&path, &content).unwrap();
            assert_eq!(hash_file(&path).unwrap(), blake3::hash(&content), "{len}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let message = hash_file(Path::new("/nonexistent/f"))
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with("cannot open `/nonexistent/f`: "),
            "{message}"
        );
    }
}
