//! A column of lists of real numbers in a Parquet file.
//!
//! The lists of a column must be as long as one another and hold no nulls. When the file is written again, other columns
//! are copied page by page as they are, without being decoded; the vectors are written as plain pages with the compression
//! they had. Vectors do not compress by dictionary, and pages without one need not be held until a row group ends.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

use merganser_store::Dtype;
use merganser_store::new_file::staging;
use parquet::basic::{Compression, Type as Physical};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_typed_column_reader};
use parquet::column::writer::ColumnCloseResult;
use parquet::data_type::{DataType, DoubleType, FloatType};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use rayon::prelude::*;

use super::transform::Change;
use super::{Body, Rows, VectorFile};
use crate::error::{Error, Result, list};

/// Rows of a piece of work of one thread.
const PIECE: usize = 256;

/// Opens the file and finds the column of vectors, the number of them and their length.
pub(super) fn open(path: &Path, name: Option<&str>) -> Result<VectorFile> {
    let reader = reader(path)?;
    let vectors = columns(&reader);
    let names: Vec<&str> = vectors.iter().map(|(name, ..)| name.as_str()).collect();
    let chosen = match name {
        Some(name) => vectors.iter().find(|(other, ..)| other == name),
        None if vectors.len() > 1 => {
            return Err(Error::source(
                path,
                format!(
                    "has several columns of vectors, {}; name one as `{}#{}`",
                    list(&names),
                    path.display(),
                    names[0]
                ),
            ));
        }
        None => vectors.first(),
    };
    let Some((name, leaf, dtype)) = chosen else {
        let fields = reader.metadata().file_metadata().schema().get_fields();
        let all: Vec<&str> = fields.iter().map(|field| field.name()).collect();
        let wanted = name.map_or(String::new(), |name| format!(" `{name}`"));
        return Err(Error::source(
            path,
            format!(
                "has no column{wanted} of lists of float or double; its columns are {}",
                list(&all)
            ),
        ));
    };
    let rows = usize::try_from(reader.metadata().file_metadata().num_rows()).unwrap_or(0);
    let mut file = VectorFile {
        path: path.to_owned(),
        name: name.clone(),
        rows,
        dim: 0,
        dtype: *dtype,
        body: Body::Parquet,
    };
    file.dim = length_of_first(&file, &reader, *leaf)?;
    Ok(file)
}

/// The leaves that hold one list of real numbers a row: their name, number and type.
fn columns(reader: &SerializedFileReader<File>) -> Vec<(String, usize, Dtype)> {
    let schema = reader.metadata().file_metadata().schema_descr();
    let mut found = Vec::new();
    for (leaf, column) in schema.columns().iter().enumerate() {
        let dtype = match column.physical_type() {
            Physical::FLOAT => Dtype::F32,
            Physical::DOUBLE => Dtype::F64,
            _ => continue,
        };
        if column.max_rep_level() == 1 {
            let root = schema.get_column_root(leaf).name();
            let alone = |other: usize| schema.get_column_root(other).name() == root;
            if (0..schema.num_columns()).filter(|&k| alone(k)).count() == 1 {
                found.push((root.to_owned(), leaf, dtype));
            }
        }
    }
    found
}

fn leaf_of(file: &VectorFile, reader: &SerializedFileReader<File>) -> Result<usize> {
    columns(reader)
        .into_iter()
        .find(|(name, ..)| *name == file.name)
        .map(|(_, leaf, _)| leaf)
        .ok_or_else(|| Error::source(&file.path, "was changed since it was opened"))
}

fn length_of_first(
    file: &VectorFile,
    reader: &SerializedFileReader<File>,
    leaf: usize,
) -> Result<usize> {
    for group in 0..reader.num_row_groups() {
        let group = reader
            .get_row_group(group)
            .map_err(|error| problem(&file.path, &error))?;
        if group.metadata().num_rows() <= 0 {
            continue;
        }
        let column = group
            .get_column_reader(leaf)
            .map_err(|error| problem(&file.path, &error))?;
        let length = match column {
            ColumnReader::FloatColumnReader(mut column) => length_in(&mut column),
            ColumnReader::DoubleColumnReader(mut column) => length_in(&mut column),
            _ => Ok(0),
        };
        return match length.map_err(|error| problem(&file.path, &error))? {
            0 => Err(file.refuse("vector 0 is empty; every row needs one")),
            length => Ok(length),
        };
    }
    Err(Error::source(&file.path, "holds no vectors"))
}

fn length_in<T: DataType>(column: &mut ColumnReaderImpl<T>) -> Result<usize, ParquetError> {
    let (mut values, mut definitions, mut repetitions) = (Vec::new(), Vec::new(), Vec::new());
    let (_, count, _) = column.read_records(
        1,
        Some(&mut definitions),
        Some(&mut repetitions),
        &mut values,
    )?;
    Ok(count)
}

