//! The head: 1,024 bytes that say where everything is, and root every digest. See `docs/format.md`.
//!
//! It is the content of an ELF note inside the runtime, so that it is found through the program headers,
//! survives `strip`, and is mapped in memory before the first instruction runs.

use crate::digest::Digest;
use crate::error::{Error, Region};

/// Length of the head in bytes. Fixed for all versions, like the place and rule of its digest.
pub const HEAD_LEN: usize = 1024;
/// The head's first bytes. A byte over 127 and a newline tell a transfer as text, as PNG's signature does.
pub const MAGIC: [u8; 8] = *b"\x89KITBAG\n";
/// Version of everything but the head itself.
pub const VERSION: u32 = 1;
/// Name in the ELF note.
pub const NOTE_NAME: &[u8] = b"kitbag\0";
/// Type of the ELF note.
pub const NOTE_TYPE: u32 = 1;
/// Hint bit: a tool bundle.
pub const HINT_TOOL: u32 = 1;
/// Refuse bits that this version understands.
pub const KNOWN_REFUSE: u32 = 0;
/// Flag of a part that a reader who does not know its kind must refuse.
pub const PART_REFUSE: u32 = 1;

const FIXED: usize = 64;
const PART: usize = 64;
/// Most parts that a head can list.
pub const MAX_PARTS: usize = (HEAD_LEN - FIXED) / PART;

/// What a part holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartKind {
    /// The supervisor's program, its head taken as zeros: section `.note.kitbag` and all before the payload.
    Runtime,
    /// zstd frames that together are a tar: section `.kitbag.payload`.
    Payload,
    /// Frames and files: section `.kitbag.index`.
    Index,
    /// JSON text: section `.kitbag.manifest`.
    Manifest,
    /// ELF section headers and their names.
    Sections,
    /// A kind this version does not know.
    Other(u32),
}

impl PartKind {
    const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Runtime,
            2 => Self::Payload,
            3 => Self::Index,
            4 => Self::Manifest,
            5 => Self::Sections,
            other => Self::Other(other),
        }
    }

    const fn number(self) -> u32 {
        match self {
            Self::Runtime => 1,
            Self::Payload => 2,
            Self::Index => 3,
            Self::Manifest => 4,
            Self::Sections => 5,
            Self::Other(number) => number,
        }
    }

    /// A word for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runtime => "runtime",
            Self::Payload => "payload",
            Self::Index => "index",
            Self::Manifest => "manifest",
            Self::Sections => "section table",
            Self::Other(_) => "part of an unknown kind",
        }
    }
}

/// A stretch of the file with its digest. Parts follow each other without gaps and fill the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What it holds.
    pub kind: PartKind,
    /// Bit 0: [`PART_REFUSE`].
    pub flags: u32,
    /// Where it begins in the file.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
    /// Digest of its bytes; of the payload, digest of its frames' digests.
    pub digest: Digest,
}

/// The parsed head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Features that a reader must know.
    pub refuse: u32,
    /// Features that a reader may ignore: [`HINT_TOOL`].
    pub hints: u32,
    /// The whole file's length in bytes.
    pub file_length: u64,
    /// The bundle digest: names the bundle. Zero in a head that is being written.
    pub digest: Digest,
    /// All parts, in the order of the file.
    pub parts: Vec<Part>,
}

