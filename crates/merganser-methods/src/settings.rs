//! The resolved parameters of one output tensor: gradients and filters are already plain values.

use std::collections::BTreeMap;

/// The value of one parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A real number.
    Float(f64),
    /// A whole number.
    Int(i64),
    /// A switch.
    Bool(bool),
    /// A name or path.
    Text(String),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Float(x) => write!(f, "{x}"),
            Self::Int(x) => write!(f, "{x}"),
            Self::Bool(x) => write!(f, "{x}"),
            Self::Text(x) => f.write_str(x),
        }
    }
}

/// Parameters of one output tensor, complete: whoever builds it has filled in every default and checked every range.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// Parameters of the whole merge (`normalize`, `lambda`, `t`, …).
    pub shared: BTreeMap<&'static str, Value>,
    /// Parameters of each input (`weight`, `density`, …), in input order; empty for the base model.
    pub inputs: Vec<BTreeMap<&'static str, Value>>,
}

impl Settings {
    /// A shared number; 0 if it is absent, which a complete `Settings` never is.
    pub fn float(&self, name: &str) -> f64 {
        number(self.shared.get(name)).unwrap_or(0.0)
    }

    /// A shared whole number.
    pub fn int(&self, name: &str) -> i64 {
        self.float(name) as i64
    }

    /// A shared switch.
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.shared.get(name), Some(Value::Bool(true)))
    }

    /// A shared choice or text, if set.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.shared.get(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Number of inputs other than the base.
    pub(crate) fn tasks(&self, base: Option<usize>) -> usize {
        self.inputs.len() - usize::from(base.is_some_and(|base| base < self.inputs.len()))
    }

    /// Whether the parameter `task` is an index among the inputs other than the base; else why not.
    pub(crate) fn check_task(&self, base: Option<usize>) -> Result<(), String> {
        let (task, tasks) = (self.int("task"), self.tasks(base));
        if (0..tasks as i64).contains(&task) {
            return Ok(());
        }
        Err(format!(
            "task {task} does not exist: the models besides the base are numbered from 0, and there are {tasks}"
        ))
    }

    /// A number of input `i`, if set.
    pub fn input_float(&self, i: usize, name: &str) -> Option<f64> {
        number(self.inputs.get(i)?.get(name))
    }
}

fn number(value: Option<&Value>) -> Option<f64> {
    match value? {
        Value::Float(x) => Some(*x),
        Value::Int(x) => Some(*x as f64),
        Value::Bool(x) => Some(f64::from(u8::from(*x))),
        Value::Text(_) => None,
    }
}
