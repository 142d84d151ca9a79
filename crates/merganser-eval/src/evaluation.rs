//! Several models on several tasks.

use crate::error::{EvalError, Result};
use crate::loaded::Loaded;
use crate::measure::measure;
use crate::results::{Average, Evaluation, Metric, Reference, Score, TaskScores};
use crate::task::Task;

/// How models are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Samples that go through a network together. Scores do not depend on it.
    pub batch_size: usize,
    /// Bytes a model may take in f32 to be held in memory; a larger one is read block by block for each pass.
    pub memory: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            batch_size: 32,
            memory: 8 << 30,
        }
    }
}

/// A step of an evaluation, before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<'a> {
    /// The model that is run.
    pub model: &'a str,
    /// The task it is run on.
    pub task: &'a str,
    /// Steps done.
    pub done: usize,
    /// Steps in all.
    pub of: usize,
}

/// Runs every task on every model, and each task's reference on it. Models are opened one at a time by `open`; `observe`
/// hears of every step before it is done.
///
/// # Errors
/// The first task that cannot be run, with its model and the reason.
pub fn evaluate(
    models: &[String],
    tasks: &[Task],
    options: &Options,
    open: &dyn Fn(&str) -> Result<Loaded>,
    observe: &mut dyn FnMut(Step<'_>),
) -> Result<Evaluation> {
    if models.is_empty() || tasks.is_empty() {
        return Err(EvalError::Setting(
            "an evaluation needs a model and a task".into(),
        ));
    }
    let of =
        models.len() * tasks.len() + tasks.iter().filter(|task| task.reference.is_some()).count();
    let mut notes: Vec<String> = Vec::new();
    let mut done = 0;
    let mut step = |model: &Loaded, task: &Task| -> Result<(Metric, Score)> {
        let title = task.title();
        observe(Step {
            model: model.name(),
            task: &title,
            done,
            of,
        });
        done += 1;
        let mut more = Vec::new();
        let found =
            measure(model, task, options, open, &mut more).map_err(|cause| EvalError::Task {
                task: title.clone(),
                model: model.name().to_owned(),
                cause: Box::new(cause),
            })?;
        for note in more {
            let note = format!("{title}: {note}");
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        Ok(found)
    };
    let mut columns: Vec<Vec<(Metric, Score)>> = Vec::new();
    for name in models {
        let model = open(name)?;
        columns.push(
            tasks
                .iter()
                .map(|task| step(&model, task))
                .collect::<Result<_>>()?,
        );
    }
    let mut rows: Vec<TaskScores> = Vec::new();
    for (at, task) in tasks.iter().enumerate() {
        let metric = columns[0][at].0;
        let mut scores: Vec<Score> = columns.iter().map(|column| column[at].1.clone()).collect();
        let (first, others) = scores.split_at_mut(1);
        for other in others {
            other.difference = other.less(&first[0]);
        }
        let reference = match &task.reference {
            None => None,
            Some(name) => Some(Reference {
                model: name.clone(),
                score: step(&open(name)?, task)?.1,
            }),
        };
        rows.push(TaskScores {
            name: task.title(),
            metric,
            scores,
            reference,
        });
    }
    let averages = (0..models.len()).map(|at| Average::of(&rows, at)).collect();
    Ok(Evaluation {
        models: models.to_vec(),
        tasks: rows,
        averages,
        notes,
    })
}
