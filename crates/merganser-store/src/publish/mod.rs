//! The output folder: all work happens in a staging folder inside it, and a finished model is moved
//! into place so that no crash leaves half of one where a loader would find it.
//!
//! ```text
//! out/
//!   .partial-merganser/      the staging folder; gone when the model is published
//!     lock                   held while a process works here
//!     files/                 what will be published
//!     publish.json           the intention, present only while publishing
//!     …                      journals, marks of finished parts
//!   .replaced-merganser/     the former model, while it is being replaced
//! ```
//!
//! Staging inside `out` keeps it on the same file system, so that moving is renaming, and lets a
//! later run find what an interrupted one had done.

mod lock;
mod moves;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use self::lock::Lock;
use self::moves::{Intent, exists, is_file_name, remove_folder, sync_folder};
use crate::checkpoint::quoted;
use crate::error::{Error, Result};
use crate::names::Role;

/// Name of the staging folder.
pub const STAGING: &str = ".partial-merganser";
/// Name of the folder for a model that is being replaced.
pub const REPLACED: &str = ".replaced-merganser";
const FILES: &str = "files";

/// A staging folder, locked for this process. Dropping it keeps its content for a later run.
#[derive(Debug)]
pub struct Staging {
    out: PathBuf,
    dir: PathBuf,
    files: PathBuf,
    overwrite: bool,
    shared: bool,
    durable: bool,
    _lock: Lock,
}

/// What was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Digest of the plan, as given to [`Staging::publish`].
    pub plan: String,
    /// Names of the files put in place, in that order.
    pub files: Vec<String>,
    /// Names of the files of the former model that were removed or replaced.
    pub replaced: Vec<String>,
}

impl From<Intent> for Published {
    fn from(intent: Intent) -> Self {
        Self {
            plan: intent.plan,
            files: intent.moves,
            replaced: intent.retire,
        }
    }
}

/// Completes a publication that an interrupted run had begun in `out`. `None` if there is none to
/// complete. [`Staging::begin`] does this too; call it first to learn that the model that was asked
/// for is there already (compare [`Published::plan`]).
pub fn recover(out: &Path) -> Result<Option<Published>> {
    if !exists(&out.join(STAGING).join(moves::INTENT)) {
        return Ok(None);
    }
    let _lock = Lock::take(out, &out.join(STAGING), false)?;
    let Some(intent) = Intent::load(out)? else {
        return Ok(None);
    };
    intent.carry_out(out)?;
    Ok(Some(intent.into()))
}

/// Fails as [`Staging::begin`] would for what is in `out`, without touching it: for work that takes long before it
/// begins there.
pub fn check(out: &Path, overwrite: bool) -> Result<()> {
    if exists(out) && !out.is_dir() {
        return Err(Error::Staging {
            path: out.to_owned(),
            problem: "it is not a folder".into(),
        });
    }
    if overwrite {
        Ok(())
    } else {
        refuse_if_occupied(out)
    }
}

impl Staging {
    /// Begins, or resumes, work on the output folder `out` alone. What an earlier run staged is
    /// kept; a publication it had begun is completed first.
    ///
    /// Without `overwrite`, fails before touching anything if `out` holds a file that is not ours.
    /// Fails if another process works there.
    pub fn begin(out: &Path, overwrite: bool) -> Result<Self> {
        Self::start(out, overwrite, false)
    }

    /// As [`begin`](Self::begin), for one of several processes that each make a part of the same
    /// output. Such a staging folder cannot be published; that is for a later [`begin`](Self::begin),
    /// once no part is running.
    pub fn begin_shared(out: &Path, overwrite: bool) -> Result<Self> {
        Self::start(out, overwrite, true)
    }

    fn start(out: &Path, overwrite: bool, shared: bool) -> Result<Self> {
        if exists(out) && out.is_dir() {
            recover(out)?;
        }
        check(out, overwrite)?;
        let dir = out.join(STAGING);
        // A link here could lead the deletions of publishing anywhere.
        if dir
            .symlink_metadata()
            .is_ok_and(|metadata| !metadata.is_dir())
        {
            return Err(Error::Staging {
                path: out.to_owned(),
                problem: format!("`{STAGING}` in it is not a folder; remove it"),
            });
        }
        let lock = Lock::take(out, &dir, shared)?;
        let files = dir.join(FILES);
        std::fs::create_dir_all(&files).map_err(|cause| Error::io("create", &files, cause))?;
        Ok(Self {
            out: out.to_owned(),
            dir,
            files,
            overwrite,
            shared,
            durable: true,
            _lock: lock,
        })
    }

    /// Lets publishing return before the files are on disk: faster, still safe against a crash of the
    /// process, but not against one of the machine.
    pub fn without_waiting_for_the_disk(&mut self) {
        self.durable = false;
    }

