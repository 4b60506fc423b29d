//! The index: every frame and every file of the payload. See `docs/format.md`.
//!
//! Nothing in it is an absolute offset, so that an entry's bytes stay what they are when its neighbours
//! change, and a delta transfer finds them again.

use std::collections::HashMap;
use std::ops::Range;

use crate::digest::Digest;
use crate::error::{Error, Region};
use crate::layout::PartKind;
use crate::slots::{MAX_SLOT, MAX_SLOTS, Pad, Slot};

/// Tar's block, in bytes: headers and contents are padded to it.
pub const BLOCK: u64 = 512;
/// Most bytes that one frame may unpack to.
pub const MAX_FRAME: u32 = 8 << 20;
/// Longest path in the tree, in bytes: leaves room for the store's own path within `PATH_MAX`.
pub const MAX_PATH: usize = 3072;
/// Most entries of an index.
pub const MAX_ENTRIES: usize = 4 << 20;
/// Most bytes of all paths together. Without it a few bytes of index could ask for gigabytes of memory, since a
/// path can repeat the one before.
pub const MAX_PATHS: usize = 512 << 20;
/// Most slots of all files together: their texts are held in memory.
pub const MAX_ALL_SLOTS: usize = 1 << 16;

/// What a file's kind byte has on top where it has slots.
const WITH_SLOTS: u8 = 4;

/// The parsed index.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    /// The payload's frames, in order.
    pub frames: Vec<Frame>,
    /// The tree's entries, in the order of the tar.
    pub entries: Vec<Entry>,
}

/// One zstd frame of the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Bytes in the file.
    pub packed: u32,
    /// Bytes of the tar.
    pub raw: u32,
    /// Digest of the packed bytes.
    pub digest: Digest,
    /// What the raw bytes are made of: equal keys under equal compression give equal packed bytes.
    pub key: Digest,
}

/// One file, folder or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path in the tree: relative, normal, not empty.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Bytes of its tar headers.
    pub header: u32,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Dir,
    /// A regular file with contents of its own.
    File {
        /// Bytes.
        size: u64,
        /// Digest of its contents as they were packed.
        digest: Digest,
        /// Whether anyone may execute it.
        executable: bool,
        /// Where the tree's path goes in when it is unpacked, in order.
        slots: Vec<Slot>,
    },
    /// A symbolic link; the target is relative and stays in the tree.
    Symlink(Vec<u8>),
    /// Another name for an earlier file: the number of its entry.
    Link(usize),
}

/// Where an entry's contents are in the tar, in bytes.
pub type Span = Range<u64>;

impl Entry {
    /// Bytes of contents in the tar, without padding.
    pub const fn size(&self) -> u64 {
        match self.kind {
            Kind::File { size, .. } => size,
            _ => 0,
        }
    }

    /// Where the tree's path goes into its contents.
    pub fn slots(&self) -> &[Slot] {
        match &self.kind {
            Kind::File { slots, .. } => slots,
            _ => &[],
        }
    }
}

