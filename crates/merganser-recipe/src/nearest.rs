//! "Did you mean": the valid name a wrong word most likely stands for.
//!
//! Words are compared after folding case, `-` and `_`, and British spelling; what remains is measured
//! by the Damerau–Levenshtein distance (insert, delete, replace, swap neighbours = 1 each).

/// The candidate nearest to `word`, if one is near enough to be worth suggesting.
///
/// Near enough is one slip in words of three letters and more, two from six letters on, then one
/// more for every third letter; of equally near candidates the first wins.
///
/// ```
/// # use merganser_recipe::nearest;
/// assert_eq!(nearest("densty", ["weight", "density"]), Some("density"));
/// assert_eq!(nearest("normalise", ["normalize", "rescale"]), Some("normalize"));
/// assert_eq!(nearest("Merge-Method", ["merge_method"]), Some("merge_method"));
/// assert_eq!(nearest("banana", ["weight", "density"]), None);
/// ```
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = plain(word);
    let american = american(&plain);
    let allowed = american.chars().count() / 3;
    let distance = |a: &str, b: &str| {
        // A length difference is a lower bound of the distance, and the distance is quadratic.
        if a.len().abs_diff(b.len()) > 4 * (allowed + 1) {
            usize::MAX
        } else {
            strsim::damerau_levenshtein(a, b)
        }
    };
    candidates
        .into_iter()
        .map(|candidate| {
            let other = self::plain(candidate);
            // Also as it is written: not every `ise` is British, `tise` is `ties`.
            let as_written = distance(&plain, &other);
            let as_meant = distance(&american, &self::american(&other));
            (as_written.min(as_meant), candidate)
        })
        .filter(|&(distance, _)| distance <= allowed)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

fn plain(word: &str) -> String {
    word.to_lowercase().replace(['-', ' '], "_")
}

fn american(word: &str) -> String {
    let mut folded = word.to_owned();
    for (british, american) in [
        ("isation", "ization"),
        ("ise", "ize"),
        ("yse", "yze"),
        ("colour", "color"),
    ] {
        folded = folded.replace(british, american);
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn typos_find_their_word() {
        let keys = ["models", "slices", "modules", "merge_method", "base_model"];
        for (typo, meant) in [
            ("modles", "models"),
            ("model", "models"),
            ("module", "modules"),
            ("merge_mehtod", "merge_method"),
            ("mergemethod", "merge_method"),
            ("basemodel", "base_model"),
            ("BASE-MODEL", "base_model"),
            ("slice", "slices"),
        ] {
            assert_eq!(nearest(typo, keys), Some(meant), "{typo}");
        }
    }

    #[test]
    fn short_and_foreign_words_are_left_alone() {
        assert_eq!(nearest("r", ["t"]), None);
        assert_eq!(nearest("eps", ["tol", "t"]), None);
        assert_eq!(nearest("", ["t"]), None);
        assert_eq!(nearest("T", ["t"]), Some("t"));
    }

    #[test]
    fn british_spelling_is_no_typo() {
        assert_eq!(
            nearest("normalise_weights", ["normalize", "normalize_weights"]),
            Some("normalize_weights")
        );
        assert_eq!(nearest("tise", ["slerp", "ties"]), Some("ties"));
    }

    proptest! {
        #[test]
        fn a_name_is_its_own_nearest(word in "[a-z_]{1,20}", other in "[0-9]{1,20}") {
            prop_assert_eq!(nearest(&word, [other.as_str(), word.as_str()]), Some(word.as_str()));
        }
    }
}
