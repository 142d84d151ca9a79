//! The plots of the page, one file each. Each takes plain numbers and gives an `<svg>` element.
//!
//! A method keeps its colour, its marker and its line in all of them: solid for a basis, dashed for
//! a merge, thick for the chosen one, and the colour of the text for `full`, the bound of all.

mod bars;
mod depth;
mod heat;
mod scatter;
mod shares;

pub(crate) use bars::{Bar, bars};
pub(crate) use depth::depth;
pub(crate) use heat::{Cell, Colours, Heat};
pub(crate) use scatter::{Point, scatter};
pub(crate) use shares::shares;

use crate::groups::Group;
use crate::summary::FULL;
use crate::svg::{Categories, Path, Svg, text_width};
use crate::text::columns;
use crate::{MethodKind, Report};

/// Colours the style sheet defines.
const COLOURS: usize = 8;

/// The width of a plot that spans the page, in pixels.
const WIDE: f64 = 960.0;

/// The right end of the plots over depth; names of lines stand beyond it.
const RIGHT: f64 = 790.0;

/// How a method looks.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    /// The name of the method.
    pub(crate) name: String,
    /// Classes of its marks.
    pub(crate) class: String,
    /// Which marker it has.
    pub(crate) marker: usize,
    /// Whether this merge uses it.
    pub(crate) chosen: bool,
    /// What it is.
    pub(crate) kind: MethodKind,
}

/// The look of every method of a completed report, in its order.
pub(crate) fn series(report: &Report) -> Vec<Series> {
    let mut next = 0;
    let methods = report.methods.iter().map(|method| {
        let chosen = report.chosen.as_ref() == Some(&method.name);
        let number = next;
        let colour = if method.name == FULL {
            "full".to_owned()
        } else {
            next += 1;
            format!("s{}", number % COLOURS)
        };
        let line = match method.kind {
            MethodKind::Basis => "",
            MethodKind::Merge => " merge",
        };
        Series {
            name: method.name.clone(),
            class: format!("{colour}{line}{}", if chosen { " chosen" } else { "" }),
            // Methods that share a colour differ in the marker.
            marker: number % 4 + number / COLOURS,
            chosen,
            kind: method.kind,
        }
    });
    methods.collect()
}

/// The positions along x that all plots over depth share, so that they line up under each other.
#[derive(Debug)]
pub(crate) struct Positions<'a> {
    /// The blocks or tensors, in forward order.
    groups: &'a [Group],
    /// Their short names.
    short: &'a [String],
    left: f64,
    spacing: f64,
}

impl<'a> Positions<'a> {
    /// Letters of the names of rows of heat maps; longer names are shortened.
    const LONGEST: usize = 26;

    /// Leaves room for the names of rows of the heat maps among the plots.
    pub(crate) fn new<'r>(
        groups: &'a [Group],
        short: &'a [String],
        rows: impl Iterator<Item = &'r String>,
    ) -> Self {
        let letters = rows.map(|row| columns(row).min(Self::LONGEST)).max();
        let widest = text_width(&"m".repeat(letters.unwrap_or(0)));
        let left = (widest + 12.0).max(58.0);
        Self {
            groups,
            short,
            left,
            spacing: ((RIGHT - left) / groups.len().max(1) as f64).min(120.0),
        }
    }

    fn right(&self) -> f64 {
        self.left + self.spacing * self.groups.len() as f64
    }

    /// The middle of a position.
    fn middle(&self, k: usize) -> f64 {
        self.left + self.spacing * (k as f64 + 0.5)
    }

    fn names(&self) -> Categories<'a> {
        Categories::new(self.short, self.spacing)
    }
}

/// Where a scale begins that shows almost all of the values: its lowest fiftieth may be beyond it.
fn almost_least(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 50).copied()
}

/// A circle, square, diamond or triangle around `at`.
fn marker(svg: &mut Svg, shape: usize, (x, y): (f64, f64), size: f64, class: &str, tooltip: &str) {
    let class = format!("mark {class}");
    let corners = match shape % 4 {
        0 => {
            let circle = [("cx", x), ("cy", y), ("r", size)];
            return svg.shape("circle", &circle, &class, tooltip);
        }
        1 => {
            let s = 0.9 * size;
            vec![
                (x - s, y - s),
                (x + s, y - s),
                (x + s, y + s),
                (x - s, y + s),
            ]
        }
        2 => {
            let s = 1.3 * size;
            vec![(x, y - s), (x + s, y), (x, y + s), (x - s, y)]
        }
        _ => {
            let s = 1.15 * size;
            vec![(x, y - s), (x + s, y + 0.8 * s), (x - s, y + 0.8 * s)]
        }
    };
    svg.path(&Path::polygon(&corners), &class, tooltip);
}

/// A line and a marker as they look in the plots, for tables.
pub(crate) fn swatch(series: &Series) -> String {
    let mut svg = Svg::new(26.0, 12.0, "");
    svg.line((1.0, 6.0), (25.0, 6.0), &format!("line {}", series.class));
    marker(&mut svg, series.marker, (13.0, 6.0), 3.6, &series.class, "");
    svg.finish()
}

/// A mark at the edge of a plot for a value beyond it: an arrow towards the value.
fn overflow(svg: &mut Svg, (x, y): (f64, f64), towards: Towards, class: &str, tooltip: &str) {
    let corners = match towards {
        Towards::Left => [(x, y - 4.5), (x, y + 4.5), (x - 7.0, y)],
        Towards::Down => [(x - 4.5, y), (x + 4.5, y), (x, y + 7.0)],
    };
    svg.path(&Path::polygon(&corners), &format!("mark {class}"), tooltip);
}

#[derive(Debug, Clone, Copy)]
enum Towards {
    Left,
    Down,
}

/// Moves places apart until neighbours are `gap` apart and all are within `range`, in order, each
/// as near to its own as that allows. If they cannot all fit, they share the range evenly.
fn spread(places: &[f64], gap: f64, range: (f64, f64)) -> Vec<f64> {
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by(|&a, &b| places[a].total_cmp(&places[b]));
    let room = (range.1 - range.0) / places.len().saturating_sub(1).max(1) as f64;
    let gap = gap.min(room);
    let mut spread = places.to_vec();
    let mut least = range.0;
    for &k in &order {
        spread[k] = spread[k].max(least);
        least = spread[k] + gap;
    }
    let mut most = range.1;
    for &k in order.iter().rev() {
        spread[k] = spread[k].min(most);
        most = spread[k] - gap;
    }
    spread
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_do_not_overlap() {
        let places = [50.0, 51.0, 49.0, 10.0, 99.0, 98.0];
        let moved = spread(&places, 13.0, (0.0, 100.0));
        let mut sorted = moved.clone();
        sorted.sort_by(f64::total_cmp);
        assert!(
            sorted
                .windows(2)
                .all(|pair| pair[1] - pair[0] >= 13.0 - 1e-9)
        );
        assert!(sorted.iter().all(|place| (0.0..=100.0).contains(place)));
        assert_eq!(moved[3], 10.0);
        assert!(moved[2] < moved[0] && moved[0] < moved[1]);
        let crowded = spread(&[0.0; 11], 20.0, (0.0, 100.0));
        assert!((crowded[10] - 100.0).abs() < 1e-9);
        assert_eq!(spread(&[5.0], 13.0, (0.0, 10.0)), [5.0]);
    }
}
