//! Reads logs back: the last lines over rotated files, of several units by time, and what follows. For a command that
//! may wait, not for the supervisor.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kitbag_format::service::LogFormat;
use kitbag_format::sort;

use super::archive;
use super::files::CURRENT;
use super::format::{Micros, STAMP, parse_stamp};
use super::lines::Stream;

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

/// A reader of some units' logs.
#[derive(Debug)]
pub struct Reader {
    format: LogFormat,
    units: Vec<Unit>,
}

#[derive(Debug)]
struct Unit {
    folder: PathBuf,
    /// The file that is followed, and where in it.
    file: Option<File>,
    at: u64,
    /// Bytes before `at` that have no newline yet.
    partial: Vec<u8>,
}

impl Reader {
    /// Of the units of these names in the folder of [`super::files::Settings`], written in this format.
    pub fn new(folder: &Path, units: &[&str], format: LogFormat) -> Self {
        let unit = |name: &&str| Unit { folder: folder.join(name), file: None, at: 0, partial: Vec::new() };
        Self { format, units: units.iter().map(unit).collect() }
    }

    /// One more unit, whose log has just begun: [`Reader::more`] has it from its beginning.
    pub fn add(&mut self, folder: &Path, name: &str) {
        self.units.push(Unit { folder: folder.join(name), file: None, at: 0, partial: Vec::new() });
    }

    /// The last `count` lines of all units together, by time; [`Reader::more`] goes on after them. A unit without a
    /// log has no lines.
    pub fn last(&mut self, count: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for number in 0..self.units.len() {
            let lines = self.units[number].last(count)?;
            entries.extend(lines.into_iter().map(|line| self.entry(number, line)));
        }
        sort(&mut entries);
        Ok(entries.split_off(entries.len().saturating_sub(count)))
    }

    /// Lines that have been written since, by time; empty if there are none yet. To follow, ask again after 0.1 s or
    /// so. Several rotations in between are no loss, unless the files are not kept so long.
    pub fn more(&mut self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for number in 0..self.units.len() {
            let mut lines = VecDeque::new();
            self.units[number].next(&mut lines)?;
            entries.extend(lines.into_iter().map(|line| self.entry(number, line)));
        }
        sort(&mut entries);
        Ok(entries)
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

/// By time; lines without one stay behind the one before them.
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
    /// The last `count` lines, oldest first.
    fn last(&mut self, count: usize) -> io::Result<Vec<Vec<u8>>> {
        let mut lines = VecDeque::new();
        (self.file, self.at) = (None, 0);
        self.partial.clear();
        if let Some(mut file) = existing(File::open(self.folder.join(CURRENT)))? {
            self.at = last_lines(&mut file, count, &mut lines, &mut self.partial)?;
            self.file = Some(file);
        }
        for rotated in existing(archive::rotated(&self.folder))?.unwrap_or_default().iter().rev() {
            if lines.len() >= count {
                break;
            }
            let missing = count - lines.len();
            let mut older = read_rotated(&self.folder, rotated, missing)?;
            older.append(&mut lines);
            lines = older;
        }
        Ok(lines.into())
    }

    /// Appends what was written since.
    fn next(&mut self, lines: &mut VecDeque<Vec<u8>>) -> io::Result<()> {
        loop {
            let current = existing(fs::metadata(self.folder.join(CURRENT)))?.map(|metadata| metadata.ino());
            let Some(file) = &mut self.file else {
                if current.is_none() {
                    return Ok(());
                }
                self.file = existing(File::open(self.folder.join(CURRENT)))?;
                self.at = 0;
                continue;
            };
            let metadata = file.metadata()?;
            if metadata.len() < self.at {
                // Somebody has emptied it.
                self.at = 0;
            }
            file.seek(SeekFrom::Start(self.at))?;
            self.at += read_lines(&mut BufReader::new(file), usize::MAX, lines, &mut self.partial)?;
            if current == Some(metadata.ino()) || current.is_none() {
                return Ok(());
            }
            // It was complete when we read it: its name was another's already.
            let modified = metadata.modified()?;
            if !self.partial.is_empty() {
                lines.push_back(std::mem::take(&mut self.partial));
            }
            self.file = None;
            self.between(metadata.ino(), modified, lines)?;
        }
    }

    /// Appends what lies in files that were begun after one we know, and are complete already.
    fn between(
        &self,
        known: u64,
        modified: std::time::SystemTime,
        lines: &mut VecDeque<Vec<u8>>,
    ) -> io::Result<()> {
        let files = existing(archive::rotated(&self.folder))?.unwrap_or_default();
        let is_known = |file: &archive::Rotated| {
            let metadata = fs::metadata(self.folder.join(file.name()));
            metadata.is_ok_and(|metadata| metadata.ino() == known)
        };
        let micros = modified.duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_micros());
        let by_time = || files.iter().position(|file| file.time as u128 >= micros);
        let Some(place) = files.iter().position(is_known).or_else(by_time) else { return Ok(()) };
        for file in &files[place + 1..] {
            lines.append(&mut read_rotated(&self.folder, file, usize::MAX)?);
        }
        Ok(())
    }
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
        let Some(mut opened) = existing(File::open(folder.join(file.name())))? else { continue };
        if file.packed {
            let mut reader = BufReader::new(Unpacked::new(opened));
            read_lines(&mut reader, count, &mut lines, &mut partial)?;
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
