//! Axes: numbers along the left or the bottom, names along the bottom.

use super::{Scale, Svg, text_width, ticks};
use crate::text::shorten;

/// The grid and labels of a value axis. `across` is where the grid lines begin and end on the other
/// axis; the labels stand before its beginning. The scale's range tells whether values run along x
/// (`vertical` is false) or along y.
pub(crate) fn value_axis(
    svg: &mut Svg,
    scale: &Scale,
    across: (f64, f64),
    vertical: bool,
    format: impl Fn(f64) -> String,
) {
    let length = (scale.range.1 - scale.range.0).abs();
    let room = if vertical { 42.0 } else { 48.0 };
    let most = ((length / room) as usize).clamp(2, 10);
    for tick in ticks(scale.domain.0, scale.domain.1, most) {
        let place = scale.at(tick);
        let class = if tick == 0.0 { "zero" } else { "grid" };
        if vertical {
            svg.line((across.0, place), (across.1, place), class);
            svg.text((across.0 - 7.0, place + 4.0), "end soft", &format(tick));
        } else {
            svg.line((place, across.0), (place, across.1), class);
            svg.text((place, across.1 + 16.0), "mid soft", &format(tick));
        }
    }
}

/// Names along the bottom. If they do not fit side by side, names of few positions are turned and
/// numbers of many are thinned out to multiples of 2, 5, 10, …
#[derive(Debug)]
pub(crate) struct Categories<'a> {
    labels: &'a [String],
    spacing: f64,
    turned: bool,
}

impl<'a> Categories<'a> {
    const LONGEST: usize = 26;

    /// `spacing` is the distance between neighbours in pixels.
    pub(crate) fn new(labels: &'a [String], spacing: f64) -> Self {
        let fits = labels
            .iter()
            .all(|label| text_width(label) + 8.0 <= spacing);
        let named = labels.iter().filter(|label| number(label).is_none());
        let turned = !fits && spacing >= 13.0 && named.count() > 2;
        Self {
            labels,
            spacing,
            turned,
        }
    }

    /// The height the names need.
    pub(crate) fn height(&self) -> f64 {
        if !self.turned {
            return 22.0;
        }
        let widths = self.labels.iter();
        let widths = widths.map(|label| text_width(&shorten(label, Self::LONGEST)));
        14.0 + 0.71 * widths.fold(0.0, f64::max)
    }

    /// Draws the names under `y`; `place` gives the middle of each position.
    pub(crate) fn draw(&self, svg: &mut Svg, y: f64, place: impl Fn(usize) -> f64) {
        if self.turned {
            for (k, label) in self.labels.iter().enumerate() {
                let label = shorten(label, Self::LONGEST);
                svg.turned_text((place(k) + 3.0, y + 14.0), -45.0, "end soft", &label);
            }
            return;
        }
        let every = self.every();
        let mut taken: Vec<(f64, f64)> = Vec::new();
        // Names first: there are few, and they say where numbers begin and end.
        for names in [true, false] {
            for (k, label) in self.labels.iter().enumerate() {
                let number = number(label);
                let wanted = number.is_none_or(|number| number.is_multiple_of(every));
                if number.is_none() != names || !wanted {
                    continue;
                }
                let half = text_width(label) / 2.0 + 3.0;
                let (left, right) = (place(k) - half, place(k) + half);
                if taken
                    .iter()
                    .all(|other| right <= other.0 || other.1 <= left)
                {
                    taken.push((left, right));
                    svg.text((place(k), y + 16.0), "mid soft", label);
                }
            }
        }
    }

    /// Numbers that are multiples of this are shown.
    fn every(&self) -> u64 {
        let numbers = self.labels.iter().filter(|label| number(label).is_some());
        let widest = numbers.map(|label| text_width(label)).fold(0.0, f64::max);
        let steps = [1, 2, 5, 10, 20, 50, 100];
        let fits = |&&step: &&u64| step as f64 * self.spacing >= widest + 6.0;
        steps.iter().find(fits).copied().unwrap_or(200)
    }
}

/// The number at the end of a label such as `12` or `d12`.
fn number(label: &str) -> Option<u64> {
    let digits = label.trim_start_matches(|c: char| !c.is_ascii_digit());
    (label.len() - digits.len() <= 1)
        .then(|| digits.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(labels: &[&str], spacing: f64) -> Vec<String> {
        let labels: Vec<String> = labels.iter().map(ToString::to_string).collect();
        let mut svg = Svg::new(100.0, 10.0, "");
        Categories::new(&labels, spacing).draw(&mut svg, 0.0, |k| k as f64 * spacing);
        let drawn = svg.finish();
        let texts = drawn
            .split("</text>")
            .filter_map(|part| part.split_once("<text"));
        texts
            .filter_map(|(_, text)| text.rsplit_once('>'))
            .map(|(_, text)| text.to_owned())
            .collect()
    }

    #[test]
    fn numbers_are_thinned_out() {
        let labels: Vec<String> = (0..30).map(|k| k.to_string()).collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        assert_eq!(shown(&labels, 30.0).len(), 30);
        assert_eq!(shown(&labels, 6.0), ["0", "5", "10", "15", "20", "25"]);
        let with_ends: Vec<&str> = ["embed"]
            .into_iter()
            .chain(labels)
            .chain(["head"])
            .collect();
        assert_eq!(
            shown(&with_ends, 6.0),
            ["embed", "head", "5", "10", "15", "20", "25"]
        );
    }

    #[test]
    fn few_long_names_are_turned() {
        let names = ["self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"];
        assert_eq!(shown(&names, 40.0), names);
        let names = names.map(str::to_owned);
        assert!(Categories::new(&names, 40.0).height() > 60.0);
        assert!(Categories::new(&names, 400.0).height() < 30.0);
    }
}
