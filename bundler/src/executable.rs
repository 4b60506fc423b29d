//! Payload + runtime -> file: frames compressed in parallel, written in order, whole or not at all.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::{io, mem, thread};

use kitbag_format::digest::Digest;
use kitbag_format::index::{Frame, Index};
use kitbag_format::writer::Writer;
use kitbag_format::{Bundle, Error, elf};
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::{Mode, umask};
use nix::unistd::linkat;
use zstd_safe::CParameter;

use crate::payload::{self, FramePlan, Layout, Piece};
use crate::plan::{Plan, PlanKind};
use crate::scan::{self, Memory, Scanned, Seen, Unreadable};

/// The runtime that every bundle starts with: `supervisor/`, which the build script built for the same target.
pub static RUNTIME: &[u8] = include_bytes!(env!("KITBAG_RUNTIME"));

/// Compressed frames that may wait for their turn.
const AHEAD: usize = 64;

/// What was written.
pub struct Written {
    /// The bundle digest.
    pub digest: Digest,
    /// The index in it.
    pub index: Index,
    /// Bytes of the file.
    pub length: u64,
    /// Frames that were taken from the base as they were.
    pub reused: usize,
}

/// Why nothing was written.
#[derive(Debug)]
pub enum Failure {
    /// A file of the plan.
    Input(Unreadable),
    /// The bundle.
    Bundle(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Bundle(error)
    }
}

impl From<Unreadable> for Failure {
    fn from(unreadable: Unreadable) -> Self {
        Self::Input(unreadable)
    }
}

/// An earlier bundle whose frames are taken over where they would be the same.
pub struct Base {
    bundle: Bundle,
    frames: HashMap<Digest, (usize, u64, Frame)>,
}

impl Base {
    /// Reads the index of `bundle`.
    pub fn new(bundle: Bundle) -> Result<Self, Error> {
        let index = bundle.index()?;
        let places = bundle.frame_places(&index)?;
        let frames = index.frames.iter().zip(places).enumerate();
        let frames = frames.map(|(number, (frame, place))| (frame.key, (number, place, *frame))).collect();
        Ok(Self { bundle, frames })
    }

    /// The packed bytes of the frame with this key. A damaged one counts as absent.
    fn packed(&self, key: &Digest) -> Option<(Vec<u8>, Digest)> {
        let (number, place, frame) = self.frames.get(key)?;
        let mut packed = Vec::with_capacity(frame.packed as usize);
        self.bundle.read_frame(*number, *place, frame, &mut packed).ok()?;
        Some((packed, frame.digest))
    }
}

/// Writes the bundle of `plan` to its output: to a file without a name first, then in place at once. `memory` is
/// that output's, and is renewed. `progress` is told the bytes of tar done and of all.
pub fn write(
    plan: &Plan,
    base: Option<&Base>,
    memory: &Memory,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Written, Failure> {
    let output = plan.output.as_path();
    let scanned = scan::scan(&plan.entries, memory)?;
    let layout = payload::lay_out(&plan.entries, &scanned);
    let head_at = elf::find_note_in(RUNTIME)?.ok_or(Error::NotABundle("the runtime has no note"))?.start;
    let target = Target::new(output).map_err(Error::io(format!("write {}", output.display())))?;
    let writer = Writer::new(target.file()?, RUNTIME, head_at)?;
    let job = Job { plan, scanned: &scanned, layout: &layout, base, progress };
    let (writer, reused) = thread::scope(|scope| {
        scope.spawn(|| memory.keep(&plan.entries, &scanned));
        job.run(writer)
    })?;
    let index = Index { frames: Vec::new(), entries: layout.entries.clone() };
    let (file, digest, index) = writer.finish(index, &plan.manifest)?;
    let length = file.metadata().map_err(Error::io("examine the bundle"))?.len();
    target.publish(&file).map_err(Error::io(format!("write {}", output.display())))?;
    // Taking a hundred thousand small things apart takes longer than the process still lives.
    mem::forget((scanned, layout));
    Ok(Written { digest, index, length, reused })
}

struct Job<'a> {
    plan: &'a Plan,
    scanned: &'a [Option<Scanned>],
    layout: &'a Layout,
    base: Option<&'a Base>,
    progress: &'a (dyn Fn(u64, u64) + Sync),
}

struct Packed {
    bytes: Vec<u8>,
    digest: Digest,
    key: Digest,
    reused: bool,
}

