//! Choosing a recipe's parameters: every candidate is merged, looked at with samples, and thrown away; what is kept is the
//! table of scores and the recipe that scores best.
//!
//! Without labels a candidate is judged by surrogates of accuracy ([`merganser_eval::surrogates`]), each with its own way to
//! fail: the table shows them side by side and how far they agree. What was measured is written to a log at once, line by
//! line, so that an interrupted search goes on where it stopped.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use merganser_eval::surrogates::{
    TEMPERATURE, collapse, consistency, entropy, neighbourhood_density, probabilities, smallest,
};
use merganser_eval::{Answers, EvalError, Loaded, Options, Task, answers, mean, spearman};
use merganser_recipe::{ParseOptions, Recipe, Span};
use serde::{Deserialize, Serialize};

use crate::{Failure, MergeOptions, Observer, Planned, merge_recipe, plan_recipe};

/// Most candidates of one search: beyond it is a mistake.
const MOST: usize = 10_000;

/// Most combinations that candidates are chosen from.
const MOST_COMBINATIONS: usize = 100_000_000;

/// A parameter of a recipe and the values to try.
#[derive(Debug, Clone, PartialEq)]
pub struct Knob {
    /// Where it stands: `NAME` in the document's `parameters`, `prior.NAME`, `models.I.NAME`, I from 0, or `defend.lambda`.
    pub name: String,
    /// The values, as they are written into the recipe.
    pub values: Vec<String>,
}

/// What candidates are chosen by. The first five need no label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Neighbourhood density of the predictions, high.
    Snd,
    /// Entropy of the predictions, low.
    Entropy,
    /// Divergence of predictions on changed copies, low.
    Consistency,
    /// Captured energy of a recipe that looks at data, high.
    Captured,
    /// Accuracy on other labelled data, such as that of the base model's own tasks.
    Source,
    /// Accuracy on a few random labelled samples.
    Few,
    /// Accuracy on all labelled samples.
    Accuracy,
}

impl Strategy {
    /// All, in the order they are shown.
    pub const ALL: [Self; 7] = [
        Self::Snd,
        Self::Entropy,
        Self::Consistency,
        Self::Captured,
        Self::Source,
        Self::Few,
        Self::Accuracy,
    ];

    /// Its name on the command line and in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Snd => "snd",
            Self::Entropy => "entropy",
            Self::Consistency => "consistency",
            Self::Captured => "captured",
            Self::Source => "source",
            Self::Few => "few",
            Self::Accuracy => "accuracy",
        }
    }

    /// Whether the best value is the lowest.
    pub fn is_low(self) -> bool {
        matches!(self, Self::Entropy | Self::Consistency)
    }

    /// Whether a model that gives every sample one class scores best.
    fn rewards_collapse(self) -> bool {
        matches!(self, Self::Snd | Self::Entropy | Self::Consistency)
    }
}

impl std::str::FromStr for Strategy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|strategy| strategy.name() == text)
            .ok_or_else(|| format!("unknown strategy `{text}`; expected one of {}", names()))
    }
}

/// What is searched, and with what.
#[derive(Debug, Clone)]
pub struct TuneOptions {
    /// The parameters.
    pub knobs: Vec<Knob>,
    /// So many random combinations instead of all, and the seed of the choice.
    pub random: Option<(usize, u64)>,
    /// The tasks that candidates are run on. Labels are used where there are any.
    pub tasks: Vec<Task>,
    /// The same tasks with changed copies of the same samples, for consistency.
    pub changed: Vec<Task>,
    /// Make the changed copies here, with this seed.
    pub change: Option<u64>,
    /// Tasks of other, labelled data.
    pub source: Vec<Task>,
    /// How many labelled samples of each task count as the few.
    pub labels: usize,
    /// What decides; by default the few labels if some are asked for, else accuracy. Without labels there is no default.
    pub by: Option<Strategy>,
    /// How candidates are merged.
    pub merge: MergeOptions,
    /// How they are run.
    pub evaluate: Options,
}

