//! The bytes of a file, read where they are asked for, within bounds and a budget.

use std::fs::File;
use std::os::unix::fs::FileExt;

use goblin::container::Endian;

use crate::facts::ElfError;

/// What is read at once: headers, notes and the table of needs of most files lie within a few of these.
const BLOCK: usize = 4096;
/// No file makes the reader look at more than this, each access counted with [`ACCESS`] on top. Real ones stay below 1 MiB.
const BUDGET: usize = 16 << 20;
/// What an access costs, so that many small ones are bounded too.
const ACCESS: usize = 32;
/// The longest text: a list of folders may be long, a path not.
const TEXT: usize = 64 << 10;

/// A file in memory or on disk.
pub(crate) enum Source<'a> {
    Memory(&'a [u8]),
    Disk(&'a File),
}

/// Reads numbers and texts of one byte order.
pub(crate) struct Reader<'a> {
    source: Source<'a>,
    length: u64,
    /// From [`Source::Disk`], the bytes read last, and where they begin.
    block: (u64, Vec<u8>),
    spent: usize,
    pub(crate) order: Endian,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(source: Source<'a>) -> Result<Self, ElfError> {
        let length = match source {
            Source::Memory(bytes) => bytes.len() as u64,
            Source::Disk(file) => file.metadata()?.len(),
        };
        Ok(Self { source, length, block: (0, Vec::new()), spent: 0, order: Endian::Little })
    }

    /// The `length` bytes at offset `at`.
    pub(crate) fn get(&mut self, at: u64, length: usize) -> Result<&[u8], ElfError> {
        let end = at.checked_add(length as u64).filter(|end| *end <= self.length);
        end.ok_or(ElfError::OutOfBounds { offset: at, length })?;
        self.spent = self.spent.saturating_add(length).saturating_add(ACCESS);
        if self.spent > BUDGET {
            return Err(ElfError::TooMuch);
        }
        let (bytes, start) = match self.source {
            Source::Memory(bytes) => (bytes, at),
            Source::Disk(file) => {
                self.read(file, at, length)?;
                (self.block.1.as_slice(), at.saturating_sub(self.block.0))
            }
        };
        let bytes = usize::try_from(start).ok().and_then(|start| bytes.get(start..)?.get(..length));
        bytes.ok_or(ElfError::OutOfBounds { offset: at, length })
    }

    /// Makes the block hold these bytes.
    fn read(&mut self, file: &File, at: u64, length: usize) -> Result<(), ElfError> {
        let (start, bytes) = &mut self.block;
        let held = *start <= at && at + length as u64 <= *start + bytes.len() as u64;
        if !held {
            let wanted = (self.length - at).min(length.max(BLOCK) as u64) as usize;
            *start = at;
            bytes.resize(wanted, 0);
            file.read_exact_at(bytes, at)?;
        }
        Ok(())
    }

    /// True if the file goes on at this offset.
    pub(crate) fn holds(&self, at: u64) -> bool {
        at < self.length
    }

    /// The first bytes, fewer than `length` if the file is shorter.
    pub(crate) fn start(&mut self, length: usize) -> Result<&[u8], ElfError> {
        self.get(0, self.length.min(length as u64) as usize)
    }

    pub(crate) fn u16(&mut self, at: u64) -> Result<u16, ElfError> {
        let little = self.order == Endian::Little;
        let bytes = array(self.get(at, 2)?);
        Ok(if little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    }

    pub(crate) fn u32(&mut self, at: u64) -> Result<u32, ElfError> {
        let little = self.order == Endian::Little;
        let bytes = array(self.get(at, 4)?);
        Ok(if little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    }

    /// An address or offset, 4 or 8 bytes long.
    pub(crate) fn word(&mut self, at: u64, wide: bool) -> Result<u64, ElfError> {
        if !wide {
            return self.u32(at).map(u64::from);
        }
        let little = self.order == Endian::Little;
        let bytes = array(self.get(at, 8)?);
        Ok(if little { u64::from_le_bytes(bytes) } else { u64::from_be_bytes(bytes) })
    }

    /// The text that ends with NUL.
    pub(crate) fn text(&mut self, at: u64) -> Result<Vec<u8>, ElfError> {
        let rest = self.length.saturating_sub(at);
        for most in [256, TEXT] {
            let bytes = self.get(at, rest.min(most as u64) as usize)?;
            if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
                return Ok(bytes[..end].to_vec());
            }
        }
        Err(ElfError::Endless { offset: at })
    }
}

/// The bytes, whose number is right: they come from [`Reader::get`].
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk().copied().unwrap_or([0; N])
}
