//! Rows and words laid out within a width.

use crate::text::{columns, counted, shorten, visible};

/// Words in lines of at most `width` columns, the later ones indented.
pub(super) fn wrap(words: &str, width: usize, indent: &str) -> String {
    let words = visible(&words.replace('\n', " "));
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in words.split(' ').filter(|word| !word.is_empty()) {
        let word = shorten(word, width - columns(indent));
        let length = columns(&word);
        if used > 0 && used + 1 + length > width {
            lines.push(indent.to_owned());
            used = columns(indent);
        } else if used > 0 {
            used += 1;
            if let Some(line) = lines.last_mut() {
                line.push(' ');
            }
        }
        used += length;
        if let Some(line) = lines.last_mut() {
            line.push_str(&word);
        }
    }
    lines.join("\n") + "\n"
}

/// Rows under a head: the first column to the left, the others to the right.
pub(super) struct Table {
    head: Vec<String>,
    /// The cells.
    pub(super) rows: Vec<Vec<String>>,
    /// Columns that may be left out where the width does not suffice, in this order.
    pub(super) optional: Vec<usize>,
    /// Columns besides the first that are aligned to the left.
    pub(super) left: Vec<usize>,
}

impl Table {
    /// A table without rows.
    pub(super) fn new(head: &[&str]) -> Self {
        Self {
            head: head.iter().map(ToString::to_string).collect(),
            rows: Vec::new(),
            optional: Vec::new(),
            left: Vec::new(),
        }
    }

    /// The text, in lines of at most `width` columns.
    pub(super) fn write(self, width: usize) -> String {
        let clean =
            |row: Vec<String>| -> Vec<String> { row.iter().map(|cell| visible(cell)).collect() };
        let mut rows = vec![clean(self.head)];
        rows.extend(self.rows.into_iter().map(clean));
        // Names of methods stand above narrow numbers.
        for cell in rows.iter_mut().flat_map(|row| row.iter_mut().skip(1)) {
            *cell = shorten(cell, 20);
        }
        let count = rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut widths: Vec<usize> = (0..count)
            .map(|k| {
                let cells = rows.iter().filter_map(|row| row.get(k));
                cells.map(|cell| columns(cell)).max().unwrap_or(0)
            })
            .collect();
        let mut kept: Vec<usize> = (0..count).collect();
        let total = |kept: &[usize], widths: &[usize]| -> usize {
            kept.iter().map(|&k| widths[k] + 2).sum::<usize>() - 2
        };
        // The first column gives way to half the width, then columns are left out, then it gives
        // way further.
        let mut dropped = 0;
        let narrow = |widths: &mut Vec<usize>, kept: &[usize], least: usize| {
            let excess = total(kept, widths).saturating_sub(width);
            widths[0] = widths[0].saturating_sub(excess).max(widths[0].min(least));
        };
        narrow(&mut widths, &kept, (width / 3).max(16));
        let mut optional = self.optional.iter();
        while total(&kept, &widths) > width {
            let Some(next) = optional.next() else { break };
            if let Some(place) = kept.iter().position(|k| k == next) {
                kept.remove(place);
                dropped += usize::from(!rows[0][*next].is_empty());
            }
        }
        narrow(&mut widths, &kept, 6);
        while total(&kept, &widths) > width && kept.len() > 2 {
            kept.pop();
            dropped += 1;
        }
        let mut text = String::new();
        for row in &rows {
            let mut line = String::new();
            for &k in &kept {
                let Some(cell) = row.get(k) else { continue };
                let cell = shorten(cell, widths[k]);
                let padding = " ".repeat(widths[k] - columns(&cell).min(widths[k]));
                if k > 0 {
                    line.push_str("  ");
                }
                if k == 0 || self.left.contains(&k) {
                    line.extend([cell.as_str(), &padding]);
                } else {
                    line.extend([padding.as_str(), &cell]);
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        if dropped > 0 {
            let columns = counted(dropped, "column");
            text.push_str(&format!("({columns} left out: too narrow)\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_wrapped() {
        assert_eq!(wrap("one two three", 8, "  "), "one two\n  three\n");
        assert_eq!(wrap("a\x1b[2Jb\nc", 40, ""), "a�[2Jb c\n");
        assert_eq!(wrap("", 40, ""), "\n");
    }

    #[test]
    fn a_table_gives_way_to_the_width() {
        let table = || {
            let mut table = Table::new(&["NAME", "first", "second", "third"]);
            let row = ["a name of thirty-one characters", "10.0%", "20.0%", "30.0%"];
            table.rows.push(row.map(str::to_owned).to_vec());
            table.optional = vec![2];
            table
        };
        for width in [10, 20, 30, 40, 60, 100] {
            let text = table().write(width);
            let lines = text.lines().filter(|line| !line.starts_with('('));
            assert!(
                lines.clone().all(|line| columns(line) <= width.max(20)),
                "{text}"
            );
        }
        assert!(table().write(100).contains("second"));
        assert!(table().write(36).contains("1 column left out"));
    }
}