/// One candidate and what was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Parameters and their values.
    pub values: BTreeMap<String, String>,
    /// Digest of its plan.
    pub plan: String,
    /// By strategy, the mean over tasks of what was measured.
    pub scores: BTreeMap<String, f64>,
    /// Why it looks collapsed, if it does: the task and what its predictions are.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub collapsed: Option<String>,
}

/// What one strategy makes of the candidates.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Choice {
    /// The strategy.
    pub strategy: Strategy,
    /// Number of the candidate it takes, from 0.
    pub candidate: usize,
    /// Accuracy of that candidate, if there are labels.
    pub accuracy: Option<f64>,
    /// Rank correlation with accuracy over the candidates, if there are labels.
    pub agreement: Option<f64>,
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tuned {
    /// The candidates in order of trial.
    pub candidates: Vec<Candidate>,
    /// What each strategy would take, of those that could be measured.
    pub choices: Vec<Choice>,
    /// The strategy that decided.
    pub by: Strategy,
    /// Number of the chosen candidate.
    pub best: usize,
    /// The recipe with its values.
    pub recipe: String,
    /// Candidates that an earlier run had measured.
    pub resumed: usize,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// What the log begins with: a search goes on only if this is the same.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Header {
    tasks: Vec<Task>,
    changed: Vec<Task>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    change: Option<u64>,
    source: Vec<Task>,
    labels: usize,
}

/// Hears of a candidate before it is merged: its number from 0, how many there are, its values.
pub type Watch<'a> = &'a mut dyn FnMut(usize, usize, &BTreeMap<String, String>);

/// Searches. `log` is the file that measured candidates are added to; merged models live in a folder beside it while they
/// are looked at. `open` opens a model by name, `step` hears of each candidate before it is merged.
///
/// # Errors
/// Parameters that the recipe does not have, a recipe that cannot be merged, tasks that cannot be run, a log of another
/// search, a strategy that nothing was measured for.
pub fn tune(
    path: &Path,
    text: &str,
    log: &Path,
    options: &TuneOptions,
    observer: &dyn Observer,
    open: &dyn Fn(&str) -> Result<Loaded, EvalError>,
    step: Watch<'_>,
) -> Result<Tuned, Failure> {
    let places = places(path, text, options)?;
    let combinations = combinations(&options.knobs, options.random)?;
    let header = Header {
        tasks: options.tasks.clone(),
        changed: options.changed.clone(),
        change: options.change,
        source: options.source.clone(),
        labels: options.labels,
    };
    let by = options.by.unwrap_or(if options.labels > 0 {
        Strategy::Few
    } else {
        Strategy::Accuracy
    });
    let mut measured = resume(log, &header)?;
    let mut notes = Vec::new();
    let (mut candidates, mut resumed) = (Vec::new(), 0);
    for (number, values) in combinations.iter().enumerate() {
        let named: BTreeMap<String, String> = options
            .knobs
            .iter()
            .zip(values)
            .map(|(knob, value)| (knob.name.clone(), value.clone()))
            .collect();
        let recipe = written(text, &places, values);
        if let Some(found) = measured.remove(&named)
            && digest(&plan_recipe(path, &recipe, &options.merge)?) == found.plan
        {
            resumed += 1;
            candidates.push(found);
            decides(by, &candidates)?;
            continue;
        }
        step(number, combinations.len(), &named);
        let folder = beside(log, "candidate");
        let merge = MergeOptions {
            overwrite: true,
            no_sync: true,
            card: false,
            ..options.merge.clone()
        };
        let done = merge_recipe(path, &recipe, &folder, &merge, observer)?;
        let captured = done.iter().rev().find_map(|planned| {
            let report = planned.report.as_ref()?.completed();
            let chosen = report.chosen.clone()?;
            report
                .methods
                .iter()
                .find(|method| method.name == chosen)?
                .captured
        });
        let (scores, collapsed) = scores(&folder, captured, options, open, &mut notes)?;
        let candidate = Candidate {
            values: named,
            plan: digest(&done),
            scores,
            collapsed,
        };
        append(log, &header, &candidate)?;
        candidates.push(candidate);
        decides(by, &candidates)?;
        // A cache of ours; the next candidate overwrites it anyway.
        let _ = std::fs::remove_dir_all(&folder);
    }
    let choices: Vec<Choice> = Strategy::ALL
        .into_iter()
        .filter_map(|strategy| choice(strategy, &candidates))
        .collect();
    let Some(decided) = choices.iter().find(|choice| choice.strategy == by) else {
        return Err(Failure::Usage(all_collapsed(by, &candidates)));
    };
    let best = decided.candidate;
    let values: Vec<String> = options
        .knobs
        .iter()
        .map(|knob| candidates[best].values[&knob.name].clone())
        .collect();
    for knob in &options.knobs {
        let value = &candidates[best].values[&knob.name];
        let ends = [knob.values.first(), knob.values.last()];
        if knob.values.len() > 2 && options.random.is_none() && ends.contains(&Some(value)) {
            notes.push(format!(
                "the best {} is the end {value} of its range: a wider one may hold a better",
                knob.name
            ));
        }
    }
    Ok(Tuned {
        recipe: written(text, &places, &values),
        candidates,
        choices,
        by,
        best,
        resumed,
        notes,
    })
}

