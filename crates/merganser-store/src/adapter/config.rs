//! `adapter_config.json` of PEFT: how large the update of each module is.
//!
//! An update is scale·B·A with scale = α/r, or α/√r with `use_rslora` (Kalajdzievski 2023). `r` and
//! α may differ by module: `rank_pattern` and `alpha_pattern` map a name or regular expression to a
//! value, and the first key for which `(.*\.)?(KEY)$` matches the module's path applies.
//!
//! Everything PEFT can express that is not this sum is refused: an update that silently means
//! something else is worse than none.

use regex::Regex;
use serde_json::{Map, Value};

/// Longest config accepted, in bytes.
pub(crate) const MAX_CONFIG_LEN: u64 = 16 << 20;

/// Why an adapter was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// The folder lacks the file.
    #[error("no {0} in it; expected the folder of a PEFT adapter")]
    Missing(&'static str),
    /// Not JSON, or not an object.
    #[error("adapter_config.json: {0}")]
    Malformed(String),
    /// A value of the wrong kind or out of range.
    #[error("adapter_config.json: `{key}` is {found}; expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A kind of adapter that is not a sum of low-rank updates of matrices.
    #[error("{0}; merge it into its base model with PEFT first, and give the result")]
    Unsupported(String),
    /// A tensor whose name fits no module.
    #[error("tensor `{0}` is not part of a LoRA adapter that this version understands")]
    UnknownTensor(String),
    /// Half of a pair.
    #[error("module `{module}` has `{found}` but no `{missing}`")]
    Unpaired {
        /// The module.
        module: String,
        /// The half that is there.
        found: &'static str,
        /// The half that is not.
        missing: &'static str,
    },
    /// Two tensors for one place.
    #[error("module `{module}` has two tensors `{part}`; the folder holds more than one adapter")]
    Twice {
        /// The module.
        module: String,
        /// The part.
        part: String,
    },
    /// Shapes of the two factors do not fit each other or the config.
    #[error(
        "module `{module}`: factor A is {a:?} and B is {b:?}; rank {rank} of adapter_config.json expects [{rank}, in] and [out, {rank}]"
    )]
    Shape {
        /// The module.
        module: String,
        /// Shape of A.
        a: Vec<usize>,
        /// Shape of B.
        b: Vec<usize>,
        /// Rank by the config.
        rank: usize,
    },
    /// A bias of B that does not fit it.
    #[error(
        "module `{module}`: `lora_B.bias` is {found:?}, and B has {outputs} outputs; expected [{outputs}]"
    )]
    Bias {
        /// The module.
        module: String,
        /// Shape of the bias.
        found: Vec<usize>,
        /// Outputs of B.
        outputs: usize,
    },
    /// There is nothing in the adapter.
    #[error("it holds no tensors")]
    Empty,
}

/// What of `adapter_config.json` decides the update.
#[derive(Debug, Clone)]
pub struct AdapterConfig {
    /// Model the adapter was trained on, as its author named it.
    pub base_model: Option<String>,
    /// Whether the base stores its matrices as [in, out] (GPT-2's Conv1D).
    pub fan_in_fan_out: bool,
    rank: usize,
    alpha: f64,
    use_rslora: bool,
    rank_pattern: Vec<(Regex, usize)>,
    alpha_pattern: Vec<(Regex, f64)>,
    raw: Map<String, Value>,
}

/// Options that change what an adapter computes, when set to something.
const UNSUPPORTED: [(&str, &str); 10] = [
    (
        "use_dora",
        "it is a DoRA adapter, which rescales the base weight",
    ),
    (
        "use_qalora",
        "it is a QALoRA adapter, which pools its inputs",
    ),
    ("use_bdlora", "it is a block-diagonal adapter"),
    (
        "megatron_config",
        "it was trained with Megatron's parallel layers",
    ),
    (
        "layer_replication",
        "it repeats layers of the base model (`layer_replication`)",
    ),
    (
        "trainable_token_indices",
        "it replaces single rows of the embedding (`trainable_token_indices`)",
    ),
    (
        "alora_invocation_tokens",
        "it is an activated LoRA, which acts on part of the text only",
    ),
    (
        "arrow_config",
        "it routes between several adapters (`arrow_config`)",
    ),
    (
        "target_parameters",
        "it adapts bare parameters instead of modules (`target_parameters`)",
    ),
    (
        "use_lora_ga",
        "it was initialised by LoRA-GA, which changes the base weights",
    ),
];

