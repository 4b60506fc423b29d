//! Layout -> frames in the file: compressed or taken over in parallel, each written by a thread that has it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::{mem, thread};

use kitbag_format::Error;
use kitbag_format::digest::Digest;
use kitbag_format::index::Frame;
use kitbag_format::writer::{self, Writer};
use zstd_safe::CParameter;

use crate::executable::{Base, Failure};
use crate::payload::{FramePlan, Layout, Piece};
use crate::plan::{Plan, PlanKind};
use crate::scan::{self, Scanned, Seen, Unreadable};

/// So many frames a thread may be ahead of the next one to be written: what waits is kept in memory.
const AHEAD: usize = 16;

/// The frames to write, and what they are made from.
pub struct Job<'a> {
    /// The plan that was scanned.
    pub plan: &'a Plan,
    /// Its files.
    pub scanned: &'a [Option<Scanned>],
    /// Its frames.
    pub layout: &'a Layout,
    /// Where equal frames are taken from.
    pub base: Option<&'a Base>,
    /// Is told the bytes of tar done and of all.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// A frame that was made, and its packed bytes.
struct Made {
    frame: Frame,
    bytes: Vec<u8>,
    reused: bool,
}

/// What the threads share. A frame's place is known once all before it are made.
struct Queue {
    writer: Writer,
    /// The first frame without a place.
    next: usize,
    /// Frames behind it that are made already.
    waiting: BTreeMap<usize, Made>,
    /// Buffers to use again: fresh memory costs more than what is done in it.
    spare: Vec<Vec<u8>>,
    reused: usize,
    done: u64,
    failure: Option<Failure>,
}

struct Line {
    queue: Mutex<Queue>,
    moved: Condvar,
}

impl Line {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self, failure: Failure) {
        self.queue().failure.get_or_insert(failure);
        self.moved.notify_all();
    }
}

impl Job<'_> {
    /// Writes every frame to `file`, which is `writer`'s. Returns the writer, and how many frames are the base's.
    pub fn run(&self, writer: Writer, file: &File) -> Result<(Writer, usize), Failure> {
        let queue = Queue {
            writer,
            next: 0,
            waiting: BTreeMap::new(),
            spare: Vec::new(),
            reused: 0,
            done: 0,
            failure: None,
        };
        let line = Line { queue: Mutex::new(queue), moved: Condvar::new() };
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| self.work(&next, &line, file).unwrap_or_else(|failure| line.stop(failure)));
            }
        });
        let queue = line.queue.into_inner().unwrap_or_else(PoisonError::into_inner);
        queue.failure.map_or(Ok((queue.writer, queue.reused)), Err)
    }

    fn work(&self, next: &AtomicUsize, line: &Line, file: &File) -> Result<(), Failure> {
        let compression = compression(self.plan.compression);
        let mut packer = Packer::new(self.plan.compression)?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(plan) = self.layout.frames.get(number) else { return Ok(()) };
            let buffer = line.queue().spare.pop().unwrap_or_default();
            let made = self.make(plan, plan.key(self.scanned, &compression), &mut packer, buffer)?;
            let Some(placed) = hand_over(line, number, made) else { return Ok(()) };
            for (at, made) in placed {
                writer::put(file, &made.bytes, at)?;
                self.account(line, made);
            }
        }
    }

    fn make(
        &self,
        plan: &FramePlan,
        key: Digest,
        packer: &mut Packer,
        mut bytes: Vec<u8>,
    ) -> Result<Made, Failure> {
        if let Some(frame) = self.base.and_then(|base| base.read(&key, &mut bytes)) {
            bytes.truncate(frame.packed as usize);
            return Ok(Made { frame: Frame { raw: plan.raw as u32, ..frame }, bytes, reused: true });
        }
        packer.raw.clear();
        for piece in &plan.pieces {
            match piece {
                Piece::Bytes(bytes) => packer.raw.extend_from_slice(bytes),
                Piece::Content { file, start, length } => {
                    self.read(*file, *start, *length, &mut packer.raw)?
                }
            }
        }
        packer.pack(&mut bytes)?;
        let frame =
            Frame { packed: bytes.len() as u32, raw: plan.raw as u32, digest: Digest::of(&bytes), key };
        Ok(Made { frame, bytes, reused: false })
    }

    /// Reads a part of a file, which must still be what was scanned.
    fn read(&self, number: usize, start: u64, length: u64, raw: &mut Vec<u8>) -> Result<(), Failure> {
        let PlanKind::File { source, seen, change, .. } = &self.plan.entries[number].kind else {
            return Ok(());
        };
        let unreadable = |why: String| Unreadable { path: source.clone(), why };
        let at = raw.len();
        raw.resize(at + length as usize, 0);
        // What a change adds at the end is not in the source.
        let there = (seen.size.max(start).min(start + length) - start) as usize;
        let now = File::open(source)
            .and_then(|file| {
                file.read_exact_at(&mut raw[at..at + there], start)?;
                Ok(Seen::from(&file.metadata()?))
            })
            .map_err(|error| unreadable(error.to_string()))?;
        if now != *seen {
            return Err(unreadable(scan::CHANGED.to_owned()).into());
        }
        if let Some(change) = change {
            change.edits.apply_at(start, &mut raw[at..]);
        }
        Ok(())
    }

    fn account(&self, line: &Line, written: Made) {
        let mut queue = line.queue();
        queue.reused += usize::from(written.reused);
        queue.done += u64::from(written.frame.raw);
        queue.spare.push(written.bytes);
        let done = queue.done;
        drop(queue);
        (self.progress)(done, self.layout.raw());
    }
}

