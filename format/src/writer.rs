//! Writes a bundle: runtime, payload frames, then index, manifest and section table; last the head.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::digest::Digest;
use crate::elf::{self, Section};
use crate::error::Error;
use crate::index::{Frame, Index};
use crate::layout::{HEAD_LEN, HINT_TOOL, Head, Part, PartKind};

/// A bundle that is being written to an empty file.
pub struct Writer {
    file: File,
    runtime: Vec<u8>,
    head_at: usize,
    index: Index,
    /// Where the next frame goes.
    end: u64,
}

impl Writer {
    /// Begins a bundle with a bare runtime's bytes.
    pub fn new(file: File, runtime: &[u8], head_at: u64) -> Result<Self, Error> {
        let writer = Self {
            file,
            runtime: runtime.to_vec(),
            head_at: head_at as usize,
            index: Index::default(),
            end: runtime.len() as u64,
        };
        if writer
            .runtime
            .get(writer.head_at..writer.head_at + HEAD_LEN)
            .is_none_or(|head| head.iter().any(|b| *b != 0))
        {
            return Err(Error::NotABundle("the runtime has no empty head"));
        }
        Ok(writer)
    }

    /// Appends one frame to the payload.
    pub fn frame(&mut self, packed: &[u8], raw: u32, digest: Digest, key: Digest) -> Result<(), Error> {
        let at = self.place(Frame { packed: packed.len() as u32, raw, digest, key });
        put(&self.file, packed, at)
    }

    /// Appends one frame whose packed bytes the caller writes to the file, at the offset that is returned.
    pub fn place(&mut self, frame: Frame) -> u64 {
        self.index.frames.push(frame);
        let at = self.end;
        self.end += u64::from(frame.packed);
        at
    }

    /// Writes the rest: `manifest` is the text of a [`Manifest`](crate::Manifest), and may say more than that does.
    /// Returns the file, not yet synchronised, and the bundle digest.
    pub fn finish(
        mut self,
        index: Index,
        manifest: &str,
        is_tool: bool,
    ) -> Result<(File, Digest, Index), Error> {
        self.index.entries = index.entries;
        let listing = self.index.to_bytes();
        let payload_length: u64 = self.index.frames.iter().map(|frame| u64::from(frame.packed)).sum();
        // What no reader would take is not written: too many entries, a path that is not plain.
        Index::parse(&listing, payload_length)?;
        let mut parts = Parts::default();
        parts.add(PartKind::Runtime, self.runtime.len() as u64, Digest::default());
        let payload = parts.add(PartKind::Payload, payload_length, self.index.payload_digest());
        let listed = parts.add(PartKind::Index, listing.len() as u64, Digest::of(&listing));
        let described = parts.add(PartKind::Manifest, manifest.len() as u64, Digest::of(manifest.as_bytes()));
        let sections = [
            Section { name: ".kitbag.payload", range: payload },
            Section { name: ".kitbag.index", range: listed },
            Section { name: ".kitbag.manifest", range: described },
        ];
        let table = elf::extend_sections(&mut self.runtime, &sections, parts.end)
            .ok_or(Error::NotABundle("the runtime has no section table"))?;
        parts.add(PartKind::Sections, table.len() as u64, Digest::of(&table));
        let Parts { end, mut parts } = parts;
        parts[0].digest = Digest::of(&self.runtime);
        let hints = if is_tool { HINT_TOOL } else { 0 };
        let head = Head { refuse: 0, hints, file_length: end, digest: Digest::default(), parts };
        let (head, digest) = head.to_bytes();
        put(&self.file, &[&listing, manifest.as_bytes(), &table].concat(), self.end)?;
        self.runtime[self.head_at..self.head_at + HEAD_LEN].copy_from_slice(&head);
        put(&self.file, &self.runtime, 0)?;
        Ok((self.file, digest, self.index))
    }
}

/// Writes a piece of the bundle at its place.
pub fn put(file: &File, bytes: &[u8], at: u64) -> Result<(), Error> {
    file.write_all_at(bytes, at).map_err(Error::io("write the bundle"))
}

/// Parts laid one behind the other.
#[derive(Default)]
struct Parts {
    end: u64,
    parts: Vec<Part>,
}

impl Parts {
    fn add(&mut self, kind: PartKind, length: u64, digest: Digest) -> Range<u64> {
        let offset = self.end;
        self.parts.push(Part { kind, flags: 0, offset, length, digest });
        self.end += length;
        offset..self.end
    }
}
