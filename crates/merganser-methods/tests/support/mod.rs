//! Runs methods on tensors in memory, with the defaults that a recipe would get.

#![allow(dead_code)] // every test file uses its own part

use std::collections::BTreeMap;

use merganser_methods::{
    BasePolicy, Encoding, Float, Input, Kind, Memory, Method, Program, Scope, Settings, Source,
    Survey, TensorGroup, Value, find,
};

/// A merge of models in memory; the tensors of all models have the same names.
pub(crate) struct Merge {
    pub(crate) method: &'static dyn Method,
    pub(crate) settings: Settings,
    pub(crate) base: Option<usize>,
    tensors: Vec<Tensor>,
}

struct Tensor {
    name: String,
    shape: Vec<usize>,
    inputs: Vec<Vec<u8>>,
    companions: Vec<Option<Vec<u8>>>,
}

impl Merge {
    /// A merge of `models` models, of which number `base` is the base, all parameters at their defaults.
    pub(crate) fn new(method: &str, models: usize, base: Option<usize>) -> Self {
        let method = find(method).unwrap_or_else(|| panic!("no method {method}"));
        let info = method.info();
        let mut settings = Settings {
            shared: BTreeMap::new(),
            inputs: vec![BTreeMap::new(); models],
        };
        for parameter in info.parameters {
            let Some(default) = parameter.default else {
                continue;
            };
            if parameter.scope == Scope::Shared {
                settings.shared.insert(parameter.name, default.into());
                continue;
            }
            for (i, input) in settings.inputs.iter_mut().enumerate() {
                if info.base == BasePolicy::Ignored || Some(i) != base {
                    input.insert(parameter.name, default.into());
                }
            }
        }
        Self {
            method,
            settings,
            base,
            tensors: Vec::new(),
        }
    }

    /// Sets a shared parameter, which must exist and hold a value of its kind.
    pub(crate) fn set(mut self, name: &str, value: impl Into<Setting>) -> Self {
        let name = self.parameter(name, Scope::Shared, &value.into());
        self.settings.shared.insert(name.0, name.1);
        self
    }

    /// Sets a parameter of input `i`.
    pub(crate) fn set_input(mut self, i: usize, name: &str, value: impl Into<Setting>) -> Self {
        let (name, value) = self.parameter(name, Scope::PerInput, &value.into());
        self.settings.inputs[i].insert(name, value);
        self
    }

    /// Sets a parameter of every input but the base.
    pub(crate) fn set_others<S: Into<Setting> + Copy>(mut self, name: &str, values: &[S]) -> Self {
        let others: Vec<usize> = (0..self.settings.inputs.len())
            .filter(|i| Some(*i) != self.base)
            .collect();
        assert_eq!(others.len(), values.len(), "one value a model");
        for (i, value) in others.into_iter().zip(values) {
            self = self.set_input(i, name, *value);
        }
        self
    }

    fn parameter(&self, name: &str, scope: Scope, value: &Setting) -> (&'static str, Value) {
        let info = self.method.info();
        let parameter = info
            .parameters
            .iter()
            .find(|parameter| parameter.name == name && parameter.scope == scope);
        let parameter =
            parameter.unwrap_or_else(|| panic!("{} has no parameter {name} there", info.name));
        let fits = match (&value.0, parameter.kind) {
            (Value::Float(x), Kind::Float { min, max } | Kind::FloatOrWord { min, max, .. }) => {
                (min..=max).contains(x)
            }
            (Value::Int(x), Kind::Int { min, max }) => (min..=max).contains(x),
            (Value::Bool(_), Kind::Bool) | (Value::Text(_), Kind::Text | Kind::File) => true,
            (Value::Text(x), Kind::Choice(words)) => words.contains(&x.as_str()),
            _ => false,
        };
        assert!(fits, "{} is no value for {name}", value.0);
        (parameter.name, value.0.clone())
    }

    /// Adds a tensor: its values in every model, in f32.
    pub(crate) fn tensor(self, name: &str, shape: &[usize], inputs: &[Vec<f32>]) -> Self {
        self.tensor_with(name, shape, inputs, &[])
    }

    /// Adds a tensor and its companions.
    pub(crate) fn tensor_with(
        mut self,
        name: &str,
        shape: &[usize],
        inputs: &[Vec<f32>],
        companions: &[Vec<f32>],
    ) -> Self {
        assert_eq!(
            inputs.len(),
            self.settings.inputs.len(),
            "one tensor a model"
        );
        let bytes = |x: &Vec<f32>| {
            assert_eq!(
                x.len(),
                shape.iter().product::<usize>(),
                "the shape of {name}"
            );
            x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()
        };
        self.tensors.push(Tensor {
            name: name.to_owned(),
            shape: shape.to_vec(),
            inputs: inputs.iter().map(bytes).collect(),
            companions: (0..inputs.len())
                .map(|i| companions.get(i).map(bytes))
                .collect(),
        });
        self
    }

