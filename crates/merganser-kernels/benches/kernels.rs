//! Throughput of the hot kernels at every instruction-set level of the machine.
//!
//! `cargo bench -p merganser-kernels` runs all of it; `-- v4` one level; `-- disjoint` one kernel.

#![allow(missing_docs)] // criterion's macros

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use merganser_kernels::convert::{Float, decode, encode};
use merganser_kernels::elect::{MergeOptions, disjoint_merge};
use merganser_kernels::elementwise::{delta_combination, linear_combination};
use merganser_kernels::keys::magnitude_keys;
use merganser_kernels::mask::Stream;
use merganser_kernels::order::Sampler;
use merganser_kernels::{reduce, simd};
use std::hint::black_box;
use std::time::Duration;

/// Elements of a block: eight of them and a result stay in L2.
const LEN: usize = 1 << 15;

/// Bell-shaped values around zero.
fn values(len: usize, model: u32) -> Vec<f32> {
    let mut uniform = vec![0.0; 4 * len];
    Stream::new(0, "bench", model).uniform(0, &mut uniform);
    uniform
        .as_chunks::<4>()
        .0
        .iter()
        .map(|four| four.iter().sum::<f32>() - 2.0)
        .collect()
}

/// Benchmarks `work` on `elements` elements moving `bytes` bytes, at every level.
fn bench(c: &mut Criterion, name: &str, elements: usize, bytes: usize, mut work: impl FnMut()) {
    let mut group: BenchmarkGroup<WallTime> = c.benchmark_group(name);
    group.throughput(Throughput::ElementsAndBytes {
        elements: elements as u64,
        bytes: bytes as u64,
    });
    group
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400))
        .sample_size(20);
    for level in simd::available() {
        group.bench_function(level.name(), |b| {
            simd::with_level(level, || b.iter(&mut work));
        });
    }
    group.finish();
}

fn conversions(c: &mut Criterion) {
    let mut numbers = values(LEN, 0);
    for kind in [Float::BF16, Float::F16, Float::F8E4M3] {
        let mut bytes = vec![0; LEN * kind.size()];
        let moved = bytes.len() + 4 * LEN;
        bench(c, &format!("encode {kind:?}"), LEN, moved, || {
            encode(kind, black_box(&numbers), &mut bytes);
        });
        bench(c, &format!("decode {kind:?}"), LEN, moved, || {
            decode(kind, black_box(&bytes), &mut numbers);
        });
    }
}

fn combinations(c: &mut Criterion) {
    let (base, mut out) = (values(LEN, 99), vec![0.0; LEN]);
    for tasks in [2, 4, 8] {
        let deltas: Vec<Vec<f32>> = (0..tasks).map(|i| values(LEN, i as u32)).collect();
        let deltas: Vec<&[f32]> = deltas.iter().map(Vec::as_slice).collect();
        let (weights, factors) = (vec![0.5; tasks], vec![1.0; tasks]);
        let cuts = vec![0.5f32.to_bits(); tasks];
        let moved = 4 * LEN * (tasks + 1);
        bench(
            c,
            &format!("linear_combination of {tasks}"),
            LEN,
            moved,
            || {
                linear_combination(&mut out, black_box(&weights), &deltas);
            },
        );
        bench(
            c,
            &format!("delta_combination of {tasks}"),
            LEN,
            moved + 4 * LEN,
            || {
                delta_combination(&mut out, &base, black_box(&weights), &deltas, 0.7);
            },
        );
        for (name, cuts) in [("", None), (" with cuts", Some(&cuts[..]))] {
            bench(
                c,
                &format!("disjoint_merge of {tasks}{name}"),
                LEN,
                moved + 4 * LEN,
                || {
                    disjoint_merge(
                        &mut out,
                        &base,
                        black_box(&deltas),
                        cuts,
                        &factors,
                        &weights,
                        &MergeOptions::default(),
                    );
                },
            );
        }
    }
}

fn reductions(c: &mut Criterion) {
    let (a, b) = (values(LEN, 0), values(LEN, 1));
    bench(c, "sum_abs", LEN, 4 * LEN, || {
        black_box(reduce::sum_abs(black_box(&a)));
    });
    bench(c, "dot", LEN, 8 * LEN, || {
        black_box(reduce::dot(black_box(&a), &b));
    });
    bench(c, "sum_abs_ge", LEN, 4 * LEN, || {
        black_box(reduce::sum_abs_ge(black_box(&a), 0.5f32.to_bits()));
    });
}

fn selection(c: &mut Criterion) {
    const CHUNK: usize = 1 << 18;
    let values = values(1 << 22, 0);
    let mut keys = vec![0; values.len()];
    bench(c, "magnitude_keys", CHUNK, 8 * CHUNK, || {
        magnitude_keys(&mut keys[..CHUNK], black_box(&values[..CHUNK]));
    });
    magnitude_keys(&mut keys, &values);
    let len = keys.len() as u64;
    for (name, ranks) in [
        ("one rank", &[len / 5 * 4][..]),
        ("two ranks", &[len / 10, len / 5 * 4]),
    ] {
        let mut sampler = Sampler::new(len);
        for run in sampler.runs().collect::<Vec<_>>() {
            sampler.add(&keys[run.start as usize..run.end as usize]);
        }
        let windows = sampler.windows(ranks);
        bench(
            c,
            &format!("order counting, {name}"),
            CHUNK,
            4 * CHUNK,
            || {
                black_box(windows.count(black_box(&keys[..CHUNK])));
            },
        );
    }
}

fn masks(c: &mut Criterion) {
    let stream = Stream::new(1, "model.layers.0.mlp.down_proj.weight", 0);
    let mut out = vec![0.0; LEN];
    bench(c, "uniform", LEN, 4 * LEN, || {
        stream.uniform(black_box(1 << 20), &mut out);
    });
    bench(c, "keep_mask", LEN, 4 * LEN, || {
        stream.keep_mask(black_box(1 << 20), 0.3, &mut out);
    });
}

criterion_group!(
    kernels,
    conversions,
    combinations,
    reductions,
    selection,
    masks
);
criterion_main!(kernels);
