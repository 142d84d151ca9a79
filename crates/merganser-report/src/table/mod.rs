//! The report as text for a terminal: aligned, without colour, within the width asked for.

mod layout;

use self::layout::{Table, wrap};
use crate::groups::{Group, bands, blocks, task_mean, tensors};
use crate::names::short_tensors;
use crate::summary::FULL;
use crate::text::{count, counted, decimal, percent, score, shorten, visible};
use crate::{Layer, Method, MethodKind, Pairwise, Relation, Report};

/// The widest table there is: lines longer than this are hard to follow.
const WIDEST: usize = 100;
/// The narrowest, for terminals that say they have no width.
const NARROWEST: usize = 40;
/// Networks of up to so many tensors are shown tensor by tensor.
const FEW: usize = 12;
/// Deeper networks are shown in bands of blocks, more tasks by the worst of them.
const MOST_ROWS: usize = 24;

impl Report {
    /// The report as aligned text of at most `width` columns (40 to 100).
    ///
    /// Control characters in names are shown as `�`, so that no name can move the cursor.
    pub fn to_table(&self, width: usize) -> String {
        let report = self.completed();
        let width = width.clamp(NARROWEST, WIDEST);
        let sections = [
            head(&report, width),
            methods(&report, width),
            layers(&report, width),
            tasks(&report, width),
            pairs(&report, width),
            words(&report, width),
        ];
        let sections: Vec<String> = sections.into_iter().filter(|it| !it.is_empty()).collect();
        sections.join("\n")
    }
}

fn head(report: &Report, width: usize) -> String {
    let mut facts = Vec::new();
    if !report.provenance.version.is_empty() {
        facts.push(format!("merganser {}", report.provenance.version));
    }
    facts.extend(
        report
            .provenance
            .base
            .iter()
            .map(|base| format!("base {base}")),
    );
    facts.push(counted(report.tasks.len(), "task"));
    let groups = blocks(&report.layers).len();
    let layers = counted(report.layers.len(), "tensor");
    facts.push(format!("{layers} in {}", counted(groups, "block")));
    let title = if report.title.is_empty() {
        "Merge report"
    } else {
        &report.title
    };
    let mut text = format!("{}\n", shorten(&visible(title), width));
    text.push_str(&wrap(&facts.join(" · "), width, ""));
    text
}

fn methods(report: &Report, width: usize) -> String {
    if report.methods.is_empty() {
        return String::new();
    }
    let full = report.methods.iter().find(|method| method.name == FULL);
    let full = full.and_then(|method| method.captured);
    let evaluated = report
        .methods
        .iter()
        .any(|method| method.accuracy.is_some());
    let mut order: Vec<&Method> = report.methods.iter().collect();
    let value = |method: &Method| method.captured.unwrap_or(f64::NEG_INFINITY);
    order.sort_by(|a, b| value(b).total_cmp(&value(a)));
    let at_output = report.methods.iter().any(|method| method.output.is_some());
    let mut head = vec!["METHOD", "", "captured", "below full", ""];
    if at_output {
        head.push("at the output");
    }
    if evaluated {
        head.extend(["accuracy", "of fine-tuned"]);
    }
    let mut table = Table::new(&head);
    // The bar gives way first, then the distance to the bound.
    table.optional = vec![4, 3, if at_output { 7 } else { 6 }];
    table.left = vec![1, 4];
    for method in order {
        let chosen = report.chosen.as_ref() == Some(&method.name);
        let gap = full.zip(method.captured).map(|(full, own)| full - own);
        let mut row = vec![
            format!("{} {}", if chosen { "▸" } else { " " }, method.name),
            match method.kind {
                MethodKind::Basis => "basis".to_owned(),
                MethodKind::Merge => "merge".to_owned(),
            },
            percent(method.captured),
            percent(gap),
            bar(method.captured, 20),
        ];
        if at_output {
            row.push(percent(method.output));
        }
        if evaluated {
            let accuracy = method.accuracy.clone().unwrap_or_default();
            row.extend([score(accuracy.average), score(accuracy.normalised)]);
        }
        table.rows.push(row);
    }
    let mut text = table.write(width);
    if let Some(evaluation) = &report.evaluation {
        let known = [
            ("base", &evaluation.base),
            ("fine-tuned models", &evaluation.individual),
        ];
        let known: Vec<String> = known
            .iter()
            .filter_map(|(name, accuracy)| {
                let average = accuracy.as_ref()?.average;
                average.value.map(|_| format!("{name} {}", score(average)))
            })
            .collect();
        if !known.is_empty() {
            text.push_str(&wrap(
                &format!("accuracy: {}", known.join(", ")),
                width,
                "  ",
            ));
        }
    }
    let correlations = [
        ("", report.spearman, report.captured_and_accuracy().len()),
        (
            " at the output",
            report.spearman_output,
            report.output_and_accuracy().len(),
        ),
    ];
    for (place, coefficient, methods) in correlations {
        if coefficient.is_some() {
            text.push_str(&wrap(
                &format!(
                    "captured energy{place} against accuracy: Spearman {} over {methods} methods",
                    decimal(coefficient)
                ),
                width,
                "  ",
            ));
        }
    }
    text
}

