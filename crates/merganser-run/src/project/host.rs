//! Where a network merge gets its tensors from and puts them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Tensor};
use merganser_kernels::convert;
use merganser_methods::{Encoding, Survey};
use merganser_model::Weights;
use merganser_plan::{Action, Output};
use merganser_projection::network::{self, HostError, Rule};

use super::Projection;
use super::factored::Factored;
use super::rivals::Rival;
use super::tensors::{Stored, Tensors};
use crate::execute::Work;
use crate::{Event, Observer, RunError};

/// The plan and the files of a merge, as a network merge sees them.
pub(crate) struct Host<'a> {
    pub(super) projection: &'a Projection<'a>,
    pub(super) tensors: &'a Tensors<'a>,
    pub(super) survey: &'a Survey,
    /// Where merged tensors go; nowhere when a merge is only diagnosed.
    pub(super) work: Option<&'a Work<'a>>,
    /// Where factors of merged updates go instead, if the result is an adapter.
    pub(super) factored: Option<&'a Factored>,
    /// Claimed tensors that no earlier run has finished.
    pub(super) pending: &'a BTreeSet<&'a str>,
    /// Merged tensors of which this is not the last word: they are distilled before they are stored.
    pub(super) drafts: Option<Mutex<BTreeMap<String, Tensor>>>,
    pub(super) rivals: &'a [Rival<'a>],
    pub(super) observer: &'a dyn Observer,
}

impl Host<'_> {
    /// Stores a tensor for good, and gives it back as it is stored.
    pub(super) fn store(&self, name: &str, tensor: &Tensor) -> Result<Tensor, HostError> {
        let output = self.output(name)?;
        if let Some(factored) = self.factored {
            return factored.keep(self, output, tensor);
        }
        let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
        let bytes = encoded(output, &values)?;
        if let Some(work) = self.work {
            work.put(output, &bytes)?;
        }
        decoded(output, &bytes)
    }

    fn output(&self, name: &str) -> Result<&Output, HostError> {
        self.tensors.output(name).ok_or_else(|| {
            RunError::Calibration(format!(
                "the network has a tensor '{name}' that the plan lacks"
            ))
            .into()
        })
    }
}

impl network::Host for Host<'_> {
    fn rule(&self, weight: &str) -> Rule {
        self.projection.rule(weight)
    }

    fn prior(&self, tensor: &str) -> Result<Tensor, HostError> {
        Ok(self.tensors.merged(self.output(tensor)?, self.survey)?)
    }

    fn finished(&self, tensor: &str) -> Result<Option<Tensor>, HostError> {
        let output = self.output(tensor)?;
        if let Some(drafts) = &self.drafts
            && self.projection.claims(tensor)
        {
            let drafts = drafts.lock().unwrap_or_else(PoisonError::into_inner);
            return Ok(drafts.get(tensor).cloned());
        }
        match self.work.filter(|_| !self.pending.contains(tensor)) {
            Some(work) => Ok(Some(decoded(output, &work.stored(output)?)?)),
            None => Ok(None),
        }
    }

    fn keep(&self, tensor: &str, merged: Tensor) -> Result<Tensor, HostError> {
        match &self.drafts {
            Some(drafts) => {
                let mut drafts = drafts.lock().unwrap_or_else(PoisonError::into_inner);
                drafts.insert(tensor.to_owned(), merged.clone());
                Ok(merged)
            }
            None => self.store(tensor, &merged),
        }
    }

    fn rivals(&self, tensor: &str) -> Result<Vec<(String, Tensor)>, HostError> {
        let output = self.output(tensor)?;
        let Action::Merge { inputs, .. } = &output.action else {
            return Ok(Vec::new());
        };
        let base = inputs
            .iter()
            .position(|input| Some(input.model) == self.projection.plan.base);
        self.rivals
            .iter()
            .map(|rival| match rival {
                Rival::Method(usual) => {
                    let settings = usual.settings(inputs.len());
                    let inputs = (inputs.as_slice(), base);
                    let survey = Survey::default();
                    let merged =
                        self.tensors
                            .by_method(usual.method, output, inputs, &settings, &survey)?;
                    Ok((usual.name.to_owned(), merged))
                }
                Rival::Merged(name, model) => {
                    Ok(((*name).to_owned(), Stored(model).tensor(tensor)?))
                }
            })
            .collect()
    }

    fn stage(&self, name: &str, number: usize, of: usize) {
        self.observer.event(Event::Stage { name, number, of });
    }
}

/// The bytes of a merged tensor as it is stored, rounded once.
pub(super) fn encoded(output: &Output, values: &[f32]) -> Result<Vec<u8>, RunError> {
    if let Some(index) = values.iter().position(|x| !x.is_finite()) {
        return Err(RunError::Calibration(format!(
            "tensor '{}': element {index} of the merged tensor is {}",
            output.name, values[index]
        )));
    }
    let encoding = encoding(output)?;
    let mut bytes = vec![0; values.len() * encoding.size()];
    convert::encode(encoding, values, &mut bytes);
    let mut back = vec![0.0; values.len()];
    convert::decode(encoding, &bytes, &mut back);
    match back.iter().position(|x| !x.is_finite()) {
        None => Ok(bytes),
        Some(index) => Err(RunError::Calibration(format!(
            "tensor '{}': element {index} of the merged tensor, {}, is too large for {}; choose a wider out_dtype",
            output.name, values[index], output.dtype
        ))),
    }
}

fn encoding(output: &Output) -> Result<convert::Float, RunError> {
    match &output.action {
        Action::Merge {
            encoding: Encoding::Float(kind),
            ..
        }
        | Action::Cast {
            encoding: Encoding::Float(kind),
            ..
        } => Ok(*kind),
        _ => merganser_plan::kernel_float(output.dtype).ok_or_else(|| RunError::NotFloat {
            tensor: output.name.clone(),
            dtype: output.dtype,
        }),
    }
}

fn decoded(output: &Output, bytes: &[u8]) -> Result<Tensor, HostError> {
    let mut values = vec![0.0; output.elements()];
    convert::decode(encoding(output)?, bytes, &mut values);
    Ok(Tensor::from_vec(
        values,
        output.shape.as_slice(),
        &Device::Cpu,
    )?)
}
