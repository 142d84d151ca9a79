//! Files of vectors, written by other means than those tested, read and changed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use merganser_store::Dtype;
use parquet::basic::Compression;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::record::RowAccessor;
use parquet::schema::parser::parse_message_type;
use tempfile::TempDir;

use super::{Rows, VectorFile, read_labels, write_integers, write_vectors};

/// Rows whose every number says where it stands; exact in half precision for the sizes here.
fn number(row: usize, column: usize) -> f32 {
    (row % 500) as f32 + column as f32 / 4.0
}

fn rows(count: usize, dim: usize) -> Vec<f32> {
    (0..count * dim).map(|i| number(i / dim, i % dim)).collect()
}

/// Adds the number of the row and 1, and so shows that every row is given once, under its number.
fn add(dim: usize) -> impl Fn(usize, Rows<'_>) -> Result<(), String> + Sync {
    move |first, rows| {
        match rows {
            Rows::F32(rows) => {
                for (i, row) in rows.chunks_mut(dim).enumerate() {
                    for x in row {
                        *x += (first + i + 1) as f32;
                    }
                }
            }
            Rows::F64(rows) => {
                for (i, row) in rows.chunks_mut(dim).enumerate() {
                    for x in row {
                        *x += (first + i + 1) as f64;
                    }
                }
            }
        }
        Ok(())
    }
}

fn expected(count: usize, dim: usize) -> Vec<f64> {
    (0..count * dim)
        .map(|i| f64::from(number(i / dim, i % dim)) + (i / dim + 1) as f64)
        .collect()
}

fn open(path: &Path) -> VectorFile {
    VectorFile::open(path.to_str().unwrap()).unwrap()
}

fn left(dir: &TempDir) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A `.npy` file as NumPy writes it.
fn npy(path: &Path, descr: &str, shape: &str, bytes: &[u8]) {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut all = b"\x93NUMPY\x01\x00".to_vec();
    all.extend((header.len() as u16).to_le_bytes());
    all.extend(header.as_bytes());
    all.extend(bytes);
    fs::write(path, all).unwrap();
}

#[test]
fn npy_is_changed_block_by_block_in_its_type() {
    let dir = TempDir::new().unwrap();
    // More than one block of 1 MiB, the last of them short.
    let (count, dim) = (3000, 100);
    for (descr, dtype) in [
        ("<f4", Dtype::F32),
        ("<f8", Dtype::F64),
        ("<f2", Dtype::F16),
    ] {
        let bytes: Vec<u8> = match dtype {
            Dtype::F64 => rows(count, dim)
                .iter()
                .flat_map(|&x| f64::from(x).to_le_bytes())
                .collect(),
            Dtype::F16 => rows(count, dim)
                .iter()
                .flat_map(|&x| half::f16::from_f32(x).to_le_bytes())
                .collect(),
            _ => rows(count, dim)
                .iter()
                .flat_map(|x| x.to_le_bytes())
                .collect(),
        };
        let (path, out) = (dir.path().join("a.npy"), dir.path().join("b.npy"));
        npy(&path, descr, &format!("({count}, {dim})"), &bytes);
        let file = open(&path);
        assert_eq!((file.rows(), file.dim(), file.dtype()), (count, dim, dtype));
        file.transform(&out, true, &add(dim)).unwrap();
        let found = open(&out);
        assert_eq!(found.dtype(), dtype);
        for (i, (found, expected)) in found
            .all()
            .unwrap()
            .iter()
            .zip(expected(count, dim))
            .enumerate()
        {
            let rounding = if dtype == Dtype::F16 {
                1e-3 * expected
            } else {
                0.0
            };
            assert!((found - expected).abs() <= rounding, "{descr} element {i}");
        }
        // The header is the one NumPy would write.
        let written = fs::read(&out).unwrap();
        assert_eq!(written[..128], fs::read(&path).unwrap()[..128]);
        assert_eq!(written.len(), 128 + bytes.len());
    }
    assert_eq!(left(&dir), ["a.npy", "b.npy"]);
}

#[test]
fn safetensors_keep_their_other_tensors_and_metadata() {
    use safetensors::tensor::{Dtype as Type, TensorView, serialize_to_file};
    let dir = TempDir::new().unwrap();
    let (path, out) = (
        dir.path().join("a.safetensors"),
        dir.path().join("b.safetensors"),
    );
    let vectors: Vec<u8> = rows(7, 3).iter().flat_map(|x| x.to_le_bytes()).collect();
    let ids: Vec<u8> = (0..7_i64).flat_map(i64::to_le_bytes).collect();
    let metadata = [("model".to_owned(), "v1".to_owned())].into();
    let tensors = [
        ("ids", TensorView::new(Type::I64, vec![7], &ids).unwrap()),
        (
            "emb",
            TensorView::new(Type::F32, vec![7, 3], &vectors).unwrap(),
        ),
    ];
    serialize_to_file(tensors, Some(metadata), &path).unwrap();
    open(&path).transform(&out, false, &add(3)).unwrap();
    assert_eq!(open(&out).all().unwrap(), expected(7, 3));
    assert_eq!(
        read_labels(out.to_str().unwrap()).unwrap(),
        [0, 1, 2, 3, 4, 5, 6]
    );
    let arrays = crate::Arrays::open(&out).unwrap();
    assert_eq!(arrays.metadata()["model"], "v1");
}