impl Head {
    /// Reads a head: whole, known, and its parts in order without gaps.
    pub fn parse(bytes: &[u8; HEAD_LEN]) -> Result<Self, Error> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(Error::NotABundle("it is a bare runtime with nothing packed in it"));
        }
        let digest = Digest(array(bytes, 32));
        if bytes[..8] != MAGIC || digest != digest_of(bytes) {
            return Err(Error::Damaged { part: Region::Head, at: (0, HEAD_LEN as u64) });
        }
        let (version, refuse) = (u32_at(bytes, 8), u32_at(bytes, 12));
        if version != VERSION {
            return Err(Error::TooNew(format!("its format is version {version}, known is {VERSION}")));
        }
        if refuse & !KNOWN_REFUSE != 0 {
            return Err(Error::TooNew(format!("it needs features {:#x}", refuse & !KNOWN_REFUSE)));
        }
        let count = u32_at(bytes, 20) as usize;
        if count > MAX_PARTS {
            return Err(malformed("lists too many parts"));
        }
        let head = Self {
            refuse,
            hints: u32_at(bytes, 16),
            file_length: u64_at(bytes, 24),
            digest,
            parts: bytes[FIXED..].as_chunks::<PART>().0[..count].iter().map(parse_part).collect(),
        };
        head.check_parts()?;
        Ok(head)
    }

    fn check_parts(&self) -> Result<(), Error> {
        let mut at = 0u64;
        for part in &self.parts {
            if part.offset != at {
                return Err(malformed("has parts that overlap or leave a gap"));
            }
            at = at.checked_add(part.length).ok_or_else(|| malformed("has a part without end"))?;
            if let (PartKind::Other(number), PART_REFUSE) = (part.kind, part.flags & PART_REFUSE) {
                return Err(Error::TooNew(format!("it has a part of kind {number}")));
            }
        }
        if at != self.file_length {
            return Err(malformed("has parts that do not fill the file"));
        }
        if self.parts.first().is_none_or(|part| part.kind != PartKind::Runtime) {
            return Err(malformed("does not begin with the runtime"));
        }
        for kind in
            [PartKind::Runtime, PartKind::Payload, PartKind::Index, PartKind::Manifest, PartKind::Sections]
        {
            if self.parts.iter().filter(|part| part.kind == kind).count() != 1 {
                return Err(malformed("lacks a part, or has it twice"));
            }
        }
        Ok(())
    }

    /// The head's bytes with the bundle digest filled in, and that digest.
    pub fn to_bytes(&self) -> ([u8; HEAD_LEN], Digest) {
        let mut bytes = [0; HEAD_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        let words = [VERSION, self.refuse, self.hints, self.parts.len() as u32];
        for (slot, word) in bytes[8..24].as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *slot = word.to_le_bytes();
        }
        bytes[24..32].copy_from_slice(&self.file_length.to_le_bytes());
        for (slot, part) in bytes[FIXED..].as_chunks_mut::<PART>().0.iter_mut().zip(&self.parts) {
            slot[..4].copy_from_slice(&part.kind.number().to_le_bytes());
            slot[4..8].copy_from_slice(&part.flags.to_le_bytes());
            slot[8..16].copy_from_slice(&part.offset.to_le_bytes());
            slot[16..24].copy_from_slice(&part.length.to_le_bytes());
            slot[32..].copy_from_slice(&part.digest.0);
        }
        let digest = digest_of(&bytes);
        bytes[32..64].copy_from_slice(&digest.0);
        (bytes, digest)
    }

    /// The one part of this kind; [`Head::parse`] made sure that it is there.
    pub fn part(&self, kind: PartKind) -> Result<&Part, Error> {
        self.parts.iter().find(|part| part.kind == kind).ok_or_else(|| malformed("lacks a part"))
    }
}

fn parse_part(bytes: &[u8; PART]) -> Part {
    Part {
        kind: PartKind::from_number(u32_at(bytes, 0)),
        flags: u32_at(bytes, 4),
        offset: u64_at(bytes, 8),
        length: u64_at(bytes, 16),
        digest: Digest(array(bytes, 32)),
    }
}

fn digest_of(head: &[u8; HEAD_LEN]) -> Digest {
    let mut bytes = *head;
    bytes[32..64].fill(0);
    Digest::of(&bytes)
}

const fn malformed(what: &'static str) -> Error {
    Error::Malformed { part: Region::Head, what }
}

/// `N` bytes at `at`, zeros where `bytes` ends before.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}
