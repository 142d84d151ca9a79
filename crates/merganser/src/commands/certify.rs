//! `merganser certify`: what a change of weights of a given size cannot do to predictions, and the smallest that does.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use merganser::Failure;
use merganser::certify::{StoredHead, features, fingerprints, network};
use merganser::data::file_and_name;
use merganser::trust::certificate::{Certificate, Twins};
use merganser::trust::head::{Head, Radii, Threat, argmax};
use merganser::trust::minimal::{Norm, smallest_change, targeted_output_change};
use merganser::trust::norm::spectral_upper;
use merganser::trust::sensitivity::sensitivities;
use merganser::trust::threshold::{Pruning, Tails, fewest_bits};
use merganser_linalg::Matrix;
use merganser_model::{Mlp, Pointwise};
use serde_json::{Value, json};

use crate::output::Output;
use crate::table::table;

/// Most samples that a table shows; JSON has all.
const SHOWN: usize = 20;
/// Shares of the samples for which thresholds are given.
const SHARES: [f64; 5] = [1.0, 0.99, 0.95, 0.9, 0.5];

/// Certify predictions.
#[derive(Debug, Args)]
pub(crate) struct Certify {
    #[command(subcommand)]
    pub(crate) what: What,
}

#[derive(Debug, Subcommand)]
pub(crate) enum What {
    /// How far a linear head can move before a sample's prediction changes: exact
    Head(HeadArguments),
    /// Which predictions of a multi-layer perceptron a compressed twin cannot have changed; without one, by layer
    Mlp(MlpArguments),
    /// The lowest rank, the fewest bits, the most pruning of a head that certainly change no prediction
    Threshold(ThresholdArguments),
    /// The smallest change of a head that gives one sample another class, written to a new file
    Edit(EditArguments),
}

/// Where the numbers are.
#[derive(Debug, Args)]
pub(crate) struct Files {
    /// The file that holds the weights, or the folder of a model
    pub(crate) weights: PathBuf,
    /// Samples, one a row, in a .npy, .safetensors or .parquet file; FILE#NAME names a tensor or column
    #[arg(long, short, value_name = "FILE")]
    pub(crate) features: String,
}

/// Which tensors are the head.
#[derive(Debug, Args)]
pub(crate) struct Names {
    /// The head's weight, classes × features [default: classifier.weight, weight, score.weight, head.weight, …]
    #[arg(long, value_name = "NAME")]
    pub(crate) weight: Option<String>,
    /// The head's bias [default: beside the weight, if there is one]
    #[arg(long, value_name = "NAME")]
    pub(crate) bias: Option<String>,
}

/// Radii of a head.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/trust:\n  merganser certify head head.safetensors -f features.safetensors\n  merganser certify head head.safetensors -f features.safetensors --compressed head-int6.safetensors\n  merganser certify head head.safetensors -f features.safetensors --json > certificate.json\n\ndocs/certify.md has the formulas."
)]
pub(crate) struct HeadArguments {
    #[command(flatten)]
    pub(crate) files: Files,
    #[command(flatten)]
    pub(crate) names: Names,
    /// The same head after compression: say which predictions it cannot have changed
    #[arg(long, value_name = "FILE")]
    pub(crate) compressed: Option<PathBuf>,
    /// The bias may change too
    #[arg(long)]
    pub(crate) bias_too: bool,
}

/// Certificates of a network.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/trust:\n  merganser certify mlp mlp.safetensors -f inputs.safetensors --activation relu --compressed mlp-int8.safetensors\n  merganser certify mlp mlp.safetensors -f inputs.safetensors --activation relu      what one layer can do\n\nLayers are the matrices called NAME.weight, in natural order, unless --layers names them."
)]
pub(crate) struct MlpArguments {
    #[command(flatten)]
    pub(crate) files: Files,
    /// The layers in the order they are applied, such as fc1,fc2,head
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) layers: Vec<String>,
    /// Between layers: identity, relu, leaky_relu, leaky_relu:SLOPE, tanh, sigmoid, gelu, silu
    #[arg(long, value_name = "NAME", value_parser = activation)]
    pub(crate) activation: Pointwise,
    /// The network after compression, with the same names
    #[arg(long, value_name = "FILE")]
    pub(crate) compressed: Option<PathBuf>,
    /// A margin counts only as far as it exceeds this: for twins that compute in low precision
    #[arg(long, value_name = "X", default_value_t = 0.0, requires = "compressed")]
    pub(crate) slack: f64,
}

