//! Heat maps: rows and columns of values in ten shades, with the value written in cells that have
//! the room.

use super::{Positions, WIDE, almost_least};
use crate::svg::{Svg, text_width};
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
    /// The shades for captured energies: from almost the least that is not negative, rounded down
    /// to a tenth.
    pub(crate) fn captured(values: impl Iterator<Item = f64>) -> Self {
        let least = almost_least(values.filter(|&value| value >= 0.0)).unwrap_or(0.0);
        Self::Captured {
            low: ((least * 10.0).floor() / 10.0).clamp(0.0, 0.9),
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
            Self::Captured { low } => (format!("≤ {}", whole_percent(low)), whole_percent(1.0)),
            Self::Cosine => ("−1".to_owned(), "1".to_owned()),
            Self::Conflict => ("0".to_owned(), "1".to_owned()),
        }
    }
}

/// What a place of a heat map shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Cell {
    /// Nothing: there is no such thing to measure.
    Absent,
    /// That this was not measured.
    Missing,
    /// A value.
    Value(f64),
}

impl From<Option<f64>> for Cell {
    fn from(value: Option<f64>) -> Self {
        value.map_or(Self::Missing, Self::Value)
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
    /// Cells by row and column; what is left out was not measured.
    pub(crate) cells: &'a [Vec<Cell>],
    /// What the shades mean.
    pub(crate) colours: Colours,
}

impl Heat<'_> {
    fn cell(&self, row: usize, column: usize) -> Cell {
        let row = self.cells.get(row);
        let cell = row.and_then(|row| row.get(column));
        cell.copied().unwrap_or(Cell::Missing)
    }

    /// Over depth: the columns are the positions of the plots over depth.
    pub(crate) fn over_depth(&self, positions: &Positions) -> String {
        let (left, width) = (positions.left, positions.spacing);
        let height = if self.rows.len() > 12 { 17.0 } else { 24.0 };
        let top = 30.0;
        let bottom = top + height * self.rows.len() as f64;
        let names = positions.names();
        let mut svg = Svg::new(WIDE, bottom + names.height() + 4.0, self.label);
        self.legend(&mut svg, left);
        for (r, row) in self.rows.iter().enumerate() {
            let middle = top + height * (r as f64 + 0.5);
            let short = shorten(row, Positions::LONGEST);
            svg.text((left - 7.0, middle + 4.0), "end", &short);
        }
        self.draw(&mut svg, (left, top), (width, height));
        names.draw(&mut svg, bottom, |k| positions.middle(k));
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
        let size = (300.0 / self.rows.len().max(1) as f64).clamp(15.0, 46.0);
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
        self.draw(&mut svg, (left, top), (size, size));
        svg.finish()
    }

    fn draw(&self, svg: &mut Svg, (left, top): (f64, f64), (width, height): (f64, f64)) {
        let gap = if width < 8.0 { 0.0 } else { 1.0 };
        for (r, row) in self.rows.iter().enumerate() {
            for (c, column) in self.columns.iter().enumerate() {
                let (class, words) = match self.cell(r, c) {
                    Cell::Absent => continue,
                    Cell::Missing => ("none".to_owned(), "not measured".to_owned()),
                    Cell::Value(value) => {
                        (self.colours.class(value), self.colours.write(Some(value)))
                    }
                };
                let (x, y) = (left + width * c as f64, top + height * r as f64);
                let tooltip = format!("{row} · {column}: {words}");
                svg.rect((x, y), (width - gap, height - gap), &class, &tooltip);
                let Cell::Value(value) = self.cell(r, c) else {
                    continue;
                };
                let short = match self.colours.write_in_cell(value) {
                    short if text_width(&short) <= width => short,
                    _ if class == "worse" => "▾".to_owned(),
                    _ => continue,
                };
                let middle = (x + (width - gap) / 2.0, y + (height - gap) / 2.0 + 4.0);
                svg.text(middle, &format!("mid on {class}"), &short);
            }
        }
    }

    fn legend(&self, svg: &mut Svg, left: f64) {
        let (low, high) = self.colours.ends();
        svg.text((left, 15.0), "soft", &low);
        let mut x = left + text_width(&low) + 8.0;
        for shade in self.colours.shades() {
            svg.rect((x, 6.0), (13.0, 11.0), &shade, "");
            x += 13.0;
        }
        svg.text((x + 5.0, 15.0), "soft", &high);
        x += 5.0 + text_width(&high) + 16.0;
        let any = |wanted: &dyn Fn(Cell) -> bool| {
            let mut places =
                (0..self.rows.len()).flat_map(|r| (0..self.columns.len()).map(move |c| (r, c)));
            places.any(|(r, c)| wanted(self.cell(r, c)))
        };
        let captured = matches!(self.colours, Colours::Captured { .. });
        let worse = captured && any(&|cell| matches!(cell, Cell::Value(value) if value < 0.0));
        let missing = any(&|cell| cell == Cell::Missing);
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
        let captured = Colours::captured([-3.0, 0.83, 0.99].into_iter());
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
            cells: &[
                vec![Cell::Value(1.0), Cell::Value(-0.25)],
                vec![Cell::Absent, Cell::Missing],
            ],
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
            cells: &[vec![Cell::Value(-1e300)]],
            colours: Colours::captured([-1e300].into_iter()),
        };
        let drawn = heat.square();
        assert_eq!(drawn.matches(": not measured").count(), 3);
        assert!(drawn.contains("worse than base"));
    }
}
