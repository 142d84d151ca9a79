//! Rows of texts and labels from every format of tables.

use crate::support::{Place, ids, labels, sequences};
use merganser_data::{Labels, LoadOptions, Source, read_columns};

const CAT: [u32; 5] = [2, 4, 5, 6, 3];
const MAT: [u32; 4] = [2, 8, 9, 3];

#[allow(clippy::unnecessary_wraps)]
fn classes(ids: &[u32]) -> Option<Labels> {
    Some(Labels::Classes {
        ids: ids.to_vec(),
        names: None,
    })
}

#[test]
fn the_same_rows_are_read_from_every_format() {
    let place = Place::text();
    place.write(
        "a.jsonl",
        "{\"text\": \"The cat sat\", \"label\": 1}\n\n{\"text\": \"a mat\", \"label\": 0}\r\n",
    );
    place.write(
        "b.json",
        "[{\"text\": \"The cat sat\", \"label\": 1}, {\"text\": \"a mat\", \"label\": 0}]",
    );
    place.write("c.json", "{\"version\": 1, \"data\": [{\"text\": \"The cat sat\", \"label\": 1}, {\"text\": \"a mat\", \"label\": 0}]}");
    place.write(
        "d.json",
        "{\"text\": \"The cat sat\",\n \"label\": 1}\n{\"text\": \"a mat\", \"label\": 0}",
    );
    place.write("e.csv", "\u{feff}label,text\n1,\"The cat\nsat\"\n0,a mat\n");
    place.write("f.tsv", "label\tsentence\n1\tThe cat sat\n0\ta mat\n");
    write_parquet(
        &place,
        "g.parquet",
        &["The cat sat", "a mat"],
        &[1, 0],
        None,
    );
    for name in [
        "a.jsonl",
        "b.json",
        "c.json",
        "d.json",
        "e.csv",
        "f.tsv",
        "g.parquet",
    ] {
        let samples = place.labelled(name).unwrap();
        assert_eq!(ids(&samples), [CAT.to_vec(), MAT.to_vec()], "{name}");
        assert_eq!(samples.labels, classes(&[1, 0]), "{name}");
        assert_eq!(samples.notes, [""; 0], "{name}");
    }
    place.write("h.txt", "The cat sat\n\na mat");
    place.write("i.jsonl", "\"The cat sat\"\n\"a mat\"\n");
    for name in ["h.txt", "i.jsonl"] {
        assert_eq!(
            ids(&place.plain(name).unwrap()),
            [CAT.to_vec(), MAT.to_vec()],
            "{name}"
        );
    }
}

#[test]
fn a_format_may_be_named() {
    let place = Place::text();
    let path = place.write("samples.data", "{\"text\": \"a mat\"}");
    let mut source = Source::new(path);
    assert!(
        place
            .refusal(&source, &LoadOptions::default())
            .contains("has no extension that is known here")
    );
    source.format = Some("jsonl".parse().unwrap());
    assert_eq!(
        ids(&place.load(&source, &LoadOptions::default()).unwrap()),
        [MAT]
    );
}

