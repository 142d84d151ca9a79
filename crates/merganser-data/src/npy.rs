//! The header of a NumPy file: element type, shape, and where the data begin.
//!
//! The format: `\x93NUMPY`, two bytes of version, the length of the header (two bytes little-endian, four from version 2
//! on), the header, the data. The header is a Python dictionary written by `repr`:
//! `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`.
//! Source: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use merganser_store::Dtype;

/// Longest header accepted; those of plain arrays have 128 bytes.
const MAX_HEADER: usize = 1 << 16;
/// Bytes that hold any accepted header.
pub(crate) const MAX_PREFIX: usize = MAX_HEADER + 12;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NpyHeader {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Offset of the first element.
    pub(crate) data_start: u64,
}

/// Reads the header at the start of `bytes`, the first [`MAX_PREFIX`] bytes (or all) of a file of `size` bytes.
pub(crate) fn parse(bytes: &[u8], size: u64) -> Result<NpyHeader, String> {
    let Some(rest) = bytes.strip_prefix(b"\x93NUMPY") else {
        return Err("not a NumPy file".into());
    };
    let (start, length) = match rest {
        [1, _, a, b, ..] => (10, usize::from(u16::from_le_bytes([*a, *b]))),
        [2 | 3, _, a, b, c, d, ..] => (12, u32::from_le_bytes([*a, *b, *c, *d]) as usize),
        [version, ..] if *version > 3 => {
            return Err(format!(
                "a NumPy file of version {version}; 1 to 3 are known"
            ));
        }
        _ => return Err("it ends early".into()),
    };
    if length > MAX_HEADER {
        return Err(format!(
            "its header has {length} bytes; at most {MAX_HEADER} are expected"
        ));
    }
    let header = bytes.get(start..start + length).ok_or("it ends early")?;
    let header = std::str::from_utf8(header).map_err(|_| "its header is not text")?;
    let after = |key: &str| {
        let quoted = [format!("'{key}':"), format!("\"{key}\":")];
        quoted
            .iter()
            .find_map(|key| header.split_once(key.as_str()))
            .map(|(_, value)| value.trim_start())
            .ok_or_else(|| format!("its header has no `{key}`"))
    };
    let dtype = dtype(after("descr")?)?;
    let fortran = after("fortran_order")?;
    let shape = after("shape")?
        .strip_prefix('(')
        .and_then(|rest| rest.split_once(')'))
        .ok_or("its shape is no tuple")?
        .0;
    let shape: Vec<usize> = shape
        .split(',')
        .map(str::trim)
        .filter(|extent| !extent.is_empty())
        .map(|extent| {
            extent
                .parse()
                .map_err(|_| format!("its shape holds `{extent}`"))
        })
        .collect::<Result<_, _>>()?;
    if fortran.starts_with("True") && shape.len() > 1 {
        return Err(
            "its data are in column-major order; save it with `numpy.ascontiguousarray`".into(),
        );
    }
    let data_start = (start + length) as u64;
    let there = size.saturating_sub(data_start);
    // Held against the file before anything is made of it.
    if dtype.nbytes(&shape) != Some(there) {
        return Err(format!(
            "its header claims shape {shape:?} of {dtype}, and {there} bytes of data follow"
        ));
    }
    Ok(NpyHeader {
        dtype,
        shape,
        data_start,
    })
}

fn dtype(descr: &str) -> Result<Dtype, String> {
    let word = descr
        .strip_prefix(['\'', '"'])
        .and_then(|rest| rest.split_once(['\'', '"']))
        .ok_or("a structured array; expected numbers")?
        .0;
    Ok(match word.trim_start_matches(['<', '|', '=']) {
        "f8" => Dtype::F64,
        "f4" => Dtype::F32,
        "f2" => Dtype::F16,
        "i8" => Dtype::I64,
        "i4" => Dtype::I32,
        "i2" => Dtype::I16,
        "i1" => Dtype::I8,
        "u8" => Dtype::U64,
        "u4" => Dtype::U32,
        "u2" => Dtype::U16,
        "u1" => Dtype::U8,
        "b1" => Dtype::Bool,
        _ => {
            return Err(format!(
                "elements of type `{word}`; expected little-endian integers, booleans or floating-point numbers"
            ));
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(header: &str) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.bytes());
        bytes
    }

    #[test]
    fn a_header_tells_type_shape_and_start() {
        let bytes = file("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n");
        let size = bytes.len() as u64;
        let header = parse(&bytes, size + 24).unwrap();
        assert_eq!(
            header,
            NpyHeader {
                dtype: Dtype::F32,
                shape: vec![2, 3],
                data_start: size
            }
        );
        let vector = file("{'descr': '|u1', 'fortran_order': True, 'shape': (3,), }");
        assert_eq!(parse(&vector, vector.len() as u64 + 3).unwrap().shape, [3]);
        let scalar = file("{'descr': '<i8', 'fortran_order': False, 'shape': (), }");
        assert_eq!(
            parse(&scalar, scalar.len() as u64 + 8).unwrap().shape,
            [0; 0]
        );
    }

    #[test]
    fn hostile_headers_are_refused() {
        for (header, expected) in [
            (
                "{'descr': '>f4', 'fortran_order': False, 'shape': (0,)}",
                "elements of type `>f4`",
            ),
            (
                "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (0,)}",
                "a structured array",
            ),
            ("{'fortran_order': False, 'shape': (0,)}", "no `descr`"),
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
                "its shape holds `-1`",
            ),
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': 3}",
                "its shape is no tuple",
            ),
            (
                "{'descr': '<f4', 'fortran_order': True, 'shape': (1, 2)}",
                "column-major",
            ),
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296, 8)}",
                "its header claims shape",
            ),
        ] {
            let bytes = file(header);
            let found = parse(&bytes, bytes.len() as u64).unwrap_err();
            assert!(found.contains(expected), "{header}: {found}");
        }
        assert_eq!(
            parse(b"\x93NUMPY\x01\x00\xff\xff", 10).unwrap_err(),
            "it ends early"
        );
        assert_eq!(
            parse(b"\x93NUMPY\x02\x00\xff\xff\xff\xff", 12).unwrap_err(),
            "its header has 4294967295 bytes; at most 65536 are expected"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused_without_panic(tail in prop::collection::vec(any::<u8>(), 0..80), size in any::<u64>()) {
            let _ = parse(&tail, size);
            let _ = parse(&[b"\x93NUMPY", &tail[..]].concat(), size);
            let _ = parse(&file(&String::from_utf8_lossy(&tail)), size);
        }
    }
}
