//! Rows of named columns: JSON lines, JSON, CSV, TSV, plain text and Parquet seen as one thing.
//!
//! [`Table::open`] finds the columns (from the schema, the header line or the first rows); [`Table::read`] passes once
//! over the rows and keeps the chosen columns of the chosen rows, so that a few hundred samples of a large file cost
//! the memory of a few hundred samples.

mod csv;
mod json;
mod parquet;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Place, Result, list};
use crate::select::Selection;

/// Rows looked at to find the columns of a format without schema.
const PEEK: usize = 100;

/// How a table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TableFormat {
    JsonLines,
    Json,
    Text,
    Csv,
    Tsv,
    Parquet,
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Strings.
    Text,
    /// Whole numbers.
    Integer,
    /// Numbers.
    Number,
    /// True or false.
    Bool,
    /// Bytes of encoded images.
    Image,
    /// Different things in different rows: what does not fit is found when its row is read.
    Mixed,
    /// Something that is not read, by the word for it.
    Other(&'static str),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Bool => "boolean",
            Self::Image => "image",
            Self::Mixed => "of several kinds",
            Self::Other(word) => word,
        })
    }
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    /// Its name.
    pub(crate) name: String,
    /// What it holds.
    pub(crate) kind: Kind,
}

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cell {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    Other(&'static str),
}

impl Cell {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Float(_) => "a number",
            Self::Text(_) => "a string",
            Self::Bytes(_) => "bytes",
            Self::Other(word) => word,
        }
    }
}

/// A row being read: where it is, and the cells of the columns asked for.
type Visit<'a> = dyn FnMut(Place, Vec<Cell>) -> Result<()> + 'a;

/// One or several files with the same columns.
#[derive(Debug)]
pub(crate) struct Table {
    files: Vec<PathBuf>,
    format: TableFormat,
    columns: Vec<Column>,
    /// Names of classes by column, where the file tells them.
    class_names: BTreeMap<String, Vec<String>>,
}

/// Rows that were kept: the columns asked for, and where every row was.
#[derive(Debug)]
pub(crate) struct Rows {
    /// Cells, one vector a row, in the order the columns were asked for.
    pub(crate) cells: Vec<Vec<Cell>>,
    /// File and place of each row.
    pub(crate) places: Vec<(usize, Place)>,
    /// Number of each row, counted over all files.
    pub(crate) numbers: Vec<u64>,
    /// Rows left out because the first column asked for was empty.
    pub(crate) blank: u64,
}

impl Table {
    /// Opens files of one format and finds their columns.
    ///
    /// # Errors
    /// If a file cannot be read or is empty, or if the files have different columns.
    pub(crate) fn open(files: Vec<PathBuf>, format: TableFormat) -> Result<Self> {
        let mut table = Self {
            files: Vec::new(),
            format,
            columns: Vec::new(),
            class_names: BTreeMap::new(),
        };
        for path in files {
            let found = match format {
                TableFormat::JsonLines => json::columns(&path, true)?,
                TableFormat::Json => json::columns(&path, false)?,
                TableFormat::Text => vec![Column {
                    name: "text".to_owned(),
                    kind: Kind::Text,
                }],
                TableFormat::Csv => csv::columns(&path, b',')?,
                TableFormat::Tsv => csv::columns(&path, b'\t')?,
                TableFormat::Parquet => {
                    let schema = parquet::schema(&path)?;
                    table.class_names.extend(schema.class_names);
                    schema.columns
                }
            };
            if found.is_empty() {
                return Err(Error::source(&path, "holds no samples"));
            }
            if table.files.is_empty() {
                table.columns = found;
            } else {
                for column in &mut table.columns {
                    match found.iter().find(|other| other.name == column.name) {
                        Some(other) => column.kind = join(column.kind, other.kind),
                        None => {
                            return Err(Error::source(
                                &path,
                                format!(
                                    "has no column `{}`, which `{}` has; files read together need the same columns",
                                    column.name,
                                    table.files[0].display()
                                ),
                            ));
                        }
                    }
                }
            }
            table.files.push(path);
        }
        Ok(table)
    }

    /// The columns.
    pub(crate) fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The file, or the first of them.
    pub(crate) fn path(&self) -> &Path {
        &self.files[0]
    }

    pub(crate) fn file(&self, index: usize) -> &Path {
        &self.files[index]
    }

    pub(crate) fn class_names(&self, column: &str) -> Option<&Vec<String>> {
        self.class_names.get(column)
    }

