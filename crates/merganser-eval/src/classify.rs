//! Accuracy: the class of the largest logit is the label.

use merganser_data::Labels;
use serde::{Deserialize, Serialize};

use crate::error::{EvalError, Result};
use crate::forward::Vectors;

/// How many samples of one class were right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassCount {
    /// Name of the class, or its number.
    pub class: String,
    /// Samples with this label.
    pub samples: usize,
    /// Of those, samples that were given it.
    pub correct: usize,
}

/// What each sample was given, and what it should have been given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Predictions {
    /// The class of the largest logit of each sample.
    pub given: Vec<u32>,
    /// The label of each sample, as a row of the head.
    pub wanted: Vec<u32>,
    /// Names of the classes, if they are known.
    pub names: Option<Vec<String>>,
    /// How labels were matched with classes, where that was not plain.
    pub notes: Vec<String>,
}

impl Predictions {
    /// Compares `logits` with `labels`, whose names are matched with `names`, those of the head's rows.
    ///
    /// # Errors
    /// Labels the head has no row for, or that are scores.
    pub fn new(logits: &Vectors, labels: &Labels, names: Option<&[String]>) -> Result<Self> {
        let classes = logits.width;
        let names = names.filter(|names| names.len() == classes);
        let (wanted, names, notes) = rows_of(labels, classes, names)?;
        let given = logits.values.chunks(classes.max(1)).map(argmax).collect();
        Ok(Self {
            given,
            wanted,
            names,
            notes,
        })
    }

    /// 1 for each sample that is right, 0 for each that is not.
    pub fn hits(&self) -> Vec<f64> {
        let right = |(given, wanted)| f64::from(u8::from(given == wanted));
        self.given.iter().zip(&self.wanted).map(right).collect()
    }

    /// Counts by class, of the classes that occur.
    pub fn by_class(&self) -> Vec<ClassCount> {
        let classes = self.wanted.iter().max().map_or(0, |&id| id as usize + 1);
        let mut counts = vec![(0, 0); classes];
        for (&given, &wanted) in self.given.iter().zip(&self.wanted) {
            let (samples, correct) = &mut counts[wanted as usize];
            *samples += 1;
            *correct += usize::from(given == wanted);
        }
        counts
            .into_iter()
            .enumerate()
            .filter(|(_, (samples, _))| *samples > 0)
            .map(|(id, (samples, correct))| ClassCount {
                class: self
                    .names
                    .as_ref()
                    .and_then(|names| names.get(id).cloned())
                    .unwrap_or_else(|| id.to_string()),
                samples,
                correct,
            })
            .collect()
    }
}

/// The first position of the largest value, as torch's argmax.
pub(crate) fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (at, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = at;
        }
    }
    best as u32
}

type Matched = (Vec<u32>, Option<Vec<String>>, Vec<String>);

/// The row of the head each label means, the names of the rows, and what was assumed.
fn rows_of(labels: &Labels, classes: usize, head: Option<&[String]>) -> Result<Matched> {
    let refused = |problem: String| Err(EvalError::Labels(problem));
    match labels {
        Labels::Scores(_) => refused(
            "they are fractions, not classes; accuracy needs classes (for pairs with scores the task is `similarity`)"
                .into(),
        ),
        Labels::Classes { ids, names } => {
            if let Some(id) = ids.iter().find(|&&id| id as usize >= classes) {
                return refused(format!(
                    "found class {id}, but the head has {classes} classes, 0 to {}",
                    classes.saturating_sub(1)
                ));
            }
            let (Some(data), Some(head)) = (names, head) else {
                let names = head.map(<[String]>::to_vec).or_else(|| names.clone());
                return Ok((ids.clone(), names, Vec::new()));
            };
            let (data_key, head_key) = (keys(data), keys(head));
            if data_key == head_key {
                return Ok((ids.clone(), Some(head.to_vec()), Vec::new()));
            }
            // The same classes, numbered in another order.
            let rows: Option<Vec<u32>> = data_key
                .iter()
                .map(|name| position(&head_key, name))
                .collect();
            match rows {
                Some(rows) => Ok((
                    ids.iter().map(|&id| rows[id as usize]).collect(),
                    Some(head.to_vec()),
                    vec!["data and model number the classes differently; they are matched by name".into()],
                )),
                None => Ok((
                    ids.clone(),
                    Some(head.to_vec()),
                    vec![format!(
                        "data and model name the classes differently (`{}` and `{}` for class 0); they are matched by number",
                        data[0], head[0]
                    )],
                )),
            }
        }
        Labels::Names { ids, names } => {
            let (data_key, head_key) = (keys(names), head.map(keys));
            let row = |name: &String| match &head_key {
                Some(head) => position(head, name),
                None => name
                    .strip_prefix("label")
                    .and_then(|number| number.trim().parse().ok())
                    .filter(|&id: &u32| (id as usize) < classes),
            };
            let rows: Option<Vec<u32>> = data_key.iter().map(row).collect();
            if let Some(rows) = rows {
                let wanted = ids.iter().map(|&id| rows[id as usize]).collect();
                return Ok((wanted, head.map(<[String]>::to_vec), Vec::new()));
            }
            match head {
                Some(head) => {
                    let missing = names
                        .iter()
                        .zip(&data_key)
                        .find(|(_, key)| !keys(head).contains(key))
                        .map_or("", |(name, _)| name.as_str());
                    refused(format!(
                        "`{missing}` is none of the model's classes, which are {}",
                        shown(head)
                    ))
                }
                None if names.len() == classes => Ok((
                    ids.clone(),
                    Some(names.clone()),
                    vec![
                        "the model does not name its classes: the names in the data are numbered in alphabetical order"
                            .into(),
                    ],
                )),
                None => refused(format!(
                    "they are the names {}, but the model does not say which of its {classes} classes is called what; \
                     write `id2label` into its config.json, or number the labels",
                    shown(names)
                )),
            }
        }
    }
}

