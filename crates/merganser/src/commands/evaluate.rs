//! `merganser evaluate`: how good models are on labelled data, in one table.

use std::path::PathBuf;

use clap::Args;
use merganser::Failure;
use merganser::data::{Format, Source};
use merganser::eval::{
    Affinity, EvalError, Evaluation, Feature, Kind, Loaded, Options, Task, evaluate, read_tasks,
};
use merganser::recipe::ModelRef;
use merganser::run::RunError;
use merganser::store::hub::{self, HubOptions};

use crate::output::Output;
use crate::table::table;

/// Measure models on labelled data: accuracy, perplexity, similarity, retrieval.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/demo:\n  merganser evaluate base --data data/sum.safetensors --split test --samples 50 --head heads/sum.safetensors --compare tasks/sum\n\nWith files of your own:\n  merganser evaluate bert-sst2/ --data sst2.jsonl                        the head in its own checkpoint\n  merganser evaluate merged/ --data sst2.jsonl --head bert-sst2/         the head of a fine-tune on a merge\n  merganser evaluate gpt2/ --data wiki.txt --compare merged/             perplexity of two models\n  merganser evaluate merged/ --tasks tasks.yml --compare base/ --json    many tasks at once\n\nSee docs/evaluate.md for files of tasks and formats of samples."
)]
pub(crate) struct Evaluate {
    /// The model: a folder, a Hub id, or base+adapter
    pub(crate) model: String,
    /// Another model for the same table (may be repeated)
    #[arg(long, value_name = "MODEL")]
    pub(crate) compare: Vec<String>,
    /// Samples: JSON lines, JSON, CSV, TSV, text, Parquet, safetensors, npy, or a folder of images
    #[arg(
        long,
        value_name = "PATH",
        required_unless_present = "tasks",
        conflicts_with = "tasks"
    )]
    pub(crate) data: Option<PathBuf>,
    /// A YAML or JSON file that lists tasks, each with its data, head and reference
    #[arg(long, value_name = "FILE")]
    pub(crate) tasks: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) measure: Measure,
    #[command(flatten)]
    pub(crate) samples: SampleOptions,
    /// Samples that are run together; scores do not depend on it
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) batch_size: u16,
}

/// What is measured.
#[derive(Debug, Args)]
#[command(next_help_heading = "What is measured")]
pub(crate) struct Measure {
    /// classification, perplexity, similarity or retrieval [default: by the model and its head]
    #[arg(long, value_name = "TASK", conflicts_with = "tasks")]
    pub(crate) task: Option<Kind>,
    /// A file with a head, or a fine-tuned model whose head is used
    #[arg(long, value_name = "PATH", conflicts_with = "tasks")]
    pub(crate) head: Option<PathBuf>,
    /// The model fine-tuned on this task alone, to which scores are normalised
    #[arg(long, value_name = "MODEL", conflicts_with = "tasks")]
    pub(crate) reference: Option<String>,
    /// Vector of a sample: cls, mean, last, pooled or embeds [default: by the model]
    #[arg(long, conflicts_with = "tasks")]
    pub(crate) feature: Option<Feature>,
    /// Scale features to unit length before the head
    #[arg(long, conflicts_with = "tasks")]
    pub(crate) unit: bool,
    /// Classification: draw predictions towards those of near samples, for streams whose neighbours share classes: knn, rbf or linear
    #[arg(long, value_name = "AFFINITY", conflicts_with = "tasks")]
    pub(crate) lame: Option<Affinity>,
    /// Perplexity: read the rows as one text, in windows of the maximum length
    #[arg(long, conflicts_with = "tasks")]
    pub(crate) concat: bool,
    /// Similarity, retrieval: the columns of the two texts, as A,B
    #[arg(
        long,
        value_name = "A,B",
        value_delimiter = ',',
        num_args = 1,
        conflicts_with = "tasks"
    )]
    pub(crate) columns: Option<Vec<String>>,
    /// Similarity: the column of scores
    #[arg(long, value_name = "COLUMN", conflicts_with = "tasks")]
    pub(crate) score: Option<String>,
    /// Retrieval: numbers of nearest passages looked at [default: 1,5,10]
    #[arg(
        short,
        value_name = "K,…",
        value_delimiter = ',',
        conflicts_with = "tasks"
    )]
    pub(crate) k: Vec<usize>,
}