    /// Shows `work` the groups of all tensors.
    pub(crate) fn with_groups<R>(&self, work: impl FnOnce(&[TensorGroup<'_>]) -> R) -> R {
        self.with_groups_changed(|_| (), work)
    }

    /// Shows `work` the groups of all tensors after a `change`.
    pub(crate) fn with_groups_changed<R>(
        &self,
        change: impl FnOnce(&mut [TensorGroup<'_>]),
        work: impl FnOnce(&[TensorGroup<'_>]) -> R,
    ) -> R {
        let sources: Vec<(Vec<Memory<'_>>, Vec<Option<Memory<'_>>>)> = self
            .tensors
            .iter()
            .map(|tensor| {
                let inputs = tensor
                    .inputs
                    .iter()
                    .map(|bytes| Memory::new(Float::F32, bytes));
                let companions = tensor
                    .companions
                    .iter()
                    .map(|c| c.as_ref().map(|b| Memory::new(Float::F32, b)));
                (inputs.collect(), companions.collect())
            })
            .collect();
        let mut groups: Vec<TensorGroup<'_>> = self
            .tensors
            .iter()
            .zip(&sources)
            .map(|(tensor, (inputs, companions))| TensorGroup {
                name: &tensor.name,
                shape: &tensor.shape,
                inputs: inputs
                    .iter()
                    .zip(companions)
                    .map(|(source, companion)| Input {
                        model: "a model",
                        source,
                        companion: companion.as_ref().map(|companion| companion as &dyn Source),
                        round_to: None,
                    })
                    .collect(),
                base: self.base,
                settings: &self.settings,
                seed: 0,
                allow_nonfinite: false,
            })
            .collect();
        change(&mut groups);
        work(&groups)
    }

    /// Takes the survey if the method wants one.
    pub(crate) fn survey(&self) -> Result<Survey, String> {
        if !self.method.needs_survey(&self.settings) {
            return Ok(Survey::default());
        }
        self.with_groups(|groups| self.method.survey(groups))
            .map_err(|error| error.to_string())
    }

    /// Merges every tensor; refusals come back as text.
    pub(crate) fn try_run(&self) -> Result<BTreeMap<String, Vec<f32>>, String> {
        let survey = self.survey()?;
        self.with_groups(|groups| {
            groups
                .iter()
                .map(|group| {
                    self.method.check(group.shape, self.base, &self.settings)?;
                    let program = self
                        .method
                        .prepare(group, &survey)
                        .map_err(|error| error.to_string())?;
                    Ok((group.name.to_owned(), run_program(group, &program)?))
                })
                .collect()
        })
    }

    /// Merges every tensor.
    #[track_caller]
    pub(crate) fn run(&self) -> BTreeMap<String, Vec<f32>> {
        self.try_run()
            .unwrap_or_else(|error| panic!("{}: {error}", self.method.info().name))
    }

    /// Merges the only tensor.
    #[track_caller]
    pub(crate) fn one(&self) -> Vec<f32> {
        assert_eq!(self.tensors.len(), 1, "one tensor");
        self.run().into_values().next().unwrap_or_default()
    }
}

/// Runs a program to f32.
pub(crate) fn run_program(
    group: &TensorGroup<'_>,
    program: &Program<'_>,
) -> Result<Vec<f32>, String> {
    let bytes = run_encoded(group, program, Encoding::Float(Float::F32))?;
    let values: Vec<f32> = bytes
        .chunks(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    assert_eq!(values.len(), group.elements(), "every element is written");
    Ok(values)
}

/// Runs a program and joins what it writes.
pub(crate) fn run_encoded(
    group: &TensorGroup<'_>,
    program: &Program<'_>,
    encoding: Encoding,
) -> Result<Vec<u8>, String> {
    let chunks = group.run(program, encoding, |start, bytes| {
        Ok((start, bytes.to_vec()))
    });
    let chunks = chunks.map_err(|error| error.to_string())?;
    assert!(
        chunks.is_sorted_by_key(|(start, _)| *start),
        "chunks come back in order"
    );
    Ok(chunks.into_iter().flat_map(|(_, bytes)| bytes).collect())
}

/// A value of a parameter, made from what is handy in a test.
pub(crate) struct Setting(pub(crate) Value);

impl From<f64> for Setting {
    fn from(x: f64) -> Self {
        Self(Value::Float(x))
    }
}

impl From<i64> for Setting {
    fn from(x: i64) -> Self {
        Self(Value::Int(x))
    }
}

impl From<bool> for Setting {
    fn from(x: bool) -> Self {
        Self(Value::Bool(x))
    }
}

impl From<&str> for Setting {
    fn from(x: &str) -> Self {
        Self(Value::Text(x.to_owned()))
    }
}