/// An element of a list, and how rows of it are given to a change.
trait Element: DataType<T: Copy + Default + Send + Sync + Into<f64>> {
    fn change(
        file: &VectorFile,
        first: usize,
        rows: &mut [Self::T],
        change: &Change<'_>,
    ) -> Result<()>;
}

impl Element for FloatType {
    fn change(
        file: &VectorFile,
        first: usize,
        rows: &mut [f32],
        change: &Change<'_>,
    ) -> Result<()> {
        file.change_singles(first, rows, change)
    }
}

impl Element for DoubleType {
    fn change(
        file: &VectorFile,
        first: usize,
        rows: &mut [f64],
        change: &Change<'_>,
    ) -> Result<()> {
        file.check(first, rows)?;
        change(first, Rows::F64(rows)).map_err(|problem| file.refuse(problem))
    }
}

/// Rows read from a column, with the levels that say where lists begin.
struct Block<T> {
    values: Vec<T>,
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
}

/// What is done with a block of rows; the number of the first is given.
type Take<'a, T> = dyn FnMut(usize, &mut Block<T>) -> Result<()> + 'a;

/// Gives the rows of a column block by block; `first` is the number of its first row.
fn blocks<T: DataType<T: Copy>>(
    file: &VectorFile,
    mut column: ColumnReaderImpl<T>,
    levels: (i16, i16),
    mut first: usize,
    take: &mut Take<'_, T::T>,
) -> Result<usize> {
    let (most_defined, most_repeated) = levels;
    let mut block = Block::<T::T> {
        values: Vec::new(),
        definitions: Vec::new(),
        repetitions: Vec::new(),
    };
    loop {
        block.values.clear();
        block.definitions.clear();
        block.repetitions.clear();
        let (records, _, _) = column
            .read_records(
                file.block(),
                Some(&mut block.definitions),
                Some(&mut block.repetitions),
                &mut block.values,
            )
            .map_err(|error| problem(&file.path, &error))?;
        if records == 0 {
            return Ok(first);
        }
        let nested = &block.repetitions;
        let regular = nested.len() == records * file.dim
            && nested
                .iter()
                .enumerate()
                .all(|(at, &level)| level == if at % file.dim == 0 { 0 } else { most_repeated });
        let defined = block
            .definitions
            .iter()
            .position(|&level| level != most_defined);
        if !regular || defined.is_some() {
            return Err(irregular(file, first, nested, defined));
        }
        take(first, &mut block)?;
        first += records;
    }
}

/// Says which row is not a vector like the others.
fn irregular(file: &VectorFile, first: usize, nested: &[i16], undefined: Option<usize>) -> Error {
    let mut row = first;
    let mut length = 0;
    for (at, &level) in nested.iter().enumerate() {
        if level == 0 && at > 0 {
            if length != file.dim {
                break;
            }
            row += 1;
            length = 0;
        }
        if undefined == Some(at) {
            return file.refuse(format!(
                "vector {row} is missing or holds a null; every row needs {} numbers",
                file.dim
            ));
        }
        length += 1;
    }
    file.refuse(format!(
        "vector {row} has {length} numbers, the first has {}",
        file.dim
    ))
}

pub(super) fn visit(
    file: &VectorFile,
    take: &mut dyn FnMut(usize, &[f64]) -> Result<()>,
) -> Result<()> {
    fn some<T: Element>(
        file: &VectorFile,
        column: ColumnReader,
        levels: (i16, i16),
        first: usize,
        take: &mut dyn FnMut(usize, &[f64]) -> Result<()>,
    ) -> Result<usize> {
        let column = get_typed_column_reader::<T>(column);
        blocks::<T>(file, column, levels, first, &mut |first, block| {
            let numbers: Vec<f64> = block.values.iter().map(|&x| x.into()).collect();
            file.check(first, &numbers)?;
            take(first, &numbers)
        })
    }
    let reader = reader(&file.path)?;
    let leaf = leaf_of(file, &reader)?;
    let levels = levels(&reader, leaf);
    let mut first = 0;
    for group in 0..reader.num_row_groups() {
        let column = reader
            .get_row_group(group)
            .and_then(|group| group.get_column_reader(leaf))
            .map_err(|error| problem(&file.path, &error))?;
        first = if file.dtype == Dtype::F64 {
            some::<DoubleType>(file, column, levels, first, take)?
        } else {
            some::<FloatType>(file, column, levels, first, take)?
        };
    }
    Ok(())
}

fn levels(reader: &SerializedFileReader<File>, leaf: usize) -> (i16, i16) {
    let column = reader
        .metadata()
        .file_metadata()
        .schema_descr()
        .column(leaf);
    (column.max_def_level(), column.max_rep_level())
}

