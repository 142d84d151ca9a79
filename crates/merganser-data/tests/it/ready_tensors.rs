//! Token ids and pixels that are tensors already.

use crate::support::{Place, f32s, i32s, i64s, ids, pixels, sequences, u8s};
use merganser_data::{Labels, LoadOptions, Source};
use serde_json::json;

#[test]
fn padding_is_taken_off_by_the_mask() {
    let place = Place::text();
    place.tensors(
        "a.safetensors",
        &[
            i32s("calib.input_ids", &[2, 4], &[2, 4, 3, 0, 2, 3, 0, 0]),
            u8s("calib.attention_mask", &[2, 4], &[1, 1, 1, 0, 1, 1, 0, 0]),
            i64s("calib.labels", &[2], &[1, 0]),
            i64s("test.input_ids", &[1, 2], &[2, 3]),
        ],
        &[("classes", "[\"no\", \"yes\"]")],
    );
    assert_eq!(
        place.plain_refusal("a.safetensors"),
        "`a.safetensors` holds the splits `calib`, `test`; choose one"
    );
    let mut source = Source {
        split: Some("calib".into()),
        ..Source::new(place.path("a.safetensors"))
    };
    let samples = place.load(&source, &crate::support::labels()).unwrap();
    assert_eq!(ids(&samples), [vec![2, 4, 3], vec![2, 3]]);
    assert_eq!(samples.notes, [""; 0]);
    assert_eq!(
        samples.labels,
        Some(Labels::Classes {
            ids: vec![1, 0],
            names: Some(vec!["no".into(), "yes".into()])
        })
    );
    source.split = Some("test".into());
    let samples = place.load(&source, &LoadOptions::default()).unwrap();
    assert!(samples.notes[0].contains("has no attention_mask beside it: every token counts"));
    assert!(
        place
            .refusal(&source, &crate::support::labels())
            .contains("has no labels beside `test.input_ids`; expected a tensor `test.labels`")
    );
    source.split = Some("dev".into());
    assert!(
        place
            .refusal(&source, &crate::support::labels())
            .contains("has no samples under `dev.`; the prefixes it has are `calib`, `test`")
    );
}

#[test]
fn left_padding_and_types_are_understood() {
    let place = Place::text();
    place.tensors(
        "a.safetensors",
        &[
            i64s("input_ids", &[1, 4], &[0, 2, 4, 3]),
            i64s("attention_mask", &[1, 4], &[0, 1, 1, 1]),
            i64s("token_type_ids", &[1, 4], &[0, 0, 1, 1]),
        ],
        &[],
    );
    let samples = place.plain("a.safetensors").unwrap();
    assert_eq!(sequences(&samples)[0].ids, [2, 4, 3]);
    assert_eq!(sequences(&samples)[0].types, [0, 1, 1]);
    assert!(samples.notes[0].contains("padded on the left"));
    let short = LoadOptions {
        max_length: Some(2),
        ..LoadOptions::default()
    };
    let samples = place
        .load(&Source::new(place.path("a.safetensors")), &short)
        .unwrap();
    assert_eq!(sequences(&samples)[0].ids, [2, 4]);
}

