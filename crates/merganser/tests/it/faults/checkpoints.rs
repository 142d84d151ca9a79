//! Broken and hostile models: whatever a file claims, it is refused with its name and the reason.

use std::fmt::Write;
use std::fs;

use insta::assert_snapshot;

use super::{Place, copy_of};
use crate::models::{copy, input};

/// A model whose weights are the given bytes.
fn model(weights: &[u8]) -> Place {
    let place = Place::new();
    place.write(
        "model/config.json",
        r#"{"model_type": "llama", "num_hidden_layers": 1}"#,
    );
    place.write("model/model.safetensors", weights);
    place
}

/// A safetensors file with the given header and `data` bytes of zeros.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.resize(file.len() + data, 0);
    file
}

/// Every case of a family, in one snapshot.
fn refusals(cases: &[(&str, Vec<u8>)]) -> String {
    let mut text = String::new();
    for (what, weights) in cases {
        let said = model(weights).refused(&copy_of("./model"));
        assert!(said.contains("model.safetensors"), "{what}: {said}");
        let _ = writeln!(text, "## {what}\n{said}");
    }
    text
}

#[test]
fn hostile_headers_are_refused() {
    let tensor = |name: &str, shape: &str, from: i64, to: i64| {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let two = |a: String, b: String| with_header(&format!("{{{a},{b}}}"), 16);
    let one = |a: String| with_header(&format!("{{{a}}}"), 16);
    let mut endless = (1_u64 << 63).to_le_bytes().to_vec();
    endless.extend(b"{}");
    let mut beyond = 1000_u64.to_le_bytes().to_vec();
    beyond.extend(b"{}");
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_snapshot!(refusals(&[
        ("empty file", Vec::new()),
        ("shorter than its first number", vec![1, 2, 3]),
        ("header of 2^63 bytes", endless),
        ("header longer than the file", beyond),
        ("not JSON", with_header("{this is not JSON}", 16)),
        ("not an object", with_header("[1, 2]", 16)),
        ("nested a hundred thousand deep", with_header(&deep, 16)),
        (
            "not UTF-8",
            [&2_u64.to_le_bytes()[..], &[0xff, 0xfe]].concat()
        ),
        (
            "overlapping tensors",
            two(tensor("a", "[2]", 0, 8), tensor("b", "[3]", 4, 16))
        ),
        (
            "hole between tensors",
            two(tensor("a", "[1]", 0, 4), tensor("b", "[2]", 8, 16))
        ),
        ("bytes after the last tensor", one(tensor("a", "[2]", 0, 8))),
        (
            "the same name twice",
            two(tensor("a", "[2]", 0, 8), tensor("a", "[2]", 8, 16))
        ),
        ("negative shape", one(tensor("a", "[-4]", 0, 16))),
        ("negative offset", one(tensor("a", "[4]", -16, 0))),
        ("offsets backwards", one(tensor("a", "[4]", 16, 0))),
        ("shape and size disagree", one(tensor("a", "[5]", 0, 16))),
        (
            "more elements than can be counted",
            one(tensor("a", "[4294967296,4294967296,4294967296]", 0, 16))
        ),
        (
            "data beyond the end of the file",
            one(tensor("a", "[1000]", 0, 4000))
        ),
        (
            "unknown type",
            with_header(
                r#"{"a":{"dtype":"F5","shape":[4],"data_offsets":[0,16]}}"#,
                16
            )
        ),
        (
            "a tensor without a shape",
            with_header(r#"{"a":{"dtype":"F32","data_offsets":[0,16]}}"#, 16)
        ),
    ]));
}

#[test]
fn a_truncated_shard_is_refused() {
    let place = Place::new();
    copy(&input("llama-ft3-sharded"), &place.join("model"));
    let shard = place.join("model/model-00002-of-00003.safetensors");
    let bytes = fs::read(&shard).expect("a shard");
    fs::write(&shard, &bytes[..bytes.len() / 2]).expect("half of it");
    assert_snapshot!(place.refused(&copy_of("./model")));
}

#[test]
fn a_missing_shard_is_refused() {
    let place = Place::new();
    copy(&input("llama-ft3-sharded"), &place.join("model"));
    fs::remove_file(place.join("model/model-00003-of-00003.safetensors")).expect("a shard");
    assert_snapshot!(place.refused(&copy_of("./model")));
}

#[test]
fn an_index_cannot_point_outside_its_folder() {
    for target in [
        "../secret/model.safetensors",
        "/etc/passwd",
        "..",
        "sub/../../secret/model.safetensors",
    ] {
        let place = Place::new();
        copy(&input("llama-base"), &place.join("secret"));
        place.write("model/config.json", r#"{"model_type": "llama"}"#);
        let index = format!(r#"{{"weight_map": {{"model.norm.weight": "{target}"}}}}"#);
        place.write("model/model.safetensors.index.json", index);
        let said = place.refused(&copy_of("./model"));
        assert!(
            said.contains("model.safetensors.index.json") && said.contains(target),
            "{said}"
        );
        if target.starts_with("../") {
            assert_snapshot!(said);
        }
    }
}

#[test]
fn a_pickle_is_never_executed() {
    let place = Place::new();
    place.write("model/config.json", r#"{"model_type": "llama"}"#);
    let command = "touch executed";
    let mut pickle = b"\x80\x02cposix\nsystem\nX".to_vec();
    pickle.extend((command.len() as u32).to_le_bytes());
    pickle.extend(command.bytes());
    pickle.extend(b"\x85R.");
    place.write(
        "model/pytorch_model.bin",
        archive(&[("archive/data.pkl", &pickle), ("archive/version", b"3\n")]),
    );
    let said = place.refused(&copy_of("./model"));
    assert!(!place.join("executed").exists(), "the pickle was executed");
    assert!(
        said.contains("posix") && said.contains("system"),
        "it is to be named: {said}"
    );
    assert_snapshot!(said);
}

/// A zip archive of uncompressed files, as torch writes them.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = Vec::new();
    let mut directory = Vec::new();
    for (name, bytes) in files {
        let at = zip.len() as u32;
        let mut entry = Vec::new();
        // Version 2.0, no flags, stored, no time.
        for x in [20_u16, 0, 0, 0, 0] {
            entry.extend(x.to_le_bytes());
        }
        for x in [crc32(bytes), bytes.len() as u32, bytes.len() as u32] {
            entry.extend(x.to_le_bytes());
        }
        entry.extend((name.len() as u16).to_le_bytes());
        entry.extend(0_u16.to_le_bytes());
        zip.extend(b"PK\x03\x04");
        zip.extend(&entry);
        zip.extend(name.bytes());
        zip.extend(*bytes);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&entry);
        // No comment, first disk, no attributes.
        directory.extend([0; 10]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.bytes());
    }
    let (count, at) = (files.len() as u16, zip.len() as u32);
    let size = directory.len() as u32;
    zip.extend(directory);
    zip.extend(b"PK\x05\x06\0\0\0\0");
    zip.extend(count.to_le_bytes());
    zip.extend(count.to_le_bytes());
    zip.extend(size.to_le_bytes());
    zip.extend(at.to_le_bytes());
    zip.extend([0, 0]);
    zip
}

/// CRC-32 of zip, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1))
        })
    })
}

