//! config.json as data: the keys that must change are replaced in the text, every other byte stays.

use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// A key that could not be changed.
#[derive(Debug, thiserror::Error)]
#[error("config.json cannot be edited: {0}")]
pub struct ConfigError(String);

/// The text of a config.json under edit.
#[derive(Debug, Clone)]
pub struct Config {
    text: String,
}

/// Keys under which the families keep their number of layers.
const LAYER_COUNT_KEYS: &[&str] = &[
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "depth",
    "encoder_layers",
];

/// Lists with one entry a layer.
const PER_LAYER_LISTS: &[&str] = &[
    "layer_types",
    "mlp_layer_types",
    "no_rope_layers",
    "block_configs",
    "attention_layers",
];

impl Config {
    /// Takes the text of a config.json.
    ///
    /// # Errors
    /// If it is not a JSON object.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config = Self {
            text: text.to_owned(),
        };
        config.members(&[])?;
        Ok(config)
    }

    /// The text as it stands.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The value at a path of keys.
    pub fn get(&self, path: &[&str]) -> Option<Value> {
        let (last, parents) = path.split_last()?;
        let members = self.members(parents).ok()?;
        serde_json::from_str(self.text.get(members.get(*last)?.clone())?).ok()
    }

    /// Replaces the value at `path`, adding the key at the head of its object if it is not there.
    ///
    /// # Errors
    /// If a parent is not an object.
    pub fn set(&mut self, path: &[&str], value: &Value) -> Result<(), ConfigError> {
        let Some((last, parents)) = path.split_last() else {
            return Ok(());
        };
        if self.get(path).as_ref() == Some(value) {
            return Ok(());
        }
        let members = self.members(parents)?;
        if let Some(span) = members.get(*last) {
            let indent = self.indent_at(span.start);
            let written = render(value, &indent);
            self.text.replace_range(span.clone(), &written);
        } else {
            let open = self.object_start(parents)? + 1;
            let key = Value::String((*last).to_owned());
            let multiline =
                self.text[open..].starts_with('\n') || self.text[open..].starts_with("\r\n");
            let lead = if multiline {
                let rest = &self.text[open..];
                rest[..rest.len() - rest.trim_start().len()].to_owned()
            } else {
                String::new()
            };
            let comma = if members.is_empty() { "" } else { "," };
            self.text.insert_str(
                open,
                &format!(
                    "{lead}{key}: {}{comma}",
                    render(value, lead.trim_start_matches(['\r', '\n']))
                ),
            );
        }
        Ok(())
    }

    /// The path under which this model keeps its number of layers.
    pub fn layer_count_path(&self) -> Option<Vec<&'static str>> {
        let roots: [&[&'static str]; 4] =
            [&[], &["text_config"], &["llm_config"], &["vision_config"]];
        roots.iter().find_map(|root| {
            LAYER_COUNT_KEYS.iter().find_map(|key| {
                let path: Vec<&'static str> = root.iter().copied().chain([*key]).collect();
                self.get(&path).is_some_and(|v| v.is_u64()).then_some(path)
            })
        })
    }

    /// Sets the number of layers, and picks the entries of per-layer lists: output layer `k` was layer `origin[k]`.
    ///
    /// # Errors
    /// If the text cannot be edited.
    pub fn set_layers(&mut self, origin: &[usize]) -> Result<Option<String>, ConfigError> {
        let Some(path) = self.layer_count_path() else {
            return Ok(None);
        };
        let old = self.get(&path).and_then(|v| v.as_u64());
        self.set(&path, &Value::from(origin.len()))?;
        for list in PER_LAYER_LISTS {
            let mut at: Vec<&str> = path[..path.len() - 1].to_vec();
            at.push(list);
            if let Some(Value::Array(items)) = self.get(&at)
                && Some(items.len() as u64) == old
            {
                let picked: Vec<Value> = origin
                    .iter()
                    .filter_map(|i| items.get(*i).cloned())
                    .collect();
                if picked.len() == origin.len() {
                    self.set(&at, &Value::Array(picked))?;
                }
            }
        }
        Ok(Some(path.join(".")))
    }

    /// Byte spans of the values of an object's members.
    fn members(
        &self,
        parents: &[&str],
    ) -> Result<BTreeMap<String, std::ops::Range<usize>>, ConfigError> {
        let start = self.object_start(parents)?;
        let mut stream = serde_json::Deserializer::from_str(&self.text[start..])
            .into_iter::<BTreeMap<String, &RawValue>>();
        let members = match stream.next() {
            Some(Ok(members)) => members,
            Some(Err(error)) => return Err(ConfigError(error.to_string())),
            None => return Err(ConfigError("it is empty".into())),
        };
        let origin = self.text.as_ptr() as usize;
        Ok(members
            .into_iter()
            .map(|(key, raw)| {
                let at = raw.get().as_ptr() as usize - origin;
                (key, at..at + raw.get().len())
            })
            .collect())
    }

    fn object_start(&self, parents: &[&str]) -> Result<usize, ConfigError> {
        let Some((last, outer)) = parents.split_last() else {
            let start =
                self.text.len() - self.text.trim_start_matches('\u{feff}').trim_start().len();
            return Ok(start);
        };
        let members = self.members(outer)?;
        members
            .get(*last)
            .map(|span| span.start)
            .ok_or_else(|| ConfigError(format!("it has no '{last}'")))
    }

    fn indent_at(&self, at: usize) -> String {
        let line = self.text[..at].rfind('\n').map_or(0, |i| i + 1);
        self.text[line..at]
            .chars()
            .take_while(|c| *c == ' ' || *c == '\t')
            .collect()
    }
}

