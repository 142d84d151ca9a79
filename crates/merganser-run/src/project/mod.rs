//! Merges that look at data: the prior first, then the tensors that samples say more about.
//!
//! Tensors without a rule of their own are merged by the executor like any others. For the rest the samples run through
//! the fine-tunes and the network merged so far ([`merganser_projection::network`]); every merged tensor goes to its place
//! in the staged files at once, and the next layer computes with what was stored. [`diagnose`] does the same without
//! writing, and measures other bases and methods on the way.

mod calibrate;
mod factored;
mod findings;
mod from_moments;
mod host;
mod matrices;
mod memory;
mod outputs;
mod rivals;
mod rules;
mod samples;
mod tensors;

use std::collections::BTreeSet;
use std::sync::{Mutex, OnceLock, PoisonError};

use merganser_methods::{Survey, is_adapter_method, looks_at_data};
use merganser_model::{ModelError, Network};
use merganser_plan::{Calibrated, Model, Plan, Role};
use merganser_projection::MomentsFile;
use merganser_projection::network::{
    self, Distillation, Feature, Place, Recorded, Rule, Settings, Stream, Teacher,
};
use merganser_report::Report;

use crate::execute::Work;
use crate::{Event, Observer, RunError, survey};
pub use calibrate::{Calibrated as CalibrationSummary, calibrate};
pub use factored::project_factors;
pub use findings::OWN;
use host::Host;
pub(crate) use memory::lanes;
pub use memory::{matrix_bytes, usual_memory};
use samples::TaskData;
use tensors::Tensors;

/// Files of moments, one a task, and the matrices they speak for.
struct Recordings {
    files: Vec<MomentsFile>,
    places: Vec<Place>,
}

/// What the recipe's calibrated method does, and the network it does it to.
pub(crate) struct Projection<'a> {
    plan: &'a Plan,
    calibrated: &'a Calibrated,
    /// What the samples run through; not needed by methods that look at none.
    network: Result<Network, ModelError>,
    /// Moments of every task, if the recipe gives those instead of samples.
    moments: Option<Recordings>,
    claimed: BTreeSet<String>,
    /// The samples, once they are loaded.
    data: OnceLock<Vec<TaskData>>,
}

/// Whether whole matrices are merged without a look at data or network.
fn merges_matrices(calibrated: &Calibrated) -> bool {
    !looks_at_data(calibrated.info, &calibrated.settings)
}

impl<'a> Projection<'a> {
    /// The calibrated part of a plan, if it has one.
    ///
    /// # Errors
    /// If the network is of a kind that cannot be run.
    pub(crate) fn of(plan: &'a Plan) -> Result<Option<Self>, RunError> {
        let Some(calibrated) = &plan.calibrated else {
            return Ok(None);
        };
        let config = plan.config.as_deref().unwrap_or("{}");
        let config = serde_json::from_str(config).unwrap_or_default();
        let shapes = plan
            .tensors()
            .map(|output| (output.name.clone(), output.shape.clone()))
            .collect();
        let network = Network::new(&config, &shapes);
        let mut projection = Self {
            plan,
            calibrated,
            network,
            moments: None,
            claimed: BTreeSet::new(),
            data: OnceLock::new(),
        };
        if let Some(files) = from_moments::open(&projection)? {
            let places = from_moments::places(&projection, &files)?;
            projection.moments = Some(Recordings { files, places });
        }
        projection.claimed = match (&projection.moments, &projection.network) {
            _ if merges_matrices(calibrated) => matrices::claimed(plan, calibrated),
            (Some(recordings), _) => {
                let places = recordings.places.iter();
                places
                    .flat_map(|place| projection.claims_of(place))
                    .collect()
            }
            (None, Ok(network)) => {
                let rule = |name: &str| projection.rule(name);
                network::claimed(network, rule).into_iter().collect()
            }
            (None, Err(problem)) => return Err(projection.unknown(problem)),
        };
        Ok(Some(projection))
    }

