//! A writer of SVG elements that escapes all text.

use std::fmt::{self, Write as _};

use crate::text;

/// A drawing under construction.
#[derive(Debug)]
pub(crate) struct Svg {
    body: String,
    width: f64,
    height: f64,
    label: String,
}

impl Svg {
    /// An empty drawing; `label` says what it shows to those who cannot see it.
    pub(crate) fn new(width: f64, height: f64, label: &str) -> Self {
        Self {
            body: String::new(),
            width,
            height,
            label: label.to_owned(),
        }
    }

    /// One shape: its element, numeric attributes, class and tooltip (none if empty).
    pub(crate) fn shape(
        &mut self,
        element: &str,
        numbers: &[(&str, f64)],
        class: &str,
        tooltip: &str,
    ) {
        let mut attributes = String::new();
        for (name, value) in numbers {
            attributes.push_str(&format!(" {name}=\"{}\"", Number(*value)));
        }
        self.push(element, &attributes, class, tooltip);
    }

    /// A straight line.
    pub(crate) fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let ends = [("x1", from.0), ("y1", from.1), ("x2", to.0), ("y2", to.1)];
        self.shape("line", &ends, class, "");
    }

    /// A rectangle with its upper left corner at `(x, y)`; negative sizes become 0.
    pub(crate) fn rect(
        &mut self,
        (x, y): (f64, f64),
        (width, height): (f64, f64),
        class: &str,
        tooltip: &str,
    ) {
        let (width, height) = (width.max(0.0), height.max(0.0));
        let corner = [("x", x), ("y", y), ("width", width), ("height", height)];
        self.shape("rect", &corner, class, tooltip);
    }

    /// A path.
    pub(crate) fn path(&mut self, path: &Path, class: &str, tooltip: &str) {
        self.push("path", &format!(" d=\"{}\"", path.0), class, tooltip);
    }

    /// A line of text with its baseline at `(x, y)`. The class decides the anchor.
    pub(crate) fn text(&mut self, (x, y): (f64, f64), class: &str, content: &str) {
        let place = format!(" x=\"{}\" y=\"{}\"", Number(x), Number(y));
        self.write_text(&place, class, content);
    }

    /// The same, turned about `(x, y)` by `angle` degrees, clockwise.
    pub(crate) fn turned_text(
        &mut self,
        (x, y): (f64, f64),
        angle: f64,
        class: &str,
        content: &str,
    ) {
        let (x, y, angle) = (Number(x), Number(y), Number(angle));
        let place = format!(" transform=\"translate({x} {y}) rotate({angle})\"");
        self.write_text(&place, class, content);
    }

    /// The element, ready to stand in an HTML page.
    pub(crate) fn finish(self) -> String {
        let (width, height) = (Number(self.width), Number(self.height));
        format!(
            "<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
             role=\"img\" aria-label=\"{}\">{}\n</svg>",
            Escaped(&self.label),
            self.body
        )
    }

    fn push(&mut self, element: &str, attributes: &str, class: &str, tooltip: &str) {
        let class = Class(class);
        self.body
            .push_str(&format!("\n<{element}{class}{attributes}"));
        if tooltip.is_empty() {
            self.body.push_str("/>");
        } else {
            let tooltip = Escaped(tooltip);
            self.body
                .push_str(&format!("><title>{tooltip}</title></{element}>"));
        }
    }

    fn write_text(&mut self, place: &str, class: &str, content: &str) {
        let (class, content) = (Class(class), Escaped(content));
        self.body
            .push_str(&format!("\n<text{class}{place}>{content}</text>"));
    }
}

/// The `d` of a path.
#[derive(Debug, Clone, Default)]
pub(crate) struct Path(String);

impl Path {
    /// Starts a new stroke.
    pub(crate) fn start(&mut self, (x, y): (f64, f64)) {
        self.0.push_str(&format!("M{} {}", Number(x), Number(y)));
    }

    /// A straight line to here.
    pub(crate) fn to(&mut self, (x, y): (f64, f64)) {
        self.0.push_str(&format!("L{} {}", Number(x), Number(y)));
    }

    /// The polygon through these corners.
    pub(crate) fn polygon(corners: &[(f64, f64)]) -> Self {
        let mut path = Self::default();
        for (k, &corner) in corners.iter().enumerate() {
            if k == 0 {
                path.start(corner);
            } else {
                path.to(corner);
            }
        }
        path.0.push('Z');
        path
    }
}

/// The width of a text in pixels at the size plots use. An estimate: fonts differ.
pub(crate) fn text_width(content: &str) -> f64 {
    6.9 * text::columns(content) as f64
}

/// A coordinate, in tenths.
struct Number(f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_assert!(self.0.is_finite(), "a coordinate that is not finite");
        let tenths = (self.0 * 10.0).round();
        // No value that is not a number, and no −0, reaches the file.
        let tenths = if tenths.is_finite() { tenths as i64 } else { 0 };
        let (sign, tenths) = (if tenths < 0 { "-" } else { "" }, tenths.abs());
        match tenths % 10 {
            0 => write!(f, "{sign}{}", tenths / 10),
            digit => write!(f, "{sign}{}.{digit}", tenths / 10),
        }
    }
}

struct Class<'a>(&'a str);

impl fmt::Display for Class<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(f, " class=\"{}\"", Escaped(self.0))
        }
    }
}

/// Text that cannot leave the element or attribute it stands in.
pub(crate) struct Escaped<'a>(pub(crate) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(text::harmless(c))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, -0.01, 1.0, 2.25, -3.16, 1e5].map(|value| Number(value).to_string());
        assert_eq!(shown, ["0", "0", "1", "2.3", "-3.2", "100000"]);
    }

    #[test]
    fn text_stays_text() {
        let mut svg = Svg::new(10.0, 10.0, "\" onload=\"alert(1)");
        svg.text((0.0, 0.0), "", "</svg><script>alert('&')</script>\u{7}");
        svg.rect((0.0, 0.0), (1.0, -1.0), "a", "</title>");
        assert_eq!(
            svg.finish(),
            "<svg viewBox=\"0 0 10 10\" width=\"10\" height=\"10\" role=\"img\" \
             aria-label=\"&quot; onload=&quot;alert(1)\">\n\
             <text x=\"0\" y=\"0\">&lt;/svg&gt;&lt;script&gt;alert(&#39;&amp;&#39;)\
             &lt;/script&gt;\u{fffd}</text>\n\
             <rect class=\"a\" x=\"0\" y=\"0\" width=\"1\" height=\"0\">\
             <title>&lt;/title&gt;</title></rect>\n</svg>"
        );
    }
}
