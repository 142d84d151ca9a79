//! What certificates are about, out of files: heads, small networks, samples of features; and the edited layer back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use merganser_data::VectorFile;
use merganser_eval::HEAD_NAMES;
use merganser_kernels::convert::{Float, encode};
use merganser_linalg::Matrix;
use merganser_model::mlp::{Dense, read_real};
use merganser_model::{Mlp, Pointwise};
use merganser_store::Dtype;
use merganser_store::checkpoint::Checkpoint;
use merganser_store::fingerprint::hash_file;
use merganser_store::header::TensorSpec;
use merganser_store::new_file::write_tensors;
use merganser_trust::head::Head;

use crate::Failure;

/// Pairs of names a head is stored under, in the order they are looked for: also that of language models.
fn usual_names() -> impl Iterator<Item = (&'static str, &'static str)> {
    let language = ("lm_head.weight", "lm_head.bias");
    HEAD_NAMES.into_iter().chain([language])
}

/// A head as it lies in a file.
#[derive(Debug, Clone)]
pub struct StoredHead {
    /// W and b.
    pub head: Head,
    /// Name and type of the weight.
    pub weight: (String, Dtype),
    /// Name and type of the bias.
    pub bias: Option<(String, Dtype)>,
}

impl StoredHead {
    /// Reads a head: the tensors called `weight` and `bias`, or those of a usual pair of names.
    ///
    /// # Errors
    /// If the file cannot be read, has no such tensors, or they are no head.
    pub fn read(path: &Path, weight: Option<&str>, bias: Option<&str>) -> Result<Self, Failure> {
        let checkpoint = open(path)?;
        let has = |name: &str| checkpoint.tensors().contains_key(name);
        let (weight, bias) = match (weight, bias) {
            (Some(weight), Some(bias)) => (weight.to_owned(), Some(bias.to_owned())),
            (Some(weight), None) => {
                let stem = weight.strip_suffix("weight");
                let bias = stem.map(|stem| format!("{stem}bias"));
                (weight.to_owned(), bias.filter(|bias| has(bias)))
            }
            (None, bias) => {
                let pair = usual_names().find(|(weight, _)| has(weight));
                let Some((weight, usual)) = pair else {
                    return Err(Failure::Usage(format!(
                        "`{}` holds no head under a usual name ({}); name its tensors with --weight and --bias; it has {}",
                        path.display(),
                        usual_names()
                            .map(|(weight, _)| weight)
                            .collect::<Vec<_>>()
                            .join(", "),
                        shown(&checkpoint)
                    )));
                };
                let bias = bias.or(has(usual).then_some(usual));
                (weight.to_owned(), bias.map(str::to_owned))
            }
        };
        let (shape, dtype, values) = tensor(&checkpoint, &weight)?;
        let [rows, cols] = shape[..] else {
            return Err(Failure::Usage(format!(
                "tensor `{weight}` of `{}` has shape {shape:?}; the weight of a head is a matrix, classes × features",
                path.display()
            )));
        };
        let matrix =
            Matrix::new(rows, cols, values).map_err(|error| Failure::Usage(error.to_string()))?;
        let bias = bias
            .map(|name| tensor(&checkpoint, &name).map(|(_, dtype, values)| (name, dtype, values)))
            .transpose()?;
        let (stored, values) = match bias {
            Some((name, dtype, values)) => (Some((name, dtype)), Some(values)),
            None => (None, None),
        };
        let head = Head::new(matrix, values)
            .map_err(|error| Failure::Usage(format!("`{}`: {error}", path.display())))?;
        Ok(Self {
            head,
            weight: (weight, dtype),
            bias: stored,
        })
    }

    /// The head as a network of one layer, for certificates of its compressed twin.
    ///
    /// # Errors
    /// If it cannot be one.
    pub fn network(&self) -> Result<Mlp, Failure> {
        let weight = self.head.weight();
        let layer = Dense {
            name: self.weight.0.clone(),
            inputs: weight.cols(),
            outputs: weight.rows(),
            weight: weight.as_slice().to_vec(),
            bias: self.head.bias().map(<[f64]>::to_vec),
        };
        Mlp::new(vec![layer], vec![Pointwise::Identity])
            .map_err(|error| Failure::Usage(error.to_string()))
    }

    /// This head with its numbers rounded to the types they are stored in.
    ///
    /// # Errors
    /// If a number does not fit its type.
    pub fn rounded(&self) -> Result<Self, Failure> {
        let weight = self.head.weight();
        let values = through(self.weight.1, weight.as_slice())?;
        let matrix = Matrix::new(weight.rows(), weight.cols(), values)
            .map_err(|error| Failure::Usage(error.to_string()))?;
        let bias = match (&self.bias, self.head.bias()) {
            (Some((_, dtype)), Some(bias)) => Some(through(*dtype, bias)?),
            (_, bias) => bias.map(<[f64]>::to_vec),
        };
        let head =
            Head::new(matrix, bias).map_err(|error| Failure::Usage(format!("rounded: {error}")))?;
        Ok(Self {
            head,
            ..self.clone()
        })
    }

