//! What `merganser inspect --spectra --alignment` shows of the matrices of task vectors: tables by kind, plots, JSON.

use merganser::run::spectra::MatrixSpectra;
use serde_json::{Value, json};

use crate::table::table;

/// What a merged model's task vector is called, which is the last.
pub(super) const MERGED: &str = "merged";

/// Columns of a plot.
const WIDTH: usize = 32;

/// Heights of a plot's columns, from low to high.
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Orders of magnitude that a plot spans.
const DECADES: f64 = 4.0;

/// What was found, and what it is called.
pub(super) struct Spectra<'a> {
    pub(super) matrices: &'a [MatrixSpectra],
    /// By task vector.
    pub(super) labels: Vec<String>,
    /// What the alignment is with.
    pub(super) merged: String,
}

impl Spectra<'_> {
    /// Tables by kind of matrix, then, for matrices whose name contains `filter`, by matrix; then plots by kind.
    pub(super) fn text(&self, filter: Option<&str>) -> String {
        if self.matrices.is_empty() {
            return "\nno matrix of a layer is in all models\n".into();
        }
        let kinds = self.kinds();
        let all: Vec<&MatrixSpectra> = self.matrices.iter().collect();
        let mut rows = vec![self.head("kind of matrix (means)")];
        rows.extend(kinds.iter().map(|(kind, group)| self.row(kind, group)));
        rows.push(self.row("all", &all));
        let mut text = format!("\n{}", table(&rows));
        if let Some(filter) = filter {
            let mut rows = vec![self.head("matrix")];
            let chosen = self.matrices.iter().filter(|m| m.name.contains(filter));
            rows.extend(chosen.map(|matrix| self.row(&matrix.name, &[matrix])));
            text.push_str(&format!("\n{}", table(&rows)));
        }
        if self.with_alignment() {
            text.push_str(&format!(
                "\naligned: share of the norm of a task vector in the leading space of {}, in k directions\n",
                self.merged
            ));
        }
        if self.with_values() {
            text.push_str(&format!(
                "\nspectra: singular values over the largest, from 1 down to 1e-{DECADES} on a logarithmic scale\n\n"
            ));
            let mut rows = Vec::new();
            for (kind, group) in &kinds {
                for (t, label) in self.labels.iter().enumerate() {
                    rows.push(vec![format!("{kind} {label}"), plot(group, t)]);
                }
            }
            text.push_str(&table(&rows));
        }
        text
    }

    /// All numbers, of matrices whose name contains `filter`.
    pub(super) fn json(&self, filter: Option<&str>) -> Value {
        let chosen = self
            .matrices
            .iter()
            .filter(|matrix| filter.is_none_or(|filter| matrix.name.contains(filter)));
        let matrices: Vec<Value> = chosen
            .map(|matrix| {
                let mut object = json!({ "name": matrix.name, "shape": matrix.shape });
                if self.with_values() {
                    object["stable_rank"] = json!(matrix.stable_ranks);
                    object["singular_values"] = json!(matrix.values);
                }
                if self.with_alignment() {
                    object["space"] = json!(matrix.space);
                    object["alignment"] = json!(matrix.alignment);
                }
                object
            })
            .collect();
        let kinds: Vec<Value> = self
            .kinds()
            .into_iter()
            .map(|(kind, group)| {
                let mut object = self.means(&group);
                object["kind"] = kind.into();
                object
            })
            .collect();
        let all: Vec<&MatrixSpectra> = self.matrices.iter().collect();
        json!({
            "task_vectors": self.labels,
            "merged": self.with_alignment().then_some(&self.merged),
            "matrices": matrices,
            "kinds": kinds,
            "all": self.means(&all),
        })
    }

    fn means(&self, group: &[&MatrixSpectra]) -> Value {
        let tasks = 0..self.labels.len();
        let mut object = json!({ "matrices": group.len() });
        if self.with_values() {
            let ranks = tasks.clone().map(|t| mean(stable_ranks(group, t)));
            object["stable_rank"] = ranks.collect();
        }
        if self.with_alignment() {
            object["alignment"] = tasks.map(|t| mean(alignments(group, t))).collect();
            object["space"] = json!(mean(spaces(group)));
        }
        object
    }

    fn with_values(&self) -> bool {
        self.matrices.iter().any(|m| !m.values.is_empty())
    }

    fn with_alignment(&self) -> bool {
        self.matrices.iter().any(|m| m.space.is_some())
    }

    /// The task vectors without the merged model's.
    fn tasks(&self) -> &[String] {
        match self.labels.split_last() {
            Some((last, tasks)) if last == MERGED => tasks,
            _ => &self.labels,
        }
    }

    /// The matrices by kind, in the order of the first of each.
    fn kinds(&self) -> Vec<(&str, Vec<&MatrixSpectra>)> {
        let mut kinds: Vec<(&str, Vec<&MatrixSpectra>)> = Vec::new();
        for matrix in self.matrices {
            match kinds.iter_mut().find(|(kind, _)| *kind == matrix.kind()) {
                Some((_, group)) => group.push(matrix),
                None => kinds.push((matrix.kind(), vec![matrix])),
            }
        }
        kinds
    }

    fn head(&self, title: &str) -> Vec<String> {
        let mut head = vec![title.to_owned(), "matrices".to_owned()];
        if self.with_values() {
            head.extend(
                self.labels
                    .iter()
                    .map(|label| format!("stable rank {label}")),
            );
        }
        if self.with_alignment() {
            head.extend(self.labels.iter().map(|label| format!("aligned {label}")));
            head.push("k".to_owned());
        }
        head
    }

    fn row(&self, name: &str, group: &[&MatrixSpectra]) -> Vec<String> {
        let shown = |x: Option<f64>, digits: usize| {
            x.map_or_else(|| "-".to_owned(), |x| format!("{x:.digits$}"))
        };
        let mut row = vec![name.to_owned(), group.len().to_string()];
        let tasks = 0..self.labels.len();
        if self.with_values() {
            row.extend(
                tasks
                    .clone()
                    .map(|t| shown(mean(stable_ranks(group, t)), 2)),
            );
        }
        if self.with_alignment() {
            let tasks = 0..self.tasks().len();
            row.extend(tasks.map(|t| shown(mean(alignments(group, t)), 3)));
            row.push(shown(mean(spaces(group)), 1));
        }
        row
    }
}

