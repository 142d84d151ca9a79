//! What is evaluated: one task, or a file of them.
//!
//! A file is YAML or JSON, a list of tasks or `tasks:` with one:
//!
//! ```yaml
//! tasks:
//!   - name: sst2
//!     data: {path: sst2.jsonl, split: test}
//!     head: heads/sst2.safetensors
//!     reference: models/sst2
//! ```

use std::fmt;
use std::path::{Path, PathBuf};

use merganser_data::Source;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::error::{EvalError, Result};
use crate::forward::Feature;
use crate::lame::Affinity;

/// Longest file of tasks that is read.
const MAX_FILE: u64 = 4 << 20;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Share of samples whose class is right.
    Classification,
    /// exp of the mean negative log-likelihood of a token.
    Perplexity,
    /// Rank correlation of cosines of pairs with scores.
    Similarity,
    /// Share of the right passages among the k nearest.
    Retrieval,
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "classification" | "accuracy" => Self::Classification,
            "perplexity" => Self::Perplexity,
            "similarity" | "sts" => Self::Similarity,
            "retrieval" | "recall" => Self::Retrieval,
            _ => {
                return Err(format!(
                    "unknown task `{text}`; expected classification, perplexity, similarity or retrieval"
                ));
            }
        })
    }
}

/// One thing to measure of every model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Task {
    /// Its name in results; by default that of its data.
    pub name: String,
    /// What is measured. By default classification if there is a head, perplexity for causal language models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<Kind>,
    /// The samples: a path, or a mapping with `path`, `split`, `column`, `label`, ….
    #[serde(deserialize_with = "source")]
    pub data: Source,
    /// Classification: a file with a linear head, or the folder of a fine-tuned model whose head is used. By default the
    /// head in the model's own checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<PathBuf>,
    /// The vector that a head or a comparison is about; by default what is customary for the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature: Option<Feature>,
    /// Whether features are scaled to unit length before the head.
    pub unit: bool,
    /// The model that was fine-tuned on this task alone, to which scores are normalised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Similarity and retrieval: the columns of the two texts. Defaults: `sentence1` and `sentence2`, `query` and
    /// `passage`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<[String; 2]>,
    /// Classification: draw the predictions of every 64 samples towards those of near ones ([`lame()`](crate::lame())).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lame: Option<Affinity>,
    /// Similarity: the column of scores (default: `score`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<String>,
    /// Retrieval: text put before every query and every passage, such as `query: ` and `passage: ` of E5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompts: Option<[String; 2]>,
    /// Retrieval: numbers of nearest passages looked at (default: 1, 5 and 10). The first is the one in tables.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub k: Vec<usize>,
    /// Perplexity: whether the rows are one text, cut into windows of the maximum length.
    pub concat: bool,
    /// Take this many samples, chosen at random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<usize>,
    /// Seed of the choice.
    pub seed: u64,
    /// Cut texts at this many tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
}

impl Task {
    /// A task on the samples of `data`, with every choice left to what is found there.
    pub fn new(data: Source) -> Self {
        Self {
            data,
            ..Self::default()
        }
    }

    /// Its name: as given, or that of its data.
    pub fn title(&self) -> String {
        if !self.name.is_empty() {
            return self.name.clone();
        }
        let stem = self.data.path.file_stem().unwrap_or_default();
        stem.to_string_lossy().into_owned()
    }
}

/// A path, or a mapping.
fn source<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Source, D::Error> {
    struct SourceVisitor;
    impl<'de> Visitor<'de> for SourceVisitor {
        type Value = Source;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a path, or a mapping with `path`")
        }

        fn visit_str<E>(self, path: &str) -> Result<Source, E> {
            Ok(Source::new(path))
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Source, A::Error> {
            Source::deserialize(MapAccessDeserializer::new(map))
        }
    }
    deserializer.deserialize_any(SourceVisitor)
}

/// The content of a file of tasks.
struct Tasks(Vec<Task>);

impl<'de> Deserialize<'de> for Tasks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Named {
            tasks: Vec<Task>,
        }
        struct TasksVisitor;
        impl<'de> Visitor<'de> for TasksVisitor {
            type Value = Tasks;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of tasks, or a mapping with `tasks`")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tasks, A::Error> {
                let mut tasks = Vec::new();
                while let Some(task) = seq.next_element()? {
                    tasks.push(task);
                }
                Ok(Tasks(tasks))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Tasks, A::Error> {
                let named = Named::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Tasks(named.tasks))
            }
        }
        deserializer.deserialize_any(TasksVisitor)
    }
}

