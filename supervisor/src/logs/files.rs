//! A folder for each unit, with `current` and what was rotated out of it.
//!
//! Nothing is buffered: what was read is written at once, and belongs to the kernel. `current` of a supervisor that
//! was killed is continued. A file that is complete has the time of its rotation as its name, later than that of all
//! others in its folder even where the clock was set back, so that names sort by time and none is ever written over.
//!
//! A destination that fails (full disk, input/output error, a folder that cannot be made) stops no service: lines
//! are counted instead of written, and the count is written as soon as something can be. Half a line never stays.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use kitbag_format::service::LogFormat;
use memchr::{memchr_iter, memrchr};
use nix::unistd::geteuid;

use super::format::{self, Micros, Stamp};
use super::lines::{Batch, Stream};
use super::reader::Reader;
use super::sink::Sink;
use super::{OWN_NAME, archive};
use crate::state::Ms;
use crate::state_folder;
use crate::store::owned::{self, Refusal};
use crate::sys::worker;
use crate::sys::{Errno, Pid, errno_of};

/// The file that is being written.
pub const CURRENT: &str = "current";
/// After a failure the next try comes so much later.
const RETRY_AFTER: Ms = 1_000;
/// Where nothing more was lost for so long since lines that were had been counted, all is well again.
const WELL_AFTER: Ms = 60_000;
/// A compression that failed, for want of space say, is tried again so much later.
const COMPRESS_AGAIN_AFTER: Ms = 60_000;
/// Of the folders.
const FOLDER_MODE: u32 = 0o750;
/// Formatted lines are written when they are this long together.
const PIECE: usize = 128 * 1024;

/// Where files are and when they are rotated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Holds a folder for each unit; made when it is needed.
    pub folder: PathBuf,
    /// The state folder that it is in, if it is: made again, for this user alone, where it is gone.
    pub state: Option<PathBuf>,
    /// Units have other users: the folders are ours alone, or nothing is written to them.
    pub guarded: bool,
    /// How a line is written.
    pub format: LogFormat,
    /// A file is rotated before it has more bytes than this.
    pub max_size: u64,
    /// A file is rotated when it is this old.
    pub max_age: Option<Ms>,
    /// Rotated files that are kept, for each unit.
    pub keep: usize,
    /// Rotated files are compressed, by a child process, one at a time.
    pub compress: bool,
}

