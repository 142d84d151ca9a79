//! Files of moments, read back and refused.

use merganser_store::header;
use std::collections::BTreeMap;

use super::*;

fn input(seed: usize, rows: usize) -> Statistics {
    let mut moments = InputMoments::new(3);
    let data: Vec<f32> = (0..3 * rows)
        .map(|i| ((i * 7 + seed) % 11) as f32 - 5.0)
        .collect();
    moments.add_rows(&data).unwrap();
    Statistics::Input(moments)
}

fn entries(seed: usize) -> Vec<(String, Statistics, Option<Statistics>)> {
    let mut channels = ChannelMoments::new(2);
    channels
        .add_rows(&[1.0_f32, 2.0, seed as f32, 4.0])
        .unwrap();
    let counts = RowCounts::from_counts(vec![seed as u64, 0, 5]);
    vec![
        (
            "layers.0.q_proj".into(),
            input(seed, 9),
            Some(input(seed, 2)),
        ),
        ("layers.0.norm".into(), Statistics::Channels(channels), None),
        ("embed".into(), Statistics::Rows(counts), None),
    ]
}

fn info() -> MomentsInfo {
    MomentsInfo {
        model: "abc".into(),
        dataset: "poems".into(),
        tokens: 18,
        writer: String::new(),
    }
}

fn aliases() -> BTreeMap<String, String> {
    [("layers.0.k_proj".to_owned(), "layers.0.q_proj".to_owned())].into()
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("moments.safetensors");
    write_moments(&path, &info(), &aliases(), &entries(1)).unwrap();
    let file = MomentsFile::open(&path).unwrap();
    assert_eq!(
        file.names().collect::<Vec<_>>(),
        ["embed", "layers.0.norm", "layers.0.q_proj"]
    );
    for (name, whole, held_out) in entries(1) {
        assert_eq!(file.read(&name).unwrap(), whole);
        assert_eq!(file.read_held_out(&name).unwrap(), held_out);
    }
    assert_eq!(file.resolve("layers.0.k_proj"), Some("layers.0.q_proj"));
    assert_eq!(file.read("layers.0.k_proj").unwrap(), entries(1)[0].1);
    assert_eq!(file.resolve("layers.1.k_proj"), None);
    assert_eq!(file.info().tokens, 18);
    assert!(file.info().writer.starts_with("merganser "));
    file.expect_model("abc").unwrap();
    let error = file.expect_model("xyz").unwrap_err().to_string();
    assert!(error.contains("of model `abc`, not of `xyz`"), "{error}");
    let error = file.read("layers.9").unwrap_err().to_string();
    assert!(error.contains("no moments of `layers.9`"), "{error}");
}

#[test]
fn files_of_two_halves_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["a", "b", "sum"].map(|name| dir.path().join(name));
    write_moments(&paths[0], &info(), &aliases(), &entries(1)).unwrap();
    write_moments(&paths[1], &info(), &aliases(), &entries(2)).unwrap();
    let [first, second] = [0, 1].map(|i| MomentsFile::open(&paths[i]).unwrap());
    merge_files(&first, &second, &paths[2]).unwrap();
    let sum = MomentsFile::open(&paths[2]).unwrap();
    assert_eq!(sum.info().tokens, 36);
    for ((name, mut whole, _), (_, other, _)) in entries(1).into_iter().zip(entries(2)) {
        whole.merge(&other).unwrap();
        assert_eq!(sum.read(&name).unwrap(), whole);
    }
    let other = MomentsInfo {
        model: "xyz".into(),
        ..info()
    };
    write_moments(&paths[1], &other, &aliases(), &entries(2)).unwrap();
    let second = MomentsFile::open(&paths[1]).unwrap();
    assert!(merge_files(&first, &second, &paths[2]).is_err());
    write_moments(&paths[1], &info(), &BTreeMap::new(), &entries(2)[..2]).unwrap();
    let second = MomentsFile::open(&paths[1]).unwrap();
    let error = merge_files(&first, &second, &paths[2])
        .unwrap_err()
        .to_string();
    assert!(error.contains("`embed` is in one of them only"), "{error}");
}