    /// How the tensor is merged.
    fn rule(&self, tensor: &str) -> Rule {
        let rank = matrices::rank_of_factors(self.plan, self.calibrated, tensor);
        let solved = rank.is_some() && matches!(Role::of(tensor), Role::Layer { .. });
        if is_adapter_method(self.calibrated.info.name) && !solved {
            return Rule::Prior;
        }
        let output = self.plan.tensors().find(|output| output.name == tensor);
        let settings = output.and_then(|output| output.calibrated.as_ref());
        settings.map_or(Rule::Prior, |settings| {
            rules::rule(self.calibrated, settings, self.plan.seed, rank)
        })
    }

    /// The tensors that are decided at a place.
    fn claims_of(&self, place: &Place) -> impl Iterator<Item = String> + use<> {
        let with_bias = self.rule(&place.linear.weight).includes_bias();
        let bias = place.linear.bias.clone().filter(|_| with_bias);
        std::iter::once(place.linear.weight.clone()).chain(bias)
    }

    fn unknown(&self, problem: &ModelError) -> RunError {
        RunError::Network {
            method: self.calibrated.info.name,
            problem: problem.to_string(),
        }
    }

    /// Loads the samples of all tasks, if they are needed and not there yet.
    ///
    /// # Errors
    /// Samples that cannot be used.
    pub(crate) fn load(&self) -> Result<&[TaskData], RunError> {
        if let Some(data) = self.data.get() {
            return Ok(data);
        }
        let data = match &self.moments {
            _ if merges_matrices(self.calibrated) => Vec::new(),
            Some(recordings) => samples::described(self.plan, self.calibrated, &recordings.files),
            None => {
                let few = self.distillation().steps > 0;
                samples::load(self.plan, self.calibrated, few)?
            }
        };
        Ok(self.data.get_or_init(|| data))
    }

    /// Whether a tensor is made here rather than by the executor.
    pub(crate) fn claims(&self, tensor: &str) -> bool {
        self.claimed.contains(tensor)
    }

    /// Merges the claimed tensors into the files of a running merge and says what was found out.
    ///
    /// # Errors
    /// Unusable samples, activations that are not finite, layers without a solution, a full disk.
    pub(crate) fn carry_out(
        &self,
        work: &Work<'_>,
        survey: &Survey,
        pending: &BTreeSet<&str>,
    ) -> Result<Option<Report>, RunError> {
        let tensors = Tensors::new(self.plan, work.job.allow_nonfinite);
        if merges_matrices(self.calibrated) {
            matrices::merge(self, &tensors, work, pending)?;
            return Ok(None);
        }
        let host = Host {
            projection: self,
            tensors: &tensors,
            survey,
            work: Some(work),
            factored: None,
            pending,
            drafts: (self.distillation().steps > 0).then(Mutex::default),
            rivals: &[],
            observer: work.observer,
        };
        let provenance = work.job.provenance;
        self.walk(
            &host,
            &tensors,
            Vec::new(),
            (&provenance.title, &provenance.recipe),
        )
        .map(Some)
    }

