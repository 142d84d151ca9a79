//! What the benches share: models of half a billion parameters, and running the program with an eye on its memory.

#![allow(dead_code)]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const HIDDEN: usize = 896;
pub(crate) const INTERMEDIATE: usize = 4864;
pub(crate) const LAYERS: usize = 24;
pub(crate) const KV: usize = 128;
pub(crate) const VOCABULARY: usize = 151_936;

/// Where the models lie: under the target folder, or in `MERGANSER_BENCH_DIR`.
pub(crate) fn folder() -> PathBuf {
    std::env::var_os("MERGANSER_BENCH_DIR").map_or_else(
        || PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("bench-models"),
        PathBuf::from,
    )
}

/// Seconds of wall time and of the processors, and peak resident memory in MB.
pub(crate) struct Run {
    pub(crate) wall: f64,
    pub(crate) cpu: f64,
    pub(crate) memory: f64,
}

/// Runs the program in a folder.
pub(crate) fn run(dir: &Path, arguments: &[&str]) -> Run {
    let begun = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_merganser"))
        .current_dir(dir)
        .arg("--quiet")
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (mut memory, mut cpu) = (0.0, 0.0);
    loop {
        // Both figures only grow, so the last reading before the end is the peak, up to a few milliseconds.
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        if let Some(line) = status.lines().find(|line| line.starts_with("VmHWM")) {
            memory = line
                .split_whitespace()
                .nth(1)
                .and_then(|kb| kb.parse::<f64>().ok())
                .unwrap_or(memory * 1e3)
                / 1e3;
        }
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
        let ticks: f64 = stat
            .split_whitespace()
            .skip(13)
            .take(2)
            .filter_map(|t| t.parse::<f64>().ok())
            .sum();
        cpu = f64::max(cpu, ticks / 100.0);
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{arguments:?} failed");
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Run {
        wall: begun.elapsed().as_secs_f64(),
        cpu,
        memory,
    }
}

/// Writes model number `k`: the base, a dense change of it, one of 30 % of its entries, one opposed to the first.
pub(crate) fn generate(dir: &Path, k: usize) {
    let path = dir.join("model.safetensors");
    if path.exists() {
        return;
    }
    std::fs::create_dir_all(dir).unwrap();
    let mut tensors: Vec<(String, Vec<usize>)> =
        vec![("model.embed_tokens.weight".into(), vec![VOCABULARY, HIDDEN])];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((
                format!("model.layers.{layer}.{name}.weight"),
                shape.to_vec(),
            ));
        };
        add("input_layernorm", &[HIDDEN]);
        add("mlp.down_proj", &[HIDDEN, INTERMEDIATE]);
        add("mlp.gate_proj", &[INTERMEDIATE, HIDDEN]);
        add("mlp.up_proj", &[INTERMEDIATE, HIDDEN]);
        add("post_attention_layernorm", &[HIDDEN]);
        add("self_attn.k_proj", &[KV, HIDDEN]);
        add("self_attn.o_proj", &[HIDDEN, HIDDEN]);
        add("self_attn.q_proj", &[HIDDEN, HIDDEN]);
        add("self_attn.v_proj", &[KV, HIDDEN]);
    }
    tensors.push(("model.norm.weight".into(), vec![HIDDEN]));
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in &tensors {
        let bytes = shape.iter().product::<usize>() * 2;
        header.insert(name.clone(), serde_json::json!({ "dtype": "BF16", "shape": shape, "data_offsets": [end, end + bytes] }));
        end += bytes;
    }
    let mut header = serde_json::Value::from(header).to_string();
    header.push_str(&" ".repeat((8 - header.len() % 8) % 8));
    let unfinished = dir.join("unfinished");
    let mut file = std::io::BufWriter::with_capacity(1 << 20, File::create(&unfinished).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes())
        .unwrap();
    file.write_all(header.as_bytes()).unwrap();
    for (t, (name, shape)) in tensors.iter().enumerate() {
        let norm = name.contains("norm");
        for i in 0..shape.iter().product::<usize>() {
            let noise = |stream: u64| uniform((t as u64) << 40 | i as u64, stream);
            let base = if norm {
                1.0 + 0.05 * noise(0)
            } else {
                0.04 * noise(0)
            };
            let first = 0.006 * noise(1);
            let value = match k {
                1 => base + first,
                2 if noise(2) > 0.4 => base + 0.006 * noise(3),
                0 | 2 => base,
                _ => base - 0.5 * first + 0.003 * noise(4),
            };
            file.write_all(&(((value.to_bits() + 0x8000) >> 16) as u16).to_le_bytes())
                .unwrap();
        }
    }
    file.flush().unwrap();
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": VOCABULARY, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    std::fs::rename(unfinished, path).unwrap();
}

/// A number in −1..1 that depends on its index alone (the finaliser of SplitMix64).
fn uniform(index: u64, stream: u64) -> f32 {
    let mut z = index
        .wrapping_add(stream.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
}
