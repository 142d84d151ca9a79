//! MagMax over a stream of fine-tunes: a running maximum takes the place of all that were merged before.
//!
//! The state is a model: of every element the value that lies farthest from the base, as some fine-tune had it. The change
//! of largest magnitude among it and a new fine-tune is that among all of them, bit for bit. It is what `magmax` with
//! `lambda: 1` makes, in the types of the inputs.

use std::path::Path;

use merganser_recipe::{Body, Diagnostic, Document, ModelRef, Parameters, Source, Span};

use crate::Failure;
use crate::workflow::{Steps, failure};

const METHOD: &str = "magmax";

/// Adds the state to the models of the recipe, if there is one yet.
pub(crate) fn include(steps: &mut Steps, state: &Path) -> Result<(), Failure> {
    let source = steps.recipe.source.clone();
    let refuse = |document: &Document, message: &str, help: &str| {
        let found = Diagnostic::error(message)
            .label(document.merge_method.span, "with --continue")
            .help(help);
        Err(failure(&source, vec![found]))
    };
    let [document] = &mut steps.recipe.documents[..] else {
        return Err(Failure::Usage(
            "--continue takes a recipe of one document".into(),
        ));
    };
    if document.merge_method.value != METHOD {
        return refuse(
            document,
            "only magmax can be continued",
            "the outcome of other methods depends on all models at once: list them all",
        );
    }
    let Body::Models(sources) = &mut document.body else {
        return refuse(
            document,
            "slices and modules cannot be continued",
            "list the new models under `models:`",
        );
    };
    if !state.exists() {
        return Ok(());
    }
    let model = ModelRef::local(&state.display().to_string());
    sources.insert(
        0,
        Source {
            model,
            layer_range: None,
            parameters: Parameters::default(),
            calibration: None,
            span: Span::default(),
        },
    );
    Ok(())
}

/// The recipe of the new state: all of the change, in the inputs' own types.
pub(crate) fn state_of(steps: &Steps) -> Steps {
    let mut steps = steps.clone();
    for document in &mut steps.recipe.documents {
        document
            .parameters
            .entries
            .retain(|(name, _)| name.value != "lambda");
        document.dtype = None;
        document.out_dtype = None;
    }
    steps
}