/// Thresholds of a head.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/trust:\n  merganser certify threshold head.safetensors -f features.safetensors"
)]
pub(crate) struct ThresholdArguments {
    #[command(flatten)]
    pub(crate) files: Files,
    #[command(flatten)]
    pub(crate) names: Names,
}

/// The smallest edit.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/trust:\n  merganser certify edit head.safetensors -f features.safetensors --sample 0 --to 2 -o /tmp/edited-head.safetensors"
)]
pub(crate) struct EditArguments {
    #[command(flatten)]
    pub(crate) files: Files,
    #[command(flatten)]
    pub(crate) names: Names,
    /// The sample to be changed: its row, counted from 0
    #[arg(long, value_name = "I")]
    pub(crate) sample: usize,
    /// The class it shall have, counted from 0
    #[arg(long, value_name = "CLASS")]
    pub(crate) to: usize,
    /// By how much that class shall lead
    #[arg(long, value_name = "X", default_value_t = 1e-3)]
    pub(crate) buffer: f64,
    /// The bias may change too
    #[arg(long)]
    pub(crate) bias_too: bool,
    /// The file for the edited weight and bias, under the same names
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    pub(crate) overwrite: bool,
}

pub(crate) fn activation(text: &str) -> Result<Pointwise, String> {
    Pointwise::parse(text).map_err(|error| error.to_string())
}

pub(crate) fn run(arguments: &Certify, output: &Output) -> Result<(), Failure> {
    match &arguments.what {
        What::Head(head) => certify_head(head, output),
        What::Mlp(mlp) => certify_mlp(mlp, output),
        What::Threshold(threshold) => thresholds(threshold, output),
        What::Edit(edit) => edit_head(edit, output),
    }
}

/// Paths and hashes of the files a certificate is about.
fn hashes(files: &[(&str, &Path)]) -> Result<Value, Failure> {
    let mut all = serde_json::Map::new();
    for (role, path) in files {
        let found = fingerprints(path)?;
        let entry = match &found[..] {
            [(file, hash)] if file == path => {
                json!({ "path": path.to_string_lossy(), "blake3": hash })
            }
            several => {
                let each: serde_json::Map<String, Value> = several
                    .iter()
                    .map(|(file, hash)| {
                        let name = file.file_name().unwrap_or_default();
                        (name.to_string_lossy().into_owned(), json!(hash))
                    })
                    .collect();
                json!({ "path": path.to_string_lossy(), "files": each })
            }
        };
        all.insert((*role).to_owned(), entry);
    }
    Ok(Value::Object(all))
}

impl Files {
    fn read(&self, width: usize) -> Result<Matrix, Failure> {
        features(&self.features, width)
    }

    fn features_file(&self) -> &Path {
        file_and_name(&self.features).0
    }

    /// Paths and hashes, with those of a twin.
    fn hashes(&self, compressed: Option<&Path>) -> Result<Value, Failure> {
        let mut files = vec![
            ("weights", self.weights.as_path()),
            ("features", self.features_file()),
        ];
        files.extend(compressed.map(|path| ("compressed", path)));
        hashes(&files)
    }
}

impl Names {
    fn read(&self, path: &Path) -> Result<StoredHead, Failure> {
        StoredHead::read(path, self.weight.as_deref(), self.bias.as_deref())
    }
}

fn samples(z: &Matrix) -> impl Iterator<Item = &[f64]> {
    (0..z.rows()).map(|s| z.row(s))
}

fn all_radii(head: &Head, z: &Matrix, threat: Threat) -> Result<Vec<Radii>, Failure> {
    samples(z)
        .map(|z| head.radii(z, threat).map_err(Failure::from))
        .collect()
}

/// The largest change that leaves every sample of a share `share` of them alone: the radius at that place from above.
fn at_share(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(|a, b| b.total_cmp(a));
    let count = (share * values.len() as f64).ceil() as usize;
    values[count.clamp(1, values.len()) - 1]
}

fn percent(part: usize, whole: usize) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

fn number(x: f64) -> String {
    if x.is_finite() {
        format!("{x:.4e}")
    } else {
        "unbounded".into()
    }
}

fn head_row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|&cell| cell.to_owned()).collect()
}

