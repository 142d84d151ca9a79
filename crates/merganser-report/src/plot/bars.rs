//! Horizontal bars, one per method, with whiskers for the confidence interval and lines for
//! references.
//!
//! A bar's length is its message, so bars begin at 0. Where all values lie close together, far from
//! 0, dots on a shortened axis show the differences instead.

use super::{Series, Towards, marker, overflow};
use crate::svg::{Scale, Svg, nice, text_width, value_axis};
use crate::text::{columns, percent, shorten, whole_percent};
use crate::{MethodKind, Score};

const WIDTH: f64 = 470.0;
const ROW: f64 = 25.0;
/// Room for the figure at the right end.
const FIGURE: f64 = 56.0;

/// One row.
#[derive(Debug)]
pub(crate) struct Bar<'a> {
    /// The method.
    pub(crate) series: &'a Series,
    /// Its value.
    pub(crate) score: Score,
}

/// The plot. `references` are values with names, drawn as lines across all rows.
pub(crate) fn bars(label: &str, bars: &[Bar], references: &[(&str, f64)]) -> String {
    let names = bars.iter().map(|bar| columns(&bar.series.name));
    let letters = names.max().unwrap_or(0).min(22);
    let left = text_width(&"m".repeat(letters)) + 14.0;
    let right = WIDTH - FIGURE;
    let top = if references.is_empty() { 8.0 } else { 30.0 };
    let bottom = top + ROW * bars.len() as f64;
    let values = || {
        let scores = bars.iter().map(|bar| bar.score);
        let all = scores.flat_map(|score| [score.low, score.value, score.high]);
        all.flatten().chain(references.iter().map(|it| it.1))
    };
    let (least, most) = values().fold((f64::MAX, f64::MIN), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    let dots = least > 0.0 && most - least < 0.25 * most;
    let domain = if dots {
        nice(least - 0.02 * (most - least), most, 5)
    } else {
        let low = if least < 0.0 { least.max(-0.25) } else { 0.0 };
        (low, nice(0.0, most.max(0.01), 5).1)
    };
    let x = Scale {
        domain,
        range: (left, right),
    };

    let mut svg = Svg::new(WIDTH, bottom + 24.0, label);
    value_axis(&mut svg, &x, (top, bottom), false, whole_percent);
    for (k, bar) in bars.iter().enumerate() {
        let middle = top + ROW * (k as f64 + 0.5);
        row(&mut svg, bar, middle, &x, dots, letters);
    }
    let mut taken = f64::MIN;
    for (name, value) in references {
        let place = x.at(*value);
        svg.line((place, top - 4.0), (place, bottom), "reference");
        let half = text_width(name) / 2.0;
        let at = place.clamp(half, WIDTH - half).max(taken + half);
        svg.text((at, top - 9.0), "mid soft", name);
        taken = at + half + 8.0;
    }
    svg.finish()
}

fn row(svg: &mut Svg, bar: &Bar, middle: f64, x: &Scale, dots: bool, letters: usize) {
    let Bar { series, score } = bar;
    let strong = if series.chosen { " strong" } else { "" };
    let name = shorten(&series.name, letters);
    svg.text(
        (x.range.0 - 8.0, middle + 4.0),
        &format!("end{strong}"),
        &name,
    );
    let figure = WIDTH - FIGURE + 8.0;
    let Some(value) = score.value else {
        svg.text((x.range.0 + 6.0, middle + 4.0), "soft", "not measured");
        return;
    };
    let tooltip = match (score.low, score.high) {
        (Some(low), Some(high)) => format!(
            "{}: {} (from {} to {})",
            series.name,
            percent(Some(value)),
            percent(Some(low)),
            percent(Some(high))
        ),
        _ => format!("{}: {}", series.name, percent(Some(value))),
    };
    let place = x.at(value);
    if dots {
        svg.line((x.range.0, middle), (place, middle), "guide");
    } else {
        let zero = x.at(0.0);
        let fill = match series.kind {
            MethodKind::Basis => "bar hollow",
            MethodKind::Merge => "bar",
        };
        let (from, to) = (place.min(zero), place.max(zero));
        let class = format!("{fill} {}", series.class);
        svg.rect((from, middle - 7.0), (to - from, 14.0), &class, &tooltip);
        if value < x.domain.0 {
            overflow(
                svg,
                (x.range.0, middle),
                Towards::Left,
                &series.class,
                &tooltip,
            );
        }
    }
    if let (Some(low), Some(high)) = (score.low, score.high) {
        let (low, high) = (x.at(low), x.at(high));
        svg.line((low - 1.0, middle), (high + 1.0, middle), "halo");
        svg.line((low, middle), (high, middle), "whisker");
        for end in [low, high] {
            svg.line((end, middle - 4.0), (end, middle + 4.0), "whisker");
        }
    }
    if dots {
        marker(
            svg,
            series.marker,
            (place, middle),
            4.5,
            &series.class,
            &tooltip,
        );
    }
    svg.text((figure, middle + 4.0), strong.trim(), &percent(Some(value)));
}
