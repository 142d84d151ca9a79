//! Statistics of classes: what a client, a shard or an earlier version of a model leaves of its features.
//!
//! A [`Stats`] holds rows; each is the mean of `count` features of one class. A class may have several rows, as if several
//! clients had sent them. Optional are the covariance of each row and the Gram matrix of all features.
//!
//! The file is safetensors:
//!
//! | tensor | shape | |
//! |---|---|---|
//! | `mean` | (R, d) | the mean of each row |
//! | `count` | (R) | how many features it is the mean of; rows of 0 are left out |
//! | `class_ids` | (R) | its class, from 0; without it row i is of class i |
//! | `cov` | (R, d, d) | its covariance with divisor count − 1; optional |
//! | `gram` | (d, d) | Σ f fᵀ over all features; optional |
//!
//! Metadata: `format` = `merganser-stats`, `version` = `1`; files of other programs may lack both.

mod adapt;
mod adapter;
mod build;
pub mod collapse;
pub mod covariance;
mod merge;
mod sample;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::Path;

use merganser_data::Arrays;
use merganser_linalg::Matrix;
use merganser_store::Dtype;
use merganser_store::new_file::write_tensors;

pub use adapter::Adapter;
pub use build::BuildOptions;
pub use sample::{Draw, SampleOptions, Sampled, Strategy, draw_features};

use crate::error::{Error, Result};
use crate::tensors::{matrix_of, spec, tensor};

const FORMAT: &str = "merganser-stats";
const VERSION: &str = "1";
/// How far a covariance may be from symmetric, relative to its largest element: single precision.
const SYMMETRIC: f64 = 1e-4;

/// Statistics of the features of some classes.
#[derive(Debug, Clone, PartialEq)]
pub struct Stats {
    /// The class of each row.
    pub classes: Vec<usize>,
    /// Number of features each row is the mean of, at least 1.
    pub counts: Vec<u64>,
    /// The mean of each row.
    pub means: Matrix,
    /// The unbiased covariance of each row (divisor count − 1, zero where the count is 1).
    pub covs: Option<Vec<Matrix>>,
    /// Σ f fᵀ over all features.
    pub gram: Option<Matrix>,
}

impl Stats {
    /// Length of the features.
    pub fn dim(&self) -> usize {
        self.means.cols()
    }

    /// Compares two rows by what they hold, so that an order of rows does not depend on where they came from.
    pub(crate) fn compare_rows(&self, a: usize, other: &Self, b: usize) -> Ordering {
        self.classes[a]
            .cmp(&other.classes[b])
            .then(self.counts[a].cmp(&other.counts[b]))
            .then_with(|| {
                let pairs = self.means.row(a).iter().zip(other.means.row(b));
                pairs
                    .map(|(x, y)| x.total_cmp(y))
                    .find(|order| order.is_ne())
                    .unwrap_or(Ordering::Equal)
            })
    }

    /// Puts the rows into an order that depends on nothing but what they hold.
    pub(crate) fn sort(&mut self) {
        let mut order: Vec<usize> = (0..self.classes.len()).collect();
        order.sort_by(|&a, &b| self.compare_rows(a, self, b));
        self.select(&order);
    }

    fn select(&mut self, rows: &[usize]) {
        self.classes = rows.iter().map(|&i| self.classes[i]).collect();
        self.counts = rows.iter().map(|&i| self.counts[i]).collect();
        self.means = self.means.gather_rows(rows);
        if let Some(covs) = &mut self.covs {
            *covs = rows.iter().map(|&i| covs[i].clone()).collect();
        }
    }

