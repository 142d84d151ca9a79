//! Hostile recipes that need no models.

use std::fmt::Write;

use insta::assert_snapshot;

use super::Place;

#[test]
fn documents_that_need_each_other_are_refused() {
    let place = Place::new();
    assert_snapshot!(place.refused(
        "name: chicken\nmerge_method: passthrough\nmodels:\n  - model: egg\n---\nname: egg\nmerge_method: passthrough\nmodels:\n  - model: chicken\n"
    ));
}

#[test]
fn a_document_that_needs_itself_is_refused() {
    let place = Place::new();
    assert_snapshot!(
        place
            .refused("name: ouroboros\nmerge_method: passthrough\nmodels:\n  - model: ouroboros\n")
    );
}

#[test]
fn a_recipe_that_grows_when_read_is_refused() {
    // Each anchor is ten times the one before: a few hundred bytes that would fill any memory.
    let mut recipe = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..12 {
        let aliases = vec![format!("*a{}", i - 1); 10].join(", ");
        let _ = writeln!(recipe, "a{i}: &a{i} [{aliases}]");
    }
    recipe += "merge_method: linear\nmodels: *a11\n";
    let said = Place::new().refused(&recipe);
    assert!(said.starts_with("error: "), "{said}");
    assert!(said.len() < 10_000, "the message is as large as the bomb");
}

#[test]
fn a_recipe_that_is_no_text_is_refused() {
    let place = Place::new();
    place.write("binary.yml", [b'a', 0xff, 0x00]);
    let run = crate::program::run(place.path(), ["merge", "binary.yml", "out"]).refused();
    assert_snapshot!(run.said(place.path()), @"error: the recipe 'binary.yml' is not UTF-8 text (byte 1)");
}

#[test]
fn a_recipe_that_is_not_there_is_refused() {
    let place = Place::new();
    let run = crate::program::run(place.path(), ["merge", "nowhere.yml", "out"]).refused();
    assert_snapshot!(run.said(place.path()), @"error: cannot read the recipe 'nowhere.yml': No such file or directory (os error 2)");
}
