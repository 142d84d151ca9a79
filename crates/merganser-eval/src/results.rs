//! What an evaluation found: a score of every model on every task, averages, and the table of it all.
//!
//! The average is the mean of the scores of which more is better. The normalised average is the mean over the tasks of
//! score / score of the individual fine-tune (the reference), the measure of the field: 1 means that a merge is as good
//! on each task as the model trained for it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::classify::ClassCount;
use crate::interval::{Interval, mean, wilson};

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
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub also: BTreeMap<String, f64>,
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

impl Score {
    /// A number of some samples.
    pub(crate) fn new(value: f64, interval: Option<Interval>, samples: usize) -> Self {
        Self {
            value,
            interval,
            samples,
            difference: None,
            also: BTreeMap::new(),
            classes: Vec::new(),
            each: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// The mean of values in [0, 1], one of each of `rows`.
    pub(crate) fn share(each: Vec<f64>, rows: Vec<u64>) -> Self {
        let (value, normal) = mean(&each);
        let interval = if each.iter().all(|&x| x == 0.0 || x == 1.0) {
            wilson(each.iter().filter(|&&x| x == 1.0).count(), each.len())
        } else {
            normal.map(|[low, high]| [low.max(0.0), high.min(1.0)])
        };
        let samples = each.len();
        Self {
            each,
            rows,
            ..Self::new(value, interval, samples)
        }
    }

    /// The difference from `first`, if both are means over the same samples.
    pub(crate) fn less(&self, first: &Self) -> Option<Difference> {
        if self.each.is_empty() || self.rows != first.rows {
            return None;
        }
        let each = self.each.iter().zip(&first.each).map(|(a, b)| a - b);
        let (value, interval) = mean(&each.collect::<Vec<f64>>());
        Some(Difference { value, interval })
    }
}

impl Average {
    /// Of one model, by its place in the rows.
    pub(crate) fn of(rows: &[TaskScores], model: usize) -> Self {
        let shares = || rows.iter().filter(|row| row.metric.is_share());
        let values = shares().map(|row| row.scores[model].value);
        let normalised = shares().filter_map(|row| {
            let reference = row.reference.as_ref()?.score.value;
            (reference > 0.0).then(|| row.scores[model].value / reference)
        });
        Self {
            value: mean_of(values),
            normalised: mean_of(normalised),
        }
    }
}

fn mean_of(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
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
            let references = shares.iter().filter_map(|task| task.reference.as_ref());
            let references: Vec<f64> = references.map(|found| found.score.value).collect();
            // An average over other tasks than the rest of the row would mislead.
            let all = references.len() == shares.len();
            let reference = mean_of(references.into_iter()).filter(|_| all);
            let reference = reference.map_or(String::new(), |x| format!("{:.1}", 100.0 * x));
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
