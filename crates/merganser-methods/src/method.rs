//! What a merge method is: its description, its checks, its statistics and its combining function.

use std::collections::BTreeMap;

use crate::{Block, Grain, MethodError, Settings, TensorGroup, Value, View};

/// A merge method. Values of this trait are stateless; everything they need comes with the group.
pub trait Method: Send + Sync {
    /// Name, parameters, formula, source.
    fn info(&self) -> &'static MethodInfo;

    /// Refuses settings that cannot work for a tensor of this shape, before anything is read or written.
    /// Ranges of single parameters are already checked against [`MethodInfo::parameters`].
    ///
    /// # Errors
    /// The reason and the remedy, without the tensor's name (the caller knows it).
    fn check(
        &self,
        shape: &[usize],
        base: Option<usize>,
        settings: &Settings,
    ) -> Result<(), String> {
        let _ = (shape, base, settings);
        Ok(())
    }

    /// Whether the method needs numbers taken over *all* tensors of the model before it merges the first one.
    fn needs_survey(&self, settings: &Settings) -> bool {
        let _ = settings;
        false
    }

    /// Takes those numbers. Called once per merge with every group the method will merge, in name order.
    ///
    /// # Errors
    /// Unreadable or non-finite inputs.
    fn survey(&self, groups: &[TensorGroup<'_>]) -> Result<Survey, MethodError> {
        let _ = groups;
        Ok(Survey::default())
    }

    /// Whether the result is the single input itself, so that its bytes can be copied.
    fn is_copy(&self, settings: &Settings) -> bool {
        let _ = settings;
        false
    }

    /// Whether tensors of whole numbers are those of the base, without being equal in all models.
    fn keeps_whole_numbers(&self) -> bool {
        false
    }

    /// What is stored beside the merged model, so that more can be made of it later: the same for every tensor of
    /// a merge of `tasks` models besides the base. The survey is taken whenever there is something.
    fn extras(&self, settings: &Settings, tasks: usize) -> Vec<Extra> {
        let _ = (settings, tasks);
        Vec::new()
    }

    /// The function that makes entry `number` of [`Method::extras`] for one tensor.
    ///
    /// # Errors
    /// If there is no such entry.
    fn extra<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        number: usize,
    ) -> Result<Program<'a>, MethodError> {
        Err(group.undefined(
            self.info().name,
            &format!("it stores nothing called number {number} beside the model"),
        ))
    }

    /// The coarsest grain any scan of the method uses: it bounds the memory a thread needs.
    fn grain(&self, settings: &Settings) -> Grain {
        let _ = settings;
        Grain::Elements
    }

    /// How many times every input element is read, statistics included (0 for a plain copy).
    fn passes(&self, settings: &Settings) -> u32 {
        let _ = settings;
        1
    }

    /// Takes the statistics of one tensor and returns the function that merges it.
    ///
    /// # Errors
    /// Unreadable or non-finite inputs, or inputs for which the formula is meaningless.
    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError>;
}

/// One kind of tensor that is stored beside the merged model, once for every merged tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extra {
    /// What stands before the tensor's name, without the slash between them.
    pub prefix: String,
    /// Stored as one bit an element; else in the type of the merged tensor.
    pub bits: bool,
}

/// How one output tensor is made once its statistics are known.
pub struct Program<'a> {
    /// How the tensor may be cut.
    pub grain: Grain,
    /// What the blocks hold.
    pub view: View,
    /// Writes one block of output.
    pub combine: Combine<'a>,
}

/// Computes one block of output from one block of inputs.
pub type Combine<'a> = Box<dyn Fn(&Block<'_>, &mut [f32]) + Send + Sync + 'a>;

impl<'a> Program<'a> {
    /// A program over single elements of the inputs as they are.
    pub fn values(combine: impl Fn(&Block<'_>, &mut [f32]) + Send + Sync + 'a) -> Self {
        Self {
            grain: Grain::Elements,
            view: View::Values,
            combine: Box::new(combine),
        }
    }

    /// A program over single elements of the task vectors.
    pub fn deltas(combine: impl Fn(&Block<'_>, &mut [f32]) + Send + Sync + 'a) -> Self {
        Self {
            grain: Grain::Elements,
            view: View::Deltas,
            combine: Box::new(combine),
        }
    }
}

/// Numbers taken over all tensors of a model, by name: plain data, so that it can be stored and shared between
/// the processes of one merge.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Survey {
    /// Named lists of numbers; which ones, each method says.
    pub numbers: BTreeMap<String, Vec<f64>>,
}

impl Survey {
    /// The list called `name`, empty if there is none.
    pub fn get(&self, name: &str) -> &[f64] {
        self.numbers.get(name).map_or(&[], Vec::as_slice)
    }
}

/// The description of a method: what `merganser methods NAME` prints and what recipes are checked against.
#[derive(Debug)]
pub struct MethodInfo {
    /// The name used in recipes.
    pub name: &'static str,
    /// One line: what it does.
    pub summary: &'static str,
    /// The formula, in plain text.
    pub formula: &'static str,
    /// Paper or program it comes from.
    pub source: &'static str,
    /// Whether mergekit has a method of this name with this meaning.
    pub in_mergekit: bool,
    /// What becomes of `base_model`.
    pub base: BasePolicy,
    /// How many inputs besides the base (all inputs where the base is ignored).
    pub inputs: Arity,
    /// The parameters.
    pub parameters: &'static [Parameter],
}

/// What a method does with `base_model`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BasePolicy {
    /// Cannot work without one.
    Required,
    /// Uses one if there is one.
    Optional,
    /// Treats it as one more input.
    Ignored,
}

