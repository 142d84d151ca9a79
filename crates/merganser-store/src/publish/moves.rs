//! The last step of a merge: staged files take the place of whatever was there.
//!
//! Renaming many files is not one operation, so a crash may fall in between. Before the first
//! rename the whole intention is written to `publish.json`; every step can be told done or not done
//! by where the files are, so the list can be carried out again from the beginning. Old files are
//! set aside, `config.json` first, and deleted after the new ones are in place, `config.json` last:
//! at no moment does the folder hold a config beside weights that are not its own.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{FILES, REPLACED, STAGING};
use crate::checkpoint::stays_inside;
use crate::error::{Error, Result};
use crate::names::Role;
use crate::shard::write_error;
use crate::source::read_text;

/// Name of the intention in the staging folder.
pub(super) const INTENT: &str = "publish.json";
const MAX_INTENT_LEN: u64 = 64 << 20;
const VERSION: u32 = 1;

/// What publishing is going to do, or has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Intent {
    version: u32,
    /// Digest of the plan whose result is published.
    pub(super) plan: String,
    /// Files of an older model, in the order they are set aside.
    pub(super) retire: Vec<String>,
    /// Staged files, in the order they are put in place.
    pub(super) moves: Vec<String>,
    /// Whether every step waits for the disk. Not kept: a publication completed later always waits.
    #[serde(skip, default = "always")]
    pub(super) durable: bool,
}

fn always() -> bool {
    true
}

/// Place of a file in the order of publication: weights, then what describes them, and what
/// loaders look for first at the end.
fn rank(name: &str) -> u8 {
    match Role::of(name) {
        Role::Weights => 0,
        Role::Index => 2,
        Role::Config => 3,
        _ => 1,
    }
}

impl Intent {
    pub(super) fn new(plan: &str, moves: BTreeSet<String>, retire: BTreeSet<String>) -> Self {
        let mut moves: Vec<_> = moves.into_iter().collect();
        let mut retire: Vec<_> = retire.into_iter().collect();
        moves.sort_by_key(|name| rank(name));
        retire.sort_by_key(|name| std::cmp::Reverse(rank(name)));
        Self {
            version: VERSION,
            plan: plan.to_owned(),
            retire,
            moves,
            durable: true,
        }
    }

    fn sync(&self, folder: &Path) -> Result<()> {
        if self.durable {
            sync_folder(folder)
        } else {
            Ok(())
        }
    }

    /// The intention an interrupted run left in `out`, if any.
    pub(super) fn load(out: &Path) -> Result<Option<Self>> {
        let path = out.join(STAGING).join(INTENT);
        if !exists(&path) {
            return Ok(None);
        }
        let refused = |problem| Error::Json {
            path: path.clone(),
            problem,
        };
        let intent: Self = serde_json::from_str(&read_text(&path, MAX_INTENT_LEN)?)
            .map_err(|error| refused(error.to_string()))?;
        if intent.version != VERSION {
            return Err(refused(format!(
                "it was written by another version of merganser (format {}, expected {VERSION}); finish with that version",
                intent.version
            )));
        }
        match intent
            .moves
            .iter()
            .chain(&intent.retire)
            .find(|name| !is_file_name(name))
        {
            Some(name) => Err(refused(format!("`{name}` is not a file name"))),
            None => Ok(Some(intent)),
        }
    }

    /// Writes the intention so that it is either wholly there or not at all.
    pub(super) fn save(&self, out: &Path) -> Result<()> {
        let staging = out.join(STAGING);
        let (path, temporary) = (staging.join(INTENT), staging.join("publish.json.new"));
        let text = serde_json::to_vec_pretty(self).map_err(|error| Error::Json {
            path: path.clone(),
            problem: error.to_string(),
        })?;
        step()?;
        File::create(&temporary)
            .and_then(|mut file| {
                file.write_all(&text)?;
                if self.durable {
                    file.sync_all()
                } else {
                    Ok(())
                }
            })
            .map_err(|cause| write_error("write", &temporary, text.len() as u64, cause))?;
        rename(&temporary, &path)?;
        self.sync(&staging)
    }