/// Initialisations that leave the base weights alone. Others (PiSSA, OLoRA, CorDA, LoftQ, …) take
/// something out of the base, so the factors alone are not the whole update.
const PLAIN_INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// Parses the text of an `adapter_config.json`.
pub fn parse_config(text: &str) -> Result<AdapterConfig, AdapterError> {
    let map: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| AdapterError::Malformed(error.to_string()))?;
    match map.get("peft_type") {
        Some(Value::String(kind)) if kind == "LORA" => {}
        Some(Value::String(kind)) => {
            return Err(AdapterError::Unsupported(format!(
                "it is of type `{kind}`, and only `LORA` can be merged"
            )));
        }
        other => return Err(wrong("peft_type", other, "\"LORA\"")),
    }
    for (key, what) in UNSUPPORTED {
        if map.get(key).is_some_and(is_set) {
            return Err(AdapterError::Unsupported(what.to_owned()));
        }
    }
    if let Some(Value::String(init)) = map.get("init_lora_weights")
        && !PLAIN_INITS.contains(&init.to_ascii_lowercase().as_str())
    {
        return Err(AdapterError::Unsupported(format!(
            "it was initialised by `{init}`, which may change the base weights"
        )));
    }
    Ok(AdapterConfig {
        base_model: map
            .get("base_model_name_or_path")
            .and_then(Value::as_str)
            .map(str::to_owned),
        fan_in_fan_out: flag(&map, "fan_in_fan_out")?,
        rank: rank("r", map.get("r"))?,
        alpha: alpha("lora_alpha", map.get("lora_alpha"))?,
        use_rslora: flag(&map, "use_rslora")?,
        rank_pattern: patterns(&map, "rank_pattern", rank)?,
        alpha_pattern: patterns(&map, "alpha_pattern", alpha)?,
        raw: map,
    })
}

impl AdapterConfig {
    /// All of it, as its author wrote it.
    pub fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// Rank and scale of the update of `module`, the path of a module in the base model
    /// (`model.layers.0.self_attn.q_proj`).
    pub fn rank_and_scale(&self, module: &str) -> (usize, f64) {
        let rank = first_match(&self.rank_pattern, module).unwrap_or(self.rank);
        let alpha = first_match(&self.alpha_pattern, module).unwrap_or(self.alpha);
        let divisor = if self.use_rslora {
            (rank as f64).sqrt()
        } else {
            rank as f64
        };
        (rank, alpha / divisor)
    }
}

fn first_match<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    patterns
        .iter()
        .find(|(regex, _)| regex.is_match(module))
        .map(|&(_, value)| value)
}

/// Whether a value is anything but absent in spirit: null, false, or empty.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(entries) => !entries.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => true,
    }
}

fn wrong(key: &str, found: Option<&Value>, expected: &'static str) -> AdapterError {
    let found = found.map_or_else(
        || "missing".to_owned(),
        |value| value.to_string().chars().take(60).collect(),
    );
    AdapterError::Value {
        key: key.to_owned(),
        found,
        expected,
    }
}

fn flag(map: &Map<String, Value>, key: &str) -> Result<bool, AdapterError> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        other => Err(wrong(key, other, "true or false")),
    }
}

fn rank(key: &str, value: Option<&Value>) -> Result<usize, AdapterError> {
    value
        .and_then(Value::as_u64)
        .filter(|&rank| (1..=u64::from(u32::MAX)).contains(&rank))
        .map(|rank| rank as usize)
        .ok_or_else(|| wrong(key, value, "a whole number of at least 1"))
}

fn alpha(key: &str, value: Option<&Value>) -> Result<f64, AdapterError> {
    value
        .and_then(Value::as_f64)
        .filter(|alpha| alpha.is_finite())
        .ok_or_else(|| wrong(key, value, "a finite number"))
}

