//! Unpacks the payload into a folder: frames in parallel, each verified before it is decompressed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use memmap2::MmapMut;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, mkdirat};
use nix::unistd::{linkat, symlinkat};

use crate::error::{Error, Region};
use crate::index::{Entry, Frame, Index, Kind, Span};
use crate::parallel;
use crate::reader::Bundle;
use crate::slots::{self, FillError, Paths};
use crate::sort;

/// Below this many bytes of tar one thread is faster than several.
const ALONE: u64 = 1 << 20;
/// Bytes of a huge page on x86-64 and, with pages of 4 KiB, on aarch64.
const HUGE_PAGE: usize = 2 << 20;
/// So many of the smallest frames for each thread come last.
const SMALL_ONES: usize = 4;

/// What to unpack, and how.
pub struct Extraction<'a> {
    /// From which bundle.
    pub bundle: &'a Bundle,
    /// Its index.
    pub index: &'a Index,
    /// Called for each regular file: true if it is there already and must be left alone.
    pub present: &'a (dyn Fn(usize) -> bool + Sync),
    /// Called after each frame with its bytes of tar.
    pub progress: &'a (dyn Fn(u64) + Sync),
    /// Called with each file that is finished, but for hard links to it: no later step looks for it by its path.
    pub written: &'a (dyn Fn(usize, &File) + Sync),
    /// Take the write permission from everything, folders too.
    pub read_only: bool,
    /// What slots are filled with: where the tree will be used.
    pub paths: Paths<'a>,
}

/// The number of threads worth using for this many bytes.
pub fn threads_for(bytes: u64) -> usize {
    if bytes < ALONE {
        return 1;
    }
    parallel::threads()
}

/// Opens a folder without following a link in its last component.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(
        path,
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?)
}

