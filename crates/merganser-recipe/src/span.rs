//! Where something stands in the recipe: byte ranges into its text.

use std::ops::Range;

/// A half-open range of bytes `[start, end)` of a [`SourceText`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// Offset of the first byte.
    pub start: usize,
    /// Offset one past the last byte.
    pub end: usize,
}

impl Span {
    /// The span `[start, end)`.
    pub const fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// The smallest span that covers both.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        Self::new(self.start.min(other.start), self.end.max(other.end))
    }
}

/// A value together with the place it was written at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Spanned<T> {
    /// The value itself.
    pub value: T,
    /// Where it stands in the recipe.
    pub span: Span,
}

impl<T> Spanned<T> {
    /// `value`, written at `span`.
    pub const fn new(value: T, span: Span) -> Self {
        Self { value, span }
    }

    /// The same place, another value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Spanned<U> {
        Spanned::new(f(self.value), self.span)
    }
}

/// The recipe as text, kept so that messages can quote it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceText {
    /// What messages call it, usually the path of the file.
    pub name: String,
    /// The whole text.
    pub text: String,
}

impl SourceText {
    /// The text `text`, called `name` in messages.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
        }
    }

    /// The words at `span`; empty if the span does not lie in this text.
    pub fn slice(&self, span: Span) -> &str {
        self.text.get(span.start..span.end).unwrap_or_default()
    }

    /// Line and column of a byte offset, both counted from 1, the column in characters.
    ///
    /// An offset beyond the text gives its end.
    pub fn line_column(&self, offset: usize) -> (usize, usize) {
        let before = &self.text[..self.clamp(Span::new(offset, offset)).start];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        (
            before.matches('\n').count() + 1,
            before[line_start..].chars().count() + 1,
        )
    }

    /// `span` cut to this text and widened to character boundaries, so that slicing cannot fail.
    pub(crate) fn clamp(&self, span: Span) -> Range<usize> {
        let length = self.text.len();
        let mut start = span.start.min(length);
        while !self.text.is_char_boundary(start) {
            start -= 1;
        }
        let mut end = span.end.clamp(start, length);
        while !self.text.is_char_boundary(end) {
            end += 1;
        }
        start..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_and_column_count_from_one_in_characters() {
        let source = SourceText::new("r.yml", "é: 1\nb: 2");
        assert_eq!(source.line_column(0), (1, 1));
        assert_eq!(source.line_column(2), (1, 2));
        assert_eq!(source.line_column(6), (2, 1));
        assert_eq!(source.line_column(9999), (2, 5));
    }

    #[test]
    fn spans_outside_the_text_or_inside_a_character_are_harmless() {
        let source = SourceText::new("r.yml", "é");
        assert_eq!(source.clamp(Span::new(1, 1)), 0..2);
        assert_eq!(source.clamp(Span::new(5, 3)), 2..2);
        assert_eq!(source.slice(Span::new(1, 2)), "");
        assert_eq!(source.slice(Span::new(0, 2)), "é");
    }

    #[test]
    fn join_covers_both() {
        assert_eq!(Span::new(4, 6).join(Span::new(1, 2)), Span::new(1, 6));
    }
}
