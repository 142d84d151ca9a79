//! A decoder of the shape of Qwen2-0.5B with random weights against the rate of the machine's matrix products.
//!
//! `cargo bench -p merganser-model` prints, for the whole pass and for every kind of op, the time a layer takes and what
//! part of it the matrix products would take alone at the rate measured for one of them.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use merganser_model::{Batch, Kind, Network, State, Tokens};
use serde_json::json;

const LAYERS: usize = 4;
const BATCH: usize = 4;
const WIDTH: usize = 896;
const INNER: usize = 4864;
const HEADS: usize = 14;
const KV_HEADS: usize = 2;
const VOCABULARY: usize = 1000;

fn tensors() -> BTreeMap<String, Vec<usize>> {
    let head = WIDTH / HEADS;
    let mut shapes = BTreeMap::from([
        (
            "model.embed_tokens.weight".to_owned(),
            vec![VOCABULARY, WIDTH],
        ),
        ("model.norm.weight".to_owned(), vec![WIDTH]),
    ]);
    for layer in 0..LAYERS {
        let mut put = |name: &str, shape: &[usize]| {
            shapes.insert(format!("model.layers.{layer}.{name}"), shape.to_vec());
        };
        put("input_layernorm.weight", &[WIDTH]);
        put("post_attention_layernorm.weight", &[WIDTH]);
        for (name, outputs) in [
            ("q", HEADS * head),
            ("k", KV_HEADS * head),
            ("v", KV_HEADS * head),
        ] {
            put(&format!("self_attn.{name}_proj.weight"), &[outputs, WIDTH]);
            put(&format!("self_attn.{name}_proj.bias"), &[outputs]);
        }
        put("self_attn.o_proj.weight", &[WIDTH, HEADS * head]);
        put("mlp.gate_proj.weight", &[INNER, WIDTH]);
        put("mlp.up_proj.weight", &[INNER, WIDTH]);
        put("mlp.down_proj.weight", &[WIDTH, INNER]);
    }
    shapes
}

/// The best of some runs.
fn best(runs: usize, mut work: impl FnMut()) -> Duration {
    let run = |_| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    (0..runs).map(run).min().unwrap()
}

fn kind(kind: &Kind) -> &'static str {
    match kind {
        Kind::Linear(_) => "linear",
        Kind::Norm(_) => "norm",
        Kind::Attention(_) => "attention",
        Kind::Rotary(_) => "rotary",
        Kind::Activation(_) => "activation",
        Kind::Mul => "mul",
        Kind::Add => "add",
        _ => "other",
    }
}

fn main() {
    let config = json!({
        "model_type": "qwen2", "hidden_size": WIDTH, "intermediate_size": INNER, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY, "rope_theta": 1e6,
    });
    let shapes = tensors();
    let network = Network::new(&config, &shapes).unwrap();
    let device = Device::Cpu;
    let weights: BTreeMap<String, Tensor> = shapes
        .iter()
        .map(|(name, shape)| {
            let spread = (*shape.last().unwrap() as f32).sqrt().recip();
            (
                name.clone(),
                Tensor::randn(0.0, spread, &shape[..], &device).unwrap(),
            )
        })
        .collect();

    for length in [128, 512] {
        let rows = BATCH * length;
        let x = Tensor::randn(0f32, 1.0, (rows, WIDTH), &device).unwrap();
        let w = Tensor::randn(0f32, 1.0, (INNER, WIDTH), &device).unwrap();
        let product = best(5, || drop(x.matmul(&w.t().unwrap()).unwrap()));
        let rate = (2 * rows * WIDTH * INNER) as f64 / product.as_secs_f64();

        let ids = (0..BATCH).map(|b| {
            (0..length)
                .map(|i| ((i * 31 + b * 17) % VOCABULARY) as u32)
                .collect()
        });
        let batch = Batch::text(Tokens::new(&ids.collect::<Vec<_>>(), 0).unwrap());
        for differentiable in [false, true] {
            let mut times: BTreeMap<&str, Duration> = BTreeMap::new();
            let total = best(3, || {
                let mut state = State::new(&network, &batch, &device)
                    .unwrap()
                    .differentiable(differentiable);
                times.clear();
                for (_, op) in network.ops() {
                    let start = Instant::now();
                    network.run(op, &mut state, &weights).unwrap();
                    *times.entry(kind(&op.kind)).or_default() += start.elapsed();
                }
            });
            let head = WIDTH / HEADS;
            let linear = 2 * rows * WIDTH * (2 * HEADS * head + 2 * KV_HEADS * head + 3 * INNER);
            let attention = 4 * rows * length * HEADS * head;
            let floor = (LAYERS * (linear + attention)) as f64 / rate;
            println!(
                "{BATCH} x {length} tokens, differentiable: {differentiable}: {:.1} ms a layer; products alone {:.1} ms at {:.0} GF/s: {:.2}",
                total.as_secs_f64() * 1e3 / LAYERS as f64,
                floor * 1e3 / LAYERS as f64,
                rate / 1e9,
                floor / total.as_secs_f64()
            );
            for (kind, time) in times {
                println!(
                    "    {kind:12}{:8.2} ms",
                    time.as_secs_f64() * 1e3 / LAYERS as f64
                );
            }
        }
    }
}
