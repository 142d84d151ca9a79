//! What must hold of every program: padding is nobody's business, every tensor is a tap, registers are freed, chunks of
//! logits are the logits, gradients are derivatives.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor, Var};
use common::{Case, FAMILIES, largest_difference, run_all};
use merganser_model::{
    Batch, Kind, Modality, Network, Observer, Op, Result, Stage, StageWeights, State, TapKind,
    Tokens, walk,
};

fn hidden(case: &Case, batch: &Batch) -> Tensor {
    let mut state = State::new(&case.network, batch, &Device::Cpu).unwrap();
    for (_, op) in case.network.ops() {
        case.network.run(op, &mut state, &case.weights).unwrap();
    }
    state.rows(case.network.outputs().hidden).unwrap()
}

/// The real ids of each sample.
fn samples(tokens: &Tokens) -> Vec<Vec<u32>> {
    let len = tokens.sequence_len();
    let rows = tokens.ids().chunks(len).zip(tokens.real().chunks(len));
    rows.map(|(ids, real)| {
        ids.iter()
            .zip(real)
            .filter(|(_, real)| **real)
            .map(|(id, _)| *id)
            .collect()
    })
    .collect()
}

fn text_families() -> impl Iterator<Item = Case> {
    FAMILIES
        .iter()
        .map(|name| Case::load(name))
        .filter(|case| case.network.modality() == Modality::Text)
}

#[test]
fn padding_changes_nothing() {
    for case in text_families() {
        let together = hidden(&case, &case.batch);
        let texts = samples(case.batch.tokens.as_ref().unwrap());
        let answers = case.batch.decoder.as_ref().map(samples);
        let alone: Vec<Tensor> = texts
            .iter()
            .enumerate()
            .map(|(i, text)| {
                let types = case
                    .types
                    .as_ref()
                    .map(|types| types[i][..text.len()].to_vec());
                let mut tokens = Tokens::new(std::slice::from_ref(text), 0).unwrap();
                if let Some(types) = types {
                    tokens = tokens.with_types(types).unwrap();
                }
                let decoder = answers
                    .as_ref()
                    .map(|answers| Tokens::new(&answers[i..=i], 0).unwrap());
                hidden(
                    &case,
                    &Batch {
                        tokens: Some(tokens),
                        decoder,
                        pixels: None,
                    },
                )
            })
            .collect();
        let alone = Tensor::cat(&alone, 0).unwrap();
        let difference = largest_difference(&together, &alone);
        assert!(difference < 1e-5, "{}: {difference}", case.name);
    }
}

#[test]
fn padding_in_front_changes_nothing() {
    for case in text_families().filter(|case| case.types.is_none() && case.batch.decoder.is_none())
    {
        let texts = samples(case.batch.tokens.as_ref().unwrap());
        let len = texts.iter().map(Vec::len).max().unwrap() + 2;
        let (mut ids, mut real) = (Vec::new(), Vec::new());
        for text in &texts {
            ids.extend(std::iter::repeat_n(0, len - text.len()).chain(text.iter().copied()));
            real.extend((0..len).map(|i| i >= len - text.len()));
        }
        let front = Batch::text(Tokens::padded(texts.len(), len, ids, real).unwrap());
        let difference = largest_difference(&hidden(&case, &front), &hidden(&case, &case.batch));
        assert!(difference < 1e-5, "{}: {difference}", case.name);
    }
}

#[test]
fn every_tensor_is_a_tap() {
    for name in FAMILIES {
        let case = Case::load(name);
        let other_tower = |name: &str| case.name == "clip" && name.starts_with("text_");
        let named: BTreeSet<&str> = case
            .weights
            .keys()
            .map(String::as_str)
            .filter(|name| *name != "logit_scale" && !other_tower(name))
            .collect();
        let taps: BTreeSet<&str> = case
            .network
            .ops()
            .filter_map(|(_, op)| op.parameters())
            .flat_map(|tap| [Some(tap.weight), tap.bias].into_iter().flatten())
            .collect();
        assert_eq!(named, taps, "{name}");
    }
}

