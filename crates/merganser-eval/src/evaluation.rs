//! Several models on several tasks, and the one table that comes of it.
//!
//! The average is the mean of the scores of which more is better. The normalised average is the mean over the tasks of
//! score / score of the individual fine-tune (the reference), the measure of the field: 1 means that a merge is as good
//! on each task as the model trained for it.

use merganser_data::{LoadOptions, read_columns};
use serde::{Deserialize, Serialize};

use crate::classify::{ClassCount, Predictions};
use crate::embed::{Matches, cosines, embed};
use crate::error::{EvalError, Result};
use crate::forward::{is_causal, modality};
use crate::head::{Head, class_logits};
use crate::interval::{Interval, mean, ratio, spearman, wilson};
use crate::loaded::Loaded;
use crate::perplexity::likelihood;
use crate::task::{Kind, Task};

/// Nearest passages looked at by default.
const NEAREST: [usize; 3] = [1, 5, 10];

/// What every model scored on every task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The models, in the order they were given.
    pub models: Vec<String>,
    /// The tasks, in the order they were given.
    pub tasks: Vec<TaskScores>,
    /// Of each model, its averages over the tasks.
    pub averages: Vec<Average>,
    /// What was assumed, left out or cut.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What the models scored on one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskScores {
    /// The task.
    pub name: String,
    /// What the scores are.
    pub metric: Metric,
    /// Score of each model.
    pub scores: Vec<Score>,
    /// Score of the individual fine-tune.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Reference>,
}

/// The score of the model that was fine-tuned on a task alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// The model.
    pub model: String,
    /// Its score.
    pub score: Score,
}

/// What a score is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of samples that are right.
    Accuracy,
    /// exp of the mean negative log-likelihood of a token; less is better.
    Perplexity,
    /// Spearman's rank correlation.
    Spearman,
    /// Share of the right passages among the k nearest.
    RecallAt(usize),
}

impl Metric {
    /// Its name.
    pub fn name(self) -> String {
        match self {
            Self::Accuracy => "accuracy".into(),
            Self::Perplexity => "perplexity".into(),
            Self::Spearman => "Spearman".into(),
            Self::RecallAt(k) => format!("recall@{k}"),
        }
    }

    /// Whether scores can be averaged: more is better, and 1 is the best there is.
    pub fn is_share(self) -> bool {
        self != Self::Perplexity
    }
}

/// One number, and how sure it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The number.
    pub value: f64,
    /// Ends of its 95 % interval, if there are enough samples for one.
    pub interval: Option<Interval>,
    /// Samples it is of: texts, images, pairs, queries.
    pub samples: usize,
    /// The difference from the first model on the same samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
    /// Other numbers of the same run: recall at other k, nats a token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<(String, f64)>,
    /// Classification: right samples by class.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<ClassCount>,
    /// Value of each sample, for differences.
    #[serde(skip)]
    each: Vec<f64>,
    /// Which samples they are.
    #[serde(skip)]
    rows: Vec<u64>,
}

/// A difference of two models on the same samples: far surer than what their intervals suggest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// This model less the first one.
    pub value: f64,
    /// Its 95 % interval, of the paired differences.
    pub interval: Option<Interval>,
}