impl Index {
    /// Where each entry's contents are in the tar.
    pub fn spans(&self) -> impl Iterator<Item = Span> + '_ {
        let mut at = 0u64;
        self.entries.iter().map(move |entry| {
            let start = at + u64::from(entry.header);
            let end = start + entry.size();
            at = end.next_multiple_of(BLOCK);
            start..end
        })
    }

    /// Bytes of the whole tar, its two closing blocks included.
    pub fn tar_length(&self) -> u64 {
        let contents: u64 =
            self.entries.iter().map(|e| u64::from(e.header) + e.size().next_multiple_of(BLOCK)).sum();
        contents + 2 * BLOCK
    }

    /// Bytes of all files' contents, a second name not counted.
    pub fn content_length(&self) -> u64 {
        self.entries.iter().map(Entry::size).sum()
    }

    /// The digest that stands for the whole payload in the head.
    pub fn payload_digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for frame in &self.frames {
            hasher.update(&frame.digest.0);
        }
        hasher.finalize().into()
    }

    /// The number of the entry at `path`.
    pub fn find(&self, path: &[u8]) -> Option<usize> {
        self.entries.iter().position(|entry| entry.path == path)
    }

    /// Size, digest and executability of the file that an entry's contents belong to: itself, or what it links to.
    pub fn file(&self, number: usize) -> Option<(u64, Digest, bool)> {
        match self.entries.get(self.owner(number))?.kind {
            Kind::File { size, digest, executable, .. } => Some((size, digest, executable)),
            _ => None,
        }
    }

    /// The number of the entry that an entry's contents belong to: what it is a second name of, or itself.
    pub fn owner(&self, number: usize) -> usize {
        match self.entries.get(number).map(|entry| &entry.kind) {
            Some(Kind::Link(to)) => *to,
            _ => number,
        }
    }

    /// The slots of an entry's contents.
    pub fn slots(&self, number: usize) -> &[Slot] {
        self.entries.get(self.owner(number)).map_or(&[], Entry::slots)
    }

    /// The bytes of section `.kitbag.index`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, self.frames.len() as u64);
        for frame in &self.frames {
            put(&mut out, u64::from(frame.packed));
            put(&mut out, u64::from(frame.raw));
            out.extend_from_slice(&frame.digest.0);
            out.extend_from_slice(&frame.key.0);
        }
        put(&mut out, self.entries.len() as u64);
        let mut before: &[u8] = &[];
        for (number, entry) in self.entries.iter().enumerate() {
            let shared = before.iter().zip(&entry.path).take_while(|(a, b)| a == b).count();
            out.push(match entry.kind {
                Kind::Dir => 0,
                Kind::File { executable, ref slots, .. } => {
                    1 + u8::from(executable) + if slots.is_empty() { 0 } else { WITH_SLOTS }
                }
                Kind::Symlink(_) => 3,
                Kind::Link(_) => 4,
            });
            put(&mut out, shared as u64);
            put_bytes(&mut out, &entry.path[shared..]);
            put(&mut out, u64::from(entry.header) / BLOCK);
            match &entry.kind {
                Kind::Dir => {}
                Kind::File { size, digest, slots, .. } => {
                    put(&mut out, *size);
                    out.extend_from_slice(&digest.0);
                    put_slots(&mut out, slots);
                }
                Kind::Symlink(target) => put_bytes(&mut out, target),
                Kind::Link(to) => put(&mut out, (number - to) as u64),
            }
            before = &entry.path;
        }
        out
    }

    /// Reads an index and makes sure that unpacking it can do no harm: paths are normal, unique and below
    /// folders of this index; links stay in the tree; the frames' lengths add up to the payload's and the tar's.
    pub fn parse(bytes: &[u8], payload_length: u64) -> Result<Self, Error> {
        let mut reader = Reader(bytes);
        let index = Self { frames: parse_frames(&mut reader)?, entries: parse_entries(&mut reader)? };
        if !reader.0.is_empty() {
            return Err(malformed("has bytes behind its end"));
        }
        check_tree(&index.entries)?;
        index.check_lengths(payload_length)?;
        Ok(index)
    }

    fn check_lengths(&self, payload_length: u64) -> Result<(), Error> {
        let packed: u64 = self.frames.iter().map(|frame| u64::from(frame.packed)).sum();
        if packed != payload_length {
            return Err(malformed("has frames that do not fill the payload"));
        }
        let mut tar = 2 * BLOCK;
        for entry in &self.entries {
            let size = entry.size().checked_next_multiple_of(BLOCK);
            tar = size
                .and_then(|size| tar.checked_add(size)?.checked_add(u64::from(entry.header)))
                .ok_or_else(|| malformed("has files without end"))?;
        }
        if self.frames.iter().map(|frame| u64::from(frame.raw)).sum::<u64>() != tar {
            return Err(malformed("has frames that do not fill the tar"));
        }
        Ok(())
    }
}

fn parse_frames(reader: &mut Reader) -> Result<Vec<Frame>, Error> {
    let count = reader.count(66)?;
    let mut frames = Vec::with_capacity(count);
    for _ in 0..count {
        let (packed, raw) = (reader.number()?, reader.number()?);
        // zstd's own bound on the growth of incompressible data is 1/256 and a little.
        if raw > u64::from(MAX_FRAME) || raw == 0 || packed > raw + (raw >> 8) + 1024 {
            return Err(malformed("has a frame of an impossible length"));
        }
        let (digest, key) = (reader.digest()?, reader.digest()?);
        frames.push(Frame { packed: packed as u32, raw: raw as u32, digest, key });
    }
    Ok(frames)
}

