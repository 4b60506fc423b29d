//! Reads logs back: the last lines over rotated files, of several units by time, and what follows. For a command that
//! may wait, not for the supervisor.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kitbag_format::service::LogFormat;
use kitbag_format::sort;

use super::archive;
use super::files::CURRENT;
use super::format::{self, Micros, STAMP, Stamp, parse_stamp};
use super::lines::{Batch, Stream};
use super::rotations::{News, Rotations};
use crate::state_folder;
use crate::sys::reason;

/// A line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The place of its unit's name in what [`Reader::new`] got.
    pub unit: usize,
    /// When it was read from its unit; `None` for [`LogFormat::Plain`].
    pub time: Option<Micros>,
    /// Where its unit has printed it; standard output for [`LogFormat::Plain`].
    pub stream: Stream,
    /// It goes on with the stream's line before.
    pub continued: bool,
    /// What was printed, without a newline.
    pub text: Vec<u8>,
    /// The whole line as it stands in the file.
    pub raw: Vec<u8>,
}

/// More is not read of a unit at a time, but for the rest of a file.
const TURN: u64 = 16 << 20;

/// A reader of some units' logs.
#[derive(Debug)]
pub struct Reader {
    format: LogFormat,
    units: Vec<Unit>,
    rotations: Rotations,
    /// There is more than was read.
    behind: bool,
    /// Nothing is asked for after [`Self::last`].
    once: bool,
}

#[derive(Debug)]
struct Unit {
    name: String,
    folder: PathBuf,
    /// The file that is followed, and where in it. It is the one that follows the last of those up to `past`.
    file: Option<File>,
    at: u64,
    /// Bytes before `at` that have no newline yet.
    partial: Vec<u8>,
    /// Nothing was read of `file`, and it may be a later one.
    fresh: bool,
    /// Files that were rotated up to this time were read, or are not to be.
    past: Micros,
    /// Those that were since, the oldest first. If there are any, the first one is `file`, complete by now.
    rotated: VecDeque<Later>,
    /// Its rotations are heard of.
    heard: bool,
    /// No file of it was one that could not be read, as far as was told.
    is_readable: bool,
}

/// A file that was rotated, opened when that was heard of: from then on nobody can take it away.
#[derive(Debug)]
struct Later {
    time: Micros,
    /// And whether it is compressed; `None`: it was removed before.
    file: Option<(File, bool)>,
}

impl Reader {
    /// Of the units of these names in the folder of [`super::files::Settings`], written in this format.
    pub fn new(folder: &Path, units: &[&str], format: LogFormat) -> Self {
        let units = units.iter().map(|name| Unit::new(folder, name)).collect();
        Self { format, units, rotations: Rotations::default(), behind: false, once: false }
    }

    /// One more unit, whose log has just begun: [`Reader::more`] has it from its beginning.
    pub fn add(&mut self, folder: &Path, name: &str) {
        self.units.push(Unit::new(folder, name));
    }

    /// Misses no rotation from now on; before [`Self::last`]. `folder` is that of all units.
    pub fn follow(&mut self, folder: &Path) {
        self.rotations = Rotations::new();
        self.rotations.watch_units(folder);
    }

    /// [`Self::last`] is all that is asked for: no file stays open after it.
    pub fn once(&mut self) {
        self.once = true;
    }

    /// True if [`Self::last`] could read all that is there.
    pub fn is_whole(&self) -> bool {
        self.units.iter().all(|unit| unit.is_readable)
    }

    /// The last `count` lines of all units together, by time; [`Reader::more`] goes on after them. A unit without a
    /// log has no lines. In the place of a file that cannot be read there is a line that says why.
    pub fn last(&mut self, count: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for number in 0..self.units.len() {
            let unit = &mut self.units[number];
            unit.heard = self.rotations.watch(number, &unit.folder);
            let lines = unit.last(count, self.format);
            if self.once {
                unit.file = None;
            }
            entries.extend(lines.into_iter().map(|line| self.entry(number, line)));
        }
        sort(&mut entries);
        Ok(entries.split_off(entries.len().saturating_sub(count)))
    }