impl Job<'_> {
    fn run(&self, writer: Writer) -> Result<(Writer, usize), Failure> {
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            let (sender, receiver) = sync_channel(AHEAD);
            for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
                let sender = sender.clone();
                scope.spawn(|| self.pack_frames(&next, &stop, sender));
            }
            drop(sender);
            let result = self.write_frames(writer, &receiver);
            stop.store(true, Ordering::Relaxed);
            result
        })
    }

    fn pack_frames(
        &self,
        next: &AtomicUsize,
        stop: &AtomicBool,
        sender: SyncSender<(usize, Result<Packed, Failure>)>,
    ) {
        let compression = compression(self.plan.compression);
        let mut packer = match Packer::new(self.plan.compression) {
            Ok(packer) => packer,
            Err(error) => return drop(sender.send((0, Err(error.into())))),
        };
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(frame) = self.layout.frames.get(number) else { return };
            let key = frame.key(self.scanned, &compression);
            let packed = match self.base.and_then(|base| base.packed(&key)) {
                Some((bytes, digest)) => Ok(Packed { bytes, digest, key, reused: true }),
                None => self.pack_frame(frame, key, &mut packer),
            };
            if sender.send((number, packed)).is_err() {
                return;
            }
        }
    }

    fn pack_frame(&self, frame: &FramePlan, key: Digest, packer: &mut Packer) -> Result<Packed, Failure> {
        packer.raw.clear();
        for piece in &frame.pieces {
            match piece {
                Piece::Bytes(bytes) => packer.raw.extend_from_slice(bytes),
                Piece::Content { file, start, length } => {
                    self.read(*file, *start, *length, &mut packer.raw)?
                }
            }
        }
        let bytes = packer.pack()?;
        Ok(Packed { digest: Digest::of(&bytes), bytes, key, reused: false })
    }

    /// Reads a part of a file, which must still be what was scanned.
    fn read(&self, number: usize, start: u64, length: u64, raw: &mut Vec<u8>) -> Result<(), Failure> {
        let PlanKind::File { source, .. } = &self.plan.entries[number].kind else { return Ok(()) };
        let unreadable = |why: String| Unreadable { path: source.clone(), why };
        let at = raw.len();
        raw.resize(at + length as usize, 0);
        let seen = File::open(source)
            .and_then(|file| {
                file.read_exact_at(&mut raw[at..], start)?;
                Ok(Seen::from(&file.metadata()?))
            })
            .map_err(|error| unreadable(error.to_string()))?;
        if self.scanned[number].as_ref().is_none_or(|scanned| scanned.seen != seen) {
            return Err(unreadable(scan::CHANGED.to_owned()).into());
        }
        Ok(())
    }

    fn write_frames(
        &self,
        mut writer: Writer,
        receiver: &Receiver<(usize, Result<Packed, Failure>)>,
    ) -> Result<(Writer, usize), Failure> {
        let total = self.layout.frames.iter().map(|frame| frame.raw).sum();
        let (mut waiting, mut reused, mut done) = (BTreeMap::new(), 0, 0);
        for (number, frame) in self.layout.frames.iter().enumerate() {
            let packed: Packed = loop {
                if let Some(packed) = waiting.remove(&number) {
                    break packed;
                }
                let (arrived, packed) =
                    receiver.recv().map_err(|_| Error::NotABundle("a packing thread died"))?;
                waiting.insert(arrived, packed?);
            };
            writer.frame(&packed.bytes, frame.raw as u32, packed.digest, packed.key)?;
            reused += usize::from(packed.reused);
            done += frame.raw;
            (self.progress)(done, total);
        }
        Ok((writer, reused))
    }
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

    fn pack(&mut self) -> Result<Vec<u8>, Error> {
        let mut packed = Vec::with_capacity(zstd_safe::compress_bound(self.raw.len()));
        self.context.compress2(&mut packed, &self.raw).map_err(zstd_failed)?;
        Ok(packed)
    }
}

fn zstd_failed(code: zstd_safe::ErrorCode) -> Error {
    Error::io("compress")(io::Error::other(zstd_safe::get_error_name(code)))
}

/// A file that has no name until it is whole, so that nothing is left behind whatever ends us.
struct Target<'a> {
    file: File,
    /// The name it has meanwhile, where the file system knows no files without names.
    named: Option<tempfile::TempPath>,
    dir: &'a Path,
    output: &'a Path,
}

impl<'a> Target<'a> {
    fn new(output: &'a Path) -> io::Result<Self> {
        let dir = output.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let unnamed =
            fs::OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_TMPFILE.bits()).open(dir);
        match unnamed {
            Ok(file) => Ok(Self { file, named: None, dir, output }),
            Err(_) => {
                let (file, path) = tempfile::NamedTempFile::new_in(dir)?.into_parts();
                Ok(Self { file, named: Some(path), dir, output })
            }
        }
    }

    fn file(&self) -> Result<File, Error> {
        self.file.try_clone().map_err(Error::io("write the bundle"))
    }

    /// Executable for whom the umask lets, on the disk, then in place.
    fn publish(self, file: &File) -> io::Result<()> {
        file.set_permissions(fs::Permissions::from_mode(0o777 & !current_umask()))?;
        file.sync_all()?;
        let path = match self.named {
            Some(path) => path,
            None => link_temporary(file, self.dir)?,
        };
        path.persist(self.output).map_err(|error| error.error)?;
        File::open(self.dir)?.sync_all()
    }
}

/// Gives an unnamed file a temporary name. open(2), under O_TMPFILE, shows this way.
fn link_temporary(file: &File, dir: &Path) -> io::Result<tempfile::TempPath> {
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    let made = tempfile::Builder::new().prefix(".kitbag-").make_in(dir, |path| {
        Ok(linkat(AT_FDCWD, from.as_str(), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW)?)
    })?;
    Ok(made.into_temp_path())
}

/// The umask can only be read by setting it; umask(2).
fn current_umask() -> u32 {
    let mask = umask(Mode::from_bits_truncate(0o077));
    umask(mask);
    mask.bits()
}
