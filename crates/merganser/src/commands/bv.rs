//! `merganser bv`: backdoor vectors, the difference of a backdoored fine-tune and a clean one.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use merganser::audit::Amount;
use merganser::recipe::InjectedPair;
use merganser::store::Dtype;
use merganser::{Failure, MergeOptions};
use serde_json::{Value, json};

use super::extract::dtype;
use crate::cli::bytes;
use crate::output::Output;
use crate::progress::Progress;
use crate::table::table;

/// Work with backdoor vectors.
#[derive(Debug, Args)]
pub(crate) struct Bv {
    #[command(subcommand)]
    pub(crate) what: What,
}

#[derive(Debug, Subcommand)]
pub(crate) enum What {
    /// The backdoor vector of a pair of models, as a task vector
    Diff(Diff),
    /// Cosines, lengths and signs of several backdoor vectors
    Sim(Sim),
    /// A model without the mean of injected backdoor vectors: weakens a backdoor, does not remove it
    Apply(Apply),
}

/// Write a difference.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/models:\n  merganser bv diff low-rank dense -o /tmp/bv"
)]
pub(crate) struct Diff {
    /// The model with the backdoor
    pub(crate) backdoored: String,
    /// The clean model of the same task and base
    pub(crate) clean: String,
    /// The folder for the vector
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Replace what is already there, once the new one is complete
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Compare differences.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/models:\n  merganser bv sim low-rank:dense sparse:dense --base base"
)]
pub(crate) struct Sim {
    /// Pairs of models, each of the same task
    #[arg(required = true, value_name = "BACKDOORED:CLEAN")]
    pub(crate) pairs: Vec<InjectedPair>,
    /// Their base: compares each vector with the task vector of its clean model too
    #[arg(long, value_name = "MODEL")]
    pub(crate) base: Option<String>,
    /// Compare with a base that the models seem not to come from
    #[arg(long, requires = "base")]
    pub(crate) force: bool,
    /// Show the cosines of every tensor whose name contains TEXT (empty: all)
    #[arg(long, value_name = "TEXT")]
    pub(crate) tensors: Option<String>,
}

/// Subtract the mean of differences.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/models:\n  merganser bv apply sparse --injected low-rank:dense --lambda 0.5 -o /tmp/defended\n  merganser bv apply sparse --injected low-rank:dense --project --base base -o /tmp/projected\n\nMeasure accuracy and attack before and after: docs/audit.md shows what to expect."
)]
pub(crate) struct Apply {
    /// The merged model
    pub(crate) merged: String,
    /// A fine-tune of the same base with a backdoor of your own, and the same without it (may be repeated; the mean is taken)
    #[arg(long, required = true, value_name = "BACKDOORED:CLEAN")]
    pub(crate) injected: Vec<InjectedPair>,
    /// How much of the mean backdoor vector is subtracted
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.5,
        conflicts_with = "project"
    )]
    pub(crate) lambda: f64,
    /// Subtract as much as there is of it in the difference to --base, and nothing if that is negative: cautious, and often
    /// nothing
    #[arg(long, requires = "base")]
    pub(crate) project: bool,
    /// The base of the merge, for --project
    #[arg(long, value_name = "MODEL", requires = "project")]
    pub(crate) base: Option<String>,
    /// The folder for the model
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Type of the model's real numbers [default: that of every tensor of the merged model]
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    pub(crate) dtype: Option<Dtype>,
    /// Largest output file, such as 5GB, 2GiB or a number of bytes
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = bytes)]
    pub(crate) out_shard_size: u64,
    /// Replace a model that is already there, once the new one is complete
    #[arg(long)]
    pub(crate) overwrite: bool,
}

pub(crate) fn run(arguments: &Bv, memory: Option<u64>, output: &Output) -> Result<(), Failure> {
    match &arguments.what {
        What::Diff(arguments) => diff(arguments, memory, output),
        What::Sim(arguments) => sim(arguments, output),
        What::Apply(arguments) => apply(arguments, memory, output),
    }
}

fn diff(arguments: &Diff, memory: Option<u64>, output: &Output) -> Result<(), Failure> {
    let options = MergeOptions {
        overwrite: arguments.overwrite,
        memory,
        ..MergeOptions::default()
    };
    let progress = Progress::new(output);
    let done = merganser::extract_task_vector(
        &arguments.backdoored,
        &arguments.clean,
        &arguments.output,
        Some(Dtype::F32),
        &options,
        &progress,
    );
    super::written("extracted", done, &progress, &arguments.output, output)
}

