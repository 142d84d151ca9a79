//! Tokenising, limits, padding and batches.

use crate::support::{Place, ids, sequences, tokenizer};
use merganser_data::{LoadOptions, Source};
use proptest::prelude::*;
use serde_json::json;

#[test]
fn samples_are_cut_at_what_the_model_takes_and_this_is_said() {
    let place = Place::text();
    place.write("a.txt", format!("a\n{}", "cat ".repeat(30)));
    let samples = place.plain("a.txt").unwrap();
    assert_eq!(
        ids(&samples).iter().map(Vec::len).collect::<Vec<_>>(),
        [3, 16]
    );
    assert_eq!(samples.notes, ["1 of 2 samples were cut at 16 tokens"]);
    let cut = |max_length| LoadOptions {
        max_length: Some(max_length),
        ..LoadOptions::default()
    };
    let source = Source::new(place.path("a.txt"));
    let samples = place.load(&source, &cut(5)).unwrap();
    assert_eq!(ids(&samples)[1], [2, 5, 5, 5, 3]);
    assert!(
        place
            .refusal(&source, &cut(17))
            .contains("samples of 17 tokens are too long: the model has 16 positions")
    );
    assert!(
        place
            .refusal(&source, &cut(2))
            .contains("leaves no room for text")
    );
    place.json(
        "model/tokenizer_config.json",
        &json!({"model_max_length": 8, "pad_token": {"content": "[PAD]"}}),
    );
    assert_eq!(ids(&place.plain("a.txt").unwrap())[1].len(), 8);
    // RoBERTa's table has pad + 1 rows more than positions.
    place.config(&json!({"model_type": "roberta", "vocab_size": 10, "max_position_embeddings": 9, "pad_token_id": 1}));
    assert_eq!(ids(&place.plain("a.txt").unwrap())[1].len(), 7);
}

#[test]
fn the_padding_token_is_named_by_the_tokenizer_or_the_config_or_is_any_and_said() {
    let place = Place::text();
    place.write("a.txt", "a\na cat");
    let second = |place: &Place| {
        let samples = place.plain("a.txt").unwrap();
        let tokens = samples.batch(&[1, 0]).unwrap().tokens.unwrap();
        assert_eq!(
            tokens.real(),
            [true, true, true, true, true, true, true, false]
        );
        (tokens.ids()[7], samples.notes)
    };
    assert_eq!(second(&place), (0, vec![]));
    place.json("model/tokenizer_config.json", &json!({}));
    place.json(
        "model/special_tokens_map.json",
        &json!({"pad_token": "[SEP]"}),
    );
    assert_eq!(second(&place), (3, vec![]));
    place.json("model/special_tokens_map.json", &json!({}));
    place.config(&json!({"vocab_size": 10, "pad_token_id": 2}));
    assert_eq!(second(&place), (2, vec![]));
    place.config(&json!({"vocab_size": 10}));
    let (id, notes) = second(&place);
    assert_eq!(id, 0);
    assert!(notes[0].contains("names no padding token"), "{notes:?}");
}

#[test]
fn a_missing_or_foreign_tokenizer_is_an_error() {
    let place = Place::text();
    place.write("a.txt", "a mat");
    place.config(&json!({"vocab_size": 9}));
    insta::assert_snapshot!(place.plain_refusal("a.txt"));
    place.json("model/tokenizer.json", &json!({"model": 3}));
    assert!(
        place
            .plain_refusal("a.txt")
            .starts_with("model `model/tokenizer.json`: ")
    );
    std::fs::remove_file(place.path("model/tokenizer.json")).unwrap();
    insta::assert_snapshot!(place.plain_refusal("a.txt"));
    place.write("model/spiece.model", "x");
    assert!(
        place
            .plain_refusal("a.txt")
            .contains("it has `spiece.model` but no `tokenizer.json`")
    );
    place.write("model/config.json", "{");
    assert!(
        place
            .plain_refusal("a.txt")
            .contains("model `model/config.json`: not valid JSON")
    );
}

