//! Rates of the operations that projection spends its time in, beside that of a plain product.
//!
//! `cargo bench -p merganser-linalg`; for a number in GFLOP/s, criterion's elements are floating-point operations.

#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use merganser_linalg::{Eigen, Matrix, Real, Spd, Svd, Symmetric, gemm};

/// A matrix of numbers without structure.
fn numbers<T: Real>(rows: usize, cols: usize) -> Matrix<T> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    Matrix::from_fn(rows, cols, |_, _| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        T::from_f64((state >> 11) as f64 / (1_u64 << 53) as f64 - 0.5)
    })
}

/// n·d² operations that a product would take, and half as many are done.
fn grams(c: &mut Criterion) {
    let mut group = c.benchmark_group("2048 rows");
    group.sample_size(10);
    for d in [1024, 3072, 4096] {
        let x = numbers::<f32>(2048, d);
        group.throughput(Throughput::Elements((2 * 2048 * d * d) as u64));
        group.bench_function(format!("product {d}"), |b| {
            b.iter(|| black_box(gemm::mul_tn(&x, &x)));
        });
        let mut gram = Symmetric::zeros(d);
        group.bench_function(format!("gram {d}"), |b| {
            b.iter(|| gram.add_rows(x.as_slice()).expect("finite numbers"));
        });
    }
    group.finish();
}

fn solves(c: &mut Criterion) {
    let mut group = c.benchmark_group("solve");
    group.sample_size(10);
    for d in [3072, 4096] {
        solve::<f32>(&mut group, "f32", d);
        solve::<f64>(&mut group, "f64", d);
    }
    group.finish();
}

fn solve<T: Real>(
    group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>,
    name: &str,
    d: usize,
) {
    let x = numbers::<T>(d + 100, d);
    let gram = gemm::mul_tn(&x, &x);
    let cross = numbers::<T>(1024, d);
    group.throughput(Throughput::Elements((d * d * d / 3) as u64));
    group.bench_function(format!("factor {name} {d}"), |b| {
        b.iter(|| black_box(Spd::factor(gram.clone(), 1.0).expect("positive definite")));
    });
    let factor = Spd::factor(gram, 1.0).expect("positive definite");
    group.throughput(Throughput::Elements((2 * 1024 * d * d) as u64));
    group.bench_function(format!("1024 rows {name} {d}"), |b| {
        b.iter(|| black_box(factor.solve_rows(&cross)));
    });
    let x = factor.solve_rows(&cross);
    group.bench_function(format!("residual of 1024 rows {name} {d}"), |b| {
        b.iter(|| black_box(factor.residual(&cross, &x)));
    });
}

fn decompositions(c: &mut Criterion) {
    let mut group = c.benchmark_group("decompose");
    group.sample_size(10);
    let x = numbers::<f64>(1024, 1024);
    let gram = gemm::mul_tn(&x, &x);
    group.bench_function("eigen f64 1024", |b| {
        b.iter(|| black_box(Eigen::of(&gram).expect("convergence")));
    });
    let wide = numbers::<f64>(768, 3072);
    group.bench_function("svd f64 768x3072", |b| {
        b.iter(|| black_box(Svd::of(&wide).expect("convergence")));
    });
    group.finish();
}

criterion_group!(benches, grams, solves, decompositions);
criterion_main!(benches);
