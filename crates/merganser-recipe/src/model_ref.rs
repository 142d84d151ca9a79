//! References to models: `path[@revision][+adapter[@revision]]`, or the same as a mapping.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use crate::span::Span;

/// A model as a recipe names it: a folder, a file, a Hub id or the name of another document.
///
/// Two references are equal if they name the same model; where they are written does not count.
/// Displayed, a reference is mergekit's text form, which does not show `override_architecture`.
#[derive(Clone, Debug)]
pub struct ModelRef {
    /// Folder, file, Hub id or document name.
    pub path: String,
    /// Branch, tag or commit on the Hub.
    pub revision: Option<String>,
    /// A LoRA adapter to be seen as part of the model.
    pub lora: Option<Box<AdapterRef>>,
    /// Architecture to assume instead of the one in the model's configuration.
    pub override_architecture: Option<String>,
    /// Where the reference stands.
    pub span: Span,
}

impl ModelRef {
    /// A folder or file, whatever characters its name has.
    pub fn local(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            revision: None,
            lora: None,
            override_architecture: None,
            span: Span::default(),
        }
    }
}

/// A LoRA adapter as a recipe names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AdapterRef {
    /// Folder or Hub id.
    pub path: String,
    /// Branch, tag or commit on the Hub.
    pub revision: Option<String>,
}

/// Why a text names no model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelRefError {
    /// Nothing stands before or after a `@` or `+`, or nothing at all.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// More than one `+`.
    #[error("a model takes one adapter, found several `+`")]
    ManyAdapters,
    /// More than one `@` in a part.
    #[error("a path takes one revision, found several `@`")]
    ManyRevisions,
}

impl FromStr for ModelRef {
    type Err = ModelRefError;

    /// Reads `path[@revision][+adapter[@revision]]`; the span is left empty.
    fn from_str(text: &str) -> Result<Self, ModelRefError> {
        let mut parts = text.split('+');
        let (path, revision) =
            path_and_revision(parts.next().unwrap_or_default(), "the model's path")?;
        let lora = match parts.next() {
            None => None,
            Some(adapter) => {
                let (path, revision) = path_and_revision(adapter, "the adapter's path after `+`")?;
                Some(Box::new(AdapterRef { path, revision }))
            }
        };
        if parts.next().is_some() {
            return Err(ModelRefError::ManyAdapters);
        }
        Ok(Self {
            path,
            revision,
            lora,
            override_architecture: None,
            span: Span::default(),
        })
    }
}

/// Splits `path[@revision]`; `what` names the path in errors.
pub(crate) fn path_and_revision(
    text: &str,
    what: &'static str,
) -> Result<(String, Option<String>), ModelRefError> {
    let mut parts = text.split('@');
    let path = parts.next().unwrap_or_default();
    let revision = parts.next();
    if parts.next().is_some() {
        return Err(ModelRefError::ManyRevisions);
    }
    if path.trim().is_empty() {
        return Err(ModelRefError::Missing(what));
    }
    if revision.is_some_and(|revision| revision.trim().is_empty()) {
        return Err(ModelRefError::Missing("the revision after `@`"));
    }
    Ok((path.to_owned(), revision.map(str::to_owned)))
}

impl ModelRef {
    fn identity(&self) -> (&str, Option<&str>, Option<&AdapterRef>, Option<&str>) {
        (
            &self.path,
            self.revision.as_deref(),
            self.lora.as_deref(),
            self.override_architecture.as_deref(),
        )
    }
}

impl PartialEq for ModelRef {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for ModelRef {}

impl Hash for ModelRef {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_path(f, &self.path, self.revision.as_deref())?;
        match &self.lora {
            Some(adapter) => write!(f, "+{adapter}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for AdapterRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_path(f, &self.path, self.revision.as_deref())
    }
}

fn write_path(f: &mut fmt::Formatter<'_>, path: &str, revision: Option<&str>) -> fmt::Result {
    f.write_str(path)?;
    match revision {
        Some(revision) => write!(f, "@{revision}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<ModelRef, ModelRefError> {
        text.parse()
    }

    #[test]
    fn all_four_parts_are_read() {
        let model = parse("org/model@v1+org/lora@main").expect("valid");
        assert_eq!(model.path, "org/model");
        assert_eq!(model.revision.as_deref(), Some("v1"));
        let lora = model.lora.clone().expect("has an adapter");
        assert_eq!(
            (lora.path.as_str(), lora.revision.as_deref()),
            ("org/lora", Some("main"))
        );
        assert_eq!(model.to_string(), "org/model@v1+org/lora@main");
    }

    #[test]
    fn missing_and_superfluous_parts_are_named() {
        assert_eq!(parse(""), Err(ModelRefError::Missing("the model's path")));
        assert_eq!(
            parse("+lora"),
            Err(ModelRefError::Missing("the model's path"))
        );
        assert_eq!(
            parse("a+"),
            Err(ModelRefError::Missing("the adapter's path after `+`"))
        );
        assert_eq!(
            parse("a@"),
            Err(ModelRefError::Missing("the revision after `@`"))
        );
        assert_eq!(parse("a+b+c"), Err(ModelRefError::ManyAdapters));
        assert_eq!(parse("a@1@2"), Err(ModelRefError::ManyRevisions));
    }

    #[test]
    fn where_it_stands_does_not_make_another_model() {
        let here = parse("a").expect("valid");
        let there = ModelRef {
            span: Span::new(3, 4),
            ..here.clone()
        };
        assert_eq!(here, there);
        assert_eq!(
            std::collections::HashSet::from([here.clone(), there]).len(),
            1
        );
        let other = ModelRef {
            override_architecture: Some("X".into()),
            ..here.clone()
        };
        assert_ne!(here, other);
    }

    proptest! {
        #[test]
        fn shown_references_read_back(text in "[a-z./]{1,8}(@[a-z0-9]{1,4})?(\\+[a-z./]{1,8}(@[a-z0-9]{1,4})?)?") {
            prop_assert_eq!(parse(&text).expect("valid").to_string(), text);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            let _ = parse(&text);
        }
    }
}
