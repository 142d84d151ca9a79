//! Nanoseconds per output element of the merge methods on one thread: a bfloat16 base and three fine-tunes in memory, one
//! projection matrix of a half-billion-parameter model, output in bfloat16 thrown away.
//!
//! `MERGANSER_SIMD` chooses the instruction set. Statistics passes are part of the time.

use std::collections::BTreeMap;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use merganser_methods::{
    BasePolicy, Encoding, Float, Input, Memory, Scope, Settings, Survey, TensorGroup, Value, find,
};
use merganser_testkit::Random;

const SHAPE: [usize; 2] = [4864, 896];

/// The base, a dense change, a change of a third of the elements, and a change by rank one.
fn models() -> Vec<Vec<u8>> {
    let mut random = Random::new(1);
    let len = SHAPE[0] * SHAPE[1];
    let base = random.normals(len, 0.02);
    let dense: Vec<f32> = random.near(&base, 0.002);
    let sparse = base.iter().map(|x| {
        if random.below(3) == 0 {
            x + 0.003 * random.normal() as f32
        } else {
            *x
        }
    });
    let sparse: Vec<f32> = sparse.collect();
    let (rows, columns) = (
        random.normals(SHAPE[0], 0.03),
        random.normals(SHAPE[1], 0.03),
    );
    let low: Vec<f32> = (0..len)
        .map(|i| base[i] + rows[i / SHAPE[1]] * columns[i % SHAPE[1]])
        .collect();
    let encode = |x: &Vec<f32>| {
        let mut bytes = vec![0; 2 * len];
        merganser_kernels::convert::encode(Float::BF16, x, &mut bytes);
        bytes
    };
    [base, dense, sparse, low].iter().map(encode).collect()
}

/// A label, a method, its number of models, and parameters that are not at their defaults.
type Case = (
    &'static str,
    &'static str,
    usize,
    Vec<(&'static str, Value)>,
);

/// A method's defaults, with what the recipe of this benchmark adds.
fn settings(method: &str, models: usize, base: Option<usize>, extra: &[(&str, Value)]) -> Settings {
    let info = find(method)
        .unwrap_or_else(|| panic!("no method {method}"))
        .info();
    let mut settings = Settings {
        shared: BTreeMap::new(),
        inputs: vec![BTreeMap::new(); models],
    };
    for parameter in info.parameters {
        let given = extra
            .iter()
            .find(|(name, _)| *name == parameter.name)
            .map(|(_, value)| value.clone());
        let given = given.or((parameter.name == "weight").then_some(Value::Float(0.5)));
        let Some(value) = given.or(parameter.default.map(Value::from)) else {
            continue;
        };
        if parameter.scope == Scope::Shared {
            settings.shared.insert(parameter.name, value);
            continue;
        }
        for (i, input) in settings.inputs.iter_mut().enumerate() {
            if info.base == BasePolicy::Ignored || Some(i) != base {
                input.insert(parameter.name, value.clone());
            }
        }
    }
    settings
}

fn bench(c: &mut Criterion) {
    let bytes = models();
    let memory: Vec<Memory<'_>> = bytes
        .iter()
        .map(|bytes| Memory::new(Float::BF16, bytes))
        .collect();
    let half = ("density", Value::Float(0.5));
    let cases: Vec<Case> = vec![
        ("linear", "linear", 3, vec![]),
        ("slerp", "slerp", 2, vec![("t", Value::Float(0.3))]),
        ("model_stock", "model_stock", 4, vec![]),
        ("karcher", "karcher", 3, vec![]),
        ("task_arithmetic", "task_arithmetic", 4, vec![]),
        ("ties", "ties", 4, vec![half.clone()]),
        (
            "ties l1",
            "ties",
            4,
            vec![half.clone(), ("rescale", Value::Text("l1".into()))],
        ),
        ("breadcrumbs", "breadcrumbs", 4, vec![half.clone()]),
        (
            "breadcrumbs_ties",
            "breadcrumbs_ties",
            4,
            vec![half.clone()],
        ),
        ("dare_linear", "dare_linear", 4, vec![half.clone()]),
        ("dare_ties", "dare_ties", 4, vec![half.clone()]),
        ("della", "della", 4, vec![half.clone()]),
        (
            "della density",
            "della",
            4,
            vec![half, ("rescale", Value::Text("density".into()))],
        ),
        ("sce", "sce", 4, vec![]),
        (
            "sce topk",
            "sce",
            4,
            vec![("select_topk", Value::Float(0.5))],
        ),
        ("arcee_fusion", "arcee_fusion", 2, vec![]),
        (
            "pcb tensor",
            "pcb",
            4,
            vec![("scope", Value::Text("tensor".into()))],
        ),
    ];
    let mut group = c.benchmark_group("methods");
    group
        .sample_size(10)
        .throughput(Throughput::Elements((SHAPE[0] * SHAPE[1]) as u64));
    let one_thread = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .expect("a thread");
    for (label, method, models, extra) in cases {
        let method = find(method).unwrap_or_else(|| panic!("no method {method}"));
        let base = (method.info().base != BasePolicy::Ignored).then_some(0);
        let settings = settings(method.info().name, models, base, &extra);
        let survey = Survey::default();
        let input = |source| Input {
            model: "a model",
            source,
            companion: None,
            round_to: None,
        };
        let tensor = TensorGroup {
            name: "model.layers.0.mlp.up_proj.weight",
            shape: &SHAPE,
            inputs: memory[..models]
                .iter()
                .map(|source| input(source as &dyn merganser_methods::Source))
                .collect(),
            base,
            settings: &settings,
            seed: 0,
            allow_nonfinite: false,
        };
        group.bench_function(BenchmarkId::from_parameter(label), |b| {
            b.iter(|| {
                one_thread.install(|| {
                    let program = method.prepare(&tensor, &survey).expect("a program");
                    tensor
                        .run(&program, Encoding::Float(Float::BF16), |_, _| Ok(()))
                        .expect("a merge")
                })
            });
        });
    }
    group.finish();
}

criterion_group!(methods, bench);
criterion_main!(methods);