fn certify_head(arguments: &HeadArguments, output: &Output) -> Result<(), Failure> {
    let stored = arguments.names.read(&arguments.files.weights)?;
    let z = arguments.files.read(stored.head.weight().cols())?;
    let threat = Threat {
        bias: arguments.bias_too,
        buffer: 0.0,
    };
    let radii = all_radii(&stored.head, &z, threat)?;
    let twin = match &arguments.compressed {
        None => None,
        Some(path) => {
            let twin = arguments.names.read(path)?;
            let (original, twin) = (stored.network()?, twin.network()?);
            Some(twin_certificates(&original, &twin, &z, 0.0)?)
        }
    };
    if output.json {
        let samples: Vec<Value> = radii
            .iter()
            .enumerate()
            .map(|(s, radii)| json!({ "radii": radii, "twin": twin.as_ref().map(|twin| &twin[s]) }))
            .collect();
        Output::event(&json!({
            "event": "certificate",
            "kind": "head",
            "files": arguments.files.hashes(arguments.compressed.as_deref())?,
            "weight": stored.weight.0,
            "bias": stored.bias.as_ref().map(|(name, _)| name),
            "bias_may_change": arguments.bias_too,
            "samples": samples,
            "certified": twin.as_ref().map(|twin| certified(twin)),
        }));
        return Ok(());
    }
    let mut rows = vec![head_row(&[
        "sample",
        "class",
        "next",
        "margin",
        "‖ΔW‖ (F, 2)",
        "max |ΔW|",
        "Σ |ΔW|",
        "one row",
    ])];
    for (s, r) in radii.iter().enumerate().take(SHOWN) {
        rows.push(vec![
            s.to_string(),
            r.prediction.to_string(),
            r.runner_up.to_string(),
            number(r.margin),
            number(r.frobenius),
            number(r.max),
            number(r.sum),
            number(r.single_row),
        ]);
    }
    let mut text = String::from("No smaller change of the weight can change the prediction:\n\n");
    text += &table(&rows);
    more(&mut text, radii.len());
    let mut rows = vec![head_row(&["share of samples", "‖ΔW‖ (F, 2)", "max |ΔW|"])];
    for share in SHARES {
        let at = |of: &dyn Fn(&Radii) -> f64| {
            let mut all: Vec<f64> = radii.iter().map(of).collect();
            number(at_share(&mut all, share))
        };
        rows.push(vec![
            format!("{:.0} %", 100.0 * share),
            at(&|r| r.frobenius),
            at(&|r| r.max),
        ]);
    }
    text += "\nSafe for this share of the samples at once:\n\n";
    text += &table(&rows);
    if let Some(twin) = &twin {
        text.push('\n');
        text += &twin_text(twin);
    }
    crate::output::result(text.trim_end());
    Ok(())
}

fn more(text: &mut String, count: usize) {
    if count > SHOWN {
        *text += &format!("… and {} more samples: see --json\n", count - SHOWN);
    }
}

fn twin_certificates(
    original: &Mlp,
    twin: &Mlp,
    x: &Matrix,
    slack: f64,
) -> Result<Vec<Certificate>, Failure> {
    let twins = Twins::new(original, twin)?;
    twins.certify(x.as_slice(), slack).map_err(Failure::from)
}

fn certified(all: &[Certificate]) -> usize {
    all.iter().filter(|c| c.certified).count()
}

/// What is certified of a twin, for people.
fn twin_text(all: &[Certificate]) -> String {
    let count = |of: &dyn Fn(&Certificate) -> bool| {
        let part = all.iter().filter(|c| of(c)).count();
        vec![part.to_string(), percent(part, all.len())]
    };
    let row = |title: &str, cells: Vec<String>| {
        let mut row = vec![title.to_owned()];
        row.extend(cells);
        row
    };
    let rows = vec![
        row("certified by norms only", count(&|c| c.certified_norm_only)),
        row(
            "certified with activations",
            count(&|c| c.certified_data_aware),
        ),
        row("certified pair by pair", count(&|c| c.certified_pairwise)),
        row("certified by any of these", count(&|c| c.certified)),
        row(
            "really the same prediction",
            count(&|c| c.prediction == c.twin_prediction),
        ),
    ];
    let mut text = format!(
        "Predictions the twin cannot have changed, of {}:\n\n",
        all.len()
    );
    text += &table(&rows);
    let changed: Vec<String> = all
        .iter()
        .enumerate()
        .filter(|(_, c)| c.prediction != c.twin_prediction)
        .take(SHOWN)
        .map(|(s, c)| format!("{s} ({} → {})", c.prediction, c.twin_prediction))
        .collect();
    if !changed.is_empty() {
        text += &format!("\nChanged samples: {}\n", changed.join(", "));
    }
    text
}

