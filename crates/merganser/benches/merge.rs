//! Times whole merges of a Llama-shaped model of half a billion parameters against the floor of the machine.
//!
//! `cargo bench -p merganser --bench merge [-- METHOD…]` generates a base and three fine-tunes (bf16, about 1 GB each)
//! under the target folder, measures how fast the machine copies one file to another (page cache warm, as many
//! threads), and runs the program once for each method, several times. Floor = (bytes in + bytes out) ÷ copy rate.
//! The models lie under the target folder, or in `MERGANSER_BENCH_DIR`: a tmpfs there leaves the disk out of the figures,
//! which a slow one otherwise dominates once the kernel starts to write back.
//! Printed are the best wall time, its ratio to the floor, CPU seconds and peak resident memory. Quote the ratios:
//! seconds depend on the machine.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const HIDDEN: usize = 896;
const INTERMEDIATE: usize = 4864;
const LAYERS: usize = 24;
const KV: usize = 128;
const VOCABULARY: usize = 151_936;
const RUNS: usize = 3;

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let dir = std::env::var_os("MERGANSER_BENCH_DIR").map_or_else(
        || PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("bench-models"),
        PathBuf::from,
    );
    let models = ["base", "ft1", "ft2", "ft3"];
    for (k, model) in models.iter().enumerate() {
        generate(&dir.join(model), k);
    }
    let size = std::fs::metadata(dir.join("base/model.safetensors"))
        .unwrap()
        .len();
    let threads = std::thread::available_parallelism().unwrap().get();
    println!(
        "models of {:.2} GB, {threads} threads, best of {RUNS}",
        size as f64 / 1e9
    );

    let mut rate = 0.0_f64;
    let mut rows = Vec::new();
    for (method, recipe, inputs) in recipes() {
        if !wanted.is_empty() && !wanted.iter().any(|w| w == method) {
            continue;
        }
        let path = dir.join(format!("{method}.yml"));
        std::fs::write(&path, recipe).unwrap();
        let mut best = Run {
            wall: f64::MAX,
            cpu: f64::MAX,
            memory: 0.0,
        };
        let mut durable = f64::MAX;
        for _ in 0..RUNS {
            // The machine's speed drifts, so the floor is measured in turn with the runs; the best of all counts, since
            // a disturbed copy would flatter every method.
            rate = rate.max(copy_rate(&dir, size, threads));
            let run = merge(&dir, &path, &["--no-sync"]);
            best.wall = best.wall.min(run.wall);
            best.cpu = best.cpu.min(run.cpu);
            best.memory = best.memory.max(run.memory);
            durable = durable.min(merge(&dir, &path, &[]).wall);
        }
        rows.push((method, inputs, best, durable));
    }
    println!("copy rate (read + write) {:.2} GB/s", rate / 1e9);
    println!("method              floor s  wall s  ratio  durable s  CPU s  peak RSS MB");
    for (method, inputs, best, durable) in rows {
        let floor = (inputs as f64 + 1.0) * size as f64 / rate;
        println!(
            "{method:<18} {floor:>8.2} {:>7.2} {:>6.2} {durable:>10.2} {:>6.2} {:>12.0}",
            best.wall,
            best.wall / floor,
            best.cpu,
            best.memory
        );
    }
}

fn recipes() -> Vec<(&'static str, String, usize)> {
    let list = |names: &[&str], parameters: &str| -> String {
        let entry = |name: &&str| format!("  - model: ./{name}\n    parameters: {{{parameters}}}");
        names.iter().map(entry).collect::<Vec<_>>().join("\n") + "\n"
    };
    let tunes = ["ft1", "ft2", "ft3"];
    let based = |method: &str, parameters: &str| {
        format!(
            "merge_method: {method}\nbase_model: ./base\nmodels:\n{}",
            list(&tunes, parameters)
        )
    };
    vec![
        ("passthrough", "merge_method: passthrough\nmodels:\n  - model: ./ft1\n".into(), 1),
        ("linear", format!("merge_method: linear\nmodels:\n{}", list(&tunes, "weight: 1.0")), 3),
        ("slerp", "merge_method: slerp\nbase_model: ./base\nmodels:\n  - model: ./ft1\nparameters: {t: 0.5}\n".into(), 2),
        ("task_arithmetic", based("task_arithmetic", "weight: 0.5"), 4),
        ("ties", based("ties", "weight: 1.0, density: 0.5"), 4),
        ("dare_ties", based("dare_ties", "weight: 1.0, density: 0.5"), 4),
        ("breadcrumbs", based("breadcrumbs", "weight: 1.0, density: 0.9"), 4),
        ("della", based("della", "weight: 1.0, density: 0.5"), 4),
        ("sce", format!("{}parameters: {{select_topk: 0.5}}\n", based("sce", "")), 4),
        ("model_stock", based("model_stock", ""), 4),
    ]
}

struct Run {
    wall: f64,
    cpu: f64,
    memory: f64,
}

fn merge(dir: &Path, recipe: &Path, more: &[&str]) -> Run {
    let out = dir.join("out");
    let _ = std::fs::remove_dir_all(&out);
    let begun = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_merganser"))
        .current_dir(dir)
        .args(["merge", "--quiet", "--memory", "512MiB"])
        .args(more)
        .arg(recipe)
        .arg(&out)
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
            assert!(status.success(), "{} failed", recipe.display());
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

/// Bytes read plus bytes written a second when copying one model file to another.
fn copy_rate(dir: &Path, size: u64, threads: usize) -> f64 {
    let from = File::open(dir.join("base/model.safetensors")).unwrap();
    let path = dir.join("copy");
    let _ = std::fs::remove_file(&path);
    let to = File::create(&path).unwrap();
    to.set_len(size).unwrap();
    let piece = 1 << 20;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (from, to) = (&from, &to);
            scope.spawn(move || {
                let mut buffer = vec![0; piece];
                let mut at = (thread * piece) as u64;
                while at < size {
                    let bytes = &mut buffer[..piece.min((size - at) as usize)];
                    from.read_exact_at(bytes, at).unwrap();
                    to.write_all_at(bytes, at).unwrap();
                    at += (threads * piece) as u64;
                }
            });
        }
    });
    let rate = 2.0 * size as f64 / begun.elapsed().as_secs_f64();
    std::fs::remove_file(&path).unwrap();
    rate
}

/// Writes model number `k`: the base, a dense change of it, one of 30 % of its entries, one opposed to the first.
fn generate(dir: &Path, k: usize) {
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
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": HIDDEN,
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
