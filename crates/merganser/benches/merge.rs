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

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use support::{Run, folder, generate, run};

const RUNS: usize = 3;

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let dir = folder();
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
            let run = merge(&dir, method, &["--no-sync"]);
            best.wall = best.wall.min(run.wall);
            best.cpu = best.cpu.min(run.cpu);
            best.memory = best.memory.max(run.memory);
            durable = durable.min(merge(&dir, method, &[]).wall);
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

fn merge(dir: &Path, method: &str, more: &[&str]) -> Run {
    let _ = std::fs::remove_dir_all(dir.join("out"));
    let recipe = format!("{method}.yml");
    let mut arguments = vec!["merge", "--memory", "512MiB", &recipe, "out"];
    arguments.extend(more);
    run(dir, &arguments)
}
