//! The few bytes of an ELF file that change, so that it finds its loader and libraries in the bundle alone.
//!
//! What can be changed in place is changed there: tags and flags, and spare entries of the dynamic section. The rest goes
//! into one new segment at the end of the file (`tail.rs`); nothing else moves, but up to a hundred bytes of notes that
//! stand where the program header table has to grow. So debug sections and symbols stay what they were. Data that somebody
//! appended to the ELF file stays too, and comes once more at the new end, as programs may look for it from there.
//!
//! Not with the crate `object-rewrite` (0.1.1): it builds symbols, strings and hash tables anew from the section table,
//! refuses what it does not know (96 of 873 programs in a Debian /usr/bin: LLD's alignment, `SHT_RELR`, no section table),
//! loses what no section covers, and cannot set `DT_FLAGS_1`.

use std::fmt;

use goblin::elf::dynamic::{DT_STRSZ, DT_STRTAB};
use goblin::elf::program_header::{PT_DYNAMIC, PT_INTERP};
use serde::{Deserialize, Serialize};

mod dynamic;
mod image;
mod loader;
mod tail;
mod variables;

pub use variables::{Reader, VARIABLES, Variable};

use dynamic::Dynamic;
use image::Image;
use tail::Tail;

/// How a text in a packed file spells the folder that the bundle is unpacked to.
pub const TREE: &str = "/kitbag-tree";

/// The longest path, in bytes, that each [`TREE`] of a slot has room for (but for texts of very many folders).
pub const TREE_ROOM: usize = 1024;

/// `PT_INTERP` is at most this long, with its NUL: PATH_MAX, in Linux' fs/binfmt_elf.c.
const INTERPRETER_MAX: usize = 4096;

/// The longest text of a search path, with its NUL: that of the longest slot that the index of a bundle knows.
const RPATH_MAX: usize = 8192;

/// A string table up to this size moves into the new segment together with the search path. A larger one stays, and the
/// path is found from it by an offset that lies behind its end. Loaders do not mind; readelf then shows a number.
const STRINGS_MAX: u64 = 8192;

/// What is to change in one file, spelled as it goes into the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// The loader's path, for `PT_INTERP`. `None` leaves what is there.
    pub interpreter: Option<Vec<u8>>,
    /// The folders of `DT_RPATH`, in this order. None: the file shall have no search path of its own.
    pub rpath: Vec<Vec<u8>>,
    /// Variables that it is to ask for by their other names, beside those of glibc's C library.
    pub variables: Vec<Variable>,
    /// It is the loader itself. Nothing else of the request counts then.
    pub is_loader: bool,
}

/// A range of a file that holds a text with [`TREE`] in it, padded with NUL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Slot {
    /// Where it begins, in bytes from the beginning of the file.
    pub at: u64,
    /// Bytes that text and padding take. One more NUL follows, which is not part of the slot.
    pub length: u32,
}

/// The file that comes out: the source's bytes with some overwritten, then cut or extended to `length`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edits {
    /// The size of the file that comes out. What lies between the source's end and the writes is NUL.
    pub length: u64,
    /// Offset and new bytes; sorted, not overlapping, and each of them changes something.
    pub writes: Vec<(u64, Vec<u8>)>,
    /// Where the tree's path has to be filled in, sorted.
    pub slots: Vec<Slot>,
    /// Host paths that a glibc loader was expected to hold, and does not.
    #[serde(skip)]
    pub unpatched: Vec<&'static str>,
}

/// Why a file cannot be changed as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RewriteError {
    /// Headers that contradict each other or the file's size: which one.
    Malformed(&'static str),
    /// An interpreter is asked for and the file names none: it is static, or a library.
    NoInterpreter,
    /// A search path is asked for and the file has no dynamic section.
    NoDynamicSection,
    /// The interpreter's path in bytes, and how many there may be.
    InterpreterTooLong(usize, usize),
    /// The search path in bytes, and how many there may be.
    RpathTooLong(usize, usize),
    /// The program header table cannot grow where it is, and elsewhere older kernels would not find it (Linux before
    /// 5.18 takes it from the first segment's place) unless the file were extended by this many bytes.
    NoRoom(u64),
    /// Addresses of a 32-bit file are used up.
    NoAddress,
}

