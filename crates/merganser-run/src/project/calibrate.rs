//! The moments of one model on samples of its task, written to a file: taken once, used for any merge.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;
use merganser_data::{LoadOptions, Processor, Source};
use merganser_model::{Network, Observer as Watch, Op, Stage, StageKind, State, TapKind, walk};
use merganser_plan::Model;
use merganser_projection::{
    EntrySpec, InputMoments, MomentsInfo, MomentsWriter, Statistics, StatisticsKind,
};

use super::tensors::Stored;
use crate::{Event, Observer, RunError};

/// Samples that run together.
const BATCH: usize = 16;

/// What a calibration did.
#[derive(Debug, Clone)]
pub struct Calibrated {
    /// Samples that were run.
    pub samples: usize,
    /// Tokens, patches or rows that were counted.
    pub tokens: u64,
    /// Inputs whose moments were taken.
    pub inputs: usize,
    /// Parameters that read them.
    pub taps: usize,
    /// What was assumed about the samples.
    pub notes: Vec<String>,
}

/// Runs samples through a model and writes the moments of every matrix's input to `out`.
///
/// # Errors
/// A network that cannot be run, unusable samples, activations that are not finite, a full disk; there is no file then.
pub fn calibrate(
    model: &Model,
    source: &Source,
    options: &LoadOptions,
    out: &Path,
    observer: &dyn Observer,
) -> Result<Calibrated, RunError> {
    let config = model.checkpoint.config().unwrap_or("{}");
    let config = serde_json::from_str(config.trim_start_matches('\u{feff}')).unwrap_or_default();
    let shapes = model
        .names()
        .filter_map(|name| Some((name.to_owned(), model.describe(name)?.1.to_vec())))
        .collect();
    let network = Network::new(&config, &shapes).map_err(|problem| RunError::Network {
        method: "calibrate",
        problem: problem.to_string(),
    })?;
    observer.event(Event::Samples);
    let processor = Processor::open(model.checkpoint.path()).map_err(RunError::Samples)?;
    let samples = processor.load(source, options).map_err(RunError::Samples)?;
    let batches = samples.to_batches(BATCH).map_err(RunError::Samples)?;
    let forward = |problem| RunError::Calibration(format!("{}: {problem}", model.label));
    let mut states = batches
        .iter()
        .map(|batch| State::new(&network, batch, &Device::Cpu))
        .collect::<Result<Vec<_>, _>>()
        .map_err(forward)?;
    let inputs = inputs(&network);
    let aliases: BTreeMap<String, String> = inputs
        .iter()
        .flat_map(|input| {
            input.taps[1..]
                .iter()
                .map(|tap| (tap.clone(), input.taps[0].clone()))
        })
        .collect();
    let specs: Vec<EntrySpec> = inputs
        .iter()
        .map(|input| EntrySpec {
            name: input.taps[0].clone(),
            kind: StatisticsKind::Input,
            size: input.width,
            held_out: false,
        })
        .collect();
    let info = MomentsInfo {
        model: model.identity(),
        dataset: source.path.display().to_string(),
        ..MomentsInfo::default()
    };
    let precision = f64::from(f32::EPSILON);
    let writer = MomentsWriter::create(out, &info, &aliases, &specs, precision)
        .map_err(RunError::Moments)?;
    let mut recorder = Recorder {
        stages: network
            .stages
            .iter()
            .filter(|s| s.kind != StageKind::VocabularyHead)
            .count(),
        writer,
        aliases: &aliases,
        current: BTreeMap::new(),
        stage: None,
        done: 0,
        rows: 0,
        failure: None,
        label: &model.label,
        observer,
    };
    let walked = walk(&network, &Stored(model), &mut states, &mut recorder);
    if let Some(failure) = recorder.failure.take() {
        return Err(failure);
    }
    walked.map_err(forward)?;
    recorder.flush()?;
    let tokens = recorder.rows;
    recorder.writer.finish().map_err(RunError::Moments)?;
    Ok(Calibrated {
        samples: samples.len(),
        tokens,
        inputs: inputs.len(),
        taps: inputs.iter().map(|input| input.taps.len()).sum(),
        notes: samples.notes,
    })
}

