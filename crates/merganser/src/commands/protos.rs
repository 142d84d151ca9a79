//! `merganser drift protos`: prototypes of classes whose data are gone, carried to the space of a newer encoder.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use merganser::Failure;
use merganser::certify::{features as samples, network};
use merganser::upkeep::drift::{
    Anchors, Attack, Bandwidth, Carried, CarryOptions, ClassDrift, Evidence, Method, Probes, carry,
    features,
};
use merganser::upkeep::stats::Stats;
use merganser_linalg::Matrix;
use merganser_model::{Mlp, Pointwise};
use serde_json::json;

use super::certify::activation;
use super::drift::{failure, labels, matrix};
use crate::output::{Output, result};
use crate::table::table;

/// Most classes that a table shows; JSON has all.
const SHOWN: usize = 50;
/// Neighbours of `--sigma auto`.
const NEIGHBOURS: f64 = 10.0;

/// Carry prototypes.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/heads:\n  merganser drift protos stats-v1.safetensors --method sdc --old old.npy --new new.npy -o /tmp/moved.safetensors\n  merganser drift protos stats-v1.safetensors --method affine --old old.npy --new new.npy -o /tmp/mapped.safetensors\n\nWith files of your own:\n  merganser drift protos stats-v1.safetensors --method adc --probes-old probes-old.npy \\\n    --probes-new probes-new.npy --targets targets.npy --old old.npy --new new.npy -o stats-v2.safetensors\n  merganser drift protos stats-v1.safetensors --method adc --encoder-old v1.safetensors \\\n    --encoder-new v2.safetensors --samples present.npy --activation relu -o stats-v2.safetensors\n\nRow i of --old and --new is the same sample of the data there are now, seen by both encoders.\nadc moves a class by probes: samples changed until the old encoder takes them for the class. For\nmulti-layer perceptrons they are made here; for other networks make them in your framework, as\ndocs/drift.md says. No method is the best everywhere."
)]
pub(crate) struct Protos {
    /// Statistics of the old encoder's features, as `merganser stats build` writes them
    pub(crate) stats: PathBuf,
    /// How prototypes move
    #[arg(long, value_enum)]
    pub(crate) method: How,
    /// Features of present samples by the old encoder
    #[arg(
        long,
        value_name = "FILE",
        requires = "new",
        conflicts_with = "encoder_old"
    )]
    pub(crate) old: Option<String>,
    /// The same samples' features by the new encoder
    #[arg(long, value_name = "FILE", requires = "old")]
    pub(crate) new: Option<String>,
    /// For adc: features of the probes by the old encoder
    #[arg(long, value_name = "FILE", requires_all = ["probes_new", "targets"], conflicts_with = "encoder_old")]
    pub(crate) probes_old: Option<String>,
    /// The same probes' features by the new encoder
    #[arg(long, value_name = "FILE", requires = "probes_old")]
    pub(crate) probes_new: Option<String>,
    /// The class each probe is meant to look like, a whole number
    #[arg(long, value_name = "FILE", requires = "probes_old")]
    pub(crate) targets: Option<String>,
    /// Instead of features: the old encoder, a multi-layer perceptron
    #[arg(long, value_name = "FILE", requires_all = ["encoder_new", "samples", "activation"])]
    pub(crate) encoder_old: Option<PathBuf>,
    /// The new encoder, with the same names
    #[arg(long, value_name = "FILE", requires = "encoder_old")]
    pub(crate) encoder_new: Option<PathBuf>,
    /// Present samples as the encoders read them, one a row
    #[arg(long, value_name = "FILE", requires = "encoder_old")]
    pub(crate) samples: Option<String>,
    /// Between the encoders' layers: identity, relu, leaky_relu, leaky_relu:SLOPE, tanh, sigmoid, gelu, silu
    #[arg(long, value_name = "NAME", value_parser = activation, requires = "encoder_old")]
    pub(crate) activation: Option<Pointwise>,
    /// After the encoders' last layer, where the features are
    #[arg(long, value_name = "NAME", value_parser = activation, requires = "encoder_old", default_value = "identity")]
    pub(crate) last: Pointwise,
    /// The encoders' layers in the order they are applied, such as fc1,fc2 [default: all matrices NAME.weight]
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        requires = "encoder_old"
    )]
    pub(crate) layers: Vec<String>,
    /// Length of a step when probes are made, in units of the samples; auto: the one that brings them closest
    #[arg(long, value_name = "X", value_parser = alpha, default_value = "auto", requires = "encoder_old")]
    pub(crate) alpha: Alpha,
    /// Steps when probes are made
    #[arg(long, value_name = "N", default_value_t = 3, requires = "encoder_old")]
    pub(crate) steps: usize,
    /// Probes a class
    #[arg(
        long,
        value_name = "N",
        default_value_t = 100,
        requires = "encoder_old"
    )]
    pub(crate) probes: usize,
    /// Fewest probes that must look like a class; with fewer it is moved as by sdc
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) min_successes: usize,
    /// For sdc: how far around a prototype samples count, 0.3 in the paper; auto: as far as ten neighbours
    #[arg(long, value_name = "X", value_parser = sigma, default_value = "auto")]
    pub(crate) sigma: Bandwidth,
    /// For adc and sdc: the quantile of the samples' own drifts beyond which no prototype moves; 1 is the longest of them
    #[arg(
        long,
        value_name = "Q",
        default_value_t = 0.99,
        conflicts_with = "no_cap"
    )]
    pub(crate) cap: f64,
    /// Let prototypes move as far as they will
    #[arg(long)]
    pub(crate) no_cap: bool,
    /// For affine: strength of the ridge, relative to the samples' variance [default: chosen on held-out samples]
    #[arg(long, value_name = "X")]
    pub(crate) ridge: Option<f64>,
    /// Where the statistics go
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum How {
    /// Each by probes that look like its class: adversarial drift compensation
    Adc,
    /// Each by the samples around it: semantic drift compensation
    Sdc,
    /// All by the mean drift of the samples
    Mean,
    /// All by one affine map, fitted to the samples
    Affine,
}