/// Which samples, and how they are read.
#[derive(Debug, Args)]
#[command(next_help_heading = "Samples")]
pub(crate) struct SampleOptions {
    /// The part of the data: a prefix of tensors, a value of column `split`, a file or a sub-folder
    #[arg(long, conflicts_with = "tasks")]
    pub(crate) split: Option<String>,
    /// The column of texts or images [default: `text`, or the only one]
    #[arg(long, conflicts_with = "tasks")]
    pub(crate) column: Option<String>,
    /// The column of second texts, for models that read pairs
    #[arg(long, value_name = "COLUMN", conflicts_with = "tasks")]
    pub(crate) pair: Option<String>,
    /// The column of texts for the decoder
    #[arg(long, value_name = "COLUMN", conflicts_with = "tasks")]
    pub(crate) target: Option<String>,
    /// The column of labels [default: `label`, or the only one of whole numbers]
    #[arg(long, value_name = "COLUMN", conflicts_with = "tasks")]
    pub(crate) label: Option<String>,
    /// The format of the data [default: by its extension]
    #[arg(long, conflicts_with = "tasks")]
    pub(crate) format: Option<Format>,
    /// Take this many samples, chosen at random without replacement [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) samples: Option<usize>,
    /// Seed of the choice
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Cut texts at this many tokens [default: what the model takes, at most 512]
    #[arg(long, value_name = "N")]
    pub(crate) max_length: Option<usize>,
}

pub(crate) fn run(arguments: &Evaluate, memory: u64, output: &Output) -> Result<(), Failure> {
    let tasks = tasks(arguments)?;
    let models: Vec<String> = std::iter::once(&arguments.model)
        .chain(&arguments.compare)
        .cloned()
        .collect();
    let options = Options {
        batch_size: usize::from(arguments.batch_size),
        memory,
    };
    let open = |text: &str| open(text, memory);
    let found = evaluate(&models, &tasks, &options, &open, &mut |step| {
        if output.terminal {
            let (number, of) = (step.done + 1, step.of);
            output.note(&format!("{number}/{of}  {}  {}", step.model, step.task));
        }
    })
    .map_err(failure)?;
    if output.json {
        let json =
            serde_json::to_value(&found).map_err(|error| Failure::Usage(error.to_string()))?;
        Output::event(&json);
        return Ok(());
    }
    for note in &found.notes {
        output.note(&format!("note: {note}"));
    }
    if found
        .tasks
        .iter()
        .any(|task| task.scores[0].interval.is_some())
    {
        output.note("± is half of a 95 % interval");
    }
    crate::output::result(&text(&found, output.verbose));
    Ok(())
}

/// The tasks of the file, or the one that the arguments describe.
fn tasks(arguments: &Evaluate) -> Result<Vec<Task>, Failure> {
    let Evaluate {
        measure, samples, ..
    } = arguments;
    if let Some(path) = &arguments.tasks {
        let mut tasks = read_tasks(path).map_err(failure)?;
        for task in &mut tasks {
            task.samples = samples.samples.or(task.samples);
            task.max_length = samples.max_length.or(task.max_length);
            task.seed = samples.seed.unwrap_or(task.seed);
        }
        return Ok(tasks);
    }
    let columns = match measure.columns.as_deref() {
        None => None,
        Some([a, b]) => Some([a.clone(), b.clone()]),
        Some(_) => {
            return Err(Failure::Usage(
                "--columns takes the names of two columns, as in --columns query,passage".into(),
            ));
        }
    };
    let source = Source {
        path: arguments.data.clone().unwrap_or_default(),
        format: samples.format,
        split: samples.split.clone(),
        column: samples.column.clone(),
        pair: samples.pair.clone(),
        target: samples.target.clone(),
        label: samples.label.clone(),
    };
    Ok(vec![Task {
        task: measure.task,
        head: measure.head.clone(),
        feature: measure.feature,
        unit: measure.unit,
        lame: measure.lame,
        reference: measure.reference.clone(),
        columns,
        score: measure.score.clone(),
        concat: measure.concat,
        k: measure.k.clone(),
        samples: samples.samples,
        seed: samples.seed.unwrap_or(0),
        max_length: samples.max_length,
        ..Task::new(source)
    }])
}

