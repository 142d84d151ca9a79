//! Writes tiny checkpoints in the layout of the Hugging Face hub.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};

use crate::float;

/// One tensor to be written: name, element type, shape, elements (rounded to the type).
pub type Entry<'a> = (&'a str, Dtype, Vec<usize>, Vec<f32>);

/// Writes `config.json` and `model.safetensors` into `folder`, which is created if missing.
///
/// # Panics
/// If the number of elements does not fit a shape, or the files cannot be written.
pub fn write(folder: &Path, config: &Value, tensors: &[Entry<'_>]) {
    write_config(folder, config);
    write_file(&folder.join("model.safetensors"), tensors);
}

/// Writes `config.json`, shards of `per_shard` tensors each (in the given order) and their index into `folder`.
///
/// # Panics
/// As [`write()`], and if `per_shard` is 0.
pub fn write_sharded(folder: &Path, config: &Value, tensors: &[Entry<'_>], per_shard: usize) {
    write_config(folder, config);
    let shards = tensors.chunks(per_shard);
    let count = shards.len();
    let mut weight_map = BTreeMap::new();
    let mut total_size = 0;
    for (i, shard) in shards.enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
        write_file(&folder.join(&file), shard);
        for (name, dtype, _, values) in shard {
            total_size += values.len() * float::size(*dtype);
            weight_map.insert(*name, file.clone());
        }
    }
    write_json(
        &folder.join("model.safetensors.index.json"),
        &json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map }),
    );
}

/// Writes one safetensors file.
///
/// # Panics
/// As [`write()`].
pub fn write_file(path: &Path, tensors: &[Entry<'_>]) {
    let encoded: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, dtype, shape, values)| {
            (*name, *dtype, shape.clone(), float::encode(*dtype, values))
        })
        .collect();
    let views = encoded.iter().map(|(name, dtype, shape, bytes)| {
        let view = TensorView::new(*dtype, shape.clone(), bytes)
            .unwrap_or_else(|error| panic!("tensor '{name}' of shape {shape:?}: {error}"));
        (*name, view)
    });
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    serialize_to_file(views.collect::<Vec<_>>(), Some(metadata), path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn write_config(folder: &Path, config: &Value) {
    fs::create_dir_all(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    write_json(&folder.join("config.json"), config);
}

fn write_json(path: &Path, value: &Value) {
    fs::write(path, format!("{value:#}\n"))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::read_safetensors;

    #[test]
    fn what_is_written_can_be_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let tensors = [
            ("b", Dtype::BF16, vec![2, 2], vec![1.0, -2.0, 0.5, 3.0]),
            ("a", Dtype::F32, vec![], vec![0.25]),
            ("c", Dtype::I64, vec![3], vec![1.0, 2.0, 3.0]),
        ];
        write(folder.path(), &json!({ "model_type": "llama" }), &tensors);
        let back = read_safetensors(&folder.path().join("model.safetensors"));
        assert_eq!(back["b"].values, [1.0, -2.0, 0.5, 3.0]);
        assert_eq!((back["a"].dtype, back["a"].shape.len()), (Dtype::F32, 0));

        let sharded = folder.path().join("sharded");
        write_sharded(&sharded, &json!({}), &tensors, 2);
        let index =
            fs::read_to_string(sharded.join("model.safetensors.index.json")).expect("an index");
        let index: Value = serde_json::from_str(&index).expect("json");
        assert_eq!(index["metadata"]["total_size"], 8 + 4 + 24);
        assert_eq!(index["weight_map"]["c"], "model-00002-of-00002.safetensors");
        assert_eq!(
            read_safetensors(&sharded.join("model-00002-of-00002.safetensors"))["c"].values,
            [1.0, 2.0, 3.0]
        );
    }
}