#[test]
fn only_outputs_are_left_in_the_registers() {
    for name in FAMILIES {
        let case = Case::load(name);
        let state = run_all(&case, false);
        let outputs = case.network.outputs();
        let kept: BTreeSet<usize> = [
            Some(outputs.hidden),
            outputs.pooled,
            outputs.embeds,
            outputs.logits,
        ]
        .into_iter()
        .flatten()
        .map(merganser_model::Reg::index)
        .collect();
        let mut left = BTreeSet::new();
        for (_, op) in case.network.ops() {
            left.extend(
                op.outputs
                    .iter()
                    .chain(&op.inputs)
                    .filter(|reg| state.get(**reg).is_ok())
                    .map(|reg| reg.index()),
            );
        }
        assert_eq!(left, kept, "{name}");
    }
}

#[test]
fn outputs_of_attention_and_mlp_know_their_stream() {
    let targets = |name: &str| {
        let case = Case::load(name);
        let taps: Vec<String> = case
            .network
            .ops()
            .filter(|(stage, op)| op.residual.is_some() && stage.layer == Some(0))
            .filter_map(|(_, op)| Some(op.parameters()?.weight.to_owned()))
            .collect();
        taps
    };
    assert_eq!(
        targets("llama"),
        [
            "model.layers.0.self_attn.o_proj.weight",
            "model.layers.0.mlp.down_proj.weight"
        ]
    );
    assert_eq!(
        targets("gemma2"),
        [
            "model.layers.0.post_attention_layernorm.weight",
            "model.layers.0.post_feedforward_layernorm.weight"
        ]
    );
    assert_eq!(
        targets("bert"),
        [
            "bert.encoder.layer.0.attention.output.dense.weight",
            "bert.encoder.layer.0.output.dense.weight"
        ]
    );
}

#[test]
fn query_key_and_value_share_their_input() {
    let case = Case::load("llama");
    let input = |part: &str| {
        let name = format!("model.layers.1.{part}.weight");
        case.network
            .ops()
            .find_map(|(_, op)| op.parameters().filter(|tap| tap.weight == name))
            .unwrap()
            .input
    };
    assert_eq!(input("self_attn.q_proj"), input("self_attn.k_proj"));
    assert_eq!(input("self_attn.q_proj"), input("self_attn.v_proj"));
    assert_eq!(input("mlp.gate_proj"), input("mlp.up_proj"));
    assert_ne!(input("mlp.gate_proj"), input("mlp.down_proj"));
}

#[test]
fn tied_heads_are_marked() {
    let tied = |name: &str| {
        let case = Case::load(name);
        let stage = case.network.vocabulary_head().unwrap();
        stage
            .ops
            .iter()
            .any(|op| matches!(&op.kind, Kind::Linear(linear) if linear.tied))
    };
    assert!(tied("qwen2") && tied("gpt2") && tied("bert_mlm") && tied("t5"));
    assert!(!tied("llama") && !tied("t5_gated"));
}

/// Looks at what the observer of a walk is promised.
#[derive(Default)]
struct Watch {
    before: BTreeMap<String, usize>,
    after: BTreeMap<String, usize>,
}

impl Observer for Watch {
    fn before(&mut self, _: &Stage, op: &Op, _: usize, state: &State) -> Result<()> {
        let tap = op.parameters().unwrap();
        let rows = state.rows(tap.input)?;
        match tap.kind {
            TapKind::Linear(linear) => assert_eq!(rows.dims()[1], linear.inputs),
            TapKind::Norm(norm) => assert_eq!(rows.dims()[1], norm.width),
            TapKind::Embedding(_) => assert_eq!((rows.rank(), rows.dtype()), (1, DType::U32)),
            TapKind::Additive(additive) => assert_eq!(rows.dims()[1], additive.width),
        }
        assert_eq!(rows.dims()[0] % state.row_count(tap.input)?, 0);
        assert!(state.get(tap.output).is_err());
        *self.before.entry(tap.weight.to_owned()).or_default() += 1;
        Ok(())
    }