    /// Lines that have been written since, by time; empty if there are none yet. To follow, [`Self::wait`] and ask again.
    /// Of files that were removed before they could be read there is a line that says how many.
    pub fn more(&mut self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.behind = false;
        for number in 0..self.units.len() {
            let (mut lines, mut read) = (VecDeque::new(), 0);
            self.hear();
            while let Some(length) = self.next(number, &mut lines)? {
                read += length;
                if read > TURN {
                    self.behind = true;
                    break;
                }
                self.hear();
            }
            entries.extend(lines.into_iter().map(|line| self.entry(number, line)));
        }
        sort(&mut entries);
        Ok(entries)
    }

    /// [`Unit::next`] of one unit; an error names its folder.
    fn next(&mut self, number: usize, lines: &mut VecDeque<Vec<u8>>) -> io::Result<Option<u64>> {
        let unit = &mut self.units[number];
        unit.next(self.format, lines)
            .map_err(|error| io::Error::other(format!("{}: {}", unit.folder.display(), reason(&error))))
    }

    /// Waits for a rotation or for another unit, so long at most; not at all if there is more to read already.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn wait(&self, time: Duration) -> io::Result<()> {
        if self.behind { Ok(()) } else { self.rotations.wait(time) }
    }

    /// Takes what was heard of rotations. Whoever is not heard of is looked at.
    fn hear(&mut self) {
        for news in self.rotations.take() {
            match news {
                News::Rotated(unit, time) => self.units[unit].has_rotated(time),
                News::Gone(unit) => self.units[unit].heard = false,
                News::Lost => self.units.iter_mut().for_each(|unit| unit.heard = false),
            }
        }
        for (number, unit) in self.units.iter_mut().enumerate().filter(|(_, unit)| !unit.heard) {
            unit.heard = self.rotations.watch(number, &unit.folder);
            unit.look();
        }
    }

    fn entry(&self, unit: usize, raw: Vec<u8>) -> Entry {
        let parsed = match self.format {
            LogFormat::Plain => None,
            LogFormat::Stamped => parse_stamped(&raw),
            LogFormat::Json => parse_json(&raw),
        };
        // A line that was torn, or is another's, is shown as it is.
        let (time, stream, continued, text) =
            parsed.unwrap_or_else(|| (None, Stream::Out, false, raw.clone()));
        Entry { unit, time, stream, continued, text, raw }
    }
}

/// By time. A unit's lines stay in their order, whatever their times say; those without one stay behind the one before them.
fn sort(entries: &mut Vec<Entry>) {
    let (mut last, mut unit) = (None, usize::MAX);
    let mut timed: Vec<(Option<Micros>, Entry)> = Vec::with_capacity(entries.len());
    for entry in entries.drain(..) {
        if entry.unit != unit {
            (last, unit) = (None, entry.unit);
        }
        last = entry.time.or(last);
        timed.push((last, entry));
    }
    for at in (1..timed.len()).rev() {
        if timed[at - 1].1.unit == timed[at].1.unit {
            timed[at - 1].0 = timed[at - 1].0.min(timed[at].0);
        }
    }
    sort::by(&mut timed, &|(one, _), (other, _)| one.cmp(other));
    entries.extend(timed.into_iter().map(|(_, entry)| entry));
}

type Parsed = (Option<Micros>, Stream, bool, Vec<u8>);

fn parse_stamped(raw: &[u8]) -> Option<Parsed> {
    let time = parse_stamp(raw)?;
    let rest = &raw[STAMP..];
    [
        (&b" | "[..], Stream::Out, false),
        (b" |+ ", Stream::Out, true),
        (b" ! ", Stream::Err, false),
        (b" !+ ", Stream::Err, true),
    ]
    .into_iter()
    .find_map(|(mark, stream, continued)| {
        Some((Some(time), stream, continued, rest.strip_prefix(mark)?.to_vec()))
    })
}

fn parse_json(raw: &[u8]) -> Option<Parsed> {
    let value: serde_json::Value = serde_json::from_slice(raw).ok()?;
    let text = |name: &str| value.get(name)?.as_str();
    let stream = if text("stream") == Some("stderr") { Stream::Err } else { Stream::Out };
    let continued = value.get("continued").is_some();
    Some((parse_stamp(text("time")?.as_bytes()), stream, continued, text("text")?.as_bytes().to_vec()))
}

