//! Heat maps: rows and columns of values in ten shades, with the value written in cells that have
//! the room.

use super::{DEPTH, WIDE};
use crate::svg::{Categories, Svg, text_width};
use crate::text::{columns, decimal, percent, shorten, whole_percent};

/// What the shades mean.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Colours {
    /// Captured energy from `low` to 1; what is negative has a colour of its own.
    Captured {
        /// Where the palest shade begins.
        low: f64,
    },
    /// A cosine, −1 to 1, from one hue to another.
    Cosine,
    /// A conflict, 0 to 1.
    Conflict,
}

impl Colours {
    /// The shades for captured energies: from the least, rounded down to a tenth, but not below 0.
    pub(crate) fn captured(values: impl Iterator<Item = Option<f64>>) -> Self {
        let least = values.flatten().fold(0.9, f64::min);
        Self::Captured {
            low: ((least * 10.0).floor() / 10.0).max(0.0),
        }
    }

    fn class(self, value: f64) -> String {
        let tenth = |share: f64| (10.0 * share).floor().clamp(0.0, 9.0) as usize;
        match self {
            Self::Captured { .. } if value < 0.0 => "worse".to_owned(),
            Self::Captured { low } => format!("q{}", tenth((value - low) / (1.0 - low))),
            Self::Conflict => format!("r{}", tenth(value)),
            Self::Cosine => format!("d{}", (5.0 * value).round().clamp(-5.0, 5.0) as i64 + 5),
        }
    }

    fn write(self, value: Option<f64>) -> String {
        match self {
            Self::Captured { .. } => percent(value),
            Self::Cosine | Self::Conflict => decimal(value),
        }
    }

    /// The value in as few letters as a cell has.
    fn write_in_cell(self, value: f64) -> String {
        match self {
            Self::Captured { .. } if value < -9.995 => "≪ 0".to_owned(),
            Self::Captured { .. } => whole_percent(value).trim_end_matches('%').to_owned(),
            Self::Cosine | Self::Conflict => decimal(Some(value)).replacen("0.", ".", 1),
        }
    }

    fn shades(self) -> Vec<String> {
        let (letter, count) = match self {
            Self::Captured { .. } => ('q', 10),
            Self::Cosine => ('d', 11),
            Self::Conflict => ('r', 10),
        };
        (0..count).map(|k| format!("{letter}{k}")).collect()
    }

    fn ends(self) -> (String, String) {
        match self {
            Self::Captured { low } => (whole_percent(low), whole_percent(1.0)),
            Self::Cosine => ("−1".to_owned(), "1".to_owned()),
            Self::Conflict => ("0".to_owned(), "1".to_owned()),
        }
    }
}

/// A heat map over named rows and columns.
#[derive(Debug)]
pub(crate) struct Heat<'a> {
    /// What it shows, for those who cannot see it.
    pub(crate) label: &'a str,
    /// Full names of the rows.
    pub(crate) rows: &'a [String],
    /// Full names of the columns, for tooltips.
    pub(crate) columns: &'a [String],
    /// Values by row and column.
    pub(crate) values: &'a [Vec<Option<f64>>],
    /// What the shades mean.
    pub(crate) colours: Colours,
}

