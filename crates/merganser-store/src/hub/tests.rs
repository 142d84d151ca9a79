#![allow(clippy::unwrap_used)]

use std::fs;

use super::*;

fn offline(cache: &Path) -> HubOptions {
    HubOptions {
        cache: cache.to_owned(),
        endpoint: "http://127.0.0.1:9".into(),
        token: None,
        offline: true,
    }
}

/// Writes a snapshot with `files` into the cache, and a ref to it.
fn snapshot(cache: &Path, folder: &str, reference: &str, commit: &str, files: &[&str]) -> PathBuf {
    let folder = cache.join(folder);
    let reference = folder.join("refs").join(reference);
    fs::create_dir_all(reference.parent().unwrap()).unwrap();
    fs::write(reference, commit).unwrap();
    let snapshot = folder.join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).unwrap();
    for file in files {
        fs::write(snapshot.join(file), "{}").unwrap();
    }
    snapshot
}

const MODEL: [&str; 2] = ["config.json", "model.safetensors"];

#[test]
fn an_existing_path_wins() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    assert_eq!(
        resolve(path, Some("../ignored"), &offline(dir.path())).unwrap(),
        dir.path()
    );
}

#[test]
fn the_cache_of_huggingface_hub_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let options = offline(dir.path());
    let main = snapshot(dir.path(), "models--org--name", "main", "c0ffee", &MODEL);
    let branch = snapshot(dir.path(), "models--org--name", "pr/1", "beef", &MODEL);
    let plain = snapshot(
        dir.path(),
        "models--gpt2",
        "main",
        "abcd",
        &["adapter_config.json", "adapter_model.bin"],
    );
    assert_eq!(resolve("org/name", None, &options).unwrap(), main);
    assert_eq!(resolve("org/name", Some("pr/1"), &options).unwrap(), branch);
    assert_eq!(resolve("org/name", Some("beef"), &options).unwrap(), branch);
    assert_eq!(resolve("gpt2", None, &options).unwrap(), plain);
}

#[test]
fn an_incomplete_snapshot_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let options = offline(dir.path());
    let folder = snapshot(
        dir.path(),
        "models--org--name",
        "main",
        "c0ffee",
        &["config.json", "tokenizer.json"],
    );
    assert!(matches!(
        resolve("org/name", None, &options),
        Err(HubError::NotCached { .. })
    ));
    fs::write(
        folder.join("model.safetensors.index.json"),
        r#"{"weight_map":{"a":"x.safetensors"}}"#,
    )
    .unwrap();
    assert!(resolve("org/name", None, &options).is_err());
    fs::write(folder.join("x.safetensors"), "").unwrap();
    assert_eq!(resolve("org/name", None, &options).unwrap(), folder);
}

#[test]
fn a_ref_cannot_lead_out_of_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let options = offline(&cache);
    for target in ["../../../outside", "/outside", "..", "", "a/b"] {
        let folder = cache.join("models--org--name");
        fs::create_dir_all(folder.join("refs")).unwrap();
        fs::create_dir_all(folder.join("snapshots")).unwrap();
        fs::create_dir_all(dir.path().join("outside")).unwrap();
        for file in MODEL {
            fs::write(dir.path().join("outside").join(file), "{}").unwrap();
            fs::write(folder.join(file), "{}").unwrap();
            fs::write(folder.join("snapshots").join(file), "{}").unwrap();
        }
        fs::write(folder.join("refs/main"), target).unwrap();
        assert!(
            matches!(
                resolve("org/name", None, &options),
                Err(HubError::NotCached { .. })
            ),
            "{target}"
        );
    }
    for revision in ["../../x", "/etc", "", ".."] {
        assert!(
            matches!(
                resolve("org/name", Some(revision), &options),
                Err(HubError::BadRevision(_))
            ),
            "{revision}"
        );
    }
}

#[test]
fn references_that_cannot_be_meant_as_ids() {
    let dir = tempfile::tempdir().unwrap();
    let options = offline(dir.path());
    for path in [
        "./x",
        "/nonexistent",
        "../x",
        "~/x",
        "a/b/c",
        "model.safetensors",
        "models/",
    ] {
        assert!(
            matches!(resolve(path, None, &options), Err(HubError::NoSuchPath(_))),
            "{path}"
        );
    }
    for id in ["", "a b", "a--b/c", "-a", "a..b", "org/na:me", "ü"] {
        assert!(
            matches!(resolve(id, None, &options), Err(HubError::BadId(_))),
            "{id}"
        );
    }
}

#[test]
fn what_is_missing_offline_is_said_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let message = resolve("org/name", None, &offline(dir.path()))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("`org/name` (revision `main`) is not in the cache"),
        "{message}"
    );
    assert!(
        message.ends_with("give the path of a local copy"),
        "{message}"
    );
}
