//! Full matrices against what the authors' code gives in f64.

use merganser_linalg::Matrix;
use merganser_spectral::{Result, iso_c, iso_cts, tsv_m};
use merganser_testkit::golden::{Case, cases};

use crate::support::{assert_close, matrix, updates};

/// The published code leaves `text_projection` to the mean, as it does all that is no matrix.
fn check(method: &str, least: usize, merge: impl Fn(&Case, &[&Matrix]) -> Result<Matrix>) {
    let mut checked = 0;
    for case in cases(method) {
        for name in case.names() {
            if case.base(&name).shape.len() != 2 || name.contains("text_projection") {
                continue;
            }
            let updates = updates(&case, &name);
            let mut found = merge(&case, &updates.iter().collect::<Vec<_>>()).unwrap();
            found.scale(case.number("scaling"));
            found.add_scaled(1.0, &matrix(case.base(&name)));
            let what = format!("{}: {name}", case.name);
            assert_close(&what, &found, &matrix(case.expect(&name)), 1e-10);
            checked += 1;
        }
    }
    assert!(checked >= least, "{checked}");
}

#[test]
fn task_singular_vectors_are_the_published_ones() {
    check("tsv_m", 15, |_, updates| {
        tsv_m(updates, None).map(|merged| merged.update)
    });
}

#[test]
fn isotropic_merges_are_the_published_ones() {
    check("iso_c", 14, |_, updates| {
        iso_c(updates).map(|merged| merged.update)
    });
}

#[test]
fn isotropic_merges_with_directions_of_the_tasks_are_the_published_ones() {
    check("iso_cts", 16, |case, updates| {
        iso_cts(updates, case.number("common_space_fraction")).map(|merged| merged.update)
    });
}
