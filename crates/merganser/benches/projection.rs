//! What calibration and projection of a decoder of half a billion parameters cost, beside the machine's matrix products.
//!
//! `cargo bench -p merganser --bench projection` runs 64 sequences of 256 tokens through a Llama-shaped base and two
//! fine-tunes with random weights, and prints
//!
//! - `calibrate`: a forward pass and the Grams of all inputs, as a share of the rate of one large product;
//! - `merge` from the files of moments, which only solves, against the passes that made them;
//! - `merge` from the samples, layer after layer, and its peak resident memory.
//!
//! Half an hour on two cores, and 8 GB of files under the target folder or in `MERGANSER_BENCH_DIR`.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod support;

use std::path::Path;
use std::time::Instant;

use merganser_linalg::{Matrix, gemm};
use support::{HIDDEN, INTERMEDIATE, KV, LAYERS, folder, generate, run};

const SEQUENCES: usize = 64;
const LENGTH: usize = 256;
const TASKS: [&str; 2] = ["ft1", "ft2"];

fn main() {
    let dir = folder();
    generate(&dir.join("base"), 0);
    for (k, task) in TASKS.iter().enumerate() {
        generate(&dir.join(task), k + 1);
        tokens(&dir.join(format!("{task}.tokens.safetensors")), k as i64);
    }
    let rate = product_rate();
    println!("one product: {:.0} GFLOP/s", rate / 1e9);

    let (mut passes, mut seconds) = (0.0, 0.0);
    for task in TASKS {
        let data = format!("{task}.tokens.safetensors");
        let moments = format!("{task}.moments.safetensors");
        let run = run(
            &dir,
            &[
                "calibrate",
                task,
                "--data",
                &data,
                "-o",
                &moments,
                "--overwrite",
            ],
        );
        passes += forward() + grams();
        seconds += run.wall;
        println!(
            "calibrate {task}: {:.1} s, {:.2} of that rate, peak {:.0} MB",
            run.wall,
            (forward() + grams()) / run.wall / rate,
            run.memory
        );
    }
    println!(
        "calibrate: {:.2} of that rate over all, {:.0} % of the operations are those of forward passes",
        passes / seconds / rate,
        100.0 * forward() / (forward() + grams())
    );
    for (from, file) in [("moments", "moments"), ("samples", "tokens")] {
        let recipe = format!("{from}.yml");
        std::fs::write(dir.join(&recipe), projection(file)).unwrap();
        let _ = std::fs::remove_dir_all(dir.join("out"));
        let run = run(&dir, &["merge", &recipe, "out"]);
        println!(
            "merge from {from}: {:.1} s, peak {:.0} MB",
            run.wall, run.memory
        );
    }
}

fn projection(file: &str) -> String {
    let models = TASKS
        .map(|task| format!("  - model: ./{task}\n    calibration: {task}.{file}.safetensors\n"));
    format!(
        "merge_method: projection\nbase_model: ./base\nmodels:\n{}",
        models.concat()
    )
}

/// Floating-point operations of the matrix products of one pass, attention included.
fn forward() -> f64 {
    let weights = 2 * HIDDEN * HIDDEN + 2 * KV * HIDDEN + 3 * HIDDEN * INTERMEDIATE;
    let attention = 2 * HIDDEN * LENGTH;
    2.0 * (LAYERS * (weights + attention) * SEQUENCES * LENGTH) as f64
}

/// Those of the lower triangles of the Grams: inputs of attention, of its output, and of both parts of the MLP.
fn grams() -> f64 {
    let squares = 3 * HIDDEN * HIDDEN + INTERMEDIATE * INTERMEDIATE;
    (LAYERS * squares * SEQUENCES * LENGTH) as f64
}

fn product_rate() -> f64 {
    let numbers = |rows, cols| {
        Matrix::<f32>::from_fn(rows, cols, |i, j| {
            ((i * 7 + j * 13) % 101) as f32 / 50.0 - 1.0
        })
    };
    let (a, b) = (numbers(2048, HIDDEN), numbers(INTERMEDIATE, HIDDEN));
    let operations = 2.0 * (2048 * HIDDEN * INTERMEDIATE) as f64;
    let rate = |_| {
        let begun = Instant::now();
        std::hint::black_box(gemm::mul_nt(&a, &b));
        operations / begun.elapsed().as_secs_f64()
    };
    (0..5).map(rate).fold(0.0, f64::max)
}

/// Token numbers without meaning.
fn tokens(path: &Path, seed: i64) {
    let header = format!(
        "{{\"input_ids\":{{\"dtype\":\"I64\",\"shape\":[{SEQUENCES},{LENGTH}],\"data_offsets\":[0,{}]}}}}",
        SEQUENCES * LENGTH * 8
    );
    let padded = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    let mut bytes = (padded.len() as u64).to_le_bytes().to_vec();
    bytes.extend(padded.as_bytes());
    for i in 0..(SEQUENCES * LENGTH) as i64 {
        let token = (i + seed) * 7919 % 50_021;
        bytes.extend(token.to_le_bytes());
    }
    std::fs::write(path, bytes).unwrap();
}