pub(super) fn transform(
    file: &VectorFile,
    out: &Path,
    overwrite: bool,
    change: &Change<'_>,
) -> Result<()> {
    let staged = Staged(staging(out, overwrite)?);
    let created = File::create(&staged.0).map_err(|cause| Error::io("create", &staged.0, cause))?;
    let written = write(file, created, change).map_err(|error| match error {
        // The file that is written has no name of its own yet.
        Failure::Parquet(error) => problem(&file.path, &error),
        Failure::Data(error) => error,
    })?;
    written
        .sync_all()
        .map_err(|cause| Error::io("write", &staged.0, cause))?;
    std::fs::rename(&staged.0, out).map_err(|cause| Error::io("rename", &staged.0, cause))
}

/// A file without its name; removed unless it was renamed.
struct Staged(std::path::PathBuf);

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Either of what can go wrong while a file is copied.
enum Failure {
    Parquet(ParquetError),
    Data(Error),
}

impl From<ParquetError> for Failure {
    fn from(error: ParquetError) -> Self {
        Self::Parquet(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Data(error)
    }
}

fn write(file: &VectorFile, created: File, change: &Change<'_>) -> Result<File, Failure> {
    let source = File::open(&file.path).map_err(|cause| Error::io("open", &file.path, cause))?;
    let reader = reader(&file.path)?;
    let leaf = leaf_of(file, &reader)?;
    let levels = levels(&reader, leaf);
    let metadata = reader.metadata().file_metadata();
    let path = metadata.schema_descr().column(leaf).path().clone();
    let compression = reader
        .metadata()
        .row_groups()
        .first()
        .map_or(Compression::UNCOMPRESSED, |group| {
            group.column(leaf).compression()
        });
    let properties = WriterProperties::builder()
        .set_key_value_metadata(metadata.key_value_metadata().cloned())
        .set_column_dictionary_enabled(path.clone(), false)
        .set_column_statistics_enabled(path.clone(), EnabledStatistics::None)
        .set_column_compression(path, compression)
        .build();
    let mut writer = SerializedFileWriter::new(
        BufWriter::with_capacity(1 << 20, created),
        metadata.schema_descr().root_schema_ptr(),
        Arc::new(properties),
    )?;
    let mut first = 0;
    for group in 0..reader.num_row_groups() {
        let from = reader.get_row_group(group)?;
        let rows = from.metadata().num_rows();
        let mut to = writer.next_row_group()?;
        for (at, chunk) in from.metadata().columns().iter().enumerate() {
            if at != leaf {
                let close = ColumnCloseResult {
                    bytes_written: u64::try_from(chunk.compressed_size()).unwrap_or(0),
                    rows_written: u64::try_from(rows).unwrap_or(0),
                    metadata: chunk.clone(),
                    bloom_filter: None,
                    column_index: None,
                    offset_index: None,
                };
                to.append_column(&source, close)?;
                continue;
            }
            let column = from.get_column_reader(leaf)?;
            first = if file.dtype == Dtype::F64 {
                rewrite::<DoubleType>(file, column, levels, first, &mut to, change)?
            } else {
                rewrite::<FloatType>(file, column, levels, first, &mut to, change)?
            };
        }
        to.close()?;
    }
    let buffered = writer.into_inner()?;
    let created = buffered.into_inner().map_err(|error| {
        let cause = error.into_error();
        Error::io("write", &file.path, cause)
    })?;
    Ok(created)
}

/// The vectors of one row group, changed.
fn rewrite<T: Element>(
    file: &VectorFile,
    column: ColumnReader,
    levels: (i16, i16),
    first: usize,
    to: &mut SerializedRowGroupWriter<'_, BufWriter<File>>,
    change: &Change<'_>,
) -> Result<usize, Failure> {
    let column = get_typed_column_reader::<T>(column);
    let Some(mut writer) = to.next_column()? else {
        return Err(Error::source(&file.path, "was changed since it was opened").into());
    };
    let next = blocks::<T>(file, column, levels, first, &mut |first, block| {
        block
            .values
            .par_chunks_mut(PIECE * file.dim)
            .enumerate()
            .try_for_each(|(piece, rows)| T::change(file, first + piece * PIECE, rows, change))?;
        writer
            .typed::<T>()
            .write_batch(
                &block.values,
                Some(&block.definitions),
                Some(&block.repetitions),
            )
            .map_err(|error| problem(&file.path, &error))?;
        Ok(())
    })?;
    writer.close()?;
    Ok(next)
}

fn reader(path: &Path) -> Result<SerializedFileReader<File>> {
    let file = File::open(path).map_err(|cause| Error::io("open", path, cause))?;
    SerializedFileReader::new(file).map_err(|error| problem(path, &error))
}

fn problem(path: &Path, error: &ParquetError) -> Error {
    Error::source(path, format!("is not readable as Parquet: {error}"))
}
