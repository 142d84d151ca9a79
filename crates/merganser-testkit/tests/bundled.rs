//! The committed example checkpoints are the ones the generator makes, to the byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

#[allow(clippy::unwrap_used)]
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for model in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        for file in fs::read_dir(model.path()).unwrap().map(Result::unwrap) {
            let name = format!(
                "{}/{}",
                model.file_name().to_string_lossy(),
                file.file_name().to_string_lossy()
            );
            files.insert(name, fs::read(file.path()).unwrap());
        }
    }
    files
}

#[test]
fn the_example_models_can_be_made_again() {
    let made = tempfile::tempdir().expect("a temporary folder");
    merganser_testkit::bundled::write(made.path());
    let made = files(made.path());
    let committed = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/models"));
    assert!(
        made.keys().eq(committed.keys()),
        "files: {:?} instead of {:?}",
        committed.keys(),
        made.keys()
    );
    for (name, bytes) in &made {
        assert!(
            committed[name] == *bytes,
            "examples/models/{name} is not what the generator makes; run \
             `cargo run -p merganser-testkit --example make_bundled`"
        );
    }
    let total: usize = made.values().map(Vec::len).sum();
    assert!(
        total < 1_000_000,
        "{total} bytes are too many for a repository"
    );
}
