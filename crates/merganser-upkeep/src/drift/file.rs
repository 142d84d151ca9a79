//! The file of a drift: safetensors, all numbers in `f64`.
//!
//! | kind | tensors |
//! |---|---|
//! | `shift` | `shift` (d) |
//! | `orthogonal` | `rotation` (d, d), `translation` (d) |
//! | `affine` | `weight` (d′, d), `bias` (d′); the way back `backward.weight` (d, d′), `backward.bias` (d) |
//! | `clusters` | `centroids` (k, d), `shifts` (k, d), `mean` (d) |
//!
//! Metadata: `format` = `merganser-drift`, `version` = `1`, `kind`, `from`, `to`, `direction` = `new = f(old)`, `unit`,
//! `anchors`, `dim`, `measured` (a JSON object of numbers). Other programs may write such files; `from`, `to`, `unit` and
//! `anchors` may be missing there.

use std::collections::BTreeMap;
use std::path::Path;

use merganser_data::Arrays;
use merganser_linalg::Matrix;
use merganser_store::new_file::write_tensors;

use super::{Affine, Drift, Map};
use crate::error::{Error, Result};
use crate::tensors::{matrix_of, tensor};

const FORMAT: &str = "merganser-drift";
const VERSION: &str = "1";
const DIRECTION: &str = "new = f(old)";
/// How far QᵀQ may be from the identity in a file: rotations may be stored in half precision.
const ORTHOGONAL: f64 = 1e-2;

