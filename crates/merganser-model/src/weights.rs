//! Where the numbers come from: anything that gives a tensor by its name.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use merganser_kernels::convert::{Float, decode};
use merganser_store::Dtype;
use merganser_store::checkpoint::{Checkpoint, TensorInfo};

use crate::error::{ModelError, Result};
use crate::network::Stage;
use crate::op::{Op, TapKind};

/// Named tensors, all of one floating-point type, in which the network then computes; f32 as read from a checkpoint. (Not
/// f16: its range does not hold the score of a hidden key.)
pub trait Weights: Sync {
    /// The tensor `name`, in its stored shape.
    fn tensor(&self, name: &str) -> Result<Tensor>;

    /// Rows of a table, (rows.len(), d), in the order asked for; so that a vocabulary need not be resident as a whole.
    fn rows(&self, name: &str, rows: &[u32]) -> Result<Tensor> {
        let table = self.tensor(name)?;
        let count = table.dims().first().copied().unwrap_or(0);
        if let Some(&row) = rows.iter().find(|&&row| row as usize >= count) {
            return Err(ModelError::Row {
                tensor: name.to_owned(),
                row,
                rows: count,
            });
        }
        let index = Tensor::new(rows, table.device())?;
        Ok(table.index_select(&index, 0)?)
    }
}

impl<W: Weights + ?Sized> Weights for &W {
    fn tensor(&self, name: &str) -> Result<Tensor> {
        (**self).tensor(name)
    }

    fn rows(&self, name: &str, rows: &[u32]) -> Result<Tensor> {
        (**self).rows(name, rows)
    }
}

impl Weights for BTreeMap<String, Tensor> {
    fn tensor(&self, name: &str) -> Result<Tensor> {
        let tensor = self.get(name).cloned();
        tensor.ok_or_else(|| ModelError::NoWeight(name.to_owned()))
    }
}

impl Weights for BTreeMap<String, Var> {
    fn tensor(&self, name: &str) -> Result<Tensor> {
        let var = self.get(name).map(|var| var.as_tensor().clone());
        var.ok_or_else(|| ModelError::NoWeight(name.to_owned()))
    }
}

/// Weights read from a checkpoint at each call, decoded to f32.
#[derive(Debug)]
pub struct CheckpointWeights<'a> {
    checkpoint: &'a Checkpoint,
    device: Device,
}

impl<'a> CheckpointWeights<'a> {
    /// Weights of `checkpoint` on `device`.
    pub fn new(checkpoint: &'a Checkpoint, device: Device) -> Self {
        Self { checkpoint, device }
    }

    fn info(&self, name: &str) -> Result<(&TensorInfo, Float)> {
        let info = self.checkpoint.tensors().get(name);
        let info = info.ok_or_else(|| ModelError::NoWeight(name.to_owned()))?;
        let float = kernel_float(info.dtype).ok_or_else(|| ModelError::NotFloat {
            tensor: name.to_owned(),
            found: info.dtype.name().to_owned(),
        })?;
        Ok((info, float))
    }
}

/// Names and shapes of a checkpoint, as [`Network::new`](crate::Network::new) takes them.
pub fn shapes(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<usize>> {
    let tensors = checkpoint.tensors().values();
    tensors
        .map(|tensor| (tensor.name.clone(), tensor.shape.clone()))
        .collect()
}

/// The kernels' name of a stored type; `None` if it is not one of real numbers.
pub fn kernel_float(dtype: Dtype) -> Option<Float> {
    Some(match dtype {
        Dtype::F64 => Float::F64,
        Dtype::F32 => Float::F32,
        Dtype::F16 => Float::F16,
        Dtype::BF16 => Float::BF16,
        Dtype::F8E4M3 => Float::F8E4M3,
        Dtype::F8E5M2 => Float::F8E5M2,
        _ => return None,
    })
}

/// Bytes decoded at a time, so that a tensor is not resident twice.
const CHUNK: usize = 1 << 20;

impl CheckpointWeights<'_> {
    /// Decodes `out.len()` elements from element `first` on.
    fn decode_into(
        &self,
        info: &TensorInfo,
        float: Float,
        first: usize,
        out: &mut [f32],
        buffer: &mut Vec<u8>,
    ) -> Result<()> {
        let step = CHUNK / float.size();
        for (i, part) in out.chunks_mut(step).enumerate() {
            buffer.resize(part.len() * float.size(), 0);
            let offset = (first + i * step) * float.size();
            self.checkpoint.read(info, offset as u64, buffer)?;
            decode(float, buffer, part);
        }
        Ok(())
    }
}

impl Weights for CheckpointWeights<'_> {
    fn tensor(&self, name: &str) -> Result<Tensor> {
        let (info, float) = self.info(name)?;
        let mut values = vec![0.0; info.elements() as usize];
        self.decode_into(info, float, 0, &mut values, &mut Vec::new())?;
        Ok(Tensor::from_vec(values, &info.shape[..], &self.device)?)
    }

    fn rows(&self, name: &str, rows: &[u32]) -> Result<Tensor> {
        let (info, float) = self.info(name)?;
        let count = info.shape.first().copied().unwrap_or(0);
        let width: usize = info.shape.iter().skip(1).product();
        let mut values = vec![0.0; rows.len() * width];
        let mut buffer = Vec::new();
        let mut done = 0;
        // Neighbouring rows are one read.
        for run in rows.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            let (first, last) = (run[0], run[run.len() - 1]);
            if last as usize >= count {
                return Err(ModelError::Row {
                    tensor: name.to_owned(),
                    row: last,
                    rows: count,
                });
            }
            let out = &mut values[done * width..(done + run.len()) * width];
            self.decode_into(info, float, first as usize * width, out, &mut buffer)?;
            done += run.len();
        }
        Ok(Tensor::from_vec(values, (rows.len(), width), &self.device)?)
    }
}

/// The weights of one stage, loaded once; tables are read row by row from their source.
pub struct StageWeights<'a> {
    source: &'a dyn Weights,
    resident: BTreeMap<String, Tensor>,
}

impl<'a> StageWeights<'a> {
    /// Loads all parameters of `stage` but its tables.
    pub fn load(stage: &Stage, source: &'a dyn Weights) -> Result<Self> {
        Self::load_ops(&stage.ops, source)
    }

    pub(crate) fn load_ops(ops: &[Op], source: &'a dyn Weights) -> Result<Self> {
        let mut resident = BTreeMap::new();
        for tap in ops.iter().filter_map(Op::parameters) {
            if matches!(tap.kind, TapKind::Embedding(_)) {
                continue;
            }
            for name in [Some(tap.weight), tap.bias].into_iter().flatten() {
                if !resident.contains_key(name) {
                    resident.insert(name.to_owned(), source.tensor(name)?);
                }
            }
        }
        Ok(Self { source, resident })
    }

    /// Replaces a resident tensor, or adds one.
    pub fn insert(&mut self, name: &str, tensor: Tensor) {
        self.resident.insert(name.to_owned(), tensor);
    }

    /// The resident tensors.
    pub fn resident(&self) -> &BTreeMap<String, Tensor> {
        &self.resident
    }
}

impl Weights for StageWeights<'_> {
    fn tensor(&self, name: &str) -> Result<Tensor> {
        match self.resident.get(name) {
            Some(tensor) => Ok(tensor.clone()),
            None => self.source.tensor(name),
        }
    }

    fn rows(&self, name: &str, rows: &[u32]) -> Result<Tensor> {
        if self.resident.contains_key(name) {
            self.resident.rows(name, rows)
        } else {
            self.source.rows(name, rows)
        }
    }
}
