//! The little of ELF that a bundle needs: find a note through the program headers, and write a section table
//! with more sections. 64-bit little-endian only. elf(5), and the System V gABI, chapters 4 and 5.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::error::Error;
use crate::layout::{NOTE_NAME, NOTE_TYPE, u16_at, u32_at, u64_at};

/// Bytes of the ELF header.
pub const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const SECTION_HEADER: usize = 64;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const SHT_PROGBITS: u32 = 1;
const MOST_NOTES: u64 = 64 << 10;

/// True if the bytes begin a 64-bit little-endian ELF file.
pub fn is_elf64(header: &[u8]) -> bool {
    header.starts_with(b"\x7fELF\x02\x01") && header.len() >= HEADER
}

/// Where the file's section table begins, by its ELF header.
pub fn section_table(header: &[u8]) -> u64 {
    u64_at(header, 40)
}

/// Where in a file of `length` bytes the content of kitbag's note is. `read` reads at an offset, fewer bytes than
/// asked for only at the end.
pub fn find_note(
    read: impl Fn(u64, usize) -> Result<Vec<u8>, Error>,
    length: u64,
) -> Result<Option<Range<u64>>, Error> {
    let header = read(0, HEADER)?;
    if !is_elf64(&header) {
        return Err(Error::NotABundle("it is not an ELF executable"));
    }
    let table = read(u64_at(&header, 32), usize::from(u16_at(&header, 56)) * PROGRAM_HEADER)?;
    for program in table.as_chunks::<PROGRAM_HEADER>().0 {
        let (offset, size) = (u64_at(program, 8), u64_at(program, 32));
        if u32_at(program, 0) != PT_NOTE || size > MOST_NOTES {
            continue;
        }
        let end = offset.saturating_add(size);
        if end > length {
            return Err(Error::Truncated { expected: end, found: length });
        }
        if let Some(content) = find_in_notes(&read(offset, size as usize)?) {
            return Ok(Some(offset + content.start as u64..offset + content.end as u64));
        }
    }
    Ok(None)
}

/// The same in memory.
pub fn find_note_in(program: &[u8]) -> Result<Option<Range<u64>>, Error> {
    let read = |offset: u64, length: usize| {
        let rest = usize::try_from(offset).ok().and_then(|at| program.get(at..)).unwrap_or_default();
        Ok(rest[..length.min(rest.len())].to_vec())
    };
    find_note(read, program.len() as u64)
}

/// True if the program is one that the kernel starts through an interpreter, or no 64-bit ELF file at all.
pub fn needs_interpreter(program: &[u8]) -> bool {
    let start = usize::try_from(u64_at(program, 32)).unwrap_or(usize::MAX);
    let table = program.get(start..).unwrap_or_default().as_chunks::<PROGRAM_HEADER>().0;
    let count = usize::from(u16_at(program, 56));
    !is_elf64(program) || table.iter().take(count).any(|header| u32_at(header, 0) == PT_INTERP)
}

/// Notes are {name size, content size, type} with name and content padded to 4 bytes.
fn find_in_notes(notes: &[u8]) -> Option<Range<usize>> {
    let mut at = 0;
    while at + 12 <= notes.len() {
        let name = at + 12;
        let content = name.checked_add(u32_at(notes, at) as usize)?.checked_next_multiple_of(4)?;
        let end = content.checked_add(u32_at(notes, at + 4) as usize)?;
        if notes.get(name..)?.starts_with(NOTE_NAME) && u32_at(notes, at + 8) == NOTE_TYPE {
            return (end <= notes.len()).then_some(content..end);
        }
        at = end.checked_next_multiple_of(4)?;
    }
    None
}

/// Reads up to `length` bytes; fewer only at the end of the file.
pub(crate) fn read(file: &File, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
    if i64::try_from(offset).is_err() {
        return Ok(Vec::new()); // No file is that long; pread(2) would call it an invalid argument.
    }
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut bytes[filled..], offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("read the bundle")(error)),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// A section to add: its name and where its bytes are in the file.
pub struct Section {
    /// Name, `.kitbag.…`.
    pub name: &'static str,
    /// Place in the file.
    pub range: Range<u64>,
}

/// The section table of `program` with `sections` added, to stand at `offset`: the headers and their names.
/// Points `program`'s ELF header at it. `None` if the program has no section table.
pub fn extend_sections(program: &mut [u8], sections: &[Section], offset: u64) -> Option<Vec<u8>> {
    let start = usize::try_from(section_table(program)).ok()?;
    let (count, names) = (usize::from(u16_at(program, 60)), usize::from(u16_at(program, 62)));
    let old = program.get(start..start.checked_add(count * SECTION_HEADER)?)?;
    let mut headers: Vec<[u8; SECTION_HEADER]> = old.as_chunks().0.to_vec();
    let old_names = headers.get(names)?;
    let (at, size) = (u64_at(old_names, 24) as usize, u64_at(old_names, 32) as usize);
    let mut strings = program.get(at..at.checked_add(size)?)?.to_vec();
    for section in sections {
        let mut header = [0; SECTION_HEADER];
        header[..4].copy_from_slice(&(strings.len() as u32).to_le_bytes());
        header[4..8].copy_from_slice(&SHT_PROGBITS.to_le_bytes());
        header[24..32].copy_from_slice(&section.range.start.to_le_bytes());
        header[32..40].copy_from_slice(&(section.range.end - section.range.start).to_le_bytes());
        header[48] = 1;
        headers.push(header);
        strings.extend_from_slice(section.name.as_bytes());
        strings.push(0);
    }
    let strings_at = offset + (headers.len() * SECTION_HEADER) as u64;
    headers[names][24..32].copy_from_slice(&strings_at.to_le_bytes());
    headers[names][32..40].copy_from_slice(&(strings.len() as u64).to_le_bytes());
    program[40..48].copy_from_slice(&offset.to_le_bytes());
    program[60..62].copy_from_slice(&u16::try_from(headers.len()).ok()?.to_le_bytes());
    let mut table = headers.concat();
    table.extend_from_slice(&strings);
    Some(table)
}
