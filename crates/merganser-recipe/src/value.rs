//! A single parameter value and the types it may be taken for.

use std::fmt;

/// What a parameter was set to, after gradients and filters are resolved.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `true`, `false` and YAML 1.1's `yes`, `no`, `on`, `off`.
    Bool(bool),
    /// A whole number that fits 64 bits.
    Int(i64),
    /// Any other number; may be infinite or NaN if the recipe says `.inf` or `.nan`.
    Float(f64),
    /// Anything else, and everything in quotes.
    Text(String),
}

impl Value {
    /// The value as a number: numbers, and text that spells one (`"1e-5"`). Booleans are no numbers.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(i) => Some(*i as f64),
            Self::Float(f) => Some(*f),
            Self::Text(text) => text.trim().parse().ok(),
            Self::Bool(_) => None,
        }
    }

    /// The value as a whole number: integers, floats without a fraction, and text that spells either.
    pub fn as_i64(&self) -> Option<i64> {
        // Both bounds are exact in f64; the upper one is the first value that no longer fits.
        const BOUND: f64 = 9_223_372_036_854_775_808.0;
        match self {
            Self::Int(i) => Some(*i),
            Self::Text(text) if text.trim().parse::<i64>().is_ok() => text.trim().parse().ok(),
            _ => self
                .as_f64()
                .filter(|f| f.fract() == 0.0 && (-BOUND..BOUND).contains(f))
                .map(|f| f as i64),
        }
    }

    /// The value as a yes or no: booleans, the words of YAML 1.1 in any case (`Yes`, `off`), 0 and 1.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(b) => Some(*b),
            Self::Int(0) => Some(false),
            Self::Int(1) => Some(true),
            Self::Text(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" => Some(true),
                "false" | "no" | "off" => Some(false),
                _ => None,
            },
            Self::Int(_) | Self::Float(_) => None,
        }
    }

    /// The value as text, only if it is [`Value::Text`].
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// What kind of value this is, for messages: "a boolean", "a number" or "text".
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Float(_) => "a number",
            Self::Text(_) => "text",
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(b) => write!(f, "{b}"),
            Self::Int(i) => write!(f, "{i}"),
            Self::Float(x) => write!(f, "{x:?}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(s: &str) -> Value {
        Value::Text(s.into())
    }

    #[test]
    fn numbers_may_be_spelled_as_text() {
        assert_eq!(text("1e-5").as_f64(), Some(1e-5));
        assert_eq!(text(" 0.5 ").as_f64(), Some(0.5));
        assert_eq!(Value::Int(3).as_f64(), Some(3.0));
        assert_eq!(Value::Bool(true).as_f64(), None);
        assert_eq!(text("half").as_f64(), None);
    }

    #[test]
    fn whole_numbers_have_no_fraction() {
        assert_eq!(Value::Float(10.0).as_i64(), Some(10));
        assert_eq!(Value::Float(10.5).as_i64(), None);
        assert_eq!(Value::Float(1e300).as_i64(), None);
        assert_eq!(Value::Float(f64::NAN).as_i64(), None);
        assert_eq!(text("9223372036854775807").as_i64(), Some(i64::MAX));
        assert_eq!(Value::Float(9_223_372_036_854_775_808.0).as_i64(), None);
    }

    #[test]
    fn yes_and_no_have_many_names() {
        for yes in [
            Value::Bool(true),
            Value::Int(1),
            text("yes"),
            text("On"),
            text("TRUE"),
        ] {
            assert_eq!(yes.as_bool(), Some(true), "{yes:?}");
        }
        for no in [
            Value::Bool(false),
            Value::Int(0),
            text("no"),
            text("Off"),
            text("false"),
        ] {
            assert_eq!(no.as_bool(), Some(false), "{no:?}");
        }
        for neither in [Value::Int(2), Value::Float(1.0), text("maybe"), text("")] {
            assert_eq!(neither.as_bool(), None, "{neither:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(x in any::<f64>().prop_filter("finite", |x| x.is_finite())) {
            prop_assert_eq!(text(&Value::Float(x).to_string()).as_f64(), Some(x));
        }
    }
}
