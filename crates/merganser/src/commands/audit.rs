//! `merganser audit`: which update of a sequence stands out, and which contributor of a merge is nearest to a backdoor.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use merganser::recipe::InjectedPair;
use merganser::trust::sequence::{Rule, Score, Updates, score};
use merganser::trust::vectors::against_mean;
use merganser::{Failure, MergeOptions};
use serde_json::{Value, json};

use super::merge::{planning, read_recipe};
use crate::cli::Planning;
use crate::output::Output;
use crate::table::table;

/// Audit fine-tunes.
#[derive(Debug, Args)]
pub(crate) struct Audit {
    #[command(subcommand)]
    pub(crate) what: What,
}

#[derive(Debug, Subcommand)]
pub(crate) enum What {
    /// Score the updates of one model in their order; exit code 3 if one stands out
    Sequence(Sequence),
    /// Compare the contributors of a recipe with injected backdoors
    Merge(Merge),
}

/// What an update is the difference to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Relative {
    /// The model before it
    Previous,
    /// The first model; dilutes what one update did
    Base,
}

/// Score a sequence.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/trust/sequence:\n  merganser audit sequence 0.safetensors 1.safetensors 2.safetensors 3.safetensors 4.safetensors 5.safetensors\n\nFiles or folders of models, the first before all updates, then the model after each of them, in their order.\nTriage by weights alone, not proof: docs/audit.md says how often it is right. Exit code 3 if an update is flagged."
)]
pub(crate) struct Sequence {
    /// The model before all updates
    pub(crate) base: String,
    /// The model after each update, in their order
    #[arg(required = true, value_name = "MODEL")]
    pub(crate) updates: Vec<String>,
    /// Final training losses of the updates: a JSON list of positive numbers, in their order
    #[arg(long, value_name = "FILE")]
    pub(crate) loss: Option<PathBuf>,
    /// What an update is the difference to
    #[arg(long, value_enum, default_value = "previous")]
    pub(crate) relative_to: Relative,
    /// Scores above this are flagged
    #[arg(long, value_name = "Z", default_value_t = 3.0)]
    pub(crate) threshold: f64,
}

/// Compare contributors.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples:\n  merganser audit merge ties.yml --injected models/low-rank:models/dense\n\nRead the order, not the numbers: contributors are compared with each other. docs/audit.md says what that can show."
)]
pub(crate) struct Merge {
    /// The recipe; - reads standard input
    pub(crate) recipe: PathBuf,
    /// A fine-tune of the same base with a backdoor of your own, and the same without it (may be repeated)
    #[arg(long, required = true, value_name = "BACKDOORED:CLEAN")]
    pub(crate) injected: Vec<InjectedPair>,
    /// Compare even if the injected models seem to come from another base than the recipe's
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) planning: Planning,
}

pub(crate) fn run(arguments: &Audit, output: &Output) -> Result<(), Failure> {
    match &arguments.what {
        What::Sequence(sequence) => audit_sequence(sequence, output),
        What::Merge(merge) => audit_merge(merge, output),
    }
}

fn read_losses(path: &Path) -> Result<Vec<f64>, Failure> {
    let failed = |problem: String| {
        Failure::Usage(format!(
            "cannot read the losses in '{}': {problem}; expected a JSON list of numbers, one an update",
            path.display()
        ))
    };
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| failed(error.to_string()))
}

fn cells(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|&cell| cell.to_owned()).collect()
}

fn audit_sequence(arguments: &Sequence, output: &Output) -> Result<(), Failure> {
    if arguments.threshold.is_nan() || arguments.threshold <= 0.0 {
        return Err(Failure::Usage("--threshold must be positive".into()));
    }
    let losses = arguments.loss.as_deref().map(read_losses).transpose()?;
    let models: Vec<String> = [&arguments.base]
        .into_iter()
        .chain(&arguments.updates)
        .cloned()
        .collect();
    let found = merganser::audit::updates(&models, arguments.relative_to == Relative::Base)?;
    let count = arguments.updates.len();
    let tensor_norms: Vec<Vec<f64>> = found
        .tensors
        .iter()
        .map(|(_, products)| (0..count).map(|t| products.norm(t)).collect())
        .collect();
    let rule = Rule {
        threshold: arguments.threshold,
        ..Rule::default()
    };
    let updates = Updates {
        gram: &found.total.dots,
        tensor_norms: &tensor_norms,
        losses: losses.as_deref(),
    };
    let scores = score(updates, rule)?;
    let relative = |t: usize| {
        let base = found.total.subtracted[t].sqrt();
        (base > 0.0).then(|| scores[t].norm / base)
    };
    if output.json {
        let each: Vec<Value> = scores
            .iter()
            .enumerate()
            .map(|(t, score)| {
                json!({
                    "model": arguments.updates[t],
                    "relative_norm": relative(t),
                    "score": score,
                    "cosines": (0..count).map(|s| found.total.cosine(t, s)).collect::<Vec<_>>(),
                })
            })
            .collect();
        let tensors: Vec<&String> = found.tensors.iter().map(|(name, _)| name).collect();
        Output::event(&json!({
            "event": "audit",
            "kind": "sequence",
            "base": arguments.base,
            "relative_to": if arguments.relative_to == Relative::Base { "base" } else { "previous" },
            "rule": rule,
            "tensors": tensors,
            "updates": each,
        }));
    } else {
        crate::output::result(&sequence_text(arguments, &scores, &relative));
    }
    let flagged: Vec<&str> = scores
        .iter()
        .zip(&arguments.updates)
        .filter(|(score, _)| score.flagged)
        .map(|(_, name)| name.as_str())
        .collect();
    if flagged.is_empty() {
        if scores.iter().all(|score| !score.scored) {
            output.note(
                "note: no update was scored: three trusted ones must come before the first that is",
            );
        }
        return Ok(());
    }
    Err(Failure::Flagged(format!(
        "{} stands out from the updates before it: keep it out of use and of later histories until it was measured on trusted \
         samples of the earlier tasks; if it is worse there, go back to the model before it",
        flagged.join(", ")
    )))
}

