//! Recipes. Every message can be shown, every span lies in the text, every setting can be resolved.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merganser_recipe::{ParseOptions, Recipe};

fuzz_target!(|text: &str| {
    for lenient in [false, true] {
        match Recipe::parse("recipe.yml", text, ParseOptions { lenient }) {
            Err(errors) => {
                assert!(!errors.list.is_empty());
                errors.render(false);
            }
            Ok((recipe, warnings)) => {
                for warning in &warnings {
                    warning.render(&recipe.source, false);
                }
                look(&recipe);
            }
        }
    }
});

fn look(recipe: &Recipe) {
    if let Err(error) = recipe.documents_in_order().and_then(|_| recipe.final_documents()) {
        error.render(&recipe.source, false);
    }
    for document in &recipe.documents {
        recipe.source.slice(document.merge_method.span);
        for model in document.model_refs() {
            recipe.source.slice(model.span);
            recipe.document_for(model);
            let _ = model.to_string();
        }
        for (name, setting) in document.parameters.iter() {
            recipe.source.slice(name.span);
            for value in setting.value.values() {
                recipe.source.slice(value.span);
            }
            for t in [0.0, 0.3, 1.0] {
                let _ = setting.value.resolve("model.layers.0.mlp.up_proj.weight", t);
            }
        }
    }
}
