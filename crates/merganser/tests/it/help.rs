//! The examples of the help run on the files that come with the program.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;

use crate::program::run;

/// Commands whose help must have such an example.
const HAVE: [&str; 34] = [
    "apply",
    "audit-merge",
    "audit-sequence",
    "bv-apply",
    "bv-diff",
    "bv-sim",
    "certify-edit",
    "certify-head",
    "certify-mlp",
    "certify-threshold",
    "drift-apply",
    "drift-bias",
    "drift-chain",
    "drift-fit",
    "drift-protos",
    "drift-report",
    "embed",
    "evaluate",
    "extract-lora",
    "extract-task-vector",
    "head-adagauss",
    "head-bayes",
    "head-fedcof",
    "head-gaussian",
    "head-ncm",
    "head-ridge",
    "inspect",
    "merge",
    "plan",
    "stats-adapt",
    "stats-build",
    "stats-merge",
    "stats-report",
    "tune",
];

/// The examples of a manual page, each with the folder it is for.
fn examples(page: &str) -> Vec<(String, String)> {
    let text = page.replace("\\-", "-").replace("\\\\", "\\");
    let text = text.replace("\\\n    ", "");
    let mut folder = None;
    let mut found = Vec::new();
    for line in text.lines() {
        let heading = line
            .strip_prefix("Examples, in the folder ")
            .and_then(|rest| rest.strip_suffix(':'));
        match (heading, line.strip_prefix("  merganser ")) {
            (Some(name), _) => folder = Some(name.to_owned()),
            (None, Some(words)) => {
                // What follows three blanks says what it is for.
                let words = words.split("   ").next().unwrap_or(words);
                let words = words.split(" > ").next().unwrap_or(words);
                found.extend(folder.clone().map(|folder| (folder, words.to_owned())));
            }
            (None, None) => folder = None,
        }
    }
    found
}

/// A tree of links to the files of a folder: what an example writes does not end up beside them.
fn mirror(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            mirror(&entry.path(), &to);
        } else {
            symlink(entry.path(), to).expect("a link");
        }
    }
}

#[test]
fn every_example_of_the_help_runs() {
    let dir = TempDir::new().expect("a folder");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let bundled = root.canonicalize().expect("the project").join("examples");
    mirror(&bundled, &dir.path().join("examples"));
    run(dir.path(), ["man", "pages"]).done();
    let mut all = 0;
    for entry in fs::read_dir(dir.path().join("pages"))
        .expect("pages")
        .flatten()
    {
        let page = fs::read_to_string(entry.path()).expect("a page");
        let name = entry.file_name().to_string_lossy().into_owned();
        let name = name.trim_start_matches("merganser-").trim_end_matches(".1");
        let found = examples(&page);
        assert!(
            !HAVE.contains(&name) || !found.is_empty(),
            "{name} has no example"
        );
        // What one example writes is not in the way of those of other commands.
        let output = dir.path().join("out").join(name);
        fs::create_dir_all(&output).expect("a folder");
        for (folder, line) in found {
            let line = line.replace("/tmp", &output.to_string_lossy());
            let done = run(&dir.path().join(folder), line.split_whitespace());
            let fine = done.code == Some(0) || name == "audit-sequence" && done.code == Some(3);
            assert!(
                fine,
                "{line}: {:?} {}{}",
                done.code, done.stdout, done.stderr
            );
            all += 1;
        }
    }
    assert!(all >= HAVE.len(), "{all}");
}
