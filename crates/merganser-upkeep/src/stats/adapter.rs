//! Adapters: networks ψ that take features of an older model to the space of a newer one.

use merganser_linalg::Matrix;
use merganser_model::{Mlp, Pointwise};
use rayon::prelude::*;

use crate::drift::Affine;
use crate::error::{Error, Result, check_size};

/// Features that are run at a time, so that hidden layers 32 times as wide as the features fit into memory.
const ROWS: usize = 256;

/// A multi-layer perceptron between two spaces, in `f64`.
#[derive(Debug, Clone)]
pub struct Adapter {
    layers: Vec<(Affine, Pointwise)>,
}

impl Adapter {
    /// The adapter of given weights.
    ///
    /// # Errors
    /// None for a network that [`Mlp`] took.
    pub fn new(mlp: &Mlp) -> Result<Self> {
        let layers = mlp.layers().iter().zip(mlp.activations());
        let layers = layers.map(|(layer, &activation)| {
            let weight = Matrix::new(layer.outputs, layer.inputs, layer.weight.clone())?;
            let bias = match &layer.bias {
                Some(bias) => bias.clone(),
                None => vec![0.0; layer.outputs],
            };
            Ok((Affine { weight, bias }, activation))
        });
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
        })
    }

    /// Length of the features of the older model.
    pub fn dim(&self) -> usize {
        self.layers.first().map_or(0, |(map, _)| map.weight.cols())
    }

    /// Length of the features of the newer model.
    pub fn dim_new(&self) -> usize {
        self.layers.last().map_or(0, |(map, _)| map.bias.len())
    }

    /// The affine map that the adapter is, if no layer has an activation.
    pub fn as_affine(&self) -> Option<Affine> {
        let mut all: Option<Affine> = None;
        for (map, activation) in &self.layers {
            if *activation != Pointwise::Identity {
                return None;
            }
            all = Some(match all {
                None => map.clone(),
                Some(before) => before.then(map),
            });
        }
        all
    }

    /// ψ of rows.
    ///
    /// # Errors
    /// If the rows have another length than the adapter reads, or an image is not finite.
    pub fn apply(&self, rows: &Matrix) -> Result<Matrix> {
        check_size(
            || "length of the features, as the adapter's first layer reads them".into(),
            rows.cols(),
            self.dim(),
        )?;
        let mut out = Vec::with_capacity(rows.rows() * self.dim_new());
        for from in (0..rows.rows()).step_by(ROWS) {
            let to = (from + ROWS).min(rows.rows());
            let mut z = rows.rows_range(from, to);
            for (map, activation) in &self.layers {
                z = map.apply(&z);
                z.as_mut_slice()
                    .par_chunks_mut(4096)
                    .for_each(|part| part.iter_mut().for_each(|x| *x = activation.value(*x)));
            }
            if z.check_finite().is_err() {
                return Err(Error::Unfit(
                    "the adapter gives a number that is not finite; its weights, or the features, are out of range".into(),
                ));
            }
            out.extend_from_slice(z.as_slice());
        }
        Ok(Matrix::new(rows.rows(), self.dim_new(), out)?)
    }

    /// The mean of (ψ(x) − y)² over all elements of all pairs of rows x and y: how well the adapter fits them, and the
    /// projected distillation of AdaGauss (arXiv 2409.18265; its code takes the mean, the paper writes the sum).
    ///
    /// # Errors
    /// If the sizes do not fit each other or the adapter.
    pub fn mean_square_error(&self, x: &Matrix, y: &Matrix) -> Result<f64> {
        check_size(
            || "number of features, one for each of the other space".into(),
            y.rows(),
            x.rows(),
        )?;
        check_size(
            || "length of the features of the newer model, as the adapter gives them".into(),
            y.cols(),
            self.dim_new(),
        )?;
        let mut error = self.apply(x)?;
        error.add_scaled(-1.0, y);
        Ok(error.norm().powi(2) / error.as_slice().len().max(1) as f64)
    }
}
