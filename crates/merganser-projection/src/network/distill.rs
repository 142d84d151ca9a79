//! Distillation: a few steps of gradient descent on the whole merged network's features, without labels.
//!
//! A projection solves layer by layer, each for the squared error of its own output; what later layers need of an output
//! it does not know. Distillation does: with f the student's feature of a sample (the class token, the mean over tokens,
//! or all tokens of the last hidden state) and h_l the hidden state after block l,
//!
//! ```text
//! L = 1/T Σ_t [ ‖f − f_t‖² / E_t  +  μ/L Σ_l ‖h_l − h_t,l‖² / E_t,l ]
//! ```
//!
//! where f_t, h_t,l are the teacher's on the same samples and E the energies by which the base model misses them. Adam
//! starts from the projection; the learning rate of a tensor is η times the root mean square of the task vectors there,
//! so one η serves all networks. The rate rises for a twentieth of the steps and falls along a cosine.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{D, Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use merganser_model::{Batch, Network, Reg, StageKind, StageWeights, State, Weights};
use rayon::prelude::*;

use super::feature::Feature;
use super::walk::forward;
use super::{NetworkError, Teacher};

/// How far and on what a merged network is distilled.
#[derive(Debug, Clone, PartialEq)]
pub struct Distillation {
    /// Steps of Adam; 0 for none.
    pub steps: usize,
    /// η: learning rate in root mean squares of the task vectors.
    pub rate: f64,
    /// μ: weight of the hidden states after each block.
    pub hidden: f64,
    /// What of the last hidden state counts.
    pub feature: Feature,
    /// Order of the samples.
    pub seed: u64,
}

/// What teachers give on one batch.
struct Target {
    feature: Tensor,
    hidden: Vec<Tensor>,
}

/// Distils a merged network. `student` gives every tensor of it; those in `merged` are trained and returned.
///
/// # Errors
/// Forward passes that fail, losses that are not finite.
pub fn distill(
    network: &Network,
    base: &dyn Weights,
    teachers: &[Teacher<'_>],
    student: &dyn Weights,
    merged: &BTreeMap<String, Tensor>,
    settings: &Distillation,
    step: &(dyn Fn(usize, f64) + Sync),
) -> Result<BTreeMap<String, Tensor>, NetworkError> {
    let device = Device::Cpu;
    let problem = |error: candle_core::Error| forward("the merged model")(error.into());
    let plan = Plan::new(network, settings);
    let mut targets = Vec::with_capacity(teachers.len());
    for teacher in teachers {
        targets.push(plan.targets(network, base, teacher)?);
    }
    let vars = merged
        .iter()
        .map(|(name, tensor)| Ok((name.clone(), Var::from_tensor(&tensor.contiguous()?)?)))
        .collect::<candle_core::Result<BTreeMap<String, Var>>>()
        .map_err(problem)?;
    let mut optimisers = Vec::new();
    for (name, var) in &vars {
        let scale = root_mean_square(name, base, teachers)?;
        if scale > 0.0 {
            let parameters = ParamsAdamW {
                lr: settings.rate * scale,
                beta2: 0.99,
                weight_decay: 0.0,
                ..ParamsAdamW::default()
            };
            let adam = AdamW::new(vec![var.clone()], parameters).map_err(problem)?;
            optimisers.push((adam, settings.rate * scale));
        }
    }
    let weights = Mixed {
        vars: &vars,
        rest: student,
    };
    let resident = Resident::of(network, &weights).map_err(forward("the merged model"))?;
    let mut orders: Vec<Order> = teachers
        .iter()
        .enumerate()
        .map(|(t, teacher)| Order::new(teacher.batches.len(), settings.seed.wrapping_add(t as u64)))
        .collect();
    for k in 0..settings.steps {
        let batches: Vec<usize> = orders.iter_mut().map(Order::next).collect();
        let passes = teachers
            .par_iter()
            .zip(&targets)
            .zip(&batches)
            .map(|((teacher, targets), batch)| {
                let target = &targets.batches[*batch];
                let state = State::new(network, &teacher.batches[*batch], &device)
                    .map_err(forward(&teacher.name))?;
                let loss = plan
                    .loss(
                        network,
                        &resident,
                        state.differentiable(true),
                        target,
                        targets,
                    )
                    .map_err(forward(&teacher.name))?;
                let loss = (loss * (teacher.weight / teachers.len() as f64)).map_err(problem)?;
                let value = loss.to_scalar::<f32>().map_err(problem)?;
                Ok((f64::from(value), loss.backward().map_err(problem)?))
            })
            .collect::<Result<Vec<(f64, GradStore)>, NetworkError>>()?;
        let mut loss = 0.0;
        let mut gradients: Option<GradStore> = None;
        for (value, own) in passes {
            loss += value;
            match &mut gradients {
                None => gradients = Some(own),
                Some(sum) => add(sum, &own, &vars).map_err(problem)?,
            }
        }
        if !loss.is_finite() {
            return Err(NetworkError::NotFinite {
                model: "the merged model".to_owned(),
                tensor: "the loss of its distillation".to_owned(),
            });
        }
        let factor = schedule(k, settings.steps);
        if let Some(gradients) = &gradients {
            for (adam, rate) in &mut optimisers {
                adam.set_learning_rate(*rate * factor);
                adam.step(gradients).map_err(problem)?;
            }
        }
        step(k + 1, loss);
    }
    vars.into_iter()
        .map(|(name, var)| Ok((name, var.as_detached_tensor().copy().map_err(problem)?)))
        .collect()
}

/// Adds the gradients of the trained tensors; what else the store holds is of no use.
fn add(
    sum: &mut GradStore,
    own: &GradStore,
    vars: &BTreeMap<String, Var>,
) -> candle_core::Result<()> {
    for var in vars.values() {
        if let Some(gradient) = own.get(var) {
            let total = match sum.get(var) {
                Some(known) => (known + gradient)?,
                None => gradient.clone(),
            };
            sum.insert(var, total);
        }
    }
    Ok(())
}

/// Rises for a twentieth of the steps, falls along a cosine.
fn schedule(k: usize, steps: usize) -> f64 {
    let warm = (k + 1) as f64 / (steps as f64 * 0.05).max(1.0);
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * k as f64 / steps as f64).cos());
    warm.min(1.0) * cosine
}

