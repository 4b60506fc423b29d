//! The files of a bundle, one after the other and on all cores, in memory: nothing is unpacked to disk.

use std::ops::Range;

use kitbag_format::error::Region;
use kitbag_format::index::{Index, Kind, Span};
use kitbag_format::{Bundle, Error};
use rayon::prelude::*;

/// What tells an ELF file from others stands in its first bytes, a script's first line in its first page.
const BEGIN: u64 = 4096;
/// A larger program is not read: each core would have one in memory, and small files may claim to hold large ones.
pub const LARGEST: u64 = 512 << 20;
/// What an ELF file begins with (elf(5)).
const ELF_MAGIC: &[u8] = b"\x7fELF";

/// Calls `look` with the number and the bytes of every regular file: all bytes of an ELF file up to [`LARGEST`], of
/// another one at least its first 4096. Results come in the order of the index.
pub fn map<T: Send>(
    bundle: &Bundle,
    index: &Index,
    look: impl Fn(usize, &[u8]) -> Option<T> + Sync,
) -> Result<Vec<T>, Error> {
    let files = Files { bundle, index, spans: index.spans().collect(), frames: frames(bundle, index)? };
    let found: Result<Vec<Vec<T>>, Error> = (0..files.frames.len())
        .into_par_iter()
        .map_init(zstd_safe::DCtx::create, |decoder, frame| files.begun_in(decoder, frame, &look))
        .collect();
    Ok(found?.into_iter().flatten().collect())
}

/// A frame: its place in the file, and what it holds of the tar.
struct Held {
    at: u64,
    tar: Range<u64>,
}

fn frames(bundle: &Bundle, index: &Index) -> Result<Vec<Held>, Error> {
    let mut start = 0;
    let places = bundle.frame_places(index)?.into_iter().zip(&index.frames);
    let held = places.map(|(at, frame)| {
        let tar = start..start + u64::from(frame.raw);
        start = tar.end;
        Held { at, tar }
    });
    Ok(held.collect())
}

struct Files<'a> {
    bundle: &'a Bundle,
    index: &'a Index,
    spans: Vec<Span>,
    frames: Vec<Held>,
}

impl Files<'_> {
    /// What `look` says of the files whose contents begin in one frame.
    fn begun_in<T>(
        &self,
        decoder: &mut zstd_safe::DCtx,
        frame: usize,
        look: &impl Fn(usize, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let held = &self.frames[frame].tar;
        let first = self.spans.partition_point(|span| span.start < held.start);
        let behind = self.spans.partition_point(|span| span.start < held.end);
        let is_file = |number: &usize| {
            matches!(self.index.entries[*number].kind, Kind::File { .. }) && !self.spans[*number].is_empty()
        };
        let mut numbers = (first..behind).filter(is_file).peekable();
        if numbers.peek().is_none() {
            return Ok(Vec::new());
        }
        let mut bytes = Stretch { start: held.start, bytes: Vec::new(), next: frame };
        let mut found = Vec::new();
        for number in numbers {
            let span = self.spans[number].clone();
            self.extend(decoder, &mut bytes, span.end.min(span.start + BEGIN))?;
            if bytes.of(&span).starts_with(ELF_MAGIC) && span.end - span.start <= LARGEST {
                self.extend(decoder, &mut bytes, span.end)?;
            }
            found.extend(look(number, bytes.of(&span)));
        }
        Ok(found)
    }

    /// Makes the stretch reach up to this place of the tar.
    fn extend(&self, decoder: &mut zstd_safe::DCtx, stretch: &mut Stretch, end: u64) -> Result<(), Error> {
        let mut packed = Vec::new();
        while stretch.end() < end {
            let Some((frame, held)) = self.index.frames.get(stretch.next).zip(self.frames.get(stretch.next))
            else {
                return Ok(());
            };
            packed.resize(packed.len().max(frame.packed as usize), 0);
            let packed = self.bundle.read_frame(stretch.next, held.at, frame, &mut packed)?;
            let (before, length) = (stretch.bytes.len(), frame.raw as usize);
            stretch.bytes.resize(before + length, 0);
            match decoder.decompress(&mut stretch.bytes[before..], packed) {
                Ok(found) if found == length => stretch.next += 1,
                _ => {
                    let part = Region::Frame(stretch.next);
                    return Err(Error::Malformed { part, what: "is no zstd frame of its length" });
                }
            }
        }
        Ok(())
    }
}

/// Some frames' bytes of the tar, one after the other.
struct Stretch {
    start: u64,
    bytes: Vec<u8>,
    /// The frame that comes next.
    next: usize,
}

impl Stretch {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// What is there of a span.
    fn of(&self, span: &Span) -> &[u8] {
        let place = |at: u64| usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX);
        self.bytes.get(place(span.start)..place(span.end.min(self.end()))).unwrap_or_default()
    }
}
