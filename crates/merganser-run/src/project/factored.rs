//! A projection of adapters that ends in an adapter: no tensor is stored, merged updates are kept as factors.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Tensor};
use merganser_linalg::{Matrix, gemm};
use merganser_plan::{Output, Plan};
use merganser_projection::network::HostError;
use merganser_report::Report;
use merganser_spectral::{CoreSpace, Lora};
use merganser_store::adapter::Delta;

use super::host::Host;
use super::matrices::values;
use super::tensors::Tensors;
use super::{Projection, merges_matrices};
use crate::adapters::{factors, low_rank};
use crate::{Observer, RunError, survey};

/// The factors found so far, by tensor.
#[derive(Default)]
pub(super) struct Factored(Mutex<BTreeMap<String, Lora>>);

impl Factored {
    /// Keeps the update of a merged tensor as factors and gives the tensor back that they make. The update lies in the
    /// space that the adapters span, but for rounding.
    pub(super) fn keep(
        &self,
        host: &Host<'_>,
        output: &Output,
        tensor: &Tensor,
    ) -> Result<Tensor, HostError> {
        let plan = host.projection.plan;
        let (mut adapters, mut turned) = (Vec::new(), false);
        for task in &host.projection.calibrated.tasks {
            let model = &plan.models[task.model];
            let delta = low_rank(model.deltas(&output.name));
            let Some((adapter, delta)) = model.adapter.as_ref().zip(delta) else {
                continue;
            };
            if let Delta::LowRank { transposed, .. } = delta {
                turned = *transposed;
            }
            adapters.push(factors(adapter.checkpoint(), delta)??);
        }
        let Some((m, n)) = adapters.first().map(Lora::shape) else {
            return Ok(tensor.clone());
        };
        let base = plan.base.ok_or("there is no base model")?;
        let base = values(&host.tensors.of_model(base), output)?;
        let merged: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
        let update = merged
            .iter()
            .zip(&base)
            .map(|(w, base)| f64::from(w - base))
            .collect();
        let update = if turned {
            Matrix::new(n, m, update)?.transpose()
        } else {
            Matrix::new(m, n, update)?
        };
        let space = CoreSpace::of(&adapters)?;
        let core = gemm::mul_nt(&gemm::mul(space.left(), &update), space.right());
        let adapter = space.adapter(&core)?;
        let update = adapter.update();
        let update = if turned { update.transpose() } else { update };
        let stored: Vec<f32> = base
            .iter()
            .zip(update.as_slice())
            .map(|(base, x)| (f64::from(*base) + x) as f32)
            .collect();
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        found.insert(output.name.clone(), adapter);
        Ok(Tensor::from_vec(
            stored,
            output.shape.as_slice(),
            &Device::Cpu,
        )?)
    }
}

/// The merged updates of a plan's adapters as factors, by tensor, and what was found out on the way. `words` are the
/// title and the recipe's text.
///
/// # Errors
/// Those of a merge that looks at data.
pub fn project_factors(
    plan: &Plan,
    words: (&str, &str),
    allow_nonfinite: bool,
    observer: &dyn Observer,
) -> Result<(BTreeMap<String, Lora>, Report), RunError> {
    let projection = Projection::of(plan)?
        .filter(|projection| !merges_matrices(projection.calibrated))
        .ok_or_else(|| RunError::Calibration("the recipe's method looks at no data".into()))?;
    let tensors = Tensors::new(plan, allow_nonfinite);
    let factored = Factored::default();
    let host = Host {
        projection: &projection,
        tensors: &tensors,
        survey: &survey::measure(plan, allow_nonfinite, observer)?,
        work: None,
        factored: Some(&factored),
        pending: &BTreeSet::new(),
        drafts: None,
        rivals: &[],
        observer,
    };
    let report = projection.walk(&host, &tensors, Vec::new(), words)?;
    let found = factored
        .0
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    Ok((found, report))
}