/// A bar of `length` columns for 1, in eighths.
fn bar(value: Option<f64>, length: usize) -> String {
    let Some(value) = value else {
        return String::new();
    };
    if value < 0.0 {
        return "◂ worse than base".to_owned();
    }
    let eighths = (value.min(1.0) * 8.0 * length as f64).round() as usize;
    let mut bar = "█".repeat(eighths / 8);
    bar.extend(['▏', '▎', '▍', '▌', '▋', '▊', '▉'].get((eighths % 8).wrapping_sub(1)));
    bar
}

fn layers(report: &Report, width: usize) -> String {
    if report.layers.is_empty() {
        return String::new();
    }
    let groups = blocks(&report.layers);
    let by_tensor = report.layers.len() <= FEW || groups.len() < 2;
    let (title, groups): (&str, Vec<Group>) = if by_tensor {
        let mut each = tensors(&report.layers);
        if groups.len() < 2 {
            for (group, name) in each.iter_mut().zip(short_tensors(&report.layers)) {
                group.name = name;
            }
        }
        ("TENSOR", each)
    } else {
        ("BLOCK", bands(&report.layers, MOST_ROWS))
    };
    // The chosen method and the bound, then the others in their order while there is room.
    let mut order: Vec<&str> = report.chosen.iter().map(String::as_str).collect();
    let others = report.methods.iter().map(|method| method.name.as_str());
    for name in others.clone().filter(|name| *name == FULL).chain(others) {
        if !order.contains(&name) {
            order.push(name);
        }
    }
    let mut head = vec![title, "energy", "conflict"];
    head.extend(&order);
    let mut table = Table::new(&head);
    table.optional = (4..head.len()).rev().collect();
    for group in groups {
        let mut row = vec![group.name, percent(group.share), percent(group.conflict)];
        row.extend(
            order
                .iter()
                .map(|name| percent(group.captured.get(*name).copied())),
        );
        table.rows.push(row);
    }
    table.write(width)
}

fn tasks(report: &Report, width: usize) -> String {
    if report.tasks.is_empty() {
        return String::new();
    }
    let layers: Vec<&Layer> = report.layers.iter().collect();
    let chosen = report
        .methods
        .iter()
        .find(|it| report.chosen.as_ref() == Some(&it.name));
    let evaluation = report.evaluation.as_ref();
    let accuracies = [
        ("base", evaluation.and_then(|it| it.base.as_ref())),
        ("merged", chosen.and_then(|it| it.accuracy.as_ref())),
        (
            "fine-tuned",
            evaluation.and_then(|it| it.individual.as_ref()),
        ),
    ];
    let accuracies: Vec<_> = accuracies
        .into_iter()
        .filter_map(|(name, accuracy)| Some((name, accuracy?)))
        .collect();
    let mut head = vec!["TASK", "samples", "tokens", "captured"];
    head.extend(accuracies.iter().map(|(name, _)| *name));
    let mut table = Table::new(&head);
    table.optional = vec![2, 1];
    let mut order: Vec<usize> = (0..report.tasks.len()).collect();
    if order.len() > MOST_ROWS {
        let captured = |task: usize| task_mean(&layers, task).unwrap_or(f64::INFINITY);
        order.sort_by(|&a, &b| captured(a).total_cmp(&captured(b)));
        order.truncate(MOST_ROWS);
    }
    for &k in &order {
        let task = &report.tasks[k];
        let known = |value: Option<u64>| value.map_or_else(|| "–".to_owned(), count);
        let mut row = vec![
            task.name.clone(),
            known(task.samples),
            known(task.tokens),
            percent(task_mean(&layers, k)),
        ];
        row.extend(accuracies.iter().map(|(_, accuracy)| {
            let score = accuracy.tasks.get(k);
            percent(score.and_then(|score| score.value))
        }));
        table.rows.push(row);
    }
    let mut text = table.write(width);
    if order.len() < report.tasks.len() {
        let (shown, all) = (order.len(), report.tasks.len());
        text.push_str(&format!(
            "(the {shown} of {all} tasks of which least is captured)\n"
        ));
    }
    text
}

