//! JSON lines, JSON documents and plain text.
//!
//! A line or element is an object (its keys are the columns) or a bare string (column `text`). A document is an array of
//! those, an object with one array of objects in it (`{"data": […]}`), or several objects one after the other.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::Value;

use super::{Cell, Column, Kind, PEEK, Visit, join};
use crate::error::{Error, Place, Result};

/// Longest line accepted, and longest JSON document.
const MAX_LINE: u64 = 256 << 20;
const MAX_DOCUMENT: u64 = 2 << 30;

/// The columns of the first rows, in the order they appear.
pub(super) fn columns(path: &Path, lines: bool) -> Result<Vec<Column>> {
    let mut columns: Vec<(String, Option<Kind>)> = Vec::new();
    let mut add = |value: &Value| {
        for (name, value) in entries(value) {
            let kind = kind(value);
            match columns.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => {
                    *known = match (*known, kind) {
                        (Some(a), Some(b)) => Some(join(a, b)),
                        (a, b) => a.or(b),
                    }
                }
                None => columns.push((name.to_owned(), kind)),
            }
        }
    };
    if lines {
        let mut left = PEEK;
        each_line(path, |place, line| {
            add(&parse(path, place, line)?);
            left -= 1;
            Ok(left > 0)
        })?;
    } else {
        read_document(path)?.iter().take(PEEK).for_each(add);
    }
    Ok(columns
        .into_iter()
        .map(|(name, kind)| Column {
            name,
            kind: kind.unwrap_or(Kind::Other("only null")),
        })
        .collect())
}

/// Every row of a file of JSON lines.
pub(super) fn lines(path: &Path, wanted: &[&str], visit: &mut Visit<'_>) -> Result<()> {
    each_line(path, |place, line| {
        visit(place, cells(parse(path, place, line)?, wanted))?;
        Ok(true)
    })
}

/// Every row of a JSON document.
pub(super) fn document(path: &Path, wanted: &[&str], visit: &mut Visit<'_>) -> Result<()> {
    for (row, value) in (0..).zip(read_document(path)?) {
        let place = Place::Row(row);
        expect_row(&value).map_err(|problem| Error::row(path, place, problem))?;
        visit(place, cells(value, wanted))?;
    }
    Ok(())
}

/// Every line of a text file, as the only column.
pub(super) fn text(path: &Path, columns: usize, visit: &mut Visit<'_>) -> Result<()> {
    each_line(path, |place, line| {
        visit(place, vec![Cell::Text(line.to_owned()); columns])?;
        Ok(true)
    })
}

/// Calls `f` with every line that is not blank, without its end, until it answers `false`.
fn each_line(path: &Path, mut f: impl FnMut(Place, &str) -> Result<bool>) -> Result<()> {
    let file = File::open(path).map_err(|cause| Error::io("open", path, cause))?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        let place = Place::Line(number);
        let read = (&mut reader)
            .take(MAX_LINE + 1)
            .read_until(b'\n', &mut bytes)
            .map_err(|cause| Error::io("read", path, cause))?;
        if read == 0 {
            break;
        }
        if read as u64 > MAX_LINE {
            return Err(Error::row(
                path,
                place,
                format!("the line is longer than {MAX_LINE} bytes"),
            ));
        }
        let line = std::str::from_utf8(&bytes).map_err(|error| {
            Error::row(
                path,
                place,
                format!("not valid UTF-8 at byte {}", error.valid_up_to()),
            )
        })?;
        let line = if number == 1 {
            line.trim_start_matches('\u{feff}')
        } else {
            line
        };
        let line = line.trim_end_matches(['\n', '\r']);
        if !line.trim().is_empty() && !f(place, line)? {
            break;
        }
    }
    Ok(())
}

fn parse(path: &Path, place: Place, line: &str) -> Result<Value> {
    let refused = |problem| Error::row(path, place, problem);
    let value: Value = serde_json::from_str(line).map_err(|error| {
        refused(format!(
            "not valid JSON: {}",
            error.to_string().replace(" at line 1 column", " at column")
        ))
    })?;
    expect_row(&value).map_err(refused)?;
    Ok(value)
}

fn expect_row(value: &Value) -> Result<(), String> {
    match value {
        Value::Object(_) | Value::String(_) => Ok(()),
        other => Err(format!(
            "expected an object such as {{\"text\": …}} or a string, found {}",
            word(other)
        )),
    }
}

fn read_document(path: &Path) -> Result<Vec<Value>> {
    let size = std::fs::metadata(path)
        .map_err(|cause| Error::io("open", path, cause))?
        .len();
    if size > MAX_DOCUMENT {
        return Err(Error::source(
            path,
            format!(
                "has {size} bytes; a JSON document is read as a whole, so write one of this size as JSON lines"
            ),
        ));
    }
    let bytes = std::fs::read(path).map_err(|cause| Error::io("read", path, cause))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let line = String::from_utf8_lossy(&bytes[..error.valid_up_to()])
            .matches('\n')
            .count();
        Error::row(path, Place::Line(line as u64 + 1), "not valid UTF-8")
    })?;
    let text = text.trim_start_matches('\u{feff}');
    let mut values = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        values.push(value.map_err(|error| {
            Error::row(
                path,
                Place::Line(error.line() as u64),
                format!("not valid JSON: {error}"),
            )
        })?);
    }
    if values.len() != 1 {
        return Ok(values);
    }
    match values.pop() {
        Some(Value::Array(rows)) => Ok(rows),
        Some(Value::Object(mut object)) => {
            let mut arrays = object
                .iter()
                .filter(|(_, value)| matches!(value, Value::Array(rows) if rows.iter().any(Value::is_object)))
                .map(|(name, _)| name.clone());
            match (arrays.next(), arrays.next()) {
                (Some(name), None) => match object.remove(&name) {
                    Some(Value::Array(rows)) => Ok(rows),
                    _ => Ok(Vec::new()),
                },
                _ => Ok(vec![Value::Object(object)]),
            }
        }
        other => Ok(other.into_iter().collect()),
    }
}

/// Names and values of a row.
fn entries(value: &Value) -> Vec<(&str, &Value)> {
    match value {
        Value::Object(object) => object
            .iter()
            .map(|(name, value)| (&**name, value))
            .collect(),
        other => vec![("text", other)],
    }
}

fn cells(value: Value, wanted: &[&str]) -> Vec<Cell> {
    match value {
        Value::Object(object) => wanted
            .iter()
            .map(|name| object.get(*name).map_or(Cell::Null, cell))
            .collect(),
        other => wanted
            .iter()
            .map(|name| {
                if *name == "text" {
                    cell(&other)
                } else {
                    Cell::Null
                }
            })
            .collect(),
    }
}

fn cell(value: &Value) -> Cell {
    match value {
        Value::Null => Cell::Null,
        Value::Bool(value) => Cell::Bool(*value),
        Value::Number(number) => match number.as_i64() {
            Some(number) => Cell::Int(number),
            None => Cell::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => Cell::Text(text.clone()),
        other => Cell::Other(word(other)),
    }
}

/// What a value is; `None` for null, which fits any column.
fn kind(value: &Value) -> Option<Kind> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(_) => Kind::Bool,
        Value::Number(number) if number.is_i64() => Kind::Integer,
        Value::Number(_) => Kind::Number,
        Value::String(_) => Kind::Text,
        other => Kind::Other(word(other)),
    })
}

fn word(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