/// Lines that could not be written.
#[derive(Debug, Clone, Copy)]
struct Lost {
    why: Errno,
    retry_at: Ms,
    lines: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Unit {
    name: String,
    folder: PathBuf,
    file: Option<File>,
    /// Of `file`.
    size: u64,
    /// When `file` is too old.
    rotate_at: Option<Ms>,
    lost: Option<Lost>,
    /// Lines of it were lost, and none was written since: this is when that counts as over.
    failing: Option<Ms>,
    /// Its folder has been looked through since the supervisor began.
    known: bool,
    /// There are rotated files that are not compressed.
    uncompressed: bool,
}

/// The sink.
#[derive(Debug)]
pub struct Files {
    settings: Settings,
    units: Vec<Option<Unit>>,
    stamp: Stamp,
    formatted: Vec<u8>,
    /// The next time that a unit wants something; earlier than it is, perhaps.
    next: Option<Ms>,
    compressor: Option<Pid>,
    compress_from: Ms,
    /// Units that are failing; said when the first one does, and when the last one does no more.
    failing: usize,
    lost_lines: u64,
    news: Option<String>,
}

impl Files {
    /// Opens nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            units: Vec::new(),
            stamp: Stamp::default(),
            formatted: Vec::new(),
            next: None,
            compressor: None,
            compress_from: 0,
            failing: 0,
            lost_lines: 0,
            news: None,
        }
    }

    /// Appends the lines of a batch to `out`, until it holds a piece; returns the bytes that are left.
    fn format<'a>(&mut self, name: &str, batch: &Batch<'a>, out: &mut Vec<u8>) -> &'a [u8] {
        let stamp = self.stamp.text(batch.time);
        let mut rest = batch.bytes;
        for (line, continued) in batch.lines() {
            match self.settings.format {
                LogFormat::Stamped => format::stamped(out, stamp, batch.stream, line, continued),
                LogFormat::Json => format::json(out, stamp, name, batch, line, continued),
                LogFormat::Plain => {
                    out.extend_from_slice(line);
                    out.push(b'\n');
                }
            }
            rest = rest.get(line.len() + 1..).unwrap_or_default();
            if out.len() >= PIECE {
                break;
            }
        }
        rest
    }

    /// Writes whole lines of a unit, or counts them as lost.
    fn write(&mut self, unit: &mut Unit, lines: &[u8], time: Micros, now: Ms) {
        if let Some(lost) = &mut unit.lost
            && now < lost.retry_at
        {
            lost.add(lines);
            return;
        }
        self.report(unit, time, now);
        if let Some(lost) = &mut unit.lost {
            lost.add(lines);
        } else if let Err((why, written)) = self.try_write(unit, lines, now) {
            self.lose(unit, why, &lines[written..], now);
        } else if unit.failing.take().is_some() {
            self.is_well();
        }
    }

    /// Writes the count of lost lines, if there is one; it stays where that fails too.
    fn report(&mut self, unit: &mut Unit, time: Micros, now: Ms) {
        let Some(lost) = unit.lost else { return };
        let text = format!(
            "kitbag: {} lines ({} bytes) were lost here: {}",
            lost.lines,
            lost.bytes,
            lost.why.desc()
        );
        let mut line = Vec::new();
        let batch = Batch { unit: 0, stream: Stream::Err, time, bytes: text.as_bytes(), continued: false };
        self.format(&unit.name, &batch, &mut line);
        if let Err((why, _)) = self.try_write(unit, &line, now) {
            let retry_at = now + RETRY_AFTER;
            unit.lost = Some(Lost { why, retry_at, ..lost });
            self.wake_at(retry_at);
            return;
        }
        unit.lost = None;
        self.lost_lines += lost.lines;
        // There may be room for this and for no more.
        let well_at = now + WELL_AFTER;
        unit.failing = Some(well_at);
        self.wake_at(well_at);
    }

    /// A unit that was failing does no more.
    fn is_well(&mut self) {
        self.failing -= 1;
        if self.failing == 0 {
            let lines = std::mem::take(&mut self.lost_lines);
            self.news =
                Some(format!("logs can be written again; {lines} lines were lost, as is noted in them"));
        }
    }

    fn lose(&mut self, unit: &mut Unit, why: Errno, lines: &[u8], now: Ms) {
        let retry_at = now + RETRY_AFTER;
        let mut lost = Lost { why, retry_at, lines: 0, bytes: 0 };
        lost.add(lines);
        unit.lost = Some(lost);
        self.wake_at(retry_at);
        if unit.failing.replace(Ms::MAX).is_some() {
            return;
        }
        self.failing += 1;
        if self.failing == 1 {
            let path = unit.folder.join(CURRENT);
            let why = unit.refusal(&self.settings).unwrap_or_else(|| why.desc().to_owned());
            self.news = Some(format!(
                "cannot write the log {} ({why}); services run on, and what they print is counted until it can be written",
                path.display()
            ));
        }
    }

    /// Writes whole lines, over as many files as it takes; or says why not, and how many bytes of whole lines stay.
    fn try_write(&mut self, unit: &mut Unit, lines: &[u8], now: Ms) -> Result<(), (Errno, usize)> {
        let mut written = 0;
        while written < lines.len() {
            let at = |why| (why, written);
            self.open(unit, now).map_err(at)?;
            let part = fitting(&lines[written..], unit.size, self.settings.max_size);
            if part.is_empty() {
                match self.rotate(unit, now) {
                    // Somebody has moved it away, and it has a name already; a new one has room.
                    Ok(()) | Err(Errno::ENOENT) => continue,
                    Err(why) => return Err(at(why)),
                }
            }
            match unit.append(part) {
                Ok(()) => written += part.len(),
                Err((why, kept)) => return Err((why, written + kept)),
            }
        }
        Ok(())
    }

    /// Makes sure that the file is open and still has a name.
    fn open(&mut self, unit: &mut Unit, now: Ms) -> Result<(), Errno> {
        if let Some(file) = &unit.file {
            let stat = nix::sys::stat::fstat(file)?;
            if stat.st_nlink > 0 {
                // Somebody may have emptied it.
                unit.size = u64::try_from(stat.st_size).unwrap_or(0);
                return Ok(());
            }
            unit.file = None;
            unit.known = false;
        }
        unit.open(&self.settings, now).map_err(|error| errno_of(&error))?;
        if let Some(at) = unit.rotate_at {
            self.wake_at(at);
        }
        self.compress_one(unit, now);
        Ok(())
    }

    /// Gives `current` its name for good, and removes what is too many. Where that fails, the next lines look for it anew.
    fn rotate(&mut self, unit: &mut Unit, now: Ms) -> Result<(), Errno> {
        if let Err(error) = unit.rotate(&self.settings) {
            unit.file = None;
            unit.known = false;
            return Err(errno_of(&error));
        }
        self.compress_one(unit, now);
        Ok(())
    }

    fn wake_at(&mut self, at: Ms) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// Does what a unit's time has come for.
    fn tend(&mut self, unit: &mut Unit, now: Ms) {
        if unit.lost.is_some_and(|lost| lost.retry_at <= now) {
            self.report(unit, format::wall_clock(), now);
        }
        if unit.failing.is_some_and(|at| at <= now) {
            unit.failing = None;
            self.is_well();
        }
        if unit.rotate_at.is_some_and(|at| at <= now) && unit.file.is_some() {
            // Where that fails, the next lines tell.
            unit.rotate_at = None;
            let _ = self.rotate(unit, now);
        }
        let well_at = unit.failing.filter(|at| *at < Ms::MAX);
        for at in [unit.lost.map(|lost| lost.retry_at), well_at, unit.rotate_at].into_iter().flatten() {
            self.wake_at(at);
        }
    }

    /// Starts a child that compresses what there is to compress, of one unit.
    fn compress(&mut self, now: Ms) {
        let Some(number) =
            self.units.iter().position(|unit| unit.as_ref().is_some_and(|unit| unit.uncompressed))
        else {
            return;
        };
        if let Some(mut unit) = self.units[number].take() {
            self.compress_one(&mut unit, now);
            self.units[number] = Some(unit);
        }
    }

    fn compress_one(&mut self, unit: &mut Unit, now: Ms) {
        if !self.settings.compress || !unit.uncompressed || self.compressor.is_some() {
            return;
        }
        if now < self.compress_from {
            self.wake_at(self.compress_from);
            return;
        }
        match worker::fork(|| archive::compress_all(&unit.folder).is_ok()) {
            Ok(pid) => {
                self.compressor = Some(pid);
                unit.uncompressed = false;
            }
            Err(_) => self.compress_later(now),
        }
    }

    fn compress_later(&mut self, now: Ms) {
        self.compress_from = now + COMPRESS_AGAIN_AFTER;
        self.wake_at(self.compress_from);
    }
}

