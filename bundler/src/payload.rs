//! Plan -> Payload: what the frames hold, cut by content, the same for the same inputs.
//!
//! Two steps. [`scan`] reads every file once, in parallel, for its digest and its cuts. [`lay_out`] is pure: it
//! orders the tar, makes second names of equal files, and says what each frame is made of, without contents.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kitbag_format::digest::Digest;
use kitbag_format::index::{BLOCK, Entry, Kind};
use rayon::prelude::*;

use crate::plan::{PlanEntry, PlanKind};
use crate::tar_header;

/// Files from this size on are cut inside and have frames of their own.
pub const LARGE: u64 = 512 << 10;
/// Least, average and most bytes of a cut inside a large file.
const CUTS: (usize, usize, usize) = (256 << 10, 512 << 10, 2 << 20);
/// Small files share a frame of at least and at most so many bytes of tar, a file's own length aside…
const SHARED: (u64, u64) = (256 << 10, 2 << 20);
/// …which ends after one file in so many, chosen by name and contents, once it has its least size. A typical
/// file of an interpreter's library has 10 KB.
const SHARED_ENDS: u64 = 32;

/// A file that could not be packed, and why.
#[derive(Debug)]
pub struct Unreadable {
    /// The file.
    pub path: PathBuf,
    /// Why, as a sentence's end.
    pub why: String,
}

/// What a file held when it was read first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// Digest of the contents.
    pub digest: Digest,
    /// Lengths of the cuts, for a large file; they add up to its size.
    pub cuts: Vec<u64>,
    /// Size, modification and change time: what must be the same when it is read again.
    pub seen: Seen,
}

/// Size, and modification and change time in seconds and nanoseconds.
pub type Seen = (u64, i64, i64, i64, i64);

/// What identifies a file's state.
pub fn seen(file: &File) -> std::io::Result<Seen> {
    let m = file.metadata()?;
    Ok((m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()))
}

/// Reads every file of the plan. `None` for what is no file.
pub fn scan(entries: &[PlanEntry]) -> Result<Vec<Option<Scanned>>, Unreadable> {
    entries
        .par_iter()
        .map(|entry| match &entry.kind {
            PlanKind::File { source, size, .. } => scan_file(source, *size).map(Some),
            _ => Ok(None),
        })
        .collect()
}

fn scan_file(path: &Path, planned: u64) -> Result<Scanned, Unreadable> {
    let unreadable = |why: String| Unreadable { path: path.to_owned(), why };
    let failed = |error: std::io::Error| unreadable(error.to_string());
    let mut file = File::open(path).map_err(failed)?;
    let seen = seen(&file).map_err(failed)?;
    if seen.0 != planned {
        return Err(unreadable("it changed while it was packed".to_owned()));
    }
    let mut hasher = blake3::Hasher::new();
    let mut cuts = Vec::new();
    if planned >= LARGE {
        let (least, average, most) = CUTS;
        for chunk in fastcdc::v2020::StreamCDC::new(&mut file, least, average, most) {
            let chunk = chunk.map_err(|error| unreadable(error.to_string()))?;
            hasher.update(&chunk.data);
            cuts.push(chunk.length as u64);
        }
    } else {
        let mut bytes = Vec::with_capacity(planned as usize + 1);
        file.read_to_end(&mut bytes).map_err(failed)?;
        hasher.update(&bytes);
        cuts.push(bytes.len() as u64);
    }
    if cuts.iter().sum::<u64>() != planned {
        return Err(unreadable("it changed while it was packed".to_owned()));
    }
    Ok(Scanned { digest: hasher.finalize().into(), cuts, seen })
}

/// The tar as entries and frames.
#[derive(Debug)]
pub struct Layout {
    /// For the index, in the order of the tar.
    pub entries: Vec<Entry>,
    /// What each frame is made of.
    pub frames: Vec<FramePlan>,
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
    /// Number in `entries` of the first file with these contents and this permission.
    first: HashMap<(Digest, bool), usize>,
}

impl Builder {
    fn add(&mut self, number: usize, planned: &PlanEntry, scanned: Option<&Scanned>) {
        match (&planned.kind, scanned) {
            (PlanKind::Symlink { target }, _) => {
                self.add_header(&planned.path, Kind::Symlink(target.clone()))
            }
            (PlanKind::File { executable, size, .. }, Some(file)) => {
                let known = self.first.get(&(file.digest, *executable)).filter(|_| *size > 0);
                if let Some(first) = known.copied() {
                    return self.add_header(&planned.path, Kind::Link(first));
                }
                self.first.insert((file.digest, *executable), self.entries.len());
                let kind = Kind::File { size: *size, digest: file.digest, executable: *executable };
                self.add_header(&planned.path, kind);
                self.add_content(number, &planned.path, file);
            }
            _ => self.add_header(&planned.path, Kind::Dir),
        }
    }

    fn add_header(&mut self, path: &[u8], kind: Kind) {
        let link = match &kind {
            Kind::Link(to) => self.entries[*to].path.clone(),
            Kind::Symlink(target) => target.clone(),
            _ => Vec::new(),
        };
        let header = tar_header::bytes(path, &kind, &link);
        self.entries.push(Entry { path: path.to_vec(), kind, header: header.len() as u32 });
        self.push(header.len() as u64, Piece::Bytes(header));
    }

    fn add_content(&mut self, file: usize, path: &[u8], scanned: &Scanned) {
        let size = scanned.seen.0;
        let large = size >= LARGE;
        if large {
            self.cut();
        }
        let mut start = 0;
        for length in &scanned.cuts {
            if start > 0 {
                self.cut();
            }
            self.push(*length, Piece::Content { file, start, length: *length });
            start += length;
        }
        let padding = size.next_multiple_of(BLOCK) - size;
        if padding > 0 {
            self.push(padding, Piece::Bytes(vec![0; padding as usize]));
        }
        if large || self.ends_after(path, &scanned.digest) {
            self.cut();
        }
    }

    /// Whether a shared frame ends behind this file: by its name and contents alone, so that what is added or
    /// removed elsewhere moves no other end.
    fn ends_after(&self, path: &[u8], digest: &Digest) -> bool {
        let mut hasher = blake3::Hasher::new();
        let chosen = Digest::from(hasher.update(path).update(&digest.0).finalize());
        let ends = u64::from(chosen.0[0]) % SHARED_ENDS == 0;
        self.open.raw >= SHARED.1 || (ends && self.open.raw >= SHARED.0)
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
