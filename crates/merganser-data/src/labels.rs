//! What the right answers are: numbers of classes, names of classes, or scores.

use std::path::Path;

use crate::error::{Error, Place, Result};
use crate::table::Cell;

/// One label a sample.
#[derive(Debug, Clone, PartialEq)]
pub enum Labels {
    /// Numbers of classes as the source has them, and the names of the classes if it tells them (`names[i]` is the name
    /// of class `i`). Folders number their classes in alphabetical order.
    Classes {
        /// Class of each sample.
        ids: Vec<u32>,
        /// Names by class number.
        names: Option<Vec<String>>,
    },
    /// Names of classes; which number each has is for the model's config to say.
    Names {
        /// Position of each sample's class in `names`.
        ids: Vec<u32>,
        /// The names that occur, sorted.
        names: Vec<String>,
    },
    /// Numbers that are no classes.
    Scores(Vec<f64>),
}

impl Labels {
    /// Number of samples.
    pub fn len(&self) -> usize {
        match self {
            Self::Classes { ids, .. } | Self::Names { ids, .. } => ids.len(),
            Self::Scores(scores) => scores.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The labels of the samples for which `keep` is true.
    pub(crate) fn retain(&mut self, keep: &[bool]) {
        let mut kept = keep.iter();
        let mut next = || kept.next().copied().unwrap_or(true);
        match self {
            Self::Classes { ids, .. } | Self::Names { ids, .. } => ids.retain(|_| next()),
            Self::Scores(scores) => scores.retain(|_| next()),
        }
    }

    /// Labels of a column, which are class numbers, class names or scores, but not several of them.
    pub(crate) fn of_cells<'a>(
        cells: impl Iterator<Item = (&'a Path, Place, &'a Cell)>,
        column: &str,
        names: Option<Vec<String>>,
    ) -> Result<Self> {
        let cells: Vec<_> = cells.collect();
        for (path, place, cell) in &cells {
            if matches!(cell, Cell::Null | Cell::Bytes(_) | Cell::Other(_)) {
                return Err(Error::row(
                    path,
                    *place,
                    format!("`{column}` is {}, expected a label", cell.kind()),
                ));
            }
        }
        let numbers: Option<Vec<f64>> = cells.iter().map(|(_, _, cell)| number(cell)).collect();
        if let Some(numbers) = numbers {
            if !numbers.iter().all(|x| x.fract() == 0.0) {
                if let Some(at) = numbers.iter().position(|x| !x.is_finite()) {
                    let (path, place, _) = cells[at];
                    return Err(Error::row(
                        path,
                        place,
                        format!("`{column}` is {}, expected a finite number", numbers[at]),
                    ));
                }
                return Ok(Self::Scores(numbers));
            }
            let mut ids = Vec::with_capacity(numbers.len());
            for ((path, place, _), x) in cells.iter().zip(numbers) {
                ids.push(class(x).map_err(|problem| Error::row(path, *place, problem))?);
            }
            return Ok(Self::Classes { ids, names });
        }
        let mut words = Vec::with_capacity(cells.len());
        for (path, place, cell) in &cells {
            match cell {
                Cell::Text(text) => words.push(text.trim().to_owned()),
                other => {
                    return Err(Error::row(
                        path,
                        *place,
                        format!(
                            "`{column}` is {} where other rows have strings; labels must be of one kind",
                            other.kind()
                        ),
                    ));
                }
            }
        }
        let mut names = words.clone();
        names.sort();
        names.dedup();
        let ids = words
            .iter()
            .filter_map(|word| names.binary_search(word).ok())
            .map(|at| at as u32)
            .collect();
        Ok(Self::Names { ids, names })
    }
}

fn number(cell: &Cell) -> Option<f64> {
    match cell {
        Cell::Bool(value) => Some(f64::from(u8::from(*value))),
        Cell::Int(number) => Some(*number as f64),
        Cell::Float(number) => Some(*number),
        Cell::Text(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// A class from a whole number.
pub(crate) fn class(x: f64) -> Result<u32, String> {
    if x == -1.0 {
        return Err(
            "the label is -1, by which data sets mark test samples whose labels are kept secret; \
             use another split"
                .to_owned(),
        );
    }
    if x.fract() == 0.0 && (0.0..f64::from(u32::MAX)).contains(&x) {
        Ok(x as u32)
    } else {
        Err(format!("the label is {x}, expected the number of a class"))
    }
}
