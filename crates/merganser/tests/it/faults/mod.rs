//! What goes wrong around a merge: killed processes, full disks, broken and hostile files.
//!
//! The promise is the same everywhere: a clear message, the right exit code, no panic, and never half a model.

mod checkpoints;
mod disk;
mod interrupted;
mod output;
mod recipes;
mod values;

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::program::{self, Run};

/// A temporary folder to merge in; recipes and models are named relative to it.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, bytes).expect("a file");
    }

    /// Merges `recipe` into `out` with more options.
    fn merge(&self, recipe: &str, options: &[&str]) -> Run {
        self.write("recipe.yml", recipe);
        let args = ["merge", "recipe.yml", "out"];
        program::run(self.path(), args.iter().chain(options))
    }

    /// Merges a recipe that must be refused before anything is written; returns the message.
    #[track_caller]
    fn refused(&self, recipe: &str) -> String {
        let run = self.merge(recipe, &[]).refused();
        assert!(
            !self.join("out").exists(),
            "a refused merge left something behind"
        );
        assert!(run.stdout.is_empty(), "a refusal is no result");
        run.said(self.path())
    }
}

/// The recipe that copies one model.
fn copy_of(model: &str) -> String {
    format!("merge_method: passthrough\nmodels:\n  - model: {model}\n")
}