fn render(value: &Value, indent: &str) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => {
            let text = serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string());
            text.replace('\n', &format!("\n{indent}"))
        }
        _ => value.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    const TEXT: &str = "{\n  \"a\": [1,2],\n  \"num_hidden_layers\": 4,\n  \"text_config\": {\"dtype\": \"float32\"},\n  \"layer_types\": [\n    \"x\",\n    \"y\",\n    \"x\",\n    \"y\"\n  ]\n}\n";

    #[test]
    fn only_the_changed_bytes_differ() {
        let mut config = Config::parse(TEXT).unwrap();
        config.set(&["num_hidden_layers"], &json!(6)).unwrap();
        config
            .set(&["text_config", "dtype"], &json!("bfloat16"))
            .unwrap();
        assert_eq!(
            config.text(),
            TEXT.replace(": 4", ": 6").replace("float32", "bfloat16")
        );
    }

    #[test]
    fn setting_the_same_value_changes_nothing() {
        let mut config = Config::parse(TEXT).unwrap();
        config.set(&["a"], &json!([1, 2])).unwrap();
        assert_eq!(config.text(), TEXT);
    }

    #[test]
    fn a_new_key_keeps_the_layout() {
        let mut config = Config::parse(TEXT).unwrap();
        config.set(&["tie_word_embeddings"], &json!(false)).unwrap();
        assert!(
            config
                .text()
                .starts_with("{\n  \"tie_word_embeddings\": false,\n  \"a\"")
        );
        let mut empty = Config::parse("{}").unwrap();
        empty.set(&["k"], &json!(1)).unwrap();
        assert_eq!(empty.get(&["k"]), Some(json!(1)));
    }

    #[test]
    fn per_layer_lists_follow_the_layers() {
        let mut config = Config::parse(TEXT).unwrap();
        let key = config.set_layers(&[0, 1, 2, 1, 2, 3]).unwrap();
        assert_eq!(key.as_deref(), Some("num_hidden_layers"));
        assert_eq!(
            config.get(&["layer_types"]),
            Some(json!(["x", "y", "x", "y", "x", "y"]))
        );
        assert_eq!(config.get(&["num_hidden_layers"]), Some(json!(6)));
    }

    #[test]
    fn text_that_is_no_object_is_refused() {
        assert!(Config::parse("[1]").is_err());
        assert!(Config::parse("{\"a\": ").is_err());
        assert!(Config::parse("").is_err());
    }
}