impl Sink for Files {
    fn add(&mut self, unit: usize, name: &str) {
        if self.units.len() <= unit {
            self.units.resize_with(unit + 1, || None);
        }
        if let Some(known) = &self.units[unit] {
            if known.name == name {
                return;
            }
            self.failing -= usize::from(known.failing.is_some());
        }
        self.units[unit] = Some(Unit {
            name: name.to_owned(),
            folder: self.settings.folder.join(name),
            file: None,
            size: 0,
            rotate_at: None,
            lost: None,
            failing: None,
            known: false,
            uncompressed: false,
        });
    }

    fn remove(&mut self, unit: usize, now: Ms) {
        let Some(mut unit) = self.units.get_mut(unit).and_then(Option::take) else { return };
        self.report(&mut unit, format::wall_clock(), now);
        if unit.lost.is_some() {
            self.failing -= 1;
        } else if unit.failing.is_some() {
            self.is_well();
        }
    }

    fn take(&mut self, batch: &Batch<'_>, now: Ms) {
        let Some(mut unit) = self.units.get_mut(batch.unit).and_then(Option::take) else { return };
        if self.settings.format == LogFormat::Plain && batch.bytes.ends_with(b"\n") {
            self.write(&mut unit, batch.bytes, batch.time, now);
        } else {
            let mut formatted = std::mem::take(&mut self.formatted);
            let mut batch = *batch;
            while !batch.bytes.is_empty() {
                formatted.clear();
                batch.bytes = self.format(&unit.name, &batch, &mut formatted);
                batch.continued = false;
                self.write(&mut unit, &formatted, batch.time, now);
            }
            self.formatted = formatted;
        }
        self.units[batch.unit] = Some(unit);
    }

