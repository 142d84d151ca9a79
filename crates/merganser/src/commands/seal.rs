//! `merganser seal`: puts the parts of a merge together.

use merganser::Failure;

use crate::cli::Seal;
use crate::output::Output;

pub(crate) fn run(arguments: &Seal, output: &Output) -> Result<(), Failure> {
    let files = merganser::seal(&arguments.out, arguments.overwrite)?;
    if output.json {
        Output::event(
            &serde_json::json!({ "event": "sealed", "out": arguments.out.to_string_lossy(), "files": files }),
        );
    } else {
        output.note(&format!(
            "sealed {} files in {}",
            files.len(),
            arguments.out.display()
        ));
    }
    Ok(())
}