    fn walk(
        &self,
        host: &Host<'_>,
        tensors: &Tensors<'_>,
        measured: Vec<merganser_projection::Programme>,
        words: (&str, &str),
    ) -> Result<Report, RunError> {
        let general = &self.calibrated.settings;
        let name = self.calibrated.info.name;
        let settings = Settings {
            stream: match name {
                "projection" | "core_space" if general.flag("sequential") => Stream::Merged,
                "regmean++" => Stream::Candidates,
                _ => Stream::Taught,
            },
            ridge_by_input: general.text("ridge_scale") == Some("input"),
            residual_targets: general.text("targets") == Some("residual"),
            matrix_prior: self
                .calibrated
                .matrix_prior
                .as_ref()
                .map(|(info, settings)| rules::data_free(info, settings)),
            measured,
        };
        let base = self.plan.base.map(|base| tensors.of_model(base));
        let base = base.ok_or_else(|| RunError::Calibration("there is no base model".into()))?;
        let weights: Vec<_> = self
            .calibrated
            .tasks
            .iter()
            .map(|task| tensors.of_model(task.model))
            .collect();
        let data = self.load()?;
        if let Some(recordings) = &self.moments {
            let recorded: Vec<Recorded<'_>> = data
                .iter()
                .zip(&weights)
                .zip(&recordings.files)
                .map(|((data, weights), moments)| Recorded {
                    name: data.name.clone(),
                    weights,
                    moments,
                    weight: data.weight,
                })
                .collect();
            let places = &recordings.places;
            let layers = network::merge_recorded(places, &base, &recorded, host, &settings)
                .map_err(RunError::Projection)?;
            let mut report = findings::report(self, data, layers, words);
            if settings.stream == Stream::Merged {
                report.warnings.push(
                    "files of moments hold what the fine-tunes themselves feed to each layer: every layer was solved by itself, \
                     as with `sequential: false`; give samples for a sequential merge"
                        .to_owned(),
                );
            }
            return Ok(report);
        }
        let teachers = data
            .iter()
            .zip(&weights)
            .map(|(data, weights)| Teacher {
                name: data.name.clone(),
                weights,
                batches: &data.batches,
                weight: data.weight,
            })
            .collect::<Vec<_>>();
        let network = self
            .network
            .as_ref()
            .map_err(|problem| self.unknown(problem))?;
        let layers = network::merge(network, &base, &teachers, host, &settings)
            .map_err(RunError::Projection)?;
        let mut report = findings::report(self, data, layers, words);
        if let Some(drafts) = &host.drafts {
            let merged = drafts
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            let teachers: Vec<Teacher<'_>> = teachers
                .into_iter()
                .zip(data)
                .map(|(teacher, data)| Teacher {
                    batches: &data.small,
                    ..teacher
                })
                .collect();
            let settings = self.distillation();
            let student = network::Student::new(host);
            let step = |step, loss| {
                host.observer.event(Event::Distilled {
                    step,
                    of: settings.steps,
                    loss,
                });
            };
            let done = network::distill(
                network, &base, &teachers, &student, &merged, &settings, &step,
            )
            .map_err(RunError::Projection)?;
            for (name, tensor) in done {
                host.store(&name, &tensor).map_err(RunError::Read)?;
            }
            report.warnings.push(format!(
                "captured energies are those of the projection, before the {} steps of distillation",
                settings.steps
            ));
        }
        Ok(report)
    }

    fn distillation(&self) -> Distillation {
        let general = &self.calibrated.settings;
        let applies = self.calibrated.info.name == "projection" && self.moments.is_none();
        Distillation {
            steps: if applies {
                general.int("distill") as usize
            } else {
                0
            },
            rate: general.float("distill_rate"),
            hidden: general.float("distill_hidden"),
            feature: match general.text("feature") {
                Some("first") => Feature::First,
                Some("mean") => Feature::Mean,
                Some("tokens") => Feature::Tokens,
                _ => Feature::Auto,
            },
            seed: self.plan.seed,
        }
    }
}

/// Measures what a calibrated merge would do, and what other bases and methods would, without writing anything.
/// `words` are the title and the recipe's text, `compared` merged models to be measured too, by name.
///
/// # Errors
/// Those of a merge.
pub fn diagnose(
    plan: &Plan,
    words: (&str, &str),
    compared: &[(String, Model)],
    allow_nonfinite: bool,
    observer: &dyn Observer,
) -> Result<Report, RunError> {
    let projection = Projection::of(plan)?
        .filter(|projection| !merges_matrices(projection.calibrated))
        .ok_or_else(|| RunError::Calibration("the recipe's method looks at no data".into()))?;
    let tensors = Tensors::new(plan, allow_nonfinite);
    let rivals = rivals::usual(compared);
    let host = Host {
        projection: &projection,
        tensors: &tensors,
        survey: &survey::measure(plan, allow_nonfinite, observer)?,
        work: None,
        factored: None,
        pending: &BTreeSet::new(),
        drafts: None,
        rivals: &rivals,
        observer,
    };
    let mut report = projection.walk(&host, &tensors, rivals::bases(), words)?;
    outputs::measure(&projection, &tensors, compared, &mut report)?;
    Ok(report)
}