impl Extraction<'_> {
    /// Unpacks into the folder `root`, which is empty but for the files that are `present`. The process's umask
    /// must let the owner do everything. What was written stays when an error ends it; the caller removes it.
    pub fn run(&self, root: BorrowedFd) -> Result<(), Error> {
        let spans: Vec<Span> = self.index.spans().collect();
        self.make_dirs(root)?;
        let reserved = self.reserve(root, &spans)?;
        self.unpack_frames(root, &spans, &reserved)?;
        self.fill_slots(root)?;
        self.make_links(root)?;
        self.finish_modes(root, &reserved)
    }

    fn wanted(&self, number: usize) -> bool {
        matches!(self.index.entries[number].kind, Kind::File { .. }) && !(self.present)(number)
    }

    /// Folders come before what they hold; the index made sure of it.
    fn make_dirs(&self, root: BorrowedFd) -> Result<(), Error> {
        let dirs = self.index.entries.iter().filter(|entry| entry.kind == Kind::Dir);
        for entry in dirs {
            mkdirat(root, entry.path.as_slice(), Mode::from_bits_truncate(0o755))
                .or_else(|errno| if errno == nix::Error::EEXIST { Ok(()) } else { Err(errno) })
                .map_err(failed("make the folder", entry))?;
        }
        Ok(())
    }

    /// Files that are written in more than one step are made beforehand, at their full length: those with slots, and
    /// those that lie in more than one frame, so that frames can be written in any order and runs of zeros become
    /// holes.
    fn reserve(&self, root: BorrowedFd, spans: &[Span]) -> Result<Vec<bool>, Error> {
        let mut reserved = vec![false; spans.len()];
        let mut end = 0u64;
        let mut number = 0;
        for frame in &self.index.frames {
            end += u64::from(frame.raw);
            while spans.get(number).is_some_and(|span| span.end <= end) {
                number += 1;
            }
            if spans.get(number).is_some_and(|span| span.start < end) {
                reserved[number] = true;
            }
        }
        for (number, entry) in self.index.entries.iter().enumerate() {
            reserved[number] = (reserved[number] || !entry.slots().is_empty()) && self.wanted(number);
            if reserved[number] {
                create(root, entry, 0o600)?.set_len(entry.size()).map_err(failed_io("write", entry))?;
            }
        }
        Ok(reserved)
    }

    fn unpack_frames(&self, root: BorrowedFd, spans: &[Span], reserved: &[bool]) -> Result<(), Error> {
        let jobs = self.jobs(spans)?;
        let bytes = jobs.iter().map(|job| u64::from(self.index.frames[job.frame].raw)).sum();
        let threads = threads_for(bytes).min(jobs.len());
        let longest = |length: fn(&Frame) -> u32| {
            jobs.iter().map(|job| length(&self.index.frames[job.frame]) as usize).max().unwrap_or(0)
        };
        let (packed, raw) = (longest(|frame| frame.packed), longest(|frame| frame.raw));
        let jobs = spread(jobs, threads, |job| self.index.frames[job.frame].raw);
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let work = || {
            let buffers = Buffers { packed: buffer(packed)?, raw: buffer(raw)? };
            let result = Worker { extraction: self, root, spans, reserved }.run(buffers, &jobs, &next, &stop);
            if result.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            result
        };
        parallel::run(threads, work)
    }

    /// The frames that hold something wanted, each with its place and first entry.
    fn jobs(&self, spans: &[Span]) -> Result<Vec<Job>, Error> {
        let places = self.bundle.frame_places(self.index)?;
        let mut jobs = Vec::new();
        let (mut start, mut first) = (0u64, 0);
        for (frame, offset) in places.into_iter().enumerate() {
            let end = start + u64::from(self.index.frames[frame].raw);
            while spans.get(first).is_some_and(|span| span.end <= start && span.start < start) {
                first += 1;
            }
            let held = (first..spans.len()).take_while(|number| spans[*number].start < end);
            if held.clone().any(|number| self.wanted(number)) {
                jobs.push(Job { frame, offset, start, first });
            }
            first = held.last().unwrap_or(first);
            start = end;
        }
        Ok(jobs)
    }

    /// Only now, as a slot may be cut across frames too.
    fn fill_slots(&self, root: BorrowedFd) -> Result<(), Error> {
        for (number, entry) in self.index.entries.iter().enumerate() {
            if !entry.slots().is_empty() && self.wanted(number) {
                let file = open_file(root, entry, OFlag::O_RDWR)?;
                slots::fill_file(&file, entry.slots(), &self.paths)
                    .map_err(failed_io("put the path of the folder into", entry))?;
            }
        }
        Ok(())
    }

    fn make_links(&self, root: BorrowedFd) -> Result<(), Error> {
        for entry in &self.index.entries {
            match &entry.kind {
                Kind::Symlink(target) => symlinkat(target.as_slice(), root, entry.path.as_slice())
                    .map_err(failed("make the link", entry))?,
                Kind::Link(to) => {
                    let from = self.index.entries[*to].path.as_slice();
                    linkat(root, from, root, entry.path.as_slice(), AtFlags::empty())
                        .map_err(failed("make the link", entry))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn finish_modes(&self, root: BorrowedFd, reserved: &[bool]) -> Result<(), Error> {
        for (number, entry) in self.index.entries.iter().enumerate().rev() {
            if reserved[number] || (self.read_only && entry.kind == Kind::Dir) {
                let mode = Mode::from_bits_truncate(self.mode(&entry.kind));
                fchmodat(root, entry.path.as_slice(), mode, FchmodatFlags::FollowSymlink)
                    .map_err(failed("set the permissions of", entry))?;
            }
        }
        Ok(())
    }

    /// Permissions of a file or a folder.
    fn mode(&self, kind: &Kind) -> u32 {
        let all = match kind {
            Kind::File { executable: false, .. } => 0o644,
            _ => 0o755,
        };
        if self.read_only { all & !0o222 } else { all }
    }
}

/// Orders jobs so that those done at the same time lie far apart. Neighbours make files in one folder, and wait for
/// each other there: on ext4 two threads then take three times as long for each file. A few small ones come last, the
/// largest of them first, so that no thread still has much to do when the others have nothing left.
fn spread(jobs: Vec<Job>, threads: usize, size: impl Fn(&Job) -> u32) -> Vec<Job> {
    let stretch = jobs.len().div_ceil(threads.max(1)).max(1);
    let mut order: Vec<(usize, Job)> = jobs.into_iter().enumerate().collect();
    sort::by(&mut order, &|(one, _), (other, _)| {
        (one % stretch, one / stretch).cmp(&(other % stretch, other / stretch))
    });
    let mut order: Vec<Job> = order.into_iter().map(|(_, job)| job).collect();
    let mut sizes: Vec<u32> = order.iter().map(&size).collect();
    sort::sort(&mut sizes);
    let small = sizes.get(SMALL_ONES * threads).copied().unwrap_or(u32::MAX);
    let key = |job: &Job| if size(job) < small { size(job) } else { u32::MAX };
    sort::by(&mut order, &|one, other| key(other).cmp(&key(one)));
    order
}

/// One frame to unpack.
struct Job {
    frame: usize,
    /// Place in the file.
    offset: u64,
    /// Place in the tar.
    start: u64,
    /// First entry that may have contents in it.
    first: usize,
}

struct Worker<'a> {
    extraction: &'a Extraction<'a>,
    root: BorrowedFd<'a>,
    spans: &'a [Span],
    reserved: &'a [bool],
}

/// A thread's room for the longest frame. A buffer that grew would be copied, and fault in page by page again.
struct Buffers {
    packed: MmapMut,
    raw: MmapMut,
}

/// Zeroed memory, in huge pages where the kernel has them: unpacking is two percent faster for it.
fn buffer(length: usize) -> Result<MmapMut, Error> {
    let map = MmapMut::map_anon(length.next_multiple_of(HUGE_PAGE)).map_err(Error::io("get memory"))?;
    // A kernel without them gives the usual ones.
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(map)
}

impl Worker<'_> {
    fn run(
        &self,
        mut buffers: Buffers,
        jobs: &[Job],
        next: &AtomicUsize,
        stop: &AtomicBool,
    ) -> Result<(), Error> {
        let mut decoder = zstd_safe::DCtx::create();
        while !stop.load(Ordering::Relaxed) {
            let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            let frame = &self.extraction.index.frames[job.frame];
            let bundle = self.extraction.bundle;
            let packed = bundle.read_frame(job.frame, job.offset, frame, &mut buffers.packed)?;
            let raw = &mut buffers.raw[..frame.raw as usize];
            decompress(&mut decoder, job.frame, packed, raw)?;
            self.write(job, raw)?;
            (self.extraction.progress)(u64::from(frame.raw));
        }
        Ok(())
    }

    /// Writes what a frame holds to the files that it belongs to.
    fn write(&self, job: &Job, raw: &[u8]) -> Result<(), Error> {
        let end = job.start + raw.len() as u64;
        for number in job.first..self.spans.len() {
            let span = &self.spans[number];
            if span.start >= end {
                break;
            }
            if !self.extraction.wanted(number) || (span.end <= job.start && span.start < job.start) {
                continue;
            }
            let from = span.start.max(job.start);
            let piece = &raw[(from - job.start) as usize..(span.end.min(end) - job.start) as usize];
            let entry = &self.extraction.index.entries[number];
            if self.reserved[number] {
                self.write_piece(entry, piece, from - span.start)?;
            } else {
                let mut file = create(self.root, entry, self.extraction.mode(&entry.kind))?;
                io::Write::write_all(&mut file, piece).map_err(failed_io("write", entry))?;
                (self.extraction.written)(number, &file);
            }
        }
        Ok(())
    }

    fn write_piece(&self, entry: &Entry, piece: &[u8], at: u64) -> Result<(), Error> {
        if piece.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let file = open_file(self.root, entry, OFlag::O_WRONLY)?;
        file.write_all_at(piece, at).map_err(failed_io("write", entry))
    }
}

fn create(root: BorrowedFd, entry: &Entry, mode: u32) -> Result<File, Error> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(root.as_fd(), entry.path.as_slice(), flags, Mode::from_bits_truncate(mode))
        .map(File::from)
        .map_err(failed("make", entry))
}

