//! The checkpoints of `examples/models`: small enough to live in the repository, shaped like real ones.
//!
//! A Llama of 72,000 parameters (6 layers, grouped attention, separate output head) with random weights, three
//! fine-tunes of it that differ from it in three typical ways, and two LoRA adapters. The models say nothing; they are
//! there so that every recipe of `examples/` can be run on a fresh clone. Only additions and multiplications of `f64`
//! go into them, so the bytes are the same on every machine; a test compares them with the committed files.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::checkpoint::{self, Entry};
use crate::{Dtype, Random};

const HIDDEN: usize = 32;
const HEADS: usize = 4;
const KEY_VALUE_HEADS: usize = 2;
const INTERMEDIATE: usize = 64;
const LAYERS: usize = 6;
/// Three special tokens, 256 bytes, one row of padding.
const VOCABULARY: usize = 260;
const RANK: usize = 4;

/// A tensor before it is rounded to bf16.
struct Weight {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// Writes `base`, `dense`, `sparse`, `low-rank`, `adapter` and `adapter-2` into `folder`.
///
/// # Panics
/// If a file cannot be written.
pub fn write(folder: &Path) {
    let base = base();
    model(&folder.join("base"), &base);
    model(&folder.join("dense"), &tuned(&base, 1, dense));
    model(&folder.join("sparse"), &tuned(&base, 2, sparse));
    model(&folder.join("low-rank"), &tuned(&base, 3, low_rank));
    adapter(&folder.join("adapter"), 4, RANK);
    adapter(&folder.join("adapter-2"), 5, 2);
}

/// Nearly normal with standard deviation `scale`: the sum of twelve uniform numbers. A logarithm or a cosine would
/// differ in the last bit from one mathematical library to the next.
fn noise(random: &mut Random, scale: f64) -> f32 {
    let sum: f64 = (0..12).map(|_| random.uniform()).sum();
    ((sum - 6.0) * scale) as f32
}

fn base() -> Vec<Weight> {
    let mut random = Random::new(2026);
    shapes()
        .into_iter()
        .map(|(name, shape)| {
            let n = shape.iter().product();
            let values = if shape.len() == 1 {
                (0..n).map(|_| 1.0 + noise(&mut random, 0.05)).collect()
            } else {
                (0..n).map(|_| noise(&mut random, 0.05)).collect()
            };
            Weight {
                name,
                shape,
                values,
            }
        })
        .collect()
}

fn shapes() -> Vec<(String, Vec<usize>)> {
    let narrow = HIDDEN / HEADS * KEY_VALUE_HEADS;
    let layer = [
        ("input_layernorm", vec![HIDDEN]),
        ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
        ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
        ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
        ("post_attention_layernorm", vec![HIDDEN]),
        ("self_attn.k_proj", vec![narrow, HIDDEN]),
        ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
        ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
        ("self_attn.v_proj", vec![narrow, HIDDEN]),
    ];
    let mut shapes = vec![
        ("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        (
            "model.embed_tokens.weight".to_owned(),
            vec![VOCABULARY, HIDDEN],
        ),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for index in 0..LAYERS {
        shapes.extend(
            layer.iter().map(|(name, shape)| {
                (format!("model.layers.{index}.{name}.weight"), shape.clone())
            }),
        );
    }
    shapes
}

fn tuned(base: &[Weight], seed: u64, change: fn(&mut Random, &[usize], &mut [f32])) -> Vec<Weight> {
    let mut random = Random::new(seed);
    base.iter()
        .map(|weight| {
            let mut values = weight.values.clone();
            change(&mut random, &weight.shape, &mut values);
            Weight {
                name: weight.name.clone(),
                shape: weight.shape.clone(),
                values,
            }
        })
        .collect()
}

/// Full fine-tuning: every element moves a little.
fn dense(random: &mut Random, _: &[usize], values: &mut [f32]) {
    for value in values {
        *value += noise(random, 0.006);
    }
}

/// Sparse fine-tuning: one element in seven of each matrix moves, the norms stay.
fn sparse(random: &mut Random, shape: &[usize], values: &mut [f32]) {
    if shape.len() > 1 {
        for value in values {
            if random.below(7) == 0 {
                *value += noise(random, 0.02);
            }
        }
    }
}

/// A LoRA merged into the weights: each matrix moves by a product of rank 4, the norms stay.
fn low_rank(random: &mut Random, shape: &[usize], values: &mut [f32]) {
    let [rows, columns] = *shape else { return };
    let left: Vec<f32> = (0..rows * RANK).map(|_| noise(random, 0.06)).collect();
    let right: Vec<f32> = (0..RANK * columns).map(|_| noise(random, 0.06)).collect();
    for (row, out) in values.chunks_mut(columns).enumerate() {
        for (column, value) in out.iter_mut().enumerate() {
            for k in 0..RANK {
                *value += left[row * RANK + k] * right[k * columns + column];
            }
        }
    }
}

fn model(folder: &Path, weights: &[Weight]) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": HIDDEN / HEADS,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 256,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "vocab_size": VOCABULARY,
    });
    checkpoint::write(folder, &config, &entries(weights, Dtype::BF16));
    json_file(&folder.join("tokenizer.json"), &tokenizer());
    json_file(
        &folder.join("tokenizer_config.json"),
        &json!({
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": false,
            "eos_token": "</s>",
            "model_max_length": 256,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
        }),
    );
}

