//! What a diagnosis measures beside the recipe's own merge: the usual methods and the bases.

use std::collections::BTreeMap;

use merganser_methods::{Method, Scope, Settings, Value, find};
use merganser_plan::Model;
use merganser_projection::{Basis, Programme, Ridge};

/// A merge that is measured for comparison.
pub(crate) enum Rival<'a> {
    /// A data-free method with parameters.
    Method(Usual),
    /// A model that was merged before.
    Merged(&'a str, &'a Model),
}

/// A data-free method with parameters.
pub(crate) struct Usual {
    pub(crate) name: &'static str,
    pub(crate) method: &'static dyn Method,
    given: Vec<(&'static str, Value)>,
}

impl Usual {
    /// Complete settings for a tensor with so many inputs, the base included.
    pub(crate) fn settings(&self, inputs: usize) -> Settings {
        let mut settings = Settings::default();
        let mut own = BTreeMap::from([("weight", Value::Float(1.0))]);
        for parameter in self.method.info().parameters {
            let given = self.given.iter().find(|(name, _)| *name == parameter.name);
            let value = given
                .map(|(_, value)| value.clone())
                .or(parameter.default.map(Value::from));
            let Some(value) = value else { continue };
            match parameter.scope {
                Scope::Shared => settings.shared.insert(parameter.name, value),
                Scope::PerInput => own.insert(parameter.name, value),
            };
        }
        settings.inputs = vec![own; inputs];
        settings
    }
}

/// The merges people try first, and the ones that are given; one that is given under the name of a usual one takes its
/// place.
pub(crate) fn usual(given: &[(String, Model)]) -> Vec<Rival<'_>> {
    let mut rivals: Vec<Rival<'_>> = methods()
        .into_iter()
        .filter(|usual| given.iter().all(|(name, _)| name != usual.name))
        .map(Rival::Method)
        .collect();
    rivals.extend(given.iter().map(|(name, model)| Rival::Merged(name, model)));
    rivals
}

fn methods() -> Vec<Usual> {
    let normalize = |yes| ("normalize", Value::Bool(yes));
    let list = [
        ("average", "task_arithmetic", vec![normalize(true)]),
        (
            "task arithmetic 0.3",
            "task_arithmetic",
            vec![("lambda", Value::Float(0.3))],
        ),
        ("task arithmetic 1", "task_arithmetic", Vec::new()),
        (
            "ties",
            "ties",
            vec![("density", Value::Float(0.2)), normalize(true)],
        ),
        ("magmax", "magmax", Vec::new()),
    ];
    list.into_iter()
        .filter_map(|(name, method, given)| {
            let method = find(method)?;
            Some(Usual {
                name,
                method,
                given,
            })
        })
        .collect()
}

/// The bases that are compared, cheapest first.
pub(crate) fn bases() -> Vec<Programme> {
    let ridge = Ridge::Relative(1e-6);
    [
        Basis::Task,
        Basis::Diagonal,
        Basis::Rotated,
        Basis::Core { rank: None },
        Basis::Full,
    ]
    .into_iter()
    .map(|basis| Programme::new(basis).ridge(ridge))
    .collect()
}