    /// The column called `name`, or an error that lists the columns.
    pub(crate) fn column(&self, name: &str) -> Result<&Column> {
        self.find(name)
            .ok_or_else(|| self.refuse(format!("there is no column `{name}`")))
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// An error about the choice of a column, with the list of them.
    pub(crate) fn refuse(&self, problem: impl Into<String>) -> Error {
        Error::Column {
            path: self.path().to_owned(),
            problem: problem.into(),
            columns: self
                .columns
                .iter()
                .map(|column| format!("{} ({})", column.name, column.kind))
                .collect(),
        }
    }

    /// Reads the columns `names` of the rows that `filter` (a column and the value it must have) lets through and the
    /// selection takes. Rows whose first column is null or blank are left out before the selection.
    pub(crate) fn read(
        &self,
        names: &[&str],
        filter: Option<(&str, &str)>,
        limit: Option<usize>,
        seed: u64,
    ) -> Result<Rows> {
        let mut wanted: Vec<&str> = names.to_vec();
        wanted.extend(filter.map(|(column, _)| column));
        for name in &wanted {
            let column = self.column(name)?;
            if let Kind::Other(word) = column.kind {
                return Err(self.refuse(format!("column `{name}` holds {word}, which is not read")));
            }
        }
        let mut selection = Selection::new(limit, seed);
        let mut number = 0;
        let mut matched = 0_u64;
        let mut blank = 0;
        let mut seen: Vec<String> = Vec::new();
        for (file, path) in self.files.iter().enumerate() {
            let mut take = |place: Place, mut cells: Vec<Cell>| -> Result<()> {
                let row = number;
                number += 1;
                if let Some((_, value)) = filter {
                    let found = cells.pop().map_or(String::new(), |cell| display(&cell));
                    if found != value {
                        if seen.len() < 8 && !seen.contains(&found) {
                            seen.push(found);
                        }
                        return Ok(());
                    }
                }
                matched += 1;
                if matches!(&cells[0], Cell::Null)
                    || matches!(&cells[0], Cell::Text(text) if text.trim().is_empty())
                {
                    blank += 1;
                    return Ok(());
                }
                selection.offer(row, || (file, place, cells));
                Ok(())
            };
            self.visit(path, &wanted, &mut take)?;
        }
        if let (0, Some((column, value))) = (matched, filter) {
            return Err(Error::source(
                self.path(),
                format!(
                    "has no row whose `{column}` is `{value}`; found are {}",
                    list(&seen)
                ),
            ));
        }
        let mut rows = Rows {
            cells: Vec::new(),
            places: Vec::new(),
            numbers: Vec::new(),
            blank,
        };
        for (number, (file, place, cells)) in selection.finish() {
            rows.cells.push(cells);
            rows.places.push((file, place));
            rows.numbers.push(number);
        }
        if rows.cells.is_empty() {
            let problem = match blank {
                0 => "holds no samples".to_owned(),
                _ => format!(
                    "holds no samples: column `{}` is empty in every row",
                    names[0]
                ),
            };
            return Err(Error::source(self.path(), problem));
        }
        Ok(rows)
    }

    fn visit(&self, path: &Path, wanted: &[&str], visit: &mut Visit<'_>) -> Result<()> {
        match self.format {
            TableFormat::JsonLines => json::lines(path, wanted, visit),
            TableFormat::Json => json::document(path, wanted, visit),
            TableFormat::Text => json::text(path, wanted.len(), visit),
            TableFormat::Csv => csv::rows(path, b',', wanted, visit),
            TableFormat::Tsv => csv::rows(path, b'\t', wanted, visit),
            TableFormat::Parquet => parquet::rows(path, wanted, visit),
        }
    }
}

/// What a column holds whose parts hold `a` and `b`.
fn join(a: Kind, b: Kind) -> Kind {
    match (a, b) {
        (a, b) if a == b => a,
        (Kind::Integer | Kind::Bool, Kind::Number) | (Kind::Number, Kind::Integer | Kind::Bool) => {
            Kind::Number
        }
        (Kind::Integer, Kind::Bool) | (Kind::Bool, Kind::Integer) => Kind::Integer,
        _ => Kind::Mixed,
    }
}

/// A cell as it is compared with the value of a filter.
fn display(cell: &Cell) -> String {
    match cell {
        Cell::Text(text) => text.clone(),
        Cell::Int(number) => number.to_string(),
        Cell::Float(number) => number.to_string(),
        Cell::Bool(value) => value.to_string(),
        other => other.kind().to_owned(),
    }
}
