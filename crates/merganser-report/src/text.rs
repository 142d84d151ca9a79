//! Numbers and names as the table and the page write them.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::Score;

/// What stands where nothing was measured.
pub(crate) const MISSING: &str = "–";

/// A fraction as a percentage with one decimal: `91.2%`, `−3.0%`.
pub(crate) fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| MISSING.to_owned(), |value| per_cent(value, 1))
}

/// A fraction as a percentage without decimals, for axes and narrow cells.
pub(crate) fn whole_percent(value: f64) -> String {
    per_cent(value, 0)
}

fn per_cent(value: f64, decimals: usize) -> String {
    if value < -9.995 {
        "< −999%".to_owned()
    } else if value > 9.995 {
        "> 999%".to_owned()
    } else {
        format!("{}%", minus(&format!("{:.decimals$}", 100.0 * value)))
    }
}

/// A cosine or the like with two decimals.
pub(crate) fn decimal(value: Option<f64>) -> String {
    match value {
        Some(value) if value.abs() < 100.0 => minus(&format!("{value:.2}")),
        _ => short(value),
    }
}

/// A typographic minus, and none before zero.
fn minus(text: &str) -> String {
    match text.strip_prefix('-') {
        Some(digits) if digits.chars().all(|c| c == '0' || c == '.') => digits.to_owned(),
        Some(digits) => format!("−{digits}"),
        None => text.to_owned(),
    }
}

/// Three significant digits: `0.0123`, `4.56`, `1.23e7`.
pub(crate) fn short(value: Option<f64>) -> String {
    let Some(value) = value else {
        return MISSING.to_owned();
    };
    if value == 0.0 {
        return "0".to_owned();
    }
    let exponent = value.abs().log10().floor() as i32;
    let text = match exponent {
        -3..=2 => format!("{:.*}", (2 - exponent).max(0) as usize, value),
        3..=5 => format!("{value:.0}"),
        _ => format!("{value:.2e}"),
    };
    minus(&text)
}

/// A count with separators: `1,234,567`.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (k, digit) in digits.chars().enumerate() {
        if k > 0 && (digits.len() - k).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 task`, `2 tasks`.
pub(crate) fn counted(value: usize, noun: &str) -> String {
    let ending = if value == 1 { "" } else { "s" };
    format!("{} {noun}{ending}", count(value as u64))
}

/// `768 × 3072`.
pub(crate) fn shape(sizes: &[usize]) -> String {
    let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
    sizes.join(" × ")
}

/// The columns a text takes in a terminal, and roughly the letters it takes on a page.
pub(crate) fn columns(text: &str) -> usize {
    text.width()
}

/// The text in at most `limit` columns, with an ellipsis in the middle: the beginning and the end
/// of a model's name tell more than its middle.
pub(crate) fn shorten(text: &str, limit: usize) -> String {
    if columns(text) <= limit {
        return text.to_owned();
    }
    let take = |characters: &mut dyn Iterator<Item = char>, limit: usize| -> Vec<char> {
        let mut used = 0;
        let fits = |c: &char| {
            used += c.width().unwrap_or(0);
            used <= limit
        };
        characters.take_while(fits).collect()
    };
    let room = limit.saturating_sub(1);
    let mut short: String = take(&mut text.chars(), room.div_ceil(2))
        .into_iter()
        .collect();
    short.push('…');
    let end = take(&mut text.chars().rev(), room / 2);
    short.extend(end.into_iter().rev());
    short
}

/// The character, or `�` for one that would move a cursor, start an escape sequence or turn the
/// direction of writing.
pub(crate) fn harmless(c: char) -> char {
    let turns =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if turns || c.is_control() {
        '\u{fffd}'
    } else {
        c
    }
}

/// A text as a terminal may show it, in one line.
pub(crate) fn visible(text: &str) -> String {
    text.chars().map(harmless).collect()
}

/// A value and half the width of its interval: `84.3% ± 1.2`.
pub(crate) fn score(score: Score) -> String {
    match (score.low, score.high) {
        (Some(low), Some(high)) if high - low < 9.995 => {
            format!("{} ± {:.1}", percent(score.value), 50.0 * (high - low))
        }
        _ => percent(score.value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(percent(Some(0.9123)), "91.2%");
        assert_eq!(percent(Some(-0.0001)), "0.0%");
        assert_eq!(percent(Some(-0.25)), "−25.0%");
        assert_eq!(percent(Some(-1e300)), "< −999%");
        assert_eq!(percent(None), "–");
        assert_eq!(decimal(Some(-0.004)), "0.00");
        assert_eq!(short(Some(0.012_345)), "0.0123");
        assert_eq!(short(Some(4.564)), "4.56");
        assert_eq!(short(Some(45_678.0)), "45678");
        assert_eq!(short(Some(-1.234e-9)), "−1.23e-9");
        assert_eq!(short(Some(0.0)), "0");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(12), "12");
        assert_eq!(counted(1, "task"), "1 task");
    }

    #[test]
    fn long_names_keep_both_ends() {
        assert_eq!(shorten("abcdefghij", 7), "abc…hij");
        assert_eq!(shorten("abc", 3), "abc");
        assert_eq!(shorten("模型模型模型", 5), "模…型");
        assert_eq!(shorten("abc", 0), "…");
    }

    #[test]
    fn no_escape_sequence_reaches_the_terminal() {
        assert_eq!(visible("a\x1b[31mb\n\u{202e}c"), "a�[31mb��c");
    }
}