    fn flush(&mut self, now: Ms) -> bool {
        if self.next.is_some_and(|at| at <= now) {
            self.next = None;
            for number in 0..self.units.len() {
                if let Some(mut unit) = self.units[number].take() {
                    self.tend(&mut unit, now);
                    self.units[number] = Some(unit);
                }
            }
            self.compress(now);
        }
        false
    }

    fn deadline(&self) -> Option<Ms> {
        self.next
    }

    fn news(&mut self) -> Option<String> {
        self.news.take()
    }

    fn last_own(&self) -> Option<String> {
        let mut reader = Reader::new(&self.settings.folder, &[OWN_NAME], self.settings.format);
        reader.once();
        let last = reader.last(1).ok().filter(|_| reader.is_whole())?.pop()?;
        Some(String::from_utf8_lossy(&last.text).into_owned())
    }

    fn child(&self) -> Option<Pid> {
        self.compressor
    }

    fn child_ended(&mut self, pid: Pid, well: bool, now: Ms) -> bool {
        if self.compressor != Some(pid) {
            return false;
        }
        self.compressor = None;
        if !well {
            // Whichever it was: each is looked through again.
            self.units.iter_mut().flatten().for_each(|unit| unit.uncompressed = unit.known);
            self.compress_later(now);
        }
        self.compress(now);
        true
    }
}

impl Lost {
    fn add(&mut self, lines: &[u8]) {
        self.lines += memchr_iter(b'\n', lines).count() as u64;
        self.bytes += lines.len() as u64;
    }
}

