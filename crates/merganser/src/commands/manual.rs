//! `merganser completions` and `merganser man`: generated from the command line's own definition.

use std::path::Path;

use clap::CommandFactory;
use merganser::Failure;

use crate::cli::Cli;

pub(crate) fn completions(shell: clap_complete::Shell) {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "merganser", &mut text);
    crate::output::result(&String::from_utf8_lossy(&text));
}

pub(crate) fn pages(dir: &Path) -> Result<(), Failure> {
    let fail = |error: std::io::Error| {
        Failure::Usage(format!(
            "cannot write manual pages to '{}': {error}",
            dir.display()
        ))
    };
    std::fs::create_dir_all(dir).map_err(fail)?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(fail)
}