impl Heat<'_> {
    fn value(&self, row: usize, column: usize) -> Option<f64> {
        self.values.get(row)?.get(column).copied().flatten()
    }

    /// Over depth: columns are the positions of the plots over depth, with their short names.
    pub(crate) fn over_depth(&self, short: &[String]) -> String {
        let widest = self.rows.iter().map(|row| columns(row)).max().unwrap_or(0);
        // Long names of rows push the map to the right, up to a point.
        let letters = widest.min(26);
        let left = (text_width(&"m".repeat(letters)) + 12.0).max(DEPTH.0);
        let right = if left > DEPTH.0 { WIDE - 4.0 } else { DEPTH.1 };
        let width = ((right - left) / self.columns.len().max(1) as f64).min(90.0);
        let height = if self.rows.len() > 12 { 17.0 } else { 24.0 };
        let top = 30.0;
        let bottom = top + height * self.rows.len() as f64;
        let names = Categories::new(short, width);
        let mut svg = Svg::new(WIDE, bottom + names.height() + 4.0, self.label);
        self.legend(&mut svg, left);
        for (r, row) in self.rows.iter().enumerate() {
            let middle = top + height * (r as f64 + 0.5);
            svg.text((left - 7.0, middle + 4.0), "end", &shorten(row, letters));
        }
        self.cells(&mut svg, (left, top), (width, height));
        names.draw(&mut svg, bottom, |k| left + width * (k as f64 + 0.5));
        svg.finish()
    }

    /// Square cells, for relations between tasks: the columns are the rows.
    pub(crate) fn square(&self) -> String {
        let letters = self
            .rows
            .iter()
            .map(|row| columns(row))
            .max()
            .unwrap_or(0)
            .min(18);
        let names = text_width(&"m".repeat(letters));
        let size = (330.0 / self.rows.len().max(1) as f64).clamp(18.0, 46.0);
        let left = names + 12.0;
        let top = 34.0 + 0.71 * names + 8.0;
        let side = size * self.rows.len() as f64;
        // The last names lean to the right, out of the square.
        let width = (left + side + 0.71 * names).max(left + 240.0);
        let mut svg = Svg::new(width, top + side + 4.0, self.label);
        self.legend(&mut svg, left);
        for (k, row) in self.rows.iter().enumerate() {
            let middle = size * (k as f64 + 0.5);
            let short = shorten(row, letters);
            svg.text((left - 7.0, top + middle + 4.0), "end", &short);
            svg.turned_text((left + middle + 2.0, top - 6.0), -45.0, "", &short);
        }
        self.cells(&mut svg, (left, top), (size, size));
        svg.finish()
    }

    fn cells(&self, svg: &mut Svg, (left, top): (f64, f64), (width, height): (f64, f64)) {
        let gap = if width < 8.0 { 0.0 } else { 1.0 };
        for (r, row) in self.rows.iter().enumerate() {
            for (c, column) in self.columns.iter().enumerate() {
                let value = self.value(r, c);
                let (x, y) = (left + width * c as f64, top + height * r as f64);
                let class = value.map_or("none".to_owned(), |value| self.colours.class(value));
                let tooltip = match value {
                    Some(_) => format!("{row} · {column}: {}", self.colours.write(value)),
                    None => format!("{row} · {column}: not measured"),
                };
                svg.rect((x, y), (width - gap, height - gap), &class, &tooltip);
                let Some(value) = value else { continue };
                let short = self.colours.write_in_cell(value);
                if text_width(&short) + 2.0 <= width {
                    let place = (x + (width - gap) / 2.0, y + (height - gap) / 2.0 + 4.0);
                    svg.text(place, &format!("mid on {class}"), &short);
                } else if class == "worse" && width >= 6.0 {
                    let place = (x + (width - gap) / 2.0, y + (height - gap) / 2.0 + 4.0);
                    svg.text(place, "mid on worse", "▾");
                }
            }
        }
    }

    fn legend(&self, svg: &mut Svg, left: f64) {
        let (low, high) = self.colours.ends();
        svg.text((left, 15.0), "soft", &low);
        let mut x = left + text_width(&low) + 5.0;
        for shade in self.colours.shades() {
            svg.rect((x, 6.0), (13.0, 11.0), &shade, "");
            x += 13.0;
        }
        svg.text((x + 5.0, 15.0), "soft", &high);
        x += 5.0 + text_width(&high) + 16.0;
        let shown = || {
            let cells =
                (0..self.rows.len()).flat_map(|r| (0..self.columns.len()).map(move |c| (r, c)));
            cells.map(|(r, c)| self.value(r, c))
        };
        let worse = matches!(self.colours, Colours::Captured { .. })
            && shown().flatten().any(|value| value < 0.0);
        let missing = shown().any(|value| value.is_none());
        let others = [
            (worse, "worse", "worse than base ▾"),
            (missing, "none", "not measured"),
        ];
        for (_, class, words) in others.iter().filter(|(present, ..)| *present) {
            svg.rect((x, 6.0), (13.0, 11.0), class, "");
            svg.text((x + 18.0, 15.0), "soft", words);
            x += 18.0 + text_width(words) + 14.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shades() {
        let captured = Colours::captured([Some(0.83), None, Some(0.99)].into_iter());
        let classes = [0.8, 0.8199, 0.99, 1.0, 1.5, -0.1].map(|value| captured.class(value));
        assert_eq!(classes, ["q0", "q0", "q9", "q9", "q9", "worse"]);
        let cosines = [-1.0, -0.05, 0.0, 0.5, 1.0].map(|value| Colours::Cosine.class(value));
        assert_eq!(cosines, ["d0", "d5", "d5", "d8", "d10"]);
        assert_eq!(Colours::Cosine.write_in_cell(-0.314), "−.31");
        assert_eq!(Colours::Cosine.write_in_cell(1.0), "1.00");
        assert_eq!(Colours::Conflict.write_in_cell(0.10), ".10");
    }

    #[test]
    fn a_small_map() {
        let names = ["a".to_owned(), "</svg><script>".to_owned()];
        let heat = Heat {
            label: "cosines",
            rows: &names,
            columns: &names,
            values: &[vec![Some(1.0), Some(-0.25)], vec![Some(-0.25), None]],
            colours: Colours::Cosine,
        };
        insta::assert_snapshot!(heat.square());
    }

    #[test]
    fn missing_rows_are_not_measured() {
        let names = ["a".to_owned(), "b".to_owned()];
        let heat = Heat {
            label: "captured",
            rows: &names,
            columns: &names,
            values: &[vec![Some(-1e300)]],
            colours: Colours::captured([Some(-1e300)].into_iter()),
        };
        let drawn = heat.over_depth(&names);
        assert_eq!(drawn.matches(": not measured").count(), 3);
        assert!(drawn.contains("worse than base"));
    }
}
