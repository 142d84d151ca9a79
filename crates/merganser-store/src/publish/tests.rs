#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;

use super::moves::faults::crash_after;
use super::*;

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn stage(staging: &Staging, files: &[(&str, &str)]) -> BTreeSet<String> {
    for (name, content) in files {
        fs::write(staging.path(name).unwrap(), content).unwrap();
    }
    files.iter().map(|(name, _)| (*name).to_owned()).collect()
}

/// Everything in a folder, by name; folders as "/".
fn content(out: &Path) -> BTreeMap<String, String> {
    list(out)
        .unwrap()
        .into_iter()
        .map(|name| {
            let path = out.join(&name);
            let text = if path.is_dir() {
                "/".to_owned()
            } else {
                fs::read_to_string(path).unwrap()
            };
            (name.into_string().unwrap(), text)
        })
        .collect()
}

fn map(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    files
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
        .collect()
}

const NEW: [(&str, &str); 4] = [
    ("config.json", "new"),
    ("model.safetensors.index.json", "new"),
    ("model-00001-of-00001.safetensors", "new"),
    ("tokenizer.json", "new"),
];
const OLD: [(&str, &str); 6] = [
    ("config.json", "old"),
    ("model.safetensors", "old"),
    ("pytorch_model-00001-of-00002.bin", "old"),
    ("README.md", "old"),
    ("vocab.json", "old"),
    ("notes.txt", "mine"),
];

fn write_old(out: &Path) {
    fs::create_dir_all(out).unwrap();
    for (name, text) in OLD {
        fs::write(out.join(name), text).unwrap();
    }
}

#[test]
fn a_model_appears_whole_and_in_the_right_order() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("deep/out");
    let staging = Staging::begin(&out, false).unwrap();
    let files = stage(&staging, &NEW);
    fs::write(staging.dir().join("journal"), "").unwrap();
    assert_eq!(content(&out), map(&[(STAGING, "/")]));
    let published = staging.publish("plan", &files).unwrap();
    let order = [
        "model-00001-of-00001.safetensors",
        "tokenizer.json",
        "model.safetensors.index.json",
        "config.json",
    ];
    assert_eq!(
        published,
        Published {
            plan: "plan".into(),
            files: order.map(str::to_owned).into(),
            replaced: vec![]
        }
    );
    assert_eq!(content(&out), map(&NEW));
}

#[test]
fn an_occupied_folder_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    write_old(dir.path());
    let message = Staging::begin(dir.path(), false).unwrap_err().to_string();
    assert!(
        message.contains("`README.md`, `config.json`") && message.contains("--overwrite"),
        "{message}"
    );
    assert_eq!(content(dir.path()), map(&OLD));
    let file = dir.path().join("notes.txt");
    assert!(
        Staging::begin(&file, true)
            .unwrap_err()
            .to_string()
            .contains("it is not a folder")
    );
}

#[test]
fn what_appears_during_the_work_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let staging = Staging::begin(dir.path(), false).unwrap();
    let files = stage(&staging, &NEW);
    fs::write(dir.path().join("config.json"), "theirs").unwrap();
    assert!(matches!(
        staging.publish("p", &files),
        Err(Error::OutputExists { .. })
    ));
    assert_eq!(
        fs::read_to_string(dir.path().join("config.json")).unwrap(),
        "theirs"
    );
}

#[test]
fn overwriting_removes_the_old_model_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    write_old(dir.path());
    let staging = Staging::begin(dir.path(), true).unwrap();
    let files = stage(&staging, &NEW);
    let published = staging.publish("p", &files).unwrap();
    assert_eq!(published.replaced[0], "config.json");
    assert_eq!(published.replaced.len(), 5);
    let mut expected = map(&NEW);
    expected.insert("notes.txt".into(), "mine".into());
    assert_eq!(content(dir.path()), expected);
}

/// Runs `publish` with a crash after every possible number of steps. At each, the folder must never
/// show a config beside weights of the other model, and the next run must complete it.
fn crash_everywhere(overwrite: bool) {
    for steps in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path();
        let mut kept = BTreeMap::new();
        if overwrite {
            write_old(out);
            kept = map(&[("notes.txt", "mine")]);
        }
        let staging = Staging::begin(out, overwrite).unwrap();
        let files = stage(&staging, &NEW);
        crash_after(Some(steps));
        let result = staging.publish("p", &files);
        crash_after(None);

        let seen = content(out);
        match seen.get("config.json").map(String::as_str) {
            Some("new") => {
                assert!(
                    NEW.iter()
                        .all(|(name, text)| seen.get(*name).map(String::as_str) == Some(*text)),
                    "{steps}: {seen:?}"
                );
            }
            Some("old") => {
                assert!(
                    OLD.iter()
                        .all(|(name, text)| seen.get(*name).map(String::as_str) == Some(*text)),
                    "{steps}: {seen:?}"
                );
            }
            _ => {}
        }
        let done = result.is_ok();
        let mut expected = kept;
        expected.extend(map(&NEW));
        if done {
            assert_eq!(seen, expected);
            return;
        }

        // A second crash at any place of the recovery must do no harm either.
        for again in 0..12 {
            crash_after(Some(again));
            let _ = recover(out);
            crash_after(None);
        }
        // There is nothing to recover before the intention was written, and after all was done.
        if let Some(published) = recover(out).unwrap() {
            assert_eq!(published.plan, "p");
        }
        if !content(out).contains_key("config.json") || content(out)["config.json"] == "old" {
            let staging = Staging::begin(out, overwrite).unwrap();
            assert_eq!(
                fs::read_dir(staging.files()).unwrap().count(),
                NEW.len(),
                "{steps}: staged files are kept"
            );
            staging.publish("p", &files).unwrap();
        }
        let mut seen = content(out);
        // All that may be left is an empty staging folder.
        seen.remove(STAGING);
        assert_eq!(seen, expected, "{steps}");
    }
}