/// Root mean square of the task vectors of one tensor.
fn root_mean_square(
    name: &str,
    base: &dyn Weights,
    teachers: &[Teacher<'_>],
) -> Result<f64, NetworkError> {
    let of = |weights: &dyn Weights, model: &str| weights.tensor(name).map_err(forward(model));
    let base = of(base, "the base model")?;
    let mut sum = 0.0;
    for teacher in teachers {
        let own = of(teacher.weights, &teacher.name)?;
        let mean = (own - &base)
            .and_then(|d| d.sqr())
            .and_then(|d| d.mean_all())
            .and_then(|m| m.to_scalar::<f32>())
            .map_err(|error| forward(&teacher.name)(error.into()))?;
        sum += f64::from(mean);
    }
    Ok((sum / teachers.len() as f64).sqrt())
}

/// Which registers are compared.
struct Plan {
    feature: Feature,
    output: Reg,
    /// Last register of each block, if hidden states count.
    blocks: Vec<Reg>,
    hidden: f64,
}

/// Targets of one task and the energies they are measured by.
struct Targets {
    batches: Vec<Target>,
    energy: f64,
    hidden_energy: Vec<f64>,
}

impl Plan {
    fn new(network: &Network, settings: &Distillation) -> Self {
        let blocks = network
            .stages
            .iter()
            .filter(|stage| stage.kind == StageKind::Block && settings.hidden > 0.0)
            .filter_map(|stage| Some(stage.ops.last()?.output()))
            .collect();
        Self {
            feature: settings.feature.resolved(network),
            output: network.outputs().hidden,
            blocks,
            hidden: settings.hidden,
        }
    }

    /// Runs a network up to its last hidden state and gives the feature and the hidden states that count.
    fn run(
        &self,
        network: &Network,
        weights: &dyn Weights,
        mut state: State,
    ) -> merganser_model::Result<Target> {
        let mut hidden = Vec::new();
        let mut feature = None;
        for stage in &network.stages {
            if stage.kind == StageKind::VocabularyHead {
                continue;
            }
            for op in &stage.ops {
                network.run(op, &mut state, weights)?;
                if op.outputs.contains(&self.output) {
                    feature = Some(self.feature.of(&state, self.output)?);
                }
                for block in &self.blocks {
                    if op.outputs.contains(block) {
                        hidden.push(state.rows(*block)?);
                    }
                }
            }
        }
        let feature = match feature {
            Some(feature) => feature,
            None => self.feature.of(&state, self.output)?,
        };
        Ok(Target { feature, hidden })
    }

    fn targets(
        &self,
        network: &Network,
        base: &dyn Weights,
        teacher: &Teacher<'_>,
    ) -> Result<Targets, NetworkError> {
        let fault = forward(&teacher.name);
        let own = Resident::of(network, teacher.weights).map_err(&fault)?;
        let base = Resident::of(network, base).map_err(&fault)?;
        let run = |weights: &Resident<'_>, batch: &Batch| {
            let state = State::new(network, batch, &Device::Cpu).map_err(&fault)?;
            self.run(network, weights, state).map_err(&fault)
        };
        let pairs = teacher
            .batches
            .iter()
            .map(|batch| Ok((run(&own, batch)?, run(&base, batch)?)))
            .collect::<Result<Vec<_>, NetworkError>>()?;
        let distance = |a: &Tensor, b: &Tensor| -> Result<(f64, f64), NetworkError> {
            let sum = (a - b)
                .and_then(|d| d.sqr())
                .and_then(|d| d.sum_all())
                .and_then(|s| s.to_scalar::<f32>());
            Ok((
                f64::from(sum.map_err(|error| fault(error.into()))?),
                a.dims()[0] as f64,
            ))
        };
        let mean = |part: &dyn Fn(&Target) -> Tensor| -> Result<f64, NetworkError> {
            let (mut sum, mut rows) = (0.0, 0.0);
            for (own, base) in &pairs {
                let (s, n) = distance(&part(own), &part(base))?;
                sum += s;
                rows += n;
            }
            Ok((sum / rows).max(1e-9))
        };
        let energy = mean(&|target| target.feature.clone())?;
        let hidden_energy = (0..self.blocks.len())
            .map(|l| mean(&|target| target.hidden[l].clone()))
            .collect::<Result<_, _>>()?;
        Ok(Targets {
            batches: pairs.into_iter().map(|(own, _)| own).collect(),
            energy,
            hidden_energy,
        })
    }

    fn loss(
        &self,
        network: &Network,
        weights: &dyn Weights,
        state: State,
        target: &Target,
        targets: &Targets,
    ) -> merganser_model::Result<Tensor> {
        let own = self.run(network, weights, state)?;
        let mut loss = (error(&own.feature, &target.feature)? / targets.energy)?;
        let layers = self.blocks.len().max(1) as f64;
        for ((own, target), energy) in own
            .hidden
            .iter()
            .zip(&target.hidden)
            .zip(&targets.hidden_energy)
        {
            let share = (error(own, target)? * (self.hidden / layers / energy))?;
            loss = (loss + share)?;
        }
        Ok(loss)
    }
}

