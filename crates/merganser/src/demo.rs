//! The demo: small real models and data that come with the program, merged by the usual methods and by projection.
//!
//! Everything is written to a folder: the models and their data, a recipe and a merged model for each method, and the
//! report. See `examples/demo` for what the models are and how they were trained.

use std::path::{Path, PathBuf};

use merganser_data::Source;
use merganser_eval::{Evaluation, Loaded, Task};
use merganser_report::{Accuracy, Evaluation as Terms, Method, MethodKind, Report, Score};

use crate::{Failure, MergeOptions, Quiet, diagnose_recipe, merge_recipe};

/// A bundled file: its path below the demo's folder, and its content.
type Bundled = (&'static str, &'static [u8]);

macro_rules! bundled {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../../../examples/demo/", $path)))),*]
    };
}

const FILES: &[Bundled] = bundled![
    "base/config.json",
    "base/model.safetensors",
    "base/preprocessor_config.json",
    "data/difference.safetensors",
    "data/larger.safetensors",
    "data/sum.safetensors",
    "data/turned.safetensors",
    "heads/difference.safetensors",
    "heads/larger.safetensors",
    "heads/sum.safetensors",
    "heads/turned.safetensors",
    "tasks/difference/config.json",
    "tasks/difference/model.safetensors",
    "tasks/difference/preprocessor_config.json",
    "tasks/larger/config.json",
    "tasks/larger/model.safetensors",
    "tasks/larger/preprocessor_config.json",
    "tasks/sum/config.json",
    "tasks/sum/model.safetensors",
    "tasks/sum/preprocessor_config.json",
    "tasks/turned/config.json",
    "tasks/turned/model.safetensors",
    "tasks/turned/preprocessor_config.json",
];

/// The tasks and what they ask.
const TASKS: [(&str, &str); 4] = [
    ("turned", "one digit lying on its side: which is it?"),
    (
        "sum",
        "two digits side by side: the last digit of their sum",
    ),
    ("larger", "two digits, one above the other: the larger one"),
    (
        "difference",
        "two digits corner to corner: how far apart are they?",
    ),
];

/// A merge of the demo: its name in tables, its folder, and the part of the recipe that is its own.
struct Merge {
    name: &'static str,
    folder: &'static str,
    recipe: &'static str,
}

const MERGES: [Merge; 7] = [
    Merge {
        name: "average",
        folder: "average",
        recipe: "merge_method: task_arithmetic\nparameters: {weight: 1, normalize: true}\n",
    },
    Merge {
        name: "task arithmetic 0.3",
        folder: "task_arithmetic",
        recipe: "merge_method: task_arithmetic\nparameters: {weight: 1, lambda: 0.3}\n",
    },
    Merge {
        name: "ties",
        folder: "ties",
        recipe: "merge_method: ties\nparameters: {weight: 1, density: 0.2, normalize: true}\n",
    },
    Merge {
        name: "projection, no data (wudi)",
        folder: "wudi",
        recipe: "merge_method: wudi\n",
    },
    Merge {
        name: "regmean",
        folder: "regmean",
        recipe: "merge_method: regmean\n",
    },
    Merge {
        name: "projection, one pass",
        folder: "projection_one_pass",
        recipe: "merge_method: projection\nparameters: {sequential: false}\n",
    },
    Merge {
        name: "projection",
        folder: "projection",
        recipe: "merge_method: projection\n",
    },
];

/// Folder of the merge whose recipe is diagnosed: every layer by itself, as captured energy is defined.
const ONE_PASS: &str = "projection_one_pass";

/// The merge that the report speaks for.
const BEST: &str = "projection";

/// What the demo found.
#[derive(Debug)]
pub struct Demo {
    /// Captured energies and accuracies of every merge.
    pub report: Report,
    /// The tasks, with what they ask.
    pub tasks: Vec<(&'static str, &'static str)>,
    /// The page.
    pub page: PathBuf,
}

/// Runs the demo in `folder`, which is made if it is not there; `say` hears what is done next.
///
/// # Errors
/// A folder that holds something else, a full disk.
pub fn demo(folder: &Path, say: &dyn Fn(&str)) -> Result<Demo, Failure> {
    unpack(folder)?;
    let at = |path: &str| folder.join(path);
    let mut merged = Vec::new();
    for merge in &MERGES {
        say(&format!("merging by {}", merge.name));
        let path = at(&format!("recipes/{}.yml", merge.folder));
        let text = recipe(merge);
        write(&path, text.as_bytes())?;
        let out = at(&format!("merged/{}", merge.folder));
        let options = MergeOptions {
            overwrite: true,
            no_sync: true,
            ..MergeOptions::default()
        };
        merge_recipe(&path, &text, &out, &options, &Quiet)?;
        merged.push((merge.name.to_owned(), out));
    }
    say("measuring captured energy");
    let one_pass = MERGES
        .iter()
        .find(|merge| merge.folder == ONE_PASS)
        .unwrap_or(&MERGES[0]);
    let path = at(&format!("recipes/{}.yml", one_pass.folder));
    let text = recipe(one_pass);
    let options = MergeOptions {
        compared: merged.clone(),
        ..MergeOptions::default()
    };
    let found = diagnose_recipe(&path, &text, &options, &Quiet)?;
    let mut report = found
        .into_iter()
        .find_map(|planned| planned.report)
        .unwrap_or_default();
    say("evaluating");
    let evaluation = evaluate(folder, &merged)?;
    complete(&mut report, &merged, &evaluation);
    let page = at("report.html");
    let html = report
        .to_html()
        .map_err(|error| Failure::Usage(error.to_string()))?;
    write(&page, html.as_bytes())?;
    Ok(Demo {
        report,
        tasks: TASKS.to_vec(),
        page,
    })
}

