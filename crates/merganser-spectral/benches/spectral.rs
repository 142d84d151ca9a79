//! Merges of eight tasks beside the singular value decompositions that their published forms are made of.
//!
//! `cargo bench -p merganser-spectral`. Iso-C is published with 1 decomposition of the shape, TSV-M with T + 2, Iso-CTS with
//! T + 3. `RAYON_NUM_THREADS=1` compares on one thread; faer's decomposition always runs on one.

#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use merganser_linalg::{Matrix, Real, Svd};
use merganser_spectral::{
    Inner, Lora, LowRank, Precision, Sketch, adapter_of, cart, core_space, iso_c, iso_cts, tsv_m,
};

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
            let sketch = Some(Sketch {
                passes: 1,
                ..Sketch::default()
            });
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

/// Fine-tunes that were adapters of rank 16, as bf16 holds them: as whole matrices, and in their span, found first.
fn stored_adapters(c: &mut Criterion) {
    let mut group = c.benchmark_group("3 fine-tunes of rank 16 at 2048×2048");
    group.sample_size(10);
    let (side, rank) = (2048, 16);
    let bf16 = |x: f32| f32::from_bits(x.to_bits().wrapping_add(0x8000) & 0xffff_0000);
    let base = numbers::<f32>(0, side, side);
    let base = Matrix::from_fn(side, side, |i, j| bf16(0.1 * base.get(i, j)));
    let updates: Vec<Matrix<f32>> = (1..=3)
        .map(|t| {
            let (a, b) = (numbers(t, rank, side), numbers(t + 3, side, rank));
            let lora = Lora::new(a, b, 0.02).expect("factors that fit").update();
            Matrix::from_fn(side, side, |i, j| {
                let w = base.get(i, j);
                bf16(w + lora.get(i, j) as f32) - w
            })
        })
        .collect();
    group.bench_function("iso_c, whole", |b| {
        let updates: Vec<&Matrix<f32>> = updates.iter().collect();
        b.iter(|| black_box(iso_c(&updates).expect("convergence")));
    });
    group.bench_function("iso_c, found and in their span", |b| {
        b.iter(|| {
            let found = updates.iter().map(|update| {
                let found = adapter_of(update, &base, Precision::BF16).expect("convergence");
                found.expect("an adapter")
            });
            let span = LowRank::of(found.collect()).expect("convergence");
            black_box(span.expect("a small span").iso_c().expect("convergence"))
        });
    });
    group.finish();
}

criterion_group!(benches, merges, adapters, stored_adapters);
criterion_main!(benches);
