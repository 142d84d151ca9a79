//! The walk through the network: stage by stage, op by op, teachers and students side by side.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Tensor};
use merganser_model::{
    Kind, Network, Op, Stage, StageKind, StageWeights, State, Tap, TapKind, Weights,
};
use rayon::prelude::*;

use super::layer::Sides;
use super::{
    Host, HostError, Layer, LayerKind, NetworkError, Rule, Settings, Stream, Teacher, linear,
    simple,
};

/// Merges a network and says what was found out about every parameter that was looked at.
///
/// Parameters whose [`Rule`] is the prior are taken from [`Host::finished`], or from [`Host::prior`] if they are not
/// there; they are not handed to [`Host::keep`].
///
/// # Errors
/// Forward passes that fail or give numbers that are not finite, layers without a solution, and the host's own errors.
pub fn merge(
    network: &Network,
    base: &dyn Weights,
    teachers: &[Teacher<'_>],
    host: &dyn Host,
    settings: &Settings,
) -> Result<Vec<Layer>, NetworkError> {
    let mut tracks = Vec::with_capacity(teachers.len());
    for teacher in teachers {
        tracks.push(Track::new(network, teacher, settings.stream)?);
    }
    let mut layers = Vec::new();
    let stages: Vec<&Stage> = network
        .stages
        .iter()
        .filter(|stage| stage.kind != StageKind::VocabularyHead)
        .collect();
    for (number, stage) in stages.iter().enumerate() {
        host.stage(&stage.name, number, stages.len());
        let base = StageWeights::load(stage, base).map_err(forward("the base model"))?;
        let taught = teachers
            .iter()
            .map(|teacher| {
                StageWeights::load(stage, teacher.weights).map_err(forward(&teacher.name))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let student_source = Student::new(host);
        let student =
            StageWeights::load(stage, &student_source).map_err(forward("the merged model"))?;
        if settings.stream == Stream::Candidates {
            for track in &mut tracks {
                track.taught.clone_from(&track.student);
            }
        }
        let mut walk = StageWalk {
            network,
            stage,
            teachers,
            host,
            settings,
            base,
            taught,
            student,
            tracks: &mut tracks,
        };
        layers.extend(walk.run()?);
    }
    Ok(layers)
}

/// The states of one task: what its teacher and the student make of its samples.
pub(super) struct Track {
    pub(super) taught: Vec<State>,
    /// Empty if every layer is merged by itself.
    pub(super) student: Vec<State>,
    pub(super) stream: Stream,
}

impl Track {
    fn new(network: &Network, teacher: &Teacher<'_>, stream: Stream) -> Result<Self, NetworkError> {
        let states = || {
            teacher
                .batches
                .iter()
                .map(|batch| {
                    State::new(network, batch, &Device::Cpu).map_err(forward(&teacher.name))
                })
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            taught: states()?,
            student: if stream == Stream::Taught {
                Vec::new()
            } else {
                states()?
            },
            stream,
        })
    }
}

/// Everything at hand while one stage is merged.
pub(super) struct StageWalk<'a> {
    pub(super) network: &'a Network,
    pub(super) stage: &'a Stage,
    pub(super) teachers: &'a [Teacher<'a>],
    pub(super) host: &'a dyn Host,
    pub(super) settings: &'a Settings,
    pub(super) base: StageWeights<'a>,
    pub(super) taught: Vec<StageWeights<'a>>,
    pub(super) student: StageWeights<'a>,
    pub(super) tracks: &'a mut Vec<Track>,
}