impl Drift {
    /// Writes the drift.
    ///
    /// # Errors
    /// If the file is there and `overwrite` is not set, or the disk fails.
    pub fn write(&self, path: &Path, overwrite: bool) -> Result<()> {
        let mut metadata: BTreeMap<String, String> = [
            ("format", FORMAT.to_owned()),
            ("version", VERSION.to_owned()),
            ("kind", self.map.kind().to_owned()),
            ("from", self.from.clone()),
            ("to", self.to.clone()),
            ("direction", DIRECTION.to_owned()),
            ("unit", self.unit.to_string()),
            ("anchors", self.anchors.to_string()),
            ("dim", self.map.dim().to_string()),
            ("writer", format!("merganser {}", env!("CARGO_PKG_VERSION"))),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
        metadata.insert(
            "measured".into(),
            serde_json::json!(self.measured).to_string(),
        );
        let vector = |name: &str, v: &[f64]| tensor(name, &[v.len()], v);
        let square = |name: &str, m: &Matrix| tensor(name, &[m.rows(), m.cols()], m.as_slice());
        let tensors = match &self.map {
            Map::Shift(shift) => vec![vector("shift", shift)],
            Map::Orthogonal(map) => vec![
                square("rotation", &map.weight),
                vector("translation", &map.bias),
            ],
            Map::Affine { forward, backward } => {
                let mut all = vec![
                    square("weight", &forward.weight),
                    vector("bias", &forward.bias),
                ];
                if let Some(map) = backward {
                    all.push(square("backward.weight", &map.weight));
                    all.push(vector("backward.bias", &map.bias));
                }
                all
            }
            Map::Clusters {
                centroids,
                shifts,
                mean,
            } => vec![
                square("centroids", centroids),
                square("shifts", shifts),
                vector("mean", mean),
            ],
        };
        Ok(write_tensors(path, overwrite, &metadata, &tensors)?)
    }

    /// Reads a drift.
    ///
    /// # Errors
    /// If the file cannot be read, is none of a drift, or its tensors do not fit each other.
    pub fn read(path: &Path) -> Result<Self> {
        let arrays = Arrays::open(path)?;
        let metadata = arrays.metadata();
        let text = |key: &str| metadata.get(key).map(String::as_str);
        let refuse = |problem: String| Err(Error::file(path, problem));
        if text("format") != Some(FORMAT) {
            return refuse(format!(
                "its metadata has no `format` of `{FORMAT}`; write it with `merganser drift fit`"
            ));
        }
        if text("version") != Some(VERSION) {
            return refuse(format!(
                "it has version `{}`; this program reads version {VERSION}",
                text("version").unwrap_or("none")
            ));
        }
        if let Some(other) = text("direction").filter(|&other| other != DIRECTION) {
            return refuse(format!(
                "its direction is `{other}`; expected `{DIRECTION}`: a drift is new − old"
            ));
        }
        let vector = |name: &str, length: usize| -> Result<Vec<f64>> {
            let shape = arrays.shape(name)?;
            if shape != [length] {
                return Err(arrays
                    .refuse(name, format!("shape {shape:?}; expected [{length}]"))
                    .into());
            }
            Ok(arrays.numbers(name)?)
        };
        let affine = |weight: &str, bias: &str| -> Result<Affine> {
            let weight = matrix_of(&arrays, weight)?;
            Ok(Affine {
                bias: vector(bias, weight.rows())?,
                weight,
            })
        };
        let map = match text("kind") {
            Some("shift") => {
                let shape = arrays.shape("shift")?;
                let length = shape.first().copied().unwrap_or(0);
                Map::Shift(vector("shift", length)?)
            }
            Some("orthogonal") => {
                let map = affine("rotation", "translation")?;
                check_orthogonal(&arrays, &map.weight)?;
                Map::Orthogonal(map)
            }
            Some("affine") => {
                let forward = affine("weight", "bias")?;
                let backward = if arrays.contains("backward.weight") {
                    let back = affine("backward.weight", "backward.bias")?;
                    let expected = (forward.weight.cols(), forward.weight.rows());
                    if back.weight.shape() != expected {
                        return Err(arrays
                            .refuse(
                                "backward.weight",
                                format!(
                                    "shape {:?}; expected {expected:?}, the other way round as `weight`",
                                    back.weight.shape()
                                ),
                            )
                            .into());
                    }
                    Some(back)
                } else {
                    None
                };
                Map::Affine { forward, backward }
            }
            Some("clusters") => {
                let centroids = matrix_of(&arrays, "centroids")?;
                let shifts = matrix_of(&arrays, "shifts")?;
                if shifts.shape() != centroids.shape() || centroids.rows() == 0 {
                    return Err(arrays
                        .refuse(
                            "shifts",
                            format!(
                                "shape {:?}; expected that of `centroids`, {:?}, with at least one row",
                                shifts.shape(),
                                centroids.shape()
                            ),
                        )
                        .into());
                }
                Map::Clusters {
                    mean: vector("mean", centroids.cols())?,
                    centroids,
                    shifts,
                }
            }
            other => {
                return refuse(format!(
                    "its kind is `{}`; expected shift, orthogonal, affine or clusters",
                    other.unwrap_or("none")
                ));
            }
        };
        if map.dim() == 0 || map.dim_new() == 0 {
            return refuse("its vectors have no elements".into());
        }
        let measured = text("measured")
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default();
        Ok(Self {
            from: text("from").unwrap_or("old").to_owned(),
            to: text("to").unwrap_or("new").to_owned(),
            unit: match text("unit") {
                None | Some("false") => false,
                Some("true") => true,
                Some(other) => {
                    return refuse(format!("its `unit` is `{other}`; expected true or false"));
                }
            },
            anchors: text("anchors")
                .and_then(|text| text.parse().ok())
                .unwrap_or(0),
            map,
            measured,
        })
    }
}

fn check_orthogonal(arrays: &Arrays, rotation: &Matrix) -> Result<()> {
    let refuse = |problem: String| Err(arrays.refuse("rotation", problem).into());
    if rotation.rows() != rotation.cols() {
        return refuse(format!("shape {:?}; expected a square", rotation.shape()));
    }
    let mut rest = merganser_linalg::gemm::mul_tn(rotation, rotation);
    rest.add_scaled(-1.0, &Matrix::identity(rotation.rows()));
    let largest = rest
        .as_slice()
        .iter()
        .fold(0.0_f64, |max, x| max.max(x.abs()));
    if largest > ORTHOGONAL {
        return refuse(format!(
            "is no rotation: QᵀQ differs from the identity by {largest:.2e}; a map of another kind is `affine`"
        ));
    }
    Ok(())
}