    /// Does whatever of the intention is not yet done.
    pub(super) fn carry_out(&self, out: &Path) -> Result<()> {
        let staged = out.join(STAGING).join(FILES);
        let replaced = out.join(REPLACED);
        if !self.retire.is_empty() && !self.all_moved(out) {
            step()?;
            std::fs::create_dir_all(&replaced)
                .map_err(|cause| Error::io("create", &replaced, cause))?;
            let moves: BTreeSet<_> = self.moves.iter().collect();
            for name in &self.retire {
                // A file of the same name may be the new one already, if it is no longer staged.
                let is_new = moves.contains(name) && !exists(&staged.join(name));
                if !is_new && !exists(&replaced.join(name)) && exists(&out.join(name)) {
                    rename(&out.join(name), &replaced.join(name))?;
                }
            }
            self.sync(&replaced)?;
            self.sync(out)?;
        }
        for name in &self.moves {
            if exists(&staged.join(name)) {
                rename(&staged.join(name), &out.join(name))?;
            } else if !exists(&out.join(name)) {
                return Err(Error::Staging {
                    path: out.to_owned(),
                    problem: format!(
                        "the publication of a model was interrupted and its file `{name}` has disappeared since; \
                         remove `{STAGING}` in it and merge again{}",
                        if exists(&replaced) {
                            format!(" (the former model is in `{REPLACED}`)")
                        } else {
                            String::new()
                        },
                    ),
                });
            }
        }
        self.sync(out)?;
        self.clean(out)
    }

    /// Deletes the former model and the staging folder; the intention last of what matters.
    fn clean(&self, out: &Path) -> Result<()> {
        let staging = out.join(STAGING);
        remove_folder(&out.join(REPLACED))?;
        self.sync(out)?;
        remove_folder(&staging.join(FILES))?;
        let intent = staging.join(INTENT);
        step()?;
        std::fs::remove_file(&intent).map_err(|cause| Error::io("remove", &intent, cause))?;
        self.sync(&staging)?;
        remove_folder(&staging)
    }

    fn all_moved(&self, out: &Path) -> bool {
        let staged = out.join(STAGING).join(FILES);
        self.moves
            .iter()
            .all(|name| !exists(&staged.join(name)) && exists(&out.join(name)))
    }
}

/// Whether `name` can be a file directly in a folder.
pub(super) fn is_file_name(name: &str) -> bool {
    stays_inside(name) && !name.contains('/')
}

/// Whether anything is at `path`, be it a dangling link.
pub(super) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

pub(super) fn remove_folder(path: &Path) -> Result<()> {
    step()?;
    match std::fs::remove_dir_all(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", path, cause))
        }
        _ => Ok(()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    step()?;
    std::fs::rename(from, to).map_err(|cause| Error::io("move into place", to, cause))
}

/// Makes renames in the folder survive a power cut.
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    step()?;
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(|cause| Error::io("sync", path, cause))
}

/// Marks a place where tests let the process "crash".
#[cfg(not(test))]
#[allow(clippy::unnecessary_wraps, clippy::inline_always)]
#[inline(always)]
fn step() -> Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) use self::faults::step;

#[cfg(test)]
pub(super) mod faults {
    use std::cell::Cell;
    use std::path::Path;

    use crate::error::{Error, Result};

    thread_local! {
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// Lets the next `steps` steps of this thread succeed and all later ones fail.
    pub(crate) fn crash_after(steps: Option<usize>) {
        LEFT.set(steps);
    }

    pub(crate) fn step() -> Result<()> {
        match LEFT.get() {
            Some(0) => Err(Error::io(
                "survive",
                Path::new("injected"),
                std::io::Error::other("crash"),
            )),
            Some(left) => {
                LEFT.set(Some(left - 1));
                Ok(())
            }
            None => Ok(()),
        }
    }
}
