//! Parameters and their settings: scalars, gradients over the layers, filters by tensor name.
//!
//! A gradient of n values at position t ∈ [0, 1] is piecewise linear: with s = t·(n−1), i = ⌊s⌋ and
//! f = s − i its value is (1−f)·v\[i\] + f·v\[min(n−1, i+1)\]. Booleans and text do not interpolate:
//! they step, v\[⌊s⌋\]. Of several filtered cases the first whose filter is absent, `*` or part of the
//! tensor's name applies. All this is mergekit's value language.

use crate::span::{Span, Spanned};
use crate::value::Value;

/// The value of one parameter: cases tried in order.
///
/// A bare scalar or gradient is a single case without filter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Setting {
    /// What applies to which tensors, first match first.
    pub cases: Vec<Case>,
}

/// A scalar or gradient for the tensors a filter lets through.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Case {
    /// Text that must be part of the tensor's name; none and `*` let every tensor through.
    pub filter: Option<Spanned<String>>,
    /// One value for a scalar, the values from first to last layer for a gradient.
    ///
    /// They are all numbers, all booleans or all text. An empty list sets nothing.
    pub values: Vec<Spanned<Value>>,
}

impl Setting {
    /// The value for a tensor at position `t` of its slice, or `None` if this setting has none for it.
    ///
    /// `t` runs from 0 at the first layer to 1 at the last and is held within these bounds (NaN counts
    /// as 0). `None` means that no filter matches or that the matching case is an empty list; the next
    /// scope decides then. A scalar comes back as it was written, an interpolated value as a float.
    pub fn resolve(&self, tensor_name: &str, t: f64) -> Option<Value> {
        self.cases
            .iter()
            .find(|case| case.applies_to(tensor_name))?
            .at(t)
    }

    /// Every value that can come out, in order of writing: the ends of all gradients and all scalars.
    ///
    /// Interpolated values lie between neighbours, so a range that holds for these holds for all.
    pub fn values(&self) -> impl Iterator<Item = &Spanned<Value>> {
        self.cases.iter().flat_map(|case| &case.values)
    }

    /// Whether the value depends on the layer.
    pub fn is_gradient(&self) -> bool {
        self.cases.iter().any(|case| case.values.len() > 1)
    }

    /// Whether the value depends on the tensor's name.
    pub fn is_filtered(&self) -> bool {
        self.cases
            .iter()
            .any(|case| case.filter.as_ref().is_some_and(|f| f.value != "*"))
    }
}

impl Case {
    /// Whether the filter lets a tensor of this name through.
    pub fn applies_to(&self, tensor_name: &str) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|f| f.value == "*" || tensor_name.contains(&f.value))
    }

    fn at(&self, t: f64) -> Option<Value> {
        let last = self.values.len().checked_sub(1)?;
        let t = if t.is_nan() { 0.0 } else { t.clamp(0.0, 1.0) };
        let s = t * last as f64;
        let i = s as usize;
        let f = s - i as f64;
        let here = &self.values[i].value;
        if f == 0.0 {
            return Some(here.clone());
        }
        let next = &self.values[last.min(i + 1)].value;
        match (here, next) {
            (Value::Int(_) | Value::Float(_), Value::Int(_) | Value::Float(_)) => {
                let (a, b) = (here.as_f64()?, next.as_f64()?);
                Some(Value::Float((1.0 - f) * a + f * b))
            }
            _ => Some(here.clone()),
        }
    }
}

/// A block of `parameters:` in order of writing; names are unique.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    /// Names and their settings; the span of a setting covers the whole of it.
    pub entries: Vec<(Spanned<String>, Spanned<Setting>)>,
    /// Where the block stands; empty if there is none.
    pub span: Span,
}

impl Parameters {
    /// The setting of a parameter, if this block has it.
    pub fn get(&self, name: &str) -> Option<&Spanned<Setting>> {
        self.entries
            .iter()
            .find(|(key, _)| key.value == name)
            .map(|(_, setting)| setting)
    }

