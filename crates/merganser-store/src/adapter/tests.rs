#![allow(clippy::unwrap_used)]

use super::*;
use crate::header::{TensorSpec, compose};

type Spec<'a> = (&'a str, &'a [usize]);

/// Opens an adapter with these F32 tensors (of zeros) and this end of a config.
fn open(extra: &str, tensors: &[Spec<'_>]) -> Result<Adapter> {
    let dir = tempfile::tempdir().unwrap();
    let config = format!(r#"{{"peft_type":"LORA","r":2,"lora_alpha":4{extra}}}"#);
    std::fs::write(dir.path().join("adapter_config.json"), config).unwrap();
    let specs: Vec<_> = tensors
        .iter()
        .map(|(name, shape)| TensorSpec {
            name: (*name).into(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
        })
        .collect();
    let layout = compose(&BTreeMap::new(), &specs).unwrap();
    let mut bytes = layout.header;
    bytes.resize(layout.file_len as usize, 0);
    std::fs::write(dir.path().join("adapter_model.safetensors"), bytes).unwrap();
    Adapter::open(dir.path())
}

fn refusal(extra: &str, tensors: &[Spec<'_>]) -> String {
    open(extra, tensors).unwrap_err().to_string()
}

const Q: &str = "base_model.model.model.layers.0.q_proj";

fn factors<'a>(a: &'a str, b: &'a str) -> [Spec<'a>; 2] {
    [(a, &[2, 3]), (b, &[5, 2])]
}

#[test]
fn a_linear_module() {
    for (a, b) in [
        (format!("{Q}.lora_A.weight"), format!("{Q}.lora_B.weight")),
        (
            format!("{Q}.lora_A.default.weight"),
            format!("{Q}.lora_B.default.weight"),
        ),
        (
            "model.layers.0.q_proj.lora_A.weight".into(),
            "model.layers.0.q_proj.lora_B.weight".into(),
        ),
    ] {
        let adapter = open("", &factors(&a, &b)).unwrap();
        let deltas = &adapter.modules()["model.layers.0.q_proj.weight"];
        let [
            Delta::LowRank {
                a,
                rank: 2,
                scale: 2.0,
                transposed: false,
                ..
            },
        ] = &deltas[..]
        else {
            panic!("{deltas:?}")
        };
        assert_eq!(deltas[0].shape(), [5, 3]);
        let (dtype, bytes) = adapter.read(a).unwrap();
        assert_eq!((dtype, bytes.len()), (Dtype::F32, 24));
    }
}

#[test]
fn scale_and_rank_follow_the_patterns() {
    let (a, b) = (format!("{Q}.lora_A.weight"), format!("{Q}.lora_B.weight"));
    let adapter = open(r#","r":8,"use_rslora":true"#, &[]);
    assert!(adapter.is_err());
    let adapter = open(
        r#","rank_pattern":{"k_proj":9},"alpha_pattern":{"layers.0.q_proj":7}"#,
        &factors(&a, &b),
    )
    .unwrap();
    assert!(matches!(
        adapter.modules().values().next().unwrap()[0],
        Delta::LowRank {
            rank: 2,
            scale: 3.5,
            ..
        }
    ));
    let message = refusal(r#","rank_pattern":{"q_proj":4}"#, &factors(&a, &b));
    assert!(
        message
            .contains("module `model.layers.0.q_proj`: factor A is [2, 3] and B is [5, 2]; rank 4"),
        "{message}"
    );
}

#[test]
fn transposed_storage() {
    let (a, b) = (format!("{Q}.lora_A.weight"), format!("{Q}.lora_B.weight"));
    let adapter = open(r#","fan_in_fan_out":true"#, &factors(&a, &b)).unwrap();
    let delta = &adapter.modules()["model.layers.0.q_proj.weight"][0];
    assert!(matches!(
        delta,
        Delta::LowRank {
            transposed: true,
            ..
        }
    ));
    assert_eq!(delta.shape(), [3, 5]);
}

#[test]
fn embeddings_may_be_replaced_and_adapted_at_once() {
    for name in ["", ".default"] {
        let e = "base_model.model.model.embed_tokens";
        let (a, b) = (
            format!("{e}.lora_embedding_A{name}"),
            format!("{e}.lora_embedding_B{name}"),
        );
        let adapter = open(
            "",
            &[
                (&a, &[2, 11]),
                (&b, &[5, 2]),
                (&format!("{e}.base_layer.weight"), &[11, 5]),
            ],
        )
        .unwrap();
        let deltas = &adapter.modules()["model.embed_tokens.weight"];
        assert!(
            matches!(
                deltas[..],
                [
                    Delta::Replace(_),
                    Delta::LowRank {
                        transposed: true,
                        ..
                    }
                ]
            ),
            "{deltas:?}"
        );
        assert!(deltas.iter().all(|delta| delta.shape() == [11, 5]));
    }
}

#[test]
fn saved_modules_and_biases_replace() {
    let adapter = open(
        "",
        &[
            ("base_model.model.classifier.weight", &[3, 4]),
            ("base_model.model.score.modules_to_save.weight", &[3, 4]),
            (
                "base_model.model.head.modules_to_save.default.dense.bias",
                &[3],
            ),
            ("base_model.model.head.original_module.dense.bias", &[3]),
            ("base_model.model.model.norm.bias", &[4]),
            ("base_model.model.model.q.base_layer.bias", &[4]),
        ],
    )
    .unwrap();
    let names: Vec<_> = adapter.modules().keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "classifier.weight",
            "head.dense.bias",
            "model.norm.bias",
            "model.q.bias",
            "score.weight"
        ]
    );
    assert!(
        adapter
            .modules()
            .values()
            .all(|deltas| matches!(deltas[..], [Delta::Replace(_)]))
    );
}

#[test]
fn the_factors_of_a_convolution_make_its_kernels() {
    let (a, b) = (format!("{Q}.lora_A.weight"), format!("{Q}.lora_B.weight"));
    let adapter = open("", &[(&a, &[2, 3, 5, 7]), (&b, &[4, 2, 1, 1])]).unwrap();
    let [delta] = &adapter.modules()["model.layers.0.q_proj.weight"][..] else {
        panic!("one change");
    };
    assert_eq!(delta.shape(), [4, 3, 5, 7]);
}

#[test]
fn a_bias_of_b_is_added_with_the_same_scale() {
    let (a, b) = (format!("{Q}.lora_A.weight"), format!("{Q}.lora_B.weight"));
    let bias = format!("{Q}.lora_B.bias");
    let [first, second] = factors(&a, &b);
    let adapter = open("", &[first, second, (&bias, &[5])]).unwrap();
    assert!(matches!(
        adapter.modules()["model.layers.0.q_proj.bias"][..],
        [Delta::Add { scale: 2.0, .. }]
    ));
    assert!(refusal("", &[(&bias, &[5])]).contains("has `lora_B.bias` but no `lora_B`"));
    for shape in [&[4][..], &[5, 1]] {
        let said = refusal("", &[first, second, (&bias, shape)]);
        assert!(said.contains("B has 5 outputs; expected [5]"), "{said}");
    }
}

#[test]
fn what_cannot_be_merged_is_refused_by_name() {
    let cases: [(&[Spec<'_>], &str); 8] = [
        (
            &[("m.q.lora_A.weight", &[2, 3])],
            "module `m.q` has `lora_A` but no `lora_B`",
        ),
        (
            &[("m.q.lora_B.weight", &[3, 2])],
            "module `m.q` has `lora_B` but no `lora_A`",
        ),
        (
            &[
                ("m.q.lora_A.weight", &[2, 3, 3, 3]),
                ("m.q.lora_B.weight", &[4, 2, 3, 3]),
            ],
            "factor A is [2, 3, 3, 3] and B is [4, 2, 3, 3]",
        ),
        (
            &[
                ("m.q.lora_A.weight", &[2, 3]),
                ("m.q.lora_B.weight", &[4, 3]),
            ],
            "factor A is [2, 3] and B is [4, 3]",
        ),
        (&[("m.q.lora_magnitude_vector", &[3])], "DoRA"),
        (
            &[("m.q.lora_mystery.weight", &[3])],
            "tensor `m.q.lora_mystery.weight` is not part of a LoRA adapter",
        ),
        (
            &[
                ("m.q.lora_A.one.weight", &[2, 3]),
                ("m.q.lora_A.two.weight", &[2, 3]),
            ],
            "module `m.q` has two tensors `lora_A`",
        ),
        (&[], "it holds no tensors"),
    ];
    for (tensors, expected) in cases {
        let message = refusal("", tensors);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_folder_without_the_files_says_which() {
    let dir = tempfile::tempdir().unwrap();
    let message = |dir: &Path| Adapter::open(dir).unwrap_err().to_string();
    assert!(message(dir.path()).contains("no `adapter_config.json` in it"));
    std::fs::write(
        dir.path().join("adapter_config.json"),
        r#"{"peft_type":"LORA","r":2,"lora_alpha":4}"#,
    )
    .unwrap();
    assert!(
        message(dir.path()).contains("no `adapter_model.safetensors` or `adapter_model.bin` in it")
    );
}
