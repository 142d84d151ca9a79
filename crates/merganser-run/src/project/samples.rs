//! The samples of every task, ready to be run.

use merganser_data::{LoadOptions, Processor, Source};
use merganser_model::Batch;
use merganser_plan::{Calibrated, Plan};
use merganser_projection::MomentsFile;

use crate::RunError;

/// Samples that run together. Their number changes no result.
const BATCH: usize = 32;

/// Samples of a task in one step of gradient descent.
const STEP: usize = 8;

/// The samples of one task.
pub(crate) struct TaskData {
    /// The model's label.
    pub(crate) name: String,
    pub(crate) batches: Vec<Batch>,
    /// The same samples a few at a time, for steps of gradient descent; empty if there are none.
    pub(crate) small: Vec<Batch>,
    pub(crate) samples: Option<usize>,
    pub(crate) tokens: Option<u64>,
    /// ω_t.
    pub(crate) weight: f64,
    /// What was assumed about them.
    pub(crate) notes: Vec<String>,
}

/// Loads the samples of all tasks, prepared as each model's own folder says; `few` at a time as
/// well, if steps of gradient descent follow.
pub(crate) fn load(
    plan: &Plan,
    calibrated: &Calibrated,
    few: bool,
) -> Result<Vec<TaskData>, RunError> {
    calibrated
        .tasks
        .iter()
        .enumerate()
        .map(|(t, task)| {
            let model = &plan.models[task.model];
            let Some(calibration) = &task.calibration else {
                return Err(RunError::Calibration(format!(
                    "{} has no samples",
                    model.label
                )));
            };
            let own = Processor::open(model.checkpoint.path()).map_err(RunError::Samples)?;
            let source = Source {
                split: calibration.prefix.clone(),
                column: calibration.column.clone(),
                ..Source::new(&calibration.path)
            };
            let options = LoadOptions {
                samples: calibration.samples,
                seed: calibration.seed,
                max_length: calibration.max_length,
                labels: false,
            };
            let samples = own.load(&source, &options).map_err(RunError::Samples)?;
            Ok(TaskData {
                name: model.label.clone(),
                batches: samples.to_batches(BATCH).map_err(RunError::Samples)?,
                small: if few {
                    samples.to_batches(STEP).map_err(RunError::Samples)?
                } else {
                    Vec::new()
                },
                samples: Some(samples.len()),
                tokens: None,
                weight: weight(calibrated, t),
                notes: samples.notes,
            })
        })
        .collect()
}

/// What is known of tasks whose moments were taken before.
pub(crate) fn described(
    plan: &Plan,
    calibrated: &Calibrated,
    moments: &[MomentsFile],
) -> Vec<TaskData> {
    let tasks = calibrated.tasks.iter().zip(moments).enumerate();
    tasks
        .map(|(t, (task, file))| TaskData {
            name: plan.models[task.model].label.clone(),
            batches: Vec::new(),
            small: Vec::new(),
            samples: None,
            tokens: Some(file.info().tokens).filter(|tokens| *tokens > 0),
            weight: weight(calibrated, t),
            notes: Vec::new(),
        })
        .collect()
}

/// ω_t, which a recipe gives per model; base models have none.
fn weight(calibrated: &Calibrated, t: usize) -> f64 {
    let weights = (0..calibrated.settings.inputs.len())
        .filter_map(|i| calibrated.settings.input_float(i, "task_weight"));
    weights.collect::<Vec<_>>().get(t).copied().unwrap_or(1.0)
}