#[test]
fn a_model_that_is_not_there_is_refused() {
    let place = Place::new();
    assert_snapshot!(place.refused(&copy_of("./nowhere")));
}

#[test]
fn a_folder_without_weights_is_refused() {
    let place = Place::new();
    place.write("model/config.json", r#"{"model_type": "llama"}"#);
    assert_snapshot!(place.refused(&copy_of("./model")));
}

#[test]
fn a_broken_configuration_is_refused() {
    let place = Place::new();
    copy(&input("llama-base"), &place.join("model"));
    place.write("model/config.json", "{\"model_type\": \"llama\",\n");
    assert_snapshot!(place.refused(&copy_of("./model")));
}

#[test]
fn a_folder_in_place_of_the_weights_is_refused() {
    let place = Place::new();
    place.write("model/config.json", r#"{"model_type": "llama"}"#);
    place.write("model/model.safetensors/file", "");
    assert_snapshot!(place.refused(&copy_of("./model")));
}

#[cfg(unix)]
#[test]
fn an_unreadable_file_is_refused() {
    use std::os::unix::fs::PermissionsExt;

    let place = Place::new();
    copy(&input("llama-base"), &place.join("model"));
    let weights = place.join("model/model.safetensors");
    fs::set_permissions(&weights, fs::Permissions::from_mode(0o000)).expect("permissions");
    if fs::File::open(&weights).is_ok() {
        return; // root reads everything
    }
    let said = place.refused(&copy_of("./model"));
    for part in ["./model/model.safetensors", "Permission denied"] {
        assert!(said.contains(part), "no '{part}' in: {said}");
    }
}