fn entries(weights: &[Weight], dtype: Dtype) -> Vec<Entry<'_>> {
    weights
        .iter()
        .map(|weight| {
            (
                weight.name.as_str(),
                dtype,
                weight.shape.clone(),
                weight.values.clone(),
            )
        })
        .collect()
}

/// A tokenizer of bytes: 0 to 2 are special, token 3 + b is byte b, and nothing is ever joined.
fn tokenizer() -> Value {
    let special = ["<unk>", "<s>", "</s>"];
    let mut vocabulary = serde_json::Map::new();
    let bytes = (0..=255_u8).map(|byte| visible(byte).to_string());
    for (id, token) in special
        .map(str::to_owned)
        .into_iter()
        .chain(bytes)
        .enumerate()
    {
        vocabulary.insert(token, id.into());
    }
    let added: Vec<Value> = (special.iter().enumerate())
        .map(|(id, token)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": [],
        },
    })
}

/// The letter that byte-level tokenizers (GPT-2 and after) write for a byte: itself if it is printable, else one of
/// the letters from U+0100 on, in order.
fn visible(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let earlier = (0..byte).filter(|b| !printable(*b)).count();
    char::from_u32(0x100 + earlier as u32).expect("a letter of Latin Extended-A")
}

/// A LoRA adapter of the attention, of the given rank.
fn adapter(folder: &Path, seed: u64, rank: usize) {
    let mut random = Random::new(seed);
    let mut weights = Vec::new();
    for layer in 0..LAYERS {
        for (module, rows) in [("q_proj", HIDDEN), ("v_proj", HIDDEN / 2)] {
            let path = format!("base_model.model.model.layers.{layer}.self_attn.{module}");
            for (name, shape) in [("lora_A", [rank, HIDDEN]), ("lora_B", [rows, rank])] {
                weights.push(Weight {
                    name: format!("{path}.{name}.weight"),
                    shape: shape.to_vec(),
                    values: (0..shape[0] * shape[1])
                        .map(|_| noise(&mut random, 0.05))
                        .collect(),
                });
            }
        }
    }
    fs::create_dir_all(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    checkpoint::write_file(
        &folder.join("adapter_model.safetensors"),
        &entries(&weights, Dtype::F32),
    );
    json_file(
        &folder.join("adapter_config.json"),
        &json!({
            "base_model_name_or_path": "../base",
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "lora_alpha": 2 * rank,
            "lora_dropout": 0.0,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": rank,
            "target_modules": ["q_proj", "v_proj"],
            "task_type": "CAUSAL_LM",
            "use_rslora": false,
        }),
    );
}

fn json_file(path: &Path, value: &Value) {
    fs::write(path, format!("{value:#}\n"))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_letter_of_its_own() {
        let mut letters: Vec<char> = (0..=255).map(visible).collect();
        assert_eq!(
            (letters[b' ' as usize], letters[b'\n' as usize]),
            ('Ġ', 'Ċ')
        );
        letters.sort_unstable();
        letters.dedup();
        assert_eq!(letters.len(), 256);
    }

    #[test]
    fn noise_has_the_spread_asked_for() {
        let mut random = Random::new(1);
        let values: Vec<f32> = (0..10_000).map(|_| noise(&mut random, 2.0)).collect();
        let variance = values.iter().map(|x| x * x).sum::<f32>() / 10_000.0;
        assert!((variance - 4.0).abs() < 0.2, "{variance}");
    }
}
