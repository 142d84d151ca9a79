//! In which order the documents of a recipe are merged.
//!
//! A model whose path is the name of another document stands for that document's result. The order is
//! topological, and among documents that are ready the order of writing; the documents nothing builds
//! on come as late as possible.

use std::collections::{BTreeSet, HashMap};

use crate::diagnostic::{Diagnostic, quoted};
use crate::model_ref::ModelRef;
use crate::recipe::{Defence, Recipe};
use crate::span::Span;

/// How many documents of a circle a message shows.
const LONGEST_CIRCLE: usize = 12;

impl Recipe {
    /// Indices of all documents such that each comes after those it builds on.
    ///
    /// # Errors
    /// Two documents with one name, more than one without, or documents that build on each other in a
    /// circle, which is shown reference by reference.
    pub fn documents_in_order(&self) -> Result<Vec<usize>, Diagnostic> {
        let edges = self.references()?;
        let is_final = self.is_final(&edges);
        let mut waiting_for: Vec<usize> = edges.iter().map(Vec::len).collect();
        let mut dependents = vec![Vec::new(); edges.len()];
        for (i, targets) in edges.iter().enumerate() {
            for &(target, _) in targets {
                dependents[target].push(i);
            }
        }
        let mut order = Vec::with_capacity(edges.len());
        // Sorted so that final documents come last, otherwise in order of writing.
        let mut ready: BTreeSet<(bool, usize)> = (0..edges.len())
            .filter(|&i| waiting_for[i] == 0)
            .map(|i| (is_final[i], i))
            .collect();
        while let Some((_, i)) = ready.pop_first() {
            order.push(i);
            for &dependent in &dependents[i] {
                waiting_for[dependent] -= 1;
                if waiting_for[dependent] == 0 {
                    ready.insert((is_final[dependent], dependent));
                }
            }
        }
        match waiting_for.iter().position(|&references| references > 0) {
            Some(stuck) => Err(self.cycle(&edges, stuck, &waiting_for)),
            None => Ok(order),
        }
    }

    /// Indices of the documents whose results the user wants, in order of writing.
    ///
    /// The one without a name, or if all have one, every one no other document builds on.
    ///
    /// # Errors
    /// The same as [`Recipe::documents_in_order`].
    pub fn final_documents(&self) -> Result<Vec<usize>, Diagnostic> {
        self.documents_in_order()?;
        let is_final = self.is_final(&self.references()?);
        Ok((0..is_final.len()).filter(|&i| is_final[i]).collect())
    }

    /// The document whose result a model reference stands for, if it stands for one.
    ///
    /// Only a path without revision can; an adapter may be added to it.
    pub fn document_for(&self, model: &ModelRef) -> Option<usize> {
        self.document_named(document_name(model)?)
    }

    /// The document called `name`, if there is one. For models see [`Recipe::document_for`].
    pub fn document_named(&self, name: &str) -> Option<usize> {
        self.documents
            .iter()
            .position(|document| document.name.as_ref().is_some_and(|own| own.value == name))
    }

    fn is_final(&self, edges: &[Vec<(usize, Span)>]) -> Vec<bool> {
        if self
            .documents
            .iter()
            .any(|document| document.name.is_none())
        {
            return self
                .documents
                .iter()
                .map(|document| document.name.is_none())
                .collect();
        }
        let mut is_final = vec![true; edges.len()];
        for &(target, _) in edges.iter().flatten() {
            is_final[target] = false;
        }
        is_final
    }