fn open_file(root: BorrowedFd, entry: &Entry, how: OFlag) -> Result<File, Error> {
    let flags = how | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(root, entry.path.as_slice(), flags, Mode::empty()).map(File::from).map_err(failed("open", entry))
}

fn failed<'a>(doing: &'a str, entry: &'a Entry) -> impl FnOnce(nix::Error) -> Error + 'a {
    move |errno| failed_io(doing, entry)(errno.into())
}

fn failed_io<'a>(doing: &'a str, entry: &'a Entry) -> impl FnOnce(io::Error) -> Error + 'a {
    move |error| Error::io(format!("{doing} `{}`", String::from_utf8_lossy(&entry.path)))(error)
}

/// Unpacks a whole bundle into `dir`, a folder that is empty or not there yet, with ordinary permissions. Its
/// programs run from there, and only from there.
pub fn unpack_to(bundle: &Bundle, dir: &Path, progress: &(dyn Fn(u64) + Sync)) -> Result<Index, Error> {
    let show = dir.display();
    bundle.verify_program()?;
    let index = bundle.index()?;
    let occupied = std::fs::read_dir(dir).map(|mut entries| entries.next().is_some());
    // Where the working folder has no path, a relative one cannot go into a slot, which says so.
    let tree = &std::env::current_dir().unwrap_or_default().join(dir);
    if let Some((number, why)) = misfit(bundle, &index, tree)? {
        let file = String::from_utf8_lossy(&index.entries[number].path);
        let why = format!("its path cannot go into `{file}`: {why}");
        return Err(Error::io(format!("unpack into {show}"))(io::Error::other(why)));
    }
    match occupied {
        Ok(true) => {
            let error = io::Error::from(io::ErrorKind::DirectoryNotEmpty);
            return Err(Error::io(format!("unpack into {show}"))(error));
        }
        Ok(false) => {}
        Err(_) => std::fs::create_dir_all(dir).map_err(Error::io(format!("make the folder {show}")))?,
    }
    let root = open(dir, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| Error::io(format!("open the folder {show}"))(errno.into()))?;
    let extraction = Extraction {
        bundle,
        index: &index,
        present: &|_| false,
        progress,
        written: &|_, _| (),
        read_only: false,
        paths: Paths::of_tree(tree),
    };
    extraction.run(root.as_fd())?;
    Ok(index)
}

