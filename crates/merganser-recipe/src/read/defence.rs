//! `defend`: backdoor vectors that are subtracted from what was merged.

use crate::diagnostic::{Diagnostic, quoted};
use crate::injected::{InjectedPair, InjectedPairError};
use crate::model_ref::ModelRef;
use crate::recipe::Defence;
use crate::span::Spanned;
use crate::value::Value;
use crate::yaml::{Kind, Node};

use super::{Fields, Reader, keys};

const EXAMPLE: &str = "defend: {ibvs: [mine-backdoored:mine-clean], lambda: 0.5}";
const PAIR: &str = "ibvs: [mine-backdoored:mine-clean]";

impl Reader {
    pub(super) fn defence(&mut self, fields: &Fields<'_>) -> Option<Defence> {
        let node = &*fields.get("defend")?.value;
        let fields = self.fields(node, "`defend`", keys::DEFENCE, EXAMPLE)?;
        let ibvs = self
            .required(&fields, "ibvs", "`defend`", EXAMPLE)
            .and_then(|entry| self.injected_pairs(&entry.value));
        let lambda = fields
            .get("lambda")
            .and_then(|entry| self.lambda(&entry.value));
        let project = fields
            .get("project")
            .and_then(|entry| self.switch(&entry.value, "`project`", "project: true"));
        if let (
            Some(Spanned {
                value: Some(_),
                span,
            }),
            Some(on),
        ) = (&lambda, &project)
            && on.value
        {
            self.note(
                Diagnostic::error("`defend` is given two amounts")
                    .label(*span, "this much")
                    .label(on.span, "or as much as there is of it in the merge")
                    .help("leave out one of `lambda` and `project`"),
            );
        }
        let automatic = matches!(&lambda, Some(Spanned { value: None, .. }));
        Some(Defence {
            ibvs: ibvs?,
            projected: automatic || project.is_some_and(|project| project.value),
            lambda: lambda.and_then(|lambda| Some(Spanned::new(lambda.value?, lambda.span))),
            span: node.span,
        })
    }

    /// A finite number, or `auto` as `None`.
    fn lambda(&mut self, node: &Node) -> Option<Spanned<Option<f64>>> {
        let value = match &node.kind {
            Kind::Scalar {
                value: Value::Int(i),
                ..
            } => Some(*i as f64),
            Kind::Scalar {
                value: Value::Float(x),
                ..
            } if x.is_finite() => Some(*x),
            Kind::Scalar { text, .. } if text == "auto" => None,
            _ => {
                let expected = "a finite number or `auto`";
                self.wrong_type(node, "`lambda`", expected, "lambda: 0.5");
                return None;
            }
        };
        Some(Spanned::new(value, node.span))
    }

    fn switch(&mut self, node: &Node, what: &str, example: &str) -> Option<Spanned<bool>> {
        if let Kind::Scalar {
            value: Value::Bool(on),
            ..
        } = &node.kind
        {
            return Some(Spanned::new(*on, node.span));
        }
        self.wrong_type(node, what, "true or false", example);
        None
    }

    fn injected_pairs(&mut self, node: &Node) -> Option<Vec<InjectedPair>> {
        let Kind::Sequence(items) = &node.kind else {
            self.wrong_type(node, "`ibvs`", "a list of pairs of models", PAIR);
            return None;
        };
        if items.is_empty() {
            self.note(
                Diagnostic::error("`ibvs` is empty")
                    .label(node.span, "expected at least one pair of models")
                    .help(format!("for example `{PAIR}`")),
            );
            return None;
        }
        // All of them are read before the first mistake ends it.
        let pairs: Vec<Option<InjectedPair>> =
            items.iter().map(|item| self.injected_pair(item)).collect();
        pairs.into_iter().collect()
    }

