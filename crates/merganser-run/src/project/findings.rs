//! What a calibrated merge found out, as a report.

use std::collections::BTreeMap;

use merganser_plan::Role;
use merganser_projection::network::{self, LayerKind};
use merganser_report::{
    Fallback, Layer, Method, MethodKind, Pairwise, Provenance, Relation, Report, Suggestion, Task,
};

use super::Projection;
use super::rivals;
use super::samples::TaskData;

/// What the recipe's own merge is called in a report.
pub const OWN: &str = "this merge";

pub(crate) fn report(
    projection: &Projection<'_>,
    data: &[TaskData],
    found: Vec<network::Layer>,
    (title, recipe): (&str, &str),
) -> Report {
    let plan = projection.plan;
    let method = projection.calibrated.info.name;
    // Bases and other methods are measured on matrices alone: a comparison over the network is one over these.
    let compared = found.iter().any(|layer| !layer.measured.is_empty());
    let found: Vec<network::Layer> = found
        .into_iter()
        .filter(|layer| !compared || layer.kind == LayerKind::Linear)
        .collect();
    let names = short(data.iter().map(|task| task.name.as_str()));
    let tasks = data
        .iter()
        .zip(&names)
        .map(|(data, name)| Task {
            name: name.clone(),
            model: Some(data.name.clone()),
            samples: data.samples.map(|n| n as u64),
            tokens: data.tokens,
            weight: Some(data.weight),
        })
        .collect();
    let bases: Vec<String> = rivals::bases()
        .iter()
        .map(|p| p.basis.to_string())
        .collect();
    let mut methods = vec![Method {
        note: Some(format!("{method}, as the recipe says")),
        ..Method::new(OWN, MethodKind::Merge)
    }];
    for name in found
        .iter()
        .flat_map(|layer| layer.measured.iter().map(|(name, _)| name))
    {
        if !methods.iter().any(|known| &known.name == name) {
            let kind = if bases.contains(name) {
                MethodKind::Basis
            } else {
                MethodKind::Merge
            };
            methods.push(Method::new(name.clone(), kind));
        }
    }
    let pairwise = pairwise(&found, data.len());
    let suggestion = compared.then(|| suggestion(&found, &bases)).flatten();
    let covered: std::collections::BTreeSet<&str> =
        found.iter().map(|layer| layer.tensor.as_str()).collect();
    let fallbacks = plan
        .tensors()
        .filter(|output| {
            !covered.contains(output.name.as_str()) && !projection.claims(&output.name)
        })
        .map(|output| Fallback {
            name: output.name.clone(),
            method: plan.method.info().name.to_owned(),
            reason: None,
        })
        .collect();
    let mut warnings: Vec<String> = plan.warnings.iter().map(|w| w.message.clone()).collect();
    for data in data {
        warnings.extend(
            data.notes
                .iter()
                .map(|note| format!("{}: {note}", data.name)),
        );
    }
    let settings = projection.calibrated.settings.shared.iter();
    Report {
        title: title.to_owned(),
        recipe: Some(recipe.to_owned()),
        provenance: Provenance {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            base: plan.base.map(|base| plan.models[base].label.clone()),
            seed: Some(plan.seed),
            date: None,
            settings: settings
                .map(|(name, value)| ((*name).to_owned(), value.to_string()))
                .collect(),
        },
        tasks,
        methods,
        chosen: Some(OWN.to_owned()),
        layers: found.into_iter().map(layer).collect(),
        pairwise,
        suggestion,
        fallbacks,
        warnings,
        ..Report::default()
    }
}

