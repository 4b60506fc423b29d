//! Payload + runtime -> file: whole or not at all.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::{io, mem, thread};

use kitbag_format::digest::Digest;
use kitbag_format::index::{Frame, Index};
use kitbag_format::writer::Writer;
use kitbag_format::{Bundle, Error, elf};
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::{Mode, umask};
use nix::unistd::linkat;

use crate::complete::Scan;
use crate::frames::Job;
use crate::origin;
use crate::payload;
use crate::plan::Plan;
use crate::scan::{Memory, Unreadable};

/// The runtime that every bundle starts with: `supervisor/`, which the build script built for the same target.
pub static RUNTIME: &[u8] = include_bytes!(env!("KITBAG_RUNTIME"));

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

    /// Puts the packed bytes of the frame with this key into `packed`. A damaged one counts as absent.
    pub fn read(&self, key: &Digest, packed: &mut Vec<u8>) -> Option<Frame> {
        let (number, place, frame) = self.frames.get(key)?;
        packed.resize(packed.len().max(frame.packed as usize), 0);
        self.bundle.read_frame(*number, *place, frame, packed).ok()?;
        Some(*frame)
    }
}

/// Writes the bundle of `plan` to its output: to a file without a name first, then in place at once. `memory` is
/// that output's, and is renewed. `progress` is told the bytes of tar done and of all.
pub fn write(
    plan: &Plan,
    scan: &Scan,
    base: Option<&Base>,
    memory: &Memory,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Written, Failure> {
    let output = plan.output.as_path();
    let layout = payload::lay_out(&plan.entries, &scan.packed);
    let head_at = elf::find_note_in(RUNTIME)?.ok_or(Error::NotABundle("the runtime has no note"))?.start;
    let target = Target::new(output).map_err(Error::io(format!("write {}", output.display())))?;
    let writer = Writer::new(target.file()?, RUNTIME, head_at)?;
    let job = Job { plan, scanned: &scan.packed, layout: &layout, base, progress };
    let (writer, reused) = thread::scope(|scope| {
        scope.spawn(|| memory.keep(|| scan.sources(plan), &scan.changes));
        job.run(writer, &target.file)
    })?;
    let index = Index { frames: Vec::new(), entries: layout.entries.clone() };
    let (file, digest, index) =
        writer.finish(index, &origin::add_to(&plan.manifest, &plan.origins), plan.manifest.is_tool())?;
    let length = file.metadata().map_err(Error::io("examine the bundle"))?.len();
    target.publish(&file).map_err(Error::io(format!("write {}", output.display())))?;
    // Taking a hundred thousand small things apart takes longer than the process still lives.
    mem::forget(layout);
    Ok(Written { digest, index, length, reused })
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
