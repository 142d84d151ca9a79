//! KnOTS: updates turned into a common basis before an element-wise merge.
//!
//! [D_1 … D_T] = U Σ [V_1 … V_T]ᵀ gives every update the coordinates Y_t = Σ V_tᵀ = Uᵀ D_t over one set of output
//! directions. TIES (with or without DARE before it) merges the Y_t to Y, and Δ = U Y (Stoica et al., *Model Merging with
//! SVD to Tie the Knots*, ICLR 2025, arXiv 2410.19735). As published, a task's largest entries are chosen over all layers at
//! once; directions with σ ≤ 10⁻⁵ are dropped.
//!
//! For adapters the decomposition costs next to nothing: with A_t = L_t Q_t and orthonormal rows in Q_t, [B_1 L_1 … B_T L_T]
//! has the same U and Σ.

use merganser_linalg::{Matrix, Real, Svd, gemm};

use crate::core_space::blocks;
use crate::elementwise::{dare, ties};
use crate::error::check_range;
use crate::isotropic::flattened;
use crate::span::{InSpan, Keep};
use crate::{Error, Lora, NOISE, Result, Updates, lora};

/// Singular values that the published code drops.
const DROPPED: f64 = 1e-5;

/// The updates of one layer over common output directions.
#[derive(Debug, Clone, PartialEq)]
pub struct Aligned {
    left: Matrix,
    values: Vec<f64>,
    parts: Vec<Matrix>,
}

impl Aligned {
    /// Of whole updates.
    ///
    /// # Errors
    /// If there is no update, shapes differ, a number is not finite, or a decomposition does not converge.
    pub fn of_updates<T: Real>(updates: &(impl Updates<T> + ?Sized)) -> Result<Self> {
        let (m, n) = updates.shape()?;
        let column = |task| Ok(updates.checked(task)?.cast().transpose());
        let columns: Vec<Matrix> = (0..updates.tasks()).map(column).collect::<Result<_>>()?;
        let svd = Svd::truncated(&Matrix::stack_rows(&columns), m, NOISE)?;
        let svd = significant(&svd);
        Ok(Self {
            parts: blocks(&svd, &vec![n; updates.tasks()]),
            left: svd.right,
            values: svd.values,
        })
    }

    /// Of adapters, without forming their updates.
    ///
    /// # Errors
    /// If there is no adapter, shapes differ, or a decomposition does not converge.
    pub fn of_adapters(adapters: &[Lora]) -> Result<Self> {
        lora::common_shape(adapters)?;
        let (mut columns, mut rows) = (Vec::new(), Vec::new());
        for adapter in adapters {
            let mut inputs = Svd::of(adapter.a())?;
            inputs.left.scale_rows(&inputs.values);
            let mut column = gemm::mul_nt(&inputs.left, adapter.b());
            column.scale(adapter.scale());
            columns.push(column);
            rows.push(inputs.right);
        }
        let svd = significant(&Svd::of(&Matrix::stack_rows(&columns))?);
        let sizes: Vec<usize> = rows.iter().map(Matrix::rows).collect();
        let parts = blocks(&svd, &sizes);
        Ok(Self {
            parts: parts
                .iter()
                .zip(&rows)
                .map(|(x, q)| gemm::mul(x, q))
                .collect(),
            left: svd.right,
            values: svd.values,
        })
    }

    /// Y_t of every task: one row for each common direction.
    pub fn parts(&self) -> &[Matrix] {
        &self.parts
    }

    /// U Y.
    ///
    /// # Panics
    /// If Y does not have a row for each common direction.
    pub fn update(&self, merged: &Matrix) -> Matrix {
        gemm::mul_tn(&self.left, merged)
    }

    /// Merges the V_t without Σ by any method for coordinates, and gives U Σ V, made isotropic as a whole where that is
    /// asked for: the variant with which the publication of core space compares.
    ///
    /// # Errors
    /// If a share of the method is out of range or a decomposition does not converge.
    pub fn merge_directions(&self, method: &InSpan, keep: Keep<'_>) -> Result<Matrix> {
        let inverse: Vec<f64> = self.values.iter().map(|x| 1.0 / x).collect();
        let mut directions = self.parts.clone();
        for part in &mut directions {
            part.scale_rows(&inverse);
        }
        let mut merged = method.inner.merge(&directions, keep)?;
        merged.scale_rows(&self.values);
        let update = self.update(&merged);
        if method.isotropic {
            flattened(&update).map(|merged| merged.update)
        } else {
            Ok(update)
        }
    }
}

