//! Slots: places in a file where the tree's absolute path goes in when it is unpacked. See `docs/format.md`.
//!
//! A dynamic program names its loader and the folders of its libraries by absolute paths, since only these work
//! without `/proc`. What they are is known on the target alone. The packed file says [`TREE`] for it.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// How the packed bytes spell the tree's path.
pub const TREE: &str = "/kitbag-tree";
/// Longest slot, in bytes.
pub const MAX_SLOT: u32 = 8192;
/// Most slots of a file.
pub const MAX_SLOTS: usize = 64;

/// A range of a file's bytes: a text and its padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Where it begins in the file.
    pub at: u64,
    /// Bytes.
    pub length: u32,
    /// What follows the text up to the slot's end.
    pub pad: Pad,
}

impl Slot {
    /// Where it ends in the file. A slot of an index lies inside its file, so there is such a place.
    pub const fn end(&self) -> u64 {
        self.at.saturating_add(self.length as u64)
    }
}

/// What fills a slot behind its text, which also says who reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pad {
    /// NUL, at least one: a path, or paths with `:` between them, in an ELF file.
    Nul,
    /// Spaces, or none: the interpreter of a `#!` line.
    Space,
}

/// Why a tree's path cannot go into a slot. Shown as what is wrong with it, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FillError {
    /// It is longer than there is room for.
    TooLong {
        /// Its bytes.
        length: usize,
        /// The most that fit.
        most: usize,
    },
    /// It has a letter in it that means something else there.
    Letter(char),
    /// It is relative.
    Relative,
}

impl fmt::Display for FillError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { length, most } => {
                write!(f, "it has {length} bytes, and {most} is the most that fits; choose a shorter one")
            }
            Self::Letter(letter) => write!(f, "it has {letter:?} in it; choose one without"),
            Self::Relative => f.write_str("it is relative; choose an absolute one"),
        }
    }
}

impl std::error::Error for FillError {}

/// The slot's bytes with `tree` in the place of each [`TREE`] that begins the text or follows `:`, and is followed
/// by `/`, `:` or the end. A slot without one stays as it is.
pub fn fill(packed: &[u8], pad: Pad, tree: &Path) -> Result<Vec<u8>, FillError> {
    let text = text(packed, pad);
    let count = places(text).count();
    if count == 0 {
        return Ok(packed.to_vec());
    }
    let tree = tree.as_os_str().as_bytes();
    check(tree, pad)?;
    let room = packed.len() - usize::from(pad == Pad::Nul);
    let most = room.saturating_sub(text.len() - count * TREE.len()) / count;
    if tree.len() > most {
        return Err(FillError::TooLong { length: tree.len(), most });
    }
    let mut filled = Vec::with_capacity(packed.len());
    let mut done = 0;
    for at in places(text) {
        filled.extend_from_slice(&text[done..at]);
        filled.extend_from_slice(tree);
        done = at + TREE.len();
    }
    filled.extend_from_slice(&text[done..]);
    filled.resize(packed.len(), pad.byte());
    Ok(filled)
}

/// Fills all slots of a file that has its packed bytes.
pub fn fill_file(file: &File, slots: &[Slot], tree: &Path) -> io::Result<()> {
    for slot in slots {
        let mut packed = vec![0; slot.length as usize];
        file.read_exact_at(&mut packed, slot.at)?;
        let filled = fill(&packed, slot.pad, tree).map_err(io::Error::other)?;
        file.write_all_at(&filled, slot.at)?;
    }
    Ok(())
}

impl Pad {
    /// The byte.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Nul => 0,
            Self::Space => b' ',
        }
    }
}

/// The bytes before the padding.
fn text(packed: &[u8], pad: Pad) -> &[u8] {
    let end = match pad {
        Pad::Nul => packed.iter().position(|byte| *byte == 0).unwrap_or(packed.len()),
        Pad::Space => packed.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1),
    };
    &packed[..end]
}

/// Where the tree is named.
fn places(text: &[u8]) -> impl Iterator<Item = usize> {
    let begins = |at: &usize| *at == 0 || text[*at - 1] == b':';
    let named = |at: &usize| {
        text[*at..].strip_prefix(TREE.as_bytes()).is_some_and(|rest| matches!(rest, [] | [b'/' | b':', ..]))
    };
    (0..text.len()).filter(begins).filter(named)
}

/// In an ELF file `:` ends a path and `$` begins a name that the loader replaces (ld.so(8)); musl's also ends a path
/// with a newline (`path_open` in ldso/dynlink.c). White space ends a `#!` line's interpreter (execve(2)).
fn check(tree: &[u8], pad: Pad) -> Result<(), FillError> {
    let special: &[u8] = match pad {
        Pad::Nul => b":$\n\0",
        Pad::Space => b" \t\n\0",
    };
    match tree.iter().find(|byte| special.contains(byte)) {
        Some(byte) => Err(FillError::Letter(char::from(*byte))),
        None if tree.first() != Some(&b'/') => Err(FillError::Relative),
        None => Ok(()),
    }
}