#[test]
fn the_decoder_reads_the_target_shifted_by_its_start_token() {
    let place = Place::text();
    place.config(&json!({"model_type": "t5", "vocab_size": 10, "is_encoder_decoder": true, "decoder_start_token_id": 0, "pad_token_id": 0}));
    let path = place.write("a.jsonl", r#"{"text": "a cat", "summary": "mat"}"#);
    let source = Source {
        target: Some("summary".into()),
        column: Some("text".into()),
        ..Source::new(&path)
    };
    let samples = place.load(&source, &LoadOptions::default()).unwrap();
    assert_eq!(sequences(&samples)[0].decoder, [0, 2, 9]);
    assert_eq!(sequences(&samples)[0].target, [2, 9, 3]);
    let batch = samples.batch(&[0]).unwrap();
    assert_eq!(batch.decoder.unwrap().ids(), [0, 2, 9]);
    let samples = place.plain("a.jsonl").unwrap();
    assert_eq!(sequences(&samples)[0].decoder, [0]);
    assert!(samples.notes[0].contains("no target column is named"));
    place.config(&json!({"vocab_size": 10}));
    assert!(
        place
            .refusal(&source, &LoadOptions::default())
            .contains("a target column is for encoder-decoder models")
    );
}

#[test]
fn texts_without_tokens_are_left_out_with_their_labels() {
    let place = Place::text();
    let mut tokenizer = tokenizer();
    tokenizer["post_processor"] = json!(null);
    tokenizer["normalizer"] =
        json!({"type": "Replace", "pattern": {"String": "cat"}, "content": ""});
    place.json("model/tokenizer.json", &tokenizer);
    place.write(
        "a.jsonl",
        "{\"text\": \"cat\", \"label\": 0}\n{\"text\": \"mat\", \"label\": 1}",
    );
    let samples = place.labelled("a.jsonl").unwrap();
    assert_eq!(
        (ids(&samples), &samples.rows[..]),
        (vec![vec![9]], &[1][..])
    );
    assert_eq!(samples.labels.unwrap().len(), 1);
    assert_eq!(samples.notes, ["1 samples without a token are left out"]);
    place.write("b.txt", "cat");
    assert!(
        place
            .plain_refusal("b.txt")
            .contains("no sample has a token")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn batches_hold_every_sample_once_and_the_same_ids_whatever_their_size(
        lengths in prop::collection::vec(1_usize..12, 1..20), size in 1_usize..9,
    ) {
        let place = Place::text();
        let lines: Vec<String> = lengths.iter().map(|&n| vec!["cat"; n].join(" ")).collect();
        place.write("a.txt", lines.join("\n"));
        let samples = place.plain("a.txt").unwrap();
        let mut seen = vec![None; lengths.len()];
        for chunk in samples.batches(size) {
            let chunk = chunk.unwrap();
            prop_assert!(chunk.indices.len() <= size);
            let tokens = chunk.batch.tokens.unwrap();
            let width = tokens.sequence_len();
            for (row, &at) in chunk.indices.iter().enumerate() {
                let range = row * width..(row + 1) * width;
                let real: Vec<u32> = tokens.ids()[range.clone()].iter().zip(&tokens.real()[range]).filter(|(_, real)| **real).map(|(id, _)| *id).collect();
                prop_assert!(seen[at].replace(real).is_none());
            }
        }
        let seen: Vec<Vec<u32>> = seen.into_iter().map(Option::unwrap).collect();
        prop_assert_eq!(seen, ids(&samples));
    }
}

#[test]
fn rows_read_as_one_text_are_windows_of_equal_length() {
    let place = Place::text();
    let source = Source::new(place.write("a.txt", "the cat\n\nsat on a\nmat"));
    let options = LoadOptions {
        max_length: Some(4),
        ..LoadOptions::default()
    };
    let model = merganser_data::Processor::open(&place.path("model")).unwrap();
    let samples = model.load_joined(&source, &options).unwrap();
    assert_eq!(ids(&samples), [vec![2, 4, 5, 6], vec![7, 8, 9, 3]]);
    assert_eq!(samples.rows, [0, 1]);
    assert_eq!(
        samples.notes,
        ["3 rows are read as one text, in windows of 4 tokens"]
    );
    let tensors = [crate::support::i64s("input_ids", &[1, 2], &[2, 3])];
    let source = Source::new(place.tensors("a.safetensors", &tensors, &[]));
    let error = model.load_joined(&source, &options).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("holds no texts that could be joined")
    );
}

#[test]
fn the_pooling_of_sentence_transformers_is_known() {
    let place = Place::text();
    let pooling = |place: &Place| {
        merganser_data::Processor::open(&place.path("model"))
            .unwrap()
            .pooling()
            .unwrap()
    };
    assert_eq!(pooling(&place), None);
    place.json(
        "model/1_Pooling/config.json",
        &json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}),
    );
    assert_eq!(pooling(&place), Some("cls"));
}