#[test]
fn squares_of_other_programs_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let metadata = [("format", FORMAT), ("version", VERSION), ("model", "abc")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
    let tensor = |name: &str, dtype, shape: &[usize]| TensorSpec {
        name: name.into(),
        dtype,
        shape: shape.to_vec(),
    };
    let specs = [
        tensor("x.gram", Dtype::F32, &[2, 2]),
        tensor("x.sum", Dtype::F32, &[2]),
        tensor("x.count", Dtype::I64, &[]),
    ];
    let layout = header::compose(&metadata.into(), &specs).unwrap();
    let mut bytes = layout.header;
    for x in [2.0_f32, 1.0, 1.0, 3.0, 0.5, -0.5] {
        bytes.extend(x.to_le_bytes());
    }
    bytes.extend(7_i64.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let Statistics::Input(moments) = MomentsFile::open(&path).unwrap().read("x").unwrap() else {
        panic!("an input was written");
    };
    assert_eq!(moments.gram().packed(), [2.0, 1.0, 3.0]);
    assert_eq!((moments.count(), moments.sum()), (7, &[0.5, -0.5][..]));
    assert_eq!(moments.epsilon(), f64::from(f32::EPSILON));
    // The same with a Gram that is not symmetric, one that is not finite, and a negative count.
    let start = bytes.len() - 8 - 24;
    for (at, value) in [(start + 4, -1.0_f32), (start, f32::NAN), (start, -2.0)] {
        let mut bad = bytes.clone();
        bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
        std::fs::write(&path, &bad).unwrap();
        assert!(MomentsFile::open(&path).unwrap().read("x").is_err());
    }
    let end = bytes.len();
    bytes[end - 8..].copy_from_slice(&(-1_i64).to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let error = MomentsFile::open(&path).unwrap().read("x").unwrap_err();
    assert!(
        error.to_string().contains("the count of `x` is -1"),
        "{error}"
    );
}

#[test]
fn files_that_are_none_of_moments_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let open = |metadata: &[(&str, &str)], specs: &[(&str, Dtype, &[usize])]| {
        let metadata = metadata
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let specs: Vec<TensorSpec> = specs
            .iter()
            .map(|(name, dtype, shape)| TensorSpec {
                name: (*name).into(),
                dtype: *dtype,
                shape: shape.to_vec(),
            })
            .collect();
        let layout = header::compose(&metadata, &specs).unwrap();
        let mut bytes = layout.header;
        bytes.resize(layout.file_len as usize, 0);
        std::fs::write(&path, bytes).unwrap();
        MomentsFile::open(&path)
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    let good = [("format", FORMAT), ("version", VERSION)];
    let gram: (&str, Dtype, &[usize]) = ("x.gram", Dtype::F64, &[3]);
    let sum: (&str, Dtype, &[usize]) = ("x.sum", Dtype::F64, &[2]);
    let count: (&str, Dtype, &[usize]) = ("x.count", Dtype::I64, &[1]);
    assert_eq!(open(&good, &[gram, sum, count]), Ok(()));
    for (metadata, specs, expected) in [
        (&[][..], vec![gram, sum, count], "no `format`"),
        (
            &[("format", FORMAT), ("version", "9")],
            vec![],
            "reads version 1",
        ),
        (
            &[good[0], good[1], ("precision", "int8")],
            vec![],
            "`precision` is `int8`",
        ),
        (
            &[good[0], good[1], ("tokens", "many")],
            vec![],
            "not a number",
        ),
        (
            &[good[0], good[1], ("aliases", "[]")],
            vec![],
            "`aliases` are no JSON",
        ),
        (
            &[good[0], good[1], ("aliases", "{\"a\":\"b\"}")],
            vec![],
            "alias `a` stands for `b`",
        ),
        (
            &good[..],
            vec![gram, sum],
            "`x` has gram [3], sum [2]; expected are",
        ),
        (
            &good[..],
            vec![("x.gram", Dtype::F64, &[4]), sum, count],
            "`x` has",
        ),
        (
            &good[..],
            vec![("x.gram", Dtype::F64, &[2, 3]), sum, count],
            "`x` has",
        ),
        (
            &good[..],
            vec![("lonely", Dtype::F64, &[4])],
            "named neither",
        ),
        (
            &good[..],
            vec![gram, sum, count, ("x.held_out.rows", Dtype::I64, &[3])],
            "another kind or size",
        ),
    ] {
        let error = open(metadata, &specs).unwrap_err();
        assert!(error.contains(expected), "{error}\n{expected}");
    }
    std::fs::write(&path, b"abc").unwrap();
    assert!(MomentsFile::open(&path).is_err());
}

#[test]
fn a_writer_holds_what_was_announced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let specs = [input(0, 1).spec("x", false)];
    let create = || MomentsWriter::create(&path, &info(), &BTreeMap::new(), &specs, 0.0).unwrap();
    assert!(create().write("y", &input(0, 1), None).is_err());
    assert!(
        create()
            .write("x", &input(0, 1), Some(&input(0, 1)))
            .is_err()
    );
    assert!(
        create()
            .finish()
            .unwrap_err()
            .to_string()
            .contains("never written")
    );
    assert!(!path.exists());
}
