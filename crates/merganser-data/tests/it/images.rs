//! Folders of images, images in tables, and the preprocessor's settings.

use crate::support::{Place, pixels, png};
use merganser_data::{Labels, LoadOptions, Source};
use serde_json::{Value, json};

const GREY: [u8; 3] = [100, 100, 100];

fn settings(place: &Place, value: &Value) {
    place.json("model/preprocessor_config.json", value);
}

#[test]
fn folders_are_classes() {
    let place = Place::vision();
    place.write("set/dog/b.png", png(4, 4, |_, _| [255; 3]));
    place.write("set/cat/deep/a.PNG", png(4, 4, |_, _| [0; 3]));
    place.write("set/cat/.hidden.png", "x");
    place.write("set/notes.txt", "about");
    let samples = place.labelled("set").unwrap();
    let names = Some(vec!["cat".into(), "dog".into()]);
    assert_eq!(
        samples.labels,
        Some(Labels::Classes {
            ids: vec![0, 1],
            names
        })
    );
    let (found, shape) = pixels(&samples);
    assert_eq!(shape, [3, 4, 4]);
    assert!(found[..48].iter().all(|&x| x == -1.0) && found[48..].iter().all(|&x| x == 1.0));
    assert_eq!(
        samples.notes,
        [
            "no preprocessor_config.json: images are resized to 4×4 and normalised with mean 0.5 and standard deviation 0.5"
        ]
    );

    place.write("set/loose.png", png(4, 4, |_, _| GREY));
    assert!(
        place
            .labelled_refusal("set")
            .contains("`set/loose.png` lies in no sub-folder")
    );
    assert_eq!(place.plain("set").unwrap().len(), 3);
    place.write("parts/train/x/a.png", png(4, 4, |_, _| GREY));
    place.write("parts/test/y/a.png", png(4, 4, |_, _| GREY));
    assert!(
        place
            .labelled_refusal("parts")
            .contains("holds the splits `test`, `train`; choose one")
    );
    let source = Source {
        split: Some("test".into()),
        ..Source::new(place.path("parts"))
    };
    let samples = place.load(&source, &crate::support::labels()).unwrap();
    assert_eq!(
        samples.labels,
        Some(Labels::Classes {
            ids: vec![0],
            names: Some(vec!["y".into()])
        })
    );
}

#[test]
fn every_format_is_decoded() {
    let place = Place::vision();
    let image = image::DynamicImage::from(image::RgbImage::from_pixel(4, 4, image::Rgb(GREY)));
    for extension in ["png", "jpg", "webp", "bmp", "tiff", "gif"] {
        let path = place.write(&format!("{extension}/a.{extension}"), "");
        let image = if extension == "gif" {
            image.to_rgba8().into()
        } else {
            image.clone()
        };
        image.save(&path).unwrap();
        let (found, _) = pixels(&place.plain(extension).unwrap());
        let expected = (100.0 / 255.0 - 0.5) / 0.5;
        assert!(
            found.iter().all(|x| (x - expected).abs() < 0.01),
            "{extension}: {found:?}"
        );
    }
}

#[test]
fn unreadable_images_are_named() {
    let place = Place::vision();
    let whole = png(64, 64, |x, y| [x as u8 * 3, y as u8, 7]);
    for (name, content) in [
        ("a.png", &b"no image"[..]),
        ("b.png", &whole[..100]),
        ("c.png", b""),
    ] {
        place.write(&format!("{name}.d/{name}"), content);
        let found = place.plain_refusal(&format!("{name}.d"));
        assert!(
            found.starts_with(&format!("`{name}.d/{name}` cannot be used: ")),
            "{found}"
        );
    }
    std::os::unix::fs::symlink("nowhere", place.path("a.png.d/z.png")).unwrap();
    assert!(place.plain_refusal("a.png.d").contains("a.png"));
}

#[test]
fn images_are_resized_cropped_rescaled_and_normalised_as_the_settings_say() {
    let place = Place::vision();
    // 8 wide, 4 high: black on the left, white on the right.
    place.write(
        "set/a.png",
        png(8, 4, |x, _| if x < 4 { [0; 3] } else { [255; 3] }),
    );
    let run = |value: &Value| {
        settings(&place, value);
        pixels(&place.plain("set").unwrap()).0
    };
    let plain = json!({"do_normalize": false, "do_rescale": true, "size": 4});
    // Squashed to 4×4.
    let squashed = run(&plain);
    assert_eq!(squashed[0], 0.0);
    assert_eq!(squashed[3], 1.0);
    // The shorter side is 4 already; the middle keeps two columns of each colour.
    let middle = run(
        &json!({"do_normalize": false, "size": {"shortest_edge": 4}, "do_center_crop": true, "crop_size": {"height": 4, "width": 4}}),
    );
    assert_eq!(middle[..4], [0.0, 0.0, 1.0, 1.0]);
    // Sizes in their other forms.
    for size in [json!({"height": 4, "width": 4}), json!(4)] {
        assert_eq!(run(&json!({"do_normalize": false, "size": size})), squashed);
    }
    assert_eq!(run(&json!({"do_normalize": false})), squashed);
    // A missing margin is filled with black: the image is 4 high, two rows are cut to 2 and padded back to 4.
    let padded = run(
        &json!({"do_normalize": false, "do_resize": true, "size": {"height": 2, "width": 2}, "resample": 0, "do_center_crop": true, "crop_size": 4}),
    );
    assert_eq!(padded[..4], [0.0; 4]);
    assert_eq!(padded[4..8], [0.0, 0.0, 1.0, 0.0]);
    // Numbers.
    let normalised = run(
        &json!({"size": 4, "resample": "nearest", "rescale_factor": 0.5, "image_mean": [1.0, 2.0, 3.0], "image_std": [2.0, 4.0, 5.0]}),
    );
    assert_eq!(
        [normalised[3], normalised[19], normalised[35]],
        [
            (127.5 - 1.0) / 2.0,
            (127.5 - 2.0) / 4.0,
            (127.5 - 3.0) / 5.0
        ]
    );
    assert_eq!(
        run(&json!({"size": 4, "do_rescale": false, "do_normalize": false, "resample": 0}))[3],
        255.0
    );
    for resample in [1, 2, 3] {
        let value = run(&json!({"size": 4, "do_normalize": false, "resample": resample}));
        assert!(value[0] < 0.1 && value[3] > 0.9);
    }
    // A processor nested in processor_config.json.
    std::fs::remove_file(place.path("model/preprocessor_config.json")).unwrap();
    place.json(
        "model/processor_config.json",
        &json!({"image_processor": plain}),
    );
    assert_eq!(pixels(&place.plain("set").unwrap()).0, squashed);
}