/// Bounds on a number of inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arity {
    /// At least so many.
    pub min: usize,
    /// At most so many.
    pub max: Option<usize>,
}

impl Arity {
    /// Exactly `n`.
    pub const fn exactly(n: usize) -> Self {
        Self {
            min: n,
            max: Some(n),
        }
    }

    /// `n` or more.
    pub const fn at_least(n: usize) -> Self {
        Self { min: n, max: None }
    }
}

/// One parameter of a method.
#[derive(Debug)]
pub struct Parameter {
    /// The name used in recipes.
    pub name: &'static str,
    /// Where it may stand.
    pub scope: Scope,
    /// Its type and range.
    pub kind: Kind,
    /// The value used when a recipe says nothing; `None` with `required` false means "not set".
    pub default: Option<Fallback>,
    /// Whether a recipe must give it.
    pub required: bool,
    /// One line: what it does.
    pub summary: &'static str,
}

/// A default value, in a form that a `static` can hold.
#[derive(Debug, Clone, Copy)]
pub enum Fallback {
    /// A real number.
    Float(f64),
    /// A whole number.
    Int(i64),
    /// A switch.
    Bool(bool),
    /// A word.
    Text(&'static str),
}

impl From<Fallback> for Value {
    fn from(fallback: Fallback) -> Self {
        match fallback {
            Fallback::Float(x) => Self::Float(x),
            Fallback::Int(x) => Self::Int(x),
            Fallback::Bool(x) => Self::Bool(x),
            Fallback::Text(x) => Self::Text(x.to_owned()),
        }
    }
}

/// Where a parameter may stand in a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Per merge, module or slice; tested against the output tensor's name.
    Shared,
    /// Per input model too; tested against the input tensor's name.
    PerInput,
}

/// Type and range of a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A finite real number in a closed range (infinite bounds are open).
    Float {
        /// Smallest allowed value.
        min: f64,
        /// Largest allowed value.
        max: f64,
    },
    /// A number in a closed range, or one word instead.
    FloatOrWord {
        /// Smallest allowed value.
        min: f64,
        /// Largest allowed value.
        max: f64,
        /// The word.
        word: &'static str,
    },
    /// A whole number in a closed range.
    Int {
        /// Smallest allowed value.
        min: i64,
        /// Largest allowed value.
        max: i64,
    },
    /// `true` or `false`.
    Bool,
    /// One of a few words.
    Choice(&'static [&'static str]),
    /// Any text.
    Text,
    /// Path of a checkpoint whose tensors go with those of the input, as its companions.
    File,
}

impl Parameter {
    /// A per-input number without bounds that must be given (`weight`).
    pub const fn weight() -> Self {
        Self {
            name: "weight",
            scope: Scope::PerInput,
            kind: Kind::Float {
                min: f64::NEG_INFINITY,
                max: f64::INFINITY,
            },
            default: None,
            required: true,
            summary: "weight of the model",
        }
    }

    /// A shared or per-input number with a default.
    pub const fn float(
        name: &'static str,
        scope: Scope,
        (min, max): (f64, f64),
        default: f64,
        summary: &'static str,
    ) -> Self {
        Self {
            name,
            scope,
            kind: Kind::Float { min, max },
            default: Some(Fallback::Float(default)),
            required: false,
            summary,
        }
    }

    /// A shared switch.
    pub const fn flag(name: &'static str, default: bool, summary: &'static str) -> Self {
        Self {
            name,
            scope: Scope::Shared,
            kind: Kind::Bool,
            default: Some(Fallback::Bool(default)),
            required: false,
            summary,
        }
    }

    /// A shared whole number.
    pub const fn int(
        name: &'static str,
        (min, max): (i64, i64),
        default: i64,
        summary: &'static str,
    ) -> Self {
        Self {
            name,
            scope: Scope::Shared,
            kind: Kind::Int { min, max },
            default: Some(Fallback::Int(default)),
            required: false,
            summary,
        }
    }

    /// A shared choice between words.
    pub const fn choice(
        name: &'static str,
        words: &'static [&'static str],
        default: &'static str,
        summary: &'static str,
    ) -> Self {
        Self {
            name,
            scope: Scope::Shared,
            kind: Kind::Choice(words),
            default: Some(Fallback::Text(default)),
            required: false,
            summary,
        }
    }

    /// The same parameter, but the recipe must give it.
    #[must_use]
    pub const fn required(mut self) -> Self {
        self.required = true;
        self.default = None;
        self
    }
}