#[test]
fn a_crash_anywhere_in_publishing_is_recovered_from() {
    crash_everywhere(false);
}

#[test]
fn a_crash_anywhere_in_replacing_is_recovered_from() {
    crash_everywhere(true);
}

#[test]
fn begin_completes_an_interrupted_publication_first() {
    let dir = tempfile::tempdir().unwrap();
    let staging = Staging::begin(dir.path(), false).unwrap();
    let files = stage(&staging, &NEW);
    crash_after(Some(7));
    assert!(staging.publish("p", &files).is_err());
    crash_after(None);
    assert!(!content(dir.path()).contains_key("config.json"));
    assert!(matches!(
        Staging::begin(dir.path(), false),
        Err(Error::OutputExists { .. })
    ));
    assert_eq!(content(dir.path()), map(&NEW));
}

#[test]
fn a_lost_file_is_reported_and_nothing_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    write_old(dir.path());
    let staging = Staging::begin(dir.path(), true).unwrap();
    let files = stage(&staging, &NEW);
    crash_after(Some(5));
    assert!(staging.publish("p", &files).is_err());
    crash_after(None);
    fs::remove_file(dir.path().join(STAGING).join(FILES).join("tokenizer.json")).unwrap();
    let message = recover(dir.path()).unwrap_err().to_string();
    assert!(
        message.contains("`tokenizer.json` has disappeared") && message.contains(REPLACED),
        "{message}"
    );
    assert_eq!(
        fs::read_to_string(dir.path().join(REPLACED).join("config.json")).unwrap(),
        "old"
    );
    // The former model, once in that folder, is not mistaken for a leftover.
    fs::remove_dir_all(dir.path().join(STAGING)).unwrap();
    let staging = Staging::begin(dir.path(), true).unwrap();
    let files = stage(&staging, &NEW);
    assert!(
        staging
            .publish("p", &files)
            .unwrap_err()
            .to_string()
            .contains(REPLACED)
    );
}

#[test]
fn a_hostile_intention_cannot_reach_outside() {
    let dir = tempfile::tempdir().unwrap();
    let staging = dir.path().join(STAGING);
    fs::create_dir(&staging).unwrap();
    for (name, expected) in [
        ("../x", "`../x` is not a file name"),
        ("a/b", "`a/b` is not a file name"),
    ] {
        let text = serde_json::json!({ "version": 1, "plan": "p", "retire": [name], "moves": [] })
            .to_string();
        fs::write(staging.join("publish.json"), text).unwrap();
        assert!(
            recover(dir.path())
                .unwrap_err()
                .to_string()
                .contains(expected)
        );
    }
    fs::write(
        staging.join("publish.json"),
        r#"{"version":2,"plan":"p","retire":[],"moves":[]}"#,
    )
    .unwrap();
    assert!(
        recover(dir.path())
            .unwrap_err()
            .to_string()
            .contains("another version")
    );
    fs::write(staging.join("publish.json"), "{").unwrap();
    assert!(matches!(recover(dir.path()), Err(Error::Json { .. })));

    let other = tempfile::tempdir().unwrap();
    let linked = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(other.path(), linked.path().join(STAGING)).unwrap();
    assert!(
        Staging::begin(linked.path(), false)
            .unwrap_err()
            .to_string()
            .contains("is not a folder")
    );
}

#[test]
fn work_is_resumed_and_stale_files_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let staging = Staging::begin(dir.path(), false).unwrap();
    stage(
        &staging,
        &[("old-shard.safetensors", "x"), ("config.json", "kept")],
    );
    fs::create_dir(staging.files().join("folder")).unwrap();
    drop(staging);
    let staging = Staging::begin(dir.path(), false).unwrap();
    staging.keep_only(&names(&["config.json"])).unwrap();
    assert_eq!(content(staging.files()), map(&[("config.json", "kept")]));
    let message = staging
        .publish("p", &names(&["config.json", "gone"]))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("`gone` was to be published but is not staged"),
        "{message}"
    );
    Staging::begin(dir.path(), false)
        .unwrap()
        .discard()
        .unwrap();
    assert!(content(dir.path()).is_empty());
}

#[test]
fn staged_names_are_plain() {
    let dir = tempfile::tempdir().unwrap();
    let staging = Staging::begin(dir.path(), false).unwrap();
    for name in ["", "..", "../x", "a/b", "/x", "."] {
        assert!(staging.path(name).is_err(), "{name}");
    }
}

#[test]
fn writers_exclude_each_other_and_parts_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let alone = Staging::begin(dir.path(), false).unwrap();
    assert!(matches!(
        Staging::begin(dir.path(), false),
        Err(Error::Locked { .. })
    ));
    assert!(matches!(
        Staging::begin_shared(dir.path(), false),
        Err(Error::Locked { .. })
    ));
    drop(alone);
    let first = Staging::begin_shared(dir.path(), false).unwrap();
    let second = Staging::begin_shared(dir.path(), false).unwrap();
    assert!(matches!(
        Staging::begin(dir.path(), false),
        Err(Error::Locked { .. })
    ));
    let files = stage(&first, &NEW);
    assert!(
        first
            .publish("p", &files)
            .unwrap_err()
            .to_string()
            .contains("seal")
    );
    assert!(second.discard().is_err());
    Staging::begin(dir.path(), false)
        .unwrap()
        .publish("p", &files)
        .unwrap();
    assert_eq!(content(dir.path()), map(&NEW));
}
