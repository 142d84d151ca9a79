//! Where a result may go: not on top of what it is made from.

use std::path::Path;

use merganser_plan::Model;

use crate::RunError;

/// Refuses the output folder `out` if one of the models, or an adapter on top of it, is read from there. A result is
/// complete before anything is replaced, but then its origin would be gone, and with it every way to make it again.
///
/// # Errors
/// [`RunError::OwnInput`].
pub fn refuse_own_inputs<'a>(
    out: &Path,
    models: impl IntoIterator<Item = &'a Model>,
) -> Result<(), RunError> {
    models.into_iter().try_for_each(|model| {
        refuse_own_input(out, &model.label, model.checkpoint.path())?;
        match &model.adapter {
            Some(adapter) => refuse_own_input(out, &model.label, adapter.checkpoint().path()),
            None => Ok(()),
        }
    })
}

/// The same for one input, a folder or a file, that the user calls `label`.
pub(crate) fn refuse_own_input(out: &Path, label: &str, input: &Path) -> Result<(), RunError> {
    // What is not there yet is nobody's folder.
    let (Ok(out_folder), Ok(input)) = (out.canonicalize(), input.canonicalize()) else {
        return Ok(());
    };
    if input == out_folder || (input.is_file() && input.parent() == Some(&out_folder)) {
        return Err(RunError::OwnInput {
            out: out.to_owned(),
            model: label.to_owned(),
        });
    }
    Ok(())
}
