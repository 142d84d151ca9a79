//! Captured energy over depth: one line per method, named at its end.

use super::{Positions, Series, Towards, WIDE, almost_least, marker, overflow, spread};
use crate::groups::Group;
use crate::svg::{Path, Scale, Svg, nice, value_axis};
use crate::text::{percent, shorten, whole_percent};

/// No axis reaches below this. What lies beyond the axis is drawn as an arrow at the lower edge: one
/// layer that a merge ruins must not flatten all the others.
const FLOOR: f64 = -0.25;

/// Up to so many values beyond the axis are written next to their arrows.
const WRITTEN: usize = 6;

/// The plot, a line per method.
pub(crate) fn depth(positions: &Positions, series: &[Series]) -> String {
    let groups = positions.groups;
    let value = |group: &Group, it: &Series| group.captured.get(&it.name).copied();
    let all = || {
        groups
            .iter()
            .flat_map(|group| group.captured.values().copied())
    };
    let least = almost_least(all()).unwrap_or(0.0).clamp(FLOOR, 0.98);
    let y = Scale {
        domain: (nice(least, 1.0, 6).0.max(FLOOR), 1.0),
        range: (312.0, 12.0),
    };
    let (bottom, top) = y.range;
    let (left, right) = (positions.left, positions.right());
    let names = positions.names();
    let mut svg = Svg::new(
        WIDE,
        bottom + names.height() + 4.0,
        "captured energy of each method over the depth of the network",
    );
    value_axis(&mut svg, &y, (left, right), true, whole_percent);
    svg.line((left, bottom), (right, bottom), "axis");
    names.draw(&mut svg, bottom, |k| positions.middle(k));

    let beyond = all().filter(|&captured| captured < y.domain.0).count();
    // Where positions are close, every few of them have a marker; tooltips all have.
    let every = (36.0 / positions.spacing).ceil() as usize;
    // The chosen method is drawn last, on top.
    let mut order: Vec<(usize, &Series)> = series.iter().enumerate().collect();
    order.sort_by_key(|(_, it)| it.chosen);
    let mut ends = Vec::new();
    for (number, it) in order {
        let mut line = Path::default();
        let mut last = None;
        let mut open = false;
        for (k, group) in groups.iter().enumerate() {
            let captured = value(group, it);
            if let Some(captured) = captured {
                let at = (positions.middle(k), y.at(captured));
                if open {
                    line.to(at);
                } else {
                    line.start(at);
                }
                last = Some(at);
            }
            open = captured.is_some();
        }
        let Some(last) = last else { continue };
        svg.path(&line, &format!("line {}", it.class), "");
        for (k, group) in groups.iter().enumerate() {
            let Some(captured) = value(group, it) else {
                continue;
            };
            let at = (positions.middle(k), y.at(captured));
            let figure = percent(Some(captured));
            let tooltip = format!("{} · {}: {figure}", it.name, group.name);
            if captured < y.domain.0 {
                overflow(&mut svg, at, Towards::Down, &it.class, &tooltip);
                if beyond <= WRITTEN {
                    let words = format!("{} {figure}", shorten(&it.name, 19));
                    let height = bottom - 5.0 - 15.0 * (number % 4) as f64;
                    if at.0 < right - 150.0 {
                        svg.text((at.0 + 8.0, height), "", &words);
                    } else {
                        svg.text((at.0 - 8.0, height), "end", &words);
                    }
                }
            } else if (k + number).is_multiple_of(every) {
                marker(&mut svg, it.marker, at, 3.6, &it.class, &tooltip);
            } else {
                let target = [("cx", at.0), ("cy", at.1), ("r", 4.0)];
                svg.shape("circle", &target, "target", &tooltip);
            }
        }
        ends.push((it, last));
    }
    let heights: Vec<f64> = ends.iter().map(|(_, end)| end.1).collect();
    let places = spread(&heights, 15.0, (top + 2.0, bottom - 2.0));
    for ((it, end), place) in ends.iter().zip(places) {
        let (from, to) = (right + 8.0, right + 30.0);
        svg.line(
            (end.0 + 6.0, end.1),
            (from, place),
            &format!("leader {}", it.class),
        );
        svg.line((from, place), (to, place), &format!("line {}", it.class));
        marker(
            &mut svg,
            it.marker,
            (from + 11.0, place),
            3.6,
            &it.class,
            "",
        );
        let class = if it.chosen { "strong" } else { "" };
        svg.text((to + 6.0, place + 4.0), class, &shorten(&it.name, 19));
    }
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::blocks;
    use crate::{Layer, Method, MethodKind, Report};

    fn plot(values: &[Option<f64>]) -> String {
        let layers = values.iter().enumerate().map(|(k, &value)| Layer {
            name: format!("layers.{k}.weight"),
            block: format!("layers.{k}"),
            energy: Some(1.0),
            captured: [("task".to_owned(), value)].into(),
            ..Layer::default()
        });
        let report = Report {
            methods: vec![Method::new("task", MethodKind::Basis)],
            layers: layers.collect(),
            ..Report::default()
        };
        let labels: Vec<String> = (0..values.len()).map(|k| k.to_string()).collect();
        let groups = blocks(&report.layers);
        let positions = Positions::new(&groups, &labels, [].iter());
        depth(&positions, &super::super::series(&report))
    }

    #[test]
    fn a_small_plot() {
        insta::assert_snapshot!(plot(&[Some(0.5), None, Some(0.8), Some(0.9), Some(-3.0)]));
    }

    #[test]
    fn gaps_are_gaps() {
        let starts = |values: &[Option<f64>]| plot(values).matches('M').count();
        assert_eq!(starts(&[Some(0.5), Some(0.6), Some(0.7)]), 1);
        assert_eq!(starts(&[Some(0.5), None, Some(0.7)]), 2);
        assert_eq!(starts(&[None, None]), 0);
        assert_eq!(starts(&[]), 0);
    }
}