impl fmt::Display for RewriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) => write!(f, "its {what} contradicts the rest of the file"),
            Self::NoInterpreter => f.write_str("it names no interpreter that could be replaced"),
            Self::NoDynamicSection => f.write_str("it has no dynamic section to take a search path"),
            Self::InterpreterTooLong(length, most) => {
                write!(f, "the path of its interpreter has {length} bytes, the kernel takes {most}")
            }
            Self::RpathTooLong(length, most) => {
                write!(f, "its search path has {length} bytes, there is room for {most}")
            }
            Self::NoRoom(bytes) => {
                write!(f, "its program header table cannot grow unless the file is extended by {bytes} bytes")
            }
            Self::NoAddress => f.write_str("it leaves no address for a new segment"),
        }
    }
}

impl std::error::Error for RewriteError {}

impl Edits {
    /// The file as it comes out of `bytes`, the source. For tests and small files.
    #[must_use]
    pub fn apply(&self, bytes: &[u8]) -> Vec<u8> {
        let mut out = bytes.to_vec();
        out.resize(usize::try_from(self.length).unwrap_or(usize::MAX), 0);
        self.apply_at(0, &mut out);
        out
    }

    /// Puts what changes into `bytes`, which begin at `start` of the file that comes out.
    pub fn apply_at(&self, start: u64, bytes: &mut [u8]) {
        let end = start.saturating_add(bytes.len() as u64);
        for (at, new) in &self.writes {
            let (from, to) = (start.max(*at), end.min(at.saturating_add(new.len() as u64)));
            if from < to {
                let piece = &new[(from - at) as usize..(to - at) as usize];
                bytes[(from - start) as usize..(to - start) as usize].copy_from_slice(piece);
            }
        }
    }

    /// True if the file stays as it is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

/// Says which bytes of an ELF file have to change for `request`, and where the slots are.
///
/// `bytes` is the file; of a large one only headers, the dynamic section and strings are touched. Whatever has neither
/// `PT_INTERP` nor needs nor a name (a static program, also a position-independent one) stays as it is, and so does
/// what has no segments. Every other file gets `DF_1_NODEFLIB`. glibc's C library forgets where the host has `iconv`'s
/// modules, and asks for its variables by their other names in any case. A file that came out of here can go in again.
///
/// # Errors
/// See [`RewriteError`].
pub fn rewrite(bytes: &[u8], request: &Request) -> Result<Edits, RewriteError> {
    let image = Image::read(bytes)?;
    if request.is_loader {
        return Ok(loader::patch(&image));
    }
    let dynamic = Dynamic::read(&image)?;
    let interpreter = request.interpreter.as_deref();
    if interpreter.is_some() && image.segment(PT_INTERP).is_none() {
        return Err(RewriteError::NoInterpreter);
    }
    if dynamic.is_empty() && !request.rpath.is_empty() {
        return Err(RewriteError::NoDynamicSection);
    }
    let changes_dynamic = !dynamic.is_empty() && !dynamic.is_static(&image);
    let is_libc = dynamic.is_libc(&image);
    let asked = |variable: &&Variable| match variable.reader {
        Reader::Libc => is_libc,
        Reader::Interpreter | Reader::Anyone => request.variables.contains(variable),
    };
    let symbols = dynamic.strings_range(&image);
    let renamed: Vec<_> =
        VARIABLES.iter().filter(asked).flat_map(|one| one.renamed_in(&image, symbols.clone())).collect();
    let rpath = request.rpath.join(&b':');
    let mut job = Job { source: bytes, image, tail: None, edits: Draft::default() };
    job.edits.writes.extend(renamed);
    if is_libc {
        job.edits.writes.extend(loader::without_modules(bytes));
    }
    job.change(interpreter, changes_dynamic.then_some((dynamic, rpath)))?;
    job.finish()
}

/// Bytes of a text with its NUL and with room for the tree's path, if that shall be filled in.
fn room(text: &[u8], most: usize) -> usize {
    let folders = text.split(|&byte| byte == b':');
    let trees = folders.filter(|folder| {
        folder.strip_prefix(TREE.as_bytes()).is_some_and(|rest| rest.first().is_none_or(|&byte| byte == b'/'))
    });
    let least = text.len() + 1;
    let wanted = least + trees.count() * (TREE_ROOM - TREE.len());
    least.max(wanted.min(most))
}

/// True if there is a tree's path to fill in.
fn is_slot(text: &[u8]) -> bool {
    room(text, usize::MAX) > text.len() + 1
}

/// Where a text comes to stand.
enum Spot {
    /// In the file, over what is there; and the bytes that it may take, with its NUL.
    Here(u64, usize),
    /// In the segment at the end.
    Tail,
}

/// Bytes to write, and slots.
#[derive(Default)]
struct Draft {
    writes: Vec<(u64, Vec<u8>)>,
    slots: Vec<Slot>,
}

impl Draft {
    /// Writes `text` over the `room` bytes at `at`.
    fn text(&mut self, at: u64, text: &[u8], room: usize) {
        self.writes.push((at, padded(text, room)));
        self.slot(at, text, room);
    }