/// Averages of one model over the tasks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Average {
    /// Mean of the scores of which more is better; `None` if there are none.
    pub value: Option<f64>,
    /// Mean of score / reference over the tasks that have a reference.
    pub normalised: Option<f64>,
}

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
            score(model, task, options, open, &mut more).map_err(|cause| EvalError::Task {
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
            other.difference = difference(metric, &first[0], other);
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
    let averages = (0..models.len()).map(|at| average(&rows, at)).collect();
    Ok(Evaluation {
        models: models.to_vec(),
        tasks: rows,
        averages,
        notes,
    })
}

fn average(rows: &[TaskScores], model: usize) -> Average {
    let shares = || rows.iter().filter(|row| row.metric.is_share());
    let values: Vec<f64> = shares().map(|row| row.scores[model].value).collect();
    let normalised: Vec<f64> = shares()
        .filter_map(|row| {
            let reference = row.reference.as_ref()?.score.value;
            (reference > 0.0).then(|| row.scores[model].value / reference)
        })
        .collect();
    let mean = |values: &[f64]| {
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    Average {
        value: mean(&values),
        normalised: mean(&normalised),
    }
}

/// Of scores that are means over the same samples.
fn difference(metric: Metric, first: &Score, other: &Score) -> Option<Difference> {
    if !matches!(metric, Metric::Accuracy | Metric::RecallAt(_)) || first.rows != other.rows {
        return None;
    }
    let each: Vec<f64> = other
        .each
        .iter()
        .zip(&first.each)
        .map(|(a, b)| a - b)
        .collect();
    let (value, interval) = mean(&each);
    Some(Difference { value, interval })
}

/// A mean of values in [0, 1].
fn share(each: Vec<f64>, rows: Vec<u64>) -> Score {
    let (value, normal) = mean(&each);
    let whole = each.iter().all(|&x| x == 0.0 || x == 1.0);
    let interval = if whole {
        wilson(each.iter().filter(|&&x| x == 1.0).count(), each.len())
    } else {
        normal.map(|[low, high]| [low.max(0.0), high.min(1.0)])
    };
    Score {
        value,
        interval,
        samples: each.len(),
        difference: None,
        also: Vec::new(),
        classes: Vec::new(),
        each,
        rows,
    }
}

fn score(
    model: &Loaded,
    task: &Task,
    options: &Options,
    open: &dyn Fn(&str) -> Result<Loaded>,
    notes: &mut Vec<String>,
) -> Result<(Metric, Score)> {
    match task.task {
        Some(Kind::Similarity) => similarity(model, task, options, notes),
        Some(Kind::Retrieval) => retrieval(model, task, options, notes),
        Some(Kind::Perplexity) => perplexity(model, task, options, notes),
        Some(Kind::Classification) => classification(model, task, options, open, notes),
        None if task.head.is_some() => classification(model, task, options, open, notes),
        None => {
            let load = LoadOptions {
                samples: Some(1),
                ..load_options(task, false)
            };
            let samples = model.processor().load(&task.data, &load)?;
            let network = model.network(modality(&samples))?;
            if network.vocabulary_head().is_some() && is_causal(&network) {
                perplexity(model, task, options, notes)
            } else if network.outputs().logits.is_some() && network.vocabulary_head().is_none() {
                classification(model, task, options, open, notes)
            } else {
                Err(EvalError::Setting(
                    "what is to be measured is not clear: the model has neither a classifier nor a causal language \
                     model's head; name a head, or the task (classification, perplexity, similarity, retrieval)"
                        .into(),
                ))
            }
        }
    }
}

fn load_options(task: &Task, labels: bool) -> LoadOptions {
    LoadOptions {
        samples: task.samples,
        seed: task.seed,
        max_length: task.max_length,
        labels,
    }
}

fn classification(
    model: &Loaded,
    task: &Task,
    options: &Options,
    open: &dyn Fn(&str) -> Result<Loaded>,
    notes: &mut Vec<String>,
) -> Result<(Metric, Score)> {
    let samples = model
        .processor()
        .load(&task.data, &load_options(task, true))?;
    notes.extend(samples.notes.iter().cloned());
    let Some(labels) = &samples.labels else {
        return Err(EvalError::Labels("there are none".into()));
    };
    let head = task
        .head
        .as_deref()
        .map(|path| Head::open(path, options.memory))
        .transpose()?;
    let logits = class_logits(
        model,
        head.as_ref(),
        &samples,
        task.feature,
        task.unit,
        options.batch_size,
    )?;
    // The head's own model knows its classes; for a bare matrix the fine-tune of the task may.
    let names = match &head {
        None => model.processor().class_names(),
        Some(Head::Model(head)) => head.processor().class_names(),
        Some(Head::Linear(_)) => match &task.reference {
            Some(reference) => open(reference)?.processor().class_names(),
            None => None,
        },
    };
    let predictions = Predictions::new(&logits, labels, names.as_deref())?;
    notes.extend(predictions.notes.iter().cloned());
    let mut score = share(predictions.hits(), samples.rows.clone());
    score.classes = predictions.by_class();
    let recalls: f64 = score
        .classes
        .iter()
        .map(|class| class.correct as f64 / class.samples as f64)
        .sum();
    score
        .also
        .push(("balanced".into(), recalls / score.classes.len() as f64));
    Ok((Metric::Accuracy, score))
}

fn perplexity(
    model: &Loaded,
    task: &Task,
    options: &Options,
    notes: &mut Vec<String>,
) -> Result<(Metric, Score)> {
    let load = load_options(task, false);
    let samples = if task.concat {
        model.processor().load_joined(&task.data, &load)?
    } else {
        model.processor().load(&task.data, &load)?
    };
    notes.extend(samples.notes.iter().cloned());
    let network = model.network(modality(&samples))?;
    let found = likelihood(&network, model, &samples, options.batch_size)?;
    let (nats, interval) = ratio(&found.nll, &found.tokens);
    Ok((
        Metric::Perplexity,
        Score {
            value: nats.exp(),
            interval: interval.map(|[low, high]| [low.exp(), high.exp()]),
            samples: samples.len(),
            difference: None,
            also: vec![
                ("nats a token".into(), nats),
                ("tokens".into(), found.tokens.iter().sum()),
            ],
            classes: Vec::new(),
            each: Vec::new(),
            rows: Vec::new(),
        },
    ))
}

fn columns_of<'a>(task: &'a Task, default: [&'a str; 2]) -> [&'a str; 2] {
    match &task.columns {
        Some([a, b]) => [a, b],
        None => default,
    }
}

fn similarity(
    model: &Loaded,
    task: &Task,
    options: &Options,
    notes: &mut Vec<String>,
) -> Result<(Metric, Score)> {
    let columns = columns_of(task, ["sentence1", "sentence2"]);
    let score = task.score.as_deref().unwrap_or("score");
    let mut table = read_columns(&task.data, &columns, Some(score), task.samples, task.seed)?;
    notes.append(&mut table.notes);
    let pairs = table.rows.len();
    let texts = table.texts.concat();
    let (vectors, mut more) = embed(
        model,
        &texts,
        task.feature,
        task.max_length,
        options.batch_size,
    )?;
    notes.append(&mut more);
    let split = pairs * vectors.width;
    let half = |values: &[f32]| crate::forward::Vectors {
        width: vectors.width,
        values: values.to_vec(),
    };
    let found = cosines(
        &half(&vectors.values[..split]),
        &half(&vectors.values[split..]),
    );
    let wanted = table.scores.unwrap_or_default();
    let Some((value, interval)) = spearman(&found, &wanted) else {
        return Err(EvalError::Setting(format!(
            "the {pairs} scores or cosines are all equal, so they have no order to compare"
        )));
    };
    let score = Score {
        value,
        interval,
        samples: pairs,
        difference: None,
        also: Vec::new(),
        classes: Vec::new(),
        each: Vec::new(),
        rows: Vec::new(),
    };
    Ok((Metric::Spearman, score))
}

fn retrieval(
    model: &Loaded,
    task: &Task,
    options: &Options,
    notes: &mut Vec<String>,
) -> Result<(Metric, Score)> {
    let columns = columns_of(task, ["query", "passage"]);
    let mut table = read_columns(&task.data, &columns, None, task.samples, task.seed)?;
    notes.append(&mut table.notes);
    let matches = Matches::new(&table.texts[0], &table.texts[1]);
    let mut side = |texts: &[String], prompt: usize| {
        let texts: Vec<String> = match &task.prompts {
            Some(prompts) => texts
                .iter()
                .map(|text| format!("{}{text}", prompts[prompt]))
                .collect(),
            None => texts.to_vec(),
        };
        let (vectors, mut more) = embed(
            model,
            &texts,
            task.feature,
            task.max_length,
            options.batch_size,
        )?;
        notes.append(&mut more);
        Ok::<_, EvalError>(vectors)
    };
    let queries = side(&matches.queries, 0)?;
    let passages = side(&matches.passages, 1)?;
    let ks: Vec<usize> = if task.k.is_empty() {
        NEAREST.to_vec()
    } else {
        task.k.clone()
    };
    if ks.contains(&0) {
        return Err(EvalError::Setting("k must be at least 1".into()));
    }
    let mut recall = matches.recall(&queries, &passages, &ks)?.into_iter();
    let rows = (0..).take(matches.queries.len()).collect();
    let mut score = share(recall.next().unwrap_or_default(), rows);
    for (k, each) in ks[1..].iter().zip(recall) {
        score.also.push((format!("recall@{k}"), mean(&each).0));
    }
    score
        .also
        .push(("passages".into(), matches.passages.len() as f64));
    Ok((Metric::RecallAt(ks[0]), score))
}

impl Evaluation {
    /// The results as rows of a table, the first of them the header: a row a task, a column a model, then averages.
    /// Scores of which more is better are in percent, with half their interval.
    pub fn table(&self) -> Vec<Vec<String>> {
        let has_reference = self.tasks.iter().any(|task| task.reference.is_some());
        let mut header = vec!["task".to_owned(), "metric".to_owned()];
        header.extend(self.models.iter().cloned());
        if has_reference {
            header.push("fine-tuned".to_owned());
        }
        let mut rows = vec![header];
        for task in &self.tasks {
            let mut row = vec![task.name.clone(), task.metric.name()];
            row.extend(task.scores.iter().map(|score| cell(task.metric, score)));
            if has_reference {
                row.push(match &task.reference {
                    Some(reference) => cell(task.metric, &reference.score),
                    None => String::new(),
                });
            }
            rows.push(row);
        }
        let mut total = |title: &str,
                         value: &dyn Fn(&Average) -> Option<f64>,
                         reference: String| {
            if self.averages.iter().any(|average| value(average).is_some()) {
                let mut row = vec![title.to_owned(), String::new()];
                let shown =
                    |average| value(average).map_or(String::new(), |x| format!("{:.1}", 100.0 * x));
                row.extend(self.averages.iter().map(shown));
                if has_reference {
                    row.push(reference);
                }
                rows.push(row);
            }
        };
        let shares: Vec<_> = self
            .tasks
            .iter()
            .filter(|task| task.metric.is_share())
            .collect();
        if shares.len() > 1 {
            let references: Option<Vec<f64>> = shares
                .iter()
                .map(|task| {
                    task.reference
                        .as_ref()
                        .map(|reference| reference.score.value)
                })
                .collect();
            let reference = references.map_or(String::new(), |values| {
                format!(
                    "{:.1}",
                    100.0 * values.iter().sum::<f64>() / values.len() as f64
                )
            });
            total("average", &|average| average.value, reference);
        }
        total(
            "normalised",
            &|average| average.normalised,
            "100.0".to_owned(),
        );
        rows
    }
}

fn cell(metric: Metric, score: &Score) -> String {
    let half = score.interval.map(|[low, high]| (high - low) / 2.0);
    if metric.is_share() {
        let half = half.map_or(String::new(), |half| format!(" ±{:.1}", 100.0 * half));
        format!("{:.1}{half}", 100.0 * score.value)
    } else {
        let half = half.map_or(String::new(), |half| format!(" ±{half:.2}"));
        format!("{:.2}{half}", score.value)
    }
}
