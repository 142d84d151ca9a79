//! What follows from the figures of single layers: averages over blocks, tasks and the network.
//!
//! Captured energies are averaged with the energies as weights, `Σ E_l c_l / Σ E_l`: the average of
//! a group is then the captured energy of the group taken as one layer. Layers that lack either
//! figure do not count.

use std::collections::{BTreeMap, BTreeSet};

use crate::groups::weighted_mean;
use crate::statistics::{finite, spearman};
use crate::{Accuracy, Evaluation, Layer, Method, MethodKind, Report, Score};

/// The name of the basis of every matrix, whose captured energy is the best possible.
pub(crate) const FULL: &str = "full";

impl Report {
    /// The report with everything filled that follows from the rest, as all readings show it.
    ///
    /// Values that are not finite become `None`; methods that only layers name are appended;
    /// figures over the network, conflicts, normalised accuracies, the rank correlation and the
    /// chosen method are worked out where they are `None`; lists by task get one entry per task. What
    /// does not fit together is named in [`warnings`](Self::warnings). Completing twice is the
    /// same as once.
    #[must_use]
    pub fn completed(&self) -> Self {
        let mut report = self.clone();
        let mut warnings = Vec::new();
        report.check_layers(&mut warnings);
        report.check_scores(&mut warnings);
        report.find_methods(&mut warnings);
        report.find_chosen(&mut warnings);
        for task in &mut report.tasks {
            task.weight = finite(task.weight);
        }
        for matrix in &mut report.pairwise {
            fit(&mut matrix.values, self.tasks.len());
            for row in &mut matrix.values {
                clean(row);
                fit(row, self.tasks.len());
            }
        }
        report.spearman =
            finite(report.spearman).or_else(|| spearman(&report.captured_and_accuracy()));
        report.spearman_output =
            finite(report.spearman_output).or_else(|| spearman(&report.output_and_accuracy()));
        for warning in warnings {
            if !report.warnings.contains(&warning) {
                report.warnings.push(warning);
            }
        }
        report
    }

    /// The pairs of captured energy and mean accuracy of all methods that have both.
    pub(crate) fn captured_and_accuracy(&self) -> Vec<(f64, f64)> {
        let pair = |method: &Method| Some((method.captured?, average(method)?));
        self.methods.iter().filter_map(pair).collect()
    }

    /// The pairs of captured energy at the output and mean accuracy of all methods that have both.
    pub(crate) fn output_and_accuracy(&self) -> Vec<(f64, f64)> {
        let pair = |method: &Method| Some((method.output?, average(method)?));
        self.methods.iter().filter_map(pair).collect()
    }

    fn check_layers(&mut self, warnings: &mut Vec<String>) {
        let count = self.tasks.len();
        for layer in &mut self.layers {
            for values in [&mut layer.energy_by_task, &mut layer.captured_by_task] {
                if !values.is_empty() && values.len() != count {
                    warnings.push(format!(
                        "{}: {} values by task for {count} tasks",
                        layer.name,
                        values.len()
                    ));
                }
                clean(values);
                fit(values, count);
            }
            layer.energy = finite(layer.energy).filter(|&energy| energy >= 0.0);
            layer.ridge = finite(layer.ridge);
            for value in layer.captured.values_mut() {
                *value = finite(*value);
            }
            let full = layer.captured.get(FULL).copied().flatten();
            layer.conflict = finite(layer.conflict).or(full.map(|full| 1.0 - full));
        }
    }

    fn check_scores(&mut self, warnings: &mut Vec<String>) {
        let count = self.tasks.len();
        let mut check = |who: &str, accuracy: &mut Accuracy| {
            if !accuracy.tasks.is_empty() && accuracy.tasks.len() != count {
                let found = accuracy.tasks.len();
                warnings.push(format!("{who}: {found} accuracies for {count} tasks"));
            }
            fit(&mut accuracy.tasks, count);
            let all = accuracy.tasks.iter_mut();
            for score in all.chain([&mut accuracy.average, &mut accuracy.normalised]) {
                clean_score(score);
            }
        };
        if let Some(Evaluation {
            base, individual, ..
        }) = &mut self.evaluation
        {
            if let Some(base) = base {
                check("base", base);
            }
            if let Some(individual) = individual {
                check("individual", individual);
            }
        }
        for method in &mut self.methods {
            if let Some(accuracy) = &mut method.accuracy {
                check(&method.name, accuracy);
            }
        }
        let Some(evaluation) = &mut self.evaluation else {
            return;
        };
        let Some(individual) = evaluation.individual.clone() else {
            return;
        };
        let methods = self.methods.iter_mut();
        let accuracies = methods.filter_map(|method| method.accuracy.as_mut());
        for accuracy in accuracies.chain(&mut evaluation.base) {
            if accuracy.normalised.value.is_none() {
                let pairs = accuracy.tasks.iter().zip(&individual.tasks);
                let relative: Vec<Score> = pairs
                    .map(|(score, reference)| score.relative_to(*reference))
                    .collect();
                accuracy.normalised = Score::mean(&relative);
            }
        }
    }

