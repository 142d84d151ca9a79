//! Which column is read for what, and texts and numbers out of rows.

use crate::error::{Error, Result};
use crate::source::{Found, Source, find};
use crate::table::{Cell, Kind, Rows, Table};

/// Columns that hold conversations.
const CHATS: [&str; 5] = [
    "messages",
    "conversations",
    "conversation",
    "chat",
    "dialog",
];
/// Names a column of images has by custom.
const IMAGES: [&str; 4] = ["image", "img", "images", "pixel_values"];

/// Texts and numbers of the columns of a source, for tasks that compare them.
#[derive(Debug, Clone, PartialEq)]
pub struct Columns {
    /// The texts of each column asked for.
    pub texts: Vec<Vec<String>>,
    /// The numbers of the column asked for.
    pub scores: Option<Vec<f64>>,
    /// Number of each row in its source.
    pub rows: Vec<u64>,
    /// What was left out.
    pub notes: Vec<String>,
}

/// Reads columns of texts, and one of numbers, from a source that is a table.
///
/// # Errors
/// A source that is no table, a column that is missing, a row without a value.
pub fn read_columns(
    source: &Source,
    texts_from: &[&str],
    scores_from: Option<&str>,
    samples: Option<usize>,
    seed: u64,
) -> Result<Columns> {
    let Found::Table {
        files,
        format,
        split,
    } = find(source)?
    else {
        return Err(Error::source(
            &source.path,
            "is no table; texts to be compared are read from columns of JSON lines, JSON, CSV, TSV or Parquet",
        ));
    };
    let table = Table::open(files, format)?;
    let mut names = texts_from.to_vec();
    names.extend(scores_from);
    let filter = filter_of(&table, split.as_deref())?;
    let rows = table.read(&names, filter, samples, seed)?;
    let columns = texts_from
        .iter()
        .enumerate()
        .map(|(at, name)| texts_of(&table, &rows, at, name))
        .collect::<Result<_>>()?;
    let scores = match scores_from {
        None => None,
        Some(name) => {
            let at = texts_from.len();
            let mut scores = Vec::with_capacity(rows.cells.len());
            for (cells, &(file, place)) in rows.cells.iter().zip(&rows.places) {
                let number = match &cells[at] {
                    Cell::Int(n) => Some(*n as f64),
                    Cell::Float(x) => Some(*x),
                    Cell::Bool(b) => Some(f64::from(u8::from(*b))),
                    Cell::Text(text) => text.trim().parse().ok(),
                    _ => None,
                };
                match number.filter(|x: &f64| x.is_finite()) {
                    Some(number) => scores.push(number),
                    None => {
                        return Err(Error::row(
                            table.file(file),
                            place,
                            format!("`{name}` is {}, expected a number", cells[at].kind()),
                        ));
                    }
                }
            }
            Some(scores)
        }
    };
    let notes = match rows.blank {
        0 => Vec::new(),
        n => vec![format!(
            "{n} rows without a value in column `{}` are left out",
            names[0]
        )],
    };
    Ok(Columns {
        texts: columns,
        scores,
        rows: rows.numbers,
        notes,
    })
}

/// The texts of column `at` of the rows read, called `name`.
pub(crate) fn texts_of(table: &Table, rows: &Rows, at: usize, name: &str) -> Result<Vec<String>> {
    rows.cells
        .iter()
        .zip(&rows.places)
        .map(|(cells, &(file, place))| match &cells[at] {
            Cell::Text(text) => Ok(text.clone()),
            other => Err(Error::row(
                table.file(file),
                place,
                format!("`{name}` is {}, expected a string", other.kind()),
            )),
        })
        .collect()
}

/// What rows of `split` have in the column of that name.
pub(crate) fn filter_of<'a>(
    table: &Table,
    split: Option<&'a str>,
) -> Result<Option<(&'static str, &'a str)>> {
    match split {
        Some(split) if table.find("split").is_none() => Err(table.refuse(format!(
            "there is no column `split`, by which `{split}` would be told apart"
        ))),
        split => Ok(split.map(|split| ("split", split))),
    }
}

/// The column that the model reads, and whether it holds texts or images.
pub(crate) fn input_column(table: &Table, source: &Source) -> Result<(String, Kind)> {
    if let Some(name) = &source.column {
        let column = table.column(name)?;
        return match column.kind {
            Kind::Text | Kind::Image => Ok((name.clone(), column.kind)),
            // A column of digits, in a format that does not tell strings from numbers.
            Kind::Integer | Kind::Number | Kind::Mixed => Ok((name.clone(), Kind::Text)),
            _ if CHATS.contains(&name.as_str()) => Err(chat(table, name)),
            kind => Err(table.refuse(format!(
                "column `{name}` holds {kind}; expected strings or images"
            ))),
        };
    }
    let is = |name: &str, kind| table.find(name).is_some_and(|column| column.kind == kind);
    if is("text", Kind::Text) || is("text", Kind::Mixed) {
        return Ok(("text".into(), Kind::Text));
    }
    if let Some(name) = IMAGES.iter().find(|name| is(name, Kind::Image)) {
        return Ok(((*name).into(), Kind::Image));
    }
    let taken = |name: &str| {
        name == "split"
            || [&source.pair, &source.target, &source.label]
                .into_iter()
                .any(|other| other.as_deref() == Some(name))
    };
    let of = |kind| {
        table
            .columns()
            .iter()
            .filter(move |column| column.kind == kind && !taken(&column.name))
            .map(|column| column.name.clone())
            .collect::<Vec<_>>()
    };
    match (&of(Kind::Text)[..], &of(Kind::Image)[..]) {
        ([only], _) => Ok((only.clone(), Kind::Text)),
        ([], [only]) => Ok((only.clone(), Kind::Image)),
        ([], _) => {
            if let Some(name) = CHATS.iter().find(|name| table.find(name).is_some()) {
                return Err(chat(table, name));
            }
            Err(table.refuse("there is no column of strings or images"))
        }
        _ => Err(table.refuse(
            "there is no column `text`, and several hold strings; name the one that is meant",
        )),
    }
}

fn chat(table: &Table, name: &str) -> Error {
    table.refuse(format!(
        "column `{name}` holds conversations, whose template belongs to the model and is not applied here; write them \
         to a column of texts first, for example with `tokenizer.apply_chat_template(messages, tokenize=False)`"
    ))
}

/// The column of labels.
pub(crate) fn label_column(table: &Table, source: &Source, taken: &[&str]) -> Result<String> {
    if let Some(name) = &source.label {
        return Ok(table.column(name)?.name.clone());
    }
    if let Some(name) = ["label", "labels"]
        .iter()
        .find(|name| table.find(name).is_some())
    {
        return Ok((*name).into());
    }
    let mut integers = table.columns().iter().filter(|column| {
        matches!(column.kind, Kind::Integer | Kind::Bool) && !taken.contains(&column.name.as_str())
    });
    match (integers.next(), integers.next()) {
        (Some(only), None) => Ok(only.name.clone()),
        _ => Err(table.refuse(
            "there is no column `label`, and none that is clearly the labels; name the one that is meant",
        )),
    }
}