fn stable_ranks(group: &[&MatrixSpectra], t: usize) -> impl Iterator<Item = f64> {
    group.iter().filter_map(move |m| *m.stable_ranks.get(t)?)
}

fn alignments(group: &[&MatrixSpectra], t: usize) -> impl Iterator<Item = f64> {
    group.iter().filter_map(move |m| *m.alignment.get(t)?)
}

fn spaces(group: &[&MatrixSpectra]) -> impl Iterator<Item = f64> {
    group.iter().filter_map(|m| m.space.map(|k| k as f64))
}

/// The mean of those that are defined.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0_u32), |(sum, count), x| (sum + x, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

/// The singular values of a task vector over its largest, averaged over matrices: one character for each part of their
/// indices, a space for what is below the scale.
fn plot(group: &[&MatrixSpectra], t: usize) -> String {
    let at = |matrix: &MatrixSpectra, column: usize| -> Option<f64> {
        let values = matrix.values.get(t)?;
        let index = column * matrix.shape[0].min(matrix.shape[1]) / WIDTH;
        Some(values.get(index).copied().unwrap_or(0.0) / values.first()?)
    };
    let text: String = (0..WIDTH)
        .map(|column| {
            let x = mean(group.iter().filter_map(|m| at(m, column))).unwrap_or(0.0);
            let height = (1.0 + x.log10() / DECADES) * HEIGHTS.len() as f64;
            if height > 0.0 {
                HEIGHTS[(height as usize).min(HEIGHTS.len() - 1)]
            } else {
                ' '
            }
        })
        .collect();
    // Trailing spaces are part of a plot.
    format!("|{text}|")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(values: Vec<f64>) -> MatrixSpectra {
        MatrixSpectra {
            name: "model.layers.0.q.weight".into(),
            shape: [4, 6],
            stable_ranks: vec![Some(1.5)],
            values: vec![values],
            space: Some(2),
            alignment: vec![None],
        }
    }

    #[test]
    fn plots_fall_with_the_values() {
        let (a, b) = (matrix(vec![2.0, 0.2, 2e-5]), matrix(vec![1.0, 0.1, 1e-5]));
        let quarter = |c: char| c.to_string().repeat(WIDTH / 4);
        let expected = ['█', '▇', ' ', ' '].map(quarter).concat();
        assert_eq!(plot(&[&a, &b], 0), format!("|{expected}|"));
        let empty = " ".repeat(WIDTH);
        assert_eq!(plot(&[&matrix(Vec::new())], 0), format!("|{empty}|"));
    }

    #[test]
    fn undefined_numbers_do_not_count() {
        assert_eq!(mean([1.0, 3.0].into_iter()), Some(2.0));
        assert_eq!(mean(std::iter::empty()), None);
        let matrices = [matrix(vec![1.0])];
        let found = Spectra {
            matrices: &matrices,
            labels: vec!["[1]".into()],
            merged: "the sum".into(),
        };
        let text = found.text(None);
        assert!(text.contains("q.weight") && text.contains("1.50"), "{text}");
        assert_eq!(found.json(None)["all"]["alignment"], json!([null]));
    }
}