fn patterns<T>(
    map: &Map<String, Value>,
    key: &str,
    parse: fn(&str, Option<&Value>) -> Result<T, AdapterError>,
) -> Result<Vec<(Regex, T)>, AdapterError> {
    let entries = match map.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        other => return Err(wrong(key, other, "an object from module names to numbers")),
    };
    entries
        .iter()
        .map(|(pattern, value)| {
            let name = format!("{key}.{pattern}");
            // PEFT's own expression; `^` stands for Python's anchoring `re.match`.
            let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$")).map_err(|_| {
                wrong(
                    &name,
                    Some(value),
                    "a key that is a module name or a regular expression",
                )
            })?;
            Ok((regex, parse(&name, Some(value))?))
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config(extra: &str) -> Result<AdapterConfig, AdapterError> {
        parse_config(&format!(
            r#"{{"peft_type":"LORA","r":8,"lora_alpha":16{extra}}}"#
        ))
    }

    #[test]
    fn scale_is_alpha_over_rank_or_its_root() {
        assert_eq!(config("").unwrap().rank_and_scale("q"), (8, 2.0));
        let (rank, scale) = config(r#","use_rslora":true"#).unwrap().rank_and_scale("q");
        assert_eq!((rank, scale), (8, 16.0 / 8_f64.sqrt()));
    }

    #[test]
    fn patterns_match_as_in_peft() {
        let config = config(
            r#","rank_pattern":{"q_proj":2,"layers\\.(0|1)\\.mlp\\.up":4,"^model.layers.3.k_proj":16},"alpha_pattern":{"q_proj":4,"proj":1}"#,
        )
        .unwrap();
        for (module, rank, scale) in [
            ("model.layers.0.self_attn.q_proj", 2, 2.0),
            ("q_proj", 2, 2.0),
            ("model.layers.0.my_q_proj", 8, 2.0),
            ("model.layers.0.q_proj.inner", 8, 2.0),
            ("model.layers.1.mlp.up", 4, 4.0),
            ("model.layers.2.mlp.up", 8, 2.0),
            ("model.layers.3.k_proj", 16, 1.0),
            ("vision.model.layers.3.k_proj", 8, 2.0),
            ("a.proj", 8, 0.125),
        ] {
            assert_eq!(config.rank_and_scale(module), (rank, scale), "{module}");
        }
    }

    #[test]
    fn the_first_matching_pattern_wins() {
        let config = config(r#","rank_pattern":{"z.*":2,"zz":4,"a":5}"#).unwrap();
        assert_eq!(config.rank_and_scale("zz").0, 2);
    }

    #[test]
    fn what_is_not_a_plain_lora_is_refused_by_name() {
        for (extra, expected) in [
            (r#","use_dora":true"#, "DoRA"),
            (r#","layer_replication":[[0,4]]"#, "layer_replication"),
            (
                r#","trainable_token_indices":[1]"#,
                "trainable_token_indices",
            ),
            (r#","megatron_config":{"a":1}"#, "Megatron"),
            (r#","init_lora_weights":"pissa_niter_4""#, "`pissa_niter_4`"),
            (
                r#","target_parameters":["experts.gate"]"#,
                "target_parameters",
            ),
            (
                r#","fan_in_fan_out":"yes""#,
                "`fan_in_fan_out` is \"yes\"; expected true or false",
            ),
            (r#","rank_pattern":{"q":0}"#, "`rank_pattern.q` is 0"),
            (r#","rank_pattern":{"q(":1}"#, "`rank_pattern.q(`"),
            (r#","alpha_pattern":[]"#, "`alpha_pattern` is []"),
        ] {
            let found = config(extra).unwrap_err().to_string();
            assert!(found.contains(expected), "{extra}: {found}");
        }
        for extra in [
            r#","use_dora":false"#,
            r#","trainable_token_indices":null"#,
            r#","target_parameters":[]"#,
            r#","init_lora_weights":true"#,
            r#","init_lora_weights":"gaussian""#,
        ] {
            assert!(config(extra).is_ok(), "{extra}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for (text, expected) in [
            (
                r#"{"peft_type":"LORA","r":0,"lora_alpha":1}"#,
                "`r` is 0; expected a whole number of at least 1",
            ),
            (r#"{"peft_type":"LORA","lora_alpha":1}"#, "`r` is missing"),
            (r#"{"peft_type":"LORA","r":1}"#, "`lora_alpha` is missing"),
            (
                r#"{"peft_type":"LORA","r":1,"lora_alpha":1e999}"#,
                "adapter_config.json: number out of range",
            ),
            (
                r#"{"peft_type":"LORA","r":1,"lora_alpha":NaN}"#,
                "adapter_config.json: expected value",
            ),
            (
                r#"{"peft_type":"IA3","r":1,"lora_alpha":1}"#,
                "of type `IA3`",
            ),
            (r#"{"r":1}"#, "`peft_type` is missing"),
            ("[]", "invalid type: sequence"),
        ] {
            let found = parse_config(text).unwrap_err().to_string();
            assert!(found.contains(expected), "{text}: {found}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_without_panic(text in ".{0,60}") {
            let _ = parse_config(&text);
            let _ = config(&format!(r#","rank_pattern":{{{}:1}}"#, Value::from(text)));
        }
    }
}
