//! The program starts without looking for anything.

use std::fs;

use crate::program::{finish, merganser};

#[test]
fn help_needs_no_files_no_home_and_no_network() {
    let nowhere = tempfile::tempdir().expect("a temporary folder");
    for args in [
        &["--help"][..],
        &["--version"],
        &["methods"],
        &["merge", "--help"],
    ] {
        let mut command = merganser();
        command.env_clear().current_dir(nowhere.path()).args(args);
        let run = finish(command).done();
        assert!(!run.stdout.is_empty() && run.stderr.is_empty(), "{args:?}");
    }
    assert_eq!(fs::read_dir(nowhere.path()).expect("a folder").count(), 0);
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_failure() {
    use std::process::Stdio;

    let mut command = merganser();
    command
        .args(["methods"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{stderr}");
}