    /// For each document the documents it refers to, with the place of the reference.
    fn references(&self) -> Result<Vec<Vec<(usize, Span)>>, Diagnostic> {
        let mut by_name: HashMap<&str, usize> = HashMap::new();
        let mut unnamed: Option<Span> = None;
        for (i, document) in self.documents.iter().enumerate() {
            let Some(name) = &document.name else {
                if let Some(first) = unnamed.replace(document.span) {
                    return Err(Diagnostic::error("two documents have no name")
                        .label(document.span, "this one has none")
                        .label(first, "and neither has this one")
                        .help("only the final merge may go without; give the others a `name:`"));
                }
                continue;
            };
            if let Some(first) = by_name.insert(&name.value, i) {
                let first = self.documents[first]
                    .name
                    .as_ref()
                    .map_or(name.span, |n| n.span);
                return Err(Diagnostic::error(format!(
                    "two documents are called {}",
                    quoted(&name.value)
                ))
                .label(name.span, "this name is taken")
                .label(first, "first used here")
                .help("give each document a name of its own"));
            }
        }
        Ok(self
            .documents
            .iter()
            .map(|document| {
                let defence = document.defence.iter().flat_map(Defence::model_refs);
                document
                    .model_refs()
                    .chain(defence)
                    .filter_map(|model| Some((*by_name.get(document_name(model)?)?, model.span)))
                    .collect()
            })
            .collect())
    }

    /// The error for documents that wait for each other; `stuck` is one that cannot go on.
    fn cycle(
        &self,
        edges: &[Vec<(usize, Span)>],
        stuck: usize,
        waiting_for: &[usize],
    ) -> Diagnostic {
        // Every waiting document refers to a waiting one; following them must come round.
        let mut path: Vec<(usize, Span)> = Vec::new();
        let mut step_of: HashMap<usize, usize> = HashMap::new();
        let mut current = stuck;
        while !step_of.contains_key(&current) {
            let next = edges[current]
                .iter()
                .find(|(target, _)| waiting_for[*target] > 0);
            let Some(&(target, span)) = next else { break };
            step_of.insert(current, path.len());
            path.push((current, span));
            current = target;
        }
        let path = &path[step_of.get(&current).copied().unwrap_or(0)..];
        let name = |i: usize| {
            self.documents[i]
                .name
                .as_ref()
                .map_or("", |name| name.value.as_str())
        };
        let shown = path.iter().take(LONGEST_CIRCLE);
        let mut circle: Vec<String> = shown.map(|&(i, _)| quoted(name(i))).collect();
        if path.len() > LONGEST_CIRCLE {
            circle.push("…".into());
        }
        circle.push(quoted(name(current)));
        let mut diagnostic = Diagnostic::error(format!(
            "documents build on each other in a circle: {}",
            circle.join(" → ")
        ));
        for (step, &(i, span)) in path.iter().enumerate().take(LONGEST_CIRCLE) {
            let target = path.get(step + 1).map_or(current, |&(next, _)| next);
            diagnostic = diagnostic.label(
                span,
                format!("{} needs {}", quoted(name(i)), quoted(name(target))),
            );
        }
        diagnostic.help(
            "break the circle; to mean a folder that is called like a document, write `./` before it",
        )
    }
}