fn layer(found: network::Layer) -> Layer {
    let mut captured: BTreeMap<String, Option<f64>> = found
        .measured
        .iter()
        .map(|(name, captured)| (name.clone(), Some(captured.fraction)))
        .collect();
    captured.insert(OWN.to_owned(), Some(found.captured.fraction));
    let block = match Role::of(&found.tensor) {
        Role::Layer { stack, index, .. } => format!("{stack}.{index}"),
        Role::Pre | Role::Post => found.stage,
    };
    Layer {
        name: found.tensor,
        block,
        kind: match found.kind {
            LayerKind::Linear => merganser_report::LayerKind::Linear,
            LayerKind::Norm => merganser_report::LayerKind::Norm,
            LayerKind::Embedding => merganser_report::LayerKind::Embedding,
            LayerKind::Additive => merganser_report::LayerKind::Additive,
        },
        shape: found.shape,
        energy: Some(found.captured.energy),
        energy_by_task: found
            .captured
            .tasks
            .iter()
            .map(|task| Some(task.energy))
            .collect(),
        captured,
        captured_by_task: found
            .captured
            .tasks
            .iter()
            .map(|task| Some(task.fraction))
            .collect(),
        conflict: None,
        ridge: found.ridge,
        basis: Some(found.basis),
        notes: found.notes,
    }
}

/// How the tasks lie to each other over all matrices.
fn pairwise(found: &[network::Layer], tasks: usize) -> Vec<Pairwise> {
    let mut sum: Option<network::Pairs> = None;
    for pairs in found.iter().filter_map(|layer| layer.pairs.as_ref()) {
        match &mut sum {
            Some(sum) => sum.add(pairs),
            None => sum = Some(pairs.clone()),
        }
    }
    let Some(sum) = sum else {
        return Vec::new();
    };
    let matrix = |title: &str, relation, note: &str, of: &dyn Fn(usize, usize) -> Option<f64>| {
        let row = |s: usize| (0..tasks).map(|t| of(s, t)).collect();
        Pairwise {
            title: title.to_owned(),
            relation,
            values: (0..tasks).map(row).collect(),
            note: Some(note.to_owned()),
        }
    };
    vec![
        matrix(
            "residual outputs",
            Relation::Cosine,
            "What two fine-tunes change in the outputs of the matrices, on the samples of all tasks.",
            &|s, t| sum.output_cosine(s, t),
        ),
        matrix(
            "task vectors",
            Relation::Cosine,
            "What two fine-tunes change in the matrices themselves.",
            &|s, t| sum.weight_cosine(s, t),
        ),
        matrix(
            "opposite signs",
            Relation::Conflict,
            "Share of opposite directions among the elements that both fine-tunes change.",
            &|s, t| sum.conflict(s, t),
        ),
    ]
}

/// Captured energy that a cheaper basis may give away and still be suggested.
const SLACK: f64 = 0.02;

/// The first basis, cheapest first, that captures over the network what the last one does, but for a little.
fn suggestion(found: &[network::Layer], bases: &[String]) -> Option<Suggestion> {
    let over_network = |basis: &String| -> Option<f64> {
        let (mut left, mut energy) = (0.0, 0.0);
        for layer in found {
            let (_, captured) = layer.measured.iter().find(|(name, _)| name == basis)?;
            left += captured.objective;
            energy += captured.energy;
        }
        (energy > 0.0).then(|| 1.0 - left / energy)
    };
    let best = over_network(bases.last()?)?;
    let (basis, captured) = bases
        .iter()
        .filter_map(|basis| Some((basis, over_network(basis)?)))
        .find(|(_, captured)| *captured >= best - SLACK)?;
    Some(Suggestion {
        method: basis.clone(),
        reason: format!(
            "{basis} captures {:.1} % of the energy where any merge could capture {:.1} %; no cheaper basis comes within {:.0} points. \
             Set `basis: {basis}` and keep `sequential: true`, which solves each layer for what the merged layers before it give.",
            100.0 * captured,
            100.0 * best,
            100.0 * SLACK
        ),
    })
}

/// The last parts of paths, where they tell the models apart.
fn short<'a>(labels: impl Iterator<Item = &'a str>) -> Vec<String> {
    let labels: Vec<&str> = labels.collect();
    let last: Vec<String> = labels
        .iter()
        .map(|label| {
            label
                .trim_end_matches('/')
                .rsplit('/')
                .next()
                .unwrap_or(label)
                .to_owned()
        })
        .collect();
    let distinct: std::collections::BTreeSet<&String> = last.iter().collect();
    if distinct.len() == last.len() {
        last
    } else {
        labels.into_iter().map(str::to_owned).collect()
    }
}
