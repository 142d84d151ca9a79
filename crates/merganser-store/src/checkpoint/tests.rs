#![allow(clippy::unwrap_used)]

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::header::{TensorSpec, compose};
use crate::pickle::fixtures;

/// Writes a safetensors file of U8 tensors filled with their own first letter.
fn write(path: &Path, tensors: &[(&str, usize)]) {
    let specs: Vec<_> = tensors
        .iter()
        .map(|(name, len)| TensorSpec {
            name: (*name).into(),
            dtype: Dtype::U8,
            shape: vec![*len],
        })
        .collect();
    let mut bytes = compose(&BTreeMap::new(), &specs).unwrap().header;
    for (name, len) in tensors {
        bytes.extend(vec![name.as_bytes()[0]; *len]);
    }
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn index(map: &[(&str, &str)]) -> String {
    let map: BTreeMap<_, _> = map.iter().copied().collect();
    serde_json::json!({ "metadata": {}, "weight_map": map }).to_string()
}

fn folder(files: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        write(&dir.path().join(file), &[("a", 3), ("b", 5)]);
    }
    dir
}

fn refusal(path: &Path) -> String {
    Checkpoint::open(path).unwrap_err().to_string()
}

#[test]
fn a_folder_with_one_file() {
    let dir = folder(&["model.safetensors"]);
    fs::write(dir.path().join("config.json"), r#"{"model_type":"llama"}"#).unwrap();
    for name in [
        "tokenizer.json",
        "LICENSE",
        "README.md",
        "modeling_x.py",
        "notes.txt",
        "chat_template.jinja",
    ] {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    let model = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(model.config(), Some(r#"{"model_type":"llama"}"#));
    assert_eq!(
        model.sidecars(),
        ["LICENSE", "chat_template.jinja", "tokenizer.json"].map(|name| dir.path().join(name))
    );
    assert_eq!(model.code(), [dir.path().join("modeling_x.py")]);
    assert_eq!(model.read_all(&model.tensors()["b"]).unwrap(), b"bbbbb");
    let mut part = [0; 2];
    model.read(&model.tensors()["a"], 1, &mut part).unwrap();
    assert_eq!(&part, b"aa");
    assert!(model.notes().is_empty());
    let file = &model.files()[0];
    assert_eq!(file.size, fs::metadata(&file.path).unwrap().len());
    let header_len = file.size as usize - 8;
    assert_eq!(
        file.header_digest,
        blake3::hash(&fs::read(&file.path).unwrap()[..header_len])
    );
}

#[test]
fn reads_outside_a_tensor_are_refused() {
    let dir = folder(&["model.safetensors"]);
    let model = Checkpoint::open(dir.path()).unwrap();
    let tensor = &model.tensors()["a"];
    for (offset, len) in [(0, 4), (3, 1), (u64::MAX, 1), (4, 0)] {
        let error = model.read(tensor, offset, &mut vec![0; len]).unwrap_err();
        assert!(matches!(error, Error::Range { .. }), "{error}");
    }
    model.read(tensor, 3, &mut []).unwrap();
}

#[test]
fn a_file_cut_short_after_opening_gives_an_error() {
    let dir = folder(&["model.safetensors"]);
    let model = Checkpoint::open(dir.path()).unwrap();
    let file = &model.files()[0];
    fs::File::options()
        .write(true)
        .open(&file.path)
        .unwrap()
        .set_len(file.size - 2)
        .unwrap();
    model.read_all(&model.tensors()["a"]).unwrap();
    let message = model
        .read_all(&model.tensors()["b"])
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("tensor `b`")
            && message.contains("model.safetensors")
            && message.contains("ends early"),
        "{message}"
    );
}

#[test]
fn shards_with_an_index() {
    let dir = tempfile::tempdir().unwrap();
    write(
        &dir.path().join("one.safetensors"),
        &[("a", 2), ("extra", 1)],
    );
    write(&dir.path().join("sub/two.safetensors"), &[("b", 2)]);
    let path = dir.path().join("model.safetensors.index.json");
    fs::write(
        &path,
        index(&[("a", "one.safetensors"), ("b", "sub/two.safetensors")]),
    )
    .unwrap();
    let model = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(model.tensors().keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(model.unlisted(), ["extra"]);
    assert_eq!(model.read_all(&model.tensors()["b"]).unwrap(), b"bb");
    assert_ne!(model.tensors()["a"].file, model.tensors()["b"].file);
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused() {
    let dir = folder(&["one.safetensors"]);
    let path = dir.path().join("model.safetensors.index.json");
    for (map, expected) in [
        (
            &[("a", "one.safetensors"), ("z", "one.safetensors")][..],
            "tensor `z` is said to be in `one.safetensors`, which does not hold it (1 tensors are missing)",
        ),
        (
            &[("a", "one.safetensors"), ("b", "none.safetensors")],
            "shard `none.safetensors` is missing (1 of 2 shards are)",
        ),
        (
            &[("a", "../one.safetensors")],
            "must be a file inside the model's folder",
        ),
    ] {
        fs::write(&path, index(map)).unwrap();
        let message = refusal(dir.path());
        assert!(
            message.contains(expected) && message.contains("model.safetensors.index.json"),
            "{message}"
        );
    }
    write(&dir.path().join("two.safetensors"), &[("a", 1), ("c", 1)]);
    fs::write(
        &path,
        index(&[("a", "one.safetensors"), ("c", "two.safetensors")]),
    )
    .unwrap();
    let message = refusal(dir.path());
    assert!(message.contains("tensor `a` is in both"), "{message}");
}

#[test]
fn links_as_in_the_hub_cache_are_followed() {
    let dir = folder(&["blobs/0123.safetensors"]);
    let snapshot = dir.path().join("snapshots/c0ffee");
    fs::create_dir_all(&snapshot).unwrap();
    std::os::unix::fs::symlink(
        "../../blobs/0123.safetensors",
        snapshot.join("model.safetensors"),
    )
    .unwrap();
    assert_eq!(Checkpoint::open(&snapshot).unwrap().tensors().len(), 2);
    fs::remove_file(dir.path().join("blobs/0123.safetensors")).unwrap();
    let message = refusal(&snapshot);
    assert!(
        message.contains("cannot open") && message.contains("model.safetensors"),
        "{message}"
    );
}

#[test]
fn the_order_of_preference() {
    let dir = folder(&["model.safetensors", "other.safetensors"]);
    fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    fs::write(dir.path().join("model.safetensors.index.json"), "").unwrap();
    let model = Checkpoint::open(dir.path()).unwrap();
    assert!(model.files()[0].path.ends_with("model.safetensors"));
    let notes = model.notes().join("\n");
    assert!(
        notes.contains("`pytorch_model.bin` beside") && notes.contains("index.json` beside"),
        "{notes}"
    );

    let dir = folder(&["diffusion_pytorch_model.safetensors"]);
    assert_eq!(Checkpoint::open(dir.path()).unwrap().tensors().len(), 2);
    let dir = folder(&["flux.safetensors"]);
    assert!(Checkpoint::open(dir.path()).unwrap().notes()[0].contains("`flux.safetensors`"));
}

#[test]
fn shards_without_an_index_must_be_complete() {
    let dir = tempfile::tempdir().unwrap();
    write(
        &dir.path().join("model-00001-of-00002.safetensors"),
        &[("a", 1)],
    );
    assert!(refusal(dir.path()).contains("it holds 1 of the 2 shards of `model` and no index"));
    write(
        &dir.path().join("model-00002-of-00002.safetensors"),
        &[("b", 1)],
    );
    let model = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(model.tensors().len(), 2);
    assert!(model.notes()[0].contains("index is missing"));
    write(
        &dir.path().join("model-00002-of-00002.safetensors"),
        &[("a", 1)],
    );
    assert!(refusal(dir.path()).contains("tensor `a` is in both"));
}

#[test]
fn folders_that_are_no_model_say_what_they_are() {
    let cases: [(&[&str], &str); 5] = [
        (&[], "the folder is empty; expected `model.safetensors`"),
        (
            &["adapter_config.json", "adapter_model.safetensors"],
            "it is a PEFT adapter",
        ),
        (&["q4.gguf"], "GGUF"),
        (
            &["x.txt", "training_args.bin"],
            "it holds only `training_args.bin`, `x.txt`",
        ),
        (
            &["x.safetensors", "y.safetensors"],
            "several safetensors files and no index: `x.safetensors`, `y.safetensors`",
        ),
    ];
    for (files, expected) in cases {
        let message = refusal(folder(files).path());
        assert!(message.contains(expected), "{message}");
    }
    let missing = refusal(Path::new("/nonexistent/model"));
    assert!(missing.contains("/nonexistent/model"), "{missing}");
}

#[test]
fn a_config_must_be_an_object() {
    let dir = folder(&["model.safetensors"]);
    let path = dir.path().join("config.json");
    for text in ["[]", "{\n  \"a\": }", ""] {
        fs::write(&path, text).unwrap();
        let message = refusal(dir.path());
        assert!(
            message.contains("config.json") && message.contains("line "),
            "{message}"
        );
    }
}

#[test]
fn single_files_and_names_that_are_not_unicode() {
    use std::os::unix::ffi::OsStrExt;
    let dir = folder(&["model.safetensors"]);
    let odd = dir
        .path()
        .join(std::ffi::OsStr::from_bytes(b"m\xff.safetensors"));
    fs::rename(dir.path().join("model.safetensors"), &odd).unwrap();
    assert_eq!(Checkpoint::open(&odd).unwrap().tensors().len(), 2);
    assert!(refusal(dir.path()).contains("the folder is empty"));
    let text = dir.path().join("model.txt");
    fs::write(&text, "").unwrap();
    assert!(refusal(&text).contains("expected a folder, or a .safetensors"));
}

#[test]
fn a_bad_header_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    for content in [
        &b""[..],
        b"abc",
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x02\0\0\0\0\0\0\0{}x",
    ] {
        fs::write(&path, content).unwrap();
        let message = refusal(dir.path());
        assert!(
            message.contains("model.safetensors` is not a valid safetensors file: "),
            "{message}"
        );
    }
}

#[test]
fn a_torch_file_with_a_transposed_tensor_reads_row_by_row() {
    let spec = fixtures::TensorSpec {
        class: "ByteStorage",
        key: "0",
        numel: 6,
        offset: 0,
        shape: &[3, 2],
        strides: &[1, 3],
    };
    let straight = fixtures::TensorSpec {
        offset: 2,
        shape: &[4],
        strides: &[1],
        ..spec
    };
    let pickle = fixtures::dict(&[
        ("t", &|p| p.tensor(&spec)),
        ("s", &|p| p.tensor(&straight)),
        ("step", &|p| p.int(1)),
    ]);
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("pytorch_model.bin"),
        fixtures::checkpoint(pickle, &[("0", b"abcdef")]),
    )
    .unwrap();
    let model = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(model.read_all(&model.tensors()["t"]).unwrap(), b"adbecf");
    let mut part = [0; 3];
    model.read(&model.tensors()["t"], 2, &mut part).unwrap();
    assert_eq!(&part, b"bec");
    assert_eq!(model.read_all(&model.tensors()["s"]).unwrap(), b"cdef");
    assert!(
        model.notes()[0].contains("`step (int)`"),
        "{:?}",
        model.notes()
    );
}

#[test]
fn many_threads_read_at_once() {
    let dir = folder(&["model.safetensors"]);
    let model = Checkpoint::open(dir.path()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for tensor in model.tensors().values() {
                    let expected = vec![tensor.name.as_bytes()[0]; tensor.nbytes as usize];
                    assert_eq!(model.read_all(tensor).unwrap(), expected);
                }
            });
        }
    });
}