    /// Notes that `text` stands at `at`, with its NUL in `room` bytes; a slot if it names the tree.
    fn slot(&mut self, at: u64, text: &[u8], room: usize) {
        let length = u32::try_from(room.saturating_sub(1)).unwrap_or(u32::MAX);
        if is_slot(text) {
            self.slots.push(Slot { at, length });
        }
    }
}

/// `text`, with NUL up to `room` bytes.
fn padded(text: &[u8], room: usize) -> Vec<u8> {
    let mut bytes = text.to_vec();
    bytes.resize(room.max(text.len()), 0);
    bytes
}

/// One file at work: its headers as they will be, and what is to be written.
struct Job<'a> {
    source: &'a [u8],
    image: Image<'a>,
    tail: Option<Tail>,
    edits: Draft,
}

impl Job<'_> {
    /// Does what is asked for. Places are chosen first, as they say whether there has to be a new segment.
    fn change(
        &mut self,
        interpreter: Option<&[u8]>,
        dynamic: Option<(Dynamic, Vec<u8>)>,
    ) -> Result<(), RewriteError> {
        let rpath_spot = match &dynamic {
            Some((dynamic, rpath)) if !rpath.is_empty() => Some(self.rpath_spot(dynamic, rpath)?),
            _ => None,
        };
        let dynamic = dynamic.map(|(old, rpath)| (old.changed(!rpath.is_empty()), rpath));
        let grows = dynamic.as_ref().is_some_and(|(dynamic, _)| !dynamic.fits());
        let must_append = grows || matches!(rpath_spot, Some(Spot::Tail));
        let interpreter_spot = match interpreter {
            Some(path) => Some((path, self.interpreter_spot(path, must_append)?)),
            None => None,
        };
        if must_append || matches!(interpreter_spot, Some((_, Spot::Tail))) {
            self.tail = Some(Tail::open(&mut self.image)?);
        }
        if let Some((path, spot)) = interpreter_spot {
            self.put_interpreter(path, &spot)?;
        }
        if let Some((mut dynamic, rpath)) = dynamic {
            if let Some(spot) = rpath_spot {
                self.put_rpath(&mut dynamic, &rpath, &spot)?;
            }
            self.put_dynamic(&dynamic)?;
        }
        Ok(())
    }

    /// A slot that an earlier run made serves again. So does the text's own place, if the file has to change nowhere
    /// else; else the table of program headers may need it.
    fn interpreter_spot(&self, path: &[u8], must_append: bool) -> Result<Spot, RewriteError> {
        let most = INTERPRETER_MAX;
        if path.len() + 1 > most {
            return Err(RewriteError::InterpreterTooLong(path.len(), most - 1));
        }
        let segment = self.image.segment(PT_INTERP).ok_or(RewriteError::NoInterpreter)?;
        let there = self.image.slice(segment.p_offset, segment.p_filesz);
        let there = there.ok_or(RewriteError::Malformed("PT_INTERP"))?.len().min(most);
        let is_free = self.image.in_own_tail(segment.p_offset) || !must_append;
        let serves = is_free && there >= room(path, most);
        Ok(if serves { Spot::Here(segment.p_offset, there) } else { Spot::Tail })
    }

    fn rpath_spot(&self, dynamic: &Dynamic, text: &[u8]) -> Result<Spot, RewriteError> {
        if text.len() + 1 > RPATH_MAX {
            return Err(RewriteError::RpathTooLong(text.len(), RPATH_MAX - 1));
        }
        let Some((at, old)) = dynamic.rpath(&self.image) else { return Ok(Spot::Tail) };
        if self.image.in_own_tail(at) {
            let there = self.image.padding(at + old.len() as u64).saturating_add(old.len()).min(RPATH_MAX);
            let serves = there >= room(text, RPATH_MAX);
            return Ok(if serves { Spot::Here(at, there) } else { Spot::Tail });
        }
        Ok(match part(old, text) {
            Some(skipped) if !is_slot(text) => Spot::Here(at + skipped as u64, text.len() + 1),
            _ => Spot::Tail,
        })
    }

    fn put_interpreter(&mut self, path: &[u8], spot: &Spot) -> Result<(), RewriteError> {
        match (spot, &mut self.tail) {
            (Spot::Tail, Some(tail)) => {
                let room = room(path, INTERPRETER_MAX);
                let place = tail.push(&padded(path, room), 1)?;
                tail.moves(&mut self.image, PT_INTERP, place, room as u64);
                self.edits.slot(place.offset, path, room);
            }
            (Spot::Here(at, there), _) => self.edits.text(*at, path, *there),
            (Spot::Tail, None) => {}
        }
        Ok(())
    }

    fn put_rpath(&mut self, dynamic: &mut Dynamic, text: &[u8], spot: &Spot) -> Result<(), RewriteError> {
        let address = match (spot, &mut self.tail) {
            (Spot::Tail, Some(tail)) => {
                let strings =
                    dynamic.strings(&self.image).filter(|strings| strings.len() as u64 <= STRINGS_MAX);
                let room = room(text, RPATH_MAX);
                let strings = strings.unwrap_or_default();
                let place = tail.push(&[strings, &padded(text, room)].concat(), 1)?;
                // What comes next may begin with NULs; a later run shall not take them for padding of the text.
                tail.push(b"\x7f", 1)?;
                if !strings.is_empty() {
                    tail.moves_strings(&self.image, dynamic, place, (strings.len() + room) as u64);
                }
                self.edits.slot(place.offset + strings.len() as u64, text, room);
                place.address + strings.len() as u64
            }
            (Spot::Here(at, there), _) => {
                self.edits.text(*at, text, *there);
                self.image.address_of(*at).ok_or(RewriteError::Malformed("string table"))?
            }
            (Spot::Tail, None) => return Ok(()),
        };
        dynamic.set_rpath(address)
    }

    fn put_dynamic(&mut self, dynamic: &Dynamic) -> Result<(), RewriteError> {
        match &mut self.tail {
            Some(tail) if !dynamic.fits() => {
                let bytes = dynamic.encode(&self.image, dynamic.len() + 2);
                let place = tail.push(&bytes, 16)?;
                tail.moves(&mut self.image, PT_DYNAMIC, place, bytes.len() as u64);
            }
            _ => {
                let bytes = dynamic.encode(&self.image, dynamic.capacity());
                self.edits.writes.push((dynamic.offset(), bytes));
            }
        }
        Ok(())
    }

    /// Writes the headers down, leaves out what changes nothing. Where headers lie about what is where, writes may meet.
    fn finish(mut self) -> Result<Edits, RewriteError> {
        let mut length = self.source.len() as u64;
        if let Some(tail) = self.tail {
            length = tail.close(&mut self.image, &mut self.edits.writes)?;
        }
        let mut writes = self.edits.writes;
        writes.sort_unstable();
        let ends = writes.iter().map(|(at, new)| at.saturating_add(new.len() as u64));
        let limits = writes.iter().skip(1).map(|(at, _)| *at).chain([length]);
        if ends.zip(limits).any(|(end, limit)| end > limit) {
            return Err(RewriteError::Malformed("layout"));
        }
        let source = self.source;
        writes.retain(|(at, new)| {
            let old = usize::try_from(*at).ok().and_then(|at| source.get(at..at.checked_add(new.len())?));
            old != Some(new.as_slice())
        });
        self.edits.slots.sort_unstable();
        Ok(Edits { length, writes, slots: self.edits.slots, unpatched: Vec::new() })
    }
}