/// Matrices of few tasks in whole, of many as their extreme pairs.
fn pairs(report: &Report, width: usize) -> String {
    let names: Vec<&str> = report.tasks.iter().map(|task| task.name.as_str()).collect();
    if names.len() < 2 {
        return String::new();
    }
    let mut sections = Vec::new();
    for matrix in &report.pairwise {
        let title = matrix.title.to_uppercase();
        if names.len() > 8 {
            sections.push(extremes(matrix, &title, &names, width));
            continue;
        }
        let mut head = vec![title.as_str()];
        let short: Vec<String> = names.iter().map(|name| shorten(name, 10)).collect();
        head.extend(short.iter().map(String::as_str));
        let mut table = Table::new(&head);
        for (row, name) in matrix.values.iter().zip(&names) {
            let mut cells = vec![(*name).to_owned()];
            cells.extend(row.iter().map(|value| decimal(*value)));
            table.rows.push(cells);
        }
        sections.push(table.write(width));
    }
    sections.join("\n")
}

/// The five pairs of tasks that are most at odds.
fn extremes(matrix: &Pairwise, title: &str, names: &[&str], width: usize) -> String {
    let mut pairs = Vec::new();
    for (s, row) in matrix.values.iter().enumerate() {
        for (t, value) in row.iter().enumerate().skip(s + 1) {
            pairs.extend(value.map(|value| (value, s, t)));
        }
    }
    pairs.sort_by(|a, b| match matrix.relation {
        Relation::Cosine => a.0.total_cmp(&b.0),
        Relation::Conflict => b.0.total_cmp(&a.0),
    });
    let words = match matrix.relation {
        Relation::Cosine => "least alike",
        Relation::Conflict => "most at odds",
    };
    let mut table = Table::new(&[&format!("{title}, {words}"), ""]);
    for (value, s, t) in pairs.into_iter().take(5) {
        let names = format!("{} – {}", names[s], names[t]);
        table.rows.push(vec![names, decimal(Some(value))]);
    }
    table.write(width)
}

fn words(report: &Report, width: usize) -> String {
    let mut text = String::new();
    if let Some(suggestion) = &report.suggestion {
        let words = format!("suggested: {}. {}", suggestion.method, suggestion.reason);
        text.push_str(&wrap(&words, width, "  "));
    }
    if !report.fallbacks.is_empty() {
        let tensors = counted(report.fallbacks.len(), "tensor");
        let names = report.fallbacks.iter().map(|it| it.name.as_str());
        let names: Vec<&str> = names.take(3).collect();
        let more = if report.fallbacks.len() > 3 {
            ", …"
        } else {
            ""
        };
        let words = format!(
            "{tensors} without moments, merged by the prior: {}{more}",
            names.join(", ")
        );
        text.push_str(&wrap(&words, width, "  "));
    }
    for warning in &report.warnings {
        text.push_str(&wrap(&format!("warning: {warning}"), width, "  "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_have_eighths() {
        assert_eq!(bar(Some(0.5), 4), "██");
        assert_eq!(bar(Some(0.53), 4), "██▏");
        assert_eq!(bar(Some(7.0), 2), "██");
        assert_eq!(bar(Some(0.0), 2), "");
        assert_eq!(bar(None, 2), "");
    }
}
