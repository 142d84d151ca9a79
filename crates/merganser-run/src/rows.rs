//! A vocabulary tensor whose rows are put in another order while it is read.

use std::ops::Range;

use merganser_methods::Source;
use merganser_plan::RowMap;

/// Rows of `own` in the order of `map`, with rows of `base` where the map says so.
pub(crate) struct Reordered<'a> {
    pub(crate) own: Box<dyn Source + 'a>,
    pub(crate) base: Box<dyn Source + 'a>,
    pub(crate) map: &'a RowMap,
    /// Elements of a row.
    pub(crate) columns: usize,
}

impl Source for Reordered<'_> {
    // Rows come from two files of perhaps two types, so they are converted here and `raw` holds f32.
    fn fetch(
        &self,
        range: Range<usize>,
        raw: &mut Vec<u8>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        raw.clear();
        let mut stored = Vec::new();
        let mut values = vec![0.0_f32; self.columns];
        let mut at = range.start;
        while at < range.end {
            let (row, column) = (at / self.columns, at % self.columns);
            let len = (self.columns - column).min(range.end - at);
            let (source, from) = match self.map.rows[row] {
                RowMap::FROM_BASE => (&self.base, row),
                own => (&self.own, own as usize),
            };
            let start = from * self.columns + column;
            source.fetch(start..start + len, &mut stored)?;
            source.decode(&stored, start, 0, &mut values[..len]);
            raw.extend(values[..len].iter().flat_map(|x| x.to_le_bytes()));
            at += len;
        }
        Ok(())
    }

    fn decode(&self, raw: &[u8], _first: usize, skip: usize, out: &mut [f32]) {
        for (x, bytes) in out.iter_mut().zip(raw[skip * 4..].chunks_exact(4)) {
            *x = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use merganser_methods::{Float, Memory};

    #[test]
    fn rows_come_from_the_model_or_the_base() {
        let bytes =
            |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|x| x.to_le_bytes()).collect() };
        let (own, base) = (
            bytes(&[1.0, 2.0, 3.0, 4.0]),
            bytes(&[10.0, 20.0, 30.0, 40.0, 50.0, 60.0]),
        );
        let map = RowMap {
            rows: vec![1, RowMap::FROM_BASE, 0].into(),
            base: 0,
        };
        let source = Reordered {
            own: Box::new(Memory::new(Float::F32, &own)),
            base: Box::new(Memory::new(Float::F32, &base)),
            map: &map,
            columns: 2,
        };
        let mut raw = Vec::new();
        source.fetch(1..6, &mut raw).unwrap();
        let mut out = [0.0; 4];
        source.decode(&raw, 1, 1, &mut out);
        assert_eq!(out, [30.0, 40.0, 1.0, 2.0]);
    }
}