    /// `BACKDOORED:CLEAN`, or a mapping in which the models may contain anything.
    fn injected_pair(&mut self, node: &Node) -> Option<InjectedPair> {
        let Kind::Scalar { text, .. } = &node.kind else {
            let fields = self.fields(node, "a pair of `ibvs`", keys::PAIR, PAIR)?;
            let mut model = |key: &str| {
                let entry = self.required(&fields, key, "a pair of `ibvs`", PAIR)?;
                self.model(&entry.value, &format!("`{key}`"), PAIR)
            };
            let (backdoored, clean) = (model("backdoored"), model("clean"));
            return Some(InjectedPair {
                backdoored: backdoored?,
                clean: clean?,
            });
        };
        match text.parse::<InjectedPair>() {
            Ok(pair) => {
                let here = |model| ModelRef {
                    span: node.span,
                    ..model
                };
                Some(InjectedPair {
                    backdoored: here(pair.backdoored),
                    clean: here(pair.clean),
                })
            }
            Err(InjectedPairError::Model(error)) => {
                self.bad_model(node, "a pair of `ibvs`", &error)
            }
            Err(InjectedPairError::Colon) => {
                self.note(
                    Diagnostic::error(format!("{} is no pair of models", quoted(text)))
                        .label(node.span, "expected `BACKDOORED:CLEAN`")
                        .help("models with a colon in their names are written as `{backdoored: …, clean: …}`"),
                );
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::recipe::{Defence, ParseOptions, Recipe};

    fn read(defend: &str) -> Result<Defence, String> {
        let text = format!("merge_method: linear\nmodels: [{{model: a}}]\ndefend: {defend}\n");
        let (recipe, _) = Recipe::parse("r", &text, ParseOptions::default())
            .map_err(|found| found.list[0].message.clone())?;
        Ok(recipe.documents[0].defence.clone().expect("a defence"))
    }

    #[test]
    fn pairs_are_text_or_mappings() {
        let found =
            read("{ibvs: [x:y, {backdoored: 'o/p@v1', clean: {model: 'a:b'}}]}").expect("valid");
        let names: Vec<[String; 2]> = found
            .ibvs
            .iter()
            .map(|pair| [pair.backdoored.to_string(), pair.clean.to_string()])
            .collect();
        assert_eq!(names, [["x", "y"], ["o/p@v1", "a:b"]]);
        assert_eq!((found.lambda, found.projected), (None, false));
    }

    #[test]
    fn the_amount_is_a_number_or_automatic() {
        let of = |text: &str| read(&format!("{{ibvs: [x:y], {text}}}"));
        let found = of("lambda: 1").expect("valid");
        assert_eq!(found.lambda.map(|x| x.value), Some(1.0));
        for automatic in [
            "lambda: auto",
            "project: true",
            "lambda: auto, project: true",
        ] {
            let found = of(automatic).expect("valid");
            assert_eq!((found.lambda, found.projected), (None, true), "{automatic}");
        }
        assert!(!of("lambda: 0.25, project: false").expect("valid").projected);
        let refused = of("lambda: 0.25, project: true").expect_err("two amounts");
        assert_eq!(refused, "`defend` is given two amounts");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, message) in [
            (
                "{ibvs: [x:y], lambda: .nan}",
                "`lambda` must be a finite number or `auto`, found the number `.nan`",
            ),
            ("{ibvs: []}", "`ibvs` is empty"),
            (
                "{ibvs: x:y}",
                "`ibvs` must be a list of pairs of models, found the text `x:y`",
            ),
            ("{ibvs: [x]}", "`x` is no pair of models"),
            ("{ibvs: [x:y:z]}", "`x:y:z` is no pair of models"),
            (
                "{ibvs: ['x:']}",
                "a pair of `ibvs` names no model: the model's path is missing",
            ),
            (
                "{ibvs: [{backdored: y, clean: z}]}",
                "unknown key `backdored` in a pair of `ibvs`",
            ),
            ("{lambda: 1}", "`defend` has no `ibvs`"),
            (
                "{ibvs: [x:y], project: 1}",
                "`project` must be true or false, found the number `1`",
            ),
            ("all", "`defend` must be a mapping, found the text `all`"),
        ] {
            assert_eq!(read(text).expect_err(text), message);
        }
    }
}
