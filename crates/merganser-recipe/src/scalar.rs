//! What an unquoted word means: YAML 1.1's rules, as PyYAML and so mergekit apply them.
//!
//! `yes`, `no`, `on`, `off` are booleans and a leading zero means octal (YAML 1.1,
//! <https://yaml.org/type/>). Two spellings of later YAML are understood besides: `1e-5` without a dot
//! is a number (PyYAML takes it for text, which mergekit then converts), and `0o17` is octal.

use crate::value::Value;

/// Whether an unquoted word means "nothing".
pub(crate) fn is_null(word: &str) -> bool {
    matches!(word, "" | "~" | "null" | "Null" | "NULL")
}

/// The value an unquoted word stands for.
pub(crate) fn resolve(word: &str) -> Value {
    match word {
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Value::Bool(true),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Value::Bool(false)
        }
        _ => number(word).unwrap_or_else(|| Value::Text(word.to_owned())),
    }
}

fn number(word: &str) -> Option<Value> {
    let (negative, magnitude) = match word.as_bytes().first()? {
        b'-' => (true, &word[1..]),
        b'+' => (false, &word[1..]),
        _ => (false, word),
    };
    match magnitude {
        ".inf" | ".Inf" | ".INF" => {
            return Some(Value::Float(if negative {
                f64::NEG_INFINITY
            } else {
                f64::INFINITY
            }));
        }
        ".nan" | ".NaN" | ".NAN" => return Some(Value::Float(f64::NAN)),
        _ => {}
    }
    if !magnitude.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let digits = magnitude.replace('_', "");
    let sign = if negative { "-" } else { "" };
    let (radix, body) = match digits.as_bytes() {
        [b'0', b'x', ..] => (16, &digits[2..]),
        [b'0', b'o', ..] => (8, &digits[2..]),
        [b'0', b'b', ..] => (2, &digits[2..]),
        [b'0', rest @ ..] if !rest.is_empty() && rest.iter().all(u8::is_ascii_digit) => {
            (8, &digits[1..])
        }
        _ => (10, digits.as_str()),
    };
    if !body.is_empty() && body.chars().all(|c| c.is_digit(radix)) {
        if let Ok(int) = i64::from_str_radix(&format!("{sign}{body}"), radix) {
            return Some(Value::Int(int));
        }
    } else if radix != 10 || !is_decimal(&digits) {
        return None;
    }
    // Too large for 64 bits, or with a fraction or an exponent.
    if radix == 10 {
        format!("{sign}{digits}").parse().ok().map(Value::Float)
    } else {
        None
    }
}

/// `12.`, `.5`, `1.5e-3`, `1e5`: digits with a dot, an exponent or both.
fn is_decimal(digits: &str) -> bool {
    let (mantissa, exponent) = match digits.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (digits, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let exponent_ok = exponent.is_none_or(|e| {
        let e = e.strip_prefix(['+', '-']).unwrap_or(e);
        !e.is_empty() && all_digits(e)
    });
    all_digits(whole)
        && all_digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent_ok
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_of_every_shape() {
        for (word, value) in [
            ("0", 0),
            ("-0", 0),
            ("+1", 1),
            ("1_000", 1000),
            ("0x1F", 31),
            ("-0x10", -16),
            ("0o17", 15),
            ("017", 15),
            ("0b101", 5),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(resolve(word), Value::Int(value), "{word}");
        }
        for (word, value) in [
            ("1.", 1.0),
            (".5", 0.5),
            ("-.5", -0.5),
            ("1e-5", 1e-5),
            ("1E5", 1e5),
            ("1.5e+3", 1500.0),
            ("1_000.5", 1000.5),
            ("00.5", 0.5),
            ("9223372036854775808", 9_223_372_036_854_775_808.0),
            (".inf", f64::INFINITY),
            ("-.Inf", f64::NEG_INFINITY),
        ] {
            assert_eq!(resolve(word), Value::Float(value), "{word}");
        }
        assert!(matches!(resolve(".nan"), Value::Float(x) if x.is_nan()));
    }

    #[test]
    fn words_that_only_look_like_numbers_stay_text() {
        for word in [
            "inf", "nan", "NaN", "e5", "1e", "1e+", ".", "-", "+", "_1", "1.2.3", "0xZZ", "0x",
            "08", "1-2", "--1", "1 000", "./1", "7b", "1.5B", "٣", "-_", "0b2", "1e5.0",
        ] {
            assert_eq!(resolve(word), Value::Text(word.into()), "{word}");
        }
    }

    #[test]
    fn booleans_of_yaml_1_1() {
        for word in [
            "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE",
        ] {
            assert_eq!(resolve(word), Value::Bool(true), "{word}");
        }
        for word in [
            "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE",
        ] {
            assert_eq!(resolve(word), Value::Bool(false), "{word}");
        }
        for word in ["y", "n", "yEs", "tRue"] {
            assert_eq!(resolve(word), Value::Text(word.into()), "{word}");
        }
    }

    proptest! {
        #[test]
        fn any_word_resolves(word in "\\PC*") {
            resolve(&word);
        }

        #[test]
        fn floats_read_back(x in any::<f64>().prop_filter("finite", |x| x.is_finite())) {
            let read = resolve(&format!("{x:?}")).as_f64();
            prop_assert_eq!(read, Some(x));
        }

        #[test]
        fn integers_read_back(i in any::<i64>()) {
            prop_assert_eq!(resolve(&i.to_string()), Value::Int(i));
        }
    }
}
