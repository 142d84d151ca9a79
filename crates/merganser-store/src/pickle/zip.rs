//! Just enough of the zip format to find the stored files of a torch checkpoint.
//!
//! torch writes uncompressed entries so that tensors can be read in place. Their list is the
//! central directory at the end of the file; large files use its 64-bit form (zip64).
//! Source: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5.3.

use super::PickleError;
use crate::source::ReadAt;

/// Longest directory accepted: over a million entries.
const MAX_DIRECTORY_LEN: u64 = 128 << 20;
const END_LEN: usize = 22;
const MAX_COMMENT_LEN: usize = 0xffff;
const LOCATOR_LEN: u64 = 20;
const END64_LEN: usize = 56;
const ENTRY_LEN: usize = 46;
const LOCAL_LEN: usize = 30;
/// In a 16- or 32-bit field: look into the zip64 form.
const IN_ZIP64: u64 = 0xffff_ffff;

/// A file in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    /// Bytes of its content.
    pub(super) size: u64,
    local_header: u64,
}

/// The list of files.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) entries: Vec<Entry>,
    /// Its bytes, which hold names, places and checksums of all files.
    pub(super) bytes: Vec<u8>,
}

fn bad(problem: &'static str) -> PickleError {
    PickleError::Zip(problem)
}

/// Little-endian number of `N` bytes at `at`, which must lie inside `bytes`.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<u64, PickleError> {
    let field = bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<N>())
        .ok_or_else(|| bad("a record is cut short"))?;
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(field);
    Ok(u64::from_le_bytes(wide))
}

/// Reads the directory of the archive.
pub(super) fn directory<R: ReadAt + ?Sized>(source: &R) -> Result<Directory, PickleError> {
    let (start, len) = locate(source)?;
    if len > MAX_DIRECTORY_LEN {
        return Err(bad("its directory is implausibly long"));
    }
    if start.checked_add(len).is_none_or(|end| end > source.size()) {
        return Err(bad(
            "its directory lies outside the file; it is truncated, download or copy it again",
        ));
    }
    let mut bytes = vec![0; len as usize];
    source.read_exact_at(&mut bytes, start)?;
    let mut entries = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let (entry, next) = entry(&bytes, at)?;
        entries.push(entry);
        at = next;
    }
    Ok(Directory { entries, bytes })
}

/// Offset and length of the directory, from the record at the end of the file.
fn locate<R: ReadAt + ?Sized>(source: &R) -> Result<(u64, u64), PickleError> {
    let tail_len = source.size().min((END_LEN + MAX_COMMENT_LEN) as u64);
    let tail_start = source.size() - tail_len;
    let mut tail = vec![0; tail_len as usize];
    source.read_exact_at(&mut tail, tail_start)?;
    // The last record whose comment reaches exactly to the end.
    let end = (0..=tail.len().saturating_sub(END_LEN)).rev().find(|&at| {
        tail[at..].starts_with(b"PK\x05\x06")
            && number::<2>(&tail, at + 20)
                .is_ok_and(|comment| at as u64 + END_LEN as u64 + comment == tail_len)
    });
    let end = end.ok_or_else(|| {
        bad("its directory is missing; it is truncated, download or copy it again")
    })?;
    let (len, start) = (number::<4>(&tail, end + 12)?, number::<4>(&tail, end + 16)?);
    let entries = number::<2>(&tail, end + 10)?;
    if len != IN_ZIP64 && start != IN_ZIP64 && entries != 0xffff {
        return Ok((start, len));
    }

    let mut locator = [0; LOCATOR_LEN as usize];
    let locator_at = (tail_start + end as u64)
        .checked_sub(LOCATOR_LEN)
        .ok_or_else(|| bad("its zip64 locator is missing"))?;
    source.read_exact_at(&mut locator, locator_at)?;
    if !locator.starts_with(b"PK\x06\x07") {
        // An archive with exactly 65535 files may do without.
        return if len == IN_ZIP64 || start == IN_ZIP64 {
            Err(bad("its zip64 locator is missing"))
        } else {
            Ok((start, len))
        };
    }
    let mut end64 = [0; END64_LEN];
    let end64_at = number::<8>(&locator, 8)?;
    source.read_exact_at(&mut end64, end64_at)?;
    if !end64.starts_with(b"PK\x06\x06") {
        return Err(bad("its zip64 record is missing"));
    }
    Ok((number::<8>(&end64, 48)?, number::<8>(&end64, 40)?))
}

/// The entry at `at`, and where the next one begins.
fn entry(directory: &[u8], at: usize) -> Result<(Entry, usize), PickleError> {
    let record = &directory[at..];
    if !record.starts_with(b"PK\x01\x02") {
        return Err(bad("its directory is damaged"));
    }
    let flags = number::<2>(record, 8)?;
    let method = number::<2>(record, 10)?;
    let mut compressed = number::<4>(record, 20)?;
    let mut size = number::<4>(record, 24)?;
    let name_len = number::<2>(record, 28)? as usize;
    let extra_len = number::<2>(record, 30)? as usize;
    let comment_len = number::<2>(record, 32)? as usize;
    let mut local_header = number::<4>(record, 42)?;

    let cut = || bad("its directory is cut short");
    let extra_at = ENTRY_LEN + name_len;
    let name = record.get(ENTRY_LEN..extra_at).ok_or_else(cut)?;
    let name = std::str::from_utf8(name)
        .map_err(|_| bad("a file name in it is not UTF-8"))?
        .to_owned();
    let mut extra = record.get(extra_at..extra_at + extra_len).ok_or_else(cut)?;
    while extra.len() >= 4 {
        let (id, len) = (number::<2>(extra, 0)?, number::<2>(extra, 2)? as usize);
        let field = extra.get(4..4 + len).ok_or_else(cut)?;
        if id == 1 {
            // Only the fields that did not fit are there, in this order.
            let mut at = 0;
            for value in [&mut size, &mut compressed, &mut local_header] {
                if *value == IN_ZIP64 {
                    *value = number::<8>(field, at)?;
                    at += 8;
                }
            }
        }
        extra = &extra[4 + len..];
    }
    if flags & 1 != 0 {
        return Err(PickleError::Stored {
            name,
            problem: "encrypted",
        });
    }
    if method != 0 || compressed != size {
        return Err(PickleError::Stored {
            name,
            problem: "compressed",
        });
    }
    Ok((
        Entry {
            name,
            size,
            local_header,
        },
        at + extra_at + extra_len + comment_len,
    ))
}

impl Entry {
    /// Offset in the archive of its content, which lies inside the file.
    pub(super) fn data_offset<R: ReadAt + ?Sized>(&self, source: &R) -> Result<u64, PickleError> {
        let outside =
            || bad("a file in it lies outside; it is truncated, download or copy it again");
        let mut local = [0; LOCAL_LEN];
        if self
            .local_header
            .checked_add(LOCAL_LEN as u64)
            .is_none_or(|end| end > source.size())
        {
            return Err(outside());
        }
        source.read_exact_at(&mut local, self.local_header)?;
        if !local.starts_with(b"PK\x03\x04") {
            return Err(bad("its directory points to something that is not a file"));
        }
        let offset = self.local_header
            + LOCAL_LEN as u64
            + number::<2>(&local, 26)?
            + number::<2>(&local, 28)?;
        if offset
            .checked_add(self.size)
            .is_none_or(|end| end > source.size())
        {
            return Err(outside());
        }
        Ok(offset)
    }
}
