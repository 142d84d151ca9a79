//! One hash for everything that decides the bytes of a merge.

use std::collections::BTreeMap;
use std::fmt::Write;

use merganser_methods::Method;

use crate::{Action, Calibrated, Model, Output};

/// Hash of the plan: version, method, seed, inputs, and every output with its resolved parameters.
pub(crate) fn of(
    method: &dyn Method,
    models: &[Model],
    outputs: &[Output],
    config: Option<&str>,
    seed: u64,
    shard_size: u64,
    calibrated: Option<&Calibrated>,
) -> String {
    let mut text = format!(
        "{}\n{}\n{seed}\n{shard_size}\n{}\n{config:?}\n",
        env!("CARGO_PKG_VERSION"),
        method.info().name,
        inputs(models)
    );
    if let Some(calibrated) = calibrated {
        let _ = writeln!(text, "{} {:?}", calibrated.info.name, calibrated.settings);
        if let Some((prior, settings)) = &calibrated.matrix_prior {
            let _ = writeln!(text, " prior {} {settings:?}", prior.name);
        }
        for task in &calibrated.tasks {
            let _ = writeln!(text, " task {} {:?}", task.model, task.calibration);
        }
    }
    for output in outputs {
        let _ = writeln!(text, "{} {} {:?}", output.name, output.dtype, output.shape);
        if let Some(settings) = &output.calibrated {
            let _ = writeln!(text, " {settings:?}");
        }
        match &output.action {
            Action::Copy(input) => {
                let _ = writeln!(text, " copy {} {}", input.model, input.tensor);
            }
            Action::Cast { input, encoding } => {
                let _ = writeln!(text, " cast {input:?} {encoding:?}");
            }
            Action::Identical(inputs) => {
                let _ = writeln!(text, " identical {inputs:?}");
            }
            Action::Merge {
                inputs,
                base,
                settings,
                encoding,
            } => {
                let _ = writeln!(text, " merge {inputs:?} {base:?} {settings:?} {encoding:?}");
            }
        }
    }
    self::text(&text)
}

/// Hash of the identities of all inputs.
pub(crate) fn inputs(models: &[Model]) -> String {
    let identities: Vec<String> = models.iter().map(Model::identity).collect();
    self::text(&identities.join("\n"))
}

/// What every output file says about its origin; `recipe` is the recipe's text.
pub(crate) fn metadata(
    plan: &str,
    models: &[Model],
    recipe: &str,
    seed: u64,
) -> BTreeMap<String, String> {
    let entries = [
        ("format", "pt".to_owned()),
        ("merganser_version", env!("CARGO_PKG_VERSION").to_owned()),
        ("merganser_plan", plan.to_owned()),
        ("merganser_inputs", inputs(models)),
        ("merganser_recipe", text(recipe)),
        ("merganser_seed", seed.to_string()),
    ];
    entries.map(|(key, value)| (key.to_owned(), value)).into()
}

/// Hash of a text.
pub(crate) fn text(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}