    /// Writes the head's tensors, under their names and in their types, into a new file.
    ///
    /// # Errors
    /// If the file is there and `overwrite` is not set, or it cannot be written; no half of a file is left.
    pub fn write(&self, path: &Path, overwrite: bool) -> Result<(), Failure> {
        let weight = self.head.weight();
        let spec = |(name, dtype): &(String, Dtype), shape| TensorSpec {
            name: name.clone(),
            dtype: *dtype,
            shape,
        };
        let mut tensors = vec![(
            spec(&self.weight, vec![weight.rows(), weight.cols()]),
            encoded(self.weight.1, weight.as_slice())?,
        )];
        if let (Some(stored), Some(bias)) = (&self.bias, self.head.bias()) {
            tensors.push((spec(stored, vec![bias.len()]), encoded(stored.1, bias)?));
        }
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        write_tensors(path, overwrite, &metadata, &tensors)
            .map_err(|error| Failure::Usage(error.to_string()))
    }
}

/// Reads samples of `width` numbers, one a row, from `FILE` or `FILE#NAME`: NumPy, safetensors or Parquet.
///
/// # Errors
/// If the file cannot be read, it is not clear which tensor is meant, or it holds no such samples of finite numbers.
pub fn features(given: &str, width: usize) -> Result<Matrix, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::Usage(error.to_string());
    let file = VectorFile::open(given).map_err(|error| failed(&error))?;
    if file.rows() == 0 {
        return Err(failed(&file.refuse("there are no samples in it")));
    }
    if file.dim() != width {
        return Err(failed(&file.refuse(format!(
            "its samples have {} numbers each; the first layer reads {width}",
            file.dim()
        ))));
    }
    let values = file.all().map_err(|error| failed(&error))?;
    Matrix::new(file.rows(), width, values).map_err(|error| failed(&error))
}

/// A multi-layer perceptron out of a state dict; without `layers`, of all its matrices in natural order.
///
/// # Errors
/// What does not fit.
pub fn network(
    path: &Path,
    layers: &[String],
    activation: Pointwise,
    last: Pointwise,
) -> Result<Mlp, Failure> {
    Mlp::read(&open(path)?, layers, activation, last)
        .map_err(|error| Failure::Usage(format!("`{}`: {error}", path.display())))
}

/// The BLAKE3 hash of a file's whole content, in hexadecimal digits; of a folder those of its weight files, by name.
///
/// # Errors
/// If one cannot be read.
pub fn fingerprints(path: &Path) -> Result<Vec<(PathBuf, String)>, Failure> {
    let files: Vec<PathBuf> = if path.is_dir() {
        let found = open(path)?;
        found.files().iter().map(|file| file.path.clone()).collect()
    } else {
        vec![path.to_owned()]
    };
    files
        .into_iter()
        .map(|file| match hash_file(&file) {
            Ok(hash) => Ok((file, hash.to_string())),
            Err(error) => Err(Failure::Usage(error.to_string())),
        })
        .collect()
}

fn open(path: &Path) -> Result<Checkpoint, Failure> {
    Checkpoint::open(path).map_err(|error| Failure::Usage(error.to_string()))
}

fn shown(checkpoint: &Checkpoint) -> String {
    let all = checkpoint.tensors();
    let mut names: Vec<String> = all
        .values()
        .take(8)
        .map(|tensor| format!("`{}` {:?}", tensor.name, tensor.shape))
        .collect();
    if all.len() > names.len() {
        names.push(format!("and {} more", all.len() - names.len()));
    }
    names.join(", ")
}

fn tensor(checkpoint: &Checkpoint, name: &str) -> Result<(Vec<usize>, Dtype, Vec<f64>), Failure> {
    let Some(info) = checkpoint.tensors().get(name) else {
        return Err(Failure::Usage(format!(
            "`{}` holds no tensor `{name}`; it has {}",
            checkpoint.path().display(),
            shown(checkpoint)
        )));
    };
    let values = read_real(checkpoint, info)
        .map_err(|error| Failure::Usage(format!("`{}`: {error}", checkpoint.path().display())))?;
    Ok((info.shape.clone(), info.dtype, values))
}

/// The bytes of numbers in a type, each rounded to it.
fn encoded(dtype: Dtype, values: &[f64]) -> Result<Vec<u8>, Failure> {
    let float = match dtype {
        Dtype::F64 => return Ok(values.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Dtype::F32 => Float::F32,
        Dtype::F16 => Float::F16,
        Dtype::BF16 => Float::BF16,
        other => {
            return Err(Failure::Usage(format!(
                "a layer of type {other} cannot be written; convert it to float32 first"
            )));
        }
    };
    let narrow: Vec<f32> = values.iter().map(|&x| x as f32).collect();
    let mut bytes = vec![0; narrow.len() * float.size()];
    encode(float, &narrow, &mut bytes);
    Ok(bytes)
}

fn through(dtype: Dtype, values: &[f64]) -> Result<Vec<f64>, Failure> {
    let bytes = encoded(dtype, values)?;
    merganser_model::mlp::decode_real(dtype, &bytes)
        .ok_or_else(|| Failure::Usage(format!("numbers of type {dtype} cannot be read back")))
}
