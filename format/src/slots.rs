//! Slots: places in a file where the tree's absolute path goes in when it is unpacked. See `docs/format.md`.
//!
//! A dynamic program names its loader and the folders of its libraries by absolute paths, since only these work
//! without `/proc`. What they are is known on the target alone. The packed file says [`TREE`] for it.
//!
//! Most of these paths lead into the [closure](is_in_closure), which seldom changes from one version to the next. They
//! may be filled with another path than the tree's, one that equal closures have in common: then the same program is
//! the same bytes in each version's tree.

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

/// What goes into slots: where the tree is used.
#[derive(Debug, Clone, Copy)]
pub struct Paths<'a> {
    /// The absolute path of the tree.
    pub tree: &'a Path,
    /// An absolute path below which the tree's closure is found too, for what an ELF file names of it. `None`: it is
    /// named by the tree's path like everything else.
    pub closure: Option<&'a Path>,
}

impl<'a> Paths<'a> {
    /// The tree's path and no other.
    pub const fn of_tree(tree: &'a Path) -> Self {
        Self { tree, closure: None }
    }

    /// What a place in a slot's text becomes.
    fn at(&self, place: &Place, pad: Pad) -> &'a Path {
        self.closure.filter(|_| place.in_closure && pad == Pad::Nul).unwrap_or(self.tree)
    }
}

/// True for a path in the tree that belongs to its closure: `.kitbag/lib`, `.kitbag/lib.2` and so on, `.kitbag/etc`, and
/// what is below them.
pub fn is_in_closure(path: &[u8]) -> bool {
    let Some(rest) = path.strip_prefix(b".kitbag/") else { return false };
    let name = rest.split(|byte| *byte == b'/').next().unwrap_or_default();
    name == b"lib" || name.starts_with(b"lib.") || name == b"etc"
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

/// The slot's bytes with a path in the place of each [`TREE`] that begins the text or follows `:`, and is followed
/// by `/`, `:` or the end. A slot without one stays as it is.
pub fn fill(packed: &[u8], pad: Pad, paths: &Paths) -> Result<Vec<u8>, FillError> {
    let text = text(packed, pad);
    let places: Vec<Place> = places(text).collect();
    let put = |place: &Place| paths.at(place, pad).as_os_str().as_bytes();
    places.iter().try_for_each(|place| check(put(place), pad))?;
    let Some(length) = places.iter().map(|place| put(place).len()).max() else { return Ok(packed.to_vec()) };
    let room = packed.len() - usize::from(pad == Pad::Nul);
    let most = room.saturating_sub(text.len() - places.len() * TREE.len()) / places.len();
    if length > most {
        return Err(FillError::TooLong { length, most });
    }
    let mut filled = Vec::with_capacity(packed.len());
    let mut done = 0;
    for place in &places {
        filled.extend_from_slice(&text[done..place.at]);
        filled.extend_from_slice(put(place));
        done = place.at + TREE.len();
    }
    filled.extend_from_slice(&text[done..]);
    filled.resize(packed.len(), pad.byte());
    Ok(filled)
}

/// True if a slot's packed bytes name anything of the tree but its closure: what it is filled with is one tree's own.
pub fn names_tree(packed: &[u8], pad: Pad) -> bool {
    places(text(packed, pad)).any(|place| !place.in_closure || pad != Pad::Nul)
}

/// Fills all slots of a file that has its packed bytes.
pub fn fill_file(file: &File, slots: &[Slot], paths: &Paths) -> io::Result<()> {
    for slot in slots {
        let mut packed = vec![0; slot.length as usize];
        file.read_exact_at(&mut packed, slot.at)?;
        let filled = fill(&packed, slot.pad, paths).map_err(io::Error::other)?;
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

/// Where the tree is named in a text.
struct Place {
    at: usize,
    /// True if what is named there belongs to the closure.
    in_closure: bool,
}

fn places(text: &[u8]) -> impl Iterator<Item = Place> {
    let begins = |at: &usize| *at == 0 || text[*at - 1] == b':';
    (0..text.len()).filter(begins).filter_map(|at| {
        let rest = text[at..].strip_prefix(TREE.as_bytes())?;
        let path = rest.split(|byte| *byte == b':').next().unwrap_or_default();
        match path.split_first() {
            None => Some(Place { at, in_closure: false }),
            Some((b'/', path)) => Some(Place { at, in_closure: is_in_closure(path) }),
            Some(_) => None,
        }
    })
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
