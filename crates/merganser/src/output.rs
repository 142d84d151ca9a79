//! Where words go: results to stdout, everything else to stderr; JSON lines instead if asked for.

use std::io::{IsTerminal, Write};

use merganser::Failure;
use merganser::recipe::{Diagnostic, SourceText};

use crate::cli::{Global, When};

/// The user's wishes about output.
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    pub(crate) verbose: bool,
    pub(crate) color: bool,
    /// Whether a progress bar makes sense.
    pub(crate) terminal: bool,
}

impl Output {
    pub(crate) fn new(global: &Global) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let color = match global.color {
            When::Always => true,
            When::Never => false,
            When::Auto => terminal && std::env::var_os("NO_COLOR").is_none(),
        };
        Self {
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose,
            color,
            terminal,
        }
    }

    /// One JSON object, on a line of stdout.
    pub(crate) fn event(value: &serde_json::Value) {
        result(&value.to_string());
    }

    /// A remark, on stderr.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet && !self.json {
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        }
    }

    /// A warning about the recipe.
    pub(crate) fn warning(&self, warning: &Diagnostic, source: &SourceText) {
        if self.json {
            Self::event(
                &serde_json::json!({ "event": "warning", "message": warning.message, "help": warning.help }),
            );
        } else if !self.quiet {
            let _ = writeln!(
                std::io::stderr().lock(),
                "{}",
                warning.render(source, self.color).trim_end()
            );
        }
    }

    /// The reason for a bad exit code.
    pub(crate) fn failure(&self, failure: &Failure) {
        if let Failure::Flagged(message) = failure {
            if self.json {
                Self::event(&serde_json::json!({ "event": "flagged", "message": message }));
            } else {
                let _ = writeln!(std::io::stderr().lock(), "flagged: {message}");
            }
            return;
        }
        if self.json {
            let errors: Vec<serde_json::Value> = match failure {
                Failure::Recipe(diagnostics) => diagnostics
                    .list
                    .iter()
                    .map(|d| {
                        let at = d
                            .labels
                            .first()
                            .map(|(span, _)| diagnostics.source.line_column(span.start));
                        serde_json::json!({
                            "message": d.message,
                            "file": diagnostics.source.name,
                            "line": at.map(|(line, _)| line),
                            "column": at.map(|(_, column)| column),
                            "labels": d.labels.iter().map(|(_, text)| text).collect::<Vec<_>>(),
                            "help": d.help,
                        })
                    })
                    .collect(),
                other => vec![serde_json::json!({ "message": other.to_string() })],
            };
            Self::event(&serde_json::json!({ "event": "error", "errors": errors }));
            return;
        }
        let text = match failure {
            Failure::Recipe(diagnostics) => diagnostics.render(self.color),
            other => format!("error: {other}"),
        };
        let _ = writeln!(std::io::stderr().lock(), "{}", text.trim_end());
    }
}

/// A result, on stdout. A reader that went away is no failure.
pub(crate) fn result(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    if !text.ends_with('\n') {
        let _ = out.write_all(b"\n");
    }
    let _ = out.flush();
}

/// Bytes for people: decimal units, as disks and networks are measured.
pub(crate) fn human(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1000.0 && unit + 1 < units.len() {
        size /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{size:.1} {}", units[unit])
    }
}