/// Length of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Alpha {
    /// What brings the probes closest to their prototypes.
    Auto,
    /// This.
    Fixed(f64),
}

fn number(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|x| x.is_finite() && *x > 0.0)
        .ok_or_else(|| format!("'{text}' is no number above 0; use auto or a number"))
}

fn alpha(text: &str) -> Result<Alpha, String> {
    match text {
        "auto" => Ok(Alpha::Auto),
        _ => number(text).map(Alpha::Fixed),
    }
}

fn sigma(text: &str) -> Result<Bandwidth, String> {
    match text {
        "auto" => Ok(Bandwidth::Neighbours(NEIGHBOURS)),
        _ => number(text).map(Bandwidth::Fixed),
    }
}

/// The old and the new encoder.
fn encoders(arguments: &Protos) -> Result<Option<(Mlp, Mlp)>, Failure> {
    let (Some(old), Some(new), Some(activation)) = (
        &arguments.encoder_old,
        &arguments.encoder_new,
        arguments.activation,
    ) else {
        return Ok(None);
    };
    let read = |path| network(path, &arguments.layers, activation, arguments.last);
    Ok(Some((read(old)?, read(new)?)))
}

/// What both encoders say about samples, and the α that made the probes.
fn evidence(arguments: &Protos, stats: &Stats) -> Result<(Evidence, Option<f64>), Failure> {
    let mut evidence = Evidence::default();
    let mut used = None;
    if let (Some(old), Some(new)) = (&arguments.old, &arguments.new) {
        evidence.anchors =
            Some(Anchors::new(matrix(old)?, matrix(new)?, Some(false)).map_err(failure)?);
    }
    if let (Some(old), Some(new), Some(targets)) = (
        &arguments.probes_old,
        &arguments.probes_new,
        &arguments.targets,
    ) {
        evidence.probes = Some(Probes {
            old: matrix(old)?,
            new: matrix(new)?,
            targets: labels(targets)?,
            before: None,
        });
    }
    if let (Some((old, new)), Some(given)) = (encoders(arguments)?, &arguments.samples) {
        let x = samples(given, old.inputs())?;
        let seen = features(&old, &x).map_err(failure)?;
        if arguments.method == How::Adc {
            let (probes, alpha) = attack(arguments, stats, (&old, &new), &x, &seen)?;
            evidence.probes = Some(probes);
            used = Some(alpha);
        }
        let after = features(&new, &x).map_err(failure)?;
        evidence.anchors = Some(Anchors::new(seen, after, Some(false)).map_err(failure)?);
    }
    Ok((evidence, used))
}

