//! Typed reading of `config.json`, with errors that name the key.

use serde_json::{Map, Value};

use crate::error::{ModelError, Result};
use crate::op::Activation;

/// Largest size accepted, so that no product of two overflows.
const MAX_SIZE: u64 = 1 << 24;

/// Far more than any model has.
const MAX_LAYERS: usize = 1 << 16;

/// An object of a config and the path to it.
#[derive(Debug, Clone)]
pub(crate) struct Config<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

impl<'a> Config<'a> {
    pub(crate) fn new(value: &'a Value) -> Result<Self> {
        let map = value.as_object().ok_or_else(|| ModelError::Config {
            key: "(whole file)".into(),
            found: shown(Some(value)),
            expected: "an object".into(),
        })?;
        Ok(Self {
            map,
            path: String::new(),
        })
    }

    /// The object under `key`, if there is one.
    pub(crate) fn nested(&self, key: &str) -> Result<Option<Self>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self {
                map,
                path: format!("{}{key}.", self.path),
            })),
            Some(_) => Err(self.refused(key, "an object")),
        }
    }

    /// The value of `key`; null is the same as missing.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn refused(&self, key: &str, expected: impl Into<String>) -> ModelError {
        ModelError::Config {
            key: format!("{}{key}", self.path),
            found: shown(self.map.get(key)),
            expected: expected.into(),
        }
    }

    fn find<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(value) => Ok(Some(value)),
                None => Err(self.refused(key, expected)),
            },
        }
    }

    /// A size, 1 or more.
    pub(crate) fn size_if(&self, key: &str) -> Result<Option<usize>> {
        self.find(key, "an integer from 1 to 16777216", |value| {
            let size = value.as_u64()?;
            (1..=MAX_SIZE).contains(&size).then_some(size as usize)
        })
    }

    pub(crate) fn size(&self, key: &str) -> Result<usize> {
        self.size_if(key)?
            .ok_or_else(|| self.refused(key, "an integer from 1 to 16777216"))
    }

    pub(crate) fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.size_if(key)?.unwrap_or(default))
    }

    /// A token id or another small count, 0 allowed.
    pub(crate) fn id_or(&self, key: &str, default: u32) -> Result<u32> {
        let id = self.find(key, "an integer from 0 to 16777216", |value| {
            let id = value.as_u64()?;
            (id <= MAX_SIZE).then_some(id as u32)
        })?;
        Ok(id.unwrap_or(default))
    }

    /// A number greater than 0, whose inverse and square are finite in f32.
    pub(crate) fn positive_if(&self, key: &str) -> Result<Option<f64>> {
        self.find(key, "a number from 1e-12 to 1e12", |value| {
            value.as_f64().filter(|x| (1e-12..=1e12).contains(x))
        })
    }

    pub(crate) fn positive_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.positive_if(key)?.unwrap_or(default))
    }

    /// The small number under a root: neither lost in f32 nor so large that nothing else counts.
    pub(crate) fn epsilon_or(&self, key: &str, default: f64) -> Result<f64> {
        let epsilon = self.find(key, "a number from 1e-30 to 1", |value| {
            value.as_f64().filter(|e| (1e-30..=1.0).contains(e))
        })?;
        Ok(epsilon.unwrap_or(default))
    }

    /// A number of layers.
    pub(crate) fn layers(&self, key: &str) -> Result<usize> {
        let layers = self.size(key)?;
        if layers > MAX_LAYERS {
            return Err(self.refused(key, format!("at most {MAX_LAYERS}")));
        }
        Ok(layers)
    }

    /// As [`Config::positive_or`], but an explicit null means that there is no such thing.
    pub(crate) fn positive_unless_null(&self, key: &str, default: f64) -> Result<Option<f64>> {
        if self.map.get(key).is_some_and(Value::is_null) {
            return Ok(None);
        }
        self.positive_or(key, default).map(Some)
    }

    /// Refuses any value of these keys.
    pub(crate) fn absent(&self, keys: &[&str]) -> Result<()> {
        match keys.iter().find(|key| self.has(key)) {
            Some(key) => Err(self.refused(key, "nothing: it is not supported")),
            None => Ok(()),
        }
    }

    pub(crate) fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self
            .find(key, "true or false", Value::as_bool)?
            .unwrap_or(default))
    }

    pub(crate) fn text_if(&self, key: &str) -> Result<Option<&'a str>> {
        self.find(key, "a string", Value::as_str)
    }

    /// Refuses any value of `key` but the `supported` one; missing is fine.
    pub(crate) fn only<T: Into<Value>>(&self, key: &str, supported: T) -> Result<()> {
        let supported = supported.into();
        match self.get(key) {
            Some(value) if *value != supported => Err(self.refused(key, supported.to_string())),
            _ => Ok(()),
        }
    }

    /// An activation function by transformers' name for it.
    pub(crate) fn activation_or(&self, key: &str, default: Activation) -> Result<Activation> {
        let Some(name) = self.text_if(key)? else {
            return Ok(default);
        };
        Ok(match name {
            "gelu" | "gelu_python" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_python_tanh"
            | "gelu_accurate" => Activation::GeluTanh,
            "quick_gelu" => Activation::QuickGelu,
            "silu" | "swish" => Activation::Silu,
            "relu" => Activation::Relu,
            "tanh" => Activation::Tanh,
            _ => {
                return Err(self.refused(
                    key,
                    "one of gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, quick_gelu, silu, swish, relu, tanh",
                ));
            }
        })
    }

    /// `hidden / heads`, refused if it is not a whole number.
    pub(crate) fn head_width(&self, hidden: usize, heads: usize, key: &str) -> Result<usize> {
        if hidden.is_multiple_of(heads) {
            Ok(hidden / heads)
        } else {
            Err(self.refused(key, format!("a divisor of the hidden size {hidden}")))
        }
    }
}

/// A JSON value for a message, cut if long.
pub(crate) fn shown(value: Option<&Value>) -> String {
    let Some(value) = value else {
        return "missing".into();
    };
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
