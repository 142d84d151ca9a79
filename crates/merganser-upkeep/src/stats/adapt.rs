//! Statistics taken to the space of a newer model.
//!
//! Of x ↦ A x + b the mean becomes A μ + b and the covariance A Σ Aᵀ, exactly: no sampling is needed, as it is for adapters
//! that are networks ([`adapt_by_samples`](Stats::adapt_by_samples)). Of the Gram matrix G = Σ f fᵀ with s = Σ f and N features:
//! A G Aᵀ + A s bᵀ + b sᵀ Aᵀ + N b bᵀ.

use merganser_linalg::{Matrix, gemm};

use super::{Stats, symmetrised};
use crate::drift::{Affine, Direction, Drift};
use crate::error::{Error, Result, check_size};

impl Stats {
    /// The statistics of the same features in the new space of `drift`.
    ///
    /// # Errors
    /// If the drift is one of clusters, which is no affine map, or of features of another length.
    pub fn adapt(&self, drift: &Drift) -> Result<Self> {
        let Some(map) = drift.as_affine(Direction::ToNew) else {
            return Err(Error::Unfit(
                "statistics can be taken to a new space by one shift, a rotation or an affine map, and this drift is of \
                 clusters; fit it with another --kind"
                    .into(),
            ));
        };
        check_size(
            || {
                format!(
                    "length of the features of `{}`, the drift's old version",
                    drift.from
                )
            },
            self.dim(),
            map.weight.cols(),
        )?;
        self.adapt_affine(&map)
    }

    /// The statistics of the images of the same features by x ↦ A x + b.
    ///
    /// # Errors
    /// If the features have another length than A has columns.
    pub fn adapt_affine(&self, map: &Affine) -> Result<Self> {
        check_size(
            || "length of the features, as the map reads them".into(),
            self.dim(),
            map.weight.cols(),
        )?;
        let both = |matrix: &Matrix| {
            let left = gemm::mul(&map.weight, matrix);
            symmetrised(gemm::mul_nt(&left, &map.weight))
        };
        let gram = self.gram.as_ref().map(|gram| {
            let mut sum = Matrix::zeros(1, self.dim());
            for (i, &count) in self.counts.iter().enumerate() {
                for (sum, x) in sum.row_mut(0).iter_mut().zip(self.means.row(i)) {
                    *sum += count as f64 * x;
                }
            }
            let total: f64 = self.counts.iter().map(|&count| count as f64).sum();
            let turned = gemm::mul_nt(&sum, &map.weight);
            let mut out = both(gram);
            for i in 0..out.rows() {
                for j in 0..out.cols() {
                    let (a, b) = (turned.get(0, i), turned.get(0, j));
                    let more =
                        a * map.bias[j] + map.bias[i] * b + total * map.bias[i] * map.bias[j];
                    out.set(i, j, out.get(i, j) + more);
                }
            }
            out
        });
        Ok(Self {
            classes: self.classes.clone(),
            counts: self.counts.clone(),
            means: map.apply(&self.means),
            covs: self
                .covs
                .as_ref()
                .map(|covs| covs.iter().map(both).collect()),
            gram,
        })
    }
}
