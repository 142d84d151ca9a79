//! Tensors that are already in memory, as a [`Source`].

use std::ops::Range;

use merganser_kernels::convert::{self, Float};

use crate::Source;

/// The bytes of one tensor, little endian, in row-major order.
#[derive(Debug, Clone, Copy)]
pub struct Memory<'a> {
    kind: Float,
    bytes: &'a [u8],
}

impl<'a> Memory<'a> {
    /// A tensor of `kind` stored in `bytes`.
    pub fn new(kind: Float, bytes: &'a [u8]) -> Self {
        Self { kind, bytes }
    }
}

impl Source for Memory<'_> {
    fn fetch(
        &self,
        range: Range<usize>,
        raw: &mut Vec<u8>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let size = self.kind.size();
        let bytes = self
            .bytes
            .get(range.start * size..range.end * size)
            .ok_or_else(|| {
                format!(
                    "the tensor in memory has {} elements, not {}",
                    self.bytes.len() / size,
                    range.end
                )
            })?;
        raw.clear();
        raw.extend_from_slice(bytes);
        Ok(())
    }

    fn decode(&self, raw: &[u8], _first: usize, skip: usize, out: &mut [f32]) {
        let size = self.kind.size();
        convert::decode(self.kind, &raw[skip * size..(skip + out.len()) * size], out);
    }

    fn stored<'r>(
        &'r self,
        raw: &'r [u8],
        _first: usize,
        skip: usize,
        len: usize,
    ) -> Option<(Float, &'r [u8])> {
        let size = self.kind.size();
        Some((self.kind, &raw[skip * size..(skip + len) * size]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_and_a_short_tensor_is_refused() {
        let bytes: Vec<u8> = [1.0_f32, 2.0, 3.0]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        let memory = Memory::new(Float::F32, &bytes);
        let (mut raw, mut out) = (Vec::new(), [0.0]);
        memory.fetch(1..3, &mut raw).expect("in range");
        memory.decode(&raw, 1, 1, &mut out);
        assert_eq!(out, [3.0]);
        assert!(
            memory
                .fetch(0..4, &mut raw)
                .expect_err("too long")
                .to_string()
                .contains("3 elements, not 4")
        );
    }
}