#[test]
fn columns_are_chosen_by_name_by_custom_or_because_they_are_the_only_ones() {
    let place = Place::text();
    let path = place.write(
        "a.jsonl",
        r#"{"id": "x1", "premise": "a cat", "hypothesis": "the mat", "gold": "yes", "n": 3}"#,
    );
    insta::assert_snapshot!(place.plain_refusal("a.jsonl"));
    let mut source = Source {
        column: Some("premise".into()),
        pair: Some("hypothesis".into()),
        ..Source::new(&path)
    };
    source.label = Some("gold".into());
    let samples = place.load(&source, &labels()).unwrap();
    assert_eq!(ids(&samples), [[2, 8, 5, 3, 4, 9, 3]]);
    assert_eq!(sequences(&samples)[0].types, [0, 0, 0, 0, 1, 1, 1]);
    assert_eq!(
        samples.labels,
        Some(Labels::Names {
            ids: vec![0],
            names: vec!["yes".into()]
        })
    );
    let batch = samples.batch(&[0]).unwrap();
    assert_eq!(batch.tokens.unwrap().ids(), [2, 8, 5, 3, 4, 9, 3]);

    source.column = Some("sentence".into());
    insta::assert_snapshot!(place.refusal(&source, &labels()));
    source.column = Some("premise".into());
    source.label = Some("label".into());
    assert!(
        place
            .refusal(&source, &labels())
            .contains("there is no column `label`; its columns are `id (string)`")
    );
    // Without a name the only whole numbers are the labels.
    source.label = None;
    assert_eq!(
        place.load(&source, &labels()).unwrap().labels,
        classes(&[3])
    );
    place.write("b.jsonl", r#"{"text": "a", "x": 1, "y": 2}"#);
    assert!(
        place
            .labelled_refusal("b.jsonl")
            .contains("none that is clearly the labels")
    );
}

#[test]
fn labels_are_numbers_names_or_scores_but_of_one_kind() {
    let place = Place::text();
    let labels_of = |name: &str, values: &[&str]| {
        let lines: Vec<String> = values
            .iter()
            .map(|v| format!("{{\"text\": \"a\", \"label\": {v}}}"))
            .collect();
        place.write(name, lines.join("\n"));
        place
            .labelled(name)
            .map(|samples| samples.labels.unwrap())
            .map_err(|e| place.strip(&e.to_string()))
    };
    assert_eq!(
        labels_of("a.jsonl", &["2", "0.0", "true"]),
        Ok(Labels::Classes {
            ids: vec![2, 0, 1],
            names: None
        })
    );
    assert_eq!(
        labels_of("b.jsonl", &["0.5", "3"]),
        Ok(Labels::Scores(vec![0.5, 3.0]))
    );
    assert_eq!(
        labels_of("c.jsonl", &["\"pos\"", "\"neg\"", "\"pos\""]),
        Ok(Labels::Names {
            ids: vec![1, 0, 1],
            names: vec!["neg".into(), "pos".into()]
        })
    );
    assert_eq!(
        labels_of("d.jsonl", &["\"pos\"", "1"]),
        Err("`d.jsonl`, line 2: `label` is a number where other rows have strings; labels must be of one kind".into())
    );
    assert_eq!(
        labels_of("e.jsonl", &["1", "null"]),
        Err("`e.jsonl`, line 2: `label` is null, expected a label".into())
    );
    assert!(
        labels_of("f.jsonl", &["-1"])
            .unwrap_err()
            .contains("kept secret; use another split")
    );
    assert!(
        labels_of("g.jsonl", &["-2"])
            .unwrap_err()
            .contains("the label is -2, expected the number of a class")
    );
    assert!(
        labels_of("h.jsonl", &["[1]"])
            .unwrap_err()
            .contains("column `label` holds a list, which is not read")
    );
    place.write("i.txt", "a\nb");
    assert!(
        place
            .labelled_refusal("i.txt")
            .contains("there is no column `label`")
    );
}

#[test]
fn parquet_tells_the_names_of_its_classes() {
    let place = Place::text();
    let card = r#"{"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}, "text": {"dtype": "string"}}}}"#;
    write_parquet(&place, "a.parquet", &["a", "mat"], &[1, 0], Some(card));
    let names = Some(vec!["neg".to_owned(), "pos".to_owned()]);
    assert_eq!(
        place.labelled("a.parquet").unwrap().labels,
        Some(Labels::Classes {
            ids: vec![1, 0],
            names
        })
    );
}

#[test]
fn splits_are_files_folders_or_values_of_a_column() {
    let place = Place::text();
    write_parquet(
        &place,
        "set/data/train-00000-of-00001.parquet",
        &["cat"],
        &[0],
        None,
    );
    write_parquet(
        &place,
        "set/data/test-00000-of-00002.parquet",
        &["a"],
        &[0],
        None,
    );
    write_parquet(
        &place,
        "set/data/test-00001-of-00002.parquet",
        &["mat"],
        &[0],
        None,
    );
    place.write("set/README.txt", "about");
    place.write("set/dataset_infos.json", "{}");
    assert!(
        place
            .plain_refusal("set")
            .ends_with("holds the splits `test`, `train`; choose one")
    );
    let mut source = Source {
        split: Some("test".into()),
        ..Source::new(place.path("set"))
    };
    let samples = place.load(&source, &LoadOptions::default()).unwrap();
    assert_eq!(ids(&samples), [[2, 8, 3], [2, 9, 3]]);
    assert_eq!(samples.rows, [0, 1]);

    source.path = place.write(
        "a.jsonl",
        "{\"text\": \"cat\", \"split\": \"train\"}\n{\"text\": \"mat\", \"split\": \"test\"}",
    );
    assert_eq!(
        ids(&place.load(&source, &LoadOptions::default()).unwrap()),
        [[2, 9, 3]]
    );
    source.split = Some("dev".into());
    insta::assert_snapshot!(place.refusal(&source, &LoadOptions::default()));
    source.path = place.write("b.jsonl", "{\"text\": \"cat\"}");
    assert!(
        place
            .refusal(&source, &LoadOptions::default())
            .contains("there is no column `split`")
    );

    place.write("parts/test/x.jsonl", "{\"text\": \"mat\"}");
    place.write("parts/train/x.jsonl", "{\"text\": \"cat\"}");
    let source = Source {
        split: Some("test".into()),
        ..Source::new(place.path("parts"))
    };
    assert_eq!(
        ids(&place.load(&source, &LoadOptions::default()).unwrap()),
        [[2, 9, 3]]
    );
    place.write("mixed/a.jsonl", "{}");
    place.write("mixed/a.csv", "x\n1");
    assert!(
        place
            .plain_refusal("mixed")
            .contains("holds files of several formats (1 CSV, 1 JSON lines)")
    );
    place.write("differ/a.jsonl", "{\"text\": \"a\"}");
    place.write("differ/b.jsonl", "{\"body\": \"a\"}");
    assert!(
        place
            .plain_refusal("differ")
            .contains("has no column `text`, which")
    );
}

#[test]
fn samples_are_chosen_by_seed_and_rows_are_remembered() {
    let place = Place::text();
    let lines: Vec<String> = (0..50)
        .map(|n| {
            format!(
                "{{\"text\": \"{}\", \"label\": {n}}}",
                crate::support::WORDS[4 + n % 6]
            )
        })
        .collect();
    let path = place.write("a.jsonl", lines.join("\n"));
    let load = |samples, seed| {
        let options = LoadOptions {
            samples: Some(samples),
            seed,
            labels: true,
            ..LoadOptions::default()
        };
        place.load(&Source::new(&path), &options).unwrap()
    };
    let few = load(5, 0);
    let Some(Labels::Classes { ids, .. }) = &few.labels else {
        panic!()
    };
    assert_eq!(
        ids.iter().map(|&id| u64::from(id)).collect::<Vec<_>>(),
        few.rows
    );
    assert_eq!(load(5, 0).rows, few.rows);
    assert_ne!(load(5, 1).rows, few.rows);
    assert!(few.rows.iter().all(|row| load(6, 0).rows.contains(row)));
    assert_eq!(load(500, 3).rows, (0..50).collect::<Vec<_>>());
    let none = LoadOptions {
        samples: Some(0),
        ..LoadOptions::default()
    };
    assert!(
        place
            .refusal(&Source::new(&path), &none)
            .contains("must not be 0")
    );
}

#[test]
fn blank_rows_are_left_out_and_said() {
    let place = Place::text();
    place.write(
        "a.jsonl",
        "{\"text\": \"  \", \"label\": 0}\n{\"label\": 1}\n{\"text\": \"a\", \"label\": 2}",
    );
    let samples = place.labelled("a.jsonl").unwrap();
    assert_eq!(samples.labels, classes(&[2]));
    assert_eq!(
        samples.notes,
        ["2 rows without a value in column `text` are left out"]
    );
    place.write("b.jsonl", "{\"text\": \"\"}");
    assert!(
        place
            .plain_refusal("b.jsonl")
            .contains("column `text` is empty in every row")
    );
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_line() {
    let place = Place::text();
    place.write("empty.jsonl", "");
    place.write("blank.jsonl", "\n \n");
    place.write("header.csv", "text,label\n");
    place.write("empty.json", "[]");
    for name in ["empty.jsonl", "blank.jsonl", "header.csv", "empty.json"] {
        let found = place.plain_refusal(name);
        assert!(
            found == format!("`{name}` is empty") || found == format!("`{name}` holds no samples"),
            "{found}"
        );
    }
    for (name, content, expected) in [
        (
            "a.jsonl",
            &b"{\"text\": \"a\"}\n{\"text\": \"b\""[..],
            "`a.jsonl`, line 2: not valid JSON: EOF while parsing",
        ),
        (
            "b.jsonl",
            b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}",
            "`b.jsonl`, line 2: not valid UTF-8 at byte 10",
        ),
        (
            "c.jsonl",
            b"[1]",
            "`c.jsonl`, line 1: expected an object such as {\"text\": \u{2026}} or a string, found a list",
        ),
        (
            "d.json",
            b"[{\"text\": \"a\"},\n{\"text\": }]",
            "`d.json`, line 2: not valid JSON: expected value",
        ),
        (
            "e.json",
            b"[\"a\",\n\"\xfe\"]",
            "`e.json`, line 2: not valid UTF-8",
        ),
        (
            "f.json",
            b"[\"a\", 5]",
            "`f.json`, row 1: expected an object such as",
        ),
        (
            "g.csv",
            b"text,label\na,1\nb\n",
            "`g.csv`, line 3: found 1 values, expected 2 as in the first line",
        ),
        (
            "h.csv",
            b"text,text\na,b\n",
            "`h.csv`, line 1: two columns are called `text`",
        ),
        (
            "i.csv",
            b"text,n\nab,1\n\xff,2\n",
            "`i.csv`, line 3: not valid UTF-8 in column 1",
        ),
        (
            "j.txt",
            b"a\nb\xc3\n",
            "`j.txt`, line 2: not valid UTF-8 at byte 1",
        ),
        (
            "k.parquet",
            b"PAR1 nonsense PAR1",
            "`k.parquet` is not readable as Parquet: ",
        ),
        (
            "l.jsonl",
            b"{\"text\": \"a\"}\n{\"text\": 5}",
            "`l.jsonl`, line 2: `text` is a number, expected a string",
        ),
        (
            "m.jsonl",
            b"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"n\": 1}",
            "holds conversations, whose template belongs to the model",
        ),
        (
            "n.jsonl",
            b"{\"n\": 1}",
            "there is no column of strings or images",
        ),
    ] {
        place.write(name, content);
        let found = place.plain_refusal(name);
        assert!(
            found.contains(expected),
            "{name}\n  found: {found}\n  expected: {expected}"
        );
    }
    let lines: Vec<String> = (0..150)
        .map(|n| {
            if n == 140 {
                "{\"text\": 5}".into()
            } else {
                "{\"text\": \"a\"}".to_owned()
            }
        })
        .collect();
    place.write("o.jsonl", lines.join("\n"));
    assert_eq!(
        place.plain_refusal("o.jsonl"),
        "`o.jsonl`, line 141: `text` is a number, expected a string"
    );
    assert!(
        place
            .plain_refusal("none.jsonl")
            .starts_with("cannot open `none.jsonl`")
    );
}

#[test]
fn columns_of_texts_and_scores_are_read_for_comparisons() {
    let place = Place::text();
    let source =
        Source::new(place.write("a.tsv", "s1\ts2\tscore\na cat\tthe cat\t4.5\nmat\tsat\t0\n"));
    let columns = read_columns(&source, &["s1", "s2"], Some("score"), None, 0).unwrap();
    assert_eq!(columns.texts, [["a cat", "mat"], ["the cat", "sat"]]);
    assert_eq!(columns.scores, Some(vec![4.5, 0.0]));
    let error = read_columns(&source, &["s1"], Some("s2"), None, 0).unwrap_err();
    assert_eq!(
        place.strip(&error.to_string()),
        "`a.tsv`, line 2: `s2` is a string, expected a number"
    );
    let error = read_columns(&source, &["s1", "s3"], None, None, 0).unwrap_err();
    assert!(error.to_string().contains("there is no column `s3`"));
}

/// A Parquet file of texts, class numbers and a list of numbers, as the Hub has them.
fn write_parquet(place: &Place, name: &str, texts: &[&str], labels: &[i64], card: Option<&str>) {
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::metadata::KeyValue;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    let schema = "message schema { optional binary text (UTF8); optional int64 label; optional group spans (LIST) { repeated group list { optional int64 element; } } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let card = card.map(|card| vec![KeyValue::new("huggingface".into(), card.to_owned())]);
    let properties = WriterProperties::builder()
        .set_key_value_metadata(card)
        .build();
    let path = place.write(name, "");
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let present = vec![1; texts.len()];
    let texts: Vec<ByteArray> = texts.iter().map(|text| ByteArray::from(*text)).collect();
    let mut column = group.next_column().unwrap().unwrap();
    column
        .typed::<ByteArrayType>()
        .write_batch(&texts, Some(&present), None)
        .unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column
        .typed::<Int64Type>()
        .write_batch(labels, Some(&present), None)
        .unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let lists = vec![7; labels.len()];
    let levels = vec![3; labels.len()];
    let starts = vec![0; labels.len()];
    column
        .typed::<Int64Type>()
        .write_batch(&lists, Some(&levels), Some(&starts))
        .unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}
