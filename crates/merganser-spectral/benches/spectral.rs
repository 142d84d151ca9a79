//! Merges of eight tasks beside the singular value decompositions that their published forms are made of.
//!
//! `cargo bench -p merganser-spectral`. Iso-C is published with 1 decomposition of the shape, TSV-M with T + 2, Iso-CTS with
//! T + 3. `RAYON_NUM_THREADS=1` compares on one thread; faer's decomposition always runs on one.

#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use merganser_linalg::{Matrix, Real, Svd};
use merganser_spectral::{Inner, Lora, Sketch, cart, core_space, iso_c, iso_cts, tsv_m};

const TASKS: usize = 8;

/// A matrix of numbers without structure.
fn numbers<T: Real>(seed: usize, rows: usize, cols: usize) -> Matrix<T> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed as u64 + 1);
    Matrix::from_fn(rows, cols, |_, _| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        T::from_f64((state >> 11) as f64 / (1_u64 << 53) as f64 - 0.5)
    })
}

fn merges(c: &mut Criterion) {
    for (m, n) in [(768, 3072), (3072, 768), (1024, 1024)] {
        let mut group = c.benchmark_group(format!("{m}×{n}"));
        group.sample_size(10);
        let updates: Vec<Matrix<f32>> = (0..TASKS).map(|t| numbers(t, m, n)).collect();
        let updates: Vec<&Matrix<f32>> = updates.iter().collect();
        let double: Matrix = updates[0].cast();
        group.bench_function("decomposition f32", |b| {
            b.iter(|| black_box(Svd::of(updates[0]).expect("convergence")));
        });
        group.bench_function("decomposition f64", |b| {
            b.iter(|| black_box(Svd::of(&double).expect("convergence")));
        });
        group.bench_function("iso_c", |b| {
            b.iter(|| black_box(iso_c(&updates).expect("convergence")));
        });
        group.bench_function("tsv_m", |b| {
            b.iter(|| black_box(tsv_m(&updates, None).expect("convergence")));
        });
        group.bench_function("tsv_m randomised", |b| {
            let sketch = Some(Sketch::default());
            b.iter(|| black_box(tsv_m(&updates, sketch).expect("convergence")));
        });
        group.bench_function("iso_cts", |b| {
            b.iter(|| black_box(iso_cts(&updates, 0.8).expect("convergence")));
        });
        group.bench_function("cart", |b| {
            b.iter(|| black_box(cart(&updates, 0.04, 0.1).expect("convergence")));
        });
        group.finish();
    }
}

fn adapters(c: &mut Criterion) {
    let mut group = c.benchmark_group("8 adapters of rank 16 at 4096×4096");
    group.sample_size(10);
    let adapters: Vec<Lora> = (0..TASKS)
        .map(|t| {
            let (a, b) = (numbers(t, 16, 4096), numbers(t + TASKS, 4096, 16));
            Lora::new(a, b, 1.0).expect("factors that fit")
        })
        .collect();
    let inner = [
        ("sum", Inner::TaskArithmetic),
        ("ties", Inner::Ties { density: 0.2 }),
        ("tsv", Inner::Tsv),
        ("iso_c", Inner::IsoC),
    ];
    for (name, inner) in inner {
        group.bench_function(format!("core space {name}"), |b| {
            b.iter(|| {
                black_box(core_space(&adapters, &inner.into(), &|_, _| true).expect("convergence"))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, merges, adapters);
criterion_main!(benches);