fn parse_entries(reader: &mut Reader) -> Result<Vec<Entry>, Error> {
    let count = reader.count(4)?;
    if count > MAX_ENTRIES {
        return Err(malformed("has too many entries"));
    }
    let mut entries: Vec<Entry> = Vec::with_capacity(count);
    let (mut paths, mut slots) = (0, 0);
    for number in 0..count {
        let tag = reader.byte()?;
        let before = entries.last().map_or(&[][..], |entry| &entry.path);
        let shared = usize::try_from(reader.number()?).unwrap_or(usize::MAX);
        let mut path =
            before.get(..shared).ok_or_else(|| malformed("shares more of a path than there is"))?.to_vec();
        path.extend_from_slice(reader.bytes(MAX_PATH)?);
        paths += path.len();
        if path.len() > MAX_PATH || paths > MAX_PATHS {
            return Err(malformed("has a path that is too long"));
        }
        let header = u32::try_from(reader.number()?.saturating_mul(BLOCK))
            .map_err(|_| malformed("has a header without end"))?;
        let kind = match tag {
            0 => Kind::Dir,
            1 | 2 | 5 | 6 => {
                let (size, digest, executable) = (reader.number()?, reader.digest()?, tag % WITH_SLOTS == 2);
                let slots = if tag > WITH_SLOTS { parse_slots(reader, size)? } else { Vec::new() };
                Kind::File { size, digest, executable, slots }
            }
            3 => Kind::Symlink(reader.bytes(MAX_PATH)?.to_vec()),
            4 => Kind::Link(
                usize::try_from(reader.number()?)
                    .ok()
                    .filter(|back| *back > 0)
                    .and_then(|back| number.checked_sub(back))
                    .ok_or_else(|| malformed("has a link to nothing"))?,
            ),
            _ => return Err(malformed("has an entry of an unknown kind")),
        };
        let entry = Entry { path, kind, header };
        slots += entry.slots().len();
        if slots > MAX_ALL_SLOTS {
            return Err(malformed("has too many slots"));
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// The slots of a file of so many bytes. Each says how far behind the one before it begins, so they are in order.
fn parse_slots(reader: &mut Reader, size: u64) -> Result<Vec<Slot>, Error> {
    let count = reader.count(3)?;
    if !(1..=MAX_SLOTS).contains(&count) {
        return Err(malformed("has a file with no slots or too many"));
    }
    let (mut slots, mut end) = (Vec::with_capacity(count), 0u64);
    for _ in 0..count {
        let (gap, length) = (reader.number()?, reader.number()?);
        let pad = match reader.byte()? {
            0 => Pad::Nul,
            1 => Pad::Space,
            _ => return Err(malformed("has a slot of an unknown kind")),
        };
        let at = end.saturating_add(gap);
        end = at.saturating_add(length);
        if !(1..=u64::from(MAX_SLOT)).contains(&length) || end > size {
            return Err(malformed("has a slot of an impossible length or place"));
        }
        slots.push(Slot { at, length: length as u32, pad });
    }
    Ok(slots)
}

fn put_slots(out: &mut Vec<u8>, slots: &[Slot]) {
    if !slots.is_empty() {
        put(out, slots.len() as u64);
    }
    let mut end = 0;
    for slot in slots {
        put(out, slot.at.wrapping_sub(end));
        put(out, u64::from(slot.length));
        out.push(u8::from(slot.pad == Pad::Space));
        end = slot.end();
    }
}

fn check_tree(entries: &[Entry]) -> Result<(), Error> {
    let mut known: HashMap<&[u8], bool> = HashMap::with_capacity(entries.len());
    for entry in entries {
        let path = entry.path.as_slice();
        if !is_normal(path) {
            return Err(malformed("has a path that is not plain: empty, absolute, or with `.` or `..`"));
        }
        if let Some(slash) = path.iter().rposition(|byte| *byte == b'/')
            && known.get(&path[..slash]) != Some(&true)
        {
            return Err(malformed("has an entry below something that is no folder"));
        }
        if known.insert(path, entry.kind == Kind::Dir).is_some() {
            return Err(malformed("has two entries for one path"));
        }
        match &entry.kind {
            Kind::Symlink(target) if !stays_inside(path, target) => {
                return Err(malformed("has a symbolic link that leaves the tree"));
            }
            Kind::Link(to) if !matches!(entries.get(*to).map(|e| &e.kind), Some(Kind::File { .. })) => {
                return Err(malformed("has a link to what is no file"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// True for a path that can be joined to a folder and stays below it: not empty, not absolute, no `.`, `..`,
/// empty component or NUL, no component over 255 bytes.
pub fn is_normal(path: &[u8]) -> bool {
    !path.contains(&0)
        && path
            .split(|byte| *byte == b'/')
            .all(|part| !part.is_empty() && part != b"." && part != b".." && part.len() <= 255)
}

/// True if a symbolic link at `path` with this target cannot lead out of the tree: relative, `..` only at its
/// start, and not more of them than the link lies deep. As every link of a tree obeys this, chains do too.
pub fn stays_inside(path: &[u8], target: &[u8]) -> bool {
    if target.is_empty() || target.contains(&0) || target[0] == b'/' {
        return false;
    }
    let depth = path.iter().filter(|byte| **byte == b'/').count();
    let mut rest =
        target.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").peekable();
    let mut up = 0;
    while rest.next_if(|part| *part == b"..").is_some() {
        up += 1;
    }
    up <= depth && rest.all(|part| part != b"..")
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(|| malformed("ends early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Error> {
        Ok(self.take(1)?[0])
    }

    /// An unsigned LEB128 number.
    fn number(&mut self) -> Result<u64, Error> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(malformed("has a number that is too large"))
    }

    /// A count of things that take at least `least` bytes each: bounded by what is left.
    fn count(&mut self, least: usize) -> Result<usize, Error> {
        usize::try_from(self.number()?)
            .ok()
            .filter(|count| count.saturating_mul(least) <= self.0.len())
            .ok_or_else(|| malformed("ends early"))
    }

    fn bytes(&mut self, most: usize) -> Result<&'a [u8], Error> {
        let length = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        if length > most {
            return Err(malformed("has a name that is too long"));
        }
        self.take(length)
    }

    fn digest(&mut self) -> Result<Digest, Error> {
        self.take(32).map(|bytes| Digest(crate::layout::array(bytes, 0)))
    }
}

const fn malformed(what: &'static str) -> Error {
    Error::Malformed { part: Region::Part(PartKind::Index), what }
}