/// Gives a frame away. Returns those that have a place now, in order, for the caller to write; `None` when
/// another thread failed.
fn hand_over(line: &Line, number: usize, made: Made) -> Option<Vec<(u64, Made)>> {
    let ahead = |queue: &mut Queue| queue.failure.is_none() && number > queue.next + AHEAD;
    let mut queue = line.moved.wait_while(line.queue(), ahead).unwrap_or_else(PoisonError::into_inner);
    if queue.failure.is_some() {
        return None;
    }
    queue.waiting.insert(number, made);
    let mut placed = Vec::new();
    let mut next = queue.next;
    while let Some(made) = queue.waiting.remove(&next) {
        placed.push((queue.writer.place(made.frame), made));
        next += 1;
    }
    if mem::replace(&mut queue.next, next) != next {
        line.moved.notify_all();
    }
    Some(placed)
}

/// Names the compressor and its settings: what a frame's bytes depend on besides its contents.
fn compression(level: i32) -> String {
    format!("zstd {} {:?}", zstd_safe::version_number(), settings(level))
}

/// zstd's default level is fitted to frames of a megabyte or two: larger tables, shorter matches. Measured on a
/// Python of 60 MB: 1.5 % smaller, at the same speed of packing.
fn settings(level: i32) -> Vec<CParameter> {
    let mut settings = vec![CParameter::CompressionLevel(level)];
    if level == 3 {
        settings.extend([CParameter::HashLog(18), CParameter::ChainLog(18), CParameter::MinMatch(4)]);
    }
    settings
}

struct Packer {
    context: zstd_safe::CCtx<'static>,
    raw: Vec<u8>,
}

impl Packer {
    fn new(level: i32) -> Result<Self, Error> {
        let mut context = zstd_safe::CCtx::create();
        for setting in settings(level) {
            context.set_parameter(setting).map_err(zstd_failed)?;
        }
        Ok(Self { context, raw: Vec::new() })
    }

    fn pack(&mut self, packed: &mut Vec<u8>) -> Result<(), Error> {
        packed.clear();
        packed.reserve(zstd_safe::compress_bound(self.raw.len()));
        self.context.compress2(packed, &self.raw).map_err(zstd_failed).map(drop)
    }
}

fn zstd_failed(code: zstd_safe::ErrorCode) -> Error {
    Error::io("compress")(io::Error::other(zstd_safe::get_error_name(code)))
}
