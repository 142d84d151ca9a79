//! Made-up reports of several sizes. The numbers are invented, but have the orderings of real ones:
//! merge ≤ its basis ≤ full.

use std::collections::BTreeMap;

use merganser_report::{
    Accuracy, Evaluation, Fallback, Layer, LayerKind, Method, MethodKind, Pairwise, Provenance,
    Relation, Report, Score, Suggestion, Task,
};

/// A stream of numbers in [0, 1), the same everywhere.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }
}

/// Methods with how much of what `full` captures they capture, and their accuracy.
const METHODS: [(&str, MethodKind, f64, Option<u64>); 9] = [
    ("full", MethodKind::Basis, 1.0, None),
    ("rotated", MethodKind::Basis, 0.94, Some(873)),
    ("diagonal", MethodKind::Basis, 0.86, Some(842)),
    ("atoms", MethodKind::Basis, 0.90, None),
    ("task", MethodKind::Basis, 0.71, Some(801)),
    ("chosen", MethodKind::Merge, 0.95, Some(880)),
    ("ties", MethodKind::Merge, 0.62, Some(774)),
    ("task_arithmetic", MethodKind::Merge, 0.58, Some(781)),
    ("average", MethodKind::Merge, 0.49, Some(731)),
];

fn layer(
    noise: &mut Noise,
    name: &str,
    block: &str,
    kind: LayerKind,
    shape: &[usize],
    tasks: usize,
    depth: f64,
) -> Layer {
    let full = 0.99 - 0.14 * depth - 0.05 * noise.next();
    let mut captured = BTreeMap::new();
    for (method, kind, share, _) in METHODS {
        let wobble = match kind {
            _ if method == "full" => 0.0,
            MethodKind::Basis => 0.02 * noise.next(),
            MethodKind::Merge => 0.05 * noise.next() + 0.08 * depth,
        };
        captured.insert(method.to_owned(), Some(full * (share - wobble)));
    }
    let energies: Vec<f64> = (0..tasks).map(|_| 0.4 + noise.next()).collect();
    let scale = (1.0 + 6.0 * depth * depth) * shape.iter().product::<usize>() as f64 / 1e5;
    let chosen = captured["chosen"].unwrap_or(0.0);
    let by_task = (0..tasks).map(|task| {
        let wobble = 0.12 * (noise.next() - 0.5) - 0.02 * (task % 3) as f64;
        Some((chosen + wobble).min(1.0))
    });
    let captured_by_task = by_task.collect();
    Layer {
        name: name.to_owned(),
        block: block.to_owned(),
        kind,
        shape: shape.to_vec(),
        energy: Some(scale * energies.iter().sum::<f64>()),
        energy_by_task: energies.iter().map(|energy| Some(scale * energy)).collect(),
        captured,
        captured_by_task,
        conflict: None,
        ridge: Some(if depth > 0.6 { 1e-3 } else { 1e-4 }),
        basis: Some(if depth > 0.6 { "rotated" } else { "full" }.to_owned()),
        notes: vec![],
    }
}

fn pairwise(noise: &mut Noise, tasks: usize) -> Vec<Pairwise> {
    let matrix = |noise: &mut Noise, range: (f64, f64), diagonal: f64| {
        let mut values = vec![vec![Some(diagonal); tasks]; tasks];
        for (s, t) in (0..tasks).flat_map(|s| (0..s).map(move |t| (s, t))) {
            let value = Some(range.0 + (range.1 - range.0) * noise.next());
            values[s][t] = value;
            values[t][s] = value;
        }
        values
    };
    vec![
        Pairwise {
            title: "Task vectors".into(),
            relation: Relation::Cosine,
            values: matrix(noise, (-0.1, 0.4), 1.0),
            note: Some("Cosine of the weight updates, over all tensors.".into()),
        },
        Pairwise {
            title: "Residual outputs".into(),
            relation: Relation::Cosine,
            values: matrix(noise, (-0.7, 0.8), 1.0),
            note: Some("Cosine of the updates’ outputs on the calibration inputs.".into()),
        },
        Pairwise {
            title: "Conflict".into(),
            relation: Relation::Conflict,
            values: matrix(noise, (0.02, 0.6), 0.0),
            note: Some(
                "Energy that two tasks lose if merged with each other alone, by full.".into(),
            ),
        },
    ]
}

fn methods(tasks: usize, samples: u64) -> Vec<Method> {
    let method = |(name, kind, _, accuracy): (&str, MethodKind, f64, Option<u64>)| {
        let scores = |per_mille: u64| {
            let score = |task: u64| {
                let correct = samples * (per_mille + 23 * (task % 3) - 20) / 1000;
                Score::proportion(correct, samples)
            };
            Accuracy::of_tasks((0..tasks as u64).map(score).collect())
        };
        Method {
            output: accuracy
                .filter(|_| kind == MethodKind::Merge)
                .map(|accuracy| accuracy as f64 / 1000.0 - 0.1),
            accuracy: accuracy.map(scores),
            note: match name {
                "chosen" => Some("full up to layer 3, rotated from there; λ from held-out samples"),
                "ties" => Some("density 0.2, λ 1.0"),
                "task_arithmetic" => Some("λ 0.3"),
                _ => None,
            }
            .map(str::to_owned),
            ..Method::new(name, kind)
        }
    };
    METHODS.map(method).to_vec()
}