impl Unit {
    /// Makes its folder.
    fn make_folder(&self, settings: &Settings) -> io::Result<()> {
        settings.state.as_deref().map_or(Ok(()), state_folder::make_again)?;
        if !settings.guarded {
            return DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&self.folder);
        }
        self.guard(settings).map_err(|why| match why {
            Refusal::Io(error) => error,
            _ => Errno::EPERM.into(),
        })
    }

    /// Makes its folder and the one above where they are not there. What is above those has been checked.
    fn guard(&self, settings: &Settings) -> Result<(), Refusal> {
        let uid = geteuid().as_raw();
        if let (Some(above), Some(name)) = (settings.folder.parent(), settings.folder.file_name()) {
            owned::below(above, name, uid, FOLDER_MODE)?;
        }
        owned::below(&settings.folder, &self.name, uid, FOLDER_MODE)
    }

    /// Why its folder is not one to write in.
    fn refusal(&self, settings: &Settings) -> Option<String> {
        let why = settings.guarded.then(|| self.guard(settings).err()).flatten()?;
        Some(format!(
            "{why}; beside services of other users the folder has to be root's alone: remove it, or `chown` it"
        ))
    }

    fn open(&mut self, settings: &Settings, now: Ms) -> io::Result<()> {
        self.make_folder(settings)?;
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(self.folder.join(CURRENT))?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(Errno::EINVAL.into());
        }
        let size = metadata.len();
        self.rotate_at = settings.max_age.map(|age| (now + age).saturating_sub(age_of(&metadata)));
        self.size = size + end_torn_line(&file, size)?;
        self.file = Some(file);
        if !self.known {
            self.known = true;
            archive::remove_unfinished(&self.folder);
            self.uncompressed =
                archive::rotated(&self.folder).is_ok_and(|files| files.iter().any(|file| !file.packed));
        }
        Ok(())
    }

    /// Appends whole lines; or says why not, and how many bytes of whole lines stay.
    fn append(&mut self, lines: &[u8]) -> Result<(), (Errno, usize)> {
        let Some(file) = &self.file else { return Err((Errno::EBADF, 0)) };
        let mut written = 0;
        while written < lines.len() {
            match nix::unistd::write(file.as_fd(), &lines[written..]) {
                Ok(0) => return Err((Errno::EIO, self.keep_whole(lines, written))),
                Ok(length) => written += length,
                Err(Errno::EINTR) => {}
                Err(why) => return Err((why, self.keep_whole(lines, written))),
            }
        }
        self.size += lines.len() as u64;
        Ok(())
    }

    /// Takes back the part of a line that was written last. The next open ends it where that fails.
    fn keep_whole(&mut self, lines: &[u8], written: usize) -> usize {
        let whole = memrchr(b'\n', &lines[..written]).map_or(0, |last| last + 1);
        let size = self.size + whole as u64;
        if let Some(file) = self.file.take()
            && (whole == written || file.set_len(size).is_ok())
        {
            self.size = size;
            self.file = Some(file);
        }
        whole
    }

    fn rotate(&mut self, settings: &Settings) -> io::Result<()> {
        let files = archive::rotated(&self.folder)?;
        let newest = files.last().map(|file| file.time);
        let time = newest.map_or(format::wall_clock(), |newest| format::wall_clock().max(newest + 1));
        fs::rename(self.folder.join(CURRENT), self.folder.join(archive::name(time)))?;
        self.file = None;
        self.rotate_at = None;
        self.uncompressed = true;
        // The new one counts.
        archive::keep(&self.folder, &files, settings.keep.saturating_sub(1));
        if settings.keep == 0 {
            archive::keep(&self.folder, &[archive::Rotated { time, packed: false }], 0);
        }
        Ok(())
    }
}

/// Whole lines from the beginning of `lines` that fit into a file of this size; at least one if the file is empty.
fn fitting(lines: &[u8], size: u64, max: u64) -> &[u8] {
    let room = usize::try_from(max.saturating_sub(size)).unwrap_or(usize::MAX);
    if lines.len() <= room {
        return lines;
    }
    let end = match memrchr(b'\n', &lines[..room]) {
        None if size == 0 => memchr::memchr(b'\n', lines),
        last => last,
    };
    end.map_or(&lines[..0], |end| &lines[..=end])
}

/// Ends the last line of a file that a killed supervisor or a full disk has left without a newline. Bytes written.
fn end_torn_line(file: &File, size: u64) -> io::Result<u64> {
    let mut last = [b'\n'];
    if size > 0 {
        file.read_exact_at(&mut last, size - 1)?;
    }
    if last == [b'\n'] {
        return Ok(0);
    }
    Ok(nix::unistd::write(file.as_fd(), b"\n")? as u64)
}

/// How long ago a file was made; where the file system does not know, when it was last written.
fn age_of(metadata: &fs::Metadata) -> Ms {
    let made = metadata.created().or_else(|_| metadata.modified()).unwrap_or(UNIX_EPOCH);
    made.elapsed().map_or(0, |age| Ms::try_from(age.as_millis()).unwrap_or(Ms::MAX))
}