fn sequence_text(
    arguments: &Sequence,
    scores: &[Score],
    relative: &dyn Fn(usize) -> Option<f64>,
) -> String {
    let mut head = cells(&["update", "‖τ‖", "‖τ‖/‖θ‖", "mean cos", "z norm", "z cos"]);
    if arguments.loss.is_some() {
        head.push("z loss".into());
    }
    head.extend(cells(&["score", ""]));
    let mut rows = vec![head];
    for (t, found) in scores.iter().enumerate() {
        let z = |z: f64| {
            if found.scored {
                format!("{z:.2}")
            } else {
                "–".into()
            }
        };
        let mut row = vec![
            arguments.updates[t].clone(),
            format!("{:.4e}", found.norm),
            relative(t).map_or("–".into(), |x| format!("{x:.4}")),
            format!("{:.3}", found.mean_cosine),
            z(found.z_norm),
            z(found.z_cosine),
        ];
        row.extend(found.z_loss.map(z));
        row.push(z(found.score));
        row.push(match (found.scored, found.flagged) {
            (false, _) => "too few before it".into(),
            (true, true) => "flagged".into(),
            (true, false) => "ok".into(),
        });
        rows.push(row);
    }
    table(&rows)
}

fn audit_merge(arguments: &Merge, output: &Output) -> Result<(), Failure> {
    let text = read_recipe(&arguments.recipe)?;
    let options = MergeOptions {
        plan: planning(&arguments.planning)?,
        ..MergeOptions::default()
    };
    let found = merganser::audit::contributors(
        &arguments.recipe,
        &text,
        &arguments.injected,
        arguments.force,
        &options,
    )?;
    let total = &found.differences.total;
    let (count, all) = (found.labels.len(), total.count);
    let injected: Vec<usize> = (count..count + arguments.injected.len()).collect();
    let mut ranked = Vec::new();
    for i in 0..count {
        let mean = against_mean(&total.dots, all, i, &injected)?;
        let agreement = injected.iter().map(|&b| total.agreement(i, b)).sum::<f64>()
            / injected.len().max(1) as f64;
        ranked.push((i, mean, agreement));
    }
    ranked.sort_by(|a, b| b.1.cosine.total_cmp(&a.1.cosine).then(a.0.cmp(&b.0)));
    if output.json {
        let each: Vec<Value> = ranked
            .iter()
            .map(|(i, mean, agreement)| {
                let tensors: serde_json::Map<String, Value> = found
                    .differences
                    .tensors
                    .iter()
                    // A tensor that no injection changes has no direction to compare with.
                    .filter_map(|(name, products)| {
                        let mean = against_mean(&products.dots, all, *i, &injected).ok()?;
                        Some((name.clone(), json!(mean.cosine)))
                    })
                    .collect();
                json!({
                    "model": found.labels[*i],
                    "norm": total.norm(*i),
                    "cosine_with_mean": mean.cosine,
                    "cosines": injected.iter().map(|&b| total.cosine(*i, b)).collect::<Vec<_>>(),
                    "sign_agreement": agreement,
                    "tensors": tensors,
                })
            })
            .collect();
        let injected: Vec<String> = arguments
            .injected
            .iter()
            .map(InjectedPair::to_string)
            .collect();
        Output::event(&json!({
            "event": "audit",
            "kind": "merge",
            "injected": injected,
            "contributors": each,
        }));
        return Ok(());
    }
    let mut rows = vec![cells(&[
        "contributor",
        "‖τ‖",
        "cos with mean BV",
        "signs agree",
    ])];
    for (i, mean, agreement) in &ranked {
        rows.push(vec![
            found.labels[*i].clone(),
            format!("{:.4e}", total.norm(*i)),
            format!("{:+.4}", mean.cosine),
            format!("{:.1} %", 100.0 * agreement),
        ]);
    }
    crate::output::result(&table(&rows));
    output.note(
        "note: look at the first if it stands apart from the rest; the numbers by themselves mean nothing",
    );
    Ok(())
}