    fn after(&mut self, _: &Stage, op: &Op, _: usize, state: &State) -> Result<()> {
        let tap = op.parameters().unwrap();
        assert_eq!(
            state.rows(tap.input)?.dims()[0],
            state.rows(tap.output)?.dims()[0]
        );
        *self.after.entry(tap.weight.to_owned()).or_default() += 1;
        Ok(())
    }
}

#[test]
fn a_walk_shows_every_tap_of_every_batch() {
    for name in FAMILIES {
        let case = Case::load(name);
        let mut watch = Watch::default();
        let mut states = [case.state(), case.state(), case.state()];
        walk(&case.network, &case.weights, &mut states, &mut watch).unwrap();
        for (_, op) in case.network.ops() {
            let Some(tap) = op.parameters() else { continue };
            let times = case
                .network
                .ops()
                .filter(|(_, other)| other.parameters().is_some_and(|t| t.weight == tap.weight));
            assert_eq!(
                watch.before[tap.weight],
                3 * times.count(),
                "{name}: {}",
                tap.weight
            );
        }
        // All but the matrix of a vocabulary head.
        let seen = |map: &BTreeMap<String, usize>| map.values().sum::<usize>();
        let unseen = if case.network.vocabulary_head().is_some() {
            3
        } else {
            0
        };
        assert_eq!(seen(&watch.before) - seen(&watch.after), unseen, "{name}");
    }
}

#[test]
fn log_likelihoods_are_those_of_the_logits() {
    for name in ["llama", "gemma2", "t5", "bert_mlm"] {
        let case = Case::load(name);
        let mut states = [case.state()];
        walk(&case.network, &case.weights, &mut states, &mut ()).unwrap();
        let rows = states[0].rows(case.network.outputs().hidden).unwrap();
        let targets: Vec<u32> = (0..rows.dims()[0] as u32).map(|i| i * 7 % 60).collect();
        let head =
            StageWeights::load(case.network.vocabulary_head().unwrap(), &case.weights).unwrap();
        let found = case
            .network
            .log_likelihoods(&rows, &targets, &head)
            .unwrap();
        let logits = case.expected["logits"].clone();
        let (logits, _) = case.real_rows(&logits, &logits);
        for ((row, target), found) in logits
            .to_vec2::<f32>()
            .unwrap()
            .iter()
            .zip(targets)
            .zip(found)
        {
            let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            let expected = f64::from(row[target as usize]) - sum.ln();
            assert!(
                (expected - f64::from(found)).abs() < 1e-4,
                "{name}: {expected} {found}"
            );
        }
        assert_eq!(case.network.vocabulary().unwrap(), 60);
        assert!(case.network.log_likelihoods(&rows, &[1], &head).is_err());
        assert!(
            case.network
                .log_likelihoods(&rows, &vec![60; rows.dims()[0]], &head)
                .is_err()
        );
    }
    assert!(Case::load("vit").network.vocabulary().is_err());
}

/// `Σ output ∘ direction` over the real rows of the whole network's output, as a function of its weights.
fn objective(case: &Case, weights: &BTreeMap<String, Tensor>) -> Tensor {
    let mut state = case.state().differentiable(true);
    for (_, op) in case.network.ops() {
        case.network.run(op, &mut state, weights).unwrap();
    }
    let out = state.rows(case.network.outputs().hidden).unwrap();
    (&out * pattern(out.dims())).unwrap().sum_all().unwrap()
}

