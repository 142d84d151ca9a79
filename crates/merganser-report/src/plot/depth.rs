//! Captured energy over depth: one line per method, named at its end.

use super::{DEPTH, Series, Towards, WIDE, marker, overflow, spread};
use crate::summary::Group;
use crate::svg::{Categories, Path, Scale, Svg, nice, value_axis};
use crate::text::{percent, shorten, whole_percent};

/// Values below this are drawn at the lower edge, as arrows: one layer that a merge ruins must not
/// flatten all the others.
const FLOOR: f64 = -0.25;

/// The plot over groups in forward order; `labels` are their short names.
pub(crate) fn depth(groups: &[Group], labels: &[String], series: &[Series]) -> String {
    let value = |group: &Group, it: &Series| group.captured.get(&it.name).copied();
    let least = groups
        .iter()
        .flat_map(|group| group.captured.values().copied())
        .fold(1.0, f64::min);
    let domain = if least < FLOOR {
        (FLOOR, 1.0)
    } else {
        (nice(least.min(0.98), 1.0, 6).0, 1.0)
    };
    let (left, right) = DEPTH;
    let spacing = (right - left) / groups.len().max(1) as f64;
    let (top, bottom) = (12.0, 312.0);
    let names = Categories::new(labels, spacing);
    let mut svg = Svg::new(
        WIDE,
        bottom + names.height() + 4.0,
        "captured energy of each method over the depth of the network",
    );
    let y = Scale {
        domain,
        range: (bottom, top),
    };
    let x = |k: usize| left + spacing * (k as f64 + 0.5);
    value_axis(&mut svg, &y, (left, right), true, whole_percent);
    svg.line((left, bottom), (right, bottom), "axis");
    names.draw(&mut svg, bottom, x);

    let size = if spacing >= 20.0 { 3.6 } else { 2.2 };
    // The chosen method is drawn last, on top.
    let mut order: Vec<&Series> = series.iter().collect();
    order.sort_by_key(|it| it.chosen);
    let mut ends = Vec::new();
    for it in order {
        let mut line = Path::default();
        let mut open = false;
        let mut last = None;
        for (k, group) in groups.iter().enumerate() {
            let Some(captured) = value(group, it) else {
                open = false;
                continue;
            };
            let at = (x(k), y.at(captured));
            if open {
                line.to(at);
            } else {
                line.start(at);
            }
            open = true;
            last = Some(at);
        }
        let Some(last) = last else { continue };
        svg.path(&line, &format!("line {}", it.class), "");
        for (k, group) in groups.iter().enumerate() {
            let Some(captured) = value(group, it) else {
                continue;
            };
            let tooltip = format!("{} · {}: {}", it.name, group.name, percent(Some(captured)));
            if captured < domain.0 {
                let at = (x(k), bottom);
                overflow(&mut svg, at, Towards::Down, &it.class, &tooltip);
            } else {
                let at = (x(k), y.at(captured));
                marker(&mut svg, it.marker, at, size, &it.class, &tooltip);
            }
        }
        ends.push((it, last));
    }
    let heights: Vec<f64> = ends.iter().map(|(_, end)| end.1).collect();
    let places = spread(&heights, 15.0, (top + 2.0, bottom - 2.0));
    for ((it, end), place) in ends.iter().zip(places) {
        let from = (end.0 + size + 3.0, end.1);
        svg.line(from, (right + 6.0, place), &format!("leader {}", it.class));
        svg.line(
            (right + 6.0, place),
            (right + 28.0, place),
            &format!("line {}", it.class),
        );
        marker(
            &mut svg,
            it.marker,
            (right + 17.0, place),
            3.6,
            &it.class,
            "",
        );
        let class = if it.chosen { "strong" } else { "" };
        svg.text((right + 34.0, place + 4.0), class, &shorten(&it.name, 20));
    }
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::blocks;
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
        depth(
            &blocks(&report.layers),
            &labels,
            &super::super::series(&report),
        )
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