#[test]
fn settings_that_cannot_be_followed_are_refused() {
    let place = Place::vision();
    place.write("set/a.png", png(8, 4, |_, _| GREY));
    for (value, expected) in [
        (
            json!({"size": {"shortest_edge": 4}}),
            "the preprocessor's settings make it 4×8 pixels, the model's config expects 4×4",
        ),
        (json!({"do_resize": false}), "make it 4×8 pixels"),
        (
            json!({"size": {"width": 4}}),
            "`size` is {\"width\":4}, expected a number, {height, width} or {shortest_edge}",
        ),
        (json!({"size": 0}), "`size` is 0"),
        (
            json!({"size": 4, "resample": 6}),
            "`resample` is 6, expected 0 (nearest)",
        ),
        (
            json!({"size": 4, "image_mean": [0.5]}),
            "`image_mean` is [0.5], expected 3 numbers",
        ),
        (
            json!({"size": 4, "image_std": [1, 0, 1], "image_mean": 0}),
            "a standard deviation must not be 0",
        ),
        (
            json!({"size": 4, "do_flip_channel_order": true}),
            "`do_flip_channel_order` is true, which is not supported",
        ),
        (
            json!({"size": 4, "crop_pct": 0.9}),
            "`crop_pct` is 0.9, which is not supported",
        ),
        (
            json!({"size": 4, "do_rescale": 1}),
            "`do_rescale` is 1, expected true or false",
        ),
        (
            json!({"size": 4, "rescale_factor": "x"}),
            "`rescale_factor` is \"x\", expected a number",
        ),
    ] {
        settings(&place, &value);
        let found = place.plain_refusal("set");
        assert!(
            found.contains(expected),
            "{value}\n  found: {found}\n  expected: {expected}"
        );
    }
    settings(&place, &json!({"size": 4}));
    assert!(
        place.plain("set").unwrap().notes[0]
            .contains("names no image_mean or image_std: 0.5 is used")
    );
    let place = Place::new();
    place.config(&json!({"model_type": "vit"}));
    place.write("set/a.png", png(8, 4, |_, _| GREY));
    assert!(
        place
            .plain_refusal("set")
            .contains("neither `preprocessor_config.json` nor an `image_size`")
    );
    settings(&place, &json!({"do_resize": false}));
    place.write("set/b.png", png(4, 4, |_, _| GREY));
    assert!(
        place
            .plain_refusal("set")
            .contains("images of one size are needed")
    );
}

#[test]
fn models_of_one_channel_see_grey() {
    let place = Place::vision();
    place.config(&json!({"image_size": 4, "num_channels": 1}));
    place.write("set/a.png", png(4, 4, |_, _| [255, 0, 0]));
    let (found, shape) = pixels(&place.plain("set").unwrap());
    assert_eq!(shape, [1, 4, 4]);
    assert!((found[0] - (76.0 / 255.0 - 0.5) / 0.5).abs() < 1e-6);
    place.config(&json!({"image_size": 4, "num_channels": 12}));
    assert!(place.plain_refusal("set").contains("`num_channels` is 12"));
}

#[test]
fn images_of_a_parquet_column_are_decoded() {
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    let place = Place::vision();
    let schema = "message schema { optional group img { optional binary bytes; optional binary path (UTF8); } optional int64 label; }";
    let file = std::fs::File::create(place.path("a.parquet")).unwrap();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let images = [png(4, 4, |_, _| [0; 3]), png(9, 5, |_, _| [255; 3])].map(ByteArray::from);
    let names = ["a", "b"].map(ByteArray::from);
    for values in [&images, &names] {
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(values, Some(&[2, 2]), None)
            .unwrap();
        column.close().unwrap();
    }
    let mut column = group.next_column().unwrap().unwrap();
    column
        .typed::<Int64Type>()
        .write_batch(&[1, 0], Some(&[1, 1]), None)
        .unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();

    let samples = place.labelled("a.parquet").unwrap();
    let (found, _) = pixels(&samples);
    assert!(found[..48].iter().all(|&x| x == -1.0) && found[48..].iter().all(|&x| x == 1.0));
    let few = LoadOptions {
        samples: Some(1),
        ..LoadOptions::default()
    };
    assert_eq!(
        place
            .load(&Source::new(place.path("a.parquet")), &few)
            .unwrap()
            .len(),
        1
    );
}
