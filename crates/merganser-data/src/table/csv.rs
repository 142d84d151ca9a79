//! Comma- and tab-separated values with a line of column names.

use std::fs::File;
use std::path::Path;

use csv::{ErrorKind, Reader, ReaderBuilder, StringRecord};

use super::{Cell, Column, Kind, PEEK, Visit, join};
use crate::error::{Error, Place, Result};

/// The columns of the header line. A column is numeric if all values of the first rows are.
pub(super) fn columns(path: &Path, delimiter: u8) -> Result<Vec<Column>> {
    let mut reader = open(path, delimiter)?;
    let names = names(path, &mut reader)?;
    let mut kinds: Vec<Option<Kind>> = vec![None; names.len()];
    let mut record = StringRecord::new();
    for _ in 0..PEEK {
        if !reader
            .read_record(&mut record)
            .map_err(|error| problem(path, error))?
        {
            break;
        }
        for (kind, value) in kinds.iter_mut().zip(&record) {
            if !value.trim().is_empty() {
                let found = kind_of(value);
                *kind = Some(match *kind {
                    None => found,
                    // A word among numbers makes a column of words.
                    Some(Kind::Text) => Kind::Text,
                    Some(_) if found == Kind::Text => Kind::Text,
                    Some(known) => join(known, found),
                });
            }
        }
    }
    if kinds.iter().all(Option::is_none) {
        return Ok(Vec::new());
    }
    Ok(names
        .into_iter()
        .zip(kinds)
        .map(|(name, kind)| Column {
            name,
            kind: kind.unwrap_or(Kind::Text),
        })
        .collect())
}

/// Every row. Values stay text, whatever the kind of their column, so that `007` is not rewritten.
pub(super) fn rows(
    path: &Path,
    delimiter: u8,
    wanted: &[&str],
    visit: &mut Visit<'_>,
) -> Result<()> {
    let mut reader = open(path, delimiter)?;
    let names = names(path, &mut reader)?;
    let positions: Vec<Option<usize>> = wanted
        .iter()
        .map(|wanted| names.iter().position(|name| name == wanted))
        .collect();
    let mut record = StringRecord::new();
    while reader
        .read_record(&mut record)
        .map_err(|error| problem(path, error))?
    {
        let line = record.position().map_or(0, csv::Position::line);
        let cells = positions
            .iter()
            .map(|position| match position.and_then(|at| record.get(at)) {
                None | Some("") => Cell::Null,
                Some(value) => Cell::Text(value.to_owned()),
            })
            .collect();
        visit(Place::Line(line), cells)?;
    }
    Ok(())
}

fn open(path: &Path, delimiter: u8) -> Result<Reader<File>> {
    let file = File::open(path).map_err(|cause| Error::io("open", path, cause))?;
    let mut builder = ReaderBuilder::new();
    builder.delimiter(delimiter);
    Ok(builder.from_reader(file))
}

fn names(path: &Path, reader: &mut Reader<File>) -> Result<Vec<String>> {
    let header = reader.headers().map_err(|error| problem(path, error))?;
    let names: Vec<String> = header
        .iter()
        .map(|name| name.trim_start_matches('\u{feff}').trim().to_owned())
        .collect();
    for (k, name) in names.iter().enumerate() {
        if names[..k].contains(name) {
            return Err(Error::row(
                path,
                Place::Line(1),
                format!("two columns are called `{name}`"),
            ));
        }
    }
    Ok(names)
}

fn kind_of(value: &str) -> Kind {
    let value = value.trim();
    if value.parse::<i64>().is_ok() {
        Kind::Integer
    } else if value.parse::<f64>().is_ok() {
        Kind::Number
    } else {
        Kind::Text
    }
}

fn problem(path: &Path, error: csv::Error) -> Error {
    let line = |position: Option<csv::Position>| {
        Place::Line(position.map_or(1, |position| position.line()))
    };
    match error.into_kind() {
        ErrorKind::Io(cause) => Error::io("read", path, cause),
        ErrorKind::Utf8 { pos, err } => Error::row(
            path,
            line(pos),
            format!("not valid UTF-8 in column {}", err.field() + 1),
        ),
        ErrorKind::UnequalLengths {
            pos,
            expected_len,
            len,
        } => Error::row(
            path,
            line(pos),
            format!(
                "found {len} values, expected {expected_len} as in the first line; \
                 quote values that hold the separator or a line break"
            ),
        ),
        other => Error::source(path, format!("is not readable as CSV: {other:?}")),
    }
}
