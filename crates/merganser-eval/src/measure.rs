//! One task on one model: samples are loaded, run and scored.

use merganser_data::{LoadOptions, Samples, read_columns};

use crate::classify::Predictions;
use crate::embed::{Matches, cosines, embed};
use crate::error::{EvalError, Result};
use crate::evaluation::Options;
use crate::forward::{Vectors, is_causal, modality, vectors};
use crate::head::{Head, class_logits};
use crate::interval::{mean, ratio, spearman};
use crate::lame::{Affinity, lame};
use crate::loaded::Loaded;
use crate::perplexity::likelihood;
use crate::results::{Metric, Score};
use crate::task::{Kind, Task};

/// Samples whose predictions LAME corrects together.
const LAME_BATCH: usize = 64;

/// Nearest passages looked at by default.
const NEAREST: [usize; 3] = [1, 5, 10];

/// Measures `task` of `model`; what was assumed goes to `notes`.
pub(crate) fn measure(
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
    if samples.labels.is_none() {
        return Err(EvalError::Labels("there are none".into()));
    }
    let answers = answer(model, task, options, open, &samples)?;
    notes.extend(answers.notes.iter().cloned());
    let Some(predictions) = answers.predictions else {
        return Err(EvalError::Labels("there are none".into()));
    };
    let mut score = Score::share(predictions.hits(), samples.rows);
    score.classes = predictions.by_class();
    let recalls: f64 = score
        .classes
        .iter()
        .map(|class| class.correct as f64 / class.samples as f64)
        .sum();
    let balanced = recalls / score.classes.len() as f64;
    score.also.insert("balanced".into(), balanced);
    Ok((Metric::Accuracy, score))
}

/// What a model answers on the samples of a classification task.
#[derive(Debug)]
pub struct Answers {
    /// Class logits of each sample; the logarithms of probabilities where [`Task::lame`] corrected them.
    pub logits: Vectors,
    /// What was given and what is right, if the samples have labels.
    pub predictions: Option<Predictions>,
    /// Number of each sample in its source.
    pub rows: Vec<u64>,
    /// What was assumed: to be told to the user.
    pub notes: Vec<String>,
}

/// Runs a classification task on a model, with labels where there are any; with `change` on copies of its samples that are
/// changed a little, as that seed says ([`Samples::change`]).
///
/// # Errors
/// Samples, a head or labels that do not fit the model; a failing forward pass.
pub fn answers(
    model: &Loaded,
    task: &Task,
    options: &Options,
    change: Option<u64>,
    open: &dyn Fn(&str) -> Result<Loaded>,
) -> Result<Answers> {
    let load = |labels| {
        model
            .processor()
            .load(&task.data, &load_options(task, labels))
    };
    // What else is wrong with the samples shows again without labels.
    let mut samples = load(true).or_else(|_| load(false))?;
    if let Some(seed) = change {
        samples.change(seed);
    }
    answer(model, task, options, open, &samples)
}

fn answer(
    model: &Loaded,
    task: &Task,
    options: &Options,
    open: &dyn Fn(&str) -> Result<Loaded>,
    samples: &Samples,
) -> Result<Answers> {
    let mut notes = samples.notes.clone();
    let head = task.head.as_deref().map(Head::open).transpose()?;
    let mut logits = class_logits(
        model,
        head.as_ref(),
        samples,
        task.feature,
        task.unit,
        options.batch_size,
    )?;
    // The head's own model knows its classes; for a bare map the fine-tune of the task may.
    let names = match &head {
        None => model.processor().class_names(),
        Some(Head::Model(head)) => head.processor().class_names(),
        Some(Head::Linear(_) | Head::Gaussian(_)) => match &task.reference {
            Some(reference) => open(reference)?.processor().class_names(),
            None => None,
        },
    };
    if let Some(affinity) = task.lame {
        let features = vectors(model, samples, task.feature, false, options.batch_size)?;
        logits = corrected(&logits, &features, affinity)?;
        notes.push(format!(
            "predictions are drawn towards those of near samples, {LAME_BATCH} at a time in the order of the data: right \
             for streams in which neighbours share classes, harmful for shuffled samples"
        ));
    }
    let predictions = match &samples.labels {
        None => None,
        Some(labels) => Some(Predictions::new(&logits, labels, names.as_deref())?),
    };
    notes.extend(predictions.iter().flat_map(|found| found.notes.clone()));
    Ok(Answers {
        logits,
        predictions,
        rows: samples.rows.clone(),
        notes,
    })
}

/// The logarithms of what LAME makes of logits, batch by batch.
fn corrected(logits: &Vectors, features: &Vectors, affinity: Affinity) -> Result<Vectors> {
    let part = |all: &Vectors, from: usize| {
        let to = (from + LAME_BATCH).min(all.len());
        Vectors {
            width: all.width,
            values: all.values[from * all.width..to * all.width].to_vec(),
        }
    };
    let mut values = Vec::with_capacity(logits.values.len());
    for from in (0..logits.len()).step_by(LAME_BATCH) {
        let found = lame(&part(logits, from), &part(features, from), affinity)?;
        values.extend(found.values.iter().map(|p| p.max(f32::MIN_POSITIVE).ln()));
    }
    Ok(Vectors {
        width: logits.width,
        values,
    })
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
    let interval = interval.map(|[low, high]| [low.exp(), high.exp()]);
    let mut score = Score::new(nats.exp(), interval, samples.len());
    score.also.insert("nats a token".into(), nats);
    score
        .also
        .insert("tokens".into(), found.tokens.iter().sum());
    Ok((Metric::Perplexity, score))
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
    let half = |values: &[f32]| Vectors {
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
    Ok((Metric::Spearman, Score::new(value, interval, pairs)))
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
    let mut score = Score::share(recall.next().unwrap_or_default(), rows);
    for (k, each) in ks[1..].iter().zip(recall) {
        score.also.insert(format!("recall@{k}"), mean(&each).0);
    }
    score
        .also
        .insert("passages".into(), matches.passages.len() as f64);
    Ok((Metric::RecallAt(ks[0]), score))
}