#[test]
fn ids_and_masks_that_cannot_be_are_refused() {
    let place = Place::text();
    let mask = |values: &[u8]| u8s("attention_mask", &[1, 3], values);
    let tokens = |values: &[i64]| i64s("input_ids", &[1, 3], values);
    for (tensors, expected) in [
        (
            vec![tokens(&[2, 10, 3])],
            "row 0 holds token 10, but the model's vocabulary has 10 tokens",
        ),
        (
            vec![tokens(&[2, -1, 3])],
            "row 0 holds -1, which is no token id",
        ),
        (
            vec![tokens(&[2, 4, 3]), mask(&[1, 0, 1])],
            "row 0 hides tokens between real ones",
        ),
        (
            vec![tokens(&[2, 4, 3]), mask(&[0, 0, 0])],
            "row 0 is padding only",
        ),
        (
            vec![tokens(&[2, 4, 3]), u8s("attention_mask", &[3], &[1; 3])],
            "shape [3]; expected [1, 3] as `input_ids` has",
        ),
        (
            vec![i64s("input_ids", &[3], &[2, 4, 3])],
            "shape [3]; expected",
        ),
        (
            vec![f32s("input_ids", &[1, 1], &[2.0])],
            "found F32, expected integers",
        ),
        (vec![i64s("input_ids", &[0, 3], &[])], "holds no samples"),
        (vec![i64s("input_ids", &[1, 0], &[])], "row 0 has no tokens"),
        (
            vec![i64s("input_ids", &[1, 17], &[4; 17])],
            "samples of 17 tokens are too long",
        ),
        (
            vec![i64s("labels", &[3], &[0; 3])],
            "holds labels but no `input_ids` and no `pixel_values`; its tensors are `labels`",
        ),
        (
            vec![tokens(&[2, 4, 3]), u8s("pixels", &[1, 4, 4, 3], &[0; 48])],
            "holds pixels and token ids",
        ),
    ] {
        place.tensors("a.safetensors", &tensors, &[]);
        let found = place.plain_refusal("a.safetensors");
        assert!(
            found.contains(expected),
            "found: {found}\nexpected: {expected}"
        );
    }
    place.tensors(
        "a.safetensors",
        &[tokens(&[2, 4, 3]), i64s("labels", &[2], &[0; 2])],
        &[],
    );
    assert!(
        place
            .labelled_refusal("a.safetensors")
            .contains("shape [2]; expected [1], one label a sample")
    );
    place.write("b.safetensors", "nonsense and more");
    assert!(
        place
            .plain_refusal("b.safetensors")
            .contains("is not a valid safetensors file")
    );
}

#[test]
fn bytes_are_normalised_and_floats_are_taken_as_they_are() {
    let place = Place::vision();
    let bytes: Vec<u8> = (0..48).map(|n| n * 5).collect();
    place.tensors(
        "a.safetensors",
        &[u8s("pixels", &[1, 4, 4, 3], &bytes)],
        &[],
    );
    let samples = place.plain("a.safetensors").unwrap();
    let (found, shape) = pixels(&samples);
    assert_eq!(shape, [3, 4, 4]);
    // Pixel (0, 1) is bytes 3..6; the channels lie 16 apart.
    for channel in 0..3 {
        let level = f32::from(bytes[3 + channel]);
        assert!((found[channel * 16 + 1] - (level / 255.0 - 0.5) / 0.5).abs() < 1e-6);
    }
    assert!(samples.notes[0].contains("no preprocessor_config.json"));

    let planar: Vec<u8> = (0..3)
        .flat_map(|c| (0..16).map(move |at| (at * 3 + c) * 5))
        .collect();
    place.tensors(
        "b.safetensors",
        &[u8s("pixel_values", &[1, 3, 4, 4], &planar)],
        &[],
    );
    assert_eq!(pixels(&place.plain("b.safetensors").unwrap()).0, found);

    place.tensors(
        "c.safetensors",
        &[u8s("images", &[1, 4, 4], &bytes[..16])],
        &[],
    );
    let (grey, _) = pixels(&place.plain("c.safetensors").unwrap());
    assert_eq!(grey[..16], grey[16..32]);

    let values: Vec<f32> = (0..96).map(|n| n as f32 / 7.0).collect();
    place.tensors(
        "d.safetensors",
        &[f32s("pixel_values", &[2, 3, 4, 4], &values)],
        &[],
    );
    let samples = place.plain("d.safetensors").unwrap();
    assert_eq!(pixels(&samples).0, values);
    assert_eq!(samples.notes, [""; 0]);
    assert_eq!(samples.to_batches(1).unwrap().len(), 2);
}

#[test]
fn pixels_that_cannot_be_are_refused() {
    let place = Place::vision();
    let mut bad = vec![0.0; 96];
    bad[60] = f32::NAN;
    for (tensor, expected) in [
        (
            f32s("pixel_values", &[2, 3, 4, 4], &bad),
            "image 1 holds NaN; expected finite pixels",
        ),
        (
            f32s("pixel_values", &[1, 3, 5, 4], &[0.0; 60]),
            "images of 5×4 pixels; the model expects 4×4",
        ),
        (
            u8s("pixels", &[1, 5, 5, 3], &[0; 75]),
            "images of 5×5 pixels; the model expects 4×4",
        ),
        (
            f32s("pixel_values", &[1, 1, 4, 4], &[0.0; 16]),
            "shape [1, 1, 4, 4]; expected normalised pixels (N, 3, H, W)",
        ),
        (
            i64s("pixel_values", &[1, 3, 1, 1], &[0; 3]),
            "expected normalised pixels",
        ),
        (u8s("pixels", &[0, 4, 4, 3], &[]), "holds no samples"),
    ] {
        place.tensors("a.safetensors", &[tensor], &[]);
        let found = place.plain_refusal("a.safetensors");
        assert!(
            found.contains(expected),
            "found: {found}\nexpected: {expected}"
        );
    }
}