fn significant(svd: &Svd) -> Svd {
    svd.leading(svd.values.iter().take_while(|&&x| x > DROPPED).count())
}

/// The merged updates of some layers, whose entries are trimmed together: a `density` of all of a task's stays. With
/// `drop`, entries are dropped at random before; `keep` says which of a task, counted through all layers.
///
/// # Errors
/// If a share is out of range or the layers have different numbers of tasks.
pub fn knots(
    layers: &[Aligned],
    density: f64,
    drop: Option<f64>,
    keep: Keep<'_>,
) -> Result<Vec<Matrix>> {
    check_range("the density", density, (0.0, 1.0), "from 0 to 1")?;
    let count = layers.first().ok_or(Error::NoTasks)?.parts.len();
    let mut tasks = vec![Vec::new(); count];
    for (i, layer) in layers.iter().enumerate() {
        if layer.parts.len() != count {
            return Err(Error::Range {
                what: format!("the number of tasks of layer {i}"),
                found: layer.parts.len() as f64,
                expected: "the same for all layers",
            });
        }
        for (task, part) in tasks.iter_mut().zip(&layer.parts) {
            task.extend_from_slice(part.as_slice());
        }
    }
    if let Some(drop) = drop {
        check_range(
            "the share of dropped entries",
            drop,
            (0.0, 1.0 - f64::EPSILON),
            "at least 0 and less than 1",
        )?;
        for (t, task) in tasks.iter_mut().enumerate() {
            dare(task, drop, |i| keep(t, i));
        }
    }
    let mut merged = ties(&tasks, density).into_iter();
    layers
        .iter()
        .map(|layer| {
            let (rows, cols) = layer.parts.first().map_or((0, 0), Matrix::shape);
            let own = merged.by_ref().take(rows * cols).collect();
            Ok(layer.update(&Matrix::new(rows, cols, own)?))
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::span::Inner;
    use crate::testing::{distance, update};

    fn adapters() -> Vec<Lora> {
        (0..3)
            .map(|t| Lora::new(update(t, 2, 7), update(t + 9, 9, 2), 0.5).unwrap())
            .collect()
    }

    #[test]
    fn adapters_are_aligned_as_their_updates_are() {
        let adapters = adapters();
        let updates: Vec<Matrix> = adapters.iter().map(Lora::update).collect();
        let one = Aligned::of_adapters(&adapters).unwrap();
        let other = Aligned::of_updates(&updates.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(one.values.len(), 6);
        assert!(
            one.values
                .iter()
                .zip(&other.values)
                .all(|(x, y)| (x - y).abs() < 1e-10)
        );
        for ((x, y), update) in one.parts.iter().zip(&other.parts).zip(&updates) {
            assert!(distance(&one.update(x), update) < 1e-12);
            assert!(distance(&other.update(y), update) < 1e-9);
        }
        let merge = |layer: Aligned| knots(&[layer], 0.4, None, &|_, _| true).unwrap().remove(0);
        assert!(distance(&merge(one), &merge(other)) < 1e-9);
    }

    #[test]
    fn a_sum_of_directions_is_a_sum_of_updates() {
        let adapters = adapters();
        let merged = Aligned::of_adapters(&adapters)
            .unwrap()
            .merge_directions(&Inner::TaskArithmetic.into(), &|_, _| true)
            .unwrap();
        let updates: Vec<Matrix> = adapters.iter().map(Lora::update).collect();
        let sum = crate::sum(&updates.iter().collect::<Vec<_>>()).unwrap();
        assert!(distance(&merged, &sum) < 1e-12);
    }

    #[test]
    fn zeros_and_bad_input() {
        let zero = Matrix::<f64>::zeros(4, 3);
        let layer = Aligned::of_updates(&[&zero, &zero]).unwrap();
        assert_eq!(
            knots(std::slice::from_ref(&layer), 0.2, None, &|_, _| true).unwrap(),
            [zero]
        );
        assert!(knots(std::slice::from_ref(&layer), 1.2, None, &|_, _| true).is_err());
        assert!(knots(&[layer], 0.2, Some(1.0), &|_, _| true).is_err());
        assert!(knots(&[], 0.2, None, &|_, _| true).is_err());
        assert!(Aligned::of_updates::<f32>(&[]).is_err());
    }
}
