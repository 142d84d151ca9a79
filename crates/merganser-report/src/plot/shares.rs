//! Where the energy of the network lies, and what becomes of it: a column per block, from the
//! bottom what the chosen merge captures, what a better basis would add, and what no merge can.

use super::{Positions, WIDE};
use crate::groups::Group;
use crate::svg::{Scale, Svg, nice, value_axis};
use crate::text::percent;

/// The plot. Positions without energy stay empty.
pub(crate) fn shares(positions: &Positions, chosen: Option<&str>) -> String {
    let groups = positions.groups;
    let (left, right) = (positions.left, positions.right());
    let (top, bottom) = (12.0, 192.0);
    let names = positions.names();
    let most = groups.iter().filter_map(|group| group.share);
    let y = Scale {
        domain: (0.0, nice(0.0, most.fold(1e-3, f64::max), 4).1),
        range: (bottom, top),
    };
    let mut svg = Svg::new(
        WIDE,
        bottom + names.height() + 4.0,
        "share of the residual energy in each block, and how much of it is captured",
    );
    let digits = usize::from(y.domain.1 < 0.05);
    let format = |value: f64| format!("{:.digits$}%", 100.0 * value);
    value_axis(&mut svg, &y, (left, right), true, format);
    svg.line((left, bottom), (right, bottom), "axis");
    let width = (0.78 * positions.spacing).min(54.0);
    let mut used = [false; 3];
    for (k, group) in groups.iter().enumerate() {
        let Some(share) = group.share else { continue };
        let mut from = 0.0;
        for (part, size) in parts(group, chosen).into_iter().enumerate() {
            let (class, words) = PARTS[part];
            let to = from + size * share;
            let height = y.at(from) - y.at(to);
            if size > 0.0 {
                used[part] = true;
                let tooltip = format!(
                    "{}: {} of the network's energy, {} of that {words}",
                    group.name,
                    percent(Some(share)),
                    percent(Some(size)),
                );
                let corner = (positions.middle(k) - width / 2.0, y.at(to));
                svg.rect(corner, (width, height), class, &tooltip);
            }
            from = to;
        }
    }
    names.draw(&mut svg, bottom, |k| positions.middle(k));
    // In the order in which the parts stand on each other, from the top.
    let mut place = top + 8.0;
    for (class, words) in (0..3)
        .rev()
        .filter(|&part| used[part])
        .map(|part| PARTS[part])
    {
        svg.rect((right + 13.0, place - 6.0), (12.0, 12.0), class, "");
        svg.text((right + 36.0, place + 4.0), "", words);
        place += 20.0;
    }
    svg.finish()
}

const PARTS: [(&str, &str); 3] = [
    ("kept", "captured"),
    ("open", "left to a better basis"),
    ("lost", "irreducible conflict"),
];

/// The parts of a group's energy; they add up to 1. Without the figure of `full` all that is not
/// captured counts as left to a better basis.
fn parts(group: &Group, chosen: Option<&str>) -> [f64; 3] {
    let conflict = group.conflict.unwrap_or(0.0).clamp(0.0, 1.0);
    let captured = chosen.and_then(|name| group.captured.get(name)).copied();
    let captured = captured.unwrap_or(0.0).clamp(0.0, 1.0);
    // Ridge and rounding may leave the sum a little above 1: the measured merge takes precedence.
    let conflict = conflict.min(1.0 - captured);
    [captured, (1.0 - captured - conflict).max(0.0), conflict]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(captured: Option<f64>, conflict: Option<f64>) -> Group {
        Group {
            name: "layers.0".into(),
            layers: 1,
            share: Some(0.5),
            captured: captured
                .map(|value| ("ours".to_owned(), value))
                .into_iter()
                .collect(),
            by_task: vec![],
            conflict,
        }
    }

    #[test]
    fn parts_add_up() {
        for captured in [
            None,
            Some(-2.0),
            Some(0.0),
            Some(0.7),
            Some(0.95),
            Some(1.2),
        ] {
            for conflict in [None, Some(-0.1), Some(0.0), Some(0.1), Some(3.0)] {
                let parts = parts(&group(captured, conflict), Some("ours"));
                assert!((parts.iter().sum::<f64>() - 1.0).abs() < 1e-12);
                assert!(parts.iter().all(|part| (0.0..=1.0).contains(part)));
            }
        }
        let found = parts(&group(Some(0.7), Some(0.1)), Some("ours"));
        assert!((found[1] - 0.2).abs() < 1e-12);
    }
}
