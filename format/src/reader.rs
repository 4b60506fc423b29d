//! A bundle that is there to be read: bytes of unknown origin in, verified parts out.
//!
//! Nothing is handed out before its digest was compared, and every digest hangs on the head's.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::digest::Digest;
use crate::elf;
use crate::error::{Error, Region};
use crate::index::{Frame, Index};
use crate::layout::{HEAD_LEN, HINT_TOOL, Head, MAGIC, Part, PartKind};
use crate::manifest::{KNOWN_REQUIREMENTS, Manifest};
use crate::parallel;

/// Most bytes of a runtime, an index, a manifest: what is read into memory whole.
const MOST_IN_MEMORY: u64 = 256 << 20;
/// How far a head is searched for when the program headers do not lead to it.
const SEARCH: usize = 4 << 20;

/// An open bundle whose head was verified.
#[derive(Debug)]
pub struct Bundle {
    file: File,
    head: Head,
    head_at: u64,
}

impl Bundle {
    /// Opens the file at `path`.
    pub fn open_path(path: &Path) -> Result<Self, Error> {
        let doing = || format!("open {}", path.display());
        let file = File::open(path).map_err(Error::io(doing()))?;
        Self::open(file)
    }

    /// Verifies the head and the file's length. Reads a few kilobytes, whatever the bundle's size.
    pub fn open(file: File) -> Result<Self, Error> {
        let metadata = file.metadata().map_err(Error::io("examine the bundle"))?;
        if !metadata.is_file() {
            return Err(Error::NotABundle("it is not a regular file"));
        }
        let length = metadata.len();
        let (head_at, head) = match elf::find_note(|at, length| elf::read(&file, at, length), length) {
            Ok(Some(note)) => (note.start, read_head(&file, note.start)?),
            Ok(None) => {
                let ordinary = Error::NotABundle("it is an ordinary executable, without kitbag's note");
                return Err(without_note(&file, length, ordinary));
            }
            Err(Error::Io { doing, source }) => return Err(Error::Io { doing, source }),
            Err(error) => return Err(without_note(&file, length, error)),
        };
        let bundle = Self { file, head, head_at };
        bundle.check_length(length)?;
        Ok(bundle)
    }

    fn check_length(&self, found: u64) -> Result<(), Error> {
        let expected = self.head.file_length;
        if found == expected {
            return Ok(());
        }
        let header = elf::read(&self.file, 0, elf::HEADER)?;
        if elf::section_table(&header) != self.head.part(PartKind::Sections)?.offset {
            return Err(Error::Rewritten);
        }
        Err(if found < expected {
            Error::Truncated { expected, found }
        } else {
            Error::Appended { expected, found }
        })
    }

    /// The head.
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// The bundle's name among all bundles.
    pub const fn digest(&self) -> Digest {
        self.head.digest
    }

    /// True for a tool bundle.
    pub const fn is_tool(&self) -> bool {
        self.head.hints & HINT_TOOL != 0
    }

    /// The runtime's bytes, with the head in place, once their digest was compared.
    pub fn runtime(&self) -> Result<Vec<u8>, Error> {
        let part = self.head.part(PartKind::Runtime)?;
        let mut bytes = self.part_bytes(part)?;
        let start = self.head_at as usize;
        let head = bytes.get_mut(start..start + HEAD_LEN).ok_or(Error::Rewritten)?;
        let kept: Vec<u8> = head.to_vec();
        head.fill(0);
        compare(part, &bytes)?;
        bytes[start..start + HEAD_LEN].copy_from_slice(&kept);
        Ok(bytes)
    }

    /// As [`Self::runtime`], piece by piece and without keeping it.
    fn verify_runtime(&self) -> Result<(), Error> {
        /// Small enough for a core's own cache, which a whole runtime is not.
        const PIECE: usize = 64 << 10;
        let part = self.head.part(PartKind::Runtime)?;
        let (mut hasher, mut buffer, mut done) = (blake3::Hasher::new(), vec![0; PIECE], 0);
        let head = self.head_at..self.head_at + HEAD_LEN as u64;
        if head.end > part.length {
            return Err(Error::Rewritten);
        }
        while done < part.length {
            let piece = &mut buffer[..usize::try_from(part.length - done).unwrap_or(PIECE).min(PIECE)];
            self.file.read_exact_at(piece, part.offset + done).map_err(Error::io("read the bundle"))?;
            // The digest is of the runtime as it is without a head.
            for at in head.start.max(done)..head.end.min(done + piece.len() as u64) {
                piece[(at - done) as usize] = 0;
            }
            hasher.update(piece);
            done += piece.len() as u64;
        }
        if Digest::from(hasher.finalize()) == part.digest { Ok(()) } else { Err(damaged(part)) }
    }

    /// The manifest as text.
    pub fn manifest_text(&self) -> Result<String, Error> {
        String::from_utf8(self.verified(PartKind::Manifest)?).map_err(|_| malformed("is not UTF-8"))
    }