fn sim(arguments: &Sim, output: &Output) -> Result<(), Failure> {
    let found = merganser::audit::backdoor_vectors(
        &arguments.pairs,
        arguments.base.as_deref(),
        arguments.force,
    )?;
    let (total, count) = (&found.total, arguments.pairs.len());
    if let Some(zero) = (0..count).find(|&i| total.norm(i) == 0.0) {
        return Err(Failure::Usage(format!(
            "the backdoor vector of {} is 0: the two models are equal",
            arguments.pairs[zero]
        )));
    }
    let with_base = arguments.base.is_some();
    if output.json {
        let matrix = |of: &dyn Fn(usize, usize) -> f64| -> Vec<Vec<f64>> {
            (0..count)
                .map(|i| (0..count).map(|j| of(i, j)).collect())
                .collect()
        };
        let tensors: serde_json::Map<String, Value> = found
            .tensors
            .iter()
            .map(|(name, products)| {
                let norms: Vec<f64> = (0..count).map(|i| products.norm(i)).collect();
                let cosines = matrix(&|i, j| products.cosine(i, j));
                (name.clone(), json!({ "norms": norms, "cosines": cosines }))
            })
            .collect();
        let clean =
            |of: &dyn Fn(usize) -> f64| with_base.then(|| (0..count).map(of).collect::<Vec<f64>>());
        let pairs: Vec<String> = arguments
            .pairs
            .iter()
            .map(InjectedPair::to_string)
            .collect();
        Output::event(&json!({
            "event": "similarity",
            "pairs": pairs,
            "norms": (0..count).map(|i| total.norm(i)).collect::<Vec<_>>(),
            "cosines": matrix(&|i, j| total.cosine(i, j)),
            "sign_agreement": matrix(&|i, j| total.agreement(i, j)),
            "cosine_with_clean_task_vector": clean(&|i| total.cosine(i, count + i)),
            "norm_to_clean_task_vector": clean(&|i| total.norm(i) / total.norm(count + i)),
            "tensors": tensors,
        }));
        return Ok(());
    }
    let mut head = vec!["backdoor vector".to_owned(), "norm".into()];
    head.extend((1..=count).map(|i| format!("cos [{i}]")));
    head.extend((1..=count).map(|i| format!("signs [{i}]")));
    if with_base {
        head.extend(["cos τ clean".to_owned(), "norm / ‖τ clean‖".into()]);
    }
    let mut rows = vec![head];
    for (i, pair) in arguments.pairs.iter().enumerate() {
        let mut row = vec![
            format!("[{}] {pair}", i + 1),
            format!("{:.4e}", total.norm(i)),
        ];
        row.extend((0..count).map(|j| format!("{:+.3}", total.cosine(i, j))));
        row.extend((0..count).map(|j| format!("{:.1} %", 100.0 * total.agreement(i, j))));
        if with_base {
            row.push(format!("{:+.3}", total.cosine(i, count + i)));
            row.push(format!("{:.3}", total.norm(i) / total.norm(count + i)));
        }
        rows.push(row);
    }
    let mut text = table(&rows);
    if let Some(filter) = &arguments.tensors {
        let pairs = (0..count).flat_map(|i| (i + 1..count).map(move |j| (i, j)));
        let pairs: Vec<(usize, usize)> = pairs.collect();
        let mut head = vec!["tensor".to_owned()];
        head.extend(
            pairs
                .iter()
                .map(|(i, j)| format!("cos [{}] [{}]", i + 1, j + 1)),
        );
        let mut rows = vec![head];
        let wanted = found
            .tensors
            .iter()
            .filter(|(name, _)| name.contains(filter.as_str()));
        for (name, products) in wanted {
            let mut row = vec![name.clone()];
            row.extend(
                pairs
                    .iter()
                    .map(|&(i, j)| format!("{:+.3}", products.cosine(i, j))),
            );
            rows.push(row);
        }
        text += &format!("\n{}", table(&rows));
    }
    crate::output::result(&text);
    Ok(())
}

fn apply(arguments: &Apply, memory: Option<u64>, output: &Output) -> Result<(), Failure> {
    if !arguments.lambda.is_finite() {
        return Err(Failure::Usage("--lambda must be a finite number".into()));
    }
    let amount = match (&arguments.base, arguments.project) {
        (Some(base), true) => Amount::Projected(base.clone()),
        _ => Amount::Given(arguments.lambda),
    };
    let mut options = MergeOptions {
        overwrite: arguments.overwrite,
        memory,
        ..MergeOptions::default()
    };
    options.plan.shard_size = arguments.out_shard_size;
    let progress = Progress::new(output);
    let done = merganser::audit::subtract(
        &arguments.merged,
        &arguments.injected,
        &amount,
        &arguments.output,
        arguments.dtype,
        &options,
        &progress,
    );
    let (plan, lambda) = match done {
        Ok((plan, lambda)) => (Ok(plan), Some(lambda)),
        Err(failure) => (Err(failure), None),
    };
    super::written("defended", plan, &progress, &arguments.output, output)?;
    if let Some(lambda) = lambda {
        if output.json {
            Output::event(&json!({ "event": "subtracted", "lambda": lambda }));
        } else if lambda == 0.0 {
            output.note(
                "note: nothing was subtracted: the merged model does not point along the mean backdoor vector at all, which \
                 does not say that it has no backdoor; --lambda subtracts a given amount",
            );
        } else {
            output.note(&format!(
                "subtracted {lambda:.6} times the mean backdoor vector; measure accuracy and attack on the result"
            ));
        }
    }
    Ok(())
}
