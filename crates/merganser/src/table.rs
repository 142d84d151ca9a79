//! Tables of text: the first column to the left, the others to the right, two spaces between them.

/// Aligns rows, each with a line break at its end. Rows may be of different lengths.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let length = |text: &str| text.chars().count();
    let widths: Vec<usize> = (0..columns)
        .map(|k| {
            let cells = rows.iter().filter_map(|row| row.get(k));
            cells.map(|cell| length(cell)).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        for (k, cell) in row.iter().enumerate() {
            let padding = " ".repeat(widths[k] - length(cell));
            match k {
                0 if row.len() == 1 => text.push_str(cell),
                0 => text.extend([cell.as_str(), &padding]),
                _ => text.extend(["  ", &padding, cell]),
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["a", "10", "x"], ["τ_long", "2", "yy"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "a       10   x\nτ_long   2  yy\n");
    }

    #[test]
    fn short_rows_end_early() {
        let rows = [
            vec!["alone".to_owned()],
            vec!["a".to_owned(), "b".to_owned()],
        ];
        assert_eq!(table(&rows), "alone\na      b\n");
        assert_eq!(table(&[]), "");
    }
}