/// Mean over the rows of the squared distance.
fn error(a: &Tensor, b: &Tensor) -> candle_core::Result<Tensor> {
    (a - b)?.sqr()?.sum(D::Minus1)?.mean_all()
}

/// The trained tensors, and the others.
struct Mixed<'a> {
    vars: &'a BTreeMap<String, Var>,
    rest: &'a dyn Weights,
}

impl Weights for Mixed<'_> {
    fn tensor(&self, name: &str) -> merganser_model::Result<Tensor> {
        match self.vars.get(name) {
            Some(var) => Ok(var.as_tensor().clone()),
            None => self.rest.tensor(name),
        }
    }
}

/// All tensors of a network, read once; tables stay where they are unless they are trained.
struct Resident<'a> {
    tensors: BTreeMap<String, Tensor>,
    source: &'a dyn Weights,
}

impl<'a> Resident<'a> {
    fn of(network: &Network, source: &'a dyn Weights) -> merganser_model::Result<Self> {
        let mut tensors = BTreeMap::new();
        let stages = network.stages.iter();
        for stage in stages.filter(|stage| stage.kind != StageKind::VocabularyHead) {
            let loaded = StageWeights::load(stage, source)?;
            tensors.extend(
                loaded
                    .resident()
                    .iter()
                    .map(|(name, t)| (name.clone(), t.clone())),
            );
        }
        Ok(Self { tensors, source })
    }
}

impl Weights for Resident<'_> {
    fn tensor(&self, name: &str) -> merganser_model::Result<Tensor> {
        match self.tensors.get(name) {
            Some(tensor) => Ok(tensor.clone()),
            None => self.source.tensor(name),
        }
    }

    fn rows(&self, name: &str, rows: &[u32]) -> merganser_model::Result<Tensor> {
        self.source.rows(name, rows)
    }
}

/// Batches in random order, all of them before any comes again.
struct Order {
    left: Vec<usize>,
    count: usize,
    state: u64,
}

impl Order {
    fn new(count: usize, seed: u64) -> Self {
        Self {
            left: Vec::new(),
            count,
            state: seed,
        }
    }

    fn next(&mut self) -> usize {
        if self.left.is_empty() {
            self.left = (0..self.count).collect();
        }
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let at = (self.state >> 33) as usize % self.left.len().max(1);
        self.left.swap_remove(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_batch_comes_before_any_comes_again() {
        let mut order = Order::new(5, 7);
        for _ in 0..3 {
            let mut seen: Vec<usize> = (0..5).map(|_| order.next()).collect();
            seen.sort_unstable();
            assert_eq!(seen, [0, 1, 2, 3, 4]);
        }
    }

    #[test]
    fn the_rate_rises_and_falls() {
        let rates: Vec<f64> = (0..100).map(|k| schedule(k, 100)).collect();
        assert!(rates[0] < rates[4] && rates[4] > 0.9 && rates[99] < 0.01);
        assert!((0..3).all(|k| schedule(k, 3).is_finite()));
    }
}