/// The contents of one file as they were packed, by number, in memory. For small ones.
pub fn contents(bundle: &Bundle, index: &Index, number: usize) -> Result<Vec<u8>, Error> {
    let span = index.spans().nth(number).unwrap_or_default();
    let found = stretches(bundle, index, &[(number, span)])?.pop();
    Ok(found.map_or_else(Vec::new, |(_, contents)| contents))
}

/// The packed bytes of the slots of all files that are `wanted`, each with its file's number, in the tar's order.
pub fn packed_slots(
    bundle: &Bundle,
    index: &Index,
    wanted: &dyn Fn(usize) -> bool,
) -> Result<Vec<(usize, Vec<u8>)>, Error> {
    let mut places = Vec::new();
    for (number, span) in index.spans().enumerate() {
        for slot in index.entries[number].slots().iter().filter(|_| wanted(number)) {
            places.push((number, span.start + slot.at..span.start + slot.end()));
        }
    }
    stretches(bundle, index, &places)
}

/// The first file that the path of a tree cannot go into, and why. Nothing is unpacked to find out.
pub fn misfit(bundle: &Bundle, index: &Index, tree: &Path) -> Result<Option<(usize, FillError)>, Error> {
    let slots = index.entries.iter().flat_map(Entry::slots);
    for ((number, packed), slot) in packed_slots(bundle, index, &|_| true)?.into_iter().zip(slots) {
        if let Err(why) = slots::fill(&packed, slot.pad, &Paths::of_tree(tree)) {
            return Ok(Some((number, why)));
        }
    }
    Ok(None)
}

/// The bytes of these stretches of the tar, which are in order, with what they are numbered by. Reads the frames
/// alone that they lie in.
fn stretches(
    bundle: &Bundle,
    index: &Index,
    spans: &[(usize, Span)],
) -> Result<Vec<(usize, Vec<u8>)>, Error> {
    let places = bundle.frame_places(index)?;
    let mut decoder = zstd_safe::DCtx::create();
    let (mut packed, mut raw, mut found, mut start) = (Vec::new(), Vec::new(), Vec::new(), 0u64);
    let mut rest = spans.iter();
    let (mut span, mut bytes) = (rest.next(), Vec::new());
    for (number, (frame, place)) in index.frames.iter().zip(places).enumerate() {
        let end = start + u64::from(frame.raw);
        raw.clear();
        while let Some((name, range)) = span.filter(|(_, range)| range.start < end) {
            if raw.is_empty() && !range.is_empty() {
                packed.resize(packed.len().max(frame.packed as usize), 0);
                raw.resize(frame.raw as usize, 0);
                let packed = bundle.read_frame(number, place, frame, &mut packed)?;
                decompress(&mut decoder, number, packed, &mut raw)?;
            }
            let (from, to) = (range.start.max(start) - start, range.end.min(end) - start);
            bytes.extend_from_slice(raw.get(from as usize..to as usize).unwrap_or_default());
            if range.end > end {
                break;
            }
            found.push((*name, std::mem::take(&mut bytes)));
            span = rest.next();
        }
        start = end;
    }
    Ok(found)
}

fn decompress(
    decoder: &mut zstd_safe::DCtx,
    number: usize,
    packed: &[u8],
    raw: &mut [u8],
) -> Result<(), Error> {
    match decoder.decompress(raw, packed) {
        Ok(found) if found == raw.len() => Ok(()),
        _ => Err(Error::Malformed { part: Region::Frame(number), what: "is no zstd frame of its length" }),
    }
}
