//! The widest layer of a usual 7B model: 4096 outputs, 14336 inputs, solved in f32 in at most three times the bytes of its
//! Gram matrix. Takes minutes and 2 GB: `cargo test --release -p merganser-linalg --test wide -- --ignored --nocapture`.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fs;
use std::time::Instant;

use merganser_linalg::{Matrix, Spd};

/// Largest resident size since the last reset, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

#[test]
#[ignore = "takes minutes and 2 GB"]
fn a_wide_layer_is_solved_in_three_times_its_gram() {
    let (m, d) = (4096, 14336);
    // The covariance of a process that forgets over 50 inputs, which is positive definite, with a spread of scales.
    let decay: Vec<f64> = (0..d).map(|i| (-(i as f64) / 50.0).exp()).collect();
    let scale = |i: usize| 1.0 + (i % 97) as f64 / 10.0;
    let gram = Matrix::<f32>::from_fn(d, d, |i, j| {
        (decay[i.abs_diff(j)] * scale(i) * scale(j)) as f32
    });
    let cross = Matrix::<f32>::from_fn(m, d, |i, j| ((i * 31 + j * 17) % 101) as f32 - 50.0);
    let bytes = (d * d * 4) as u64;
    fs::write("/proc/self/clear_refs", "5").unwrap();

    let start = Instant::now();
    let factor = Spd::factor(gram, 1e-3).unwrap();
    eprintln!("factor {:.1} s", start.elapsed().as_secs_f64());
    let start = Instant::now();
    let mut x = factor.solve_rows(&cross);
    eprintln!("solve {:.1} s", start.elapsed().as_secs_f64());
    let start = Instant::now();
    let refinement = factor.refine(&cross, &mut x, 2);
    eprintln!(
        "refine {:.1} s: {refinement:?}",
        start.elapsed().as_secs_f64()
    );
    let peak = peak();
    eprintln!(
        "peak {:.2} GiB, {:.2} times the Gram",
        peak as f64 / (1_u64 << 30) as f64,
        peak as f64 / bytes as f64
    );
    assert!(refinement.last < 1e-6 && refinement.last < refinement.first);
    assert!(peak <= 3 * bytes, "{peak} > 3 * {bytes}");
}