/// How many bytes of the search path `old` come before `text`, if that is a run of its folders. The NUL that then ends it
/// early takes the place of a colon, which no other string that shares this end can contain.
fn part(old: &[u8], text: &[u8]) -> Option<usize> {
    let mut starts = (0..old.len()).filter(|&at| at == 0 || old.get(at - 1) == Some(&b':'));
    starts.find(|&at| {
        let rest = old.get(at..).and_then(|rest| rest.strip_prefix(text));
        rest.is_some_and(|rest| rest.first().is_none_or(|&byte| byte == b':'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_has_room_for_each_tree_in_it() {
        assert_eq!(room(b"/kitbag-tree/lib:/kitbag-tree", 8192), 30 + 2 * (1024 - 12));
        assert_eq!(room(b"/kitbag-trees:/x/kitbag-tree", 8192), 29);
        assert_eq!(room([&b"/kitbag-tree"[..]; 20].join(&b':').as_slice(), 8192), 8192);
    }

    #[test]
    fn a_run_of_folders_is_found_in_a_search_path() {
        assert_eq!(part(b"/a:$ORIGIN/x:/b", b"$ORIGIN/x"), Some(3));
        assert_eq!(part(b"/a:$ORIGIN/x:/b", b"/a:$ORIGIN/x"), Some(0));
        assert_eq!(part(b"/a:$ORIGIN/x:/b", b"$ORIGIN"), None);
        assert_eq!(part(b"/ab", b"b"), None);
    }
}