/// Whether a search can end in a choice, as far as its first candidate shows.
fn decides(by: Strategy, candidates: &[Candidate]) -> Result<(), Failure> {
    let name = by.name();
    let [first] = candidates else { return Ok(()) };
    if first.scores.contains_key(name) {
        return Ok(());
    }
    let needs = match by {
        Strategy::Consistency => {
            "changed copies of the samples: give --changed, a file of tasks or `auto`"
        }
        Strategy::Source => "other labelled data: give --source",
        Strategy::Few => "labelled samples: give --few, and tasks with labels",
        Strategy::Accuracy => {
            "labelled samples. Without any, name what is to decide with --by: snd, entropy, consistency or captured; none \
             of them is right everywhere (docs/tune.md)"
        }
        Strategy::Captured => "a recipe that looks at data, such as `merge_method: projection`",
        Strategy::Snd | Strategy::Entropy => "tasks with at least two samples",
    };
    Err(Failure::Usage(format!(
        "nothing was measured for {name}: it needs {needs}"
    )))
}

fn all_collapsed(by: Strategy, candidates: &[Candidate]) -> String {
    let why = candidates.iter().find_map(|c| c.collapsed.as_deref());
    format!(
        "{} cannot choose: the predictions of every candidate have collapsed ({}); look for a mistake in the heads or the \
         data, or choose by labels",
        by.name(),
        why.unwrap_or_default()
    )
}

/// What one strategy takes: the first of the best, without what has collapsed where a collapse would win.
fn choice(strategy: Strategy, candidates: &[Candidate]) -> Option<Choice> {
    let of = |candidate: &Candidate| {
        let value = candidate.scores.get(strategy.name()).copied()?;
        Some(if strategy.is_low() { value } else { -value })
    };
    let values: Vec<f64> = candidates
        .iter()
        .map(|candidate| match of(candidate) {
            Some(value) if candidate.collapsed.is_none() || !strategy.rewards_collapse() => value,
            _ => f64::NAN,
        })
        .collect();
    let chosen = smallest(&values)?;
    let accuracy = |candidate: &Candidate| candidate.scores.get("accuracy").copied();
    let pairs: Vec<(f64, f64)> = candidates
        .iter()
        .filter_map(|candidate| Some((-of(candidate)?, accuracy(candidate)?)))
        .collect();
    let (a, b): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
    Some(Choice {
        strategy,
        candidate: chosen,
        accuracy: accuracy(&candidates[chosen]),
        agreement: spearman(&a, &b).map(|(rho, _)| rho),
    })
}

