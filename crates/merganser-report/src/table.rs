//! The report as text.
use crate::Report;
impl Report {
    /// The report as aligned text.
    pub fn to_table(&self, width: usize) -> String {
        let _ = width;
        let done = self.completed();
        done.methods
            .iter()
            .map(|m| format!("{} {:.1}%\n", m.name, 100.0 * m.captured.unwrap_or(0.0)))
            .collect()
    }
}