    /// The output folder.
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// Folder for journals and marks; nothing in it is published.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Folder for the files to be published.
    pub fn files(&self) -> &Path {
        &self.files
    }

    /// Where to write the file that will be published as `name`, a plain file name.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        if is_file_name(name) {
            Ok(self.files.join(name))
        } else {
            Err(self.refused(format!("`{name}` is not a file name")))
        }
    }

    /// Removes staged files other than `names`: those of an interrupted run that planned other
    /// shards, which would only take space.
    pub fn keep_only(&self, names: &BTreeSet<String>) -> Result<()> {
        for entry in list(&self.files)? {
            if entry.to_str().is_none_or(|name| !names.contains(name)) {
                let path = self.files.join(&entry);
                let removed = if path.is_dir() && !path.is_symlink() {
                    std::fs::remove_dir_all(&path)
                } else {
                    std::fs::remove_file(&path)
                };
                removed.map_err(|cause| Error::io("remove", &path, cause))?;
            }
        }
        Ok(())
    }

    /// Makes the staged files `names` the content of the output folder, durably, and removes the
    /// staging folder. Staged files not in `names` are deleted. `plan` is a digest that tells this
    /// result from others.
    ///
    /// With `overwrite`, files of a former model go: those of the same names, and all that belong
    /// to a model by their name (weights, index, config, tokenizer, licence, card). Others stay.
    ///
    /// If this fails or the process dies, the output folder holds the former content, or the next
    /// [`begin`](Self::begin) or [`recover`] completes the publication.
    pub fn publish(self, plan: &str, names: &BTreeSet<String>) -> Result<Published> {
        if self.shared {
            return Err(self.refused("a part of a merge cannot be published by itself; seal the merge when all parts are done".into()));
        }
        for name in names {
            let path = self.path(name)?;
            if !path
                .symlink_metadata()
                .is_ok_and(|metadata| metadata.is_file())
            {
                return Err(self.refused(format!("`{name}` was to be published but is not staged")));
            }
            if self.durable {
                File::open(&path)
                    .and_then(|file| file.sync_all())
                    .map_err(|cause| Error::io("sync", &path, cause))?;
            }
        }
        if self.durable {
            sync_folder(&self.files)?;
        }
        let retire = self.to_retire(names)?;
        let mut intent = Intent::new(plan, names.clone(), retire);
        intent.durable = self.durable;
        intent.save(&self.out)?;
        intent.carry_out(&self.out)?;
        // The output folder itself may be new.
        if let Some(parent) = std::path::absolute(&self.out)
            .ok()
            .as_deref()
            .and_then(Path::parent)
            .filter(|_| self.durable)
        {
            sync_folder(parent)?;
        }
        Ok(intent.into())
    }

    /// Files in the output folder that give way to `names`.
    fn to_retire(&self, names: &BTreeSet<String>) -> Result<BTreeSet<String>> {
        if !self.overwrite {
            // Something may have appeared since the work began.
            refuse_if_occupied(&self.out)?;
            return Ok(BTreeSet::new());
        }
        if exists(&self.out.join(REPLACED)) {
            return Err(self.refused(format!(
                "`{REPLACED}` in it holds a model that was being replaced; move it away or remove it, then run again"
            )));
        }
        let mut retire = BTreeSet::new();
        for entry in list(&self.out)? {
            let Some(name) = entry.to_str() else { continue };
            let of_model = !matches!(Role::of(name), Role::Other | Role::Code);
            if names.contains(name) || of_model {
                if self
                    .out
                    .join(name)
                    .symlink_metadata()
                    .is_ok_and(|metadata| metadata.is_dir())
                {
                    if names.contains(name) {
                        return Err(self.refused(format!(
                            "`{name}` in it is a folder where a file is to go; remove it"
                        )));
                    }
                    continue;
                }
                retire.insert(name.to_owned());
            }
        }
        Ok(retire)
    }

    /// Gives up: removes the staging folder and all work in it.
    pub fn discard(self) -> Result<()> {
        if self.shared {
            return Err(self.refused("other parts may be working in its staging folder".into()));
        }
        remove_folder(&self.dir)
    }

    fn refused(&self, problem: String) -> Error {
        Error::Staging {
            path: self.out.clone(),
            problem,
        }
    }
}

fn list(dir: &Path) -> Result<Vec<std::ffi::OsString>> {
    let failed = |cause| Error::io("list", dir, cause);
    let mut names = std::fs::read_dir(dir)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    names.sort();
    Ok(names)
}

fn refuse_if_occupied(out: &Path) -> Result<()> {
    if !exists(out) {
        return Ok(());
    }
    let found: Vec<_> = list(out)?
        .into_iter()
        .filter(|name| name != STAGING)
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    if found.is_empty() {
        return Ok(());
    }
    Err(Error::OutputExists {
        path: out.to_owned(),
        found: quoted(found),
    })
}

#[cfg(test)]
mod tests;
