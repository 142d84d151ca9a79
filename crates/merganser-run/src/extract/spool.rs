//! Factors that are finished before their place is known, and that a later run finds again.
//!
//! The ranks decide how long the file's header is, and they are known only when the last matrix is decomposed. Until then
//! each matrix has a file of its own in the staging folder: rank (u64), ‖Δ‖_F, relative error and share of energy (f64, all
//! little-endian), then the bytes of A and of B. So memory does not grow with the number of layers. The journal that merges
//! keep names those that are complete, with a hash of their bytes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use merganser_store::journal::{Entry, Journal};
use merganser_store::publish::Staging;
use merganser_store::shard::ShardFile;

use crate::RunError;
use crate::execute::{intact, recorded};

/// Bytes that are copied at a time.
const PIECE: usize = 1 << 20;

/// Bytes before the factors.
const HEAD: usize = 32;

/// What came of the decomposition of a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Outcome {
    /// Rank of the factors; 0 if there are none.
    pub(super) rank: usize,
    /// ‖Δ‖_F; 0 if the matrix did not change.
    pub(super) norm: f64,
    /// ‖Δ − B A‖_F / ‖Δ‖_F.
    pub(super) error: f64,
    /// Share of ‖Δ‖²_F kept.
    pub(super) energy: f64,
}

impl Outcome {
    fn to_bytes(self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        let numbers = [
            (self.rank as u64).to_le_bytes(),
            self.norm.to_le_bytes(),
            self.error.to_le_bytes(),
            self.energy.to_le_bytes(),
        ];
        for (to, from) in bytes.chunks_mut(8).zip(numbers) {
            to.copy_from_slice(&from);
        }
        bytes
    }

    fn from_bytes(bytes: [u8; HEAD]) -> Self {
        let word = |i: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[8 * i..8 * i + 8]);
            word
        };
        Self {
            rank: u64::from_le_bytes(word(0)) as usize,
            norm: f64::from_le_bytes(word(1)),
            error: f64::from_le_bytes(word(2)),
            energy: f64::from_le_bytes(word(3)),
        }
    }
}

/// The finished matrices of one extraction, each with a number and a name.
pub(super) struct Spool {
    folder: PathBuf,
    journal: Journal,
    finished: BTreeMap<String, Entry>,
}

/// Where a factor lies in a [`Spool`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// The matrix.
    pub(super) number: usize,
    /// How many bytes of factors come before it.
    pub(super) start: u64,
    /// Its bytes.
    pub(super) len: u64,
}

impl Spool {
    /// Opens what an earlier run of the same extraction, as `digest` says, has finished; begins anew if there is none.
    pub(super) fn open(staging: &Staging, digest: &str) -> Result<Self, RunError> {
        let folder = staging.dir().join("factors");
        let (journal, finished) = Journal::open(staging.dir(), "journal", digest)?;
        if finished.is_empty() && folder.exists() {
            fs::remove_dir_all(&folder).map_err(RunError::io("remove", &folder))?;
        }
        fs::create_dir_all(&folder).map_err(RunError::io("create", &folder))?;
        let finished = finished
            .into_iter()
            .map(|entry| (entry.tensor.clone(), entry))
            .collect();
        Ok(Self {
            folder,
            journal,
            finished,
        })
    }

    fn path(&self, number: usize) -> PathBuf {
        self.folder.join(format!("{number:05}"))
    }

    /// What an earlier run made of a matrix, if all of it is there; a rank takes `of_rank` bytes of factors.
    pub(super) fn find(&self, number: usize, name: &str, of_rank: usize) -> Option<Outcome> {
        let entry = self.finished.get(name)?;
        let file = ShardFile::reopen(&self.path(number), entry.bytes).ok()??;
        if !intact(&file, (0, entry.bytes), entry) {
            return None;
        }
        let mut head = [0; HEAD];
        file.read_at(0, &mut head).ok()?;
        let outcome = Outcome::from_bytes(head);
        let expected = outcome.rank.checked_mul(of_rank)?.checked_add(HEAD)?;
        (expected as u64 == entry.bytes).then_some(outcome)
    }

    /// Keeps what came of a matrix.
    pub(super) fn put(
        &self,
        number: usize,
        name: &str,
        outcome: Outcome,
        factors: &[Vec<u8>],
    ) -> Result<(), RunError> {
        let mut bytes = outcome.to_bytes().to_vec();
        bytes.extend(factors.iter().flatten());
        let file = ShardFile::create(&self.path(number), bytes.len() as u64)?;
        file.write_at(0, &bytes)?;
        Ok(self.journal.append(&recorded(name, &bytes))?)
    }

    /// Copies what lies at a place to `offset` of a file.
    pub(super) fn copy(&self, place: Place, to: &ShardFile, offset: u64) -> Result<(), RunError> {
        let path = self.path(place.number);
        let file = File::open(&path).map_err(RunError::io("open", &path))?;
        let start = HEAD as u64 + place.start;
        let mut piece = vec![0; PIECE.min(place.len as usize)];
        let mut at = 0;
        while at < place.len {
            let len = (PIECE as u64).min(place.len - at) as usize;
            file.read_exact_at(&mut piece[..len], start + at)
                .map_err(RunError::io("read", &path))?;
            to.write_at(offset + at, &piece[..len])?;
            at += len as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_finished_is_found_again_and_what_is_damaged_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let outcome = Outcome {
            rank: 2,
            norm: 0.1,
            error: 1.0 / 3.0,
            energy: 0.7,
        };
        let nothing = Outcome {
            rank: 0,
            norm: 0.0,
            error: 0.0,
            energy: 0.0,
        };
        let open = |digest: &str| {
            let staging = Staging::begin(&out, false).unwrap();
            let spool = Spool::open(&staging, digest).unwrap();
            (staging, spool)
        };
        let (staging, spool) = open("one");
        let factors = [vec![1; 6], vec![2; 8]];
        spool.put(0, "a", outcome, &factors).unwrap();
        spool.put(1, "b", nothing, &[]).unwrap();
        spool.put(2, "c", outcome, &factors).unwrap();
        assert_eq!(spool.find(0, "a", 7), None, "it was not there before");
        drop((staging, spool));

        let (staging, spool) = open("one");
        assert_eq!(spool.find(0, "a", 7), Some(outcome));
        assert_eq!(spool.find(1, "b", 7), Some(nothing));
        assert_eq!(spool.find(0, "a", 8), None, "another type or shape");
        assert_eq!(spool.find(5, "z", 7), None);
        let to = ShardFile::create(&dir.path().join("copy"), 8).unwrap();
        let place = Place {
            number: 0,
            start: 6,
            len: 8,
        };
        spool.copy(place, &to, 0).unwrap();
        assert_eq!(fs::read(dir.path().join("copy")).unwrap(), [2; 8]);
        let path = spool.path(2);
        let mut bytes = fs::read(&path).unwrap();
        bytes[40] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(spool.find(2, "c", 7), None, "damaged");
        fs::write(&path, &bytes[..30]).unwrap();
        assert_eq!(spool.find(2, "c", 7), None, "cut short");
        drop((staging, spool));

        let (_staging, spool) = open("two");
        assert_eq!(spool.find(0, "a", 7), None, "another extraction");
        assert!(!spool.path(0).exists());
    }
}