    /// The manifest. One that needs what this reader does not know is refused.
    pub fn manifest(&self) -> Result<Manifest, Error> {
        let manifest = Manifest::from_text(&self.manifest_text()?)
            .map_err(|_| malformed("is not what kitbag writes"))?;
        if let Some(unknown) =
            manifest.requires.iter().find(|name| !KNOWN_REQUIREMENTS.contains(&name.as_str()))
        {
            return Err(Error::TooNew(format!("it requires `{unknown}`")));
        }
        if let Some(what) = manifest.fault() {
            return Err(malformed(what));
        }
        if manifest.is_tool() != self.is_tool() {
            return Err(malformed("and the head disagree on what the file is"));
        }
        Ok(manifest)
    }

    /// The index.
    pub fn index(&self) -> Result<Index, Error> {
        let payload = self.head.part(PartKind::Payload)?;
        let index = Index::parse(&self.verified(PartKind::Index)?, payload.length)?;
        if index.payload_digest() != payload.digest {
            return Err(damaged(payload));
        }
        Ok(index)
    }

    /// Everything but the payload: what a start relies on before it unpacks.
    pub fn verify_program(&self) -> Result<(), Error> {
        self.verify_runtime()?;
        self.verified(PartKind::Sections)?;
        for part in self.head.parts.iter().filter(|part| matches!(part.kind, PartKind::Other(_))) {
            compare(part, &self.part_bytes(part)?)?;
        }
        Ok(())
    }

    /// Every byte of the file, by `threads` threads.
    pub fn verify(&self, threads: usize) -> Result<(), Error> {
        self.verify_program()?;
        self.manifest()?;
        let index = self.index()?;
        let places: Vec<(u64, Frame)> = self.frame_places(&index)?.into_iter().zip(index.frames).collect();
        let next = AtomicUsize::new(0);
        parallel::run(threads.min(places.len()), || {
            let mut packed = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some((offset, frame)) = places.get(number) else { return Ok(()) };
                packed.resize(packed.len().max(frame.packed as usize), 0);
                self.read_frame(number, *offset, frame, &mut packed)?;
            }
        })
    }

    /// Where each frame begins in the file.
    pub fn frame_places(&self, index: &Index) -> Result<Vec<u64>, Error> {
        let mut at = self.head.part(PartKind::Payload)?.offset;
        Ok(index
            .frames
            .iter()
            .map(|frame| {
                let start = at;
                at += u64::from(frame.packed);
                start
            })
            .collect())
    }

    /// Reads the packed bytes of one frame into the beginning of `buffer`, which has room for them, and compares
    /// their digest.
    pub fn read_frame<'a>(
        &self,
        number: usize,
        offset: u64,
        frame: &Frame,
        buffer: &'a mut [u8],
    ) -> Result<&'a [u8], Error> {
        let length = frame.packed as usize;
        let packed = &mut buffer[..length];
        self.file.read_exact_at(packed, offset).map_err(Error::io("read the bundle"))?;
        if Digest::of(packed) != frame.digest {
            return Err(Error::Damaged {
                part: Region::Frame(number),
                at: (offset, u64::from(frame.packed)),
            });
        }
        Ok(packed)
    }

    fn verified(&self, kind: PartKind) -> Result<Vec<u8>, Error> {
        let part = self.head.part(kind)?;
        let bytes = self.part_bytes(part)?;
        compare(part, &bytes)?;
        Ok(bytes)
    }

    fn part_bytes(&self, part: &Part) -> Result<Vec<u8>, Error> {
        if part.length > MOST_IN_MEMORY {
            return Err(Error::Malformed {
                part: Region::Part(part.kind),
                what: "is larger than any bundle's",
            });
        }
        elf::read(&self.file, part.offset, part.length as usize)
    }
}

fn read_head(file: &File, offset: u64) -> Result<Head, Error> {
    let bytes = elf::read(file, offset, HEAD_LEN)?;
    match <&[u8; HEAD_LEN]>::try_from(bytes.as_slice()) {
        Ok(bytes) => Head::parse(bytes),
        Err(_) => Err(Error::NotABundle("its note is too short to be a bundle's head")),
    }
}

/// No note leads to a head, for the reason of `error`. If there is a whole one all the same, the file is one of
/// ours: cut short, or the ELF headers or the note are damaged.
fn without_note(file: &File, found: u64, error: Error) -> Error {
    let bytes = elf::read(file, 0, SEARCH).unwrap_or_default();
    let whole = bytes
        .windows(HEAD_LEN)
        .filter(|window| window.starts_with(&MAGIC))
        .find_map(|window| Head::parse(window.try_into().ok()?).ok());
    match whole.as_ref().map(|head| (head.file_length, head.part(PartKind::Runtime))) {
        Some((expected, _)) if found < expected => Error::Truncated { expected, found },
        Some((_, Ok(part))) => damaged(part),
        _ => error,
    }
}

fn compare(part: &Part, bytes: &[u8]) -> Result<(), Error> {
    if Digest::of(bytes) == part.digest { Ok(()) } else { Err(damaged(part)) }
}

const fn damaged(part: &Part) -> Error {
    Error::Damaged { part: Region::Part(part.kind), at: (part.offset, part.length) }
}

const fn malformed(what: &'static str) -> Error {
    Error::Malformed { part: Region::Part(PartKind::Manifest), what }
}
