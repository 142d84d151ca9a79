//! Adding up the moments of parts of the samples.

use std::path::Path;

use super::{MomentsFile, MomentsInfo, MomentsWriter};
use crate::Result;

/// Adds the moments of two files, say of two parts of the samples, into a third. One entry is in memory at a time.
///
/// # Errors
/// If they are of different models, or do not hold the same entries.
pub fn merge_files(first: &MomentsFile, second: &MomentsFile, path: &Path) -> Result<()> {
    second.expect_model(&first.info().model)?;
    if !first.names().eq(second.names()) || first.aliases() != second.aliases() {
        let odd = first
            .names()
            .find(|name| !second.names().any(|other| other == *name))
            .or_else(|| {
                second
                    .names()
                    .find(|name| !first.names().any(|other| other == *name))
            });
        return Err(second.refuse(format!(
            "it does not hold the entries and aliases of `{}`{}",
            first.path().display(),
            odd.map_or(String::new(), |name| format!(
                ": `{name}` is in one of them only"
            ))
        )));
    }
    let info = MomentsInfo {
        dataset: format!("{} + {}", first.info().dataset, second.info().dataset),
        tokens: first.info().tokens.saturating_add(second.info().tokens),
        ..first.info().clone()
    };
    let mut specs = Vec::new();
    for name in first.names() {
        let (spec, other) = (first.spec(name)?, second.spec(name)?);
        if spec != other {
            return Err(second.refuse(format!(
                "`{name}` is {other:?}, and {spec:?} in `{}`",
                first.path().display()
            )));
        }
        specs.push(spec);
    }
    let precision = first.epsilon.max(second.epsilon);
    let mut writer = MomentsWriter::create(path, &info, first.aliases(), &specs, precision)?;
    for spec in &specs {
        let mut whole = first.read(&spec.name)?;
        whole.merge(&second.read(&spec.name)?)?;
        let held_out = match (
            first.read_held_out(&spec.name)?,
            second.read_held_out(&spec.name)?,
        ) {
            (Some(mut a), Some(b)) => {
                a.merge(&b)?;
                Some(a)
            }
            _ => None,
        };
        writer.write(&spec.name, &whole, held_out.as_ref())?;
    }
    writer.finish()
}