impl Unit {
    /// One of which nothing was read.
    fn new(folder: &Path, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            folder: folder.join(name),
            file: None,
            at: 0,
            partial: Vec::new(),
            fresh: false,
            past: Micros::MIN,
            rotated: VecDeque::new(),
            heard: false,
            is_readable: true,
        }
    }

    /// The last `count` lines, oldest first.
    fn last(&mut self, count: usize, format: LogFormat) -> Vec<Vec<u8>> {
        let (mut lines, mut unread) = (VecDeque::new(), None);
        let older = self.begin().unwrap_or_else(|error| {
            unread = Some(error);
            archive::rotated(&self.folder).unwrap_or_default()
        });
        if let Some(file) = &mut self.file {
            match last_lines(file, count, &mut lines, &mut self.partial) {
                Ok(at) => self.at = at,
                Err(error) => unread = Some(error),
            }
        }
        if let Some(error) = unread {
            self.file = None;
            lines.push_back(self.unreadable(format, format::wall_clock(), CURRENT, &error));
        }
        for rotated in older.iter().rev() {
            if lines.len() >= count {
                break;
            }
            let missing = count - lines.len();
            let mut older = read_rotated(&self.folder, rotated, missing).unwrap_or_else(|error| {
                VecDeque::from([self.unreadable(format, rotated.time, &rotated.name(), &error)])
            });
            older.append(&mut lines);
            lines = older;
        }
        lines.into()
    }

    /// Opens what is written now; returns what was rotated before it.
    fn begin(&mut self) -> io::Result<Vec<archive::Rotated>> {
        /// A rotation comes between all of these only where a file has a few lines.
        const TRIES: usize = 100;
        let mut files = Vec::new();
        (self.at, self.fresh) = (0, false);
        self.partial.clear();
        self.rotated.clear();
        for _ in 0..TRIES {
            self.file = None;
            let opened = self.open_current();
            files = existing(archive::rotated(&self.folder))?.unwrap_or_default();
            self.past = files.last().map_or(Micros::MIN, |file| file.time);
            self.file = opened?;
            if self.current()? == self.file.as_ref().map(inode).transpose()? {
                break;
            }
        }
        Ok(files)
    }

    fn open_current(&self) -> io::Result<Option<File>> {
        existing(state_folder::open(&self.folder.join(CURRENT)))
    }

    /// The inode of what is written now.
    fn current(&self) -> io::Result<Option<u64>> {
        Ok(existing(fs::metadata(self.folder.join(CURRENT)))?.map(|metadata| metadata.ino()))
    }

    /// A file was rotated at this time.
    fn has_rotated(&mut self, time: Micros) {
        if time <= self.past {
            return;
        }
        if let Err(at) = self.rotated.binary_search_by_key(&time, |later| later.time) {
            let file = open_rotated(&self.folder, time).ok().flatten();
            self.rotated.insert(at, Later { time, file });
        }
    }

    /// Looks for files that were rotated since.
    fn look(&mut self) {
        for file in archive::rotated(&self.folder).unwrap_or_default() {
            self.has_rotated(file.time);
        }
    }

    /// Appends what comes next; how many bytes were read for it. `None`: there is no more for now.
    fn next(&mut self, format: LogFormat, lines: &mut VecDeque<Vec<u8>>) -> io::Result<Option<u64>> {
        if std::mem::take(&mut self.fresh) && !self.rotated.is_empty() {
            // It is one of these, or comes after them.
            self.file = None;
        }
        if self.file.is_some() {
            return self.next_of_file(lines);
        }
        if let Some(later) = self.rotated.pop_front() {
            self.past = later.time;
            return match later.file {
                Some((file, packed)) => Ok(Some(read_whole(file, packed, lines).unwrap_or_else(|error| {
                    let name = archive::Rotated { time: later.time, packed }.name();
                    lines.push_back(self.unreadable(format, later.time, &name, &error));
                    0
                }))),
                None => {
                    lines.push_back(self.missed(format, later.time));
                    Ok(Some(0))
                }
            };
        }
        match self.open_current() {
            Ok(file) => (self.file, self.is_readable) = (file, true),
            Err(error) if self.is_readable => {
                lines.push_back(self.unreadable(format, format::wall_clock(), CURRENT, &error));
            }
            // That was told.
            Err(_) => {}
        }
        (self.at, self.fresh) = (0, true);
        Ok(self.file.is_some().then_some(0))
    }

    /// The same from the file that is followed.
    fn next_of_file(&mut self, lines: &mut VecDeque<Vec<u8>>) -> io::Result<Option<u64>> {
        // Asked before it is read: what is complete then is read to its end.
        let is_complete = !self.rotated.is_empty() || self.was_moved()?;
        let Some(file) = &mut self.file else { return Ok(None) };
        let (length, own) = (file.metadata()?.len(), inode(file)?);
        if length < self.at {
            // Somebody has emptied it.
            self.at = 0;
        }
        file.seek(SeekFrom::Start(self.at))?;
        let read =
            read_lines(&mut BufReader::new(file.take(u64::MAX)), usize::MAX, lines, &mut self.partial)?;
        self.at += read;
        if !is_complete {
            return Ok(None);
        }
        if !self.partial.is_empty() {
            lines.push_back(std::mem::take(&mut self.partial));
        }
        self.file = None;
        if self.rotated.front().is_some_and(|first| first.is(own))
            && let Some(first) = self.rotated.pop_front()
        {
            self.past = first.time;
        }
        Ok(Some(read))
    }

    /// True if another file is written now. Where it was not rotated, somebody else has moved it, or removed it.
    fn was_moved(&mut self) -> io::Result<bool> {
        let own = self.file.as_ref().map(inode).transpose()?;
        let moved = self.current()?.is_some_and(|current| Some(current) != own);
        if moved {
            self.look();
        }
        Ok(moved)
    }

    /// The line in the place of files that were removed, the first of them rotated at this time.
    fn missed(&mut self, format: LogFormat, time: Micros) -> Vec<u8> {
        let gone = self.rotated.iter().take_while(|later| later.file.is_none()).count();
        if let Some(last) = self.rotated.drain(..gone).next_back() {
            self.past = last.time;
        }
        let count = gone + 1;
        let files = if count == 1 { "1 file" } else { &format!("{count} files") };
        let text = format!("kitbag: {files} of this log went here before anybody could read them (`keep`)");
        self.note(format, time, &text)
    }

    /// The line in the place of a file of this name that cannot be read.
    fn unreadable(&mut self, format: LogFormat, time: Micros, name: &str, error: &io::Error) -> Vec<u8> {
        self.is_readable = false;
        let path = self.folder.join(name);
        self.note(format, time, &format!("kitbag: cannot read {}: {}", path.display(), reason(error)))
    }

    fn note(&self, format: LogFormat, time: Micros, text: &str) -> Vec<u8> {
        let batch = Batch { unit: 0, stream: Stream::Err, time, bytes: text.as_bytes(), continued: false };
        let mut stamp = Stamp::default();
        let mut line = Vec::new();
        match format {
            LogFormat::Plain => line.extend_from_slice(text.as_bytes()),
            LogFormat::Stamped => {
                format::stamped(&mut line, stamp.text(time), batch.stream, batch.bytes, false);
            }
            LogFormat::Json => {
                format::json(&mut line, stamp.text(time), &self.name, &batch, batch.bytes, false);
            }
        }
        line.truncate(line.trim_ascii_end().len());
        line
    }
}

