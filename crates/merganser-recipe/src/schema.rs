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