/// Makes probes for the classes.
fn attack(
    arguments: &Protos,
    stats: &Stats,
    encoders: (&Mlp, &Mlp),
    x: &Matrix,
    seen: &Matrix,
) -> Result<(Probes, f64), Failure> {
    let (classes, means) = stats.prototypes().map_err(failure)?;
    let mut attack = Attack {
        samples: arguments.probes,
        steps: arguments.steps,
        ..Attack::default()
    };
    attack.alpha = match arguments.alpha {
        Alpha::Fixed(alpha) => alpha,
        Alpha::Auto => attack
            .closest_alpha(encoders.0, x, seen, &means)
            .map_err(failure)?,
    };
    let mut probes = attack.probes(encoders, x, seen, &means).map_err(failure)?;
    for target in &mut probes.targets {
        *target = classes[*target];
    }
    Ok((probes, attack.alpha))
}

pub(crate) fn run(arguments: &Protos, output: &Output) -> Result<(), Failure> {
    if arguments.probes_old.is_some() && arguments.method != How::Adc {
        return Err(Failure::Usage(
            "probes are for --method adc; leave out --probes-old, --probes-new and --targets"
                .into(),
        ));
    }
    let stats = Stats::read(&arguments.stats).map_err(failure)?;
    let (evidence, alpha) = evidence(arguments, &stats)?;
    if evidence.anchors.is_none() && evidence.probes.is_none() {
        return Err(Failure::Usage(
            "what moved is not known: give --old and --new, features of the same samples by both encoders; or the encoders \
             themselves, with --encoder-old, --encoder-new, --samples and --activation; for adc also --probes-old, \
             --probes-new and --targets"
                .into(),
        ));
    }
    let options = CarryOptions {
        method: match arguments.method {
            How::Adc => Method::Adversarial,
            How::Sdc => Method::Semantic,
            How::Mean => Method::Mean,
            How::Affine => Method::Affine,
        },
        bandwidth: arguments.sigma,
        least: arguments.min_successes,
        cap: (!arguments.no_cap).then_some(arguments.cap),
        ridge: arguments.ridge,
    };
    let (moved, found) = carry(&stats, &evidence, &options).map_err(failure)?;
    moved
        .write(&arguments.output, arguments.overwrite)
        .map_err(failure)?;
    if output.json {
        Output::event(&json!({
            "event": "finished",
            "out": arguments.output.to_string_lossy(),
            "alpha": alpha,
            "carried": found,
        }));
        return Ok(());
    }
    for note in &found.notes {
        output.note(&format!("note: {note}"));
    }
    if !output.quiet {
        result(&shown(&found, alpha));
    }
    output.note(&format!(
        "wrote the means of {} classes in the new space into {}",
        found.classes.len(),
        arguments.output.display()
    ));
    Ok(())
}

/// The table for people.
fn shown(found: &Carried, alpha: Option<f64>) -> String {
    let adversarial = found.method == Method::Adversarial.name();
    let made = found.classes.iter().any(|class| class.closer.is_some());
    let local = found.classes.iter().any(|class| class.kernel.is_some());
    let or_dash =
        |x: Option<f64>, digits: usize| x.map_or("–".to_owned(), |x| format!("{x:.digits$}"));
    let mut head = vec!["class", "method"];
    if adversarial {
        head.push("probes kept");
    }
    if made {
        head.push("closer");
    }
    if local {
        head.extend(["sigma", "kernel"]);
    }
    head.extend(["|shift|", "share"]);
    let row = |class: &ClassDrift| {
        let mut row = vec![class.class.to_string(), class.method.to_owned()];
        if adversarial {
            let count = |x: Option<usize>| x.unwrap_or(0);
            row.push(format!(
                "{} of {}",
                count(class.successes),
                count(class.probes)
            ));
        }
        if made {
            row.push(or_dash(class.closer, 2));
        }
        if local {
            row.extend([or_dash(class.sigma, 3), or_dash(class.kernel, 3)]);
        }
        let mark = if class.capped { " (cut)" } else { "" };
        row.push(format!("{}{mark}", or_dash(class.shift, 4)));
        row.push(or_dash(class.share, 3));
        row
    };
    let mut rows: Vec<Vec<String>> = vec![head.iter().map(|&cell| cell.to_owned()).collect()];
    rows.extend(found.classes.iter().take(SHOWN).map(row));
    let mut text = table(&rows);
    if found.classes.len() > SHOWN {
        text += &format!(
            "… and {} more classes: see --json\n",
            found.classes.len() - SHOWN
        );
    }
    if let Some(alpha) = alpha {
        text += &format!("\nlength of a step: {alpha:.4}\n");
    }
    text
}