fn certify_mlp(arguments: &MlpArguments, output: &Output) -> Result<(), Failure> {
    let read = |path: &Path| {
        network(
            path,
            &arguments.layers,
            arguments.activation,
            Pointwise::Identity,
        )
    };
    let original = read(&arguments.files.weights)?;
    let x = arguments.files.read(original.inputs())?;
    let layers: Vec<&str> = original.layers().iter().map(|l| l.name.as_str()).collect();
    let files = || arguments.files.hashes(arguments.compressed.as_deref());
    if let Some(path) = &arguments.compressed {
        let twin = read(path)?;
        let found = twin_certificates(&original, &twin, &x, arguments.slack)?;
        if output.json {
            Output::event(&json!({
                "event": "certificate",
                "kind": "mlp",
                "files": files()?,
                "layers": layers,
                "activation": arguments.activation.to_string(),
                "slack": arguments.slack,
                "samples": found,
                "certified": certified(&found),
            }));
        } else {
            crate::output::result(twin_text(&found).trim_end());
        }
        return Ok(());
    }
    let found = sensitivities(&original, x.as_slice())?;
    if output.json {
        Output::event(&json!({
            "event": "sensitivity",
            "kind": "mlp",
            "files": files()?,
            "layers": layers,
            "activation": arguments.activation.to_string(),
            "samples": found,
        }));
        return Ok(());
    }
    let mut rows = vec![head_row(&[
        "layer",
        "guaranteed, worst sample",
        "guaranteed, median",
        "first order, worst sample",
        "first order, median",
    ])];
    for (k, layer) in layers.iter().enumerate() {
        let mut row = vec![(*layer).to_owned()];
        let mut sure: Vec<f64> = found.iter().map(|s| s.layers[k].guaranteed).collect();
        let mut guess: Vec<f64> = found.iter().map(|s| s.layers[k].first_order).collect();
        for values in [&mut sure, &mut guess] {
            row.extend([1.0, 0.5].map(|share| number(at_share(values, share))));
        }
        rows.push(row);
    }
    let mut text = format!(
        "Frobenius norms of a change of one layer, over {} samples. No change below the guaranteed one can change a\n\
         prediction. The first-order one is a sensitivity, not a guarantee: real flips may need more, or less.\n\n",
        found.len()
    );
    text += &table(&rows);
    crate::output::result(text.trim_end());
    Ok(())
}

fn thresholds(arguments: &ThresholdArguments, output: &Output) -> Result<(), Failure> {
    let stored = arguments.names.read(&arguments.files.weights)?;
    let weight = stored.head.weight();
    let z = arguments.files.read(weight.cols())?;
    let radii = all_radii(&stored.head, &z, Threat::default())?;
    let tails = Tails::of(weight)?;
    let pruning = Pruning::of(weight);
    let of = |frobenius: f64, max: f64| {
        (
            Tails::smallest_rank(&tails.spectral, frobenius),
            fewest_bits(weight, 2.0 * max),
            pruning.largest_share(frobenius),
        )
    };
    let by_share: Vec<(f64, _)> = SHARES
        .into_iter()
        .map(|share| {
            let at = |of: &dyn Fn(&Radii) -> f64| {
                at_share(&mut radii.iter().map(of).collect::<Vec<f64>>(), share)
            };
            (share, of(at(&|r| r.frobenius), at(&|r| r.max)))
        })
        .collect();
    if output.json {
        let object = |(rank, bits, pruned): (Option<usize>, Option<u32>, f64)| json!({ "rank": rank, "bits": bits, "pruned_share": pruned });
        let samples: Vec<Value> = radii
            .iter()
            .map(|r| json!({ "radii": r, "thresholds": object(of(r.frobenius, r.max)) }))
            .collect();
        let shares: Vec<Value> = by_share
            .iter()
            .map(|(share, found)| json!({ "share": share, "thresholds": object(*found) }))
            .collect();
        Output::event(&json!({
            "event": "certificate",
            "kind": "threshold",
            "files": arguments.files.hashes(None)?,
            "weight": stored.weight.0,
            "quantizer": "symmetric, one scale, step = max|W| / (2^(bits-1) - 1), to nearest",
            "shares": shares,
            "samples": samples,
        }));
        return Ok(());
    }
    let mut rows = vec![head_row(&["share of samples", "rank", "bits", "pruned"])];
    for (share, (rank, bits, pruned)) in by_share {
        rows.push(vec![
            format!("{:.0} %", 100.0 * share),
            rank.map_or("none".into(), |rank| rank.to_string()),
            bits.map_or("more than 16".into(), |bits| bits.to_string()),
            format!("{:.1} %", 100.0 * pruned),
        ]);
    }
    let mut text = format!(
        "Compression of the weight ({}×{}) that certainly changes no prediction of that share of {} samples: its rank may\n\
         be cut to, its elements rounded to, its smallest elements pruned up to\n\n",
        weight.rows(),
        weight.cols(),
        radii.len()
    );
    text += &table(&rows);
    crate::output::result(text.trim_end());
    Ok(())
}