/// Opens a model as recipes name it: a folder or Hub id, with `+adapter`.
pub(crate) fn open(text: &str, memory: u64) -> Result<Loaded, EvalError> {
    let unfit = |problem: String| EvalError::Unfit {
        model: text.to_owned(),
        problem,
    };
    let reference: ModelRef = text
        .parse()
        .map_err(|error| unfit(format!("it names no model: {error}")))?;
    let hub = HubOptions::from_env();
    let folder = |path: &str, revision: &Option<String>| {
        hub::resolve(path, revision.as_deref(), &hub).map_err(|error| unfit(error.to_string()))
    };
    let model = folder(&reference.path, &reference.revision)?;
    let adapter = reference
        .lora
        .as_ref()
        .map(|lora| folder(&lora.path, &lora.revision))
        .transpose()?;
    Loaded::open(text, &model, adapter.as_deref(), memory)
}

/// What stands in a file or on the command line is bad input; what only running shows is a failure.
pub(crate) fn failure(error: EvalError) -> Failure {
    fn failed(error: &EvalError) -> bool {
        match error {
            EvalError::Compute(_) => true,
            EvalError::Task { cause, .. } => failed(cause),
            EvalError::Store(error) => matches!(**error, merganser::store::Error::Tensor { .. }),
            _ => false,
        }
    }
    if failed(&error) {
        Failure::Run(RunError::Read(Box::new(error)))
    } else {
        Failure::Usage(error.to_string())
    }
}

fn text(found: &Evaluation, verbose: bool) -> String {
    let mut text = table(&found.table());
    let differences = differences(found);
    if !differences.is_empty() {
        text.push_str(&format!(
            "\ndifference from {} on the same samples, in points, with its 95 % interval\n{}",
            found.models[0],
            table(&differences)
        ));
    }
    if verbose {
        for task in &found.tasks {
            for (model, score) in found.models.iter().zip(&task.scores) {
                let mut rows: Vec<Vec<String>> = Vec::new();
                for (name, value) in &score.also {
                    rows.push(vec![name.clone(), format!("{value:.4}")]);
                }
                for class in &score.classes {
                    let share = 100.0 * class.correct as f64 / class.samples as f64;
                    rows.push(vec![
                        class.class.clone(),
                        format!("{share:.1}"),
                        format!("{} of {}", class.correct, class.samples),
                    ]);
                }
                text.push_str(&format!("\n{}, {model}\n{}", task.name, table(&rows)));
            }
        }
    }
    text
}

fn differences(found: &Evaluation) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for task in &found.tasks {
        let cells: Vec<String> = task.scores[1..]
            .iter()
            .map(|score| match score.difference {
                None => String::new(),
                Some(difference) => {
                    let ends = difference.interval.map_or(String::new(), |[low, high]| {
                        format!(" [{:+.1}, {:+.1}]", 100.0 * low, 100.0 * high)
                    });
                    format!("{:+.1}{ends}", 100.0 * difference.value)
                }
            })
            .collect();
        if cells.iter().any(|cell| !cell.is_empty()) {
            rows.push(std::iter::once(task.name.clone()).chain(cells).collect());
        }
    }
    if !rows.is_empty() {
        let header = std::iter::once("task".to_owned());
        rows.insert(0, header.chain(found.models[1..].iter().cloned()).collect());
    }
    rows
}
