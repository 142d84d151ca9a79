//! What a running merge shows: a bar with rate and remaining time on a terminal, a few plain lines in a pipe, JSON
//! lines if asked for.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use merganser::{Event, Observer};
use serde_json::json;

use crate::output::{Output, human};

/// A watcher that prints.
pub(crate) struct Progress<'a> {
    output: &'a Output,
    bar: ProgressBar,
    total: AtomicU64,
    done: AtomicU64,
    tensors: AtomicUsize,
    /// Tenths of the work already announced.
    said: AtomicU64,
    begun: Instant,
}

impl<'a> Progress<'a> {
    pub(crate) fn new(output: &'a Output) -> Self {
        let shown = output.terminal && !output.quiet && !output.json;
        let bar = if shown {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        if shown {
            let style = "{spinner} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} ETA {eta} {msg}";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self {
            output,
            bar,
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
            tensors: AtomicUsize::new(0),
            said: AtomicU64::new(0),
            begun: Instant::now(),
        }
    }

    /// Ends the display; returns bytes moved and seconds taken.
    pub(crate) fn finish(&self) -> (u64, f64) {
        self.bar.finish_and_clear();
        (
            self.done.load(Ordering::Relaxed),
            self.begun.elapsed().as_secs_f64(),
        )
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.bar.set_position(done);
        let tenths = (done * 10)
            .checked_div(self.total.load(Ordering::Relaxed))
            .unwrap_or(0)
            .min(10);
        if self.said.fetch_max(tenths, Ordering::Relaxed) < tenths && !self.output.terminal {
            let seconds = self.begun.elapsed().as_secs_f64().max(1e-9);
            if self.output.json {
                Output::event(
                    &json!({ "event": "progress", "bytes": done, "total": self.total.load(Ordering::Relaxed), "seconds": seconds }),
                );
            } else if seconds > 2.0 {
                self.output.note(&format!(
                    "{:>3} %  {}/s",
                    tenths * 10,
                    human((done as f64 / seconds) as u64)
                ));
            }
        }
    }
}

impl Observer for Progress<'_> {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Started {
                tensors,
                bytes,
                reused,
            } => {
                self.total.fetch_add(bytes, Ordering::Relaxed);
                self.bar.inc_length(bytes);
                if self.output.json {
                    Output::event(
                        &json!({ "event": "started", "tensors": tensors, "bytes": bytes, "reused": reused }),
                    );
                } else if reused > 0 {
                    self.output.note(&format!(
                        "resuming: {reused} tensors of an earlier run are kept, {tensors} are left"
                    ));
                }
            }
            Event::Survey => {
                if self.output.json {
                    Output::event(&json!({ "event": "survey" }));
                }
                self.bar.set_message("reading the whole model once");
            }
            Event::Samples => self.bar.set_message("reading samples"),
            Event::Stage { name, number, of } => {
                if self.output.json {
                    Output::event(
                        &json!({ "event": "stage", "name": name, "number": number + 1, "of": of }),
                    );
                } else if self.output.terminal {
                    self.bar
                        .set_message(format!("{name} ({} of {of})", number + 1));
                } else {
                    self.output
                        .note(&format!("{name}  ({} of {of})", number + 1));
                }
            }
            Event::Distilled { step, of, loss } => {
                if self.output.json {
                    Output::event(
                        &json!({ "event": "distilled", "step": step, "of": of, "loss": loss }),
                    );
                } else if self.output.terminal {
                    self.bar
                        .set_message(format!("distilling ({step} of {of}), loss {loss:.4}"));
                } else if step * 10 % of < 10 {
                    self.output
                        .note(&format!("distilling  ({step} of {of}), loss {loss:.4}"));
                }
            }
            Event::Progress { bytes } => self.advance(bytes),
            Event::Tensor { name, bytes } => {
                self.tensors.fetch_add(1, Ordering::Relaxed);
                if self.output.verbose {
                    if self.output.json {
                        Output::event(&json!({ "event": "tensor", "name": name, "bytes": bytes }));
                    } else {
                        self.bar
                            .suspend(|| self.output.note(&format!("{name}  {}", human(bytes))));
                    }
                }
            }
            Event::Remark(text) => {
                if self.output.json {
                    Output::event(&json!({ "event": "note", "text": text }));
                } else {
                    self.bar
                        .suspend(|| self.output.note(&format!("note: {text}")));
                }
            }
            Event::Publishing => self.bar.set_message("writing to disk"),
        }
    }
}