/// A table of an id, a text and a vector, in two groups of rows. `dim_of` is the length of the vector of a row.
fn table(path: &Path, count: usize, dim_of: &dyn Fn(usize) -> usize) {
    let schema = parse_message_type(
        "message table { required int64 label; required binary text (UTF8); \
         required group emb (LIST) { repeated group list { required float element; } } }",
    )
    .unwrap();
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .build();
    let mut writer = SerializedFileWriter::new(
        File::create(path).unwrap(),
        Arc::new(schema),
        Arc::new(properties),
    )
    .unwrap();
    for part in [0..count / 3, count / 3..count] {
        let mut group = writer.next_row_group().unwrap();
        while let Some(mut column) = group.next_column().unwrap() {
            match column.untyped() {
                ColumnWriter::Int64ColumnWriter(column) => {
                    let values: Vec<i64> = part.clone().map(|i| i as i64 % 5).collect();
                    column.write_batch(&values, None, None).unwrap();
                }
                ColumnWriter::ByteArrayColumnWriter(column) => {
                    let values: Vec<ByteArray> = part
                        .clone()
                        .map(|i| ByteArray::from(format!("row {i}").as_str()))
                        .collect();
                    column.write_batch(&values, None, None).unwrap();
                }
                ColumnWriter::FloatColumnWriter(column) => {
                    let (mut values, mut repetitions) = (Vec::new(), Vec::new());
                    for row in part.clone() {
                        for at in 0..dim_of(row) {
                            values.push(number(row, at));
                            repetitions.push(i16::from(at > 0));
                        }
                    }
                    let definitions = vec![1; values.len()];
                    column
                        .write_batch(&values, Some(&definitions), Some(&repetitions))
                        .unwrap();
                }
                _ => unreachable!("no other column"),
            }
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn parquet_keeps_its_other_columns() {
    let dir = TempDir::new().unwrap();
    let (path, out) = (dir.path().join("a.parquet"), dir.path().join("b.parquet"));
    let (count, dim) = (2500, 300);
    table(&path, count, &|_| dim);
    let file = open(&path);
    assert_eq!((file.rows(), file.dim()), (count, dim));
    file.transform(&out, false, &add(dim)).unwrap();
    assert_eq!(open(&out).all().unwrap(), expected(count, dim));
    let labels = read_labels(out.to_str().unwrap()).unwrap();
    assert!(labels.len() == count && (0..count).all(|i| labels[i] == i % 5));
    let reader = SerializedFileReader::new(File::open(&out).unwrap()).unwrap();
    assert_eq!(reader.num_row_groups(), 2);
    for (i, row) in reader.get_row_iter(None).unwrap().enumerate() {
        assert_eq!(row.unwrap().get_string(1).unwrap(), &format!("row {i}"));
    }
    assert_eq!(left(&dir), ["a.parquet", "b.parquet"]);
}

#[test]
fn a_vector_of_another_length_is_named() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.parquet");
    table(&path, 30, &|row| if row == 20 { 3 } else { 4 });
    let error = open(&path).all().unwrap_err().to_string();
    assert!(
        error.contains("vector 20 has 3 numbers, the first has 4"),
        "{error}"
    );
    let out = dir.path().join("b.parquet");
    assert!(open(&path).transform(&out, false, &add(4)).is_err());
    assert_eq!(left(&dir), ["a.parquet"]);
}

#[test]
fn what_cannot_be_used_is_refused_and_nothing_is_left() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.npy");
    let out = dir.path().join("b.npy");
    let mut values = rows(10, 2);
    values[7] = f32::NAN;
    write_vectors(&path, false, 2, &values).unwrap();
    for error in [
        open(&path).all().unwrap_err(),
        open(&path).transform(&out, false, &add(2)).unwrap_err(),
    ] {
        assert!(error.to_string().contains("vector 3 holds NaN"), "{error}");
    }
    assert_eq!(left(&dir), ["a.npy"]);
    write_vectors(&path, true, 2, &rows(10, 2)).unwrap();
    let error = open(&path)
        .transform(&path, false, &add(2))
        .unwrap_err()
        .to_string();
    assert!(error.contains("--overwrite"), "{error}");
    let error = open(&path)
        .transform(&dir.path().join("b.parquet"), false, &add(2))
        .unwrap_err()
        .to_string();
    assert!(error.contains("another extension"), "{error}");
    let refuse = |_: usize, _: Rows<'_>| Err("is not wanted".to_owned());
    assert!(open(&path).transform(&out, false, &refuse).is_err());
    assert_eq!(left(&dir), ["a.npy"]);
    // In its own place, with consent.
    open(&path).transform(&path, true, &add(2)).unwrap();
    assert_eq!(open(&path).all().unwrap(), expected(10, 2));
    for name in ["none.npy", "a.txt", "a.npy#other"] {
        let given: PathBuf = dir.path().join(name);
        assert!(VectorFile::open(given.to_str().unwrap()).is_err(), "{name}");
    }
    let whole = dir.path().join("c.npy");
    write_integers(&whole, false, "labels", &[1, -2]).unwrap();
    let error = read_labels(whole.to_str().unwrap())
        .unwrap_err()
        .to_string();
    assert!(error.contains("-2 in row 1"), "{error}");
}

#[test]
fn one_of_several_tensors_has_to_be_named() {
    use safetensors::tensor::{Dtype as Type, TensorView, serialize_to_file};
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.safetensors");
    let bytes: Vec<u8> = rows(4, 2).iter().flat_map(|x| x.to_le_bytes()).collect();
    let view = || TensorView::new(Type::F32, vec![4, 2], &bytes).unwrap();
    serialize_to_file([("old", view()), ("new", view())], None, &path).unwrap();
    let given = path.to_str().unwrap();
    let error = VectorFile::open(given).unwrap_err().to_string();
    assert!(error.contains("#new") || error.contains("#old"), "{error}");
    assert_eq!(VectorFile::open(&format!("{given}#old")).unwrap().rows(), 4);
}
