//! Parquet, as the Hugging Face Hub distributes data sets: strings, numbers, class labels with their names, and images
//! (a group with a `bytes` column).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;

use super::{Cell, Column, Kind, Visit};
use crate::error::{Error, Place, Result};

/// Columns of a file, and names of classes the data set's card put into its metadata.
pub(super) struct Schema {
    pub(super) columns: Vec<Column>,
    pub(super) class_names: BTreeMap<String, Vec<String>>,
}

pub(super) fn schema(path: &Path) -> Result<Schema> {
    let reader = open(path)?;
    let metadata = reader.metadata().file_metadata();
    if metadata.num_rows() <= 0 {
        return Err(Error::source(path, "holds no samples"));
    }
    let columns = metadata
        .schema()
        .get_fields()
        .iter()
        .map(|field| Column {
            name: field.name().to_owned(),
            kind: kind(field),
        })
        .collect();
    let card = metadata
        .key_value_metadata()
        .into_iter()
        .flatten()
        .find(|entry| entry.key == "huggingface")
        .and_then(|entry| entry.value.as_deref())
        .and_then(|text| serde_json::from_str(text).ok());
    Ok(Schema {
        columns,
        class_names: card.as_ref().map(class_names).unwrap_or_default(),
    })
}

/// Names of the classes of `ClassLabel` columns.
fn class_names(card: &serde_json::Value) -> BTreeMap<String, Vec<String>> {
    let features = card["info"]["features"].as_object();
    features
        .into_iter()
        .flatten()
        .filter_map(|(column, feature)| {
            let names = feature["names"].as_array()?;
            let names: Option<Vec<String>> = names
                .iter()
                .map(|name| name.as_str().map(str::to_owned))
                .collect();
            Some((column.clone(), names?))
        })
        .collect()
}

/// Every row, reading only the columns asked for.
pub(super) fn rows(path: &Path, wanted: &[&str], visit: &mut Visit<'_>) -> Result<()> {
    let reader = open(path)?;
    let root = reader.metadata().file_metadata().schema();
    let fields = root
        .get_fields()
        .iter()
        .filter(|field| wanted.contains(&field.name()))
        .map(Arc::clone)
        .collect();
    let projection = Type::group_type_builder(root.name())
        .with_fields(fields)
        .build()
        .map_err(|error| problem(path, &error))?;
    let rows =
        RowIter::from_file(Some(projection), &reader).map_err(|error| problem(path, &error))?;
    for (number, row) in (0..).zip(rows) {
        let row = row.map_err(|error| problem(path, &error))?;
        visit(Place::Row(number), cells(&row, wanted))?;
    }
    Ok(())
}

fn open(path: &Path) -> Result<SerializedFileReader<File>> {
    let file = File::open(path).map_err(|cause| Error::io("open", path, cause))?;
    SerializedFileReader::new(file).map_err(|error| problem(path, &error))
}

fn problem(path: &Path, error: &ParquetError) -> Error {
    Error::source(path, format!("is not readable as Parquet: {error}"))
}

fn kind(field: &Type) -> Kind {
    if field.is_group() {
        return if bytes_field(field).is_some() {
            Kind::Image
        } else {
            match field.get_basic_info().converted_type() {
                ConvertedType::LIST => Kind::Other("a list"),
                ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE => Kind::Other("a map"),
                _ => Kind::Other("an object"),
            }
        };
    }
    let info = field.get_basic_info();
    if info.has_repetition() && info.repetition() == parquet::basic::Repetition::REPEATED {
        return Kind::Other("a list");
    }
    let special = |logical: &LogicalType| !matches!(logical, LogicalType::Integer(_));
    match field.get_physical_type() {
        Physical::BOOLEAN => Kind::Bool,
        Physical::BYTE_ARRAY => match info.converted_type() {
            ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON => Kind::Text,
            ConvertedType::NONE => Kind::Image,
            _ => Kind::Other("bytes"),
        },
        Physical::INT32 | Physical::INT64 if !info.logical_type_ref().is_some_and(special) => {
            match info.converted_type() {
                ConvertedType::NONE
                | ConvertedType::INT_8
                | ConvertedType::INT_16
                | ConvertedType::INT_32
                | ConvertedType::INT_64
                | ConvertedType::UINT_8
                | ConvertedType::UINT_16
                | ConvertedType::UINT_32
                | ConvertedType::UINT_64 => Kind::Integer,
                _ => Kind::Other("a date or decimal"),
            }
        }
        Physical::FLOAT | Physical::DOUBLE => Kind::Number,
        _ => Kind::Other("a date, decimal or fixed-size value"),
    }
}

/// The member of an image's group that holds its bytes.
fn bytes_field(group: &Type) -> Option<&Type> {
    let is_bytes = |field: &&Arc<Type>| {
        field.name() == "bytes"
            && field.is_primitive()
            && field.get_physical_type() == Physical::BYTE_ARRAY
    };
    group
        .get_fields()
        .iter()
        .find(is_bytes)
        .map(|field| &**field)
}

fn cells(row: &Row, wanted: &[&str]) -> Vec<Cell> {
    let get = |name: &str| {
        row.get_column_iter()
            .find(|(column, _)| *column == name)
            .map_or(Cell::Null, |(_, field)| cell(field))
    };
    wanted.iter().map(|name| get(name)).collect()
}

fn cell(field: &Field) -> Cell {
    match field {
        Field::Null => Cell::Null,
        Field::Bool(value) => Cell::Bool(*value),
        Field::Byte(n) => Cell::Int((*n).into()),
        Field::Short(n) => Cell::Int((*n).into()),
        Field::Int(n) => Cell::Int((*n).into()),
        Field::Long(n) => Cell::Int(*n),
        Field::UByte(n) => Cell::Int((*n).into()),
        Field::UShort(n) => Cell::Int((*n).into()),
        Field::UInt(n) => Cell::Int((*n).into()),
        Field::ULong(n) => i64::try_from(*n).map_or(Cell::Float(*n as f64), Cell::Int),
        Field::Float(x) => Cell::Float((*x).into()),
        Field::Double(x) => Cell::Float(*x),
        Field::Str(text) => Cell::Text(text.clone()),
        Field::Bytes(bytes) => Cell::Bytes(bytes.data().to_vec()),
        Field::Group(group) => group
            .get_column_iter()
            .find(|(name, _)| *name == "bytes")
            .map_or(Cell::Null, |(_, field)| cell(field)),
        Field::ListInternal(_) => Cell::Other("a list"),
        Field::MapInternal(_) => Cell::Other("a map"),
        _ => Cell::Other("a value of another kind"),
    }
}