impl Later {
    /// True if it is the file with this inode, which was the next one to be rotated: if it is not there any more, or
    /// is another one by now that says the same, it was this one.
    fn is(&self, own: u64) -> bool {
        match &self.file {
            Some((file, false)) => inode(file).is_ok_and(|inode| inode == own),
            Some((_, true)) | None => true,
        }
    }
}

fn inode(file: &File) -> io::Result<u64> {
    file.metadata().map(|metadata| metadata.ino())
}

/// Opens the file that was rotated at this time, and says whether it is compressed; `None`: it was removed.
fn open_rotated(folder: &Path, time: Micros) -> io::Result<Option<(File, bool)>> {
    // A compressed one is there before the plain one goes.
    for packed in [false, true] {
        let name = archive::Rotated { time, packed }.name();
        if let Some(file) = existing(state_folder::open(&folder.join(name)))? {
            return Ok(Some((file, packed)));
        }
    }
    Ok(None)
}

/// Appends all lines of a file that is complete; its length.
fn read_whole(mut file: File, packed: bool, lines: &mut VecDeque<Vec<u8>>) -> io::Result<u64> {
    let mut partial = Vec::new();
    let read = if packed {
        read_lines(&mut BufReader::new(Unpacked::new(file)), usize::MAX, lines, &mut partial)?
    } else {
        read_lines(&mut BufReader::new((&mut file).take(u64::MAX)), usize::MAX, lines, &mut partial)?
    };
    if !partial.is_empty() {
        lines.push_back(partial);
    }
    Ok(read)
}