/// Names as they are compared: case, and what separates words, make no difference.
fn keys(names: &[String]) -> Vec<String> {
    let key = |name: &String| name.trim().to_lowercase().replace(['_', '-'], " ");
    names.iter().map(key).collect()
}

fn position(names: &[String], name: &str) -> Option<u32> {
    names
        .iter()
        .position(|other| other == name)
        .map(|at| at as u32)
}

fn shown(names: &[String]) -> String {
    let mut text: Vec<String> = names
        .iter()
        .take(8)
        .map(|name| format!("`{name}`"))
        .collect();
    if names.len() > 8 {
        text.push(format!("and {} more", names.len() - 8));
    }
    text.join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn wanted(
        labels: &Labels,
        classes: usize,
        head: Option<&[&str]>,
    ) -> Result<(Vec<u32>, usize), String> {
        let head = head.map(strings);
        rows_of(labels, classes, head.as_deref())
            .map(|(rows, _, notes)| (rows, notes.len()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_are_rows_unless_the_names_say_another_order() {
        let plain = Labels::Classes {
            ids: vec![2, 0],
            names: None,
        };
        assert_eq!(wanted(&plain, 3, None), Ok((vec![2, 0], 0)));
        assert_eq!(
            wanted(&plain, 2, None),
            Err("labels: found class 2, but the head has 2 classes, 0 to 1".into())
        );
        let named = Labels::Classes {
            ids: vec![0, 1],
            names: Some(strings(&["Neg", "very pos"])),
        };
        assert_eq!(
            wanted(&named, 2, Some(&["neg", "very_pos"])),
            Ok((vec![0, 1], 0))
        );
        assert_eq!(
            wanted(&named, 2, Some(&["very-pos", "neg"])),
            Ok((vec![1, 0], 1))
        );
        assert_eq!(
            wanted(&named, 2, Some(&["bad", "good"])),
            Ok((vec![0, 1], 1))
        );
        assert_eq!(wanted(&named, 2, None), Ok((vec![0, 1], 0)));
    }

    #[test]
    fn names_are_looked_up_in_the_model_or_sorted_if_all_are_there() {
        let labels = Labels::Names {
            ids: vec![1, 0, 1],
            names: strings(&["neg", "pos"]),
        };
        assert_eq!(
            wanted(&labels, 3, Some(&["POS", "neutral", "NEG"])),
            Ok((vec![0, 2, 0], 0))
        );
        assert!(
            wanted(&labels, 2, Some(&["good", "bad"]))
                .unwrap_err()
                .contains("`neg` is none of the model's classes, which are `good`, `bad`")
        );
        assert_eq!(wanted(&labels, 2, None), Ok((vec![1, 0, 1], 1)));
        assert!(
            wanted(&labels, 3, None)
                .unwrap_err()
                .contains("does not say which of its 3 classes")
        );
        let placeholders = Labels::Names {
            ids: vec![0],
            names: strings(&["LABEL_2"]),
        };
        assert_eq!(wanted(&placeholders, 3, None), Ok((vec![2], 0)));
        assert!(
            wanted(&Labels::Scores(vec![0.5]), 3, None)
                .unwrap_err()
                .contains("fractions, not classes")
        );
    }

    #[test]
    fn ties_go_to_the_first_class_and_classes_are_counted() {
        let logits = Vectors {
            width: 2,
            values: vec![1.0, 1.0, 0.0, 3.0, 2.0, 1.0],
        };
        let labels = Labels::Classes {
            ids: vec![0, 1, 1],
            names: None,
        };
        let found = Predictions::new(&logits, &labels, None).unwrap();
        assert_eq!(
            (found.given.clone(), found.hits()),
            (vec![0, 1, 0], vec![1.0, 1.0, 0.0])
        );
        let counts = found.by_class();
        assert_eq!(
            (
                counts[1].samples,
                counts[1].correct,
                counts[1].class.as_str()
            ),
            (2, 1, "1")
        );
    }
}