    fn find_methods(&mut self, warnings: &mut Vec<String>) {
        let listed: BTreeSet<&String> = self.methods.iter().map(|method| &method.name).collect();
        let named: BTreeSet<&String> = self
            .layers
            .iter()
            .flat_map(|layer| layer.captured.keys())
            .collect();
        let added: Vec<Method> = named
            .difference(&listed)
            .map(|&name| Method::new(name, MethodKind::Merge))
            .collect();
        self.methods.extend(added);
        let mut partial: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        for method in &mut self.methods {
            method.captured = finite(method.captured);
            method.output = finite(method.output);
            if method.captured.is_some() {
                continue;
            }
            let captured = |layer: &Layer| layer.captured.get(&method.name).copied().flatten();
            let layers = self.layers.iter();
            let measured = layers.clone().filter(|layer| captured(layer).is_some());
            let measured = measured.count();
            method.captured = weighted_mean(layers.map(|layer| (layer.energy, captured(layer))));
            if method.captured.is_some() && measured < self.layers.len() {
                partial.entry(measured).or_default().push(&method.name);
            }
        }
        for (measured, names) in partial {
            warnings.push(format!(
                "measured on {measured} of {} tensors only, which the figure over the network \
                 counts: {}",
                self.layers.len(),
                names.join(", ")
            ));
        }
    }

    fn find_chosen(&mut self, warnings: &mut Vec<String>) {
        let known = |name: &String| self.methods.iter().any(|method| &method.name == name);
        for name in self
            .chosen
            .iter()
            .chain(self.suggestion.iter().map(|it| &it.method))
        {
            if !known(name) {
                warnings.push(format!(
                    "{name} is chosen or suggested, but not among the methods"
                ));
            }
        }
        let chosen = self.chosen.clone().filter(known);
        let suggested = || self.suggestion.as_ref().map(|it| it.method.clone());
        let best = || {
            let methods = self.methods.iter().filter(|method| method.name != FULL);
            let measured = methods.filter_map(|method| Some((method.captured?, &method.name)));
            let best = measured.reduce(|best, next| if next.0 > best.0 { next } else { best });
            best.map(|(_, name)| name.clone())
        };
        self.chosen = chosen
            .or_else(|| suggested().filter(known))
            .or_else(best)
            .or_else(|| self.methods.first().map(|method| method.name.clone()));
    }
}

/// The mean accuracy of a method.
pub(crate) fn average(method: &Method) -> Option<f64> {
    method.accuracy.as_ref()?.average.value
}

fn clean(values: &mut [Option<f64>]) {
    for value in values {
        *value = finite(*value);
    }
}

fn clean_score(score: &mut Score) {
    let value = finite(score.value);
    *score = Score {
        value,
        low: finite(score.low).filter(|&low| value.is_some_and(|value| low <= value)),
        high: finite(score.high).filter(|&high| value.is_some_and(|value| value <= high)),
    };
}

/// One entry per task, or none at all.
fn fit<T: Clone + Default>(values: &mut Vec<T>, count: usize) {
    if !values.is_empty() {
        values.resize(count, T::default());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Task;

    fn layer(block: &str, energy: f64, captured: &[(&str, f64)]) -> Layer {
        Layer {
            name: format!("{block}.weight"),
            block: block.to_owned(),
            energy: Some(energy),
            captured: captured
                .iter()
                .map(|&(name, value)| (name.to_owned(), Some(value)))
                .collect(),
            ..Layer::default()
        }
    }

    #[test]
    fn the_network_is_weighted_by_energy() {
        let report = Report {
            layers: vec![
                layer("a", 3.0, &[("task", 0.8), ("full", 1.0)]),
                layer("b", 1.0, &[("task", 0.4), ("full", 0.6)]),
            ],
            ..Report::default()
        };
        let done = report.completed();
        let captured = |name: &str| {
            let mut methods = done.methods.iter();
            methods
                .find(|it| it.name == name)
                .unwrap()
                .captured
                .unwrap()
        };
        assert!((captured("task") - 0.7).abs() < 1e-12);
        assert!((captured("full") - 0.9).abs() < 1e-12);
        assert_eq!(done.chosen.as_deref(), Some("task"));
        assert_eq!(done.layers[1].conflict, Some(0.4));
        assert_eq!(done.completed(), done);
        let groups = crate::groups::blocks(&done.layers);
        assert_eq!(groups[0].share, Some(0.75));
    }

    #[test]
    fn what_is_not_finite_is_not_measured() {
        let report = Report {
            tasks: vec![Task::new("t")],
            layers: vec![Layer {
                captured_by_task: vec![Some(f64::NAN)],
                ..layer(
                    "a",
                    f64::INFINITY,
                    &[("task", f64::NAN), ("full", f64::NEG_INFINITY)],
                )
            }],
            ..Report::default()
        };
        let done = report.completed();
        assert_eq!(done.layers[0].energy, None);
        assert_eq!(done.layers[0].captured_by_task, [None]);
        assert_eq!(done.layers[0].conflict, None);
        assert!(done.methods.iter().all(|method| method.captured.is_none()));
    }

    #[test]
    fn what_does_not_fit_together_is_said() {
        let report = Report {
            tasks: vec![Task::new("t")],
            chosen: Some("nobody".into()),
            layers: vec![
                Layer {
                    captured_by_task: vec![Some(0.1), Some(0.2)],
                    ..layer("a", 1.0, &[("task", 0.5)])
                },
                layer("b", 1.0, &[]),
            ],
            ..Report::default()
        };
        let done = report.completed();
        assert_eq!(done.warnings.len(), 3, "{:?}", done.warnings);
        assert_eq!(done.layers[0].captured_by_task, [Some(0.1)]);
        assert_eq!(done.completed(), done);
    }
}