/// Reads a file of tasks. Paths in it that do not exist where the program runs are looked for beside the file.
///
/// # Errors
/// A file that cannot be read, is no YAML or JSON, has unknown keys, or lists no task or two of one name.
pub fn read_tasks(path: &Path) -> Result<Vec<Task>> {
    let refused = |problem: String| EvalError::Tasks {
        path: path.to_owned(),
        problem,
    };
    let size = std::fs::metadata(path)
        .map_err(|error| refused(format!("cannot be opened: {error}")))?
        .len();
    if size > MAX_FILE {
        return Err(refused(format!(
            "has {size} bytes; a file of tasks has at most {MAX_FILE}"
        )));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|error| refused(format!("cannot be read: {error}")))?;
    let Tasks(mut tasks) =
        serde_saphyr::from_str(&text).map_err(|error| refused(error.to_string()))?;
    if tasks.is_empty() {
        return Err(refused("lists no task".into()));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let beside = |path: &mut PathBuf| {
        let other = folder.join(&*path);
        if !path.exists() && other.exists() {
            *path = other;
        }
    };
    let mut names: Vec<String> = Vec::new();
    for task in &mut tasks {
        if task.data.path.as_os_str().is_empty() {
            return Err(refused(format!("task `{}` names no `data`", task.name)));
        }
        beside(&mut task.data.path);
        if let Some(head) = &mut task.head {
            beside(head);
        }
        if let Some(reference) = &mut task.reference {
            let mut parts: Vec<String> = Vec::new();
            for part in reference.split('+') {
                let mut path = PathBuf::from(part);
                beside(&mut path);
                parts.push(path.to_string_lossy().into_owned());
            }
            *reference = parts.join("+");
        }
        let title = task.title();
        if names.contains(&title) {
            return Err(refused(format!(
                "two tasks are called `{title}`; give each a `name` of its own"
            )));
        }
        names.push(title);
    }
    Ok(tasks)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Task>, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("heads")).unwrap();
        std::fs::write(dir.path().join("heads/a.safetensors"), "").unwrap();
        let path = dir.path().join("tasks.yml");
        std::fs::write(&path, text).unwrap();
        let strip = |text: String| text.replace(&format!("{}/", dir.path().display()), "");
        read_tasks(&path)
            .map(|mut tasks| {
                for task in &mut tasks {
                    task.head = task
                        .head
                        .take()
                        .map(|head| strip(head.to_string_lossy().into_owned()).into());
                }
                tasks
            })
            .map_err(|error| strip(error.to_string()))
    }

    #[test]
    fn yaml_and_json_say_the_same() {
        let yaml = "tasks:\n  - name: a\n    data: x.jsonl\n    head: heads/a.safetensors\n  - data: {path: data/b.jsonl, split: test}\n    task: retrieval\n    k: [10]\n    unit: true\n";
        let json = r#"[{"name": "a", "data": "x.jsonl", "head": "heads/a.safetensors"}, {"data": {"path": "data/b.jsonl", "split": "test"}, "task": "retrieval", "k": [10], "unit": true}]"#;
        let tasks = read(yaml).unwrap();
        assert_eq!(read(json).unwrap(), tasks);
        assert_eq!(tasks[0].data, Source::new("x.jsonl"));
        assert_eq!(
            tasks[0].head.as_deref(),
            Some(Path::new("heads/a.safetensors"))
        );
        assert_eq!(
            (tasks[1].title().as_str(), tasks[1].task),
            ("b", Some(Kind::Retrieval))
        );
    }

    #[test]
    fn mistakes_are_located() {
        for (text, expected) in [
            ("- dat: x", "unknown field `dat`"),
            ("- {data: x, task: guessing}", "guessing"),
            ("- {data: {path: x, colum: y}}", "unknown field `colum`"),
            ("- {name: a}", "task `a` names no `data`"),
            ("[]", "lists no task"),
            (
                "- {data: a/x.jsonl}\n- {data: b/x.csv}",
                "two tasks are called `x`",
            ),
            ("- {data: [", "line 1"),
            ("5", "a list of tasks, or a mapping with `tasks`"),
        ] {
            let found = read(text).unwrap_err();
            assert!(
                found.contains(expected),
                "{text}\n  found: {found}\n  expected: {expected}"
            );
        }
    }
}
