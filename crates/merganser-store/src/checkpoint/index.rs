//! The index of a sharded checkpoint, `model.safetensors.index.json`: which shard holds which
//! tensor.
//!
//! Form: `{"metadata": {…}, "weight_map": {"tensor": "file", …}}`. Only `weight_map` is used; the
//! `total_size` of the metadata is wrong in many published models.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path};

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

/// Longest index accepted. The largest published ones have a few MB.
pub const MAX_INDEX_LEN: u64 = 256 << 20;

/// A validated index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// File of each tensor, relative to the folder of the index.
    pub weight_map: BTreeMap<String, String>,
}

/// Why an index was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// Not JSON of the right form.
    #[error("{0}")]
    Malformed(String),
    /// The map names no tensor.
    #[error("`weight_map` is empty")]
    Empty,
    /// A shard outside the model's folder.
    #[error(
        "tensor `{tensor}` is said to be in `{shard}`: a shard must be a file inside the model's folder"
    )]
    Outside {
        /// The tensor.
        tensor: String,
        /// The entry as written.
        shard: String,
    },
    /// A shard is not there.
    #[error("shard `{shard}` is missing ({count} of {total} shards are); download or copy it")]
    ShardMissing {
        /// The first missing one.
        shard: String,
        /// How many are missing.
        count: usize,
        /// How many there should be.
        total: usize,
    },
    /// A shard does not hold what the index says.
    #[error(
        "tensor `{tensor}` is said to be in `{shard}`, which does not hold it ({count} tensors are missing)"
    )]
    TensorMissing {
        /// The first missing tensor.
        tensor: String,
        /// The shard that should hold it.
        shard: String,
        /// How many tensors are missing.
        count: usize,
    },
    /// Two shards hold the same tensor.
    #[error("tensor `{tensor}` is in both `{first}` and `{second}`; which one is meant is unclear")]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// A shard that holds it.
        first: String,
        /// Another one.
        second: String,
    },
}

#[derive(serde::Deserialize)]
struct RawIndex {
    weight_map: RawMap,
}

struct RawMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for RawMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapVisitor;
        impl<'de> Visitor<'de> for MapVisitor {
            type Value = RawMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tensor names to file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawMap, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(tensor) = map.next_key::<String>()? {
                    let shard = map
                        .next_value::<String>()
                        .map_err(|error| de::Error::custom(format_args!("`{tensor}`: {error}")))?;
                    if entries.contains_key(&tensor) {
                        return Err(de::Error::custom(format_args!(
                            "tensor `{tensor}` is listed twice"
                        )));
                    }
                    entries.insert(tensor, shard);
                }
                Ok(RawMap(entries))
            }
        }
        deserializer.deserialize_map(MapVisitor)
    }
}

/// Parses the text of an index and checks that every shard is a relative path that stays inside
/// the folder. Whether the shards exist is not looked at.
pub fn parse_index(text: &str) -> Result<Index, IndexError> {
    let RawIndex {
        weight_map: RawMap(weight_map),
    } = serde_json::from_str(text).map_err(|error| IndexError::Malformed(error.to_string()))?;
    if weight_map.is_empty() {
        return Err(IndexError::Empty);
    }
    for (tensor, shard) in &weight_map {
        if !stays_inside(shard) {
            return Err(IndexError::Outside {
                tensor: tensor.clone(),
                shard: shard.clone(),
            });
        }
    }
    Ok(Index { weight_map })
}

/// Whether `path` is relative, names something, and has no `..`, so that joining it to a folder
/// stays in that folder as far as the text can tell.
pub(crate) fn stays_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\0', '\\'])
        && Path::new(path)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_real_index() {
        let index = parse_index(r#"{"metadata":{"total_size":3},"weight_map":{"a":"m-1.safetensors","b":"sub/m-2.safetensors"}}"#).unwrap();
        assert_eq!(index.weight_map["b"], "sub/m-2.safetensors");
    }

    #[test]
    fn wrong_forms_are_located() {
        for (text, expected) in [
            ("[]", "invalid length 0"),
            ("{}", "missing field `weight_map`"),
            (r#"{"weight_map":{}}"#, "`weight_map` is empty"),
            (
                r#"{"weight_map":{"a":1}}"#,
                "`a`: invalid type: integer `1`, expected a string at line 1",
            ),
            (
                r#"{"weight_map":{"a":"x","a":"y"}}"#,
                "tensor `a` is listed twice",
            ),
            (
                r#"{"weight_map":["a"]}"#,
                "expected an object from tensor names to file names",
            ),
        ] {
            let found = parse_index(text).unwrap_err().to_string();
            assert!(found.contains(expected), "{text}: {found}");
        }
    }

    #[test]
    fn shards_outside_the_folder_are_refused() {
        for shard in [
            "../x",
            "/etc/passwd",
            "a/../../x",
            "..",
            ".",
            "",
            "a\\u0000b",
            "..\\\\x",
            "./x",
        ] {
            let text = format!(r#"{{"weight_map":{{"w":"{shard}"}}}}"#);
            assert!(
                matches!(parse_index(&text), Err(IndexError::Outside { .. })),
                "{shard}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_without_panic(text in ".{0,60}") {
            let _ = parse_index(&text);
            let _ = parse_index(&format!(r#"{{"weight_map":{{"w":{text}}}}}"#));
        }
    }
}
