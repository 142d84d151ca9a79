//! Models to merge: the tiny ones of the golden cases, generated ones, and what is read back of a merged one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use merganser_testkit::{Dtype, Random, Tensor, checkpoint, golden};
use serde_json::{Value, json};

/// The folder of mergekit's golden cases; their recipes name their inputs relative to it.
pub(crate) fn golden() -> PathBuf {
    golden::folder().join("mergekit")
}

/// A golden input.
pub(crate) fn input(name: &str) -> PathBuf {
    golden().join("inputs").join(name)
}

/// A configuration that fits the generated models.
pub(crate) fn config(hidden: usize, layers: usize, rows: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": layers,
        "vocab_size": rows,
        "tie_word_embeddings": true,
        "dtype": "bfloat16",
    })
}

/// Names and shapes of the tensors of a Llama of the given size with tied embeddings.
pub(crate) fn llama(hidden: usize, layers: usize, rows: usize) -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![rows, hidden])];
    for layer in 0..layers {
        let mut add = |name: &str, shape: Vec<usize>| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        };
        add("input_layernorm", vec![hidden]);
        for projection in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(&format!("self_attn.{projection}"), vec![hidden, hidden]);
        }
        add("post_attention_layernorm", vec![hidden]);
        add("mlp.gate_proj", vec![2 * hidden, hidden]);
        add("mlp.up_proj", vec![2 * hidden, hidden]);
        add("mlp.down_proj", vec![hidden, 2 * hidden]);
    }
    tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
    tensors
}

/// Three related models `base`, `ft1` and `ft2` whose embeddings span several chunks of work; `ft2` is sharded.
pub(crate) fn chunky() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("it-chunky");
        let (hidden, layers, rows) = (96, 2, 2000);
        let shapes = llama(hidden, layers, rows);
        let largest = shapes.iter().map(|(_, shape)| shape.iter().product());
        assert!(largest.max() > Some(2 * merganser::methods::CHUNK));
        let config = config(hidden, layers, rows);
        let mut random = Random::new(7);
        let base: Vec<Vec<f32>> = shapes
            .iter()
            .map(|(_, shape)| random.normals(shape.iter().product(), 0.05))
            .collect();
        let write = |name: &str, values: &[Vec<f32>], per_shard: Option<usize>| {
            let tensors: Vec<checkpoint::Entry<'_>> = shapes
                .iter()
                .zip(values)
                .map(|((name, shape), values)| {
                    (name.as_str(), Dtype::BF16, shape.clone(), values.clone())
                })
                .collect();
            match per_shard {
                None => checkpoint::write(&folder.join(name), &config, &tensors),
                Some(n) => checkpoint::write_sharded(&folder.join(name), &config, &tensors, n),
            }
        };
        write("base", &base, None);
        for (name, per_shard) in [("ft1", None), ("ft2", Some(6))] {
            let near: Vec<Vec<f32>> = base.iter().map(|x| random.near(x, 0.01)).collect();
            write(name, &near, per_shard);
        }
        folder
    })
}

/// Every tensor of a merged model. Also checks that the index, if there is one, tells the truth.
pub(crate) fn read(folder: &Path) -> BTreeMap<String, Tensor> {
    let index = folder.join("model.safetensors.index.json");
    let Ok(text) = fs::read_to_string(&index) else {
        return golden::read_safetensors(&folder.join("model.safetensors"));
    };
    let index: Value = serde_json::from_str(&text).expect("the index is JSON");
    let map: BTreeMap<String, String> =
        serde_json::from_value(index["weight_map"].clone()).expect("a map from tensors to files");
    let mut all = BTreeMap::new();
    for file in names(folder)
        .iter()
        .filter(|name| has_extension(name, "safetensors"))
    {
        for (name, tensor) in golden::read_safetensors(&folder.join(file)) {
            assert_eq!(map.get(&name), Some(file), "the index on '{name}'");
            all.insert(name, tensor);
        }
    }
    assert_eq!(
        map.len(),
        all.len(),
        "the index names tensors that no file has"
    );
    all
}

/// Names in a folder, in order.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The files of a model that must not depend on how it was merged: weights, index and configuration, byte by byte.
pub(crate) fn bytes(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let matters = |name: &String| {
        has_extension(name, "safetensors")
            || name == "config.json"
            || name == "model.safetensors.index.json"
    };
    let files: BTreeMap<_, _> = names(folder)
        .into_iter()
        .filter(matters)
        .map(|name| {
            let bytes = fs::read(folder.join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
            (name, bytes)
        })
        .collect();
    assert!(
        files.contains_key("config.json") && files.len() > 1,
        "no model in {}",
        folder.display()
    );
    files
}

/// Asserts that two models are the same to the bit, and names the file that is not.
#[track_caller]
pub(crate) fn assert_same(
    a: &BTreeMap<String, Vec<u8>>,
    b: &BTreeMap<String, Vec<u8>>,
    what: &str,
) {
    let names = |x: &BTreeMap<String, Vec<u8>>| x.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(a), names(b), "{what}: files");
    for (name, bytes) in a {
        let at = bytes.iter().zip(&b[name]).position(|(x, y)| x != y);
        assert!(
            bytes == &b[name],
            "{what}: '{name}' differs, first at byte {at:?}"
        );
    }
}

pub(crate) fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|x| x == extension)
}

/// Copies a model's folder, without folders in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap_or_else(|error| panic!("{}: {error}", to.display()));
    for name in names(from) {
        // Read and written, not copied: golden files may be read-only and the copy must not be.
        let bytes = fs::read(from.join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        fs::write(to.join(&name), bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}