/// Numbers without a pattern, from −1 to 1, in f64.
fn pattern(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f64> = (0..count)
        .map(|i| ((i as f64 + 1.3).sin() * 43758.5453).fract())
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

#[test]
fn gradients_are_derivatives() {
    const STEP: f64 = 1e-5;
    for name in [
        "bert",
        "vit",
        "clip_vision",
        "clip_text",
        "qwen3",
        "phi3",
        "gpt2",
        "t5",
        "t5_gated",
        "gemma2",
    ] {
        let case = Case::load(name);
        let weights: BTreeMap<String, Var> = case
            .weights
            .iter()
            .map(|(name, tensor)| {
                (
                    name.clone(),
                    Var::from_tensor(&tensor.to_dtype(DType::F64).unwrap()).unwrap(),
                )
            })
            .collect();
        let plain: BTreeMap<String, Tensor> = weights
            .iter()
            .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
            .collect();
        let gradients = objective(&case, &plain).backward().unwrap();
        let (mut checked, mut wrong) = (0, Vec::new());
        for (_, op) in case
            .network
            .ops()
            .filter(|(stage, _)| stage.layer.is_none_or(|layer| layer == 0))
        {
            let Some(tap) = op.parameters() else { continue };
            for parameter in [Some(tap.weight), tap.bias].into_iter().flatten() {
                let Some(gradient) = gradients.get(weights[parameter].as_tensor()) else {
                    // Heads are not part of the objective.
                    assert!(
                        op.output() != case.network.outputs().hidden,
                        "{name}: {parameter}"
                    );
                    continue;
                };
                let direction = pattern(gradient.dims());
                let expected: f64 = (gradient * &direction)
                    .unwrap()
                    .sum_all()
                    .unwrap()
                    .to_scalar()
                    .unwrap();
                let moved = |step: f64| -> f64 {
                    let mut moved = plain.clone();
                    let there = (&plain[parameter] + (&direction * step).unwrap()).unwrap();
                    moved.insert(parameter.to_owned(), there);
                    objective(&case, &moved).to_scalar().unwrap()
                };
                let found = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                // candle's derivatives of gelu have constants of six digits.
                let close = (found - expected).abs() <= 2e-4 * (found.abs() + expected.abs() + 1.0);
                if !close {
                    wrong.push(format!(
                        "{parameter}: {expected} by backward, {found} by differences"
                    ));
                }
                checked += 1;
            }
        }
        assert!(wrong.is_empty(), "{name}: {wrong:#?}");
        assert!(checked >= 8, "{name}: {checked}");
    }
}

#[test]
fn evaluate_writes_nothing() {
    let case = Case::load("bert");
    let mut state = case.state();
    let (_, first) = case.network.ops().next().unwrap();
    let value = case.network.evaluate(first, &state, &case.weights).unwrap();
    assert!(state.get(first.output()).is_err());
    case.network.run(first, &mut state, &case.weights).unwrap();
    assert_eq!(
        largest_difference(&value[0], state.get(first.output()).unwrap()),
        0.0
    );
}

#[test]
fn the_mean_leaves_padding_out() {
    let case = Case::load("minilm");
    let state = run_all(&case, false);
    let hidden = case.network.outputs().hidden;
    let means = state.mean(hidden).unwrap();
    let rows = state.rows(hidden).unwrap();
    let mut start = 0;
    for (sample, text) in samples(case.batch.tokens.as_ref().unwrap())
        .iter()
        .enumerate()
    {
        let mean = rows.narrow(0, start, text.len()).unwrap().mean(0).unwrap();
        assert!(largest_difference(&mean, &means.get(sample).unwrap()) < 1e-6);
        start += text.len();
    }
    assert_eq!(state.row_count(hidden).unwrap(), start);
}

#[test]
fn the_network_of_a_modality() {
    let clip = Case::load_modality("clip", Some(Modality::Text));
    assert_eq!(clip.network.modality(), Modality::Text);
    assert_eq!(Case::load("clip").network.modality(), Modality::Image);
    let vit = Case::load("vit");
    let shapes = vit
        .weights
        .iter()
        .map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()))
        .collect();
    let error = Network::of_modality(&vit.config, &shapes, Modality::Text).unwrap_err();
    assert_eq!(
        error.to_string(),
        "config.json: `model_type` is \"vit\"; expected a network that reads text; this one reads images"
    );
}
