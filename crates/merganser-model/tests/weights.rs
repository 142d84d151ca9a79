//! Weights read from checkpoints: rows are those of the whole, tables stay on disk.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::{Device, Tensor};
use common::{Case, FAMILIES, folder, largest_difference};
use merganser_model::{
    CheckpointWeights, ModelError, Result, StageWeights, TapKind, Weights, walk,
};
use merganser_store::checkpoint::Checkpoint;

#[test]
fn rows_are_those_of_the_whole_tensor() {
    for name in FAMILIES {
        let checkpoint = Checkpoint::open(&folder(name)).unwrap();
        let weights = CheckpointWeights::new(&checkpoint, Device::Cpu);
        for tensor in checkpoint
            .tensors()
            .values()
            .filter(|tensor| tensor.shape.len() == 2)
        {
            let last = tensor.shape[0] as u32 - 1;
            let rows = [last, 0, 0, last / 2, (last / 2 + 1).min(last), last];
            let found = weights.rows(&tensor.name, &rows).unwrap();
            let index = Tensor::new(&rows, &Device::Cpu).unwrap();
            let whole = weights.tensor(&tensor.name).unwrap();
            let expected = whole.index_select(&index, 0).unwrap();
            assert_eq!(
                largest_difference(&found, &expected),
                0.0,
                "{name}: {}",
                tensor.name
            );
            let error = weights.rows(&tensor.name, &[0, last + 1]).unwrap_err();
            assert!(matches!(error, ModelError::Row { row, .. } if row == last + 1));
        }
    }
}

#[test]
fn what_is_not_there_or_not_a_number_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let ids = Tensor::new(&[1i64, 2], &Device::Cpu).unwrap();
    ids.save_safetensors("ids", &path).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let weights = CheckpointWeights::new(&checkpoint, Device::Cpu);
    let error = |name: &str| weights.tensor(name).unwrap_err().to_string();
    assert_eq!(
        error("ids"),
        "tensor `ids` holds I64; expected floating-point numbers"
    );
    assert_eq!(error("wte"), "tensor `wte` is not among the weights");
}

/// Writes down which tensors are read as a whole, and which by rows.
struct Reads<'a> {
    source: &'a BTreeMap<String, Tensor>,
    whole: Mutex<Vec<String>>,
    rows: Mutex<Vec<String>>,
}

impl Weights for Reads<'_> {
    fn tensor(&self, name: &str) -> Result<Tensor> {
        self.whole.lock().unwrap().push(name.to_owned());
        self.source.tensor(name)
    }

    fn rows(&self, name: &str, rows: &[u32]) -> Result<Tensor> {
        assert!(
            rows.is_sorted_by(|a, b| a < b),
            "{name}: every row is read once"
        );
        self.rows.lock().unwrap().push(name.to_owned());
        self.source.rows(name, rows)
    }
}

#[test]
fn a_walk_reads_every_tensor_once_and_tables_by_rows() {
    for name in FAMILIES {
        let case = Case::load(name);
        let reads = Reads {
            source: &case.weights,
            whole: Mutex::default(),
            rows: Mutex::default(),
        };
        let mut states = [case.state(), case.state()];
        walk(&case.network, &reads, &mut states, &mut ()).unwrap();
        let mut whole = reads.whole.into_inner().unwrap();
        let count = whole.len();
        whole.sort();
        whole.dedup();
        assert_eq!(whole.len(), count, "{name}: a tensor was read twice");
        let tables = case
            .network
            .ops()
            .filter_map(|(_, op)| op.parameters())
            .filter(|tap| matches!(tap.kind, TapKind::Embedding(_)));
        for table in tables {
            assert!(
                !whole.iter().any(|name| name == table.weight),
                "{name}: {}",
                table.weight
            );
            assert!(
                reads
                    .rows
                    .lock()
                    .unwrap()
                    .iter()
                    .any(|name| name == table.weight)
            );
        }
    }
}

#[test]
fn stage_weights_can_be_replaced() {
    let case = Case::load("llama");
    let stage = case
        .network
        .stages
        .iter()
        .find(|stage| stage.layer == Some(0))
        .unwrap();
    let mut weights = StageWeights::load(stage, &case.weights).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight";
    let zeros = case.weights[name].zeros_like().unwrap();
    weights.insert(name, zeros.clone());
    assert_eq!(
        largest_difference(&weights.tensor(name).unwrap(), &zeros),
        0.0
    );
    assert_eq!(weights.resident().len(), 16);
    // What belongs to another stage comes from the source.
    assert!(weights.tensor("model.norm.weight").is_ok());
}