/// Where each knob's value stands in the recipe's text.
fn places(path: &Path, text: &str, options: &TuneOptions) -> Result<Vec<Span>, Failure> {
    let parse = ParseOptions {
        lenient: options.merge.plan.lenient,
    };
    let (recipe, _) =
        Recipe::parse(&path.display().to_string(), text, parse).map_err(Failure::Recipe)?;
    let [document] = recipe.documents.as_slice() else {
        return Err(Failure::Usage(
            "a recipe with several documents cannot be tuned: put the one to be tuned in a file of its own".into(),
        ));
    };
    let sources = match &document.body {
        merganser_recipe::Body::Models(sources) => sources.as_slice(),
        _ => &[],
    };
    options
        .knobs
        .iter()
        .map(|knob| {
            let defence = document.defence.as_ref();
            if let ("defend.lambda", Some(lambda)) = (
                knob.name.as_str(),
                defence.and_then(|defence| defence.lambda.as_ref()),
            ) {
                return Ok(lambda.span);
            }
            let (parameters, name) = match knob.name.split('.').collect::<Vec<_>>()[..] {
                [name] => (Some(&document.parameters), name),
                ["prior", name] => (document.prior.as_ref().map(|prior| &prior.parameters), name),
                ["models", number, name] => {
                    let source = number.parse().ok().and_then(|i: usize| sources.get(i));
                    (source.map(|source| &source.parameters), name)
                }
                _ => (None, knob.name.as_str()),
            };
            let setting = parameters.and_then(|parameters| parameters.get(name));
            match setting {
                Some(setting) => Ok(setting.span),
                _ => Err(Failure::Usage(format!(
                    "the recipe sets no parameter at `{}`: write one there with any value, so that its place is known \
                     (NAME for `parameters:`, prior.NAME, models.I.NAME with I from 0, or defend.lambda)",
                    knob.name
                ))),
            }
        })
        .collect()
}

/// The recipe with other values at the places.
fn written(text: &str, places: &[Span], values: &[String]) -> String {
    let mut edits: Vec<(&Span, &String)> = places.iter().zip(values).collect();
    edits.sort_by_key(|(span, _)| std::cmp::Reverse(span.start));
    let mut text = text.to_owned();
    for (span, value) in edits {
        text.replace_range(span.start..span.end, value);
    }
    text
}

/// All combinations of values, the last knob fastest, or some of them.
fn combinations(knobs: &[Knob], random: Option<(usize, u64)>) -> Result<Vec<Vec<String>>, Failure> {
    if knobs.is_empty() || knobs.iter().any(|knob| knob.values.is_empty()) {
        return Err(Failure::Usage(
            "there is nothing to search: give at least one parameter with values, as in --set lambda=0.2,0.4,0.6".into(),
        ));
    }
    for (at, knob) in knobs.iter().enumerate() {
        if knobs[..at].iter().any(|other| other.name == knob.name) {
            return Err(Failure::Usage(format!("`{}` is set twice", knob.name)));
        }
    }
    let total = knobs
        .iter()
        .try_fold(1_usize, |n, knob| n.checked_mul(knob.values.len()))
        .unwrap_or(usize::MAX);
    let wanted = random.map_or(total, |(n, _)| n.min(total));
    if wanted > MOST || total > MOST_COMBINATIONS {
        return Err(Failure::Usage(format!(
            "these are {wanted} candidates of {total} combinations; give fewer values, or try some with --random N"
        )));
    }
    let at = |mut number: usize| -> Vec<String> {
        let mut values: Vec<String> = knobs
            .iter()
            .rev()
            .map(|knob| {
                let value = knob.values[number % knob.values.len()].clone();
                number /= knob.values.len();
                value
            })
            .collect();
        values.reverse();
        values
    };
    let numbers = match random {
        None => (0..total).collect(),
        Some((n, seed)) => merganser_data::choose(total, Some(n), seed),
    };
    Ok(numbers.into_iter().map(at).collect())
}

type Scores = (BTreeMap<String, f64>, Option<String>);

