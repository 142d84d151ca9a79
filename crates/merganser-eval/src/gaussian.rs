//! Heads of Gaussian classes, as `merganser head gaussian` and `adagauss` write them.
//!
//! The file holds `gaussian.mean` (C, d), `gaussian.factor` (C, d, d) and `gaussian.bias` (C); with `unit` = `true` in its
//! metadata, features are scaled to length 1 first. The score of class c is b_c − ½ |P_c (f − μ_c)|². Logits are the scores
//! less the largest of the sample, which changes neither the answer nor probabilities, and fits into `f32`.

use std::path::Path;

use candle_core::{Device, Tensor};
use merganser_data::Arrays;

use crate::error::{EvalError, Result};
use crate::forward::Vectors;

/// The tensor by which such a file is known.
pub(crate) const MEAN: &str = "gaussian.mean";
const FACTOR: &str = "gaussian.factor";
const BIAS: &str = "gaussian.bias";

/// A quadratic map of features to scores of classes.
#[derive(Debug)]
pub struct GaussianHead {
    arrays: Arrays,
    classes: usize,
    width: usize,
    /// Whether features are scaled to length 1.
    pub(crate) unit: bool,
}

impl GaussianHead {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let arrays = Arrays::open(path)?;
        let refused = |problem: String| EvalError::Head {
            path: path.to_owned(),
            problem,
        };
        let &[classes, width] = arrays.shape(MEAN)? else {
            return Err(refused(format!(
                "`{MEAN}` has shape {:?}; expected (classes, width)",
                arrays.shape(MEAN)?
            )));
        };
        for (name, expected) in [(FACTOR, vec![classes, width, width]), (BIAS, vec![classes])] {
            let found = arrays.shape(name)?;
            if found != expected {
                return Err(refused(format!(
                    "`{name}` has shape {found:?}; expected {expected:?} as `{MEAN}` has {classes} rows of {width}"
                )));
            }
        }
        let metadata = arrays.metadata();
        if let Some(version) = metadata.get("version").filter(|version| *version != "1") {
            return Err(refused(format!(
                "it has version `{version}`; this program reads version 1"
            )));
        }
        let unit = match metadata.get("unit").map(String::as_str) {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => {
                return Err(refused(format!(
                    "its metadata say `unit` = `{other}`; expected true or false"
                )));
            }
        };
        Ok(Self {
            arrays,
            classes,
            width,
            unit,
        })
    }

    /// Logits of features, (N, C). Factors are read class by class, because there may be many.
    pub(crate) fn apply(&self, features: &Vectors) -> Result<Vectors> {
        let Self {
            arrays,
            classes,
            width,
            ..
        } = self;
        let (classes, width) = (*classes, *width);
        if width != features.width {
            return Err(EvalError::Head {
                path: arrays.path().to_owned(),
                problem: format!(
                    "its means have shape [{classes}, {width}], the model's features have width {}",
                    features.width
                ),
            });
        }
        let (means, bias) = (arrays.numbers(MEAN)?, arrays.numbers(BIAS)?);
        let mut scores = vec![0.0; features.len() * classes];
        for (class, bias) in bias.iter().enumerate() {
            let mean = &means[class * width..][..width];
            let centred: Vec<f64> = features
                .values
                .chunks_exact(width.max(1))
                .flat_map(|row| row.iter().zip(mean).map(|(x, mean)| f64::from(*x) - mean))
                .collect();
            let centred = Tensor::from_vec(centred, (features.len(), width), &Device::Cpu)?;
            let factor = arrays.numbers_from(FACTOR, class * width * width, width * width)?;
            let factor = Tensor::from_vec(factor, (width, width), &Device::Cpu)?;
            let whitened: Vec<f64> = centred.matmul(&factor.t()?)?.flatten_all()?.to_vec1()?;
            for (at, row) in whitened.chunks_exact(width.max(1)).enumerate() {
                let square: f64 = row.iter().map(|x| x * x).sum();
                scores[at * classes + class] = bias - 0.5 * square;
            }
        }
        let mut values = Vec::with_capacity(scores.len());
        for row in scores.chunks_exact(classes.max(1)) {
            let largest = row.iter().fold(f64::NEG_INFINITY, |max, x| max.max(*x));
            values.extend(
                row.iter()
                    .map(|x| (x - largest).max(f32::MIN.into()) as f32),
            );
        }
        Ok(Vectors {
            width: classes,
            values,
        })
    }
}