fn evaluation(tasks: usize, samples: u64) -> Evaluation {
    let scores = |per_mille: u64| {
        let score =
            |task: u64| Score::proportion(samples * (per_mille + 15 * (task % 3)) / 1000, samples);
        Some(Accuracy::of_tasks((0..tasks as u64).map(score).collect()))
    };
    Evaluation {
        base: scores(521),
        individual: scores(912),
        note: Some(format!("{samples} test samples a task.")),
    }
}

/// Four tasks, a vision transformer of six layers, everything measured.
pub(crate) fn small() -> Report {
    let mut noise = Noise(7);
    let names = ["digits", "street signs", "textures", "satellite"];
    let tasks = names.len();
    let mut layers = vec![Layer {
        notes: vec!["3 of 192 channels constant on the samples".into()],
        ..layer(
            &mut noise,
            "vit.embeddings.patch_embeddings.projection.weight",
            "vit.embeddings",
            LayerKind::Linear,
            &[192, 147],
            tasks,
            0.0,
        )
    }];
    for k in 0..6 {
        let block = format!("vit.encoder.layer.{k}");
        let parts: [(&str, LayerKind, &[usize]); 8] = [
            ("layernorm_before", LayerKind::Norm, &[192]),
            ("attention.attention.query", LayerKind::Linear, &[192, 192]),
            ("attention.attention.key", LayerKind::Linear, &[192, 192]),
            ("attention.attention.value", LayerKind::Linear, &[192, 192]),
            ("attention.output.dense", LayerKind::Linear, &[192, 192]),
            ("layernorm_after", LayerKind::Norm, &[192]),
            ("intermediate.dense", LayerKind::Linear, &[768, 192]),
            ("output.dense", LayerKind::Linear, &[192, 768]),
        ];
        for (part, kind, shape) in parts {
            let name = format!("{block}.{part}.weight");
            let depth = k as f64 / 5.0;
            layers.push(layer(&mut noise, &name, &block, kind, shape, tasks, depth));
        }
    }
    layers.push(layer(
        &mut noise,
        "vit.layernorm.weight",
        "vit.layernorm",
        LayerKind::Norm,
        &[192],
        tasks,
        0.9,
    ));
    Report {
        title: "Four small vision tasks".into(),
        provenance: Provenance {
            version: "0.1.0".into(),
            base: Some("examples/vit-tiny".into()),
            seed: Some(42),
            date: None,
            settings: [
                ("mode", "sequential"),
                ("ridge", "auto, from a fifth of the samples"),
                ("prior", "task_arithmetic"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        },
        recipe: Some(
            "merge_method: projection\nbase_model: examples/vit-tiny\nmodels:\n  - model: \
             examples/vit-digits\n  - model: examples/vit-signs\n  - model: examples/vit-textures\n  \
             - model: examples/vit-satellite\nparameters:\n  basis: auto\n  ridge: auto\n"
                .into(),
        ),
        tasks: names
            .iter()
            .map(|name| Task {
                model: Some(format!("examples/vit-{}", name.replace(' ', "-"))),
                samples: Some(256),
                tokens: Some(256 * 17),
                ..Task::new(*name)
            })
            .collect(),
        methods: methods(tasks, 1000),
        chosen: Some("chosen".into()),
        suggestion: Some(Suggestion {
            method: "chosen".into(),
            reason: "It keeps most of what any merge can keep; task arithmetic leaves two fifths of \
                     it, most of that in the last two layers."
                .into(),
        }),
        layers,
        pairwise: pairwise(&mut noise, tasks),
        evaluation: Some(evaluation(tasks, 1000)),
        fallbacks: vec![Fallback {
            name: "vit.embeddings.mask_token".into(),
            method: "task_arithmetic".into(),
            reason: Some("no sample uses it".into()),
        }],
        warnings: vec!["street signs: 256 samples for 768 inputs; minimum-norm solutions".into()],
        ..Report::default()
    }
}

/// A decoder of 80 layers with 7 tensors each, 20 tasks, nothing evaluated.
pub(crate) fn large() -> Report {
    let mut noise = Noise(11);
    let tasks = 20;
    let mut layers = vec![layer(
        &mut noise,
        "model.embed_tokens.weight",
        "model.embed_tokens",
        LayerKind::Embedding,
        &[32_000, 8192],
        tasks,
        0.0,
    )];
    for k in 0..80 {
        let block = format!("model.layers.{k}");
        for (part, shape) in [
            ("self_attn.q_proj", [8192, 8192]),
            ("self_attn.k_proj", [1024, 8192]),
            ("self_attn.v_proj", [1024, 8192]),
            ("self_attn.o_proj", [8192, 8192]),
            ("mlp.gate_proj", [28_672, 8192]),
            ("mlp.up_proj", [28_672, 8192]),
            ("mlp.down_proj", [8192, 28_672]),
        ] {
            let name = format!("{block}.{part}.weight");
            let kind = LayerKind::Linear;
            let depth = k as f64 / 79.0;
            let mut made = layer(&mut noise, &name, &block, kind, &shape, tasks, depth);
            if k == 41 && part == "mlp.down_proj" {
                made.captured.insert("average".into(), Some(-7.5));
                made.captured.insert("ties".into(), Some(-0.8));
                made.captured_by_task[7] = Some(-2.0);
            }
            if (30..33).contains(&k) {
                made.captured.insert("atoms".into(), None);
                made.captured_by_task[3] = None;
            }
            layers.push(made);
        }
    }
    let task = |k: usize| Task {
        model: Some(format!("somebody/llama-70b-finetuned-on-domain-number-{k}")),
        samples: Some(128),
        tokens: Some(128 * 512),
        ..Task::new(format!("domain {k}"))
    };
    let mut methods = methods(tasks, 100);
    for method in &mut methods {
        method.accuracy = None;
    }
    Report {
        title: "Twenty domains in one 70B decoder".into(),
        provenance: Provenance {
            version: "0.1.0".into(),
            base: Some("meta-llama/Llama-2-70b-hf".into()),
            seed: Some(0),
            ..Provenance::default()
        },
        tasks: (0..tasks).map(task).collect(),
        methods,
        chosen: Some("chosen".into()),
        layers,
        pairwise: pairwise(&mut noise, tasks),
        fallbacks: (0..161)
            .map(|k| Fallback {
                name: format!("model.layers.{}.input_layernorm.weight", k / 2),
                method: "linear".into(),
                reason: None,
            })
            .collect(),
        ..Report::default()
    }
}

/// One layer, two tasks.
pub(crate) fn one_layer() -> Report {
    let mut noise = Noise(3);
    Report {
        title: "One linear layer".into(),
        tasks: vec![Task::new("a"), Task::new("b")],
        methods: METHODS
            .map(|(name, kind, ..)| Method::new(name, kind))
            .to_vec(),
        layers: vec![layer(
            &mut noise,
            "classifier.weight",
            "head",
            LayerKind::Linear,
            &[10, 64],
            2,
            0.3,
        )],
        pairwise: pairwise(&mut noise, 2),
        ..Report::default()
    }
}

/// The text that must never become markup, with what would end an element, an attribute, a comment,
/// a template or a terminal's line.
pub(crate) const HOSTILE: &str = "</svg></title></style><script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}{% raw %}-->\u{1b}[31m\u{202e}";

/// A report whose every text is hostile, with values that are no numbers.
pub(crate) fn hostile() -> Report {
    let text = || HOSTILE.to_owned();
    let mut report = small();
    report.title = text();
    report.recipe = Some(text());
    report.provenance = Provenance {
        version: text(),
        base: Some(text()),
        seed: Some(1),
        date: Some(text()),
        settings: [(text(), text())].into(),
    };
    for (k, task) in report.tasks.iter_mut().enumerate() {
        task.name = format!("{HOSTILE}{k}");
        task.model = Some(text());
        task.weight = Some(f64::NAN);
    }
    for method in &mut report.methods {
        method.name = format!("{}{HOSTILE}", method.name);
        method.note = Some(text());
    }
    report.chosen = Some(format!("chosen{HOSTILE}"));
    report.suggestion = Some(Suggestion {
        method: format!("chosen{HOSTILE}"),
        reason: text(),
    });
    for (k, layer) in report.layers.iter_mut().enumerate() {
        layer.name = format!("{HOSTILE}{k}");
        layer.block = format!("{HOSTILE}{}", k / 8);
        layer.basis = Some(text());
        layer.notes = vec![text()];
        layer.captured = layer
            .captured
            .iter()
            .map(|(name, value)| (format!("{name}{HOSTILE}"), *value))
            .collect();
        match k % 5 {
            0 => layer.energy = Some(f64::NAN),
            1 => layer.energy = Some(f64::INFINITY),
            2 => layer
                .captured
                .values_mut()
                .for_each(|it| *it = Some(f64::NAN)),
            3 => layer.captured_by_task[0] = Some(-1e308),
            _ => layer.ridge = Some(f64::NEG_INFINITY),
        }
    }
    for matrix in &mut report.pairwise {
        matrix.title = text();
        matrix.note = Some(text());
        matrix.values[0][1] = Some(f64::NAN);
        matrix.values[1][0] = Some(1e300);
        matrix.values.pop();
    }
    if let Some(evaluation) = &mut report.evaluation {
        evaluation.note = Some(text());
    }
    report.fallbacks[0] = Fallback {
        name: text(),
        method: text(),
        reason: Some(text()),
    };
    report.warnings = vec![text()];
    report
}
