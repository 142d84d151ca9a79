//! `parameters:` → [`Parameters`].

use std::rc::Rc;

use crate::diagnostic::{Diagnostic, quoted};
use crate::setting::{Case, Parameters, Setting};
use crate::span::Spanned;
use crate::value::Value;
use crate::yaml::{Kind, Node};

use super::{Fields, Reader, is_word, keys};

const EXAMPLE: &str = "parameters: {weight: 0.5}";
const CASES: &str = "[{filter: self_attn, value: 0.5}, {value: 1.0}]";

impl Reader {
    /// The block of parameters; what cannot be read is noted and left out.
    pub(super) fn parameters(&mut self, fields: &Fields<'_>) -> Parameters {
        let Some(entry) = fields.get("parameters") else {
            return Parameters::default();
        };
        let Kind::Mapping(entries) = &entry.value.kind else {
            self.wrong_type(
                &entry.value,
                "`parameters`",
                "a mapping from names to values",
                EXAMPLE,
            );
            return Parameters::default();
        };
        let entries = entries
            .iter()
            .filter_map(|entry| {
                let name = &entry.key;
                if entry.value.is_null() {
                    self.no_value(name);
                    return None;
                }
                let setting = self.setting(&name.value, &entry.value)?;
                Some((name.clone(), Spanned::new(setting, entry.value.span)))
            })
            .collect();
        Parameters {
            entries,
            span: entry.value.span,
        }
    }

    fn no_value(&mut self, name: &Spanned<String>) {
        let note = Diagnostic::error(format!("parameter {} has no value", quoted(&name.value)))
            .label(name.span, "nothing follows");
        let no_space = name.value.split_once(':').filter(|(word, _)| is_word(word));
        self.note(note.help(match no_space {
            Some((word, value)) => format!("a colon needs a space after it: `{word}: {value}`"),
            None => format!("for example `{EXAMPLE}`"),
        }));
    }

    fn setting(&mut self, name: &str, node: &Node) -> Option<Setting> {
        let cases = match &node.kind {
            Kind::Mapping(_) => vec![self.case(name, node)?],
            Kind::Sequence(items)
                if !items.is_empty()
                    && items
                        .iter()
                        .all(|item| matches!(item.kind, Kind::Mapping(_))) =>
            {
                let cases: Vec<Option<Case>> =
                    items.iter().map(|item| self.case(name, item)).collect();
                cases.into_iter().collect::<Option<_>>()?
            }
            _ => vec![Case {
                filter: None,
                values: self.values(name, node)?,
            }],
        };
        Some(Setting { cases })
    }

    /// `{value, filter}`.
    fn case(&mut self, name: &str, node: &Node) -> Option<Case> {
        let what = format!("the setting of {}", quoted(name));
        let example = "{filter: self_attn, value: 0.5}";
        if let Kind::Mapping(entries) = &node.kind
            && entries
                .iter()
                .all(|e| crate::nearest(&e.key.value, keys::CASE.iter().copied()).is_none())
        {
            self.wrong_type(
                node,
                &what,
                "a number, boolean, text, list or `{filter, value}`",
                CASES,
            );
            return None;
        }
        let fields = self.fields(node, &what, keys::CASE, example)?;
        let filter = fields
            .get("filter")
            .map(|entry| self.text(&entry.value, "`filter`", "filter: self_attn"));
        let value = self.required(&fields, "value", &what, example)?;
        let values = self.values(name, &value.value)?;
        let filter = match filter {
            Some(filter) => Some(filter?),
            None => None,
        };
        Some(Case { filter, values })
    }

    /// A scalar, or a list of scalars of one kind.
    fn values(&mut self, name: &str, node: &Node) -> Option<Vec<Spanned<Value>>> {
        match &node.kind {
            Kind::Scalar { value, .. } => Some(vec![Spanned::new(value.clone(), node.span)]),
            Kind::Sequence(items) => self.gradient(name, items),
            Kind::Null | Kind::Mapping(_) => {
                let what = format!("the value of {}", quoted(name));
                self.wrong_type(
                    node,
                    &what,
                    "a number, boolean, text or list of them",
                    "value: 0.5",
                );
                None
            }
        }
    }

    fn gradient(&mut self, name: &str, items: &[Rc<Node>]) -> Option<Vec<Spanned<Value>>> {
        let mut values: Vec<Spanned<Value>> = Vec::with_capacity(items.len());
        for item in items {
            let Kind::Scalar { value, .. } = &item.kind else {
                let what = format!("a list for {}", quoted(name));
                let example = if matches!(item.kind, Kind::Mapping(_)) {
                    CASES
                } else {
                    "[0.0, 0.5, 1.0]"
                };
                self.wrong_type(
                    item,
                    &what,
                    "all numbers, or all `{filter, value}`",
                    example,
                );
                return None;
            };
            if let Some(first) = values
                .first()
                .filter(|first| first.value.kind() != value.kind())
            {
                self.note(
                    Diagnostic::error(format!(
                        "the gradient of {} mixes {} with {}",
                        quoted(name),
                        first.value.kind(),
                        value.kind()
                    ))
                    .label(item.span, value.kind())
                    .label(first.span, first.value.kind())
                    .help("values of one kind, such as `[0.0, 0.5, 1.0]`"),
                );
                return None;
            }
            values.push(Spanned::new(value.clone(), item.span));
        }
        Some(values)
    }
}
