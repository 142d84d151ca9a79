//! Killed processes. A kill cannot be caught, so what it leaves is whatever the files say at that moment.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Instant;

use merganser_testkit::{Dtype, Random, checkpoint};

use super::{Place, copy_of};
use crate::models::{assert_same, bytes, config, copy, input, llama, names};
use crate::program::{finish, finished_tensors, interrupt, merganser};

const STAGING: &str = ".partial-merganser";

/// Two models of about 30 MB, large enough to be caught in the middle.
fn large() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("it-large");
        let (hidden, layers, rows) = (256, 11, 1000);
        let config = config(hidden, layers, rows);
        let shapes = llama(hidden, layers, rows);
        let mut random = Random::new(3);
        for name in ["base", "tuned"] {
            let tensors: Vec<checkpoint::Entry<'_>> = shapes
                .iter()
                .map(|(name, shape)| {
                    let mut bits = std::iter::repeat_with(|| random.bits() as i16);
                    let values = bits.by_ref().take(shape.iter().product());
                    let values = values.map(|x| f32::from(x) / 1e6).collect();
                    (name.as_str(), Dtype::F32, shape.clone(), values)
                })
                .collect();
            checkpoint::write(&folder.join(name), &config, &tensors);
        }
        folder
    })
}

/// A merge of the large models that takes its time.
fn recipe() -> String {
    let [base, tuned] = ["base", "tuned"].map(|name| large().join(name).display().to_string());
    format!(
        "merge_method: ties\nbase_model: {base}\nmodels:\n  - model: {tuned}\n    parameters: {{weight: 0.7, density: 0.4}}\n"
    )
}

fn merging(place: &Place, out: &str, options: &[&str]) -> Command {
    let mut command = merganser();
    command.current_dir(place.path());
    command.args(["merge", "recipe.yml", out]).args(options);
    command
}

/// Starts a merge into `out` and kills it once a few tensors are finished.
fn kill_in_the_middle(place: &Place, options: &[&str]) {
    let command = merging(place, "out", &[options, &["-j", "1"]].concat());
    let out = place.join("out");
    assert!(
        interrupt(command, || finished_tensors(&out) >= 5),
        "the merge was over before it could be killed"
    );
}

/// The two numbers of `resuming: 5 tensors of an earlier run are kept, 95 are left`.
fn resumed(stderr: &str) -> (usize, usize) {
    let line = stderr.lines().find(|line| line.starts_with("resuming: "));
    let line = line.unwrap_or_else(|| panic!("it does not say that it resumes: {stderr}"));
    let mut numbers = line.split(' ').filter_map(|word| word.parse().ok());
    (
        numbers.next().expect("tensors kept"),
        numbers.next().expect("tensors left"),
    )
}

#[test]
fn a_killed_merge_leaves_nothing_visible_and_goes_on_where_it_stopped() {
    let place = Place::new();
    place.write("recipe.yml", recipe());
    finish(merging(&place, "whole", &[])).done();

    kill_in_the_middle(&place, &[]);
    assert_eq!(names(&place.join("out")), [STAGING]);
    let kept = finished_tensors(&place.join("out"));

    let run = finish(merging(&place, "out", &[])).done();
    let (reused, left) = resumed(&run.stderr);
    assert!(reused >= kept.min(5), "{reused} of {kept} are kept");
    assert_eq!(reused + left, llama(256, 11, 1000).len());
    assert_same(
        &bytes(&place.join("whole")),
        &bytes(&place.join("out")),
        "resumed",
    );
    assert!(!names(&place.join("out")).contains(&STAGING.to_owned()));
}

#[test]
fn a_killed_merge_leaves_the_former_model_as_it_was() {
    let place = Place::new();
    place.write("recipe.yml", recipe());
    copy(&input("llama-base"), &place.join("out"));
    let before = everything(&place.join("out"));

    kill_in_the_middle(&place, &["--overwrite"]);
    assert_eq!(everything(&place.join("out")), before);
    assert!(place.join("out").join(STAGING).is_dir());

    // Without consent the former model is still safe; with it the merge goes on.
    finish(merging(&place, "out", &[])).failed();
    assert_eq!(everything(&place.join("out")), before);
    let run = finish(merging(&place, "out", &["--overwrite"])).done();
    assert!(resumed(&run.stderr).0 >= 5);
    finish(merging(&place, "whole", &[])).done();
    assert_same(
        &bytes(&place.join("whole")),
        &bytes(&place.join("out")),
        "resumed",
    );
}

#[test]
fn bytes_damaged_while_nobody_looked_are_made_again() {
    let place = Place::new();
    place.write("recipe.yml", recipe());
    kill_in_the_middle(&place, &[]);
    let staged = place
        .join("out")
        .join(STAGING)
        .join("files/model.safetensors");
    let mut damaged = fs::read(&staged).expect("a staged file");
    let header = u64::from_le_bytes(damaged[..8].try_into().expect("8 bytes")) as usize;
    damaged[8 + header + 100] ^= 1;
    fs::write(&staged, damaged).expect("a staged file");

    finish(merging(&place, "out", &[])).done();
    finish(merging(&place, "whole", &[])).done();
    assert_same(
        &bytes(&place.join("whole")),
        &bytes(&place.join("out")),
        "repaired",
    );
}

#[test]
fn another_recipe_does_not_go_on_where_this_one_stopped() {
    let place = Place::new();
    place.write("recipe.yml", recipe());
    kill_in_the_middle(&place, &[]);
    place.write("recipe.yml", recipe().replace("0.7", "0.6"));
    let run = finish(merging(&place, "out", &[])).done();
    assert!(!run.stderr.contains("resuming"), "{}", run.stderr);
    finish(merging(&place, "whole", &[])).done();
    assert_same(
        &bytes(&place.join("whole")),
        &bytes(&place.join("out")),
        "afresh",
    );
}

#[test]
fn at_no_moment_does_a_kill_leave_half_a_model() {
    // Over an existing model, at moments from the start to after the end, publication included: whenever there is a
    // config.json, everything beside it belongs to it.
    let base = input("llama-base").display().to_string();
    let place = Place::new();
    place.write("recipe.yml", copy_of(&base));
    let begun = Instant::now();
    finish(merging(&place, "whole", &["--out-shard-size", "20000"])).done();
    let takes = begun.elapsed();
    let new = bytes(&place.join("whole"));
    let old = bytes(&input("llama-ft3-sharded"));

    let mut seen = [0; 3];
    for step in 0..40 {
        let out = place.join("out");
        let _ = fs::remove_dir_all(&out);
        copy(&input("llama-ft3-sharded"), &out);
        let options = ["--overwrite", "--out-shard-size", "20000"];
        let mut child = merging(&place, "out", &options)
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("the program starts");
        std::thread::sleep(takes * step / 32);
        let _ = child.kill();
        child.wait().expect("a child");
        if out.join("config.json").exists() {
            let found = bytes(&out);
            assert!(
                found == old || found == new,
                "a mixture, killed after {step}/32 of its time"
            );
            seen[usize::from(found == new)] += 1;
        } else {
            seen[2] += 1;
        }
        finish(merging(&place, "out", &options)).done();
        assert_same(&new, &bytes(&out), "made again");
    }
    assert!(seen[0] > 0, "it was never killed before the end: {seen:?}");
}

/// Every visible file of a folder.
fn everything(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = names(folder).into_iter().filter(|name| name != STAGING);
    files
        .map(|name| {
            let bytes = fs::read(folder.join(&name)).expect("a file");
            (name, bytes)
        })
        .collect()
}
