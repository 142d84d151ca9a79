//! The report: what was merged, from what, what each method captures, and what was concluded.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Accuracy, Error, Evaluation, Layer, Pairwise, Result};

/// The version of the JSON layout. It rises when a reader of the old layout would misread the new;
/// a new optional key does not raise it.
pub const SCHEMA_VERSION: u32 = 1;

/// A merge, diagnosed: the data behind the table, the JSON and the page.
///
/// Lists *by task* (in [`Layer`], [`Accuracy`], [`Pairwise`]) follow the order of
/// [`tasks`](Self::tasks). Maps *by method* (in [`Layer`]) are keyed by [`Method::name`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The version of this layout, [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The heading, for example the name of the merged model.
    pub title: String,
    /// Where the numbers come from.
    pub provenance: Provenance,
    /// The recipe, as the user wrote it.
    pub recipe: Option<String>,
    /// The tasks. Every list by task follows this order.
    pub tasks: Vec<Task>,
    /// The methods compared, in the order they are shown. A method that only layers name is shown
    /// after these, as a merge.
    pub methods: Vec<Method>,
    /// The method this merge uses; plots by task and by tensor are about it. `None`: the
    /// suggested method, else the best of the bases.
    pub chosen: Option<String>,
    /// What to use, and why.
    pub suggestion: Option<Suggestion>,
    /// The layers with moments, in forward order.
    pub layers: Vec<Layer>,
    /// Relations between tasks: cosines and conflicts.
    pub pairwise: Vec<Pairwise>,
    /// Reference scores and the terms of [`Method::accuracy`], if merges were evaluated.
    pub evaluation: Option<Evaluation>,
    /// Spearman's rank correlation between captured energy and mean accuracy over the methods that
    /// have both (at least three). Worked out if `None`.
    pub spearman: Option<f64>,
    /// The same between the captured energy at the output and mean accuracy.
    pub spearman_output: Option<f64>,
    /// Tensors without moments, which the prior merge decided.
    pub fallbacks: Vec<Fallback>,
    /// What the reader must know before trusting the numbers.
    pub warnings: Vec<String>,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            title: String::new(),
            provenance: Provenance::default(),
            recipe: None,
            tasks: Vec::new(),
            methods: Vec::new(),
            chosen: None,
            suggestion: None,
            layers: Vec::new(),
            pairwise: Vec::new(),
            evaluation: None,
            spearman: None,
            spearman_output: None,
            fallbacks: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

impl Report {
    /// The report as indented JSON, [completed](Self::completed). What was not measured is `null`.
    ///
    /// # Errors
    /// Only if the serialiser fails, which plain data does not make it do.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&self.completed())?)
    }

    /// Reads what [`to_json`](Self::to_json) wrote.
    ///
    /// # Errors
    /// [`Error::Json`] if the text is not a report, [`Error::Newer`] if it was written by a version
    /// whose layout this one does not know.
    pub fn from_json(text: &str) -> Result<Self> {
        let report: Self = serde_json::from_str(text)?;
        if report.schema_version > SCHEMA_VERSION {
            return Err(Error::Newer {
                found: report.schema_version,
            });
        }
        Ok(report)
    }
}

/// Where the numbers of a report come from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Provenance {
    /// The version of merganser.
    pub version: String,
    /// The base model, as a path or an id of the Hub.
    pub base: Option<String>,
    /// The seed of the choice of samples and of random methods.
    pub seed: Option<u64>,
    /// When the report was made, in words of the caller. `None` keeps reports of equal merges equal
    /// to the byte.
    pub date: Option<String>,
    /// Further settings worth showing, such as `mode: sequential` or `ridge: auto`.
    pub settings: BTreeMap<String, String>,
}

/// A task: one fine-tuned model with its calibration samples.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Task {
    /// The short name shown in plots.
    pub name: String,
    /// The fine-tuned model, as a path or an id of the Hub.
    pub model: Option<String>,
    /// Calibration samples: texts, images, rows.
    pub samples: Option<u64>,
    /// Calibration tokens or patches: the columns of `X_t`.
    pub tokens: Option<u64>,
    /// The weight `ω_t` in the objective, 1 if not given.
    pub weight: Option<f64>,
}

impl Task {
    /// A task of this name, nothing else known.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }
}

/// What a [`Method`] is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MethodKind {
    /// One merge: a fixed update, such as the average, task arithmetic, TIES or the chosen one.
    #[default]
    Merge,
    /// The best update within a basis (`task`, `diagonal`, `rotated`, `atoms`, `core`,
    /// `best-rank(k)`, `full`): what no merge in that basis can exceed.
    Basis,
}

/// A method under comparison and its figures over the whole network. Those of a single layer are in
/// [`Layer::captured`], under the same name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Method {
    /// The name, unique in the report. `full` is known as the basis of every matrix.
    pub name: String,
    /// Whether this is a merge or the optimum of a basis.
    pub kind: MethodKind,
    /// Captured energy over the network, `Σ E_l c_l / Σ E_l`. Worked out from the layers if
    /// `None`.
    pub captured: Option<f64>,
    /// Captured energy at the output of the whole network, of finished models: the features' instead of the layers'.
    pub output: Option<f64>,
    /// Accuracy of the merged model, if it was evaluated.
    pub accuracy: Option<Accuracy>,
    /// A word about this method, such as its parameters or the cost.
    pub note: Option<String>,
}

impl Method {
    /// A method of this name, nothing else known.
    pub fn new(name: impl Into<String>, kind: MethodKind) -> Self {
        Self {
            name: name.into(),
            kind,
            ..Self::default()
        }
    }
}

/// The method the figures speak for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Suggestion {
    /// The name of the method.
    pub method: String,
    /// The reason, one or two sentences.
    pub reason: String,
}

/// A tensor that has no moments and was merged by the prior.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fallback {
    /// The name of the tensor.
    pub name: String,
    /// The method that decided it.
    pub method: String,
    /// Why there were no moments.
    pub reason: Option<String>,
}
