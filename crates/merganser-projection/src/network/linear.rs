//! Matrices that share an input, in the walk: one Gram for all, a question for each.

use merganser_model::{Linear, Op, Tap, TapKind, Weights};

use super::evidence::{Inputs, Targets};
use super::layer::Sides;
use super::matrix::Asked;
use super::walk::StageWalk;
use super::{Layer, NetworkError, Rule, Stream};
use crate::Ridge;

/// Merges the matrices of `ops`, which share an input, and puts them into the student.
pub(super) fn merge(
    walk: &mut StageWalk<'_>,
    ops: &[&Op],
    sides: &[Sides],
) -> Result<Vec<Layer>, NetworkError> {
    let taps: Vec<(&Op, Tap<'_>, &Linear)> = ops
        .iter()
        .filter_map(|op| {
            let tap = op.parameters()?;
            match tap.kind {
                TapKind::Linear(linear) => Some((*op, tap, linear)),
                _ => None,
            }
        })
        .collect();
    let Some((_, first, linear)) = taps.first() else {
        return Ok(Vec::new());
    };
    let auto = walk
        .settings
        .measured
        .iter()
        .any(|p| p.ridge == Ridge::Auto)
        || taps
            .iter()
            .any(|(_, tap, _)| chooses_ridge(&walk.host.rule(tap.weight)));
    let mut inputs = Vec::with_capacity(sides.len());
    for (sides, teacher) in sides.iter().zip(walk.teachers) {
        let taken = Inputs::of(sides, linear.inputs, auto);
        inputs.push(taken.map_err(|failure| failure.of(&teacher.name, first.weight))?);
    }
    let mut layers = Vec::with_capacity(taps.len());
    for (op, tap, linear) in taps {
        let mut targets = Vec::new();
        if walk.settings.stream == Stream::Merged {
            for (t, sides) in sides.iter().enumerate() {
                let base = |batch: usize| linear.apply(&sides.rows[batch], &walk.base);
                let rows = walk.targets(t, op.output(), op.residual, base)?;
                let size = (linear.outputs, linear.inputs);
                let taken = Targets::of(&rows, &sides.rows, size, auto);
                targets
                    .push(taken.map_err(|failure| failure.of(&walk.teachers[t].name, tap.weight))?);
            }
        }
        let asked = Asked {
            host: walk.host,
            settings: walk.settings,
            base: &walk.base,
            tuned: walk
                .teachers
                .iter()
                .zip(&walk.taught)
                .map(|(teacher, weights)| {
                    (
                        teacher.name.as_str(),
                        teacher.weight,
                        weights as &dyn Weights,
                    )
                })
                .collect(),
            linear,
            inputs: &inputs,
            targets,
            stage: (&walk.stage.name, walk.stage.layer),
        };
        let merged = asked.merge()?;
        for (name, tensor) in merged.stored {
            walk.student.insert(&name, tensor);
        }
        layers.push(merged.layer);
    }
    Ok(layers)
}

fn chooses_ridge(rule: &Rule) -> bool {
    matches!(rule, Rule::Programme(p) | Rule::Sparse { programme: p, .. } if p.ridge == Ridge::Auto)
}
