//! Which tensors an interrupted run had finished.
//!
//! A text file in the staging folder: one line of JSON with the digest of the plan, then one for
//! each finished tensor. Lines are only appended; a line that a crash cut short ends the journal.
//! A journal of another plan is thrown away, since its tensors belong to another model.
//!
//! Order matters for a power cut: sync the shard before appending the tensor, or verify the digest
//! of what is found when resuming.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::shard::write_error;

/// A finished tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub tensor: String,
    /// Hash of its bytes, in hexadecimal.
    pub digest: String,
    /// How many bytes were written.
    pub bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct Heading {
    plan: String,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    file: Mutex<File>,
    path: PathBuf,
}

impl Journal {
    /// Opens or begins the journal `file_name` in the folder `dir` for the plan with this digest,
    /// and gives what is already finished: nothing if the journal is new or of another plan.
    pub fn open(dir: &Path, file_name: &str, plan_digest: &str) -> Result<(Self, Vec<Entry>)> {
        let path = dir.join(file_name);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|cause| Error::io("open", &path, cause))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)
            .map_err(|cause| Error::io("read", &path, cause))?;

        let (entries, good) = recover(&text, plan_digest);
        let failed = |cause| write_error("write", &path, 0, cause);
        file.set_len(good).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        if good == 0 {
            let heading = line(&Heading {
                plan: plan_digest.to_owned(),
            });
            file.write_all(&heading).map_err(failed)?;
        }
        Ok((
            Self {
                file: Mutex::new(file),
                path,
            },
            entries,
        ))
    }

    /// Records a finished tensor. May be called from any thread. It survives a crash of this
    /// process at once, and one of the machine after [`sync`](Self::sync).
    pub fn append(&self, entry: &Entry) -> Result<()> {
        let line = line(entry);
        // A thread that panicked while it held the lock can at worst have left a torn line, which
        // the next run recovers from.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&line)
            .map_err(|cause| write_error("write", &self.path, line.len() as u64, cause))
    }

    /// Waits until everything recorded is on disk.
    pub fn sync(&self) -> Result<()> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.sync_data()
            .map_err(|cause| write_error("sync", &self.path, 0, cause))
    }
}

fn line<T: Serialize>(value: &T) -> Vec<u8> {
    // Strings and integers always have a JSON form.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

/// The entries of the intact lines, and how many bytes those take.
fn recover(text: &[u8], plan_digest: &str) -> (Vec<Entry>, u64) {
    let mut lines = text
        .split_inclusive(|&byte| byte == b'\n')
        .filter(|line| line.ends_with(b"\n"));
    let heading = lines.next().filter(|line| {
        serde_json::from_slice::<Heading>(line).is_ok_and(|heading| heading.plan == plan_digest)
    });
    let Some(heading) = heading else {
        return (Vec::new(), 0);
    };
    let mut good = heading.len();
    let mut entries = Vec::new();
    for line in lines {
        let Ok(entry) = serde_json::from_slice(line) else {
            break;
        };
        entries.push(entry);
        good += line.len();
    }
    (entries, good as u64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(i: usize) -> Entry {
        Entry {
            tensor: format!("layer.{i}\n\"quoted\""),
            digest: format!("{i:064x}"),
            bytes: i as u64,
        }
    }

    #[test]
    fn what_was_appended_by_many_threads_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, found) = Journal::open(dir.path(), "journal", "p").unwrap();
        assert!(found.is_empty());
        std::thread::scope(|scope| {
            for i in 0..16 {
                let journal = &journal;
                scope.spawn(move || journal.append(&entry(i)).unwrap());
            }
        });
        journal.sync().unwrap();
        let (journal, mut found) = Journal::open(dir.path(), "journal", "p").unwrap();
        found.sort_by_key(|entry| entry.bytes);
        assert_eq!(found, (0..16).map(entry).collect::<Vec<_>>());
        journal.append(&entry(16)).unwrap();
        assert_eq!(
            Journal::open(dir.path(), "journal", "p").unwrap().1.len(),
            17
        );
    }

    #[test]
    fn a_journal_of_another_plan_is_discarded() {
        let dir = tempfile::tempdir().unwrap();
        Journal::open(dir.path(), "j", "one")
            .unwrap()
            .0
            .append(&entry(1))
            .unwrap();
        assert!(Journal::open(dir.path(), "j", "two").unwrap().1.is_empty());
        assert!(Journal::open(dir.path(), "j", "one").unwrap().1.is_empty());
    }

    proptest! {
        #[test]
        fn a_journal_cut_anywhere_keeps_its_whole_lines_and_can_go_on(cut in any::<prop::sample::Index>()) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("j");
            let journal = Journal::open(dir.path(), "j", "p").unwrap().0;
            let mut ends = vec![std::fs::metadata(&path).unwrap().len()];
            for i in 0..4 {
                journal.append(&entry(i)).unwrap();
                ends.push(std::fs::metadata(&path).unwrap().len());
            }
            let mut text = std::fs::read(&path).unwrap();
            text.truncate(cut.index(text.len() + 1));
            std::fs::write(&path, &text).unwrap();

            let whole = ends.iter().filter(|&&end| end <= text.len() as u64).count().saturating_sub(1);
            let (journal, found) = Journal::open(dir.path(), "j", "p").unwrap();
            prop_assert_eq!(&found, &(0..whole).map(entry).collect::<Vec<_>>());
            journal.append(&entry(9)).unwrap();
            let (_, found) = Journal::open(dir.path(), "j", "p").unwrap();
            prop_assert_eq!(found.len(), whole + 1);
            prop_assert_eq!(found.last(), Some(&entry(9)));
        }

        #[test]
        fn any_content_is_survived(text in prop::collection::vec(any::<u8>(), 0..80)) {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("j"), &text).unwrap();
            let (journal, _) = Journal::open(dir.path(), "j", "p").unwrap();
            journal.append(&entry(1)).unwrap();
            prop_assert_eq!(Journal::open(dir.path(), "j", "p").unwrap().1, vec![entry(1)]);
        }
    }
}
