//! Sequential, bounded reading of a stretch of a file.

use super::PickleError;
use crate::source::ReadAt;

const BUFFER: usize = 64 << 10;
/// Longest text line: module and class names, numbers written out.
const MAX_LINE: usize = 4096;

/// A reader that advances through `position..end` of a source.
pub(super) struct Cursor<'a, R: ?Sized> {
    source: &'a R,
    position: u64,
    end: u64,
    buffer: Vec<u8>,
    /// Next byte within `buffer`; the buffer ends at `position`.
    next: usize,
}

impl<'a, R: ReadAt + ?Sized> Cursor<'a, R> {
    pub(super) fn new(source: &'a R, start: u64, end: u64) -> Self {
        Self {
            source,
            position: start,
            end: end.min(source.size()),
            buffer: Vec::new(),
            next: 0,
        }
    }

    /// Offset in the source of the next byte.
    pub(super) fn offset(&self) -> u64 {
        self.position - (self.buffer.len() - self.next) as u64
    }

    /// Continues at `offset`.
    pub(super) fn seek(&mut self, offset: u64) {
        self.position = offset;
        self.buffer.clear();
        self.next = 0;
    }

    fn fill(&mut self) -> Result<(), PickleError> {
        let left = self.end.saturating_sub(self.position);
        if left == 0 {
            return Err(PickleError::Truncated(self.position));
        }
        self.buffer.resize(left.min(BUFFER as u64) as usize, 0);
        self.next = 0;
        if let Err(cause) = self.source.read_exact_at(&mut self.buffer, self.position) {
            self.buffer.clear();
            return Err(cause.into());
        }
        self.position += self.buffer.len() as u64;
        Ok(())
    }

    pub(super) fn byte(&mut self) -> Result<u8, PickleError> {
        if self.next == self.buffer.len() {
            self.fill()?;
        }
        let byte = self.buffer[self.next];
        self.next += 1;
        Ok(byte)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let mut array = [0; N];
        for byte in &mut array {
            *byte = self.byte()?;
        }
        Ok(array)
    }

    /// The next `len` bytes. Memory is taken only if the source is long enough.
    pub(super) fn take(&mut self, len: u64) -> Result<Vec<u8>, PickleError> {
        if len > self.end.saturating_sub(self.offset()) {
            return Err(PickleError::Truncated(self.end));
        }
        let mut bytes = Vec::with_capacity(len as usize);
        while (bytes.len() as u64) < len {
            if self.next == self.buffer.len() {
                self.fill()?;
            }
            let wanted =
                (len - bytes.len() as u64).min((self.buffer.len() - self.next) as u64) as usize;
            bytes.extend_from_slice(&self.buffer[self.next..self.next + wanted]);
            self.next += wanted;
        }
        Ok(bytes)
    }

    /// The next `len` bytes as UTF-8.
    pub(super) fn text(&mut self, len: u64) -> Result<String, PickleError> {
        let at = self.offset();
        String::from_utf8(self.take(len)?).map_err(|_| PickleError::Malformed {
            at,
            problem: "a string is not UTF-8",
        })
    }

    /// Text up to the next line feed, which is consumed.
    pub(super) fn line(&mut self) -> Result<String, PickleError> {
        let at = self.offset();
        let mut bytes = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => break,
                _ if bytes.len() == MAX_LINE => {
                    return Err(PickleError::Malformed {
                        at,
                        problem: "a line is too long",
                    });
                }
                byte => bytes.push(byte),
            }
        }
        String::from_utf8(bytes).map_err(|_| PickleError::Malformed {
            at,
            problem: "a line is not UTF-8",
        })
    }
}