    /// Names and settings in order of writing.
    pub fn iter(&self) -> impl Iterator<Item = (&Spanned<String>, &Spanned<Setting>)> {
        self.entries.iter().map(|(name, setting)| (name, setting))
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn case(filter: Option<&str>, values: &[Value]) -> Case {
        let bare = |value: &Value| Spanned::new(value.clone(), Span::default());
        Case {
            filter: filter.map(|f| Spanned::new(f.to_owned(), Span::default())),
            values: values.iter().map(bare).collect(),
        }
    }

    fn gradient(values: &[f64]) -> Setting {
        let values: Vec<Value> = values.iter().map(|&v| Value::Float(v)).collect();
        Setting {
            cases: vec![case(None, &values)],
        }
    }

    fn number(setting: &Setting, t: f64) -> f64 {
        setting
            .resolve("x", t)
            .and_then(|v| v.as_f64())
            .expect("a number")
    }

    #[test]
    fn a_gradient_is_piecewise_linear() {
        let setting = gradient(&[0.0, 1.0, 0.5]);
        for (t, value) in [
            (0.0, 0.0),
            (0.25, 0.5),
            (0.5, 1.0),
            (0.75, 0.75),
            (1.0, 0.5),
        ] {
            assert_eq!(number(&setting, t), value, "t = {t}");
        }
        assert!(setting.is_gradient());
    }

    #[test]
    fn positions_outside_the_slice_are_its_ends() {
        let setting = gradient(&[2.0, 3.0]);
        for (t, value) in [
            (-1.0, 2.0),
            (7.0, 3.0),
            (f64::NAN, 2.0),
            (f64::INFINITY, 3.0),
            (f64::NEG_INFINITY, 2.0),
        ] {
            assert_eq!(number(&setting, t), value, "t = {t}");
        }
    }

    #[test]
    fn booleans_and_text_step() {
        let flags = Setting {
            cases: vec![case(None, &[Value::Bool(true), Value::Bool(false)])],
        };
        assert_eq!(flags.resolve("x", 0.99), Some(Value::Bool(true)));
        assert_eq!(flags.resolve("x", 1.0), Some(Value::Bool(false)));
        let words: Vec<Value> = ["a", "b", "c"].map(|w| Value::Text(w.into())).to_vec();
        let words = Setting {
            cases: vec![case(None, &words)],
        };
        assert_eq!(words.resolve("x", 0.6), Some(Value::Text("b".into())));
    }

    #[test]
    fn the_first_matching_filter_wins() {
        let setting = Setting {
            cases: vec![
                case(Some("self_attn"), &[Value::Int(1)]),
                case(Some("q_proj"), &[Value::Int(2)]),
                case(Some("*"), &[Value::Int(3)]),
                case(None, &[Value::Int(4)]),
            ],
        };
        assert_eq!(
            setting.resolve("layers.0.self_attn.q_proj.weight", 0.0),
            Some(Value::Int(1))
        );
        assert_eq!(
            setting.resolve("layers.0.cross.q_proj.weight", 0.0),
            Some(Value::Int(2))
        );
        assert_eq!(setting.resolve("lm_head.weight", 0.0), Some(Value::Int(3)));
        assert!(setting.is_filtered() && !setting.is_gradient());
    }

    #[test]
    fn no_match_and_an_empty_list_are_no_value() {
        assert_eq!(Setting::default().resolve("x", 0.5), None);
        let filtered = Setting {
            cases: vec![case(Some("mlp"), &[Value::Int(1)])],
        };
        assert_eq!(filtered.resolve("lm_head", 0.5), None);
        // The empty case matches first, so the second is not asked.
        let empty = Setting {
            cases: vec![case(Some("mlp"), &[]), case(None, &[Value::Int(1)])],
        };
        assert_eq!(empty.resolve("mlp.weight", 0.5), None);
        assert_eq!(empty.resolve("lm_head", 0.5), Some(Value::Int(1)));
    }

    #[test]
    fn a_scalar_keeps_its_type() {
        let setting = Setting {
            cases: vec![case(None, &[Value::Int(10)])],
        };
        assert_eq!(setting.resolve("x", 0.3), Some(Value::Int(10)));
    }

    fn values() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(-1e6..1e6f64, 1..9)
    }

    proptest! {
        #[test]
        fn gradients_meet_their_ends(v in values()) {
            let setting = gradient(&v);
            prop_assert_eq!(number(&setting, 0.0), v[0]);
            prop_assert_eq!(number(&setting, 1.0), v[v.len() - 1]);
        }

        #[test]
        fn gradients_stay_between_their_values(v in values(), t in 0.0..=1.0f64) {
            let x = number(&gradient(&v), t);
            let low = v.iter().copied().fold(f64::INFINITY, f64::min);
            let high = v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let ulp = 1e-15 * low.abs().max(high.abs());
            prop_assert!(low - ulp <= x && x <= high + ulp, "{x} outside [{low}, {high}]");
        }

        #[test]
        fn sorted_gradients_rise(mut v in values(), a in 0.0..=1.0f64, b in 0.0..=1.0f64) {
            v.sort_by(f64::total_cmp);
            let setting = gradient(&v);
            let ulp = 1e-9;
            prop_assert!(number(&setting, a.min(b)) <= number(&setting, a.max(b)) + ulp);
        }

        #[test]
        fn a_reversed_gradient_is_its_mirror(v in values(), t in 0.0..=1.0f64) {
            let mirrored: Vec<f64> = v.iter().rev().copied().collect();
            let difference = number(&gradient(&v), t) - number(&gradient(&mirrored), 1.0 - t);
            prop_assert!(difference.abs() < 1e-6, "{difference}");
        }
    }
}
