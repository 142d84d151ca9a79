//! Fisher merging: every element averaged by how sure each model is of it.
//!
//! y = Σ c_t F_t x_t / Σ c_t F_t, with F_t the diagonal of model t's Fisher information (the file `fisher` of the
//! model, tensors of the same names and shapes) and c_t its weight. Two forms:
//! `mergelm`: F_t + floor, c_t = w_t / (‖F_t‖ + 10⁻⁶); `matena`: max(F_t, floor), for the first model only with
//! `favor_target`, so that a donor that is sure of nothing does not pull; c_t = w_t / ‖F_t‖. Norms are over all tensors
//! that are merged, and are left out without `normalize`. Where every F_t is 0: the average by w_t.
//! Matena and Raffel, "Merging Models with Fisher-Weighted Averaging", NeurIPS 2022 (arXiv 2111.09832).

use merganser_kernels::precision::{Precision, weighted_mean};
use merganser_kernels::reduce;

use crate::{
    Arity, BasePolicy, Grain, Input, Kind, Method, MethodError, MethodInfo, Parameter, Program,
    Scope, Settings, Survey, TensorGroup, View,
};

/// See the module's documentation.
pub(crate) struct Fisher;

/// Name under which the survey holds ‖F_t‖ of every input.
const NORMS: &str = "fisher_norms";

static INFO: MethodInfo = MethodInfo {
    name: "fisher",
    summary: "average of the models, weighted element by element by their Fisher information",
    formula: "y = Σ c_t F_t x_t / Σ c_t F_t, c_t = weight_t / ‖F_t‖",
    source: "Matena and Raffel, Merging Models with Fisher-Weighted Averaging, NeurIPS 2022 (arXiv 2111.09832); \
             forms of its code and of MergeLM",
    in_mergekit: false,
    base: BasePolicy::Ignored,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter {
            name: "fisher",
            scope: Scope::PerInput,
            kind: Kind::File,
            default: None,
            required: true,
            summary: "the model's diagonal Fisher information: a checkpoint with the names and shapes of the model",
        },
        Parameter::float(
            "weight",
            Scope::PerInput,
            (0.0, f64::INFINITY),
            1.0,
            "weight of the model",
        ),
        Parameter::choice(
            "variant",
            &["mergelm", "matena"],
            "mergelm",
            "whose form: see floor",
        ),
        Parameter::flag(
            "normalize",
            true,
            "divide each Fisher information by its norm over the whole model",
        ),
        Parameter::float(
            "floor",
            Scope::Shared,
            (0.0, f64::INFINITY),
            1e-6,
            "mergelm: added to every Fisher information; matena: its smallest value",
        ),
        Parameter::flag(
            "favor_target",
            true,
            "matena: apply the floor to the first model only",
        ),
    ],
};

impl Method for Fisher {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn check(
        &self,
        _shape: &[usize],
        _base: Option<usize>,
        settings: &Settings,
    ) -> Result<(), String> {
        if weights(settings).iter().sum::<f64>() == 0.0 {
            return Err("all weights are 0; give at least one model a positive weight".into());
        }
        Ok(())
    }

    fn needs_survey(&self, settings: &Settings) -> bool {
        settings.flag("normalize")
    }

    fn survey(&self, groups: &[TensorGroup<'_>]) -> Result<Survey, MethodError> {
        TensorGroup::check_same_models(groups, INFO.name)?;
        let mut squares: Vec<f64> = Vec::new();
        for group in groups {
            let count = group.inputs.len();
            let parts = information(group)?.scan(
                Grain::Elements,
                View::Values,
                |_| vec![0.0; count],
                |sums, block| {
                    for (i, sum) in sums.iter_mut().enumerate() {
                        *sum += reduce::norm_sq(block.input(i));
                    }
                },
            )?;
            squares.resize(count.max(squares.len()), 0.0);
            for (i, square) in squares.iter_mut().enumerate().take(count) {
                *square += parts.iter().map(|sums| sums[i]).sum::<f64>();
            }
        }
        let norms = squares.into_iter().map(f64::sqrt).collect();
        Ok(Survey {
            numbers: [(NORMS.to_owned(), norms)].into(),
        })
    }

    fn passes(&self, settings: &Settings) -> u32 {
        if settings.flag("normalize") { 2 } else { 1 }
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        information(group)?;
        let norms = if group.settings.flag("normalize") {
            let norms = survey.get(NORMS);
            if norms.len() < group.inputs.len() {
                return Err(group.undefined("fisher", "the norms over all tensors were not taken"));
            }
            norms.to_vec()
        } else {
            Vec::new()
        };
        let precisions = precisions(group.settings, &norms);
        let fallback: Vec<f32> = weights(group.settings).iter().map(|w| *w as f32).collect();
        Ok(Program::values(move |block, out| {
            let fisher: Vec<&[f32]> = (0..block.inputs()).map(|i| block.companion(i)).collect();
            weighted_mean(out, &block.all(), &fisher, &precisions, &fallback);
        }))
    }
}

/// The Fisher tensors of `group` as a group of their own, so that they can be read without the models.
fn information<'a>(group: &TensorGroup<'a>) -> Result<TensorGroup<'a>, MethodError> {
    let companion = |input: &Input<'a>| match input.companion {
        Some(source) => Ok(Input {
            model: input.model,
            source,
            companion: None,
            round_to: None,
        }),
        None => Err(group.undefined(
            INFO.name,
            &format!(
                "{} has no Fisher information for it; name its file in the parameter 'fisher'",
                input.model
            ),
        )),
    };
    Ok(TensorGroup {
        name: group.name,
        shape: group.shape,
        inputs: group
            .inputs
            .iter()
            .map(companion)
            .collect::<Result<_, _>>()?,
        base: None,
        settings: group.settings,
        seed: group.seed,
        allow_nonfinite: group.allow_nonfinite,
    })
}

fn weights(settings: &Settings) -> Vec<f64> {
    (0..settings.inputs.len())
        .map(|i| settings.input_float(i, "weight").unwrap_or(0.0))
        .collect()
}

/// How each stored F becomes the precision of its model; `norms` is empty if they are not to be divided by.
fn precisions(settings: &Settings, norms: &[f64]) -> Vec<Precision> {
    let matena = settings.text("variant") == Some("matena");
    let floor = settings.float("floor") as f32;
    let all_floored = !settings.flag("favor_target");
    let coefficients: Vec<f64> = weights(settings)
        .iter()
        .enumerate()
        .map(|(i, w)| match norms.get(i) {
            Some(norm) if !matena => w / (norm + 1e-6),
            // Without any information there is no norm to divide by; only the floor is left.
            Some(norm) if *norm > 0.0 => w / norm,
            _ => *w,
        })
        .collect();
    // A common factor cancels; with the largest at 1, no product can overflow that F itself does not.
    let largest = coefficients.iter().copied().fold(0.0, f64::max);
    coefficients
        .iter()
        .enumerate()
        .map(|(i, c)| Precision {
            coefficient: (c / largest) as f32,
            floor: if matena && (i == 0 || all_floored) {
                floor
            } else {
                f32::NEG_INFINITY
            },
            offset: if matena { 0.0 } else { floor },
        })
        .collect()
}
