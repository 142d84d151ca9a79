//! Captured energy against accuracy: does the figure known beforehand predict the one measured
//! afterwards?

use super::{Series, marker};
use crate::Score;
use crate::svg::{Scale, Svg, nice, text_width, value_axis};
use crate::text::{percent, shorten, whole_percent};

const SIZE: (f64, f64) = (620.0, 380.0);

/// A method with both figures.
#[derive(Debug)]
pub(crate) struct Point<'a> {
    /// The method.
    pub(crate) series: &'a Series,
    /// Captured energy.
    pub(crate) captured: f64,
    /// Mean accuracy.
    pub(crate) accuracy: Score,
}

/// The plot; `references` are accuracies with names, drawn as lines.
pub(crate) fn scatter(points: &[Point], references: &[(&str, f64)]) -> String {
    let (left, right, top, bottom) = (58.0, SIZE.0 - 16.0, 12.0, SIZE.1 - 52.0);
    let extent = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        let margin = (0.06 * (high - low)).max(0.005);
        nice(low - margin, high + margin, 6)
    };
    let across = extent(&mut points.iter().map(|point| point.captured.max(-0.25)));
    let x = Scale {
        domain: across,
        range: (left, right),
    };
    let accuracies = points.iter().flat_map(|point| {
        let Score { value, low, high } = point.accuracy;
        [value, low, high].into_iter().flatten()
    });
    let y = Scale {
        domain: extent(&mut accuracies.chain(references.iter().map(|it| it.1))),
        range: (bottom, top),
    };
    let mut svg = Svg::new(
        SIZE.0,
        SIZE.1,
        "mean accuracy against captured energy, by method",
    );
    value_axis(&mut svg, &x, (top, bottom), false, whole_percent);
    value_axis(&mut svg, &y, (left, right), true, whole_percent);
    svg.text(
        (f64::midpoint(left, right), SIZE.1 - 12.0),
        "mid soft",
        "captured energy",
    );
    svg.turned_text(
        (14.0, f64::midpoint(top, bottom)),
        -90.0,
        "mid soft",
        "mean accuracy",
    );

    let mut taken: Vec<Area> = Vec::new();
    for (name, value) in references {
        let place = y.at(*value);
        svg.line((left, place), (right, place), "reference");
        let area = Area::text((right - text_width(name), place - 5.0), name);
        svg.text((right, place - 5.0), "end soft", name);
        taken.push(area);
    }
    let places: Vec<(f64, f64)> = points
        .iter()
        .map(|point| {
            (
                x.at(point.captured),
                y.at(point.accuracy.value.unwrap_or(0.0)),
            )
        })
        .collect();
    taken.extend(places.iter().map(|&at| Area::around(at, 5.0)));
    for (point, &at) in points.iter().zip(&places) {
        if let (Some(low), Some(high)) = (point.accuracy.low, point.accuracy.high) {
            svg.line((at.0, y.at(low)), (at.0, y.at(high)), "whisker");
        }
    }
    for (point, &at) in points.iter().zip(&places) {
        let Point {
            series,
            captured,
            accuracy,
        } = point;
        let tooltip = format!(
            "{}: captures {}, accuracy {}",
            series.name,
            percent(Some(*captured)),
            percent(accuracy.value)
        );
        marker(&mut svg, series.marker, at, 4.5, &series.class, &tooltip);
        let name = shorten(&series.name, 22);
        // Bold letters are wider.
        let width = text_width(&name) * if series.chosen { 1.12 } else { 1.0 };
        let candidates = [
            (at.0 + 9.0, at.1 + 4.0),
            (at.0 - 9.0 - width, at.1 + 4.0),
            (at.0 + 6.0, at.1 - 9.0),
            (at.0 + 6.0, at.1 + 16.0),
            (at.0 - 6.0 - width, at.1 - 9.0),
            (at.0 - 6.0 - width, at.1 + 16.0),
        ];
        let inside = |area: &Area| {
            left < area.left && area.right < right && top - 8.0 < area.top && area.bottom < bottom
        };
        let free = candidates.iter().find(|&&place| {
            let area = Area::text(place, &name);
            inside(&area) && taken.iter().all(|other| !area.meets(other))
        });
        // With no room left the tooltip and the table still name the point.
        if let Some(&place) = free {
            taken.push(Area::text(place, &name));
            svg.text(place, if series.chosen { "strong" } else { "" }, &name);
        }
    }
    svg.finish()
}

/// A rectangle that is taken.
struct Area {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Area {
    fn text((x, y): (f64, f64), text: &str) -> Self {
        Self {
            left: x,
            right: x + text_width(text),
            top: y - 10.0,
            bottom: y + 3.0,
        }
    }

    fn around((x, y): (f64, f64), half: f64) -> Self {
        Self {
            left: x - half,
            right: x + half,
            top: y - half,
            bottom: y + half,
        }
    }

    fn meets(&self, other: &Self) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }
}