    /// Reads statistics. Rows without features are left out; there may be none then.
    ///
    /// # Errors
    /// If the file cannot be read, its tensors do not fit each other, or a number is not finite, a count no whole number, a
    /// covariance not symmetric.
    pub fn read(path: &Path) -> Result<Self> {
        let arrays = Arrays::open(path)?;
        let metadata = arrays.metadata();
        if let Some(other) = metadata.get("format").filter(|&other| other != FORMAT)
            && other != "pt"
        {
            return Err(Error::file(
                path,
                format!(
                    "its format is `{other}`; expected `{FORMAT}`, as `merganser stats build` writes it"
                ),
            ));
        }
        if metadata.get("format").is_some_and(|f| f == FORMAT)
            && metadata.get("version").is_some_and(|v| v != VERSION)
        {
            return Err(Error::file(
                path,
                format!(
                    "it has version `{}`; this program reads version {VERSION}",
                    metadata["version"]
                ),
            ));
        }
        let means = matrix_of(&arrays, "mean")?;
        let (rows, dim) = means.shape();
        if dim == 0 {
            return Err(arrays.refuse("mean", "its vectors have no elements").into());
        }
        let whole = |name: &str| -> Result<Vec<u64>> {
            if arrays.shape(name)? != [rows] {
                return Err(arrays
                    .refuse(
                        name,
                        format!(
                            "shape {:?}; expected [{rows}], one a row of `mean`",
                            arrays.shape(name)?
                        ),
                    )
                    .into());
            }
            let refuse = |at: usize, x: String| {
                arrays.refuse(
                    name,
                    format!("number {at} is {x}; expected whole numbers from 0"),
                )
            };
            if arrays.is_float(name)? {
                let numbers = arrays.numbers(name)?.into_iter().enumerate();
                return numbers
                    .map(|(at, x)| {
                        if x >= 0.0 && x.fract() == 0.0 && x < 9e15 {
                            Ok(x as u64)
                        } else {
                            Err(refuse(at, x.to_string()).into())
                        }
                    })
                    .collect();
            }
            let numbers = arrays.integers(name)?.into_iter().enumerate();
            numbers
                .map(|(at, x)| u64::try_from(x).map_err(|_| refuse(at, x.to_string()).into()))
                .collect()
        };
        let counts = whole("count")?;
        let classes = if arrays.contains("class_ids") {
            whole("class_ids")?
                .into_iter()
                .map(|x| usize::try_from(x).unwrap_or(usize::MAX))
                .collect()
        } else {
            (0..rows).collect()
        };
        let square = |name: &str, matrix: Matrix| -> Result<Matrix> {
            let (off, largest) = asymmetry(&matrix);
            if off > SYMMETRIC * largest {
                return Err(arrays
                    .refuse(name, format!("is not symmetric: elements differ by {off}"))
                    .into());
            }
            Ok(symmetrised(matrix))
        };
        let covs = if arrays.contains("cov") {
            if arrays.shape("cov")? != [rows, dim, dim] {
                return Err(arrays
                    .refuse(
                        "cov",
                        format!(
                            "shape {:?}; expected [{rows}, {dim}, {dim}]",
                            arrays.shape("cov")?
                        ),
                    )
                    .into());
            }
            let each = (0..rows).map(|row| {
                let numbers = arrays.numbers_from("cov", row * dim * dim, dim * dim)?;
                square("cov", Matrix::new(dim, dim, numbers)?)
            });
            Some(each.collect::<Result<Vec<_>>>()?)
        } else {
            None
        };
        let gram = if arrays.contains("gram") {
            let gram = matrix_of(&arrays, "gram")?;
            crate::error::check_size(
                || format!("rows of `gram` in `{}`", path.display()),
                gram.rows(),
                dim,
            )?;
            crate::error::check_size(
                || format!("columns of `gram` in `{}`", path.display()),
                gram.cols(),
                dim,
            )?;
            Some(square("gram", gram)?)
        } else {
            None
        };
        let mut stats = Self {
            classes,
            counts,
            means,
            covs,
            gram,
        };
        let present: Vec<usize> = (0..rows).filter(|&i| stats.counts[i] > 0).collect();
        stats.select(&present);
        Ok(stats)
    }

    /// Writes the statistics, numbers in `f64`.
    ///
    /// # Errors
    /// If the file is there and `overwrite` is not set, or the disk fails.
    pub fn write(&self, path: &Path, overwrite: bool) -> Result<()> {
        let metadata: BTreeMap<String, String> = [("format", FORMAT), ("version", VERSION)]
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let (rows, dim) = self.means.shape();
        let whole = |name: &str, values: &mut dyn Iterator<Item = u64>| {
            let bytes = values.flat_map(u64::to_le_bytes).collect();
            (spec(name, Dtype::I64, &[rows]), bytes)
        };
        let mut tensors = vec![
            tensor("mean", &[rows, dim], self.means.as_slice()),
            whole("count", &mut self.counts.iter().copied()),
            whole("class_ids", &mut self.classes.iter().map(|&c| c as u64)),
        ];
        if let Some(covs) = &self.covs {
            let mut all = Vec::with_capacity(rows * dim * dim);
            for cov in covs {
                all.extend_from_slice(cov.as_slice());
            }
            tensors.push(tensor("cov", &[rows, dim, dim], &all));
        }
        if let Some(gram) = &self.gram {
            tensors.push(tensor("gram", &[dim, dim], gram.as_slice()));
        }
        Ok(write_tensors(path, overwrite, &metadata, &tensors)?)
    }
}

/// The largest difference of mirrored elements, and the largest magnitude.
fn asymmetry(matrix: &Matrix) -> (f64, f64) {
    let (mut off, mut largest) = (0.0_f64, 0.0_f64);
    for i in 0..matrix.rows() {
        for j in 0..=i {
            off = off.max((matrix.get(i, j) - matrix.get(j, i)).abs());
            largest = largest.max(matrix.get(i, j).abs());
        }
    }
    (off, largest)
}

/// (M + Mᵀ) / 2.
pub(crate) fn symmetrised(mut matrix: Matrix) -> Matrix {
    for i in 0..matrix.rows() {
        for j in 0..i {
            let mean = f64::midpoint(matrix.get(i, j), matrix.get(j, i));
            matrix.set(i, j, mean);
            matrix.set(j, i, mean);
        }
    }
    matrix
}