/// `None` for what is not there.
fn existing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The last `count` lines of a file that is complete. It may be compressed, or removed, meanwhile.
fn read_rotated(folder: &Path, file: &archive::Rotated, count: usize) -> io::Result<VecDeque<Vec<u8>>> {
    let (mut lines, mut partial) = (VecDeque::new(), Vec::new());
    let other = archive::Rotated { packed: !file.packed, ..*file };
    for file in [file, &other] {
        let Some(mut opened) = existing(state_folder::open(&folder.join(file.name())))? else { continue };
        if file.packed {
            read_lines(&mut BufReader::new(Unpacked::new(opened)), count, &mut lines, &mut partial)?;
        } else {
            last_lines(&mut opened, count, &mut lines, &mut partial)?;
        }
        if !partial.is_empty() {
            lines.push_back(partial);
        }
        break;
    }
    while lines.len() > count {
        lines.pop_front();
    }
    Ok(lines)
}

/// The last `count` lines of a file, from its end backwards; its length. What has no newline goes to `partial`.
fn last_lines(
    file: &mut File,
    count: usize,
    lines: &mut VecDeque<Vec<u8>>,
    partial: &mut Vec<u8>,
) -> io::Result<u64> {
    const STEP: u64 = 256 * 1024;
    let length = file.metadata()?.len();
    let (mut from, mut newlines) = (length, 0);
    let mut block = Vec::new();
    // One newline more than lines: the one before the first.
    while from > 0 && newlines <= count {
        let start = from.saturating_sub(STEP);
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        (&mut *file).take(from - start).read_to_end(&mut block)?;
        newlines += memchr::memchr_iter(b'\n', &block).count();
        from = start;
    }
    file.seek(SeekFrom::Start(from))?;
    let read = read_lines(&mut BufReader::new((&mut *file).take(length - from)), count, lines, partial)?;
    Ok(from + read)
}

/// Appends lines, of which the last `count` stay. What has no newline goes to `partial`. Bytes read.
fn read_lines(
    reader: &mut impl BufRead,
    count: usize,
    lines: &mut VecDeque<Vec<u8>>,
    partial: &mut Vec<u8>,
) -> io::Result<u64> {
    let mut read = 0;
    loop {
        let length = reader.read_until(b'\n', partial)?;
        read += length as u64;
        if length == 0 || partial.last() != Some(&b'\n') {
            return Ok(read);
        }
        partial.pop();
        if lines.len() >= count {
            lines.pop_front();
        }
        if count > 0 {
            lines.push_back(std::mem::take(partial));
        }
        partial.clear();
    }
}

/// A compressed file as what it says.
struct Unpacked {
    file: BufReader<File>,
    decoder: zstd_safe::DCtx<'static>,
}

impl Unpacked {
    fn new(file: File) -> Self {
        Self { file: BufReader::with_capacity(128 * 1024, file), decoder: zstd_safe::DCtx::create() }
    }
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let bytes = self.file.fill_buf()?;
            let at_end = bytes.is_empty();
            let mut input = zstd_safe::InBuffer::around(bytes);
            let mut output = zstd_safe::OutBuffer::around(&mut *buffer);
            let answer = self.decoder.decompress_stream(&mut output, &mut input);
            let (read, written) = (input.pos(), output.pos());
            self.file.consume(read);
            answer.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            if written > 0 || at_end {
                return Ok(written);
            }
        }
    }
}
