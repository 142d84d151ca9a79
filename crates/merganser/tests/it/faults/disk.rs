//! Disks that are full. Linux only: the tests need its limits and its temporary file systems.
#![cfg(target_os = "linux")]

use std::fs;
use std::process::Command;

use insta::assert_snapshot;

use super::{Place, copy_of};
use crate::models::{assert_same, bytes, copy, input, names};
use crate::program::{Run, finish, merganser};

/// A shell that can call the program as `$MERGANSER`, prepared like the program itself.
fn shell(place: &Place, script: &str) -> Run {
    let program = merganser();
    let mut command = Command::new("sh");
    command.current_dir(place.path()).args(["-c", script]);
    command.env("MERGANSER", program.get_program());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    finish(command)
}

#[test]
fn a_file_that_may_not_grow_fails_the_merge_and_nothing_else() {
    let place = Place::new();
    copy(&input("llama-base"), &place.join("model"));
    copy(&input("llama-ft1"), &place.join("out"));
    place.write("recipe.yml", copy_of("./model"));
    let before = bytes(&place.join("out"));

    // 64 blocks of 512 bytes; without the trap the kernel would kill the process instead of failing the write.
    let script = "trap '' XFSZ; ulimit -f 64; exec \"$MERGANSER\" merge recipe.yml out --overwrite";
    let run = shell(&place, script).failed();
    let said = run.said(place.path());
    assert!(said.contains("model.safetensors"), "{said}");
    assert_same(&before, &bytes(&place.join("out")), "the former model");

    shell(
        &place,
        "exec \"$MERGANSER\" merge recipe.yml out --overwrite",
    )
    .done();
    assert_ne!(before, bytes(&place.join("out")));
}

#[test]
fn a_full_disk_fails_the_merge_with_the_bytes_it_needs() {
    let place = Place::new();
    copy(&input("llama-base"), &place.join("model"));
    copy(&input("llama64-bf16-base"), &place.join("former"));
    place.write("recipe.yml", copy_of("./model"));
    fs::create_dir(place.join("disk")).expect("a folder");

    // A file system of 256 KiB in a name space of its own; it holds the former model and not another one.
    let script = "mount -t tmpfs -o size=256k tmpfs disk || exit 77
        cp -r former disk/out
        \"$MERGANSER\" merge recipe.yml disk/out --overwrite
        code=$?
        cp -r disk/out left
        exit $code";
    let name_space = format!("exec unshare --mount --map-root-user sh -c '{script}'");
    let run = shell(&place, &name_space);
    if !place.join("left").exists() {
        // Containers and hardened kernels do not allow it.
        assert_ne!(run.code, Some(0), "{}", run.stderr);
        return;
    }
    let run = run.failed();
    let said = run.said(place.path());
    assert!(said.contains("no space left"), "{said}");
    let free = |word: &str| !word.bytes().all(|byte| byte.is_ascii_digit());
    let numbers_out: Vec<&str> = said
        .split(' ')
        .map(|word| if free(word) { word } else { "N" })
        .collect();
    assert_snapshot!(numbers_out.join(" "));
    assert_same(
        &bytes(&place.join("former")),
        &bytes(&place.join("left")),
        "the former model",
    );
    assert!(names(&place.join("left")).contains(&".partial-merganser".to_owned()));
}