/// An input and the matrices that read it.
struct Input {
    width: usize,
    taps: Vec<String>,
}

fn inputs(network: &Network) -> Vec<Input> {
    let mut found: Vec<Input> = Vec::new();
    let stages = network.stages.iter();
    for stage in stages.filter(|stage| stage.kind != StageKind::VocabularyHead) {
        let mut last = None;
        for op in &stage.ops {
            let Some((linear, tap)) = op.parameters().and_then(|tap| match tap.kind {
                TapKind::Linear(linear) => Some((linear, tap)),
                _ => None,
            }) else {
                last = None;
                continue;
            };
            match found.last_mut().filter(|_| last == Some(tap.input)) {
                Some(input) => input.taps.push(tap.weight.to_owned()),
                None => found.push(Input {
                    width: linear.inputs,
                    taps: vec![tap.weight.to_owned()],
                }),
            }
            last = Some(tap.input);
        }
    }
    found
}

/// Takes the moments of a stage while batches pass, and writes them when the next begins.
struct Recorder<'a> {
    writer: MomentsWriter,
    /// Matrices that share the moments of another, which is run just before them.
    aliases: &'a BTreeMap<String, String>,
    current: BTreeMap<String, InputMoments>,
    stage: Option<String>,
    stages: usize,
    done: usize,
    rows: u64,
    failure: Option<RunError>,
    label: &'a str,
    observer: &'a dyn Observer,
}

impl Recorder<'_> {
    fn flush(&mut self) -> Result<(), RunError> {
        for (name, moments) in std::mem::take(&mut self.current) {
            self.rows = self.rows.max(moments.count());
            self.writer
                .write(&name, &Statistics::Input(moments), None)
                .map_err(RunError::Moments)?;
        }
        Ok(())
    }

    fn take(&mut self, stage: &Stage, op: &Op, state: &State) -> Result<(), RunError> {
        // The matrix of a vocabulary head is never solved for, and is often the table of embeddings.
        if stage.kind == StageKind::VocabularyHead {
            return Ok(());
        }
        if self.stage.as_ref() != Some(&stage.name) {
            self.flush()?;
            self.observer.event(Event::Stage {
                name: &stage.name,
                number: self.done,
                of: self.stages,
            });
            self.stage = Some(stage.name.clone());
            self.done += 1;
        }
        let Some(tap) = op.parameters() else {
            return Ok(());
        };
        let TapKind::Linear(linear) = tap.kind else {
            return Ok(());
        };
        if self.aliases.contains_key(tap.weight) {
            return Ok(());
        }
        let failed = |problem: Box<dyn std::error::Error + Send + Sync>| {
            RunError::Calibration(format!(
                "{}: the input of {}: {problem}",
                self.label, tap.weight
            ))
        };
        let rows = state.rows(tap.input).map_err(|e| failed(e.into()))?;
        let rows: Vec<f32> = rows
            .flatten_all()
            .and_then(|rows| rows.to_vec1())
            .map_err(|e| failed(e.into()))?;
        self.current
            .entry(tap.weight.to_owned())
            .or_insert_with(|| InputMoments::new(linear.inputs))
            .add_rows(&rows)
            .map_err(|e| failed(e.into()))
    }
}

impl Watch for Recorder<'_> {
    fn before(
        &mut self,
        stage: &Stage,
        op: &Op,
        _batch: usize,
        state: &State,
    ) -> merganser_model::Result<()> {
        self.take(stage, op, state).map_err(|failure| {
            let text = failure.to_string();
            self.failure.get_or_insert(failure);
            merganser_model::ModelError::Batch(text)
        })
    }
}