impl StageWalk<'_> {
    fn run(&mut self) -> Result<Vec<Layer>, NetworkError> {
        let stage = self.stage;
        let mut layers = Vec::new();
        let mut at = 0;
        while at < stage.ops.len() {
            let quiet = self.quiet(at);
            if quiet > 0 {
                let ops = &stage.ops[at..at + quiet];
                at += quiet;
                self.advance_teachers(ops)?;
                self.advance_students(ops)?;
                continue;
            }
            let group = self.group(at);
            let ops = &stage.ops[at..at + group];
            let after = at + group + self.quiet(at + group);
            let looked_at: Vec<&Op> = ops.iter().filter(|op| self.is_looked_at(op)).collect();
            // The student's input is needed until the moments are taken; the teacher's dies with the last op.
            let inputs = self.sides(ops[0].input())?;
            self.advance_teachers(ops)?;
            match looked_at[0].parameters().map(|tap| tap.kind) {
                Some(TapKind::Linear(_)) => {
                    layers.extend(linear::merge(self, &looked_at, &inputs)?);
                }
                Some(kind) => layers.extend(simple::merge(self, looked_at[0], kind, &inputs)?),
                None => {}
            }
            drop(inputs);
            // Batch by batch up to the next look, so that what lies in between (the wide inside of an MLP) never exists
            // for all samples at once.
            self.advance_teachers(&stage.ops[at + group..after])?;
            self.advance_students(&stage.ops[at..after])?;
            at = after;
        }
        Ok(layers)
    }

    /// How many ops from `at` on are only run.
    fn quiet(&self, at: usize) -> usize {
        let ops = self.stage.ops[at..].iter();
        ops.take_while(|op| !self.is_looked_at(op)).count()
    }

    /// How many ops from `at` on are handled together: matrices that share an input share its moments.
    fn group(&self, at: usize) -> usize {
        let ops = &self.stage.ops;
        let is_linear = |op: &Op| {
            matches!(
                op.parameters().map(|tap| tap.kind),
                Some(TapKind::Linear(_))
            )
        };
        if !is_linear(&ops[at]) {
            return 1;
        }
        let same = |op: &&Op| is_linear(op) && op.input() == ops[at].input();
        ops[at..].iter().take_while(same).count()
    }

    /// Whether a parameter is to be merged here, or at least measured.
    fn is_looked_at(&self, op: &Op) -> bool {
        let Some(tap) = op.parameters().filter(|tap| !is_tied(self.network, *tap)) else {
            return false;
        };
        let measured = !self.settings.measured.is_empty();
        measured || self.host.rule(tap.weight).applies_to(kind(tap))
    }

    /// What both networks feed to an op, before it runs.
    fn sides(&self, input: merganser_model::Reg) -> Result<Vec<Sides>, NetworkError> {
        self.tracks
            .iter()
            .zip(self.teachers)
            .map(|(track, teacher)| Sides::of(track, input, &teacher.name))
            .collect()
    }

    fn advance_teachers(&mut self, ops: &[Op]) -> Result<(), NetworkError> {
        for ((track, weights), teacher) in
            self.tracks.iter_mut().zip(&self.taught).zip(self.teachers)
        {
            advance(self.network, ops, &mut track.taught, weights)
                .map_err(forward(&teacher.name))?;
        }
        Ok(())
    }

    fn advance_students(&mut self, ops: &[Op]) -> Result<(), NetworkError> {
        for track in self.tracks.iter_mut() {
            advance(self.network, ops, &mut track.student, &self.student)
                .map_err(forward("the merged model"))?;
        }
        Ok(())
    }
}

fn advance(
    network: &Network,
    ops: &[Op],
    states: &mut [State],
    weights: &dyn Weights,
) -> merganser_model::Result<()> {
    states.par_iter_mut().try_for_each(|state| {
        ops.iter()
            .try_for_each(|op| network.run(op, state, weights))
    })
}

pub(super) fn forward(model: &str) -> impl Fn(merganser_model::ModelError) -> NetworkError {
    let model = model.to_owned();
    move |problem| NetworkError::Forward {
        model: model.clone(),
        problem,
    }
}

/// The merged network as a [`Host`] knows it: what is finished, else the prior.
pub struct Student<'a> {
    host: &'a dyn Host,
    /// The tables that rows were asked of: a prior is merged as a whole, and every batch asks for rows.
    tables: Mutex<BTreeMap<String, Tensor>>,
}

impl<'a> Student<'a> {
    /// The merged network of a host. It holds the tables it has read rows of.
    pub fn new(host: &'a dyn Host) -> Self {
        Self {
            host,
            tables: Mutex::default(),
        }
    }
}

impl Weights for Student<'_> {
    fn tensor(&self, name: &str) -> merganser_model::Result<Tensor> {
        let of = |error: HostError| merganser_model::ModelError::Source(error);
        match self.host.finished(name).map_err(of)? {
            Some(tensor) => Ok(tensor),
            None => self.host.prior(name).map_err(of),
        }
    }

    fn rows(&self, name: &str, rows: &[u32]) -> merganser_model::Result<Tensor> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if !tables.contains_key(name) {
            tables.insert(name.to_owned(), self.tensor(name)?);
        }
        tables.rows(name, rows)
    }
}

/// Whether a tensor acts at two places, as table and as head: an update for one would change the other.
fn is_tied(network: &Network, tap: Tap<'_>) -> bool {
    match tap.kind {
        TapKind::Linear(linear) => linear.tied,
        TapKind::Embedding(table) => network.ops().any(|(_, op)| {
            matches!(&op.kind, Kind::Linear(linear) if linear.tied && linear.weight == table.weight)
        }),
        TapKind::Norm(_) | TapKind::Additive(_) => false,
    }
}

pub(super) fn kind(tap: Tap<'_>) -> LayerKind {
    match tap.kind {
        TapKind::Linear(_) => LayerKind::Linear,
        TapKind::Norm(_) => LayerKind::Norm,
        TapKind::Embedding(_) => LayerKind::Embedding,
        TapKind::Additive(_) => LayerKind::Additive,
    }
}

/// Names of all tensors that [`merge`] hands to [`Host::keep`] when parameters are merged by `rule`, a function of their
/// weights' names.
pub fn claimed(network: &Network, rule: impl Fn(&str) -> Rule) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let stages = network.stages.iter();
    for op in stages
        .filter(|stage| stage.kind != StageKind::VocabularyHead)
        .flat_map(|stage| &stage.ops)
    {
        let Some(tap) = op.parameters().filter(|tap| !is_tied(network, *tap)) else {
            continue;
        };
        let rule = rule(tap.weight);
        if rule.applies_to(kind(tap)) && !names.iter().any(|name| name == tap.weight) {
            names.push(tap.weight.to_owned());
            names.extend(tap.bias.filter(|_| rule.includes_bias()).map(str::to_owned));
        }
    }
    names
}