fn edit_head(arguments: &EditArguments, output: &Output) -> Result<(), Failure> {
    let stored = arguments.names.read(&arguments.files.weights)?;
    let head = &stored.head;
    let z = arguments.files.read(head.weight().cols())?;
    if arguments.sample >= z.rows() {
        return Err(Failure::Usage(format!(
            "there is no sample {}: the file has {}, counted from 0",
            arguments.sample,
            z.rows()
        )));
    }
    if arguments.bias_too && head.bias().is_none() {
        return Err(Failure::Usage(
            "--bias-too: the head has no bias; name it with --bias, or leave the option out".into(),
        ));
    }
    if arguments.output == arguments.files.weights {
        return Err(Failure::Usage(
            "the edited layer would replace the file it was read from; write it elsewhere".into(),
        ));
    }
    let x = z.row(arguments.sample);
    let before = head.logits(x)?;
    let wanted = targeted_output_change(&before, arguments.to, arguments.buffer)?;
    let change = smallest_change(x, &wanted, arguments.bias_too, Norm::Frobenius)?;
    let mut weight = head.weight().clone();
    weight.add_scaled(1.0, &change.weight);
    let bias = head.bias().map(|bias| {
        let moved = change.bias.clone().unwrap_or_else(|| vec![0.0; bias.len()]);
        bias.iter().zip(moved).map(|(b, d)| b + d).collect()
    });
    let edited = StoredHead {
        head: Head::new(weight, bias)?,
        ..stored.clone()
    };
    // What counts is the head as it is stored.
    let edited = edited.rounded()?;
    let after = edited.head.logits(x)?;
    if argmax(&after) != arguments.to {
        return Err(Failure::Usage(format!(
            "rounded to {}, the edit does not reach class {}: ask for a larger lead with --buffer (now {})",
            stored.weight.1, arguments.to, arguments.buffer
        )));
    }
    let mut others = Vec::new();
    for (s, z) in samples(&z)
        .enumerate()
        .filter(|(s, _)| *s != arguments.sample)
    {
        let old = argmax(&head.logits(z)?);
        let new = argmax(&edited.head.logits(z)?);
        if old != new {
            others.push((s, old, new));
        }
    }
    edited.write(&arguments.output, arguments.overwrite)?;
    let mut moved = edited.head.weight().clone();
    moved.add_scaled(-1.0, head.weight());
    let (frobenius, whole) = (moved.norm(), head.weight().norm());
    if output.json {
        let others: Vec<Value> = others
            .iter()
            .map(|(s, old, new)| json!({ "sample": s, "before": old, "after": new }))
            .collect();
        Output::event(&json!({
            "event": "edited",
            "out": arguments.output.to_string_lossy(),
            "files": hashes(&[
                ("weights", arguments.files.weights.as_path()),
                ("features", arguments.files.features_file()),
                ("edited", arguments.output.as_path()),
            ])?,
            "sample": arguments.sample,
            "before": argmax(&before),
            "after": arguments.to,
            "smallest": change.size,
            "frobenius": frobenius,
            "spectral_at_most": spectral_upper(&moved)?,
            "relative": frobenius / whole,
            "others_changed": others,
        }));
        return Ok(());
    }
    output.note(&format!(
        "sample {}: class {} → {}; ‖ΔW‖ = {:.4e} as stored ({:.4} % of ‖W‖), {:.4e} before rounding{}",
        arguments.sample,
        argmax(&before),
        arguments.to,
        frobenius,
        100.0 * frobenius / whole,
        change.size,
        if arguments.bias_too { " and with the bias" } else { "" }
    ));
    if !others.is_empty() {
        let list: Vec<String> = others
            .iter()
            .take(SHOWN)
            .map(|(s, old, new)| format!("{s} ({old} → {new})"))
            .collect();
        output.note(&format!(
            "note: the edit changes {} of the other {} samples too: {}",
            others.len(),
            z.rows() - 1,
            list.join(", ")
        ));
    }
    output.note(&format!("wrote {}", arguments.output.display()));
    Ok(())
}