#[test]
fn numpy_arrays_are_read_alone_or_from_a_folder() {
    let place = Place::text();
    place.write(
        "set/input_ids.npy",
        npy(
            "<i8",
            "(2, 3)",
            &[2_i64, 4, 3, 2, 3, 0].map(i64::to_le_bytes).concat(),
        ),
    );
    place.write(
        "set/attention_mask.npy",
        npy("|b1", "(2, 3)", &[1, 1, 1, 1, 1, 0]),
    );
    place.write(
        "set/labels.npy",
        npy("<i4", "(2,)", &[1_i32, 0].map(i32::to_le_bytes).concat()),
    );
    let samples = place.labelled("set").unwrap();
    assert_eq!(ids(&samples), [vec![2, 4, 3], vec![2, 3]]);
    assert_eq!(
        samples.labels,
        Some(Labels::Classes {
            ids: vec![1, 0],
            names: None
        })
    );
    place.write(
        "some.npy",
        npy("<i8", "(1, 2)", &[2_i64, 3].map(i64::to_le_bytes).concat()),
    );
    assert_eq!(ids(&place.plain("some.npy").unwrap()), [[2, 3]]);

    for (name, content, expected) in [
        (
            "a.npy",
            npy("<i8", "(2, 3)", &[0; 8]),
            "its header claims shape [2, 3] of I64, and 8 bytes of data follow",
        ),
        (
            "b.npy",
            npy("<i8", "(4294967296, 4294967296)", &[]),
            "its header claims shape [4294967296, 4294967296] of I64, and 0 bytes",
        ),
        ("c.npy", npy("<c8", "(1, 1)", &[0; 8]), "elements of type"),
        (
            "d.npy",
            b"nonsense".to_vec(),
            "tensor `d` of `d.npy`: not a NumPy file",
        ),
        (
            "e.npy",
            npy("<f8", "(1,)", &[0; 8]),
            "shape [1] is neither pixels (N, H, W, C) nor token ids (N, S)",
        ),
    ] {
        place.write(name, content);
        let found = place.plain_refusal(name);
        assert!(
            found.contains(expected),
            "{name}\n  found: {found}\n  expected: {expected}"
        );
    }
    let fortran = npy("<i8", "(1, 2)", &[0; 16]);
    let fortran = String::from_utf8_lossy(&fortran)
        .replace("'fortran_order': False", "'fortran_order': True ")
        .into_bytes();
    // The magic bytes are not UTF-8.
    let fortran = [&b"\x93NUMPY"[..], &fortran["\u{fffd}NUMPY".len()..]].concat();
    place.write("f.npy", fortran);
    assert!(place.plain_refusal("f.npy").contains("column-major order"));

    let place = Place::vision();
    place.write("pixels.npy", npy("|u1", "(1, 4, 4, 3)", &[128; 48]));
    let (found, shape) = pixels(&place.plain("pixels.npy").unwrap());
    assert_eq!(shape, [3, 4, 4]);
    assert!(
        found
            .iter()
            .all(|x| (x - (128.0 / 255.0 - 0.5) / 0.5).abs() < 1e-6)
    );
}

#[test]
fn decoder_ids_go_to_the_decoder() {
    let place = Place::text();
    place.config(
        &json!({"vocab_size": 10, "is_encoder_decoder": true, "decoder_start_token_id": 1}),
    );
    place.tensors(
        "a.safetensors",
        &[
            i64s("input_ids", &[1, 2], &[2, 3]),
            i64s("decoder_input_ids", &[1, 3], &[1, 5, 6]),
        ],
        &[],
    );
    assert_eq!(
        sequences(&place.plain("a.safetensors").unwrap())[0].decoder,
        [1, 5, 6]
    );
    place.tensors("b.safetensors", &[i64s("input_ids", &[1, 2], &[2, 3])], &[]);
    assert_eq!(
        sequences(&place.plain("b.safetensors").unwrap())[0].decoder,
        [1]
    );
}

/// The bytes of a NumPy file.
fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    while !(header.len() + 11).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes());
    bytes.extend(data);
    bytes
}