/// The surrogates of a merged model, means over the tasks.
fn scores(
    folder: &Path,
    captured: Option<f64>,
    options: &TuneOptions,
    open: &dyn Fn(&str) -> Result<Loaded, EvalError>,
    notes: &mut Vec<String>,
) -> Result<Scores, Failure> {
    let model = open(&folder.display().to_string()).map_err(|error| evaluation(&error))?;
    let mut run = |task: &Task, change: Option<u64>| -> Result<Answers, Failure> {
        let named = |cause| {
            evaluation(&EvalError::Task {
                task: task.title(),
                model: "of the candidate".into(),
                cause: Box::new(cause),
            })
        };
        let found = answers(&model, task, &options.evaluate, change, open).map_err(named)?;
        for note in &found.notes {
            let note = format!("{}: {note}", task.title());
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        Ok(found)
    };
    let mut sums: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    let mut collapsed = None;
    for (at, task) in options.tasks.iter().enumerate() {
        let found = run(task, None)?;
        let mut add = |strategy: Strategy, value: f64| {
            sums.entry(strategy.name()).or_default().push(value);
        };
        add(Strategy::Entropy, entropy(&found.logits));
        if let Some(density) = neighbourhood_density(&probabilities(&found.logits), TEMPERATURE) {
            add(Strategy::Snd, density);
        }
        if let Some(why) = collapse(&found.logits) {
            collapsed.get_or_insert_with(|| format!("{}: {why}", task.title()));
        }
        if let Some(predictions) = &found.predictions {
            let hits = predictions.hits();
            add(Strategy::Accuracy, mean(&hits).0);
            if options.labels > 0 {
                add(Strategy::Few, few(&hits, options.labels));
            }
        }
        let changed = match options.change {
            Some(_) => Some(task),
            None => options.changed.get(at),
        };
        if let Some(changed) = changed {
            let other = run(changed, options.change)?;
            let value =
                consistency(&found.logits, &other.logits).map_err(|error| evaluation(&error))?;
            add(Strategy::Consistency, value);
        }
    }
    for task in &options.source {
        let Some(predictions) = run(task, None)?.predictions else {
            return Err(Failure::Usage(format!(
                "the source task `{}` has no labels",
                task.title()
            )));
        };
        let accuracy = mean(&predictions.hits()).0;
        sums.entry(Strategy::Source.name())
            .or_default()
            .push(accuracy);
    }
    let mut scores: BTreeMap<String, f64> = sums
        .into_iter()
        // A task without labels leaves the accuracy of the others to be no mean over tasks.
        .filter(|(name, values)| {
            *name == Strategy::Source.name() || values.len() == options.tasks.len()
        })
        .map(|(name, values)| (name.to_owned(), mean(&values).0))
        .collect();
    if let Some(captured) = captured {
        scores.insert(Strategy::Captured.name().into(), captured);
    }
    Ok((scores, collapsed))
}

/// The share of hits among `n` random samples, the same for every candidate.
fn few(hits: &[f64], n: usize) -> f64 {
    let chosen = merganser_data::choose(hits.len(), Some(n), 0);
    mean(&chosen.iter().map(|&i| hits[i]).collect::<Vec<_>>()).0
}

fn evaluation(error: &EvalError) -> Failure {
    Failure::Usage(error.to_string())
}

/// The digest of the plan that a recipe ends in.
fn digest(planned: &[Planned]) -> String {
    let last = planned.last();
    last.map(|planned| planned.plan.digest.clone())
        .unwrap_or_default()
}

fn beside(log: &Path, what: &str) -> PathBuf {
    let mut name = log.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{what}"));
    log.with_file_name(name)
}

/// Candidates by their values.
type Measured = BTreeMap<BTreeMap<String, String>, Candidate>;

/// What an earlier run of the same search has measured.
fn resume(log: &Path, header: &Header) -> Result<Measured, Failure> {
    let text = match std::fs::read_to_string(log) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Measured::new()),
        Err(error) => return Err(trouble("read", log, &error)),
    };
    let mut lines = text.lines();
    let same = lines
        .next()
        .and_then(|line| serde_json::from_str::<Header>(line).ok())
        .is_some_and(|found| found == *header);
    if !same {
        return Err(Failure::Usage(format!(
            "'{}' is the log of a search with other tasks, or no log: remove it, or name another recipe to be written",
            log.display()
        )));
    }
    // A line that was cut short by a crash is measured anew.
    Ok(lines
        .filter_map(|line| serde_json::from_str::<Candidate>(line).ok())
        .map(|found| (found.values.clone(), found))
        .collect())
}

