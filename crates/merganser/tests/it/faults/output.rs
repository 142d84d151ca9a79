//! What may happen to an output folder that holds something already.

use std::collections::BTreeMap;
use std::fs;

use insta::assert_snapshot;

use super::{Place, copy_of};
use crate::models::{assert_same, bytes, copy, input, names, read};
use crate::program;

/// Where the golden inputs are, without a path in the recipe: models `base` and `ft1`, three files each.
fn place() -> Place {
    let place = Place::new();
    copy(&input("llama-base"), &place.join("base"));
    copy(&input("llama-ft1"), &place.join("ft1"));
    place
}

#[test]
fn a_model_in_the_output_folder_is_not_touched() {
    let place = place();
    copy(&input("llama-ft2"), &place.join("out"));
    let before = bytes(&place.join("out"));
    let run = place.merge(&copy_of("./base"), &[]).failed();
    assert_snapshot!(run.said(place.path()));
    assert_same(&before, &bytes(&place.join("out")), "the former model");
    assert!(!names(&place.join("out")).contains(&".partial-merganser".to_owned()));
}

#[test]
fn any_other_file_in_the_output_folder_counts_too() {
    let place = place();
    place.write("out/thesis.txt", "years of work");
    place.merge(&copy_of("./base"), &[]).failed();
    assert_eq!(names(&place.join("out")), ["thesis.txt"]);
}

#[test]
fn the_output_cannot_be_a_file() {
    let place = place();
    place.write("out", "a file");
    let run = place.merge(&copy_of("./base"), &[]).failed();
    assert_snapshot!(run.said(place.path()));
    assert_eq!(fs::read(place.join("out")).expect("the file"), b"a file");
}

#[test]
fn overwriting_leaves_no_shard_of_the_former_model() {
    let place = place();
    copy(&input("llama-ft3-sharded"), &place.join("out"));
    place.write("out/thesis.txt", "years of work");
    place.merge(&copy_of("./base"), &["--overwrite"]).done();
    let left = names(&place.join("out"));
    assert!(
        !left
            .iter()
            .any(|name| name.contains("-of-") || name.contains("index")),
        "{left:?}"
    );
    assert!(left.contains(&"thesis.txt".to_owned()), "{left:?}");
    assert!(!left.iter().any(|name| name.starts_with('.')), "{left:?}");
    assert_eq!(read(&place.join("out")), read(&place.join("base")));
}

#[test]
fn merging_into_an_input_is_refused() {
    let recipe = "merge_method: linear\nmodels:\n  - model: ./base\n  - model: ./ft1\nparameters: {weight: 0.5}\n";
    let place = place();
    let before = bytes(&place.join("base"));
    place.write("recipe.yml", recipe);
    let plain = program::run(place.path(), ["merge", "recipe.yml", "base"]);
    assert_ne!(plain.code, Some(0), "an input was replaced without a word");
    assert_same(&before, &bytes(&place.join("base")), "the input");

    for into in ["base", "./ft1/../base"] {
        let line = format!("merge recipe.yml {into} --overwrite");
        let said = program::refused(place.path(), &line);
        assert!(said.contains("is where ./base is read from"), "{said}");
        assert_same(&before, &bytes(&place.join("base")), "the input");
    }
}

#[test]
fn no_result_replaces_what_it_is_made_from() {
    let place = place();
    copy(&input("lora-a"), &place.join("adapter"));
    place.write(
        "adapter.yml",
        "merge_method: peft\noutput: adapter\nmodels:\n  - model: ./adapter\n",
    );
    // Adapters have no weights of a model.
    let before = |name: &str| match name {
        "adapter" => BTreeMap::from([(
            "weights".to_owned(),
            fs::read(place.join("adapter/adapter_model.safetensors")).expect("the adapter"),
        )]),
        _ => bytes(&place.join(name)),
    };
    for (line, input) in [
        ("merge adapter.yml adapter --overwrite", "adapter"),
        ("extract lora ft1 base -o ft1 --overwrite", "ft1"),
        ("extract task-vector ft1 base -o base --overwrite", "base"),
        ("apply base ft1 -o base --overwrite", "base"),
        ("apply base adapter -o adapter --overwrite", "adapter"),
    ] {
        let was = before(input);
        program::refused(place.path(), line);
        assert_same(&was, &before(input), line);
    }
}

#[test]
fn two_merges_cannot_share_an_output() {
    let place = place();
    fs::create_dir_all(place.join("out/.partial-merganser")).expect("a folder");
    let lock = fs::File::create(place.join("out/.partial-merganser/lock")).expect("a lock");
    lock.lock().expect("it is ours");
    let run = place.merge(&copy_of("./base"), &[]).failed();
    assert_snapshot!(run.said(place.path()));
    drop(lock);
    place.merge(&copy_of("./base"), &[]).done();
}

#[test]
fn there_is_nothing_to_seal_in_an_empty_folder() {
    let place = place();
    fs::create_dir(place.join("out")).expect("a folder");
    let run = program::run(place.path(), ["seal", "out"]).failed();
    assert_snapshot!(run.said(place.path()));
}

#[test]
fn parts_of_different_merges_are_not_sealed_together() {
    let place = place();
    place.merge(&copy_of("./base"), &["--part", "1/2"]).done();
    place.merge(&copy_of("./ft1"), &["--part", "2/2"]).done();
    let run = program::run(place.path(), ["seal", "out"]).failed();
    assert_snapshot!(run.said(place.path()));
    assert_eq!(names(&place.join("out")), [".partial-merganser"]);
}
