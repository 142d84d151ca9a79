//! The recipe's JSON schema, for editors.

use crate::recipe::Recipe;

impl Recipe {
    /// The JSON schema (draft 2020-12) of one document of a recipe, as text.
    ///
    /// Editors use it to complete and check recipes. It does not know the methods' parameters.
    pub fn schema() -> &'static str {
        include_str!("recipe.schema.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::FloatType;
    use crate::read::keys;
    use crate::yaml::{self, Kind, Node};
    use std::rc::Rc;

    /// JSON is YAML, so our own reader can read the schema.
    fn schema() -> Rc<Node> {
        let mut mistakes = Vec::new();
        let mut documents = yaml::parse(Recipe::schema(), &mut mistakes).expect("valid JSON");
        assert!(mistakes.is_empty(), "{mistakes:?}");
        documents.remove(0)
    }

    fn get<'n>(node: &'n Node, key: &str) -> &'n Node {
        match &node.kind {
            Kind::Mapping(entries) => entries
                .iter()
                .find(|entry| entry.key.value == key)
                .map_or_else(|| panic!("the schema has no {key}"), |entry| &*entry.value),
            Kind::Sequence(items) => &items[key.parse::<usize>().expect("an index")],
            _ => panic!("{key} of a scalar"),
        }
    }

    fn keys_at(path: &str) -> Vec<String> {
        let root = schema();
        let node = path
            .split('/')
            .filter(|key| !key.is_empty())
            .fold(&*root, get);
        let Kind::Mapping(entries) = &get(node, "properties").kind else {
            panic!("no mapping")
        };
        let mut keys: Vec<String> = entries
            .iter()
            .map(|entry| entry.key.value.clone())
            .collect();
        keys.sort();
        keys
    }

    #[test]
    fn the_schema_has_exactly_the_keys_that_are_read() {
        for (path, keys) in [
            ("", keys::DOCUMENT),
            ("$defs/module", keys::MODULE),
            ("$defs/slice", keys::SLICE),
            ("$defs/models/items", keys::INPUT),
            ("$defs/source", keys::SOURCE),
            ("$defs/case", keys::CASE),
            ("$defs/model/anyOf/1", keys::MODEL),
            ("$defs/path/anyOf/1", keys::PATH),
            ("$defs/tokenizer", keys::TOKENIZER),
            ("$defs/prior/anyOf/1", keys::PRIOR),
            ("$defs/defend", keys::DEFENCE),
            ("$defs/pair/anyOf/1", keys::PAIR),
            ("$defs/calibration/anyOf/1", keys::CALIBRATION),
        ] {
            let mut keys = keys.to_vec();
            keys.sort_unstable();
            assert_eq!(keys_at(path), keys, "{path}");
        }
    }

    #[test]
    fn the_schema_lists_every_type() {
        let pattern = FloatType::ALL.map(FloatType::name);
        assert!(pattern.iter().all(|name| Recipe::schema().contains(name)));
    }
}
