//! Writes the checkpoints of `examples/models` again: `cargo run -p merganser-testkit --example make_bundled`.
//! An argument names another folder.

use std::path::{Path, PathBuf};

fn main() {
    let folder = std::env::args_os().nth(1).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/models"),
        PathBuf::from,
    );
    merganser_testkit::bundled::write(&folder);
}
