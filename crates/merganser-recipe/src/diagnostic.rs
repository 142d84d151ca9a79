//! Messages about a recipe: what is wrong, where, and what to write instead.
//!
//! A [`Diagnostic`] only remembers byte spans; [`Diagnostic::render`] draws it over the text, in the
//! look of rustc.

use std::fmt::{self, Write as _};

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use crate::span::{SourceText, Span};

/// How grave a [`Diagnostic`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The recipe cannot be used.
    Error,
    /// The recipe can be used, but probably does not say what was meant.
    Warning,
}

/// One message about a recipe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Diagnostic {
    /// Whether the recipe is refused for it.
    pub severity: Severity,
    /// What is wrong, in one sentence that makes sense without the source.
    pub message: String,
    /// Words of the recipe it is about, each with a remark; the first is the place of the mistake.
    pub labels: Vec<(Span, String)>,
    /// What to do about it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error that says `message`.
    pub fn error(message: impl Into<String>) -> Self {
        Self::new(Severity::Error, message)
    }

    /// A warning that says `message`.
    pub fn warning(message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, message)
    }

    fn new(severity: Severity, message: impl Into<String>) -> Self {
        Self {
            severity,
            message: message.into(),
            labels: Vec::new(),
            help: None,
        }
    }

    /// Underlines the words at `span` with a remark, which may be empty.
    #[must_use]
    pub fn label(mut self, span: Span, remark: impl Into<String>) -> Self {
        self.labels.push((span, remark.into()));
        self
    }

    /// Says what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds "did you mean" if a candidate is near to `word`, else a list of what is valid.
    ///
    /// A long list is cut; without candidates nothing is added.
    #[must_use]
    pub fn did_you_mean<'a>(
        self,
        word: &str,
        candidates: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        const SHOWN: usize = 16;
        let candidates: Vec<&str> = candidates.into_iter().collect();
        if let Some(name) = crate::nearest(word, candidates.iter().copied()) {
            return self.help(format!("did you mean `{name}`?"));
        }
        if candidates.is_empty() {
            return self;
        }
        let mut list = String::from("valid here: ");
        for (i, name) in candidates.iter().take(SHOWN).enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            let _ = write!(list, "{separator}`{name}`");
        }
        if candidates.len() > SHOWN {
            let _ = write!(list, " and {} more", candidates.len() - SHOWN);
        }
        self.help(list)
    }

    /// Draws the message over the recipe: file, line and column, the line itself, the words underlined.
    ///
    /// With `color`, ANSI escapes are added for a terminal. Spans that do not lie in `source` are moved
    /// to its end. The result does not end in a newline.
    pub fn render(&self, source: &SourceText, color: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(self.message.as_str());
        let mut group = if self.labels.is_empty() {
            title.element(Origin::path(source.name.as_str()))
        } else {
            let mut snippet = Snippet::source(source.text.as_str()).path(source.name.as_str());
            for (i, (span, remark)) in self.labels.iter().enumerate() {
                let kind = if i == 0 {
                    AnnotationKind::Primary
                } else {
                    AnnotationKind::Context
                };
                let remark = Some(remark.as_str()).filter(|remark| !remark.is_empty());
                snippet = snippet.annotation(kind.span(underlined(source, *span)).label(remark));
            }
            title.element(snippet)
        };
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        let report: [Group<'_>; 1] = [group];
        let renderer = if color {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        renderer.decor_style(DecorStyle::Ascii).render(&report)
    }
}

/// The part of a span worth underlining: its first line, so that a long block stays readable.
fn underlined(source: &SourceText, span: Span) -> std::ops::Range<usize> {
    let range = source.clamp(span);
    let first_line = source.text[range.clone()]
        .lines()
        .next()
        .unwrap_or_default();
    range.start..range.start + first_line.trim_end().len()
}

/// Everything that is wrong with a recipe, together with its text.
///
/// Displayed, it is the messages drawn without colour, separated by empty lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics {
    /// The recipe the spans point into.
    pub source: SourceText,
    /// The messages in order of the text; at least one is an error.
    pub list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// All messages as [`Diagnostic::render`] draws them, separated by empty lines.
    pub fn render(&self, color: bool) -> String {
        let messages: Vec<String> = self
            .list
            .iter()
            .map(|d| d.render(&self.source, color))
            .collect();
        messages.join("\n\n")
    }
}

// By hand: thiserror would take the field `source` for the error's cause.
impl std::error::Error for Diagnostics {}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

/// `word` as messages quote it: in backticks, control characters escaped, long text cut.
///
/// For every word that comes from a file, so that it cannot flood or drive the terminal.
pub fn quoted(word: &str) -> String {
    const LONGEST: usize = 60;
    let mut shown: String = word
        .chars()
        .take(LONGEST)
        .flat_map(|c| {
            let escape = c.is_control();
            escape
                .then(|| c.escape_default())
                .into_iter()
                .flatten()
                .chain((!escape).then_some(c))
        })
        .collect();
    if word.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> (SourceText, Diagnostic) {
        let source = SourceText::new("recipe.yml", "merge_method: ties\ndensty: 0.5\n");
        let diagnostic = Diagnostic::error("unknown key `densty`")
            .label(Span::new(19, 25), "not a key of a recipe")
            .did_you_mean("densty", ["density"]);
        (source, diagnostic)
    }

    #[test]
    fn file_line_words_and_help_are_shown() {
        let (source, diagnostic) = example();
        let shown = diagnostic.render(&source, false);
        for part in [
            "error: unknown key `densty`",
            "recipe.yml:2:1",
            "^^^^^^ not a key",
            "help: did you mean `density`?",
        ] {
            assert!(shown.contains(part), "{part:?} missing in\n{shown}");
        }
    }

    #[test]
    fn color_is_only_there_when_asked_for() {
        let (source, diagnostic) = example();
        assert!(!diagnostic.render(&source, false).contains('\x1b'));
        assert!(diagnostic.render(&source, true).contains('\x1b'));
    }

    #[test]
    fn a_message_without_place_names_the_file() {
        let shown = Diagnostic::warning("odd").render(&SourceText::new("r.yml", ""), false);
        assert!(
            shown.contains("warning: odd") && shown.contains("r.yml"),
            "{shown}"
        );
    }

    #[test]
    fn long_lists_of_candidates_are_cut() {
        let names: Vec<String> = (0..20).map(|i| format!("candidate_{i}")).collect();
        let help = Diagnostic::error("")
            .did_you_mean("x", names.iter().map(String::as_str))
            .help;
        let help = help.unwrap_or_default();
        assert!(help.ends_with("`candidate_15` and 4 more"), "{help}");
    }

    #[test]
    fn quoted_words_cannot_drive_the_terminal() {
        assert_eq!(quoted("a\x1b[2Jb\n"), "`a\\u{1b}[2Jb\\n`");
        assert_eq!(quoted(&"é".repeat(70)), format!("`{}…`", "é".repeat(60)));
    }

    proptest! {
        #[test]
        fn any_span_renders(text in "\\PC{0,20}\n?\\PC{0,20}", a in 0usize..60, b in 0usize..60) {
            let source = SourceText::new("r", text);
            Diagnostic::error("m").label(Span::new(a, b), "x").label(Span::new(b, a), "").render(&source, true);
        }
    }
}