/// What a document must be called for this reference to mean its result.
fn document_name(model: &ModelRef) -> Option<&str> {
    model.revision.is_none().then_some(model.path.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::ParseOptions;
    use proptest::prelude::*;

    fn recipe(documents: &[(&str, &[&str])]) -> Recipe {
        let texts: Vec<String> = documents
            .iter()
            .map(|(name, models)| {
                let name = if name.is_empty() {
                    String::new()
                } else {
                    format!("name: {name}\n")
                };
                let models: Vec<String> = models
                    .iter()
                    .map(|model| format!("  - model: {model}"))
                    .collect();
                let models = models.join("\n");
                format!("{name}merge_method: linear\nmodels:\n{models}\n")
            })
            .collect();
        Recipe::parse("r", &texts.join("---\n"), ParseOptions::default())
            .expect("valid")
            .0
    }

    #[test]
    fn documents_wait_for_what_they_need() {
        let recipe = recipe(&[("", &["b", "x"]), ("b", &["a"]), ("a", &["x"])]);
        assert_eq!(recipe.documents_in_order(), Ok(vec![2, 1, 0]));
        assert_eq!(recipe.final_documents(), Ok(vec![0]));
    }

    #[test]
    fn without_an_unnamed_one_all_ends_are_final() {
        let recipe = recipe(&[("c", &["a"]), ("a", &["x"]), ("b", &["a"])]);
        assert_eq!(recipe.documents_in_order(), Ok(vec![1, 0, 2]));
        assert_eq!(recipe.final_documents(), Ok(vec![0, 2]));
    }

    #[test]
    fn only_model_paths_refer_and_only_without_revision() {
        let recipe = recipe(&[
            ("linear", &["x"]),
            ("", &["./linear", "linear@main", "y+linear"]),
        ]);
        assert_eq!(recipe.references().expect("unique names")[1], []);
        let with_adapter = self::recipe(&[("a", &["x"]), ("", &["a+lora"])]);
        assert_eq!(with_adapter.references().expect("unique names")[1].len(), 1);
        let found: Vec<_> = with_adapter.documents[1]
            .model_refs()
            .map(|m| with_adapter.document_for(m))
            .collect();
        assert_eq!(found, [Some(0)]);
        let pinned = recipe.documents[1]
            .model_refs()
            .nth(1)
            .expect("three models");
        assert_eq!(recipe.document_for(pinned), None);
    }

    #[test]
    fn circles_are_shown_reference_by_reference() {
        let recipe = recipe(&[
            ("", &["a"]),
            ("a", &["x", "b"]),
            ("b", &["c"]),
            ("c", &["b"]),
        ]);
        let error = recipe.documents_in_order().expect_err("a circle");
        assert!(
            error.message.ends_with("`b` → `c` → `b`"),
            "{}",
            error.message
        );
        let words: Vec<&str> = error
            .labels
            .iter()
            .map(|(s, _)| recipe.source.slice(*s))
            .collect();
        assert_eq!(words, ["c", "b"]);
        let own = self::recipe(&[("a", &["a"])])
            .documents_in_order()
            .expect_err("a circle");
        assert!(own.message.ends_with("`a` → `a`"), "{}", own.message);
    }

    #[test]
    fn long_circles_are_cut() {
        let names: Vec<String> = (0..2000).map(|i| format!("m{i}")).collect();
        let next: Vec<[&str; 1]> = (0..2000)
            .map(|i| [names[(i + 1) % 2000].as_str()])
            .collect();
        let documents: Vec<(&str, &[&str])> = names
            .iter()
            .zip(&next)
            .map(|(n, t)| (n.as_str(), t.as_slice()))
            .collect();
        let error = recipe(&documents)
            .documents_in_order()
            .expect_err("a circle");
        assert_eq!(error.labels.len(), LONGEST_CIRCLE);
        assert!(
            error.message.ends_with("`m11` → … → `m0`"),
            "{}",
            error.message
        );
    }

    #[test]
    fn names_are_unique_and_one_may_be_missing() {
        let twice = recipe(&[("a", &["x"]), ("a", &["y"])]);
        assert_eq!(
            twice
                .documents_in_order()
                .expect_err("two `a`")
                .labels
                .len(),
            2
        );
        assert!(
            recipe(&[("", &["x"]), ("", &["y"])])
                .documents_in_order()
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn an_order_is_a_permutation_that_respects_every_reference(
            edges in prop::collection::vec(prop::collection::vec(0usize..6, 1..3), 1..6)
        ) {
            let names: Vec<String> = (0..edges.len()).map(|i| format!("m{i}")).collect();
            let targets: Vec<Vec<String>> =
                edges.iter().map(|e| e.iter().map(|t| format!("m{t}")).collect()).collect();
            let borrowed: Vec<Vec<&str>> =
                targets.iter().map(|t| t.iter().map(String::as_str).collect()).collect();
            let documents: Vec<(&str, &[&str])> =
                names.iter().zip(&borrowed).map(|(n, t)| (n.as_str(), t.as_slice())).collect();
            let recipe = recipe(&documents);
            let references = recipe.references().expect("unique names");
            match recipe.documents_in_order() {
                Ok(order) => {
                    let mut sorted = order.clone();
                    sorted.sort_unstable();
                    prop_assert_eq!(sorted, (0..names.len()).collect::<Vec<_>>());
                    let place = |i: usize| order.iter().position(|&o| o == i);
                    for (i, targets) in references.iter().enumerate() {
                        for &(target, _) in targets {
                            prop_assert!(place(target) < place(i));
                        }
                    }
                }
                Err(error) => prop_assert!(!error.labels.is_empty()),
            }
        }
    }
}