fn unpack(folder: &Path) -> Result<(), Failure> {
    const MARK: &str = "This folder belongs to `merganser demo`, which writes it anew.\n";
    let mark = folder.join("DEMO.txt");
    let taken = folder
        .read_dir()
        .is_ok_and(|mut entries| entries.next().is_some());
    if taken && !mark.is_file() {
        return Err(Failure::Usage(format!(
            "'{}' is not empty and was not made by the demo; name another folder with --out",
            folder.display()
        )));
    }
    write(&mark, MARK.as_bytes())?;
    for (path, content) in FILES {
        write(&folder.join(path), content)?;
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let fail = |error: std::io::Error| {
        Failure::Usage(format!("cannot write '{}': {error}", path.display()))
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(fail)?;
    }
    std::fs::write(path, content).map_err(fail)
}

/// The recipe of a merge: paths are looked for beside it.
fn recipe(merge: &Merge) -> String {
    let mut text = merge.recipe.to_owned();
    let looks_at_data = ["projection", "regmean"]
        .iter()
        .any(|name| merge.recipe.starts_with(&format!("merge_method: {name}")));
    text.push_str("base_model: ../base\nmodels:\n");
    for (task, _) in TASKS {
        text.push_str(&format!("  - model: ../tasks/{task}\n"));
        if looks_at_data {
            text.push_str(&format!("    calibration: ../data/{task}.safetensors\n"));
        }
    }
    if looks_at_data {
        text.push_str("calibration: {prefix: calib, samples: 256}\n");
    }
    text.push_str("dtype: float32\n");
    text
}

fn evaluate(folder: &Path, merged: &[(String, PathBuf)]) -> Result<Evaluation, Failure> {
    let path = |path: String| folder.join(path).display().to_string();
    let tasks: Vec<Task> = TASKS
        .iter()
        .map(|(task, _)| Task {
            name: (*task).to_owned(),
            head: Some(folder.join(format!("heads/{task}.safetensors"))),
            reference: Some(path(format!("tasks/{task}"))),
            ..Task::new(Source {
                split: Some("test".into()),
                ..Source::new(folder.join(format!("data/{task}.safetensors")))
            })
        })
        .collect();
    let models: Vec<String> = std::iter::once(path("base".into()))
        .chain(merged.iter().map(|(_, out)| out.display().to_string()))
        .collect();
    let options = merganser_eval::Options::default();
    let open = |name: &str| Loaded::open(name, name.as_ref(), None, options.memory);
    merganser_eval::evaluate(&models, &tasks, &options, &open, &mut |_| {})
        .map_err(|error| Failure::Usage(error.to_string()))
}

/// Adds accuracies to a report of captured energies.
fn complete(report: &mut Report, merged: &[(String, PathBuf)], evaluation: &Evaluation) {
    let score = |score: &merganser_eval::Score| Score {
        value: Some(score.value),
        low: score.interval.map(|[low, _]| low),
        high: score.interval.map(|[_, high]| high),
    };
    let column = |model: usize| {
        Accuracy::of_tasks(
            evaluation
                .tasks
                .iter()
                .map(|task| score(&task.scores[model]))
                .collect(),
        )
    };
    for (k, (name, _)) in merged.iter().enumerate() {
        let accuracy = Some(column(k + 1));
        match report
            .methods
            .iter_mut()
            .find(|method| &method.name == name)
        {
            Some(method) => method.accuracy = accuracy,
            None => report.methods.push(Method {
                accuracy,
                ..Method::new(name.clone(), MethodKind::Merge)
            }),
        }
    }
    // What the diagnosis calls its own merge is one of them; merges that were not made here say nothing here.
    let shown = |method: &Method| method.kind == MethodKind::Basis || method.accuracy.is_some();
    report
        .methods
        .retain(|method| method.name != crate::run::OWN && shown(method));
    let names: Vec<String> = report
        .methods
        .iter()
        .map(|method| method.name.clone())
        .collect();
    for layer in &mut report.layers {
        layer.captured.retain(|name, _| names.contains(name));
    }
    report.warnings.push(
        "captured energy is measured here layer by layer on the inputs of the fine-tunes; `projection` is solved for the \
         inputs that the merged layers before give, which this figure does not credit and that at the output does"
            .into(),
    );
    let individual = evaluation.tasks.iter().map(|task| {
        task.reference
            .as_ref()
            .map_or_else(Score::default, |it| score(&it.score))
    });
    report.evaluation = Some(Terms {
        base: Some(column(0)),
        individual: Some(Accuracy::of_tasks(individual.collect())),
        note: Some("Accuracy on 500 test images a task that no merge has seen; calibration saw 256 others, without labels.".into()),
    });
    report.chosen = Some(BEST.to_owned());
    "merganser demo".clone_into(&mut report.title);
}