fn append(log: &Path, header: &Header, candidate: &Candidate) -> Result<(), Failure> {
    let fail = |error: &dyn std::fmt::Display| trouble("write", log, error);
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .map_err(|e| fail(&e))?;
    let mut text = String::new();
    if file.metadata().map_err(|e| fail(&e))?.len() == 0 {
        text.push_str(&serde_json::to_string(header).map_err(|e| fail(&e))?);
        text.push('\n');
    }
    text.push_str(&serde_json::to_string(candidate).map_err(|e| fail(&e))?);
    text.push('\n');
    file.write_all(text.as_bytes()).map_err(|e| fail(&e))
}

fn trouble(what: &str, path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::Usage(format!("cannot {what} '{}': {error}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn knob(name: &str, values: &[&str]) -> Knob {
        Knob {
            name: name.into(),
            values: values.iter().map(|&v| v.to_owned()).collect(),
        }
    }

    #[test]
    fn a_grid_has_all_combinations_and_a_random_search_some() {
        let knobs = [knob("a", &["1", "2"]), knob("b", &["x", "y", "z"])];
        let all = combinations(&knobs, None).unwrap();
        assert_eq!(all.len(), 6);
        assert_eq!(all[1], ["1", "y"]);
        let some = combinations(&knobs, Some((4, 7))).unwrap();
        assert_eq!(some.len(), 4);
        assert!(some.iter().all(|values| all.contains(values)));
        assert_eq!(combinations(&knobs, Some((100, 7))).unwrap().len(), 6);
        assert!(combinations(&[knob("a", &["1"]), knob("a", &["2"])], None).is_err());
        assert!(combinations(&[], None).is_err());
    }

    #[test]
    fn values_are_written_where_the_old_ones_stood() {
        let text = "parameters: {lambda: 0.3, density: 0.25}\n";
        let places = [Span::new(21, 24), Span::new(35, 39)];
        let values = ["10".to_owned(), "0.125".to_owned()];
        let found = written(text, &places, &values);
        assert_eq!(found, "parameters: {lambda: 10, density: 0.125}\n");
    }

    fn candidate(entropy: f64, accuracy: f64, collapsed: bool) -> Candidate {
        Candidate {
            values: BTreeMap::new(),
            plan: String::new(),
            scores: BTreeMap::from([
                ("entropy".to_owned(), entropy),
                ("accuracy".to_owned(), accuracy),
            ]),
            collapsed: collapsed.then(|| "all alike".into()),
        }
    }

    #[test]
    fn what_has_collapsed_does_not_win_by_entropy() {
        let list = [
            candidate(0.01, 0.1, true),
            candidate(0.9, 0.6, false),
            candidate(0.5, 0.8, false),
        ];
        let found = choice(Strategy::Entropy, &list).unwrap();
        assert_eq!((found.candidate, found.accuracy), (2, Some(0.8)));
        assert!(found.agreement.unwrap() < 1.0);
        let found = choice(Strategy::Accuracy, &list).unwrap();
        assert_eq!((found.candidate, found.agreement), (2, Some(1.0)));
        assert_eq!(choice(Strategy::Snd, &list), None);
        assert_eq!(choice(Strategy::Entropy, &list[..1]), None);
        assert!(all_collapsed(Strategy::Entropy, &list[..1]).contains("all alike"));
        assert!(decides(Strategy::Entropy, &list[..1]).is_ok());
        assert!(decides(Strategy::Snd, &list[..1]).is_err());
    }

    #[test]
    fn the_few_are_the_same_for_every_candidate() {
        let hits: Vec<f64> = (0..100).map(|i| f64::from(u8::from(i < 50))).collect();
        let share = few(&hits, 40);
        assert!((share - 0.5).abs() < 0.2, "{share}");
        assert_eq!(few(&hits, 1000), 0.5);
    }
}
