//! Plan -> Payload: what the frames hold, cut by content, the same for the same inputs.
//!
//! [`lay_out`] is pure: it orders the tar, makes second names of equal files, and says what each frame is made of,
//! without contents.

use std::collections::HashMap;

use kitbag_format::digest::Digest;
use kitbag_format::index::{BLOCK, Entry, Kind};

use crate::plan::{PlanEntry, PlanKind};
use crate::scan::Scanned;
use crate::tar_header;

/// Least, average and most bytes of tar in a frame. Chosen by measuring: compressed at level 3, a Python of 60 MB
/// takes 0.99 of what one stream takes and a JDK with Python packages 1.005 of it, while `rsync` between two
/// versions stays within twice what it needs between plain tars. At 512 KiB on average it is 1.025 and 1.019, at
/// 256 KiB 1.05 and 1.035.
pub const FRAME: Bounds = Bounds { least: 1 << 20, average: 5 << 18, most: 2 << 20 };
/// Files from this size on have frames of their own, and are cut inside.
pub const LARGE: u64 = FRAME.least;

/// Bytes of tar in a frame.
pub struct Bounds {
    /// No frame but the last ends before.
    pub least: u64,
    /// What frames of small files tend to.
    pub average: u64,
    /// None is longer.
    pub most: u64,
}

/// The tar as entries and frames.
#[derive(Debug)]
pub struct Layout {
    /// For the index, in the order of the tar.
    pub entries: Vec<Entry>,
    /// What each frame is made of.
    pub frames: Vec<FramePlan>,
}

impl Layout {
    /// Bytes of tar in all frames.
    pub fn raw(&self) -> u64 {
        self.frames.iter().map(|frame| frame.raw).sum()
    }
}

/// One frame to be.
#[derive(Debug, Default)]
pub struct FramePlan {
    /// What it is made of, in order.
    pub pieces: Vec<Piece>,
    /// Bytes of tar.
    pub raw: u64,
}

/// A stretch of the tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// These bytes: headers, padding.
    Bytes(Vec<u8>),
    /// A part of the file with this number in the plan.
    Content {
        /// Number in the plan.
        file: usize,
        /// Where the part begins.
        start: u64,
        /// Its bytes.
        length: u64,
    },
}

impl FramePlan {
    /// What the frame will hold, without reading it: two frames with one key hold the same bytes.
    /// `compression` names the compressor and its settings.
    pub fn key(&self, scanned: &[Option<Scanned>], compression: &str) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(compression.as_bytes());
        for piece in &self.pieces {
            match piece {
                Piece::Bytes(bytes) => {
                    hasher.update(&(bytes.len() as u64).to_le_bytes()).update(&[0]).update(bytes);
                }
                Piece::Content { file, start, length } => {
                    let digest = scanned[*file].as_ref().map_or_else(Digest::default, |file| file.digest);
                    hasher
                        .update(&start.to_le_bytes())
                        .update(&[1])
                        .update(&length.to_le_bytes())
                        .update(&digest.0);
                }
            }
        }
        hasher.finalize().into()
    }
}

/// Orders the tar: folders first, then symbolic links, then files by path, each group as the plan has it sorted.
pub fn lay_out(plan: &[PlanEntry], scanned: &[Option<Scanned>]) -> Layout {
    let mut layout = Builder::default();
    let group = |number: &usize| match plan[*number].kind {
        PlanKind::Dir => 0,
        PlanKind::Symlink { .. } => 1,
        PlanKind::File { .. } => 2,
    };
    let mut order: Vec<usize> = (0..plan.len()).collect();
    order.sort_by_key(group);
    for number in order {
        layout.add(number, &plan[number], scanned[number].as_ref());
    }
    layout.finish()
}

#[derive(Default)]
struct Builder {
    entries: Vec<Entry>,
    frames: Vec<FramePlan>,
    open: FramePlan,
    /// Number in `entries` of the first file with these contents and this permission, with slots or without.
    first: HashMap<(Digest, bool, bool), usize>,
}

impl Builder {
    fn add(&mut self, number: usize, planned: &PlanEntry, scanned: Option<&Scanned>) {
        let (kind, content) = match (&planned.kind, scanned) {
            (PlanKind::Symlink { target }, _) => (Kind::Symlink(target.clone()), None),
            (PlanKind::File { executable, change, .. }, Some(file)) => {
                let slots = change.as_ref().map_or_else(Vec::new, |change| change.slots());
                let key = (file.digest, *executable, slots.is_empty());
                let known = self.first.get(&key).filter(|_| file.size() > 0);
                match known {
                    Some(first) => (Kind::Link(*first), None),
                    None => {
                        self.first.insert(key, self.entries.len());
                        let (size, digest, executable) = (file.size(), file.digest, *executable);
                        (Kind::File { size, digest, executable, slots }, Some(file))
                    }
                }
            }
            _ => (Kind::Dir, None),
        };
        let size = content.map_or(0, Scanned::size);
        let header = self.header(&planned.path, &kind);
        let whole = header.len() as u64 + size.next_multiple_of(BLOCK);
        if size >= LARGE || self.open.raw + whole > FRAME.most {
            self.cut();
        }
        self.entries.push(Entry { path: planned.path.clone(), kind, header: header.len() as u32 });
        self.push(header.len() as u64, Piece::Bytes(header));
        if let Some(file) = content {
            self.add_content(number, file);
        }
        if size >= LARGE || self.ends_after(&planned.path, whole) {
            self.cut();
        }
    }

    fn header(&self, path: &[u8], kind: &Kind) -> Vec<u8> {
        match kind {
            Kind::Link(to) => tar_header::bytes(path, kind, &self.entries[*to].path),
            Kind::Symlink(target) => tar_header::bytes(path, kind, target),
            _ => tar_header::bytes(path, kind, &[]),
        }
    }

    fn add_content(&mut self, file: usize, scanned: &Scanned) {
        let mut start = 0;
        for length in &scanned.cuts {
            if start > 0 {
                self.cut();
            }
            self.push(*length, Piece::Content { file, start, length: *length });
            start += length;
        }
        let padding = start.next_multiple_of(BLOCK) - start;
        if padding > 0 {
            self.push(padding, Piece::Bytes(vec![0; padding as usize]));
        }
    }

    /// Whether a shared frame ends behind an entry of so many bytes: by its path alone, so that neither an edit
    /// nor what is added or removed elsewhere moves another end. The chance grows with the entry, for an average
    /// of [`FRAME`], and fourfold beyond that.
    fn ends_after(&self, path: &[u8], whole: u64) -> bool {
        let mut dice = [0; 8];
        dice.copy_from_slice(&Digest::of(path).0[..8]);
        let dice = u128::from(u64::from_le_bytes(dice)) * u128::from(FRAME.average - FRAME.least);
        let chance = u128::from(if self.open.raw < FRAME.average { whole } else { 4 * whole }) << 64;
        self.open.raw >= FRAME.least && dice < chance
    }

    fn push(&mut self, length: u64, piece: Piece) {
        self.open.raw += length;
        if length > 0 {
            self.open.pieces.push(piece);
        }
    }

    fn cut(&mut self) {
        if self.open.raw > 0 {
            self.frames.push(std::mem::take(&mut self.open));
        }
    }

    fn finish(mut self) -> Layout {
        self.push(2 * BLOCK, Piece::Bytes(vec![0; 2 * BLOCK as usize]));
        self.cut();
        Layout { entries: self.entries, frames: self.frames }
    }
}
